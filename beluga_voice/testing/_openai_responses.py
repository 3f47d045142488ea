"""The loopback OpenAI's Responses."""

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
    *("model", "input", "instructions", "stream", "store", "tools", "tool_choice", "parallel_tool_calls", "temperature"),
    *("max_output_tokens", "reasoning", "text", "metadata", "include", "top_p", "truncation", "service_tier"),
}

LONGEST_ID = 64


def answer(server: OpenAIServer, request: Request, body: dict[str, Any]) -> Answer:
    """The streamed answer of the scripted model."""
    messages = _messages(body)
    if body.get("stream") is not True:
        raise Refusal(400, "stream: only true is played here")
    for tool in body.get("tools", ()):
        if tool.get("type") != "function" or not tool.get("name") or tool.get("parameters", {}).get("type") != "object":
            raise Refusal(400, "tools: expected functions with a name and parameters of type object")
        if tool.get("strict", True) and set(tool["parameters"].get("required", ())) != set(tool["parameters"]["properties"]):
            raise Refusal(400, f"Invalid schema for function {tool['name']!r}: 'required' must include every property")
    says = server.model(messages)
    if request.sick is not None and request.sick.kind == "empty":
        says = Says()
    if says.calls and (not body.get("tools") or body.get("tool_choice") == "none"):
        says = Says(says.text or "I may not call.")
    unknown = request.sick is not None and request.sick.kind == "unknown"
    return Answer(200, {"content-type": "text/event-stream; charset=utf-8"}, _events(server, body, says, unknown))


def _messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation as Chat Completions has it, so that one script serves both."""
    if not isinstance(body["input"], list):
        raise Refusal(400, "input: only a list is played here")
    messages = [{"role": "system", "content": body["instructions"]}] if body.get("instructions") else []
    asked: list[str] = []
    answered: list[str] = []
    for item in body["input"]:
        kind = item.get("type", "message")
        if kind == "function_call":
            check_call(item["call_id"], item["name"], LONGEST_ID, asked[len(answered) :])
            asked.append(item["call_id"])
            call = {"id": item["call_id"], "type": "function"}
            function = {"name": item["name"], "arguments": item["arguments"]}
            messages.append({"role": "assistant", "content": None, "tool_calls": [{**call, "function": function}]})
        elif kind == "function_call_output":
            answered.append(item["call_id"])
            if not isinstance(item.get("output"), str) or item["call_id"] not in asked:
                raise Refusal(400, f"No tool call found for function call output with call_id {item['call_id']}.")
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]})
        elif kind == "message" and item.get("role") in ("user", "assistant", "system", "developer") and item.get("content"):
            messages.append({"role": item["role"], "content": item["content"]})
        else:
            raise Refusal(400, f"input: {item!r} is no item")
    check_calls(asked, answered)
    return messages


async def _events(server: OpenAIServer, body: dict[str, Any], says: Says, unknown: bool) -> AsyncIterator[bytes]:
    number = 0
    response: dict[str, Any] = {
        **{"id": "resp_1", "object": "response", "created_at": 1, "model": body["model"], "status": "in_progress"},
        **{"output": [], "error": None, "incomplete_details": None, "instructions": None, "metadata": {}, "usage": None},
        **{"parallel_tool_calls": True, "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0},
    }

    def event(kind: str, **fields: Any) -> bytes:
        nonlocal number
        number += 1
        return sse({"type": kind, "sequence_number": number, **fields}, kind)

    yield event("response.created", response=response)
    if says.text:
        item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        at = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        yield event("response.output_item.added", output_index=0, item=item)
        yield event("response.content_part.added", **at, part={"type": "output_text", "text": "", "annotations": []})
        for word in words(says.text):
            await server.pause()
            if unknown:
                yield event("response.news_of_2031.delta", **at, delta="unheard")
            yield event("response.output_text.delta", **at, delta=word, logprobs=[])
        if says.error is None and says.ends:
            part = {"type": "output_text", "text": says.text, "annotations": []}
            yield event("response.output_text.done", **at, text=says.text, logprobs=[])
            yield event("response.output_item.done", output_index=0, item={**item, "status": "completed", "content": [part]})
    if says.error is not None:
        if says.error.get("type") == "failed":
            told = {"code": says.error["code"], "message": says.error["message"]}
            yield event("response.failed", response={**response, "status": "failed", "error": told})
        else:
            yield event("error", code=says.error["code"], message=says.error["message"], param=None)
        return
    for index, (name, arguments) in enumerate(says.calls, start=1):
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        item = {"id": f"fc_{index}", "type": "function_call", "call_id": f"call_{len(body['input'])}_{index}", "name": name}
        yield event("response.output_item.added", output_index=index, item={**item, "arguments": "", "status": "in_progress"})
        for start in range(0, len(text), 7):
            at = {"item_id": item["id"], "output_index": index}
            yield event("response.function_call_arguments.delta", **at, delta=text[start : start + 7])
        done = {**item, "arguments": text, "status": "completed"}
        yield event("response.function_call_arguments.done", **at, arguments=text, name=name)
        yield event("response.output_item.done", output_index=index, item=done)
    if not says.ends:
        return
    used = {"input_tokens": 10 * len(body["input"]), "output_tokens": len(words(says.text))}
    details = {"input_tokens_details": {"cached_tokens": 5}, "output_tokens_details": {"reasoning_tokens": 0}}
    ended = {**response, "usage": {**used, "total_tokens": sum(used.values()), **details}}
    if says.finish == "stop":
        yield event("response.completed", response={**ended, "status": "completed"})
    else:
        reason = "max_output_tokens" if says.finish == "length" else says.finish
        yield event("response.incomplete", response={**ended, "status": "incomplete", "incomplete_details": {"reason": reason}})
