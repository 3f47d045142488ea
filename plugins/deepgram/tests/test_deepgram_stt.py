"""Nova through the real SDK, against a server of its protocol in simulated time."""

import asyncio
import base64
import hashlib
import json
import subprocess
import sys
from contextlib import aclosing, asynccontextmanager

import pytest
from beluga_voice_deepgram.stt import DeepgramSTT
from hypothesis import given, settings
from hypothesis import strategies as st

from beluga_voice import stt
from beluga_voice.audio import Audio
from beluga_voice.clock import Clock, run_simulated
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
    SessionClosedError,
)
from beluga_voice.testing import quiet
from beluga_voice.testing.deepgram_server import DeepgramServer
from beluga_voice.testing.loopback import Sickness
from beluga_voice.testing.tone_speech import say

RATE_HZ = 16_000
WORDS = "hello tell me the time in paris now"


@asynccontextmanager
async def listening(server=None, **options):
    """A server, an engine and a stream of it."""
    async with (
        server or DeepgramServer() as running,
        stt.new("deepgram", api_key=running.api_key, base_url=running.url, **options) as engine,
        aclosing(engine.stream()) as stream,
    ):
        yield running, engine, stream


async def speak(stream, pcm, *, piece_ms=20, live=True):
    step = piece_ms * RATE_HZ // 1000 * 2
    for at in range(0, len(pcm), step):
        await stream.send(Audio(pcm[at : at + step], RATE_HZ))
        if live:
            await Clock().sleep_ms(piece_ms)


async def until_closed(stream):
    told = []
    async for transcript in stream:
        told.append(transcript)
        if transcript.closes:
            return told
    raise AssertionError("the stream ended before its final")


def finals(told):
    return " ".join(one.text for one in told if one.is_final and one.text)


def texts_sent(socket):
    return [json.loads(message)["type"] for message in socket.received if isinstance(message, str)]


class TestWords:
    @given(st.lists(st.integers(25, 5_000), min_size=1, max_size=12))
    @settings(max_examples=15, deadline=None)
    def test_are_complete_however_the_audio_is_cut(self, sizes):
        """No cut loses or doubles a word."""

        async def main():
            async with listening() as (_, _, stream):
                pcm, at, turn = say(WORDS), 0, 0
                while at < len(pcm):
                    size = sizes[turn % len(sizes)] * 2
                    await stream.send(Audio(pcm[at : at + size], RATE_HZ))
                    at, turn = at + size, turn + 1
                await stream.finalize()
                return finals(await until_closed(stream))

        assert run_simulated(main()) == WORDS

    def test_come_as_interims_first(self):
        """Interim transcripts grow while the caller speaks; the final one has words, times and confidence."""

        async def main():
            async with listening() as (_, _, stream):
                await speak(stream, say("one two three"))
                await stream.finalize()
                return await until_closed(stream)

        *interims, final = run_simulated(main())
        assert [one.text for one in interims] == ["one", "one two", "one two three"]
        assert not any(one.is_final or one.closes for one in interims)
        assert (final.text, final.is_final, final.closes, final.confidence) == ("one two three", True, True, 0.98)
        assert [(word.text, round(word.start_ms)) for word in final.words] == [("one", 0), ("two", 260), ("three", 520)]
        assert final.through_ms == 780.0

    def test_come_without_interims_where_nobody_wants_them(self):
        async def main():
            async with listening(interim=False) as (server, engine, stream):
                await speak(stream, say("one two"))
                await stream.finalize()
                told = await until_closed(stream)
                return told, engine.capabilities.interim, server.requests[0].query["interim_results"]

        told, claims, asked = run_simulated(main())
        assert [one.text for one in told] == ["one two"]
        assert (claims, asked) == (False, ["false"])

    def test_of_a_pause_are_final_before_the_turn_is_over(self):
        """Quiet of `endpointing_ms` makes words final, and says how much audio they cover."""

        async def main():
            async with listening(endpointing_ms=300) as (_, _, stream):
                await speak(stream, say("one two") + quiet(600) + say("three"))
                await stream.finalize()
                return [one for one in await until_closed(stream) if one.is_final]

        first, last = run_simulated(main())
        assert (first.text, first.closes, last.text, last.closes) == ("one two", False, "three", True)
        assert 0 < first.through_ms < last.through_ms == 1380.0


