"""How much of the audio sent to a caller was played, by what the caller reports and, between reports, by the time that went by.

>>> head = Playhead(1000)
>>> head.attach(0)
>>> head.queued(0, 200); head.sent(0, now_ms=0)
>>> head.played_ms(50)                     # no report yet: real time since it was sent
50.0
>>> head.report(0, 80, now_ms=90); head.played_ms(100), head.played_ms(9000)
(90.0, 200.0)
"""

from __future__ import annotations

from collections import deque

import attrs

__all__ = ["Playhead"]

REMEMBERED_MS = 5_000.0


@attrs.frozen
class _Piece:
    """One audio message: its number, and the samples where it begins and ends."""

    seq: int
    start: int
    end: int


class Playhead:
    """Where playing is, in samples of all audio that was not cleared; pure, all times handed in.

    Audio is `queued` when it has its number and `sent` when it was written to a socket. It plays from when it was sent, at
    most to the end of what was sent, and only while a socket is attached and it is not paused. What is told never goes back
    while playing: a caller whose report is behind the estimate is waited for. Only a `stopped`, or a resume, sets it back.
    """

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._pieces: deque[_Piece] = deque()
        self._cleared_seq = -1  # audio numbered below it was cleared
        self._floor = 0  # where the audio after the last clear begins
        self._end = 0
        self._sent = 0
        self._sent_before = 0  # how much was sent when the last clear fell
        self._at = 0.0  # playing was here at _at_ms
        self._at_ms = 0.0
        self._least = 0.0  # what was told already
        self._attached = self._paused = False

    @property
    def unsent_ms(self) -> float:
        """How much is queued and not sent."""
        return (self._end - self._sent) * 1000.0 / self._rate_hz

    def played_ms(self, now_ms: float) -> float:
        """How much was played, in ms."""
        return self._place(now_ms) * 1000.0 / self._rate_hz

    # --- what this end does ------------------------------------------------------------------------------------------

    def queued(self, seq: int, samples: int) -> None:
        """Audio message `seq` of so many samples will be sent."""
        while self._pieces and self._pieces[0].seq < self._cleared_seq:
            self._pieces.popleft()  # a late word on what was cleared changes nothing now
        self._pieces.append(_Piece(seq, self._end, self._end + samples))
        self._end += samples

    def sent(self, seq: int, now_ms: float) -> None:
        """Audio message `seq` was written to the socket."""
        if seq < self._cleared_seq:
            return
        self._move(now_ms)
        for piece in reversed(self._pieces):
            if piece.seq <= seq:
                if piece.seq == seq:
                    self._sent = max(self._sent, piece.end)
                break
        old = min(self._at, self._sent) - REMEMBERED_MS * self._rate_hz / 1000.0
        while self._pieces and self._pieces[0].end < old:
            self._pieces.popleft()

    def pause(self, now_ms: float) -> None:
        """The caller is asked to stop."""
        self._move(now_ms)
        self._paused = True

    def go_on(self, now_ms: float) -> None:
        """The caller is asked to play on."""
        self._move(now_ms)
        self._paused = False

    def clear(self, seq: int, now_ms: float) -> None:
        """The caller is asked, by message `seq`, to drop what is not played. A pause ends with it."""
        self._move(now_ms)
        self._least = self._place(now_ms)
        if self._end > self._floor:
            self._cleared_seq, self._sent_before = seq, self._sent
            self._cut(int(self._least + 0.5))
        self._paused = False

    def detach(self, now_ms: float) -> None:
        """The socket is gone: nothing is known to be played until the next one."""
        self._move(now_ms)
        self._attached = False

    def attach(self, now_ms: float, received_seq: int = -1, seq: int | None = None, ms: float = 0.0) -> None:
        """A new socket: the caller has received up to `received_seq` and played up to `ms` of message `seq`, if it told."""
        self._move(now_ms)
        unsent = next((piece for piece in self._pieces if piece.seq > max(received_seq, self._cleared_seq)), None)
        self._sent = self._end if unsent is None else unsent.start
        told = self._found(seq, ms) if seq is not None else None
        if told is not None and told[1]:
            self._at = float(told[0])
        self._at = self._least = max(float(self._floor), min(self._at, float(self._sent)))
        self._at_ms, self._attached = now_ms, True

    # --- what the caller tells ---------------------------------------------------------------------------------------

    def report(self, seq: int, ms: float, now_ms: float) -> None:
        """All audio messages before `seq` are played, and `ms` of it."""
        place, current = self._found(seq, ms)
        if not current or self._paused or not self._attached:
            return
        self._move(now_ms)
        self._least = max(self._least, self._at)
        self._at = float(min(place, self._sent))
        while len(self._pieces) > 1 and self._pieces[0].seq < seq and self._pieces[0].end <= self._at:
            self._pieces.popleft()

    def stopped(self, seq: int, ms: float, now_ms: float) -> None:
        """Playing stopped at `ms` of message `seq`: exact, in answer to a pause or a clear."""
        place, current = self._found(seq, ms)
        if current and self._paused:
            self._at = self._least = float(max(self._floor, min(place, self._sent)))
            self._at_ms = now_ms
        elif current:
            self.report(seq, ms, now_ms)
        elif self._end == self._floor:
            self._cut(min(place, self._sent_before))

    # --- the sums ----------------------------------------------------------------------------------------------------

    def _cut(self, place: int) -> None:
        """Playing ended at `place`; what comes next begins there."""
        self._floor = self._end = self._sent = place
        self._at = self._least = float(place)

    def _place(self, now_ms: float) -> float:
        at = self._at
        if self._attached and not self._paused:
            at = min(float(self._sent), at + max(0.0, now_ms - self._at_ms) * self._rate_hz / 1000.0)
        return max(at, self._least)

    def _move(self, now_ms: float) -> None:
        """Note where playing is now."""
        if self._attached and not self._paused:
            self._at = min(float(self._sent), self._at + max(0.0, now_ms - self._at_ms) * self._rate_hz / 1000.0)
        self._at_ms = now_ms

    def _found(self, seq: int, ms: float) -> tuple[int, bool]:
        """The place that a report means, and whether that is audio which was not cleared."""
        for piece in self._pieces:
            if piece.seq >= seq:
                into = min(int(ms * self._rate_hz / 1000.0 + 0.5), piece.end - piece.start) if piece.seq == seq else 0
                return piece.start + into, piece.seq > self._cleared_seq
        if not self._pieces:
            return self._end, True
        last = self._pieces[-1]
        return last.end, last.seq > self._cleared_seq
