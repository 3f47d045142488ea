"""What every voice, recogniser and agent must do, by those of OpenAI and Groq, against loopback servers well and sick."""

from __future__ import annotations

import pytest

from beluga_voice import agent, stt, tts
from beluga_voice.audio import Audio
from beluga_voice.clock import run_simulated
from beluga_voice.testing import agent_checks, stt_checks, tts_checks
from beluga_voice.testing.checking import faults_of
from beluga_voice.testing.openai_server import GroqServer, OpenAIServer
from beluga_voice.testing.tone_speech import say, understand

CANARY = "sk-canary-7b1e"
SAID = "one two three four five"
SERVERS = {"openai": OpenAIServer, "groq": GroqServer}


@pytest.mark.parametrize("check", tts_checks.CHECKS)
@pytest.mark.parametrize("name", SERVERS)
def test_is_a_voice(name, check):
    async def main():
        async with SERVERS[name](api_key=CANARY) as server:
            await tts_checks.check_tts(
                lambda: tts.new(name, api_key=CANARY, base_url=server.base_url),
                check,
                understand=understand,
                sick=faults_of(server),
                canary=CANARY,
            )

    run_simulated(main())


@pytest.mark.parametrize("check", stt_checks.CHECKS)
@pytest.mark.parametrize(("name", "mode"), [("openai", "batch"), ("openai", "realtime"), ("groq", "batch")])
def test_is_a_recogniser(name, mode, check):
    async def main():
        async with SERVERS[name](api_key=CANARY) as server:
            await stt_checks.check_stt(
                lambda: stt.new(name, api_key=CANARY, base_url=server.base_url, mode=mode),
                check,
                audio=Audio(say(SAID), 16_000),
                words=SAID,
                sick=faults_of(server),
                canary=CANARY,
            )

    run_simulated(main())


@pytest.mark.parametrize("check", agent_checks.CHECKS)
@pytest.mark.parametrize(("name", "api"), [("openai", "responses"), ("openai", "chat"), ("groq", "chat")])
def test_is_an_agent(name, api, check):
    async def main():
        async with SERVERS[name](api_key=CANARY) as server:
            await agent_checks.check_agent(
                lambda: agent.new(name, api_key=CANARY, base_url=server.base_url, api=api),
                check,
                sick=faults_of(server),
                canary=CANARY,
            )

    run_simulated(main())