class TestFinalize:
    def test_unanswered_closes_with_the_words_so_far(self):
        """Deepgram may leave Finalize unanswered: the interim words are final then, and the wait is short."""

        async def main():
            async with listening(finalize_timeout_ms=600) as (server, engine, stream):
                server.answers_finalize = False
                await speak(stream, say("one two three"))
                began_ms = Clock().now_ms()
                await stream.finalize()
                told = await until_closed(stream)
                return finals(told), Clock().now_ms() - began_ms, engine.counters["finalize_unanswered"]

        text, waited_ms, counted = run_simulated(main())
        assert (text, counted) == ("one two three", 1)
        assert waited_ms == pytest.approx(600, abs=30)

    def test_unanswered_after_the_speech_was_over_is_waited_for_shortly(self):
        """Where the server has said that the speech was over, nothing much can come: the turn does not wait for it."""

        async def main():
            async with listening(finalize_timeout_ms=600) as (server, _, stream):
                server.answers_finalize = False
                await speak(stream, say("one two") + quiet(700))
                began_ms = Clock().now_ms()
                await stream.finalize()
                told = await until_closed(stream)
                return finals(told), Clock().now_ms() - began_ms

        text, waited_ms = run_simulated(main())
        assert text == "one two"
        assert waited_ms <= 160

    def test_answered_too_late_tells_no_word_twice(self):
        """Words told as final on trust are not told again when the real final comes; what it has more, is."""

        async def main():
            async with listening(finalize_timeout_ms=300) as (server, _, stream):
                server.delay_ms = 1_000.0
                await speak(stream, say("one two three"))
                await stream.finalize()
                first = await until_closed(stream)
                await Clock().sleep_ms(1_500)
                server.delay_ms = 0.0
                await speak(stream, say("four"))
                await stream.finalize()
                return finals(first), finals(await until_closed(stream))

        assert run_simulated(main()) == ("one two three", "four")

    def test_is_not_sent_when_all_is_told(self):
        """After finals of all that was sent there is nothing to ask for."""

        async def main():
            async with listening() as (server, _, stream):
                for _ in range(2):
                    await stream.finalize()
                assert not server.sockets
                await speak(stream, say("one"))
                await stream.finalize()
                await stream.finalize()
                closing = [await until_closed(stream) for _ in range(4)]
                return [finals(told) for told in closing], texts_sent(server.sockets[0])

        told, sent = run_simulated(main())
        assert told == ["", "", "one", ""]
        assert sent.count("Finalize") <= 2


