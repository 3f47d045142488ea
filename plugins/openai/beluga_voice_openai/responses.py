"""The Responses interface: a conversation as its items, and one streamed answer. Nothing is kept at the service."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from beluga_voice.errors import InvalidRequestError, ProtocolError
from beluga_voice.frames import ToolReturned
from beluga_voice.history import Message
from beluga_voice.tools import ToolCall, as_text, paired

from .calls import arguments_text, fit_id
from .vendor import EventError

__all__ = ["ResponsesTalk"]

LONGEST_ID = 64  # characters of a call_id


class ResponsesTalk:
    """One turn's conversation with a model: `ask`, `check`, and after tool calls `add_tools` and `ask` again.

    `used` holds the tokens of the last `ask`, by unit.
    """

    def __init__(self, options: Any, specs: list[dict[str, Any]], history: Sequence[Message], text: str) -> None:
        self.used: dict[str, float] = {}
        self._options = options
        # Strict is this interface's default, and refuses a parameter that may be left out.
        self._tools = [{"type": "function", "strict": False, **spec} for spec in specs]
        self._items: list[dict[str, Any]] = []
        for message in history:
            pairs = paired(message.tool_calls)
            calls = [ToolCall(called.call_id, called.name, called.arguments) for called, _ in pairs]
            self._add_calls(calls, [returned for _, returned in pairs])
            if message.text:
                self._items.append({"role": message.role, "content": message.text})
        if text:
            self._items.append({"role": "user", "content": text})
        self._said, self._called, self._ended, self._why = "", False, "", ""
        self._may_call = True

    async def ask(self, client: Any, *, may_call: bool) -> AsyncGenerator[str | ToolCall, None]:
        """One request: the words of its answer as they come, and its tool calls."""
        self._may_call = may_call
        self.used, self._said, self._called, self._ended, self._why = {}, "", False, "", ""
        async with await client.responses.create(**self._request(may_call)) as stream:
            async for event in stream:
                match event.type:
                    case "response.output_text.delta" | "response.refusal.delta":
                        if event.delta:
                            self._said += event.delta
                            yield event.delta
                    case "response.output_item.done" if event.item.type == "function_call":
                        self._called = True
                        yield ToolCall(event.item.call_id, event.item.name, event.item.arguments)
                    case "response.completed" | "response.incomplete":
                        self._end(event.response)
                    case "response.failed":
                        raise EventError(event.response.error)
                    case "error":
                        raise EventError(event)

    def _end(self, response: Any) -> None:
        self._ended = response.status
        self._why = str(getattr(response.incomplete_details, "reason", None) or "")
        if response.usage is not None:
            self.used = _tokens(response.usage)

    def check(self) -> None:
        """Raise if the last answer did not end as one should."""
        if self._called and not self._may_call and not self._said:
            raise ProtocolError("the model calls tools where it may not; expected words. Raise max_tool_rounds, change model")
        if not self._ended:
            raise ProtocolError("the answer stopped without its end; expected response.completed. Check base_url, and api")
        if self._ended == "incomplete" and not self._said and not self._called:
            raise InvalidRequestError(
                f"the answer ended before its first word ({self._why or 'it does not say why'}); "
                "give it more max_output_tokens, or ask for something else"
            )

    def add_tools(self, calls: Sequence[ToolCall], results: Sequence[ToolReturned]) -> None:
        """Add the words and calls of the last answer, and what the calls gave."""
        if self._said:
            self._items.append({"role": "assistant", "content": self._said})
        self._add_calls(calls, results)

    def _add_calls(self, calls: Sequence[ToolCall], results: Sequence[ToolReturned]) -> None:
        for call in calls:
            told = {"call_id": fit_id(call.call_id, LONGEST_ID), "name": call.name, "arguments": arguments_text(call)}
            self._items.append({"type": "function_call", **told})
        for result in results:
            call_id = fit_id(result.call_id, LONGEST_ID)
            self._items.append({"type": "function_call_output", "call_id": call_id, "output": as_text(result)})

    def _request(self, may_call: bool) -> dict[str, Any]:
        options = self._options
        request: dict[str, Any] = {"model": options.model, "input": self._items, "stream": True, "store": False}
        if options.instructions:
            request["instructions"] = options.instructions
        if self._tools:
            request |= {"tools": self._tools, "tool_choice": "auto" if may_call else "none"}
        if options.temperature is not None:
            request["temperature"] = options.temperature
        if options.max_output_tokens:
            request["max_output_tokens"] = options.max_output_tokens
        if options.extra:
            request["extra_body"] = options.extra
        return request


def _tokens(usage: Any) -> dict[str, float]:
    used = {"input_tokens": float(usage.input_tokens or 0), "output_tokens": float(usage.output_tokens or 0)}
    cached = getattr(getattr(usage, "input_tokens_details", None), "cached_tokens", None)
    return {**used, "cached_input_tokens": float(cached)} if cached else used
