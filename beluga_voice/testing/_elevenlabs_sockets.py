"""ElevenLabs' two sockets: voices that speak in contexts, and Scribe live."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from ._elevenlabs_shapes import PIECE_MS, SPEAKING, VOICES, alignment, check_settings, letter_times, pieces, rate_of, words_in
from .loopback import Socket
from .tone_speech import say, understand

if TYPE_CHECKING:
    from .elevenlabs_server import ElevenLabsServer

__all__ = ["ScribeSocket", "VoicesSocket"]

T = TypeVar("T")

SOCKET_QUERY = {"model_id", "output_format", "auto_mode", "sync_alignment", "inactivity_timeout", "language_code"}
SCRIBE_QUERY = {"model_id", "audio_format", "commit_strategy", "language_code", "include_timestamps", "keyterms"}
SCHEDULE = (120, 160, 250, 290)
SHORTEST_COMMIT_MS = 300.0
SCRIBE_PATIENCE_MS = 15_000.0
INTERIM_MS = 500.0


class _Refusal(Exception):
    """Why the socket is closed: the message, and the code for it."""


def _checked(check: Callable[[Any], T], value: Any) -> T:
    try:
        return check(value)
    except ValueError as error:
        raise _Refusal(str(error), "invalid_request") from None


class VoicesSocket:
    """One multi-context socket."""

    def __init__(self, server: ElevenLabsServer, socket: Socket, error: str) -> None:
        self._server, self._socket, self._error = server, socket, error
        self._contexts: dict[str, _Voice] = {}
        self._auto, self._rate_hz = False, 24_000

    async def run(self) -> None:
        query = {name: values[0] for name, values in self._socket.request.query.items()}
        try:
            self._auto = query.get("auto_mode") == "true"
            self._rate_hz = _checked(rate_of, query.get("output_format", ""))
            patience_s = float(query.get("inactivity_timeout", "20"))
            if self._socket.request.path.split("/")[3] not in VOICES:
                raise _Refusal("A voice with that id does not exist.", "voice_id_does_not_exist")
            if set(query) - SOCKET_QUERY or patience_s > 180:
                raise _Refusal(f"wrong parameters: {query}", "invalid_parameters")
            if query.get("model_id") not in SPEAKING or query.get("model_id") == "eleven_v3":
                raise _Refusal(f"model {query.get('model_id')!r} cannot be used here", "model_not_found")
            while True:
                try:
                    async with asyncio.timeout(patience_s):
                        message = await anext(self._socket)
                except TimeoutError:
                    raise _Refusal(f"no input within {patience_s:g} seconds", "input_timeout_exceeded") from None
                if self._error:
                    raise _Refusal("refused", self._error)
                self._take(json.loads(message))
        except StopAsyncIteration:
            pass
        except _Refusal as refusal:
            told, code = refusal.args
            await self._socket.send({"message": told, "error": code, "code": 1008})
            await self._socket.close(1008, told[:100])
        finally:
            for voice in self._contexts.values():
                voice.making.cancel()

    def _take(self, told: dict[str, Any]) -> None:
        if told.get("close_socket"):
            raise StopAsyncIteration
        name, text = told.get("context_id", "default"), told.get("text") or ""
        voice = self._contexts.get(name)
        if voice is None:
            if len(self._contexts) >= 5:
                why = "Maximum simultaneous contexts per WebSocket connection exceeded (5)."
                raise _Refusal(why, "max_active_conversations")
            self._contexts[name] = voice = _Voice(self, name)
            self._server.counters["contexts_opened"] += 1
            _checked(check_settings, told.get("voice_settings", {}))
        elif "voice_settings" in told or "generation_config" in told:
            raise _Refusal("voice_settings can only be given in the first message of a context", "invalid_message")
        if voice.closing:
            raise _Refusal(f"context {name} is closed", "context_closed")
        if told.get("text") == "":
            self._server.counters["keep_alives"] += 1
        if text.strip() and not text.endswith(" "):
            raise _Refusal(f"text must end with a space: {text!r}", "invalid_message")
        voice.give(text, told.get("generation_config"), flush=self._auto or told.get("flush") is True)
        if told.get("close_context"):
            voice.closing = True
            self._server.counters["contexts_closed"] += 1
            voice.ready.put_nowait(None)

    async def speak(self, name: str, text: str) -> None:
        """Send the sound of one text."""
        server, sick = self._server, self._socket.sick
        server.spoken.append(text.strip())
        pcm = b"" if sick is not None and sick.kind == "empty" else say(text, self._rate_hz)
        letters = letter_times(text)
        await server.clock.sleep_ms(server.first_ms)
        for number, piece in enumerate(pieces(pcm, self._rate_hz, odd=sick is not None and sick.kind == "odd")):
            from_ms = number * PIECE_MS
            if server.alignment == "chunk":
                here = [one for one in letters if from_ms <= one[1] < from_ms + PIECE_MS]
            else:
                here = letters if server.alignment == "sentence" and number == 0 else []
            told = {"audio": base64.b64encode(piece).decode(), "isFinal": None, "contextId": name}
            await self.send(name, {**told, "alignment": alignment(here, from_ms), "normalizedAlignment": None})
            await server.clock.sleep_ms(PIECE_MS / server.pace)

    async def send(self, name: str, told: dict[str, Any]) -> None:
        """Send a message of a context."""
        await self._socket.send(told)
        self._server.sent_ms[name] = self._server.clock.now_ms()

    def over(self, name: str) -> None:
        """A context has said all."""
        del self._contexts[name]


class _Voice:
    """One context: text is kept until there is enough of it, it is flushed, or `auto_mode` is on."""

    def __init__(self, owner: VoicesSocket, name: str) -> None:
        self.ready: asyncio.Queue[str | None] = asyncio.Queue()
        self.closing = False
        self._owner, self._name = owner, name
        self._held, self._made = "", 0
        self._schedule: tuple[float, ...] = SCHEDULE
        self.making = asyncio.ensure_future(self._make())

    def give(self, text: str, config: dict[str, Any] | None, *, flush: bool) -> None:
        """More text."""
        self._schedule = tuple((config or {}).get("chunk_length_schedule", self._schedule))
        self._held += text
        if self._held.strip() and (flush or len(self._held) >= self._schedule[min(self._made, len(self._schedule) - 1)]):
            self.ready.put_nowait(self._held)
            self._held, self._made = "", self._made + 1

    async def _make(self) -> None:
        with suppress(ConnectionError):
            while (text := await self.ready.get()) is not None:
                await self._owner.speak(self._name, text)
            self._owner.over(self._name)
            await self._owner.send(self._name, {"isFinal": True, "contextId": self._name})


# --- Scribe ----------------------------------------------------------------------------------------------------------


class ScribeSocket:
    """One live transcription."""

    def __init__(self, server: ElevenLabsServer, socket: Socket, error: str) -> None:
        self._server, self._socket, self._error = server, socket, error
        self._pcm, self._rate_hz, self._timed = b"", 16_000, False  # PCM that is not committed yet
        self._before_ms = self._told_ms = 0.0

    async def run(self) -> None:
        query = {name: values[0] for name, values in self._socket.request.query.items()}
        self._timed = query.get("include_timestamps") == "true"
        try:
            if self._error == "auth_error":
                raise _Refusal("Invalid API key", "auth_error")
            self._rate_hz = _checked(rate_of, query.get("audio_format", ""))
            named = (query.get("model_id"), query.get("commit_strategy"))
            if set(query) - SCRIBE_QUERY or named != ("scribe_v2_realtime", "manual"):
                raise _Refusal(f"wrong parameters: {query}", "invalid_request")
            started = {"message_type": "session_started", "session_id": "s1", "config": {"sample_rate": self._rate_hz}}
            await self._socket.send(started)
            while True:
                try:
                    async with asyncio.timeout(SCRIBE_PATIENCE_MS / 1000.0):
                        message = await anext(self._socket)
                except TimeoutError:
                    return  # a normal close
                if self._error:
                    raise _Refusal("it was refused", self._error)
                await self._take(json.loads(message))
        except StopAsyncIteration:
            pass
        except _Refusal as refusal:
            told, code = refusal.args
            await self._socket.send({"message_type": code, "error": told})
            await self._socket.close(1008, told[:100])

    async def _take(self, told: dict[str, Any]) -> None:
        if told.get("message_type") != "input_audio_chunk" or told.get("sample_rate") != self._rate_hz:
            raise _Refusal(f"not a chunk of audio at {self._rate_hz} Hz: {sorted(told)}", "input_error")
        self._pcm += base64.b64decode(told["audio_base_64"], validate=True)
        if told["commit"]:
            await self._commit()
        elif self._length_ms() - self._told_ms >= INTERIM_MS:
            self._told_ms = self._length_ms()
            await self._socket.send({"message_type": "partial_transcript", "text": understand(self._pcm, self._rate_hz)})

    async def _commit(self) -> None:
        if self._length_ms() < SHORTEST_COMMIT_MS:
            why = f"only {self._length_ms() / 1000:.2f}s of uncommitted audio. You need at least 0.3s"
            await self._socket.send({"message_type": "commit_throttled", "error": f"Commit request ignored: {why}"})
            return
        self._server.counters["commits"] += 1
        pcm, before_ms = self._pcm, self._before_ms
        self._before_ms += self._length_ms()
        self._pcm, self._told_ms = b"", 0.0
        text = "" if self._socket.sick is not None and self._socket.sick.kind == "empty" else understand(pcm, self._rate_hz)
        told: list[dict[str, Any]] = [{"message_type": "committed_transcript", "text": text}]
        if self._timed:
            words = words_in(pcm, self._rate_hz, before_ms) if text else []
            timed = {"message_type": "committed_transcript_with_timestamps", "text": text, "words": words}
            told.insert(0 if self._server.timed_first else 1, {**timed, "language_code": "en"})
        if self._server.timed_lost:
            told = told[:1]
        for number, message in enumerate(told):
            await self._server.clock.sleep_ms(self._server.timed_late_ms * number)
            await self._socket.send(message)

    def _length_ms(self) -> float:
        return len(self._pcm) * 500.0 / self._rate_hz
