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
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any

from ._watch import LoopWatch
from .announcing import Announcer, Listener
from .asking import Asking
from .chain import Chain
from .clock import Clock
from .engine import Context
from .errors import ReconnectError, SessionClosedError, SessionError
from .events import TurnRecord
from .frames import Frame, ToolCalled, ToolReturned, Usage
from .history import Message
from .hybrid import Hybrid
from .line import Line, NoLine
from .pipeline import Pipeline
from .reconnect import Breaker, Connect
from .says import SayHandle
from .settings import SessionOptions
from .snapshot import Snapshot
from .state import FINAL_STATES, Happening, SessionState
from .tool_runs import ToolRuns
from .transport import Transport

__all__ = ["Session"]

log = logging.getLogger("beluga_voice.session")


class Session:
    """One conversation. `run` holds it; everything else may be called meanwhile, from the same loop.

    Args:
        chain: the stages, shared by any number of sessions.
        line: the transport; None for a session that is only asked by text.
        options: limits and greeting; the defaults if left out.
        session_id: a name of its own if left out.
        user_id: who calls, for the agent.
        tenant: on whose account.
        metadata: what else is known of the call, for the agent.
        snapshot: what another process kept of this session: it goes on from there.
        before_hang_up: awaited once the conversation is over and before the line is hung up, for `close_timeout_ms` at most.
        breaker: what guards `reconnect`; shared by sessions that dial the same place.
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
        tenant: str = "",
        metadata: Mapping[str, Any] | None = None,
        snapshot: Snapshot | None = None,
        before_hang_up: Callable[[], Awaitable[object]] | None = None,
        breaker: Breaker | None = None,
        listeners: Iterable[Listener] = (),
        clock: Clock | None = None,
    ) -> None:
        for value, wanted, name in ((chain, Chain, "chain"), (line, Transport, "line"), (options, SessionOptions, "options")):
            if not isinstance(value, wanted) and (value is not None or name == "chain"):
                raise TypeError(f"Session: {name} is {value!r}; expected a {wanted.__name__}")
        self.chain = chain
        self.options = options or SessionOptions()
        self.session_id = session_id or uuid.uuid4().hex
        self.user_id, self.tenant, self.metadata = user_id, tenant, dict(metadata or {})
        self.data: dict[str, Any] = dict(snapshot.data) if snapshot else {}
        self.turns: list[TurnRecord] = []
        self.end_reason = ""
        self._line = Line(line) if line is not None else None
        self._snapshot, self._before_hang_up = snapshot, before_hang_up
        self._clock = clock or Clock()
        self._announcer = Announcer(self.session_id, (*listeners, lambda event: self._pipeline.on_event(event)), self._now_ms)
        self._tell = self._announcer.tell
        self._context = Context(
            session_id=self.session_id,
            clock=self._clock,
            input_rate_hz=line.input_rate_hz if line else 16_000,
            output_rate_hz=line.output_rate_hz if line else 16_000,
            session=self,
            inbox_ms=self.options.inbound_audio_ms,
        )
        self._context.watch = LoopWatch(self.options.loop_warning_ms, self._held_loop)
        self._context.tool_runs.tell = self._tool
        self._opened_ms: float | None = None
        self._ended: asyncio.Future[str] | None = None
        self._last_snapshot: Snapshot | None = None
        self._pipeline = Pipeline(
            chain,
            self._line or Line(NoLine()),
            self._context,
            self.options,
            breaker=breaker or Breaker(clock=self._clock),
            now_ms=self._now_ms,
            tell=self._tell,
            close=self.close,
            on_finished=self._turn_finished,
            snapshot=snapshot,
        )
        self._dialogue = self._pipeline.dialogue
        self._floor, self._replies = self._dialogue.floor, self._dialogue.replies
        self._asking = Asking(
            chain.chains["cascade"] if isinstance(chain, Hybrid) else chain,
            self._context,
            self._dialogue.history,
            timeout_ms=self.options.agent_timeout_ms,
            on_end_call=lambda: self.close("agent_ended"),
            providers=self._dialogue.providers,
        )

    # --- what everybody may ask --------------------------------------------------------------------------------------

    @property
    def state(self) -> SessionState:
        """Where the session is."""
        return self._floor.state

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

    @property
    def usage(self) -> tuple[Usage, ...]:
        """What its calls to providers used so far, for the bill: one sum for each kind, provider and model."""
        return self._dialogue.providers.usage

    @property
    def tool_runs(self) -> ToolRuns:
        """The tool calls under way; the session owns them."""
        return self._context.tool_runs

    @property
    def line(self) -> Transport | None:
        """The transport it speaks over now."""
        return self._line.transport if self._line is not None else None

    @property
    def idle_ms(self) -> float:
        """How long nobody has spoken, typed or pressed a key; 0 while anything is going on."""
        return self._now_ms() - self._floor.active_ms if self._floor.quiet else 0.0

    def snapshot(self) -> Snapshot:
        """What another process needs to go on with this session; once it is over, what it would have needed at the end."""
        if self._last_snapshot is not None:
            return self._last_snapshot
        pending, seq = self._floor.kept()
        return Snapshot(
            self.session_id,
            self.user_id,
            self.tenant,
            self.metadata,
            self.history,
            pending,
            self._floor.turns,
            seq,
            self._line.saved() if self._line is not None else {},
            self.data,
        )

    def settle(self) -> None:
        """Called now and then by whoever keeps snapshots: lets `snapshot` count lasting quiet as heard."""
        self._floor.settle()

    def feed(self, frame: Frame) -> None:
        """Take a frame as if the line had brought it now: `TextIn`, `DTMF`, `StartTurn`, `EndTurn`, `Interrupt`.

        Raises:
            SessionClosedError: the session has ended.
        """
        self._check_live("feed")
        self._context.inbox.put_dropping(frame)

    def say(self, text: str, *, interrupt: bool = False, allow_interruptions: bool = True) -> SayHandle:
        """Say `text` when nobody speaks; with `interrupt`, instead of what is being said.

        Raises:
            SessionClosedError: the session has ended.
            SessionLimitError: `max_says` texts wait already.
        """
        self._check_live("say")
        if self._asking.under_way:
            return self._asking.say(text)
        say = self._replies.say(text, interrupt=interrupt, interruptible=allow_interruptions)
        return SayHandle(say, self._replies.unsay)

    async def end(self, text: str = "") -> None:
        """Close at the next turn boundary, saying `text` first; returns at once.

        Raises:
            SessionClosedError: the session has ended.
        """
        self._check_live("end")
        if self._asking.under_way:
            self._asking.say(text)
            self.close("agent_ended")
        else:
            self._replies.end(text, "agent_ended")

    def drain(self, deadline_ms: float) -> None:
        """The process goes away: tell the caller's side, and close at the next turn boundary; at once if the line is lost."""
        self._tell("goaway", -1, deadline_ms=deadline_ms)
        if self.state is SessionState.RECONNECTING:
            self.close("drain")
        else:
            self._replies.end("", "drain")

    async def reconnect(self, connect: Connect, *, max_attempts: int = 5, base_delay_ms: float = 500.0) -> None:
        """Dial again after the line was lost: at once, then after exponentially longer waits with full jitter, 10 s at most.

        Args:
            connect: an async function that gives the new line, or None when the old one is open again.
            max_attempts: how often it is tried; after that the session ends in state `error`.
            base_delay_ms: the longest wait before the second attempt; it doubles with each.

        Raises:
            ReconnectError: no attempt succeeded, or the breaker is open; the session has ended.
            SessionClosedError: the session ended meanwhile.
        """
        self._check_on_line("reconnect")
        try:
            made = await self._pipeline.connection.dial(connect, max_attempts, base_delay_ms)
        except ReconnectError as error:
            self._tell("error", -1, stage="line", message=str(error), error=error)
            if self.state is SessionState.RECONNECTING:
                self._floor.move(Happening.ATTEMPTS_EXHAUSTED)
            self.close("error")
            raise
        try:
            await self.reattach(made)
        except (SessionClosedError, ValueError):
            self._pipeline.connection.open_window()
            if made is not None:
                await made.aclose()
            raise

    async def reattach(self, line: Transport | None) -> None:
        """Go on over `line` (None: over the same one, which is open again). What the caller has not heard is sent again.

        Raises:
            SessionClosedError: the session has ended.
            ValueError: the rates of `line` are not those of the session.
        """
        self._check_on_line("reattach")
        await self._pipeline.replace_line(line)

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
        return await self._asking.ask(text)

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
                self._context.tasks.spawn(self._context.open_ahead(self.chain.engines), "dial providers")
                await self._ended
            except Exception:
                self.end_reason = self.end_reason or "error"
                raise
            finally:
                await self._finish()
        return self.end_reason

    def _begin(self, line: Line) -> None:
        self._opened_ms = self._clock.now_ms()
        chains = self.chain.chains.values() if isinstance(self.chain, Hybrid) else (self.chain,)
        providers = {stage.kind: stage.name for chain in chains for stage in chain.stages}
        self._tell(
            "opened",
            -1,
            session_id=self.session_id,
            transport=line.transport.provider or type(line.transport).__name__,
            mode="s2s" if self.chain.stage("s2s") else "cascade",
            providers=providers,
            resumed=self._snapshot is not None,
        )
        self._pipeline.begin()

    async def _finish(self) -> None:
        self.end_reason = self.end_reason or "cancelled"
        self._last_snapshot = self.snapshot()  # before what goes on is cut: elsewhere it may go on
        try:
            await self._pipeline.stop()
        finally:  # also when closing is cancelled: the line is hung up and everybody is told
            try:
                await self._say_goodbye()
                await self._pipeline.hang_up()
            finally:
                self._pipeline.disconnected(self.end_reason)
                self._tell("closed", -1, reason=self.end_reason)

    async def _say_goodbye(self) -> None:
        self._tell("closing", -1, reason=self.end_reason)
        if self._before_hang_up is not None:
            try:
                async with asyncio.timeout(self.options.close_timeout_ms / 1000.0):
                    await self._before_hang_up()
            except Exception as error:
                log.warning("session %s: what should be done before hanging up failed: %r", self.session_id, error)

    # --- telling -----------------------------------------------------------------------------------------------------

    def _now_ms(self) -> float:
        return 0.0 if self._opened_ms is None else self._clock.now_ms() - self._opened_ms

    def _turn_finished(self, record: TurnRecord) -> None:
        self.turns.append(record)
        del self.turns[:-1_000]
        self._announcer.turn_finished(record)

    def _tool(self, frame: ToolCalled | ToolReturned) -> None:
        if self._asking.tool(frame):
            self._tell("tool", -1, tool=frame)
        else:
            self._replies.tool(frame)

    def _held_loop(self, name: str, held_ms: float) -> None:
        self._context.counters["loop_held"] += 1
        self._tell(
            "warning", -1, message=f"{name} held the event loop for {held_ms:.0f} ms; move blocking work to asyncio.to_thread"
        )

    def _check_live(self, what: str) -> None:
        if self.state in FINAL_STATES or self.end_reason:
            raise SessionClosedError(f"session {self.session_id} has ended ({self.end_reason}); {what} needs a live one")

    def _check_on_line(self, what: str) -> None:
        self._check_live(what)
        if self._line is None:
            raise SessionError(f"session {self.session_id} has no line; {what} needs one made with a transport")
