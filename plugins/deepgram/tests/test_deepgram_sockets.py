"""How Deepgram's sockets are opened and closed: parameters as the SDK's own, TLS, refusals, cancellation at every step."""

import asyncio
import gc
import logging
import ssl
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import pytest
import trustme
from beluga_voice_deepgram.flux import FluxSTT
from beluga_voice_deepgram.stt import DeepgramSTT
from beluga_voice_deepgram.tts import DeepgramTTS
from beluga_voice_deepgram.vendor import DEEPGRAM
from hypothesis import example, given, settings
from hypothesis import strategies as st

from beluga_voice.audio import Audio
from beluga_voice.clock import Clock, run_simulated
from beluga_voice.engine import Context
from beluga_voice.errors import (
    AuthError,
    ConnectFailedError,
    InvalidRequestError,
    ProtocolError,
    ProviderTimeoutError,
    QuotaError,
    RateLimitError,
)
from beluga_voice.remote import Access
from beluga_voice.testing import quiet
from beluga_voice.testing.deepgram_server import DeepgramServer
from beluga_voice.testing.loopback import Answer, LoopbackServer
from beluga_voice.testing.tone_speech import say, understand

KEY = "canary-key-4711"
RATE_HZ = 16_000
MOST_STEPS = 200
AUTHORITY = trustme.CA()


class Listener(LoopbackServer):
    """Takes any handshake; sends its callers to `elsewhere`, where that is set; says `told` first."""

    elsewhere = ""
    told = None

    async def greet(self, request):
        return Answer(301, {"location": self.elsewhere}) if self.elsewhere else None

    async def converse(self, socket):
        if self.told is not None:
            await socket.send(self.told)
        async for _ in socket:
            pass


def secure(server):
    """Make it speak TLS, with a certificate of an authority nobody knows."""
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("127.0.0.1").configure_cert(server.tls)
    return server


@pytest.fixture
def trusting(monkeypatch, tmp_path):
    """This process knows that authority."""
    AUTHORITY.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))


@asynccontextmanager
async def silent():
    """A port that takes connections and says nothing: where it is, and how many are open."""
    still_open = []

    async def take(reader, writer):
        still_open.append(writer)
        try:
            while await reader.read(65_536):
                pass
        except ConnectionError:
            pass
        still_open.remove(writer)
        writer.close()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", still_open


@asynccontextmanager
async def answering(answer):
    """A port that answers every request with these bytes, and hangs up: its root."""

    async def take(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def opened(engine):
    """A session's socket, as long as this lasts."""
    if isinstance(engine, DeepgramTTS):
        async with aclosing(await engine.open(Context())) as voice:
            yield voice
    else:
        async with aclosing(engine.stream()) as stream:
            await stream.connect()
            yield stream


async def one(text):
    yield text


async def hear(engine):
    """What a recogniser makes of a short turn."""
    async with aclosing(engine.stream()) as stream:
        await stream.send(Audio(say("one two") + quiet(200), RATE_HZ))
        await stream.finalize()
        while True:
            told = await anext(stream)
            if getattr(told, "closes", False):
                return told.text


async def batch(engine):
    return (await engine.transcribe(Audio(say("one two"), RATE_HZ))).text


async def speak(engine):
    pieces = [piece.pcm async for piece in engine.synthesize_stream(one("one two"))]
    return understand(b"".join(pieces), 24_000)


USES = {
    "nova": (DeepgramSTT, {}, hear),
    "batch": (DeepgramSTT, {}, batch),
    "flux": (FluxSTT, {}, hear),
    "aura": (DeepgramTTS, {}, speak),
    "aura over http": (DeepgramTTS, {"transport": "http"}, speak),
}


# --- parameters ------------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(codec="utf-8"), max_size=9)
VALUES = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), TEXTS)
NAMES = st.sampled_from(["model", "keyterm", "tag", "mip_opt_out", "eot_threshold", "a b&c=ü"])
EXTRA = st.dictionaries(NAMES, st.one_of(VALUES, st.none(), st.lists(VALUES, max_size=3)), max_size=4)


