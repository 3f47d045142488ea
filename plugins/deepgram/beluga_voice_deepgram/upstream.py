"""One WebSocket to Deepgram: opened within a deadline, every send within another, closed without waiting for a silent server.

The SDK's `connect` makes a TLS context for each connection: 20 ms of the event loop, and 0.8 MB. So the core opens the
connection, and the SDK's class speaks over it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from beluga_voice.vendor_socket import open_socket

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

    from .vendor import Client

__all__ = ["Upstream"]

SEND_TIMEOUT_MS = 5_000.0
CLOSE_TIMEOUT_MS = 250.0
LARGEST_MESSAGE_BYTES = 2**20


class Upstream:
    """An open socket. `socket` is the SDK's own object for it."""

    def __init__(self, connection: ClientConnection, socket: Any) -> None:
        self.socket = socket
        self._connection = connection

    @classmethod
    async def open(cls, client: Client, path: str, query: Mapping[str, Any]) -> Upstream:
        """Connect.

        Args:
            client: what `engine.client()` gives.
            path: "/v1/listen", "/v2/listen" or "/v1/speak".
            query: Deepgram's parameters by their names; a list is sent as one parameter for each of its values, and what is
                None not at all.

        Raises:
            Exception: what `open_socket` does.
        """
        url = f"{client.ws_url}{path}?{_encoded(query)}"
        connection = await open_socket(url, client.headers, max_bytes=LARGEST_MESSAGE_BYTES)
        return cls(connection, client.sockets[path](websocket=connection))

    async def send(self, sending: Awaitable[object]) -> None:
        """Await one of the socket's `send_...`.

        Raises:
            TimeoutError: the server takes nothing.
            Exception: whatever the SDK and the network raise.
        """
        async with asyncio.timeout(SEND_TIMEOUT_MS / 1000.0):
            await sending

    async def recv(self) -> Any:
        """The next message: bytes, one of the SDK's objects, or None for a type it does not know.

        Raises:
            ConnectionClosed: it is closed, by whomever.
            ValueError: what came is no JSON.
        """
        return await self.socket.recv()

    async def aclose(self, goodbye: Awaitable[object] | None = None) -> None:
        """Say `goodbye`, close, and after `CLOSE_TIMEOUT_MS`, or when cancelled, cut the connection."""
        try:
            with suppress(Exception):
                async with asyncio.timeout(CLOSE_TIMEOUT_MS / 1000.0):
                    if goodbye is not None:
                        await goodbye
                    await self._connection.close()
        finally:
            self._connection.transport.abort()


def _encoded(query: Mapping[str, Any]) -> str:
    pairs = []
    for name, values in query.items():
        for value in values if isinstance(values, list | tuple) else (values,):
            if value is not None:
                pairs.append((name, str(value).lower() if isinstance(value, bool) else value))
    return urlencode(pairs)
