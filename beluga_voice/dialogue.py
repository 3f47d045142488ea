"""What a session does about what it hears: turns, replies, interruptions. The state table decides; nothing here waits.

Every method returns at once: replies run in tasks of the session, what must be waited for comes back as a frame or a timer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from .barge_in import BargeIn, Verdict
from .chain import Chain
from .clock import Timers
from .echo import EchoEar
from .engine import Context
from .events import Turn, TurnRecord
from .frames import (
    DTMF,
    AudioIn,
    AudioOut,
    EndTurn,
    Failed,
    Frame,
    Interrupt,
    Interrupted,
    ReplyEnded,
    SpeechEnded,
    SpeechProbability,
    SpeechStarted,
    SpeechSuspected,
    StartTurn,
    TextDelta,
    TextIn,
    ToolCalled,
    Transcript,
    TurnEnded,
    TurnEndProposed,
    TurnEndWithdrawn,
    WordsFrom,
    WordsWanted,
)
from .history import History
from .mouth import Mouth
from .overheard import meaning
from .reply import Reply
from .says import Say, Says
from .settings import SessionOptions
from .snapshot import Snapshot
from .state import Happening, SessionState, move
from .transport import Transport

__all__ = ["Dialogue"]

ECHO_PREROLL_MS = 100.0  # more would be the agent's words again
GIVE_UP_MS = 10_000.0  # words that come later than this are not waited for


class Dialogue:
    """The conversation of one session. `hear` takes the frames of the ears, in order.

    Args:
        chain: the session's stages.
        line: the transport.
        context: what the stages share.
        options: the session's limits.
        now_ms: the session's time.
        offset_ms: what to add to a position on the line to get the session's time.
        stale_until_ms: speech before this position on the line was spoken while the line was lost.
        tell: announces an event: `tell(name, turn_index, **data)`.
        on_finished: told the record of each finished turn.
        end: closes the session with a reason.
        line_failed: told the error when the line cannot be spoken over.
        snapshot: what to go on from.
    """

    def __init__(
        self,
        chain: Chain,
        line: Transport,
        context: Context,
        options: SessionOptions,
        *,
        now_ms: Callable[[], float],
        offset_ms: Callable[[], float],
        stale_until_ms: Callable[[], float],
        tell: Callable[..., None],
        on_finished: Callable[[TurnRecord], None],
        end: Callable[[str], None],
        line_failed: Callable[[Exception], None],
        snapshot: Snapshot | None = None,
    ) -> None:
        self._context, self._options = context, options
        self._now_ms, self._offset_ms, self._tell, self._on_finished, self._end = now_ms, offset_ms, tell, on_finished, end
        self._stale_until_ms = stale_until_ms
        self._finalize_on = TurnEnded if chain.index("turn") < chain.index("stt") else SpeechEnded
        self._stt_closes = chain.stage("stt") is not None and TurnEnded not in chain.stages[chain.index("stt")].makes
        self._relays = chain.stage("s2s") is not None
        self.state = SessionState.CONNECTED
        self.history = History()
        self.active_ms = 0.0
        self.heard_seq = self._done_seq = self._quiet_seq = -1
        self.closing_reason = ""
        self.mouth = Mouth(
            chain,
            line,
            context,
            options,
            now_ms=now_ms,
            tell=tell,
            on_sent=self._reply_sounds,
            on_over=self._reply_over,
            on_end_call=lambda: self.end("", "agent_ended"),
            on_stuck_full=self._too_many_stuck,
            on_line_failed=line_failed,
        )
        self._open = False
        self._lost: list[Callable[[], None]] | None = None
        self._overdue: Turn | None = None
        self._later: Turn | None = None
        self._timers = Timers(context.clock)
        self._turn: Turn | None = None
        self._turns = 0
        self._speaking = self._talked_over = self._stt_failed = False
        self._speech_start_ms: float | None = None
        self._deaf_until_ms = -math.inf
        self._expecting: list[Turn | None] = []
        self._aside: Turn | None = None
        self._ear = EchoEar() if options.barge_in.enabled and options.barge_in.echo_guard else None
        self._says = Says(options.max_says)
        self._saying: Say | None = None
        if snapshot is not None:
            self.history.messages, self._turns = snapshot.history, snapshot.turns
            self.heard_seq = self._done_seq = snapshot.seq
        self._handlers: dict[type, Callable[[Any], None]] = {
            SpeechProbability: self._guard,
            SpeechSuspected: self._guard,
            SpeechStarted: self._speech_started,
            SpeechEnded: self._speech_ended,
            TurnEndProposed: lambda _: self._tell("turn_end_proposed", self._index()),
            TurnEndWithdrawn: lambda _: self._tell("turn_end_withdrawn", self._index()),
            TurnEnded: self._turn_ended,
            Transcript: self._transcript,
            TextIn: self._typed,
            DTMF: self._key,
            StartTurn: self._start_turn,
            Interrupt: self._stop_reply,
            AudioIn: self._audio,
            Failed: self._failed,
        }
        if self._relays:
            self._handlers |= dict.fromkeys((AudioOut, TextDelta, ToolCalled, ReplyEnded), self.mouth.relayed)

    # --- the session's side ------------------------------------------------------------------------------------------

    @property
    def quiet(self) -> bool:
        """True when nobody speaks and nothing is owed: a turn boundary."""
        return self.state is SessionState.LISTENING and self._idle()

    def hear(self, frame: Frame) -> None:
        """Take one frame of the ears. What is heard while the line is lost waits until it is back."""
        handler = self._handlers.get(type(frame))
        if handler is None:
            return
        if self._lost is None:
            handler(frame)
        elif type(frame) is not SpeechProbability:
            self._lost.append(partial(handler, frame))

    def ready(self, snapshot: Snapshot | None = None) -> None:
        """The line is open: greet, or listen; with a `snapshot`, go on from there."""
        self._open = True
        if snapshot is not None:
            self.mouth.hold()
            self.move(Happening.READY)
            if snapshot.pending:
                self._typed(TextIn(snapshot.pending, snapshot.seq))
        elif self._options.greeting:
            self.say(self._options.greeting, interrupt=False, interruptible=True)
        else:
            self.move(Happening.READY)
            self._next()

    def say(self, text: str, *, interrupt: bool, interruptible: bool) -> Say:
        """Queue `text` to be said when nobody speaks; with `interrupt`, instead of what is being said.

        Raises:
            SessionLimitError: too many texts wait already.
        """
        say = self._says.put(Say(text, interruptible), first=interrupt)
        reply = self.mouth.reply
        if reply is not None:
            reply.excused = True
            if interrupt and self.state is SessionState.RESPONDING:
                self._interrupt(reply, "say")
        self._next()
        return say

    def unsay(self, say: Say) -> None:
        """Take back something to say, or stop saying it."""
        if not self._says.remove(say) and say is self._saying and self.mouth.reply is not None:
            self._interrupt(self.mouth.reply, "cancelled")
            self._next()
        say.settle(False)

    def end(self, text: str, reason: str) -> None:
        """Close at the next turn boundary, after saying `text` if given."""
        self.closing_reason = self.closing_reason or reason
        if self.mouth.reply is not None:
            self.mouth.reply.excused = True
        if text:
            self._says.put(Say(text, False), over_limit=True)
        self._next()

    def stop(self) -> None:
        """The session closes: cut what is being said, record what was heard of it, forget all timers."""
        self._timers.cancel()
        reply = self.mouth.reply
        if reply is not None:
            self.mouth.stop(reply)
            self._finish(reply, interrupted=True)
        for turn in (self._turn if reply is None else None, self._later):
            if turn is not None and turn.text:  # said, and not answered
                self.history.add_turn(turn.text, "")
                self._on_finished(turn.record("", "", interrupted=False))
        self._says.drop()

    @property
    def turns(self) -> int:
        """How many turns there were, this one included."""
        return self._turns

    def kept(self) -> tuple[str, int]:
        """The text that is not answered yet, and the number up to which the line need not tell anything again."""
        turn = self.mouth.reply.turn if self.mouth.reply is not None else self._turn
        if turn is not None and turn.text and turn.ended_ms is not None:
            return turn.text, max(turn.seq, self._done_seq)
        return "", self._done_seq

    def settle(self) -> None:
        """Called now and then: quiet that lasted since the last call need not be heard again by anybody."""
        quiet = self.quiet
        if quiet and self._quiet_seq >= 0:
            self._done_seq = max(self._done_seq, self._quiet_seq)
        self._quiet_seq = self.heard_seq if quiet else -1

    def move(self, happening: Happening) -> None:
        """Move by the table, and announce it."""
        old, self.state = self.state, move(self.state, happening)
        if old is not self.state:
            self._tell("state", self._index(), state=self.state.value, old=old.value)

    # --- a line that is lost and comes back --------------------------------------------------------------------------

    def line_lost(self) -> None:
        """The line is lost: what is being said waits, what is heard still is kept, nobody is given up."""
        self._lost = []
        if "final" in self._timers:
            self._timers.cancel("final")
            self._overdue = self._turn
        self.mouth.hold()
        self.move(Happening.LINE_LOST)

    def line_back(self) -> None:
        """The line is back: be where it was lost, and go on."""
        heard, self._lost = self._lost or [], None
        overdue, self._overdue = self._overdue, None
        self.active_ms = self._now_ms()
        self.move(Happening.RESUMED)
        reply = self.mouth.reply
        if reply is not None and reply.playout.started:
            self.move(Happening.REPLY_AUDIO)
        elif reply is None or reply.turn is not None:
            self.move(Happening.READY)
            if reply is not None or overdue is not None:
                self.move(Happening.TURN_ENDED)
        self.mouth.line_back()
        if overdue is not None:
            self._timers.set("final", self._options.final_timeout_ms, self._final_late, overdue)
        for what in heard:
            what()
        self._next()

    def caught_up(self) -> None:
        """All that was spoken while the line was lost is heard."""
        self.mouth.release()

    def _is_stale(self, place_ms: float) -> bool:
        """True for speech of a time when the line was lost, if a reply is being spoken: it interrupts nobody."""
        reply = self.mouth.reply
        return place_ms < self._stale_until_ms() and reply is not None and reply.playout.started

    def _hear_later(self, speech_start_ms: float) -> None:
        """Open, or go on with, the turn that is answered once the reply is over."""
        if self._later is None:
            self._later = Turn(self._turns, self._now_ms())
            self._turns += 1
            self._tell("turn_started", self._later.index)
            self._later.speech_start_ms = speech_start_ms + self._offset_ms()
        self._later.ended_ms = None

    def _take_later(self) -> None:
        """Answer what was said while the line was lost, once it is all there."""
        turn, self._later = self._later, None
        if turn is None:
            return
        self._turn = turn
        self._limit_turn(turn)
        if turn.ended_ms is not None and not self._speaking:
            self._process(turn, turn.source)
            self._await_words(turn)

    # --- speech ------------------------------------------------------------------------------------------------------

    def _speech_started(self, frame: SpeechStarted) -> None:
        self._speaking, self._talked_over = True, False
        self._speech_start_ms = frame.speech_start_ms
        self.active_ms = self._now_ms()
        self._tell("speech_started", self._index(), speech_start_ms=frame.speech_start_ms + self._offset_ms())
        if self._is_stale(frame.speech_start_ms):
            self._hear_later(frame.speech_start_ms)
            return
        if self._aside is not None:
            self._aside.ended_ms = None
        self._guard(frame)
        if self.mouth.reply is None:
            self._open_turn(frame.speech_start_ms)

    def _speech_ended(self, frame: SpeechEnded) -> None:
        end_ms = frame.speech_end_ms + self._offset_ms()
        self._speaking, self._talked_over = False, self.mouth.reply is not None or end_ms <= self._deaf_until_ms
        self.active_ms = self._now_ms()
        self._tell("speech_ended", self._index(), speech_end_ms=end_ms)
        aside = self._set_aside()
        if aside is not None:
            aside.speech_end_ms = end_ms
        self._guard(frame)
        if self._turn is not None and self.mouth.reply is None:
            decided_ms = self._turn.ended_ms  # in mid-speech, by a button or a limit
            self._turn.speech_end_ms = end_ms if decided_ms is None else min(end_ms, decided_ms)
            if self._talked_over and not self._turn.finals:
                self._tell("turn_empty", self._turn.index)
                self._turn = None
        if self._finalize_on is SpeechEnded:
            self._expect()
        self._next()

    def _guard(self, frame: Frame) -> None:
        """Let speech pause, cut or free the reply, if there is one that may be interrupted."""
        reply = self.mouth.reply
        if reply is None or reply.barge_in is None:
            return
        rule, echoes = reply.barge_in, reply.barge_in.echoes
        echo = partial(self._is_echo, reply)
        self._decide(reply, rule, rule.feed(frame, unheard=reply.playout.played_ms <= 0, echo=echo))
        self._context.counters["echoes"] += rule.echoes - echoes

    def _decide(self, reply: Reply, rule: BargeIn, verdict: Verdict | None) -> None:
        start_ms, played_ms = rule.speech_start_ms + self._offset_ms(), reply.playout.played_ms
        if verdict is Verdict.PAUSE:
            self._aside = None
            reply.playout.pause()
            if rule.over_echo and self._stt_closes:  # what the recogniser has been given is the reply
                self._context.emit(WordsFrom(max(0.0, rule.speech_start_ms - ECHO_PREROLL_MS)))
                self._expecting.append(None)
            self._tell(
                "reply_paused", self._index(), reply=reply.number, played_ms=played_ms, speech_start_ms=start_ms
            )
        elif verdict is Verdict.GO_ON:
            self._aside = None
            reply.playout.go_on()
            self._tell("reply_resumed", self._index(), reply=reply.number, played_ms=played_ms, why=rule.why)
        elif verdict is Verdict.ASK:
            self._context.emit(WordsWanted(self._now_ms() - self._offset_ms()))
        elif verdict is Verdict.CUT:
            self._interrupt(reply, "speech")
            self._claim(self._open_turn(rule.speech_start_ms))

    def _is_echo(self, reply: Reply) -> bool:
        playout = reply.playout
        return self._ear is not None and self._ear.hears(playout.recent(), playout.rate_hz)

    def _interrupt(self, reply: Reply, source: str) -> None:
        """Silence the reply for `source` ("speech", "text", "say", "cancelled"); what was heard decides whose turn it was."""
        played_ms = self.mouth.stop(reply)
        heard = reply.heard_text()
        happening = {
            SessionState.PROCESSING: Happening.REOPENED,
            SessionState.RESPONDING: Happening.BARGED_IN,
            SessionState.CONNECTED: Happening.READY,
        }.get(self.state)
        if happening is not None:
            self.move(happening)
        self._context.emit(Interrupted(reply.number, played_ms, heard))
        by_caller = source in ("speech", "text", "push")
        if by_caller and not heard and reply.turn is not None:
            self._reopen(reply.turn)
            return
        if by_caller and not heard and self._saying is not None:
            self._says.put(self._saying, first=True, over_limit=True)
            self._saying = None
        start_ms = None
        if source == "speech" and reply.barge_in is not None:
            start_ms = reply.barge_in.speech_start_ms + self._offset_ms()
        self._tell(
            "interrupted",
            self._index(),
            reply=reply.number,
            played_ms=played_ms,
            heard_text=heard,
            source=source,
            speech_start_ms=start_ms,
        )
        self._finish(reply, interrupted=True)

    # --- turns -------------------------------------------------------------------------------------------------------

    def _open_turn(self, speech_start_ms: float | None) -> Turn:
        """The caller has the floor: in a turn of their own, or still in the one whose answer has not been heard."""
        if self.state is SessionState.CONNECTED:
            self.move(Happening.READY)
        if self._turn is None and self._later is not None:
            self._turn, self._later = self._later, None
        if self._turn is None:
            self._turn = Turn(self._turns, self._now_ms())
            self._turns += 1
            self._tell("turn_started", self._turn.index)
            self._limit_turn(self._turn)
        elif self._turn.ended_ms is not None:  # its words are not there yet, or were late
            self._timers.cancel("final")
            if self.state is SessionState.PROCESSING:
                self.move(Happening.REOPENED)
            self._reopen(self._turn)
        if speech_start_ms is not None and self._turn.speech_start_ms is None:
            self._turn.speech_start_ms = speech_start_ms + self._offset_ms()
        return self._turn

    def _reopen(self, turn: Turn) -> None:
        turn.reopened += 1
        turn.ended_ms = None
        self._turn = turn
        self._tell("turn_reopened", turn.index)
        self._limit_turn(turn)

    def _limit_turn(self, turn: Turn) -> None:
        def too_long() -> None:
            if turn is self._turn and self.mouth.reply is None:
                self._context.counters["turns_too_long"] += 1
                self._context.emit(EndTurn("max_turn"))

        self._timers.set("turn", self._options.max_turn_ms, too_long)

    def _turn_ended(self, frame: TurnEnded) -> None:
        if self.mouth.reply is not None or (self._talked_over and self._turn is None):
            if self._later is not None and self._later.ended_ms is None:
                self._later.source, self._later.ended_ms = frame.source, self._now_ms()
                self._later.seq = self.heard_seq
            self._talked_over = False  # it ends speech that was no interruption
            aside = self._set_aside()
            if aside is not None:
                aside.source, aside.ended_ms = frame.source, self._now_ms()
            if self._finalize_on is TurnEnded:
                self._expect()
            return
        turn = self._open_turn(frame.speech_start_ms if frame.speech_start_ms >= 0 else None)
        if frame.speech_end_ms >= 0:
            turn.speech_end_ms = frame.speech_end_ms + self._offset_ms()
        if self._finalize_on is TurnEnded:
            self._expect()
        self._process(turn, frame.source)
        if self._relays:
            turn.begin_reply(self._now_ms())
            self.mouth.relay(turn)
        else:
            self._await_words(turn)

    def _await_words(self, turn: Turn) -> None:
        """Answer the turn as soon as all its words are there."""
        if turn.owed <= 0:
            self._answer(turn)
        else:
            self._timers.set("final", self._options.final_timeout_ms, self._final_late, turn)

    def _process(self, turn: Turn, source: str) -> None:
        """The turn is over; its answer is next."""
        turn.source, turn.ended_ms, turn.seq = source, self._now_ms(), self.heard_seq
        self._timers.cancel("turn")
        self.move(Happening.TURN_ENDED)
        self._tell("turn_ended", turn.index, source=source, speech_end_ms=turn.speech_end_ms)

    def _typed(self, frame: TextIn) -> None:
        self.active_ms = self._now_ms()
        self.heard_seq = max(self.heard_seq, frame.seq)
        if self.mouth.reply is not None:
            self._interrupt(self.mouth.reply, "text")
        turn = self._open_turn(None)
        if self._relays:
            return
        turn.finals.append(frame.text)
        self._tell("transcript", turn.index, text=frame.text, is_final=True, confidence=None)
        self._process(turn, "text")
        self._answer(turn)

    def _key(self, frame: DTMF) -> None:
        self.active_ms = self._now_ms()
        self._tell("dtmf", self._index(), digit=frame.digit)

    def _audio(self, frame: AudioIn) -> None:
        """The ears are done with this audio."""
        if self._ear is not None:
            self._ear.hear(frame.pcm, frame.sample_rate_hz)
        if frame.seq > self.heard_seq:
            self.heard_seq = frame.seq

    def _start_turn(self, frame: StartTurn) -> None:
        """The caller takes the floor by a button."""
        self.active_ms = self._now_ms()
        reply = self.mouth.reply
        if reply is not None and reply.interruptible:
            self._interrupt(reply, frame.source)
        if self.mouth.reply is None:
            self._open_turn(None)

    def _stop_reply(self, frame: Interrupt) -> None:
        self.active_ms = self._now_ms()
        reply = self.mouth.reply
        if reply is not None and reply.interruptible:
            self._interrupt(reply, frame.source)
            self._next()

    # --- transcripts -------------------------------------------------------------------------------------------------

    def _expect(self) -> None:
        """The recogniser owes a closing transcript: to the turn, or to nobody (speech that was no interruption)."""
        if self._stt_closes:
            turn = self._turn if self.mouth.reply is None else self._later or self._set_aside()
            self._expecting.append(turn)
            if turn is not None:
                turn.owed += 1

    def _transcript(self, frame: Transcript) -> None:
        floor = self._turn if self.mouth.reply is None else self._set_aside()
        turn = self._expecting[0] if self._expecting else floor
        if frame.text and not self._stt_closes and self._idle() and not self._talked_over:
            turn = self._open_turn(None)  # words where no VAD tells of speech
        if turn is not None and frame.text:
            if turn.index >= 0:
                self._tell("transcript", turn.index, text=frame.text, is_final=frame.is_final, confidence=frame.confidence)
            if frame.is_final:
                turn.finals.append(frame.text)
        if frame.closes and self._expecting:
            self._expecting.pop(0)
            if turn is not None:
                turn.owed -= 1
                self._words_known(turn)
        if turn is not None and turn is self._aside:
            self._judge(turn.text if frame.is_final else f"{turn.text} {frame.text}")

    # --- words spoken into a reply -----------------------------------------------------------------------------------

    def _set_aside(self) -> Turn | None:
        """Whose the words are while it is not decided whether they interrupt: a turn that may never be, without a number."""
        reply = self.mouth.reply
        if reply is None or reply.barge_in is None or not reply.barge_in.suspects:
            return None
        self._aside = self._aside or Turn(-1, self._now_ms())
        return self._aside

    def _judge(self, text: str) -> None:
        """The words so far of speech into the reply are known."""
        reply = self.mouth.reply
        if reply is not None and reply.barge_in is not None:
            said = meaning(text, self._options.barge_in, reply.heard_text())
            self._decide(reply, reply.barge_in, reply.barge_in.heard(said))

    def _claim(self, turn: Turn) -> None:
        """It was an interruption: what was said and is owed so far is the turn's; it may be over already."""
        aside, self._aside = self._aside, None
        if aside is None:
            return
        for text in aside.finals:
            turn.finals.append(text)
            self._tell("transcript", turn.index, text=text, is_final=True, confidence=None)
        turn.owed += aside.owed
        self._expecting = [turn if owed_to is aside else owed_to for owed_to in self._expecting]
        turn.speech_end_ms = aside.speech_end_ms or turn.speech_end_ms
        if aside.ended_ms is not None:
            self._process(turn, aside.source)
            self._await_words(turn)

    def _words_known(self, turn: Turn) -> None:
        """A final that the turn was owed has come; perhaps so late that the session listens again."""
        if turn is not self._turn or turn.owed > 0 or self.mouth.reply is not None:
            return
        if self.state is SessionState.PROCESSING:
            self._answer(turn)
        elif turn.ended_ms is not None and not self._speaking:
            self.move(Happening.TURN_ENDED)
            self._answer(turn)

    def _final_late(self, turn: Turn) -> None:
        """The recogniser takes too long: answer what there is, or listen on until its words come after all."""
        self._context.counters["finals_late"] += 1
        self._tell("warning", turn.index, message=f"no final transcript within {self._options.final_timeout_ms:g} ms")
        if turn.text:
            self._answer(turn)
        else:
            self.move(Happening.NOTHING_TO_SAY)
            self._timers.set("final", GIVE_UP_MS, self._give_up, turn)

    def _give_up(self, turn: Turn) -> None:
        """The words of a turn have not come at all."""
        self._turn = None
        self._tell("turn_empty", turn.index)
        self._next()

    def deafened(self) -> None:
        """The ears begin anew: what they owed will not come, and that speech ends will not be heard."""
        if self._lost is not None:
            self._lost.append(self.deafened)
            return
        self._stt_failed = True
        if self._speaking:
            now_ms = self._now_ms() - self._offset_ms()
            self._speech_ended(SpeechEnded(now_ms, now_ms))
        while self._expecting:
            self._transcript(Transcript("", closes=True))
        if self._turn is not None and self._turn.ended_ms is None and self.mouth.reply is None:
            self._process(self._turn, "ears")
            self._answer(self._turn)

    def _failed(self, frame: Failed) -> None:
        """A stage of the ears failed at something; the session listens on."""
        self._stt_failed = True
        self._tell("error", self._index(), stage=frame.stage, message=str(frame.error), error=frame.error)

    # --- replies -----------------------------------------------------------------------------------------------------

    def _answer(self, turn: Turn) -> None:
        self._timers.cancel("final")
        stt_failed, self._stt_failed = self._stt_failed, False
        turn.begin_reply(self._now_ms())
        self._context.history = self.history.messages
        if turn.text:
            self._tell("turn_heard", turn.index, text=turn.text)
            self.mouth.answer(turn)
        elif stt_failed and self._options.fallback:
            self.mouth.fall_back(turn)
        else:
            self._turn = None
            self._done_seq = max(self._done_seq, turn.seq)
            self.move(Happening.NOTHING_TO_SAY)
            self._tell("turn_empty", turn.index)
            self._next()

    def _reply_sounds(self, reply: Reply) -> None:
        if self.state is not SessionState.RESPONDING:
            self.move(Happening.REPLY_AUDIO)
        self._tell("reply_started", self._index(), reply=reply.number)

    def _reply_over(self, reply: Reply) -> None:
        if self._lost is not None:
            self._lost.append(partial(self._reply_over, reply))
            return
        happening = {
            SessionState.RESPONDING: Happening.PLAYOUT_ENDED,
            SessionState.PROCESSING: Happening.NOTHING_TO_SAY,
            SessionState.CONNECTED: Happening.READY,
        }.get(self.state)
        self._finish(reply, interrupted=False)
        self._context.emit(ReplyEnded(reply.number, reply.heard_text(), False))
        if happening is not None:
            self.move(happening)
        if self._later is not None:
            self._take_later()
        elif self._speaking:  # into a reply that could not be interrupted: what goes on beyond it is heard
            self._deaf_until_ms = self._now_ms()
            self._open_turn(self._speech_start_ms)
        self._next()

    def _finish(self, reply: Reply, *, interrupted: bool) -> None:
        """The reply is over: the history gets what was heard, the listeners the turn's record."""
        self.active_ms = self._now_ms()
        turn, heard = reply.turn, reply.heard_text()
        self.history.add_turn(turn.text if turn else "", heard, tuple(reply.tools))
        saying, self._saying = self._saying, None
        if saying is not None:
            saying.settle(not interrupted and not reply.failed)
        if turn is not None:
            self._done_seq = max(self._done_seq, turn.seq)
            if turn is self._turn:
                self._turn = None
            text = f"{reply.before} {reply.text}".strip() if reply.before else reply.text
            self._on_finished(turn.record(text, heard, interrupted))

    def _next(self) -> None:
        """At a turn boundary: say what waits, or close."""
        if not (self._open and self._idle()) or self.state not in (SessionState.LISTENING, SessionState.CONNECTED):
            return
        if self._says:
            self._saying = say = self._says.take()
            self.mouth.say(say.text, interruptible=say.interruptible)
        elif self.closing_reason:
            self._end(self.closing_reason)

    def _too_many_stuck(self) -> None:
        message = f"{self._options.max_stuck} replies do not stop; see the warnings for whose"
        self._tell("error", self._index(), stage="session", message=message, error=None)
        self._end("error")

    # --- small things ------------------------------------------------------------------------------------------------

    def _idle(self) -> bool:
        return self._turn is None and self.mouth.reply is None and not self._speaking

    def _index(self) -> int:
        turn = self.mouth.reply.turn if self.mouth.reply is not None else self._turn
        return turn.index if turn is not None else -1
