"""A voice that beeps once for each word: for tests and for installs without a voice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import attrs
import numpy as np

from ..audio import to_pcm
from ..frames import AudioOut, Word
from ..options import build, option
from ..tts import TTS, Options, TTSCapabilities

__all__ = ["ToneOptions", "ToneTTS"]


@attrs.frozen
class ToneOptions(Options):
    """Options of the tone voice."""

    word_ms: float = option(200.0, "how long one word lasts, its gap included", at_least=10, at_most=5_000)
    pitch_hz: float = option(440.0, "the pitch of the beep", at_least=50, at_most=4_000)
    sample_rate_hz: int = option(16_000, "the rate of its audio", at_least=8_000, at_most=48_000)


class ToneTTS(TTS):
    """A beep for each word, with word times; the same text always sounds the same. Example: `tts.new("tone")`."""

    Options = ToneOptions
    capabilities = TTSCapabilities(word_times=True)

    def __init__(self, **options: Any) -> None:
        self.options: ToneOptions = build(ToneOptions, options, "tts 'tone'")

    async def synthesize_stream(self, texts: AsyncIterator[str]) -> AsyncIterator[AudioOut]:
        options = self.options
        async for text in texts:
            rate_hz, word_ms = options.sample_rate_hz, options.word_ms
            beep = _beep(options)
            for at, word in enumerate(text.split()):
                times = Word(word, at * word_ms, (at + 1) * word_ms)
                yield AudioOut(beep, rate_hz, text if at == 0 else "", (times,))


def _beep(options: ToneOptions) -> bytes:
    """One word: a tone that swells and fades over three quarters of its time."""
    samples = round(options.word_ms * options.sample_rate_hz / 1000)
    sounding = samples * 3 // 4
    tone = 0.3 * np.sin(2 * np.pi * options.pitch_hz * np.arange(sounding) / options.sample_rate_hz)
    tone *= np.hanning(sounding)
    return to_pcm(np.concatenate([tone, np.zeros(samples - sounding)]))
