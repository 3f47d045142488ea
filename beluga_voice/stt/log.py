"""What a recogniser was given and has not answered yet: fed from here, and from here to the next one should it fail.

>>> log = Log(1_000.0)
>>> log.add(Audio(bytes(640), 16_000))
>>> log.close(now_ms=20.0)
>>> log.take(), log.take(), log.take()
(Audio(pcm=<640 bytes>, sample_rate_hz=16000), 'finalize', None)
>>> log.rewind()  # its recogniser has failed
>>> log.take()
Audio(pcm=<640 bytes>, sample_rate_hz=16000)
"""

from __future__ import annotations

from collections import deque
from typing import Literal

from ..audio import BYTES_PER_SAMPLE, Audio

__all__ = ["Log", "Utterance", "Wish"]

Wish = Literal["propose", "withdraw", "peek", "end"]


class Utterance:
    """What was given from one `finalize` to the next.

    Attributes:
        pieces: its audio that may still have to be heard again, and wishes in their places among it.
        audio_ms: how long all its audio was.
        closed_ms: when its final was asked for; None: not yet.
        told: True once some of its words are told for good.
    """

    def __init__(self) -> None:
        self.pieces: deque[Audio | Wish] = deque()
        self.audio_ms = 0.0
        self.closed_ms: float | None = None
        self.told = False
        self.given = 0  # how many of the pieces the stream has had
        self.asked = False  # its `finalize` was given

    @property
    def audio(self) -> list[Audio]:
        """Its audio, without the wishes."""
        return [piece for piece in self.pieces if not isinstance(piece, str)]


class Log:
    """Utterances in order, the last one perhaps still open; bounded.

    Args:
        limit_ms: how much audio is kept; beyond, the oldest is let go.

    Attributes:
        dropped_ms: audio that was let go before any stream had it.
        missing_ms: audio that a stream had, but the next one would not hear, because it was let go.
    """

    def __init__(self, limit_ms: float) -> None:
        self._limit_ms = limit_ms
        self._utterances: list[Utterance] = []  # few: a deque takes 760 bytes even when empty
        self._held_ms = 0.0
        self._from_ms = 0.0  # where, in all that the stream was given, the first piece begins
        self.dropped_ms = 0.0
        self.missing_ms = 0.0

    # --- filling it --------------------------------------------------------------------------------------------------

    def add(self, audio: Audio) -> None:
        """Add audio to the open utterance."""
        utterance = self._open()
        utterance.pieces.append(audio)
        audio_ms = len(audio.pcm) * 500.0 / audio.sample_rate_hz
        utterance.audio_ms += audio_ms
        self._held_ms += audio_ms
        if self._held_ms > self._limit_ms:
            self._let_go()

    def wish(self, wish: Wish) -> None:
        """Add a wish after the audio so far, if there is any."""
        if self.is_open:
            self._utterances[-1].pieces.append(wish)

    def close(self, now_ms: float) -> None:
        """The open utterance is over: its final is wanted."""
        self._open().closed_ms = now_ms

    def _open(self) -> Utterance:
        utterances = self._utterances
        if not utterances or utterances[-1].closed_ms is not None:
            utterances.append(Utterance())
        return utterances[-1]

    def _let_go(self) -> None:
        for utterance in self._utterances:
            while utterance.pieces and self._held_ms > self._limit_ms:
                given = utterance.given > 0
                piece_ms = self._pop(utterance)
                if given:
                    self.missing_ms += piece_ms
                else:
                    self.dropped_ms += piece_ms

    def _pop(self, utterance: Utterance) -> float:
        """Drop the oldest piece; its length."""
        piece = utterance.pieces.popleft()
        piece_ms = 0.0 if isinstance(piece, str) else piece.duration_ms
        self._held_ms -= piece_ms
        if utterance.given > 0:
            utterance.given -= 1
            self._from_ms += piece_ms
        return piece_ms

    # --- feeding a stream from it ------------------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """True when all is answered."""
        return not self._utterances

    @property
    def is_open(self) -> bool:
        """True within an utterance."""
        return bool(self._utterances) and self._utterances[-1].closed_ms is None

    @property
    def is_settled(self) -> bool:
        """True when nothing is left to give, and nothing owed."""
        return not self._utterances or (len(self._utterances) == 1 and self.is_open and not self._has_more)

    @property
    def at_boundary(self) -> bool:
        """True when nothing of what it holds was given yet: another stream may take it."""
        return not self._utterances or (self._utterances[0].given == 0 and not self._utterances[0].asked)

    @property
    def owed(self) -> Utterance | None:
        """The utterance whose final comes next, if one is wanted."""
        return self._utterances[0] if self._utterances and self._utterances[0].closed_ms is not None else None

    @property
    def end_ms(self) -> float:
        """Where, in all that the stream is given, the newest audio ends."""
        return self._from_ms + self._held_ms

    @property
    def _has_more(self) -> bool:
        return any(one.given < len(one.pieces) for one in self._utterances)

    def take(self) -> Audio | Wish | Literal["finalize"] | None:
        """What the stream is to be given next; None: it has had all."""
        for utterance in self._utterances:
            pieces, given = utterance.pieces, utterance.given
            if given < len(pieces):
                utterance.given = given + 1
                return pieces[given]
            if utterance.closed_ms is not None and not utterance.asked:
                utterance.asked = True
                return "finalize"
        return None

    def rewind(self) -> None:
        """Another stream begins: it is to have all that is not answered. Of the wishes, only a proposal that still stands."""
        self._from_ms = 0.0
        for utterance in self._utterances:
            utterance.given, utterance.asked = 0, False
            wishes = [piece for piece in utterance.pieces if piece in ("propose", "withdraw")]
            utterance.pieces = deque(utterance.audio)
            if wishes and wishes[-1] == "propose":
                utterance.pieces.append("propose")

    # --- what is answered --------------------------------------------------------------------------------------------

    def cover(self, through_ms: float) -> None:
        """The words of the stream's first `through_ms` are told: they need not be heard again."""
        self.missing_ms = 0.0
        for utterance in self._utterances:
            if through_ms <= self._from_ms:
                return
            utterance.told = True
            while utterance.given > 0:
                piece = utterance.pieces[0]
                if not isinstance(piece, str) and piece.duration_ms > through_ms - self._from_ms:
                    self._cut(utterance, piece, through_ms - self._from_ms)
                    return
                self._pop(utterance)

    def _cut(self, utterance: Utterance, piece: Audio, known_ms: float) -> None:
        """Drop the beginning of its oldest piece."""
        known = round(known_ms * piece.sample_rate_hz / 1000.0)
        if known > 0:
            utterance.pieces[0] = rest = Audio(piece.pcm[known * BYTES_PER_SAMPLE :], piece.sample_rate_hz)
            self._held_ms -= piece.duration_ms - rest.duration_ms
            self._from_ms += piece.duration_ms - rest.duration_ms

    def cover_given(self) -> None:
        """The words of all that the stream was given are told."""
        for utterance in self._utterances:
            while utterance.given > 0:
                self._pop(utterance)
        self.missing_ms = 0.0
        while self._utterances and not self._utterances[0].pieces and self._utterances[0].closed_ms is None:
            self._utterances.pop(0)

    def answered(self) -> None:
        """The first utterance has its final."""
        utterance = self._utterances.pop(0)
        for piece in utterance.audio:
            self._held_ms -= piece.duration_ms
            self._from_ms += piece.duration_ms
        self.missing_ms = 0.0
