"""What goes wrong, as what it is told: by every provider, by status, by code, with the real SDK; and what is never told."""

from __future__ import annotations

import subprocess
import sys

import pytest
from beluga_voice_openai.vendor import GROQ, OPENAI

from beluga_voice import agent, stt, tts
from beluga_voice.audio import Audio
from beluga_voice.clock import Clock, run_simulated
from beluga_voice.errors import (
    AuthError,
    ConnectFailedError,
    InvalidRequestError,
    MissingKeyError,
    OptionError,
    OverloadedError,
    ProviderError,
    ProviderTimeoutError,
    QuotaError,
    RateLimitError,
)
from beluga_voice.testing.loopback import Answer, Sickness
from beluga_voice.testing.openai_server import GroqServer, OpenAIServer
from beluga_voice.testing.tone_speech import say

WORDS = Audio(say("one"), 16_000)


async def speak(server, **options):
    async with tts.new("openai", **options) as engine:
        await engine.synthesize("hello")


async def transcribe(server, **options):
    async with stt.new("openai", **options) as engine:
        await engine.transcribe(WORDS)


async def listen(server, **options):
    async with stt.new("openai", mode="realtime", **options) as engine:
        await engine.transcribe(WORDS)


async def chat(server, **options):
    async with agent.new("openai", api="chat", **options) as engine:
        async for _ in engine.reply("hello", (), None):
            pass


async def respond(server, **options):
    async with agent.new("openai", api="responses", **options) as engine:
        async for _ in engine.reply("hello", (), None):
            pass


each = pytest.mark.parametrize("use", [speak, transcribe, listen, chat, respond])


def tried(use, prepare=lambda server: None, server_class=OpenAIServer, **options):
    """The error that a use ends in, how many requests it made, how long it took in ms."""

    async def main():
        clock = Clock()
        async with server_class() as server:
            prepare(server)
            given = {"api_key": server.api_key, "base_url": server.base_url, **options}
            began_ms = clock.now_ms()
            try:
                await use(server, **given)
            except Exception as error:
                return error, len(server.requests), clock.now_ms() - began_ms
            raise AssertionError("nothing went wrong")

    return run_simulated(main())


def refusing(status, body=b"", **more):
    return lambda server: setattr(server, "sick", Sickness("refuse", status=status, body=body, **more))


QUOTA = b'{"error": {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": "insufficient_quota"}}'


class TestRefusals:
    @each
    @pytest.mark.parametrize(
        ("status", "wanted"),
        [
            (400, InvalidRequestError),
            (401, AuthError),
            (402, QuotaError),
            (403, AuthError),
            (404, InvalidRequestError),
            (408, ProviderTimeoutError),
            (409, InvalidRequestError),
            (422, InvalidRequestError),
            (429, RateLimitError),
            (500, OverloadedError),
            (503, OverloadedError),
            (504, ProviderTimeoutError),
        ],
    )
    def test_by_status_and_tried_once(self, use, status, wanted):
        """One request each: whether to try again is not the SDK's to say."""
        error, requests, _ = tried(use, refusing(status))
        assert type(error) is wanted
        assert requests == 1
        assert f"HTTP {status}: sick" in str(error)

    @each
    def test_an_empty_account_is_no_rate_limit(self, use):
        """Both come as 429; only one is worth a second try."""
        error, _, _ = tried(use, refusing(429, QUOTA))
        assert type(error) is QuotaError
        assert "You exceeded your current quota" in str(error)

    @each
    def test_a_rate_limit_tells_its_wish(self, use):
        error, _, _ = tried(use, refusing(429, retry_after_s=2.5))
        assert error.retry_after_ms == 2_500

    @each
    def test_a_wrong_key_is_not_repeated(self, use):
        """The service puts the key into its message; it does not come out here."""
        error, _, _ = tried(use, api_key="sk-wrong-canary")
        assert type(error) is AuthError
        assert "Incorrect API key provided: ***" in str(error)
        assert "OPENAI_API_KEY" in str(error)
        assert "canary" not in str(error)
        assert error.__cause__ is None
        assert error.__suppress_context__

    @each
    def test_a_body_that_is_no_json_is_shown(self, use):
        error, _, _ = tried(use, refusing(502, b"<html>Bad gateway</html>"))
        assert type(error) is OverloadedError
        assert "Bad gateway" in str(error)


