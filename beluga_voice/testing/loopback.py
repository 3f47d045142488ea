"""A server on 127.0.0.1 that plays a provider's part: HTTP and WebSockets, well or sick, in the loop of the test.

Subclass it with a provider's protocol (`answer` for HTTP, `converse` for WebSockets), point the real SDK at `url`, and make it
sick. In simulated time (`beluga_voice.clock.run_simulated`) a server that hangs for a minute takes no time.

>>> class Shouting(LoopbackServer):
...     async def answer(self, request):
...         return Answer(200, body=request.body.upper())
...     async def converse(self, socket):
...         async for message in socket:
...             await socket.send(message.upper())
>>> async def main():
...     async with Shouting() as server:
...         server.sicken(Sickness("refuse", status=429, retry_after_s=2))
...         return [await the_sdk(server.url), server.requests[0].path]
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import parse_qs, unquote, urlsplit

import attrs
import h11

from ..clock import Clock
from ._socket import Socket

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Answer", "LoopbackServer", "Request", "Sickness", "Socket"]

READ_BYTES = 65_536
DRIP_BYTES = 512
ODD_SIZES = (1, 3, 7, 333, 5, 1_021)
Kind = Literal["refuse", "hang", "cut", "drip", "garbage", "odd", "unknown", "empty"]


@attrs.frozen
class Sickness:
    """What is wrong with a call.

    Attributes:
        kind: "refuse" (HTTP `status` instead of an answer or a handshake), "hang" (nothing more comes), "cut" (the connection
            breaks), "drip" (little by little), "garbage" (not what the protocol allows), "odd" (binary in odd lengths),
            "unknown" (messages of types nobody knows in between), "empty" (the provider's answer without content).
        status: for "refuse".
        retry_after_s: for "refuse": its Retry-After header.
        after: what goes out well before it begins: bytes of an HTTP body, messages of a WebSocket. "hang" after 0: no answer,
            no handshake.
        every_ms: for "drip": between two pieces.
        body: for "refuse" and "garbage": what is sent; the server's own choice if left out.
    """

    kind: Kind
    status: int = 500
    retry_after_s: float | None = None
    after: int = 0
    every_ms: float = 500.0
    body: bytes = b""


@attrs.define(eq=False)
class Request:
    """One HTTP request or WebSocket handshake, as it came, and what became of it."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes = attrs.field(repr=lambda body: f"<{len(body)} bytes>")
    sick: Sickness | None = None
    at_ms: float = 0.0
    ended_ms: float | None = None  # when its answer was whole, or the client had gone
    whole: bool = False  # the answer was sent to its end
    over: asyncio.Event = attrs.field(factory=asyncio.Event, repr=False)


@attrs.frozen
class Answer:
    """An HTTP answer; a body that is an iterator is sent piece by piece, as it is made."""

    status: int = 200
    headers: Mapping[str, str] = attrs.field(factory=dict)
    body: bytes | AsyncIterator[bytes] = b""


class LoopbackServer:
    """A provider's server. An async context manager: from `async with` on it listens at `url`, and leaves nothing behind.

    Attributes:
        requests: every HTTP request and every handshake, in order.
        sockets: every WebSocket that was accepted, in order.
        sick: what is wrong with every call, while it is set.
        open_connections: TCP connections that are open now.
        api_key: the key it expects; what is done with it is the subclass's affair.
        tls: set before it is entered, it makes this an https:// server: a server's context with a certificate for 127.0.0.1.
    """

    def __init__(self, *, api_key: str = "loopback-key") -> None:
        self.api_key = api_key
        self.tls: ssl.SSLContext | None = None
        self.requests: list[Request] = []
        self.sockets: list[Socket] = []
        self.sick: Sickness | None = None
        self.clock = Clock()
        self.open_connections = 0
        self._next: deque[Sickness] = deque()
        self._share, self._random = 0.0, random.Random(0)
        self._of_share: tuple[Sickness, ...] = ()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    # --- what a provider does ----------------------------------------------------------------------------------------

    async def answer(self, request: Request) -> Answer:
        """The answer to an HTTP request."""
        return Answer(404, body=b'{"error": "no such path"}')

    async def greet(self, request: Request) -> Answer | None:
        """What refuses a WebSocket's handshake; None accepts it."""
        return None

    async def converse(self, socket: Socket) -> None:
        """Speak with one WebSocket; when this returns the socket is closed with code 1000."""
        await socket.close(1008, "nothing here")

    def refusal(self, sickness: Sickness) -> bytes:
        """The body of a refusal, as the provider words it."""
        return sickness.body or b'{"error": "sick"}'

    # --- sickness ----------------------------------------------------------------------------------------------------

    def sicken(self, sickness: Sickness, calls: int = 1) -> None:
        """Make the next `calls` calls sick."""
        self._next.extend([sickness] * calls)

    def sicken_share(self, share: float, sicknesses: Sequence[Sickness], seed: int = 0) -> None:
        """Make calls sick at random, `share` of them, each with one of `sicknesses`."""
        self._share, self._random, self._of_share = share, random.Random(seed), tuple(sicknesses)

    def _sickness(self) -> Sickness | None:
        if self._next:
            return self._next.popleft()
        if self._share and self._random.random() < self._share:
            return self._random.choice(self._of_share)
        return self.sick

    # --- its life ----------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Its http:// or https:// root."""
        assert self._server is not None, "the server runs within `async with`"
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def open_sockets(self) -> int:
        """WebSockets that are open now."""
        return sum(not socket.closed.is_set() for socket in self.sockets)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self.tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    async def abort(self) -> None:
        """Die: break every connection and listen no more, as a killed server does."""
        await self.__aexit__()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer), name="loopback connection")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_connections += 1
        try:
            with suppress(ConnectionError, h11.RemoteProtocolError):
                await _Connection(self, reader, writer).run()
        finally:
            self.open_connections -= 1
            writer.transport.abort()


