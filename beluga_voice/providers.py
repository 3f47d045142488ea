"""Who serves a session, and what its calls use: the news that stages emit, as its account and its events."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from .frames import FailedOver, Frame, HealthChanged, Retried, Usage

__all__ = ["NEWS", "Providers"]

NEWS = (Usage, Retried, FailedOver, HealthChanged)
MOST_PRICES = 64  # kinds, providers and models of one session; beyond, usage is counted as dropped
MOST_UNITS = 16  # of each
OF_THE_MOUTH = ("agent", "tts")


class Providers:
    """The providers of one session.

    Args:
        names: by kind, the provider that is preferred.
        index: the number of the turn under way; -1 for none.
        tell: announces an event: `tell(name, turn_index, **data)`.
        counters: what was dropped or late, by name.

    Attributes:
        serving: by kind, the provider that does the work now.

    >>> told = []
    >>> tell = lambda name, turn, **data: told.append(name)
    >>> providers = Providers({"stt": "deepgram"}, lambda: 0, tell, Counter())
    >>> providers.hear(FailedOver("stt", "deepgram", "moonshine"))
    >>> providers.serving["stt"], told
    ('moonshine', ['failed_over'])
    """

    def __init__(
        self, names: Mapping[str, str], index: Callable[[], int], tell: Callable[..., None], counters: Counter[str]
    ) -> None:
        self.serving = dict(names)
        self._index, self._tell, self._counters = index, tell, counters
        self._on_duty: dict[str, str] = {}
        self._amounts: dict[tuple[str, str, str], dict[str, float]] = {}

    def use(self, names: Mapping[str, str]) -> None:
        """Other stages do the work: those of the mouth know who is on duty from earlier replies, the ears begin anew."""
        self._on_duty |= {kind: self.serving[kind] for kind in OF_THE_MOUTH if kind in self.serving}
        self.serving = {kind: self._on_duty.get(kind, name) for kind, name in names.items()}

    @property
    def usage(self) -> tuple[Usage, ...]:
        """What was used so far, added up: one `Usage` for each kind, provider and model."""
        return tuple(Usage(*of, dict(amounts)) for of, amounts in self._amounts.items())

    def hear(self, frame: Frame) -> None:
        """Take a stage's news: `Usage`, `Retried`, `FailedOver`, `HealthChanged`. Any other frame is passed over."""
        index = self._index()
        if type(frame) is Usage:
            amounts = self._add(frame)
            self._tell("usage", index, kind=frame.kind, provider=frame.provider, model=frame.model, amounts=amounts)
        elif type(frame) is Retried:
            self._tell("retried", index, kind=frame.kind, provider=frame.provider, attempt=frame.attempt, error=frame.error)
        elif type(frame) is FailedOver:
            self.serving[frame.kind] = frame.new
            self._tell("failed_over", index, kind=frame.kind, old=frame.old, new=frame.new, error=frame.error)
        elif type(frame) is HealthChanged:
            self._tell("provider_health", index, kind=frame.kind, provider=frame.provider, state=frame.new, old=frame.old)

    def hear_all(self, frames: Iterable[Frame]) -> None:
        """Take the news among frames that nobody else will read."""
        for frame in frames:
            self.hear(frame)

    def _add(self, frame: Usage) -> dict[str, float]:
        """Add up what is a number and not negative; what it came to, by unit."""
        amounts = {str(unit): amount for unit, amount in frame.amounts.items() if _is_amount(amount)}
        of = frame.kind, frame.provider, frame.model
        if of not in self._amounts and len(self._amounts) >= MOST_PRICES:
            self._counters["usage_dropped"] += 1
            return amounts
        sums = self._amounts.setdefault(of, {})
        for unit, amount in amounts.items():
            if unit in sums or len(sums) < MOST_UNITS:
                sums[unit] = sums.get(unit, 0) + amount
            else:
                self._counters["usage_dropped"] += 1
        return amounts


def _is_amount(amount: object) -> bool:
    return isinstance(amount, (int, float)) and not isinstance(amount, bool) and math.isfinite(amount) and amount >= 0
