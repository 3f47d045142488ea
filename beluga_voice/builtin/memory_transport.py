"""A line inside the process: the program is the caller."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import attrs

from .._streams import Channel
from ..clock import Clock
from ..errors import LineLost
from ..frames import AudioIn, AudioOut, Frame
from ..options import build, option
from ..transport import Transport, TransportCapabilities
from .player import Player

__all__ = ["MemoryOptions", "MemoryTransport"]

PENDING_FRAMES = 100_000


@attrs.frozen
class MemoryOptions:
    """Options of the memory transport."""

    input_rate_hz: int = option(16_000, "the rate of the caller's audio", at_least=8_000, at_most=48_000)
    output_rate_hz: int = option(16_000, "the rate of the reply's audio", at_least=8_000, at_most=48_000)
    kept_frames: int = option(50_000, "sent frames kept to be looked at; beyond, the oldest is forgotten", at_least=1)


class MemoryTransport(Transport):
    """A line whose caller is code: `push` frames, `hang_up` or `lose` the line.

    `sent` holds what came back, the last `kept_frames` of it; `forgotten` counts those before. What is sent is taken to be
    played in true time by the clock. Example: `transport.new("memory", output_rate_hz=24000)`.
    """

    Options = MemoryOptions

    def __init__(self, *, clock: Clock | None = None, **options: Any) -> None:
        made = build(MemoryOptions, options, "transport 'memory'")
        self.options = made
        self.capabilities = TransportCapabilities(live=True)
        self.input_rate_hz, self.output_rate_hz = made.input_rate_hz, made.output_rate_hz
        self.sent: list[tuple[float, AudioOut]] = []
        self.forgotten = 0
        self.cleared_at_ms: list[float] = []
        self._clock = clock or Clock()
        self._opened_ms: float | None = None
        self._caller: Channel[Frame] = Channel(PENDING_FRAMES)
        self._player = Player(made.output_rate_hz)

    def push(self, frame: Frame) -> None:
        """Send a frame as the caller."""
        self._caller.put_dropping(frame)

    def speak(self, pcm: bytes, frame_ms: float = 20.0) -> None:
        """Send PCM as the caller, at once, in frames of `frame_ms`."""
        step = 2 * round(self.input_rate_hz * frame_ms / 1000)
        for at in range(0, len(pcm), step):
            self.push(AudioIn(pcm[at : at + step], self.input_rate_hz))

    def hang_up(self) -> None:
        """End the call as the caller."""
        self._caller.close()

    def lose(self) -> None:
        """Break the line."""
        self._caller.close(LineLost("the line broke"))

    async def recv(self) -> AsyncIterator[Frame]:
        self._now_ms()
        async for frame in self._caller:
            yield frame

    async def send(self, frame: AudioOut) -> None:
        now_ms = self._now_ms()
        self.sent.append((now_ms, frame))
        if len(self.sent) > self.options.kept_frames:
            del self.sent[0]
            self.forgotten += 1
        self._player.send(now_ms, frame.pcm)

    def clear(self) -> None:
        now_ms = self._now_ms()
        self.cleared_at_ms.append(now_ms)
        self._player.clear(now_ms)

    @property
    def played_ms(self) -> float:
        return self._player.played_ms(self._now_ms())

    async def aclose(self) -> None:
        self._caller.close()

    def _now_ms(self) -> float:
        """Time since the line opened."""
        now_ms = self._clock.now_ms()
        if self._opened_ms is None:
            self._opened_ms = now_ms
        return now_ms - self._opened_ms
