"""Who has the floor: the state of a conversation, the caller's turn in it, and the turn that comes after."""

from __future__ import annotations

from collections.abc import Callable

from .clock import Timers
from .engine import Context
from .events import Turn
from .frames import EndTurn
from .mouth import Mouth
from .settings import SessionOptions
from .snapshot import Snapshot
from .state import Happening, SessionState, move

__all__ = ["Floor"]


class Floor:
    """The floor of one session: either nobody has it, or the caller in a turn, or the mouth with a reply.

    Args:
        mouth: says what is being replied.
        context: what the stages share.
        options: the session's limits.
        now_ms: the session's time.
        offset_ms: what to add to a position on the line to get the session's time.
        tell: announces an event: `tell(name, turn_index, **data)`.
        snapshot: what to go on from.

    Attributes:
        state: where the session is; changed by `move` only.
        turn: the caller's turn, until its reply is over; None between turns.
        later: what was said while the line was lost, or whose words came late, into a reply that goes on: answered after it.
        turns: how many turns there were, this one included.
        speaking: the VAD hears the caller.
        talked_over: the speech that ended last was no interruption.
        active_ms: when anything last happened that a caller takes part in.
        heard_seq: the number of the last frame of the line that the ears are done with.
        timers: what the turn under way may not exceed: "turn" (its length), "final" (the wait for its words).
    """

    def __init__(
        self,
        mouth: Mouth,
        context: Context,
        options: SessionOptions,
        *,
        now_ms: Callable[[], float],
        offset_ms: Callable[[], float],
        tell: Callable[..., None],
        snapshot: Snapshot | None = None,
    ) -> None:
        self.mouth, self.now_ms, self.offset_ms, self.tell = mouth, now_ms, offset_ms, tell
        self.state = SessionState.CONNECTED
        self.turn: Turn | None = None
        self.later: Turn | None = None
        self.turns = snapshot.turns if snapshot is not None else 0
        self.speaking = self.talked_over = False
        self.active_ms = 0.0
        self.heard_seq = self._done_seq = snapshot.seq if snapshot is not None else -1
        self._quiet_seq = -1
        self.timers = Timers(context.clock)
        self._context, self._max_turn_ms = context, options.max_turn_ms

    # --- where the conversation is -----------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """True when nobody has the floor and nobody speaks."""
        return self.turn is None and self.mouth.reply is None and not self.speaking

    @property
    def quiet(self) -> bool:
        """True when nobody speaks, nothing is owed and no tool runs: a turn boundary."""
        return self.state is SessionState.LISTENING and self.idle and not self._context.tool_runs.running

    @property
    def index(self) -> int:
        """The number of the turn that is heard or answered; -1 for none."""
        turn = self.mouth.reply.turn if self.mouth.reply is not None else self.turn
        return turn.index if turn is not None else -1

    def move(self, happening: Happening) -> None:
        """Move by the table, and announce it."""
        old, self.state = self.state, move(self.state, happening)
        if old is not self.state:
            self.tell("state", self.index, state=self.state.value, old=old.value)

    # --- the caller's turn -------------------------------------------------------------------------------------------

    def open(self, speech_start_ms: float | None = None) -> Turn:
        """The caller has the floor: in a turn of their own, or still in the one whose answer has not been heard."""
        if self.state is SessionState.CONNECTED:
            self.move(Happening.READY)
        if self.turn is None and self.later is not None:
            self.turn, self.later = self.later, None
        if self.turn is None:
            self.turn = self._new()
            self._limit(self.turn)
        elif self.turn.ended_ms is not None:  # its words are not there yet, or were late
            self.timers.cancel("final")
            if self.state is SessionState.PROCESSING:
                self.move(Happening.REOPENED)
            self.reopen(self.turn)
        if speech_start_ms is not None and self.turn.speech_start_ms is None:
            self.turn.speech_start_ms = speech_start_ms + self.offset_ms()
        return self.turn

    def reopen(self, turn: Turn) -> None:
        """The caller goes on in a turn that was over."""
        turn.reopened += 1
        turn.ended_ms = None
        self.turn = turn
        self.tell("turn_reopened", turn.index)
        self._limit(turn)

    def end(self, turn: Turn, source: str) -> None:
        """The turn is over, by `source`; its answer is next."""
        turn.source, turn.ended_ms, turn.seq = source, self.now_ms(), self.heard_seq
        self.timers.cancel("turn")
        self.move(Happening.TURN_ENDED)
        self.tell("turn_ended", turn.index, source=source, speech_end_ms=turn.speech_end_ms)

    def empty(self, turn: Turn) -> None:
        """Nothing was said in the turn under way: it is none."""
        self._done_seq = max(self._done_seq, turn.seq)
        self.turn = None
        self.tell("turn_empty", turn.index)

    def answered(self, turn: Turn) -> None:
        """The turn needs nothing more, also from a line that would tell it again."""
        self._done_seq = max(self._done_seq, turn.seq)
        if turn is self.turn:
            self.turn = None

    # --- the turn after a reply that goes on -------------------------------------------------------------------------

    def open_later(self, speech_start_ms: float | None = None) -> Turn:
        """Open, or go on with, the turn that is answered once the reply is over."""
        if self.later is None:
            self.later = self._new()
            if speech_start_ms is not None:
                self.later.speech_start_ms = speech_start_ms + self.offset_ms()
        self.later.ended_ms = None
        return self.later

    def end_later(self, source: str) -> None:
        """It is over, by `source`, if there is one."""
        if self.later is not None and self.later.ended_ms is None:
            self.later.source, self.later.ended_ms, self.later.seq = source, self.now_ms(), self.heard_seq

    def take_later(self) -> Turn | None:
        """It has the floor now, if there is one."""
        turn, self.later = self.later, None
        if turn is not None:
            self.turn = turn
            self._limit(turn)
        return turn

    # --- what need not be told again ---------------------------------------------------------------------------------

    def kept(self) -> tuple[str, int]:
        """The text that is not answered yet, and the number up to which the line need not tell anything again."""
        turn = self.mouth.reply.turn if self.mouth.reply is not None else self.turn
        if turn is not None and turn.text and turn.ended_ms is not None:
            return turn.text, max(turn.seq, self._done_seq)
        return "", self._done_seq

    def settle(self) -> None:
        """Called now and then: quiet that lasted since the last call need not be heard again by anybody."""
        quiet = self.quiet
        if quiet and self._quiet_seq >= 0:
            self._done_seq = max(self._done_seq, self._quiet_seq)
        self._quiet_seq = self.heard_seq if quiet else -1

    # --- small things ------------------------------------------------------------------------------------------------

    def _new(self) -> Turn:
        turn = Turn(self.turns, self.now_ms())
        self.turns += 1
        self.tell("turn_started", turn.index)
        return turn

    def _limit(self, turn: Turn) -> None:
        self.timers.set("turn", self._max_turn_ms, self._too_long, turn)

    def _too_long(self, turn: Turn) -> None:
        if turn is self.turn and self.mouth.reply is None:
            self._context.counters["turns_too_long"] += 1
            self._context.emit(EndTurn("max_turn"))
