"""`beluga-voice say` and `transcribe` with several providers: a sick first one costs nothing but a line on stderr."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from beluga_voice import Audio, audio, cli, config
from beluga_voice.cli.say import spoken
from beluga_voice.cli.transcribe import report_of
from beluga_voice.clock import Clock, run_simulated
from beluga_voice.testing.deepgram_server import DeepgramServer
from beluga_voice.testing.elevenlabs_server import ElevenLabsServer
from beluga_voice.testing.loopback import Sickness
from beluga_voice.testing.openai_server import OpenAIServer
from beluga_voice.testing.tone_speech import RATE_HZ, say, understand

for sdk in ("deepgram", "openai", "elevenlabs"):
    pytest.importorskip(f"beluga_voice_{sdk}", reason=f"the {sdk} plugin is not installed")

SERVERS = {"deepgram": DeepgramServer, "openai": OpenAIServer, "elevenlabs": ElevenLabsServer}
TEXT = "Hello, tell me the time in Paris. Thank you."
WORDS = "hello tell me the time in paris thank you"
KEY = "canary-key-of-a-vendor"
CLOCK = Clock()
NOBODY = "http://127.0.0.1:9"  # where nothing listens


def toml(servers, tts="elevenlabs", stt="deepgram", killed=(), more=""):
    """Two voices and two recognisers in order, each at its server; those of `killed` where there is none."""
    order = [("stt", stt), ("stt", "openai" if stt == "deepgram" else "deepgram")]
    order += [("tts", tts), ("tts", "deepgram" if tts == "elevenlabs" else "elevenlabs")]
    text = '[vad]\nprovider = "energy"\n'
    for kind, name in order:
        url = getattr(servers[name], "base_url", servers[name].url) if name not in killed else NOBODY
        text += f'[[{kind}]]\nprovider = "{name}"\nbase_url = "{url}"\napi_key = "{KEY}"\n'
    return text + more


def write(text):
    Path("call.toml").write_text(text)


@pytest.fixture
def servers():
    """The vendors' servers, in a thread of their own."""
    made = {name: server(api_key=KEY) for name, server in SERVERS.items()}
    up, stop = threading.Event(), threading.Event()

    async def serve():
        async with AsyncExitStack() as stack:
            for server in made.values():
                await stack.enter_async_context(server)
            up.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    up.wait()
    yield made
    stop.set()
    thread.join()


