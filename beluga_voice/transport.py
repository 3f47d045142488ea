"""Transports: what carries audio between a person and a session.

>>> line = new("memory")
>>> line.input_rate_hz
16000
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar, cast

import attrs

from ._registry import Kind, Provider
from .frames import AudioOut, Frame

__all__ = ["Transport", "TransportCapabilities", "describe", "names", "new", "register"]


@attrs.frozen
class TransportCapabilities:
    """What a line is: `live` where the caller speaks in real time whether anybody reads or not (a file waits)."""

    live: bool = True


class Transport(ABC):
    """One line to one person. A factory checks its options when it makes one; nothing is opened before `recv`."""

    kind: ClassVar[str] = "transport"
    capabilities: TransportCapabilities = TransportCapabilities()
    provider: str = ""
    input_rate_hz: int = 16_000
    output_rate_hz: int = 16_000

    @abstractmethod
    def recv(self) -> AsyncIterator[Frame]:
        """What the person sends, in order, at the pace of the line: `AudioIn` (unplaced), `TextIn`, `DTMF`, `EndTurn`, ...

        Three different ends: the iteration ends (the person hung up), `LineLost` is raised (the line broke and the person
        may come back), any other error (the transport itself failed).
        """

    @abstractmethod
    async def send(self, frame: AudioOut) -> None:
        """Send audio to be played after all that was sent before; waits while the line takes no more.

        Raises:
            LineLost: the line broke.
        """

    @abstractmethod
    def clear(self) -> None:
        """Drop at once what was sent and is not played yet. Must not wait."""

    @property
    @abstractmethod
    def played_ms(self) -> float:
        """How much audio was really played since the line opened; what `clear` dropped never counts."""

    def notify(self, event: Any) -> None:
        """Hear of a session event (`SessionEvent`), to tell the person's side; must not wait. The default does nothing."""

    @abstractmethod
    async def aclose(self) -> None:
        """Hang up and free everything; may be called twice."""


_kind = Kind("transport")


def new(name: str, **options: Any) -> Transport:
    """Make a line over the transport of that name, like `new("file", input="hello.wav")`."""
    return cast(Transport, _kind.new(name, **options))


def names() -> list[str]:
    """The installed transports."""
    return _kind.names()


def describe(name: str) -> Provider:
    """What is known of a transport: options, distribution, capabilities."""
    return _kind.describe(name)


def register(name: str, factory: Callable[..., Transport], **told: Any) -> None:
    """Register a transport of this program's own."""
    _kind.register(name, factory, **told)
