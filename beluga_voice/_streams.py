"""The concurrency primitives: a bounded channel, owned tasks, a reaper for those that will not stop, a pool for models.

Beside `playout.py` and the session's own files nothing else starts tasks or makes queues.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from .clock import wall_ms
from .errors import SessionClosedError

__all__ = ["Channel", "Reaper", "Tasks", "WorkPool", "finish", "forget", "leave", "stop"]

T = TypeVar("T")


class Channel(AsyncIterator[T], Generic[T]):
    """A bounded queue for one reader, with a fast lane.

    Items come out in order, urgent ones before all others. `limit` is in what `weigh` counts (items, or ms of audio).
    `put` waits while it is full (back-pressure); `put_dropping` makes room by dropping the oldest that weigh anything and
    counts them in `dropped` (items) and `dropped_weight`.
    """

    def __init__(self, limit: float, weigh: Callable[[T], float] = lambda _: 1.0) -> None:
        self.limit = limit
        self.dropped = 0
        self.dropped_weight = 0.0
        self._weigh = weigh
        self._items: deque[T] = deque()
        self._urgent: list[T] = []  # lists where few wait: a deque takes 760 bytes even when empty
        self._load = 0.0
        self._closed = False
        self._error: BaseException | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writers: list[asyncio.Future[None]] = []

    @property
    def load(self) -> float:
        """What it holds now, in what `weigh` counts."""
        return self._load

    @property
    def waiting(self) -> int:
        """How many items it holds."""
        return len(self._items) + len(self._urgent)

    @property
    def closed(self) -> bool:
        """True once `close` was called; what it holds can still be read."""
        return self._closed

    async def put(self, item: T) -> None:
        """Add an item, waiting for room. After `close` it is ignored."""
        while self._load >= self.limit and not self._closed:
            waiter = asyncio.get_running_loop().create_future()
            self._writers.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._let_writers()  # the room it was given is the next one's
                raise
            finally:
                if waiter in self._writers:
                    self._writers.remove(waiter)
        self._add(item)

    def put_dropping(self, item: T) -> None:
        """Add an item now, dropping the oldest ones if there is no room. After `close` it is ignored."""
        if self._closed:
            return
        weightless: list[T] = []
        while self._load >= self.limit and self._items:
            oldest = self._items.popleft()
            weight = self._weigh(oldest)
            if not weight:
                weightless.append(oldest)
                continue
            self._load -= weight
            self.dropped += 1
            self.dropped_weight += weight
        self._items.extendleft(reversed(weightless))
        self._add(item)

    def put_over(self, item: T) -> None:
        """Add an item now, over the limit if need be: for items that others are accounted by."""
        self._add(item)

    def put_urgent(self, item: T) -> None:
        """Add an item that overtakes all but earlier urgent ones; not counted against the limit, for small control items."""
        if not self._closed:
            self._urgent.append(item)
            self._wake()

    def close(self, error: BaseException | None = None) -> None:
        """No more items: the reader gets what is there, then `error` or the end."""
        if not self._closed:
            self._closed, self._error = True, error
            self._wake()
            for writer in self._writers:
                if not writer.done():
                    writer.set_result(None)

    def drain(self) -> list[T]:
        """Take all that it holds, in order, without waiting."""
        taken = [*self._urgent, *self._items]
        self._urgent.clear()
        self.clear()
        return taken

    def clear(self) -> None:
        """Forget what it holds."""
        self._items.clear()
        self._load = 0.0
        self._let_writers()

    def _add(self, item: T) -> None:
        if self._closed:
            return
        self._items.append(item)
        self._load += self._weigh(item)
        if self._reader is not None:
            self._wake()

    def _wake(self) -> None:
        reader = self._reader
        if reader is not None and not reader.done():
            reader.set_result(None)

    def _let_writers(self) -> None:
        while self._writers:
            writer = self._writers.pop(0)
            if not writer.done():
                writer.set_result(None)
                return

    def __aiter__(self) -> Channel[T]:
        return self

    async def __anext__(self) -> T:
        while True:
            if self._urgent:
                return self._urgent.pop(0)
            if self._items:
                item = self._items.popleft()
                self._load -= self._weigh(item)
                if self._writers:
                    self._let_writers()
                return item
            if self._closed:
                if self._error is not None:
                    error, self._error = self._error, None
                    raise error
                raise StopAsyncIteration
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None


async def stop(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it is gone; its outcome is dropped."""
    task.cancel()
    await finish(task)


async def leave(task: asyncio.Task[Any], grace_ms: float) -> None:
    """Cancel a task and wait at most `grace_ms` until it is gone; what does not stop is left to its owner."""
    task.cancel()
    await asyncio.wait([task], timeout=grace_ms / 1000.0)


async def finish(task: asyncio.Task[Any]) -> None:
    """Wait until a task is done, without its outcome, which nobody misses either when this wait is cancelled."""
    task.add_done_callback(forget)
    await asyncio.wait([task])


