"""What a session does about what it hears: turns, replies, interruptions. The state table decides; nothing here waits.

Every method returns at once: replies run in tasks of the session, what must be waited for comes back as a frame or a timer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import attrs

from ._streams import Reaper
from .barge_in import BargeIn, Verdict
from .chain import Chain
from .engine import Context
from .errors import AgentError, SessionLimitError
from .events import Turn
from .frames import (
    DTMF,
    AudioOut,
    EndCall,
    EndTurn,
    Failed,
    Frame,
    Interrupted,
    ReplyEnded,
    ReplyStarted,
    SpeechEnded,
    SpeechProbability,
    SpeechStarted,
    SpeechSuspected,
    TextDelta,
    TextIn,
    ToolCalled,
    ToolReturned,
    Transcript,
    TurnEnded,
    TurnEndProposed,
)
from .history import History
from .mouth import Reply
from .playout import Playout
from .settings import SessionOptions
from .state import Happening, SessionState, move
from .transport import Transport

__all__ = ["Dialogue", "Say"]

Tell = Callable[..., None]


@attrs.define(eq=False)
class Say:
    """Something to say of one's own accord."""

    text: str
    interruptible: bool
    done: asyncio.Future[bool]


class Dialogue:
    """The conversation of one session. `hear` takes the frames of the ears, in order.

    Args:
        chain: the session's stages.
        line: the transport.
        context: what the stages share.
        options: the session's limits.
        now_ms: the session's time.
        offset_ms: what to add to a position on the line to get the session's time.
        tell: announces an event: `tell(name, turn_index, **data)`.
        on_finished: told `(record)` of each finished turn.
        end: closes the session with a reason.
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
        tell: Tell,
        on_finished: Callable[[Any], None],
        end: Callable[[str], None],
    ) -> None:
        self._mouth = chain.split()[1]
        self._voice = Chain._of(tuple(stage for stage in self._mouth.stages if not stage.replies))
        self._finalize_on = TurnEnded if chain.index("turn") < chain.index("stt") else SpeechEnded
        self._stt_closes = chain.stage("stt") is not None and not _ends_turns(chain)
        self._external = chain.stage("s2s") is not None
        self._line, self._context, self._options = line, context, options
        self._now_ms, self._offset_ms, self._tell, self._on_finished, self._end = now_ms, offset_ms, tell, on_finished, end
        self.state = SessionState.CONNECTED
        self.history = History()
        self.active_ms = 0.0
        self.closing_reason = ""
        self.reaper = Reaper(options.cancel_grace_ms, options.max_stuck, self._stuck)
        self._turn: Turn | None = None
        self._reply: Reply | None = None
        self._speaking = self._stt_failed = False
        self._turns = self._replies = 0
        self._expecting: deque[Turn | None] = deque()
        self._says: deque[Say] = deque()
        self._saying: Say | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._handlers: dict[type, Callable[[Any], None]] = {
            SpeechProbability: self._guard,
            SpeechSuspected: self._guard,
            SpeechStarted: self._speech_started,
            SpeechEnded: self._speech_ended,
            TurnEndProposed: self._turn_end_proposed,
            TurnEnded: self._turn_ended,
            Transcript: self._transcript,
            TextIn: self._typed,
            DTMF: self._key,
            Failed: self._failed,
            AudioOut: self._external_audio,
            TextDelta: self._external_text,
            ReplyEnded: self._external_ended,
        }

    # --- the session's side ------------------------------------------------------------------------------------------

    @property
    def quiet(self) -> bool:
        """True when nobody speaks and nothing is owed: a turn boundary."""
        return self.state is SessionState.LISTENING and self._turn is None and self._reply is None and not self._speaking

    def hear(self, frame: Frame) -> None:
        """Take one frame of the ears."""
        handler = self._handlers.get(type(frame))
        if handler is not None:
            handler(frame)

    def ready(self) -> None:
        """The line is open: greet, or listen."""
        if self._options.greeting:
            self.say(self._options.greeting, interrupt=False, interruptible=True)
        else:
            self._move(Happening.READY)

    def say(self, text: str, *, interrupt: bool, interruptible: bool) -> Say:
        """Queue `text` to be said when nobody speaks; with `interrupt`, now.

        Raises:
            SessionLimitError: too many texts wait already.
        """
        if len(self._says) >= self._options.max_says:
            raise SessionLimitError(
                f"{len(self._says)} texts wait to be said; at most {self._options.max_says} may. Wait for one to be played.",
                limit="max_says",
            )
        say = Say(text, interruptible, asyncio.get_running_loop().create_future())
        if interrupt:
            self._says.appendleft(say)
            if self._reply is not None and self.state is SessionState.RESPONDING:
                self._interrupt(self._reply, "say")
        else:
            self._says.append(say)
        self._next()
        return say

    def unsay(self, say: Say) -> None:
        """Take back something to say, or stop saying it."""
        if say in self._says:
            self._says.remove(say)
        elif say is self._saying and self._reply is not None:
            self._interrupt(self._reply, "cancelled")
            self._next()
        if not say.done.done():
            say.done.set_result(False)

    def end(self, text: str, reason: str) -> None:
        """Close at the next turn boundary, after saying `text` if given."""
        if text:
            self._says.append(Say(text, False, asyncio.get_running_loop().create_future()))
        self.closing_reason = self.closing_reason or reason
        self._next()

    def stop(self) -> None:
        """Cut what is being said and forget all timers: the session closes."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        reply, self._reply = self._reply, None
        if reply is not None:
            reply.cut()
            self._abandon(reply)
            self._finish_turn(reply, interrupted=True)
        for say in [*self._says, *([self._saying] if self._saying else [])]:
            if not say.done.done():
                say.done.set_result(False)
        self._says.clear()

    def move(self, happening: Happening) -> None:
        """Move by the table, and announce it."""
        self._move(happening)

    # --- speech ------------------------------------------------------------------------------------------------------

    def _speech_started(self, frame: SpeechStarted) -> None:
        self._speaking = True
        self.active_ms = self._now_ms()
        self._tell("speech_started", self._index(), speech_start_ms=frame.speech_start_ms + self._offset_ms())
        self._guard(frame)
        if self._reply is None:
            self._open_turn(frame.speech_start_ms)

    def _speech_ended(self, frame: SpeechEnded) -> None:
        self._speaking = False
        self.active_ms = self._now_ms()
        self._tell("speech_ended", self._index(), speech_end_ms=frame.speech_end_ms + self._offset_ms())
        self._guard(frame)
        if self._turn is not None and self._reply is None:
            self._turn.speech_end_ms = frame.speech_end_ms + self._offset_ms()
        if self._finalize_on is SpeechEnded:
            self._expect()

    def _guard(self, frame: Frame) -> None:
        """Let speech pause, cut or free the reply, if there is one that may be interrupted."""
        reply = self._reply
        if reply is None or reply.barge_in is None:
            return
        verdict = reply.barge_in.feed(frame, unheard=reply.playout.played_ms <= 0)
        if verdict is Verdict.PAUSE:
            reply.playout.pause()
            self._tell("reply_paused", self._index(), reply=reply.number, played_ms=reply.playout.played_ms)
        elif verdict is Verdict.GO_ON:
            reply.playout.go_on()
            self._tell("reply_resumed", self._index(), reply=reply.number, played_ms=reply.playout.played_ms)
        elif verdict is Verdict.CUT:
            self._interrupt(reply, "speech")
            self._open_turn(reply.barge_in.speech_start_ms)

    def _interrupt(self, reply: Reply, source: str) -> None:
        """Stop sending and clear the line, then stop the mouth; what was heard decides whose turn it was."""
        played_ms = reply.cut()
        self._abandon(reply)
        self._reply = None
        saying, self._saying = self._saying, None
        heard = reply.playout.heard_text()
        if self.state is SessionState.PROCESSING:
            self._move(Happening.REOPENED)
        elif self.state is SessionState.RESPONDING:
            self._move(Happening.BARGED_IN)
        elif self.state is SessionState.CONNECTED:
            self._move(Happening.READY)
        if saying is not None and not heard and source == "speech":
            self._says.appendleft(saying)
        elif saying is not None and not saying.done.done():
            saying.done.set_result(False)
        if not heard and reply.turn is not None and source in ("speech", "text"):
            self._reopen(reply.turn)
        else:
            self._tell("interrupted", self._index(), reply=reply.number, played_ms=played_ms, heard_text=heard, source=source)
            self._finish_turn(reply, interrupted=True)
            self._context.emit(Interrupted(reply.number, played_ms, heard))

    def _reopen(self, turn: Turn) -> None:
        turn.reopened += 1
        turn.ended_ms = None
        self._turn = turn
        self._tell("turn_reopened", turn.index)
        self._limit_turn()

    def _open_turn(self, speech_start_ms: float | None) -> Turn:
        if self._turn is None:
            self._turn = Turn(self._turns, self._now_ms())
            self._turns += 1
            self._tell("turn_started", self._turn.index)
            self._limit_turn()
        if self.state is SessionState.CONNECTED:
            self._move(Happening.READY)
        if self.state is SessionState.PROCESSING:
            self._cancel_timer("final")
            self._move(Happening.REOPENED)
            self._reopen(self._turn)
        if speech_start_ms is not None and self._turn.speech_start_ms is None:
            self._turn.speech_start_ms = speech_start_ms + self._offset_ms()
        return self._turn

    # --- turns -------------------------------------------------------------------------------------------------------

    def _turn_end_proposed(self, frame: TurnEndProposed) -> None:
        self._tell("turn_end_proposed", self._index())

    def _turn_ended(self, frame: TurnEnded) -> None:
        if self._reply is not None:
            if self._finalize_on is TurnEnded:
                self._expect()
            return
        turn = self._open_turn(None)
        turn.source, turn.ended_ms = frame.source, self._now_ms()
        if frame.speech_end_ms >= 0:
            turn.speech_end_ms = frame.speech_end_ms + self._offset_ms()
        if self._finalize_on is TurnEnded:
            self._expect()
        self._cancel_timer("turn")
        self._move(Happening.TURN_ENDED)
        self._tell("turn_ended", turn.index, source=frame.source, speech_end_ms=turn.speech_end_ms)
        if self._external:
            self._begin_external(turn)
        elif turn.owed <= 0:
            self._answer(turn)
        else:
            self._timer("final", self._options.final_timeout_ms, self._final_late, turn)

    def _expect(self) -> None:
        """The recogniser owes a closing transcript, to the turn under way or (speech that was no interruption) to nobody."""
        if self._stt_closes:
            turn = self._turn if self._reply is None else None
            self._expecting.append(turn)
            if turn is not None:
                turn.owed += 1

    def _transcript(self, frame: Transcript) -> None:
        owner = self._expecting[0] if self._expecting else (self._turn if self._reply is None else None)
        if owner is not None and (frame.text or frame.closes):
            self._tell(
                "transcript", owner.index, text=frame.text, is_final=frame.is_final, confidence=frame.confidence
            )
        if not frame.is_final:
            return
        if owner is not None and frame.text:
            owner.finals.append(frame.text)
        if frame.closes and self._expecting:
            self._expecting.popleft()
            if owner is not None:
                owner.owed -= 1
                self._closed(owner)

    def _closed(self, turn: Turn) -> None:
        """A final that a turn was owed has come, perhaps late."""
        if turn.owed > 0 or self._reply is not None:
            return
        if turn is self._turn and self.state is SessionState.PROCESSING:
            self._answer(turn)
        elif turn is self._turn and turn.ended_ms is not None and not self._speaking:
            self._move(Happening.TURN_ENDED)
            self._answer(turn)

    def _final_late(self, turn: Turn) -> None:
        """The recogniser takes too long: answer what there is, or listen on until its words come after all."""
        if turn is not self._turn or self._reply is not None or self.state is not SessionState.PROCESSING:
            return
        self._context.counters["finals_late"] += 1
        self._tell("warning", turn.index, message=f"no final transcript within {self._options.final_timeout_ms:g} ms")
        if turn.text:
            self._answer(turn)
        else:
            self._move(Happening.NOTHING_TO_SAY)

    def _answer(self, turn: Turn) -> None:
        self._cancel_timer("final")
        text = turn.text
        failed, self._stt_failed = self._stt_failed, False
        if not text and not (failed and self._options.fallback):
            self._turn = None
            self._move(Happening.NOTHING_TO_SAY)
            self._tell("turn_empty", turn.index)
            self._next()
            return
        turn.begin_reply(self._now_ms())
        self._context.history = self.history.messages
        if text:
            ended = TurnEnded(turn.ended_ms or 0.0, turn.source, text=text)
            self._speak(self._mouth, ended, turn, interruptible=True)
            self._timer("agent", self._options.agent_timeout_ms, self._agent_late, self._reply)
        else:
            self._fall_back(turn)

    def _typed(self, frame: TextIn) -> None:
        self.active_ms = self._now_ms()
        if self._reply is not None:
            self._interrupt(self._reply, "text")
        turn = self._open_turn(None)
        if self._external:
            return
        turn.finals.append(frame.text)
        turn.source, turn.ended_ms = "text", self._now_ms()
        self._tell("transcript", turn.index, text=frame.text, is_final=True, confidence=None)
        self._cancel_timer("turn")
        self._move(Happening.TURN_ENDED)
        self._tell("turn_ended", turn.index, source="text", speech_end_ms=None)
        self._answer(turn)

    def _key(self, frame: DTMF) -> None:
        self.active_ms = self._now_ms()
        self._tell("dtmf", self._index(), digit=frame.digit)

    # --- replies -----------------------------------------------------------------------------------------------------

    def _speak(self, mouth: Chain, first: Frame, turn: Turn | None, *, interruptible: bool) -> Reply:
        self._replies += 1
        reply = Reply(
            self._replies,
            mouth,
            first,
            turn=turn,
            playout=Playout(
                self._line,
                self._context.clock,
                send_lead_ms=self._options.send_lead_ms,
                limit_ms=self._options.max_reply_audio_ms,
                on_first_sent=lambda: self._first_sent(reply),
            ),
            barge_in=BargeIn(self._options.barge_in) if interruptible and self._options.barge_in.enabled else None,
            on_frame=self._reply_frame,
        )
        self._reply = reply
        self._begin(reply, self._make(reply))
        return reply

    def _begin(self, reply: Reply, making: Any) -> None:
        if making is not None:
            reply.tasks.append(self._context.spawn(making, f"reply {reply.number}"))
        playing = self._context.spawn(self._play(reply), f"playout {reply.number}")
        reply.tasks.append(playing)

    async def _make(self, reply: Reply) -> None:
        if len(self.reaper):
            await self.reaper.settle()
        await reply.make(self._context)

    async def _play(self, reply: Reply) -> None:
        await reply.playout.run()
        if reply is self._reply:
            self._reply_over(reply)

    def _first_sent(self, reply: Reply) -> None:
        if reply.turn is not None and reply.turn.sent_ms is None:
            reply.turn.sent_ms = self._now_ms()
        if self.state is not SessionState.RESPONDING:
            self._move(Happening.REPLY_AUDIO)
        self._tell("reply_started", self._index(), reply=reply.number)
        self._context.emit(ReplyStarted(reply.number))

    def _reply_frame(self, reply: Reply, frame: Frame) -> None:
        turn, now_ms = reply.turn, self._now_ms()
        self.active_ms = now_ms
        if isinstance(frame, TextDelta):
            if turn is not None and turn.words_ms is None:
                turn.words_ms = now_ms
            self._tell("reply_text", self._index(), reply=reply.number, text=frame.text)
            self._rearm_agent(reply)
        elif isinstance(frame, AudioOut):
            if turn is not None and turn.audio_ms is None:
                turn.audio_ms = now_ms
            self._cancel_timer("agent")
            self._tell("reply_audio", self._index(), reply=reply.number)
        elif isinstance(frame, EndCall):
            self.closing_reason = self.closing_reason or "agent_ended"
        elif isinstance(frame, Failed):
            self._tell("error", self._index(), stage=frame.stage, message=str(frame.error), error=frame.error)
        elif isinstance(frame, (ToolCalled, ToolReturned)):
            self._tell("tool", self._index(), tool=frame)
            self._rearm_agent(reply)

    def _rearm_agent(self, reply: Reply) -> None:
        if "agent" in self._timers:
            self._timer("agent", self._options.agent_timeout_ms, self._agent_late, reply)

    def _agent_late(self, reply: Reply) -> None:
        """No words, tools or audio for too long: give the agent up and say so."""
        if reply is not self._reply:
            return
        turn = reply.turn
        error = AgentError(f"the agent gave nothing for {self._options.agent_timeout_ms:g} ms; expected words sooner")
        self._tell("error", self._index(), stage="agent", message=str(error), error=error)
        reply.cut()
        self._abandon(reply)
        self._reply = None
        if turn is not None:
            self._fall_back(turn)

    def _fall_back(self, turn: Turn) -> None:
        if not self._options.fallback:
            self._reply = None
            self._turn = None
            if self.state is SessionState.PROCESSING:
                self._move(Happening.NOTHING_TO_SAY)
            self._on_finished(turn.record("", "", interrupted=False))
            self._next()
            return
        reply = self._speak(self._voice, TextDelta(self._options.fallback), turn, interruptible=True)
        reply.fallback = True

    def _reply_over(self, reply: Reply) -> None:
        """All of the reply was played, or there was nothing to play."""
        turn = reply.turn
        self._cancel_timer("agent")
        spoke_nothing = not reply.text and not reply.tools and not self._says and not self.closing_reason
        if turn is not None and not reply.fallback and (reply.failed or (spoke_nothing and not self._external)):
            if not reply.failed:
                error = AgentError("the agent gave nothing to say; expected text. Return or yield a str.")
                self._tell("error", turn.index, stage="agent", message=str(error), error=error)
            if self._options.fallback and not (reply.failed and reply.text and not reply.made_audio):
                self._fall_back(turn)
                return
        self._reply = None
        happening = {
            SessionState.RESPONDING: Happening.PLAYOUT_ENDED,
            SessionState.PROCESSING: Happening.NOTHING_TO_SAY,
            SessionState.CONNECTED: Happening.READY,
        }.get(self.state)
        self._finish_turn(reply, interrupted=False)
        self._context.emit(ReplyEnded(reply.number, reply.playout.heard_text(), False))
        if happening is not None:
            self._move(happening)
        self._next()

    def _finish_turn(self, reply: Reply, *, interrupted: bool) -> None:
        """The reply is over: the history gets what was heard, the listeners the turn's record."""
        heard, turn = reply.playout.heard_text(), reply.turn
        self.active_ms = self._now_ms()
        self.history.add_turn(turn.text if turn else "", heard, tuple(reply.tools))
        index = turn.index if turn else -1
        self._tell("reply_ended", index, reply=reply.number, heard_text=heard, interrupted=interrupted)
        saying, self._saying = self._saying, None
        if saying is not None and not saying.done.done():
            saying.done.set_result(not interrupted)
        if turn is not None:
            if self._turn is turn:
                self._turn = None
            self._on_finished(turn.record(reply.text, heard, interrupted))

    def _next(self) -> None:
        """At a turn boundary: say what waits, or close."""
        greeting = self.state is SessionState.CONNECTED and self._reply is None and not self._speaking
        if not (self.quiet or greeting):
            return
        if self._says:
            self._saying = say = self._says.popleft()
            self._speak(self._voice, TextDelta(say.text), None, interruptible=say.interruptible)
        elif self.closing_reason:
            self._end(self.closing_reason)

    def _abandon(self, reply: Reply) -> None:
        """Stop a reply's tasks without waiting for them."""
        self._cancel_timer("agent")
        for task in reply.tasks:
            self.reaper.take(task)
        if self.reaper.full:
            self._tell("error", self._index(), stage="session", message="too many replies do not stop", error=None)
            self._end("error")

    def _stuck(self, name: str) -> None:
        self._context.counters["stuck"] += 1
        names = ", ".join(self._context.tasks.cancelling()) or name
        self._tell("warning", self._index(), message=f"{names} did not stop within {self._options.cancel_grace_ms:g} ms")

    # --- replies that come by the ears (speech to speech) ------------------------------------------------------------

    def _begin_external(self, turn: Turn) -> None:
        turn.begin_reply(self._now_ms())
        self._replies += 1
        reply = Reply(
            self._replies,
            Chain(),
            TextDelta(""),
            turn=turn,
            playout=Playout(
                self._line,
                self._context.clock,
                send_lead_ms=self._options.send_lead_ms,
                limit_ms=self._options.max_reply_audio_ms,
                on_first_sent=lambda: self._first_sent(reply),
            ),
            barge_in=BargeIn(self._options.barge_in) if self._options.barge_in.enabled else None,
            on_frame=self._reply_frame,
        )
        self._reply = reply
        self._begin(reply, None)

    def _external_audio(self, frame: AudioOut) -> None:
        reply = self._reply
        if reply is None or not self._external:
            self._context.counters["stale_frames_dropped"] += 1
            return
        if not reply.made_audio:
            reply.made_audio = True
            self._reply_frame(reply, frame)
        reply.playout.add_now(frame)

    def _external_text(self, frame: TextDelta) -> None:
        if self._reply is not None and self._external:
            self._reply.text += frame.text
            self._reply_frame(self._reply, frame)

    def _external_ended(self, frame: ReplyEnded) -> None:
        if self._reply is not None and self._external:
            self._reply.playout.finish()

    # --- small things ------------------------------------------------------------------------------------------------

    def _failed(self, frame: Failed) -> None:
        """A stage of the ears failed at something; the session listens on."""
        self._stt_failed = True
        self._tell("error", self._index(), stage=frame.stage, message=str(frame.error), error=frame.error)

    def _limit_turn(self) -> None:
        self._timer("turn", self._options.max_turn_ms, self._turn_too_long, self._turn)

    def _turn_too_long(self, turn: Turn) -> None:
        if turn is self._turn and self._reply is None:
            self._context.counters["turns_too_long"] += 1
            self._context.emit(EndTurn("max_turn"))

    def _move(self, happening: Happening) -> None:
        old, self.state = self.state, move(self.state, happening)
        if old is not self.state:
            self._tell("state", self._index(), state=self.state.value, old=old.value)

    def _index(self) -> int:
        turn = self._reply.turn if self._reply is not None else self._turn
        return turn.index if turn is not None else -1

    def _timer(self, name: str, delay_ms: float, callback: Callable[..., None], *args: Any) -> None:
        self._cancel_timer(name)
        self._timers[name] = self._context.clock.call_later_ms(delay_ms, callback, *args)

    def _cancel_timer(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()


def _ends_turns(chain: Chain) -> bool:
    stage = chain.stage("stt")
    capabilities = getattr(stage.engine, "capabilities", None) if stage is not None else None
    return bool(getattr(capabilities, "ends_turns", False))
