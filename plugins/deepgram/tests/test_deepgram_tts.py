"""Aura through the real SDK: one socket a session, cut and cleared, or HTTP."""

import asyncio
import json
from contextlib import aclosing, asynccontextmanager

import pytest

from beluga_voice import tts
from beluga_voice.audio import Audio
from beluga_voice.clock import Clock, run_simulated
from beluga_voice.engine import Context
from beluga_voice.errors import (
    AuthError,
    ConnectFailedError,
    InvalidRequestError,
    MissingKeyError,
    OptionError,
    OverloadedError,
    ProtocolError,
    ProviderTimeoutError,
    RateLimitError,
)
from beluga_voice.testing.deepgram_server import DeepgramServer
from beluga_voice.testing.loopback import Sickness
from beluga_voice.testing.tone_speech import understand

TEXT = "one two three four five six seven eight nine ten"


@asynccontextmanager
async def speaking(server=None, **options):
    """A server, an engine, and what one session uses of it."""
    async with (
        server or DeepgramServer() as running,
        tts.new("deepgram", api_key=running.api_key, base_url=running.url, **options) as engine,
        Context() as context,
    ):
        yield running, engine, await context.handle(engine)


async def texts(*all_of_them):
    for text in all_of_them:
        yield text


async def said(voice, *sentences):
    async with aclosing(voice.synthesize_stream(texts(*sentences))) as pieces:
        return [piece async for piece in pieces]


def words(pieces):
    return understand(b"".join(piece.pcm for piece in pieces), pieces[0].sample_rate_hz)


def sent(socket):
    return [json.loads(message)["type"] for message in socket.received]


class TestSentences:
    @pytest.mark.parametrize("transport", ["websocket", "http"])
    def test_are_spoken_and_told_by_the_piece_that_begins_them(self, transport):
        async def main():
            async with speaking(transport=transport) as (_, _, voice):
                return await said(voice, "one two", "", "  ", "three four")

        pieces = run_simulated(main())
        assert words(pieces) == "one two three four"
        assert [piece.text for piece in pieces if piece.text] == ["one two", "three four"]
        assert {piece.sample_rate_hz for piece in pieces} == {24_000}
        assert all(len(piece.pcm) % 2 == 0 for piece in pieces)

    def test_of_a_session_go_over_one_socket_that_was_open_before(self):
        async def main():
            async with speaking() as (server, _, voice):
                assert len(server.sockets) == 1
                for _ in range(4):
                    assert words(await said(voice, "one two")) == "one two"
                return len(server.requests), sent(server.sockets[0]), server.requests[0].query

        calls, messages, query = run_simulated(main())
        assert calls == 1
        assert messages == ["Speak", "Flush"] * 4
        assert query == {"model": ["aura-2-thalia-en"], "encoding": ["linear16"], "sample_rate": ["24000"]}

    @pytest.mark.parametrize("transport", ["websocket", "http"])
    def test_in_odd_pieces_lose_no_sample(self, transport):
        """Half a sample at the end of a message belongs to the next one."""

        async def main():
            async with speaking(transport=transport) as (server, engine, _):
                well = await said(engine, TEXT)
                server.sick = Sickness("odd")
                odd = await said(engine, TEXT)
                return [b"".join(piece.pcm for piece in pieces) for pieces in (well, odd)], odd

        (well, odd), pieces = run_simulated(main())
        assert odd == well
        assert all(len(piece.pcm) % 2 == 0 for piece in pieces)

    def test_over_http_have_no_header_of_a_file(self):
        """The service puts a WAV header before the sound unless it is told not to: it would be heard as a click."""

        async def main():
            async with speaking(transport="http", sample_rate_hz=16_000) as (server, _, voice):
                sound = await voice.synthesize("one")
                return sound, server.requests[0]

        sound, request = run_simulated(main())
        assert sound == Audio(sound.pcm, 16_000)
        assert sound.duration_ms == 260.0
        assert request.query["container"] == ["none"]
        assert json.loads(request.body) == {"text": "one"}


