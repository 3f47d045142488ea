"""Deepgram's live recognisers on 127.0.0.1: `/v1/listen` (Nova) and `/v2/listen` (Flux), one WebSocket each."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ._deepgram_words import REQUEST_ID, WORD_GAP_S, Heard, channel, heard, is_empty, is_quiet, rate_hz_of, type_of
from .loopback import Socket

if TYPE_CHECKING:
    from .deepgram_server import DeepgramServer

__all__ = ["Flux", "Listening"]

IDLE_S = 10.0


class _Hearing:
    """One live recogniser: audio that grows, and messages about it."""

    def __init__(self, server: DeepgramServer, socket: Socket) -> None:
        self.server, self.socket = server, socket
        self.rate_hz = rate_hz_of(socket.request)
        self.pcm = bytearray()
        self.from_s = 0.0  # what came before is told
        self._known: list[Heard] = []  # words that are over, and where they end
        self._known_s = self._known_from_s = 0.0

    @property
    def now_s(self) -> float:
        return len(self.pcm) / 2 / self.rate_hz

    def words(self) -> list[Heard]:
        """Those not told for good yet."""
        if self._known_from_s < self.from_s:
            self._known, self._known_s = [], self.from_s
            self._known_from_s = self.from_s
        new = bytes(self.pcm[round(self._known_s * self.rate_hz) * 2 :])
        if is_empty(self.socket.request) or is_quiet(new):
            self._known_s = self.now_s
            return self._known
        words = heard(new, self.rate_hz, self._known_s)
        if words and self.now_s - words[-1][2] > WORD_GAP_S:
            self._known, self._known_s = self._known + words, words[-1][2] + WORD_GAP_S
            return self._known
        return self._known + words

    def parameter(self, name: str, otherwise: str) -> str:
        return self.socket.request.query.get(name, [otherwise])[0]

    async def run(self) -> None:
        await self.begin()
        while True:
            try:
                async with asyncio.timeout(IDLE_S):
                    message = await anext(self.socket)
            except TimeoutError:
                await self.socket.close(1011, "NET-0001: no audio or message within the time allowed")
                return
            except StopAsyncIteration:
                return
            if isinstance(message, str):
                if not await self.command(message):
                    return
            elif message:
                step = max(2, round(0.02 * self.rate_hz) * 2)
                for at in range(0, len(message), step):  # however it is cut, it hears it as it was spoken
                    self.pcm += message[at : at + step]
                    await self.more()
            else:
                await self.over()
                return

    async def begin(self) -> None: ...
    async def more(self) -> None: ...
    async def over(self) -> None: ...
    async def command(self, message: str) -> bool:
        raise NotImplementedError


class Listening(_Hearing):
    """`/v1/listen`: interim results while speech grows; final ones after `endpointing` of quiet, and for Finalize."""

    EVERY_S = 0.25
    LONGEST_S = 3.0
    NOTICEABLE_S = 0.1

    async def begin(self) -> None:
        self.next_s = self.EVERY_S
        given = self.parameter("endpointing", "10")
        self.quiet_s = float("inf") if given == "false" else float(given) / 1000

    async def more(self) -> None:
        if self.now_s < self.next_s:
            return
        self.next_s = self.now_s + self.EVERY_S
        words = self.words()
        quiet_s = self.now_s - words[-1][2] if words else 0.0
        if words and quiet_s >= self.quiet_s:
            await self.result(words, is_final=True, speech_final=True)
        elif self.now_s - self.from_s >= self.LONGEST_S and quiet_s > WORD_GAP_S * 2:
            await self.result(words, is_final=True)
        elif self.parameter("interim_results", "false") == "true":
            await self.result(words)

    async def result(
        self, words: list[Heard], *, is_final: bool = False, speech_final: bool = False, from_finalize: bool = False
    ) -> None:
        from_s, now_s = self.from_s, self.now_s
        if is_final:
            self.from_s = now_s
        await self.socket.send(
            {
                "type": "Results",
                "channel_index": [0, 1],
                "start": from_s,
                "duration": now_s - from_s,
                "is_final": is_final,
                "speech_final": speech_final,
                "from_finalize": from_finalize,
                "channel": channel(words),
                "metadata": {
                    "request_id": REQUEST_ID,
                    "model_uuid": REQUEST_ID,
                    "model_info": {"name": "general-nova", "version": "2026-01-01", "arch": "nova"},
                },
            }
        )

    async def command(self, message: str) -> bool:
        kind = type_of(message)
        if kind == "Finalize":
            await self.server.clock.sleep_ms(self.server.delay_ms)
            if self.server.answers_finalize and self.now_s - self.from_s >= self.NOTICEABLE_S:
                await self.result(self.words(), is_final=True, from_finalize=True)
        elif kind == "CloseStream":
            await self.over()
            return False
        elif kind not in ("KeepAlive", "Configure"):
            await self.socket.send(
                {"type": "Error", "variant": "SchemaError", "description": "could not parse the message", "message": message}
            )
        return True

    async def over(self) -> None:
        if self.now_s > self.from_s:
            await self.result(self.words(), is_final=True)
        await self.socket.send(
            {
                "type": "Metadata",
                "transaction_key": "deprecated",
                "request_id": REQUEST_ID,
                "sha256": "0" * 64,
                "created": "2026-01-01T00:00:00.000Z",
                "duration": self.now_s,
                "channels": 1,
            }
        )
        await self.socket.close()


class Flux(_Hearing):
    """`/v2/listen`: turns. It is as sure of an end as a second of quiet is full; a turn begins with its first word."""

    EVERY_S = 0.25

    async def begin(self) -> None:
        self.sequence = self.turn = 0
        self.next_s = self.EVERY_S
        self.state = "quiet"  # "speaking", "eager"
        self.eot = float(self.parameter("eot_threshold", "0.7"))
        self.eager = float(self.parameter("eager_eot_threshold", "2"))
        self.timeout_s = float(self.parameter("eot_timeout_ms", "5000")) / 1000
        await self.tell({"type": "Connected"})

    async def tell(self, message: dict[str, Any]) -> None:
        await self.socket.send({"request_id": REQUEST_ID, "sequence_id": self.sequence, **message})
        self.sequence += 1

    async def more(self) -> None:
        words = self.words()
        quiet_s = self.now_s - words[-1][2] if words else 0.0
        sure = min(1.0, quiet_s)
        if self.state == "quiet" and words:
            self.state = "speaking"
            await self.event("StartOfTurn", words, sure)
        elif self.state != "quiet" and quiet_s >= self.timeout_s:
            await self.event("EndOfTurn", words, sure, trigger="timeout")
        elif self.state != "quiet" and self.eot < 1 and sure >= self.eot:
            await self.event("EndOfTurn", words, sure, trigger="model")
        elif self.state == "speaking" and sure >= self.eager:
            self.state = "eager"
            await self.event("EagerEndOfTurn", words, sure)
        elif self.state == "eager" and sure < self.eager:
            self.state = "speaking"
            await self.event("TurnResumed", words, sure)
        elif self.now_s >= self.next_s:
            await self.event("Update", words, sure)

    async def event(self, event: str, words: list[Heard], sure: float, **more: str) -> None:
        self.next_s = self.now_s + self.EVERY_S
        times = [{"start": start, "end": end} if self.server.word_times else {} for _, start, end in words]
        index, from_s = self.turn, self.from_s
        if event == "EndOfTurn":
            self.state, self.from_s = "quiet", self.now_s
            self.turn += 1
        await self.tell(
            {
                "type": "TurnInfo",
                "event": event,
                "turn_index": index,
                "audio_window_start": from_s,
                "audio_window_end": self.now_s,
                "transcript": " ".join(word for word, _, _ in words),
                "words": [{"word": word, "confidence": 0.97, **at} for (word, _, _), at in zip(words, times)],
                "end_of_turn_confidence": sure,
                **more,
            }
        )

    async def command(self, message: str) -> bool:
        kind = type_of(message)
        if kind == "ForceEndTurn":
            await self.server.clock.sleep_ms(self.server.delay_ms)
            if self.state != "quiet":
                await self.event("EndOfTurn", self.words(), 0.0, trigger="manual")
        elif kind == "CloseStream":
            return False
        elif kind != "Configure":
            description = f"unknown message type: {kind}"
            await self.tell({"type": "Error", "code": "UNPARSABLE_CLIENT_MESSAGE", "description": description})
            await self.socket.close(1008, description)
            return False
        return True
