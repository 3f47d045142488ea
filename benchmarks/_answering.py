"""What `bench_server.py` has served: `beluga-voice serve _answering:manager`. Providers that cost next to nothing."""

from __future__ import annotations

from beluga_voice import Audio, Chain, SessionManager, stt, tts, turn
from beluga_voice.frames import Transcript
from beluga_voice.testing import LoudVAD

WORDS = 15  # a word of the tone voice takes 200 ms


class InstantSTT(stt.STT):
    async def transcribe(self, audio: Audio) -> Transcript:
        return Transcript("something was said")


async def reply(text: str, history: tuple) -> str:
    return " ".join(["word"] * WORDS) + "."


manager = SessionManager(
    Chain(LoudVAD(), turn.new("silence"), InstantSTT(), reply, tts.new("tone")),
    max_sessions=100_000,
    idle_timeout_ms=3_600_000,
)
