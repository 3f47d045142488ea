"""Time: the only file that reads a clock.

Sessions measure with a `Clock`, which follows the event loop's own time, so that sleeps, time-outs and measured times agree.
Under a `SimulatedLoop` that time is simulated: it jumps to the next timer when every task waits on one, and stands still
while pool work (a model in a thread) is under way, or bytes between two ends in the same loop. Tests and `talk --fast` run
that way.

>>> async def nap():
...     clock = Clock()
...     before = clock.now_ms()
...     await clock.sleep_ms(60_000)
...     return clock.now_ms() - before
>>> run_simulated(nap())
60000.0
"""

from __future__ import annotations

import asyncio
import datetime
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["Clock", "SimulatedLoop", "SimulationStalled", "Timers", "epoch_ns", "local_now", "run_simulated", "wall_ms"]

T = TypeVar("T")

NO_TIME_S = 1e-9
BUSY_ROUNDS, BUSY_ROUNDS_TAKE_S = 10_000, 0.001  # so many rounds of a loop that never waits take this long, as in real time
SOCKET_GRACE_S = 0.000_2  # real time: what was written to a loopback socket has arrived by then


class Clock:
    """Monotonic time in ms, read from the running event loop; its zero means nothing."""

    def now_ms(self) -> float:
        """The time now, in ms. Only differences have a meaning."""
        return asyncio.get_running_loop().time() * 1000.0

    async def sleep_ms(self, delay_ms: float) -> None:
        """Wait `delay_ms`; zero or less gives way to other tasks once."""
        await asyncio.sleep(max(delay_ms, 0.0) / 1000.0)

    def call_later_ms(self, delay_ms: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        """Call `callback(*args)` from the loop after `delay_ms`; the handle's `cancel()` prevents it."""
        return asyncio.get_running_loop().call_later(max(delay_ms, 0.0) / 1000.0, callback, *args)


class Timers:
    """Named timers: setting one again replaces it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._handles: dict[str, asyncio.TimerHandle] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._handles

    def set(self, name: str, delay_ms: float, callback: Callable[..., object], *args: object) -> None:
        """Call `callback(*args)` once, `delay_ms` from now."""
        self.cancel(name)
        self._handles[name] = self._clock.call_later_ms(delay_ms, self._ring, name, callback, args)

    def cancel(self, *names: str) -> None:
        """Forget these timers; without names, all."""
        for name in names or tuple(self._handles):
            handle = self._handles.pop(name, None)
            if handle is not None:
                handle.cancel()

    def _ring(self, name: str, callback: Callable[..., object], args: tuple[object, ...]) -> None:
        self._handles.pop(name, None)
        callback(*args)


def wall_ms() -> float:
    """Real elapsed time in ms, never simulated: what an engine's own work took."""
    return time.perf_counter_ns() / 1e6


def epoch_ns() -> int:
    """The time of day in ns since 1970, never simulated: for what leaves the process with a time on it."""
    return time.time_ns()


def local_now(timezone: datetime.tzinfo | None = None) -> datetime.datetime:
    """The date and time of day, for an agent that is asked for it; local time unless `timezone` is given."""
    return datetime.datetime.now(timezone).astimezone(timezone)


class SimulationStalled(RuntimeError):
    """Simulated time has nothing to wait for: every task waits on something that no timer, pool or socket will bring."""


class _JumpingSelector(selectors.DefaultSelector):
    """A selector that, instead of waiting, moves its loop's time forward."""

    loop: SimulatedLoop
    rounds = 0  # since time went on

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        self.rounds = self.rounds + 1 if ready or (timeout is not None and timeout < NO_TIME_S) else 0
        if self.rounds >= BUSY_ROUNDS:  # who waits for less than a clock can tell would wait for ever
            self.loop.advance(BUSY_ROUNDS_TAKE_S)
            self.rounds = 0
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if self.loop.pool_work:
            return super().select(None)
        has_sockets = len(self.get_map()) > 1  # beside the loop's own wake-up pipe
        if has_sockets:
            time.sleep(SOCKET_GRACE_S)
            if ready := super().select(0):
                return ready
        if timeout is not None:
            self.loop.advance(timeout)
            return ready
        if has_sockets:
            return super().select(None)
        raise SimulationStalled(
            "every task waits and nothing will ever wake one: look for an await whose event never comes"
        )


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer instead of being waited for.

    Work handed to `run_in_executor` takes no simulated time: the clock stands still until it is done.
    """

    def __init__(self) -> None:
        self._now_s = 0.0
        self.pool_work = 0
        selector = _JumpingSelector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        """The simulated time in seconds, as asyncio wants it."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Move time forward."""
        self._now_s += seconds

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Run `func` in a thread, with the clock standing still until it is done."""
        future = super().run_in_executor(executor, func, *args)
        self.pool_work += 1
        future.add_done_callback(self._pool_work_done)
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        """End the threads of `asyncio.to_thread`, waiting for them in real time."""
        self.pool_work += 1
        try:
            await super().shutdown_default_executor(*args)
        finally:
            self.pool_work -= 1

    def _pool_work_done(self, _: object) -> None:
        self.pool_work -= 1


def run_simulated(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine like `asyncio.run`, in simulated time.

    Raises:
        SimulationStalled: when every task waits on something that will never come.
    """
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(main)
