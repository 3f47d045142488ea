"""A processor that makes the caller louder or softer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import attrs
import numpy as np

from ..engine import Context
from ..frames import AudioIn, Frame
from ..options import build, option

__all__ = ["Gain", "GainOptions"]


@attrs.frozen
class GainOptions:
    """Options of the gain processor."""

    db: float = option(0.0, "gain in dB; negative is softer", at_least=-60, at_most=60)


class Gain:
    """Multiplies caller audio, clipping what would be too loud. Example: `processor.new("gain", db=6)`."""

    Options = GainOptions
    name = "gain"
    side = "ears"

    def __init__(self, **options: Any) -> None:
        self.options: GainOptions = build(GainOptions, options, "processor 'gain'")

    async def process(self, frames: AsyncIterator[Frame], context: Context) -> AsyncIterator[Frame]:
        """Every frame, caller audio multiplied."""
        factor = np.float32(10.0 ** (self.options.db / 20.0))
        async for frame in frames:
            if type(frame) is AudioIn:
                louder = np.rint(np.frombuffer(frame.pcm, "<i2") * factor)
                pcm = np.clip(louder, -32768, 32767).astype("<i2").tobytes()
                frame = AudioIn(pcm, frame.sample_rate_hz, frame.at_ms)
            yield frame
