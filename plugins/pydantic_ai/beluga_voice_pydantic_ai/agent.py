"""An agent of pydantic-ai as ours: its words as they come, its tools in the session's hands.

>>> PydanticAgent(model="test").name
'pydantic_ai'
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import attrs

from beluga_voice.agent import Agent, AgentCapabilities
from beluga_voice.frames import Frame
from beluga_voice.history import Message
from beluga_voice.options import build, option

if TYPE_CHECKING:
    from typing import Self

__all__ = ["PydanticAgent", "PydanticAgentOptions"]

log = logging.getLogger("beluga_voice.pydantic_ai")


@attrs.frozen
class PydanticAgentOptions:
    """Options of an agent made with pydantic-ai. `agent` or `model` is needed."""

    agent: Any = option("", 'your pydantic_ai.Agent, or where to import it: "myapp:agent"')
    model: str = option("", 'a model by its name in pydantic-ai, like "openai:gpt-5.4-mini"; with `agent`: instead of its own')
    instructions: str = option("", "who it is and how it answers; with `agent`: beside its own; empty: briefly, in plain words")
    tools: tuple[Any, ...] = option((), 'more functions it may call, or where to import them: "myapp:weather"')
    deps: Any = option("", 'what its tools get as deps: "session", "module:attribute", or a function of the session')
    tool_timeout_ms: float = option(10_000.0, "how long a tool may take that says nothing of it", at_least=1)
    on_interrupt: str = option(
        "finish", "what becomes of a tool call when the reply is cut", choices=("finish", "cancel")
    )
    model_settings: dict[str, Any] = option(attrs.Factory(dict), "temperature, max_tokens, ...: as pydantic-ai names them")
    request_limit: int = option(10, "calls of the model in one reply; 0: no limit", at_least=0)
    tool_calls_limit: int = option(0, "successful tool calls in one reply; 0: no limit", at_least=0)
    total_tokens_limit: int = option(0, "tokens of all calls of one reply; 0: no limit", at_least=0)
    max_messages: int = option(200, "how many messages of the conversation it is told, the newest ones", at_least=0)


class PydanticAgent(Agent):
    """An agent of pydantic-ai. Example: `agent.new("pydantic_ai", agent="myapp:agent", deps="session")`.

    It is told the conversation as it was heard. Its words are passed on as they come, those before a tool call too; closing
    the reply ends the request upstream. Its toolsets (MCP servers) are entered once, with the engine.

    Raises:
        OptionError: an option does not fit; neither `agent` nor `model` is given; the agent's output is not text.
        ConfigError: something named cannot be imported; the model cannot be made.
    """

    capabilities = AgentCapabilities(tools=True)

    def __init__(self, **options: Any) -> None:
        self.options: PydanticAgentOptions = build(PydanticAgentOptions, options, "agent 'pydantic_ai'")
        self._set_up()

    @property
    def name(self) -> str:
        """The provider's name."""
        return self.provider or "pydantic_ai"

    def with_options(self, **changes: Any) -> Self:
        """The same engine with other options. Raises what the class does."""
        other = super().with_options(**changes)
        if other is not self:
            other._set_up()
        return other

    def _set_up(self) -> None:
        from .runs import Runs  # which imports pydantic-ai: half a second, here and not in a call

        self._runs = Runs(self.options, self.name)
        self.account = self._runs.account
        self._holding: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    async def reply(self, text: str, history: tuple[Message, ...], session: Any) -> AsyncGenerator[str | Frame, None]:
        """Answer `text`: words as they come, tool calls and what they gave, and the tokens used.

        Raises:
            ProviderError: the model failed, perhaps after some words; its subclasses say how.
            AgentError: anything else about the run: a limit of its usage, the agent's own code.
        """
        kept = history[-self.options.max_messages :] if self.options.max_messages else ()
        async with aclosing(self._runs.run(text, kept, session)) as parts:
            async for part in parts:
                yield part

    # --- lifetime ----------------------------------------------------------------------------------------------------

    async def prewarm(self) -> None:
        """Enter the agent: its MCP servers are started, once for all sessions.

        Raises:
            BelugaVoiceError: one does not start.
        """
        entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closing = asyncio.Event()
        self._holding = asyncio.create_task(self._hold(entered), name=f"{self.name} toolsets")
        try:
            await entered
        except asyncio.CancelledError:
            self._holding.cancel()  # a server may never start
            raise

    async def _hold(self, entered: asyncio.Future[None]) -> None:
        """Enter and leave in one task: cancel scopes inside want that."""
        try:
            async with self._runs.agent:
                if not entered.done():
                    entered.set_result(None)
                await self._closing.wait()
        except Exception as error:
            if entered.done():
                log.warning("agent %r: its toolsets did not close well: %s", self.name, self._runs.failed(error))
            else:
                entered.set_exception(self._runs.failed(error))

    async def aclose(self) -> None:
        """Leave the agent: its MCP servers are stopped."""
        entered, self._holding = self._holding, None
        self._closing.set()
        if entered is not None:
            await asyncio.wait([entered])
