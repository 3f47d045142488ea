"""ElevenLabs' voices over the real `websockets` and the real SDK, against a server of the documented protocol."""

import asyncio
import base64
import json
import logging
from contextlib import aclosing

import pytest
from beluga_voice_elevenlabs.tts import ElevenLabsTTS

from beluga_voice import tts
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
    QuotaError,
    RateLimitError,
    SessionClosedError,
)
from beluga_voice.failures import MAX_BODY_BYTES
from beluga_voice.testing.elevenlabs_server import ElevenLabsServer
from beluga_voice.testing.loopback import Answer, Sickness
from beluga_voice.testing.tone_speech import GAP_MS, WORD_MS, understand

STEP_MS = WORD_MS + GAP_MS
LONG = "One two three four five six seven eight nine ten eleven twelve."


def made(server, **options):
    return ElevenLabsTTS(**{"api_key": server.api_key, "base_url": server.url, **options})


def in_a_session(use, **options):
    """What `use(server, voice)` gives, with a session's own handle of the voice; nothing is left behind."""

    async def main():
        async with ElevenLabsServer() as server:
            async with made(server, **options) as engine, Context() as context:
                result = await use(server, await context.handle(engine))
            await asyncio.sleep(0.1)
            assert server.open_sockets == server.open_connections == 0
            return result

    return run_simulated(main())


async def given_as(*pieces, pause_s=0.0):
    for piece in pieces:
        yield piece
        await asyncio.sleep(pause_s)


async def said(voice, *pieces):
    """The pieces of audio of a whole reply, and what is heard in them."""
    out = [piece async for piece in voice.synthesize_stream(given_as(*pieces))]
    return out, understand(b"".join(piece.pcm for piece in out), voice.options.sample_rate_hz)


def messages(socket):
    return [json.loads(message) for message in socket.received]


