"""A caller who was recorded: speaks at the pace of the clock, hears the replies, hangs up when all is said."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from ..audio import BYTES_PER_SAMPLE, Audio
from ..clock import Clock
from ..frames import AudioIn, AudioOut, Frame
from ..transport import Transport, TransportCapabilities
from .player import Player

__all__ = ["RecordedLine"]

FRAME_MS = 20


class RecordedLine(Transport):
    """Plays `audio` as the caller, 20 ms at a time, then silence until the session has listened for `tail_ms`.

    Args:
        audio: what the caller says; its rate is the line's, both ways.
        tail_ms: how long the line stays open, quiet, after the audio and the last reply.
        on_audio: called with the PCM of both sides, caller and agent, of equal length and in true time.
        clock: whose time it keeps.
    """

    capabilities = TransportCapabilities(live=False)

    def __init__(
        self,
        audio: Audio,
        *,
        tail_ms: float = 3_000.0,
        on_audio: Callable[[bytes, bytes], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.audio = audio
        self.input_rate_hz = self.output_rate_hz = audio.sample_rate_hz
        self.position_ms = 0.0
        self._tail_ms, self._on_audio, self._clock = tail_ms, on_audio, clock or Clock()
        self._player = Player(audio.sample_rate_hz, record=on_audio is not None)
        self._opened_ms: float | None = None
        self._busy_ms = 0.0
        self._state = "listening"

    async def recv(self) -> AsyncIterator[Frame]:
        rate_hz = self.input_rate_hz
        step = rate_hz * FRAME_MS // 1000 * BYTES_PER_SAMPLE
        speech = memoryview(self.audio.pcm)
        at = 0
        self._now_ms()
        while True:
            pcm = bytes(speech[at : at + step])
            if len(pcm) < step:
                pcm += bytes(step - len(pcm))
            at += step
            due_ms = at * 500.0 / rate_hz
            await self._clock.sleep_ms(due_ms - self._now_ms())
            self.position_ms = due_ms
            yield AudioIn(pcm, rate_hz)
            if self._on_audio is not None:
                self._player.played_ms(due_ms)
                agent = self._player.take_record()
                self._on_audio(pcm, agent[:step] + bytes(max(0, step - len(agent))))
            if at >= len(speech) and self._all_said(due_ms):
                return

    async def send(self, frame: AudioOut) -> None:
        self._player.send(self._play_ms(), frame.pcm)

    def clear(self) -> None:
        self._player.clear(self._play_ms())

    @property
    def played_ms(self) -> float:
        return self._player.played_ms(self._play_ms())

    def notify(self, event: Any) -> None:
        if event.name == "state":
            self._state = event.data["state"]
            self._busy_ms = self._now_ms()

    async def aclose(self) -> None:
        on_audio, self._on_audio = self._on_audio, None
        if on_audio is not None and self._opened_ms is not None:
            self._player.played_ms(self._now_ms())
            agent = self._player.take_record()
            if agent:
                on_audio(bytes(len(agent)), agent)

    def _all_said(self, now_ms: float) -> bool:
        spoken_ms = self.audio.duration_ms
        return self._state in ("listening", "connected") and now_ms - max(spoken_ms, self._busy_ms) >= self._tail_ms

    def _now_ms(self) -> float:
        now_ms = self._clock.now_ms()
        if self._opened_ms is None:
            self._opened_ms = now_ms
        return now_ms - self._opened_ms

    def _play_ms(self) -> float:
        """The time for the loudspeaker: never beyond the frame under way, so that both sides of a recording stay aligned."""
        return min(self._now_ms(), self.position_ms + FRAME_MS)
