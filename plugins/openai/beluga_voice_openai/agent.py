"""OpenAI's models as agents, and those of every server that speaks as they do.

>>> OpenAIAgent(api_key="sk-...").api, OpenAIAgent(api_key="none", base_url="http://127.0.0.1:8000/v1").api
('responses', 'chat')
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, ClassVar, cast

import attrs

from beluga_voice.agent import Agent, AgentCapabilities
from beluga_voice.frames import Frame, ToolReturned, Usage
from beluga_voice.history import Message
from beluga_voice.options import option
from beluga_voice.remote import base_url_option, key_option, max_concurrent_option
from beluga_voice.tools import ToolCall

from .calls import own_call
from .chat import ChatTalk
from .rehearsal import CHAT, RESPONSE, rehearse
from .responses import ResponsesTalk
from .tooled import Tooled
from .vendor import OPENAI, is_openai

__all__ = ["OpenAIAgent", "OpenAIAgentOptions"]

INSTRUCTIONS = (
    "You are talking with somebody on a voice line. Answer in one to three short sentences of plain words, as people speak: "
    "no lists, no markup, no emoji."
)


@attrs.frozen
class OpenAIAgentOptions:
    """Options of OpenAI's models as agents."""

    model: str = option("gpt-5.4-mini", "which model answers")
    api: str = option(
        "",
        "which of its two interfaces; empty: responses at OpenAI, chat at any other base_url",
        choices=("", "responses", "chat"),
    )
    instructions: str = option(INSTRUCTIONS, "who it is and how it answers")
    tools: tuple[Any, ...] = option((), 'async functions it may call, or where to import them: "myapp:weather"')
    max_tool_rounds: int = option(5, "how often it may call tools before it has to answer", at_least=0, at_most=100)
    max_messages: int = option(200, "how many messages of the conversation it is told, the newest ones", at_least=0)
    temperature: float | None = option(None, "how freely it chooses words; None: the model's own", at_least=0.0, at_most=2.0)
    max_output_tokens: int = option(0, "how long an answer may be, thinking included; 0: as long as it likes", at_least=0)
    extra: dict[str, Any] = option(attrs.Factory(dict), "more fields of the request, as they are")
    api_key: str = key_option(OPENAI.env_var)
    base_url: str = base_url_option(OPENAI.base_url)
    max_concurrent: int = max_concurrent_option()


class OpenAIAgent(Tooled, Agent):
    """A model at OpenAI, or at a server that speaks as it does, as an agent with tools.

    It is told the conversation as it was heard. Its words are passed on as they come; closing the reply ends the request.

    Args:
        options: see `OpenAIAgentOptions`.

    Raises:
        OptionError: an option does not fit, or `tools` holds what is no tool.
        ConfigError: a tool cannot be imported.
        MissingKeyError: there is no key.
    """

    vendor = OPENAI
    Options: ClassVar[type[Any]] = OpenAIAgentOptions
    capabilities = AgentCapabilities(tools=True)

    @property
    def api(self) -> str:
        """The interface it uses: "responses" or "chat"."""
        return str(self.options.api) or ("responses" if is_openai(self.access) else "chat")

    async def prewarm(self) -> None:
        """Make the client, and load what the SDK would load at its first call."""
        await self.client()

        async def answer(client: Any) -> None:
            async for _ in self._talk("one", ()).ask(client, may_call=True):
                pass

        await rehearse(RESPONSE if self.api == "responses" else CHAT, answer)

    async def reply(self, text: str, history: tuple[Message, ...], session: Any) -> AsyncGenerator[str | Frame, None]:
        """Answer `text`: words as they come, tool calls and what they gave, and the tokens used.

        Raises:
            ProviderError: the service failed, perhaps after some words; its subclasses say how.
        """
        talk = self._talk(text, history)
        taken = {call.call_id for message in history for call in message.tool_calls}
        for rounds_left in range(self.options.max_tool_rounds, -1, -1):
            calls: list[ToolCall] = []
            async with aclosing(self._round(talk, rounds_left)) as parts:
                async for part in parts:
                    if isinstance(part, ToolCall):
                        calls.append(own_call(part, taken))
                    else:
                        yield part
            if not calls or not rounds_left:
                return
            results: list[ToolReturned] = []
            async with aclosing(cast(Any, self.toolbox.use(session, calls))) as frames:
                async for frame in frames:
                    yield frame
                    if isinstance(frame, ToolReturned):
                        results.append(frame)
            talk.add_tools(calls, results)

    def _talk(self, text: str, history: tuple[Message, ...]) -> ChatTalk | ResponsesTalk:
        kept = history[-self.options.max_messages :] if self.options.max_messages else ()
        return (ResponsesTalk if self.api == "responses" else ChatTalk)(self.options, self.toolbox.specs, kept, text)

    async def _round(self, talk: ChatTalk | ResponsesTalk, rounds_left: int) -> AsyncGenerator[str | ToolCall | Usage, None]:
        """One request: its words, its tool calls, its tokens."""
        try:
            client = await self.client()
            async with aclosing(talk.ask(client, may_call=rounds_left > 0)) as parts:
                async for part in parts:
                    yield part
            talk.check()
        except Exception as error:
            raise self.failed(error, "answering") from None
        if talk.used:
            yield Usage("agent", self.name, self.options.model, talk.used)
