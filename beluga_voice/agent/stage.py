"""An agent as the stage where the mouth begins: a turn goes in, what it says comes out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, cast

from ..apart import Apart
from ..chain import Stage, use_for_functions
from ..engine import Context
from ..errors import AgentError, ProviderError
from ..frames import EndCall, Failed, Frame, TextDelta, ToolCalled, ToolReturned, Transcript, TurnEnded, Usage
from .answer import answer, arguments, parts
from .contract import Agent
from .failover import Failover

__all__ = ["as_frame_processor"]

AgentFunction = Callable[..., Any]


def as_frame_processor(agent: Agent | AgentFunction, **options: Any) -> Stage:
    """An agent as the stage where the mouth begins: takes the turn's `TurnEnded`, gives `TextDelta` and what else it says.

    An agent that raises, or gives what is not text, makes a `Failed` frame; the session speaks its fallback.

    Args:
        agent: an async function, an async generator function, an object with such a `__call__`, or an `Agent`.
        options: the options of an `Agent` to change.

    Raises:
        TypeError: the function is not async, or takes the wrong number of arguments.
    """
    guarded: Failover | None = None
    if isinstance(agent, Agent):
        engine: Agent | None = agent.with_options(**options)
        name, function = agent.name, cast(Agent, engine).reply
        if isinstance(engine, Failover):
            guarded = engine
        elif cast(Agent, engine).account:
            guarded = Failover(cast(Agent, engine))
    else:
        engine, function = None, agent
        name = getattr(agent, "__name__", type(agent).__name__)
        if options:
            raise TypeError(f"agent {name} is a function and takes no options, got {', '.join(sorted(options))}")
    count = arguments(function, name)

    async def run(frames: AsyncIterator[Frame], context: Context) -> AsyncIterator[Frame]:
        async for frame in frames:
            yield frame
            if type(frame) is not TurnEnded:
                continue
            given = (frame.text, context.history, context.session)
            try:
                if guarded is None:
                    saying = parts(function, given[:count])
                else:
                    saying = answer(await context.handle(guarded), given, context)
                apart = Apart()
                async with aclosing(saying) as said:
                    async for part in said:
                        if isinstance(part, Usage):  # an account, no part of the reply
                            context.emit(part)
                            continue
                        for made in _frames(part, name):
                            yield apart.frame(made)
            except Exception as error:
                if not isinstance(error, (AgentError, ProviderError)):
                    wrapped = AgentError(f"agent {name} raised {type(error).__name__}: {error}")
                    wrapped.__cause__ = error
                    error = wrapped
                yield Failed(name, error)

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


use_for_functions(as_frame_processor)
