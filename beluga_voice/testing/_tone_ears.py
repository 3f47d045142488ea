"""A caller's tone speech as a realtime model hears it: when it begins and ends, and what it says."""

from __future__ import annotations

import attrs
import numpy as np

from ..audio import BYTES_PER_SAMPLE, Rechunker
from .tone_speech import LOUD, understand

__all__ = ["PREFIX_MS", "Heard", "ToneEars"]

WINDOW_MS = 20.0
PREFIX_MS = 300.0


@attrs.frozen
class Heard:
    """Speech began ("started", with its prefix) or ended ("stopped", with the quiet after it) at `at_ms` of all audio fed."""

    what: str
    at_ms: float
    text: str = ""


class ToneEars:
    """Feed it audio; it tells of speech as a server-side VAD does.

    Args:
        rate_hz: of the audio.
        silence_ms: quiet that ends speech; None: nothing does but `commit`.
    """

    def __init__(self, rate_hz: int, silence_ms: float | None = 500.0) -> None:
        self.rate_hz, self.silence_ms = rate_hz, silence_ms
        self.fed_ms = 0.0
        self._windows = Rechunker(round(WINDOW_MS * rate_hz / 1000))
        self._audio = b""
        self._speaking = False
        self._quiet_ms = 0.0

    def feed(self, pcm: bytes) -> list[Heard]:
        """More audio; what is heard by it."""
        heard = []
        for window in self._windows.feed(pcm):
            self.fed_ms += WINDOW_MS
            self._audio += window
            loud = bool(np.abs(np.frombuffer(window, "<i2")).max() > LOUD * 32_768)
            self._quiet_ms = 0.0 if loud else self._quiet_ms + WINDOW_MS
            if self.silence_ms is None:
                continue
            if loud and not self._speaking:
                self._speaking = True
                heard.append(Heard("started", max(0.0, self.fed_ms - WINDOW_MS - PREFIX_MS)))
            elif self._speaking and self._quiet_ms >= self.silence_ms:
                heard.append(Heard("stopped", self.fed_ms, self._take()))
            elif not self._speaking:
                self._audio = self._audio[-self._bytes(PREFIX_MS) :]
        return heard

    @property
    def waiting_ms(self) -> float:
        """How much audio `commit` would take."""
        return len(self._audio) * 1000.0 / BYTES_PER_SAMPLE / self.rate_hz

    def commit(self) -> Heard:
        """Speech ends here, whatever is heard."""
        return Heard("stopped", self.fed_ms, self._take())

    def clear(self) -> None:
        """Forget what was fed."""
        self._take()

    def _take(self) -> str:
        audio, self._audio, self._speaking = self._audio, b"", False
        return understand(audio, self.rate_hz)

    def _bytes(self, ms: float) -> int:
        return round(ms * self.rate_hz / 1000) * BYTES_PER_SAMPLE
