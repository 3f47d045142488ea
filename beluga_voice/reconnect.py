"""Dialling again: how long to wait between attempts, when to stop, and a breaker against a place that is down.

>>> [backoff_ms(attempt, 500.0, lambda low, high: high) for attempt in range(7)]
[0.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0, 10000.0]
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from .clock import Clock
from .errors import ReconnectError
from .transport import Transport

__all__ = ["LONGEST_DELAY_MS", "Breaker", "Connect", "backoff_ms", "dial"]

Connect = Callable[[], Awaitable[Transport | None]]
Jitter = Callable[[float, float], float]

LONGEST_DELAY_MS = 10_000.0
ATTEMPT_MS = 10_000.0  # one attempt takes no longer
DOUBLINGS = 30  # beyond, the power only overflows: the cap was reached long before
FAILURES, OPEN_MS, PROBE_MS = 5, 10_000.0, 10_000.0


def backoff_ms(attempt: int, base_delay_ms: float, jitter: Jitter = random.uniform) -> float:
    """How long to wait before attempt number `attempt`: nothing before the first (0), then full jitter under a doubling cap.

    Full jitter, so that the callers of a server that was down do not come back in the same moment.
    """
    if attempt <= 0:
        return 0.0
    return jitter(0.0, min(LONGEST_DELAY_MS, base_delay_ms * 2.0 ** min(attempt - 1, DOUBLINGS)))


class Breaker:
    """Stops attempts for a while once `failures` of them in a row have failed; then lets one through to see.

    A probe that has not come back after `probe_ms` no longer bars the next.

    Attributes:
        state: "closed" (all may try), "open" (nobody), "half_open" (one is trying).
    """

    def __init__(
        self, failures: int = FAILURES, open_ms: float = OPEN_MS, probe_ms: float = PROBE_MS, *, clock: Clock | None = None
    ) -> None:
        self._failures, self._open_ms, self._probe_ms = failures, open_ms, probe_ms
        self._clock = clock or Clock()
        self._failed = 0
        self._until_ms = 0.0
        self.state = "closed"

    @property
    def wait_ms(self) -> float:
        """How long until an attempt may be made; 0: now."""
        return 0.0 if self.state == "closed" else max(0.0, self._until_ms - self._clock.now_ms())

    def enter(self) -> bool:
        """Ask to make an attempt; whoever was allowed to tells `succeeded` or `failed`."""
        if self.state == "closed":
            return True
        if self.wait_ms >= 1.0:  # whoever slept for it may wake a rounding error early
            return False
        self.state, self._until_ms = "half_open", self._clock.now_ms() + self._probe_ms
        return True

    def succeeded(self) -> None:
        """The attempt succeeded."""
        self.state, self._failed = "closed", 0

    def failed(self) -> None:
        """The attempt failed."""
        self._failed += 1
        if self.state == "half_open" or self._failed >= self._failures:
            self.state, self._until_ms = "open", self._clock.now_ms() + self._open_ms


async def dial(
    connect: Connect,
    *,
    max_attempts: int,
    base_delay_ms: float,
    clock: Clock,
    breaker: Breaker,
    jitter: Jitter = random.uniform,
) -> Transport | None:
    """What the first attempt that succeeds gives. An attempt that the breaker bars waits until it does not, and counts.

    Raises:
        ReconnectError: `max_attempts` failed; `__cause__` is what the last one raised.
    """
    last: Exception | None = None
    for attempt in range(max_attempts):
        await clock.sleep_ms(max(backoff_ms(attempt, base_delay_ms, jitter), breaker.wait_ms))
        if not breaker.enter():
            continue
        try:
            async with asyncio.timeout(ATTEMPT_MS / 1000.0):
                line = await connect()
        except Exception as error:
            breaker.failed()
            last = error
        except BaseException:
            breaker.failed()
            raise
        else:
            breaker.succeeded()
            return line
    why = f"; the last one failed: {last!r}" if last is not None else "; another session was trying"
    raise ReconnectError(f"the line did not come back in {max_attempts} attempts{why}", attempts=max_attempts) from last
