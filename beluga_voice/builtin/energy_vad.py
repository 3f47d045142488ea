"""A VAD that knows only loudness: speech is what stands out of the noise floor it learns."""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np

from ..options import build, option
from ..vad import VAD, Options, VADCapabilities, VADStream

__all__ = ["EnergyOptions", "EnergyVAD"]

QUIETEST_DBFS = -60.0
FLOOR_RISE_DB = 0.05
SLOPE_DB = 2.0


@attrs.frozen
class EnergyOptions(Options):
    """Options of the energy VAD."""

    over_floor_db: float = option(12.0, "how far speech must stand out of the noise, in dB", at_least=1, at_most=60)


class EnergyVAD(VAD):
    """Loudness over a noise floor, as a probability; for clean lines and for tests.

    The floor falls at once to the quietest window and rises slowly. Example: `vad.new("energy", over_floor_db=9)`.
    """

    capabilities = VADCapabilities(sample_rate_hz=16_000, window_samples=512)
    Options = EnergyOptions

    def __init__(self, **options: Any) -> None:
        self.options: EnergyOptions = build(EnergyOptions, options, "vad 'energy'")

    def stream(self) -> VADStream:
        return _EnergyStream(self.options.over_floor_db)


class _EnergyStream(VADStream):
    def __init__(self, over_floor_db: float) -> None:
        self._over_floor_db = over_floor_db
        self._floor_dbfs = QUIETEST_DBFS

    async def probability(self, window: bytes) -> float:
        samples = np.frombuffer(window, "<i2").astype(np.float32)
        power = float(samples @ samples) / max(len(samples), 1) / 32768.0**2
        level_dbfs = max(10.0 * math.log10(power + 1e-12), QUIETEST_DBFS)
        self._floor_dbfs = min(level_dbfs, self._floor_dbfs + FLOOR_RISE_DB)
        over_db = level_dbfs - self._floor_dbfs - self._over_floor_db
        return 1.0 / (1.0 + math.exp(-max(min(over_db / SLOPE_DB, 50.0), -50.0)))
