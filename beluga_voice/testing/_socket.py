"""The server's end of one WebSocket, well or sick."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Request as Handshake
from websockets.protocol import State
from websockets.server import ServerProtocol

from .._streams import Channel
from ..clock import Clock

if TYPE_CHECKING:
    from .loopback import Request

__all__ = ["Socket"]

READ_BYTES = 65_536
MOST_BYTES = 16 * 2**20
UNKNOWN = json.dumps({"type": "a_type_of_2031", "message_type": "a_type_of_2031", "news": [1, {"two": None}]})
QUIET = logging.getLogger(f"{__name__}.protocol")  # at DEBUG it would log every handshake's headers, keys and all
QUIET.setLevel(logging.INFO)
GARBAGE = "{this is: no JSON"


class Socket(AsyncIterator["bytes | str"]):
    """One WebSocket. Iterating gives the client's messages until it closes.

    Attributes:
        request: its handshake.
        received: every message that came, in order.
        closed: set once it is closed, by whomever.
        close_code: the client's close code; None while it is open, or when the connection broke.
        closed_ms: when that was.
    """

    def __init__(self, request: Request, writer: asyncio.StreamWriter, clock: Clock) -> None:
        self.request, self.sick = request, request.sick
        self.received: list[bytes | str] = []
        self.closed = asyncio.Event()
        self.close_code: int | None = None
        self.closed_ms: float | None = None
        self._writer, self._clock = writer, clock
        self._protocol = ServerProtocol(max_size=MOST_BYTES, logger=QUIET)
        self._messages: Channel[bytes | str] = Channel(100_000)
        self._parts: list[bytes] = []
        self._is_text = False
        self._sent = 0

    def __aiter__(self) -> Socket:
        return self

    async def __anext__(self) -> bytes | str:
        return await anext(self._messages)

    async def send(self, message: bytes | str | Mapping[str, Any]) -> None:
        """Send bytes, text, or a mapping as JSON. On a sick socket: what that makes of it.

        Raises:
            ConnectionResetError: the socket is closed.
        """
        self._check_open()
        told = message if isinstance(message, (bytes, str)) else json.dumps(message)
        sick, well = self.sick, self._sent
        self._sent += 1
        if sick is not None and well >= sick.after:
            if sick.kind == "hang":
                return
            if sick.kind == "cut":
                self.abort()
                raise ConnectionResetError("cut")
            if sick.kind == "drip":
                await self._clock.sleep_ms(sick.every_ms)
                self._check_open()
            elif sick.kind == "garbage":
                told = sick.body.decode("latin-1") or GARBAGE
            elif sick.kind == "unknown":
                self._protocol.send_text(UNKNOWN.encode())
            elif sick.kind == "odd" and isinstance(told, bytes):
                for at in range(0, len(told), 333):
                    self._protocol.send_binary(told[at : at + 333])
                await self._flush()
                return
        if isinstance(told, bytes):
            self._protocol.send_binary(told)
        else:
            self._protocol.send_text(told.encode())
        await self._flush()

    def _check_open(self) -> None:
        if self.closed.is_set() or self._protocol.state is not State.OPEN:
            raise ConnectionResetError("the socket is closed")

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close it; closing twice does nothing."""
        if not self.closed.is_set() and self._protocol.close_sent is None:
            self._protocol.send_close(code, reason)
            await self._flush()
            await self.closed.wait()

    def abort(self) -> None:
        """Break the connection without a word."""
        self._writer.transport.abort()
        self._over(None)

    # --- the server's side -------------------------------------------------------------------------------------------

    def _accept(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        handshake = next(event for event in self._protocol.events_received() if isinstance(event, Handshake))
        self._protocol.send_response(self._protocol.accept(handshake))
        self._writer.write(b"".join(self._protocol.data_to_send()))

    async def _refuse(self, status: int, headers: Mapping[str, str], body: bytes, data: bytes) -> None:
        self._protocol.receive_data(data)
        response = self._protocol.reject(status, body.decode("latin-1"))
        for name, value in headers.items():
            response.headers[name] = value
        self._protocol.send_response(response)
        await self._flush()

    async def _feed(self, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(READ_BYTES):
                self._protocol.receive_data(data)
                await self._flush()
                for event in self._protocol.events_received():
                    if isinstance(event, Frame):
                        self._frame(event)
                if self._protocol.close_rcvd is not None:
                    self._over(self._protocol.close_rcvd)
                    return
        finally:
            self._over(None)

    def _frame(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._is_text, self._parts = frame.opcode is Opcode.TEXT, []
        elif frame.opcode is not Opcode.CONT:
            return
        self._parts.append(bytes(frame.data))
        if frame.fin:
            whole = b"".join(self._parts)
            message: bytes | str = whole.decode() if self._is_text else whole
            self.received.append(message)
            self._messages.put_over(message)

    async def _flush(self) -> None:
        self._writer.write(b"".join(data for data in self._protocol.data_to_send() if data))
        await self._writer.drain()

    def _over(self, close: Close | None) -> None:
        if not self.closed.is_set():
            self.close_code = close.code if close is not None else None
            self.closed_ms = self._clock.now_ms()
            self.closed.set()
            self._messages.close()