class TestParameters:
    def compared(self, engine, connect):
        """The handshakes of the SDK's own `connect` and of the engine."""

        async def main():
            async with Listener() as server:
                client = await asyncio.to_thread(DEEPGRAM.make, Access(KEY, server.url))
                async with connect(client.sdk):
                    pass
                await client.http.aclose()
                async with engine(api_key=KEY, base_url=server.url) as made, opened(made):
                    pass
                return server.requests

        theirs, ours = run_simulated(main())
        assert (ours.path, ours.query) == (theirs.path, theirs.query)
        for name in ("authorization", "user-agent"):
            assert ours.headers[name] == theirs.headers[name]
        assert ours.headers["x-deepgram-session-id"]
        return ours.query

    @given(EXTRA, st.lists(TEXTS, max_size=3), st.booleans())
    @example({"model": None, "tag": [True, 0.5, "a,b"]}, ["Beluga & Söhne", "x=1"], False)
    @settings(max_examples=15, deadline=None)
    def test_of_nova_are_encoded_as_the_sdk_does(self, extra, keyterms, punctuate):
        self.compared(
            lambda **given: DeepgramSTT(keyterms=keyterms, punctuate=punctuate, endpointing_ms=0, extra=extra, **given),
            lambda sdk: sdk.listen.v1.connect(
                model="nova-3",
                language="en",
                encoding="linear16",
                sample_rate=RATE_HZ,
                channels=1,
                interim_results=True,
                smart_format=True,
                punctuate=punctuate,
                endpointing=False,
                keyterm=keyterms or None,
                request_options={"additional_query_parameters": extra},
            ),
        )

    @given(EXTRA, st.sampled_from([0.0, 0.4]), st.sampled_from(["flux-general-en", "flux-general-multi"]))
    @settings(max_examples=15, deadline=None)
    def test_of_flux_are_encoded_as_the_sdk_does(self, extra, eager, model):
        self.compared(
            lambda **given: FluxSTT(keyterms=["a b", "c"], eager_eot_threshold=eager, model=model, extra=extra, **given),
            lambda sdk: sdk.listen.v2.connect(
                model=model,
                encoding="linear16",
                sample_rate=RATE_HZ,
                eot_threshold=0.7,
                eager_eot_threshold=eager or None,
                eot_timeout_ms=5_000,
                keyterm=["a b", "c"],
                language_hint=["en"] if model.endswith("multi") else None,
                request_options={"additional_query_parameters": extra},
            ),
        )

    @given(EXTRA)
    @settings(max_examples=10, deadline=None)
    def test_of_aura_are_encoded_as_the_sdk_does(self, extra):
        self.compared(
            lambda **given: DeepgramTTS(extra=extra, **given),
            lambda sdk: sdk.speak.v1.connect(
                model="aura-2-thalia-en",
                encoding="linear16",
                sample_rate=24_000,
                request_options={"additional_query_parameters": extra},
            ),
        )


# --- TLS -------------------------------------------------------------------------------------------------------------


def contexts_in_use():
    """The contexts of all client connections that there are now."""
    gc.collect()
    return {id(one.context) for one in gc.get_objects() if isinstance(one, ssl.SSLObject) and not one.server_side}


@pytest.mark.usefixtures("trusting")
class TestTLS:
    @pytest.mark.parametrize("use", USES)
    def test_is_spoken(self, use):
        make, options, do = USES[use]

        async def main():
            async with secure(DeepgramServer()) as server:
                given = {"api_key": server.api_key, "base_url": server.url, **options}
                async with make(**given) as engine:
                    return await do(engine)

        assert run_simulated(main()) == "one two"

    def test_is_one_context_for_all_sockets(self):
        """One for each connection, as the SDK makes them, would cost 20 ms of the loop and 0.8 MB."""

        async def main():
            async with secure(DeepgramServer()) as server:
                given = {"api_key": server.api_key, "base_url": server.url}
                engines = DeepgramSTT(**given), FluxSTT(**given), DeepgramTTS(**given)
                async with AsyncExitStack() as stack:
                    nova, flux, aura = [await stack.enter_async_context(engine) for engine in engines]
                    for engine in (nova, nova, flux, aura):
                        await stack.enter_async_context(opened(engine))
                    return server.open_sockets, len(contexts_in_use())

        assert run_simulated(main()) == (4, 1)


@pytest.mark.parametrize("use", USES)
def test_a_server_nobody_vouches_for_gets_no_key(use):
    """And the error says what to do."""
    make, options, do = USES[use]

    async def main():
        async with secure(DeepgramServer()) as server, make(api_key=KEY, base_url=server.url, **options) as engine:
            with pytest.raises(ConnectFailedError, match=r"certificate.*SSL_CERT_FILE") as told:
                await do(engine)
            return server.requests, str(told.value)

    requests, told = run_simulated(main())
    assert requests == []
    assert KEY not in told


