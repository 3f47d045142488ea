"""Tool calls as OpenAI's interfaces take them back, whoever has made them and however odd they are.

>>> fit_id("call_1", 32), len(fit_id("x" * 100, 32))
('call_1', 32)
"""

from __future__ import annotations

import hashlib
import json
import uuid

import attrs

from beluga_voice.tools import ToolCall, plain_name

__all__ = ["arguments_text", "fit_id", "own_call"]


def own_call(call: ToolCall, taken: set[str]) -> ToolCall:
    """A call as the model made it, with a name that may be told, and an id that is not `taken`; it is then.

    A server may give no ids, or the same ones in every answer: a result that comes late would go to another call.
    """
    call_id = call.call_id
    if not call_id or call_id in taken:
        call_id = f"call_{uuid.uuid4().hex[:24]}"
    taken.add(call_id)
    return attrs.evolve(call, call_id=call_id, name=plain_name(call.name))


def fit_id(call_id: str, longest: int) -> str:
    """An id of at most `longest` characters: one that another vendor made longer is told by its digest."""
    return call_id if 0 < len(call_id) <= longest else hashlib.sha256(call_id.encode()).hexdigest()[:longest]


def arguments_text(call: ToolCall) -> str:
    """The arguments of a call as a JSON object: what a model wrote wrongly is shown to it as text in one."""
    if not isinstance(call.arguments, str):
        return json.dumps(dict(call.arguments), ensure_ascii=False)
    text = call.arguments or "{}"
    try:
        if isinstance(json.loads(text, parse_constant=_refuse), dict):
            return text
    except (ValueError, RecursionError):
        pass
    return json.dumps({"malformed": text}, ensure_ascii=False)


def _refuse(constant: str) -> None:
    raise ValueError(constant)
