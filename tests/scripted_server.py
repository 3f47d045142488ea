"""The far end of a browser's call in tests: a server that says what it is told, and a line that can be cut or fall silent."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from chromium import PATIENCE_S
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp
from starlette.websockets import WebSocket, WebSocketDisconnect

from beluga_voice.server.asgi import PAGE, Guard
from beluga_voice.wire import SUBPROTOCOL, audio

REPORTS = ("ack", "ping", "pong", "played", "stopped")  # carry no number of their own


class Server(uvicorn.Server):
    """Uvicorn without its signal handlers, which says when it listens."""

    def __init__(self, app: ASGIApp) -> None:
        config = uvicorn.Config(app, log_level="error", ws_per_message_deflate=False, timeout_graceful_shutdown=5)
        super().__init__(config)
        self.listens = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()


@asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[int]:
    """An application over a real socket: gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(app)
        serving = asyncio.create_task(server._serve([listener]))
        try:
            async with asyncio.timeout(PATIENCE_S):
                await server.listens.wait()
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await serving


class Line:
    """A network between the browser and a server."""

    def __init__(self, far_port: int) -> None:
        self._far_port = far_port
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._refuses = False

    def cut(self) -> None:
        """Break every connection, as a network does: without a word."""
        for writer in self._writers:
            writer.transport.abort()

    def refuse(self) -> None:
        """Let no new connection through."""
        self._refuses = True

    def fall_silent(self) -> None:
        """From now on nothing arrives on what is open, and no connection ends. New connections work."""
        self._flows.clear()
        self._flows = asyncio.Event()
        self._flows.set()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from the browser's side."""
        if self._refuses:
            writer.transport.abort()
            return
        flows = self._flows
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._far_port)
        ends = {writer, far_writer}
        self._writers |= ends
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_pass_on(reader, far_writer, flows))
                both.create_task(_pass_on(far_reader, writer, flows))
        finally:
            self._writers -= ends
            for end in ends:
                end.transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flows: asyncio.Event) -> None:
    try:
        while data := await reader.read(65_536):
            await flows.wait()
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        return


@asynccontextmanager
async def line_to(far_port: int) -> AsyncIterator[tuple[Line, str]]:
    """A line to a server at `far_port`, and the address of the line's near end."""
    line = Line(far_port)
    server = await asyncio.start_server(line.carry, "127.0.0.1", 0)
    try:
        yield line, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        line.cut()


class ScriptedServer:
    """A server without a mind of its own: `call` gives the browser's connections one by one.

    Attributes:
        pcm: what the caller said, each number once, in order.
        received_seq: the last number of the caller's that came in order.
        next_seq: the number of the next message that is said.
        taken: the caller's numbered JSON messages, each once.
    """

    def __init__(self) -> None:
        self.pcm, self.received_seq, self.next_seq = b"", -1, 0
        self.taken: list[dict[str, Any]] = []
        self._calls: asyncio.Queue[ScriptedCall] = asyncio.Queue()
        blank = Route("/blank", lambda _: HTMLResponse('<!doctype html><link rel="icon" href="/icon.svg">'))
        routes = [WebSocketRoute("/v1/voice", self._answer), Route("/v1/sessions", _no_ticket, methods=["POST"]), blank]
        self.app = Guard(Starlette(routes=[*routes, Mount("/", StaticFiles(directory=PAGE, html=True))]))

    async def call(self) -> ScriptedCall:
        """The browser's next connection, after its hello."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._calls.get()

    def take(self, message: dict[str, Any]) -> None:
        """Count a numbered message; what came already is ignored, what comes out of order fails the test."""
        if message["seq"] <= self.received_seq:
            return
        assert message["seq"] == self.received_seq + 1, f"{message['seq']} after {self.received_seq}"
        self.received_seq = message["seq"]
        if message["type"] == "audio":
            self.pcm += message["pcm"]
        else:
            self.taken.append(message)

    async def _answer(self, websocket: WebSocket) -> None:
        await websocket.accept(subprotocol=SUBPROTOCOL)
        try:
            hello = await websocket.receive_json()
        except WebSocketDisconnect:
            return
        call = ScriptedCall(websocket, hello, self)
        self._calls.put_nowait(call)
        await call.listen()


class ScriptedCall:
    """One connection of the browser.

    Attributes:
        hello: what it said first.
        query: of the address it asked for.
        numbers: every number that came, in the order in which it came.
        gone: set when the connection is over.
    """

    def __init__(self, websocket: WebSocket, hello: dict[str, Any], server: ScriptedServer) -> None:
        self.hello, self.query, self.numbers = hello, websocket.url.query, list[int]()
        self.gone = asyncio.Event()
        self._websocket, self._server = websocket, server
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def welcome(self, *, resumed: bool = False, token: str = "first", **facts: Any) -> None:
        """Let the caller in; `received_seq` is what truly arrived."""
        message = {"type": "welcome", "session_id": "s1", "resume_token": token, "resumed": resumed, "limits": {}}
        message |= {"received_seq": self._server.received_seq, "input_rate_hz": 16_000, "output_rate_hz": 24_000}
        await self._websocket.send_json({**message, "events_lost": False, **facts})

    async def say(self, *messages: dict[str, Any] | bytes) -> None:
        """Send numbered messages: JSON objects, or audio."""
        for message in messages:
            await self.say_as(self._server.next_seq, message)
            self._server.next_seq += 1

    async def say_as(self, seq: int, message: dict[str, Any] | bytes) -> None:
        """Send a message under a number of the test's own."""
        if isinstance(message, bytes):
            await self._websocket.send_bytes(audio(seq, message))
        else:
            await self._websocket.send_json({**message, "seq": seq})

    async def control(self, **message: Any) -> None:
        """Send a message without a number."""
        await self._websocket.send_json(message)

    async def hears(self, kind: str, when: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
        """The next message of that type ("audio" too) for which `when` is true; what comes before it is passed over."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                message = await self._messages.get()
                if message["type"] == kind and when(message):
                    return message

    async def close(self, code: int, reason: str = "") -> None:
        """Hang up."""
        await self._websocket.close(code, reason)
        self.gone.set()

    async def listen(self) -> None:
        """Take what comes, until the line ends."""
        try:
            while (got := await self._websocket.receive())["type"] != "websocket.disconnect":
                self._take(got)
        finally:
            self.gone.set()

    def _take(self, got: Any) -> None:
        if got.get("bytes") is not None:
            message = {"type": "audio", "seq": int.from_bytes(got["bytes"][:4], "little"), "pcm": got["bytes"][4:]}
        else:
            message = json.loads(got["text"])
        if message["type"] not in REPORTS:
            self.numbers.append(message["seq"])
            self._server.take(message)
        self._messages.put_nowait(message)


async def _no_ticket(_request: Any) -> Response:
    return JSONResponse({"error": "no tickets here"}, 404)
