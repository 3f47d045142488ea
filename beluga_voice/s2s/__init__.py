"""Speech to speech: one model that takes audio and gives audio.

In a chain it stands alone where turn, STT, agent and TTS would: `Chain(s2s.new("openai"))`, with or without a VAD before it.
The stage keeps the conversation going over as many connections as it takes: one that breaks is made anew, with the history, and
what the caller said meanwhile is heard.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from .._registry import Kind, Provider
from .contract import S2S, S2SCapabilities, S2SSession
from .failover import Failover, failover
from .stage import as_frame_processor

__all__ = [
    "S2S",
    "Failover",
    "S2SCapabilities",
    "S2SSession",
    "as_frame_processor",
    "describe",
    "failover",
    "names",
    "new",
    "register",
]

_kind = Kind("s2s")


def new(name: str, **options: Any) -> S2S:
    """Make the speech-to-speech model of that name."""
    return cast(S2S, _kind.new(name, **options))


def names() -> list[str]:
    """The installed speech-to-speech models."""
    return _kind.names()


def describe(name: str) -> Provider:
    """What is known of a model: options, distribution, capabilities."""
    return _kind.describe(name)


def register(name: str, factory: Callable[..., S2S], **told: Any) -> None:
    """Register a model of this program's own."""
    _kind.register(name, factory, **told)
