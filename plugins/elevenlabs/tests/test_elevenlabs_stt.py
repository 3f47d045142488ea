"""Scribe through the real SDK, against a server of the documented protocol."""

import asyncio
import json
from contextlib import aclosing

import pytest
from beluga_voice_elevenlabs.stt import ElevenLabsSTT
from beluga_voice_elevenlabs.tts import ElevenLabsTTS
from hypothesis import given, settings
from hypothesis import strategies as st

from beluga_voice import stt
from beluga_voice.audio import Audio, silence
from beluga_voice.clock import run_simulated
from beluga_voice.errors import (
    AuthError,
    ConnectFailedError,
    InvalidRequestError,
    MissingKeyError,
    OptionError,
    OverloadedError,
    ProtocolError,
    ProviderTimeoutError,
    QuotaError,
    RateLimitError,
)
from beluga_voice.testing.elevenlabs_server import ElevenLabsServer
from beluga_voice.testing.loopback import Answer, Sickness
from beluga_voice.testing.tone_speech import VOCABULARY, say

RATE_HZ = 16_000
STEP_MS = 260


def access(server):
    return {"api_key": server.api_key, "base_url": server.url}


def made(server, **options):
    return ElevenLabsSTT(**{**access(server), **options})


def with_a_stream(use, **options):
    """What `use(server, stream)` gives; nothing is left behind."""

    async def main():
        async with ElevenLabsServer() as server:
            async with made(server, **options) as engine, aclosing(engine.stream()) as stream:
                result = await use(server, stream)
            await asyncio.sleep(0.1)
            assert server.open_sockets == server.open_connections == 0
            return result

    return run_simulated(main())


async def closing(stream):
    """The finals up to the one that closes."""
    finals = []
    while not (finals and finals[-1].closes):
        one = await anext(stream)
        finals += [one] if one.is_final else []
    return finals


async def heard(stream, text):
    """The finals of one utterance."""
    await stream.send(Audio(say(text), RATE_HZ))
    await stream.finalize()
    return await closing(stream)


def sent(socket):
    return [json.loads(message) for message in socket.received]


def text_of(finals):
    return " ".join(one.text for one in finals if one.text)


