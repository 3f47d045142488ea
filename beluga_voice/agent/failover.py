"""An agent made of agents: the first answers while it can, then the next.

>>> async def at_least(text, history):
...     return "I cannot look that up now."
>>> class Sick(Agent):
...     async def reply(self, text, history, session):
...         raise ConnectionError("no network")
>>> async def main():
...     return [part async for part in Failover(Sick(), at_least).reply("hello", (), None)]
>>> asyncio.run(main())
['I cannot look that up now.']
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from ..engine import Context
from ..ranked import Ranked
from ..resilience import ResilienceOptions
from .answer import answer, arguments
from .contract import Agent, AgentCapabilities

__all__ = ["Failover"]


class Failover(Ranked, Agent):
    """Agents in order of preference, used as one.

    When one fails before it has said anything or called a tool, or gives no words for `first_words_timeout_ms`, the next is
    asked the same. `agents` may be functions, too. What else it takes and has: see `Ranked`.
    """

    def __init__(self, *agents: Agent | Callable[..., Any], options: ResilienceOptions | None = None) -> None:
        engines = [agent if isinstance(agent, Agent) or not callable(agent) else _Function(agent) for agent in agents]
        super().__init__(*engines, options=options)
        tools = any(engine.capabilities.tools for engine in self.engines)
        self.capabilities = AgentCapabilities(tools)  # type: ignore[misc]

    async def reply(self, text: str, history: tuple[Any, ...], session: Any) -> AsyncGenerator[Any, None]:
        """What the first gives that can answer, outside of any session of its own."""
        async with Context(session=session) as context:
            handle = await self.open(context)
            async with aclosing(answer(handle, (text, history, session), context)) as said:
                async for part in said:
                    yield part


class _Function(Agent):
    """A bare function among agents."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.provider = getattr(function, "__name__", type(function).__name__)
        self._function, self._count = function, arguments(function, self.provider)

    def reply(self, text: str, history: tuple[Any, ...], session: Any) -> Any:
        return self._function(*(text, history, session)[: self._count])
