"""The recognisers: whole turns as WAV, and one realtime socket a session."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import aclosing
from itertools import pairwise

import pytest
from beluga_voice_openai.realtime_stt import RealtimeStream
from beluga_voice_openai.stt import OpenAISTT
from hypothesis import given, settings
from hypothesis import strategies as st

from beluga_voice.audio import Audio
from beluga_voice.clock import Clock, run_simulated
from beluga_voice.engine import Context
from beluga_voice.errors import (
    ConnectFailedError,
    InvalidRequestError,
    OverloadedError,
    ProtocolError,
    ProviderTimeoutError,
    QuotaError,
)
from beluga_voice.frames import Transcript, Usage
from beluga_voice.testing.loopback import Sickness
from beluga_voice.testing.openai_server import OpenAIServer
from beluga_voice.testing.tone_speech import say


def serve(work, server_class=OpenAIServer):
    """Run `work(server)` in simulated time."""

    async def main():
        async with server_class() as server:
            return await work(server)

    return run_simulated(main())


def stt_of(server, **options):
    return OpenAISTT(api_key=server.api_key, base_url=server.base_url, **options)


def said(text, rate_hz=24_000):
    return Audio(say(text, rate_hz), rate_hz)


class TestBatch:
    def test_sends_a_wav_file_and_what_was_chosen(self):
        """Nothing but the given options goes up; the language without its region."""

        async def work(server):
            async with (
                stt_of(server) as plain,
                stt_of(server, language="fr-CA", prompt="Ann", extra={"temperature": "0"}) as more,
            ):
                heard = [await plain.transcribe(said("one two", 16_000)), await more.transcribe(said("six", 8_000))]
            fields = [
                {part.split(b'name="')[1].split(b'"')[0] for part in request.body.split(b"--")[1:] if b"name=" in part}
                for request in server.requests
            ]
            return [(one.text, one.language) for one in heard], fields, server.requests[1].body

        heard, fields, body = serve(work)
        assert heard == [("one two", "en"), ("six", "fr-CA")]
        assert fields == [{b"file", b"model", b"language"}, {b"file", b"model", b"language", b"prompt", b"temperature"}]
        assert b'name="language"\r\n\r\nfr\r\n' in body
        assert b'filename="speech.wav"\r\nContent-Type: audio/wav' in body

    def test_tells_the_session_what_it_used(self):
        """Tokens, as the service counts them, beside the audio that the adapter counts."""

        async def work(server):
            async with stt_of(server) as engine, Context() as context:
                handle = await context.handle(engine)
                await handle.transcribe(said("one two"))
                context.inbox.close()
                return [frame async for frame in context.inbox]

        assert serve(work) == [Usage("stt", "openai", "gpt-transcribe", {"input_tokens": 5, "output_tokens": 4})]

    def test_nothing_said_is_no_request_and_nothing_heard_is_no_fault(self):
        async def work(server):
            async with stt_of(server) as engine:
                nothing = await engine.transcribe(Audio(b"", 16_000))
                asked = len(server.requests)
                server.sicken(Sickness("empty"))
                return nothing.text, asked, (await engine.transcribe(said("one"))).text

        assert serve(work) == ("", 0, "")

    def test_an_answer_that_is_no_transcription_is_a_fault(self):
        """A page with status 200 has no words."""

        async def work(server):
            async with stt_of(server) as engine:
                server.sicken(Sickness("garbage"))
                await engine.transcribe(said("one"))

        with pytest.raises(ProtocolError, match="answered without a text"):
            serve(work)

    def test_the_model_finds_out_the_language(self):
        """With no language given, none goes up, and what was found is told."""

        class Finding(OpenAIServer):
            def _transcription(self, request):
                answer = super()._transcription(request)
                body = {**json.loads(answer.body), "languages": [{"code": "fr"}]}
                return type(answer)(200, answer.headers, json.dumps(body).encode())

        async def work(server):
            async with stt_of(server, language="") as engine:
                heard = await engine.transcribe(said("one"))
                return heard.language, b'name="language"' in server.requests[0].body

        assert serve(work, Finding) == ("fr", False)

    def test_cancelling_stops_upstream(self):
        async def work(server):
            clock = Clock()
            server.sick = Sickness("hang")
            async with stt_of(server) as engine:
                asking = asyncio.ensure_future(engine.transcribe(said("one")))
                await clock.sleep_ms(100)
                asking.cancel()
                await asyncio.wait([asking])
                stopped_ms = clock.now_ms()
                await server.requests[0].over.wait()
                return clock.now_ms() - stopped_ms

        assert serve(work) < 50


class TestRealtime:
    def test_a_session_is_one_socket(self):
        """Utterance after utterance over one handshake, each answered once, with its words and how far they reach."""

        async def work(server):
            told = []
            async with stt_of(server, mode="realtime") as engine, aclosing(engine.stream()) as stream:
                for words in ("one two", "three", "four five six"):
                    await stream.send(said(words))
                    await stream.finalize()
                    while not (got := await anext(stream)).closes:
                        pass
                    told.append((got.text, got.through_ms))
                return told, len(server.requests), len(server.sockets)

        assert serve(work) == ([("one two", 520.0), ("three", 780.0), ("four five six", 1_560.0)], 1, 1)

    def test_says_what_was_chosen(self):
        """The session's options as the protocol has them; no model in the address."""

        async def work(server):
            whisper = {"mode": "realtime", "model": "gpt-realtime-whisper", "language": "", "extra": {"delay": "minimal"}}
            for options in ({"mode": "realtime", "prompt": "Ann"}, whisper):
                async with stt_of(server, **options) as engine, aclosing(engine.stream()) as stream:
                    await stream.connect()
            asked = [json.loads(socket.received[0])["session"] for socket in server.sockets]
            return server.requests[0].query, [one["type"] for one in asked], [one["audio"]["input"] for one in asked]

        query, types, inputs = serve(work)
        assert query == {"intent": ["transcription"]}
        assert types == ["transcription"] * 2
        assert [one["transcription"] for one in inputs] == [
            {"model": "gpt-live-transcribe", "language": "en", "prompt": "Ann"},
            {"model": "gpt-realtime-whisper", "delay": "minimal"},
        ]
        assert [one["turn_detection"] for one in inputs] == [None, None]

    def test_words_are_there_while_they_are_spoken(self):
        """Interim transcripts grow before the end of the utterance."""

        async def work(server):
            async with stt_of(server, mode="realtime") as engine, aclosing(engine.stream()) as stream:
                audio = said("one two three four")
                for at in range(0, len(audio.pcm), 9_600):
                    await stream.send(Audio(audio.pcm[at : at + 9_600], 24_000))
                interim = [await anext(stream) for _ in range(3)]
                await stream.finalize()
                rest = [await anext(stream)]
                while not rest[-1].closes:
                    rest.append(await anext(stream))
                return interim, rest[-1]

        interim, final = serve(work)
        assert [one.text for one in interim] == ["one", "one two", "one two three"]
        assert not any(one.is_final for one in interim)
        assert final.text == "one two three four"

    def test_finals_come_in_order_and_none_is_missing(self):
        """One for each finalize: also if the service has the second one's words first, or nothing or too little was said."""

        async def work(server):
            server.transcript_ms = [500, 1]
            finals = []
            async with stt_of(server, mode="realtime") as engine, aclosing(engine.stream()) as stream:
                await stream.finalize()
                for audio in (said("one"), said(""), Audio(bytes(960), 24_000), said("two")):
                    await stream.send(audio)
                    await stream.finalize()
                while len(finals) < 5:
                    got = await anext(stream)
                    finals += [(got.text, got.through_ms)] if got.is_final else []
            buffered, committed = 0, []
            for event in map(json.loads, server.sockets[0].received[1:]):
                buffered += len(base64.b64decode(event.get("audio", "")))
                if event["type"] == "input_audio_buffer.commit":
                    committed.append(buffered / 48)
                    buffered = 0
            return finals, committed

        finals, committed_ms = serve(work)
        assert finals == [("", 0.0), ("one", 260.0), ("", 260.0), ("", 280.0), ("two", 540.0)]
        assert committed_ms == [260, 100, 260]

    def test_nothing_heard_closes_all_the_same(self):
        async def work(server):
            server.sick = Sickness("empty")
            async with stt_of(server, mode="realtime") as engine, aclosing(engine.stream()) as stream:
                await stream.send(said("one"))
                await stream.finalize()
                while not (got := await anext(stream)).closes:
                    pass
                return got

        assert serve(work) == Transcript("", language="en", closes=True, through_ms=260.0)

    def test_a_quiet_quarter_of_an_hour_is_outlived(self):
        """The socket is kept alive between two utterances; the second opens no other."""

        async def work(server):
            async with stt_of(server, mode="realtime") as engine:
                stream = engine.stream()
                await stream.connect()
                await Clock().sleep_ms(15 * 60_000)
                await stream.send(said("one"))
                await stream.finalize()
                while not (got := await anext(stream)).closes:
                    pass
                await stream.aclose()
                return got.text, len(server.sockets), server.sockets[0].close_code

        assert serve(work) == ("one", 1, 1000)

    @pytest.mark.parametrize(
        ("options", "why"),
        [({"model": "gpt-9"}, "gpt-9"), ({"language": "klingon"}, "klingon"), ({"extra": {"delay": "low"}}, "delay is")],
    )
    def test_options_it_does_not_take_fail_at_connecting(self, options, why):
        """Told at the session's start, before there is audio; the socket is closed."""

        async def work(server):
            async with stt_of(server, mode="realtime", **options) as engine, aclosing(engine.stream()) as stream:
                try:
                    await stream.connect()
                finally:
                    assert server.open_sockets == 0

        with pytest.raises(InvalidRequestError, match=f"opening the stream: .*{why}"):
            serve(work)

    def test_a_break_while_nothing_is_owed_is_no_fault(self):
        """The iteration ends, and the next stream opens another socket."""

        async def work(server):
            async with stt_of(server, mode="realtime") as engine:
                stream = engine.stream()
                await stream.connect()
                server.sockets[0].abort()
                left = [one async for one in stream]
                await stream.aclose()
                return left, (await engine.transcribe(said("two"))).text, len(server.sockets)

        assert serve(work) == ([], "two", 2)

    def test_a_break_with_audio_under_way_is_told(self):
        async def work(server):
            async with stt_of(server, mode="realtime") as engine, aclosing(engine.stream()) as stream:
                await stream.send(said("one"))
                server.sockets[0].abort()
                async for _ in stream:
                    pass

        with pytest.raises(ConnectFailedError, match="stt 'openai', listening"):
            serve(work)

    @pytest.mark.parametrize(
        ("error", "wanted"),
        [
            ({"type": "server_error", "code": None, "message": "it broke"}, OverloadedError),
            ({"type": "invalid_request_error", "code": "insufficient_quota", "message": "no credit"}, QuotaError),
            ({"type": "transcription_error", "code": "audio_unintelligible", "message": "mumbling"}, ProtocolError),
        ],
    )
    def test_a_transcription_that_failed_is_told_as_what_it_is(self, error, wanted):
        async def work(server):
            server.transcript_error = error
            async with stt_of(server, mode="realtime") as engine:
                await engine.transcribe(said("one"))

        with pytest.raises(wanted, match=error["message"]):
            serve(work)

    def test_a_server_that_never_confirms_is_given_up(self):
        """It took the handshake and then went silent."""

        async def work(server):
            server.sick = Sickness("hang", after=1)
            clock = Clock()
            async with stt_of(server, mode="realtime") as engine, aclosing(engine.stream()) as stream:
                began_ms = clock.now_ms()
                with pytest.raises(ProviderTimeoutError):
                    await stream.connect()
                return clock.now_ms() - began_ms, server.open_sockets

        took_ms, open_sockets = serve(work)
        assert took_ms <= 6_100
        assert open_sockets == 0

    def test_closing_hangs_up(self):
        """A stream that is closed in mid-utterance leaves no socket open."""

        async def work(server):
            async with stt_of(server, mode="realtime") as engine:
                stream = engine.stream()
                await stream.send(said("one"))
                await stream.aclose()
                await stream.aclose()
                return server.open_sockets, [one async for one in stream]

        assert serve(work) == (0, [])

    def test_mode_decides_what_it_can_do(self):
        """24,000 Hz and interim words are realtime's; a copy follows its own mode."""
        batch = OpenAISTT(api_key="x")
        live = batch.with_options(mode="realtime")
        assert (batch.capabilities.sample_rate_hz, batch.capabilities.interim, batch.model) == (None, False, "gpt-transcribe")
        assert (live.capabilities.sample_rate_hz, live.capabilities.interim, live.model) == (
            24_000,
            True,
            "gpt-live-transcribe",
        )
        assert live.with_options(mode="batch").capabilities == batch.capabilities
        assert isinstance(live.stream(), RealtimeStream)


@settings(deadline=None, max_examples=25)
@given(cuts=st.lists(st.integers(0, 24_960 // 2), max_size=12), rate_hz=st.sampled_from([8_000, 16_000, 24_000]))
def test_realtime_hears_any_pieces_at_any_rate(cuts, rate_hz):
    """Where the audio is cut changes nothing."""

    async def work(server):
        audio = said("seven eight", rate_hz)
        places = sorted({0, *(min(2 * cut, len(audio.pcm)) for cut in cuts), len(audio.pcm)})
        async with stt_of(server, mode="realtime") as engine, aclosing(engine.stream()) as stream:
            for start, end in pairwise(places):
                await stream.send(Audio(audio.pcm[start:end], rate_hz))
            await stream.finalize()
            while not (got := await anext(stream)).closes:
                pass
            return got.text

    assert serve(work) == "seven eight"
