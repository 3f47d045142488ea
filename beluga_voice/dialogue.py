"""What a session does about what it hears: every frame of the ears, and every wish of the session, comes here.

The state table decides; nothing here waits. Every method returns at once: replies run in tasks of the session, what must be
waited for comes back as a frame or a timer. Its parts, each knowing only those above it:

- `Mouth`: makes and plays a reply.
- `Floor`: the state, and whose turn it is.
- `Replies`: answers turns, says texts, interrupts.
- `Owed`: whose words the recogniser will give, and how long they are waited for.
- `Outage`: what waits while the line is lost, and how it goes on.
- `Overhearing`: speech into a reply.
- `Words`: whose turn the words that come are, also those that come late.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from .chain import Chain
from .echo import EchoEar
from .engine import Context
from .events import TurnRecord
from .floor import Floor
from .frames import (
    DTMF,
    AudioIn,
    AudioOut,
    EndTurn,
    Failed,
    FailedOver,
    Frame,
    Interrupt,
    ReplyEnded,
    ReplyWanted,
    Retried,
    SpeechEnded,
    SpeechProbability,
    SpeechStarted,
    SpeechSuspected,
    StartTurn,
    TextDelta,
    TextIn,
    ToolCalled,
    ToolReturned,
    Transcript,
    TurnEnded,
    TurnEndProposed,
    TurnEndWithdrawn,
)
from .history import History
from .mouth import Mouth
from .outage import Outage
from .overhearing import Overhearing
from .owed import Owed
from .providers import NEWS, Providers
from .replies import Replies
from .reply import Reply
from .settings import SessionOptions
from .snapshot import Snapshot
from .state import Happening
from .transport import Transport
from .words import Words

__all__ = ["Dialogue"]

RELAYED = (AudioOut, TextDelta, ToolCalled, ReplyEnded, ReplyWanted)  # what a speech-to-speech model is asked for, and gives


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
        on_boundary: called at each turn boundary, before anything that waits is said.
        on_unanswered: told that an answer failed before any of it was made; True if the turn is to be answered anew.

    Attributes:
        history: what was said by both.
        mouth: makes and plays the replies.
        floor: the state, and whose turn it is.
        replies: answers, and says what the session is asked to say.
        providers: who serves the session, and what it uses.
        outage: told that the line is lost, back, and heard up to now.
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
        on_boundary: Callable[[], object] = lambda: None,
        on_unanswered: Callable[[], bool] = lambda: False,
    ) -> None:
        self._on_unanswered = on_unanswered
        self._context, self._options, self._tell, self._end = context, options, tell, end
        self._now_ms, self._offset_ms = now_ms, offset_ms
        self._ear = EchoEar() if options.barge_in.enabled and options.barge_in.echo_guard else None
        self.history = History()
        if snapshot is not None:
            self.history.messages = context.history = snapshot.history
        self.mouth = Mouth(
            chain,
            line,
            context,
            options,
            now_ms=now_ms,
            tell=tell,
            on_sent=lambda reply: self.replies.sounds(reply),
            on_over=self._reply_over,
            on_failed=self._reply_failed,
            on_end_call=lambda: self.replies.end("", "agent_ended"),
            on_stuck_full=self._too_many_stuck,
            on_line_failed=line_failed,
        )
        self.floor = Floor(self.mouth, context, options, now_ms=now_ms, offset_ms=offset_ms, tell=tell, snapshot=snapshot)
        self.providers = Providers({}, lambda: self.floor.index, tell, context.counters)
        self.replies = Replies(
            self.floor,
            self.history,
            context,
            options,
            self.providers,
            on_finished=on_finished,
            end=end,
            on_boundary=on_boundary,
        )
        self._owed = Owed(self.floor, self.replies, options, context.counters)
        self.outage = Outage(self.floor, self.replies, self._owed, stale_until_ms=stale_until_ms)
        self._overhearing = Overhearing(
            self.floor,
            self.replies,
            self._owed,
            context,
            options.barge_in,
            stt_closes=False,
            ear=self._ear,
        )
        self._words = Words(
            self.floor, self.replies, self._owed, self._overhearing, context, self.providers, stt_closes=False
        )
        self.use(chain)
        self._speech_start_ms: float | None = None
        self._deaf_until_ms = -math.inf

    def use(self, chain: Chain, voice: Chain | None = None) -> None:
        """Hear and speak with these stages from now on; `voice` as `Mouth.use` takes it."""
        s2s, stt = chain.index("s2s"), chain.index("stt")
        self._finalize_on = TurnEnded if s2s >= 0 or chain.index("turn") < stt else SpeechEnded
        closes = s2s >= 0 or (stt >= 0 and TurnEnded not in chain.stages[stt].makes)
        self._words.stt_closes = self._overhearing.stt_closes = closes
        self.providers.use({stage.kind: stage.name for stage in chain.stages})
        self.mouth.use(chain, voice)

    @property
    def settled(self) -> bool:
        """True when nobody is owed anything: others may go on from here."""
        return self.floor.quiet and not self._owed

    # --- the session's side ------------------------------------------------------------------------------------------

    def hear(self, frame: Frame) -> None:
        """Take one frame of the ears. What is heard while the line is lost waits until it is back."""
        handler = HANDLERS.get(type(frame))
        if handler is None:
            return
        if not self.outage.lasts or type(frame) in NEWS or type(frame) in RELAYED:
            handler(self, frame)
        elif type(frame) is not SpeechProbability:
            self.outage.put_off(partial(handler, self, frame))

    def ready(self, snapshot: Snapshot | None = None) -> None:
        """The line is open: greet, or listen; with a `snapshot`, go on from there."""
        self.replies.open = True
        if snapshot is not None:
            self.mouth.hold()
            self.floor.move(Happening.READY)
            if snapshot.pending:
                self._typed(TextIn(snapshot.pending, snapshot.seq))
        elif self._options.greeting:
            self.replies.greet(self._options.greeting)
        else:
            self.floor.move(Happening.READY)
            self.replies.next()

    def deafened(self) -> None:
        """The ears begin anew: what they owed will not come, and that speech ends will not be heard."""
        if self.outage.put_off(self.deafened):
            return
        self.replies.ears_failed = True
        if self.floor.speaking:
            now_ms = self._now_ms() - self._offset_ms()
            self._speech_ended(SpeechEnded(now_ms, now_ms))
        self.mouth.deafened()
        while self._owed:
            self._words.hear(Transcript("", closes=True))
        turn = self.floor.turn
        if turn is not None and turn.ended_ms is None and self.mouth.reply is None:
            self.floor.end(turn, "ears")
            self.replies.answer(turn)

    # --- what the mouth tells ----------------------------------------------------------------------------------------

    def _reply_over(self, reply: Reply) -> None:
        """A reply was played to its end: what was said meanwhile, and could not interrupt it, has the floor."""
        if self.outage.put_off(partial(self._reply_over, reply)):
            return
        self.replies.over(reply)
        floor = self.floor
        if floor.later is not None:
            self._answer_later()
        elif floor.speaking and not self.replies.closing:  # what goes on beyond the reply is heard
            self._deaf_until_ms = self._now_ms()
            floor.open(self._speech_start_ms)
        self.replies.next()

    def _reply_failed(self, reply: Reply) -> bool:
        """An answer failed; True if the turn is answered anew."""
        if reply.turn is None or reply.made_audio or reply.tools or not self._on_unanswered():
            return False
        self.mouth.reply = None
        self.replies.ears_failed = True  # without its words nobody can answer it: the caller is asked to say it again
        self.replies.answer(reply.turn)
        return True

    def _too_many_stuck(self) -> None:
        message = f"{self._options.max_stuck} replies do not stop; see the warnings for whose"
        self._tell("error", self.floor.index, stage="session", message=message, error=None)
        self._end("error")

    # --- speech ------------------------------------------------------------------------------------------------------

    def _audio(self, frame: AudioIn) -> None:
        """The ears are done with this audio."""
        if self._ear is not None:
            self._ear.hear(frame.pcm, frame.sample_rate_hz)
        if frame.seq > self.floor.heard_seq:
            self.floor.heard_seq = frame.seq

    def _speech_started(self, frame: SpeechStarted) -> None:
        floor = self.floor
        floor.speaking, floor.talked_over = True, False
        if self.mouth.relays:
            floor.timers.cancel("final")
        self._speech_start_ms = frame.speech_start_ms
        floor.active_ms = self._now_ms()
        self._tell("speech_started", floor.index, speech_start_ms=frame.speech_start_ms + self._offset_ms())
        if self.outage.is_stale(frame.speech_start_ms):
            floor.open_later(frame.speech_start_ms)
            return
        self._overhearing.goes_on()
        self._overhearing.hear(frame)
        if self.mouth.reply is None:
            floor.open(frame.speech_start_ms)

    def _speech_ended(self, frame: SpeechEnded) -> None:
        floor, end_ms = self.floor, frame.speech_end_ms + self._offset_ms()
        floor.speaking, floor.talked_over = False, self.mouth.reply is not None or end_ms <= self._deaf_until_ms
        floor.active_ms = self._now_ms()
        self._tell("speech_ended", floor.index, speech_end_ms=end_ms)
        aside = self._overhearing.aside()
        if aside is not None:
            aside.speech_end_ms = end_ms
        self._overhearing.hear(frame)
        turn = floor.turn
        if turn is not None and self.mouth.reply is None:
            decided_ms = turn.ended_ms  # in mid-speech, by a button or a limit
            turn.speech_end_ms = end_ms if decided_ms is None else min(end_ms, decided_ms)
            if self.floor.talked_over and not turn.finals:
                floor.empty(turn)
        if self._finalize_on is SpeechEnded:
            self._words.expect()
        self._owed.wait_for_end(floor.turn)
        self.replies.next()

    # --- turns -------------------------------------------------------------------------------------------------------

    def _turn_ended(self, frame: TurnEnded) -> None:
        if self.mouth.reply is not None or (self.floor.talked_over and self.floor.turn is None):
            self._ended_into_reply(frame)
            return
        turn = self.floor.open(frame.speech_start_ms if frame.speech_start_ms >= 0 else None)
        if frame.speech_end_ms >= 0:
            turn.speech_end_ms = frame.speech_end_ms + self._offset_ms()
        if self._finalize_on is TurnEnded:
            self._words.expect()
        self.floor.end(turn, frame.source)
        self._owed.wait(turn)

    def _ended_into_reply(self, frame: TurnEnded) -> None:
        """What ends is no turn, or not yet: speech during a reply, or just before its end."""
        self.floor.end_later(frame.source)
        self.floor.talked_over = False
        aside = self._overhearing.aside()
        if aside is not None:
            aside.source, aside.ended_ms = frame.source, self._now_ms()
        if self._finalize_on is TurnEnded:
            self._words.expect()

    def _answer_later(self) -> None:
        """Answer what was said while the line was lost, once it is all there."""
        turn = self.floor.take_later()
        if turn is not None and turn.ended_ms is not None and not self.floor.speaking:
            self.floor.end(turn, turn.source)
            self._owed.wait(turn)

    def _start_turn(self, frame: StartTurn) -> None:
        """The caller takes the floor by a button."""
        self.floor.active_ms = self._now_ms()
        reply = self.mouth.reply
        if reply is not None and reply.interruptible:
            self.replies.interrupt(reply, frame.source)
        if self.mouth.reply is None:
            self.floor.open()

    def _stop_reply(self, frame: Interrupt) -> None:
        self.floor.active_ms = self._now_ms()
        reply = self.mouth.reply
        if reply is not None and reply.interruptible:
            self.replies.interrupt(reply, frame.source)
            self.replies.next()

    # --- what else comes -----------------------------------------------------------------------------------------------

    def _typed(self, frame: TextIn) -> None:
        floor = self.floor
        floor.active_ms = self._now_ms()
        floor.heard_seq = max(floor.heard_seq, frame.seq)
        if self.mouth.reply is not None:
            self.replies.interrupt(self.mouth.reply, "text")
        turn = floor.open()
        self._words.add(turn, Transcript(frame.text), typed=True)
        floor.end(turn, "text")
        self.replies.answer(turn, frame.text)

    def _key(self, frame: DTMF) -> None:
        self.floor.active_ms = self._now_ms()
        self._tell("dtmf", self.floor.index, digit=frame.digit)

    def _failed(self, frame: Failed) -> None:
        """A stage of the ears failed at something; the session listens on, with others if who is to end the turn is gone."""
        self.replies.ears_failed = True
        self._tell("error", self.floor.index, stage=frame.stage, message=str(frame.error), error=frame.error)
        left = frame.stage == "s2s" and self.mouth.relays and self.mouth.reply is None
        if left and self.floor.turn is not None and not self.floor.speaking and self._on_unanswered():
            self.deafened()
        self.replies.next()

    def _news(self, frame: Frame) -> None:
        """A provider's news. A recogniser that begins anew with what it was given has all its time again."""
        self.providers.hear(frame)
        if isinstance(frame, (Retried, FailedOver)) and frame.kind == "stt":
            self._owed.renew()


