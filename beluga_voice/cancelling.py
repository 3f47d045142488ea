"""Requests that may be cancelled at any moment.

`httpcore` (1.0.9) keeps a connection open and counts it as busy for ever when a task is cancelled at one of two moments:
between the end of connecting and the first byte sent, and while the end of an answer is noted. Callers interrupt, so it
happens. Here no read and no close is ever cancelled: the connection is closed under it, and ends it with an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from ._streams import finish, stop

__all__ = ["cancellable_transport"]


def cancellable_transport(httpx: Any, **settings: Any) -> Any:
    """A transport for a client of `httpx` (give the module), made with `settings`."""

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
        async def handle_async_request(self, request: Any) -> Any:
            connected = f"connection.{'start_tls' if request.url.scheme == 'https' else 'connect_tcp'}.complete"
            may_stop = asyncio.Event()
            may_stop.set()

            async def trace(event: str, _: Any) -> None:
                if event == connected:
                    may_stop.clear()
                elif event.endswith("send_request_headers.started"):
                    may_stop.set()

            request.extensions["trace"] = trace
            sending = asyncio.create_task(super().handle_async_request(request), name="http request")
            sending.add_done_callback(lambda _: may_stop.set())
            try:
                await asyncio.wait([sending])
            except asyncio.CancelledError:
                await may_stop.wait()
                await stop(sending)
                if not sending.cancelled() and sending.exception() is None:
                    await sending.result().aclose()
                raise
            response = sending.result()
            response.stream = Body(response)
            return response

    return Transport(**settings)


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)
