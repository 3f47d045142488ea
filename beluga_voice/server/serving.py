"""One process that serves: uvicorn as live audio needs it, and a goodbye to every caller before the sockets close."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from .. import wire
from ..errors import ConfigError
from .asgi import admin_app, services
from .options import ServerOptions
from .origins import is_loopback
from .service import Service

__all__ = [
    "PromptConnection",
    "Server",
    "Settings",
    "SilentServer",
    "SteadyWebSocket",
    "address",
    "bound",
    "check_address",
    "running",
    "serve",
]

log = logging.getLogger("beluga_voice.server")

BACKLOG = 2_048
# A peer that takes nothing and will not close is dropped by the kernel after this.
UNACKNOWLEDGED_MS = 20_000
LAST_MOMENT_MS = 1_000.0
UNTAKEN_MESSAGES = 16
COLLECTIONS = (10_000, 20, 20)  # Python's own numbers cost 3 % of a loaded server's time, and stop all calls for 70 ms


def check_address(host: str, options: ServerOptions) -> None:
    """Refuse to let strangers talk at our cost.

    Raises:
        ConfigError: `host` is not this machine alone, and nobody has to prove who he is.
    """
    if is_loopback(host) or options.needs_ticket or options.allow_anonymous:
        return
    raise ConfigError(
        f"--host {host} lets strangers call, and no authentication is set; put api_keys or authenticate into [server], "
        "or stay on --host 127.0.0.1. Where a proxy in front asks who calls: [server] allow_anonymous = true"
    )


def bound(host: str, port: int) -> socket.socket:
    """A socket bound to the address, not listening yet; port 0 is any free one.

    Raises:
        ConfigError: the address cannot be bound.
    """
    sock = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
        sock.bind(address)
    except OSError as error:
        if sock is not None:
            sock.close()
        why = error.strerror or str(error)
        raise ConfigError(f"cannot listen on {host}:{port}: {why}; choose another --host or --port") from None
    return sock


def serve(
    app: Any, sock: socket.socket, *, admin: socket.socket | None = None, ready: Callable[[], object] | None = None
) -> int:
    """Serve `app` until a signal; the process's exit code.

    The first SIGTERM or SIGINT drains: new callers are refused, those on the line are told and their turns end, within the
    manager's `drain_timeout_ms`; then the sockets close. A second one stops at once.

    Args:
        app: what `server.app` made, or an application in which such are mounted.
        sock: bound to the address.
        admin: where /healthz, /readyz and /metrics are, until all else has ended.
        ready: called, without arguments, when calls are taken.

    Raises:
        BelugaVoiceError: an engine cannot be made ready.
    """
    return asyncio.run(_serve(app, sock, admin, ready))


async def _serve(app: Any, sock: socket.socket, admin: socket.socket | None, ready: Callable[[], object] | None) -> int:
    found = services(app)
    options = found[0].options
    async with contextlib.AsyncExitStack() as stack:
        await _start(found, sock, stack)
        if admin is not None:
            for service in found:
                service.has_admin = True
            aside = SilentServer(Settings(admin_app(found), options))
            task = asyncio.create_task(aside.serve([admin]), name="beluga-voice admin")
            stack.push_async_callback(_stopped, aside, task)
        server = Server(Settings(app, options), found, ready)
        gc.collect()
        gc.freeze()  # what is here will stay: it need not be looked through again and again under live calls
        gc.set_threshold(*COLLECTIONS)
        await server.serve([sock])
        if server.hurried:
            stack.pop_all()  # the end of the loop cancels what is left
        return 128 + server.hurried if server.hurried else 0


@contextlib.asynccontextmanager
async def running(app: Any, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve `app` beside whatever else the program does, as `beluga-voice serve` would, but for the signals.

    Args:
        app: what `server.app` made, or an application in which such are mounted.
        host: the address to listen on.
        port: its port; 0 is any free one.

    Gives the address, like "http://127.0.0.1:8080". Leaving closes calls that still go on: `server.drain` before lets them end.

    Raises:
        ConfigError: the address cannot be bound, or lets strangers in unasked.
        BelugaVoiceError: an engine cannot be made ready.
    """
    found = services(app)
    for service in found:
        check_address(host, service.options)
    sock = bound(host, port)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(sock.close)
        await _start(found, sock, stack)
        server = SilentServer(Settings(app, found[0].options))
        task = asyncio.create_task(server.serve([sock]), name="beluga-voice server")
        stack.push_async_callback(_stopped, server, task)
        for service in found:
            stack.push_async_callback(service.stop)
        sock.listen(BACKLOG)
        yield address(host, sock)


