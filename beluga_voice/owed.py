"""What the recogniser owes: whose the words are that come, and how long a turn that is over waits for its own."""

from __future__ import annotations

from collections import Counter

from .events import Turn
from .floor import Floor
from .replies import Replies
from .settings import SessionOptions
from .state import Happening, SessionState

__all__ = ["Owed"]

GIVE_UP_MS = 10_000.0  # words that come later than this are not waited for


class Owed:
    """The closing transcripts a recogniser owes, in the order in which it will give them.

    Args:
        floor: whose turn it is.
        replies: asked to answer a turn once its words are there.
        options: the session's limits.
        counters: what was dropped or late, by name.

    Attributes:
        overdue: the turn that waited for its words when the line was lost.
    """

    def __init__(self, floor: Floor, replies: Replies, options: SessionOptions, counters: Counter[str]) -> None:
        self._floor, self._replies, self._counters = floor, replies, counters
        self._timeout_ms = options.final_timeout_ms
        self._to: list[Turn | None] = []
        self.overdue: Turn | None = None

    def __bool__(self) -> bool:
        return bool(self._to)

    # --- whose the words are -----------------------------------------------------------------------------------------

    def expect(self, turn: Turn | None) -> None:
        """One more closing transcript is owed: to the turn, or to nobody."""
        self._to.append(turn)
        if turn is not None:
            turn.owed += 1

    def whose(self, otherwise: Turn | None) -> Turn | None:
        """Whose the words are that come now; `otherwise`, if nothing is owed."""
        return self._to[0] if self._to else otherwise

    def given(self) -> None:
        """A closing transcript has come; perhaps so late that the session listens again."""
        if not self._to:
            return
        turn = self._to.pop(0)
        if turn is None:
            return
        turn.owed -= 1
        floor = self._floor
        if turn is not floor.turn or turn.owed > 0 or floor.mouth.reply is not None:
            return
        if floor.state is SessionState.PROCESSING:
            self._replies.answer(turn)
        elif turn.ended_ms is not None and not floor.speaking:
            floor.move(Happening.TURN_ENDED)
            self._replies.answer(turn)

    def hand_over(self, aside: Turn, turn: Turn) -> None:
        """What was owed to one turn is owed to another."""
        turn.owed += aside.owed
        self._to = [turn if owed_to is aside else owed_to for owed_to in self._to]

    # --- waiting for them --------------------------------------------------------------------------------------------

    def wait(self, turn: Turn) -> None:
        """Have the turn, which is over, answered as soon as all its words are there."""
        if turn.owed <= 0 or self._floor.mouth.relays:
            self._replies.answer(turn)
        else:
            self._set_timer(turn)

    def wait_for_end(self, turn: Turn | None) -> None:
        """Speech is over, and a speech-to-speech model says when the turn is; what it took for none ends here."""
        if turn is not None and turn.ended_ms is None and self._floor.mouth.relays and self._floor.mouth.reply is None:
            self._floor.timers.set("final", GIVE_UP_MS, self._give_up, turn)

    def hold(self) -> None:
        """The line is lost: no turn is given up."""
        if "final" in self._floor.timers:
            self._floor.timers.cancel("final")
            self.overdue = self._floor.turn

    def go_on(self) -> None:
        """The line is back: the turn that waited for its words has all the time again."""
        turn, self.overdue = self.overdue, None
        if turn is not None:
            self._set_timer(turn)

    def renew(self) -> None:
        """The recogniser begins anew with what it was given: who waits for words waits as long again."""
        turn = self._floor.turn
        if turn is None or "final" not in self._floor.timers:
            return
        if self._floor.state is SessionState.PROCESSING:
            self._set_timer(turn)
        else:
            self._floor.timers.set("final", GIVE_UP_MS, self._give_up, turn)

    def _set_timer(self, turn: Turn) -> None:
        self._floor.timers.set("final", self._timeout_ms, self._late, turn)

    def _late(self, turn: Turn) -> None:
        """The recogniser takes too long: answer what there is, or listen on until its words come after all."""
        self._counters["finals_late"] += 1
        self._floor.tell("warning", turn.index, message=f"no final transcript within {self._timeout_ms:g} ms")
        if turn.text:
            self._replies.answer(turn)
        else:
            self._floor.move(Happening.NOTHING_TO_SAY)
            self._floor.timers.set("final", GIVE_UP_MS, self._give_up, turn)

    def _give_up(self, turn: Turn) -> None:
        """The words of a turn have not come at all."""
        if turn is self._floor.turn:
            self._floor.empty(turn)
            self._replies.next()
