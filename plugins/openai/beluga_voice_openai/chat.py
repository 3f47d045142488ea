"""The Chat Completions interface: a conversation as its messages, and one streamed answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import attrs

from beluga_voice.errors import InvalidRequestError, ProtocolError
from beluga_voice.frames import ToolReturned
from beluga_voice.history import Message
from beluga_voice.tools import ToolCall, as_text, paired

from .calls import arguments_text

__all__ = ["ChatTalk"]


class ChatTalk:
    """One turn's conversation with a model: `ask`, `check`, and after tool calls `add_tools` and `ask` again.

    `used` holds the tokens of the last `ask`, by unit.
    """

    def __init__(self, options: Any, specs: list[dict[str, Any]], history: Sequence[Message], text: str) -> None:
        self.used: dict[str, float] = {}
        self._options = options
        self._tools = [{"type": "function", "function": spec} for spec in specs]
        self._messages: list[dict[str, Any]] = []
        if options.instructions:
            self._messages.append({"role": "system", "content": options.instructions})
        for message in history:
            pairs = paired(message.tool_calls)
            if pairs:
                calls = [ToolCall(called.call_id, called.name, called.arguments) for called, _ in pairs]
                self._add_calls("", calls, [returned for _, returned in pairs])
            if message.text:
                self._messages.append({"role": message.role, "content": message.text})
        if text:
            self._messages.append({"role": "user", "content": text})
        self._said, self._called, self._ended = "", False, ""
        self._may_call = True

    async def ask(self, client: Any, *, may_call: bool) -> AsyncGenerator[str | ToolCall, None]:
        """One request: the words of its answer as they come, then the tool calls."""
        self._may_call = may_call
        self.used, self._said, self._called, self._ended = {}, "", False, ""
        calls: list[_Call] = []
        async with await client.chat.completions.create(**self._request(may_call)) as stream:
            async for chunk in stream:
                if chunk.usage is not None:
                    self.used = _tokens(chunk.usage)
                if not chunk.choices:
                    continue
                choice = chunk.choices[0]
                self._ended = choice.finish_reason or self._ended
                if choice.delta is None:
                    continue
                words = choice.delta.content or getattr(choice.delta, "refusal", None)
                if words:
                    self._said += words
                    yield words
                for piece in choice.delta.tool_calls or ():
                    _add(calls, piece)
        self._called = bool(calls)
        for call in calls:
            yield ToolCall(call.call_id, call.name, call.arguments)

    def check(self) -> None:
        """Raise if the last answer did not end as one should."""
        if self._called and not self._may_call and not self._said:
            raise ProtocolError("the model calls tools where it may not; expected words. Raise max_tool_rounds, change model")
        if not self._ended:
            raise ProtocolError("the answer stopped without its end; expected a finish_reason. Check base_url, and api")
        if self._ended == "length" and not self._said and not self._called:
            raise InvalidRequestError("the answer ended before its first word; give it more max_output_tokens")

    def add_tools(self, calls: Sequence[ToolCall], results: Sequence[ToolReturned]) -> None:
        """Add the calls of the last answer and what they gave."""
        self._add_calls(self._said, calls, results)

    def _add_calls(self, said: str, calls: Sequence[ToolCall], results: Sequence[ToolReturned]) -> None:
        told = [
            {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": arguments_text(call)}}
            for call in calls
        ]
        self._messages.append({"role": "assistant", "content": said or None, "tool_calls": told})
        for result in results:
            self._messages.append({"role": "tool", "tool_call_id": result.call_id, "content": as_text(result)})

    def _request(self, may_call: bool) -> dict[str, Any]:
        options = self._options
        request: dict[str, Any] = {
            "model": options.model,
            "messages": self._messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._tools:
            request |= {"tools": self._tools, "tool_choice": "auto" if may_call else "none"}
        if options.temperature is not None:
            request["temperature"] = options.temperature
        if options.max_output_tokens:
            request["max_completion_tokens"] = options.max_output_tokens
        if options.extra:
            request["extra_body"] = options.extra
        return request


@attrs.define
class _Call:
    """A call as it comes, piece by piece."""

    index: int | None
    call_id: str = ""
    name: str = ""
    arguments: str = ""


def _add(calls: list[_Call], piece: Any) -> None:
    """Add a piece to the call it belongs to. Some servers have all calls at one index: a name with another id begins one."""
    call_id, told = piece.id or "", piece.function
    name, arguments = (told.name or "", told.arguments or "") if told is not None else ("", "")
    call = next((one for one in reversed(calls) if one.index == piece.index), None)
    if call is None or (name and call_id and call.call_id and call_id != call.call_id):
        call = _Call(piece.index)
        calls.append(call)
    call.call_id = call_id or call.call_id
    call.name += name
    call.arguments += arguments


def _tokens(usage: Any) -> dict[str, float]:
    used = {"input_tokens": float(usage.prompt_tokens or 0), "output_tokens": float(usage.completion_tokens or 0)}
    cached = getattr(getattr(usage, "prompt_tokens_details", None), "cached_tokens", None)
    return {**used, "cached_input_tokens": float(cached)} if cached else used
