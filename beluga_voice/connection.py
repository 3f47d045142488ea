"""A session's line over its losses: reads it, notices that it failed, waits until it is back, dials it again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .clock import Timers
from .engine import Context
from .errors import LineLost
from .intake import Intake
from .line import Line
from .reconnect import Breaker, Connect, dial
from .settings import SessionOptions
from .transport import Transport

__all__ = ["Connection"]


class Connection:
    """Holds the line while the session lasts.

    Args:
        line: the session's line.
        intake: what reads it.
        context: whose tasks and clock.
        options: the session's limits.
        breaker: what guards the dialling.
        on_lost: told the error when the line is lost.
        on_back: told when it is there again.
    """

    def __init__(
        self,
        line: Line,
        intake: Intake,
        context: Context,
        options: SessionOptions,
        *,
        breaker: Breaker,
        on_lost: Callable[[LineLost], None],
        on_back: Callable[[], None],
    ) -> None:
        self._line, self._intake, self._context, self._options = line, intake, context, options
        self._breaker, self._on_lost, self._on_back = breaker, on_lost, on_back
        self._timers = Timers(context.clock)
        self._reading: asyncio.Timeout | None = None
        self._failure: Exception | None = None
        self._back: asyncio.Task[None] | None = None
        self._dialling = False

    @property
    def is_lost(self) -> bool:
        """True while the line is waited for."""
        return self._back is not None

    async def run(self) -> None:
        """Read the line, over every loss of it, until the caller hangs up.

        Raises:
            LineLost: it was lost and did not come back within `resume_window_ms`.
            Exception: whatever else the transport failed with.
        """
        while True:
            try:
                await self._read()
                return
            except LineLost as error:
                await self._wait(error)

    def fail(self, error: Exception) -> None:
        """Somebody other than the reader found that the line has failed: the reader is woken to deal with it."""
        if self._reading is not None and self._failure is None:
            self._failure = error
            self._reading.reschedule(asyncio.get_running_loop().time())

    def replace(self, transport: Transport | None) -> Transport | None:
        """Go on over `transport` (None: the same one, open again); gives the one before, if it is to be closed.

        Raises:
            ValueError: its rates are not those of the line.
        """
        if not self.is_lost:
            self.fail(LineLost("another line takes its place"))
        old = self._line.replace(transport or self._line.transport)
        return None if old is self._line.transport else old

    async def dial(self, connect: Connect, max_attempts: int, base_delay_ms: float) -> Transport | None:
        """What `connect` gives, tried again and again; while it is tried the resume window does not close.

        Raises:
            ReconnectError: no attempt succeeded.
        """
        if not self.is_lost:
            self.fail(LineLost("the line is dialled anew"))
        self._dialling = True
        self._timers.cancel("window")
        try:
            return await dial(
                connect,
                max_attempts=max_attempts,
                base_delay_ms=base_delay_ms,
                clock=self._context.clock,
                breaker=self._breaker,
            )
        except asyncio.CancelledError:
            self.open_window()
            raise
        finally:
            self._dialling = False

    def close(self) -> None:
        """Wait for nothing any more."""
        self._timers.cancel()

    async def _read(self) -> None:
        self._failure = None
        try:
            async with asyncio.timeout(None) as self._reading:
                await self._intake.read()
        except TimeoutError:
            if self._failure is None:
                raise
            raise self._failure from None
        finally:
            self._reading = None

    async def _wait(self, error: LineLost) -> None:
        """Wait until the line, or another in its place, is there. Raises `error` if that takes too long."""
        self._intake.lost()
        self._back = back = self._context.tasks.spawn(self._line.reattached(), "line back")
        try:
            self._on_lost(error)
            if not self._dialling:
                self.open_window()
            await asyncio.wait({back})
        finally:
            self._back = None
            self._timers.cancel("window")
        if back.cancelled():
            raise error
        back.result()
        self._intake.back()
        self._on_back()

    def open_window(self) -> None:
        """A lost line has so long to come back, from now on."""
        if self._back is not None:
            self._timers.set("window", self._options.resume_window_ms, self._back.cancel)
