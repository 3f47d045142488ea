"""Deepgram on 127.0.0.1: listen (v1 live and batch, v2 Flux) and speak (HTTP and WebSocket), by its documentation.

Its recognisers understand tone speech, its voices speak it. It refuses what Deepgram is documented to refuse. Nobody has
compared it with the service itself.

>>> async def main():
...     async with DeepgramServer() as server:
...         engine = stt.new("deepgram", api_key=server.api_key, base_url=server.url)
...         return (await engine.transcribe(Audio(say("hello"), 16_000))).text
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from ._deepgram_listen import Flux, Listening
from ._deepgram_speak import Speaking
from ._deepgram_words import REQUEST_ID, channel, chunks, heard, is_empty, rate_hz_of
from .loopback import Answer, LoopbackServer, Request, Socket
from .tone_speech import say

__all__ = ["DeepgramServer"]

LONGEST_TEXT = 2_000

LISTEN = (
    *("model", "language", "encoding", "sample_rate", "channels", "interim_results", "smart_format", "punctuate"),
    *("endpointing", "keyterm", "keywords", "vad_events", "utterance_end_ms", "numerals", "profanity_filter", "diarize"),
    *("redact", "tag", "mip_opt_out", "version", "multichannel", "replace", "search", "detect_language", "extra", "dictation"),
)
LISTEN_V2 = (
    *("model", "encoding", "sample_rate", "eager_eot_threshold", "eot_threshold", "eot_timeout_ms", "keyterm"),
    *("language_hint", "profanity_filter", "numerals", "redact", "mip_opt_out", "tag"),
)
SPEAK = ("model", "encoding", "sample_rate", "container", "bit_rate", "speed", "mip_opt_out", "tag", "callback")
PARAMETERS = {"/v1/listen": ("nova-", LISTEN), "/v2/listen": ("flux-", LISTEN_V2), "/v1/speak": ("aura-", SPEAK)}


class DeepgramServer(LoopbackServer):
    """A loopback server with Deepgram's protocol.

    Attributes:
        delay_ms: how long it takes to answer Finalize, a batch, or the first sound of a text.
        chunk_every_ms: between two messages of 100 ms of sound.
        answers_finalize: False leaves Finalize unanswered, as Deepgram may.
        word_times: Flux gives the times of words.
    """

    def __init__(self, *, api_key: str = "loopback-key") -> None:
        super().__init__(api_key=api_key)
        self.delay_ms = 0.0
        self.chunk_every_ms = 10.0
        self.answers_finalize = True
        self.word_times = True

    # --- what it refuses ---------------------------------------------------------------------------------------------

    def refusal(self, sickness: Any) -> bytes:
        """A refusal as Deepgram words it."""
        body: bytes = sickness.body or _error("SICK", f"no: {sickness.status}")
        return body

    async def greet(self, request: Request) -> Answer | None:
        """Refuse a handshake as Deepgram does: by status, with the reason in the header dg-error."""
        refused = self._refused(request)
        if refused is None:
            return None
        told = json.loads(bytes(refused.body)) if isinstance(refused.body, bytes) else {}
        return Answer(refused.status, {"dg-error": told["err_msg"], "dg-request-id": REQUEST_ID}, refused.body)

    def _refused(self, request: Request) -> Answer | None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() not in ("token", "bearer") or key != self.api_key:
            return Answer(401, JSON, _error("INVALID_AUTH", "Invalid credentials."))
        if request.path not in PARAMETERS:
            return Answer(404, JSON, _error("NOT_FOUND", f"No such path: {request.path}"))
        family, known = PARAMETERS[request.path]
        query = {name: values[-1] for name, values in request.query.items()}
        unknown = sorted(set(query) - set(known))
        problem = ""
        if unknown:
            problem = f"Unknown query parameter: {unknown[0]}"
        elif not query.get("model", "").startswith(family):
            problem = f"No such model/language/tier combination found: {query.get('model', '')}"
        elif query.get("encoding", "linear16") != "linear16":
            problem = f"Unsupported audio encoding: {query['encoding']}"
        elif "encoding" in query and not query.get("sample_rate", "").isdigit():
            problem = "encoding=linear16 needs sample_rate"
        elif request.path == "/v2/listen":
            problem = _wrong_thresholds(query)
        return Answer(400, JSON, _error("Bad Request", problem)) if problem else None

    # --- HTTP --------------------------------------------------------------------------------------------------------

    async def answer(self, request: Request) -> Answer:
        """Batch listen and HTTP speak."""
        refused = self._refused(request)
        if refused is not None:
            return refused
        await self.clock.sleep_ms(self.delay_ms)
        if request.path == "/v1/listen":
            return self._transcribed(request)
        try:
            text = json.loads(request.body)["text"]
        except (ValueError, KeyError, TypeError):
            return Answer(400, JSON, _error("Bad Request", "the body is no JSON with a text"))
        if not text.strip():
            return Answer(400, JSON, _error("Bad Request", "Input text is empty"))
        if len(text) > LONGEST_TEXT:
            return Answer(413, JSON, _error("PAYLOAD_TOO_LARGE", f"Input text exceeds {LONGEST_TEXT} characters"))
        headers = {"content-type": "audio/l16", "dg-request-id": REQUEST_ID, "dg-char-count": str(len(text))}
        header = b"" if request.query.get("container") == ["none"] else b"RIFF\xff\xff\xff\xffWAVEfmt "
        return Answer(200, headers, self._spoken(request, text, header))

    def _transcribed(self, request: Request) -> Answer:
        if "encoding" not in request.query:
            return Answer(400, JSON, _error("Bad Request", "failed to process audio: corrupt or unsupported data"))
        rate_hz = int(request.query["sample_rate"][0])
        words = [] if is_empty(request) else heard(request.body, rate_hz)
        duration_s = len(request.body) / 2 / rate_hz
        told = {
            "metadata": {"request_id": REQUEST_ID, "duration": duration_s, "channels": 1, "models": [], "model_info": {}},
            "results": {"channels": [channel(words)]},
        }
        return Answer(200, JSON, json.dumps(told).encode())

    async def _spoken(self, request: Request, text: str, header: bytes) -> AsyncIterator[bytes]:
        if header:
            yield header
        if not is_empty(request):
            for chunk in chunks(say(text, rate_hz_of(request))):
                yield chunk
                await self.clock.sleep_ms(self.chunk_every_ms)

    # --- WebSockets --------------------------------------------------------------------------------------------------

    async def converse(self, socket: Socket) -> None:
        """Live listen, Flux, and speak."""
        path = socket.request.path
        if path == "/v1/speak":
            await Speaking(self, socket).run()
        else:
            await (Listening if path == "/v1/listen" else Flux)(self, socket).run()


JSON = {"content-type": "application/json"}


def _error(code: str, message: str) -> bytes:
    return json.dumps({"err_code": code, "err_msg": message, "request_id": REQUEST_ID}).encode()


def _wrong_thresholds(query: Mapping[str, str]) -> str:
    for name, low, high in (("eot_threshold", 0.5, 1), ("eager_eot_threshold", 0.3, 0.9), ("eot_timeout_ms", 500, 60_000)):
        if name in query and not low <= float(query[name]) <= high:
            return f"{name} must be between {low} and {high}"
    if float(query.get("eager_eot_threshold", 0)) > float(query.get("eot_threshold", 0.7)):
        return "eager_eot_threshold must not be above eot_threshold"
    return ""
