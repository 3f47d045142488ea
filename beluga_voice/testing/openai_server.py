"""OpenAI's service on 127.0.0.1, by its documented protocol: voices and recognisers of tone speech, scripted models.

It takes what the documentation allows and refuses the rest, in OpenAI's words: a wrong key, a model or parameter it does not
know, tool results without their calls, audio it cannot read. Point the SDK's `base_url` at `server.base_url`.

>>> async def main():
...     async with OpenAIServer() as server:
...         server.model = lambda messages: Says("Sunny.") if messages[-1]["role"] == "tool" else Says(calls=[("weather", {})])
...         return await openai.AsyncOpenAI(api_key=server.api_key, base_url=server.base_url).chat.completions.create(...)
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any, cast

from ..clock import Clock
from . import _openai_chat, _openai_responses, _openai_transcription
from ._openai_models import Refusal, Says, Script, audio_usage, check_language, say_back
from .loopback import Answer, LoopbackServer, Request, Sickness, Socket
from .tone_speech import say, understand

__all__ = ["GroqServer", "OpenAIServer", "Says"]

SPEECH_HZ = 24_000
PIECE_BYTES = 4_800  # 100 ms
MOST_TEXT, GROQ_MOST_TEXT = 4_096, 200
SPEECH_FIELDS = {"model", "input", "voice", "instructions", "response_format", "speed", "stream_format"}
TRANSCRIPTION_FIELDS = {
    *("file", "model", "language", "prompt", "response_format", "temperature", "keywords[]", "languages[]", "stream"),
}
CODES = {  # status -> type, code
    400: ("invalid_request_error", "invalid_value"),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "unsupported_country_region_territory"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("requests", "rate_limit_exceeded"),
    500: ("server_error", None),
    503: ("server_error", None),
}


class OpenAIServer(LoopbackServer):
    """OpenAI's `/v1`.

    Attributes:
        model: what its language models say: a function of the messages, as Chat Completions has them.
        word_ms: how long its models take for each word, and its voices for each 100 ms of sound.
        transcript_ms: how long the realtime recogniser takes for the next utterances after their ends, one number for each.
        transcript_error: instead of its next transcript: {"message": ..., "type": ..., "code": ...}.
        clock: whose time that is.
    """

    prefix = "/v1"
    speech_models = {"gpt-4o-mini-tts", "tts-1", "tts-1-hd"}
    speech_formats = {"pcm": "audio/pcm", "wav": "audio/wav"}
    transcription_models = {"gpt-transcribe", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "whisper-1"}
    language_models = {"gpt-5.4-mini", "gpt-5.4"}
    most_text = MOST_TEXT

    def __init__(self, *, api_key: str = "loopback-key") -> None:
        super().__init__(api_key=api_key)
        self.model: Script = say_back
        self.word_ms = 0.0
        self.transcript_ms: list[float] = []
        self.transcript_error: dict[str, Any] | None = None
        self.clock = Clock()

    @property
    def base_url(self) -> str:
        """What the SDK takes as `base_url`."""
        return self.url + self.prefix

    def refusal(self, sickness: Sickness) -> bytes:
        type_, code = CODES.get(sickness.status, ("server_error", None))
        return sickness.body or Refusal(sickness.status, "sick", type_, code).body

    async def greet(self, request: Request) -> Answer | None:
        try:
            self._check_key(request)
            if request.path != f"{self.prefix}/realtime" or request.query.get("intent") != ["transcription"]:
                raise Refusal(400, "expected /realtime?intent=transcription", code="invalid_intent")
        except Refusal as refusal:
            return refusal.answer
        return None

    async def converse(self, socket: Socket) -> None:
        await _openai_transcription.converse(self, socket)

    async def answer(self, request: Request) -> Answer:
        routes: dict[str, Callable[[Request], Answer]] = {
            "/audio/speech": self._speech,
            "/audio/transcriptions": self._transcription,
            "/chat/completions": self._chat,
            "/responses": self._responses,
        }
        try:
            self._check_key(request)
            route = routes.get(request.path.removeprefix(self.prefix)) if request.path.startswith(self.prefix) else None
            if route is None or request.method != "POST":
                raise Refusal(404, f"Invalid URL ({request.method} {request.path})", code="unknown_url")
            return route(request)
        except Refusal as refusal:
            return refusal.answer

    def _check_key(self, request: Request) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or key != self.api_key:
            raise Refusal(401, f"Incorrect API key provided: {key}.", *CODES[401])

    # --- voices ------------------------------------------------------------------------------------------------------

    def _speech(self, request: Request) -> Answer:
        body = _json(request)
        _check_fields(body, SPEECH_FIELDS, ("model", "input", "voice"))
        _check_model(body["model"], self.speech_models)
        if not isinstance(body["input"], str) or not 0 < len(body["input"]) <= self.most_text:
            raise Refusal(400, f"input: expected 1 to {self.most_text} characters")
        if not 0.25 <= body.get("speed", 1.0) <= 4.0:
            raise Refusal(400, "speed: expected 0.25 to 4.0")
        form = body.get("response_format", "mp3")
        if form not in self.speech_formats:
            raise Refusal(400, f"response_format: {form!r} is not one of {sorted(self.speech_formats)}")
        sick = request.sick
        pcm = b"" if sick is not None and sick.kind == "empty" else say(body["input"], SPEECH_HZ)
        header = _endless_wav() if form == "wav" else b""
        return Answer(200, {"content-type": self.speech_formats[form]}, self._pieces(header + pcm))

    async def _pieces(self, data: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(data), PIECE_BYTES):
            await self.pause()
            yield data[at : at + PIECE_BYTES]

    async def pause(self) -> None:
        """What a word, or 100 ms of sound, takes."""
        if self.word_ms:
            await asyncio.sleep(self.word_ms / 1_000.0)

    # --- recognisers -------------------------------------------------------------------------------------------------

    def _transcription(self, request: Request) -> Answer:
        fields, file_name, file = _multipart(request)
        _check_fields(fields, TRANSCRIPTION_FIELDS, ("model",))
        _check_model(fields["model"], self.transcription_models)
        check_language(fields.get("language", "en"))
        if fields.get("response_format", "json") != "json":
            raise Refusal(400, "response_format: only json is played here")
        if not file_name.endswith(".wav"):
            raise Refusal(400, f"file: {file_name!r} says no format that is played here")
        pcm, rate_hz = _read_wav(file)
        sick = request.sick
        text = "" if sick is not None and sick.kind == "empty" else understand(pcm, rate_hz)
        return Answer(
            200, {"content-type": "application/json"}, json.dumps({"text": text, "usage": audio_usage(pcm, rate_hz)}).encode()
        )

    # --- language models ---------------------------------------------------------------------------------------------

    def _chat(self, request: Request) -> Answer:
        body = _json(request)
        _check_fields(body, _openai_chat.FIELDS, ("model", "messages"))
        _check_model(body["model"], self.language_models)
        return _openai_chat.answer(self, request, body)

    def _responses(self, request: Request) -> Answer:
        body = _json(request)
        _check_fields(body, _openai_responses.FIELDS, ("model", "input"))
        _check_model(body["model"], self.language_models)
        return _openai_responses.answer(self, request, body)


class GroqServer(OpenAIServer):
    """Groq's `/openai/v1`: the same protocol, without PCM, Responses and Realtime; its WAV headers do not know their length."""

    prefix = "/openai/v1"
    speech_models = {"canopylabs/orpheus-v1-english"}
    speech_formats = {"wav": "audio/wav"}
    transcription_models = {"whisper-large-v3-turbo", "whisper-large-v3"}
    language_models = {"openai/gpt-oss-120b", "openai/gpt-oss-20b"}
    most_text = GROQ_MOST_TEXT

    async def greet(self, request: Request) -> Answer | None:
        return Refusal(404, "Unknown request URL", code="unknown_url").answer


