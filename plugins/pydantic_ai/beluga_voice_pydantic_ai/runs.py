"""Runs of a pydantic-ai agent: one for each reply, its events as our frames."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Iterator
from typing import TYPE_CHECKING, Any, cast

from pydantic_ai import Agent as PydanticAIAgent
from pydantic_ai.capabilities import ReinjectSystemPrompt
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import (
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
)
from pydantic_ai.models import infer_model
from pydantic_ai.toolsets import FunctionToolset
from pydantic_ai.usage import RunUsage, UsageLimits

from beluga_voice import imports
from beluga_voice.errors import BelugaVoiceError, ConfigError, MissingKeyError, OptionError, ProviderError
from beluga_voice.frames import Frame, Usage
from beluga_voice.history import Message
from beluga_voice.remote import Access
from beluga_voice.tool_runs import OnInterrupt, ToolRuns
from beluga_voice.tools import Toolbox

from .failures import failed
from .messages import as_model_messages
from .policies import SessionTools, as_pydantic_tool

if TYPE_CHECKING:
    from .agent import PydanticAgentOptions

__all__ = ["Runs"]

INSTRUCTIONS = (
    "You are talking with somebody on a voice line. Answer in one to three short sentences of plain words, as people speak: "
    "no lists, no markup, no emoji."
)
COUNTED = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")


class Runs:
    """What each reply needs, found and checked once.

    Args:
        options: the engine's.
        name: the engine's name.

    Attributes:
        agent: pydantic-ai's.
        account: whose limits and health the model's calls share; empty for a model without an address.

    Raises:
        ConfigError: as the engine does.
    """

    def __init__(self, options: PydanticAgentOptions, name: str) -> None:
        self._options, self._name, self._owner = options, name, f"agent {name!r}"
        self._toolbox = self._tools()
        self._model = self._made_model()
        self.agent = self._made_agent()
        self._deps = options.deps if options.deps == "session" else self._found(options.deps)
        self._instructions = options.instructions or (INSTRUCTIONS if options.agent == "" else None)
        self._used = _Used(self._model or self.agent.model)
        self.account = self._used.account

    # --- what the options say ----------------------------------------------------------------------------------------

    def _found(self, value: Any) -> Any:
        return imports.load(value, []) if isinstance(value, str) and value else value

    def _tools(self) -> Toolbox:
        try:
            return Toolbox(self._options.tools)
        except (TypeError, ValueError) as error:
            raise OptionError(f"{self._owner}: option 'tools': {error}") from None

    def _made_model(self) -> Any:
        if not self._options.model:
            return None
        try:
            model = infer_model(self._options.model)
        except UserError as error:
            text = str(error)
            variable = next((word.strip("`") for word in text.split() if word.strip("`").endswith("_API_KEY")), "")
            if variable:
                raise MissingKeyError(f"{self._owner}, model {self._options.model!r}: {text}", env_var=variable) from None
            raise OptionError(f"{self._owner}: option 'model': {text}") from None
        except ImportError as error:
            raise ConfigError(f"{self._owner}: model {self._options.model!r} needs more: {error}") from None
        client: Any = getattr(model, "client", None)
        if hasattr(client, "max_retries"):
            client.max_retries = 0  # a turn cannot wait; who tries again, and where, is decided around this engine
        return model

    def _made_agent(self) -> PydanticAIAgent[Any, str]:
        if self._options.agent == "":
            if self._model is None:
                raise OptionError(
                    f"{self._owner} has neither the option 'agent' nor 'model'; "
                    'write model = "openai:gpt-5.4-mini", or agent = "myapp:agent" with a pydantic_ai.Agent of yours'
                )
            return PydanticAIAgent(self._model, name=self._name)
        agent = self._found(self._options.agent)
        if not isinstance(agent, PydanticAIAgent):
            raise OptionError(f"{self._owner}: option 'agent' is a {type(agent).__name__}; expected a pydantic_ai.Agent")
        if agent.output_type is not str:
            raise OptionError(
                f"{self._owner}: option 'agent' gives {agent.output_type!r}; expected an agent whose output_type is str, "
                "as it is spoken. Let a tool take what has another type"
            )
        if agent.model is None and self._model is None:
            raise OptionError(f"{self._owner}: option 'agent' has no model; give it one, or the option 'model'")
        return cast("PydanticAIAgent[Any, str]", agent)

    async def _deps_for(self, session: Any) -> Any:
        if isinstance(self._deps, str):
            return session if self._deps == "session" else None
        if not inspect.isroutine(self._deps):
            return self._deps
        made = self._deps(session)
        return await made if inspect.isawaitable(made) else made

    # --- one reply ---------------------------------------------------------------------------------------------------

    async def run(self, text: str, history: tuple[Message, ...], session: Any) -> AsyncGenerator[str | Frame, None]:
        """Answer `text`. Raises what `PydanticAgent.reply` does."""
        options = self._options
        owner = getattr(session, "tool_runs", None)
        runs: ToolRuns = owner or ToolRuns()
        tools = SessionTools(runs, options.tool_timeout_ms, cast(OnInterrupt, options.on_interrupt))
        told = RunUsage()
        said = _Said()
        failure: BelugaVoiceError | None = None
        try:
            async with self.agent.run_stream_events(
                text,
                message_history=as_model_messages(history),
                deps=await self._deps_for(session),
                model=self._model,
                instructions=self._instructions,
                model_settings=cast(Any, options.model_settings or None),
                usage_limits=self._limits(),
                toolsets=self._toolsets(session),
                capabilities=[tools, ReinjectSystemPrompt()],
                infer_name=False,
            ) as events:
                try:
                    async for event in events:
                        if isinstance(event, FunctionToolCallEvent):
                            yield tools.called(event.part)
                            for usage in self._usage(events, told):  # of the request that asked for it
                                yield usage
                        elif isinstance(event, FunctionToolResultEvent):
                            yield tools.returned(event.part)
                        else:
                            for words in said.words(event):
                                yield words
                except Exception as error:
                    failure = self.failed(error)
                    failure.__cause__ = None if isinstance(failure, ProviderError) else error
                for usage in self._usage(events, told):
                    yield usage
        finally:
            if owner is None:
                await runs.aclose()
        if failure is not None:
            raise failure

    def failed(self, error: Exception) -> BelugaVoiceError:
        """The error to raise for one of a run."""
        return failed(error, self._name, self._used.secret)

    def _limits(self) -> UsageLimits:
        options = self._options
        return UsageLimits(
            request_limit=options.request_limit or None,
            tool_calls_limit=options.tool_calls_limit or None,
            total_tokens_limit=options.total_tokens_limit or None,
        )

    def _toolsets(self, session: Any) -> list[Any] | None:
        tools = [as_pydantic_tool(tool, session) for tool in self._toolbox.tools]
        return [FunctionToolset(tools)] if tools else None

    def _usage(self, events: Any, told: RunUsage) -> Iterator[Usage]:
        """What was used since it was told last."""
        try:
            used = events.usage
        except UserError:  # it failed before it began
            return
        amounts = {name: getattr(used, name) - getattr(told, name) for name in COUNTED}
        amounts = {name: float(amount) for name, amount in amounts.items() if amount > 0}
        for name in COUNTED:
            setattr(told, name, getattr(used, name))
        if amounts:
            yield Usage("agent", self._used.system or self._name, self._used.model_name, amounts)


class _Used:
    """What is to be known of a model: its vendor, its own name, its key, and whose limits its calls share."""

    def __init__(self, model: Any) -> None:
        if isinstance(model, str):  # a name that pydantic-ai looks up at the first run
            self.system, _, self.model_name = model.rpartition(":")
        else:
            self.system, self.model_name = getattr(model, "system", ""), getattr(model, "model_name", "")
        self.secret = str(getattr(getattr(model, "client", None), "api_key", None) or "")
        base_url = str(getattr(model, "base_url", None) or "").rstrip("/")
        self.account = f"{self.system}@{Access(self.secret, base_url).fingerprint}" if base_url else ""


class _Said:
    """The words among the events of a run, those of two rounds kept apart."""

    def __init__(self) -> None:
        self._last = " "

    def words(self, event: Any) -> Iterator[str]:
        text = ""
        if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
            text = event.part.content
            if text and not self._last.isspace() and not text[0].isspace():
                text = f" {text}"
        elif isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
            text = event.delta.content_delta
        if text:
            self._last = text[-1]
            yield text
