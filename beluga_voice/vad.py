"""Voice activity: is there speech in this window of audio? Knows sound, not meaning.

>>> detector = new("energy", threshold=0.6)
>>> detector.options.min_speech_ms
100.0
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar, cast

import attrs

from ._registry import Kind, Provider
from .audio import Rechunker, Resampler
from .chain import Stage
from .engine import Context, Engine
from .frames import (
    AudioIn,
    EndTurn,
    Frame,
    SpeechEnded,
    SpeechProbability,
    SpeechStarted,
    SpeechSuspected,
    StartTurn,
)
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


LONGEST_DIP_MS = 100.0  # beginning speech that dips below the threshold for longer is not the same speech


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
        self._release = max(options.threshold - options.release, options.threshold / 2)
        self._began_ms: float | None = None
        self._loud_ms = 0.0
        self._suspected = False
        self._quiet_ms: float | None = None

    def feed(self, probability: float, start_ms: float, end_ms: float) -> list[Frame]:
        """What the window from `start_ms` to `end_ms` changes."""
        options = self._options
        if probability >= options.threshold:
            self._quiet_ms, self._loud_ms = None, end_ms
            if self.speaking:
                return []
            if self._began_ms is None:
                self._began_ms = start_ms
            return self._rise(end_ms)
        if not self.speaking:
            if probability < self._release or end_ms - self._loud_ms > LONGEST_DIP_MS:
                self._began_ms, self._suspected = None, False
            return []
        if self._quiet_ms is None:
            self._quiet_ms = start_ms
        return self._fall(end_ms)

    def give_up(self, now_ms: float) -> list[Frame]:
        """The line has a hole: speech under way ends at `now_ms`."""
        was_speaking, self.speaking = self.speaking, False
        self._began_ms, self._suspected, self._quiet_ms = None, False, None
        return [SpeechEnded(now_ms, now_ms)] if was_speaking else []

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
        handle = await context.handle(engine)
        cut = _Windows(engine.capabilities)
        stream, gate = handle.stream(), SpeechGate(engine.options)
        pushed = False
        try:
            async for frame in frames:
                if type(frame) is EndTurn and pushed:
                    pushed = False
                    for ended in gate.give_up(cut.end_ms):  # what is said after the button was let go is not of the turn
                        yield ended
                yield frame
                if type(frame) is not AudioIn:
                    pushed = pushed or type(frame) is StartTurn
                    continue
                if not cut.follows(frame):
                    for ended in gate.give_up(cut.end_ms):
                        yield ended
                    stream.close()
                    cut.restart(frame)
                    stream, gate = handle.stream(), SpeechGate(engine.options)
                for start_ms, window in cut.feed(frame):
                    probability = await stream.probability(window)
                    yield SpeechProbability(probability, start_ms, cut.window_ms)
                    for heard in gate.feed(probability, start_ms, start_ms + cut.window_ms):
                        yield heard
        finally:
            stream.close()

    makes = frozenset({SpeechProbability, SpeechSuspected, SpeechStarted, SpeechEnded})
    return Stage(engine.name, run, "vad", "ears", frozenset({AudioIn}), makes, engine=engine)


class _Windows:
    """Cuts a line's audio into placed windows at the VAD's rate."""

    def __init__(self, capabilities: VADCapabilities) -> None:
        self._rate_hz, self._samples = capabilities.sample_rate_hz, capabilities.window_samples
        self.window_ms = self._samples * 1000.0 / self._rate_hz
        self.end_ms = 0.0
        self._resampler: Resampler | None = None
        self._begin(0.0)

    def follows(self, frame: AudioIn) -> bool:
        """False when audio is missing before `frame`."""
        return abs(frame.at_ms - self.end_ms) <= 1.0

    def restart(self, frame: AudioIn) -> None:
        """Begin anew at `frame`."""
        self._begin(frame.at_ms)

    def feed(self, frame: AudioIn) -> list[tuple[float, bytes]]:
        """The windows that `frame` completes, each with where it begins."""
        self.end_ms = frame.end_ms
        pcm = frame.pcm
        if frame.sample_rate_hz != self._rate_hz:
            if self._resampler is None or self._resampler.from_hz != frame.sample_rate_hz:
                self._resampler = Resampler(frame.sample_rate_hz, self._rate_hz, "LQ")
            pcm = self._resampler.feed(pcm)
        out = []
        for window in self._cut.feed(pcm):
            out.append((self._origin_ms + self._count * self.window_ms, window))
            self._count += 1
        return out

    def _begin(self, at_ms: float) -> None:
        self._origin_ms, self._count = at_ms, 0
        self._cut = Rechunker(self._samples)
        self._resampler = None


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
