"""One conversation of the loopback realtime model: the events a client may send, and what the service does about them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from .._streams import Tasks
from ..clock import Clock
from ..frames import ToolCalled
from ._openai_models import Refusal, check_call
from ._tone_ears import ToneEars
from .loopback import Socket
from .tone_speech import say

if TYPE_CHECKING:
    from .openai_realtime_server import OpenAIRealtimeServer

__all__ = ["Answer", "Conversation", "Truncation"]

RATE_HZ = 24_000
PIECE_BYTES = 4_800  # 100 ms
ODD_BYTES = 333
SHORTEST_COMMIT_MS = 100.0
CANCEL_MS = 30.0
LONGEST_ID = 32
VOICES = {"alloy", "ash", "ballad", "coral", "echo", "sage", "shimmer", "verse", "marin", "cedar"}
SESSION_FIELDS = {
    *("type", "model", "instructions", "output_modalities", "audio", "tools", "tool_choice", "max_output_tokens"),
    *("tracing", "truncation", "prompt", "include", "parallel_tool_calls", "reasoning"),
}
INPUT_FIELDS = {"format", "transcription", "turn_detection", "noise_reduction"}
OUTPUT_FIELDS = {"format", "voice", "speed"}
DETECTOR_FIELDS = {
    "server_vad": {"threshold", "prefix_padding_ms", "silence_duration_ms", "idle_timeout_ms"},
    "semantic_vad": {"eagerness"},
}
RESPONSE_FIELDS = {
    *("instructions", "tools", "tool_choice", "conversation", "input", "metadata", "max_output_tokens"),
    *("output_modalities", "audio"),
}

Answer = Callable[[str], "Sequence[str | ToolCalled]"]


@attrs.frozen
class Truncation:
    """A client had an item cut off after `audio_end_ms` of `length_ms`."""

    item_id: str
    audio_end_ms: float
    length_ms: float


class _Refused(Exception):
    def __init__(self, message: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.code = code


class Conversation:
    """One socket's.

    Attributes:
        items: of the conversation, in order, each with its `id`; those of the caller's speech have its `text` too.
        session: as it was configured; None before.
        heard: what the caller said.
        truncations: what was cut off.
        errors: the code of every error event that was sent.
        responses: how each response ended: its status.
    """

    def __init__(self, server: OpenAIRealtimeServer, socket: Socket) -> None:
        self.items: list[dict[str, Any]] = []
        self.session: dict[str, Any] | None = None
        self.heard: list[str] = []
        self.truncations: list[Truncation] = []
        self.errors: list[str] = []
        self.responses: list[str] = []
        self._server, self._socket, self._clock = server, socket, Clock()
        self._ears: ToneEars | None = None
        self._tasks = Tasks()
        self._count = 0
        self._responding: asyncio.Task[None] | None = None
        self._lengths_ms: dict[str, float] = {}

    async def tell(self, type_: str, **fields: Any) -> None:
        """Send an event."""
        self._count += 1
        await self._socket.send({"type": type_, "event_id": f"event_{self._count}", **fields})

    async def aclose(self) -> None:
        """The socket is gone."""
        await self._tasks.aclose(1_000.0)

    async def take(self, message: bytes | str) -> None:
        """Do what one event of the client asks for, or refuse it."""
        event: dict[str, Any] = {}
        try:
            event = json.loads(message)
            handler = HANDLERS.get(event.get("type", ""))
            if handler is None:
                raise _Refused(f"Invalid value: {event.get('type')!r}. Supported values are: {', '.join(HANDLERS)}")
            await handler(self, event)
        except (_Refused, ValueError, KeyError, TypeError, AttributeError) as error:
            code = error.code if isinstance(error, _Refused) else "invalid_event"
            self.errors.append(code)
            told = {"type": "invalid_request_error", "code": code, "message": str(error), "param": None}
            await self.tell("error", error={**told, "event_id": event.get("event_id")})

    # --- the session and what is heard -------------------------------------------------------------------------------

    async def _update(self, event: dict[str, Any]) -> None:
        session = event["session"]
        if session.get("type") != "realtime":
            raise _Refused("Missing required parameter: 'session.type'.", "missing_required_parameter")
        _check_fields(session, SESSION_FIELDS, "session")
        audio = session.get("audio", {})
        heard, spoken = audio.get("input", {}), audio.get("output", {})
        _check_fields(heard, INPUT_FIELDS, "session.audio.input")
        _check_fields(spoken, OUTPUT_FIELDS, "session.audio.output")
        for side in (heard, spoken):
            if side.get("format", {"type": "audio/pcm", "rate": RATE_HZ}) != {"type": "audio/pcm", "rate": RATE_HZ}:
                raise _Refused("format: only audio/pcm at 24000 Hz is played here")
        if spoken.get("voice", "marin") not in VOICES:
            raise _Refused(f"Invalid value: {spoken['voice']!r}. Supported values are: {sorted(VOICES)}")
        for one in session.get("tools", []):
            if one.get("type") != "function" or not one.get("name") or not isinstance(one.get("parameters"), dict):
                raise _Refused("tools: expected functions with name and parameters")
        self._detect(heard.get("turn_detection", {"type": "server_vad"}))
        self.session = session
        await self.tell("session.updated", session=session)

    def _detect(self, detector: dict[str, Any] | None) -> None:
        if detector is None:
            self._ears = ToneEars(RATE_HZ, None)
            return
        known = DETECTOR_FIELDS.get(detector.get("type", ""))
        if known is None:
            raise _Refused(f"turn_detection: {detector.get('type')!r} is not one of {sorted(DETECTOR_FIELDS)}")
        _check_fields(detector, {"type", "create_response", "interrupt_response", *known}, "turn_detection")
        if detector.get("create_response", True) or detector.get("interrupt_response", True):
            raise _Refused("only turn detection that neither answers nor interrupts is played here")
        self._ears = ToneEars(RATE_HZ, float(detector.get("silence_duration_ms", 500)))

    def _listening(self) -> ToneEars:
        if self._ears is None:
            raise _Refused("the session is not configured: send session.update first", "session_not_configured")
        return self._ears

    async def _append(self, event: dict[str, Any]) -> None:
        ears = self._listening()
        try:
            pcm = base64.b64decode(event["audio"], validate=True)
        except binascii.Error:
            raise _Refused("Invalid 'audio'. Expected base64-encoded audio bytes.") from None
        if len(pcm) % 2:
            raise _Refused("audio: expected whole samples of 16 bits")
        for heard in ears.feed(pcm):
            item_id = f"item_user_{len(self.heard)}"
            if heard.what == "started":
                await self.tell("input_audio_buffer.speech_started", audio_start_ms=round(heard.at_ms), item_id=item_id)
            else:
                await self.tell("input_audio_buffer.speech_stopped", audio_end_ms=round(heard.at_ms), item_id=item_id)
                await self._committed(heard.text)

    async def _commit(self, event: dict[str, Any]) -> None:
        ears = self._listening()
        if ears.waiting_ms < SHORTEST_COMMIT_MS:
            raise _Refused(f"buffer too small: it has {ears.waiting_ms:.2f} ms", "input_audio_buffer_commit_empty")
        await self._committed(ears.commit().text)

    async def _clear(self, event: dict[str, Any]) -> None:
        self._listening().clear()
        await self.tell("input_audio_buffer.cleared")

    async def _committed(self, text: str) -> None:
        item_id = f"item_user_{len(self.heard)}"
        self.heard.append(text)
        before = self.items[-1]["id"] if self.items else None
        await self.tell("input_audio_buffer.committed", item_id=item_id, previous_item_id=before)
        content = [{"type": "input_audio", "transcript": None}]
        await self._add({"id": item_id, "type": "message", "role": "user", "content": content, "text": text})
        session: dict[str, Any] = self.session or {}
        if session.get("audio", {}).get("input", {}).get("transcription"):
            self._tasks.spawn(self._transcribe(item_id, text), "transcript")

    async def _transcribe(self, item_id: str, text: str) -> None:
        await self._clock.sleep_ms(self._server.transcript_ms)
        if self._server.forgets:
            self._server.forgets -= 1
            return
        about = {"item_id": item_id, "content_index": 0}
        prefix = "conversation.item.input_audio_transcription"
        for word in text.split():
            await self.tell(f"{prefix}.delta", **about, delta=word + " ")
        usage = {"type": "tokens", "input_tokens": 10, "output_tokens": len(text.split()), "total_tokens": 10}
        await self.tell(f"{prefix}.completed", **about, transcript=text, usage=usage)

    # --- the conversation --------------------------------------------------------------------------------------------

    async def _create(self, event: dict[str, Any]) -> None:
        item = {"id": f"item_{len(self.items)}", **event["item"]}
        kind = item.get("type")
        if kind == "message":
            wanted = {"user": {"input_text", "input_audio"}, "assistant": {"output_text"}, "system": {"input_text"}}
            allowed = wanted.get(item.get("role", ""), set())
            if not item["content"] or any(one["type"] not in allowed for one in item["content"]):
                raise _Refused(f"item.content: expected {sorted(allowed)} of a message of role {item.get('role')!r}")
        elif kind == "function_call_output":
            calls = [one for one in self.items if one["type"] == "function_call" and one["call_id"] == item["call_id"]]
            if not calls or not isinstance(item["output"], str):
                raise _Refused(f"No tool call found for function call output with call_id {item['call_id']!r}.")
        elif kind != "function_call" or not all(isinstance(item.get(name), str) for name in ("name", "call_id", "arguments")):
            raise _Refused(f"Invalid item of type {kind!r}")
        else:
            try:
                check_call(item["call_id"], item["name"], LONGEST_ID)
            except Refusal as refusal:
                raise _Refused(str(refusal)) from None
        await self._add(item)

    async def _add(self, item: dict[str, Any]) -> None:
        before = self.items[-1]["id"] if self.items else None
        self.items.append(item)
        for stage in ("added", "done"):
            await self.tell(f"conversation.item.{stage}", item=item, previous_item_id=before)

    async def _delete(self, event: dict[str, Any]) -> None:
        self.items.remove(self._item(event["item_id"]))
        await self.tell("conversation.item.deleted", item_id=event["item_id"])

    async def _truncate(self, event: dict[str, Any]) -> None:
        item = self._item(event["item_id"])
        end_ms, length_ms = event["audio_end_ms"], self._lengths_ms.get(item["id"])
        if length_ms is None or event["content_index"] != 0:
            raise _Refused("Only model output audio messages can be truncated")
        if not isinstance(end_ms, int) or not 0 <= end_ms <= length_ms:
            raise _Refused(f"Audio content of {length_ms:.0f}ms is already shorter than {end_ms}ms")
        self.truncations.append(Truncation(item["id"], end_ms, length_ms))
        await self.tell("conversation.item.truncated", item_id=item["id"], content_index=0, audio_end_ms=end_ms)

    def _item(self, item_id: str) -> dict[str, Any]:
        for item in self.items:
            if item["id"] == item_id:
                return item
        raise _Refused(f"Item with id {item_id!r} not found.", "item_not_found")

    # --- answers -----------------------------------------------------------------------------------------------------

    async def _respond(self, event: dict[str, Any]) -> None:
        if self._responding is not None and not self._responding.done():
            raise _Refused("Conversation already has an active response", "conversation_already_has_active_response")
        if self.session is None:
            raise _Refused("the session is not configured", "session_not_configured")
        wanted = event.get("response") or {}
        _check_fields(wanted, RESPONSE_FIELDS, "response")
        response_id = f"resp_{len(self.responses)}"
        await self.tell("response.created", response={"id": response_id, "status": "in_progress", "output": []})
        self._responding = self._tasks.spawn(self._make(response_id, wanted), "response")

    async def _cancel(self, event: dict[str, Any]) -> None:
        if self._responding is None or self._responding.done():
            raise _Refused("Cancellation failed: no active response found", "response_cancel_not_active")
        self._responding.cancel()
        self._responding = self._tasks.spawn(self._stop(f"resp_{len(self.responses)}"), "cancel")

    async def _stop(self, response_id: str) -> None:
        """It is still active for a moment."""
        await self._clock.sleep_ms(CANCEL_MS)
        await self._done(response_id, "cancelled", {"type": "cancelled", "reason": "client_cancelled"})

    async def _make(self, response_id: str, wanted: dict[str, Any]) -> None:
        await self._clock.sleep_ms(self._server.delay_ms)
        if self._server.fails:
            await self._done(response_id, "failed", {"type": "failed", "error": self._server.fails.pop(0)})
            return
        for step in self._steps(wanted):
            if isinstance(step, ToolCalled):
                await self._call(response_id, step)
            else:
                await self._say(response_id, step)
        self._responding = None
        await self._done(response_id, "completed", None)

    def _steps(self, wanted: dict[str, Any]) -> Sequence[str | ToolCalled]:
        if self._socket.sick is not None and self._socket.sick.kind == "empty":
            return []
        if "instructions" in wanted:  # a good model does as it is told
            return [wanted["instructions"].rpartition("\n\n")[2]]
        last = self.items[-1] if self.items else {}
        texts = [one.get("text") or "" for one in last.get("content", ())]
        steps = self._server.script(last.get("output") or last.get("text") or " ".join(texts))
        if wanted.get("tool_choice") == "none":
            return [step for step in steps if isinstance(step, str)] or ["no"]
        return steps

    async def _call(self, response_id: str, call: ToolCalled) -> None:
        arguments = json.dumps(call.arguments)
        item = {"id": f"item_{len(self.items)}", "type": "function_call", "call_id": call.call_id, "name": call.name}
        about = {"response_id": response_id, "item_id": item["id"], "output_index": 0, "call_id": call.call_id}
        await self.tell("response.output_item.added", response_id=response_id, output_index=0, item=item)
        await self.tell("response.function_call_arguments.delta", **about, delta=arguments)
        await self.tell("response.function_call_arguments.done", **about, name=call.name, arguments=arguments)
        await self._add({**item, "arguments": arguments})

    async def _say(self, response_id: str, text: str) -> None:
        item: dict[str, Any] = {"id": f"item_{len(self.items)}", "type": "message", "role": "assistant", "content": []}
        about = {"response_id": response_id, "item_id": item["id"], "output_index": 0, "content_index": 0}
        await self.tell("response.output_item.added", response_id=response_id, output_index=0, item=item)
        await self._add(item)
        await self.tell("response.content_part.added", **about, part={"type": "audio", "transcript": ""})
        odd = self._socket.sick is not None and self._socket.sick.kind == "odd"
        for at, word in enumerate(text.split()):
            await self.tell("response.output_audio_transcript.delta", **about, delta=f" {word}" if at else word)
            pcm = say(word, RATE_HZ)
            size = ODD_BYTES if odd else PIECE_BYTES
            for piece in (pcm[at : at + size] for at in range(0, len(pcm), size)):
                piece_ms = len(piece) * 500.0 / RATE_HZ
                self._lengths_ms[item["id"]] = self._lengths_ms.get(item["id"], 0.0) + piece_ms
                await self.tell("response.output_audio.delta", **about, delta=base64.b64encode(piece).decode())
                await self._clock.sleep_ms(piece_ms / self._server.speed)
        item["content"] = [{"type": "output_audio", "transcript": text}]
        await self.tell("response.output_audio.done", **about)
        await self.tell("response.output_audio_transcript.done", **about, transcript=text)
        await self.tell("response.output_item.done", response_id=response_id, output_index=0, item=item)

    async def _done(self, response_id: str, status: str, details: dict[str, Any] | None) -> None:
        self.responses.append(status)
        self._responding = None
        usage = {
            "total_tokens": 30,
            "input_tokens": 20,
            "output_tokens": 10,
            "input_token_details": {"text_tokens": 5, "audio_tokens": 15, "cached_tokens": 0},
            "output_token_details": {"text_tokens": 2, "audio_tokens": 8},
        }
        ended: dict[str, Any] = {"id": response_id, "status": status, "status_details": details, "output": []}
        await self.tell("response.done", response={**ended, "usage": usage})
        await self.tell("rate_limits.updated", rate_limits=[])


def _check_fields(given: dict[str, Any], known: set[str], where: str) -> None:
    for name in given:
        if name not in known:
            raise _Refused(f"Unknown parameter: '{where}.{name}'.", "unknown_parameter")


HANDLERS: dict[str, Callable[[Conversation, dict[str, Any]], Any]] = {
    "session.update": Conversation._update,
    "input_audio_buffer.append": Conversation._append,
    "input_audio_buffer.commit": Conversation._commit,
    "input_audio_buffer.clear": Conversation._clear,
    "conversation.item.create": Conversation._create,
    "conversation.item.delete": Conversation._delete,
    "conversation.item.truncate": Conversation._truncate,
    "response.create": Conversation._respond,
    "response.cancel": Conversation._cancel,
}
