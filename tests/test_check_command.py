"""`beluga-voice check`: a table at 80 columns, exit codes 0, 1 and 2, and never a traceback."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading

import pytest
from toy_service import KEY, ToyServer, ToySTT, audio_of

from beluga_voice import audio, cli
from beluga_voice._registry import registry

APP = """
import abc
import asyncio
import attrs
from beluga_voice import Audio, stt, tts
from beluga_voice.options import option
from beluga_voice.transport import Transport
from beluga_voice.frames import Transcript

class Deaf(stt.STT):
    async def transcribe(self, audio):
        return Transcript("")

class Broken(stt.STT):
    async def transcribe(self, audio):
        raise RuntimeError("no\\nears")

class Given_up(stt.STT):
    async def transcribe(self, audio):
        raise asyncio.CancelledError

class Stopped(stt.STT):
    async def transcribe(self, audio):
        raise KeyboardInterrupt

class Endless(tts.TTS):
    async def synthesize(self, text):
        print("speaking", flush=True)
        await asyncio.Event().wait()

async def reply(text, history):
    return text

@attrs.frozen
class Options(stt.Options):
    hears: str = option("", "what it says it hears")
    key: str = option("", "a secret", secret=True)

class Parrot(stt.STT):
    Options = Options
    def __init__(self, **options):
        self.options = Options(**options)
    async def transcribe(self, audio):
        return Transcript(self.options.hears)

class Plain(tts.TTS):
    def __init__(self, pitch=1):
        self.pitch = pitch
    async def synthesize(self, text):
        return await tts.new("tone").synthesize(text)

class Unready(tts.TTS):
    def __init__(self):
        raise OSError("no weights in /models")
    async def synthesize(self, text):
        pass

class Half(stt.STT):
    def transcribe(self, audio):
        pass
    @abc.abstractmethod
    def more(self):
        pass

class Line(Transport):
    async def recv(self):
        yield
    async def send(self, frame):
        pass
    def clear(self):
        pass
    async def aclose(self):
        pass
    def played_ms(self):
        return 0.0

shared = Parrot(hears="one two")
number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with the module `check_app`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TOY_API_KEY", raising=False)
    (tmp_path / "check_app.py").write_text(APP)
    sys.modules.pop("check_app", None)
    yield tmp_path
    sys.modules.pop("check_app", None)


@pytest.fixture
def run(folder, capsys):
    """Runs `check` with arguments: exit code, what it wrote, and its complaint."""

    def check(*args):
        code = cli.main(["check", *args])
        told = capsys.readouterr()
        return code, told.out, told.err

    return check


def file_with(folder, kind, provider):
    (folder / "call.toml").write_text(f'[{kind}]\nprovider = "{provider}"\n')
    return "--config", "call.toml"


class TestWhatItShows:
    def test_a_provider_that_passes(self, run):
        """Each check with its result and time, and how many there were."""
        code, out, err = run("tts", "tone")
        assert (code, err) == (0, "")
        lines = out.splitlines()
        assert re.fullmatch(r"CHECK +RESULT +MS", lines[0])
        assert re.fullmatch(r"texts are spoken +passed +[\d,]+", lines[1])
        assert re.search(r"^spoken however it is cut +not applicable +\d+\n    it takes whole sentences$", out, re.MULTILINE)
        assert lines[-1] == "tts tone: 14 passed, 3 not applicable"
        assert "money" not in out

    def test_a_provider_that_fails(self, run, folder):
        """What went wrong stands below the check, and the exit code tells."""
        code, out, err = run("stt", *file_with(folder, "stt", "check_app:Deaf"))
        assert (code, err) == (1, "")
        wanted = "    by its stream it hears ''; expected 'please bring a glass of water and a\n    slice of bread'"
        assert re.search(rf"^words are heard +failed +[\d,]+\n{re.escape(wanted)}$", out, re.MULTILINE)
        assert max(map(len, out.splitlines())) <= 80
        assert all(line == line.rstrip() for line in out.splitlines())

    def test_a_narrow_terminal(self, run, folder, monkeypatch):
        """Each check keeps its line, without its time."""
        monkeypatch.setenv("COLUMNS", "60")
        _, out, _ = run("turn", "silence")
        assert max(map(len, out.splitlines())) <= 60
        lines = out.splitlines()
        assert lines[0].split() == ["CHECK", "RESULT"]
        assert re.fullmatch(r"ends are proposed and withdrawn in order +passed", lines[4])

    def test_a_provider_that_raises(self, run, folder):
        """On one line, without a traceback; the next check is run all the same."""
        code, out, _ = run("stt", *file_with(folder, "stt", "check_app:Broken"))
        assert code == 1
        assert "    RuntimeError: no ears" in out
        assert "Traceback" not in out
        assert "the key is never told" in out

    def test_one_reason_for_many_checks_is_told_once(self, run, folder):
        """A service that cannot be reached fails every check in the same words."""
        _, out, _ = run("stt", *file_with(folder, "stt", "check_app:Broken"))
        assert out.count("    RuntimeError: no ears") == 2  # before and after one check that words it otherwise
        assert re.search(r"^each finalize is answered once +failed +[\d,]+\n    as above$", out, re.MULTILINE)

    def test_a_provider_that_raises_what_nobody_catches(self, run, folder):
        code, out, _ = run("stt", *file_with(folder, "stt", "check_app:Given_up"), "--only", "words are heard")
        assert code == 1
        assert "    CancelledError" in out

    def test_only_one_check(self, run):
        code, out, _ = run("vad", "energy", "--only", "each stream is fresh")
        assert code == 0
        assert len(out.splitlines()) == 4
        assert out.endswith("\nvad energy: 1 passed\n")

    @pytest.mark.parametrize(
        ("kind", "name"), [("vad", "energy"), ("turn", "silence"), ("agent", "echo"), ("agent", "rules"), ("store", "memory")]
    )
    def test_what_ships_inside_passes(self, run, kind, name):
        assert run(kind, name)[0] == 0

    def test_a_transport(self, run):
        """Without a person at the other end what needs one does not apply."""
        code, out, _ = run("transport", "memory", "--only", "hanging up ends recv")
        assert code == 0
        assert "nobody at the other end can hang up" in out


