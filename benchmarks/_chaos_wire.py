"""A wire between one caller and the servers: a TCP proxy on loopback that breaks when told, in every way a network does."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Callable
from typing import Literal

How = Literal["rst", "fin"]


class Wire:
    """Listens on a port of its own and passes bytes on to whatever `target` says at each connection.

    Attributes:
        outage: nobody answers: connections are reset at once.
        cut_after: bytes, up and down together, after which the next connection is cut, once; None: not.
        opened: how many connections were passed on.
        cuts: connections that were cut, by how.
    """

    def __init__(self, target: Callable[[], tuple[str, int] | None]) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self.pairs: set[Pair] = set()
        self.outage = False
        self.cut_after: int | None = None
        self.stalled = False
        self.opened = 0
        self.cuts: Counter[str] = Counter()
        self.port = 0

    async def __aenter__(self) -> Wire:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Near(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        for pair in tuple(self.pairs):
            pair.end("rst")

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/voice"

    @property
    def target(self) -> tuple[str, int] | None:
        return None if self.outage else self._target()

    def cut(self, how: How) -> int:
        """Cut every connection now; how many there were."""
        count = len(self.pairs)
        for pair in tuple(self.pairs):
            pair.end(how)
        if count:
            self.cuts[how] += 1
        return count

    def stall(self) -> None:
        """What is open now passes nothing on any more, and tells nobody. New connections work."""
        for pair in self.pairs:
            pair.stalled = True


class Pair:
    """One connection: the caller's half and the server's."""

    def __init__(self, wire: Wire, near: asyncio.Transport, target: tuple[str, int]) -> None:
        self.wire, self.near = wire, near
        self.target = target
        self.far: asyncio.Transport | None = None
        self.waiting: list[bytes] = []
        self.passed = 0
        self.stalled = self.ended = False
        self.cut_after, wire.cut_after = wire.cut_after, None
        wire.pairs.add(self)
        wire.opened += 1
        self.dialling = asyncio.create_task(self.dial())

    async def dial(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: Far(self), *self.target)
        except OSError:
            self.end("rst")

    def up(self, data: bytes) -> None:
        if self.stalled or self.count(data):
            return
        if self.far is None:
            self.waiting.append(data)
        else:
            self.far.write(data)

    def down(self, data: bytes) -> None:
        if not self.stalled and not self.count(data):
            self.near.write(data)

    def count(self, data: bytes) -> bool:
        self.passed += len(data)
        if self.cut_after is not None and self.passed >= self.cut_after:
            self.wire.cuts["in the handshake"] += 1
            self.end("rst")
            return True
        return False

    def far_made(self, far: asyncio.Transport) -> None:
        self.far = far
        if self.ended:
            drop(far, "rst")
            return
        for data in self.waiting:
            far.write(data)
        self.waiting.clear()

    def end(self, how: How) -> None:
        if not self.ended:
            self.ended = True
            self.wire.pairs.discard(self)
            self.dialling.cancel()
            for transport in (self.near, self.far):
                if transport is not None:
                    drop(transport, how)

    def half_closed(self, near: bool) -> None:
        """One half has ended by itself: so does the other; on a stalled line nobody hears of it."""
        if self.stalled:
            return
        self.end("fin")


def drop(transport: asyncio.Transport, how: How) -> None:
    """End a connection; what was not sent yet is lost with a reset, and sent before a goodbye."""
    sock = transport.get_extra_info("socket")
    if how == "rst":
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()


class Near(asyncio.Protocol):
    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.pair: Pair | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        target = self.wire.target
        if target is None:
            drop(transport, "rst")
        else:
            self.pair = Pair(self.wire, transport, target)

    def data_received(self, data: bytes) -> None:
        if self.pair is not None:
            self.pair.up(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.pair is not None:
            self.pair.half_closed(True)


class Far(asyncio.Protocol):
    def __init__(self, pair: Pair) -> None:
        self.pair = pair

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.pair.far_made(transport)

    def data_received(self, data: bytes) -> None:
        self.pair.down(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.pair.half_closed(False)
