"""An agent asked by text: no line, no ears, no voice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from .chain import Chain
from .engine import Context
from .frames import EndCall, Failed, Frame, TextDelta, TurnEnded
from .history import History
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
    """

    def __init__(
        self, chain: Chain, context: Context, history: History, *, timeout_ms: float, on_end_call: Callable[[], None]
    ) -> None:
        self._chain, self._context, self._history = chain, context, history
        self._timeout_ms, self._on_end_call = timeout_ms, on_end_call
        self._parts: list[str] | None = None

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
        self._parts = parts = []

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
        finally:
            self._parts = None
        answer = "".join(parts)
        self._history.add_turn(text, answer)
        return answer