def forget(task: asyncio.Task[Any]) -> None:
    """Take the outcome of a task that is done, for which nobody else asks; else asyncio would log it."""
    if not task.cancelled():
        task.exception()


class Tasks:
    """The owner of tasks: whatever it spawned is gone when `aclose` returns, or is named in its answer."""

    def __init__(self, on_error: Callable[[str, Exception], None] | None = None) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._on_error = on_error

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run `work` as a task called `name`; if it fails, `on_error(name, error)` is told."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, Exception) and self._on_error is not None:
            self._on_error(task.get_name(), error)

    def cancelling(self) -> list[str]:
        """The names of tasks that were asked to stop and have not."""
        return sorted(task.get_name() for task in self._tasks if task.cancelling() and not task.done())

    async def aclose(self, grace_ms: float) -> list[str]:
        """Cancel every task and wait at most `grace_ms`; the names of those that did not stop."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + grace_ms / 1000.0
        cancelled: set[asyncio.Task[Any]] = set()
        while self._tasks:
            for task in self._tasks - cancelled:  # a task's cleanup may spawn another
                task.cancel()
                cancelled.add(task)
            left_s = max(until_s - loop.time(), 0.0)
            await asyncio.wait(self._tasks, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if left_s == 0.0:
                break
        return sorted(task.get_name() for task in self._tasks if not task.done())


class Reaper:
    """Takes over cancelled tasks that may be slow to stop, so that nobody waits for them; bounded and counted.

    `on_stuck(name)` is told once of each task that was not gone after `grace_ms`.
    """

    def __init__(self, grace_ms: float, limit: int, on_stuck: Callable[[str], None]) -> None:
        self.grace_ms, self.limit = grace_ms, limit
        self.stuck = 0
        self._on_stuck = on_stuck
        self._tasks: dict[asyncio.Task[Any], asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def full(self) -> bool:
        """True when as many tasks as are allowed have not stopped within their grace."""
        now = asyncio.get_running_loop().time()
        return sum(timer.when() <= now for timer in self._tasks.values()) >= self.limit

    def take(self, task: asyncio.Task[Any]) -> None:
        """Cancel `task` and see it out."""
        if task.done() or task in self._tasks:
            return
        task.cancel()
        timer = asyncio.get_running_loop().call_later(self.grace_ms / 1000.0, self._late, task)
        self._tasks[task] = timer
        task.add_done_callback(self._gone)

    async def settle(self) -> None:
        """Give the tasks taken so far the rest of their grace; returns at once when there are none."""
        fresh = [task for task, timer in self._tasks.items() if timer.when() > asyncio.get_running_loop().time()]
        if fresh:
            await asyncio.wait(fresh, timeout=self.grace_ms / 1000.0)

    async def aclose(self, wait_ms: float) -> list[str]:
        """Cancel all again, wait at most `wait_ms` for them, and name those that are still not gone."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=wait_ms / 1000.0)
        return sorted(task.get_name() for task in tasks if not task.done())

    def _late(self, task: asyncio.Task[Any]) -> None:
        if not task.done():
            self.stuck += 1
            self._on_stuck(task.get_name())

    def _gone(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task).cancel()
        if not task.cancelled():
            task.exception()


class WorkPool:
    """A few threads for calls that hold the processor: models, codecs.

    Calls beyond `threads` wait their turn without blocking the loop; a cancelled wait lets its call run out and drops
    the result. The threads start at the first call and end with `aclose`.

    `calls` counts the calls that ran, failed ones too; `busy_ms` adds up the real time they took inside the threads.
    """

    def __init__(self, threads: int, name: str) -> None:
        self.threads, self.name = threads, name
        self.calls = 0
        self.busy_ms = 0.0
        self._counting = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._under_way: set[asyncio.Future[Any]] = set()

    @property
    def waiting(self) -> int:
        """Calls under way or waiting for a thread."""
        return len(self._under_way)

    async def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """What `function(*args, **kwargs)` returns or raises, worked out in a thread."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self.threads, thread_name_prefix=self.name)
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._executor, self._counted, functools.partial(function, *args, **kwargs))
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        try:
            return await future
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if future.cancelled() and not (task and task.cancelling()):
                raise SessionClosedError(f"the pool {self.name!r} was closed before this call had a thread") from None
            raise

    def _counted(self, call: Callable[[], T]) -> T:
        began_ms = wall_ms()
        try:
            return call()
        finally:
            took_ms = wall_ms() - began_ms
            with self._counting:
                self.calls += 1
                self.busy_ms += took_ms

    async def aclose(self) -> None:
        """Drop calls that have not begun, wait for those under way, end the threads."""
        executor, self._executor = self._executor, None
        if executor is None:
            return
        executor.shutdown(wait=False, cancel_futures=True)
        closing = ThreadPoolExecutor(1)
        ended = False
        try:
            await asyncio.get_running_loop().run_in_executor(closing, executor.shutdown)
            ended = True
        finally:
            closing.shutdown(wait=ended)
