"""Agents: what answers. Any async function or async generator of `(text, history)` or `(text, history, session)`.

It gives `str`, or a stream of `str`, `ToolCalled`, `ToolReturned` and `EndCall`.

>>> async def reply(text, history):
...     yield "You said "
...     yield text
>>> as_frame_processor(reply).name
'reply'
"""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar, cast

import attrs

from ._registry import Kind, Provider
from .chain import Stage, use_for_functions
from .engine import Context, Engine
from .errors import AgentError
from .frames import EndCall, Failed, Frame, TextDelta, ToolCalled, ToolReturned, Transcript, TurnEnded

__all__ = [
    "Agent",
    "AgentCapabilities",
    "as_frame_processor",
    "describe",
    "names",
    "new",
    "register",
]

AgentFunction = Callable[..., Any]


@attrs.frozen
class AgentCapabilities:
    """What an agent can do: `tools` where it calls tools."""

    tools: bool = False


class Agent(Engine, ABC):
    """An agent as an engine: for agents that are made by name, or hold something."""

    kind = "agent"
    capabilities: ClassVar[AgentCapabilities] = AgentCapabilities()

    @abstractmethod
    def reply(self, text: str, history: tuple[Any, ...], session: Any) -> Any:
        """Answer `text`: an async function or async generator, as in the module's docstring.

        Args:
            text: what the caller said in this turn.
            history: the messages before it: `Message(role, text, heard_text, tool_calls)`.
            session: `session_id`, `user_id`, `metadata`, `data`, `say()`, `end()`.
        """

    def as_frame_processor(self) -> Stage:
        """The stage this agent makes in a chain."""
        return as_frame_processor(self)


def as_frame_processor(agent: Agent | AgentFunction, **options: Any) -> Stage:
    """An agent as the stage where the mouth begins: takes the turn's `TurnEnded`, gives `TextDelta` and what else it says.

    An agent that raises, or gives what is not text, makes a `Failed` frame; the session speaks its fallback.

    Args:
        agent: an async function, an async generator function, an object with such a `__call__`, or an `Agent`.
        options: the options of an `Agent` to change.

    Raises:
        TypeError: the function is not async, or takes the wrong number of arguments.
    """
    if isinstance(agent, Agent):
        engine: Agent | None = agent.with_options(**options)
        name, function = agent.name, cast(Agent, engine).reply
    else:
        engine, function = None, agent
        name = getattr(agent, "__name__", type(agent).__name__)
        if options:
            raise TypeError(f"agent {name} is a function and takes no options, got {', '.join(sorted(options))}")
    wants_session = _arguments(function, name) == 3

    async def run(frames: AsyncIterator[Frame], context: Context) -> AsyncIterator[Frame]:
        async for frame in frames:
            yield frame
            if type(frame) is not TurnEnded:
                continue
            given = (frame.text, context.history, context.session) if wants_session else (frame.text, context.history)
            said = function(*given)
            try:
                if inspect.isawaitable(said):
                    said = await said
                if hasattr(said, "__aiter__"):
                    async for part in said:
                        for made in _frames(part, name):
                            yield made
                elif said is not None and said != "":
                    for made in _frames(said, name):
                        yield made
            except Exception as error:
                if not isinstance(error, AgentError):
                    wrapped = AgentError(f"agent {name} raised {type(error).__name__}: {error}")
                    wrapped.__cause__ = error
                    error = wrapped
                yield Failed(name, error)
            finally:
                close = getattr(said, "aclose", None)
                if close is not None:
                    await close()

    needs = frozenset({TurnEnded, Transcript})
    makes = frozenset({TextDelta})
    return Stage(name, run, "agent", "mouth", needs, makes, replies=True, engine=engine)


def _frames(part: Any, name: str) -> tuple[Frame, ...]:
    if isinstance(part, str):
        return (TextDelta(part),)
    if isinstance(part, EndCall):
        return (TextDelta(part.text), part) if part.text else (part,)
    if isinstance(part, (ToolCalled, ToolReturned, TextDelta)):
        return (part,)
    shown = repr(part)
    raise AgentError(
        f"agent {name} gave {type(part).__name__} {shown[:60]}; expected str, ToolCalled, ToolReturned or EndCall. "
        "Return or yield the text to say."
    )


def _arguments(function: AgentFunction, name: str) -> int:
    plain = inspect.isroutine(function) or isinstance(function, functools.partial)
    called = function if plain else getattr(function, "__call__", function)  # noqa: B004
    if not (inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called)):
        raise TypeError(
            f"agent {name} is not async; write `async def {name}(text, history)`, or wrap blocking work in "
            "`await asyncio.to_thread(...)` inside one"
        )
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):
        return 2
    for count in (3, 2):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return count
    raise TypeError(
        f"agent {name}{signature} takes other arguments; expected (text, history) or (text, history, session)"
    )


use_for_functions(as_frame_processor)
_kind = Kind("agent")


def new(name: str, **options: Any) -> Agent:
    """Make the agent of that name, like `new("rules")`."""
    return cast(Agent, _kind.new(name, **options))


def names() -> list[str]:
    """The installed agents."""
    return _kind.names()


def describe(name: str) -> Provider:
    """What is known of an agent: options, distribution, capabilities."""
    return _kind.describe(name)


def register(name: str, factory: Callable[..., Agent], **told: Any) -> None:
    """Register an agent of this program's own."""
    _kind.register(name, factory, **told)
