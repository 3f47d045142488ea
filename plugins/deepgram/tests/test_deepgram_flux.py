"""Flux through the real SDK: its events as the frames of a turn source, and whole conversations without a VAD."""

import asyncio
from contextlib import aclosing, asynccontextmanager

import pytest

from beluga_voice import Chain, stt, tts
from beluga_voice.audio import Audio
from beluga_voice.clock import Clock, run_simulated
from beluga_voice.errors import ConnectFailedError, InvalidRequestError, OptionError, ProtocolError, ProviderTimeoutError
from beluga_voice.frames import EndTurn, Transcript, TurnEnded, TurnEndProposed, TurnEndWithdrawn
from beluga_voice.settings import SessionOptions
from beluga_voice.testing import LoudVAD, hold, quiet
from beluga_voice.testing.deepgram_server import DeepgramServer
from beluga_voice.testing.loopback import Sickness
from beluga_voice.testing.tone_speech import say

RATE_HZ = 16_000


@asynccontextmanager
async def listening(server=None, **options):
    async with (
        server or DeepgramServer() as running,
        stt.new("deepgram-flux", api_key=running.api_key, base_url=running.url, **options) as engine,
        aclosing(engine.stream()) as stream,
    ):
        yield running, engine, stream


async def speak(stream, pcm):
    for at in range(0, len(pcm), 640):
        await stream.send(Audio(pcm[at : at + 640], RATE_HZ))
        await Clock().sleep_ms(20)


async def told_until(stream, last):
    told = []
    async for frame in stream:
        told.append(frame)
        if isinstance(frame, last):
            return told
    raise AssertionError(f"the stream ended before a {last.__name__}")


def kinds(told):
    return [type(frame).__name__ for frame in told]


class TestTurns:
    def test_are_told_from_their_first_word_to_their_end(self):
        """StartOfTurn is where speech starts, EndOfTurn its end, the final transcript and the turn's end, in this order."""

        async def main():
            async with listening() as (_, _, stream):
                await speak(stream, quiet(500) + say("one two") + quiet(1_000))
                return await told_until(stream, TurnEnded)

        told = run_simulated(main())
        started, *interims, ended, final, over = told
        assert kinds([started, ended, final, over]) == ["SpeechStarted", "SpeechEnded", "Transcript", "TurnEnded"]
        assert [one.text for one in interims] == ["one", "one two"]
        assert started.speech_start_ms == pytest.approx(500, abs=5)
        assert ended.speech_end_ms == pytest.approx(960, abs=5)
        assert (final.text, final.is_final, final.closes) == ("one two", True, False)
        assert ended.at_ms == pytest.approx(1_400, abs=260)
        assert final.through_ms == over.at_ms == pytest.approx(1_660, abs=20)
        assert (over.source, over.speech_start_ms, over.speech_end_ms) == ("flux", started.speech_start_ms, ended.speech_end_ms)

    def test_have_places_also_where_words_have_no_times(self):
        """Older servers give words without times: speech began after the last quiet, and ended with the last new word."""

        async def main():
            server = DeepgramServer()
            server.word_times = False
            async with listening(server) as (_, _, stream):
                await speak(stream, quiet(1_000) + say("one two") + quiet(1_000))
                return await told_until(stream, TurnEnded)

        told = run_simulated(main())
        assert told[0].speech_start_ms == pytest.approx(1_000, abs=260)
        assert told[-1].speech_end_ms == pytest.approx(1_460, abs=100)
        assert all(not frame.words for frame in told if isinstance(frame, Transcript))

    def test_may_be_proposed_early_and_withdrawn(self):
        """EagerEndOfTurn proposes an end, so that work on speculation may begin; TurnResumed withdraws it."""

        async def main():
            async with listening(eager_eot_threshold=0.4) as (server, _, stream):
                await speak(stream, say("one") + quiet(500) + say("two") + quiet(1_000))
                told = await told_until(stream, TurnEnded)
                return told, server.requests[0].query

        told, query = run_simulated(main())
        steps = [name for name in kinds(told) if name.startswith("Turn")]
        assert steps == ["TurnEndProposed", "TurnEndWithdrawn", "TurnEndProposed", "TurnEnded"]
        assert query["eager_eot_threshold"] == ["0.4"]
        assert [frame.text for frame in told if isinstance(frame, Transcript) and frame.is_final] == ["one two"]
        early = next(frame for frame in told if isinstance(frame, TurnEndProposed))
        again = next(frame for frame in told if isinstance(frame, TurnEndWithdrawn))
        assert 580 < early.at_ms < again.at_ms < 900

    def test_are_not_proposed_unless_asked_for(self):
        async def main():
            async with listening() as (server, _, stream):
                await speak(stream, say("one") + quiet(1_000))
                return await told_until(stream, TurnEnded), server.requests[0].query

        told, query = run_simulated(main())
        assert "TurnEndProposed" not in kinds(told)
        assert "eager_eot_threshold" not in query

    def test_end_when_they_are_asked_to(self):
        """`finalize` is ForceEndTurn: one closing final, before the quiet that Flux would have waited for."""

        async def main():
            async with listening() as (_, _, stream):
                await speak(stream, say("one two"))
                await stream.finalize()
                return await told_until(stream, TurnEnded)

        told = run_simulated(main())
        assert [(one.text, one.closes) for one in told if isinstance(one, Transcript) and one.is_final] == [("one two", True)]

    def test_that_are_not_there_cannot_be_ended(self):
        """The server ignores ForceEndTurn where nobody speaks: the closing final is empty, after a short wait."""

        async def main():
            async with listening(finalize_timeout_ms=300) as (_, engine, stream):
                await speak(stream, quiet(500))
                began_ms = Clock().now_ms()
                await stream.finalize()
                speaking = asyncio.ensure_future(speak(stream, quiet(2_000)))
                told = await told_until(stream, Transcript)
                speaking.cancel()
                return told, Clock().now_ms() - began_ms, engine.counters["finalize_unanswered"]

        told, waited_ms, counted = run_simulated(main())
        assert [(one.text, one.is_final, one.closes) for one in told] == [("", True, True)]
        assert waited_ms == pytest.approx(300, abs=30)
        assert counted == 1

    def test_are_words_where_only_words_are_wanted(self):
        """`transcribe` gives the words, whatever else the stream tells."""

        async def main():
            async with listening() as (_, engine, _):
                return await engine.transcribe(Audio(say("one two"), RATE_HZ))

        assert run_simulated(main()).text == "one two"


