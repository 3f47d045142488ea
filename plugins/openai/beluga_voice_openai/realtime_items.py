"""A conversation as a realtime model is told it: its items."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import attrs

from beluga_voice.frames import ToolReturned
from beluga_voice.tools import NO_RESULT, as_text, paired

from .calls import fit_id

__all__ = ["Told", "items", "result_item"]

LONGEST_ID = 32  # characters of a call_id
MOST_TEXT = 20_000  # characters of one message that a new connection is told


@attrs.frozen
class Told:
    """A history as it is told: the `items`; calls that have been `answered`, and those still `waiting` for a result."""

    items: list[dict[str, Any]]
    answered: frozenset[str]
    waiting: frozenset[str]


def items(history: Iterable[Any]) -> Told:
    """The items of a conversation so far. Only the last message may hold calls that are waited for."""
    made: list[dict[str, Any]] = []
    answered, waiting = set(), set()
    messages = list(history)
    for message in messages:
        for called, returned in paired(message.tool_calls):
            made.append(
                {
                    "type": "function_call",
                    "call_id": fit_id(called.call_id, LONGEST_ID),
                    "name": called.name,
                    "arguments": json.dumps(called.arguments),
                }
            )
            if message is messages[-1] and returned.error == NO_RESULT:
                waiting.add(called.call_id)
            else:
                answered.add(called.call_id)
                made.append(result_item(returned))
        if message.text:
            content = {"type": "input_text" if message.role == "user" else "output_text", "text": message.text[:MOST_TEXT]}
            made.append({"type": "message", "role": message.role, "content": [content]})
    return Told(made, frozenset(answered - waiting), frozenset(waiting))


def _result(returned: ToolReturned) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": fit_id(returned.call_id, LONGEST_ID), "output": as_text(returned)}


def result_item(returned: ToolReturned) -> dict[str, Any]:
    """What a call gave, as an item."""
    call_id = fit_id(returned.call_id, LONGEST_ID)
    return {"type": "function_call_output", "call_id": call_id, "output": as_text(returned)}
