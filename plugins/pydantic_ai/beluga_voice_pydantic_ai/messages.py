"""The conversation so far, as pydantic-ai has it.

>>> said = (Message("user", "Hello"), Message("assistant", "Hi there.", "Hi there."))
>>> [type(message).__name__ for message in as_model_messages(said)]
['ModelRequest', 'ModelResponse']
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from beluga_voice.frames import ToolReturned
from beluga_voice.history import Message
from beluga_voice.tool_runs import CANCELLED
from beluga_voice.tools import NO_RESULT, as_text, paired

__all__ = ["as_model_messages"]


def as_model_messages(history: Iterable[Message]) -> list[ModelMessage]:
    """Our messages as pydantic-ai's; a reply's tool calls, each with what it gave, come before its text."""
    messages: list[ModelMessage] = []
    for message in history:
        if message.role == "user":
            messages.append(ModelRequest(parts=[UserPromptPart(message.text)]))
            continue
        pairs = paired(message.tool_calls)
        if pairs:
            messages.append(
                ModelResponse(parts=[ToolCallPart(called.name, called.arguments, called.call_id) for called, _ in pairs])
            )
            messages.append(
                ModelRequest(
                    parts=[
                        ToolReturnPart(called.name, as_text(returned), called.call_id, outcome=_outcome(returned))
                        for called, returned in pairs
                    ]
                )
            )
        if message.text:
            messages.append(ModelResponse(parts=[TextPart(message.text)]))
    return messages


def _outcome(returned: ToolReturned) -> Literal["success", "failed", "interrupted"]:
    if not returned.error:
        return "success"
    return "interrupted" if returned.error in (CANCELLED, NO_RESULT) else "failed"
