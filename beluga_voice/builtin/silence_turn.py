"""A turn detector that knows only quiet: enough of it ends the turn.

A pending end is held as soon as the speech probability rises, not only once speech is sure: with that alone a fixed silence
cuts far fewer callers off in mid-sentence, at the same delay.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from ..frames import (
    Frame,
    SpeechEnded,
    SpeechProbability,
    SpeechStarted,
    TurnEnded,
    TurnEndProposed,
    TurnEndWithdrawn,
)
from ..options import build, option
from ..turn import TurnDetector, TurnStream

__all__ = ["SilenceOptions", "SilenceTurn"]


@attrs.frozen
class SilenceOptions:
    """Options of the silence turn detector."""

    silence_ms: float = option(700.0, "quiet after speech that ends the turn", at_least=50, at_most=10_000)
    early_ms: float = option(250.0, "quiet after which the words are worked out on speculation", at_least=0, at_most=10_000)
    hold_probability: float = option(0.5, "a pending end waits while speech is this likely", at_least=0.01, at_most=1.0)
    max_hold_ms: float = option(2_000.0, "the longest a pending end waits in all", at_least=0, at_most=30_000)


class SilenceTurn(TurnDetector):
    """Ends a turn after `silence_ms` of quiet. Example: `turn.new("silence", silence_ms=500)`."""

    Options = SilenceOptions

    def __init__(self, **options: Any) -> None:
        self.options: SilenceOptions = build(SilenceOptions, options, "turn 'silence'")

    def stream(self) -> TurnStream:
        return _SilenceStream(self.options)


class _SilenceStream(TurnStream):
    """Positions are on the line: a burst after an outage is judged as it was spoken."""

    def __init__(self, options: SilenceOptions) -> None:
        self._options = options
        self._began_ms: float | None = None
        self._quiet_from_ms: float | None = None
        self._proposed = False
        self._held_ms = 0.0
        self._now_ms = 0.0

    def feed(self, frame: Frame) -> Iterable[Frame]:
        kind = type(frame)
        if kind is SpeechProbability:
            assert isinstance(frame, SpeechProbability)
            self._now_ms = frame.end_ms
            return () if self._quiet_from_ms is None else self._wait(frame)
        if isinstance(frame, SpeechStarted):
            if self._began_ms is None:
                self._began_ms = frame.speech_start_ms
            self._quiet_from_ms, self._held_ms = None, 0.0
            return self._withdraw()
        if isinstance(frame, SpeechEnded) and self._began_ms is not None:
            self._quiet_from_ms = frame.speech_end_ms
            return self._judge()
        return ()

    def end_now(self, source: str) -> TurnEnded | None:
        return None if self._began_ms is None else self._end(source)

    def _wait(self, window: SpeechProbability) -> Iterable[Frame]:
        """One more window of quiet, or of something that may be speech again."""
        if window.probability >= self._options.hold_probability and self._held_ms < self._options.max_hold_ms:
            self._held_ms += window.window_ms
            return self._withdraw()
        return self._judge()

    def _judge(self) -> Iterable[Frame]:
        assert self._quiet_from_ms is not None
        quiet_ms = self._now_ms - self._quiet_from_ms
        if quiet_ms >= self._options.silence_ms:
            return (self._end("silence"),)
        if quiet_ms >= self._options.early_ms and not self._proposed:
            self._proposed = True
            return (TurnEndProposed(self._now_ms),)
        return ()

    def _withdraw(self) -> Iterable[Frame]:
        if not self._proposed:
            return ()
        self._proposed = False
        return (TurnEndWithdrawn(self._now_ms),)

    def _end(self, source: str) -> TurnEnded:
        assert self._began_ms is not None
        still_speaking = self._quiet_from_ms is None
        speech_end_ms = self._now_ms if self._quiet_from_ms is None else self._quiet_from_ms
        ended = TurnEnded(self._now_ms, source, self._began_ms, speech_end_ms)
        self._began_ms = self._now_ms if still_speaking else None
        self._quiet_from_ms, self._proposed, self._held_ms = None, False, 0.0
        return ended