class TestTheSocket:
    def test_is_one_for_many_utterances(self):
        async def main():
            async with listening() as (server, _, stream):
                for _ in range(5):
                    await speak(stream, say("one two"))
                    await stream.finalize()
                    await until_closed(stream)
                return len(server.sockets), len(server.requests)

        assert run_simulated(main()) == (1, 1)

    def test_is_kept_alive_in_quiet(self):
        """KeepAlive goes out as text every 4 s without audio, from the connection on; Deepgram hangs up after 10."""

        async def main():
            async with listening() as (server, _, stream):
                await stream.connect()
                await Clock().sleep_ms(30_000)
                await speak(stream, say("one"))
                await stream.finalize()
                text = finals(await until_closed(stream))
                return text, texts_sent(server.sockets[0])

        text, sent = run_simulated(main())
        assert text == "one"
        assert sent == ["KeepAlive"] * 7 + ["Finalize"]

    def test_says_goodbye_and_closes_at_once(self):
        async def main():
            async with listening() as (server, _, stream):
                await speak(stream, say("one two"))
                began_ms = Clock().now_ms()
                await stream.aclose()
                socket = server.sockets[0]
                await socket.closed.wait()
                return socket.closed_ms - began_ms, texts_sent(socket)[-1], socket.close_code

        closed_ms, last, code = run_simulated(main())
        assert closed_ms <= 50
        assert (last, code) == ("CloseStream", 1000)

    def test_takes_parameters_by_their_names_there(self):
        async def main():
            options = {"keyterms": ["Beluga", "Foo Bar"], "language": "de", "extra": {"numerals": True, "tag": ["a", "b"]}}
            async with listening(endpointing_ms=0, sample_rate_hz=8_000, **options) as (server, engine, stream):
                await stream.connect()
                return server.requests[0], engine.capabilities.sample_rate_hz

        request, rate_hz = run_simulated(main())
        assert request.path == "/v1/listen"
        assert request.query["keyterm"] == ["Beluga", "Foo Bar"]
        assert request.query["tag"] == ["a", "b"]
        names = ("language", "endpointing", "sample_rate", "numerals", "model", "encoding")
        assert [request.query[name][0] for name in names] == ["de", "false", "8000", "true", "nova-3", "linear16"]
        assert rate_hz == 8_000

    def test_of_two_sessions_is_of_one_client(self):
        """Two engines of one key share the SDK's client, which takes 100 ms to make; the last that leaves closes it."""

        async def main():
            async with DeepgramServer() as server:
                given = {"api_key": server.api_key, "base_url": server.url}
                async with stt.new("deepgram", **given) as one, stt.new("deepgram", **given, language="de") as other:
                    shared = await one.client() is await other.client()
                    async with aclosing(one.stream()) as first, aclosing(other.stream()) as second:
                        await first.connect()
                        await second.connect()
                    return shared, {request.headers["x-deepgram-session-id"] for request in server.requests}

        shared, ids = run_simulated(main())
        assert shared
        assert len(ids) == 1

    def test_takes_no_audio_after_it_was_closed(self):
        async def main():
            async with listening() as (_, _, stream):
                await stream.aclose()
                with pytest.raises(SessionClosedError, match="open another"):
                    await stream.send(Audio(say("one"), RATE_HZ))

        run_simulated(main())


REFUSALS = [
    (Sickness("refuse", status=401), AuthError, "HTTP 401: no: 401; expected a valid key; check DEEPGRAM_API_KEY"),
    (Sickness("refuse", status=402), QuotaError, "HTTP 402.*credit or quota"),
    (Sickness("refuse", status=400), InvalidRequestError, "HTTP 400.*check model"),
    (Sickness("refuse", status=429, retry_after_s=7), RateLimitError, "HTTP 429.*lower max_concurrent"),
    (Sickness("refuse", status=500), OverloadedError, "HTTP 500.*name a stand-by"),
    (Sickness("hang"), ProviderTimeoutError, "opening the stream.*not answered within 3000 ms"),
    (Sickness("cut"), ConnectFailedError, "the connection broke"),
    (Sickness("cut", after=1), ConnectFailedError, "the connection broke"),
    (Sickness("hang", after=0), ProviderTimeoutError, "within 3000 ms"),
    (Sickness("hang", after=1), ProviderTimeoutError, "nothing came of the last"),
    (Sickness("garbage"), ProtocolError, "expected an answer as its documentation has it"),
    (Sickness("garbage", body=b'{"type": "Results"}'), ProtocolError, "listening"),
]


