"""The example with cloud providers: its real SDKs, against loopback servers, hold a whole call, well or sick."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from beluga_voice import Session, config
from beluga_voice.builtin.recorded_line import RecordedLine
from beluga_voice.clock import run_simulated
from beluga_voice.errors import ConfigError
from beluga_voice.testing.loopback import Sickness
from beluga_voice.testing.tone_speech import RATE_HZ, understand

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

for sdk in ("deepgram", "openai", "elevenlabs"):
    pytest.importorskip(f"beluga_voice_{sdk}", reason=f"the {sdk} plugin is not installed")
spec = importlib.util.spec_from_file_location("on_loopback", EXAMPLES / "on_loopback.py")
on_loopback = importlib.util.module_from_spec(spec)
spec.loader.exec_module(on_loopback)

ANSWERS = [f"I heard {text}" for text in on_loopback.SAYS]


def call(**sick):
    """The example's call in simulated time, with these providers sick: its session, its events, what the caller heard."""

    async def main():
        heard, events = [], []
        async with AsyncExitStack() as stack:
            servers = {name: await stack.enter_async_context(server()) for name, server in on_loopback.SERVERS.items()}
            for name, sickness in sick.items():
                servers[name].sick = sickness
            setup = config.loads(on_loopback.at_home(toml(), servers))
            line = RecordedLine(on_loopback.caller(), tail_ms=4_000, on_audio=lambda _, agent: heard.append(agent))
            session = Session(setup.chain, line, setup.session, listeners=[events.append])
            await session.run()
            await asyncio.sleep(0.1)  # the servers read their goodbyes
            open_now = sum(server.open_connections for server in servers.values())
        return session, events, understand(b"".join(heard), RATE_HZ), servers, open_now

    return run_simulated(main())


def toml():
    return (EXAMPLES / "deepgram-openai-elevenlabs.toml").read_text("utf-8")


def test_a_whole_call_by_three_vendors():
    session, _, heard, servers, open_now = call()
    assert [(record.user_text, record.heard_text) for record in session.turns] == list(zip(on_loopback.SAYS, ANSWERS))
    for answer in ANSWERS:
        assert answer.lower() in heard
    assert [(record.stt_provider, record.tts_provider) for record in session.turns] == [("deepgram", "elevenlabs")] * 3
    used = {(one.kind, one.provider, one.model): set(one.amounts) for one in session.usage}
    assert used[("stt", "deepgram", "nova-3")] == {"audio_ms"}
    assert used[("tts", "elevenlabs", "eleven_flash_v2_5")] == {"characters"}
    assert {"input_tokens", "output_tokens"} <= used[("agent", "openai", "gpt-5.4-mini")]
    assert [len(servers[name].sockets) for name in ("deepgram", "elevenlabs")] == [1, 1], "one connection a session"
    assert open_now == 0


@pytest.mark.parametrize(
    ("vendor", "sickness", "stood_by"),
    [
        ("deepgram", Sickness("refuse", status=401), ("stt", "openai")),
        ("deepgram", Sickness("hang", after=3), ("stt", "openai")),
        ("deepgram", Sickness("cut", after=3), ("stt", "openai")),
        ("deepgram", Sickness("garbage", after=3), ("stt", "openai")),
        ("elevenlabs", Sickness("refuse", status=429, retry_after_s=60), ("tts", "deepgram")),
        ("elevenlabs", Sickness("hang", after=2), ("tts", "deepgram")),
        ("elevenlabs", Sickness("cut", after=2), ("tts", "deepgram")),
    ],
    ids=str,
)
def test_a_sick_vendor_costs_no_turn(vendor, sickness, stood_by):
    session, events, heard, _, open_now = call(**{vendor: sickness})
    assert [record.user_text for record in session.turns] == list(on_loopback.SAYS)
    for answer in ANSWERS:
        assert answer.lower().split()[-1] in heard
    kind, provider = stood_by
    assert (kind, provider) in [(event.data["kind"], event.data["new"]) for event in events if event.name == "failed_over"]
    assert getattr(session.turns[-1], f"{kind}_provider") == provider
    assert open_now == 0


def test_a_configuration_that_is_not_there_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["on_loopback.py", "--config", "nowhere.toml"])
    with pytest.raises(SystemExit):
        on_loopback.main()
    assert capsys.readouterr().err.endswith("error: nowhere.toml: no such file; check the path\n")


def test_the_help_tells_each_sickness(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["on_loopback.py", "--help"])
    with pytest.raises(SystemExit):
        on_loopback.main()
    told = re.findall(r"\w+", capsys.readouterr().out)
    assert {*on_loopback.KINDS, *on_loopback.SERVERS} <= set(told)


def test_a_plugin_that_is_missing_is_one_line(tmp_path):
    """As for somebody who has installed the offline plugins only."""
    code = "import sys, runpy; sys.modules['h11'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    command = [sys.executable, "-c", code, str(EXAMPLES / "on_loopback.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "pip install ./plugins/deepgram ./plugins/openai ./plugins/elevenlabs" in done.stderr


def test_it_asks_for_keys(monkeypatch):
    """Without keys the file says which one is missing, and where to put it."""
    monkeypatch.delenv("DEEPGRAM_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"elevenlabs.toml:\d+: .*stt 'deepgram' has no key; set .* DEEPGRAM_API_KEY"):
        config.load(EXAMPLES / "deepgram-openai-elevenlabs.toml")
