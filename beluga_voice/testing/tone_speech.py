"""Speech that programs understand: each word is a tone. A recogniser in a test really hears, a voice really speaks.

It survives resampling, any chunking, and lines of 8 kHz. A word of which less than half is there is not heard.

>>> understand(say("one two, three!"), 16_000)
'one two three'
>>> understand(say("one two")[:-6_000], 16_000)
'one'
"""

from __future__ import annotations

import numpy as np

from ..audio import to_pcm

__all__ = ["GAP_MS", "RATE_HZ", "VOCABULARY", "WORD_MS", "say", "understand", "word_times"]

RATE_HZ = 16_000
WORD_MS, GAP_MS = 200.0, 60.0
LOWEST_HZ, STEP_HZ = 400.0, 50.0
LOUD = 0.02
QUIET_MS = 15.0  # a pause within a word would be shorter

VOCABULARY = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("yes", "no", "hello", "goodbye", "please", "thank", "you", "what", "is", "the", "time", "weather", "in", "paris"),
    *("a", "and", "it", "said", "i", "heard", "tell", "me", "about", "book", "table", "for", "moment", "sorry", "again"),
    *("red", "green", "blue", "left", "right", "stop", "go", "now"),
)
UNKNOWN = "?"  # any other word
PLACES = {word: number for number, word in enumerate((*VOCABULARY, UNKNOWN))}


def _words(text: str) -> list[str]:
    bare = ("".join(sign for sign in word if sign.isalnum()) for word in text.lower().split())
    return [word if word in PLACES else UNKNOWN for word in bare if word]


def say(text: str, rate_hz: int = RATE_HZ) -> bytes:
    """`text` as PCM at `rate_hz`; words that are not in `VOCABULARY` sound alike, and are understood as "?"."""
    time_s = np.arange(round(WORD_MS * rate_hz / 1000.0)) / rate_hz
    edges = np.minimum(1.0, np.minimum(time_s, time_s[::-1]) / 0.005 + 0.1)
    gap = np.zeros(round(GAP_MS * rate_hz / 1000.0))
    pieces = [np.zeros(0)]
    for word in _words(text):
        tone_hz = LOWEST_HZ + STEP_HZ * PLACES[word]
        pieces += [0.3 * edges * np.sin(2 * np.pi * tone_hz * time_s), gap]
    return to_pcm(np.concatenate(pieces))


def word_times(text: str) -> list[tuple[str, float, float]]:
    """Each word of `text` as written, with where its tone begins and ends in `say(text)`, in ms."""
    step_ms = WORD_MS + GAP_MS
    written = [word for word in text.split() if _words(word)]
    return [(word, at * step_ms, at * step_ms + WORD_MS) for at, word in enumerate(written)]


def understand(pcm: bytes, rate_hz: int) -> str:
    """The words that are in `pcm`, as they were said."""
    samples = np.frombuffer(pcm[: len(pcm) // 2 * 2], "<i2") / 32_768.0
    loud = np.flatnonzero(np.abs(samples) > LOUD)
    if not len(loud):
        return ""
    breaks = np.flatnonzero(np.diff(loud) > QUIET_MS * rate_hz / 1000.0)
    starts, ends = loud[np.r_[0, breaks + 1]], loud[np.r_[breaks, len(loud) - 1]] + 1
    names = (*VOCABULARY, UNKNOWN)
    heard = []
    for start, end in zip(starts, ends):
        if (end - start) * 1000.0 / rate_hz < WORD_MS / 2:
            continue
        burst = samples[start:end]
        strength = np.abs(np.fft.rfft(burst * np.hanning(len(burst)), 8 * len(burst)))
        place = (float(np.argmax(strength)) * rate_hz / (8 * len(burst)) - LOWEST_HZ) / STEP_HZ
        if -0.5 < place < len(names) - 0.5:
            heard.append(names[round(place)])
    return " ".join(heard)
