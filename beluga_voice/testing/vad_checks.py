"""What every voice activity detector must do, as checks that run against any of them.

In a plugin's tests, one test for each check:

    @pytest.mark.parametrize("check", CHECKS)
    def test_is_a_vad(check):
        asyncio.run(check_vad(lambda: vad.new("silero"), check))

>>> from beluga_voice import vad
>>> from beluga_voice.clock import run_simulated
>>> run_simulated(check_vad(lambda: vad.new("energy"), "speech stands out of quiet"))
{}
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from typing import Any

import attrs

from ..audio import Audio, Rechunker, resample, silence
from ..chain import Chain
from ..clock import Clock
from ..engine import Context
from ..frames import AudioIn, Frame, SpeechEnded, SpeechProbability, SpeechStarted
from ..vad import VAD
from . import engine_checks
from .checking import STOP_MS, Trial, Use, cut_evenly, cut_unevenly, expect, handle_of, in_time, run_checks, sentence

__all__ = ["CHECKS", "check_vad"]

QUIET_MS = 1_000.0
NEAR = 0.02  # by which two probabilities of the same sound may differ: sums are rounded differently in other batches
WINDOW_WAIT_MS = 20.0  # a line waits for each window
EDGE_MS = 400.0  # by which the start and end of speech may be off
OTHER_RATES_HZ = (8_000, 24_000, 44_100)


@attrs.frozen
class _Detecting(Trial[VAD]):
    """A detector on trial."""

    audio: Audio = attrs.field(kw_only=True)


async def check_vad(make: Callable[[], VAD], only: str = "", *, audio: Audio | None = None) -> dict[str, str]:
    """Run all checks, or the one called `only`.

    Args:
        make: gives a detector; called anew for each check.
        only: a name of `CHECKS`.
        audio: what it is to take for speech, from its beginning to its end; a recorded sentence if left out.

    Returns:
        The checks that did not apply to it, and why.

    Raises:
        AssertionError: the detector breaks a promise; the message tells which.
    """
    sound = audio or sentence()

    async def stream(engine: VAD, size: int) -> list[float]:
        said = [silence(QUIET_MS, 16_000), sound, silence(QUIET_MS, 16_000), sound][: size + 1]
        async with handle_of(engine) as handle:
            return await _probabilities(handle, said)

    uses: dict[str, Use] = {"stream": stream}
    return await run_checks(CHECKS, _Detecting(make, uses, _near, audio=sound), only)


def _near(one: list[float], other: list[float]) -> bool:
    return len(one) == len(other) and all(abs(first - second) <= NEAR for first, second in zip(one, other))


def _windows(engine: VAD, sounds: list[Audio]) -> list[bytes]:
    rate_hz, samples = engine.capabilities.sample_rate_hz, engine.capabilities.window_samples
    cut = Rechunker(samples)
    return [window for sound in sounds for window in cut.feed(resample(sound, rate_hz).pcm)]


async def _probabilities(engine: VAD, sounds: list[Audio]) -> list[float]:
    with closing(engine.stream()) as stream:
        return [await in_time(stream.probability(window), "a probability") for window in _windows(engine, sounds)]


# --- checks ----------------------------------------------------------------------------------------------------------


async def _speech_stands_out_of_quiet(trial: _Detecting) -> None:
    async with trial.make() as engine, handle_of(engine) as handle:
        quiet = silence(QUIET_MS, trial.audio.sample_rate_hz)
        window_ms = engine.capabilities.window_samples * 1000.0 / engine.capabilities.sample_rate_hz
        got = await _probabilities(handle, [quiet, trial.audio, quiet])
    for probability in got:
        expect(0.0 <= probability <= 1.0, f"a probability is {probability}; expected 0..1")
    threshold = getattr(engine.options, "threshold", 0.5)

    def loud(from_ms: float, to_ms: float) -> float:
        part = got[round(from_ms / window_ms) : round(to_ms / window_ms)]
        return sum(probability >= threshold for probability in part) / len(part)

    ends_ms = QUIET_MS + trial.audio.duration_ms
    share = loud(0.0, QUIET_MS)
    expect(share == 0.0, f"{share:.0%} of the windows of silence are speech to it; expected none")
    share = loud(QUIET_MS, ends_ms)
    expect(share >= 0.5, f"{share:.0%} of the windows of speech are speech to it; expected half of them or more")
    share = loud(ends_ms + EDGE_MS, ends_ms + QUIET_MS)
    expect(share == 0.0, f"{share:.0%} of the windows of silence after speech are speech to it; expected none")


async def _each_stream_is_fresh(trial: _Detecting) -> None:
    async with trial.make() as engine:
        first, second = [await trial.use(engine, 1) for _ in range(2)]
    expect(_near(first, second), "the same sound, on a new stream, has other probabilities than before; expected a fresh start")


async def _no_line_waits_for_another(trial: _Detecting) -> None:
    clock = Clock()
    async with trial.make() as engine, handle_of(engine) as handle:
        with closing(handle.stream()), closing(handle.stream()) as stream:
            waits_ms = []
            for window in _windows(engine, [trial.audio]):
                asked_ms = clock.now_ms()
                await in_time(stream.probability(window), "a probability, while another line is quiet", STOP_MS)
                waits_ms.append(clock.now_ms() - asked_ms)
    middle_ms = sorted(waits_ms)[len(waits_ms) // 2]
    expect(
        middle_ms < WINDOW_WAIT_MS, f"a window takes {middle_ms:.0f} ms while another line is quiet; expected no waiting for it"
    )


async def _closing_one_disturbs_no_other(trial: _Detecting) -> None:
    async with trial.make() as engine, handle_of(engine) as handle:
        alone = await _probabilities(handle, [trial.audio])
        got = []
        with closing(handle.stream()) as stream:
            for at, window in enumerate(_windows(engine, [trial.audio])):
                other = handle.stream()
                asking = asyncio.ensure_future(stream.probability(window))
                leaving = asyncio.ensure_future(other.probability(window))
                await asyncio.sleep(0)
                if at % 2:
                    leaving.cancel()
                other.close()
                got.append(await in_time(asking, "a probability, while another line is closed"))
                await in_time(asyncio.wait([leaving]), "the end of a window whose line was closed", STOP_MS)
                if not leaving.cancelled():
                    leaving.exception()  # a closed line may be told so
                other.close()
    expect(_near(got, alone), "while other lines are closed the probabilities are others than alone")


async def _speech_is_found_however_the_line_is_cut(trial: _Detecting) -> None:
    """On lines of several rates, in frames of any length."""
    for rate_hz in (trial.audio.sample_rate_hz, *OTHER_RATES_HZ):
        quiet = silence(QUIET_MS, rate_hz).pcm
        sound = Audio(quiet + resample(trial.audio, rate_hz).pcm + quiet, rate_hz)
        for how, pieces in (("20 ms", cut_evenly(sound, 20.0)), ("uneven", cut_unevenly(sound))):
            async with trial.make() as engine:
                spans = await in_time(_spans(engine, pieces), "the end of a line")
            what = f"at {rate_hz} Hz in {how} frames"
            expect(spans, f"{what} it finds no speech")
            ends_ms = QUIET_MS + trial.audio.duration_ms
            off_ms = max(abs(spans[0][0] - QUIET_MS), abs(spans[-1][1] - ends_ms))
            expect(off_ms <= EDGE_MS, f"{what} it finds speech at {spans}; expected {QUIET_MS:.0f} to {ends_ms:.0f} ms")


async def _spans(engine: VAD, pieces: list[Audio]) -> list[tuple[float, float]]:
    """Where speech starts and ends on a line."""

    async def frames() -> AsyncIterator[Frame]:
        at_ms = 0.0
        for piece in pieces:
            yield AudioIn(piece.pcm, rate_hz, at_ms)
            at_ms += piece.duration_ms

    rate_hz = pieces[0].sample_rate_hz
    starts, ends, counted_ms = [], [], 0.0
    chain = Chain(engine)
    async with Context(input_rate_hz=rate_hz) as context, chain.process(context.feed(frames()), context) as out:
        async for frame in out:
            if isinstance(frame, SpeechStarted):
                starts.append(frame.speech_start_ms)
            elif isinstance(frame, SpeechEnded):
                ends.append(frame.speech_end_ms)
            elif isinstance(frame, SpeechProbability):
                expect(abs(frame.at_ms - counted_ms) < 1.0, f"a window is placed at {frame.at_ms} ms; expected {counted_ms} ms")
                counted_ms = frame.end_ms
    return list(zip(starts, ends))


CHECKS: dict[str, Callable[[Any], Awaitable[None]]] = {
    "speech stands out of quiet": _speech_stands_out_of_quiet,
    "each stream is fresh": _each_stream_is_fresh,
    "no line waits for another": _no_line_waits_for_another,
    "closing one disturbs no other": _closing_one_disturbs_no_other,
    "speech is found however the line is cut": _speech_is_found_however_the_line_is_cut,
    **engine_checks.CHECKS,
}
