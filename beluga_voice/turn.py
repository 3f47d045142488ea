"""Turn detection: has the caller finished? Decides `TurnEnded`, the only thing that starts a reply.

>>> new("silence", silence_ms=500).options.silence_ms
500.0
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, ClassVar, cast

import attrs

from ._registry import Kind, Provider
from .chain import Stage
from .engine import Context, Engine
from .frames import (
    UNPLACED_MS,
    AudioIn,
    EndTurn,
    Frame,
    SpeechEnded,
    SpeechProbability,
    SpeechStarted,
    StartTurn,
    TurnEnded,
    TurnEndProposed,
    TurnEndWithdrawn,
)

__all__ = [
    "TurnCapabilities",
    "TurnDetector",
    "TurnStream",
    "as_frame_processor",
    "describe",
    "names",
    "new",
    "register",
]


@attrs.frozen
class TurnCapabilities:
    """What a turn detector uses beside quiet: `reads_words` where transcripts change its mind."""

    reads_words: bool = False


class TurnStream(ABC):
    """One caller's turns, decided from the frames that pass."""

    @abstractmethod
    def feed(self, frame: Frame) -> Iterable[Frame]:
        """What `frame` decides: `TurnEndProposed`, `TurnEndWithdrawn`, `TurnEnded`, or nothing. Must not block.

        Sees every frame of the ears but audio: speech, transcripts, the agent's replies.
        """

    @abstractmethod
    def end_now(self, source: str) -> TurnEnded | None:
        """End the turn at once because `source` says so; None when the caller has said nothing."""


class TurnDetector(Engine, ABC):
    """Decides ends of turns: gives each session a `TurnStream`."""

    kind = "turn"
    capabilities: ClassVar[TurnCapabilities] = TurnCapabilities()

    @abstractmethod
    def stream(self) -> TurnStream:
        """A fresh stream for one session."""

    def as_frame_processor(self) -> Stage:
        """The stage this detector makes in a chain."""
        return as_frame_processor(self)


def as_frame_processor(engine: TurnDetector, **options: Any) -> Stage:
    """A turn detector as a stage; it obeys `EndTurn` whatever the detector thinks, and between `StartTurn` and `EndTurn` (a
    button held down) ends no turn of its own.

    Args:
        engine: the detector.
        options: its options to change, like `silence_ms=500`.
    """
    engine = engine.with_options(**options)

    async def run(frames: AsyncIterator[Frame], context: Context) -> AsyncIterator[Frame]:
        stream = (await context.handle(engine)).stream()
        pushed: _Pushed | None = None
        async for frame in frames:
            yield frame
            if type(frame) is AudioIn:
                continue
            if type(frame) is StartTurn:
                pushed = _Pushed()
            elif type(frame) is EndTurn:
                ended = stream.end_now(frame.source)
                if pushed is not None:
                    ended, pushed = pushed.end(ended, frame.source), None
                if ended is not None:
                    yield ended
            else:
                for decided in stream.feed(frame):
                    if pushed is None:
                        yield decided
                    elif isinstance(decided, TurnEnded):
                        pushed.pauses.append(decided)

    needs = frozenset({SpeechProbability, SpeechStarted, SpeechEnded})
    makes = frozenset({TurnEndProposed, TurnEndWithdrawn, TurnEnded})
    return Stage(engine.name, run, "turn", "ears", needs, makes, engine=engine)


class _Pushed:
    """A turn while its button is held down: the pauses in which the detector would have ended it."""

    def __init__(self) -> None:
        self.pauses: list[TurnEnded] = []

    def end(self, ended: TurnEnded | None, source: str) -> TurnEnded:
        """The end of all of it, also when nothing was said."""
        parts = self.pauses if ended is None else [*self.pauses, ended]
        if not parts:
            return TurnEnded(UNPLACED_MS, source)
        return TurnEnded(parts[-1].at_ms, source, parts[0].speech_start_ms, parts[-1].speech_end_ms)


_kind = Kind("turn")


def new(name: str, **options: Any) -> TurnDetector:
    """Make the turn detector of that name, like `new("silence", silence_ms=500)`."""
    return cast(TurnDetector, _kind.new(name, **options))


def names() -> list[str]:
    """The installed turn detectors."""
    return _kind.names()


def describe(name: str) -> Provider:
    """What is known of a turn detector: options, distribution, capabilities."""
    return _kind.describe(name)


def register(name: str, factory: Callable[..., TurnDetector], **told: Any) -> None:
    """Register a turn detector of this program's own."""
    _kind.register(name, factory, **told)
