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
from .errors import LineLost
from .frames import AudioOut, Frame

__all__ = ["Transport", "TransportCapabilities", "describe", "names", "new", "register"]


@attrs.frozen
class TransportCapabilities:
    """What a line is: `live` where the caller speaks in real time whether anybody reads or not (a file waits).

    `resumable` where a line that was lost may come back as the same line: see `Transport.reattached`.
    """

    live: bool = True
    resumable: bool = False


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
        may come back), any other error (the transport itself failed). After `reattached` it is called anew and goes on with
        what was not given yet.
        """

    @abstractmethod
    async def send(self, frame: AudioOut) -> None:
        """Send audio to be played after all that was sent before; waits while the line takes no more.

        A resumable line keeps what it is given while it is lost, and waits when that is too much.

        Raises:
            LineLost: the line broke and is not resumable.
        """

    @abstractmethod
    def clear(self) -> None:
        """Drop at once what was sent and is not played yet. Must not wait."""

    @property
    @abstractmethod
    def played_ms(self) -> float:
        """How much audio was really played since the line opened; what `clear` dropped never counts."""

    def pause(self) -> bool:
        """Stop playing now, keeping what was sent for `go_on`. Must not wait.

        False where the line cannot: it is then cleared, and sent again what was not played. The default cannot.
        """
        return False

    def go_on(self) -> None:
        """Play on from where `pause` stopped. Must not wait."""

    async def reattached(self) -> None:
        """Wait until the lost line is back; what was sent and not played goes on being played. Only on a resumable line."""
        raise LineLost(f"transport {self.provider or type(self).__name__!r} does not come back once it is lost")

    def covered(self, seq: int) -> None:
        """Hear that everything up to number `seq` is kept in the session's store. Must not wait. The default does nothing."""

    def saved(self) -> dict[str, Any]:
        """What another process needs to take this line up, as plain JSON values. The default: nothing."""
        return {}

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
