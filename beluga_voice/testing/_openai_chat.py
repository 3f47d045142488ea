"""The loopback OpenAI's Chat Completions."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from ._openai_models import Refusal, Says, check_call, check_calls, sse, words
from .loopback import Answer, Request

if TYPE_CHECKING:
    from .openai_server import OpenAIServer

__all__ = ["FIELDS", "answer"]

FIELDS = {
    *("model", "messages", "stream", "stream_options", "tools", "tool_choice", "parallel_tool_calls", "temperature", "top_p"),
    *("max_completion_tokens", "reasoning_effort", "verbosity", "seed", "stop", "store", "metadata", "user", "service_tier"),
}

LONGEST_ID = 200  # OpenAI's own is 40; this is also what other services are that speak as it does


def answer(server: OpenAIServer, request: Request, body: dict[str, Any]) -> Answer:
    """The streamed answer of the scripted model."""
    check_messages(body["messages"])
    if body.get("stream") is not True:
        raise Refusal(400, "stream: only true is played here")
    for tool in body.get("tools", ()):
        function = tool.get("function", {})
        if tool.get("type") != "function" or function.get("parameters", {}).get("type") != "object" or not function.get("name"):
            raise Refusal(400, "tools: expected functions with a name and parameters of type object")
    if body.get("tool_choice") and not body.get("tools"):
        raise Refusal(400, "tool_choice is only allowed when tools are specified.")
    says = server.model(body["messages"])
    if request.sick is not None and request.sick.kind == "empty":
        says = Says()
    if says.calls and (not body.get("tools") or body.get("tool_choice") == "none"):
        says = Says(says.text or "I may not call.")
    unknown = request.sick is not None and request.sick.kind == "unknown"
    return Answer(200, {"content-type": "text/event-stream; charset=utf-8"}, _events(server, body, says, unknown))


def check_messages(messages: Any) -> None:
    """Refuse what is no conversation."""
    if not isinstance(messages, list) or not messages:
        raise Refusal(400, "messages: expected a list that is not empty")
    asked: list[str] = []
    answered: list[str] = []
    for message in messages:
        role = message.get("role")
        if role not in ("system", "developer", "user", "assistant", "tool"):
            raise Refusal(400, f"messages: {role!r} is not a role")
        if role == "tool":
            answered.append(message.get("tool_call_id"))
        elif asked != answered:
            check_calls(asked, answered)
        calls = message.get("tool_calls")
        if (role != "assistant" and calls) or calls == []:
            raise Refusal(400, "messages: tool_calls is an assistant's, and not empty")
        for call in calls or ():
            check_call(call["id"], call["function"]["name"], LONGEST_ID, asked[len(answered) :])
            asked.append(call["id"])
            if not isinstance(call["function"]["arguments"], str):
                raise Refusal(400, "messages: arguments: expected a string")
        if not isinstance(message.get("content"), str) and not (calls and message.get("content") is None):
            raise Refusal(400, f"messages: content: expected a string instead of {message.get('content')!r}")
    check_calls(asked, answered)


async def _events(server: OpenAIServer, body: dict[str, Any], says: Says, unknown: bool) -> AsyncIterator[bytes]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        return sse({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "usage": None})

    yield chunk({"role": "assistant", "content": ""})
    for word in words(says.text):
        await server.pause()
        if unknown:
            yield b": a comment\n\nevent: news\n" + sse({**head, "object": "news", "choices": [], "usage": None})
        yield chunk({"content": word})
    if says.error is not None:
        yield sse({"error": says.error})
        return
    for index, (name, arguments) in enumerate(says.calls):
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        call_id = f"call_{len(body['messages'])}_{index}"
        called = {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
        yield chunk({"tool_calls": [called]})
        for at in range(0, len(text), 7):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": text[at : at + 7]}}]})
    if not says.ends:
        return
    yield chunk({}, "tool_calls" if says.calls else says.finish)
    if body.get("stream_options", {}).get("include_usage"):
        used = {"prompt_tokens": 10 * len(body["messages"]), "completion_tokens": len(words(says.text))}
        details = {"prompt_tokens_details": {"cached_tokens": 5}}
        yield sse({**head, "choices": [], "usage": {**used, "total_tokens": sum(used.values()), **details}})
    yield b"data: [DONE]\n\n"
