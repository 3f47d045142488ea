"""The voices: what goes over the wire, when the first sound is there, and what stops upstream."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing

import pytest
from beluga_voice_openai.groq import GroqTTS
from beluga_voice_openai.tts import OpenAITTS

from beluga_voice.clock import Clock, run_simulated
from beluga_voice.errors import InvalidRequestError, OptionError, ProtocolError
from beluga_voice.testing.loopback import Answer, Sickness
from beluga_voice.testing.openai_server import GroqServer, OpenAIServer
from beluga_voice.testing.tone_speech import say, understand


def serve(work, server_class=OpenAIServer):
    """Run `work(server)` in simulated time."""

    async def main():
        async with server_class() as server:
            return await work(server)

    return run_simulated(main())


def voice_of(server, cls=OpenAITTS, **options):
    return cls(api_key=server.api_key, base_url=server.base_url, **options)


async def texts(*said):
    for text in said:
        yield text


async def speak(engine, *said):
    async with aclosing(engine.synthesize_stream(texts(*said))) as pieces:
        return [piece async for piece in pieces]


class TestRequest:
    def test_says_what_was_chosen_and_no_more(self):
        """Only the options that were given go up, and `extra` as it is."""

        async def work(server):
            async with voice_of(server) as plain, voice_of(server, voice="marin", instructions="calm", speed=1.5) as chosen:
                await plain.synthesize("hello")
                await chosen.synthesize("hello")
                async with voice_of(server, extra={"stream_format": "audio"}) as more:
                    await more.synthesize("hello")
            return [json.loads(request.body) for request in server.requests]

        always = {"model": "gpt-4o-mini-tts", "input": "hello", "response_format": "pcm"}
        assert serve(work) == [
            {**always, "voice": "alloy"},
            {**always, "voice": "marin", "instructions": "calm", "speed": 1.5},
            {**always, "voice": "alloy", "stream_format": "audio"},
        ]

    def test_a_sentence_is_one_request_over_one_connection(self):
        """The second sentence finds the connection of the first."""

        async def work(server):
            async with voice_of(server) as engine:
                pieces = await speak(engine, "one two", "three")
                return [piece.text for piece in pieces if piece.text], len(server.requests), server.open_connections

        assert serve(work) == (["one two", "three"], 2, 1)

    def test_quiet_texts_ask_for_nothing(self):
        """Blank text is not worth a request, which the service would refuse."""

        async def work(server):
            async with voice_of(server) as engine:
                return await speak(engine, "", "  "), server.requests

        assert serve(work) == ([], [])

    @pytest.mark.parametrize(("cls", "server_class", "longest"), [(OpenAITTS, OpenAIServer, 4_096), (GroqTTS, GroqServer, 200)])
    def test_a_long_text_is_spoken_in_parts(self, cls, server_class, longest):
        """What the service takes in one request is never exceeded, no word is lost, and the text is told once."""
        said = " ".join(["one two, three. Four five six?"] * (longest // 20))

        async def work(server):
            async with voice_of(server, cls) as engine:
                return await speak(engine, said), [json.loads(request.body)["input"] for request in server.requests]

        pieces, asked = serve(work, server_class)
        assert len(asked) > 1
        assert max(map(len, asked)) <= longest
        assert " ".join(asked).split() == said.split()
        assert [piece.text for piece in pieces if piece.text] == [said]
        heard = understand(b"".join(piece.pcm for piece in pieces), pieces[0].sample_rate_hz)
        assert heard == understand(say(said), 16_000)


class TestSound:
    def test_leaves_as_it_comes(self):
        """The first piece is there when the service has made it, long before the last."""

        async def work(server):
            clock, server.word_ms = Clock(), 100.0
            async with voice_of(server) as engine:
                began_ms, at_ms = clock.now_ms(), []
                async for _ in engine.synthesize_stream(texts("one two three four five")):
                    at_ms.append(clock.now_ms() - began_ms)
                return at_ms

        at_ms = serve(work)
        assert at_ms[0] == pytest.approx(100, abs=5)
        assert at_ms[-1] == pytest.approx(1_300, abs=10)

    def test_is_whole_samples_however_it_is_cut(self):
        """Odd chunks of the network never shift the samples."""

        async def work(server):
            async with voice_of(server) as engine:
                server.sick = Sickness("odd")
                return await speak(engine, "one two three")

        pieces = serve(work)
        assert len(pieces) > 3
        assert all(len(piece.pcm) % 2 == 0 for piece in pieces)
        assert b"".join(piece.pcm for piece in pieces) == say("one two three", 24_000)

    def test_of_nothing_is_nothing(self):
        """An answer without sound gives no piece; whether that is a fault is for others to say."""

        async def work(server):
            async with voice_of(server) as engine:
                server.sick = Sickness("empty")
                return await speak(engine, "hello")

        assert serve(work) == []

    def test_a_page_is_not_played(self):
        """A web page with status 200 is an error, and no noise."""

        async def work(server):
            async with voice_of(server) as engine:
                server.sicken(Sickness("garbage"))
                await speak(engine, "hello")

        with pytest.raises(ProtocolError, match=r"'text/html'; expected audio\. Check base_url"):
            serve(work)

    def test_without_an_end_is_cut_off(self):
        """No answer may be endless."""

        class Endless(OpenAIServer):
            def _speech(self, request):
                async def body():
                    while True:
                        yield bytes(2**20)

                return Answer(200, {"content-type": "audio/pcm"}, body())

        async def work(server):
            async with voice_of(server) as engine:
                async for _ in engine.synthesize_stream(texts("hello")):
                    pass

        with pytest.raises(ProtocolError, match=f"went on after {32 * 2**20} bytes"):
            serve(work, Endless)

    def test_wav_says_its_own_rate(self):
        """For servers of other rates than 24,000 Hz; the header's length is not believed."""

        async def work(server):
            async with voice_of(server, response_format="wav") as engine:
                return await speak(engine, "one two")

        pieces = serve(work)
        assert {piece.sample_rate_hz for piece in pieces} == {24_000}
        assert b"".join(piece.pcm for piece in pieces) == say("one two", 24_000)

    def test_wav_of_another_kind_is_refused(self):
        """Stereo is not played at half speed."""

        class Stereo(OpenAIServer):
            def _speech(self, request):
                answer = super()._speech(request)

                async def body():
                    async for piece in answer.body:
                        yield piece.replace(b"\1\0\1\0", b"\1\0\2\0", 1)

                return Answer(200, {"content-type": "audio/wav"}, body())

        async def work(server):
            async with voice_of(server, response_format="wav") as engine:
                await speak(engine, "hello")

        with pytest.raises(ProtocolError, match="2 channels, 16 bits; expected 16-bit mono PCM"):
            serve(work, Stereo)


