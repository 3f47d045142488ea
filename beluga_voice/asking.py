"""An agent asked by text: no line, no ears, no voice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from .chain import Chain
from .engine import Context
from .frames import EndCall, Failed, Frame, TextDelta, ToolCalled, ToolReturned, TurnEnded
from .history import History
from .providers import Providers
from .says import Say, SayHandle

__all__ = ["Asking"]


class Asking:
    """Asks the agent of one session, and gathers what it answers and what it says of its own accord meanwhile.

    Args:
        chain: the session's stages, the agent among them.
        context: what the stages share.
        history: gets every question with its answer.
        timeout_ms: how long an answer may take.
        on_end_call: told when the agent wants to hang up.
        providers: told what the agent used.
    """

    def __init__(
        self,
        chain: Chain,
        context: Context,
        history: History,
        *,
        timeout_ms: float,
        on_end_call: Callable[[], None],
        providers: Providers,
    ) -> None:
        self._chain, self._context, self._history = chain, context, history
        self._timeout_ms, self._on_end_call, self._providers = timeout_ms, on_end_call, providers
        self._parts: list[str] | None = None
        self._tools: list[ToolCalled | ToolReturned] = []

    @property
    def under_way(self) -> bool:
        """True while the agent is being asked."""
        return self._parts is not None

    def say(self, text: str) -> SayHandle:
        """Make `text` part of the answer under way."""
        if self._parts is not None:
            self._parts.append(text)
        said = Say(text, True)
        said.settle(True)
        return SayHandle(said, lambda _: None)

    def tool(self, frame: ToolCalled | ToolReturned) -> bool:
        """Keep what a tool tells, if it is of the answer under way."""
        if self._parts is None or not (isinstance(frame, ToolCalled) or any(frame.call_id == it.call_id for it in self._tools)):
            return False
        if not any(frame is told for told in self._tools):
            self._tools.append(frame)
        return True

    async def ask(self, text: str) -> str:
        """What the agent answers to `text`.

        Raises:
            AgentError: the agent raised or gave what is not text.
            TimeoutError: it gave nothing for `timeout_ms`.
        """
        watch = self._context.watch
        return await (self._ask(text) if watch is None else watch.drive(self._ask(text), "ask"))

    async def _ask(self, text: str) -> str:
        agent = next(stage for stage in self._chain.split()[1].stages if stage.replies)
        self._context.history = self._history.messages
        self._parts, self._tools = (parts := []), []

        async def typed() -> AsyncIterator[Frame]:
            yield TurnEnded(0.0, "text", text=text)

        try:
            async with asyncio.timeout(self._timeout_ms / 1000.0):
                async with Chain._of((agent,)).process(typed(), self._context) as frames:
                    async for frame in frames:
                        if isinstance(frame, TextDelta):
                            parts.append(frame.text)
                        elif isinstance(frame, EndCall):
                            self._on_end_call()
                        elif isinstance(frame, Failed):
                            raise frame.error
                        elif isinstance(frame, (ToolCalled, ToolReturned)):
                            self.tool(frame)
        except BaseException:
            if self._tools:  # what they did is done
                self._history.add_turn(text, "", tuple(self._tools))
            raise
        finally:
            self._parts = None
            self._providers.hear_all(self._context.inbox.drain())  # no ears read it
        answer = "".join(parts)
        self._history.add_turn(text, answer, tuple(self._tools))
        return answer