class TestConnections:
    @each
    def test_nobody_listens(self, use):
        error, _, _ = tried(use, base_url="http://127.0.0.1:1/v1")
        assert type(error) is ConnectFailedError
        assert "check base_url" in str(error)

    @each
    def test_a_base_url_without_its_path(self, use):
        """The root alone is not enough: the message says where to look."""

        async def main():
            async with OpenAIServer() as server:
                await use(server, api_key=server.api_key, base_url=server.url)

        with pytest.raises(InvalidRequestError, match=r"HTTP 4\d\d"):
            run_simulated(main())

    @each
    def test_silence_has_an_end(self, use):
        """A server that takes the call and says nothing is given up, without anybody's help."""
        error, _, took_ms = tried(use, lambda server: setattr(server, "sick", Sickness("hang")))
        assert type(error) is ProviderTimeoutError
        assert took_ms <= 31_000

    @each
    def test_a_cut(self, use):
        error, _, _ = tried(use, lambda server: setattr(server, "sick", Sickness("cut")))
        assert isinstance(error, ConnectFailedError)

    def test_two_engines_share_one_client(self):
        """One client, and so one pool of connections, for a key at an address; another key has its own."""

        async def main():
            async with OpenAIServer() as server:
                given = {"api_key": server.api_key, "base_url": server.base_url}
                async with tts.new("openai", **given) as voice, stt.new("openai", **given) as ears:
                    async with stt.new("openai", **given | {"api_key": "another"}) as others:
                        shared = await voice.client() is await ears.client(), await voice.client() is await others.client()
                    await voice.synthesize("one")
                    await ears.transcribe(WORDS)
                    return shared, server.open_connections

        assert run_simulated(main()) == ((True, False), 1)


class Moved(OpenAIServer):
    """Sends everybody to `elsewhere`."""

    elsewhere = ""

    async def answer(self, request):
        return Answer(307, {"location": f"{self.elsewhere}{request.path}"})

    async def greet(self, request):
        return Answer(301, {"location": f"{self.elsewhere}{request.path}".replace("http", "ws")})


class TestRedirects:
    @each
    def test_to_another_server_take_no_key_there(self, use):
        """The SDK follows those of requests, without the key; and those of sockets not at all."""

        async def main():
            async with OpenAIServer() as other, Moved() as server:
                server.elsewhere = other.url
                with pytest.raises(ProviderError):
                    await use(server, api_key="canary-key-4711", base_url=server.base_url)
                return [str(request) for request in other.requests if "canary" in str(request.headers)]

        assert run_simulated(main()) == []


