"""Who holds the event loop: stages mark the time as frames pass between them, and each step of a task is judged.

A step is what a task runs between two waits. Within one, time is charged to the stage that ran; nothing is measured while a
task waits.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from time import perf_counter
from typing import Any, TypeVar, cast

__all__ = ["LoopWatch"]

T = TypeVar("T")


class LoopWatch:
    """Tells `on_slow(name, held_ms)` of a stage or task that ran for more than `limit_ms` without giving way."""

    def __init__(self, limit_ms: float, on_slow: Callable[[str, float], None]) -> None:
        self._limit_s = limit_ms / 1000.0
        self._on_slow = on_slow
        self._last_s = math.inf  # outside a step nothing is charged
        self._running = ""

    async def between(self, name: str, frames: AsyncIterator[T], taker: str) -> AsyncIterator[T]:
        """`frames` unchanged, charging the time before each to `name`, which makes them, and after each to `taker`."""
        limit_s = self._limit_s
        async for frame in frames:
            now_s = perf_counter()
            if now_s - self._last_s > limit_s:
                self._on_slow(name, (now_s - self._last_s) * 1000.0)
            self._last_s, self._running = now_s, taker
            yield frame
            now_s = perf_counter()
            if now_s - self._last_s > limit_s:
                self._on_slow(taker, (now_s - self._last_s) * 1000.0)
            self._last_s, self._running = now_s, name

    async def drive(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """Run `work` step by step, charging to `name` what no stage has marked."""
        return cast(T, await _Steps(self, work, name))

    def begin(self, name: str) -> None:
        """A step begins."""
        self._last_s, self._running = perf_counter(), name

    def end(self) -> None:
        """A step ends."""
        held_s, self._last_s = perf_counter() - self._last_s, math.inf
        if held_s > self._limit_s:
            self._on_slow(self._running, held_s * 1000.0)


class _Steps:
    """Awaits a coroutine as `await` does (PEP 380), with a look at the clock around each step."""

    __slots__ = ("_name", "_watch", "_work")

    def __init__(self, watch: LoopWatch, work: Coroutine[Any, Any, Any], name: str) -> None:
        self._watch, self._work, self._name = watch, work, name

    def __await__(self) -> Generator[Any, Any, Any]:
        watch, work, name = self._watch, self._work, self._name
        send, thrown = None, None
        while True:
            watch.begin(name)
            try:
                waits_on = work.send(send) if thrown is None else work.throw(thrown)
            except StopIteration as done:
                watch.end()
                return done.value
            watch.end()
            send, thrown = None, None
            try:
                send = yield waits_on
            except BaseException as error:
                thrown = error
