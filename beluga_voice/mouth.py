"""The speaking side of a session: makes replies, one at a time, and sees out those that were stopped.

It decides nothing about turns: the dialogue tells it to speak and to stop, and is told when a reply first sounds and when it
is over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from ._streams import Reaper
from .barge_in import LOUD, BargeIn
from .chain import Chain
from .clock import Timers
from .engine import Context
from .errors import AgentError, LineLost, ProtocolError
from .events import Turn
from .filler import Filler
from .frames import (
    AudioOut,
    EndCall,
    Failed,
    Frame,
    Interrupted,
    ReplyEnded,
    ReplyStarted,
    ReplyWanted,
    TextDelta,
    ToolCalled,
    ToolReturned,
    TurnEnded,
)
from .playout import Playout
from .reply import Reply
from .settings import SessionOptions
from .transport import Transport

__all__ = ["Mouth"]

LINE_STALLED_MS = 10_000.0  # a line that plays nothing of what it was sent for so long is lost


class Mouth:
    """Speaks over one line.

    Args:
        chain: the session's stages; those from the replying one on make the replies.
        line: where they go.
        context: what the stages share.
        options: the session's limits.
        now_ms: the session's time.
        tell: announces an event: `tell(name, turn_index, **data)`.
        on_sent: told when a reply's first audio goes to the line.
        on_over: told when a reply was played to its end, or made no sound.
        on_failed: told of a reply that failed; True: something else is done about it than to say the fallback.
        on_end_call: told when the agent wants to hang up.
        on_stuck_full: told when more replies refuse to stop than are allowed.
        on_line_failed: told the error when the line cannot be spoken over.

    Attributes:
        reply: what is being said; None when nothing is.
        relays: the replies come by the ears: from a speech-to-speech model.
    """

    def __init__(
        self,
        chain: Chain,
        line: Transport,
        context: Context,
        options: SessionOptions,
        *,
        now_ms: Callable[[], float],
        tell: Callable[..., None],
        on_sent: Callable[[Reply], None],
        on_over: Callable[[Reply], None],
        on_failed: Callable[[Reply], bool],
        on_end_call: Callable[[], None],
        on_stuck_full: Callable[[], None],
        on_line_failed: Callable[[Exception], None],
    ) -> None:
        self._line, self._context, self._options = line, context, options
        self._now_ms, self._tell, self._on_sent, self._on_over = now_ms, tell, on_sent, on_over
        self._on_failed = on_failed
        self._on_end_call, self._on_stuck_full, self._on_line_failed = on_end_call, on_stuck_full, on_line_failed
        self._timers = Timers(context.clock)
        self._count = 0
        self._filler = Filler(context, options, tell)
        self.reaper = Reaper(options.cancel_grace_ms, options.max_stuck, self._stuck)
        self.reply: Reply | None = None
        self._held = False
        self._lead_ms = options.send_lead_ms
        self.use(chain)

    def use(self, chain: Chain, voice: Chain | None = None) -> None:
        """Make the replies with these stages from now on.

        Args:
            chain: the stages.
            voice: another chain, whose voice says what a speech-to-speech model cannot be told to say.
        """
        s2s, vad = chain.stage("s2s"), chain.stage("vad")
        self.relays = s2s is not None
        self._model_says = s2s is not None and getattr(getattr(s2s.engine, "capabilities", None), "says", False)
        self._stages = chain.split()[1]
        speaking = self._stages if voice is None else voice.split()[1]
        self._voice = Chain._of(tuple(stage for stage in speaking.stages if not stage.replies))
        self._reads = _tells_words(chain, self._options)
        self._loud = getattr(vad.engine.options, "threshold", LOUD) if vad is not None and vad.engine is not None else LOUD
        self._barge_in = self._options.barge_in
        if self.relays and vad is None:  # what the model calls speech is long enough
            self._barge_in = attrs.evolve(self._barge_in, min_speech_ms=0.0)

    # --- what the dialogue asks for ----------------------------------------------------------------------------------

    def answer(self, turn: Turn) -> None:
        """Have the agent answer a turn."""
        reply = self._new(self._stages, TurnEnded(turn.ended_ms or 0.0, turn.source, text=turn.text), turn)
        self._begin(reply)

    @property
    def can_say(self) -> bool:
        """False for a speech-to-speech model that cannot be told to say a text."""
        return self._model_says or bool(self._voice.stages) or not self.relays

    def say(self, text: str, turn: Turn | None = None, *, interruptible: bool = True) -> Reply:
        """Say `text` without asking the agent."""
        stages = None if self._model_says else self._voice
        reply = self._new(stages, TextDelta(text), turn, interruptible)
        self._begin(reply)
        if stages is None:
            self._context.emit(ReplyWanted(reply.number, say=text))
        return reply

    def fall_back(self, turn: Turn, failed: Reply | None = None) -> None:
        """Say the fallback instead of an answer, or after what was heard of one that failed."""
        reply = self.say(self._options.fallback, turn)
        reply.fallback = True
        if failed is not None:
            reply.before, reply.tools = failed.heard_text(), failed.tools

    def relay(self, turn: Turn, typed: str = "") -> None:
        """Speak what comes by the ears (speech to speech) as the answer to a turn, spoken or typed."""
        reply = self._new(None, TextDelta(""), turn)
        self._begin(reply)
        self._context.emit(ReplyWanted(reply.number, text=typed))

    def stop(self, reply: Reply) -> float:
        """Stop sending and clear the line, then stop the mouth, waiting for nothing; how much was played, in ms."""
        played_ms = reply.cut()
        self._timers.cancel("progress")
        if reply is self.reply:
            self._filler.stop()
            self.reply = None
        for task in reply.tasks:
            self.reaper.take(task)
        self._tell_ended(reply, interrupted=True)
        if self.reaper.full:
            self._on_stuck_full()
        return played_ms

    # --- a line that is lost and comes back --------------------------------------------------------------------------

    def hold(self) -> None:
        """The line is lost: send nothing more. Replies are made all the same, as far as they may be held."""
        self._held = True
        if self.reply is not None:
            self.reply.playout.hold()

    def line_back(self) -> None:
        """The line is back and may be sent more ahead: the reply under way goes on; one not begun waits for `release`."""
        self._lead_ms = self._options.resumed_lead_ms
        if self.reply is not None:
            self.reply.playout.lead(self._lead_ms)
            if self.reply.playout.started:
                self.reply.playout.release()

    def rewind(self) -> None:
        """What was sent and not played is lost with the line: send it again."""
        if self.reply is not None:
            self.reply.playout.rewind()

    def release(self) -> None:
        """Speak as ever."""
        self._held = False
        if self.reply is not None:
            self.reply.playout.release()

    # --- a reply's life ----------------------------------------------------------------------------------------------

    def _new(self, stages: Chain | None, first: Frame, turn: Turn | None, interruptible: bool = True) -> Reply:
        self._count += 1
        playout = Playout(
            self._line,
            self._context.clock,
            send_lead_ms=self._lead_ms,
            limit_ms=self._options.max_reply_audio_ms,
            on_first_sent=lambda: self._first_sent(reply),
        )
        barge_in = None
        if interruptible and self._barge_in.enabled:
            barge_in = BargeIn(self._barge_in, self._loud, words=self._reads, patience_ms=self._options.final_timeout_ms)
        reply = Reply(
            self._count, stages, first, turn=turn, playout=playout, barge_in=barge_in, on_frame=self._reply_frame
        )
        reply.interruptible = interruptible
        if self._held:
            playout.hold()
        self.reply = reply
        return reply

    def _begin(self, reply: Reply) -> None:
        self._await_progress(reply)
        reply.tasks.append(self._context.spawn(self._make(reply), f"reply {reply.number}"))
        reply.tasks.append(self._context.spawn(self._play(reply), f"playout {reply.number}"))

    async def _make(self, reply: Reply) -> None:
        if len(self.reaper):
            await self.reaper.settle()
        await reply.make(self._context)

    async def _play(self, reply: Reply) -> None:
        while True:
            try:
                await reply.playout.run()
            except LineLost as error:
                reply.playout.hold()  # the rest is for the line that comes back
                self._on_line_failed(error)
                continue
            except Exception as error:
                self._on_line_failed(error)
            else:
                if reply is self.reply:
                    self._over(reply)
            return

    def _first_sent(self, reply: Reply) -> None:
        if reply.turn is not None and reply.turn.sent_ms is None:
            reply.turn.sent_ms = self._now_ms()
        self._on_sent(reply)
        self._context.emit(ReplyStarted(reply.number))

    def _over(self, reply: Reply) -> None:
        """All of it was played, or there was nothing to play."""
        self._timers.cancel("progress")
        self._filler.stop()
        if not reply.cancelled:
            self._tell_ended(reply, interrupted=False)
        if reply.turn is not None and reply.failed and not reply.fallback:
            if self._on_failed(reply):
                return
            if self._options.fallback and self.can_say:
                self.fall_back(reply.turn, reply)
                return
        self.reply = None
        self._on_over(reply)

    def _tell_ended(self, reply: Reply, *, interrupted: bool) -> None:
        index = reply.turn.index if reply.turn else -1
        self._tell(
            "reply_ended", index, reply=reply.number, heard_text=reply.heard_text(), interrupted=interrupted
        )

    def _reply_frame(self, reply: Reply, frame: Frame) -> None:
        """A reply's text, first audio, tools and failures: noted in its turn, and told."""
        turn, now_ms = reply.turn, self._now_ms()
        index = turn.index if turn is not None else -1
        if isinstance(frame, TextDelta):
            if turn is not None and turn.words_ms is None:
                turn.words_ms = now_ms
            self._tell("reply_text", index, reply=reply.number, text=frame.text)
        elif isinstance(frame, AudioOut):
            if turn is not None and turn.audio_ms is None:
                turn.audio_ms = now_ms
            self._tell("reply_audio", index, reply=reply.number)
        elif isinstance(frame, EndCall):
            self._on_end_call()
        elif isinstance(frame, Failed):
            self._tell("error", index, stage=frame.stage, message=str(frame.error), error=frame.error)
        elif isinstance(frame, (ToolCalled, ToolReturned)):
            self._tell("tool", index, tool=frame)
        if reply is self.reply:
            self._filler.note(reply, frame)
        if "progress" in self._timers and reply is self.reply:
            self._await_progress(reply)

    # --- replies that get nowhere ------------------------------------------------------------------------------------

    def _await_progress(self, reply: Reply) -> None:
        self._timers.set("progress", self._options.agent_timeout_ms, self._late, reply)

    def _late(self, reply: Reply) -> None:
        """No words, tools or audio for too long: once all is played, give up the agent; a line that plays nothing, at once."""
        if reply is not self.reply:
            return
        if self._context.tool_runs.running:  # for a bounded time
            self._await_progress(reply)
            return
        if reply.playout.held_ms > 0 or reply.playout.finished:
            seen_ms, played_ms = reply.seen
            if reply.playout.paused or reply.playout.played_ms > played_ms or seen_ms < 0:
                reply.seen = self._now_ms(), reply.playout.played_ms
            elif self._now_ms() - seen_ms >= LINE_STALLED_MS:
                self._on_line_failed(LineLost(f"nothing was played for {LINE_STALLED_MS:g} ms"))
                return
            self._await_progress(reply)
            return
        index = reply.turn.index if reply.turn else -1
        waited_ms = self._options.agent_timeout_ms
        error = AgentError(f"the reply came no further for {waited_ms:g} ms; expected words or sound sooner")
        self._tell("error", index, stage="agent", message=str(error), error=error)
        played_ms = self.stop(reply)
        self._context.emit(Interrupted(reply.number, played_ms, reply.heard_text()))
        reply.failed = True
        self._over(reply)

    def _stuck(self, name: str) -> None:
        self._context.counters["stuck"] += 1
        names = ", ".join(self._context.tasks.cancelling()) or name
        self._tell("warning", -1, message=f"{names} did not stop within {self._options.cancel_grace_ms:g} ms")

    # --- replies that come by the ears (speech to speech) ------------------------------------------------------------

    def asked(self, frame: ReplyWanted) -> None:
        """The model is asked for a reply: what it gives from now on is that reply's."""
        if self.reply is not None and self.reply.number == frame.reply:
            self.reply.asked = True

    def relayed(self, frame: Any) -> None:
        """One frame of such a reply; what belongs to none any more is dropped and counted."""
        reply = self.reply
        if isinstance(frame, ReplyEnded) and frame.reply:
            return  # the session's own word, on its way through the ears
        if reply is None or reply.made_here or not reply.asked:
            self._context.counters["stale_frames_dropped"] += 1
        elif not reply.relay(frame):
            self._no_room(reply, frame)

    def _no_room(self, reply: Reply, frame: AudioOut) -> None:
        first = not self._context.counters["reply_audio_dropped_ms"]
        self._context.counters["reply_audio_dropped_ms"] += round(len(frame.pcm) * 500.0 / frame.sample_rate_hz)
        if first:
            error = ProtocolError("a reply has more audio than can be kept; expected it to end sooner", kind="s2s")
            self._reply_frame(reply, Failed("s2s", error))

    def deafened(self) -> None:
        """The ears begin anew: no more will come by them of the reply under way."""
        if self.reply is not None and not self.reply.made_here:
            self.reply.relay(ReplyEnded(0, "", False))


def _tells_words(chain: Chain, options: SessionOptions) -> bool:
    """True when words may be had before an interruption is decided, or must be."""
    stage = chain.stage("stt")
    if stage is None:
        return False
    can = getattr(stage.engine, "capabilities", None)
    return options.barge_in.min_words > 0 or getattr(can, "interim", False) or getattr(can, "quick", False)
