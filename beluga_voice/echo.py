"""Is what the caller's line brings the agent's own voice come back? Told by its sound, without words: pure.

The sound of the line's last moments is looked for in what was played: a voice come back is found there, another is not.
The more sound there is to compare, the less alike it needs to be. Measured, as shares of windows:

| sound | other people's voices alike by (99 %) | echo 20 dB down, direct (5 %) | the same in a small room (5 %, 50 %) |
|---|---|---|---|
| 64 ms | 0.69 | 0.97 | 0.54, 0.70 |
| 128 ms | 0.48 | 0.97 | 0.45, 0.73 |
| 200 ms | 0.54 | 0.97 | 0.56, 0.72 |
| 300 ms | 0.38 | 0.97 | 0.58, 0.74 |
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .audio import Audio, resample

__all__ = ["EchoEar"]

COARSE_HZ = 8_000
HEARD_MS = 320.0
LITTLE_MS, LITTLE_ALIKE = 64.0, 0.8  # of so little sound so much likeness is asked,
MUCH_MS, MUCH_ALIKE = 280.0, 0.5  # of so much, so much
FAINTEST = 4.0  # steps of 16-bit audio: below, there is nothing to compare
QUIET = 0.15  # of the loudest part, in amplitude: less does not count as sound

Samples = NDArray[np.float64]


class EchoEar:
    """Keeps the last moments of the caller's line and compares them with what was played.

    >>> ear, voice = EchoEar(), np.random.default_rng(1).normal(0, 3000, 16_000)
    >>> ear.hear((voice[8_000:13_120] / 10).astype("<i2").tobytes(), 16_000)
    >>> ear.hears(voice.astype("<i2").tobytes(), 16_000), ear.hears(voice[::-1].astype("<i2").tobytes(), 16_000)
    (True, False)
    """

    def __init__(self) -> None:
        self._heard: list[bytes] = []  # a list: it holds few
        self._held = 0
        self._rate_hz = 0

    def hear(self, pcm: bytes, sample_rate_hz: int) -> None:
        """Caller audio, as it comes."""
        if sample_rate_hz != self._rate_hz:
            self._heard.clear()
            self._held, self._rate_hz = 0, sample_rate_hz
        self._heard.append(pcm)
        self._held += len(pcm)
        wanted = round(HEARD_MS * self._rate_hz / 500.0)
        while self._held - len(self._heard[0]) >= wanted:
            self._held -= len(self._heard.pop(0))

    def hears(self, played: bytes, sample_rate_hz: int) -> bool:
        """True when the line's last moments are found in `played`: the PCM that was played of late, at `sample_rate_hz`."""
        if not self._heard or not played:
            return False
        heard, voice = _coarse(b"".join(self._heard), self._rate_hz), _coarse(played, sample_rate_hz)
        share = (_sound_ms(heard) - LITTLE_MS) / (MUCH_MS - LITTLE_MS)
        needed = LITTLE_ALIKE + (MUCH_ALIKE - LITTLE_ALIKE) * min(max(share, 0.0), 1.0)
        return _likeness(heard, voice) >= needed


def _likeness(heard: Samples, played: Samples) -> float:
    """How alike (0..1) `heard` is to the part of `played` most like it, loudness left out of account."""
    own = float(heard @ heard)
    if own < len(heard) * FAINTEST**2:
        return 0.0
    played = np.concatenate((np.zeros(len(heard)), played))  # it may have begun only just now
    size = 1 << (len(played) + len(heard)).bit_length()
    spectrum = np.fft.rfft(played, size) * np.conj(np.fft.rfft(heard, size))
    products = np.fft.irfft(spectrum, size)[: len(played) - len(heard) + 1]
    sums = np.concatenate(([0.0], np.cumsum(played * played)))
    energies = np.maximum(sums[len(heard) :] - sums[: -len(heard)], len(heard) * FAINTEST**2)
    return float(np.max(np.abs(products) / np.sqrt(energies * own)))


def _coarse(pcm: bytes, rate_hz: int) -> Samples:
    """The samples at `COARSE_HZ`: enough to tell voices by, at half the cost."""
    if rate_hz % COARSE_HZ:
        pcm, rate_hz = resample(Audio(pcm, rate_hz), COARSE_HZ).pcm, COARSE_HZ
    samples = np.frombuffer(pcm, "<i2").astype(np.float64)
    step = rate_hz // COARSE_HZ
    coarse: Samples = samples[: len(samples) // step * step].reshape(-1, step).mean(axis=1)
    return coarse


def _sound_ms(heard: Samples) -> float:
    """How much of `heard` is sound and not the quiet before it."""
    step = COARSE_HZ // 100
    levels = np.sqrt(np.mean(heard[len(heard) % step :].reshape(-1, step) ** 2, axis=1))
    return 10.0 * float(np.count_nonzero(levels > QUIET * levels.max()))
