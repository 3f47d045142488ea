"""What goes wrong in a run of pydantic-ai, in our words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from pydantic_ai import exceptions as theirs

from beluga_voice.errors import (
    AgentError,
    AuthError,
    BelugaVoiceError,
    ConnectFailedError,
    InvalidRequestError,
    OverloadedError,
    ProtocolError,
    ProviderTimeoutError,
    QuotaError,
)
from beluga_voice.failures import Row, Told, failure

__all__ = ["failed"]

SHORTEST_SECRET = 8


def _refused_for_now(error: Any) -> Told:
    return Told(str(error.message), 429, retry_after_ms=None if error.retry_after is None else error.retry_after * 1000.0)


def _http(error: Any) -> Told:
    return Told(str(error.message), error.status_code, str(error.provider_error_code or ""))


# In order: the categories before what they are made of.
ROWS: tuple[Row, ...] = (
    (theirs.ModelAuthenticationError, AuthError),
    (theirs.ModelQuotaExceededError, QuotaError),
    (theirs.ModelRateLimitError, _refused_for_now),
    (theirs.ModelRequestRejectedError, InvalidRequestError),
    ((theirs.ModelTimeoutError, theirs.ModelRequestTimeout), ProviderTimeoutError),
    (theirs.ModelConnectionError, ConnectFailedError),
    ((theirs.ModelUnavailableError, theirs.ModelServerError, theirs.ConcurrencyLimitExceeded), OverloadedError),
    (theirs.ModelHTTPError, _http),
    ((theirs.UnexpectedModelBehavior, theirs.ModelAPIError), ProtocolError),
)
OF_THE_MODEL = (theirs.ModelAPIError, theirs.UnexpectedModelBehavior, theirs.ConcurrencyLimitExceeded)


def failed(error: Exception, provider: str, secret: str) -> BelugaVoiceError:
    """The error to raise for one of a run: of the provider, if the model failed, else of the agent.

    Args:
        error: what was caught.
        provider: our name for the agent.
        secret: the model's key, if it is known.
    """
    if isinstance(error, BelugaVoiceError):
        return error
    if isinstance(error, theirs.FallbackExceptionGroup):  # of several models: the last had the last word
        return failed(error.exceptions[-1], provider, secret)
    if isinstance(error, OF_THE_MODEL):
        told: BelugaVoiceError = failure(error, ROWS, provider=provider, kind="agent", env_var="the vendor's variable")
    else:
        told = AgentError(f"agent {provider!r}: {type(error).__name__}: {error}")
    text = str(told)
    for hidden in (secret, *_secrets()):
        text = text.replace(hidden, "***") if len(hidden) >= SHORTEST_SECRET else text
    told.args = (text,)
    return told


def _secrets() -> Iterator[str]:
    """Every value of the environment that may be a key: pydantic-ai's providers take theirs from there."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST_SECRET and any(sign in name.upper() for sign in ("KEY", "TOKEN", "SECRET", "PASSWORD")):
            yield value