def address(host: str, sock: socket.socket) -> str:
    """What to type into a browser."""
    return f"http://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}"


async def _start(found: list[Service], sock: socket.socket, stack: contextlib.AsyncExitStack) -> None:
    for service in found:
        service.set_up = True
        service.bound_to(sock.getsockname()[0])
        stack.push_async_callback(service.stop)
        await service.start()


async def _stopped(server: uvicorn.Server, task: asyncio.Task[None]) -> None:
    server.should_exit = True
    await task


class Settings(uvicorn.Config):
    """uvicorn's settings, as live audio needs them."""

    def __init__(self, app: Any, options: ServerOptions) -> None:
        super().__init__(
            app,
            http=PromptConnection,
            ws=SteadyWebSocket,
            ws_max_size=wire.MAX_BYTES,
            ws_ping_interval=None,
            ws_ping_timeout=None,
            ws_per_message_deflate=False,
            log_config=None,
            server_header=False,
            forwarded_allow_ips=list(options.trusted_proxies),
            backlog=BACKLOG,
        )
        self.request_timeout_ms = options.hello_timeout_ms


class PromptConnection(H11Protocol):
    """A connection that must bring each request in time: uvicorn alone would wait for its headers for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: Any) -> None:
        self._deadline.cancel()  # another protocol has the transport from now on
        super().handle_websocket_upgrade(event)

    def on_response_complete(self) -> None:
        self._deadline.cancel()
        self._expect_request()
        super().on_response_complete()

    def _expect_request(self) -> None:
        assert isinstance(self.config, Settings)
        self._deadline = self.loop.call_later(self.config.request_timeout_ms / 1000.0, self._give_up)

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


class SteadyWebSocket(WebSocketsSansIOProtocol):
    """A WebSocket that is read on while a few of its messages wait: uvicorn alone stops and starts reading for each of them."""

    def send_receive_event_to_app(self) -> None:
        paused = self.read_paused
        reads_on = self.queue.qsize() < UNTAKEN_MESSAGES
        self.read_paused = paused or reads_on  # taken for paused, it is not paused
        super().send_receive_event_to_app()
        if reads_on:
            self.read_paused = paused


class Server(uvicorn.Server):
    """uvicorn's server, draining before it closes anything.

    Attributes:
        hurried: the second signal; 0 without one.
    """

    def __init__(self, config: uvicorn.Config, found: list[Service], ready: Callable[[], object] | None) -> None:
        super().__init__(config)
        self.hurried = 0
        self._services, self._ready = found, ready
        self._loop = asyncio.get_running_loop()
        self._hurry = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._ready is not None:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("draining: new calls are refused; a second signal stops at once")
        drained = asyncio.create_task(self._drain(), name="beluga-voice drain")
        hurry = asyncio.create_task(self._hurry.wait(), name="beluga-voice second signal")
        try:
            await asyncio.wait((drained, hurry), return_when=asyncio.FIRST_COMPLETED)
        finally:
            drained.cancel()
            hurry.cancel()
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn leaves the application where it is; as far as there is time, it is closed
            await self.lifespan.shutdown()

    async def _drain(self) -> bool:
        await asyncio.gather(*(service.drain() for service in self._services))
        return True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Hear a signal; uvicorn would raise it again at the end, and so fail where all went well."""
        if self.hurried:
            os._exit(128 + sig)
        if self.should_exit:
            self.force_exit = True
            self.hurried = sig
            self._loop.call_soon_threadsafe(self._stop_at_once)
        self.should_exit = True

    def _stop_at_once(self) -> None:
        self._hurry.set()
        # What does not let itself be cancelled is left behind.
        self._loop.call_later(LAST_MOMENT_MS / 1000.0, os._exit, 128 + self.hurried)


class SilentServer(uvicorn.Server):
    """A server that leaves signals to others."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