@pytest.fixture
def run(servers, tmp_path, monkeypatch, capsys):
    """Runs a command with two voices and two recognisers: exit code, stdout, lines of stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*args, killed=(), **sick):
        for name, sickness in sick.items():
            servers[name].sick = sickness
        write(toml(servers, killed=killed))
        code = cli.main([*args, "--config", "call.toml"])
        told = capsys.readouterr()
        assert KEY not in told.out + told.err
        return code, told.out, told.err.splitlines()

    return run


def heard(path):
    sound = audio.read(path)
    return understand(sound.pcm, sound.sample_rate_hz)


def recorded(path="said.wav", text=WORDS):
    pause = bytes(2 * RATE_HZ // 2)
    sound = Audio(pause + say(text) + pause, RATE_HZ)
    if path:
        audio.write(path, sound)
    return sound


SICK = [Sickness("refuse", status=401), Sickness("refuse", status=500), Sickness("garbage"), Sickness("cut"), "killed"]
SICK_IDS = ["refused", "broken", "garbage", "cut", "killed"]


def sick(name, sickness):
    return {"killed": (name,)} if sickness == "killed" else {name: sickness}


# --- say -------------------------------------------------------------------------------------------------------------


def test_say_by_a_well_provider_is_quiet_and_asks_no_other(run, servers):
    code, out, err = run("say", TEXT, "-o", "x.wav")
    assert (code, err) == (0, [])
    assert "of speech by elevenlabs, made" in out
    assert heard("x.wav") == WORDS
    assert servers["deepgram"].requests == []


@pytest.mark.parametrize("sickness", SICK, ids=SICK_IDS)
def test_say_by_the_stand_by_of_a_sick_provider(run, sickness):
    code, out, err = run("say", TEXT, "-o", "x.wav", **sick("elevenlabs", sickness))
    assert code == 0
    assert "of speech by deepgram, made" in out
    assert heard("x.wav") == WORDS
    (line,) = err
    assert line.startswith("beluga-voice: tts 'deepgram' stands in for 'elevenlabs': tts 'elevenlabs'")


def test_say_of_a_voice_that_breaks_off_goes_on_with_the_next(run):
    """In mid-text, at the rate of the first; no word is lost."""
    code, out, err = run("say", TEXT, "-o", "x.wav", elevenlabs=Sickness("cut", after=3))
    assert code == 0
    assert "of speech by elevenlabs and deepgram, made" in out
    assert set(WORDS.split()) <= set(heard("x.wav").split())
    assert len(err) == 1


def test_say_when_all_are_sick(run):
    """The first one's reason, then the last one's; no file."""
    refuse = Sickness("refuse", status=401)
    code, out, err = run("say", TEXT, "-o", "x.wav", elevenlabs=refuse, deepgram=refuse)
    assert (code, out) == (2, "")
    assert "stands in for 'elevenlabs': tts 'elevenlabs'" in err[0]
    assert err[1].startswith("beluga-voice: tts 'deepgram', opening the stream: HTTP 401")
    assert len(err) == 2
    assert not Path("x.wav").exists()


def test_a_voice_that_is_asked_for_is_the_preferred_providers(run, servers):
    """Its stand-by, which has no such voice, keeps its own."""
    code, _, err = run("say", "hello", "-o", "x.wav", "--voice", "Rachel9", elevenlabs=Sickness("refuse", status=401))
    assert (code, len(err)) == (0, 1)
    assert "Rachel9" in servers["elevenlabs"].requests[0].path
    assert "Rachel9" not in str(servers["deepgram"].requests)
    assert heard("x.wav") == "hello"


# --- transcribe ------------------------------------------------------------------------------------------------------


def test_transcribe_by_a_well_provider_is_quiet_and_asks_no_other(run, servers):
    recorded()
    assert run("transcribe", "said.wav") == (0, f"{WORDS}\n", [])
    assert servers["openai"].requests == []


@pytest.mark.parametrize("sickness", [*SICK, Sickness("empty")], ids=[*SICK_IDS, "empty"])
def test_transcribe_by_the_stand_by_of_a_sick_provider(run, sickness):
    recorded()
    code, out, err = run("transcribe", "said.wav", "--json", **sick("deepgram", sickness))
    told = json.loads(out)
    assert (code, told["text"], told["provider"]) == (0, WORDS, "openai")
    (line,) = err
    assert line.startswith("beluga-voice: stt 'openai' stands in for 'deepgram': stt 'deepgram'")


def test_transcribe_when_all_are_sick(run):
    recorded()
    refuse = Sickness("refuse", status=401)
    code, out, err = run("transcribe", "said.wav", deepgram=refuse, openai=refuse)
    assert (code, out) == (2, "")
    assert "stands in for 'deepgram'" in err[0]
    assert err[1].startswith("beluga-voice: stt 'openai', transcribing: HTTP 401")
    assert len(err) == 2


def test_whoever_stands_in_goes_on_to_the_end_of_a_long_file(run, servers):
    """The sick one is not asked for each piece, and it is told once."""
    pause = Audio(bytes(2 * RATE_HZ * 10), RATE_HZ)
    pieces = [recorded(path="", text=text) for text in ("one two three", "four five", "six", "seven eight")]
    audio.write("said.wav", Audio(b"".join(one.pcm + pause.pcm for one in pieces), RATE_HZ))
    code, out, err = run("transcribe", "said.wav", deepgram=Sickness("refuse", status=401))
    assert (code, out) == (0, "one two three four five six seven eight\n")
    assert len(err) == 1
    assert len(servers["deepgram"].requests) == 1
    assert len(servers["openai"].requests) == 2


def test_a_file_of_nothing_but_quiet_asks_nobody(run, servers):
    audio.write("quiet.wav", audio.silence(2_000.0, RATE_HZ))
    code, out, err = run("transcribe", "quiet.wav", deepgram=Sickness("refuse", status=401))
    assert (code, out, err) == (0, "", ["quiet.wav: no speech heard"])
    assert [server.requests for server in servers.values()] == [[], [], []]


# --- one that hangs, in simulated time -------------------------------------------------------------------------------


def simulated(work, more="", **sick):
    """What `work(config file)` gives, with these vendors sick."""

    async def main():
        async with AsyncExitStack() as stack:
            servers = {name: await stack.enter_async_context(server(api_key=KEY)) for name, server in SERVERS.items()}
            for name, sickness in sick.items():
                servers[name].sick = sickness
            write(toml(servers, more=more))
            began_ms = CLOCK.now_ms()
            made = await work("call.toml")
            return made, CLOCK.now_ms() - began_ms

    return run_simulated(main())


def speaking(path):
    return spoken(config.failover("tts", path), TEXT)


def hearing(path):
    return report_of(config.engine("vad", path), config.failover("stt", path), recorded(path=""))


@pytest.mark.parametrize("after", [0, 2])
def test_say_does_not_wait_long_for_a_provider_that_hangs(tmp_path, monkeypatch, capsys, after):
    monkeypatch.chdir(tmp_path)
    made, took_ms = simulated(speaking, elevenlabs=Sickness("hang", after=after))
    assert set(WORDS.split()) <= set(understand(made.sound.pcm, made.sound.sample_rate_hz).split())
    assert "deepgram" in made.by
    assert took_ms < 10_000
    assert capsys.readouterr().err.count("stands in for 'elevenlabs'") == 1


def test_transcribe_does_not_wait_long_for_a_provider_that_hangs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made, took_ms = simulated(hearing, deepgram=Sickness("hang"))
    assert (made["text"], made["provider"]) == (WORDS, "openai")
    assert took_ms < 5_000
    err = capsys.readouterr().err
    assert "stands in for 'deepgram': stt 'deepgram' gave no words within 4" in err
    assert err.count("\n") == 1


def test_the_table_resilience_says_how_long_to_wait(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = "[resilience]\nconnect_timeout_ms = 100\nfinal_timeout_ms = 100\nfirst_audio_timeout_ms = 100\n"
    _, took_ms = simulated(hearing, more, deepgram=Sickness("hang"))
    assert took_ms < 1_000
    _, took_ms = simulated(speaking, more, elevenlabs=Sickness("hang"))
    assert took_ms < 1_000


# --- one that cannot even be made ready ------------------------------------------------------------------------------

APP = """
from beluga_voice import stt, tts
from beluga_voice.frames import Transcript