class TestFailures:
    @pytest.mark.parametrize(("sickness", "error", "message"), REFUSALS)
    def test_are_told_as_they_are(self, sickness, error, message):
        """Each kind of failure has its class, and a message that says what happened and what to do."""

        async def main():
            async with listening() as (server, _, stream):
                server.sick = sickness
                await speak(stream, say(WORDS), live=False)
                await stream.finalize()
                await until_closed(stream)

        with pytest.raises(error, match=message) as caught:
            run_simulated(main())
        told = caught.value
        assert str(told).startswith("stt 'deepgram'")
        assert (told.provider, told.kind) == ("deepgram", "stt")
        if isinstance(told, RateLimitError):
            assert told.retry_after_ms == 7_000.0

    def test_names_what_the_server_says_of_a_refused_handshake(self):
        """Deepgram's own reason is in a header of the answer."""

        async def main():
            async with listening(model="nova-99-x", extra={"nonsense": 1}) as (_, _, stream):
                await stream.connect()

        with pytest.raises(InvalidRequestError, match="Unknown query parameter: nonsense"):
            run_simulated(main())

    def test_of_a_refused_handshake_with_headers_that_come_twice(self):
        """Proxies between set more cookies than one."""

        async def refuse(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            lines = ("HTTP/1.1 429 Too Many", "Set-Cookie: a=1", "Set-Cookie: b=2", "Retry-After: 3", "dg-error: slow down")
            writer.write("\r\n".join([*lines, "Content-Length: 0", "Connection: close", "", ""]).encode())
            writer.close()

        async def main():
            async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
                url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
                async with stt.new("deepgram", api_key="loopback-key", base_url=url) as engine:
                    with pytest.raises(RateLimitError, match="HTTP 429: slow down") as caught:
                        await engine.stream().connect()
                    return caught.value.retry_after_ms

        assert run_simulated(main()) == 3_000.0

    def test_of_a_clean_close_in_mid_utterance(self):
        """A server that says goodbye while words are owed has failed all the same."""

        class Leaving(DeepgramServer):
            async def converse(self, socket):
                await anext(socket)
                await socket.close(1000, "maintenance")

        async def main():
            async with listening(Leaving()) as (_, _, stream):
                await stream.send(Audio(say("one"), RATE_HZ))
                await until_closed(stream)

        with pytest.raises(ConnectFailedError, match="close code 1000: maintenance"):
            run_simulated(main())

    def test_of_a_message_that_tells_of_one(self):
        class Complaining(DeepgramServer):
            async def converse(self, socket):
                await anext(socket)
                await socket.send({"type": "Error", "variant": "SchemaError", "description": "what was that?"})
                await socket.closed.wait()

        async def main():
            async with listening(Complaining()) as (_, _, stream):
                await stream.send(Audio(say("one"), RATE_HZ))
                await until_closed(stream)

        with pytest.raises(InvalidRequestError, match="listening: what was that"):
            run_simulated(main())

    def test_come_after_the_words_before_them(self):
        async def main():
            async with listening() as (server, _, stream):
                server.sick = Sickness("cut", after=3)
                await speak(stream, say(WORDS), live=False)
                async for one in stream:
                    told.append(one.text)

        told = []
        with pytest.raises(ConnectFailedError):
            run_simulated(main())
        assert told == ["hello", "hello tell", "hello tell me"]

    def test_messages_of_unknown_types_are_passed_over_and_counted(self):
        async def main():
            async with listening() as (server, engine, stream):
                server.sick = Sickness("unknown")
                await speak(stream, say("one two three"))
                await stream.finalize()
                return finals(await until_closed(stream)), engine.counters["messages_unknown"]

        text, unknown = run_simulated(main())
        assert text == "one two three"
        assert unknown >= 3

    def test_of_a_server_that_takes_the_line_and_says_nothing(self):
        """The SDK would wait 20 s for such a handshake: here it ends after 3 s, and at once when it is cancelled."""

        async def main():
            async def silent(reader, writer):
                await asyncio.Event().wait()

            server = await asyncio.start_server(silent, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            engine = DeepgramSTT(api_key="k", base_url=f"http://127.0.0.1:{port}")
            await engine.prewarm()
            clock = Clock()
            took_ms = []
            began_ms = clock.now_ms()
            with pytest.raises(ProviderTimeoutError, match="within 3000 ms"):
                await engine.stream().connect()
            took_ms.append(clock.now_ms() - began_ms)
            began_ms = clock.now_ms()
            connecting = asyncio.ensure_future(engine.stream().connect())
            await clock.sleep_ms(100)
            connecting.cancel()
            await asyncio.wait([connecting])
            took_ms.append(clock.now_ms() - began_ms)
            left = [task.get_name() for task in asyncio.all_tasks() if "handshake" in task.get_name()]
            await engine.aclose()
            server.close()
            return took_ms, connecting.cancelled(), left

        (refused_ms, cancelled_ms), cancelled, left = run_simulated(main())
        assert left == []
        assert refused_ms == pytest.approx(3_000, abs=50)
        assert cancelled_ms <= 150
        assert cancelled

    def test_of_a_server_that_does_not_say_goodbye(self):
        """Closing waits a quarter of a second for it, not the SDK's forty seconds, and leaves no connection."""

        async def main():
            gone = asyncio.Event()

            async def deaf(reader, writer):
                head = await reader.readuntil(b"\r\n\r\n")
                key = next(line[19:] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key: "))
                accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
                lines = (b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade")
                writer.write(b"\r\n".join((*lines, b"Sec-WebSocket-Accept: " + accept, b"", b"")))
                while True:
                    try:
                        if not await reader.read(65_536):
                            break
                    except ConnectionError:
                        break
                gone.set()
                writer.close()

            server = await asyncio.start_server(deaf, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            engine = DeepgramSTT(api_key="k", base_url=f"http://127.0.0.1:{port}")
            stream = engine.stream()
            await stream.connect()
            began_ms = Clock().now_ms()
            await stream.aclose()
            took_ms = Clock().now_ms() - began_ms
            await gone.wait()
            await engine.aclose()
            server.close()
            return took_ms

        assert run_simulated(main()) <= 300


class TestBatch:
    def test_is_one_call(self):
        async def main():
            async with DeepgramServer() as server, stt.new("deepgram", api_key=server.api_key, base_url=server.url) as engine:
                told = await engine.transcribe(Audio(say("one two", 8_000), 8_000))
                request = server.requests[0]
                return told, request.method, request.path, request.query["sample_rate"], len(server.requests)

        told, *call = run_simulated(main())
        assert (told.text, told.confidence, told.through_ms) == ("one two", 0.98, 520.0)
        assert [round(word.start_ms) for word in told.words] == [0, 260]
        assert call == ["POST", "/v1/listen", ["8000"], 1]

    def test_is_not_tried_again_by_the_sdk(self):
        """Who tries again, and when, is decided elsewhere: one refusal, one error."""

        async def main():
            async with DeepgramServer() as server, stt.new("deepgram", api_key=server.api_key, base_url=server.url) as engine:
                server.sick = Sickness("refuse", status=503, retry_after_s=1)
                with pytest.raises(OverloadedError, match="transcribing: HTTP 503: no: 503"):
                    await engine.transcribe(Audio(say("one"), RATE_HZ))
                return len(server.requests)

        assert run_simulated(main()) == 1


def test_the_sdk_is_imported_without_its_warnings():
    """It uses what `websockets` calls deprecated; a program that makes errors of warnings works all the same."""
    code = (
        "import asyncio; from beluga_voice import stt\n"
        "async def main():\n"
        "    async with stt.new('deepgram', api_key='loopback-key'): pass\n"
        "asyncio.run(main())"
    )
    command = [sys.executable, "-W", "error::DeprecationWarning", "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")


class TestOptions:
    def test_without_a_key_the_message_says_how_to_give_one(self, monkeypatch):
        monkeypatch.delenv("DEEPGRAM_API_KEY", raising=False)
        with pytest.raises(MissingKeyError, match="DEEPGRAM_API_KEY"):
            stt.new("deepgram")

    def test_the_key_may_be_in_the_environment(self, monkeypatch):
        monkeypatch.setenv("DEEPGRAM_API_KEY", "from-outside")
        assert stt.new("deepgram").access.api_key == "from-outside"

    @pytest.mark.parametrize(
        ("option", "value", "message"),
        [
            ("sample_rate_hz", 4_000, "8000 to 48000"),
            ("endpointing_ms", -1, "at least 0"),
            ("keyterms", "Beluga", "expected list"),
            ("base_url", "api.deepgram.com", "http:// or https:// root"),
            ("modell", "nova-3", "did you mean 'model'"),
        ],
    )
    def test_that_do_not_fit_are_refused(self, option, value, message):
        with pytest.raises(OptionError, match=message):
            stt.new("deepgram", api_key="k", **{option: value})

    def test_may_change_in_a_copy(self):
        engine = stt.new("deepgram", api_key="k")
        other = engine.with_options(sample_rate_hz=8_000)
        assert (engine.capabilities.sample_rate_hz, other.capabilities.sample_rate_hz) == (16_000, 8_000)
