"""Every hook a plugin may implement, each a verb: first registration, then the life of a session.

A plugin is a module with functions marked `@hookimpl`, named in the entry-point group `beluga_voice`, stating
`BELUGA_VOICE_API = 1`. Registration hooks get `register(name, factory, *, summary, options, capabilities)`; the factory does
the heavy import. Lifecycle hooks are announcements: plain functions, called off the audio path, which must not block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pluggy

__all__ = ["API", "GROUP", "hookimpl", "hookspec"]

GROUP = "beluga_voice"
API = 1

F = TypeVar("F", bound=Callable[..., Any])
_spec = pluggy.HookspecMarker(GROUP)
_impl = pluggy.HookimplMarker(GROUP)


def hookspec(function: F) -> F:
    """Mark a hook's specification."""
    return _spec(function)


def hookimpl(function: F) -> F:
    """Mark a plugin's function as the implementation of the hook of that name."""
    return _impl(function)


# --- registration ----------------------------------------------------------------------------------------------------


@hookspec
def register_stt(register: Callable[..., None]) -> None:
    """Register speech-to-text providers."""


@hookspec
def register_tts(register: Callable[..., None]) -> None:
    """Register text-to-speech providers."""


@hookspec
def register_vad(register: Callable[..., None]) -> None:
    """Register voice activity detectors."""


@hookspec
def register_turn(register: Callable[..., None]) -> None:
    """Register turn detectors."""


@hookspec
def register_agent(register: Callable[..., None]) -> None:
    """Register agents."""


@hookspec
def register_s2s(register: Callable[..., None]) -> None:
    """Register speech-to-speech providers."""


@hookspec
def register_transport(register: Callable[..., None]) -> None:
    """Register transports."""


@hookspec
def register_store(register: Callable[..., None]) -> None:
    """Register session stores."""


@hookspec
def register_processor(register: Callable[..., None]) -> None:
    """Register any other frame processor: gain, noise suppression, a filter, a recorder."""


# --- the life of a session -------------------------------------------------------------------------------------------


@hookspec
def session_opened(session_id: str) -> None:
    """A session began."""


@hookspec
def session_closed(session_id: str, reason: str) -> None:
    """A session ended; `reason` is "bye", "idle", "lost", "error", ..."""


@hookspec
def state_changed(session_id: str, old: str, new: str) -> None:
    """A session moved from one state to another."""


@hookspec
def transcript(session_id: str, text: str, is_final: bool) -> None:
    """Words of the caller were heard."""


@hookspec
def turn_finished(session_id: str, turn: Any) -> None:
    """A turn and its reply are over; `turn` is the session's `TurnRecord`."""


@hookspec
def interrupted(session_id: str, heard_text: str) -> None:
    """The caller spoke into a reply and it stopped."""


@hookspec
def error(session_id: str, stage: str, error: Exception) -> None:
    """A piece of work failed; the session goes on unless it closes next."""


@hookspec
def failed_over(session_id: str, kind: str, old: str, new: str) -> None:
    """Another provider took over."""
