"""A proxy on 127.0.0.1, as companies have them: it passes requests on, and makes tunnels."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit

__all__ = ["LoopbackProxy", "no_proxies"]

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def no_proxies(monkeypatch):
    """Forget the proxies that the environment names."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class LoopbackProxy:
    """An async context manager. `asked` has what it was told to reach; `status` other than 200 refuses tunnels.

    One that `breaks` ends each tunnel as it begins.
    """

    def __init__(self):
        self.asked: list[str] = []
        self.headers: list[bytes] = []
        self.status = 200
        self.silent = False
        self.breaks = False
        self.open_connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_):
        self._server.close()
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    def _connected(self, reader, writer):
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader, writer):
        self.open_connections += 1
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._pass_on(reader, writer)
        finally:
            self.open_connections -= 1
            writer.transport.abort()

    async def _pass_on(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
        self.asked.append(f"{method} {target}")
        self.headers.append(head)
        if self.silent:
            await reader.read()
            return
        if self.status != 200:
            writer.write(b"HTTP/1.1 %d Refused\r\ncontent-length: 0\r\n\r\n" % self.status)
            return await writer.drain()
        if self.breaks:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            return await writer.drain()
        there = urlsplit(target if "//" in target else f"//{target}")
        far_reader, far_writer = await asyncio.open_connection(there.hostname, there.port)
        try:
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                far_writer.write(head)
            ways = [asyncio.ensure_future(_pipe(reader, far_writer)), asyncio.ensure_future(_pipe(far_reader, writer))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.wait(ways)
        finally:
            far_writer.transport.abort()


async def _pipe(reader, writer):
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
