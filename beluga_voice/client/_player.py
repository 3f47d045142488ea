"""What is to be heard, by the numbers of the messages that brought it: plays, pauses, drops, and knows where it is."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import attrs

from ..audio import BYTES_PER_SAMPLE

__all__ = ["Place", "Player"]


@attrs.frozen
class Place:
    """Where playing is: all audio messages before `seq` are played, and `ms` of that one; `seq` -1 is nothing yet."""

    seq: int = -1
    ms: float = 0.0


@attrs.define
class _Piece:
    seq: int
    pcm: memoryview


class Player:
    """A queue of numbered audio from which sound is taken.

    With `now_ms` it keeps time itself: it plays by that clock whatever is taken from it, and what `take` gives is what was
    due since the last call. Without, what takes from it sets the pace. Safe to use from an audio thread.

    >>> player = Player(1000, limit_ms=10_000)
    >>> player.put(7, b"ab" * 30)
    >>> len(player.take(20)), player.place, player.clear(), player.take(1)
    (40, Place(seq=7, ms=20.0), Place(seq=7, ms=20.0), b'')
    """

    def __init__(self, rate_hz: int, *, limit_ms: float, now_ms: Callable[[], float] | None = None) -> None:
        self.rate_hz, self.limit_ms = rate_hz, limit_ms
        self.dropped_ms = 0.0
        self.paused = False
        self._now_ms = now_ms
        self._queue: deque[_Piece] = deque()
        self._queued = 0
        self._seq = -1
        self._samples = 0
        self._played_until = 0
        self._due: list[bytes] = []
        self._lock = threading.Lock()

    @property
    def place(self) -> Place:
        """Where playing is now."""
        with self._lock:
            self._keep_time()
            return self._place()

    @property
    def queued_ms(self) -> float:
        """How much waits to be played."""
        with self._lock:
            self._keep_time()
            return self._ms(self._queued)

    @property
    def is_playing(self) -> bool:
        """True while there is something to play and it is not paused."""
        return not self.paused and self.queued_ms > 0

    def put(self, seq: int, pcm: bytes) -> None:
        """Queue the audio of message `seq`; when that is more than `limit_ms`, the oldest is dropped and counted."""
        with self._lock:
            self._keep_time()
            self._queue.append(_Piece(seq, memoryview(pcm)))
            self._queued += len(pcm) // BYTES_PER_SAMPLE
            while len(self._queue) > 1 and self._ms(self._queued) > self.limit_ms:
                dropped = len(self._queue.popleft().pcm) // BYTES_PER_SAMPLE
                self._queued -= dropped
                self.dropped_ms += self._ms(dropped)

    def take(self, samples: int) -> bytes:
        """What is played now, at most `samples`; less when there is less, nothing while it is paused."""
        with self._lock:
            return b"" if self.paused else self._take(samples)

    def take_due(self) -> bytes:
        """What was played by the clock since the last call."""
        with self._lock:
            self._keep_time()
            due, self._due = b"".join(self._due), []
            return due

    def pause(self) -> Place:
        """Stop; where that was."""
        with self._lock:
            self._keep_time()
            self.paused = True
            return self._place()

    def go_on(self) -> None:
        """Play on from where `pause` stopped."""
        with self._lock:
            self._keep_time()
            self.paused = False

    def clear(self) -> Place:
        """Drop what is not played, and a pause with it; where playing stopped."""
        with self._lock:
            self._keep_time()
            self._queue.clear()
            self._queued = 0
            self.paused = False
            return self._place()

    def _place(self) -> Place:
        return Place(self._seq, self._ms(self._samples))

    def _ms(self, samples: int) -> float:
        return samples * 1000.0 / self.rate_hz

    def _keep_time(self) -> None:
        if self._now_ms is None:
            return
        now = int(self._now_ms() * self.rate_hz / 1000.0 + 1e-6)
        due, self._played_until = now - self._played_until, now
        if due > 0 and self._queue and not self.paused:
            self._due.append(self._take(due))

    def _take(self, samples: int) -> bytes:
        taken: list[memoryview] = []
        left = samples
        while left > 0 and self._queue:
            piece = self._queue[0]
            if piece.seq != self._seq:
                self._seq, self._samples = piece.seq, 0
            part = piece.pcm[: left * BYTES_PER_SAMPLE]
            piece.pcm = piece.pcm[len(part) :]
            if not piece.pcm:
                self._queue.popleft()
            count = len(part) // BYTES_PER_SAMPLE
            self._samples += count
            left -= count
            taken.append(part)
        self._queued -= samples - left
        return b"".join(taken)
