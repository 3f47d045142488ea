"""A circuit breaker: who keeps failing, or is slow, is left alone for a while, then tried by a few calls before all come back.

::

    state      on                                                                       to
    closed     failures are `failure_share` of the window, or slow calls `slow_share`,
               with at least `minimum_calls` in it                                      open
    closed     a refused credential, a used-up quota, a rate limit that says how long   open
    open       a call is asked for, and its time is over                                half_open
    half_open  a probe fails, is slow, or owes its answer for `probe_timeout_ms`        open, for twice as long
    half_open  all `probes` are good                                                    closed

>>> async def main():
...     breaker = Breaker(minimum_calls=2)
...     for _ in range(2):
...         breaker.enter().failed(ConnectionError())
...     return breaker.state, breaker.enter()
>>> asyncio.run(main())
('open', None)
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal

from .clock import Clock
from .errors import AuthError, QuotaError, RateLimitError

__all__ = ["LONGEST_OPEN_MS", "Attempt", "Breaker", "State"]

State = Literal["closed", "open", "half_open"]
OnChange = Callable[[State, State], object]

LONGEST_OPEN_MS = 60_000.0
ROUNDING_MS = 1.0  # whoever slept until a time may wake a rounding error early
NO_PERIOD = -1
DOUBLINGS = 30  # beyond, the power only overflows: the cap was reached long before


class Breaker:
    """Admits attempts, and judges by what becomes of them.

    Args:
        window: how many of the last calls it looks at.
        minimum_calls: so many must be there before shares count.
        failure_share: the share of failures (0..1) that opens it.
        slow_share: the share of slow calls that opens it.
        slow_ms: a call whose answer begins later is slow.
        open_ms: how long it stays open, and up to a tenth more; doubles with each failed probe.
        longest_open_ms: it is never open for longer, whatever a rate limit says.
        probes: good calls in a row that close it; no more are under way at once.
        probe_timeout_ms: how long a probe may owe its answer.
        clock: whose time.
        jitter: `random.uniform`, or what a test puts in its place.
    """

    def __init__(
        self,
        *,
        window: int = 20,
        minimum_calls: int = 5,
        failure_share: float = 0.5,
        slow_share: float = 0.8,
        slow_ms: float = 1_000.0,
        open_ms: float = 10_000.0,
        longest_open_ms: float = LONGEST_OPEN_MS,
        probes: int = 2,
        probe_timeout_ms: float = 5_000.0,
        clock: Clock | None = None,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.slow_ms = slow_ms
        self._minimum_calls, self._failure_share, self._slow_share = minimum_calls, failure_share, slow_share
        self._open_ms, self._longest_open_ms = open_ms, longest_open_ms
        self._probes, self._probe_timeout_ms = probes, probe_timeout_ms
        self._clock, self._jitter = clock or Clock(), jitter
        self._state: State = "closed"
        self._period = 0  # the number of its states so far: what began in an earlier one is late
        self._size = window
        self._window: list[tuple[bool, bool]] = []  # failed, slow
        self._until_ms = 0.0
        self._reopened = 0
        self._failed_in_a_row, self._refused = 0, False
        self._probing: list[Attempt] = []
        self._good = 0

    @property
    def state(self) -> State:
        """ "closed" (all may call), "open" (nobody), "half_open" (a few are trying)."""
        self._settle()
        return self._state

    @property
    def may_answer(self) -> bool:
        """True when one of the last `minimum_calls` calls was answered, be it slowly, and none refused: who has nobody else to
        ask may ask, in whatever state it is."""
        return self._failed_in_a_row < self._minimum_calls and not self._refused

    @property
    def wait_ms(self) -> float:
        """How long until an attempt may be made; 0: now."""
        self._settle()
        if self._state == "closed" or (self._state == "half_open" and self._has_place):
            return 0.0
        until_ms = self._until_ms if self._state == "open" else min(probe.until_ms for probe in self._probing)
        return max(0.0, until_ms - self._clock.now_ms())

    def enter(self, on_change: OnChange | None = None) -> Attempt | None:
        """Ask to make an attempt; None: not now. Whoever is let in tells what became of it.

        Args:
            on_change: told the old and the new state when this attempt changes it.
        """
        self._settle()
        if self._state == "open":
            if self._until_ms - self._clock.now_ms() >= ROUNDING_MS:
                return None
            self._good = 0
            self._move("half_open", on_change)
        if self._state == "half_open" and not self._has_place:
            return None
        attempt = Attempt(self, self._clock, self._period, self._probe_timeout_ms, on_change)
        if self._state == "half_open":
            self._probing.append(attempt)
        return attempt

    def aside(self) -> Attempt:
        """An attempt that is made without having been let in: what becomes of it changes no state."""
        return Attempt(self, self._clock, NO_PERIOD, self._probe_timeout_ms)

    @property
    def _has_place(self) -> bool:
        return len(self._probing) + self._good < self._probes

    def _settle(self) -> None:
        """Let go of probes whose time is over: one that owes its answer has failed, one that was not asked yet is nobody's."""
        if not self._probing:
            return
        now_ms = self._clock.now_ms()
        for probe in [probe for probe in self._probing if probe.until_ms <= now_ms]:
            if probe.owed:
                probe.failed(TimeoutError(f"no answer within {self._probe_timeout_ms:g} ms"))
            else:
                probe.left()

    def _let_go(self, attempt: Attempt) -> bool:
        """Forget an attempt that is over; True when what became of it counts."""
        if attempt in self._probing:
            self._probing.remove(attempt)
        return attempt.period == self._period

    def _succeeded(self, attempt: Attempt, slow: bool) -> None:
        self._failed_in_a_row, self._refused = 0, False
        if not self._let_go(attempt):
            return
        if self._state == "closed":
            self._count(False, slow, attempt.on_change)
        elif slow:
            self._open(attempt.on_change)
        else:
            self._good += 1
            if self._good >= self._probes:
                self._reopened = 0
                self._move("closed", attempt.on_change)

    def _failed(self, attempt: Attempt, error: BaseException) -> None:
        self._failed_in_a_row += 1
        if not self._let_go(attempt):
            return
        told_ms = error.retry_after_ms if isinstance(error, RateLimitError) else None
        refused = isinstance(error, (AuthError, QuotaError))
        self._refused = refused or told_ms is not None
        if told_ms is not None:
            self._open(attempt.on_change, told_ms)
        elif self._state == "half_open" or refused:
            self._open(attempt.on_change)
        else:
            self._count(True, False, attempt.on_change)

    def _count(self, failed: bool, slow: bool, on_change: OnChange | None) -> None:
        self._window.append((failed, slow))
        del self._window[: -self._size]
        calls = len(self._window)
        if calls < self._minimum_calls:
            return
        failures, slows = (sum(column) for column in zip(*self._window))
        if failures >= self._failure_share * calls or slows >= self._slow_share * calls:
            self._open(on_change)

    def _open(self, on_change: OnChange | None, for_ms: float | None = None) -> None:
        if for_ms is None:
            for_ms = self._open_ms * 2.0 ** min(self._reopened, DOUBLINGS)
            self._reopened += 1
        for_ms = min(max(for_ms, 0.0) * self._jitter(1.0, 1.1), self._longest_open_ms)
        self._until_ms = self._clock.now_ms() + for_ms
        self._window.clear()
        self._probing.clear()
        self._move("open", on_change)

    def _move(self, state: State, on_change: OnChange | None) -> None:
        old, self._state = self._state, state
        self._period += 1
        if on_change is not None:
            on_change(old, state)


