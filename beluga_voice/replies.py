"""What a session answers and says of its own accord: begins replies, interrupts them, and keeps account of those that are over.

The mouth makes them; this decides when, and what becomes of a reply of which only a part was heard, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from .engine import Context
from .events import Turn, TurnRecord
from .floor import Floor
from .frames import Interrupted, ReplyEnded, ToolCalled, ToolReturned
from .history import History, Message
from .providers import Providers
from .reply import Reply
from .says import Say, Says
from .settings import SessionOptions
from .state import Happening, SessionState

__all__ = ["Replies"]


class Replies:
    """The replies of one session, one at a time.

    Args:
        floor: whose turn it is; its mouth speaks.
        history: gets every turn with what was heard of its answer.
        context: what the stages share.
        options: the session's limits and texts.
        providers: who speaks them.
        on_finished: told the record of each finished turn.
        on_boundary: called at each turn boundary, before anything that waits is said.
        end: closes the session with a reason.

    Attributes:
        open: the line is open: what waits to be said may be.
        ears_failed: something was not heard since the last answer: a turn without words may have had some.
    """

    def __init__(
        self,
        floor: Floor,
        history: History,
        context: Context,
        options: SessionOptions,
        providers: Providers,
        *,
        on_finished: Callable[[TurnRecord], None],
        end: Callable[[str], None],
        on_boundary: Callable[[], object] = lambda: None,
    ) -> None:
        self._floor, self._mouth, self._tell = floor, floor.mouth, floor.tell
        self._history, self._context, self._options, self._providers = history, context, options, providers
        self._on_finished, self._end, self._on_boundary = on_finished, end, on_boundary
        context.so_far = self.so_far
        self._closing_reason = ""  # why the session closes at the next turn boundary
        self.open = self.ears_failed = False
        self._says = Says(options.max_says)
        self._saying: Say | None = None

    # --- answers -----------------------------------------------------------------------------------------------------

    def so_far(self) -> tuple[Message, ...]:
        """The history, and after it the turn and reply under way, as far as they have come."""
        reply = self._mouth.reply
        turn = self._floor.turn if reply is None else reply.turn
        told = History()
        told.messages = self._history.messages
        told.add_turn(turn.text if turn else "", reply.text.strip() if reply else "", tuple(reply.tools) if reply else ())
        return told.messages

    def answer(self, turn: Turn, typed: str = "") -> None:
        """Have the turn answered: by the agent, or with the fallback where words may have been lost, or not at all.

        A speech-to-speech model heard it for itself; `typed` is what it did not.
        """
        self._floor.timers.cancel("final")
        failed, self.ears_failed = self.ears_failed, False
        turn.begin_reply(self._floor.now_ms())
        self._context.history = self._history.messages
        if self._mouth.relays:
            if typed:
                self._tell("turn_heard", turn.index, text=turn.text)
            self._mouth.relay(turn, typed)
        elif turn.text:
            self._tell("turn_heard", turn.index, text=turn.text)
            self._mouth.answer(turn)
        elif failed and self._options.fallback:
            self._mouth.fall_back(turn)
        else:
            self._floor.answered(turn)
            self._floor.move(Happening.NOTHING_TO_SAY)
            self._tell("turn_empty", turn.index)
            self.next()

    def interrupt(self, reply: Reply, source: str) -> None:
        """Silence the reply for `source` ("speech", "text", "say", "cancelled"); what was heard decides whose turn it was."""
        played_ms = self._mouth.stop(reply)
        heard = reply.heard_text()
        happening = {
            SessionState.PROCESSING: Happening.REOPENED,
            SessionState.RESPONDING: Happening.BARGED_IN,
            SessionState.CONNECTED: Happening.READY,
        }.get(self._floor.state)
        if happening is not None:
            self._floor.move(happening)
        self._context.emit(Interrupted(reply.number, played_ms, heard))
        by_caller = source in ("speech", "text", "push")
        if by_caller and reply.undoable and reply.turn is not None:
            self._floor.reopen(reply.turn)
            return
        if by_caller and not heard and self._saying is not None and not self._saying.passing:
            self._says.put(self._saying, first=True, over_limit=True)
            self._saying = None
        start_ms = None
        if source == "speech" and reply.barge_in is not None:
            start_ms = reply.barge_in.speech_start_ms + self._floor.offset_ms()
        self._tell(
            "interrupted",
            self._floor.index,
            reply=reply.number,
            played_ms=played_ms,
            heard_text=heard,
            source=source,
            speech_start_ms=start_ms,
        )
        self._finish(reply, interrupted=True)

    def tool(self, frame: ToolCalled | ToolReturned) -> None:
        """A tool was called or has returned: part of the reply under way, or of the history if its reply is over."""
        self._floor.active_ms = self._floor.now_ms()
        reply = self._mouth.reply
        if reply is not None and reply.owns(frame):
            reply.note(frame)
        else:
            self._history.add_tool(frame)
            self._tell("tool", -1, tool=frame)

    def sounds(self, reply: Reply) -> None:
        """The reply's first audio goes to the line."""
        if self._floor.state is not SessionState.RESPONDING:
            self._floor.move(Happening.REPLY_AUDIO)
        self._tell("reply_started", self._floor.index, reply=reply.number)

    def over(self, reply: Reply) -> None:
        """The reply was played to its end, or made no sound."""
        happening = {
            SessionState.RESPONDING: Happening.PLAYOUT_ENDED,
            SessionState.PROCESSING: Happening.NOTHING_TO_SAY,
            SessionState.CONNECTED: Happening.READY,
        }.get(self._floor.state)
        self._finish(reply, interrupted=False)
        self._context.emit(ReplyEnded(reply.number, reply.heard_text(), False))
        if happening is not None:
            self._floor.move(happening)

    def words_came(self, turn: Turn) -> None:
        """A speech-to-speech model told the words of a turn, perhaps after the reply to it was over."""
        if turn is not self._floor.turn:
            self._history.add_words(turn.index, turn.text)
        elif turn.ended_ms is not None:
            self._tell("turn_heard", turn.index, text=turn.text)

    def stop(self) -> None:
        """The session closes: cut what is being said, record what was heard of it, and what was never answered."""
        self._floor.timers.cancel()
        reply = self._mouth.reply
        if reply is not None:
            self._mouth.stop(reply)
            self._finish(reply, interrupted=True)
        for turn in (self._floor.turn if reply is None else None, self._floor.later):
            if turn is not None and turn.text:  # said, and not answered
                self._history.add_turn(turn.text, "")
                self._on_finished(turn.record("", "", interrupted=False))
        self._says.drop()

    def _finish(self, reply: Reply, *, interrupted: bool) -> None:
        """The reply is over: the history gets what was heard, the listeners the turn's record."""
        self._floor.active_ms = self._floor.now_ms()
        turn, heard = reply.turn, reply.heard_text()
        awaits = turn.index if turn is not None and turn.owed > 0 else None
        self._history.add_turn(turn.text if turn else "", heard, tuple(reply.tools), awaits=awaits)
        saying, self._saying = self._saying, None
        if saying is not None:
            saying.settle(not interrupted and not reply.failed)
        if turn is not None:
            self._floor.answered(turn)
            turn.tts_provider = self._providers.serving.get("tts", "") if reply.made_audio else ""
            text = f"{reply.before} {reply.text}".strip() if reply.before else reply.text
            self._on_finished(turn.record(text, heard, interrupted))

    # --- what is said of its own accord ------------------------------------------------------------------------------

    def greet(self, text: str) -> None:
        """Say `text` first, unless the caller is quicker."""
        self._says.put(Say(text, True, passing=True))
        self.next()

    def say(self, text: str, *, interrupt: bool, interruptible: bool) -> Say:
        """Queue `text` to be said when nobody speaks; with `interrupt`, instead of what is being said.

        Raises:
            SessionLimitError: too many texts wait already.
        """
        say = self._says.put(Say(text, interruptible), first=interrupt)
        reply = self._mouth.reply
        if reply is not None:
            reply.excused = True
            if interrupt and self._floor.state is SessionState.RESPONDING:
                self.interrupt(reply, "say")
        self.next()
        return say

    def unsay(self, say: Say) -> None:
        """Take back something to say, or stop saying it."""
        if not self._says.remove(say) and say is self._saying and self._mouth.reply is not None:
            self.interrupt(self._mouth.reply, "cancelled")
            self.next()
        say.settle(False)

    def end(self, text: str, reason: str) -> None:
        """Close at the next turn boundary, after saying `text` if given."""
        self._closing_reason = self._closing_reason or reason
        if self._mouth.reply is not None:
            self._mouth.reply.excused = True
        if text:
            self._says.put(Say(text, False), over_limit=True)
        self.next()

    @property
    def closing(self) -> bool:
        """True once the session is to close at the next turn boundary."""
        return bool(self._closing_reason)

    def next(self) -> None:
        """At a turn boundary: say what waits, or close."""
        floor = self._floor
        nobody = self._mouth.reply is None and floor.turn is None
        if not (self.open and nobody) or floor.state not in (SessionState.LISTENING, SessionState.CONNECTED):
            return
        if floor.speaking and not self._closing_reason:  # who goes on for ever does not keep the session open
            return
        if not floor.speaking and floor.state is SessionState.LISTENING:
            self._on_boundary()
        self._drop_unsayable()
        if self._says:
            self._saying = say = self._says.take()
            self._mouth.say(say.text, interruptible=say.interruptible)
        elif self._closing_reason:
            self._end(self._closing_reason)

    def _drop_unsayable(self) -> None:
        """What nobody here can say is given up, with a warning."""
        while self._says and not self._mouth.can_say:
            self._says.take().settle(False)
            message = "the speech-to-speech model cannot be told to say a text; leave out greeting, say() and end(text)"
            self._tell("warning", self._floor.index, message=message)
        if self._floor.state is SessionState.CONNECTED and not self._says:
            self._floor.move(Happening.READY)
