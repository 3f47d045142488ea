"""Agents made with pydantic-ai for beluga-voice: registers the agent "pydantic_ai".

Importing this does not import pydantic-ai; the agent does when it is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beluga_voice.hookspecs import hookimpl

BELUGA_VOICE_API = 1


@hookimpl
def register_agent(register: Callable[..., Any]) -> None:
    """The agent "pydantic_ai"."""
    from .agent import PydanticAgent, PydanticAgentOptions

    summary = "An agent of pydantic-ai: most model vendors, tools, MCP servers"
    register("pydantic_ai", PydanticAgent, summary=summary, options=PydanticAgentOptions)
