"""Agents: what answers. Any async function or async generator of `(text, history)` or `(text, history, session)`.

It gives `str`, or a stream of `str`, `ToolCalled`, `ToolReturned`, `Usage` and `EndCall`.

>>> async def reply(text, history):
...     yield "You said "
...     yield text
>>> as_frame_processor(reply).name
'reply'
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from .._registry import Kind, Provider
from ..resilience import ResilienceOptions
from .contract import Agent, AgentCapabilities
from .failover import Failover
from .stage import as_frame_processor

__all__ = [
    "Agent",
    "AgentCapabilities",
    "Failover",
    "as_frame_processor",
    "describe",
    "failover",
    "names",
    "new",
    "register",
]

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


def failover(  # takes the place of its module's name
    *agents: Agent | Callable[..., Any], options: ResilienceOptions | None = None
) -> Failover:
    """One agent made of several, in order of preference, like `failover(new("openai"), new("rules"))`.

    Args:
        agents: one or more; functions too.
        options: how long each is waited for, how often tried, when left alone.

    Raises:
        TypeError: a function is not async, or takes the wrong number of arguments.
    """
    return Failover(*agents, options=options)