class TestFailures:
    @pytest.mark.parametrize(
        ("sickness", "error", "message"),
        [
            (Sickness("hang"), ProviderTimeoutError, "not answered within 3000 ms"),
            (Sickness("hang", after=2), ProviderTimeoutError, "nothing came of 3"),
            (Sickness("cut", after=2), ConnectFailedError, "the connection broke"),
            (Sickness("garbage", after=2), ProtocolError, "as its documentation has it"),
            (Sickness("refuse", status=400), InvalidRequestError, "HTTP 400"),
        ],
    )
    def test_are_told_as_they_are(self, sickness, error, message):
        async def main():
            async with listening() as (server, _, stream):
                server.sick = sickness
                await speak(stream, say("one two") + quiet(5_000))
                await told_until(stream, TurnEnded)

        with pytest.raises(error, match=message):
            run_simulated(main())

    def test_of_thresholds_nobody_can_reach(self):
        async def main():
            async with listening(eot_threshold=0.5, eager_eot_threshold=0.8) as (_, _, stream):
                await stream.connect()

        with pytest.raises(InvalidRequestError, match="eager_eot_threshold must not be above"):
            run_simulated(main())

    def test_of_options_out_of_range(self):
        with pytest.raises(OptionError, match=r"0\.5 to 1"):
            stt.new("deepgram-flux", api_key="k", eot_threshold=0.2)


# --- conversations ---------------------------------------------------------------------------------------------------


async def reply(text, history):
    yield f"I heard {text}. "
    yield "one two three four five six seven eight nine ten. eleven twelve zero one two three."


def conversation(caller, *, before=(), options=None, at=(), prepare=lambda server: None, **flux):
    """A whole session with Flux's ears and Aura's voice; the server lives as long as the session's engines."""
    server = DeepgramServer()
    prepare(server)

    class Ears(type(stt.new("deepgram-flux", api_key="k"))):
        async def prewarm(self):
            await server.__aenter__()
            for engine in (self, voice):
                engine._lease = None
                engine.options = type(engine.options)(api_key=server.api_key, base_url=server.url, **given[type(engine)])
                engine._set_access()
            await super().prewarm()

        async def aclose(self):
            await super().aclose()
            await server.__aexit__()

    voice = tts.new("deepgram", api_key="k")
    ears = Ears(api_key="k")
    given = {Ears: flux, type(voice): {}}
    call = hold(Chain(*before, ears, reply, voice), caller, options, at=at, tail_ms=8_000)
    return call, server


def spoken(call):
    return [record.user_text for record in call.turns]