class _Connection:
    """One TCP connection: requests in turn, or a WebSocket."""

    def __init__(self, server: LoopbackServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server, self._reader, self._writer = server, reader, writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=1_000_000)
        self._read = b""

    async def run(self) -> None:
        while (request := await self._request()) is not None:
            request.sick = self._server._sickness()
            self._server.requests.append(request)
            try:
                if request.headers.get("upgrade", "").lower() == "websocket":
                    await self._websocket(request)
                    return
                await self._answer(request)
                request.whole = True
            finally:
                request.ended_ms = self._server.clock.now_ms()
                request.over.set()
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def _request(self) -> Request | None:
        head: h11.Request | None = None
        body = b""
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                data = await self._reader.read(READ_BYTES)
                self._read += data
                self._http.receive_data(data)
            elif isinstance(event, h11.Request):
                head = event
                if b"upgrade" in dict(event.headers):
                    return self._made(event, b"")
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return self._made(head, body)
            else:
                return None

    def _made(self, head: h11.Request, body: bytes) -> Request:
        url = urlsplit(head.target.decode())
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in head.headers}
        query = parse_qs(url.query, keep_blank_values=True)
        at_ms = self._server.clock.now_ms()
        return Request(head.method.decode(), unquote(url.path), query, headers, body, at_ms=at_ms)

    # --- HTTP --------------------------------------------------------------------------------------------------------

    async def _answer(self, request: Request) -> None:
        """Answer, unless the client goes away meanwhile."""
        sending = asyncio.ensure_future(self._send(request))
        gone = asyncio.ensure_future(self._reader.read(1))
        try:
            await asyncio.wait([sending, gone], return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                raise ConnectionResetError("the client has gone")
            await sending
        finally:
            for task in (sending, gone):
                task.cancel()
                with suppress(asyncio.CancelledError, ConnectionError):
                    await task

    async def _send(self, request: Request) -> None:
        sick = request.sick
        if sick is not None and sick.kind == "refuse":
            headers = {"content-type": "application/json"}
            if sick.retry_after_s is not None:
                headers["retry-after"] = f"{sick.retry_after_s:g}"
            answer = Answer(sick.status, headers, self._server.refusal(sick))
        elif sick is not None and sick.kind == "hang" and not sick.after:
            await asyncio.Event().wait()
            return
        elif sick is not None and sick.kind == "cut" and not sick.after:
            raise ConnectionAbortedError("cut")
        elif sick is not None and sick.kind == "garbage" and not sick.after:
            answer = Answer(200, {"content-type": "text/html"}, sick.body or b"<html>\xff\x00 It works! </html>")
            sick = None
        else:
            answer = await self._server.answer(request)
        headers = dict(answer.headers)
        if isinstance(answer.body, bytes) and sick is None:
            headers["content-length"] = str(len(answer.body))
        else:
            headers["transfer-encoding"] = "chunked"
        await self._write(h11.Response(status_code=answer.status, headers=list(headers.items())))
        pieces = _one(answer.body) if isinstance(answer.body, bytes) else answer.body
        try:
            async for piece in self._sickened(pieces, sick):
                if piece:
                    await self._write(h11.Data(data=piece))
        finally:
            close = getattr(pieces, "aclose", None)
            if close is not None:
                await close()
        await self._write(h11.EndOfMessage())

    async def _sickened(self, pieces: AsyncIterator[bytes], sick: Sickness | None) -> AsyncIterator[bytes]:
        if sick is None or sick.kind in ("refuse", "unknown", "empty"):
            async for piece in pieces:
                yield piece
            return
        sent, turn = 0, 0
        async for piece in pieces:
            while piece:
                well = sick.after - sent
                if well > 0:
                    size = well
                elif sick.kind == "hang":
                    await asyncio.Event().wait()
                elif sick.kind == "cut":
                    raise ConnectionAbortedError("cut")
                elif sick.kind == "garbage":
                    self._writer.write(sick.body or b"\xff\x00 this is no chunk \r\n\r\n")
                    await self._writer.drain()
                    raise ConnectionAbortedError("garbage")
                elif sick.kind == "drip":
                    size = DRIP_BYTES
                    await self._server.clock.sleep_ms(sick.every_ms)
                else:
                    size, turn = ODD_SIZES[turn % len(ODD_SIZES)], turn + 1
                yield piece[:size]
                sent += len(piece[:size])
                piece = piece[size:]
        if sick.kind in ("cut", "garbage"):
            raise ConnectionAbortedError(sick.kind)
        if sick.kind == "hang":
            await asyncio.Event().wait()

    async def _write(self, event: Any) -> None:
        self._writer.write(self._http.send(event) or b"")
        await self._writer.drain()

    # --- WebSockets --------------------------------------------------------------------------------------------------

    async def _websocket(self, request: Request) -> None:
        sick = request.sick
        if sick is not None and sick.kind == "hang" and not sick.after:
            await self._reader.read()  # until the client gives up
            return
        refusal = await self._server.greet(request)
        if sick is not None and sick.kind == "refuse":
            headers = {} if sick.retry_after_s is None else {"retry-after": f"{sick.retry_after_s:g}"}
            refusal = Answer(sick.status, headers, self._server.refusal(sick))
        socket = Socket(request, self._writer, self._server.clock)
        if refusal is not None:
            await socket._refuse(refusal.status, refusal.headers, bytes(cast(bytes, refusal.body)), self._read)
            return
        socket._accept(self._read)
        self._server.sockets.append(socket)
        reading = asyncio.ensure_future(socket._feed(self._reader))
        try:
            with suppress(ConnectionError):
                await self._server.converse(socket)
                await socket.close()
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError, ConnectionError):
                await reading
            socket._over(None)


async def _one(body: bytes) -> AsyncIterator[bytes]:
    yield body
