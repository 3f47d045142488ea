"""The SDKs of all vendors over https:// and wss://, in simulated time: whom they trust, and what they say of others."""

from __future__ import annotations

import ssl
from contextlib import aclosing

import pytest

from beluga_voice import agent, s2s, stt, tts
from beluga_voice.audio import Audio
from beluga_voice.clock import run_simulated
from beluga_voice.errors import ConnectFailedError
from beluga_voice.frames import ReplyEnded, TextDelta
from beluga_voice.testing.deepgram_server import DeepgramServer
from beluga_voice.testing.elevenlabs_server import ElevenLabsServer
from beluga_voice.testing.openai_realtime_server import OpenAIRealtimeServer
from beluga_voice.testing.openai_server import OpenAIServer
from beluga_voice.testing.tone_speech import say, understand

from .certificates import trusted, untrusted
from .loopback_proxy import LoopbackProxy, no_proxies

CANARY = "canary-key-4711"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No proxy but those that a test names."""
    no_proxies(monkeypatch)


async def recognised(provider, **options):
    async with stt.new(provider, **options) as engine:
        return (await engine.transcribe(Audio(say("one two"), 16_000))).text


async def spoken(provider, **options):
    async with tts.new(provider, **options) as engine:
        audio = await engine.synthesize("one two")
    return understand(audio.pcm, audio.sample_rate_hz)


async def answered(provider, **options):
    async with agent.new(provider, **options) as engine, aclosing(engine.reply("one two", (), None)) as parts:
        return "".join([part async for part in parts if isinstance(part, str)])


async def conversed(provider, **options):
    async with s2s.new(provider, **options) as engine:
        session, told = await engine.connect(), ""
        try:
            await session.send_text("one two")
            async with aclosing(session.events()) as events:
                async for frame in events:
                    told += frame.text if isinstance(frame, TextDelta) else ""
                    if isinstance(frame, ReplyEnded):
                        return told
        finally:
            await session.aclose()


USES = {
    "Deepgram, recognition": (DeepgramServer, recognised, "deepgram", {}),
    "Deepgram, a voice in requests": (DeepgramServer, spoken, "deepgram", {"transport": "http"}),
    "Deepgram, a voice over a socket": (DeepgramServer, spoken, "deepgram", {"transport": "websocket"}),
    "ElevenLabs, recognition live": (ElevenLabsServer, recognised, "elevenlabs", {}),
    "ElevenLabs, recognition in requests": (ElevenLabsServer, recognised, "elevenlabs", {"mode": "batch"}),
    "ElevenLabs, a voice over a socket": (ElevenLabsServer, spoken, "elevenlabs", {}),
    "ElevenLabs, a voice in requests": (ElevenLabsServer, spoken, "elevenlabs", {"transport": "http"}),
    "OpenAI, recognition live": (OpenAIServer, recognised, "openai", {"mode": "realtime"}),
    "OpenAI, recognition in requests": (OpenAIServer, recognised, "openai", {"mode": "batch"}),
    "OpenAI, a voice": (OpenAIServer, spoken, "openai", {}),
    "OpenAI, an agent": (OpenAIServer, answered, "openai", {"api": "responses"}),
    "OpenAI, an agent by chat": (OpenAIServer, answered, "openai", {"api": "chat"}),
    "OpenAI, speech to speech": (OpenAIRealtimeServer, conversed, "openai", {}),
}
each = pytest.mark.parametrize("use", USES)


def made(use):
    server_class, *_ = USES[use]
    return server_class(api_key=CANARY)


async def used(use, server):
    _, run, provider, options = USES[use]
    return await run(provider, api_key=CANARY, base_url=getattr(server, "base_url", server.url), **options)


@each
def test_a_server_whose_authority_is_named_is_spoken_with(use, monkeypatch, tmp_path):
    """SSL_CERT_FILE names it, for requests and sockets alike; all connections are closed in the end."""

    async def main():
        async with trusted(made(use), monkeypatch, tmp_path) as server:
            assert "one two" in await used(use, server)
            await server.clock.sleep_ms(1_500)
            return server.open_connections

    assert run_simulated(main()) == 0


@each
def test_certificates_are_read_once(use, monkeypatch, tmp_path):
    """Each time would hold the event loop for 20 ms, and keep 0.8 MB for as long as the connection lasts."""
    read = []

    def reading(*args, **more):
        read.append(args)
        return create(*args, **more)

    async def main():
        async with trusted(made(use), monkeypatch, tmp_path) as server:
            await used(use, server)
            monkeypatch.setattr(ssl, "create_default_context", reading)
            await used(use, server)

    create = ssl.create_default_context
    run_simulated(main())
    assert read == []


@each
def test_a_server_nobody_vouches_for_is_refused(use):
    """Before it sees a key or a word. The error says what is wrong and what to do, for every vendor in the same words."""

    async def main():
        async with untrusted(made(use)) as server:
            with pytest.raises(ConnectFailedError, match=r"certificate is not trusted: .*SSL_CERT_FILE") as caught:
                await used(use, server)
            await server.clock.sleep_ms(1_500)
            return str(caught.value), server.requests, server.open_connections

    told, requests, left = run_simulated(main())
    assert CANARY not in told
    assert (requests, left) == ([], 0)


@each
def test_a_name_that_is_not_the_servers_is_refused(use, monkeypatch, tmp_path):
    """The certificate is for 127.0.0.1, and whoever asks for another host does not get by with it."""

    async def main():
        async with trusted(made(use), monkeypatch, tmp_path) as server:
            _, run, provider, options = USES[use]
            url = getattr(server, "base_url", server.url).replace("127.0.0.1", "localhost")
            with pytest.raises(ConnectFailedError, match=r"certificate is not trusted: .*localhost"):
                await run(provider, api_key=CANARY, base_url=url, **options)
            return server.requests

    assert run_simulated(main()) == []


@each
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "ALL_PROXY"])
def test_a_proxy_that_the_environment_names_is_used(use, variable, monkeypatch, tmp_path):
    """By requests and sockets alike. It makes a tunnel, and sees no key."""

    async def main():
        async with trusted(made(use), monkeypatch, tmp_path) as server, LoopbackProxy() as proxy:
            monkeypatch.setenv(variable, proxy.url)
            assert "one two" in await used(use, server)
            assert set(proxy.asked) == {f"CONNECT {server.url.partition('//')[2]}"}
            await server.clock.sleep_ms(1_500)
            return b"".join(proxy.headers), proxy.open_connections

    seen, left = run_simulated(main())
    assert CANARY.encode() not in seen
    assert left == 0


@each
def test_a_proxy_that_the_environment_excludes_is_not(use, monkeypatch, tmp_path):
    """NO_PROXY says for which hosts."""

    async def main():
        async with trusted(made(use), monkeypatch, tmp_path) as server, LoopbackProxy() as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            assert "one two" in await used(use, server)
            return proxy.asked

    assert run_simulated(main()) == []


@each
def test_a_proxy_that_refuses_is_a_failed_connection(use, monkeypatch, tmp_path):
    """Another provider may be reached without it."""

    async def main():
        async with trusted(made(use), monkeypatch, tmp_path) as server, LoopbackProxy() as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", "//me:secret-word@"))
            proxy.status = 407
            with pytest.raises(ConnectFailedError, match="407") as caught:
                await used(use, server)
            return str(caught.value), server.requests

    told, requests = run_simulated(main())
    assert "secret-word" not in told
    assert requests == []
