"""Aura's socket (`/v1/speak`): Speak, Flush, and Clear for a reply that is cut."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import Any

from beluga_voice.clock import Clock

from .upstream import Upstream
from .vendor import EventError

__all__ = ["Speaking"]

CLEARED_TIMEOUT_MS = 1_000.0
MOST_FLUSHES = 20  # of one socket, in any `FLUSH_WINDOW_MS`: beyond, the server answers with a warning and no sound
FLUSH_WINDOW_MS = 60_000.0
KNOWN = ("Metadata", "Flushed", "Cleared")


class Speaking:
    """One open socket, speaking one text at a time. Sound carries no name: what belongs to a text ends with its Flushed.

    Args:
        upstream: the socket.
        counters: counts what is passed over.

    Attributes:
        broken: the socket is of no more use.
    """

    def __init__(self, upstream: Upstream, counters: Counter[str]) -> None:
        self.broken = False
        self._upstream, self._counters = upstream, counters
        self._clock = Clock()
        self._flushes: deque[float] = deque(maxlen=MOST_FLUSHES)
        self._hushing: asyncio.Task[bool] | None = None

    async def ready(self) -> bool:
        """Whether another text may be spoken: it is silent, and has flushes left."""
        if self._hushing is not None:
            await asyncio.wait([self._hushing])  # whoever waits may be cancelled; it goes on
            hushing, self._hushing = self._hushing, None
            self.broken = self.broken or not hushing.result()
        full = len(self._flushes) == MOST_FLUSHES and self._clock.now_ms() - self._flushes[0] < FLUSH_WINDOW_MS
        return not self.broken and not full

    async def say(self, text: str) -> None:
        """Have a text spoken. Raises what the SDK and the network raise."""
        from deepgram.speak.v1.types import SpeakV1Text

        socket = self._upstream.socket
        try:
            await self._upstream.send(socket.send_text(SpeakV1Text(text=text)))
            await self._upstream.send(socket.send_flush())
        except BaseException:
            self.broken = True
            raise
        self._flushes.append(self._clock.now_ms())

    async def piece(self) -> bytes | None:
        """More of its sound; None at its end. Raises what the SDK and the network raise."""
        while True:
            try:
                message = await self._upstream.recv()
                if isinstance(message, bytes):
                    return message
                self._note(message)
            except Exception:
                self.broken = True
                raise
            if getattr(message, "type", None) == "Flushed":
                return None

    def hush(self) -> None:
        """Stop what is being spoken, now; what still comes of it is dropped."""
        self._hushing = asyncio.get_running_loop().create_task(self._hush(), name="deepgram clear")

    async def aclose(self) -> None:
        """Close at once."""
        self.broken = True
        try:
            if self._hushing is not None:
                self._hushing.cancel()
                await asyncio.wait([self._hushing])
        finally:
            await self._upstream.aclose(self._upstream.socket.send_close())

    async def _hush(self) -> bool:
        try:
            async with asyncio.timeout(CLEARED_TIMEOUT_MS / 1000.0):
                await self._upstream.send(self._upstream.socket.send_clear())
                while True:
                    message = await self._upstream.recv()
                    if isinstance(message, bytes):
                        self._counters["audio_dropped"] += 1
                        continue
                    self._note(message)
                    if getattr(message, "type", None) == "Cleared":  # the SDK parses it as class SpeakV1Flushed
                        return True
        except Exception:
            return False

    def _note(self, message: Any) -> None:
        kind = getattr(message, "type", None)
        if kind == "Error":
            raise EventError(str(getattr(message, "description", "") or ""), str(getattr(message, "code", "") or ""))
        if kind == "Warning":
            self._counters["warnings"] += 1
        elif kind not in KNOWN:
            self._counters["messages_unknown"] += 1
