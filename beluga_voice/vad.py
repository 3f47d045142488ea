"""Voice activity: is there speech in this window of audio? Knows sound, not meaning.

>>> detector = new("energy", threshold=0.6)
>>> detector.options.min_speech_ms
100.0
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar, cast

import attrs

from ._registry import Kind, Provider
from .audio import Rechunker, Resampler
from .chain import Stage
from .engine import Context, Engine
from .frames import AudioIn, Frame, SpeechEnded, SpeechProbability, SpeechStarted, SpeechSuspected
from .options import option

__all__ = [
    "VAD",
    "Options",
    "SpeechGate",
    "VADCapabilities",
    "VADStream",
    "as_frame_processor",
    "describe",
    "names",
    "new",
    "register",
]


@attrs.frozen
class Options:
    """How probabilities become speech. A provider's own options class may add to these by inheriting."""

    threshold: float = option(0.5, "probability from which a window is speech", at_least=0.01, at_most=0.99)
    min_speech_ms: float = option(100.0, "speech needed before it is believed", at_least=0, at_most=5_000)
    suspect_ms: float = option(64.0, "speech needed before it is suspected (a reply pauses)", at_least=0, at_most=5_000)
    min_silence_ms: float = option(250.0, "quiet needed before speech has ended", at_least=0, at_most=5_000)
    preroll_ms: float = option(300.0, "audio that belongs to speech from before its start", at_least=0, at_most=2_000)
    release: float = option(
        0.15, "how far below the threshold beginning speech may dip and still be the same", at_least=0, at_most=0.9
    )


@attrs.frozen
class VADCapabilities:
    """What windows a VAD takes: `window_samples` samples at `sample_rate_hz`."""

    sample_rate_hz: int = 16_000
    window_samples: int = 512


class VADStream(ABC):
    """One caller's line as a VAD hears it, window after window."""

    @abstractmethod
    async def probability(self, window: bytes) -> float:
        """How likely (0..1) this window of PCM holds speech. Windows come in order, one at a time.

        It may wait for the windows of other sessions of the same turn of the loop, not longer: the line waits for it.
        """

    def close(self) -> None:
        """Free the stream's state. The default does nothing."""


class VAD(Engine, ABC):
    """A voice activity detector: gives each line a `VADStream`."""

    kind = "vad"
    capabilities: ClassVar[VADCapabilities] = VADCapabilities()
    options: Any = Options()

    @abstractmethod
    def stream(self) -> VADStream:
        """A fresh stream for one line."""

    def as_frame_processor(self) -> Stage:
        """The stage this VAD makes in a chain."""
        return as_frame_processor(self)


class SpeechGate:
    """Turns window probabilities into suspected, started and ended speech. Pure: the same for every VAD.

    >>> gate = SpeechGate(Options(min_speech_ms=64, min_silence_ms=32, preroll_ms=0))
    >>> [type(frame).__name__ for n, p in enumerate([0.9, 0.9, 0.1]) for frame in gate.feed(p, n * 32.0, n * 32.0 + 32.0)]
    ['SpeechSuspected', 'SpeechStarted', 'SpeechEnded']
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self.speaking = False
        self._began_ms: float | None = None
        self._suspected = False
        self._quiet_ms: float | None = None

    def feed(self, probability: float, start_ms: float, end_ms: float) -> list[Frame]:
        """What the window from `start_ms` to `end_ms` changes."""
        options = self._options
        if probability >= options.threshold:
            self._quiet_ms = None
            if self.speaking:
                return []
            if self._began_ms is None:
                self._began_ms = start_ms
            return self._rise(end_ms)
        if not self.speaking:
            if probability < options.threshold - options.release:
                self._began_ms, self._suspected = None, False
            return []
        if self._quiet_ms is None:
            self._quiet_ms = start_ms
        return self._fall(end_ms)

    def _rise(self, now_ms: float) -> list[Frame]:
        began_ms = cast(float, self._began_ms)
        out: list[Frame] = []
        if not self._suspected and now_ms - began_ms >= self._options.suspect_ms:
            self._suspected = True
            out.append(SpeechSuspected(now_ms, began_ms))
        if now_ms - began_ms >= self._options.min_speech_ms:
            self.speaking = True
            out.append(SpeechStarted(now_ms, began_ms, max(0.0, began_ms - self._options.preroll_ms)))
        return out

    def _fall(self, now_ms: float) -> list[Frame]:
        quiet_ms = cast(float, self._quiet_ms)
        if now_ms - quiet_ms < self._options.min_silence_ms:
            return []
        self.speaking, self._suspected = False, False
        self._began_ms = self._quiet_ms = None
        return [SpeechEnded(now_ms, quiet_ms)]


def as_frame_processor(engine: VAD, **options: Any) -> Stage:
    """A VAD as a stage: adds a `SpeechProbability` per window, and suspected, started and ended speech.

    Args:
        engine: the detector.
        options: its options to change, like `threshold=0.6`.
    """
    engine = engine.with_options(**options)

    async def run(frames: AsyncIterator[Frame], context: Context) -> AsyncIterator[Frame]:
        window_samples, rate_hz = engine.capabilities.window_samples, engine.capabilities.sample_rate_hz
        window_ms = window_samples * 1000.0 / rate_hz
        handle = await context.handle(engine)
        stream = handle.stream()
        gate = SpeechGate(engine.options)
        cut = Rechunker(window_samples)
        resampler: Resampler | None = None
        origin_ms, windows, next_ms = 0.0, 0, -math.inf
        try:
            async for frame in frames:
                yield frame
                if type(frame) is not AudioIn:
                    continue
                if abs(frame.at_ms - next_ms) > 1.0:
                    origin_ms, windows = frame.at_ms, 0
                    cut = Rechunker(window_samples)
                    resampler = None
                next_ms = frame.end_ms
                pcm = frame.pcm
                if frame.sample_rate_hz != rate_hz:
                    if resampler is None or resampler.from_hz != frame.sample_rate_hz:
                        resampler = Resampler(frame.sample_rate_hz, rate_hz, "LQ")
                    pcm = resampler.feed(pcm)
                for window in cut.feed(pcm):
                    start_ms = origin_ms + windows * window_ms
                    windows += 1
                    probability = await stream.probability(window)
                    yield SpeechProbability(probability, start_ms, window_ms)
                    for heard in gate.feed(probability, start_ms, start_ms + window_ms):
                        yield heard
        finally:
            stream.close()

    makes = frozenset({SpeechProbability, SpeechSuspected, SpeechStarted, SpeechEnded})
    return Stage(engine.name, run, "vad", "ears", frozenset({AudioIn}), makes, engine=engine)


_kind = Kind("vad")


def new(name: str, **options: Any) -> VAD:
    """Make the VAD of that name, like `new("silero", threshold=0.6)`."""
    return cast(VAD, _kind.new(name, **options))


def names() -> list[str]:
    """The installed VADs."""
    return _kind.names()


def describe(name: str) -> Provider:
    """What is known of a VAD: options, distribution, capabilities."""
    return _kind.describe(name)


def register(name: str, factory: Callable[..., VAD], **told: Any) -> None:
    """Register a VAD of this program's own."""
    _kind.register(name, factory, **told)
