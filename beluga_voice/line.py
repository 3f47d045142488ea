"""A session's line: one transport, or one after another when the first is lost and the session goes on over a new one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from ._streams import stop
from .errors import LineLost
from .frames import AudioOut, Frame
from .transport import Transport

__all__ = ["Line"]


class Line(Transport):
    """What the stages and the playout know of the transport: it may be replaced under them.

    `played_ms` counts on over all transports.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.input_rate_hz, self.output_rate_hz = transport.input_rate_hz, transport.output_rate_hz
        self.capabilities = transport.capabilities
        self._before_ms = 0.0
        self._replaced: asyncio.Future[None] | None = None
        self._fresh = False  # replaced, and not read since

    def replace(self, transport: Transport) -> Transport:
        """Go on over `transport`; gives the one before, which is still to be closed.

        Raises:
            ValueError: its rates are not those of the line.
        """
        ours, other = (self.input_rate_hz, self.output_rate_hz), (transport.input_rate_hz, transport.output_rate_hz)
        if ours != other:
            raise ValueError(f"a line of {other[0]} Hz in and {other[1]} Hz out cannot go on one of {ours[0]} and {ours[1]} Hz")
        self._before_ms += self.transport.played_ms - transport.played_ms
        old, self.transport = self.transport, transport
        self.capabilities, self._fresh = transport.capabilities, True
        if self._replaced is not None and not self._replaced.done():
            self._replaced.set_result(None)
        return old

    async def reattached(self) -> None:
        if self._fresh:
            return
        replaced = self._replaced = asyncio.get_running_loop().create_future()
        back = asyncio.get_running_loop().create_task(self._same_back(), name="line back")
        try:
            await asyncio.wait({replaced, back}, return_when=asyncio.FIRST_COMPLETED)
            if back.done():
                back.result()
        finally:
            self._replaced = None
            await stop(back)

    async def _same_back(self) -> None:
        """The transport itself is back; one that cannot come back is waited for in vain."""
        if self.transport.capabilities.resumable:
            await self.transport.reattached()
        else:
            await asyncio.get_running_loop().create_future()

    def recv(self) -> AsyncIterator[Frame]:
        self._fresh = False
        return self.transport.recv()

    async def send(self, frame: AudioOut) -> None:
        transport = self.transport
        try:
            await transport.send(frame)
        except Exception:
            if transport is self.transport:
                raise  # else it was given up already, and the rest is for the one in its place

    def clear(self) -> None:
        self.transport.clear()

    def pause(self) -> bool:
        return self.transport.pause()

    def go_on(self) -> None:
        self.transport.go_on()

    @property
    def played_ms(self) -> float:
        return self._before_ms + self.transport.played_ms

    def covered(self, seq: int) -> None:
        self.transport.covered(seq)

    def saved(self) -> dict[str, Any]:
        return self.transport.saved()

    def notify(self, event: Any) -> None:
        self.transport.notify(event)

    async def aclose(self) -> None:
        await self.transport.aclose()


class NoLine(Transport):
    """The line of a session that is only asked by text."""

    def recv(self) -> AsyncIterator[Frame]:
        raise LineLost("a session without a line cannot be heard; give it a transport")

    async def send(self, frame: AudioOut) -> None:
        return None

    def clear(self) -> None:
        return None

    @property
    def played_ms(self) -> float:
        return 0.0

    async def aclose(self) -> None:
        return None
