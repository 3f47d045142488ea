"""A whole conversation over Deepgram: a VAD and a turn detector of ours, Nova's ears, Aura's voice."""

import pytest

from beluga_voice import Chain, Session, stt, tts, turn
from beluga_voice.audio import Audio
from beluga_voice.builtin.recorded_line import RecordedLine
from beluga_voice.clock import run_simulated
from beluga_voice.testing import LoudVAD, quiet
from beluga_voice.testing.deepgram_server import DeepgramServer
from beluga_voice.testing.loopback import Sickness
from beluga_voice.testing.tone_speech import say, understand


async def reply(text, history):
    yield f"I heard {text}. "
    yield "one two three four five six seven eight nine ten. eleven twelve zero."


def conversation(caller, *, sick=None):
    """A session over the caller's sound: itself, its events, what the agent sounded like, and the server."""

    async def main():
        async with DeepgramServer() as server:
            if sick is not None:
                server.sicken(sick, calls=2)
            given = {"api_key": server.api_key, "base_url": server.url}
            voice = tts.new("deepgram", **given)
            chain = Chain(LoudVAD(), turn.new("silence"), stt.new("deepgram", **given), reply, voice)
            sounds, events = [], []
            line = RecordedLine(Audio(caller, 16_000), tail_ms=8_000, on_audio=lambda *sides: sounds.append(sides))
            session = Session(chain, line, listeners=[events.append])
            await session.run()
            return session, events, b"".join(agent for _, agent in sounds), server

    return run_simulated(main())


def test_is_heard_answered_and_interrupted():
    """Two turns, the second into the reply to the first: heard, cut, answered; the history has what was heard."""
    caller = quiet(500) + say("hello one two") + quiet(3_000) + say("stop now please") + quiet(2_000)
    session, _, agent, server = conversation(caller)
    assert [record.user_text for record in session.turns] == ["hello one two", "stop now please"]
    first, second = session.turns
    assert first.interrupted
    assert first.heard_text.startswith("I heard hello one two. one two")
    assert second.heard_text.endswith("eleven twelve zero.")
    assert understand(agent, 16_000).startswith("i heard hello one two one two")
    assert understand(agent, 16_000).endswith("ten eleven twelve zero")
    assert (second.stt_provider, second.tts_provider) == ("deepgram", "deepgram")
    assert sorted(socket.request.path for socket in server.sockets) == ["/v1/listen", "/v1/speak"]
    assert server.open_sockets == 0


def test_tells_what_it_used():
    """Usage for the bill: audio listened to, characters spoken."""
    _, events, _, _ = conversation(quiet(500) + say("hello one two") + quiet(2_000))
    used = [event.data for event in events if event.name == "usage"]
    listened = sum(data["amounts"]["audio_ms"] for data in used if data["kind"] == "stt")
    spoken = sum(data["amounts"]["characters"] for data in used if data["kind"] == "tts")
    assert listened == pytest.approx(1_720, abs=100)
    assert spoken == len("I heard hello one two.") + len("one two three four five six seven eight nine ten.") + len(
        "eleven twelve zero."
    )


def test_survives_a_server_that_refuses_at_first():
    """The sockets that open with the session are refused: the first turn is heard and answered all the same."""
    session, _, _, _ = conversation(quiet(500) + say("hello one") + quiet(2_000), sick=Sickness("refuse", status=503))
    assert [record.user_text for record in session.turns] == ["hello one"]
    assert session.turns[0].heard_text.endswith("eleven twelve zero.")
