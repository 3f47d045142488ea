"""What every turn detector must do, as checks that run against any of them.

In a plugin's tests, one test for each check:

    @pytest.mark.parametrize("check", CHECKS)
    def test_is_a_turn_detector(check):
        asyncio.run(check_turn(lambda: turn.new("silence"), check))

>>> from beluga_voice import turn
>>> from beluga_voice.clock import run_simulated
>>> run_simulated(check_turn(lambda: turn.new("silence"), "a turn ends once after it"))
{}
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from ..clock import wall_ms
from ..frames import (
    Frame,
    SpeechEnded,
    SpeechProbability,
    SpeechStarted,
    SpeechSuspected,
    Transcript,
    TurnEnded,
    TurnEndProposed,
    TurnEndWithdrawn,
)
from ..turn import TurnDetector, TurnStream
from . import engine_checks
from .checking import Trial, Use, expect, handle_of, run_checks

__all__ = ["CHECKS", "check_turn", "spoken"]

WINDOW_MS = 32.0
SURE_MS, HANGOVER_MS, PREROLL_MS = 96.0, 256.0, 300.0
LONGEST_QUIET_MS = 10_000.0  # after which any turn is over
LONG_MS = 30_000.0
HOLD_MS = 20.0
TEXT = "I would like to book a table for two."

Trialled = Trial[TurnDetector]


async def check_turn(make: Callable[[], TurnDetector], only: str = "") -> dict[str, str]:
    """Run all checks, or the one called `only`.

    Args:
        make: gives a turn detector; called anew for each check.
        only: a name of `CHECKS`.

    Returns:
        The checks that did not apply to it, and why.

    Raises:
        AssertionError: the detector breaks a promise; the message tells which.
    """

    async def stream(engine: TurnDetector, size: int) -> list[Frame]:
        async with handle_of(engine) as handle:
            turns = handle.stream()
            decided: list[Frame] = []
            for frame in spoken([(800.0, LONGEST_QUIET_MS)] * size):
                decided += turns.feed(frame)
                await asyncio.sleep(0)
            return decided

    uses: dict[str, Use] = {"stream": stream}
    return await run_checks(CHECKS, Trial(make, uses), only)


def spoken(parts: Sequence[tuple[float, float]], *, at_ms: float = 0.0, lead_ms: float = 960.0) -> Iterator[Frame]:
    """What a turn detector is fed of a caller who speaks and is quiet: `parts` of (speech, quiet), in ms.

    Args:
        parts: how long each speech and the quiet after it last.
        at_ms: where the line is.
        lead_ms: the quiet before the first of them.
    """
    now_ms = at_ms
    for _ in range(round(lead_ms / WINDOW_MS)):
        yield SpeechProbability(0.02, now_ms, WINDOW_MS)
        now_ms += WINDOW_MS
    for speech_ms, quiet_ms in parts:
        start_ms = now_ms
        for count in range(max(1, round(speech_ms / WINDOW_MS))):
            yield SpeechProbability(0.97, now_ms, WINDOW_MS)
            now_ms += WINDOW_MS
            if count == 1:
                yield SpeechSuspected(now_ms, start_ms)
            if count == round(SURE_MS / WINDOW_MS) - 1:
                yield SpeechStarted(now_ms, start_ms, max(0.0, start_ms - PREROLL_MS))
        end_ms = now_ms
        for count in range(round(quiet_ms / WINDOW_MS)):
            yield SpeechProbability(0.02, now_ms, WINDOW_MS)
            now_ms += WINDOW_MS
            if count == round(HANGOVER_MS / WINDOW_MS) - 1:
                yield SpeechEnded(now_ms, end_ms)
                yield Transcript(TEXT, closes=True)


def _decided(stream: TurnStream, frames: Iterator[Frame] | Sequence[Frame]) -> list[Frame]:
    return [decided for frame in frames for decided in stream.feed(frame)]


def _ends(decided: Sequence[Frame]) -> list[TurnEnded]:
    return [frame for frame in decided if isinstance(frame, TurnEnded)]


# --- checks ----------------------------------------------------------------------------------------------------------


async def _a_turn_ends_once_after_it(trial: Trialled) -> None:
    async with trial.make() as engine, handle_of(engine) as handle:
        stream = handle.stream()
        at_ms = 0.0
        for nth in ("first", "second", "third"):
            frames = list(spoken([(1_600.0, LONGEST_QUIET_MS)], at_ms=at_ms))
            ends = _ends(_decided(stream, frames))
            expect(
                len(ends) == 1,
                f"the {nth} turn, then {LONGEST_QUIET_MS:,.0f} ms of quiet, end {len(ends)} times; expected once",
            )
            start_ms = next(frame.speech_start_ms for frame in frames if isinstance(frame, SpeechStarted))
            end_ms = next(frame.speech_end_ms for frame in frames if isinstance(frame, SpeechEnded))
            got = ends[0].speech_start_ms, ends[0].speech_end_ms
            expect(got == (start_ms, end_ms), f"TurnEnded places the {nth} speech at {got}; expected {(start_ms, end_ms)}")
            last_ms = next(frame.end_ms for frame in reversed(frames) if isinstance(frame, SpeechProbability))
            expect(
                end_ms <= ends[0].at_ms <= last_ms, f"TurnEnded is placed at {ends[0].at_ms} ms; expected {end_ms} to {last_ms}"
            )
            expect(ends[0].source, "TurnEnded has no source; expected who decided it")
            at_ms = last_ms


async def _quiet_is_no_turn(trial: Trialled) -> None:
    async with trial.make() as engine, handle_of(engine) as handle:
        decided = _decided(handle.stream(), spoken([], lead_ms=LONG_MS))
        expect(not decided, f"{LONG_MS:,.0f} ms of quiet bring {decided[:1]!r}; expected nothing")
        cough = [(WINDOW_MS, 2_000.0)]  # too short to be speech
        frames = [frame for frame in spoken(cough) if isinstance(frame, SpeechProbability)]
        decided = _decided(handle.stream(), frames)
        expect(not decided, f"a cough brings {decided[:1]!r}; expected nothing")


async def _no_turn_ends_in_its_speech(trial: Trialled) -> None:
    async with trial.make() as engine, handle_of(engine) as handle:
        decided = _decided(handle.stream(), spoken([(LONG_MS, 0.0)]))
        expect(not _ends(decided), f"speech of {LONG_MS:,.0f} ms is ended in its midst: {_ends(decided)[:1]!r}")
        expect(not decided, f"in speech it decides {decided[:1]!r}; expected nothing before a pause")
        pauses = [(600.0, 32.0)] * 20  # between words
        decided = _decided(handle.stream(), spoken(pauses))
        expect(not _ends(decided), "speech with pauses of 32 ms between its words is ended in its midst")


async def _ends_are_proposed_and_withdrawn_in_order(trial: Trialled) -> None:
    async with trial.make() as engine, handle_of(engine) as handle:
        for pause_ms in (96.0, 288.0, 480.0, 640.0, 960.0, 2_000.0):
            stream, proposed = handle.stream(), False
            for frame in _decided(stream, spoken([(800.0, pause_ms), (800.0, pause_ms), (800.0, LONGEST_QUIET_MS)])):
                told = f"with pauses of {pause_ms:.0f} ms: {type(frame).__name__}"
                if isinstance(frame, TurnEndProposed):
                    expect(not proposed, f"{told} after one that was neither withdrawn nor followed by TurnEnded")
                elif isinstance(frame, TurnEndWithdrawn):
                    expect(proposed, f"{told} without a proposal before it")
                else:
                    expect(isinstance(frame, TurnEnded), f"{told}; expected TurnEndProposed, TurnEndWithdrawn or TurnEnded")
                proposed = isinstance(frame, TurnEndProposed)
            expect(not proposed, f"with pauses of {pause_ms:.0f} ms a proposed end is left open")


async def _end_now_ends_what_was_said(trial: Trialled) -> None:
    async with trial.make() as engine, handle_of(engine) as handle:
        stream = handle.stream()
        nothing = stream.end_now("push")
        expect(nothing is None, f"end_now before any speech gives {nothing!r}; expected None")
        _decided(stream, spoken([(1_600.0, 100.0)]))
        ended = stream.end_now("push")
        if ended is None:
            raise AssertionError("end_now after speech gives None; expected TurnEnded")
        expect(ended.source == "push", f"end_now('push') gives the source {ended.source!r}; expected 'push'")
        expect(ended.speech_start_ms >= 0.0, f"end_now places no speech: {ended!r}")
        quiet = spoken([], at_ms=3_000.0, lead_ms=LONGEST_QUIET_MS)
        again = _ends(_decided(stream, [SpeechEnded(3_000.0, 2_700.0), *quiet]))
        expect(len(again) <= 1, f"after end_now, and quiet, it ends {len(again)} turns; expected one at most, of what went on")
        ends = _ends(_decided(stream, spoken([(800.0, LONGEST_QUIET_MS)], at_ms=20_000.0)))
        expect(len(ends) == 1, f"a turn after end_now ends {len(ends)} times; expected once")


async def _streams_are_apart(trial: Trialled) -> None:
    async with trial.make() as engine, handle_of(engine) as handle:
        speaking, silent = handle.stream(), handle.stream()
        of_both: tuple[list[Frame], list[Frame]] = ([], [])
        for one, other in zip(spoken([(800.0, LONGEST_QUIET_MS)]), spoken([], lead_ms=LONGEST_QUIET_MS)):
            of_both[0].extend(speaking.feed(one))
            of_both[1].extend(silent.feed(other))
        alone = _decided(handle.stream(), list(spoken([(800.0, LONGEST_QUIET_MS)])))
        expect(of_both[0] == alone, "beside another line a turn is decided otherwise than alone")
        expect(not of_both[1], f"on a quiet line beside another it decides {of_both[1][:1]!r}; expected nothing")


async def _feed_is_quick(trial: Trialled) -> None:
    """The shortest of three tries counts, so that a busy machine is not taken for the detector."""
    async with trial.make() as engine, handle_of(engine) as handle:
        tries = []
        for _ in range(3):
            stream, longest_ms = handle.stream(), 0.0
            for frame in spoken([(800.0, 2_000.0)]):
                began_ms = wall_ms()
                tuple(stream.feed(frame))
                longest_ms = max(longest_ms, wall_ms() - began_ms)
            tries.append(longest_ms)
    expect(min(tries) <= HOLD_MS * 2, f"feed holds the event loop for {min(tries):.0f} ms; expected {HOLD_MS:.0f} ms at most")


CHECKS: dict[str, Callable[[Any], Awaitable[None]]] = {
    "a turn ends once after it": _a_turn_ends_once_after_it,
    "quiet is no turn": _quiet_is_no_turn,
    "no turn ends in its speech": _no_turn_ends_in_its_speech,
    "ends are proposed and withdrawn in order": _ends_are_proposed_and_withdrawn_in_order,
    "end_now ends what was said": _end_now_ends_what_was_said,
    "streams are apart": _streams_are_apart,
    "feed is quick": _feed_is_quick,
    **engine_checks.CHECKS,
}
