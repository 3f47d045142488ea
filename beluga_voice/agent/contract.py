"""What an agent made by name is: what it can do, and its one method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import attrs

from ..chain import Stage
from ..engine import Engine

__all__ = ["Agent", "AgentCapabilities"]


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
        from .stage import as_frame_processor  # which is made of what this file defines

        return as_frame_processor(self)
