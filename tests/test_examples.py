"""The README and the pages of docs/ are true: their files, code and commands run here and say what the pages show.

How a page is read, in order, in an empty folder and a virtual environment of its own:

- a block under a line that is only a file's name, like "`call.toml`:", is written to that file
- other Python blocks are run, sharing their names, in simulated time; a `text` block straight after is what one prints
- `console` blocks are run, command by command; lines after a command are what it prints, "..." stands for anything
- other TOML blocks must load; `sh` blocks (set-up from nothing) are not run

By hand: python tests/test_examples.py docs/how-to/turn-taking.md
The option tables of the configuration page: python tests/test_examples.py --options
"""

from __future__ import annotations

import asyncio
import contextlib
import doctest
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import venv
from importlib import metadata
from pathlib import Path

import pytest

from beluga_voice import Chain, Session, agent, config, errors, processor, state, stt, transport, tts, turn, vad
from beluga_voice.clock import Clock, SimulatedLoop, run_simulated
from beluga_voice.events import SessionEvent
from beluga_voice.frames import DTMF, ToolCalled, ToolReturned
from beluga_voice.hybrid import Hybrid, HybridOptions
from beluga_voice.options import describe
from beluga_voice.resilience import ResilienceOptions
from beluga_voice.server import ServerOptions
from beluga_voice.settings import BargeInOptions, SessionOptions
from beluga_voice.testing import LoudVAD, ScriptedSTT, hold, quiet, speech
from beluga_voice.testing.scripted_s2s import ScriptedS2S
from beluga_voice.tts import TTS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EMBEDDED = {"beluga-voice-silero", "beluga-voice-moonshine", "beluga-voice-espeak", "beluga-voice-piper"}
INSTALLED = {dist.name for dist in metadata.distributions()}
BLOCK = re.compile(r"(?:^`(?P<file>[\w./-]+)`:\n+)?^```(?P<kind>\w+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
REFUSED = "beluga-voice: "
COMMANDS = {"pip": "pip", "pytest": "pytest", "beluga-voice": "beluga_voice"}
NO_NETWORK = ("No matching distribution found for hatchling", "Failed to establish a new connection", "ConnectionError")


def name_of(page):
    return str(page.relative_to(ROOT))


needs_embedded = pytest.mark.skipif(not EMBEDDED <= INSTALLED, reason="the embedded plugins are not all installed")


# --- running a page --------------------------------------------------------------------------------------------------


class SimulatedTime(asyncio.DefaultEventLoopPolicy):
    """`asyncio.run` in a page does not wait."""

    def new_event_loop(self):
        return SimulatedLoop()


def run_page(page):
    """Do in the current folder all that the page shows.

    Raises:
        AssertionError: something gives another result than the page shows.
    """
    asyncio.set_event_loop_policy(SimulatedTime())
    text = page.read_text("utf-8")
    names = {"__name__": "__main__"}
    sys.path.insert(0, os.getcwd())
    printed, printed_to = "", -1
    for block in BLOCK.finditer(text):
        kind, body = block["kind"], block["body"]
        where = f"{page.name}:{text.count(chr(10), 0, block.start('body')) + 1}"
        if block["file"]:
            file = Path(block["file"])
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(body, encoding="utf-8")
        elif kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(body, where, "exec"), names)
            printed, printed_to = out.getvalue(), block.end()
        elif kind == "text" and not text[printed_to : block.start()].strip() and printed_to > 0:
            check_output(where, body, printed)
        elif kind == "console":
            run_commands(where, body)
        elif kind == "toml":
            config.loads(body, where)


