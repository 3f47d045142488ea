"""What ElevenLabs' messages look like, and what the service takes."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np

from ..audio import silence
from .loopback import Answer
from .tone_speech import GAP_MS, WORD_MS, understand

RATES_HZ = (8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
VOICES = ("JBFqnCBsd6RMkjVDRZzb", "21m00Tcm4TlvDq8ikWAM")
SPEAKING = ("eleven_flash_v2_5", "eleven_turbo_v2_5", "eleven_multilingual_v2", "eleven_v3")
SETTINGS = {"stability": (0, 1), "similarity_boost": (0, 1), "style": (0, 1), "speed": (0.7, 1.2), "use_speaker_boost": (0, 1)}
PIECE_MS = 200.0
LOUD = 700
PAUSE_MS = 15.0


def detail(status: str, message: str) -> bytes:
    """The body of an error."""
    return json.dumps({"detail": {"status": status, "message": message}}).encode()


def refused(status: int, code: str, message: str) -> Answer:
    """An error as an answer."""
    return Answer(status, {"content-type": "application/json"}, detail(code, message))


def expect(is_so: object, otherwise: str) -> None:
    """A ValueError that says `otherwise`, unless it is so."""
    if not is_so:
        raise ValueError(otherwise)


def rate_of(audio_format: str) -> int:
    """The rate of a format like "pcm_16000"."""
    kind, _, rate = audio_format.partition("_")
    expect(kind == "pcm" and rate.isdigit() and int(rate) in RATES_HZ, f"format {audio_format!r} is not served")
    return int(rate)


def check_settings(told: dict[str, Any]) -> None:
    """A ValueError for voice settings the service does not take."""
    for name, value in told.items():
        low, high = SETTINGS.get(name, (math.inf, -math.inf))
        expect(low <= value <= high, f"voice setting {name}={value!r}")


def pieces(pcm: bytes, rate_hz: int, *, odd: bool = False) -> list[bytes]:
    """PCM in pieces of `PIECE_MS`; with `odd`, of a byte more."""
    size = len(silence(PIECE_MS, rate_hz).pcm) + odd
    return [pcm[at : at + size] for at in range(0, len(pcm), size)]


def letter_times(text: str) -> list[tuple[str, float, float]]:
    """Every sign of a text with where it begins and how long it lasts: a word's share its tone, what follows it the pause."""
    out, word_ms = [], 0.0
    for word in text.split():
        tone = any(sign.isalnum() for sign in word)
        sign_ms = WORD_MS / len(word) if tone else 0.0
        out += [(sign, word_ms + at * sign_ms, sign_ms) for at, sign in enumerate(word)]
        word_ms += (WORD_MS + GAP_MS) * tone
        out.append((" ", word_ms - GAP_MS * tone, GAP_MS * tone))
    return out


def alignment(letters: list[tuple[str, float, float]], from_ms: float) -> dict[str, Any] | None:
    """Letter times as the voices' socket tells them, from `from_ms` on."""
    if not letters:
        return None
    starts = [round(start - from_ms) for _, start, _ in letters]
    lasts = [round(ms) for *_, ms in letters]
    return {"chars": [sign for sign, _, _ in letters], "charStartTimesMs": starts, "charDurationsMs": lasts}


def words_in(pcm: bytes, rate_hz: int, from_ms: float) -> list[dict[str, Any]]:
    """The words of tone speech with their times in seconds, spaces between them."""
    samples = np.abs(np.frombuffer(pcm[: len(pcm) // 2 * 2], "<i2"))
    loud = np.flatnonzero(samples > LOUD)
    if not len(loud):
        return []
    cuts = [-1, *np.flatnonzero(np.diff(loud) > rate_hz * PAUSE_MS / 1000.0).tolist(), len(loud) - 1]
    spans = [(int(loud[before + 1]), int(loud[last])) for before, last in pairwise(cuts)]
    spans = [span for span in spans if span[1] - span[0] >= rate_hz * WORD_MS / 2_000]
    out: list[dict[str, Any]] = []
    for text, (start, end) in zip(understand(pcm, rate_hz).split(), spans):
        times = {"start": from_ms / 1000 + start / rate_hz, "end": from_ms / 1000 + end / rate_hz}
        if out:
            out.append({"text": " ", "type": "spacing", "start": out[-1]["end"], "end": times["start"], "logprob": 0.0})
        out.append({"text": text, "type": "word", **times, "logprob": -0.1})
    return out
