"""The loopback OpenAI's Realtime sockets for transcription."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from typing import TYPE_CHECKING, Any

from ._openai_models import Refusal, audio_usage, check_language, words
from .loopback import Socket
from .tone_speech import understand

if TYPE_CHECKING:
    from .openai_server import OpenAIServer

__all__ = ["converse"]

RATE_HZ = 24_000
SHORTEST_BYTES = 4_800  # 100 ms
HEARD_EVERY_BYTES = 9_600  # 200 ms
LIVE_MODELS = {"gpt-live-transcribe", "gpt-realtime-whisper"}
MODELS = {*LIVE_MODELS, "gpt-transcribe", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "whisper-1"}
FIELDS = {"model", "language", "languages", "keywords", "prompt", "delay"}
TRANSCRIPTION = "conversation.item.input_audio_transcription"


async def converse(server: OpenAIServer, socket: Socket) -> None:
    """Transcribe what one client commits, until it leaves."""
    async with asyncio.TaskGroup() as transcribing:
        session = _Session(server, socket, transcribing)
        await session.tell("session.created", session={"type": "transcription", "id": "sess_1", "object": "realtime.session"})
        async for message in socket:
            event: dict[str, Any] = {}
            try:
                event = json.loads(message)
                await session.take(event)
            except Refusal as refusal:
                error = {"type": refusal.type, "code": refusal.code, "message": refusal.message, "param": None}
                await session.tell("error", error={**error, "event_id": event.get("event_id")})


class _Session:
    def __init__(self, server: OpenAIServer, socket: Socket, tasks: asyncio.TaskGroup) -> None:
        self._server, self._socket, self._tasks = server, socket, tasks
        self._model = ""
        self._items = 0
        self._events = 0
        self._pcm = b""
        self._heard: list[str] = []
        self._next_bytes = HEARD_EVERY_BYTES

    async def tell(self, kind: str, **fields: Any) -> None:
        self._events += 1
        await self._socket.send({"type": kind, "event_id": f"event_{self._events}", **fields})

    async def take(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        if kind == "session.update":
            self._configure(event["session"])
            await self.tell("session.updated", session=event["session"])
        elif not self._model:
            raise Refusal(400, "the session has no transcription model yet", code="session_not_configured")
        elif kind == "input_audio_buffer.append":
            await self._append(event["audio"])
        elif kind == "input_audio_buffer.commit":
            await self._commit()
        elif kind == "input_audio_buffer.clear":
            self._pcm, self._heard = b"", []
            await self.tell("input_audio_buffer.cleared")
        else:
            raise Refusal(400, f"Invalid value: {kind!r}.", code="invalid_value")

    def _configure(self, session: dict[str, Any]) -> None:
        heard = session.get("audio", {}).get("input", {})
        asked = heard.get("transcription", {})
        if session.get("type") != "transcription" or heard.get("format") != {"type": "audio/pcm", "rate": RATE_HZ}:
            raise Refusal(400, "session: expected type transcription, and audio.input.format audio/pcm at 24000")
        if asked.get("model") not in MODELS:
            raise Refusal(400, f"The model {asked.get('model')!r} does not exist.", code="model_not_found")
        for name in asked:
            if name not in FIELDS:
                raise Refusal(400, f"Unknown parameter: 'session.audio.input.transcription.{name}'.", code="unknown_parameter")
        check_language(asked.get("language", "en"))
        whisper = asked["model"] == "gpt-realtime-whisper"
        if (whisper and "prompt" in asked) or (not whisper and "delay" in asked):
            raise Refusal(400, "delay is gpt-realtime-whisper's, and prompt the other models'")
        if heard.get("turn_detection", "server_vad") is not None:
            raise Refusal(400, "turn_detection: only null is played here")
        self._model = asked["model"]

    async def _append(self, audio: str) -> None:
        try:
            self._pcm += base64.b64decode(audio, validate=True)
        except (binascii.Error, ValueError):
            raise Refusal(400, "Invalid 'audio'. Expected base64-encoded audio bytes.") from None
        if len(self._pcm) % 2:
            raise Refusal(400, "Invalid 'audio'. Expected whole samples.")
        if self._model in LIVE_MODELS and len(self._pcm) >= self._next_bytes:
            self._next_bytes = len(self._pcm) + HEARD_EVERY_BYTES
            await self._tell_words(f"item_{self._items + 1}", understand(self._pcm, RATE_HZ).split())

    async def _tell_words(self, item_id: str, heard: list[str]) -> None:
        for word in heard[len(self._heard) :]:
            await self.tell(f"{TRANSCRIPTION}.delta", item_id=item_id, content_index=0, delta=word + " ")
        self._heard = heard

    async def _commit(self) -> None:
        if len(self._pcm) < SHORTEST_BYTES:
            raise Refusal(
                400,
                f"Error committing input audio buffer: buffer too small. Expected at least 100ms of audio, but buffer only "
                f"has {len(self._pcm) / 48:.2f}ms of audio.",
                code="input_audio_buffer_commit_empty",
            )
        self._items += 1
        item_id, before = f"item_{self._items}", f"item_{self._items - 1}" if self._items > 1 else None
        pcm, self._pcm, self._heard, self._next_bytes = self._pcm, b"", [], HEARD_EVERY_BYTES
        await self.tell("input_audio_buffer.committed", item_id=item_id, previous_item_id=before)
        content = [{"type": "input_audio", "transcript": None}]
        item = {"id": item_id, "type": "message", "role": "user", "status": "completed", "content": content}
        await self.tell("conversation.item.added", item=item, previous_item_id=before)
        wait_ms = self._server.transcript_ms.pop(0) if self._server.transcript_ms else 0.0
        if wait_ms:
            self._tasks.create_task(self._transcribe(item_id, pcm, wait_ms))
        else:
            await self._transcribe(item_id, pcm, 0.0)

    async def _transcribe(self, item_id: str, pcm: bytes, wait_ms: float) -> None:
        await asyncio.sleep(wait_ms / 1_000.0)
        error, self._server.transcript_error = self._server.transcript_error, None
        if error is not None:
            await self.tell(f"{TRANSCRIPTION}.failed", item_id=item_id, content_index=0, error=error)
            return
        sick = self._socket.sick
        text = "" if sick is not None and sick.kind == "empty" else understand(pcm, RATE_HZ)
        if self._model not in LIVE_MODELS:
            for word in words(text):
                await self.tell(f"{TRANSCRIPTION}.delta", item_id=item_id, content_index=0, delta=word)
        await self.tell(
            f"{TRANSCRIPTION}.completed",
            **{"item_id": item_id, "content_index": 0, "transcript": text, "usage": audio_usage(pcm, RATE_HZ)},
        )
