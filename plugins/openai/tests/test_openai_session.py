"""Whole conversations: tone speech in, tone speech out, everything in between by the real SDK over real sockets."""

from __future__ import annotations

import json

import pytest

from beluga_voice import Chain, agent, stt, tts, turn
from beluga_voice.audio import Audio
from beluga_voice.builtin.recorded_line import RecordedLine
from beluga_voice.clock import run_simulated
from beluga_voice.session import Session
from beluga_voice.testing import LoudVAD, quiet
from beluga_voice.testing.openai_server import GroqServer, OpenAIServer, Says
from beluga_voice.testing.tone_speech import say, understand
from beluga_voice.tools import tool

RATE_HZ = 16_000


@tool
async def weather(city: str) -> str:
    """The weather of a city."""
    return f"red in {city}"


def model(messages):
    """Asks for the weather where the caller does, else says back what it heard."""
    last = messages[-1]
    if last["role"] == "tool":
        return Says(f"It is {last['content']}.")
    if "weather" in last["content"]:
        return Says(calls=[("weather", {"city": "paris"})])
    return Says(f"I heard {last['content']}.")


def hold(server_class, name, caller, *, at=None, **engines):
    """A session over the caller's audio: the session, its events, what the agent sounded like, the server."""

    async def main():
        async with server_class() as server:
            server.model, server.word_ms = model, 10.0
            given = {"api_key": server.api_key, "base_url": server.base_url}
            chain = Chain(
                LoudVAD(),
                turn.new("silence"),
                stt.new(name, **given, **engines.get("stt", {})),
                agent.new(name, tools=(weather,), **given, **engines.get("agent", {})),
                tts.new(name, **given),
            )
            said, events = [], []
            line = RecordedLine(Audio(caller, RATE_HZ), tail_ms=4_000, on_audio=lambda _, reply: said.append(reply))
            session = Session(chain, line, listeners=[events.append])
            await session.run()
            return session, events, b"".join(said), server

    return run_simulated(main())


def turns_of(*texts):
    return quiet(300) + b"".join(say(text) + quiet(3_500) for text in texts)


CASES = [
    (OpenAIServer, "openai", {"stt": {"mode": "batch"}, "agent": {"api": "responses"}}),
    (OpenAIServer, "openai", {"stt": {"mode": "realtime"}, "agent": {"api": "chat"}}),
    (GroqServer, "groq", {}),
]


@pytest.mark.parametrize(("server_class", "name", "engines"), CASES)
def test_a_conversation_with_a_tool(server_class, name, engines):
    """Heard, answered by a tool's result, spoken; then the next turn, whose request tells the first."""
    session, events, said, server = hold(server_class, name, turns_of("what is the weather", "thank you"), **engines)
    told = [(message.role, message.text) for message in session.history]
    assert told == [
        ("user", "what is the weather"),
        ("assistant", "It is red in paris."),
        ("user", "thank you"),
        ("assistant", "I heard thank you."),
    ]
    assert understand(said, RATE_HZ) == "it is red in paris i heard thank you"
    assert [event.name for event in events if event.name in ("error", "turn_empty")] == []
    used = {(event.data["kind"], unit) for event in events if event.name == "usage" for unit in event.data["amounts"]}
    assert {
        ("stt", "audio_ms"),
        ("stt", "input_tokens"),
        ("agent", "input_tokens"),
        ("agent", "output_tokens"),
        ("tts", "characters"),
    } <= used
    last = [request for request in server.requests if request.path.endswith(("/responses", "/chat/completions"))][-1]
    assert "red in paris" in json.dumps(json.loads(last.body))
    assert len(server.sockets) == (1 if engines.get("stt", {}).get("mode") == "realtime" else 0)


def test_a_caller_who_interrupts_stops_what_is_made_for_the_reply():
    """Barge-in in mid-reply: what upstream still makes is stopped, the next turn is answered, its history is what was heard."""

    def long(messages):
        heard = messages[-1]["content"]
        return Says("one two three four five six seven eight nine ten " * 4 if heard == "go" else f"I heard {heard}.")

    async def main():
        async with OpenAIServer() as server:
            server.model, server.word_ms = long, 90.0
            given = {"api_key": server.api_key, "base_url": server.base_url}
            chain = Chain(
                LoudVAD(),
                turn.new("silence"),
                stt.new("openai", mode="realtime", **given),
                agent.new("openai", **given),
                tts.new("openai", **given),
            )
            caller = quiet(300) + say("go") + quiet(6_000) + say("stop now please") + quiet(4_000)
            session = Session(chain, RecordedLine(Audio(caller, RATE_HZ), tail_ms=4_000))
            await session.run()
            return session.history, server

    history, server = run_simulated(main())
    assert [message.text for message in history if message.role == "user"] == ["go", "stop now please"]
    assert 0 < len(history[1].heard_text.split()) < 40
    assert history[3].heard_text == "I heard stop now please."
    told = json.loads([request for request in server.requests if request.path.endswith("completions")][-1].body)["messages"]
    assert {"role": "assistant", "content": history[1].heard_text} in told
    cut = [request for request in server.requests if not request.whole and request.path.endswith(("speech", "completions"))]
    assert cut
    assert server.open_sockets == 0