class TestNames:
    def test_are_listed_without_the_sdk(self):
        """Listing and describing cost no import of it."""
        script = (
            "import sys; from beluga_voice import agent, stt, tts; "
            "told = [kind.describe(name).distribution for kind in (stt, tts, agent) for name in ('openai', 'groq')]; "
            "print(set(told), 'openai' in sys.modules, 'httpx2' in sys.modules, 'websockets' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
        assert done.stdout.split() == ["{'beluga-voice-openai'}", "False", "False", "False"]

    @pytest.mark.parametrize("kind", [stt, tts, agent])
    def test_groq_is_groq(self, kind, monkeypatch):
        """Its own key, address and models, under its own name."""
        monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
        monkeypatch.delenv("GROQ_API_KEY", raising=False)
        with pytest.raises(MissingKeyError, match="'groq' has no key; set the environment variable GROQ_API_KEY") as told:
            kind.new("groq")
        assert told.value.env_var == "GROQ_API_KEY"
        monkeypatch.setenv("GROQ_API_KEY", "gsk-groq")
        engine = kind.new("groq")
        assert engine.access.api_key == "gsk-groq"
        assert engine.account.startswith("groq@https://api.groq.com/openai/v1#")
        assert engine.name == "groq"

    def test_groq_has_no_realtime(self):
        with pytest.raises(OptionError, match="'mode'"):
            stt.new("groq", api_key="x", mode="realtime")

    def test_groq_is_spoken_to_as_it_is_documented(self):
        """Its server refuses PCM, OpenAI's models, and texts over 200 characters."""

        async def main():
            async with GroqServer() as server:
                given = {"api_key": server.api_key, "base_url": server.base_url}
                async with (
                    tts.new("groq", **given) as voice,
                    stt.new("groq", **given) as ears,
                    agent.new("groq", **given) as one,
                ):
                    heard = await ears.transcribe(await voice.synthesize("one two three"))
                    parts = [part async for part in one.reply(heard.text, (), None)]
                    return heard.text, "".join(part for part in parts if isinstance(part, str)), parts[-1].provider

        assert run_simulated(main()) == ("one two three", "I heard one two three", "groq")

    @pytest.mark.parametrize("kind", [stt, tts, agent])
    def test_a_missing_key_is_told_when_it_is_made(self, kind, monkeypatch):
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        with pytest.raises(MissingKeyError, match="set the environment variable OPENAI_API_KEY, or give api_key"):
            kind.new("openai")

    def test_the_organisation_is_openai_s_alone(self, monkeypatch):
        """What the SDK finds in the environment goes to OpenAI, and to no other server."""
        monkeypatch.setenv("OPENAI_ORG_ID", "org-canary")
        monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-canary")

        async def main():
            async with OpenAIServer() as server:
                async with tts.new("openai", api_key=server.api_key, base_url=server.base_url) as engine:
                    await engine.synthesize("one")
                async with tts.new("openai", api_key="x") as real:
                    return server.requests[0].headers, (await real.client()).organization

        headers, organization = run_simulated(main())
        assert not [value for value in headers.values() if "canary" in value]
        assert organization == "org-canary"

    def test_the_defaults_outlive_the_models_that_end(self):
        """None of the models whose end was announced is a default, where there is another; the voice's has none."""
        ending = {
            "gpt-4o",
            "gpt-4.1",
            "gpt-5",
            "gpt-5-mini",
            "gpt-5.1",
            "whisper-1",
            "gpt-4o-transcribe",
            "gpt-4o-mini-transcribe",
        }
        ears = stt.new("openai", api_key="x")
        chosen = {ears.model, ears.with_options(mode="realtime").model, agent.new("openai", api_key="x").options.model}
        assert not chosen & ending


def test_one_table_serves_both_vendors():
    assert OPENAI.failures is GROQ.failures
    assert OPENAI.codes is GROQ.codes


def test_the_first_call_after_prewarm_loads_nothing():
    """What the SDK would import at its first call, of whatever sort, was imported in a thread."""
    script = """
import asyncio, sys
from beluga_voice import agent, stt, tts
from beluga_voice.audio import Audio, resample
from beluga_voice.testing.openai_server import OpenAIServer
from beluga_voice.testing.tone_speech import say, understand

async def main():
    sound = Audio(say("one"), 16_000)
    understand(resample(sound, 24_000).pcm, 24_000)
    async with OpenAIServer() as server:
        given = {"api_key": server.api_key, "base_url": server.base_url}
        ears = [stt.new("openai", mode=mode, **given) for mode in ("batch", "realtime")]
        models = [agent.new("openai", api=api, **given) for api in ("chat", "responses")]
        voice = tts.new("openai", **given)
        for engine in (*ears, *models, voice):
            await engine.prewarm()
        before = set(sys.modules)
        await voice.synthesize("one")
        for one in ears:
            await one.transcribe(sound)
        for one in models:
            [part async for part in one.reply("one", (), None)]
        for engine in (*ears, *models, voice):
            await engine.aclose()
        print(sorted(set(sys.modules) - before))

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "[]", done.stderr
