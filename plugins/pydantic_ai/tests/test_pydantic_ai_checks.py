"""What every agent must do, by pydantic-ai with its OpenAI models against a loopback server, well and sick."""

from __future__ import annotations

import pytest
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from beluga_voice import agent
from beluga_voice.clock import run_simulated
from beluga_voice.testing import agent_checks
from beluga_voice.testing.checking import faults_of
from beluga_voice.testing.openai_server import OpenAIServer, Says

CANARY = "sk-canary-41d8"
MODELS = {"chat": OpenAIChatModel, "responses": OpenAIResponsesModel}


def script(messages):
    """Call the clock when asked for the time, then say it."""
    last = messages[-1]
    if last["role"] == "tool":
        return Says(f"It is {last['content']}.")
    if "time" in str(last["content"]):
        return Says(calls=[("clock", {})])
    return Says("Two plus three is five.")


@pytest.mark.parametrize("check", agent_checks.CHECKS)
@pytest.mark.parametrize("api", MODELS)
def test_is_an_agent(api, check):
    def make(server):
        model = MODELS[api]("gpt-5.4-mini", provider=OpenAIProvider(api_key=CANARY, base_url=server.base_url))
        model.client.max_retries = 0
        mine = Agent(model)

        @mine.tool_plain
        async def clock() -> str:
            return "noon"

        return agent.new("pydantic_ai", agent=mine)

    async def main():
        async with OpenAIServer(api_key=CANARY) as server:
            server.model = script
            await agent_checks.check_agent(
                lambda: make(server), check, tool_question="What time is it?", sick=faults_of(server), canary=CANARY
            )

    run_simulated(main())
