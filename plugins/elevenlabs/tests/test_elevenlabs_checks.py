"""What every voice and every recogniser must do, by the suites that all plugins run, against a server that falls ill."""

import pytest
from beluga_voice_elevenlabs.stt import ElevenLabsSTT
from beluga_voice_elevenlabs.tts import ElevenLabsTTS

from beluga_voice.audio import Audio
from beluga_voice.clock import run_simulated
from beluga_voice.testing import stt_checks, tts_checks
from beluga_voice.testing.checking import faults_of
from beluga_voice.testing.elevenlabs_server import ElevenLabsServer
from beluga_voice.testing.tone_speech import say, understand

SAID = "hello what time is it in paris"


def on_trial(check, make, only, **told):
    """Run one check of `make(**access)` against a server of its own."""

    async def main():
        async with ElevenLabsServer(api_key="canary-5f1c9be2") as server:
            access = {"api_key": server.api_key, "base_url": server.url}
            await check(lambda: make(**access), only, sick=faults_of(server), canary=server.api_key, **told)

    run_simulated(main())


@pytest.mark.parametrize("transport", ["websocket", "http"])
@pytest.mark.parametrize("check", tts_checks.CHECKS)
def test_is_a_voice(check, transport):
    """What every voice must do."""
    on_trial(tts_checks.check_tts, lambda **access: ElevenLabsTTS(transport=transport, **access), check, understand=understand)


@pytest.mark.parametrize("mode", ["realtime", "batch"])
@pytest.mark.parametrize("check", stt_checks.CHECKS)
def test_is_a_recogniser(check, mode):
    """What every recogniser must do."""
    sound = Audio(say(SAID), 16_000)
    on_trial(stt_checks.check_stt, lambda **access: ElevenLabsSTT(mode=mode, **access), check, audio=sound, words=SAID)
