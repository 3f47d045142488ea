"""What the loopback OpenAI's language models say, and how it words a refusal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from .loopback import Answer

__all__ = [
    "Refusal",
    "Says",
    "Script",
    "audio_usage",
    "check_call",
    "check_calls",
    "check_language",
    "say_back",
    "sse",
    "words",
]


@attrs.frozen
class Says:
    """One answer of a model: words, then tool calls.

    Attributes:
        text: the words, streamed one by one.
        calls: (name, arguments) of each tool call; arguments that are a `str` go out as they are, well-formed or not.
        finish: "stop", "length" (cut short), "content_filter".
        error: an error event instead of the rest, after the words: {"message": ..., "type": ..., "code": ...}.
        ends: False: the stream ends without a word of how.
    """

    text: str = ""
    calls: Sequence[tuple[str, Any]] = ()
    finish: str = "stop"
    error: dict[str, Any] | None = None
    ends: bool = True


Script = Callable[[list[dict[str, Any]]], Says]


def say_back(messages: list[dict[str, Any]]) -> Says:
    """What a model says when nobody has scripted it."""
    return Says(f"I heard {messages[-1]['content']}")


class Refusal(Exception):
    """A request that is refused."""

    def __init__(
        self, status: int, message: str, type_: str = "invalid_request_error", code: str | None = "invalid_value"
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.type, self.code = status, message, type_, code

    @property
    def body(self) -> bytes:
        """As OpenAI writes it."""
        return json.dumps({"error": {"message": self.message, "type": self.type, "param": None, "code": self.code}}).encode()

    @property
    def answer(self) -> Answer:
        """The whole answer."""
        return Answer(self.status, {"content-type": "application/json"}, self.body)


def words(text: str) -> list[str]:
    """The text in pieces that join to it."""
    return [piece + " " for piece in text.split(" ")[:-1]] + text.split(" ")[-1:] if text else []


def sse(event: dict[str, Any], name: str = "") -> bytes:
    """One server-sent event."""
    return (f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(event).encode() + b"\n\n"


def check_call(call_id: Any, name: Any, longest_id: int, waiting: Sequence[str] = ()) -> None:
    """Refuse a call in a conversation whose id or name is none, or whose id one of those `waiting` for a result has."""
    if not isinstance(call_id, str) or not 0 < len(call_id) <= longest_id:
        raise Refusal(400, f"Invalid call_id {call_id!r}: expected a string with maximum length {longest_id}")
    if call_id in waiting:
        raise Refusal(400, f"Duplicate call_id {call_id}: expected each once")
    if not isinstance(name, str) or not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name):
        raise Refusal(400, f"Invalid function name {name!r}. Expected a string that matches the pattern '^[a-zA-Z0-9_-]+$'.")


def check_calls(asked: Sequence[str], answered: Sequence[str]) -> None:
    """Refuse tool calls without results, and results without calls."""
    for call_id in answered:
        if call_id not in asked:
            raise Refusal(400, f"No tool call found for function call output with call_id {call_id}.")
    for call_id in asked:
        if call_id not in answered:
            raise Refusal(400, f"No tool output found for function call {call_id}.")


def check_language(language: Any) -> None:
    """Refuse what is no ISO-639-1 code."""
    if not (isinstance(language, str) and len(language) == 2 and language.isalpha() and language.islower()):
        raise Refusal(400, f"Invalid language {language!r}. Language parameter must be specified in ISO-639-1 format.")


def audio_usage(pcm: bytes, rate_hz: int) -> dict[str, Any]:
    """What hearing `pcm` costs: ten tokens a second."""
    tokens = len(pcm) * 5 // rate_hz
    return {"type": "tokens", "input_tokens": tokens, "output_tokens": 4, "total_tokens": tokens + 4}
