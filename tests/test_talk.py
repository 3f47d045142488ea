"""`beluga-voice talk`, as its user sees it: exit codes, what is shown, the files it leaves."""

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console

from beluga_voice.cli import main
from beluga_voice.cli._live import Screen, new_display
from beluga_voice.cli._report import NewFile, as_json, printable
from beluga_voice.cli.talk import OWN_OUTPUT
from beluga_voice.errors import ConfigError
from beluga_voice.events import SessionEvent, TurnRecord

SHARED = Path(__file__).parents[2] / "shared"
RATE_HZ = 16_000
PARTS = '''
from beluga_voice import s2s, stt, tts
from beluga_voice.engine import WorkPool
from beluga_voice.errors import ConnectFailedError
from beluga_voice.frames import Transcript


class Measuring(stt.STT):
    """Tells short speech from long, worked out in a pool."""

    def __init__(self):
        self.pool = WorkPool(1, "measuring")

    async def transcribe(self, audio):
        words = await self.pool.run(lambda: "A word." if audio.duration_ms < 2_500 else "A whole sentence.")
        return Transcript(words)

    async def aclose(self):
        await self.pool.aclose()


class Rude(stt.STT):
    async def transcribe(self, audio):
        return Transcript("\\x1b[31mred\\x07 [bold]brackets[/bold] <b>&amp;")


class Deaf(stt.STT):
    async def transcribe(self, audio):
        raise RuntimeError("no ears")


class Unsure(stt.STT):
    async def transcribe(self, audio):
        return Transcript("")


class Dumb(tts.TTS):
    async def synthesize(self, text):
        raise RuntimeError("no voice")


class Gone(s2s.S2S):
    async def connect(self, history=()):
        raise ConnectFailedError("s2s 'gone', opening the session: no such host", provider="gone", kind="s2s")


class Cold(stt.STT):
    async def prewarm(self):
        raise RuntimeError("the weights are gone")

    async def transcribe(self, audio):
        return Transcript("")


second_stt = stt.as_frame_processor(Measuring())


async def raises(text, history):
    if history:
        raise RuntimeError("no second answer")
    return "All is well."


async def always_raises(text, history):
    raise RuntimeError("no answer")


async def gives_a_dict(text, history):
    return {"answer": text} if history else "All is well."


def sync(text, history):
    return text
'''
CONFIG = """
[vad]
provider = "energy"
[stt]
provider = "talk_parts:Measuring"
[agent]
provider = "echo"
[tts]
provider = "tone"
"""


