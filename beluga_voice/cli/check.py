"""`beluga-voice check`: does a provider keep the promises of its kind?"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import textwrap
import tomllib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import attrs
import click
from rich.text import Text

from .. import audio, config
from .._contracts import new
from ..audio import Audio
from ..builtin.memory_store import MemoryStore
from ..clock import wall_ms
from ..engine import Engine
from ..errors import BelugaVoiceError, ConfigError, OptionError
from ._files import file
from ._live import BAD, FAINT, PLAIN_WIDTH, PipeConsole
from ._report import printable

__all__ = ["check"]

KINDS = ("stt", "tts", "vad", "turn", "agent", "s2s", "transport", "store")
OF_A_FILE = ("stt", "tts", "vad", "turn", "agent", "s2s", "store")
WITH_AUDIO = ("stt", "vad", "s2s")
WITH_WORDS = ("stt", "s2s")
WITH_KEY = ("stt", "tts", "agent", "s2s")
FAILED = 1
INDENT = " " * 4
NAME_WIDTH, RESULT_WIDTH, MS_WIDTH = 42, 14, 9
STYLES = {"passed": "green", "failed": BAD, "not applicable": FAINT}

Run = Callable[[str], Coroutine[Any, Any, dict[str, str]]]


@attrs.frozen
class Result:
    """What became of a check: "passed", "failed" or "not applicable", in ms of wall time, and why."""

    name: str
    state: str
    took_ms: float
    why: str = ""


@attrs.frozen
class Suite:
    """The checks of a kind, bound to a provider: `run(name)` runs one of them."""

    title: str
    names: tuple[str, ...]
    run: Run
    price: str


@click.command()
@click.argument("kind", type=click.Choice(KINDS), metavar="KIND")
@click.argument("name", metavar="[NAME]", required=False)
@click.option(
    "--option", "options", multiple=True, metavar="KEY=VALUE", help="An option of the provider; more than one may be given."
)
@click.option(
    "--config", "config_path", type=file, help="Check what the kind's table in this configuration makes, instead of NAME."
)
@click.option(
    "--audio", "audio_path", type=file, help="What stt, s2s and vad are to hear; a recorded sentence if left out."
)
@click.option("--words", help="What is said in the audio.")
@click.option("--only", metavar="CHECK", help="Run this one check.")
def check(
    kind: str,
    name: str | None,
    options: tuple[str, ...],
    config_path: str | None,
    audio_path: str | None,
    words: str | None,
    only: str | None,
) -> int:
    """Check that a provider keeps the promises of its KIND.

    KIND is one of stt, tts, vad, turn, agent, s2s, transport and store. NAME is the provider's, or module:Class for one of your
    own that is not registered yet. Exit code 0 when every check that applies to it passes, 1 when one fails.
    """
    make = _maker(kind, name, _parsed(options), config_path)
    suite = _suite(kind, make, _heard(kind, audio_path, words))
    if only is not None and only not in suite.names:
        raise ConfigError(f"{kind} has no check called {only!r}; there are: {', '.join(suite.names)}")
    console = _console(suite)
    results: list[Result] = []
    for one in suite.names:
        if only in (None, one):
            result = _result(console, suite, one)
            before = next((earlier.why for earlier in reversed(results) if earlier.state == result.state), "")
            _show(console, result, before)
            results.append(result)
    count = Counter(result.state for result in results)
    told = ", ".join(f"{count[state]} {state}" for state in STYLES if count[state])
    console.print(Text(f"\n{suite.title}: {told}", BAD if count["failed"] else ""))
    return FAILED if count["failed"] else 0


# --- what is checked -------------------------------------------------------------------------------------------------


def _parsed(given: tuple[str, ...]) -> dict[str, Any]:
    """Options as TOML has them; what is no TOML value is a text, so that quotes may be left out."""
    options = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not equals or not key:
            raise OptionError(f"--option {one!r}; expected KEY=VALUE, like --option language=de")
        try:
            options[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            options[key] = value
    return options


def _maker(kind: str, name: str | None, options: dict[str, Any], config_path: str | None) -> Callable[[], Any]:
    """What gives a new one each time."""
    if (name is None) == (config_path is None):
        raise ConfigError("give the provider's NAME, or --config FILE, and not both")
    if config_path is None:
        return lambda: _made(kind, str(name), options)
    if options:
        raise ConfigError("--option goes with a NAME; with --config the file's own options count")
    if kind not in OF_A_FILE:
        raise ConfigError(f"a configuration file has no [{kind}]; give the provider's NAME")
    return lambda: config.engine(kind, config_path)


def _made(kind: str, name: str, options: Mapping[str, Any]) -> Any:
    """What the name stands for: a provider, or a class of the user's own.

    Raises:
        BelugaVoiceError: nothing that can be checked.
    """
    try:
        return new(kind, name, options, [os.getcwd()])
    except BelugaVoiceError:
        raise
    except Exception as error:
        raise ConfigError(f"{kind} {name!r} cannot be made: {type(error).__name__}: {error}") from error


def _heard(kind: str, audio_path: str | None, words: str | None) -> dict[str, Any]:
    """The arguments `audio` and `words` of a suite."""
    if audio_path is not None and kind not in WITH_AUDIO:
        raise ConfigError(f"--audio is for {', '.join(WITH_AUDIO)}; {kind} hears nothing")
    if words is not None and (kind not in WITH_WORDS or audio_path is None):
        raise ConfigError(f"--words goes with --audio, for {' and '.join(WITH_WORDS)}")
    if audio_path is None:
        return {}
    if words is None and kind in WITH_WORDS:
        raise ConfigError(f"--audio {audio_path} says something: tell it with --words")
    sound = audio.read(audio_path)
    return {"audio": sound} if words is None else {"audio": sound, "words": words}


def _suite(kind: str, make: Callable[[], Any], heard: Mapping[str, Any]) -> Suite:
    """The kind's checks. One is made here, so that what is wrong with it is told before any check."""
    made = make()
    if kind not in ("transport", "store") and not isinstance(made, Engine):
        raise ConfigError(f"this {kind} is a function of your own; the checks are for providers")
    module = importlib.import_module(f"..testing.{kind}_checks", __package__)
    run_suite, given, subject = getattr(module, f"check_{kind}"), dict(heard), make
    access = getattr(made, "access", None)
    if access is not None and kind in WITH_KEY:
        given["canary"] = access.api_key
    if kind == "transport":
        subject = _line(make)
    elif isinstance(made, MemoryStore):  # which keeps what it is given in itself
        subject = lambda: made  # noqa: E731

    async def run(check: str) -> dict[str, str]:
        left_out: dict[str, str] | None = await run_suite(subject, check, **given)
        return left_out or {}

    name = getattr(made, "name", "") or getattr(made, "provider", "") or type(made).__name__
    price = _price(kind, module, given.get("audio")) if getattr(made, "account", "") else ""
    return Suite(f"{kind} {name}", tuple(module.CHECKS), run, price and f"{name} may cost money: {price}.\n")