HANDLERS: dict[type, Callable[[Dialogue, Any], None]] = {  # one table for all sessions
    AudioIn: Dialogue._audio,
    SpeechProbability: lambda self, frame: self._overhearing.hear(frame),
    SpeechSuspected: lambda self, frame: self._overhearing.hear(frame),
    SpeechStarted: Dialogue._speech_started,
    SpeechEnded: Dialogue._speech_ended,
    TurnEndProposed: lambda self, _: self._tell("turn_end_proposed", self.floor.index),
    TurnEndWithdrawn: lambda self, _: self._tell("turn_end_withdrawn", self.floor.index),
    TurnEnded: Dialogue._turn_ended,
    Transcript: lambda self, frame: self._words.hear(frame),
    TextIn: Dialogue._typed,
    DTMF: Dialogue._key,
    StartTurn: Dialogue._start_turn,
    Interrupt: Dialogue._stop_reply,
    Failed: Dialogue._failed,
    EndTurn: lambda self, _: self._owed.wait_for_end(self.floor.turn),
    ToolReturned: lambda self, frame: self.replies.tool(frame),
    **dict.fromkeys(RELAYED, lambda self, frame: self.mouth.relayed(frame)),
    ReplyWanted: lambda self, frame: self.mouth.asked(frame),
    **dict.fromkeys(NEWS, Dialogue._news),
}