def speech(*pieces):
    """Sound (+) and quiet (-), each of so many ms, over a soft noise."""
    parts = []
    for ms in pieces:
        t = np.arange(int(abs(ms) * RATE_HZ / 1000)) / RATE_HZ
        parts.append((0.4 if ms > 0 else 0.0) * np.sin(2 * np.pi * 300 * t))
    whole = np.concatenate(parts)
    return whole + np.random.default_rng(0).normal(0, 0.001, len(whole))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a configuration of builtin parts and a caller of two turns."""
    (tmp_path / "talk_parts.py").write_text(PARTS)
    (tmp_path / "c.toml").write_text(CONFIG)
    soundfile.write(tmp_path / "in.wav", speech(-500, 1000, -3500, 2000, -1500), RATE_HZ)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "talk_parts", raising=False)
    return tmp_path


def configured(place, **changes):
    text = CONFIG
    for kind, provider in changes.items():
        text = re.sub(rf'(\[{kind}\]\nprovider = )".*"', rf'\1"{provider}"', text)
    (place / "c.toml").write_text(text)


def talk(*args):
    return main(["talk", *map(str, args)])


class TestACall:
    @pytest.fixture
    def call(self, place, capsys):
        code = talk(
            "in.wav", "--config", "c.toml", "--fast", "-o", "out.wav", "--report", "r.json", "--timeline", "t.svg"
        )
        assert code == 0
        return place, capsys.readouterr().out, json.loads((place / "r.json").read_text())

    def test_recording_has_both_sides_in_true_time(self, call):
        place, _, report = call
        both, rate_hz = soundfile.read(place / "out.wav")
        caller, _ = soundfile.read(place / "in.wav")
        assert both.shape[1] == 2
        assert len(both) == round(report["duration_ms"] * rate_hz / 1000)
        assert np.array_equal(both[: len(caller), 0], caller)
        sounding_ms = np.flatnonzero(np.abs(both[:, 1]) > 0.05) * 1000 / rate_hz
        first, second = report["turns"]
        started = [event["at_ms"] for event in report["events"] if event["name"] == "reply_started"]
        assert first["speech_end_ms"] < started[0] <= sounding_ms[0] < started[0] + 100
        assert not np.any((sounding_ms > second["speech_start_ms"]) & (sounding_ms < second["speech_end_ms"]))

    def test_report_holds_every_turn_and_its_latencies(self, call):
        _, _, report = call
        assert report["clock"] == "audio"
        assert report["end_reason"] == "bye"
        assert [turn["user_text"] for turn in report["turns"]] == ["A word.", "A whole sentence."]
        for index, turn in enumerate(report["turns"]):
            assert turn["index"] == index
            assert turn["agent_text"] == turn["heard_text"] == f"You said: {turn['user_text']}"
            assert turn["interrupted"] is False
            parts = ("endpointing_ms", "stt_latency_ms", "agent_latency_ms", "tts_latency_ms", "send_latency_ms")
            assert turn["e2e_latency_ms"] == pytest.approx(sum(turn[part] for part in parts))
            assert turn["speech_start_ms"] < turn["started_ms"] < turn["speech_end_ms"]
        first, second = report["turns"]
        assert first["speech_start_ms"] == pytest.approx(500, abs=60)
        assert second["speech_end_ms"] == pytest.approx(7000, abs=60)
        assert report["limits"]["idle_timeout_ms"] == 60_000
        assert report["limits"]["barge_in"]["min_speech_ms"] == 200

    def test_engines_own_work_is_told_apart(self, call):
        _, shown, report = call
        (work,) = report["engines"].values()
        assert work["kind"] == "stt"
        assert work["calls"] >= 2
        assert work["busy_ms"] >= 0
        assert "itself" in shown

    def test_events_are_in_order_and_complete(self, call):
        _, _, report = call
        names = [event["name"] for event in report["events"]]
        assert names[0] == "opened"
        assert names[-1] == "closed"
        assert names.count("turn_finished") == 2
        times = [event["at_ms"] for event in report["events"]]
        assert times == sorted(times)

    def test_what_is_shown_is_plain_when_nobody_watches(self, call):
        _, shown, _ = call
        assert "\x1b" not in shown
        assert "\r" not in shown
        for told in (
            "A word.",
            "You said: A whole sentence.",
            "[responding]",
            "median, ms",
            "out.wav",
            "r.json",
            "t.svg",
        ):
            assert told in shown

    def test_timeline_is_a_picture(self, call):
        place, _, _ = call
        assert ET.fromstring((place / "t.svg").read_text()).tag.endswith("svg")

    def test_leaves_nothing_else(self, call):
        place, _, _ = call
        assert {path.name for path in place.iterdir()} - {"__pycache__"} == {
            *("talk_parts.py", "c.toml", "in.wav"),
            *("out.wav", "r.json", "t.svg"),
        }

    @pytest.mark.skipif(not (SHARED / "tools" / "score_talk.py").exists(), reason="needs the shared scoring tool")
    def test_report_can_be_scored(self, call, monkeypatch):
        monkeypatch.syspath_prepend(str(SHARED / "tools"))
        import score_talk

        turns = [{"start": 0.5, "end": 1.5, "text": "a word"}, {"start": 5.0, "end": 7.0, "text": "a whole sentence"}]
        scored = score_talk.score(call[2], {"turns": turns})
        assert (scored["found"], scored["missed"], scored["extra"], scored["wer"]) == (2, 0, 0, 0.0)


def test_real_time_call_says_so(place):
    """A second of quiet, a short word and a short tail: about 2.5 s."""
    soundfile.write(place / "short.wav", speech(-200, 500, -900), RATE_HZ)
    configured(place, agent="talk_parts:raises")
    (place / "c.toml").write_text((place / "c.toml").read_text() + "[turn]\nprovider = 'silence'\nsilence_ms = 300\n")
    assert talk("short.wav", "--config", "c.toml", "--report", "r.json") == 0
    report = json.loads((place / "r.json").read_text())
    assert report["clock"] == "wall"
    assert [turn["heard_text"] for turn in report["turns"]] == ["All is well."]


def test_without_output_or_files_only_the_screen(place, capsys):
    before = set(place.iterdir())
    assert talk("in.wav", "--config", "c.toml", "--fast") == 0
    assert {path.name for path in set(place.iterdir()) - before} <= {"__pycache__"}
    assert "A whole sentence." in capsys.readouterr().out


def test_without_input_it_makes_its_own_caller(place, capsys):
    assert talk("--config", "c.toml", "--fast", "--report", "r.json") == 0
    shown = capsys.readouterr().out
    (told,) = [line for line in shown.splitlines() if OWN_OUTPUT in line]
    assert "caller left, agent right" in told
    assert "hear it" in told
    both, _ = soundfile.read(place / OWN_OUTPUT)
    assert (np.abs(both).max(axis=0) > 0.1).all()
    assert json.loads((place / "r.json").read_text())["turns"]


def test_a_fresh_install_speaks(place, capsys):
    for plugin in ("silero", "moonshine", "espeak"):
        pytest.importorskip(f"beluga_voice_{plugin}", reason="needs the embedded plugins")
    assert talk("--fast", "--report", "r.json") == 0
    report = json.loads((place / "r.json").read_text())
    assert len(report["turns"]) == 3
    assert all(turn["user_text"] and turn["heard_text"] and not turn["interrupted"] for turn in report["turns"])


def test_a_caller_made_on_the_spot_hears_the_greeting_out(place, capsys):
    (place / "c.toml").write_text(CONFIG + '[session]\ngreeting = "Hello, and welcome to the place of all that is new."\n')
    assert talk("--config", "c.toml", "--fast", "--report", "r.json") == 0
    events = json.loads((place / "r.json").read_text())["events"]
    greeted = next(event["at_ms"] for event in events if event["name"] == "reply_ended")
    heard = next(event["at_ms"] for event in events if event["name"] == "speech_started")
    assert greeted < heard


def test_a_stand_by_is_quiet_while_it_is_not_needed(place, capsys):
    (place / "c.toml").write_text(CONFIG.replace("[tts]", "[[tts]]") + '[[tts]]\nprovider = "tone"\n')
    assert talk("in.wav", "--config", "c.toml", "--fast") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(os.name != "posix", reason="closes a descriptor by the shell")
def test_without_a_standard_output_the_call_is_held(place):
    command = f'"{sys.executable}" -m beluga_voice talk in.wav --config c.toml --fast -o out.wav >&-'
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert soundfile.info(place / "out.wav").duration > 5


class TestABadAgent:
    @pytest.mark.parametrize(("agent", "why"), [("raises", "no second answer"), ("gives_a_dict", "dict")])
    def test_fails_on_its_second_turn_and_the_call_goes_on(self, place, capsys, agent, why):
        configured(place, agent=f"talk_parts:{agent}")
        assert talk("in.wav", "--config", "c.toml", "--fast", "--report", "r.json") == 0
        report = json.loads((place / "r.json").read_text())
        (error,) = [event for event in report["events"] if event["name"] == "error"]
        assert error["turn"] == 1
        assert why in error["data"]["message"]
        assert isinstance(error["data"]["error"], str)
        assert report["turns"][0]["heard_text"] == "All is well."
        assert report["turns"][1]["heard_text"] == report["limits"]["fallback"]
        assert any("error" in line and why in line for line in capsys.readouterr().out.splitlines())

    def test_what_a_provider_says_steers_no_terminal_and_breaks_no_file(self, place, capsys):
        configured(place, stt="talk_parts:Rude")
        assert talk("in.wav", "--config", "c.toml", "--fast", "--report", "r.json", "--timeline", "t.svg") == 0
        shown = capsys.readouterr().out
        assert "\x1b" not in shown
        assert "\x07" not in shown
        assert "red [bold]brackets[/bold] <b>&amp;" in shown
        assert json.loads((place / "r.json").read_text())["turns"][0]["user_text"].startswith("\x1b[31mred")
        ET.fromstring((place / "t.svg").read_text())


class TestWhetherAnybodyWasAnswered:
    """The exit code tells, for whoever runs calls in a script."""

    @pytest.mark.parametrize(
        ("parts", "why"),
        [
            ({"stt": "talk_parts:Deaf"}, "stt 'Deaf' failed: RuntimeError: no ears"),
            ({"agent": "talk_parts:always_raises"}, "always_raises: agent always_raises raised RuntimeError: no answer"),
            ({"tts": "talk_parts:Dumb"}, "tts 'Dumb' failed: RuntimeError: no voice"),
        ],
        ids=["recogniser", "agent", "voice"],
    )
    @pytest.mark.parametrize("fallback", ["Sorry.", ""])
    def test_a_call_in_which_every_turn_failed_is_exit_1(self, place, capsys, parts, why, fallback):
        """The fallback is no answer. The files are there all the same."""
        configured(place, **parts)
        with (place / "c.toml").open("a") as file:
            file.write(f'[session]\nfallback = "{fallback}"\n')
        assert talk("in.wav", "--config", "c.toml", "--fast", "--report", "r.json", "-o", "out.wav") == 1
        out, err = capsys.readouterr()
        assert err == f"beluga-voice: no turn was answered: {why}\n"
        assert "ended by 'bye'" in out
        assert json.loads((place / "r.json").read_text())["end_reason"] == "bye"
        assert (place / "out.wav").exists()

    @pytest.mark.parametrize(
        ("caller", "stt"),
        [("quiet.wav", "talk_parts:Measuring"), ("in.wav", "talk_parts:Unsure")],
        ids=["nobody speaks", "nothing is understood"],
    )
    def test_where_nobody_said_anything_there_was_nothing_to_answer(self, place, capsys, caller, stt):
        soundfile.write(place / "quiet.wav", speech(-2_000), RATE_HZ)
        configured(place, stt=stt)
        assert talk(caller, "--config", "c.toml", "--fast") == 0
        out, err = capsys.readouterr()
        assert "No turn" in out
        assert err == ""

    def test_a_speech_to_speech_model_that_is_not_there_is_exit_1(self, place, capsys):
        """It alone would tell that there was a turn."""
        (place / "c.toml").write_text('[s2s]\nprovider = "talk_parts:Gone"\n')
        assert talk("in.wav", "--config", "c.toml", "--fast") == 1
        assert capsys.readouterr().err == "beluga-voice: no turn was answered: s2s 'gone', opening the session: no such host\n"

    def test_one_answer_is_enough(self, place, capsys):
        configured(place, agent="talk_parts:raises")
        assert talk("in.wav", "--config", "c.toml", "--fast") == 0
        assert capsys.readouterr().err == ""

    def test_help_tells_the_exit_codes(self, capsys):
        assert talk("--help") == 0
        assert "exit code is 1" in " ".join(capsys.readouterr().out.split())


def refused(place, capsys, *args):
    """The one line on stderr; nothing was written."""
    before = {path: path.read_bytes() for path in place.iterdir() if path.is_file()}
    assert talk(*args) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert err.startswith("beluga-voice: ")
    assert "Traceback" not in out + err
    after = {path: path.read_bytes() for path in place.iterdir() if path.is_file() and path.suffix != ".pyc"}
    assert after == before
    return err


BAD_INPUT = {
    "missing.wav": (None, "no such file"),
    "text.wav": (b"hello, I am no sound\n" * 20, "not audio"),
    "empty.wav": (b"", "empty"),
    "header.wav": (lambda wav: wav[:44], "no sound"),
    "truncated.wav": (lambda wav: wav[:30], "not audio"),
    "no_rate.wav": (lambda wav: wav[:24] + bytes(4) + wav[28:], "not audio"),
}


class TestBadInput:
    @pytest.mark.parametrize("name", BAD_INPUT)
    def test_caller_is_refused(self, place, capsys, name):
        made, why = BAD_INPUT[name]
        if made is not None:
            wav = (place / "in.wav").read_bytes()
            (place / name).write_bytes(made(wav) if callable(made) else made)
        outputs = ("-o", "out.wav", "--report", "r.json", "--timeline", "t.svg")
        err = refused(place, capsys, name, "--config", "c.toml", "--fast", *outputs)
        assert name in err
        assert why in err

    def test_directory_is_refused(self, place, capsys):
        (place / "folder.wav").mkdir()
        assert "directory" in refused(place, capsys, "folder.wav", "--config", "c.toml", "--fast", "-o", "out.wav")

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
    def test_unreadable_is_refused(self, place, capsys):
        (place / "in.wav").chmod(0)
        assert talk("in.wav", "--config", "c.toml") == 2
        assert "permission" in capsys.readouterr().err

    @pytest.mark.parametrize("option", ["-o", "--report", "--timeline"])
    @pytest.mark.parametrize(
        "target", ["nowhere/x.wav", "folder.wav", "in.wav", "./../{name}/in.wav", "link.wav", "c.toml", ""]
    )
    def test_unwritable_or_taken_output_is_refused(self, place, capsys, option, target):
        (place / "folder.wav").mkdir()
        (place / "link.wav").symlink_to(place / "in.wav")
        refused(place, capsys, "in.wav", "--config", "c.toml", "--fast", option, target.format(name=place.name))

    def test_one_file_for_two_outputs_is_refused(self, place, capsys):
        err = refused(place, capsys, "in.wav", "--config", "c.toml", "--report", "x.json", "--timeline", "./x.json")
        assert "twice" in err

    def test_unknown_ending_is_refused(self, place, capsys):
        assert "xyz" in refused(place, capsys, "in.wav", "--config", "c.toml", "-o", "out.xyz")

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("[agnet]\n", "[agent]"),
            ('[stt]\nprovider = "talk_parts:Measuring"\nkey = "${TALK_NO_SUCH_KEY}"\n', "TALK_NO_SUCH_KEY"),
            ('[vad]\nprovider = "enregy"\n', "energy"),
            ('[vad]\nprovider = "energy"\nthreshhold = 0.4\n', "threshold"),
            (CONFIG.replace('"echo"', '"talk_parts:sync"'), "async"),
            (CONFIG + '[[processor]]\nprovider = "talk_parts:second_stt"\nbefore = "vad"\n', "stt"),
            (CONFIG + '[[processor]]\nprovider = "talk_parts:second_stt"\nafter = "stt"\n', "stt"),
            ("[vad\n", "TOML"),
        ],
    )
    def test_bad_configuration_is_refused(self, place, capsys, monkeypatch, text, told):
        monkeypatch.delenv("TALK_NO_SUCH_KEY", raising=False)
        (place / "c.toml").write_text(text)
        assert told in refused(place, capsys, "in.wav", "--config", "c.toml", "-o", "out.wav", "--report", "r.json")

    def test_engine_that_does_not_start_leaves_nothing(self, place, capsys):
        configured(place, stt="talk_parts:Cold")
        outputs = ("-o", "out.wav", "--report", "r.json", "--timeline", "t.svg")
        assert "the weights are gone" in refused(place, capsys, "in.wav", "--config", "c.toml", *outputs)

    @pytest.mark.skipif(os.name != "posix", reason="limits the size of files")
    def test_a_disk_that_fills_up_is_told_and_leaves_no_half_of_a_call(self, place):
        arguments = ["talk", "in.wav", "--config", "c.toml", "--fast", "-o", "out.wav", "--timeline", "t.svg"]
        code = textwrap.dedent(f"""
            import resource, signal, sys
            from beluga_voice.cli import main
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            sys.exit(main({arguments!r}))
        """)
        done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stderr
        assert done.stderr.startswith("beluga-voice: the call broke off: line: out.wav: cannot be written any further")
        assert done.stderr.count("\n") == 1
        assert not [path for path in place.iterdir() if path.name.startswith((".out", "out"))]

    def test_unknown_option_is_refused(self, place, capsys):
        assert "--fats" in refused(place, capsys, "in.wav", "--fats")


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.parametrize("fast", [[], ["--fast"]])
def test_ctrl_c_ends_the_call_with_whole_files(place, fast):
    soundfile.write(place / "long.wav", speech(*[-500, 1000, -2000] * 40), RATE_HZ)
    arguments = ["talk", "long.wav", "--config", "c.toml", "-o", "out.wav", "--report", "r.json", "--timeline", "t.svg"]
    # Python ignores SIGINT where its parent did; here it must not.
    code = textwrap.dedent(f"""
        import signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from beluga_voice.cli import main
        sys.exit(main({arguments + fast!r}))
    """)
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code], cwd=place, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert "listening" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    shown, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err == ""
    assert "out.wav" in shown
    report = json.loads((place / "r.json").read_text())
    assert report["end_reason"] == "cancelled"
    # The agent's side reaches to the very moment of the end, which the last 20 ms of the caller may not.
    assert soundfile.info(place / "out.wav").frames >= round(report["duration_ms"] * RATE_HZ / 1000)
    ET.fromstring((place / "t.svg").read_text())
    assert not [path for path in place.iterdir() if path.name.endswith(".part")]


def events():
    """A turn with an interrupted reply, as a session tells it."""
    record = TurnRecord(
        *(
            0,
            "Count to five, please, and then do it all over again until I tell you to stop.",
            "1, 2, 3, 4, 5.",
            "1, 2,",
        ),
        *(900.0, 800.0, 2_000.0, 710.0, 40.0, 5.0, 30.0, 0.2, 785.2, True),
    )
    yield SessionEvent("state", 0.0, -1, {"state": "listening", "old": "connected"})
    yield SessionEvent("turn_started", 900.0, 0)
    yield SessionEvent("transcript", 1_500.0, 0, {"text": "Count to", "is_final": False, "confidence": None})
    yield SessionEvent("turn_ended", 2_710.0, 0, {"source": "silence", "speech_end_ms": 2_000.0})
    yield SessionEvent("transcript", 2_750.0, 0, {"text": record.user_text, "is_final": True, "confidence": None})
    yield SessionEvent("state", 2_750.0, 0, {"state": "processing", "old": "listening"})
    yield SessionEvent("reply_text", 2_755.0, 0, {"reply": 1, "text": record.agent_text})
    yield SessionEvent("reply_audio", 2_785.0, 0, {"reply": 1})
    yield SessionEvent("state", 2_785.0, 0, {"state": "responding", "old": "processing"})
    yield SessionEvent("reply_started", 2_785.2, 0, {"reply": 1})
    yield SessionEvent("error", 3_000.0, 0, {"stage": "tts", "message": "lost\x1b[2J a piece", "error": None})
    yield SessionEvent(
        "interrupted", 4_000.0, 0, {"reply": 1, "played_ms": 1_000, "heard_text": "1, 2,", "source": "speech"}
    )
    yield SessionEvent("reply_ended", 4_000.0, 0, {"reply": 1, "heard_text": "1, 2,", "interrupted": True})
    yield SessionEvent("turn_finished", 4_000.0, 0, {"record": record})


class TestTheTerminal:
    def test_shows_the_call_within_80_columns(self):
        out = io.StringIO()
        screen = Screen(Console(file=out, force_terminal=True, width=80, color_system=None), 10_000.0)
        for event in events():
            screen.on_event(event)
            screen._drawn_ms = 0.0
            screen.refresh(event.at_ms)
        screen.close()
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n")
        assert max(len(line) for line in shown.splitlines()) <= 80
        for told in (
            *("● listening", "● processing", "● responding", "━", "0:02.8 / 0:10.0", "Count to", "1, 2, 3, 4, 5."),
            *(
                "turn end 710 · stt 40 · agent 5 · tts 30 · first sound after 785 ms",
                "interrupted",
                "tts: lost [2J a piece",
            ),
        ):
            assert told in shown

    def test_latencies_come_one_by_one(self):
        """Each part is known as soon as it is over, and is the turn's own in the end."""
        lines = new_display(io.StringIO(), 10_000.0, is_terminal=False)
        grown = []
        for event in events():
            lines.on_event(event)
            grown.append(list(lines.parts))
        assert [parts for at, parts in enumerate(grown) if parts and parts != grown[at - 1]] == [
            ["turn end"],
            ["turn end", "stt"],
            ["turn end", "stt", "agent"],
            ["turn end", "stt", "agent", "tts"],
            ["turn end", "stt", "agent", "tts", "first sound"],
        ]
        assert lines.parts == pytest.approx({"turn end": 710, "stt": 40, "agent": 5, "tts": 30, "first sound": 785.2})

    def test_reader_that_went_away_does_not_end_the_call(self):
        class Gone(io.StringIO):
            def write(self, text):
                raise BrokenPipeError(32, "Broken pipe")

        lines = new_display(Gone(), 10_000.0, is_terminal=False)
        for event in events():
            lines.on_event(event)
        assert isinstance(lines.failure, BrokenPipeError)


