"""ElevenLabs on 127.0.0.1, as documented: voices (requests and the multi-context socket), Scribe (live and batch).

The voice speaks tone speech, Scribe understands it (`tone_speech`). What the service is documented to refuse is refused:

>>> async def main():
...     async with ElevenLabsServer() as server:
...         voice = tts.new("elevenlabs", api_key=server.api_key, base_url=server.url)
...         async with voice:
...             return (await voice.synthesize("hello")).duration_ms

What its documentation does not say, and others have seen (a bad key told in the socket, times of a whole sentence with the
first of its audio, a timed text before the bare one), is switched on by attributes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from email.message import Message
from email.parser import BytesParser
from typing import Any, cast

from ._elevenlabs_shapes import (
    PIECE_MS,
    SPEAKING,
    VOICES,
    check_settings,
    detail,
    expect,
    pieces,
    rate_of,
    refused,
    words_in,
)
from ._elevenlabs_sockets import ScribeSocket, VoicesSocket
from .loopback import Answer, LoopbackServer, Request, Socket
from .tone_speech import say, understand

__all__ = ["ElevenLabsServer"]

SPEECH_BODY = {"text", "model_id", "voice_settings", "language_code", "previous_text", "next_text"}
FORM = {"model_id", "file", "file_format", "language_code", "tag_audio_events", "timestamps_granularity", "keyterms"}
STRAY = {"webhook_metadata", "entity_detection", "entity_redaction"}  # the SDK sends these as well
REFUSALS = {401: "invalid_api_key", 402: "quota_exceeded", 429: "too_many_concurrent_requests"}


class ElevenLabsServer(LoopbackServer):
    """ElevenLabs' server; see the module.

    Attributes:
        pace: how much faster than it is spoken speech is made.
        first_ms: how long the first sound of a text takes.
        alignment: when letters are timed: "chunk" (with their audio), "sentence" (all with the first of it), "" (never).
        error: a code that sockets answer the first message with, before they close.
        key_in_socket: a bad key is told in the socket, not by refusing the handshake.
        timed_first: Scribe sends the timed text before the bare one.
        timed_lost: Scribe sends the bare text only.
        timed_late_ms: so much later it sends the second of the two.
        spoken: every text that was made into sound, in order.
        sent_ms: when the last message of each context was sent, by its name.
        counters: contexts_opened, contexts_closed, commits, keep_alives.
    """

    def __init__(self, *, api_key: str = "loopback-key") -> None:
        super().__init__(api_key=api_key)
        self.pace, self.first_ms = 20.0, 0.0
        self.alignment = "chunk"
        self.error = ""
        self.timed_late_ms = 0.0
        self.key_in_socket = self.timed_first = self.timed_lost = False
        self.spoken: list[str] = []
        self.sent_ms: dict[str, float] = {}
        self.counters: Counter[str] = Counter()

    # --- HTTP --------------------------------------------------------------------------------------------------------

    def refusal(self, sickness: Any) -> bytes:
        """The body of a refusal, as the service words it."""
        return sickness.body or detail(REFUSALS.get(sickness.status, "internal_error"), "The request was refused.")

    def _is_known(self, request: Request) -> bool:
        return request.headers.get("xi-api-key") == self.api_key

    async def answer(self, request: Request) -> Answer:
        """Speech, or a transcript."""
        if not self._is_known(request):
            return refused(401, "invalid_api_key", "Invalid API key")
        parts = request.path.strip("/").split("/")
        if request.method == "POST" and parts[:2] == ["v1", "text-to-speech"] and parts[3:] == ["stream"]:
            return self._speak(parts[2], request)
        if request.method == "POST" and parts == ["v1", "speech-to-text"]:
            return self._transcribe(request)
        return refused(404, "not_found", f"nothing is at {request.path}")

    def _speak(self, voice: str, request: Request) -> Answer:
        try:
            asked = json.loads(request.body)
            rate_hz = rate_of(request.query.get("output_format", ["pcm_24000"])[0])
            expect(set(request.query) <= {"output_format"} and set(asked) <= SPEECH_BODY, f"unknown: {sorted(asked)}")
            expect(asked.get("model_id") in SPEAKING, f"model {asked.get('model_id')!r} does not exist")
            expect(isinstance(asked.get("text"), str) and asked["text"].strip(), "text is empty")
            check_settings(asked.get("voice_settings", {}))
        except ValueError as error:
            return refused(400, "invalid_request", str(error))
        if voice not in VOICES:
            return refused(404, "voice_not_found", f"A voice with the id {voice} was not found.")
        self.spoken.append(asked["text"])
        empty = request.sick is not None and request.sick.kind == "empty"
        pcm = b"" if empty else say(asked["text"], rate_hz)

        async def made() -> AsyncIterator[bytes]:
            await self.clock.sleep_ms(self.first_ms)
            for piece in pieces(pcm, rate_hz):
                yield piece
                await self.clock.sleep_ms(PIECE_MS / self.pace)

        return Answer(200, {"content-type": "audio/pcm", "request-id": f"r{len(self.requests)}"}, made())

    def _transcribe(self, request: Request) -> Answer:
        head = b"content-type: " + request.headers["content-type"].encode() + b"\r\n\r\n"
        parts = cast("list[Message]", BytesParser().parsebytes(head + request.body).get_payload())
        form = {str(part.get_param("name", header="content-disposition")): _content(part) for part in parts}
        if form.get("model_id") != b"scribe_v2" or set(form) - FORM - STRAY or "file" not in form:
            return refused(422, "invalid_request", f"a form of {sorted(form)}, model {form.get('model_id')!r}")
        if form.get("file_format") != b"pcm_s16le_16":
            return refused(400, "invalid_request", "this server takes pcm_s16le_16 only")
        empty = request.sick is not None and request.sick.kind == "empty"
        pcm = b"" if empty else form["file"]
        told = {"text": understand(pcm, 16_000), "language_code": "eng", "language_probability": 0.98}
        timed = form.get("timestamps_granularity", b"word") == b"word"
        body = {**told, "words": words_in(pcm, 16_000, 0.0) if timed else []}
        return Answer(200, {"content-type": "application/json"}, json.dumps(body).encode())

    # --- sockets -----------------------------------------------------------------------------------------------------

    async def greet(self, request: Request) -> Answer | None:
        """A handshake with a bad key, or to nowhere, is refused."""
        if not self._is_known(request) and not self.key_in_socket:
            return refused(401, "invalid_api_key", "Invalid API key")
        voices = request.path.startswith("/v1/text-to-speech/") and request.path.endswith("/multi-stream-input")
        if not voices and request.path != "/v1/speech-to-text/realtime":
            return refused(404, "not_found", f"nothing is at {request.path}")
        return None

    async def converse(self, socket: Socket) -> None:
        """Speak in contexts, or listen."""
        error = self.error if self._is_known(socket.request) else "auth_error"
        if socket.request.path.startswith("/v1/text-to-speech/"):
            await VoicesSocket(self, socket, "invalid_api_key" if error == "auth_error" else error).run()
        else:
            await ScribeSocket(self, socket, error).run()


def _content(part: Message) -> bytes:
    return cast(bytes, part.get_payload(decode=True))
