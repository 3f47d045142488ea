"""Speech to text. An author writes what the engine has, batch or stream; the base class serves the other.

>>> from contextlib import aclosing
>>> from beluga_voice.audio import Audio
>>> from beluga_voice.frames import Transcript
>>> class Length(STT):
...     async def transcribe(self, audio):
...         return Transcript(f"{audio.duration_ms:.0f} ms")
>>> async def main():
...     async with aclosing(Length().stream()) as stream:
...         await stream.send(Audio(bytes(3200), 16000))
...         await stream.finalize()
...         return (await anext(stream)).text
>>> asyncio.run(main())
'100 ms'
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from .._registry import Kind, Provider
from ..resilience import ResilienceOptions
from .contract import STT, BatchStream, Options, STTCapabilities, STTStream
from .failover import Failover
from .stage import as_frame_processor

__all__ = [
    "STT",
    "BatchStream",
    "Failover",
    "Options",
    "STTCapabilities",
    "STTStream",
    "as_frame_processor",
    "describe",
    "failover",
    "names",
    "new",
    "register",
]

_kind = Kind("stt")


def new(name: str, **options: Any) -> STT:
    """Make the recogniser of that name, like `new("moonshine")`."""
    return cast(STT, _kind.new(name, **options))


def names() -> list[str]:
    """The installed recognisers."""
    return _kind.names()


def describe(name: str) -> Provider:
    """What is known of a recogniser: options, distribution, capabilities."""
    return _kind.describe(name)


def register(name: str, factory: Callable[..., STT], **told: Any) -> None:
    """Register a recogniser of this program's own."""
    _kind.register(name, factory, **told)


def failover(*engines: STT, options: ResilienceOptions | None = None) -> Failover:  # takes the place of its module's name
    """One recogniser made of several, in order of preference, like `failover(new("deepgram"), new("moonshine"))`.

    Args:
        engines: one or more.
        options: how long each is waited for, how often tried, when left alone.

    Raises:
        ChainError: some of them end turns by themselves and some do not.
    """
    return Failover(*engines, options=options)
