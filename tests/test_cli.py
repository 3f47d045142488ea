"""The command line: what each command writes, and one clear line with exit code 2 for whatever a user gets wrong."""

import doctest
import importlib.util
import json
import os
import signal
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice import audio, cli
from beluga_voice.audio import Audio
from beluga_voice.cli import transcribe
from beluga_voice.cli.transcribe import MARGIN_MS, pieces_of

APP = '''
import asyncio
from beluga_voice import stt, tts
from beluga_voice.audio import Audio
from beluga_voice.frames import Transcript

class Ears(stt.STT):
    """Says how long the audio is that it gets."""
    async def transcribe(self, audio):
        return Transcript(f"{audio.duration_ms:.0f}ms@{audio.sample_rate_hz}", language="en")

class Rude(stt.STT):
    async def transcribe(self, audio):
        return Transcript("caf\\u00e9 \\x1b[31mred\\x07\\nodd \\ud800 \\u4f60")

class Deaf(stt.STT):
    async def transcribe(self, audio):
        raise RuntimeError("no ears")

class Dumb(tts.TTS):
    async def synthesize(self, text):
        raise RuntimeError("no\\nvoice")

class Mute(tts.TTS):
    async def synthesize(self, text):
        return Audio(b"", 16000)

class Late(tts.TTS):
    async def synthesize(self, text):
        import cli_late
        return Audio(cli_late.PITCH * 800, 16000)

class Stopped(tts.TTS):
    async def synthesize(self, text):
        raise KeyboardInterrupt

class Endless(tts.TTS):
    async def synthesize(self, text):
        print("speaking", flush=True)
        await asyncio.Event().wait()
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with `call.toml` (tone voice, energy VAD, an STT that tells lengths) and its module."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cli_app.py").write_text(APP)
    config(tmp_path)
    sys.modules.pop("cli_app", None)
    yield tmp_path
    sys.modules.pop("cli_app", None)


def config(folder, **providers):
    """Write `call.toml` with these providers."""
    named = {"vad": "energy", "stt": "cli_app:Ears", "agent": "echo", "tts": "tone"} | providers
    text = "".join(f'[{kind}]\nprovider = "{name}"\n' for kind, name in named.items())
    (folder / "call.toml").write_text(text)


@pytest.fixture
def run(capsys):
    """Runs the command in this process: exit code, stdout, stderr."""

    def run(*args):
        code = cli.main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def refused(result):
    """The one line that a refused command wrote."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("beluga-voice: ")
    assert err.count("\n") == 1
    return err


def spoken(path, speech, duration_ms, sample_rate_hz=16_000):
    """Write a file that is quiet but for a loud tone in each (start_ms, end_ms) of `speech`."""
    samples = np.zeros(round(duration_ms * sample_rate_hz / 1000))
    for start_ms, end_ms in speech:
        first, last = (round(at_ms * sample_rate_hz / 1000) for at_ms in (start_ms, end_ms))
        samples[first:last] = 0.5 * np.sin(np.arange(last - first))
    audio.write(path, Audio(audio.to_pcm(samples), sample_rate_hz))
    return path


# --- the command -----------------------------------------------------------------------------------------------------


def test_without_arguments_it_shows_its_help(run):
    code, out, err = run()
    assert (code, err) == (0, "")
    for name in ("talk", "say", "transcribe", "providers"):
        assert name in out


def test_help_imports_no_command():
    check = (
        "import sys; from beluga_voice.cli import main; code = main(['--help'])\n"
        "sys.exit(code or any(name.startswith('beluga_voice.cli.') or name == 'rich' for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_runs_it_too():
    done = subprocess.run(
        [sys.executable, "-m", "beluga_voice", "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("beluga-voice ")


EMPTY_NAMES = [
    ["say", "hi", "-o", ""],
    ["say", "hi", "-o", "x.wav", "--config", ""],
    ["transcribe", ""],
    ["check", "tts", "--config", ""],
    ["check", "stt", "moonshine", "--audio", "", "--words", "one"],
    ["talk", ""],
    ["serve", "--config", ""],
    ["call", "ws://127.0.0.1:1", ""],
]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["provders"], "did you mean 'providers'?"),
        (["xyz"], "the commands are talk, serve, call, say, transcribe, check, providers"),
        (["say"], "Missing argument 'TEXT'"),
        (["say", "hi"], "Missing option '-o'"),
        (["transcribe", "a.wav", "--jsn"], "--jsn"),
        (["--nonsense"], "--nonsense"),
        *((args, "a file's name is empty") for args in EMPTY_NAMES),
    ],
)
def test_a_wrong_command_line_is_one_line(args, words, run):
    assert words in refused(run(*args))


@pytest.mark.parametrize("args", [["--help"], ["providers"], ["providers", "--json"]])
def test_a_reader_that_goes_away_ends_it_quietly(args):
    with subprocess.Popen(
        [sys.executable, "-m", "beluga_voice", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("args", [["--help"], ["providers"], ["providers", "--json"]])
def test_a_full_disk_below_the_standard_output_is_one_line(args):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "beluga_voice", *args]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert "standard output cannot be written (No space left" in refused((done.returncode, "", done.stderr))


@pytest.mark.skipif(os.name != "posix", reason="closes a descriptor by the shell")
@pytest.mark.parametrize("args", ["--help", "providers"])
def test_a_closed_standard_output_is_no_error(args):
    command = f'"{sys.executable}" -m beluga_voice {args} >&-'
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_keyboard_interrupt_is_exit_130_without_a_traceback(run, folder):
    config(folder, tts="cli_app:Stopped")
    code, out, err = run("say", "hello", "-o", "x.wav", "--config", "call.toml")
    assert (code, out, err.strip()) == (130, "", "")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_in_mid_sentence_is_exit_130_and_leaves_no_file(folder):
    config(folder, tts="cli_app:Endless")
    # Python ignores SIGINT where its parent did, as a job in the background does; here it must not.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from beluga_voice.cli import main\n"
        "sys.exit(main(['say', 'hello', '-o', 'x.wav', '--config', 'call.toml']))"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "speaking\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (out, err.strip()) == ("", "")
        assert process.returncode == 130
    assert [name for name in os.listdir() if "x.wav" in name] == []


# --- say -------------------------------------------------------------------------------------------------------------


def test_say_writes_the_speech(run, folder):
    code, out, err = run("say", "One two. Three four five.", "-o", "hello.wav", "--config", "call.toml")
    assert (code, err) == (0, "")
    assert out.startswith("hello.wav: 1.0 s of speech by tone")
    assert audio.read("hello.wav").duration_ms == 1_000.0


def test_say_takes_a_voice(run, folder):
    code, _, _ = run("say", "hi", "-o", "hi.flac", "--voice", "low", "--config", "call.toml")
    assert code == 0
    assert audio.read("hi.flac").duration_ms == 200.0


@pytest.mark.parametrize(
    ("text", "output", "words"),
    [
        (" ", "x.wav", "TEXT is empty"),
        ("caf\udce9", "x.wav", "TEXT is not written in the encoding of this terminal"),
        ("hi", "x.txt", "unknown ending 'txt'"),
        ("hi", "nowhere/x.wav", "cannot be written"),
        ("hi", "folder.wav", "is a directory"),
    ],
)
def test_say_refuses_what_it_cannot_write(text, output, words, run, folder):
    config(folder, tts="cli_app:Dumb")  # which would complain if it were asked
    (folder / "folder.wav").mkdir()
    assert words in refused(run("say", text, "-o", output, "--config", "call.toml"))
    assert [name for name in os.listdir() if "x." in name] == []


@pytest.mark.parametrize(("voice", "words"), [("Dumb", "RuntimeError: no voice"), ("Mute", "gave no sound for 2 letters")])
def test_a_voice_that_fails_is_one_line_and_no_file(voice, words, run, folder):
    config(folder, tts=f"cli_app:{voice}")
    assert words in refused(run("say", "hi", "-o", "x.wav", "--config", "call.toml"))
    assert not os.path.exists("x.wav")


def test_a_file_that_is_there_stays_as_it_was_when_the_voice_fails(run, folder):
    config(folder, tts="cli_app:Dumb")
    (folder / "x.wav").write_text("precious")
    refused(run("say", "hi", "-o", "x.wav", "--config", "call.toml"))
    assert (folder / "x.wav").read_text() == "precious"


def test_the_configuration_is_checked_like_anywhere(run, folder):
    (folder / "bad.toml").write_text("[tts]\nprovider = 'tone'\npitch = 3\n")
    assert "bad.toml:3: tts 'tone' has no option 'pitch'" in refused(
        run("say", "hi", "-o", "x.wav", "--config", "bad.toml")
    )
    assert "none.toml: no such file" in refused(run("say", "hi", "-o", "x.wav", "--config", "none.toml"))


def test_a_default_provider_that_is_missing_is_told_with_its_remedy(folder):
    """The remedy is to install it, or, where it is installed and left out, the variable that leaves it out."""
    done = subprocess.run(
        [sys.executable, "-m", "beluga_voice", "say", "hi", "-o", "x.wav"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "BELUGA_VOICE_PLUGINS": ""},
    )
    is_installed = importlib.util.find_spec("beluga_voice_espeak") is not None
    remedy = "BELUGA_VOICE_PLUGINS leaves out the plugin 'espeak'" if is_installed else "pip install beluga-voice-espeak"
    assert remedy in refused((done.returncode, done.stdout, done.stderr))


def test_a_voice_of_the_users_own_may_import_from_the_current_folder_when_it_speaks(folder):
    config(folder, tts="cli_app:Late")
    (folder / "cli_late.py").write_text("PITCH = b'\\x01\\x02'\n")
    command = [sys.executable, "-P", "-m", "beluga_voice", "say", "hi", "-o", "x.wav", "--config", "call.toml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert audio.read("x.wav").samples == 800


# --- transcribe ------------------------------------------------------------------------------------------------------


def test_transcribe_writes_the_text_of_a_short_file_heard_as_a_whole(run, folder):
    spoken("a.wav", [(1_000, 2_000), (3_000, 4_000)], 5_000, 8_000)
    assert run("transcribe", "a.wav", "--config", "call.toml") == (0, "5000ms@16000\n", "")


def test_transcribe_as_json_tells_segments_language_and_engine_time(run, folder):
    spoken("a.flac", [(1_000, 2_000)], 3_000)
    code, out, err = run("transcribe", "a.flac", "--json", "--config", "call.toml")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert (report["file"], report["duration_ms"], report["text"]) == ("a.flac", 3_000.0, "3000ms@16000")
    assert (report["language"], report["provider"]) == ("en", "Ears")
    assert report["engine_wall_ms"] >= 0
    (segment,) = report["segments"]
    assert segment["text"] == report["text"]
    assert abs(segment["start_ms"] - 1_000) <= 64
    assert abs(segment["end_ms"] - 2_000) <= 64


def test_transcribe_cuts_a_long_file_in_its_pauses(run, folder):
    speech = [(at * 10_000 + 1_000, at * 10_000 + 9_000) for at in range(5)]
    spoken("a.wav", speech, 50_000)
    _, out, _ = run("transcribe", "a.wav", "--json", "--config", "call.toml")
    report = json.loads(out)
    bounds = [(round(one["start_ms"], -3), round(one["end_ms"], -3)) for one in report["segments"]]
    assert bounds == [(1_000, 29_000), (31_000, 49_000)]
    assert report["text"] == " ".join(one["text"] for one in report["segments"])


def test_speech_up_to_the_end_of_the_file_is_heard(run, folder):
    spoken("a.wav", [(1_000, 1_500)], 1_500)
    _, out, _ = run("transcribe", "a.wav", "--json", "--config", "call.toml")
    assert json.loads(out)["segments"][0]["end_ms"] == 1_500.0


def test_silence_is_never_given_to_the_recogniser(run, folder):
    config(folder, stt="cli_app:Deaf")
    spoken("a.wav", [], 2_000)
    assert run("transcribe", "a.wav", "--config", "call.toml") == (0, "", "a.wav: no speech heard\n")
    code, out, _ = run("transcribe", "a.wav", "--json", "--config", "call.toml")
    assert (code, json.loads(out)["text"], json.loads(out)["segments"]) == (0, "", [])


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_what_a_recogniser_says_steers_no_terminal_and_fits_any(folder, encoding, more):
    config(folder, stt="cli_app:Rude")
    spoken("a.wav", [(500, 1_500)], 2_000)
    command = [sys.executable, "-m", "beluga_voice", "transcribe", "a.wav", "--config", "call.toml", *more]
    done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    assert not any(sign in done.stdout for sign in (b"\x1b", b"\x07"))
    assert b"red" in done.stdout
    if not more:
        assert done.stdout.count(b"\n") == 1


def test_a_recogniser_that_fails_is_one_line(run, folder):
    config(folder, stt="cli_app:Deaf")
    spoken("a.wav", [(500, 1_500)], 2_000)
    assert "RuntimeError: no ears" in refused(run("transcribe", "a.wav", "--config", "call.toml"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.wav", None, "no such file"),
        ("folder.wav", "directory", "is a directory"),
        ("empty.wav", b"", "empty"),
        ("text.wav", b"this is not audio at all", "not audio"),
        ("header.wav", b"RIFF\x24\x00\x00\x00WAVEfmt ", "not audio"),
        ("zero.wav", "zero rate", "zero.wav"),
        ("nothing.wav", "no samples", "no sound"),
    ],
)
def test_transcribe_refuses_what_is_no_sound(name, content, words, run, folder):
    path = folder / name
    if content == "directory":
        path.mkdir()
    elif content in ("zero rate", "no samples"):
        audio.write(path, audio.silence(0 if content == "no samples" else 100, 16_000))
        if content == "zero rate":
            data = bytearray(path.read_bytes())
            data[24:28] = bytes(4)
            path.write_bytes(data)
    elif content is not None:
        path.write_bytes(content)
    line = refused(run("transcribe", name, "--config", "call.toml"))
    assert name in line
    assert words in line


spans = st.lists(st.integers(50, 9_000), max_size=24).map(
    lambda steps: [(sum(steps[: at + 1]), sum(steps[: at + 2])) for at in range(0, len(steps) - 1, 2)]
)


@given(spans, st.integers(0, 5_000), st.sampled_from([5_000.0, 12_000.0, 30_000.0]))
def test_pieces_hold_all_speech_once_and_are_as_short_as_the_pauses_allow(speech, tail_ms, longest_ms):
    duration_ms = (speech[-1][1] if speech else 0) + tail_ms
    pieces = pieces_of(speech, duration_ms, longest_ms)
    held = [[span for span in speech if piece.from_ms <= span[0] and span[1] <= piece.to_ms] for piece in pieces]
    assert [span for group in held for span in group] == speech
    for piece, group in zip(pieces, held, strict=True):
        assert (piece.start_ms, piece.end_ms) == (group[0][0], group[-1][1])
        assert 0 <= piece.from_ms <= piece.to_ms <= duration_ms
        assert piece.to_ms - piece.from_ms <= longest_ms or len(group) == 1
    for before, after in pairwise(pieces):
        assert before.to_ms <= after.from_ms
        assert after.start_ms - after.from_ms <= MARGIN_MS
        assert before.to_ms - before.end_ms <= MARGIN_MS


def test_the_examples_of_the_docstrings_run():
    assert doctest.testmod(transcribe).failed == 0


# --- providers -------------------------------------------------------------------------------------------------------


def installed(folder, name, module, code):
    """A distribution with one plugin, installed for whoever has `folder` on its search path."""
    (folder / f"{module}.py").write_text(code)
    about = folder / f"{module}-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text(f"[beluga_voice]\n{name} = {module}\n")


GOOD = """
from beluga_voice import hookimpl
BELUGA_VOICE_API = 1
@hookimpl
def register_agent(register):
    register("echo", lambda **options: None, summary="another echo")
"""


def listing(folder, *args):
    env = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "80"}
    env.pop("BELUGA_VOICE_PLUGINS", None)
    done = subprocess.run(
        [sys.executable, "-m", "beluga_voice", "providers", *args], capture_output=True, text=True, check=False, env=env
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_providers_lists_what_is_installed_and_where_it_comes_from(run):
    code, out, err = run("providers", "--json")
    rows = {(row["kind"], row["name"]): row for row in json.loads(out)}
    assert (code, err) == (0, "")
    energy = rows["vad", "energy"]
    assert (energy["distribution"], energy["ok"], energy["why"]) == ("beluga-voice", True, "")
    assert "threshold" in [option["name"] for option in energy["options"]]
    assert {kind for kind, _ in rows} >= {"vad", "turn", "agent", "tts", "transport", "store", "processor"}


def test_a_broken_plugin_and_a_name_claimed_twice_are_shown_with_the_reason(tmp_path):
    installed(tmp_path, "sick", "sick_plugin", "import no_such_module_anywhere\n")
    installed(tmp_path, "other_echo", "other_echo_plugin", GOOD)
    rows = json.loads(listing(tmp_path, "--json"))
    (sick,) = [row for row in rows if row["distribution"] == "sick-plugin"]
    assert (sick["kind"], sick["name"], sick["version"], sick["ok"]) == (None, "sick", "1.2", False)
    assert "no_such_module_anywhere" in sick["why"]
    echoes = [row for row in rows if row["name"] == "echo"]
    assert [row["ok"] for row in echoes] == [False, False]
    assert any('write "other-echo-plugin:echo"' in row["why"] for row in echoes)


def test_the_table_fits_80_columns_and_tells_reasons_below(tmp_path):
    installed(tmp_path, "sick", "a_sick_plugin_with_quite_a_long_name_for_a_distribution", "raise OSError('x ' * 80)\n")
    out = listing(tmp_path)
    assert max(map(len, out.splitlines())) <= 80
    assert "energy" in out
    assert any(line.startswith("?") and line.rstrip().endswith("broken") for line in out.splitlines())
    assert "OSError: x x" in out
