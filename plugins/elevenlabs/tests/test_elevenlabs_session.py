"""Whole conversations heard by Scribe and spoken by ElevenLabs: tone speech on the line, the real SDK in between."""

import asyncio

import pytest
from beluga_voice_elevenlabs.stt import ElevenLabsSTT
from beluga_voice_elevenlabs.tts import ElevenLabsTTS

from beluga_voice import Chain, Session, turn
from beluga_voice.audio import Audio
from beluga_voice.builtin.recorded_line import RecordedLine
from beluga_voice.clock import run_simulated
from beluga_voice.testing import LoudVAD, quiet
from beluga_voice.testing.elevenlabs_server import ElevenLabsServer
from beluga_voice.testing.tone_speech import say, understand

RATE_HZ = 16_000


async def reply(text, history):
    yield "I heard "
    yield f"{text}. What"
    yield " now?"


async def talk(server, caller, transport="websocket", mode="realtime", agent=reply):
    """Hold a session over a caller's audio; it, and what the caller heard."""
    access = {"api_key": server.api_key, "base_url": server.url}
    chain = Chain(
        LoudVAD(),
        turn.new("silence"),
        ElevenLabsSTT(mode=mode, **access),
        agent,
        ElevenLabsTTS(transport=transport, **access),
    )
    both = []
    line = RecordedLine(Audio(caller, RATE_HZ), tail_ms=4_000, on_audio=lambda *sides: both.append(sides))
    session = Session(chain, line)
    await session.run()
    return session, understand(b"".join(agent for _, agent in both), RATE_HZ)


@pytest.mark.parametrize("transport", ["websocket", "http"])
@pytest.mark.parametrize("mode", ["realtime", "batch"])
def test_a_conversation_is_heard_and_answered(transport, mode):
    """Two turns; one socket each way a session where there are sockets; nothing is left when it ends."""
    caller = quiet(500) + say("hello") + quiet(4_000) + say("what time is it") + quiet(1_000)

    async def main():
        async with ElevenLabsServer() as server:
            session, heard = await talk(server, caller, transport, mode)
            await asyncio.sleep(0.1)
            assert server.open_sockets == server.open_connections == 0
            return [record.user_text for record in session.turns], heard, [socket.request.path for socket in server.sockets]

    turns, heard, sockets = run_simulated(main())
    assert turns == ["hello", "what time is it"]
    assert heard == "i heard hello what now i heard what time is it what now"
    assert len(sockets) == (transport == "websocket") + (mode == "realtime")


def test_a_caller_who_interrupts_is_told_what_was_heard():
    """The reply stops at a word; its context is closed; the history holds what was heard, by the words' own times."""
    caller = quiet(500) + say("hello") + quiet(2_300) + say("stop stop stop stop") + quiet(4_000)

    async def counting(text, history):
        yield "One two three four five six. Seven eight nine ten." if text == "hello" else "Goodbye."

    async def main():
        async with ElevenLabsServer() as server:
            session, heard = await talk(server, caller, agent=counting)
            return session.history, heard, len(server.sockets)

    history, heard, sockets = run_simulated(main())
    assert [message.text for message in history if message.role == "user"] == ["hello", "stop stop stop stop"]
    first = next(message for message in history if message.role == "assistant")
    words = first.heard_text.split()
    assert 3 <= len(words) <= 9
    assert " ".join(words) == " ".join(first.text.split()[: len(words)])
    assert heard.split()[len(words) :] in (["goodbye"], [heard.split()[len(words)], "goodbye"])  # the word it was cut in
    assert sockets == 2


def test_two_sessions_at_once_share_the_client_and_nothing_else():
    """Each has sockets of its own, and hears its own answer."""

    async def main():
        async with ElevenLabsServer() as server:
            calls = [quiet(500) + say(word) + quiet(2_000) for word in ("red", "blue")]
            told = await asyncio.gather(*(talk(server, call) for call in calls))
            return [heard for _, heard in told], len(server.sockets)

    heard, sockets = run_simulated(main())
    assert heard == ["i heard red what now", "i heard blue what now"]
    assert sockets == 4
