"""Dialling again: how long to wait between attempts, when to stop, and a breaker against a place that is down.

>>> [backoff_ms(attempt, 500.0, lambda low, high: high) for attempt in range(7)]
[0.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0, 10000.0]
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable

from . import breaker
from .clock import Clock
from .errors import ReconnectError
from .transport import Transport

__all__ = ["LONGEST_DELAY_MS", "Breaker", "Connect", "backoff_ms", "dial"]

Connect = Callable[[], Awaitable[Transport | None]]
Jitter = Callable[[float, float], float]

LONGEST_DELAY_MS = 10_000.0
ATTEMPT_MS = 10_000.0  # one attempt takes no longer
DOUBLINGS = 30  # beyond, the power only overflows: the cap was reached long before
FAILURES, OPEN_MS = 5, 10_000.0


def backoff_ms(
    attempt: int, base_delay_ms: float, jitter: Jitter = random.uniform, *, longest_ms: float = LONGEST_DELAY_MS
) -> float:
    """How long to wait before attempt number `attempt`: nothing before the first (0), then full jitter under a doubling cap.

    Full jitter, so that the callers of a server that was down do not come back in the same moment.
    """
    if attempt <= 0:
        return 0.0
    return jitter(0.0, min(longest_ms, base_delay_ms * 2.0 ** min(attempt - 1, DOUBLINGS)))


class Breaker(breaker.Breaker):
    """What spares a place that is down: five failures in a row open it for 10 s, then one attempt in 10 s goes out.

    Args:
        clock: whose time.
    """

    def __init__(self, *, clock: Clock | None = None) -> None:
        super().__init__(
            window=FAILURES,
            minimum_calls=FAILURES,
            failure_share=1.0,
            slow_ms=math.inf,
            open_ms=OPEN_MS,
            longest_open_ms=OPEN_MS,  # the caller is waiting: a line that is back is found soon
            probes=1,
            probe_timeout_ms=ATTEMPT_MS,
            clock=clock,
        )


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
        tried = breaker.enter()
        if tried is None:
            continue
        try:
            async with asyncio.timeout(ATTEMPT_MS / 1000.0):
                line = await connect()
        except Exception as error:
            tried.failed(error)
            last = error
        except BaseException:
            tried.left()
            raise
        else:
            tried.succeeded()
            return line
    why = f"; the last one failed: {last!r}" if last is not None else "; another session was trying"
    raise ReconnectError(f"the line did not come back in {max_attempts} attempts{why}", attempts=max_attempts) from last