# --- refusals --------------------------------------------------------------------------------------------------------


class TestRefusals:
    def test_are_not_followed_elsewhere(self):
        """A redirect is a refusal: nobody elsewhere sees the key."""

        async def main():
            async with Listener() as other, Listener() as server, DeepgramSTT(api_key=KEY, base_url=server.url) as engine:
                server.elsewhere = other.url.replace("http", "ws") + "/v1/listen"
                with pytest.raises(ProtocolError, match="HTTP 301"):
                    await engine.stream().connect()
                return len(server.requests), other.requests

        assert run_simulated(main()) == (1, [])

    @pytest.mark.parametrize(
        ("answer", "error", "message"),
        [
            (b'HTTP/1.1 400 No\r\n\r\n{"err_code": "INVALID_AUTH", "err_msg": "Bad key."}', AuthError, "HTTP 400: Bad key;"),
            (b'HTTP/1.1 402 No\r\n\r\n{"err_code": "", "message": "Pay."}', QuotaError, "HTTP 402: Pay; .*credit"),
            (b'HTTP/1.1 400 No\r\n\r\n{"details": "no such thing"}', InvalidRequestError, "HTTP 400: no such thing;"),
            (b"HTTP/1.1 429 No\r\nRetry-After: 3\r\n\r\nslow down", RateLimitError, "HTTP 429: slow down;"),
            ("HTTP/1.1 400 No\r\ndg-error: Söhne?\r\n\r\n".encode(), InvalidRequestError, "HTTP 400: Söhne"),
            (b"HTTP/1.1 401 No\r\n\r\n" + b"[" * 500_000, AuthError, "HTTP 401: "),
            (b"HTTP/1.1 200 OK\r\n\r\nIt works!", ProtocolError, "HTTP 200: It works!"),
            (b"HTTP/1.1 101 Swit", ConnectFailedError, "the connection broke in the handshake"),
            (b"SSH-2.0-OpenSSH\r\n", ProtocolError, "invalid HTTP status line: SSH-2.0-OpenSSH"),
        ],
    )
    def test_are_told_as_they_are(self, answer, error, message):
        """With the reason, wherever it is written, in a form that can be printed."""

        async def main():
            async with answering(answer) as url, DeepgramSTT(api_key=KEY, base_url=url) as engine:
                await engine.stream().connect()

        with pytest.raises(error, match=message) as caught:
            run_simulated(main())
        str(caught.value).encode()
        assert getattr(caught.value, "retry_after_ms", 3_000.0) == 3_000.0


# --- opening and closing ---------------------------------------------------------------------------------------------


class TestOpening:
    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_ends_after_three_seconds_where_the_server_says_nothing(self, scheme):
        """And leaves no connection; over TLS its handshake is within the same time."""
        clock = Clock()

        async def main():
            async with silent() as (host, still_open), DeepgramSTT(api_key=KEY, base_url=f"{scheme}://{host}") as engine:
                began_ms = clock.now_ms()
                with pytest.raises(ProviderTimeoutError, match="not answered within 3000 ms"):
                    await engine.stream().connect()
                took_ms = clock.now_ms() - began_ms
                await clock.sleep_ms(10)
                return took_ms, len(still_open)

        took_ms, left = run_simulated(main())
        assert took_ms == pytest.approx(3_000, abs=50)
        assert left == 0

    @pytest.mark.usefixtures("trusting")
    @pytest.mark.parametrize("tls", [False, True])
    def test_may_be_cancelled_at_every_step(self, tls):
        """Nothing stays open, and no task."""

        async def main():
            server = secure(DeepgramServer()) if tls else DeepgramServer()
            async with server, DeepgramSTT(api_key=server.api_key, base_url=server.url) as engine:
                before = asyncio.all_tasks()
                for steps in range(MOST_STEPS):
                    stream = engine.stream()
                    connecting = asyncio.create_task(stream.connect())
                    for _ in range(steps):
                        await asyncio.sleep(0)
                    cancelled = connecting.cancel()
                    await asyncio.wait([connecting])
                    if not cancelled:
                        await stream.aclose()
                    await Clock().sleep_ms(10)
                    left = {task.get_name() for task in asyncio.all_tasks() - before}
                    assert (server.open_connections, left) == (0, set()), f"cancelled after {steps} steps"
                    if not cancelled:
                        return steps
            raise AssertionError("it never opened")

        assert run_simulated(main()) > 3


