"""The caller's words: whose turn they are, also those that come late, and how much of them a turn may hold."""

from __future__ import annotations

from .engine import Context
from .events import Turn
from .floor import Floor
from .frames import Transcript
from .overhearing import Overhearing
from .owed import Owed
from .providers import Providers
from .replies import Replies

__all__ = ["Words"]

MOST_TEXT = 20_000  # characters of a turn: twenty minutes of speech; beyond, words are dropped and counted


class Words:
    """The words of one session.

    Args:
        floor: whose turn it is.
        replies: asked to interrupt what answers a turn without its late words.
        owed: what the recogniser owes.
        overhearing: speech into a reply.
        context: what the stages share.
        providers: who hears them.
        stt_closes: the recogniser closes its transcripts.
    """

    def __init__(
        self,
        floor: Floor,
        replies: Replies,
        owed: Owed,
        overhearing: Overhearing,
        context: Context,
        providers: Providers,
        *,
        stt_closes: bool,
    ) -> None:
        self._floor, self._mouth, self._replies, self._owed, self._overhearing = floor, floor.mouth, replies, owed, overhearing
        self._context, self._providers, self.stt_closes = context, providers, stt_closes

    def expect(self) -> None:
        """The recogniser owes a closing transcript: to the turn, or to nobody (speech that was no interruption)."""
        if self.stt_closes:
            replying = self._mouth.reply is not None
            self._owed.expect((self._floor.later or self._overhearing.aside()) if replying else self._floor.turn)

    def hear(self, frame: Transcript) -> None:
        """Take a transcript."""
        turn = self._owed.whose(self._floor.turn if self._mouth.reply is None else self._overhearing.aside())
        relays = self._mouth.relays
        if relays and turn is None and not self._owed and self._floor.turn is not None and not self._floor.turn.text:
            turn = self._floor.turn  # its answer is quicker than its words
        comes_first = frame.text and not self._owed and (relays or not self.stt_closes)
        if comes_first and self._floor.idle and not self._floor.talked_over:
            turn = self._floor.open()  # words where no VAD tells of speech
        late = False
        if turn is not None and frame.text:
            late = frame.is_final and turn.index >= 0 and self._is_over(turn) and not relays
            if late:
                self._take_late(turn, frame)
            else:
                self.add(turn, frame)
        if frame.closes:
            self._owed.given()
            if relays and turn is not None and turn.index >= 0 and turn.text and turn.owed <= 0:
                self._replies.words_came(turn)
            if relays:
                self._replies.next()  # what waited for the words
        if turn is not None and not late:
            self._overhearing.heard(turn, turn.text if frame.is_final else f"{turn.text} {frame.text}")

    def add(self, turn: Turn, frame: Transcript, *, first: bool = False, typed: bool = False) -> None:
        """Words of the turn; `first`: before those it has; `typed`: no recogniser heard them."""
        if len(turn.text) + len(frame.text) > MOST_TEXT:
            self._context.counters["words_dropped"] += 1
            return
        if turn.index >= 0:
            self._floor.tell("transcript", turn.index, text=frame.text, is_final=frame.is_final, confidence=frame.confidence)
        if frame.is_final:
            turn.finals.insert(0 if first else len(turn.finals), frame.text)
            if not typed:
                turn.stt_provider = self._providers.serving.get("stt", "")

    def _is_over(self, turn: Turn) -> bool:
        """True when the turn is being answered, or was, without the words that come now."""
        reply = self._mouth.reply
        if reply is None:
            return turn is not self._floor.turn
        return turn is not self._floor.later and (reply.turn is not None or turn is not self._floor.turn)

    def _take_late(self, turn: Turn, frame: Transcript) -> None:
        """Words nobody waited for: the turn is answered anew if nothing of its answer was heard, else they are a turn."""
        floor, reply = self._floor, self._mouth.reply
        self._context.counters["words_late"] += 1
        if reply is not None and reply.turn is turn and reply.undoable:
            self._replies.interrupt(reply, "text")
            self.add(turn, frame)
        elif reply is not None:
            self.add(floor.open_later(), frame)
            floor.end_later("late")
            return
        elif floor.turn is not None:
            self.add(floor.turn, frame, first=True)
            return
        else:
            turn = floor.open()
            self.add(turn, frame)
        if not floor.speaking:
            floor.end(turn, "late")
            self._owed.wait(turn)
