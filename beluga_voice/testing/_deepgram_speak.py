"""Deepgram's voice on 127.0.0.1 as a WebSocket, `/v1/speak`."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import TYPE_CHECKING

from ._deepgram_words import REQUEST_ID, chunks, is_empty, rate_hz_of, type_of
from .loopback import Socket
from .tone_speech import say

if TYPE_CHECKING:
    from .deepgram_server import DeepgramServer

__all__ = ["Speaking"]

MOST_FLUSHES, FLUSH_WINDOW_MS = 20, 60_000.0
CHUNK_MS = 100.0


class Speaking:
    """`/v1/speak` as a WebSocket: Speak fills, Flush speaks, Clear drops."""

    def __init__(self, server: DeepgramServer, socket: Socket) -> None:
        self.server, self.socket = server, socket
        self.texts: list[str] = []
        self.flushes: deque[float] = deque()
        self.sequence = 0
        self.speaking: asyncio.Task[None] | None = None

    async def run(self) -> None:
        model = self.socket.request.query["model"][0]
        await self.socket.send(
            {
                "type": "Metadata",
                "request_id": REQUEST_ID,
                "model_name": model,
                "model_version": "2026-01-01",
                "model_uuid": REQUEST_ID,
            }
        )
        try:
            async for message in self.socket:
                if not await self.command(message):
                    return
        finally:
            await self.stop()

    async def command(self, message: bytes | str) -> bool:
        kind = type_of(message) if isinstance(message, str) else ""
        if kind == "Speak":
            self.texts.append(json.loads(message)["text"])
        elif kind == "Flush":
            if self.too_many():
                await self.socket.send({"type": "Warning", "description": "Too many flushes", "code": "EXCEEDED_FLUSHES"})
                return True
            await self.finish()
            text, self.texts = " ".join(self.texts), []
            self.speaking = asyncio.ensure_future(self.speak(text))
        elif kind == "Clear":
            await self.stop()
            self.texts = []
            await self.tell("Cleared")
        elif kind == "Close":
            return False
        else:
            await self.socket.close(1008, "DATA-0000: the message is not understood")
            return False
        return True

    def too_many(self) -> bool:
        now_ms = self.server.clock.now_ms()
        while self.flushes and now_ms - self.flushes[0] >= FLUSH_WINDOW_MS:
            self.flushes.popleft()
        self.flushes.append(now_ms)
        return len(self.flushes) > MOST_FLUSHES

    async def speak(self, text: str) -> None:
        await self.server.clock.sleep_ms(self.server.delay_ms)
        rate_hz = rate_hz_of(self.socket.request)
        if not is_empty(self.socket.request):
            for chunk in chunks(say(text, rate_hz), round(CHUNK_MS * rate_hz / 1000) * 2):
                await self.socket.send(chunk)
                await self.server.clock.sleep_ms(self.server.chunk_every_ms)
        await self.tell("Flushed")

    async def tell(self, kind: str) -> None:
        await self.socket.send({"type": kind, "sequence_id": self.sequence})
        self.sequence += 1

    async def finish(self) -> None:
        if self.speaking is not None:
            await asyncio.wait([self.speaking])

    async def stop(self) -> None:
        speaking, self.speaking = self.speaking, None
        if speaking is not None:
            speaking.cancel()
            await asyncio.wait([speaking])
            if not speaking.cancelled():
                speaking.exception()