class TestClosing:
    @pytest.mark.usefixtures("trusting")
    @pytest.mark.parametrize("tls", [False, True])
    @pytest.mark.parametrize("make", [DeepgramSTT, FluxSTT, DeepgramTTS])
    def test_may_be_cancelled_at_every_step(self, make, tls):
        """The connection is cut then, and no task stays; also when a reply was cut just before."""

        async def main():
            server = secure(DeepgramServer()) if tls else DeepgramServer()
            async with server, make(api_key=server.api_key, base_url=server.url) as engine:
                before = asyncio.all_tasks()
                for steps in range(1, MOST_STEPS):
                    socket = opened(engine)
                    used = await socket.__aenter__()
                    if make is DeepgramTTS:
                        async with aclosing(used.synthesize_stream(one("one two three"))) as pieces:
                            await anext(pieces)
                    closing = asyncio.create_task(socket.__aexit__(None, None, None))
                    for _ in range(steps):
                        await asyncio.sleep(0)
                    cancelled = closing.cancel()
                    await asyncio.wait([closing])
                    await Clock().sleep_ms(10)
                    left = {task.get_name() for task in asyncio.all_tasks() - before}
                    assert (server.open_connections, left) == (0, set()), f"cancelled after {steps} steps"
                    if not cancelled:
                        return steps
            raise AssertionError("it never closed")

        assert run_simulated(main()) > 1

    @pytest.mark.parametrize("unread", [0, 100])
    def test_waits_a_quarter_of_a_second_for_a_server_that_says_nothing_more(self, unread):
        """However much it said before that nobody has read."""

        class Deaf(DeepgramServer):
            async def converse(self, socket):
                for _ in range(unread):
                    await socket.send(bytes(4_800))
                socket._writer.transport.pause_reading()
                await asyncio.Event().wait()

        async def main():
            async with Deaf() as server, DeepgramTTS(api_key=server.api_key, base_url=server.url) as engine:
                async with Context() as context:
                    await context.handle(engine)
                    await Clock().sleep_ms(100)
                    began_ms = Clock().now_ms()
                return Clock().now_ms() - began_ms

        assert run_simulated(main()) <= 260

    def test_cuts_a_connection_that_takes_nothing_more(self):
        """What waits to be sent does not keep it open."""

        class Full(Listener):
            async def converse(self, socket):
                socket._writer.transport.pause_reading()
                await again.wait()
                socket._writer.transport.resume_reading()
                await super().converse(socket)

        async def fill(stream):
            while True:
                await stream.send(Audio(bytes(64_000), RATE_HZ))

        async def main():
            async with Full() as server, DeepgramSTT(api_key=KEY, base_url=server.url) as engine:
                async with opened(engine) as stream:
                    filling = asyncio.create_task(fill(stream))
                    await asyncio.wait([filling], timeout=1.0)
                    filling.cancel()
                    await asyncio.wait([filling])
                    began_ms = Clock().now_ms()
                took_ms = Clock().now_ms() - began_ms
                again.set()
                await Clock().sleep_ms(1_000)
                return took_ms, server.open_connections

        again = asyncio.Event()
        took_ms, left = run_simulated(main())
        assert took_ms <= 260
        assert left == 0


class TestMessages:
    def test_over_a_mebibyte_end_the_connection(self):
        """What no answer of Deepgram's is, is not kept in memory."""

        async def main():
            async with Listener() as server, DeepgramSTT(api_key=KEY, base_url=server.url) as engine:
                server.told = "x" * (2**20 + 1)
                async with opened(engine) as stream:
                    with pytest.raises(ProtocolError, match="larger than is taken"):
                        await anext(stream)
                return server.sockets[0].close_code

        assert run_simulated(main()) == 1009


def test_the_key_is_in_no_log(caplog):
    """Handshakes are logged at DEBUG, with all their headers."""

    async def main():
        async with DeepgramServer(api_key=KEY) as server, DeepgramSTT(api_key=KEY, base_url=server.url) as engine:
            return await hear(engine)

    caplog.set_level(logging.DEBUG)
    assert run_simulated(main()) == "one two"
    assert "> Authorization: " in caplog.text
    assert KEY not in caplog.text
