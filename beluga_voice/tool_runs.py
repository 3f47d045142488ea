"""Tool calls under way: each runs in a task of its session, for a bounded time, and always returns something to tell.

>>> async def main():
...     runs = ToolRuns()
...     run = runs.begin(ToolCalled("c1", "answer"), lambda: asyncio.sleep(0, 42))
...     await asyncio.wait([run.returned])
...     return run.returned.result()
>>> asyncio.run(main())
ToolReturned(call_id='c1', result=42, error='')
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal

from ._streams import Tasks
from .clock import Clock
from .errors import ToolError
from .frames import ToolCalled, ToolReturned

__all__ = ["CANCELLED", "MOST_TEXT", "TIMEOUT_MS", "OnInterrupt", "ToolRun", "ToolRuns"]

log = logging.getLogger("beluga_voice.tools")

OnInterrupt = Literal["finish", "cancel"]
Spawn = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]

TIMEOUT_MS = 10_000.0
MOST_AT_ONCE = 16  # calls under way in one session
MOST_TEXT = 64_000  # characters of a call's arguments, and of its result, as JSON
MOST_ERROR = 500  # characters of what a model is told of a failure
STOP_MS = 1_000.0  # how long a tool that is cancelled may take to stop before it is called stuck
CANCELLED = "cancelled"


class ToolRuns:
    """The tool calls under way in one session, which owns them: `session.tool_runs`.

    Args:
        spawn: runs a coroutine as a task of the session; without it, of this object: then `aclose` ends them.
        clock: whose time is kept.
        counters: counts "tools_refused", "tools_failed", "tools_timed_out", "tools_cancelled" and "tools_stuck".

    Attributes:
        tell: told every `ToolCalled` and `ToolReturned` at once, whoever waits for it.
    """

    def __init__(
        self, spawn: Spawn | None = None, *, clock: Clock | None = None, counters: Counter[str] | None = None
    ) -> None:
        self._tasks = Tasks()
        self.spawn = spawn or self._tasks.spawn
        self.clock = clock or Clock()
        self.counters: Counter[str] = Counter() if counters is None else counters
        self.tell: Callable[[ToolCalled | ToolReturned], None] = lambda frame: None
        self._runs: dict[ToolRun, None] = {}
        self._closed = False

    @property
    def running(self) -> int:
        """How many calls have not returned yet."""
        return sum(not run.returned.done() for run in self._runs)

    def begin(
        self,
        called: ToolCalled,
        work: Callable[[], Awaitable[Any]],
        *,
        timeout_ms: float = TIMEOUT_MS,
        on_interrupt: OnInterrupt = "finish",
    ) -> ToolRun:
        """Run `work` as the call `called`. Whoever waits for it calls `leave()` in the end."""
        if self._closed:
            return self.refuse(called, "the conversation is over")
        if len(self._runs) >= MOST_AT_ONCE:
            return self.refuse(called, f"{len(self._runs)} tools run already; call it again when one has returned")
        self.tell(called)
        run = ToolRun(self, called, on_interrupt)
        self._runs[run] = None
        run.start(work, timeout_ms)
        return run

    def refuse(self, called: ToolCalled, error: str) -> ToolRun:
        """A call that is not made: it has returned, with `error`."""
        self.counters["tools_refused"] += 1
        log.warning("tool %s is not called; the model is told why", called.name[:80])  # its arguments may be private
        log.debug("tool %s: %s", called.name[:80], error)
        self.tell(called)
        run = ToolRun(self, called, "cancel")
        run.settle(error=error)
        return run

    def close(self) -> None:
        """Cancel all, and begin no more: the session ends."""
        self._closed = True
        for run in tuple(self._runs):
            run.cancel()

    async def aclose(self) -> list[str]:
        """Close, and end the tasks that are this object's own; the names of those that do not stop."""
        self.close()
        return await self._tasks.aclose(STOP_MS)

    def _gone(self, run: ToolRun) -> None:
        self._runs.pop(run, None)


class ToolRun:
    """One call. `returned` is a future of what it gives, and never fails; wait for it with `asyncio.wait`."""

    def __init__(self, runs: ToolRuns, called: ToolCalled, on_interrupt: OnInterrupt) -> None:
        self.called = called
        self.returned: asyncio.Future[ToolReturned] = asyncio.get_running_loop().create_future()
        self._runs, self._on_interrupt = runs, on_interrupt
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, work: Callable[[], Awaitable[Any]], timeout_ms: float) -> None:
        """Run `work` in a task."""
        self._timer = self._runs.clock.call_later_ms(timeout_ms, self._late, timeout_ms)
        self._task = self._runs.spawn(self._run(work), f"tool {self.called.name}")
        self._task.add_done_callback(self._done)

    def leave(self) -> None:
        """Nobody waits for it any more: it finishes all the same, or is cancelled, as its tool says."""
        if self._on_interrupt == "cancel":
            self.cancel()

    def cancel(self) -> None:
        """Stop it, if it has not returned."""
        if not self.returned.done():
            self._runs.counters["tools_cancelled"] += 1
            self.settle(error=CANCELLED)
            self._stop()

    def settle(self, result: Any = None, error: str = "") -> None:
        """It has returned; only the first time counts."""
        if self.returned.done():
            return
        frame = ToolReturned(self.called.call_id, result, error[:MOST_ERROR])
        self.returned.set_result(frame)
        self._runs.tell(frame)

    async def _run(self, work: Callable[[], Awaitable[Any]]) -> None:
        name = self.called.name
        try:
            self.settle(_as_json(await work()))
        except ToolError as error:
            log.info("tool %s tells the model: %s", name, error)
            self._fail(str(error))
        except _Unfit as error:
            log.warning("tool %s failed: %s", name, error)
            self._fail(f"{name} failed: {error}")
        except (Exception, SystemExit) as error:
            log.warning("tool %s failed: %r", name, error, exc_info=error)
            self._fail(f"{name} failed ({type(error).__name__})")

    def _fail(self, told: str) -> None:
        if not self.returned.done():
            self._runs.counters["tools_failed"] += 1
        self.settle(error=told or "it failed")

    def _late(self, timeout_ms: float) -> None:
        self._runs.counters["tools_timed_out"] += 1
        log.warning("tool %s gave nothing for %g ms and is cancelled", self.called.name, timeout_ms)
        self.settle(error=f"{self.called.name} gave nothing for {timeout_ms:g} ms and was given up")
        self._stop()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            self._timer = self._runs.clock.call_later_ms(STOP_MS, self._stuck)

    def _stuck(self) -> None:
        self._runs.counters["tools_stuck"] += 1
        log.warning("tool %s was cancelled and does not stop", self.called.name)

    def _done(self, task: asyncio.Task[None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.settle(error=CANCELLED)  # cancelled by others
        self._runs._gone(self)


class _Unfit(Exception):
    """A result that cannot be told."""


def _as_json(result: Any) -> Any:
    """The result as JSON brings it: a copy that nobody changes."""
    try:
        text = json.dumps(result, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise _Unfit(f"it returned a {type(result).__name__} that is not JSON; expected text, numbers, lists, dicts") from None
    if len(text) > MOST_TEXT:
        raise _Unfit(f"it returned {len(text)} characters; expected at most {MOST_TEXT}")
    return json.loads(text)