# --- what is checked -------------------------------------------------------------------------------------------------


def _json(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(request.body)
    except ValueError:
        raise Refusal(400, "the body is no JSON") from None
    if not isinstance(body, dict):
        raise Refusal(400, "the body is no object")
    return body


def _check_fields(given: dict[str, Any], known: set[str], needed: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            raise Refusal(400, f"Unrecognized request argument supplied: {name}", code="unknown_parameter")
    for name in needed:
        if not given.get(name):
            raise Refusal(400, f"Missing required parameter: {name!r}.", code="missing_required_parameter")


def _check_model(model: Any, known: set[str]) -> None:
    if model not in known:
        raise Refusal(404, f"The model {model!r} does not exist or you do not have access to it.", code="model_not_found")


def _multipart(request: Request) -> tuple[dict[str, str], str, bytes]:
    """The plain fields, and the one file's name and bytes."""
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data; boundary="):
        raise Refusal(400, f"content-type: {kind!r}; expected multipart/form-data")
    message = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + request.body)
    fields: dict[str, str] = {}
    files: list[tuple[str, bytes]] = []
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        if name == "file":
            files.append((part.get_filename() or "", cast(bytes, part.get_payload(decode=True))))
        else:
            fields[str(name)] = cast(bytes, part.get_payload(decode=True)).decode()
    if len(files) != 1:
        raise Refusal(400, f"file: got {len(files)}, expected one", code="missing_required_parameter")
    return fields, *files[0]


def _read_wav(data: bytes) -> tuple[bytes, int]:
    """PCM and rate of a plain WAV file, whose lengths must be true."""
    true_lengths = (
        len(data) >= 44
        and int.from_bytes(data[4:8], "little") == len(data) - 8
        and int.from_bytes(data[40:44], "little") == len(data) - 44
    )
    if not true_lengths or data[:4] + data[8:16] + data[36:40] != b"RIFFWAVEfmt data":
        raise Refusal(400, "Audio file might be corrupted or unsupported")
    rate_hz = int.from_bytes(data[24:28], "little")
    if data[20:24] != b"\1\0\1\0" or data[34:36] != b"\x10\0" or len(data) < 44 + rate_hz // 50 * 2:
        raise Refusal(400, "Audio file is too short. Minimum audio length is 0.1 seconds.", code="audio_too_short")
    return data[44:], rate_hz


def _endless_wav() -> bytes:
    """A header as one who does not know the length writes it, with a chunk more than needed."""
    form = b"\1\0\1\0" + SPEECH_HZ.to_bytes(4, "little") + (2 * SPEECH_HZ).to_bytes(4, "little") + b"\2\0\x10\0"
    extra = b"LIST\x0b\0\0\0INFOISFT..." + b"\0"
    return b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0" + form + extra + b"data\xff\xff\xff\xff"
