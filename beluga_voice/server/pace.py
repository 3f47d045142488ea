"""How much a caller may send: a budget that fills with time, and the patience for what goes beyond it.

>>> pace = Pace(per_s=2000, burst=1000, patience=700)
>>> [pace.judge(600, now_ms=0) for _ in range(3)], pace.judge(600, now_ms=1000)
(['fine', 'over', 'broken'], 'fine')
"""

from __future__ import annotations

from typing import Literal

__all__ = ["Pace"]

FORGIVEN_SHARE = 0.1  # patience comes back at a tenth of the pace


class Pace:
    """A token bucket of `burst`, filled by `per_s` a second, in whatever is counted; pure, times handed in.

    Args:
        per_s: how much may be sent each second.
        burst: how much at once.
        patience: how much beyond, before it is no accident.
    """

    def __init__(self, per_s: float, burst: float, patience: float) -> None:
        self._per_ms, self._burst, self._most = per_s / 1000.0, burst, patience
        self._budget, self._patience = burst, patience
        self._at_ms: float | None = None

    def judge(self, amount: float, now_ms: float) -> Literal["fine", "over", "broken"]:
        """Whether `amount` may be sent now: "over" is to be refused, "broken" was refused too often."""
        passed_ms = 0.0 if self._at_ms is None else max(0.0, now_ms - self._at_ms)
        self._at_ms = now_ms
        self._budget = min(self._burst, self._budget + passed_ms * self._per_ms)
        self._patience = min(self._most, self._patience + passed_ms * self._per_ms * FORGIVEN_SHARE)
        if amount <= self._budget:
            self._budget -= amount
            return "fine"
        self._patience -= amount
        return "over" if self._patience >= 0 else "broken"
