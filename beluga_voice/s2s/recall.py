"""The caller's audio that a new connection would have to hear again: bounded, and counted where it is dropped."""

from __future__ import annotations

from collections import Counter, deque

from ..frames import AudioIn
from .caller_audio import audio_ms

__all__ = ["Recall"]

LONGEST_MS = 30_000.0
GIVE_UP_MS = 10_000.0  # speech of which no turn has come by then is none


class Recall:
    """Keeps the audio of the turn under way, and of the one that is over while nobody knows its words.

    Args:
        counters: counts what was dropped, in ms, as "s2s_recall_dropped_ms".
        quiet_ms: how much is kept while nobody has told of speech: it may have begun.
    """

    def __init__(self, counters: Counter[str], quiet_ms: float) -> None:
        self._counters, self._quiet_ms = counters, quiet_ms
        self._over: deque[AudioIn] = deque()
        self._now: deque[AudioIn] = deque()
        self._now_ms = 0.0
        self._of_a_turn = False  # what is kept has speech
        self._ended, self._since_ms = True, 0.0  # nobody speaks; audio since the last one did

    @property
    def untold(self) -> bool:
        """True while a turn is over of which neither words nor an answer are known."""
        return bool(self._over)

    @property
    def goes_on(self) -> bool:
        """True when the caller has spoken since the turn that is over."""
        return self._of_a_turn

    def push(self, frame: AudioIn) -> None:
        """Keep a piece of audio."""
        self._now.append(frame)
        self._now_ms += audio_ms(frame)
        if self._ended:
            self._since_ms += audio_ms(frame)
            self._of_a_turn = self._of_a_turn and self._since_ms < GIVE_UP_MS
        self._trim(LONGEST_MS if self._of_a_turn else self._quiet_ms)

    def speech(self, goes_on: bool) -> None:
        """The caller begins to speak, or ends: their turn may go on for long after."""
        self._ended, self._since_ms = not goes_on, 0.0
        self._of_a_turn = self._of_a_turn or goes_on

    def turn_over(self) -> None:
        """The caller's turn ended with what was pushed last."""
        self._over, self._now, self._now_ms = self._now, deque(), 0.0
        self._of_a_turn = not self._ended

    def told(self) -> None:
        """What the caller said in the turn that is over is known."""
        self._over.clear()

    def kept(self) -> tuple[tuple[AudioIn, ...], tuple[AudioIn, ...]]:
        """What a new connection is to hear: the turn that is over, and what came after it."""
        return tuple(self._over), tuple(self._now)

    def _trim(self, limit_ms: float) -> None:
        while self._now_ms > limit_ms and len(self._now) > 1:
            dropped_ms = audio_ms(self._now.popleft())
            self._now_ms -= dropped_ms
            if self._of_a_turn:
                self._counters["s2s_recall_dropped_ms"] += round(dropped_ms)
