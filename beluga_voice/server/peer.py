"""The caller's end of one WebSocket, as `WireLine.serve` wants it, over Starlette's."""

from __future__ import annotations

import asyncio

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from .. import wire
from ..errors import LineLost

__all__ = ["Peer"]

CLOSE_TIMEOUT_MS = 2_000.0
HUNG_UP = 1000
YIELD_EVERY = 4


class Peer:
    """A `Socket`: messages in and out, and a close with its reason.

    Attributes:
        hung_up: the caller closed with 1000, which is a goodbye; any other end is a lost line.
    """

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self.hung_up = False
        self._sent = 0

    async def receive(self) -> str | bytes | None:
        """The next message; None once the caller is gone."""
        if self._websocket.client_state is not WebSocketState.CONNECTED:
            return None
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            self.hung_up = message.get("code") == HUNG_UP and self._websocket.application_state is WebSocketState.CONNECTED
            return None
        text: str | None = message.get("text")
        data: bytes | None = message.get("bytes")
        return data if data is not None else text or ""

    async def send(self, message: str | bytes) -> None:
        """Send one message; waits while the caller takes no more.

        Raises:
            LineLost: the caller is gone, or the socket was closed.
        """
        self._sent += 1
        if self._sent % YIELD_EVERY == 0:
            await asyncio.sleep(0)  # a send that need not wait gives way to nobody, not even to the news that the peer is gone
        try:
            if isinstance(message, str):
                await self._websocket.send_text(message)
            else:
                await self._websocket.send_bytes(message)
        except (WebSocketDisconnect, RuntimeError, OSError) as error:
            raise LineLost("the WebSocket is closed") from error

    async def close(self, code: int, reason: str) -> None:
        """Close with `code` and `reason`; nothing happens where it is closed already."""
        if self._websocket.application_state is WebSocketState.DISCONNECTED:
            return
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_MS / 1000.0):
                await self._websocket.close(code, wire.shorten(reason))
        except (WebSocketDisconnect, RuntimeError, OSError, TimeoutError):
            return
