"""`beluga-voice talk`: a whole call over a recorded caller, or over one made on the spot."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, contextmanager
from typing import Any

import attrs
import click

from .. import audio, config, transport
from ..builtin.file_transport import FileTransport
from ..clock import Clock, run_simulated
from ..errors import BelugaVoiceError, ConfigError, SessionError
from ..events import SessionEvent
from ..session import Session
from ..tts import TTS
from ._caller import caller
from ._files import file
from ._live import REFRESH_MS, Display, new_display, turns_table
from ._report import NewFile, bill, engines, fault, printable, report, to_text
from ._timeline import draw, loudness

__all__ = ["talk"]

OWN_OUTPUT = "beluga-voice-talk.wav"
PLAYERS = ("afplay", "paplay", "pw-play", "aplay", "ffplay", "play")
FAILED, INTERRUPTED = 1, 130


@attrs.define(eq=False)
class Call:
    """One call: what was asked for, and what became of it."""

    setup: config.Config
    input: str
    output: str
    config_path: str | None
    fast: bool
    events: list[SessionEvent] = attrs.field(factory=list)
    display: Display | None = None
    session: Session | None = None
    position_ms: float = 0.0


@click.command()
@click.argument("input_path", type=file, metavar="[INPUT]", required=False)
@click.option("-o", "--output", type=file, help="Both sides of the call in stereo: caller left, agent right.")
@click.option("--config", "config_path", type=file, help="Which providers, as TOML; without it the embedded ones.")
@click.option("--report", "report_path", type=file, help="Write turns, latencies and events as JSON.")
@click.option("--timeline", "timeline_path", type=file, help="Draw the call as SVG.")
@click.option("--fast", is_flag=True, help="As fast as it goes: time is the audio's, and engines cost none of it.")
def talk(
    input_path: str | None,
    output: str | None,
    config_path: str | None,
    report_path: str | None,
    timeline_path: str | None,
    fast: bool,
) -> int:
    """Hold a whole call over INPUT, the recording of a caller (WAV, FLAC, OGG or MP3).

    Without INPUT the agent's own voice asks three questions, and the call goes to beluga-voice-talk.wav or where -o says.

    The exit code is 1 where the call broke off, or something failed and no turn of the caller's was answered; the fallback is
    no answer. It is 2 where the call could not begin, and 130 after Ctrl-C.
    """
    if input_path is None and output is None:
        output = OWN_OUTPUT
    _keep_apart({"INPUT": input_path, "--config": config_path}, output, report_path, timeline_path)
    setup = config.load(config_path) if config_path else config.default()
    remote = [f"{engine.kind} {engine.name!r}" for engine in engines(setup.chain) if engine.account]
    if fast and remote:
        what = f"{', '.join(remote)}: services take real time"
        raise ConfigError(f"{what}; leave out --fast, or name engines that run here")
    with ExitStack() as stack:
        told = stack.enter_context(NewFile(report_path)) if report_path else None
        drawn = stack.enter_context(NewFile(timeline_path)) if timeline_path else None
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="beluga-voice-"))
        sound = output or (os.path.join(folder, "call.wav") if drawn else "")
        call = Call(setup, input_path or os.path.join(folder, "caller.wav"), sound, config_path, fast)
        interrupted = _hold(call, own_caller=input_path is None)
        if call.session is not None and call.display is not None:
            clock = "audio" if fast else "wall"
            facts = report(call.session, call.events, clock, call.position_ms)
            facts = {**facts, "input": input_path, "output": output, "providers": dict(setup.names)}
            if told:
                told.write(to_text(facts))
            if drawn:
                drawn.write(draw(facts, *(loudness(sound) if os.path.exists(sound) else ((), ()))))
            _show_end(call, facts, output, report_path, timeline_path)
    if interrupted:
        return INTERRUPTED
    failure = _failure(call)
    if failure:
        click.echo(printable(f"beluga-voice: {failure}"), err=True)
    return FAILED if failure else 0


def _failure(call: Call) -> str:
    """What made the call a failure; empty where nothing did."""
    errors = [event for event in call.events if event.name == "error"]
    if call.session is not None and call.session.end_reason == "error":
        return f"the call broke off: {fault(errors[-1]) if errors else 'session: see the log'}"
    # A speech-to-speech model is the one to tell of turns: without it there are none.
    of_turns = [event for event in errors if event.turn >= 0 or getattr(event.data["error"], "kind", "") == "s2s"]
    heard = [event.data["record"].heard_text for event in call.events if event.name == "turn_finished"]
    if of_turns and all(call.setup.session.fallback.startswith(text) for text in heard):
        return f"no turn was answered: {fault(of_turns[0])}"
    return ""


def _keep_apart(read: Mapping[str, str | None], *written: str | None) -> None:
    """Refuse to write one file twice, or over what is read."""
    taken = {os.path.realpath(path): f"{path} is {name} too" for name, path in read.items() if path}
    for path in filter(None, written):
        real = os.path.realpath(path)
        clash = taken.get(real) or next((why for one, why in taken.items() if _same_file(one, real)), None)
        if clash:
            raise ConfigError(f"{path} cannot be written: {clash}; choose another place")
        taken[real] = "it is named twice"


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.isfile(other) and os.path.samefile(one, other)
    except OSError:
        return False


def _hold(call: Call, *, own_caller: bool) -> bool:
    """Hold the call, showing it; True when Ctrl-C ended it.

    Raises:
        BelugaVoiceError: the call could not begin; nothing was written.
    """
    run = run_simulated if call.fast else asyncio.run
    try:
        run(_converse(call, own_caller))
        return False
    except KeyboardInterrupt:
        return True
    except BelugaVoiceError:
        raise
    except Exception as error:
        raise SessionError(f"the call failed: {type(error).__name__}: {error}") from error
    finally:
        if call.display is not None:
            call.display.close()


async def _converse(call: Call, own_caller: bool) -> None:
    clock = Clock()
    async with AsyncExitStack() as stack:
        if own_caller:
            stage = call.setup.chain.stage("tts")
            engine = stage.engine if stage is not None else None
            voice: TTS = engine if isinstance(engine, TTS) else config.engine("tts", call.config_path)
            await stack.enter_async_context(voice)
            audio.write(call.input, await caller(voice, call.setup.session.greeting))
        line = transport.new("file", input=call.input, output=call.output)
        assert isinstance(line, FileTransport)
        stack.callback(line.discard)
        call.display = new_display(sys.stdout, line.audio.duration_ms, sys.stdout.isatty())
        listeners = (call.events.append, call.display.on_event)
        stack.enter_context(_showing_faults(call.display))
        stack.enter_context(_refreshing(call, line, clock))
        session = Session(call.setup.chain, line, call.setup.session, listeners=listeners, clock=clock)
        try:
            await session.run()
        finally:
            if any(event.name == "opened" for event in call.events):
                call.session = session


@contextmanager
def _refreshing(call: Call, line: FileTransport, clock: Clock) -> Iterator[None]:
    """Keep the display up to date while the call lasts."""
    timer: asyncio.TimerHandle

    def tick() -> None:
        nonlocal timer
        assert call.display is not None
        call.position_ms = line.position_ms
        call.display.refresh(line.position_ms)
        timer = clock.call_later_ms(REFRESH_MS, tick)

    timer = clock.call_later_ms(0, tick)
    try:
        yield
    finally:
        timer.cancel()
        call.position_ms = line.position_ms


class _FaultHandler(logging.Handler):
    """Shows faults that are logged; warnings come as events too and are left out."""

    def __init__(self, display: Display) -> None:
        super().__init__(logging.ERROR)
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        why = record.exc_info[1] if record.exc_info else None
        told = record.getMessage() + (f": {type(why).__name__}: {why}" if why else "")
        self._display.print(f"fault: {printable(told)}")


@contextmanager
def _showing_faults(display: Display) -> Iterator[None]:
    handler = _FaultHandler(display)
    logger = logging.getLogger("beluga_voice")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _show_end(
    call: Call, facts: Mapping[str, Any], output: str | None, report_path: str | None, timeline_path: str | None
) -> None:
    """The table of turns, and where everything went."""
    assert call.display is not None
    show, console = call.display.print, call.display.console
    records = [event.data["record"] for event in call.events if event.name == "turn_finished"]
    show("")
    if records:
        show(turns_table(records, console.width))
    else:
        show("No turn: nobody was heard to say anything.")
    turns = "1 turn" if len(records) == 1 else f"{len(records)} turns"
    lasted = f"{call.position_ms / 1000:.1f} s, {turns}, ended by {facts['end_reason']!r}"
    if call.fast:
        lasted += "; times are the audio's, where engines take none"
    show(lasted)
    for name, work in facts["engines"].items():
        show(f"{name} itself: {work['calls']} calls, {work['busy_ms']:.0f} ms of work")
    for used in bill(call.session.usage if call.session is not None else ()):
        show(f"used: {used}")
    counted = ", ".join(f"{name} {count:g}" for name, count in facts["counters"].items() if count)
    if counted:
        show(f"counted: {counted}")
    if output and os.path.exists(output):
        player = _player()
        hear = f"hear it: {player} {output}" if player else "hear it with any player"
        show(f"The call: {output} (caller left, agent right); {hear}")
    if report_path:
        show(f"The report: {report_path}")
    if timeline_path:
        show(f"The picture: {timeline_path} (any web browser shows it)")
    if call.display.failure is not None:
        raise call.display.failure


def _player() -> str:
    """A command that plays a sound file here; empty if none is found."""
    if sys.platform == "win32":
        return "start"
    return next((name for name in PLAYERS if shutil.which(name)), "")