class TestNewFile:
    def test_is_whole_or_not_there(self, tmp_path):
        target = tmp_path / "x.json"
        target.write_text("old")
        with NewFile(str(target)):
            assert target.read_text() == "old"
        assert target.read_text() == "old"
        with NewFile(str(target)) as file:
            file.write("new")
        assert target.read_text() == "new"
        assert list(tmp_path.iterdir()) == [target]

    def test_writes_through_a_link(self, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path / "real")
        with NewFile(str(tmp_path / "link")) as file:
            file.write("text")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real").read_text() == "text"

    @pytest.mark.skipif(not os.path.exists(os.devnull) or os.name != "posix", reason="needs /dev/null")
    def test_a_device_stays_a_device(self):
        with NewFile(os.devnull) as file:
            file.write("text")
        assert not os.path.isfile(os.devnull)

    @pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="needs /dev/stdout")
    def test_standard_output_may_be_a_pipe(self):
        code = "from beluga_voice.cli._report import NewFile\nwith NewFile('/dev/stdout') as file: file.write('text')"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "text", "")

    def test_directory_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="directory"), NewFile(str(tmp_path)):
            pass


def test_anything_becomes_json():
    class Odd:
        def __str__(self):
            return "odd"

    loop: list[object] = []
    loop.append(loop)
    told = as_json(
        {1: [float("inf"), 1.23456, b"ab", Odd(), ValueError("no")], "loop": loop, "done": asyncio.CancelledError()}
    )
    assert json.loads(json.dumps(told))["1"] == [None, 1.235, "<2 bytes>", "odd", "ValueError: no"]


def test_printable_keeps_words_and_drops_control():
    assert printable(" héllo\n\tworld\x1b[0m\u202e 你好 \ud800") == "héllo world [0m 你好"