class TestListening:
    @settings(max_examples=25, deadline=None)
    @given(
        st.lists(st.lists(st.sampled_from(VOCABULARY), max_size=4).map(" ".join), min_size=1, max_size=4),
        st.lists(st.integers(1, 6_000), min_size=1, max_size=5),
        st.sampled_from([{}, {"timed_first": True}, {"timed_lost": True}, {"timed_late_ms": 500.0}]),
    )
    def test_every_word_comes_once_however_the_audio_is_cut(self, texts, samples, how):
        """One closing final for each utterance, in order, whichever of its two messages comes first or not at all."""

        async def use(server, stream):
            for name, value in how.items():
                setattr(server, name, value)
            for text in texts:
                pcm, turn = say(text) or silence(400, RATE_HZ).pcm, 0
                while pcm:
                    size = 2 * samples[turn % len(samples)]
                    await stream.send(Audio(pcm[:size], RATE_HZ))
                    pcm, turn = pcm[size:], turn + 1
                await stream.finalize()
            told = [await closing(stream) for _ in texts]
            await asyncio.sleep(1)
            await stream.aclose()
            return told, [one async for one in stream], server.counters["commits"]

        told, more, commits = with_a_stream(use)
        assert [[one.text for one in finals] for finals in told] == [[text] for text in texts]
        assert [one for one in more if one.is_final] == []
        assert commits == len(texts)

    @pytest.mark.parametrize("how", [{}, {"timed_first": True}, {"timed_lost": True}, {"timed_late_ms": 500.0}])
    def test_the_same_word_twice_is_two_words(self, how):
        """A text that repeats is not taken for the other message of the one before."""

        async def use(server, stream):
            for name, value in how.items():
                setattr(server, name, value)
            return [text_of(await heard(stream, "yes")) for _ in range(5)]

        assert with_a_stream(use) == ["yes"] * 5

    def test_words_have_times_in_what_the_stream_was_given(self):
        """Silence sent to keep the socket open, or to make up a short commit, moves nothing; nor does a new connection."""

        async def use(server, stream):
            first = await heard(stream, "yes")
            await asyncio.sleep(60)
            second = await heard(stream, "one two")
            server.sockets[0].abort()
            await asyncio.sleep(1)
            return [*first, *second, *await heard(stream, "go")], len(server.sockets)

        finals, sockets = with_a_stream(use)
        assert sockets == 2
        assert [one.through_ms for one in finals] == [STEP_MS, 3 * STEP_MS, 4 * STEP_MS]
        words = [(word.text, word.start_ms // 10 * 10) for one in finals for word in one.words]
        assert words == [("yes", 0), ("one", STEP_MS), ("two", 2 * STEP_MS), ("go", 3 * STEP_MS)]
        assert all(0.8 < word.confidence < 1 for one in finals for word in one.words)

    def test_interims_come_while_it_is_said(self):
        """And grow."""

        async def use(server, stream):
            told = []
            for word in ["one", "two", "three", "four", "five"]:
                await stream.send(Audio(say(word), RATE_HZ))
                await asyncio.sleep(0.26)
            await stream.finalize()
            while not (told and told[-1].closes):
                told.append(await anext(stream))
            return [one.text for one in told if not one.is_final]

        interims = with_a_stream(use)
        assert len(interims) >= 2
        assert all("one two three four five".startswith(text) for text in interims)

    def test_is_one_socket_for_a_whole_session(self):
        """Opened by `connect`, kept open by a little silence now and then, and never asked for the text of that."""

        async def use(server, stream):
            await stream.connect()
            assert server.open_sockets == 1
            for _ in range(5):
                await asyncio.sleep(120)
                assert text_of(await heard(stream, "one two three")) == "one two three"
            return server.sockets, server.counters["commits"]

        [socket], commits = with_a_stream(use)
        assert commits == 5
        speech_ms = 5 * 3 * STEP_MS
        all_ms = sum(len(message["audio_base_64"]) * 3 / 4 / 32 for message in sent(socket))
        assert all_ms - speech_ms < 3_000  # what ten minutes of quiet cost

    def test_nothing_to_hear_is_answered_without_asking(self):
        """A commit of too little audio would be ignored; a short word is made long enough."""

        async def use(server, stream):
            await stream.finalize()
            empty = await closing(stream)
            await stream.send(Audio(say("yes")[:6_000], RATE_HZ))
            await stream.finalize()
            short = await closing(stream)
            await stream.finalize()
            return text_of(empty), text_of(short), text_of(await closing(stream)), dict(server.counters)

        assert with_a_stream(use) == ("", "yes", "", {"commits": 1})

    def test_a_long_utterance_is_committed_in_parts(self):
        """The service would cut it by itself after 90 s. The parts are finals; the last one closes."""

        async def use(server, stream):
            for _ in range(5):
                await stream.send(Audio(say("one two three") + silence(20_000, RATE_HZ).pcm, RATE_HZ))
            await stream.finalize()
            return await closing(stream)

        finals = with_a_stream(use)
        assert [one.closes for one in finals] == [False, True]
        assert text_of(finals) == " ".join(["one two three"] * 5)

    def test_without_word_times_there_is_one_message_a_commit(self):
        """And no wait for another."""

        async def use(server, stream):
            await heard(stream, "one")
            begun_ms = server.clock.now_ms()
            finals = await heard(stream, "two")
            return text_of(finals), finals[0].words, server.clock.now_ms() - begun_ms

        text, words, took_ms = with_a_stream(use, word_times=False)
        assert (text, words) == ("two", ())
        assert took_ms < 100

    def test_tells_the_service_what_it_is_asked(self):
        """Language, key terms, rate and model are in the address; the key is not."""

        async def use(server, stream):
            await stream.connect()
            return server.requests[0]

        request = with_a_stream(use, language="de-AT", keyterms=["Beluga", "Ann"], sample_rate_hz=8_000)
        assert request.query["language_code"] == ["de"]
        assert request.query["keyterms"] == ["Beluga", "Ann"]
        assert request.query["audio_format"] == ["pcm_8000"]
        assert request.query["model_id"] == ["scribe_v2_realtime"]
        assert "loopback-key" not in f"{request.path} {request.query}"


class TestFailing:
    @pytest.mark.parametrize(
        ("code", "error"),
        [
            ("quota_exceeded", QuotaError),
            ("unaccepted_terms", AuthError),
            ("rate_limited", RateLimitError),
            ("input_error", InvalidRequestError),
            ("invalid_request", InvalidRequestError),
            ("chunk_size_exceeded", InvalidRequestError),
            ("queue_overflow", OverloadedError),
            ("resource_exhausted", OverloadedError),
            ("transcriber_error", OverloadedError),
            ("error", OverloadedError),
            ("session_time_limit_exceeded", ConnectFailedError),
            ("insufficient_audio_activity", ConnectFailedError),
        ],
    )
    def test_what_the_socket_says_is_told_in_our_words(self, code, error):
        """Once, though the service tells the error and then closes with another."""

        async def use(server, stream):
            server.error = code
            with pytest.raises(error, match="stt 'elevenlabs', listening"):
                await heard(stream, "one two three")
            with pytest.raises(StopAsyncIteration):
                await anext(stream)

        with_a_stream(use)

    @pytest.mark.parametrize("in_socket", [True, False])
    def test_a_bad_key_is_told_when_it_connects(self, in_socket):
        """Whichever way the service says so; and again to whoever tries again."""

        async def main():
            async with ElevenLabsServer() as server:
                server.key_in_socket = in_socket
                async with made(server, api_key="canary-0a1b2c3d") as engine, aclosing(engine.stream()) as stream:
                    for attempt in (stream.connect, lambda: stream.send(Audio(say("one"), RATE_HZ))):
                        with pytest.raises(AuthError, match="connecting") as caught:
                            await attempt()
                        assert "canary" not in str(caught.value)

        run_simulated(main())

    def test_a_drop_in_mid_utterance_is_told_after_what_came_before(self):
        """In order: the finals, then the error."""

        async def use(server, stream):
            await stream.send(Audio(say("one"), RATE_HZ))
            await stream.finalize()
            await asyncio.sleep(1)
            await stream.send(Audio(say("two"), RATE_HZ))
            server.sockets[0].abort()
            await asyncio.sleep(1)
            finals = await closing(stream)
            with pytest.raises(ConnectFailedError):
                await anext(stream)
            with pytest.raises(ConnectFailedError):
                await stream.send(Audio(say("three"), RATE_HZ))
            return text_of(finals)

        assert with_a_stream(use) == "one"

    def test_one_while_nobody_speaks_is_no_failure(self):
        """The next utterance goes over a new connection."""

        async def use(server, stream):
            await heard(stream, "one")
            server.sockets[0].abort()
            await asyncio.sleep(10)
            text = text_of(await heard(stream, "two three"))
            return text, len(server.sockets), stream.engine.counters["idle_drops"]

        assert with_a_stream(use) == ("two three", 2, 1)

    def test_an_answer_that_never_comes_is_given_up(self):
        """Also where nobody else watches the clock."""

        async def use(server, stream):
            server.sicken(Sickness("hang", after=1))
            with pytest.raises(ProviderTimeoutError, match="30000 ms"):
                await heard(stream, "one")
            return server.clock.now_ms()

        assert with_a_stream(use) <= 32_000

    def test_a_service_that_answers_nothing_at_connecting_is_given_up(self):
        """The handshake is well, and then nothing."""

        async def use(server, stream):
            server.sicken(Sickness("unknown", after=0))
            await stream.connect()  # messages nobody knows are passed over
            server.sicken(Sickness("hang"))
            async with aclosing(stream.engine.stream()) as other:
                with pytest.raises(ProviderTimeoutError):
                    await other.connect()

        with_a_stream(use)

    def test_messages_of_unknown_types_are_passed_over_and_counted(self):
        """The service may learn to say more."""

        async def use(server, stream):
            await heard(stream, "one")
            await server.sockets[0].send({"message_type": "weather_report", "text": "rain"})
            text = text_of(await heard(stream, "two"))
            return text, stream.engine.counters["unknown_messages"]

        assert with_a_stream(use) == ("two", 1)

    @pytest.mark.parametrize("message", ["no json", "[1, 2]", '{"message_type": "partial_transcript"}', b"\xff\x00"])
    def test_what_the_protocol_does_not_allow_is_told_as_that(self, message):
        """And ends the stream."""

        async def use(server, stream):
            await stream.send(Audio(say("one"), RATE_HZ))
            await server.sockets[0].send(message)
            with pytest.raises(ProtocolError):
                await closing(stream)

        with_a_stream(use)

    @pytest.mark.parametrize("ends", ["by itself", "cancelled"])
    def test_a_service_that_never_begins_is_left(self, ends):
        """After 10 s, or when nobody waits any more; the connection is closed."""

        class Mute(ElevenLabsServer):
            async def converse(self, socket):
                async for _ in socket:
                    pass

        async def main():
            async with Mute() as server, made(server) as engine, aclosing(engine.stream()) as stream:
                connecting = asyncio.create_task(stream.connect())
                await asyncio.sleep(1 if ends == "cancelled" else 12)
                connecting.cancel()
                await asyncio.wait([connecting])
                assert connecting.cancelled() or isinstance(connecting.exception(), ProviderTimeoutError)
                await asyncio.sleep(0.1)
                return len(server.sockets), server.open_connections

        assert run_simulated(main()) == (1, 0)

    def test_no_redirect_is_followed(self):
        """Nobody elsewhere gets the key."""

        class Elsewhere(ElevenLabsServer):
            async def greet(self, request):
                return Answer(301, {"location": other.url.replace("http", "ws")})

        async def main():
            nonlocal other
            async with ElevenLabsServer() as other, Elsewhere() as server:
                async with made(server) as engine, aclosing(engine.stream()) as stream:
                    with pytest.raises(ProtocolError, match="301"):
                        await stream.connect()
                return other.requests

        other = None
        assert run_simulated(main()) == []


class TestBatch:
    def test_an_utterance_is_a_request_with_words_and_times(self):
        """As raw PCM: no file is made of it."""

        async def main():
            async with ElevenLabsServer() as server, made(server, mode="batch", keyterms=["Beluga"]) as engine:
                transcript = await engine.transcribe(Audio(say("what time is it", 8_000), 8_000))
                assert b"pcm_s16le_16" in server.requests[0].body
                assert b"Beluga" in server.requests[0].body
                return transcript

        transcript = run_simulated(main())
        assert transcript.text == "what time is it"
        assert [word.text for word in transcript.words] == ["what", "time", "is", "it"]
        assert transcript.words[2].start_ms == pytest.approx(2 * STEP_MS, abs=5)

    def test_is_asked_once(self):
        """The SDK would ask three times: whoever calls knows if there is time."""

        async def main():
            async with ElevenLabsServer() as server, made(server, mode="batch") as engine:
                server.sick = Sickness("refuse", status=503, retry_after_s=0)
                with pytest.raises(OverloadedError):
                    await engine.transcribe(Audio(say("one"), RATE_HZ))
                return len(server.requests)

        assert run_simulated(main()) == 1


class TestOptions:
    def test_a_missing_key_is_told_when_the_recogniser_is_made(self, monkeypatch):
        """Not at the first word."""
        monkeypatch.delenv("ELEVENLABS_API_KEY", raising=False)
        with pytest.raises(MissingKeyError, match="ELEVENLABS_API_KEY"):
            stt.new("elevenlabs")

    def test_each_mode_has_its_model_and_what_it_can_do(self):
        """Unless another model is named."""
        live = stt.new("elevenlabs", api_key="secret-key")
        batch = live.with_options(mode="batch")
        assert (live.options.model, batch.options.model) == ("scribe_v2_realtime", "scribe_v2")
        assert batch.with_options(mode="realtime").options.model == "scribe_v2_realtime"
        assert stt.new("elevenlabs", api_key="secret-key", model="scribe_v9").options.model == "scribe_v9"
        assert (live.capabilities.interim, batch.capabilities.interim) == (True, False)
        assert live.with_options(sample_rate_hz=8_000).capabilities.sample_rate_hz == 8_000

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"mode": "telepathy"}, "'realtime', 'batch'"),
            ({"sample_rate_hz": 11_025}, "8000, 16000"),
            ({"keyterms": "Beluga"}, "keyterms"),
            ({"word_timers": True}, "did you mean 'word_times'"),
        ],
    )
    def test_those_that_do_not_fit_are_refused(self, options, told):
        """With the options it takes."""
        with pytest.raises(OptionError, match=told):
            ElevenLabsSTT(api_key="secret-key", **options)

    def test_a_voice_and_a_recogniser_share_the_client(self):
        """One account, one client."""

        async def main():
            async with ElevenLabsServer() as server, made(server) as one, ElevenLabsTTS(**access(server)) as other:
                return await one.client() is await other.client()

        assert run_simulated(main())
