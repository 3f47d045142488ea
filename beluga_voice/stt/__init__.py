"""Speech to text. An author writes what the engine has, batch or stream; the base class serves the other.

>>> class Length(STT):
...     async def transcribe(self, audio):
...         return Transcript(f"{audio.duration_ms:.0f} ms")
>>> async def main():
...     async with closing(Length().stream()) as stream:
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
from .contract import STT, BatchStream, Options, STTCapabilities, STTStream
from .stage import as_frame_processor

__all__ = [
    "STT",
    "BatchStream",
    "Options",
    "STTCapabilities",
    "STTStream",
    "as_frame_processor",
    "describe",
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
