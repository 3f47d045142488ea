"""Loopback servers: what is sick about a call is seen by a real client just so, in simulated time; nothing is left behind."""

from __future__ import annotations

import asyncio

import httpx
import pytest
import websockets
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice.audio import Audio, resample
from beluga_voice.clock import Clock, run_simulated, wall_ms
from beluga_voice.testing.loopback import Answer, LoopbackServer, Sickness
from beluga_voice.testing.tone_speech import VOCABULARY, WORD_MS, say, understand, word_times

PIECES, PIECE = 20, 1_000


class Provider(LoopbackServer):
    """Streams a body for two seconds; repeats in capitals what a WebSocket says."""

    async def answer(self, request):
        async def body():
            for _ in range(PIECES):
                await self.clock.sleep_ms(100)
                yield b"x" * PIECE

        return Answer(200, {"x-told": request.query.get("tell", [""])[0]}, body())

    async def converse(self, socket):
        async for message in socket:
            await socket.send(message.upper())


def run(main, *given):
    """Run `main(server, clock, ...)` in simulated time; no task is left."""

    async def whole():
        async with Provider() as server:
            out = await main(server, Clock(), *given)
            await asyncio.sleep(0)
        assert [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
        assert server.open_connections == server.open_sockets == 0
        return out

    return run_simulated(whole())


async def fetch(server, sickness=None):
    """Status and bytes of one GET, or the class of its failure; how long it took."""
    if sickness is not None:
        server.sicken(sickness)
    began_ms = server.clock.now_ms()
    async with httpx.AsyncClient(timeout=5) as client:
        try:
            answer = await client.get(f"{server.url}/v1/speak?tell=me")
            told = (answer.status_code, len(answer.content))
        except httpx.HTTPError as error:
            told = type(error).__name__
    return told, round(server.clock.now_ms() - began_ms)


class TestHTTP:
    def test_a_well_server_answers_and_keeps_what_it_was_asked(self):
        async def main(server, clock):
            told = await fetch(server)
            request = server.requests[0]
            return told, request.method, request.path, request.query

        assert run(main) == (((200, PIECES * PIECE), 2_000), "GET", "/v1/speak", {"tell": ["me"]})

    @pytest.mark.parametrize(
        ("sickness", "told"),
        [
            (Sickness("refuse", status=429), ((429, 17), 0)),
            (Sickness("hang"), ("ReadTimeout", 5_000)),
            (Sickness("hang", after=3_500), ("ReadTimeout", 5_400)),
            (Sickness("cut"), ("RemoteProtocolError", 0)),
            (Sickness("cut", after=3_500), ("RemoteProtocolError", 400)),
            (Sickness("drip", every_ms=100), ((200, PIECES * PIECE), 6_000)),
            (Sickness("garbage"), ((200, 26), 0)),
            (Sickness("garbage", after=3_500), ("RemoteProtocolError", 400)),
            (Sickness("odd"), ((200, PIECES * PIECE), 2_000)),
        ],
        ids=str,
    )
    def test_a_sick_one_is_sick_as_scripted(self, sickness, told):
        """Two seconds of answer, five seconds of patience: all of it in simulated time."""
        assert run(lambda server, clock: fetch(server, sickness)) == told

    def test_sickness_passes_after_its_calls(self):
        async def main(server, clock):
            server.sicken(Sickness("refuse", status=503), calls=2)
            return [(await fetch(server))[0][0] for _ in range(3)]

        assert run(main) == [503, 503, 200]

    def test_a_share_of_calls_is_sick(self):
        async def main(server, clock):
            server.sicken_share(0.3, [Sickness("refuse")], seed=7)
            return [(await fetch(server))[0][0] for _ in range(100)].count(500)

        assert 20 <= run(main) <= 40

    def test_retry_after_is_told(self):
        async def main(server, clock):
            server.sicken(Sickness("refuse", status=429, retry_after_s=2.5))
            async with httpx.AsyncClient() as client:
                return (await client.get(server.url)).headers["retry-after"]

        assert run(main) == "2.5"

    def test_it_knows_when_the_client_goes_away(self):
        async def main(server, clock):
            async with httpx.AsyncClient() as client, client.stream("GET", server.url) as answer:
                async for _ in answer.aiter_raw():
                    left_ms = clock.now_ms()
                    break
            request = server.requests[0]
            await request.over.wait()
            return request.whole, request.ended_ms - left_ms

        assert run(main) == (False, 0.0)

    def test_a_minute_of_hanging_takes_no_time(self):
        async def main(server, clock):
            async with httpx.AsyncClient(timeout=60) as client:
                server.sicken(Sickness("hang"))
                with pytest.raises(httpx.ReadTimeout):
                    await client.get(server.url)
            return clock.now_ms()

        began_ms = wall_ms()
        assert run(main) >= 60_000
        assert wall_ms() - began_ms < 30_000


async def talk(server, sickness=None):
    """What a WebSocket brings for three messages, or the class of its failure."""
    if sickness is not None:
        server.sicken(sickness)
    got = []
    try:
        async with websockets.connect(server.url.replace("http", "ws") + "/listen", open_timeout=5, compression=None) as socket:
            for message in ("a", b"b" * 500, "c"):
                await socket.send(message)
                async with asyncio.timeout(3):
                    got.append(await socket.recv())
    except Exception as error:
        got.append(type(error).__name__)
    return got


class TestWebSockets:
    def test_a_well_server_converses(self):
        async def main(server, clock):
            got = await talk(server)
            await server.sockets[0].closed.wait()
            return got, server.sockets[0].received, server.sockets[0].close_code

        assert run(main) == (["A", b"B" * 500, "C"], ["a", b"b" * 500, "c"], 1000)

    @pytest.mark.parametrize(
        ("sickness", "got"),
        [
            (Sickness("refuse", status=401), ["InvalidStatus"]),
            (Sickness("hang"), ["TimeoutError"]),
            (Sickness("hang", after=1), ["A", "TimeoutError"]),
            (Sickness("cut"), ["ConnectionClosedError"]),
            (Sickness("cut", after=2), ["A", b"B" * 500, "ConnectionClosedError"]),
            (Sickness("drip", every_ms=1_000), ["A", b"B" * 500, "C"]),
            (Sickness("garbage", after=2), ["A", b"B" * 500, "{this is: no JSON"]),
            (Sickness("odd"), ["A", b"B" * 333, b"B" * 167]),
        ],
        ids=str,
    )
    def test_a_sick_one_is_sick_as_scripted(self, sickness, got):
        assert run(lambda server, clock: talk(server, sickness)) == got

    def test_messages_of_unknown_types_come_between(self):
        got = run(lambda server, clock: talk(server, Sickness("unknown")))
        assert ["a_type_of_2031" in str(message) for message in got] == [True, False, True]

    def test_a_server_that_dies_breaks_every_connection(self):
        async def main(server, clock):
            async with websockets.connect(server.url.replace("http", "ws")) as socket:
                await socket.send("a")
                await socket.recv()
                await server.abort()
                with pytest.raises(websockets.ConnectionClosedError):
                    await socket.recv()
            return server.sockets[0].close_code

        assert run(main) is None


class TestToneSpeech:
    @given(st.lists(st.sampled_from(VOCABULARY), max_size=8), st.sampled_from([8_000, 16_000, 22_050, 24_000, 48_000]))
    def test_what_is_said_is_understood_at_any_rate(self, words, rate_hz):
        text = " ".join(words)
        assert understand(say(text, rate_hz), rate_hz) == text
        assert understand(resample(Audio(say(text), 16_000), rate_hz).pcm, rate_hz) == text

    def test_words_it_does_not_know_sound_alike(self):
        assert understand(say("one elephant, please!"), 16_000) == "one ? please"

    def test_the_times_are_where_the_words_are(self):
        for word, start_ms, end_ms in word_times("Go, now stop"):
            piece = say("Go, now stop")[int(start_ms * 32) : int(end_ms * 32)]
            assert understand(piece, 16_000) == word.strip(",").lower()
            assert end_ms - start_ms == WORD_MS

    @given(st.integers(0, 10_000))
    def test_silence_and_noise_are_no_words(self, seed):
        assert understand(bytes(seed), 16_000) == ""
