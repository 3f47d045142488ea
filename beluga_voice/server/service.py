"""One manager being served: when it starts and stops, who holds an unproven connection, and the tickets."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import NoOpTracerProvider

from ..errors import ConfigError
from ..manager import SessionManager
from ..telemetry import Prometheus, Telemetry, prometheus
from .counts import PLAIN, counts
from .options import ServerOptions
from .origins import allowed, is_loopback
from .session_log import session_log
from .tickets import Tickets

__all__ = ["Service"]

log = logging.getLogger("beluga_voice.server")

HOST_MUST_SET = (
    "this application is served by a server that beluga-voice did not set up. For live audio, set there: messages of at most "
    "64 KiB (uvicorn: --ws-max-size 65536), no compression (--ws-per-message-deflate false), no pings of its own "
    "(--ws-ping-interval 0), and call beluga_voice.server.drain(app) before it closes its sockets, or calls end in mid-word. "
    "`beluga-voice serve` does all of this"
)
ANONYMOUS = "no authentication is set ([server] api_keys or authenticate): whoever reaches this application may call"


class Service:
    """A manager and its options, for the life of one application.

    Attributes:
        manager: whose sessions answer.
        options: the `[server]` table.
        tickets: what lets callers in.
        local_only: the server is bound to this machine alone; None where nobody told.
        has_admin: health and metrics are asked for on a port of their own.
        set_up: the server around it is `beluga-voice serve`, which needs no advice.
    """

    def __init__(self, manager: SessionManager, options: ServerOptions) -> None:
        self.manager, self.options = manager, options
        self.local_only: bool | None = None
        self.set_up = self.has_admin = False
        self.tickets = self._new_tickets(options.ticket_secret or secrets.token_urlsafe(32))
        self._handshakes: Counter[str] = Counter()
        self._keeper: asyncio.Task[None] | None = None
        self._started: asyncio.Future[None] | None = None
        self._stop = asyncio.Event()
        self._told = False
        self._exported, self._telemetry = _metrics()
        manager.listen(session_log)
        if self._telemetry is not None:
            manager.listen(self._telemetry.listener)
            self._telemetry.manager(manager)

    def share_secret(self, secret: str) -> None:
        """Sign tickets with `secret`, which other processes have too, unless the options have one."""
        if not self.options.ticket_secret:
            self.tickets = self._new_tickets(secret)

    def _new_tickets(self, secret: str) -> Tickets:
        options = self.options
        return Tickets(secret, options.audience, ttl_ms=options.ticket_ttl_ms, store=self.manager.store)

    # --- its life ----------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether new calls are taken; a full manager is ready, as it takes calls up again."""
        return self.manager.ready and not self.manager.draining

    def begin(self) -> None:
        """Begin to enter the manager, once, without waiting; an application that is mounted is begun by its first request."""
        if not self._told and not self.set_up:
            self._told = True
            log.warning("%s", HOST_MUST_SET)
            if not self.options.needs_ticket and not self.options.allow_anonymous:
                log.warning("%s", ANONYMOUS)
        if self._started is None and not self.manager.ready and not self.manager.draining:  # else the program entered it
            self._started = asyncio.get_running_loop().create_future()
            self._stop = asyncio.Event()
            # Entered and left by one task, as it must be. The end of the loop cancels it, which closes the manager too.
            self._keeper = asyncio.create_task(self._keep(self._started), name="beluga-voice manager")

    async def start(self) -> None:
        """Enter the manager, if nobody has; returns when its engines are ready.

        Raises:
            BelugaVoiceError: an engine cannot be made ready; the next call tries again.
        """
        self.begin()
        if self._started is not None:
            await asyncio.shield(self._started)

    async def _keep(self, started: asyncio.Future[None]) -> None:
        try:
            async with self.manager:
                started.set_result(None)
                await self._stop.wait()
        except BaseException as error:
            if started.done():
                raise
            self._started = self._keeper = None
            if not isinstance(error, Exception):
                started.cancel()
                raise
            log.error("the sessions cannot start: %s", error)
            started.set_exception(error)
            started.exception()  # told already, should nobody wait for it

    async def stop(self) -> None:
        """Leave the manager: what still goes on is closed."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            self._stop.set()
            await keeper
            self._started = None

    async def drain(self, timeout_ms: float | None = None) -> None:
        """Refuse new calls, let turns end and close, within `timeout_ms`."""
        await self.manager.drain(timeout_ms)

    # --- who comes ---------------------------------------------------------------------------------------------------

    def welcomes_page(self, origins: list[str], host: str, *, secure: bool) -> bool:
        """Whether a request with these `Origin` headers, sent to `host`, comes from a page that may call."""
        local_only = bool(self.local_only) and not self.options.needs_ticket and bool(host)
        origin = origins[0] if origins else None
        return len(origins) < 2 and allowed(origin, host, self.options.origins, secure=secure, local_only=local_only)

    def metrics(self) -> tuple[bytes, str]:
        """What `GET /metrics` gives, and its content type."""
        if self._exported is None:
            return counts(self.manager).encode(), PLAIN
        return self._exported.render(), self._exported.content_type

    @contextmanager
    def handshake(self, address: str) -> Iterator[bool]:
        """Hold a place among those who have not said hello; False where there is none."""
        free = self._handshakes.total() < self.options.max_handshakes
        if not free or self._handshakes[address] >= self.options.max_handshakes_per_ip:
            yield False
            return
        self._handshakes[address] += 1
        try:
            yield True
        finally:
            self._handshakes[address] -= 1
            if not self._handshakes[address]:
                del self._handshakes[address]

    def bound_to(self, host: str) -> None:
        """Hear that the server listens on `host`."""
        self.local_only = is_loopback(host)


def _metrics() -> tuple[Prometheus | None, Telemetry | None]:
    """Metrics for Prometheus; nothing where OpenTelemetry's SDK is not installed. Spans are the program's own business."""
    try:
        exported = prometheus()
    except ConfigError:
        return None, None
    return exported, Telemetry(NoOpTracerProvider(), exported.meter_provider)
