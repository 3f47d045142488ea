"""One WebSocket as the client sees it, and how it is opened; what is imported only when somebody dials."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import attrs

from ..errors import ConfigError, ConnectFailedError
from ..wire import MAX_BYTES, SUBPROTOCOL

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

__all__ = ["Closed", "Dial", "Socket", "checked_url", "dial"]

# What the server says in JSON may be longer than audio: the history of a long call.
LONGEST_MESSAGE = 16 * MAX_BYTES
CLOSE_S = 1.0
NO_CLOSE_FRAME = 1006
REFUSED_BY_US = (1002, 1007, 1009)


@attrs.frozen
class Closed:
    """How a socket ended: `code` (1006 when it broke without a word) and the other side's `reason`."""

    code: int
    reason: str


class Socket(Protocol):
    """An open WebSocket."""

    async def receive(self) -> str | bytes | Closed:
        """The next message, or how the socket ended; raises nothing."""

    async def send(self, message: str | bytes) -> None:
        """Send; once the socket has ended it does nothing."""

    async def close(self, code: int, reason: str) -> None:
        """Close it; within a second it is gone whatever the other side does."""

    def abort(self) -> None:
        """Drop it now, without a word. Must not wait."""


Dial = Callable[[str], Awaitable[Socket]]


def checked_url(url: str) -> str:
    """`url` if it is one to dial.

    Raises:
        ConfigError: it is not ws:// or wss:// with a host.
    """
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("ws", "wss") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        fine = False
    if not fine or not url.isprintable() or " " in url:
        raise ConfigError(f"{url!r} is not a WebSocket address; expected one like ws://127.0.0.1:8080/v1/voice")
    return url


async def dial(url: str) -> Socket:
    """Open a WebSocket to `url`.

    Raises:
        ConfigError: the package `websockets` is missing.
        ConnectFailedError: nobody answered there, or not as a server of this protocol does.
    """
    try:
        from websockets import Subprotocol
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidStatus, WebSocketException
    except ImportError as error:
        raise ConfigError(f"the client needs websockets ({error}); pip install 'beluga-voice[client]'") from None
    try:
        opened = await connect(
            url,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            compression=None,
            ping_interval=None,
            open_timeout=None,
            close_timeout=CLOSE_S,
            max_size=LONGEST_MESSAGE,
        )
    except InvalidStatus as error:
        status = error.response.status_code
        raise ConnectFailedError(
            f"{url} answered with HTTP status {status}; expected a WebSocket server: check the address and its path",
            kind="transport",
        ) from None
    except (OSError, WebSocketException, EOFError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConnectFailedError(f"{url} could not be reached ({why}); is it running there?", kind="transport") from None
    if opened.subprotocol != SUBPROTOCOL:
        opened.transport.abort()
        raise ConnectFailedError(
            f"{url} does not speak {SUBPROTOCOL} (it chose {opened.subprotocol!r}); is it a beluga-voice server?",
            kind="transport",
        )
    return _WebSocket(opened)


class _WebSocket:
    """A `websockets` connection."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    async def receive(self) -> str | bytes | Closed:
        from websockets.exceptions import ConnectionClosed

        try:
            return await self._connection.recv()
        except ConnectionClosed as error:
            if error.rcvd is not None:
                return Closed(int(error.rcvd.code), error.rcvd.reason)
            if error.sent is not None and error.sent.code in REFUSED_BY_US:
                return Closed(int(error.sent.code), f"the server sent what is no message: {error.sent.reason}")
            return Closed(NO_CLOSE_FRAME, "the connection broke")

    async def send(self, message: str | bytes) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            await self._connection.send(message)
        except ConnectionClosed:
            return  # the reader learns how it ended

    async def close(self, code: int, reason: str) -> None:
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._connection.close(code, reason)
        except TimeoutError:
            pass
        finally:
            self.abort()

    def abort(self) -> None:
        self._connection.transport.abort()
