"""The caller's audio on its way to a model: at the model's rate, and counted, so that what the model places can be found again.

>>> audio = CallerAudio()
>>> audio.passed(AudioIn(bytes(3_200), 16_000, 0.0))                     # 100 ms that no model gets
>>> audio.taken(AudioIn(bytes(3_200), 16_000, 100.0), 16_000).duration_ms
100.0
>>> audio.placed(TurnEnded(60.0, "model", speech_start_ms=20.0)).speech_start_ms  # 20 ms into what it was sent
120.0
"""

from __future__ import annotations

from typing import TypeVar

import attrs

from ..audio import Audio, Resampler
from ..frames import AudioIn, AudioOut, Frame, SpeechEnded, SpeechStarted, TurnEnded

__all__ = ["CallerAudio", "audio_ms"]

F = TypeVar("F", bound=SpeechStarted | SpeechEnded | TurnEnded)

PLACES = {"at_ms", "speech_start_ms", "speech_end_ms", "audio_from_ms"}


class CallerAudio:
    """What one connection after another is sent of a caller's audio.

    Attributes:
        line_ms: where, on the caller's line, the newest audio ends.
    """

    def __init__(self) -> None:
        self.line_ms = 0.0
        self._sent_ms = 0.0
        self._resampler: Resampler | None = None

    def begin(self) -> None:
        """A new connection: it was sent nothing."""
        self._sent_ms, self._resampler = 0.0, None

    def passed(self, frame: AudioIn) -> None:
        """Audio that no model gets."""
        self.line_ms = frame.end_ms

    def taken(self, frame: AudioIn, rate_hz: int) -> Audio:
        """The audio as the connection is to be sent it, at `rate_hz`."""
        if self._resampler is None or self._resampler.from_hz != frame.sample_rate_hz:
            self._resampler = Resampler(frame.sample_rate_hz, rate_hz)
        audio = Audio(self._resampler.feed(frame.pcm), rate_hz)
        self._sent_ms += audio_ms(frame)
        self.line_ms = frame.end_ms
        return audio

    def placed(self, event: F) -> F:
        """The event with its places on the caller's line instead of in what this connection was sent."""
        moved_ms = self.line_ms - self._sent_ms
        at = {field.name: getattr(event, field.name) for field in attrs.fields(type(event)) if field.name in PLACES}
        return attrs.evolve(event, **{name: max(0.0, ms + moved_ms) for name, ms in at.items() if ms >= 0})


def audio_ms(frame: Frame) -> float:
    """How long the frame's sound lasts; 0 for a frame without."""
    return len(frame.pcm) * 500.0 / frame.sample_rate_hz if isinstance(frame, (AudioIn, AudioOut)) else 0.0