class TestSocket:
    def test_is_one_for_a_whole_session_with_a_context_for_each_reply(self):
        """It is open before the first reply; every reply opens a context, closes it, and is whole."""

        async def use(server, voice):
            await asyncio.sleep(0.1)
            assert server.open_sockets == 1
            for _ in range(20):
                assert (await said(voice, "One two. ", "Three."))[1] == "one two three"
            return server.sockets, server.counters

        [socket], counters = in_a_session(use)
        assert counters["contexts_opened"] == counters["contexts_closed"] == 20
        first = messages(socket)[0]
        assert first["text"] == " "
        assert first["voice_settings"] == {
            "stability": 0.5,
            "similarity_boost": 0.75,
            "style": 0.0,
            "speed": 1.0,
            "use_speaker_boost": True,
        }

    @pytest.mark.parametrize("alignment", ["chunk", "sentence"])
    def test_words_are_timed_from_where_their_sentence_begins(self, alignment):
        """Whether letters are timed with their own audio, or all of a sentence with the first of it."""

        async def use(server, voice):
            server.alignment = alignment
            return (await said(voice, "One two three. ", "Four five."))[0]

        pieces = in_a_session(use)
        assert [piece.text for piece in pieces if piece.text] == ["One two three.", "Four five."]
        words = [(word.text, round(word.start_ms), round(word.end_ms)) for piece in pieces for word in piece.words]
        once = [("One", 0), ("two", STEP_MS), ("three.", 2 * STEP_MS), ("Four", 0), ("five.", STEP_MS)]
        assert words == [(text, start_ms, start_ms + WORD_MS) for text, start_ms in once]

    def test_a_voice_that_times_nothing_still_tells_its_text(self):
        """Without letter times the text is told, and no word times are made up."""

        async def use(server, voice):
            server.alignment = ""
            return (await said(voice, "One two three. ", "Four five."))[0]

        pieces = in_a_session(use)
        assert " ".join(piece.text for piece in pieces if piece.text) == "One two three. Four five."
        assert not any(piece.words for piece in pieces)

    def test_first_audio_comes_with_the_first_sentence(self):
        """It does not wait for the text's end, nor for a number of letters."""

        async def use(server, voice):
            clock = Clock()
            await asyncio.sleep(1)
            begun_ms = clock.now_ms()
            async with aclosing(voice.synthesize_stream(given_as("Yes. ", "One two", " three.", pause_s=1.0))) as pieces:
                await anext(pieces)
                return clock.now_ms() - begun_ms

        assert in_a_session(use) <= 100

    def test_that_is_closed_is_not_opened_again(self):
        class Slow(ElevenLabsServer):
            async def greet(self, request):
                await asyncio.sleep(1)
                return await super().greet(request)

        async def main():
            async with Slow() as server, made(server) as engine:
                server.sicken(Sickness("refuse", status=503))
                voice = await engine.open(Context())
                await asyncio.sleep(2)
                pieces = voice.synthesize_stream(given_as("One two."))
                reply = asyncio.ensure_future(anext(pieces))
                await asyncio.sleep(0.5)  # it has begun to connect again
                await voice.aclose()
                with pytest.raises(SessionClosedError, match="is closed"):
                    await reply
                with pytest.raises(SessionClosedError, match="is closed"):
                    await said(voice, "One two.")
                await asyncio.sleep(0.1)
                return len(server.requests), server.open_sockets

        assert run_simulated(main()) == (2, 0)

    def test_takes_messages_of_more_than_a_mebibyte(self):
        """The service sends some: the audio of a long sentence at once."""

        class Long(ElevenLabsServer):
            async def converse(self, socket):
                async for message in socket:
                    told = json.loads(message)
                    if told.get("flush"):
                        audio = base64.b64encode(bytes(2 * 2**20)).decode()
                        await socket.send({"audio": audio, "contextId": told["context_id"]})
                    if told.get("close_context"):
                        await socket.send({"isFinal": True, "contextId": told["context_id"]})

        async def main():
            async with Long() as server, made(server) as engine:
                return len((await engine.synthesize("One.")).pcm)

        assert run_simulated(main()) == 2 * 2**20

    def test_speaks_without_a_session(self):
        """One text, one socket, closed when it is said."""

        async def main():
            async with ElevenLabsServer() as server, made(server) as engine:
                audio = await engine.synthesize("Hello. What time is it?")
                await asyncio.sleep(0.1)
                return understand(audio.pcm, audio.sample_rate_hz), len(server.sockets), server.open_sockets

        assert run_simulated(main()) == ("hello what time is it", 1, 0)

    @pytest.mark.parametrize("begins_at_s", [0.0, 0.1, 1 / 3, 1_234.567])
    def test_stays_open_through_half_an_hour_of_quiet(self, begins_at_s):
        """A context is kept alive, once it is open; the next reply speaks in it."""

        async def use(server, voice):
            await asyncio.sleep(begins_at_s)
            await said(voice, "One.")
            before = server.counters["keep_alives"]
            await asyncio.sleep(1_800)
            assert server.counters["keep_alives"] - before == pytest.approx(120, abs=1)
            assert (await said(voice, "Two."))[1] == "two"
            return server.sockets

        [socket] = in_a_session(use)
        opened = set()
        for message in messages(socket):
            assert message["context_id"] in opened or message["text"] == " "
            opened.add(message["context_id"])
        assert len(opened) == 2

    def test_what_waits_to_be_heard_is_bounded(self):
        """A caller who does not listen on is not synthesised for: what nobody hears is paid for, too."""

        async def use(server, voice):
            text = [f"{LONG} " for _ in range(30)]
            async with aclosing(voice.synthesize_stream(given_as(*text))) as pieces:
                await anext(pieces)
                await asyncio.sleep(60)
                ahead = len(server.spoken)
                async for _ in pieces:
                    pass
            return ahead, len(server.spoken)

        ahead, whole = in_a_session(use)
        assert ahead <= 6
        assert whole == 30

    def test_unknown_messages_are_counted(self):
        """News of 2031 harms nothing."""

        async def use(server, voice):
            server.sicken(Sickness("unknown"))
            heard = (await said(voice, "One two."))[1]
            return heard, voice.counters["unknown_messages"]

        heard, unknown = in_a_session(use)
        assert heard == "one two"
        assert unknown > 0


