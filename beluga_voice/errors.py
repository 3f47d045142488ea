"""Every error the package raises, in one tree.

::

    BelugaVoiceError
    |- PluginError
    |  |- UnknownProviderError (LookupError)   no installed plugin has that name
    |  |- DuplicateProviderError               two distributions claim one name
    |  `- BrokenPluginError                    a plugin that does not load; .distribution, __cause__
    |- ConfigError (ValueError)
    |  |- OptionError                          an unknown option, or a value of the wrong type
    |  |- MissingKeyError                      an environment variable that is not set; .env_var
    |  |- AudioFormatError                     .wanted, .got
    |  |- AudioFileError                       a file that cannot be read or written as audio; .path
    |  `- ChainError                           stages in an order that cannot work; .stage, .missing
    |- ProviderError                           .provider, .kind, .retryable, .other_may_help
    |  |- ConnectFailedError
    |  |- ProviderTimeoutError (TimeoutError)
    |  |- AuthError
    |  |- InvalidRequestError
    |  |- RateLimitError                       .retry_after_ms
    |  |- QuotaError
    |  |- OverloadedError
    |  `- ProtocolError
    |- AgentError                              the user's agent raised, gave the wrong thing or took too long
    |- ToolError                               raised by a tool of the user's, to tell the model what went wrong
    |- SessionError
    |  |- InvalidTransitionError               .current, .event, .allowed
    |  |- SessionClosedError                   a call on a session that has ended
    |  |- SessionLimitError                    .limit, .retry_after_ms
    |  |- SessionNotFoundError (LookupError)   no session of that id lives, or can be taken up again
    |  |- DuplicateSessionError                a session of that id lives already
    |  `- ReconnectError                       a lost line did not come back; .attempts
    `- TransportClosed                         the line ended; LineLost is its unwanted form

A message has three beats: what happened (with the value), what was expected, what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

__all__ = [
    "AgentError",
    "AudioFileError",
    "AudioFormatError",
    "AuthError",
    "BelugaVoiceError",
    "BrokenPluginError",
    "ChainError",
    "ConfigError",
    "ConnectFailedError",
    "DuplicateProviderError",
    "DuplicateSessionError",
    "InvalidRequestError",
    "InvalidTransitionError",
    "LineLost",
    "MissingKeyError",
    "OptionError",
    "OverloadedError",
    "PluginError",
    "ProtocolError",
    "ProviderError",
    "ProviderTimeoutError",
    "QuotaError",
    "RateLimitError",
    "ReconnectError",
    "SessionClosedError",
    "SessionError",
    "SessionLimitError",
    "SessionNotFoundError",
    "ToolError",
    "TransportClosed",
    "UnknownProviderError",
]


class BelugaVoiceError(Exception):
    """The root: `except BelugaVoiceError` catches all that this package raises on purpose."""


class PluginError(BelugaVoiceError):
    """Something about an installed plugin."""


class UnknownProviderError(PluginError, LookupError):
    """No installed plugin registers that name; the message lists what is installed."""


class DuplicateProviderError(PluginError):
    """Two distributions register one name; the message names both and how to choose."""


class BrokenPluginError(PluginError):
    """A plugin that fails to load. `distribution` names it; `__cause__` is its own error."""

    def __init__(self, message: str, *, distribution: str = "") -> None:
        super().__init__(message)
        self.distribution = distribution


class ConfigError(BelugaVoiceError, ValueError):
    """A value given by the user cannot be used."""


class OptionError(ConfigError):
    """An option nobody knows, or a value of the wrong type or out of range."""


class MissingKeyError(ConfigError):
    """An environment variable named in a configuration is not set. `env_var` is its name."""

    def __init__(self, message: str, *, env_var: str) -> None:
        super().__init__(message)
        self.env_var = env_var


class AudioFormatError(ConfigError):
    """Audio of another format than expected."""

    def __init__(self, message: str, *, wanted: object = None, got: object = None) -> None:
        super().__init__(message)
        self.wanted, self.got = wanted, got


class AudioFileError(ConfigError):
    """A file that cannot be read or written as audio. `path` is the file."""

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path


class ChainError(ConfigError):
    """Stages in an order that cannot work. `stage` names the one to move, `missing` what it lacks."""

    def __init__(self, message: str, *, stage: str = "", missing: str = "") -> None:
        super().__init__(message)
        self.stage, self.missing = stage, missing


class ProviderError(BelugaVoiceError):
    """A provider's call failed.

    `retryable` says that the same call may work later; `other_may_help` that another provider may do it now.
    """

    retryable: ClassVar[bool] = False
    other_may_help: ClassVar[bool] = True

    def __init__(self, message: str, *, provider: str = "", kind: str = "") -> None:
        super().__init__(message)
        self.provider, self.kind = provider, kind


class ConnectFailedError(ProviderError):
    """The provider could not be reached."""

    retryable = True


class ProviderTimeoutError(ProviderError, TimeoutError):
    """The provider did not answer in time."""

    retryable = True


class AuthError(ProviderError):
    """The provider refused the credential."""


class InvalidRequestError(ProviderError):
    """The provider refused the request itself: asking it again changes nothing. What one refuses (a model that is gone, a text
    that is too long) another may take."""


class RateLimitError(ProviderError):
    """Too many calls. `retry_after_ms` is the provider's own wish, if it told one."""

    retryable = True

    def __init__(
        self, message: str, *, provider: str = "", kind: str = "", retry_after_ms: float | None = None
    ) -> None:
        super().__init__(message, provider=provider, kind=kind)
        self.retry_after_ms = retry_after_ms


class QuotaError(ProviderError):
    """The account's quota or credit is used up."""


class OverloadedError(ProviderError):
    """The provider is up but cannot take the call now."""

    retryable = True


class ProtocolError(ProviderError):
    """The provider answered something its documentation does not allow."""


class AgentError(BelugaVoiceError):
    """The user's agent raised, gave something that is not text, or took too long."""


class ToolError(BelugaVoiceError):
    """Raise it in a tool to tell the model what went wrong: its message is what the model reads."""


class SessionError(BelugaVoiceError):
    """Something about a session."""


class InvalidTransitionError(SessionError):
    """A move that the state table lacks."""

    def __init__(self, current: str, event: str, allowed: Iterable[str]) -> None:
        self.current, self.event, self.allowed = current, event, tuple(allowed)
        known = ", ".join(self.allowed) or "nothing: it is a final state"
        super().__init__(f"state {current!r} has no move on {event!r}; expected one of: {known}")


class SessionClosedError(SessionError):
    """A call on a session that has ended."""


class SessionLimitError(SessionError):
    """A limit is reached. `limit` is its name, as in the configuration; `retry_after_ms` when to try again, where known."""

    def __init__(self, message: str, *, limit: str, retry_after_ms: float | None = None) -> None:
        super().__init__(message)
        self.limit, self.retry_after_ms = limit, retry_after_ms


class SessionNotFoundError(SessionError, LookupError):
    """No session of that id lives, or it cannot be taken up again; the message says which."""


class DuplicateSessionError(SessionError):
    """A session of that id lives already."""


class ReconnectError(SessionError):
    """A lost line did not come back. `attempts` is how often it was tried."""

    def __init__(self, message: str, *, attempts: int = 0) -> None:
        super().__init__(message)
        self.attempts = attempts


class TransportClosed(BelugaVoiceError):
    """The line has ended: the normal end of a session, never logged as a fault."""


class LineLost(TransportClosed):
    """The line broke without a goodbye; the session may be resumed."""