class TestCutting:
    @pytest.mark.parametrize("transport", ["websocket", "http"])
    def test_stops_the_server_at_once(self, transport):
        """A reply that is cut costs no more sound than what was on its way."""

        async def main():
            async with speaking(transport=transport) as (server, _, voice):
                server.chunk_every_ms = 100.0
                pieces = voice.synthesize_stream(texts(TEXT))
                for _ in range(3):
                    await anext(pieces)
                cut_ms = Clock().now_ms()
                await pieces.aclose()
                took_ms = Clock().now_ms() - cut_ms
                if transport == "http":
                    request = server.requests[-1]
                    await request.over.wait()
                    return took_ms, request.ended_ms - cut_ms, request.whole
                while "Clear" not in sent(server.sockets[0]):
                    await Clock().sleep_ms(1)
                return took_ms, Clock().now_ms() - cut_ms, False

        took_ms, stopped_ms, whole = run_simulated(main())
        assert took_ms <= 5
        assert stopped_ms <= 50
        assert not whole

    def test_drops_what_still_comes(self):
        """Sound of the cut reply that was on its way is never heard in the next one, which goes over the same socket."""

        async def main():
            async with speaking() as (server, engine, voice):
                server.chunk_every_ms = 0.0
                for _ in range(3):
                    pieces = voice.synthesize_stream(texts(TEXT))
                    await anext(pieces)
                    await pieces.aclose()
                    assert words(await said(voice, "red green")) == "red green"
                return len(server.sockets), engine.counters["audio_dropped"]

        sockets, dropped = run_simulated(main())
        assert sockets == 1
        assert dropped > 0

    def test_by_cancellation_is_the_same(self):
        async def main():
            async with speaking() as (server, _, voice):
                server.chunk_every_ms = 100.0
                task = asyncio.ensure_future(said(voice, TEXT))
                await Clock().sleep_ms(250)
                task.cancel()
                await asyncio.wait([task])
                await Clock().sleep_ms(50)
                stopped = sent(server.sockets[0])[-1]
                return stopped, words(await said(voice, "blue")), len(server.sockets)

        assert run_simulated(main()) == ("Clear", "blue", 1)

    def test_takes_another_socket_where_the_server_does_not_confirm(self):
        """Without Cleared nobody knows whose sound comes next."""

        class Deaf(DeepgramServer):
            async def converse(self, socket):
                if len(self.sockets) > 1:
                    await super().converse(socket)
                async for message in socket:
                    if json.loads(message)["type"] == "Flush":
                        await socket.send(bytes(4_800))

        async def main():
            async with speaking(Deaf()) as (server, _, voice):
                pieces = voice.synthesize_stream(texts(TEXT))
                await anext(pieces)
                await pieces.aclose()
                await Clock().sleep_ms(2_000)
                return words(await said(voice, "red")), len(server.sockets), server.open_sockets

        assert run_simulated(main()) == ("red", 2, 1)

    def test_of_a_reply_that_waits_for_the_one_cut_before_loses_no_socket(self):
        """The second is cut while nobody knows yet whether the first is silent."""

        class Slow(DeepgramServer):
            async def converse(self, socket):
                if len(self.sockets) > 1:
                    await super().converse(socket)
                async for message in socket:
                    kind = json.loads(message)["type"]
                    if kind == "Flush":
                        await socket.send(bytes(4_800))
                    elif kind == "Clear":
                        await Clock().sleep_ms(self.delay_ms)
                        await socket.send({"type": "Cleared", "sequence_id": 0})

        async def main(clear_ms):
            async with speaking(Slow()) as (server, _, voice):
                server.delay_ms = clear_ms
                pieces = voice.synthesize_stream(texts(TEXT))
                await anext(pieces)
                await pieces.aclose()
                second = asyncio.ensure_future(said(voice, TEXT))
                await Clock().sleep_ms(100)
                second.cancel()
                await asyncio.wait([second])
                await Clock().sleep_ms(2_000)
                assert (server.open_sockets, len(server.sockets)) == (1, 1)
                third = voice.synthesize_stream(texts("red"))
                await anext(third)
                await third.aclose()
                used = len(server.sockets)
            await Clock().sleep_ms(500)
            return used, server.open_sockets

        assert run_simulated(main(500.0)) == (1, 0)
        assert run_simulated(main(3_000.0)) == (2, 0)

    def test_without_a_session_closes_the_socket(self):
        async def main():
            async with DeepgramServer() as server, tts.new("deepgram", api_key="loopback-key", base_url=server.url) as engine:
                pieces = engine.synthesize_stream(texts(TEXT))
                await anext(pieces)
                cut_ms = Clock().now_ms()
                await pieces.aclose()
                await server.sockets[0].closed.wait()
                return server.sockets[0].closed_ms - cut_ms

        assert run_simulated(main()) <= 50


