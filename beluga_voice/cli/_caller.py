"""A caller made on the spot, for a first call without a recording: three questions, spoken by the local voice."""

from __future__ import annotations

from .. import audio
from ..audio import Audio
from ..engine import Context
from ..tts import TTS
from .say import speak

__all__ = ["QUESTIONS", "caller"]

RATE_HZ = 16_000
LEAD_MS = 600.0
# What the caller says, and how long it waits for the answer of the `rules` agent in a slow voice. Chosen among what it
# answers by ear: moonshine understood these from piper and from espeak's
# default, American and British voices; "Goodbye." and most sums it did not.
QUESTIONS = (("What can you do?", 10_500.0), ("Count from one to five.", 5_000.0), ("Please hang up.", 1_000.0))


async def caller(voice: TTS, greeting: str = "") -> Audio:
    """The caller's side of a call: the questions in `voice`, with pauses for the answers, 16 kHz.

    Args:
        voice: who asks; entered already.
        greeting: what the agent will say first, in the same voice; the caller hears it out.

    Raises:
        ProviderError: the voice failed.
    """
    async with Context() as context:
        greeted_ms = (await speak(voice, greeting, context)).sound.duration_ms + LEAD_MS if greeting else 0.0
        pcm = [audio.silence(greeted_ms + LEAD_MS, RATE_HZ).pcm]
        for question, wait_ms in QUESTIONS:
            sound = (await speak(voice, question, context)).sound
            pcm += [audio.resample(sound, RATE_HZ).pcm, audio.silence(wait_ms, RATE_HZ).pcm]
    return Audio(b"".join(pcm), RATE_HZ)
