"""Deepgram's engines keep the promises of their kinds, the real SDK against a loopback server."""

import pytest

from beluga_voice import stt, tts
from beluga_voice.audio import Audio
from beluga_voice.clock import run_simulated
from beluga_voice.testing.checking import faults_of
from beluga_voice.testing.deepgram_server import DeepgramServer
from beluga_voice.testing.stt_checks import CHECKS as STT_CHECKS
from beluga_voice.testing.stt_checks import check_stt
from beluga_voice.testing.tone_speech import say, understand
from beluga_voice.testing.tts_checks import CHECKS as TTS_CHECKS
from beluga_voice.testing.tts_checks import check_tts

KEY = "canary-3f81c2"
WORDS = "please tell me the weather in paris now"


@pytest.mark.parametrize("check", STT_CHECKS)
@pytest.mark.parametrize("name", ["deepgram", "deepgram-flux"])
def test_is_a_recogniser(name, check):
    async def main():
        async with DeepgramServer(api_key=KEY) as server:
            await check_stt(
                lambda: stt.new(name, api_key=KEY, base_url=server.url),
                check,
                audio=Audio(say(WORDS), 16_000),
                words=WORDS,
                sick=faults_of(server),
                canary=KEY,
            )

    run_simulated(main())


@pytest.mark.parametrize("check", TTS_CHECKS)
@pytest.mark.parametrize("transport", ["websocket", "http"])
def test_is_a_voice(transport, check):
    async def main():
        async with DeepgramServer(api_key=KEY) as server:
            await check_tts(
                lambda: tts.new("deepgram", api_key=KEY, base_url=server.url, transport=transport),
                check,
                understand=understand,
                sick=faults_of(server),
                canary=KEY,
            )

    run_simulated(main())
