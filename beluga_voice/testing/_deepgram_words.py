"""What the parts of the Deepgram server share: its words, their form, and what a request asks for."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from .loopback import Request
from .tone_speech import understand

__all__ = ["REQUEST_ID", "WORD_GAP_S", "Heard", "channel", "chunks", "heard", "is_empty", "is_quiet", "rate_hz_of", "type_of"]

REQUEST_ID = "8a5b4c9e-0000-4000-8000-c0ffee000001"
WORD_GAP_S = 0.03
LOUD = 0.02 * 32_768

Heard = tuple[str, float, float]


def is_empty(request: Request) -> bool:
    """True when it is to be answered without content."""
    return request.sick is not None and request.sick.kind == "empty"


def rate_hz_of(request: Request) -> int:
    """The rate it asks for."""
    return int(request.query.get("sample_rate", ["24000"])[0])


def chunks(pcm: bytes, size: int = 4_800) -> list[bytes]:
    """The sound in messages of `size` bytes."""
    return [pcm[at : at + size] for at in range(0, len(pcm), size)]


def type_of(message: str) -> str:
    """The type of a message; empty for one that has none."""
    try:
        return str(json.loads(message)["type"])
    except (ValueError, KeyError, TypeError):
        return ""


def is_quiet(pcm: bytes) -> bool:
    """True when nothing in it is loud."""
    return not np.any(np.abs(_samples(pcm)) > LOUD)


def _samples(pcm: bytes) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.frombuffer(pcm[: len(pcm) // 2 * 2], "<i2").astype(np.int32)


def heard(pcm: bytes, rate_hz: int, from_s: float = 0.0) -> list[Heard]:
    """The words of tone speech with where they begin and end, in seconds."""
    samples = _samples(pcm)
    loud = np.flatnonzero(np.abs(samples) > LOUD)
    if not len(loud):
        return []
    breaks = np.flatnonzero(np.diff(loud) > WORD_GAP_S * rate_hz)
    starts, ends = loud[np.r_[0, breaks + 1]], loud[np.r_[breaks, len(loud) - 1]] + 1
    words = ((understand(samples[start:end].astype("<i2").tobytes(), rate_hz), start, end) for start, end in zip(starts, ends))
    return [(word, from_s + start / rate_hz, from_s + end / rate_hz) for word, start, end in words if word]


def channel(words: list[Heard]) -> dict[str, Any]:
    """Words as a result has them."""
    told = [
        {"word": word, "start": round(start, 3), "end": round(end, 3), "confidence": 0.98, "punctuated_word": word}
        for word, start, end in words
    ]
    text = " ".join(word for word, _, _ in words)
    return {"alternatives": [{"transcript": text, "confidence": 0.98 if words else 0.0, "words": told}]}