class TestBargeIn:
    def test_closes_the_context_at_once_and_nothing_of_it_reaches_the_next_reply(self):
        """The service hears of it within 50 ms; what it still sends is dropped and counted."""

        async def use(server, voice):
            server.pace = 1.0
            async with aclosing(voice.synthesize_stream(given_as(f"{LONG} ", LONG, pause_s=0.1))) as pieces:
                await anext(pieces)
                left_ms = server.clock.now_ms()
            heard = (await said(voice, "Red green."))[1]
            [socket] = server.sockets
            [first, second] = [name for name in dict.fromkeys(message["context_id"] for message in messages(socket))]
            return heard, left_ms, voice.counters["late_audio_dropped"], messages(socket), first, second

        heard, _, dropped, sent, first, second = in_a_session(use)
        assert heard == "red green"
        assert dropped > 0
        names = [(message["context_id"], message.get("close_context", False)) for message in sent]
        assert names.index((first, True)) < names.index((second, False))

    def test_reaches_the_service_within_50_ms(self):
        """Closing the generator sends the word; measured on the server."""

        async def use(server, voice):
            server.pace = 1.0
            pieces = voice.synthesize_stream(given_as(LONG, pause_s=60))
            await anext(pieces)
            at_ms = server.clock.now_ms()
            await pieces.aclose()
            await asyncio.sleep(max(0.0, at_ms + 50 - server.clock.now_ms()) / 1000)
            return messages(server.sockets[0])[-1]

        assert in_a_session(use)["close_context"] is True

    def test_ten_in_a_row_never_open_more_contexts_than_are_allowed(self):
        """The service goes on with what was flushed, and counts it; a socket with too much of that is replaced."""

        async def use(server, voice):
            server.pace = 0.1
            for _ in range(10):
                async with aclosing(voice.synthesize_stream(given_as(LONG))) as pieces:
                    await anext(pieces)
            server.pace = 20.0
            return (await said(voice, "Red."))[1], len(server.sockets), voice.counters["sockets_renewed"]

        heard, sockets, renewed = in_a_session(use)
        assert heard == "red"
        assert sockets == renewed + 1 == 3

    def test_before_the_first_audio_leaves_no_context_open(self):
        """At whatever moment the reply is given up, its context is closed, or was never opened."""

        async def use(server, voice):
            for wait_ms in range(0, 40, 2):
                task = asyncio.create_task(said(voice, LONG))
                await asyncio.sleep(wait_ms / 1000)
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()
            await asyncio.sleep(1)
            heard = (await said(voice, "Red."))[1]
            return heard, server.counters

        heard, counters = in_a_session(use)
        assert heard == "red"
        assert counters["contexts_opened"] == counters["contexts_closed"]