class TestOptions:
    @pytest.mark.parametrize("option", ["sample_rate_hz=8000", "voice=anna", 'voice="anna"', "word_ms=150.5"])
    def test_are_toml_values_or_texts(self, run, option):
        assert run("tts", "tone", "--option", option, "--only", "texts are spoken")[0] == 0

    def test_reach_the_provider(self, run):
        """A rate that it refuses."""
        code, _, err = run("tts", "tone", "--option", "sample_rate_hz=1")
        assert (code, err.count("\n")) == (2, 1)
        assert "option 'sample_rate_hz' is 1; expected 8000 to 48000" in err

    def test_audio_and_its_words(self, run, folder):
        """What is said in a file of one's own; the recogniser hears otherwise."""
        audio.write("said.wav", audio_of("one two"))
        given = (*file_with(folder, "stt", "check_app:Deaf"), "--audio", "said.wav", "--words", "one two")
        assert "it hears ''; expected 'one two'" in run("stt", *given)[1]


class TestAnEngineOfOnesOwn:
    """By module and class, before it is registered anywhere."""

    def test_it_is_made_with_its_options(self, run):
        audio.write("said.wav", audio_of("one two"))
        given = ("--option", "hears=one two", "--audio", "said.wav", "--words", "one two")
        code, out, err = run("stt", "check_app:Parrot", *given, "--only", "words are heard")
        assert (code, err) == (0, "")
        assert out.splitlines()[-1] == "stt Parrot: 1 passed"

    def test_what_fails_is_told_as_of_any(self, run):
        code, out, err = run("stt", "check_app:Deaf", "--only", "words are heard")
        assert (code, err) == (1, "")
        assert "it hears ''" in out

    def test_what_is_made_already(self, run):
        audio.write("said.wav", audio_of("one two"))
        given = ("--audio", "said.wav", "--words", "one two", "--only", "words are heard")
        assert run("stt", "check_app:shared", *given)[0] == 0

    def test_a_class_without_an_options_class(self, run):
        assert run("tts", "check_app:Plain", "--option", "pitch=2", "--only", "texts are spoken")[0] == 0

    def test_a_line_of_ones_own(self, run):
        code, out, err = run("transport", "check_app:Line", "--only", "hanging up ends recv")
        assert (code, err) == (0, "")
        assert out.splitlines()[-1] == "transport Line: 1 not applicable"

    @pytest.mark.parametrize(
        ("args", "told"),
        [
            (("stt", "chek_app:Deaf"), "no module is called 'chek_app'. Did you mean 'check_app'? Looked in "),
            (("stt", "check_app:Daef"), "'check_app' has no attribute 'Daef'; did you mean 'Deaf'?"),
            (("stt", "check_app.Deaf"), "no stt is called 'check_app.Deaf'"),
            (("stt", "check_app.Deaf"), "One of your own is written \"check_app:Deaf\"."),
            (("stt", "check_app:"), "expected \"module:attribute\""),
            (("stt", "check_app:Plain"), "'check_app:Plain' is of type Plain, which is no stt; expected a stt.STT"),
            (("stt", "check_app:number"), "'check_app:number' is of type int, which is no stt"),
            (("transport", "check_app:Deaf"), "is of type Deaf, which is no transport"),
            (("stt", "check_app:Half"), "stt 'check_app:Half' cannot be made: TypeError: Can't instantiate abstract class"),
            (("tts", "check_app:Unready"), "tts 'check_app:Unready' cannot be made: OSError: no weights in /models"),
            (("stt", "check_app:Parrot", "--option", "haers=one"), "stt 'check_app:Parrot' has no option 'haers'; did you"),
            (("stt", "check_app:Parrot", "--option", "hears=1"), "option 'hears' is 1 (int); expected str"),
            (("stt", "check_app:Parrot", "--option", "key=5"), "option 'key' is *** (int)"),
            (("tts", "check_app:Plain", "--option", "ptich=2"), "cannot be made: TypeError: Plain.__init__() got an"),
            (("stt", "check_app:Deaf", "--option", "voice=a"), "cannot be made: TypeError: Deaf() takes no arguments"),
            (("stt", "check_app:shared", "--option", "haers=x"), "has no option 'haers'"),
            (("agent", "check_app:reply"), "is a function of your own"),
            (("agent", "check_app:reply", "--option", "a=1"), "takes no options, but is given option 'a'"),
        ],
    )
    def test_what_is_wrong_with_it_is_one_line(self, run, args, told):
        code, out, err = run(*args)
        assert (code, out) == (2, "")
        assert told in err
        assert err.startswith("beluga-voice: ")
        assert err.count("\n") == 1

    def test_a_module_that_does_not_import(self, run, folder):
        (folder / "check_bad.py").write_text("import no_such_thing\n")
        (folder / "check_worse.py").write_text("def (\n")
        assert "module 'check_bad' needs 'no_such_thing', which is not installed" in run("stt", "check_bad:X")[2]
        assert "module 'check_worse' does not import: SyntaxError" in run("stt", "check_worse:X")[2]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("stt", "moonshnie"), "no stt is called 'moonshnie'"),
        (("ears", "moonshine"), "'ears' is not one of 'stt'"),
        (("tts",), "give the provider's NAME, or --config FILE"),
        (("tts", "tone", "--config", "call.toml"), "and not both"),
        (("tts", "tone", "--option", "pitch_hz"), "expected KEY=VALUE"),
        (("tts", "tone", "--option", "pich_hz=3"), "did you mean 'pitch_hz'"),
        (("tts", "tone", "--only", "nothing"), "tts has no check called 'nothing'; there are: texts are spoken, "),
        (("tts", "tone", "--audio", "said.wav"), "--audio is for stt, vad, s2s"),
        (("vad", "energy", "--words", "one"), "--words goes with --audio"),
        (("stt", "moonshine", "--words", "one"), "--words goes with --audio"),
        (("vad", "energy", "--audio", "said.wav"), "said.wav: no such file"),
        (("tts", "--config", "none.toml"), "none.toml"),
        (("tts", "--config", "call.toml", "--option", "voice=a"), "--option goes with a NAME"),
        (("transport", "--config", "call.toml"), "a configuration file has no [transport]"),
        (("transport", "file"), "needs the option 'input'"),
        (("agent", "--config", "call.toml"), "is a function of your own"),
        (("stt", "toy"), "stt 'toy' has no key; set the environment variable TOY_API_KEY"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(run, folder, toy, args, told):
    file_with(folder, "agent", "check_app:reply")
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1


# --- providers of a service ------------------------------------------------------------------------------------------


@pytest.fixture
def toy():
    """The recogniser "toy" by name, and its service in a thread; the service's address."""
    registry.add("stt", "toy", ToySTT, distribution="toys")
    address, stop = [], threading.Event()
    up = threading.Event()

    async def serve():
        async with ToyServer(api_key=KEY) as server:
            address.append(server.url)
            up.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    up.wait()
    yield address[0]
    stop.set()
    thread.join()
    del registry._providers["stt"]["toy"]


@pytest.fixture
def toy_args(toy, folder):
    audio.write("said.wav", audio_of("one two"))
    return "stt", "toy", "--option", f"base_url={toy}", "--audio", "said.wav", "--words", "one two"


def test_a_service_is_called_with_the_key_of_the_environment(run, toy_args, monkeypatch):
    """What it will use is told before; the key is not."""
    monkeypatch.setenv("TOY_API_KEY", KEY)
    code, out, err = run(*toy_args, "--only", "each finalize is answered once")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "toy may cost money: all checks send up to 0.9 minutes of audio."
    code, out, err = run(*toy_args, "--only", "the key is never told")
    assert (code, err) == (0, "")
    assert KEY not in out


def test_a_service_that_refuses_the_key(run, toy_args):
    code, out, err = run(*toy_args, "--option", "api_key=another-secret", "--only", "words are heard")
    assert (code, err) == (1, "")
    assert "AuthError: stt 'toy', opening the stream: HTTP 401" in " ".join(out.split())
    assert "another-secret" not in out


# --- interrupted -----------------------------------------------------------------------------------------------------


def test_ctrl_c_in_a_check(run, folder):
    """Whatever was shown stays; nothing is told of the interrupted one."""
    code, out, err = run("stt", *file_with(folder, "stt", "check_app:Stopped"))
    assert code == 130
    assert "Traceback" not in out + err
    assert "passed" not in out


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise there")
def test_ctrl_c_from_outside_ends_it_at_once(folder):
    """A provider that never answers."""
    # Python ignores SIGINT where its parent did, as a job in the background does; here it must not.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from beluga_voice.cli import main\n"
        f"sys.exit(main({['check', 'tts', *file_with(folder, 'tts', 'check_app:Endless')]}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.stdout.readline() != "speaking\n":
        pass
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in out + err


def test_a_reader_that_goes_away_ends_it_quietly(folder):
    command = f"{sys.executable} -m beluga_voice check turn silence | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.stderr) == (["CHECK", "RESULT", "MS"], "")