def _line(make: Callable[[], Any]) -> Callable[[], Any]:
    from ..testing.transport_checks import Line

    @asynccontextmanager
    async def line() -> AsyncIterator[Line]:
        yield Line(make())

    return line


def _price(kind: str, module: Any, sound: Audio | None) -> str:
    """How much a whole run uses."""
    from ..testing.checking import sentence

    minutes = (sound or sentence()).duration_ms / 60_000.0
    if kind == "stt":
        return f"all checks send up to {module.AUDIO_COST * minutes:.1f} minutes of audio"
    if kind == "tts":
        return f"all checks have up to {module.TEXTS_COST * len(' '.join(module.TEXTS)):,} characters spoken"
    if kind == "agent":
        return f"all checks ask up to {module.QUESTIONS_COST} short questions, some of them after a long history"
    if kind == "s2s":
        said = f"{module.AUDIO_COST * minutes:.1f} minutes of speech"
        return f"all checks say up to {said} and get {module.REPLIES_COST} short replies"
    return "what all checks use is not known"


# --- how it is shown -------------------------------------------------------------------------------------------------


def _console(suite: Suite) -> PipeConsole:
    console = PipeConsole(file=sys.stdout, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = min(console.width, PLAIN_WIDTH)
    if suite.price:
        console.print(Text(suite.price))
    console.print(_row(console, "CHECK", "RESULT", "MS", "bold"))
    return console


def _row(console: PipeConsole, name: str, result: str, took_ms: str, style: str = "") -> Text:
    """A line of the table; a narrow terminal has no room for the times."""
    row = Text(f"{name:{NAME_WIDTH}}", style, end="")
    row.append(f"{result:{RESULT_WIDTH}}", style or STYLES[result])
    if console.width >= NAME_WIDTH + RESULT_WIDTH + MS_WIDTH:
        row.append(f"{took_ms:>{MS_WIDTH}}", style)
    row.rstrip()
    return row


def _result(console: PipeConsole, suite: Suite, name: str) -> Result:
    """Run one check, in an event loop of its own, so that what it leaves behind harms no other."""
    began_ms = wall_ms()
    with console.status(f"{name} ...") if console.is_terminal else nullcontext():
        try:
            left_out = asyncio.run(suite.run(name))
            state, why = ("not applicable", left_out[name]) if name in left_out else ("passed", "")
        except AssertionError as error:
            state, why = "failed", str(error)
        except (Exception, asyncio.CancelledError) as error:
            state, why = "failed", f"{type(error).__name__}: {error}"
    return Result(name, state, wall_ms() - began_ms, why)


def _show(console: PipeConsole, result: Result, before: str) -> None:
    """One check; `before` is why the last one of the same result came out so, which is not told twice in full."""
    console.print(_row(console, result.name, result.state, f"{result.took_ms:,.0f}"))
    if result.why:
        told = "as above" if result.why == before else printable(result.why)
        why = textwrap.fill(told, console.width - 1, initial_indent=INDENT, subsequent_indent=INDENT)
        console.print(Text(why, STYLES[result.state]))