class TestDrops:
    def test_a_drop_in_mid_reply_fails_that_reply_and_the_next_connects_again(self):
        """The audio that came is heard; then the error; then all is well."""

        async def broken_off(server, voice, pieces):
            async for piece in voice.synthesize_stream(given_as(LONG)):
                pieces.append(piece)
                if len(pieces) == 3:
                    server.sockets[0].abort()

        async def use(server, voice):
            server.pace = 1.0
            pieces = []
            await asyncio.sleep(0.1)
            with pytest.raises(ConnectFailedError, match="tts 'elevenlabs', speaking"):
                await broken_off(server, voice, pieces)
            server.pace = 20.0
            return len(pieces), (await said(voice, "Red."))[1], len(server.sockets)

        assert in_a_session(use) == (3, "red", 2)

    def test_one_while_nobody_speaks_is_mended_before_the_next_reply(self):
        """No caller notices, and no reply waits for a handshake."""

        async def use(server, voice):
            await said(voice, "One.")
            await asyncio.sleep(60)
            server.sockets[0].abort()
            await asyncio.sleep(1)
            opened = server.open_sockets
            return opened, (await said(voice, "Two."))[1], len(server.sockets)

        assert in_a_session(use) == (1, "two", 2)

    @pytest.mark.parametrize("how", ["refuses the handshake", "closes at once", "refuses the key in the socket"])
    def test_a_service_that_wants_no_socket_is_not_asked_again_and_again(self, how):
        """Only a reply tries again."""

        async def use(server, voice):
            if how == "refuses the handshake":
                server.sick = Sickness("refuse", status=503)
            elif how == "closes at once":
                server.converse = lambda socket: asyncio.sleep(0)
            else:
                server.error = "invalid_api_key"
            await asyncio.sleep(600)
            tried = len(server.requests)
            with pytest.raises((OverloadedError, ConnectFailedError, AuthError)):
                await said(voice, "One.")
            return tried, len(server.requests)

        assert in_a_session(use) == (1, 2)

    @pytest.mark.parametrize(
        ("code", "error"),
        [
            ("invalid_api_key", AuthError),
            ("quota_exceeded", QuotaError),
            ("too_many_concurrent_requests", RateLimitError),
            ("system_busy", OverloadedError),
            ("max_active_conversations", OverloadedError),
            ("input_timeout_exceeded", ConnectFailedError),
            ("voice_id_does_not_exist", InvalidRequestError),
        ],
    )
    def test_what_the_socket_says_is_told_in_our_words(self, code, error):
        """An error in a message, before the close."""

        async def use(server, voice):
            server.error = code
            with pytest.raises(error) as caught:
                await said(voice, "One.")
            server.error = ""
            return type(caught.value), (await said(voice, "Two."))[1]

        assert in_a_session(use) == (error, "two")

    def test_a_bad_key_is_told_whichever_way_the_service_says_so(self):
        """By refusing the handshake, or in the socket; the key itself is in no message and no address."""

        async def main(in_socket):
            async with ElevenLabsServer() as server:
                server.key_in_socket = in_socket
                async with made(server, api_key="canary-0a1b2c3d") as engine, Context() as context:
                    voice = await context.handle(engine)
                    with pytest.raises(AuthError) as caught:
                        await said(voice, "One.")
                assert all("canary" not in f"{request.path} {request.query}" for request in server.requests)
                return str(caught.value)

        for in_socket in (True, False):
            message = run_simulated(main(in_socket))
            assert "ELEVENLABS_API_KEY" in message
            assert "canary" not in message

    def test_a_service_that_falls_silent_is_given_up(self):
        """Also where nobody else watches the clock."""

        async def use(server, voice):
            server.sicken(Sickness("hang", after=2))
            begun_ms = server.clock.now_ms()
            with pytest.raises(ProviderTimeoutError, match="30000 ms"):
                await said(voice, LONG)
            return server.clock.now_ms() - begun_ms

        assert in_a_session(use) <= 31_000

    def test_the_key_is_in_no_log_of_a_handshake(self, caplog):
        """`websockets` logs the headers at DEBUG."""
        caplog.set_level(logging.DEBUG)
        in_a_session(lambda server, voice: said(voice, "One."))
        assert "xi-api-key" in caplog.text
        assert "loopback-key" not in caplog.text


class TestRequests:
    def test_each_sentence_is_one_told_what_is_around_it(self):
        """For the prosody: the sentence before, and the one after if it is known; never what an earlier reply said."""

        async def use(server, voice):
            heard = [(await said(voice, "One two. Three. Four five. ", "Six."))[1] for _ in range(2)]
            bodies = [json.loads(request.body) for request in server.requests]
            return heard, [(body.get("previous_text"), body["text"], body.get("next_text")) for body in bodies]

        heard, bodies = in_a_session(use, transport="http")
        assert heard == ["one two three four five six"] * 2
        once = ["One two.", "Three.", "Four five.", "Six."]
        assert [text for _, text, _ in bodies] == once * 2
        assert [before for before, _, _ in bodies] == [None, *once[:-1]] * 2
        assert [after for _, _, after in bodies[1:3]] == once[2:]

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_is_made_once(self, status):
        """Nothing below retries: whoever calls knows if there is time."""

        async def use(server, voice):
            server.sick = Sickness("refuse", status=status, retry_after_s=0)
            with pytest.raises((RateLimitError, OverloadedError)):
                await said(voice, "One.")
            return len(server.requests)

        assert in_a_session(use, transport="http") == 1

    def test_closing_stops_the_answer(self):
        """The connection is closed under it within 50 ms."""

        async def use(server, voice):
            server.pace = 1.0
            pieces = voice.synthesize_stream(given_as(LONG))
            await anext(pieces)
            at_ms = server.clock.now_ms()
            await pieces.aclose()
            await server.requests[0].over.wait()
            return server.clock.now_ms() - at_ms, server.requests[0].whole

        late_ms, whole = in_a_session(use, transport="http")
        assert late_ms <= 50
        assert not whole

    def test_a_page_instead_of_audio_is_no_sound(self):
        """A proxy's page with status 200 would be noise in the caller's ear."""

        async def use(server, voice):
            server.sicken(Sickness("garbage"))
            with pytest.raises(ProtocolError, match="text/html"):
                await said(voice, "One.")

        in_a_session(use, transport="http")

    def test_an_answer_without_end_is_cut_off(self):
        class Endless(ElevenLabsServer):
            async def answer(self, request):
                async def body():
                    while True:
                        yield bytes(2**20)

                return Answer(200, {"content-type": "audio/pcm"}, body())

        async def main():
            async with Endless() as server, made(server, transport="http") as engine:
                async for piece in engine.synthesize_stream(given_as("One.")):
                    heard.append(len(piece.pcm))

        heard = []
        with pytest.raises(ProtocolError, match="went on after"):
            run_simulated(main())
        assert sum(heard) <= MAX_BODY_BYTES

    def test_is_not_sent_on_to_where_an_answer_points(self):
        """It would carry the key there."""

        class Elsewhere(ElevenLabsServer):
            async def answer(self, request):
                return Answer(307, {"location": "/v1/elsewhere"}, b"")

        async def main():
            async with Elsewhere() as server, made(server, transport="http") as engine:
                with pytest.raises(ProtocolError, match="HTTP 307"):
                    await said(engine, "One.")
                return [request.path for request in server.requests]

        [path] = run_simulated(main())
        assert path.startswith("/v1/text-to-speech/")

    @pytest.mark.parametrize("status", [401, 402])
    def test_what_the_service_says_of_the_account(self, status):
        """Its code is more exact than the status: spent credit is told with 401, too."""

        async def use(server, voice):
            body = b'{"detail": {"status": "quota_exceeded", "message": "You have 3 credits left."}}'
            server.sicken(Sickness("refuse", status=status, body=body))
            with pytest.raises(QuotaError, match="3 credits left"):
                await said(voice, "One.")

        in_a_session(use, transport="http")


