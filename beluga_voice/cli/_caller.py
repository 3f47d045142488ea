"""A caller made on the spot, for a first call without a recording: three questions, spoken by the local voice."""

from __future__ import annotations

from .. import audio
from ..audio import Audio
from ..tts import TTS
from .say import speak

__all__ = ["QUESTIONS", "caller"]

RATE_HZ = 16_000
LEAD_MS = 600.0
# What the caller says and how long it then waits: as the `rules` agent answers, in a slow voice, and some more.
QUESTIONS = (("What can you do?", 12_500.0), ("What is twelve plus thirty?", 5_000.0), ("Goodbye.", 1_000.0))


async def caller(voice: TTS) -> Audio:
    """The caller's side of a call: the questions in `voice`, with pauses for the answers, 16 kHz.

    Raises:
        ProviderError: the voice failed.
    """
    pcm = [audio.silence(LEAD_MS, RATE_HZ).pcm]
    for question, wait_ms in QUESTIONS:
        sound, _ = await speak(voice, question)
        pcm += [audio.resample(sound, RATE_HZ).pcm, audio.silence(wait_ms, RATE_HZ).pcm]
    return Audio(b"".join(pcm), RATE_HZ)
