"""The caller's audio that a new connection would have to hear again: bounded, and counted where it is dropped."""

from __future__ import annotations

from collections import Counter, deque

from ..frames import AudioIn

__all__ = ["Recall"]

QUIET_MS = 1_000.0  # before the model tells of speech, it has begun
LONGEST_MS = 30_000.0


class Recall:
    """Keeps the audio of the turn under way, and of the one that is over while nobody knows its words.

    Args:
        counters: counts what was dropped, in ms, as "s2s_recall_dropped_ms".
    """

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._over: deque[AudioIn] = deque()
        self._now: deque[AudioIn] = deque()
        self._now_ms = 0.0
        self.speaking = False

    @property
    def untold(self) -> bool:
        """True while a turn is over of which neither words nor an answer are known."""
        return bool(self._over)

    def push(self, frame: AudioIn) -> None:
        """Keep a piece of audio."""
        self._now.append(frame)
        self._now_ms += _ms(frame)
        self._trim(LONGEST_MS if self.speaking else QUIET_MS)

    def turn_over(self) -> None:
        """The caller's turn ended with what was pushed last."""
        self._over, self._now, self._now_ms = self._now, deque(), 0.0
        self.speaking = False

    def told(self) -> None:
        """What the caller said in the turn that is over is known."""
        self._over.clear()

    def take(self) -> list[AudioIn]:
        """Everything kept, in order; it will be pushed again."""
        kept = [*self._over, *self._now]
        self._over.clear()
        self._now.clear()
        self._now_ms = 0.0
        return kept

    def _trim(self, limit_ms: float) -> None:
        while self._now_ms > limit_ms and len(self._now) > 1:
            dropped_ms = _ms(self._now.popleft())
            self._now_ms -= dropped_ms
            if self.speaking:
                self._counters["s2s_recall_dropped_ms"] += round(dropped_ms)


def _ms(frame: AudioIn) -> float:
    return len(frame.pcm) * 500.0 / frame.sample_rate_hz