class TestOptions:
    def test_a_missing_key_is_told_when_the_voice_is_made(self, monkeypatch):
        """The SDK itself reads its variable once, at import, and says nothing."""
        monkeypatch.delenv("ELEVENLABS_API_KEY", raising=False)
        with pytest.raises(MissingKeyError, match="ELEVENLABS_API_KEY"):
            tts.new("elevenlabs")
        monkeypatch.setenv("ELEVENLABS_API_KEY", "from-outside")
        assert tts.new("elevenlabs").access.api_key == "from-outside"

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"voice": "../v1/user"}, "option 'voice' is '../v1/user'"),
            ({"voice": ""}, "option 'voice' is ''"),
            ({"model": "eleven_v3"}, "transport='http'"),
            ({"speed": 3}, "0.7 to 1.2"),
            ({"stability": -0.1}, "0.0 to 1.0"),
            ({"sample_rate_hz": 11_025}, "8000, 16000"),
            ({"transport": "carrier pigeon"}, "'websocket', 'http'"),
            ({"base_url": "api.elevenlabs.io"}, "base_url"),
        ],
    )
    def test_those_that_do_not_fit_are_refused_when_the_voice_is_made(self, options, told):
        """Not in the first reply."""
        with pytest.raises(OptionError, match=told):
            ElevenLabsTTS(api_key="secret-key", **options)

    def test_reach_the_service(self):
        """By the socket's address and the context's first message."""

        async def use(server, voice):
            await said(voice, "One.")
            return server.sockets[0].request, messages(server.sockets[0])[0]["voice_settings"]

        options = {"voice": "21m00Tcm4TlvDq8ikWAM", "language": "de-AT", "model": "eleven_turbo_v2_5", "sample_rate_hz": 8_000}
        request, settings = in_a_session(use, stability=0.2, speed=1.1, speaker_boost=False, **options)
        assert request.path == "/v1/text-to-speech/21m00Tcm4TlvDq8ikWAM/multi-stream-input"
        assert request.query["language_code"] == ["de"]
        assert request.query["model_id"] == ["eleven_turbo_v2_5"]
        assert request.query["output_format"] == ["pcm_8000"]
        assert (settings["stability"], settings["speed"], settings["use_speaker_boost"]) == (0.2, 1.1, False)

    def test_two_engines_of_one_key_share_the_client(self):
        """And the last to leave closes it."""

        async def main():
            async with ElevenLabsServer() as server:
                one, other = made(server), made(server, transport="http")
                async with one, other, one.with_options(speed=1.1) as third:
                    clients = [await engine.client() for engine in (one, other, third)]
                    assert clients[0] is clients[1] is clients[2]
                return clients[0].http.is_closed

        assert run_simulated(main())
