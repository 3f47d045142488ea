"""Speech of which not a sample can be lost, doubled or put into another's mouth unseen: each word is a number, and sounds so.

A word is 200 ms of noise in which every sample has the word's number as its magnitude. The signs differ between words and
between the caller's voice and the agent's, so that no echo guard takes one for the other.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

RATE_HZ = 16_000
WORD_MS = 200
WORD_SAMPLES = RATE_HZ * WORD_MS // 1000
FIRST, LAST = 100, 32_000
CALLER, AGENT = 0, 1
NEAR = WORD_SAMPLES // 50  # 4 ms


def spoken(words: Iterable[int], voice: int = CALLER) -> bytes:
    """The sound of words, as PCM at 16 kHz."""
    return b"".join(_sound(word, voice) for word in words)


def _sound(word: int, voice: int) -> bytes:
    signs = np.random.default_rng((word, voice)).choice((-1, 1), WORD_SAMPLES)
    return (signs * word).astype("<i2").tobytes()


def runs(pcm: bytes) -> list[tuple[int, int]]:
    """What is spoken in `pcm`: each word and for how many samples; quiet is left out."""
    levels = np.abs(np.frombuffer(pcm, "<i2").astype(np.int32))
    if not len(levels):
        return []
    edges = np.flatnonzero(np.diff(levels)) + 1
    starts = np.concatenate(([0], edges))
    lengths = np.diff(np.concatenate((starts, [len(levels)])))
    return [(int(levels[at]), int(length)) for at, length in zip(starts, lengths) if levels[at]]


def written(pcm: bytes) -> str:
    """The words of `pcm` as text: "17 18", and "17~1600" for one of which only so many samples are there (or too many)."""
    return " ".join(str(word) if abs(length - WORD_SAMPLES) < NEAR else f"{word}~{length}" for word, length in runs(pcm))


def read(text: str) -> list[tuple[int, int]]:
    """What `written` wrote; anything that is no number is passed over."""
    told = []
    for token in text.replace(".", " ").split():
        word, _, length = token.partition("~")
        if word.isdigit():
            told.append((int(word), int(length) if length.isdigit() else WORD_SAMPLES))
    return told
