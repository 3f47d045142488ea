"""A loudspeaker on paper: plays in true time what it is sent, without making a sound."""

from __future__ import annotations

from ..audio import BYTES_PER_SAMPLE

__all__ = ["Player"]


class Player:
    """Plays PCM from the moment it is sent, piece after piece; pure, all times handed in.

    With `record`, what was played (and the silence between) is to be had from `take_record`.

    >>> player = Player(1000, record=True)
    >>> player.send(10, b"ab" * 30)
    >>> player.played_ms(25), player.clear(25), player.played_ms(90), len(player.take_record())
    (15.0, 15.0, 15.0, 180)
    """

    def __init__(self, sample_rate_hz: int, *, record: bool = False) -> None:
        self._rate_hz = sample_rate_hz
        self._queue: list[bytes] = []
        self._now = 0
        self._played = 0
        self._record = bytearray() if record else None

    def send(self, now_ms: float, pcm: bytes) -> None:
        """Queue `pcm` behind what is queued; it plays at once when there is nothing."""
        self._advance(now_ms)
        if pcm:
            self._queue.append(pcm)

    def clear(self, now_ms: float) -> float:
        """Drop what is not played yet; how much was played in all, in ms."""
        self._advance(now_ms)
        self._queue.clear()
        return self.played_ms(now_ms)

    def played_ms(self, now_ms: float) -> float:
        """How much was played in all, in ms."""
        self._advance(now_ms)
        return self._played * 1000.0 / self._rate_hz

    def queued_ms(self, now_ms: float) -> float:
        """How much waits to be played, in ms."""
        self._advance(now_ms)
        return sum(map(len, self._queue)) * 500.0 / self._rate_hz

    def take_record(self) -> bytes:
        """What was played since the last call, silence included."""
        if self._record is None:
            return b""
        taken = bytes(self._record)
        self._record.clear()
        return taken

    def _advance(self, now_ms: float) -> None:
        due = int(now_ms * self._rate_hz / 1000 + 1e-6) - self._now
        if due <= 0:
            return
        self._now += due
        while due and self._queue:
            piece = self._queue[0]
            samples = len(piece) // BYTES_PER_SAMPLE
            if samples <= due:
                self._queue.pop(0)
            else:
                self._queue[0] = piece[due * BYTES_PER_SAMPLE :]
                piece = piece[: due * BYTES_PER_SAMPLE]
                samples = due
            self._played += samples
            due -= samples
            if self._record is not None:
                self._record += piece
        if due and self._record is not None:
            self._record += bytes(due * BYTES_PER_SAMPLE)
