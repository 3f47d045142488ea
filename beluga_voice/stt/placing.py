"""Where on the caller's line something is that a recogniser placed in the audio it was given.

>>> from beluga_voice.frames import TurnEnded
>>> moved(TurnEnded(at_ms=900.0, source="flux", speech_start_ms=100.0), 5_000.0)
TurnEnded(at_ms=5900.0, source='flux', speech_start_ms=5100.0, speech_end_ms=-1.0, text='')
"""

from __future__ import annotations

import attrs

from ..frames import UNPLACED_MS, Frame, Transcript, Word

__all__ = ["moved"]


def moved(frame: Frame, by_ms: float) -> Frame:
    """The frame, `by_ms` later; a transcript's words are, its `through_ms` is no place on a line."""
    if isinstance(frame, Transcript):
        return attrs.evolve(frame, words=tuple(_later(word, by_ms) for word in frame.words))
    names = [field.name for field in attrs.fields(type(frame)) if field.name.endswith("_ms")]
    places = {name: getattr(frame, name) for name in names}
    return attrs.evolve(frame, **{name: place + by_ms for name, place in places.items() if place != UNPLACED_MS})


def _later(word: Word, by_ms: float) -> Word:
    return attrs.evolve(word, start_ms=word.start_ms + by_ms, end_ms=word.end_ms + by_ms)