def run_commands(where, body):
    """Run the lines that begin with "$ " and compare what they print with the lines that follow."""
    for shown in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        command, _, expected = shown.partition("\n")
        done = subprocess.run(shlex.split(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        wanted = 2 if expected.startswith(REFUSED) else 0
        assert done.returncode == wanted, f"{where}: `{command}` ended with {done.returncode}:\n{done.stdout}"
        if expected.strip():
            check_output(f"{where}: `{command}`", expected, done.stdout)


def check_output(where, expected, got):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    same = doctest.OutputChecker().check_output(expected, got, flags)
    assert same, f"{where} gives\n{got}\nthe page shows\n{expected}"


def environment(folder):
    """A virtual environment that has all that this one has, and room of its own; the variables to use it with."""
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    site = next(folder.glob("lib/python*/site-packages"))
    lent = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (site / "lent.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in lent))
    for command, module in COMMANDS.items():
        script = folder / "bin" / command
        script.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m {module} "$@"\n')
        script.chmod(0o755)
    given = {name: value for name, value in os.environ.items() if name not in ("BELUGA_VOICE_PLUGINS", "PYTHONPATH")}
    given |= {f"{vendor}_API_KEY": "no-real-key" for vendor in ("DEEPGRAM", "OPENAI", "GROQ", "ELEVENLABS")}
    return {**given, "PATH": f"{folder}/bin{os.pathsep}{os.environ['PATH']}", "COLUMNS": "100", "NO_COLOR": "1"}


@needs_embedded
@pytest.mark.skipif(os.name == "nt", reason="the pages' commands are for a Unix shell")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_shows_is_so(page, tmp_path):
    """Files, code and commands of the page, in order, as a reader would do it."""
    if "$ pip " in page.read_text("utf-8") and importlib.util.find_spec("pip") is None:
        pytest.skip("the page installs something, and there is no pip")
    work = tmp_path / "work"
    work.mkdir()
    variables = environment(tmp_path / "venv")
    python = str(tmp_path / "venv" / "bin" / "python")
    done = subprocess.run(
        [python, __file__, str(page)], cwd=work, env=variables, capture_output=True, text=True, timeout=300
    )
    if any(sign in done.stderr for sign in NO_NETWORK):
        pytest.skip("the page builds a package, and the build backend cannot be fetched here")
    assert done.returncode == 0, done.stderr[-6_000:]


# --- what every page keeps to ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    """A link inside the repository names a file that is there."""
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_only_set_up_is_not_run(page):
    """What this file does not run is pip, venv and the example of `test_cloud_example.py`; nothing is left without a kind."""
    text = page.read_text("utf-8")
    fences = re.findall(r"^```(\w*)$", text, re.MULTILINE)
    assert set(fences[::2]) <= {"python", "toml", "console", "sh", "text"}
    commands = [line for block in BLOCK.finditer(text) if block["kind"] == "sh" for line in block["body"].splitlines()]
    elsewhere = r"(\S*/)?(pip install|python3.11 -m venv|python examples/on_loopback.py)( |$)"
    assert [line for line in commands if not re.match(elsewhere, line)] == []


class TestReadme:
    LINES = (ROOT / "README.md").read_text("utf-8").splitlines()
    SET_UP = [line for line in LINES if line.startswith("python3.11 -m venv")]

    def test_is_quick_about_it(self):
        """The first install stands by line 25, the first Python by line 40."""
        assert next(number for number, line in enumerate(self.LINES, 1) if "pip install" in line) <= 25
        assert self.LINES.index("```python") + 1 <= 40

    def test_first_command_installs_all_that_is_embedded_and_talks(self):
        """It installs the core and every embedded plugin from this repository, then runs `talk`."""
        first = self.SET_UP[0].split()
        assert {f"./plugins/{name.removeprefix('beluga-voice-')}" for name in EMBEDDED} <= set(first)
        assert "." in first
        assert self.SET_UP[0].endswith("beluga-voice talk")

    def test_second_command_is_the_one_the_checks_run(self):
        """`.ci/run` runs the same line."""
        assert self.SET_UP[1] in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()


# --- reference pages -------------------------------------------------------------------------------------------------


def option_table(options):
    """The options as Markdown."""
    rows = ["| option | type | default | meaning |", "|---|---|---|---|"]
    for one in options:
        default = "required" if one.required else f"`{_toml(one.default)}`"
        choices = f"; one of {', '.join(f'`{_toml(choice)}`' for choice in one.choices)}" if one.choices else ""
        rows.append(f"| `{one.name}` | {one.type} | {default} | {one.doc}{choices} |")
    return "\n".join(rows)


def _toml(value):
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, (bool, str)):
        return str(value).lower() if isinstance(value, bool) else f'"{value}"'
    return f"{value:g}" if isinstance(value, float) else str(value)


def titled_tables():
    """The title that each table of options has in the configuration page, and the table."""
    session = [one for one in describe(SessionOptions) if one.name != "barge_in"]
    yield "`[session]`", option_table([*session, *describe(config.ManagerOptions)])
    yield "`[barge_in]`", option_table(describe(BargeInOptions))
    yield "`[resilience]`", option_table(describe(ResilienceOptions))
    yield "`[hybrid]`", option_table(describe(HybridOptions))
    yield "`[server]`", option_table(describe(ServerOptions))
    for kind in (vad, turn, stt, agent, tts, processor):
        for name in kind.names():
            told = kind.describe(name)
            if told.options and told.distribution in {"beluga-voice", *EMBEDDED}:
                title = f"`[[processor]]`: {name}" if kind is processor else f"`[{told.kind}]`: {name}"
                yield title, option_table(told.options)


@needs_embedded
class TestConfigurationPage:
    TEXT = (ROOT / "docs" / "how-to" / "configuration.md").read_text("utf-8")

    def test_has_every_option(self):
        """Each table of options is that of `describe`, under its title."""
        for title, table in titled_tables():
            assert f"\n### {title}\n\n{table}\n" in self.TEXT

    def test_has_no_other_table(self):
        """No table stands for something that is not installed any more."""
        assert re.findall(r"^### (.*)$", self.TEXT, re.MULTILINE) == [title for title, _ in titled_tables()]


def test_states_page_shows_the_table():
    """Every move between states, as the code prints them."""
    assert f"```text\n{state.table()}\n```" in (ROOT / "docs" / "reference" / "states.md").read_text("utf-8")


class TestErrorsPage:
    TEXT = (ROOT / "docs" / "reference" / "errors.md").read_text("utf-8")

    def test_shows_the_tree(self):
        """The tree is the one in the module's docstring, and holds every error there is."""
        tree = errors.__doc__.split("::\n\n")[1].split("\n\nA message")[0]
        lines = [line.removeprefix("    ") for line in tree.splitlines()]
        assert "```text\n" + "\n".join(lines) + "\n```" in self.TEXT
        assert [name for name in errors.__all__ if name not in tree] == []

    def test_explains_every_error(self):
        """Each class has a line that says what to do."""
        explained = set(re.findall(r"^\| `(\w+)` \|", self.TEXT, re.MULTILINE))
        assert explained == set(errors.__all__) - {"BelugaVoiceError", "PluginError", "ConfigError", "SessionError"}


class Sick(TTS):
    """A service that cannot be reached, and then refuses the key."""

    account = "sick@home"
    calls = 0

    async def synthesize_stream(self, texts):
        async for _ in texts:
            self.calls += 1
            raise errors.ConnectFailedError("no network") if self.calls == 1 else errors.AuthError("no such key")
        yield


def happenings():
    """The events of conversations in which everything happens."""

    async def long(text, history):
        yield "This answer is long enough to be spoken into by a caller who has something else to say."

    async def failing(text, history):
        yield ToolCalled("1", "clock")
        await asyncio.sleep(2)
        yield ToolReturned("1", "noon")
        raise ValueError("no idea")

    def chain(agent, *texts):
        return Chain(LoudVAD(), turn.new("silence"), ScriptedSTT(*texts), agent, tts.new("tone"))

    asked = quiet(500) + speech(1_000)
    quick = SessionOptions(final_timeout_ms=0)
    calls = [
        hold(chain(long, "one"), asked + quiet(2_500) + speech(1_000) + quiet(3_000)),
        hold(chain(long, "one"), asked + quiet(2_500) + speech(100) + quiet(3_000)),
        hold(chain(long, "one", "two"), asked + quiet(720) + speech(1_000) + quiet(3_000)),
        hold(chain(long, "one"), asked + quiet(500) + speech(1_000) + quiet(2_000)),
        hold(chain(long, ""), asked + quiet(2_000)),
        hold(chain(failing, "one"), asked + quiet(4_000)),
        hold(
            Chain(LoudVAD(), turn.new("silence"), ScriptedSTT("one", delay_ms=900), long, tts.new("tone")), asked, quick
        ),
    ]
    model = Chain(LoudVAD(), ScriptedS2S(lambda text: ["yes"]))
    calls.append(hold(Hybrid(cascade=chain(long, "one"), s2s=model, policy=lambda _: "cascade"), asked + quiet(4_000)))
    sick = tts.failover(Sick(), tts.new("tone"))
    calls.append(hold(Chain(LoudVAD(), turn.new("silence"), ScriptedSTT("one"), long, sick), asked + quiet(2_500)))
    for call in calls:
        yield from call.events
    yield from run_simulated(moving(chain(long, "one")))


async def moving(chain):
    """The events of a call in which the caller presses a key, loses the line and comes back, and the process goes away."""
    told = []
    line = transport.new("memory")
    session = Session(chain, line, listeners=[told.append])
    Clock().call_later_ms(100, line.push, DTMF("5"))
    Clock().call_later_ms(300, line.lose)
    running = asyncio.create_task(session.run())
    await Clock().sleep_ms(500)
    await session.reattach(transport.new("memory"))
    await Clock().sleep_ms(500)
    session.drain(1_000)
    await running
    return told


class TestEventsPage:
    TEXT = (ROOT / "docs" / "reference" / "events.md").read_text("utf-8")

    def test_names_every_event_and_what_it_carries(self):
        """Names and data are those of real calls."""
        rows = re.findall(r"^\| `(\w+)` \|[^|]+\|([^|]*)\|$", self.TEXT.partition("## TurnRecord")[0], re.MULTILINE)
        shown = {name: set(re.findall(r"`(\w+)`", data)) for name, data in rows}
        seen = {}
        for event in happenings():
            seen.setdefault(event.name, set()).update(event.data)
        assert shown == seen

    def test_has_every_name_that_the_code_states(self):
        """The docstring of `SessionEvent` and the page agree."""
        stated = set(re.findall(r'"(\w+)"', SessionEvent.__doc__))
        shown = set(re.findall(r"^\| `(\w+)` \|", self.TEXT, re.MULTILINE))
        assert stated <= shown


def main(argument):
    """Run one page, or print what belongs into the configuration page."""
    if argument == "--options":
        print("\n\n".join(f"### {title}\n\n{table}" for title, table in titled_tables()))
        return
    page = Path(argument).resolve()
    with contextlib.ExitStack() as stack:
        if Path.cwd() == ROOT:
            stack.enter_context(contextlib.chdir(stack.enter_context(tempfile.TemporaryDirectory())))
        run_page(page)


if __name__ == "__main__":
    main(sys.argv[1])
