"""One WebSocket of the SDK: opened within a deadline, every send within another, closed without waiting for a silent server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from typing import Any

__all__ = ["Upstream"]

OPEN_TIMEOUT_MS = 3_000.0
SEND_TIMEOUT_MS = 5_000.0
CLOSE_TIMEOUT_MS = 250.0
MOST_CANCELS = 10


class Upstream:
    """An open socket. `socket` is the SDK's own object for it.

    The SDK only offers `async with client.connect(...)`, and would wait 20 s for a handshake and 40 s for a goodbye.
    """

    def __init__(self, socket: Any, stack: AsyncExitStack) -> None:
        self.socket = socket
        self._stack = stack

    @classmethod
    async def open(cls, connecting: AbstractAsyncContextManager[Any], timeout_ms: float = OPEN_TIMEOUT_MS) -> Upstream:
        """Enter the SDK's `connect(...)`.

        Raises:
            TimeoutError: the server has not answered the handshake within `timeout_ms`.
            Exception: whatever the SDK and the network raise.
        """
        stack = AsyncExitStack()
        entering = asyncio.create_task(stack.enter_async_context(connecting), name="deepgram handshake")
        try:
            await asyncio.wait([entering], timeout=timeout_ms / 1000.0)
            if not entering.done():
                raise TimeoutError(f"the handshake was not answered within {timeout_ms:g} ms")
            return cls(entering.result(), stack)
        except BaseException:
            for _ in range(MOST_CANCELS):  # the first begins the SDK's clean-up, which would wait 10 s for a silent server
                if entering.done():
                    break
                entering.cancel()
                await asyncio.sleep(0)
            if entering.done() and not entering.cancelled() and entering.exception() is None:
                await cls(entering.result(), stack).aclose()
            raise

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
        """Say `goodbye`, close, and after `CLOSE_TIMEOUT_MS` cut the connection."""
        closing = asyncio.create_task(self._close(goodbye), name="deepgram goodbye")
        try:
            await asyncio.wait([closing], timeout=CLOSE_TIMEOUT_MS / 1000.0)
        finally:
            if not closing.done():
                self._abort()
                await asyncio.wait([closing], timeout=CLOSE_TIMEOUT_MS / 1000.0)

    def _abort(self) -> None:
        """Cut the connection. The SDK has no way to: this reaches for the socket below it, and for both that it waits for."""
        websocket = self.socket._websocket
        websocket.fail_connection()  # ends the reading, also of a queue that is full
        websocket.transport.abort()

    async def _close(self, goodbye: Awaitable[object] | None) -> None:
        with suppress(Exception):
            if goodbye is not None:
                await goodbye
        with suppress(Exception):
            await self._stack.aclose()
