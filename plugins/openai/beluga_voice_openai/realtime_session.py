"""One socket to a realtime model: what goes up, what comes down, and what was heard of what it said."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections import deque
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

import attrs

from beluga_voice.audio import BYTES_PER_SAMPLE, Audio
from beluga_voice.errors import ProtocolError, ProviderError
from beluga_voice.frames import (
    AudioOut,
    Failed,
    Frame,
    ReplyEnded,
    SpeechEnded,
    SpeechStarted,
    TextDelta,
    ToolCalled,
    ToolReturned,
    Transcript,
    TurnEnded,
    Usage,
)
from beluga_voice.s2s import S2SSession

from .realtime_items import Told, result_item
from .vendor import EventError

if TYPE_CHECKING:
    from .realtime_s2s import OpenAIRealtime

__all__ = ["SAMPLE_RATE_HZ", "RealtimeSession"]

SAMPLE_RATE_HZ = 24_000  # the only one it takes
MOST_UNTOLD = 3  # turns that wait for their words: those of one that is older will not come
PIECE_BYTES = 96_000  # two seconds in one message
HARMLESS = {"response_cancel_not_active", "input_audio_buffer_commit_empty"}
SAY = "Say the following to the caller, word for word, and nothing else:\n\n"


@attrs.define(eq=False)
class _Spoken:
    """One item of the reply: how much sound of it came."""

    item_id: str
    content_index: int
    samples: int = 0

    @property
    def length_ms(self) -> float:
        return self.samples * 1000.0 / SAMPLE_RATE_HZ


@attrs.define(eq=False)
class _Turn:
    """A turn of the caller whose words are still to be told: known once they are `text`."""

    item_id: str
    text: str | None = None
    interim: str = ""


class RealtimeSession(S2SSession):
    """A conversation over one socket. Made by `OpenAIRealtime.connect`."""

    def __init__(self, engine: OpenAIRealtime, connection: Any, told: Told) -> None:
        self._engine, self._connection = engine, connection
        self._closed = False
        self._sent_samples = 0
        self._uncommitted = False
        self._speech_end_ms = -1.0
        self._turns: deque[_Turn] = deque()
        # the response under way at the service, of which there is never more than one
        self._active = self._speaks = False
        self._next: dict[str, Any] | None = None  # asked for while one is under way
        self._count = 0
        self._spoken: list[_Spoken] = []  # of the reply, over all its responses
        self._spare = b""
        self._calls = set(told.waiting)
        self._answered = set(told.answered)
        self._goes_on = False  # its tools have returned, or some of them
        self._rounds = 0  # of tool calls

    # --- up ----------------------------------------------------------------------------------------------------------

    async def send_audio(self, audio: Audio) -> None:
        for at in range(0, len(audio.pcm), PIECE_BYTES):
            piece = audio.pcm[at : at + PIECE_BYTES]
            self._sent_samples += len(piece) // BYTES_PER_SAMPLE
            self._uncommitted = True
            await self._send("sending audio", "input_audio_buffer.append", audio=base64.b64encode(piece).decode("ascii"))

    async def send_text(self, text: str) -> None:
        content = [{"type": "input_text", "text": text}]
        await self._create({"type": "message", "role": "user", "content": content})
        await self.answer()

    async def answer(self) -> None:
        self._new_reply()
        await self._respond({})

    async def say(self, text: str) -> None:
        self._new_reply()
        await self._respond({"instructions": SAY + text, "tools": [], "tool_choice": "none"})

    async def end_turn(self) -> None:
        if self._uncommitted:
            await self._send("ending a turn", "input_audio_buffer.commit")

    async def send_tool_result(self, result: ToolReturned) -> None:
        if result.call_id not in self._answered:
            self._answered.add(result.call_id)
            await self._create(result_item(result))
        if result.call_id in self._calls:
            self._calls.discard(result.call_id)
            self._goes_on = True
            await self._go_on()

    async def interrupt(self, played_ms: float) -> None:
        was_active, self._speaks, self._next = self._speaks, False, None
        self._calls.clear()
        self._goes_on = False
        if was_active:
            await self._send("stopping a reply", "response.cancel")
        for one in self._spoken:
            heard_ms, played_ms = min(max(played_ms, 0.0), one.length_ms), played_ms - one.length_ms
            if heard_ms < one.length_ms or (was_active and one is self._spoken[-1]):
                await self._send(
                    "stopping a reply",
                    "conversation.item.truncate",
                    item_id=one.item_id,
                    content_index=one.content_index,
                    audio_end_ms=math.floor(heard_ms),
                )
        self._spoken.clear()

    async def aclose(self) -> None:
        self._closed = True
        await self._connection.close()

    def _new_reply(self) -> None:
        self._rounds = 0
        self._spoken.clear()
        self._calls.clear()
        self._goes_on = False

    async def _respond(self, response: dict[str, Any]) -> None:
        """Ask for a response, once the one under way is over."""
        if self._active:
            self._next = response
            return
        self._active = self._speaks = True
        self._count += 1
        await self._send("asking for an answer", "response.create", event_id=f"answer-{self._count}", response=response)

    async def _go_on(self) -> None:
        """Answer what the tools of the reply gave, once all have returned."""
        if self._goes_on and not self._calls and not self._active:
            self._goes_on = False
            self._rounds += 1
            await self._respond({"tool_choice": "none"} if self._has_called_enough else {})

    @property
    def _has_called_enough(self) -> bool:
        return bool(self._rounds >= self._engine.options.max_tool_rounds)

    async def _create(self, item: dict[str, Any]) -> None:
        await self._send("adding to the conversation", "conversation.item.create", item=item)

    async def _send(self, doing: str, type_: str, **fields: Any) -> None:
        try:
            await self._connection.send({"type": type_, **fields})
        except Exception as error:
            raise self._engine.failed(error, doing) from None

    # --- down --------------------------------------------------------------------------------------------------------

    async def events(self) -> AsyncGenerator[Frame, None]:
        while True:
            try:
                event = await self._connection.recv()
                frames = await self._take(event)
            except Exception as error:
                if self._closed:
                    return
                raise self._engine.failed(error, "listening") from None
            for frame in frames:
                yield frame

    async def _take(self, event: Any) -> list[Frame]:
        """The frames that an event is."""
        match event.type:  # an event of a type the SDK does not know has the class of another
            case "input_audio_buffer.speech_started":
                return [self._speech_started(event.audio_start_ms)]
            case "input_audio_buffer.speech_stopped":
                return self._speech_stopped(event.audio_end_ms)
            case "input_audio_buffer.committed":
                return self._committed(event.item_id)
            case "conversation.item.input_audio_transcription.delta":
                return self._interim(event.item_id, event.delta or "")
            case "conversation.item.input_audio_transcription.completed":
                return [*self._used_by_transcript(event), *self._words(event.item_id, event.transcript)]
            case "conversation.item.input_audio_transcription.failed":
                return [self._trouble(event.error), *self._words(event.item_id, "")]
            case "response.created":
                return await self._created()
            case "response.output_audio_transcript.delta" | "response.output_text.delta":
                return [TextDelta(event.delta)] if self._speaks and event.delta else []
            case "response.output_audio.delta":
                return self._sound(event)
            case "response.function_call_arguments.done":
                return self._called(event)
            case "response.done":
                return await self._done(event.response)
            case "error":
                return await self._error(event.error)
            case _:
                return []

    # --- the caller --------------------------------------------------------------------------------------------------

    @property
    def _sent_ms(self) -> float:
        return self._sent_samples * 1000.0 / SAMPLE_RATE_HZ

    @property
    def _by_quiet(self) -> bool:
        return bool(self._engine.options.turn_detection == "server_vad")

    def _speech_started(self, start_ms: float) -> SpeechStarted:
        before_ms = self._engine.options.prefix_padding_ms if self._by_quiet else 0
        return SpeechStarted(self._sent_ms, start_ms + before_ms, start_ms)

    def _speech_stopped(self, end_ms: float) -> list[Frame]:
        """Its end is told with the quiet after it; how much that is only one of the two detectors lets know."""
        self._speech_end_ms = max(0.0, end_ms - self._engine.options.silence_duration_ms) if self._by_quiet else -1.0
        return [SpeechEnded(self._sent_ms, self._speech_end_ms if self._by_quiet else end_ms)]

    def _committed(self, item_id: str) -> list[Frame]:
        end_ms, self._speech_end_ms = self._speech_end_ms, -1.0
        self._uncommitted = False
        ended: list[Frame] = [TurnEnded(self._sent_ms, self._engine.options.turn_detection, speech_end_ms=end_ms)]
        if not self._engine.options.transcription_model:
            return [*ended, Transcript("", closes=True)]
        self._turns.append(_Turn(item_id))
        if len(self._turns) > MOST_UNTOLD:
            return [*self._words(self._turns[0].item_id, ""), *ended]
        return ended

    def _interim(self, item_id: str, delta: str) -> list[Frame]:
        if not self._turns or self._turns[0].item_id != item_id:
            return []
        self._turns[0].interim += delta
        return [Transcript(self._turns[0].interim.strip(), is_final=False)]

    def _words(self, item_id: str, text: str) -> list[Frame]:
        """The words of a turn, told after those of the turns before it."""
        for turn in self._turns:
            if turn.item_id == item_id:
                turn.text = text.strip()
        told: list[Frame] = []
        while self._turns and self._turns[0].text is not None:
            told.append(Transcript(self._turns.popleft().text or "", language=self._engine.options.language, closes=True))
        return told

    def _used_by_transcript(self, event: Any) -> list[Frame]:
        usage = getattr(event, "usage", None)
        amounts = _amounts(usage)
        seconds = getattr(usage, "seconds", None)
        if isinstance(seconds, (int, float)):
            amounts = {"audio_ms": seconds * 1000.0}
        return [Usage("s2s", self._engine.name, self._engine.options.transcription_model, amounts)] if amounts else []

    # --- the reply ---------------------------------------------------------------------------------------------------

    async def _created(self) -> list[Frame]:
        if not self._active:  # nobody asked for it
            self._active = True
            await self._send("stopping a reply", "response.cancel")
        return []

    def _sound(self, event: Any) -> list[Frame]:
        if not self._speaks:
            return []
        try:
            data = self._spare + base64.b64decode(event.delta, validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise ProtocolError(f"s2s {self._engine.name!r} sent sound that is not base64; expected PCM", kind="s2s") from None
        whole = len(data) // BYTES_PER_SAMPLE * BYTES_PER_SAMPLE
        pcm, self._spare = data[:whole], data[whole:]
        if not self._spoken or self._spoken[-1].item_id != event.item_id:
            self._spoken.append(_Spoken(event.item_id, event.content_index))
        self._spoken[-1].samples += whole // BYTES_PER_SAMPLE
        return [AudioOut(pcm, SAMPLE_RATE_HZ)] if pcm else []

    def _called(self, event: Any) -> list[Frame]:
        """A tool call, unless it is of a reply that is interrupted, or has called enough. The toolbox sees to its arguments."""
        if not self._speaks or self._has_called_enough:
            return []
        try:
            arguments = json.loads(event.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            arguments = {"arguments": event.arguments}
        self._calls.add(event.call_id)
        return [ToolCalled(event.call_id, event.name, arguments)]

    async def _done(self, response: Any) -> list[Frame]:
        speaks, self._active, self._speaks, self._spare = self._speaks, False, False, b""
        used: list[Frame] = []
        amounts = _amounts(getattr(response, "usage", None))
        if amounts:
            used.append(Usage("s2s", self._engine.name, self._engine.options.model, amounts))
        if speaks and response.status == "failed":
            raise EventError(getattr(response.status_details, "error", None))
        if self._next is not None:
            following, self._next = self._next, None
            await self._respond(following)
        elif speaks and (self._calls or self._goes_on):
            await self._go_on()
        elif speaks:
            return [*used, ReplyEnded(0, "", False)]
        return used

    async def _error(self, error: Any) -> list[Frame]:
        """An error that leaves the socket open: what it is about decides whether the conversation can go on over it."""
        code, about = getattr(error, "code", None), getattr(error, "event_id", None) or ""
        if code in HARMLESS:
            return []
        told = self._failed(error)
        if about.startswith("answer-") or getattr(error, "type", "") == "server_error" or code == "session_expired":
            raise told
        return [Failed(self._engine.name, told)]

    def _trouble(self, error: Any) -> Failed:
        return Failed(self._engine.name, self._failed(error))

    def _failed(self, error: Any) -> ProviderError:
        return self._engine.failed(EventError(error), "listening")


def _amounts(usage: Any) -> dict[str, float]:
    """What a response used, in tokens."""
    into, out = getattr(usage, "input_token_details", None), getattr(usage, "output_token_details", None)
    told = {
        "input_tokens": getattr(usage, "input_tokens", None),
        "output_tokens": getattr(usage, "output_tokens", None),
        "input_audio_tokens": getattr(into, "audio_tokens", None),
        "input_text_tokens": getattr(into, "text_tokens", None),
        "cached_tokens": getattr(into, "cached_tokens", None),
        "output_audio_tokens": getattr(out, "audio_tokens", None),
        "output_text_tokens": getattr(out, "text_tokens", None),
    }
    return {name: float(value) for name, value in told.items() if isinstance(value, (int, float))}