class TestStopping:
    @pytest.mark.parametrize("how", ["close", "cancel"])
    def test_stops_upstream_within_50_ms(self, how):
        """A caller who interrupts does not pay for what is not heard."""

        async def work(server):
            clock, server.word_ms = Clock(), 100.0
            async with voice_of(server) as engine:
                pieces = engine.synthesize_stream(texts("one two three four five six seven eight"))
                await anext(pieces)
                waiting = asyncio.ensure_future(anext(pieces))
                await clock.sleep_ms(30)
                if how == "close":
                    await waiting
                    stopped_ms = clock.now_ms()
                    await pieces.aclose()
                else:
                    stopped_ms = clock.now_ms()
                    waiting.cancel()
                    await asyncio.wait([waiting])
                (request,) = server.requests
                await request.over.wait()
                await pieces.aclose()
                return clock.now_ms() - stopped_ms, request.whole

        took_ms, whole = serve(work)
        assert took_ms < 50
        assert not whole


def test_what_the_service_refuses_names_what_to_check():
    """A model that is gone is told as the service words it, with what to do."""

    async def work(server):
        async with voice_of(server, model="tts-0") as engine:
            await engine.synthesize("hello")

    with pytest.raises(InvalidRequestError, match=r"tts 'openai', speaking: HTTP 404: The model 'tts-0' .* check model, voice"):
        serve(work)


@pytest.mark.parametrize("wrong", [{"speed": 5.0}, {"response_format": "mp3"}, {"base_url": "api.openai.com"}, {"extra": 1}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OptionError, match=next(iter(wrong))):
        OpenAITTS(api_key="x", **wrong)