class TestTheSocket:
    def test_that_was_closed_between_two_sentences_is_opened_again(self):
        """An idle socket may be closed by the server: the next sentence does not notice."""

        async def main():
            async with speaking() as (server, _, voice):
                await said(voice, "one")
                await server.sockets[0].close(1000)
                await Clock().sleep_ms(10)
                return words(await said(voice, "two")), len(server.sockets)

        assert run_simulated(main()) == ("two", 2)

    def test_is_left_when_its_flushes_are_used_up(self):
        """Deepgram takes 20 Flush of a socket in a minute: the 21st sentence goes over another one."""

        async def main():
            async with speaking() as (server, engine, voice):
                server.chunk_every_ms = 0.0
                for _ in range(25):
                    assert words(await said(voice, "one")) == "one"
                return [sent(socket).count("Flush") for socket in server.sockets], engine.counters["warnings"]

        assert run_simulated(main()) == ([20, 5], 0)

    def test_is_not_shared_by_two_texts_at_once(self):
        async def main():
            async with speaking() as (server, _, voice):
                pieces = await asyncio.gather(said(voice, "one two"), said(voice, "three four"))
                await Clock().sleep_ms(10)
                return [words(one) for one in pieces], server.open_sockets

        assert run_simulated(main()) == (["one two", "three four"], 1)

    def test_that_does_not_open_with_the_session_is_tried_again_with_the_first_sentence(self):
        async def main():
            async with DeepgramServer() as server:
                server.sicken(Sickness("refuse", status=503))
                async with tts.new("deepgram", api_key=server.api_key, base_url=server.url) as engine, Context() as context:
                    return words(await said(await context.handle(engine), "one"))

        assert run_simulated(main()) == "one"

    def test_of_another_session_is_another(self):
        async def main():
            async with DeepgramServer() as server, tts.new("deepgram", api_key="loopback-key", base_url=server.url) as engine:
                async with Context() as one, Context() as other:
                    voices = [await one.handle(engine), await other.handle(engine)]
                    await asyncio.gather(*(said(voice, "one") for voice in voices))
                    both = server.open_sockets
                return both, server.open_sockets, len({r.headers["x-deepgram-session-id"] for r in server.requests})

        assert run_simulated(main()) == (2, 0, 1)


class TestFailures:
    @pytest.mark.parametrize(
        ("transport", "sickness", "error", "message"),
        [
            ("websocket", Sickness("refuse", status=401), AuthError, "HTTP 401.*DEEPGRAM_API_KEY"),
            ("websocket", Sickness("refuse", status=429, retry_after_s=3), RateLimitError, "HTTP 429"),
            ("websocket", Sickness("hang"), ProviderTimeoutError, "opening the stream.*within 3000 ms"),
            ("websocket", Sickness("hang", after=3), ProviderTimeoutError, "speaking"),
            ("websocket", Sickness("cut", after=3), ConnectFailedError, "speaking.*the connection broke"),
            ("websocket", Sickness("garbage", after=3), ProtocolError, "speaking"),
            ("http", Sickness("refuse", status=401), AuthError, "HTTP 401: no: 401"),
            ("http", Sickness("refuse", status=429, retry_after_s=3), RateLimitError, "HTTP 429: no: 429"),
            ("http", Sickness("refuse", status=503), OverloadedError, "HTTP 503"),
            ("http", Sickness("hang"), ProviderTimeoutError, "speaking"),
            ("http", Sickness("hang", after=5_000), ProviderTimeoutError, "speaking"),
            ("http", Sickness("cut", after=5_000), ConnectFailedError, "speaking"),
            ("http", Sickness("garbage"), ProtocolError, "text/html, and no sound"),
        ],
    )
    def test_are_told_as_they_are(self, transport, sickness, error, message):
        """Each kind of failure has its class, after the sound that came before it."""

        async def main():
            async with DeepgramServer() as server:
                server.sick = sickness
                given = {"api_key": server.api_key, "base_url": server.url, "transport": transport}
                async with tts.new("deepgram", **given) as engine, aclosing(engine.synthesize_stream(texts(TEXT))) as stream:
                    try:
                        async for piece in stream:
                            pieces.append(piece)
                    finally:
                        took_ms.append(Clock().now_ms())

        pieces, took_ms = [], []
        with pytest.raises(error, match=message) as caught:
            run_simulated(main())
        told = caught.value
        assert str(told).startswith("tts 'deepgram'")
        assert bool(pieces) == bool(sickness.after)
        assert took_ms[0] <= 31_000
        if isinstance(told, RateLimitError):
            assert told.retry_after_ms == 3_000.0

    def test_of_a_voice_there_is_none_of(self):
        async def main():
            async with speaking(voice="nobody") as (_, _, voice):
                await said(voice, "one")

        with pytest.raises(InvalidRequestError, match=r"No such model.*nobody"):
            run_simulated(main())

    def test_of_an_answer_without_end(self):
        """An HTTP answer is bounded: a server that never stops is stopped."""
        from beluga_voice.failures import MAX_BODY_BYTES

        class Endless(DeepgramServer):
            async def _spoken(self, request, text, header):
                while True:
                    yield bytes(2**20)

        async def main():
            async with speaking(Endless(), transport="http") as (_, _, voice):
                pieces = voice.synthesize_stream(texts("one"))
                async for piece in pieces:
                    heard.append(len(piece.pcm))

        heard = []
        with pytest.raises(ProtocolError, match="went on after"):
            run_simulated(main())
        assert sum(heard) <= MAX_BODY_BYTES

    def test_of_options(self, monkeypatch):
        monkeypatch.delenv("DEEPGRAM_API_KEY", raising=False)
        with pytest.raises(MissingKeyError, match="tts 'deepgram' has no key"):
            tts.new("deepgram")
        with pytest.raises(OptionError, match="8000, 16000, 24000"):
            tts.new("deepgram", api_key="k", sample_rate_hz=22_050)
        with pytest.raises(OptionError, match="'websocket', 'http'"):
            tts.new("deepgram", api_key="k", transport="carrier pigeon")
