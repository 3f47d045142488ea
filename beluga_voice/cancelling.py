"""Requests that may be cancelled at any moment, over the proxy that the environment names.

`httpcore` (1.0.9) keeps a connection open and counts it as busy for ever when a task is cancelled between the end of connecting
and the first byte sent, or while the end of an answer is noted, and when TLS through a proxy fails or is cancelled; `httpcore2`
(2.16) in the last case. Callers interrupt, so it happens. Here a request that does not end well closes its connection, and no
read and no close is ever cancelled: the connection is closed under it, and ends it with an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from importlib import import_module
from typing import Any

from ._streams import finish, forget
from .vendor_socket import proxy_for, tls_context

__all__ = ["cancellable_transport"]


def cancellable_transport(httpx: Any, *, url: str, **settings: Any) -> Any:
    """A transport for a client of `httpx` or `httpx2` (give the module) that calls `url` and no other host.

    `settings` are those of the module's own transport.

    It trusts whom the sockets trust (`tls_context`), and goes the way that they go (`proxy_for`): a client that is given a
    transport does not look into the environment for one.
    """
    core = import_module(httpx.__name__.replace("httpx", "httpcore"))

    class Connection:
        def __init__(self, made: Any) -> None:
            self._made, self._over = made, False

        def __getattr__(self, name: str) -> Any:
            return getattr(self._made, name)

        def is_closed(self) -> bool:
            return self._over or bool(self._made.is_closed())

        async def handle_async_request(self, request: Any) -> Any:
            streams: list[Any] = []  # while TLS begins nobody else knows them

            async def trace(event: str, told: dict[str, Any]) -> None:
                if event.endswith("connect_tcp.complete"):
                    streams.append(told["return_value"])

            request.extensions = {**request.extensions, "trace": trace}
            try:
                return await self._made.handle_async_request(request)
            except core.ConnectionNotAvailable:  # another request has it
                raise
            except BaseException:
                self._over = True
                for one in (*streams, self._made):
                    await finish(asyncio.create_task(one.aclose(), name="http close"))
                raise

    class Body(httpx.AsyncByteStream):  # type: ignore[misc]
        def __init__(self, response: Any) -> None:
            self._stream, self._connection = response.stream, response.extensions["network_stream"]

        async def __aiter__(self) -> AsyncIterator[bytes]:
            pieces = aiter(self._stream)
            while True:
                reading = asyncio.create_task(_next(pieces), name="http read")
                try:
                    await asyncio.wait([reading])
                except asyncio.CancelledError:
                    reading.add_done_callback(forget)  # cancelled once more, this waits for it no longer
                    await self._connection.aclose()
                    await finish(reading)
                    raise
                piece = reading.result()
                if piece is None:
                    return
                yield piece

        async def aclose(self) -> None:
            await finish(asyncio.create_task(self._stream.aclose(), name="http close"))

    class Transport(httpx.AsyncHTTPTransport):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(verify=tls_context(), proxy=proxy_for(url), **settings)
            connect = self._pool.create_connection
            self._pool.create_connection = lambda origin: Connection(connect(origin))

        async def handle_async_request(self, request: Any) -> Any:
            response = await super().handle_async_request(request)
            response.stream = Body(response)
            return response

    return Transport()


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)