class TestConversations:
    def test_need_neither_vad_nor_turn_detector(self):
        """Two turns are heard, answered, and placed on the line as they were spoken; one socket each way."""
        caller = quiet(500) + say("hello one") + quiet(9_000) + say("thank you") + quiet(1_500)
        call, server = conversation(caller)
        assert spoken(call) == ["hello one", "thank you"]
        assert [record.source for record in call.turns] == ["flux", "flux"]
        assert call.turns[0].speech_start_ms == pytest.approx(500, abs=5)
        assert call.turns[0].speech_end_ms == pytest.approx(960, abs=5)
        assert call.turns[0].endpointing_ms == pytest.approx(700, abs=25)
        assert sorted(socket.request.path for socket in server.sockets) == ["/v1/speak", "/v2/listen"]
        assert server.open_sockets == 0

    def test_are_interrupted_by_speech_without_a_vad(self):
        """Speech during the reply pauses it, cuts it, and is the next turn."""
        caller = quiet(500) + say("hello one") + quiet(2_500) + say("stop now please") + quiet(1_500)
        call, _ = conversation(caller)
        assert spoken(call) == ["hello one", "stop now please"]
        first = call.turns[0]
        assert first.interrupted
        assert first.heard_text.startswith("I heard hello one.")
        onset_ms = 500 + 520 + 2_500
        assert call.times("reply_paused")[0] - onset_ms <= 200
        assert call.times("interrupted")[0] - onset_ms <= 300

    def test_go_on_after_a_backchannel(self):
        """ "Yes" during the reply is no interruption: it pauses, and goes on to its end."""
        caller = quiet(500) + say("hello one") + quiet(2_500) + say("yes") + quiet(9_000)
        call, _ = conversation(caller)
        assert spoken(call) == ["hello one"]
        assert not call.turns[0].interrupted
        assert call.turns[0].heard_text.endswith("one two three.")
        assert call.times("reply_paused")
        assert call.times("reply_resumed")

    def test_know_the_end_of_speech_before_the_end_of_the_turn(self):
        """Quiet that Flux waits for is no speech: a longer backchannel interrupts no more than a short one."""
        caller = quiet(500) + say("hello one") + quiet(2_500) + say("yes yes") + quiet(9_000)
        call, _ = conversation(caller)
        assert spoken(call) == ["hello one"]
        assert not call.turns[0].interrupted

    def test_may_have_a_vad_as_well(self):
        """With a VAD in the chain speech is told once, by the VAD."""
        caller = quiet(500) + say("hello one") + quiet(2_500) + say("stop now please") + quiet(1_500)
        call, _ = conversation(caller, before=[LoudVAD()])
        assert spoken(call) == ["hello one", "stop now please"]
        assert len(call.times("speech_started")) == len(call.times("speech_ended")) == 2

    def test_propose_ends_of_turns(self):
        caller = quiet(500) + say("hello one") + quiet(2_000)
        call, _ = conversation(caller, eager_eot_threshold=0.4)
        assert call.times("turn_end_proposed")[0] < call.times("turn_ended")[0]

    def test_end_a_turn_by_a_button_or_a_limit(self):
        """A wish to end the turn now reaches Flux: nobody waits for its own opinion."""
        caller = quiet(500) + say("hello one") + quiet(4_000)
        call, _ = conversation(caller, at=[(1_200, lambda session: session.feed(EndTurn("push")))])
        assert spoken(call) == ["hello one"]
        assert call.times("turn_ended")[0] == pytest.approx(1_200, abs=25)
        long = quiet(500) + say("one two three four five six seven") + quiet(3_000)
        call, _ = conversation(long, options=SessionOptions(max_turn_ms=1_000))
        assert spoken(call)[0].startswith("one two three")
        assert call.times("turn_ended")[0] == pytest.approx(1_620, abs=60)

    def test_go_on_over_another_socket_when_one_breaks(self):
        """A socket cut between two turns costs no word, and later speech still has its place on the line."""
        caller = quiet(500) + say("hello one") + quiet(9_000) + say("thank you") + quiet(2_000)

        def cut(session):
            servers[0].sockets[0].abort()

        servers = []
        call, server = conversation(caller, at=[(8_000, cut)], prepare=servers.append)
        assert spoken(call) == ["hello one", "thank you"]
        assert call.turns[1].speech_start_ms == pytest.approx(10_020, abs=50)
        assert call.turns[1].endpointing_ms == pytest.approx(700, abs=60)
        assert [socket.request.path for socket in server.sockets].count("/v2/listen") == 2
