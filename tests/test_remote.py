"""Remote providers: keys, addresses, one client for a credential, failures in our words, secrets nowhere."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import ssl
import weakref

import attrs
import httpx
import pytest
import websockets
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice import Audio, stt
from beluga_voice.clock import run_simulated
from beluga_voice.errors import (
    AuthError,
    BrokenPluginError,
    ConnectFailedError,
    InvalidRequestError,
    MissingKeyError,
    OptionError,
    OverloadedError,
    ProtocolError,
    ProviderError,
    ProviderTimeoutError,
    QuotaError,
    RateLimitError,
)
from beluga_voice.failures import Told, capped, failure, http_failures, retry_after_ms, websocket_failures
from beluga_voice.frames import Transcript
from beluga_voice.remote import Access, Remote, Vendor, base_url_option, key_option, max_concurrent_option
from beluga_voice.stt import STT
from beluga_voice.testing.loopback import Answer, LoopbackServer, Sickness
from beluga_voice.tts import TTS, Options

from .loopback_proxy import no_proxies

CANARY = "canary-2f9c-key"


@attrs.frozen
class ExampleOptions(Options):
    api_key: str = key_option("EXAMPLE_API_KEY")
    base_url: str = base_url_option("https://api.example.com/v1")
    max_concurrent: int = max_concurrent_option()


made, closed = [], []


def make(access):
    made.append(access)
    return httpx.AsyncClient(base_url=access.base_url, headers={"x-key": access.api_key}, event_hooks=capped(httpx, 10_000))


async def close(client):
    closed.append(client)
    await client.aclose()


def refused(error):
    return Told(error.response.text, error.response.status_code, retry_after_ms=retry_after_ms(error.response.headers))


EXAMPLE = Vendor(
    "example",
    "EXAMPLE_API_KEY",
    "https://api.example.com/v1",
    make,
    close,
    failures=((httpx.HTTPStatusError, refused), *http_failures(httpx), *websocket_failures()),
    codes={"credit": QuotaError},
)


class ExampleTTS(Remote, TTS):
    vendor = EXAMPLE
    Options = ExampleOptions

    async def synthesize(self, text):
        client = await self.client()
        try:
            answer = await client.get("/speak", params={"text": text})
            return Audio(answer.raise_for_status().content, 16_000)
        except Exception as error:
            raise self.failed(error, "speaking") from None


class Server(LoopbackServer):
    async def answer(self, request):
        return Answer(200, {}, b"\x01\x00" * 100)

    def refusal(self, sickness):
        return sickness.body or json.dumps({"message": f"no good: {CANARY}"}).encode()


@pytest.fixture(autouse=True)
def _forget():
    made.clear()
    closed.clear()


def speak(sickness=None, **options):
    """What one call gives against the loopback server, sick or not."""

    async def main():
        async with Server() as server, ExampleTTS(api_key=CANARY, base_url=server.url, **options) as engine:
            if sickness is not None:
                server.sicken(sickness)
            return await engine.synthesize("hello")

    return run_simulated(main())


def test_an_sdk_that_is_not_installed_is_told_with_what_to_do():
    def without(access):
        import no_such_sdk

        return no_such_sdk

    class Without(ExampleTTS):
        vendor = attrs.evolve(EXAMPLE, name="without", make=without)

    async def main():
        async with Without(api_key="k"):
            pass

    with pytest.raises(BrokenPluginError, match=r"No module named 'no_such_sdk'.*pip install .*beluga-voice-without"):
        run_simulated(main())


def test_what_a_socks_proxy_needs_is_told(monkeypatch):
    def without(access):
        raise ImportError("Using SOCKS proxy, but the 'socksio' package is not installed. Make sure")

    class Without(ExampleTTS):
        vendor = attrs.evolve(EXAMPLE, name="without", make=without)

    async def main():
        async with Without(api_key="k"):
            pass

    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(BrokenPluginError, match=r"install it: pip install socksio 'python-socks\[asyncio\]'"):
        run_simulated(main())


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    no_proxies(monkeypatch)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)


class TestAccess:
    def test_a_missing_key_is_told_when_the_engine_is_made(self, monkeypatch):
        monkeypatch.delenv("EXAMPLE_API_KEY", raising=False)
        with pytest.raises(MissingKeyError, match="set the environment variable EXAMPLE_API_KEY, or give api_key") as caught:
            ExampleTTS()
        assert caught.value.env_var == "EXAMPLE_API_KEY"

    def test_the_environment_has_one_if_none_is_given(self, monkeypatch):
        monkeypatch.setenv("EXAMPLE_API_KEY", "from-outside")
        assert ExampleTTS().access == Access("from-outside", "https://api.example.com/v1")
        assert ExampleTTS(api_key="given").access.api_key == "given"

    @pytest.mark.parametrize("key", ["two words", "tab\t", "nové", "new\nline"])
    def test_what_cannot_be_a_key_is_refused_and_not_repeated(self, key):
        with pytest.raises(OptionError, match="copy it again") as caught:
            ExampleTTS(api_key=key)
        assert key not in str(caught.value)

    @pytest.mark.parametrize(
        "url", ["api.example.com", "ws://x", "ftp://x", "http://", "http://x?y=1", "http://u:p@x", "http://x y"]
    )
    def test_what_is_no_root_is_refused(self, url):
        with pytest.raises(OptionError, match="expected an http:// or https:// root"):
            ExampleTTS(api_key="k", base_url=url)

    @pytest.mark.parametrize("url", ["http://u:{}@x", "http://{}@x", "http://x?token={}", "http://x#{}"])
    def test_what_may_be_a_secret_in_it_is_not_repeated(self, url):
        with pytest.raises(OptionError, match="without user and query") as caught:
            ExampleTTS(api_key="k", base_url=url.format(CANARY))
        assert CANARY not in str(caught.value)

    @pytest.mark.parametrize(("url", "ws"), [("http://a:1/v1/", "ws://a:1/v1"), ("https://b", "wss://b")])
    def test_the_root_for_websockets_follows(self, url, ws):
        assert ExampleTTS(api_key="k", base_url=url).access.ws_url == ws

    @pytest.mark.parametrize(
        "proxy", ["ftp://me:canary@p:1", "http://p:99999", "http://p:x", "http://me:x/canary@p:1", "http://", "http://[p"]
    )
    def test_a_proxy_that_is_no_address_is_refused(self, proxy, monkeypatch):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        with pytest.raises(OptionError, match=r"expected one like 'http://proxy\.example:3128'") as caught:
            ExampleTTS(api_key="k")
        assert "HTTPS_PROXY" in str(caught.value)
        assert "canary" not in str(caught.value)
        ExampleTTS(api_key="k", base_url="http://127.0.0.1:9")  # which it is not for

    @pytest.mark.parametrize("proxy", ["http://p:1", "https://p:1", "p:1", "p", "socks5h://p:1", "http://me:secret@p:1"])
    def test_a_proxy_that_may_be_one(self, proxy, monkeypatch):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        ExampleTTS(api_key="k")

    def test_accounts_differ_by_key_and_place_and_tell_neither_key(self):
        one, other = ExampleTTS(api_key=CANARY), ExampleTTS(api_key="other")
        elsewhere = ExampleTTS(api_key=CANARY, base_url="http://localhost")
        assert len({one.account, other.account, elsewhere.account}) == 3
        assert CANARY not in one.account
        assert one.account == ExampleTTS(api_key=CANARY).account

    def test_changing_options_may_change_the_account(self):
        one = ExampleTTS(api_key=CANARY, max_concurrent=3)
        other = one.with_options(api_key="other")
        assert (other.access.api_key, other.max_concurrent, one.access.api_key) == ("other", 3, CANARY)

    def test_streams_that_last_for_a_session_limit_the_sessions(self):
        """A manager admits no caller whom nobody would hear; a voice is shared call by call."""

        class ExampleSTT(Remote, STT):
            vendor = EXAMPLE
            Options = ExampleOptions

            async def transcribe(self, audio):
                return Transcript("")

        one, other = (ExampleSTT(api_key="k", max_concurrent=number) for number in (2, 3))
        assert (one.max_streams, stt.failover(one, other).max_streams) == (2, 5)
        assert ExampleSTT(api_key="k").max_streams is None
        assert ExampleTTS(api_key="k", max_concurrent=2).max_streams is None


class TestClients:
    def test_engines_of_one_credential_share_one_client(self):
        """Two engines, a copy of one, and many sessions: one client, closed with the last of them."""

        async def main():
            async with Server() as server:
                one, other = (ExampleTTS(api_key=CANARY, base_url=server.url) for _ in range(2))
                copy = one.with_options(language="de")
                async with one, other, copy, one:
                    clients = {id(await engine.client()) for engine in (one, other, copy)}
                    assert len(clients) == len(made) == 1
                async with one:
                    return len(made), len(closed)

        assert run_simulated(main()) == (2, 1)

    def test_another_key_has_a_client_of_its_own(self):
        async def main():
            async with ExampleTTS(api_key="a") as one, ExampleTTS(api_key="b") as other:
                return await one.client() is await other.client()

        assert run_simulated(main()) is False
        assert len(made) == len(closed) == 2

    def test_a_hundred_at_once_make_one(self):
        async def main():
            async with ExampleTTS(api_key="a") as engine:
                await asyncio.gather(*(engine.client() for _ in range(100)))

        run_simulated(main())
        assert len(made) == 1

    def test_each_loop_has_its_own(self):
        """A client belongs to the loop it was used in."""
        engine = ExampleTTS(api_key="a")

        async def main():
            async with engine:
                return await engine.client()

        assert run_simulated(main()) is not run_simulated(main())
        assert len(closed) == 2

    def test_a_client_that_nobody_closed_goes_with_its_engine(self):
        """A program that runs many loops and forgets to close: neither clients nor loops pile up."""

        class Client:
            def __init__(self, access):
                self.loop = None

        async def main():
            engine = Careless(api_key="a")
            client = await engine.client()
            client.loop = asyncio.get_running_loop()
            assert await Careless(api_key="a").client() is client
            return weakref.ref(client), weakref.ref(client.loop)

        class Careless(ExampleTTS):
            vendor = attrs.evolve(EXAMPLE, make=Client)

        kept = [one for _ in range(3) for one in run_simulated(main())]
        gc.collect()
        assert [one() for one in kept] == [None] * 6


class TestFailures:
    @pytest.mark.parametrize(
        ("sickness", "error"),
        [
            (Sickness("refuse", status=400), InvalidRequestError),
            (Sickness("refuse", status=401), AuthError),
            (Sickness("refuse", status=402), QuotaError),
            (Sickness("refuse", status=403), AuthError),
            (Sickness("refuse", status=404), InvalidRequestError),
            (Sickness("refuse", status=408), ProviderTimeoutError),
            (Sickness("refuse", status=429), RateLimitError),
            (Sickness("refuse", status=500), OverloadedError),
            (Sickness("refuse", status=503), OverloadedError),
            (Sickness("refuse", status=504), ProviderTimeoutError),
            (Sickness("hang"), ProviderTimeoutError),
            (Sickness("cut"), ConnectFailedError),
            (Sickness("cut", after=7), ConnectFailedError),
        ],
        ids=str,
    )
    def test_each_is_told_in_our_words_without_the_key(self, sickness, error):
        with pytest.raises(error) as caught:
            speak(sickness)
        assert type(caught.value) is error
        assert (caught.value.provider, caught.value.kind) == ("example", "tts")
        text = str(caught.value)
        assert text.startswith("tts 'example', speaking:")
        assert "; expected " in text
        assert CANARY not in text

    def test_how_long_to_wait_is_told(self):
        with pytest.raises(RateLimitError) as caught:
            speak(Sickness("refuse", status=429, retry_after_s=2.5))
        assert caught.value.retry_after_ms == 2_500.0

    def test_nobody_there_is_a_failed_connection(self):
        async def main():
            async with ExampleTTS(api_key="k", base_url="http://127.0.0.1:9") as engine:
                await engine.synthesize("hello")

        with pytest.raises(ConnectFailedError, match=r"expected http://127\.0\.0\.1:9 to be reached from here; check"):
            run_simulated(main())

    def test_a_proxy_that_is_not_there_is_named_without_its_password(self, monkeypatch):
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:{CANARY}@proxy.invalid:3128")
        told = str(ExampleTTS(api_key="k").failed(OSError("no such host")))
        assert "expected https://api.example.com/v1 (by way of the environment's proxy proxy.invalid:3128) to be" in told
        assert CANARY not in told

    def test_a_connection_that_broke_inside_an_sdks_own_error(self):
        class BrokenError(Exception):
            """An SDK's, as httpx's own are wrapped."""

        error = BrokenError("Connection error")
        error.__cause__ = ConnectionResetError("reset")
        told = failure(error, ((BrokenError, ConnectFailedError),), provider="p", kind="stt")
        assert "expected the connection to last" in str(told)

    def test_a_server_that_speaks_no_tls(self):
        told = str(failure(ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), (), provider="p", kind="stt"))
        assert "what is there speaks no TLS: http:// may be meant, not https://" in told

    @pytest.mark.parametrize("named", ["missing", "words", "folder"])
    def test_a_file_without_certificates_is_told_where_none_is_trusted(self, named, monkeypatch, tmp_path):
        """OpenSSL takes no notice of it."""
        (tmp_path / "words").write_text("no certificate")
        (tmp_path / "folder").mkdir()
        path = str(tmp_path / named)
        error = ssl.SSLError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed (_ssl.c:1)")
        assert "where there is none" not in str(failure(error, (), provider="p", kind="stt"))
        monkeypatch.setenv("SSL_CERT_FILE", path)
        told = str(failure(error, (), provider="p", kind="stt"))
        assert f"SSL_CERT_FILE, which names {path!r} now, where there is none" in told

    def test_a_connection_that_broke_is_told_from_one_that_failed(self):
        with pytest.raises(ConnectFailedError, match="expected the connection to last"):
            speak(Sickness("cut", after=7))

    def test_a_key_that_is_none_garbles_no_message(self):
        error = failure(OSError("none there"), (), provider="p", kind="stt", secret="none")
        assert "none there" in str(error)

    def test_an_endless_answer_is_cut_off(self):
        class Endless(Server):
            async def answer(self, request):
                async def body():
                    while True:
                        yield b"x" * 4_000

                return Answer(200, {}, body())

        async def main():
            async with Endless() as server, ExampleTTS(api_key="k", base_url=server.url) as engine:
                try:
                    await engine.synthesize("hello")
                finally:
                    await server.requests[0].over.wait()

        with pytest.raises(ProtocolError, match="went on after 10000 bytes"):
            run_simulated(main())

    def test_a_vendors_own_code_says_more_than_the_status(self):
        rows = ((KeyError, lambda _: Told("no money", 429, "credit")),)
        error = failure(KeyError("x"), rows, {"credit": QuotaError}, provider="p", kind="stt")
        assert type(error) is QuotaError

    def test_one_of_ours_stays_as_it_is(self):
        ours = ProtocolError("ours")
        wrapped = RuntimeError("theirs")
        wrapped.__cause__ = ours
        assert failure(wrapped, (), provider="p", kind="stt") is ours

    @pytest.mark.parametrize(
        ("code", "error"),
        [
            (1000, ConnectFailedError),
            (1008, InvalidRequestError),
            (1011, OverloadedError),
            (1013, OverloadedError),
            (4000, ProtocolError),
        ],
    )
    def test_close_codes(self, code, error):
        class Closing(LoopbackServer):
            async def converse(self, socket):
                await socket.close(code, "that is why")

        async def main():
            async with Closing() as server, websockets.connect(server.url.replace("http", "ws")) as socket:
                try:
                    await socket.recv()
                except websockets.ConnectionClosed as caught:
                    return failure(caught, websocket_failures(), provider="p", kind="stt")

        told = run_simulated(main())
        assert type(told) is error
        assert f"close code {code}: that is why" in str(told)

    @pytest.mark.parametrize(
        ("reason", "error"),
        [
            ("Invalid API key", AuthError),
            ("invalid_api_key", AuthError),
            ("You are not authorized", AuthError),
            ("Quota exceeded", QuotaError),
            ("insufficient credits", QuotaError),
            ("Too many requests", RateLimitError),
            ("concurrency limit reached", RateLimitError),
            ("unknown model", InvalidRequestError),
        ],
    )
    def test_a_broken_rule_is_told_by_its_reason(self, reason, error):
        """Close code 1008 is all that some services say of a key or a quota."""
        closed = websockets.ConnectionClosedError(websockets.frames.Close(1008, reason), None)
        assert type(failure(closed, websocket_failures(), provider="p", kind="stt")) is error
        closed = websockets.ConnectionClosedError(websockets.frames.Close(1011, reason), None)
        assert type(failure(closed, websocket_failures(), provider="p", kind="stt")) is OverloadedError

    def test_headers_that_come_twice(self):
        headers = websockets.Headers([("retry-after", "1"), ("retry-after", "2")])
        assert retry_after_ms(headers) is None

    def test_a_refused_handshake(self):
        async def main():
            async with Server() as server:
                server.sicken(Sickness("refuse", status=429, retry_after_s=1))
                try:
                    await websockets.connect(server.url.replace("http", "ws"))
                except websockets.InvalidStatus as caught:
                    return failure(caught, websocket_failures(), provider="p", kind="stt", secret=CANARY)

        told = run_simulated(main())
        assert type(told) is RateLimitError
        assert told.retry_after_ms == 1_000.0
        assert CANARY not in str(told)

    @given(st.text(max_size=20))
    def test_retry_after_never_fails(self, value):
        told = retry_after_ms({"retry-after": value})
        assert told is None or 0 <= told < 86_400_000

    @given(st.text(), st.integers(100, 4_999))
    def test_whatever_is_told_makes_one_short_line(self, message, status):
        error = failure(KeyError(), ((KeyError, lambda _: Told(message, status)),), provider="p", kind="stt")
        assert isinstance(error, ProviderError)
        assert "\n" not in str(error)
        assert len(str(error)) < 600


def test_the_key_is_nowhere(caplog):
    """Not in reprs, errors, tracebacks or logs, whatever happens."""
    caplog.set_level(logging.DEBUG)
    engine = ExampleTTS(api_key=CANARY)
    shown = [repr(engine), repr(engine.options), repr(engine.access), repr(engine.__dict__), engine.account]
    try:
        speak(Sickness("refuse", status=401))
    except AuthError:
        logging.getLogger("test").exception("it failed")
    assert [text for text in (*shown, caplog.text) if CANARY in text] == []
    assert "AuthError" in caplog.text


def test_a_key_is_kept_out_of_logs_as_long_as_anybody_has_it(caplog):
    """Keys that come with users are not remembered for ever: each line of a log would be searched for all of them."""
    caplog.set_level(logging.DEBUG)
    sockets = logging.getLogger("websockets.client")
    engines = [ExampleTTS(api_key="sk-of-a-user") for _ in range(3)]
    for _ in range(2):
        engines.pop()
        gc.collect()
        sockets.debug("> authorization: %s", "sk-of-a-user")
        assert caplog.messages[-1] == "> authorization: ***"
    engines.clear()
    gc.collect()
    sockets.debug("> this is no key: %s", "sk-of-a-user")
    assert caplog.messages[-1] == "> this is no key: sk-of-a-user"