class Attempt:
    """One call that the breaker let in. The first of `succeeded`, `failed`, `left` counts; what comes later is ignored.

    Attributes:
        owed: True while the provider owes an answer.
        over: True once it was told, or its time as a probe was over.
    """

    def __init__(
        self, breaker: Breaker, clock: Clock, period: int, timeout_ms: float, on_change: OnChange | None = None
    ) -> None:
        self.period, self.on_change = period, on_change
        self.owed, self.over = True, False
        self._breaker, self._clock, self._timeout_ms = breaker, clock, timeout_ms
        self._first_ms: float | None = None
        self._asked_ms = clock.now_ms()
        self.until_ms = self._asked_ms + timeout_ms

    def asked(self) -> None:
        """The answer is owed from now on; without this, from the beginning."""
        self.owed, self._first_ms, self._asked_ms = True, None, self._clock.now_ms()
        self.until_ms = self._asked_ms + self._timeout_ms

    def idle(self) -> None:
        """Nothing is owed until `asked`: the stream is open, the caller speaks."""
        self.owed = False

    def first(self) -> None:
        """The answer begins: its first byte is there."""
        if self._first_ms is None:
            self._first_ms = self._clock.now_ms()

    def succeeded(self) -> None:
        """All of the answer is there; it was slow if it began late."""
        if not self.over:
            self.over = True
            first_ms = self._clock.now_ms() if self._first_ms is None else self._first_ms
            self._breaker._succeeded(self, first_ms - self._asked_ms > self._breaker.slow_ms)

    def failed(self, error: BaseException) -> None:
        """The call failed."""
        if not self.over:
            self.over = True
            self._breaker._failed(self, error)

    def left(self) -> None:
        """The call was given up by its caller: says nothing of the provider."""
        if not self.over:
            self.over = True
            self._breaker._let_go(self)
