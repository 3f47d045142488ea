"""One session's conversation with a speech-to-speech model, over as many connections as it takes.

What the model says to a turn waits until the session has asked for it (`ReplyWanted`): only the session knows whether speech
was a turn or a word into a reply. When a connection breaks the next one is given the history and, of the turn under way, what
nobody knows yet: its words, or else its sound.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress

import attrs

from .._streams import Channel
from ..clock import Timers
from ..engine import Context
from ..errors import ProviderError, ProviderTimeoutError
from ..frames import (
    AudioIn,
    AudioOut,
    EndTurn,
    Failed,
    Frame,
    Interrupted,
    ReplyEnded,
    ReplyWanted,
    SpeechEnded,
    SpeechStarted,
    TextDelta,
    ToolCalled,
    ToolReturned,
    Transcript,
    TurnEnded,
)
from .caller_audio import CallerAudio, audio_ms
from .contract import S2S, S2SSession
from .failover import Dialer, Link
from .recall import Recall
from .tool_use import ToolUse

__all__ = ["Talk"]

WAITING_AUDIO_MS = 5_000.0
QUIET_MS = 1_000.0  # a VAD tells of speech within that
MOST_HELD = 2_000  # frames of a reply that nobody has asked for yet
LATER_MS = 1_000.0  # what ends so long after the turn that is over is not that turn
AGAIN_MS = 3_000.0  # after nobody could be reached
OF_A_REPLY = (TextDelta, AudioOut, ToolCalled, ReplyEnded)


class Talk:
    """The conversation. `run` holds it as a task of the session; `put` hands over what the stage sees, and returns at once.

    Args:
        engine: the model.
        context: the session's.
        vad_before: somebody else says when the caller speaks.
    """

    def __init__(self, engine: S2S, context: Context, *, vad_before: bool) -> None:
        self._engine, self._context, self._vad_before = engine, context, vad_before
        self._dialer = Dialer(engine, context)
        self._inbox: Channel[Frame] = Channel(WAITING_AUDIO_MS, audio_ms)
        self._dropped = 0
        self._recall = Recall(context.counters, QUIET_MS if vad_before else WAITING_AUDIO_MS)
        self._timers = Timers(context.clock)
        self._down: asyncio.Event | None = None  # nobody could be reached; set when somebody is needed
        # the reply under way
        self._reply: ReplyWanted | None = None
        self._last = 0  # the number of the reply wanted last
        self._asked = self._sounded = False
        self._made_ms = self._before_ms = 0.0  # of its sound: in all, and over connections before this one
        self._tools = ToolUse(engine.toolbox, context, self.put)
        self._ahead: list[TextDelta] = []  # text whose sound has not begun
        self._held: list[Frame] = []
        # the connection
        self._link: Link | None = None
        self._audio = CallerAudio()
        self._owed = 0  # turns whose words are still to be told
        self._rehears_ms = 0.0  # so long is the turn that the model hears again; the session knows it to be over
        self._speaking = False  # as the model hears it
        self._source = ""
        self._by_others = False  # the turn that is over was ended by a button, a limit or a VAD

    # --- from the stage ----------------------------------------------------------------------------------------------

    def put(self, frame: Frame) -> None:
        """Take one frame of the ears."""
        if isinstance(frame, AudioIn):
            self._keep(frame)
        elif isinstance(frame, (SpeechStarted, SpeechEnded)):
            if self._vad_before:
                self._recall.speech(isinstance(frame, SpeechStarted))
                if self._down is not None and isinstance(frame, SpeechEnded):
                    self._end_turn_unheard("vad", frame.speech_end_ms)
        elif isinstance(frame, (Interrupted, ReplyEnded)):
            self._reply_over(frame)
        elif isinstance(frame, EndTurn):
            if self._down is not None:
                self._end_turn_unheard(frame.source, self._audio.line_ms)
            else:
                self._inbox.put_over(frame)  # after the audio before it
        else:
            if isinstance(frame, ToolReturned):
                self._tools.came(frame)
            if isinstance(frame, ReplyWanted):
                self._reply, self._last, self._asked, self._sounded = frame, frame.reply, False, False
                self._made_ms = self._before_ms = 0.0
                if self._down is not None:
                    self._down.set()
            self._inbox.put_urgent(frame)

    def _keep(self, frame: AudioIn) -> None:
        if self._down is not None:
            self._recall.push(frame)
            self._audio.passed(frame)
            return
        self._inbox.put_dropping(frame)
        if self._inbox.dropped > self._dropped:
            self._context.counters["s2s_audio_dropped"] += self._inbox.dropped - self._dropped
            self._dropped = self._inbox.dropped

    def _reply_over(self, frame: Interrupted | ReplyEnded) -> None:
        """The session is done with a reply: cut, or played to its end."""
        if not frame.reply or frame.reply != self._last:
            return  # another voice's, or the model's own word on its way
        unfinished, self._reply = self._reply is not None, None
        self._timers.cancel()
        self._ahead.clear()
        if isinstance(frame, ReplyEnded) and unfinished:  # the session has waited long enough
            frame = Interrupted(frame.reply, math.inf, frame.heard_text)
        if isinstance(frame, Interrupted):
            self._tools.leave()
            self._inbox.put_urgent(attrs.evolve(frame, played_ms=max(0.0, frame.played_ms - self._before_ms)))

    def _end_turn_unheard(self, source: str, end_ms: float) -> None:
        """The model cannot say that a turn is over; who is reached later will hear it."""
        self._recall.turn_over()
        self._by_others = True
        self._owed += 1
        self._context.emit(TurnEnded(self._audio.line_ms, source, speech_end_ms=end_ms))

    # --- connections -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Talk until cancelled."""
        while True:
            try:
                link = await self._dialer.dial()
            except ProviderError as error:
                await self._do_without(error)
                continue
            self._down = None
            self._dialer.lost(link, await self._hold(link))
            self._broken()

    async def _hold(self, link: Link) -> Exception:
        """Talk over one connection until it breaks; why it did."""
        self._link = link
        self._audio.begin()
        try:
            error = await link.work(self._context, self._hear(link.session), self._feed(link))
        except BaseException:  # the session is over
            await self._let_go(link)
            await link.session.aclose()
            raise
        await self._let_go(link)
        self._context.spawn(link.session.aclose(), f"{link.engine.name} closing")  # one that is dead takes its time
        return error

    async def _let_go(self, link: Link) -> None:
        self._link = None
        self._timers.cancel()
        await link.stop()

    def _await_more(self) -> None:
        """The model owes more of a reply: it has so long."""
        wait_ms = self._dialer.options.first_words_timeout_ms
        self._timers.set("more", wait_ms, self._silent, wait_ms)

    def _silent(self, waited_ms: float) -> None:
        if self._link is not None:
            name = self._link.engine.name
            message = f"s2s {name!r} gave nothing for {waited_ms:g} ms; expected more of its reply sooner"
            self._link.give_up(ProviderTimeoutError(message, provider=name, kind="s2s"))

    def _broken(self) -> None:
        """The connection is gone: what it owed, and who will get it."""
        self._held.clear()
        self._ahead.clear()
        self._before_ms = self._made_ms
        self._close_words(but=int(self._hears_again))
        if self._asked and self._sounded and not self._tools.open:
            self._end_reply(broken=True)  # half an answer is an end: the rest would not fit to it

    async def _do_without(self, error: ProviderError) -> None:
        """Nobody can be reached: whoever waits for an answer waits no longer. Returns when it is time to try again."""
        self._speech(SpeechEnded(self._audio.line_ms, self._audio.line_ms))
        if self._down is None:
            self._context.emit(Failed("s2s", error))
        self._close_words()
        self._end_reply()
        self._recall.told()
        self._down = asyncio.Event()
        for frame in self._inbox.drain():
            if isinstance(frame, (AudioIn, EndTurn)):
                self.put(frame)
        with suppress(TimeoutError):
            async with asyncio.timeout(AGAIN_MS / 1000.0):
                await self._down.wait()

    @property
    def _hears_again(self) -> bool:
        """True when the next connection is to tell the words of a turn that is over, for nobody knows them."""
        return self._recall.untold and self._owed > 0 and not self._tools.used

    def _end_reply(self, broken: bool = False) -> None:
        """Say of the reply under way, if there is one, that no more of it will come; `broken`: not all that was to come."""
        self._timers.cancel()
        if self._reply is not None:
            self._reply = None
            self._tools.leave()
            self._context.emit(ReplyEnded(0, "", broken))

    def _close_words(self, but: int = 0) -> None:
        """Nobody will tell the words that are owed, `but` for so many turns."""
        while self._owed > but:
            self._owed -= 1
            self._context.emit(Transcript("", closes=True))

    # --- to the model ------------------------------------------------------------------------------------------------

    async def _feed(self, link: Link) -> Exception:
        try:
            await self._tell_again(link)
            async for frame in self._inbox:
                await self._pass_on(link.session, frame)
        except Exception as error:
            return error
        return ConnectionError("nothing more is to be said")

    async def _tell_again(self, link: Link) -> None:
        """What a connection made anew has to know beyond the history."""
        model, reply, asked = link.session, self._reply, self._asked
        self._tools.connected(link.history)
        self._close_words(but=int(self._hears_again))
        if not self._owed:
            self._recall.told()
        over, since = self._recall.kept()
        self._rehears_ms = sum(map(audio_ms, over))
        for frame in over:
            await self._send(model, frame)
        if over and self._by_others:
            await model.end_turn()
        for frame in since:
            await self._send(model, frame)
        known = reply is not None and link.was_told(reply.text)
        if reply is None or reply is not self._reply or not (asked or known) or self._rehears_ms:
            return
        self._asked = True
        self._await_more()
        if reply.say:
            await model.say(reply.say)
        elif not self._tools.open:
            await model.answer()

    async def _pass_on(self, model: S2SSession, frame: Frame) -> None:
        if isinstance(frame, AudioIn):
            self._recall.push(frame)
            await self._send(model, frame)
        elif isinstance(frame, ReplyWanted):
            await self._ask(model, frame)
        elif isinstance(frame, ToolReturned):
            if self._tools.goes(frame):
                if self._asked and self._reply is not None:
                    self._await_more()
                await model.send_tool_result(frame)
        elif isinstance(frame, Interrupted):
            await model.interrupt(frame.played_ms)
            self._held.clear()
        elif isinstance(frame, EndTurn):
            self._source = frame.source
            await model.end_turn()
            self._speech(SpeechEnded(self._audio.line_ms, self._audio.line_ms))

    async def _send(self, model: S2SSession, frame: AudioIn) -> None:
        if self._link is not None:
            await model.send_audio(self._audio.taken(frame, self._link.engine.capabilities.input_rate_hz))

    async def _ask(self, model: S2SSession, wanted: ReplyWanted) -> None:
        if wanted is not self._reply or self._asked or self._rehears_ms:
            return  # over already, or asked for, or to be asked for once the model has heard the turn
        self._asked = True
        self._await_more()
        if self._link is not None:
            self._link.call.asked()
        held, self._held = self._held, []
        if wanted.say:
            await model.say(wanted.say)
        elif wanted.text:
            await model.send_text(wanted.text)
        else:
            for frame in held:
                self._tell(frame)
            await model.answer()

    # --- from the model ----------------------------------------------------------------------------------------------

    async def _hear(self, model: S2SSession) -> Exception:
        try:
            async for event in model.events():
                self._take(event)
        except Exception as error:
            return error
        return ConnectionError("the model ended the conversation")

    def _take(self, event: Frame) -> None:
        if isinstance(event, OF_A_REPLY):
            if self._reply is not None and self._asked:
                self._tell(event)
            elif self._link is not None and self._link.answers_by_itself and len(self._held) < MOST_HELD:
                self._held.append(event)
            else:
                self._context.counters["stale_frames_dropped"] += 1
        elif isinstance(event, (SpeechStarted, SpeechEnded)):
            self._speech(self._audio.placed(event))
        elif isinstance(event, TurnEnded):
            self._turn_ended(event)
        elif isinstance(event, Transcript):
            self._words(event)
        else:
            self._context.emit(event)

    def _speech(self, event: SpeechStarted | SpeechEnded) -> None:
        """The model hears the caller begin or end; told only where nobody else tells, and not twice."""
        began = isinstance(event, SpeechStarted)
        if self._vad_before or self._rehears_ms or began == self._speaking:
            return
        self._speaking = began
        self._recall.speech(began)
        self._context.emit(event)

    def _turn_ended(self, event: TurnEnded) -> None:
        self._held.clear()
        over_ms, self._rehears_ms = self._rehears_ms, 0.0
        later = self._reply is None and self._recall.goes_on and event.speech_end_ms > over_ms + LATER_MS
        if over_ms and later:
            self._close_words()  # the model took it for none, or for the beginning of this one
        if over_ms and not later:
            if self._reply is not None and not self._sounded:
                self._asked = False
                self._inbox.put_urgent(self._reply)
        else:
            placed = self._audio.placed(event)
            end_ms = placed.speech_end_ms if placed.speech_end_ms >= 0 else self._audio.line_ms
            self._speech(SpeechEnded(self._audio.line_ms, end_ms))
            self._by_others = bool(self._source)
            source, self._source = self._source or event.source, ""
            self._recall.turn_over()
            self._context.emit(attrs.evolve(placed, source=source))
            self._owed += 1
        if not self._closes:
            self._recall.told()
            self._close_words()

    def _words(self, event: Transcript) -> None:
        if not self._closes:
            event = attrs.evolve(event, closes=False)
        elif event.closes:
            if not self._owed:
                return
            self._owed -= 1
            if not self._owed:
                self._recall.told()
        self._context.emit(event)

    def _tell(self, frame: Frame) -> None:
        """One frame of the reply that was asked for."""
        self._await_more()
        if isinstance(frame, TextDelta) and not self._sounded:  # another connection would tell it anew
            self._ahead.append(frame)
            return
        for text in self._ahead:
            self._context.emit(text)
        self._ahead.clear()
        if isinstance(frame, ReplyEnded):
            self._end_reply()
        elif isinstance(frame, ToolCalled):
            self._sounded = False  # what it says to the result is still to come
            self._timers.cancel()
            self._tools.use(frame)
        else:
            if isinstance(frame, AudioOut):
                self._made_ms += audio_ms(frame)
                if not self._sounded and self._link is not None:
                    self._link.call.first()
                    self._link.call.succeeded()
                self._sounded = True
            self._context.emit(frame)

    @property
    def _closes(self) -> bool:
        return self._link is not None and self._link.engine.capabilities.closes
