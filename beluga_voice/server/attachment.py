"""One socket on a line, from its welcome to its end."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

__all__ = ["Attachment", "Socket"]

PONGS = 16


class Socket(Protocol):
    """A WebSocket as the line wants it.

    Attributes:
        hung_up: once `receive` gave None: the peer closed with 1000, which is a goodbye. Any other end is a lost line.
    """

    hung_up: bool

    async def receive(self) -> str | bytes | None:
        """The next message; None once the peer is gone. Raises nothing."""

    async def send(self, message: str | bytes) -> None:
        """Send one message, waiting while the peer takes no more.

        Raises:
            LineLost: the peer is gone.
        """

    async def close(self, code: int, reason: str) -> None:
        """Close with `code` and `reason`, in bounded time; nothing happens where it is closed."""


class Attachment:
    """A socket and what is known of it: when it was heard and written, what waits for it without a number, how it ends."""

    def __init__(self, socket: Socket, now_ms: float) -> None:
        self.socket = socket
        self.heard_ms = self.written_ms = now_ms
        self.writing_ms: float | None = None  # since when a write is under way
        self.cursor = 0  # the number that is written next
        self.holds = False  # the session takes no more: the reader waits, so nothing can be heard
        self.proven = False  # the client has sent something after the welcome
        self.ack_wanted = self.ping_wanted = False
        self.pongs: deque[float] = deque(maxlen=PONGS)
        self.news = asyncio.Event()
        self.ended: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        self.stopped = asyncio.Event()  # nothing is read or written any more
        self.closed = asyncio.Event()
        self.timer: asyncio.TimerHandle | None = None

    def end(self, code: int, reason: str) -> None:
        """Stop, and close the socket with `code` (0: it is gone already)."""
        if not self.ended.done():
            self.ended.set_result((code, reason))
