"""Text to speech. An author writes what the engine has, batch or stream; the base class serves the other.

>>> from beluga_voice import Audio
>>> class Beep(TTS):
...     async def synthesize(self, text):
...         return Audio(bytes(320 * len(text)), 16000)
>>> async def main():
...     async def texts():
...         yield "hi"
...     return [piece.text async for piece in Beep().synthesize_stream(texts())]
>>> asyncio.run(main())
['hi']
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from .._registry import Kind, Provider
from ..resilience import ResilienceOptions
from .contract import TTS, Options, TTSCapabilities
from .failover import Failover
from .sentences import SentenceSplitter
from .stage import as_frame_processor

__all__ = [
    "TTS",
    "Failover",
    "Options",
    "SentenceSplitter",
    "TTSCapabilities",
    "as_frame_processor",
    "describe",
    "failover",
    "names",
    "new",
    "register",
]

_kind = Kind("tts")


def new(name: str, **options: Any) -> TTS:
    """Make the voice of that name, like `new("espeak")`."""
    return cast(TTS, _kind.new(name, **options))


def names() -> list[str]:
    """The installed voices."""
    return _kind.names()


def describe(name: str) -> Provider:
    """What is known of a voice: options, distribution, capabilities."""
    return _kind.describe(name)


def register(name: str, factory: Callable[..., TTS], **told: Any) -> None:
    """Register a voice of this program's own."""
    _kind.register(name, factory, **told)


def failover(*engines: TTS, options: ResilienceOptions | None = None) -> Failover:  # takes the place of its module's name
    """One voice made of several, in order of preference, like `failover(new("elevenlabs"), new("espeak"))`.

    Args:
        engines: one or more.
        options: how long each is waited for, how often tried, when left alone.
    """
    return Failover(*engines, options=options)