class Cold(stt.STT):
    async def prewarm(self):
        raise RuntimeError("the weights are gone")
    async def transcribe(self, audio):
        raise RuntimeError("no weights")

class Ears(stt.STT):
    async def transcribe(self, audio):
        return Transcript("hello")

class Hoarse(tts.TTS):
    async def prewarm(self):
        raise RuntimeError("the voice is gone")
    async def synthesize(self, text):
        raise RuntimeError("no voice")
"""


@pytest.mark.parametrize(
    ("kind", "providers", "args", "told"),
    [
        ("tts", ("ready_app:Hoarse", "tone"), ("say", "hello", "-o", "x.wav"), "tts 'tone' stands in for 'Hoarse'"),
        ("stt", ("ready_app:Cold", "ready_app:Ears"), ("transcribe", "said.wav"), "stt 'Ears' stands in for 'Cold'"),
    ],
)
def test_one_that_cannot_be_made_ready_is_told_once(tmp_path, kind, providers, args, told):
    (tmp_path / "ready_app.py").write_text(APP)
    tables = "".join(f'[[{kind}]]\nprovider = "{provider}"\n' for provider in providers)
    (tmp_path / "call.toml").write_text(f'[vad]\nprovider = "energy"\n{tables}')
    recorded(tmp_path / "said.wav")
    command = [sys.executable, "-m", "beluga_voice", *args, "--config", "call.toml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert told in done.stderr
