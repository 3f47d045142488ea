"""A session: one conversation over one line, from open to close.

>>> async def reply(text, history):
...     return f"You said {text}."
>>> async def main():
...     session = Session(Chain(vad.new("energy"), turn.new("silence"), stt_engine, reply, tts.new("tone")), None)
...     return await session.ask("hello")
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any

from ._registry import registry
from ._watch import LoopWatch
from .chain import Chain
from .clock import Clock
from .dialogue import Dialogue
from .engine import Context
from .errors import LineLost, SessionClosedError, SessionError
from .events import SessionEvent, TurnRecord
from .frames import AudioIn, EndCall, Failed, Frame, TextDelta, TurnEnded
from .history import Message
from .says import Say, SayHandle
from .settings import SessionOptions
from .state import Happening, SessionState
from .transport import Transport

__all__ = ["Session"]

Listener = Callable[[SessionEvent], None]

log = logging.getLogger("beluga_voice.session")
DRIFT_MS = 0.02  # how fast the line's clock may run from ours, per frame: 1 ms a second at 20 ms frames
SETTLED_MS = 100.0
FINAL_STATES = (SessionState.DISCONNECTED, SessionState.ERROR)


class Session:
    """One conversation. `run` holds it; everything else may be called meanwhile, from the same loop.

    Args:
        chain: the stages, shared by any number of sessions.
        line: the transport; None for a session that is only asked by text.
        options: limits and greeting; the defaults if left out.
        session_id: a name of its own if left out.
        user_id: who calls, for the agent.
        metadata: what else is known of the call, for the agent.
        listeners: called with every `SessionEvent`; must not block.
        clock: whose time is kept.

    Attributes:
        data: the agent's own notes, kept for the session.
        turns: the record of every finished turn, bounded to the last 1,000.
        counters: what was dropped or late, by name.
        end_reason: why it ended: "bye", "lost", "idle", "agent_ended", "max_session", "error", or what `close` was given.
    """

    def __init__(
        self,
        chain: Chain,
        line: Transport | None,
        options: SessionOptions | None = None,
        *,
        session_id: str = "",
        user_id: str = "",
        metadata: Mapping[str, Any] | None = None,
        listeners: Iterable[Listener] = (),
        clock: Clock | None = None,
    ) -> None:
        for value, wanted, name in ((chain, Chain, "chain"), (line, Transport, "line"), (options, SessionOptions, "options")):
            if not isinstance(value, wanted) and (value is not None or name == "chain"):
                raise TypeError(f"Session: {name} is {value!r}; expected a {wanted.__name__}")
        self.chain = chain
        self.options = options or SessionOptions()
        self.session_id = session_id or uuid.uuid4().hex
        self.user_id, self.metadata = user_id, dict(metadata or {})
        self.data: dict[str, Any] = {}
        self.turns: list[TurnRecord] = []
        self.end_reason = ""
        self._line = line
        self._clock = clock or Clock()
        self._listeners = (*listeners, line.notify) if line else tuple(listeners)
        self._ears = chain.split()[0]
        self._context = Context(
            session_id=self.session_id,
            clock=self._clock,
            input_rate_hz=line.input_rate_hz if line else 16_000,
            output_rate_hz=line.output_rate_hz if line else 16_000,
            session=self,
            inbox_ms=self.options.inbound_audio_ms,
        )
        self._context.watch = LoopWatch(self.options.loop_warning_ms, self._held_loop)
        self._opened_ms: float | None = None
        self._offset_ms = 0.0
        self._ended: asyncio.Future[str] | None = None
        self._asked: list[str] | None = None
        self._heard_ms = 0.0
        self._timers: list[asyncio.TimerHandle] = []
        self._dialogue = Dialogue(
            chain,
            line or _NO_LINE,
            self._context,
            self.options,
            now_ms=self._now_ms,
            offset_ms=lambda: self._offset_ms,
            tell=self._tell,
            on_finished=self._turn_finished,
            end=self.close,
            line_failed=self._line_failed,
        )

    # --- what everybody may ask --------------------------------------------------------------------------------------

    @property
    def state(self) -> SessionState:
        """Where the session is."""
        return self._dialogue.state

    @property
    def history(self) -> tuple[Message, ...]:
        """The conversation so far; of the agent's words only what was heard."""
        return self._dialogue.history.messages

    @property
    def counters(self) -> Counter[str]:
        """What was dropped or late, by name."""
        counted = self._context.counters
        counted["inbound_frames_dropped"] = self._context.inbox.dropped
        return counted

    def say(self, text: str, *, interrupt: bool = False, allow_interruptions: bool = True) -> SayHandle:
        """Say `text` when nobody speaks; with `interrupt`, instead of what is being said.

        Raises:
            SessionClosedError: the session has ended.
            SessionLimitError: `max_says` texts wait already.
        """
        self._check_live("say")
        if self._asked is not None:
            self._asked.append(text)
            said = Say(text, allow_interruptions)
            said.settle(True)
            return SayHandle(said, lambda _: None)
        say = self._dialogue.say(text, interrupt=interrupt, interruptible=allow_interruptions)
        return SayHandle(say, self._dialogue.unsay)

    async def end(self, text: str = "") -> None:
        """Close at the next turn boundary, saying `text` first; returns at once.

        Raises:
            SessionClosedError: the session has ended.
        """
        self._check_live("end")
        if self._asked is not None:
            self._asked.append(text)
            self.close("agent_ended")
        else:
            self._dialogue.end(text, "agent_ended")

    def close(self, reason: str = "closed") -> None:
        """Close now, whatever is being said; `run` returns `reason`. Closing twice does nothing."""
        if not self.end_reason:
            self.end_reason = reason
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(self.end_reason)

    async def ask(self, text: str) -> str:
        """What the agent answers to a typed `text`, without any audio; it enters the history as heard.

        What the agent says by `say` or `end` is part of the answer; after `end`, `end_reason` is "agent_ended".

        Raises:
            SessionError: the session has a line: type over that instead (`TextIn`).
            SessionClosedError: the agent has ended the conversation.
            AgentError: the agent raised or gave what is not text.
            TimeoutError: it gave nothing for `agent_timeout_ms`.
        """
        if self._line is not None:
            raise SessionError(f"session {self.session_id} has a line; expected one made with line=None to be asked by text")
        self._check_live("ask")
        if not isinstance(text, str):
            raise TypeError(f"ask({text!r}): expected the text as a str")
        assert self._context.watch is not None
        return await self._context.watch.drive(self._ask(text), "ask")

    async def _ask(self, text: str) -> str:
        agent = next(stage for stage in self.chain.split()[1].stages if stage.replies)
        self._context.history = self.history
        self._asked = parts = []

        async def typed() -> AsyncIterator[Frame]:
            yield TurnEnded(0.0, "text", text=text)

        try:
            async with asyncio.timeout(self.options.agent_timeout_ms / 1000.0):
                async with Chain._of((agent,)).process(typed(), self._context) as frames:
                    async for frame in frames:
                        if isinstance(frame, TextDelta):
                            parts.append(frame.text)
                        elif isinstance(frame, EndCall):
                            self.close("agent_ended")
                        elif isinstance(frame, Failed):
                            raise frame.error
        finally:
            self._asked = None
        answer = "".join(parts)
        self._dialogue.history.add_turn(text, answer)
        return answer

    # --- its life ----------------------------------------------------------------------------------------------------

    async def run(self) -> str:
        """Hold the conversation until it ends; the reason why.

        Raises:
            SessionClosedError: it has run already.
            ProviderError: an engine cannot be made ready.
        """
        if self._line is None or self._ended is not None:
            raise SessionClosedError(f"session {self.session_id} has no line or has run already; make a new Session")
        self._ended = asyncio.get_running_loop().create_future()
        if self.end_reason:
            self._ended.set_result(self.end_reason)
        async with AsyncExitStack() as engines:
            try:
                for engine in self.chain.engines:
                    await engines.enter_async_context(engine)
                self._begin(self._line)
                await self._ended
            except Exception:
                self.end_reason = self.end_reason or "error"
                raise
            finally:
                await self._finish(self._line)
        return self.end_reason

    def _begin(self, line: Transport) -> None:
        self._opened_ms = self._clock.now_ms()
        self._tell("opened", -1, session_id=self.session_id)
        self._call_hook("session_opened")
        self._context.tasks.spawn(self._read(line), "line")
        self._context.spawn(self._listen(), "ears")
        self._timers = [
            self._clock.call_later_ms(self.options.max_session_ms, self._too_long),
            self._clock.call_later_ms(self.options.idle_timeout_ms, self._check_idle),
        ]
        if line.capabilities.live:
            self._timers.append(self._clock.call_later_ms(self.options.line_gap_ms, self._check_gap))
        self._dialogue.ready()

    async def _finish(self, line: Transport) -> None:
        self.end_reason = self.end_reason or "cancelled"
        for timer in self._timers:
            timer.cancel()
        self._dialogue.stop()
        self._context.inbox.close()
        try:
            await self._stop_work()
        finally:  # also when closing is cancelled: the line is hung up and everybody is told
            try:
                await self._hang_up(line)
            finally:
                self._closed()

    async def _stop_work(self) -> None:
        stuck = await self._context.aclose(self.options.cancel_grace_ms)
        if len(self._dialogue.mouth.reaper) or stuck:
            stuck = await self._dialogue.mouth.reaper.aclose(self.options.close_timeout_ms)
            stuck += await self._context.tasks.aclose(self.options.close_timeout_ms)
        if stuck:
            log.warning("session %s closed with tasks that do not stop: %s", self.session_id, ", ".join(stuck))

    async def _hang_up(self, line: Transport) -> None:
        try:
            async with asyncio.timeout(self.options.close_timeout_ms / 1000.0):
                await line.aclose()
        except TimeoutError:
            log.warning("session %s: its line did not close within %g ms", self.session_id, self.options.close_timeout_ms)

    def _closed(self) -> None:
        if self.state not in FINAL_STATES:
            lost = self.end_reason == "lost"
            if lost:
                self._dialogue.move(Happening.LINE_LOST)
            failed = self.end_reason == "error"
            self._dialogue.move(
                Happening.FAILED if failed else Happening.WINDOW_OVER if lost else Happening.ENDED
            )
        self._tell("closed", -1, reason=self.end_reason)
        self._call_hook("session_closed", reason=self.end_reason)

    async def _read(self, line: Transport) -> None:
        """Take what the line brings, placing audio by a running count of its samples."""
        inbox, live = self._context.inbox, line.capabilities.live
        frames: AsyncIterator[Frame] | None = None
        try:
            frames = line.recv()
            async for frame in frames:
                if type(frame) is AudioIn:
                    frame = self._placed(frame.pcm, frame.sample_rate_hz)
                if live:
                    inbox.put_dropping(frame)
                else:
                    await inbox.put(frame)
            self.close("bye")
        except Exception as error:
            self._line_failed(error)
        finally:
            close = getattr(frames, "aclose", None)
            if close is not None:
                await close()

    def _line_failed(self, error: Exception) -> None:
        if isinstance(error, LineLost):
            self.close("lost")
        else:
            self._tell("error", -1, stage="line", message=str(error), error=error)
            self.close("error")

    def _placed(self, pcm: bytes, rate_hz: int) -> AudioIn:
        """Audio at its place on the line, by the running count; how far the line is behind the clock is noted."""
        frame = AudioIn(pcm, rate_hz, self._heard_ms)
        self._heard_ms += len(pcm) * 500.0 / rate_hz
        late_ms = self._now_ms() - self._heard_ms
        drifted_ms = self._offset_ms + DRIFT_MS
        self._offset_ms = late_ms if late_ms < drifted_ms or self._heard_ms < SETTLED_MS else drifted_ms
        return frame

    async def _listen(self) -> None:
        """Run the ears; if a stage crashes they are rebuilt, once."""
        for last_chance in (False, True):
            try:
                async with self._ears.process(self._context.inbox, self._context) as frames:
                    async for frame in frames:
                        self._dialogue.hear(frame)
                if self._context.inbox.closed:
                    return
                raise RuntimeError("a stage stopped passing frames on; expected it to go on until its input ends")
            except Exception as error:
                log.debug("session %s: the ears failed", self.session_id, exc_info=True)
                self._tell("error", -1, stage="ears", message=f"{type(error).__name__}: {error}", error=error)
                if last_chance:
                    self.close("error")
                else:
                    self._dialogue.deafened()

    # --- limits ------------------------------------------------------------------------------------------------------

    def _too_long(self) -> None:
        self._tell("warning", -1, message=f"after {self.options.max_session_ms:g} ms the session closes at a turn's end")
        self._dialogue.end("", "max_session")

    def _check_idle(self) -> None:
        idle_ms = self._now_ms() - self._dialogue.active_ms
        if idle_ms >= self.options.idle_timeout_ms and self._dialogue.quiet:
            self.close("idle")
            return
        wait_ms = max(self.options.idle_timeout_ms - idle_ms, 1_000.0)
        self._timers[1] = self._clock.call_later_ms(wait_ms, self._check_idle)

    def _check_gap(self) -> None:
        """A live line that brings nothing counts as silence, so that a turn still ends when the caller mutes in mid-word."""
        gap_ms = self._now_ms() - self._offset_ms - self._heard_ms
        if self._heard_ms and gap_ms >= self.options.line_gap_ms:
            rate_hz = self._context.input_rate_hz
            samples = int(gap_ms * rate_hz / 1000)
            frame = AudioIn(bytes(2 * samples), rate_hz, self._heard_ms)
            self._heard_ms = frame.end_ms
            self._context.counters["line_gaps"] += 1
            self._context.inbox.put_dropping(frame)
        self._timers[2] = self._clock.call_later_ms(self.options.line_gap_ms, self._check_gap)

    # --- telling -----------------------------------------------------------------------------------------------------

    def _now_ms(self) -> float:
        return 0.0 if self._opened_ms is None else self._clock.now_ms() - self._opened_ms

    def _tell(self, name: str, turn: int, **data: Any) -> None:
        event = SessionEvent(name, self._now_ms(), turn, data)
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                log.exception("session %s: a listener failed on %s", self.session_id, name)
        if name == "state":
            self._call_hook("state_changed", old=data["old"], new=data["state"])
        elif name == "transcript":
            self._call_hook("transcript", text=data["text"], is_final=data["is_final"])
        elif name == "interrupted":
            self._call_hook("interrupted", heard_text=data["heard_text"])
        elif name == "error" and data["error"] is not None:
            self._call_hook("error", stage=data["stage"], error=data["error"])
        elif name == "warning":
            log.warning("session %s: %s", self.session_id, data["message"])

    def _turn_finished(self, record: TurnRecord) -> None:
        self.turns.append(record)
        del self.turns[:-1_000]
        self._tell("turn_finished", record.index, record=record)
        self._call_hook("turn_finished", turn=record)

    def _call_hook(self, hook: str, **given: Any) -> None:
        try:
            getattr(registry.hook, hook)(session_id=self.session_id, **given)
        except Exception:
            log.exception("session %s: a plugin's %s hook failed", self.session_id, hook)

    def _held_loop(self, name: str, held_ms: float) -> None:
        self._context.counters["loop_held"] += 1
        self._tell(
            "warning", -1, message=f"{name} held the event loop for {held_ms:.0f} ms; move blocking work to asyncio.to_thread"
        )

    def _check_live(self, what: str) -> None:
        if self.state in FINAL_STATES or self.end_reason:
            raise SessionClosedError(f"session {self.session_id} has ended ({self.end_reason}); {what} needs a live one")


class _NoLine(Transport):
    """The line of a session that is only asked by text."""

    def recv(self) -> Any:
        raise SessionClosedError("a session without a line cannot be heard; give it a transport")

    async def send(self, frame: Any) -> None:
        return None

    def clear(self) -> None:
        return None

    @property
    def played_ms(self) -> float:
        return 0.0

    async def aclose(self) -> None:
        return None


_NO_LINE = _NoLine()
