"""What every transport must do, as checks that run against any of them.

A line has two ends: the checks hold the session's, and need hands for the person's. In a plugin's tests:

    @asynccontextmanager
    async def line():
        made = transport.new("memory")
        yield Line(made, speak=made.speak, hang_up=made.hang_up, lose=made.lose)

    @pytest.mark.parametrize("check", CHECKS)
    def test_is_a_transport(check):
        run_simulated(check_transport(line, check))
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import attrs

from ..audio import BYTES_PER_SAMPLE, Audio, resample
from ..clock import Clock
from ..errors import LineLost, TransportClosed
from ..events import SessionEvent
from ..frames import AudioIn, AudioOut, Frame
from ..transport import Transport
from .checking import STOP_MS, Leftovers, NotApplicable, cut_evenly, expect, in_time, run_checks, sentence

__all__ = ["CHECKS", "Line", "check_transport"]

FRAME_MS = 20.0
STEP_MS = 200.0  # how exactly a line may know what was played
PLAY_MS = 1_000.0
FAR_MS = 5_000.0  # for what is said to arrive at the other end of a line

Do = Callable[..., Any]


@attrs.frozen
class Line:
    """A transport and the person at its other end.

    Attributes:
        transport: as a session is given it.
        speak: the person says PCM at the transport's input rate; None: nobody can, and what needs it does not apply.
        hang_up: the person hangs up.
        lose: the line breaks, and stays broken.
    """

    transport: Transport
    speak: Do | None = None
    hang_up: Do | None = None
    lose: Do | None = None


Make = Callable[[], AbstractAsyncContextManager[Line]]


async def check_transport(make: Make, only: str = "") -> dict[str, str]:
    """Run all checks, or the one called `only`.

    Args:
        make: gives an async context manager that gives a new line, and takes down what it put up.
        only: a name of `CHECKS`.

    Returns:
        The checks that did not apply to it, and why.

    Raises:
        AssertionError: the transport breaks a promise; the message tells which.
    """
    return await run_checks(CHECKS, make, only)


async def _do(action: Do | None, what: str, *given: Any) -> None:
    if action is None:
        raise NotApplicable(f"nobody at the other end can {what}")
    done = action(*given)
    if inspect.isawaitable(done):
        await in_time(done, f"the end of what makes the other end {what}")


class _Reading:
    """A line that is read, beside what else is done with it: what came, and how it ended."""

    def __init__(self, line: Transport) -> None:
        self.frames: list[Frame] = []
        self.task = asyncio.create_task(self._read(line), name="reading the line")

    async def _read(self, line: Transport) -> None:
        async for frame in line.recv():
            self.frames.append(frame)

    @property
    def heard(self) -> bytes:
        """The sound that came."""
        return b"".join(frame.pcm for frame in self.frames if isinstance(frame, AudioIn))

    async def end(self, what: str, limit_ms: float = FAR_MS) -> BaseException | None:
        """How the reading ended, once it has."""
        await in_time(asyncio.wait([self.task]), f"the end of recv after {what}", limit_ms)
        return None if self.task.cancelled() else self.task.exception()


@asynccontextmanager
async def _opened(make: Make) -> AsyncIterator[tuple[Line, _Reading]]:
    """A line that is open and read; closed and seen out in the end."""
    async with make() as line:
        reading = _Reading(line.transport)
        try:
            await Clock().sleep_ms(10 * FRAME_MS)
            if reading.task.done() and (error := reading.task.exception()) is not None:
                raise error
            yield line, reading
        finally:
            await in_time(line.transport.aclose(), "the end of aclose", FAR_MS)
            reading.task.cancel()
            await in_time(asyncio.wait([reading.task]), "the end of recv after it was cancelled", STOP_MS)


def _sound(line: Transport, duration_ms: float) -> bytes:
    """Some of the recorded sentence, at the rate of what the line sends."""
    pcm = resample(sentence(), line.output_rate_hz).pcm
    return pcm[: round(duration_ms * line.output_rate_hz / 1000.0) * BYTES_PER_SAMPLE]


async def _send(line: Transport, duration_ms: float) -> None:
    for piece in cut_evenly(Audio(_sound(line, duration_ms), line.output_rate_hz), FRAME_MS):
        await in_time(line.send(AudioOut(piece.pcm, line.output_rate_hz)), "the end of send", FAR_MS)


# --- checks ----------------------------------------------------------------------------------------------------------


async def _nothing_opens_before_recv(make: Make) -> None:
    async with make() as line:
        before = Leftovers()
        played_ms = line.transport.played_ms
        expect(played_ms == 0.0, f"before it is opened played_ms is {played_ms}; expected 0")
        line.transport.clear()
        await before.expect_no_more("it was made")
        await in_time(line.transport.aclose(), "the end of aclose of a line that was never opened", FAR_MS)


async def _what_is_said_arrives_in_order(make: Make) -> None:
    async with _opened(make) as (line, reading):
        rate_hz = line.transport.input_rate_hz
        said = resample(sentence(), rate_hz).pcm[: rate_hz * BYTES_PER_SAMPLE]  # a second
        await _do(line.speak, "speak", said)
        clock = Clock()
        for _ in range(round(FAR_MS / FRAME_MS)):
            if said in reading.heard:
                break
            await clock.sleep_ms(FRAME_MS)
        expect(said in reading.heard, f"of {len(said)} bytes said, in {len(reading.heard)} heard not all came, as they were")
        for frame in reading.frames:
            if isinstance(frame, AudioIn):
                expect(frame.sample_rate_hz == rate_hz, f"audio of {frame.sample_rate_hz} Hz came; input_rate_hz is {rate_hz}")
                expect(frame.at_ms < 0, f"audio is placed at {frame.at_ms} ms; the session counts, a transport leaves it out")
                whole = len(frame.pcm) % BYTES_PER_SAMPLE == 0
                expect(whole, f"audio of {len(frame.pcm)} bytes came; expected whole samples of {BYTES_PER_SAMPLE} bytes")


async def _played_counts_what_was_played(make: Make) -> None:
    async with _opened(make) as (line, _):
        transport, clock = line.transport, Clock()
        expect(transport.played_ms == 0.0, f"before anything is sent played_ms is {transport.played_ms}; expected 0")
        await _send(transport, PLAY_MS)
        before_ms = 0.0
        for _ in range(round(FAR_MS / FRAME_MS)):
            played_ms = transport.played_ms
            expect(
                before_ms <= played_ms <= PLAY_MS + 1.0, f"played_ms goes from {before_ms} to {played_ms}, of {PLAY_MS} ms sent"
            )
            before_ms = played_ms
            await clock.sleep_ms(FRAME_MS)
        expect(
            abs(before_ms - PLAY_MS) <= 1.0, f"of {PLAY_MS} ms sent {before_ms} ms were played; expected all, by its own count"
        )


async def _playing_takes_its_time(make: Make) -> None:
    async with _opened(make) as (line, _):
        await _send(line.transport, PLAY_MS)
        played_ms = line.transport.played_ms
        expect(
            played_ms < PLAY_MS / 2, f"{played_ms} ms of {PLAY_MS} ms are played as soon as they are sent; expected true time"
        )


async def _cleared_sound_never_counts(make: Make) -> None:
    async with _opened(make) as (line, _):
        transport, clock = line.transport, Clock()
        await _send(transport, PLAY_MS)
        await clock.sleep_ms(PLAY_MS / 4)
        transport.clear()
        at_clear_ms = transport.played_ms
        await clock.sleep_ms(2 * PLAY_MS)
        later_ms = transport.played_ms
        expect(
            later_ms - at_clear_ms <= STEP_MS,
            f"played_ms goes from {at_clear_ms} to {later_ms} after clear; expected it to stay",
        )
        await _send(transport, PLAY_MS / 2)
        await clock.sleep_ms(FAR_MS / 2)
        more_ms = transport.played_ms - later_ms
        expect(abs(more_ms - PLAY_MS / 2) <= 1.0, f"after clear {PLAY_MS / 2} ms were sent and {more_ms} ms counted")


async def _pausing_keeps_what_was_sent(make: Make) -> None:
    async with _opened(make) as (line, _):
        transport, clock = line.transport, Clock()
        await _send(transport, PLAY_MS)
        await clock.sleep_ms(PLAY_MS / 4)
        if not transport.pause():
            raise NotApplicable("it cannot pause")
        await clock.sleep_ms(STEP_MS)
        paused_ms = transport.played_ms
        await clock.sleep_ms(PLAY_MS)
        expect(transport.played_ms == paused_ms, f"paused at {paused_ms} ms it plays on to {transport.played_ms} ms")
        transport.go_on()
        await clock.sleep_ms(FAR_MS / 2)
        expect(abs(transport.played_ms - PLAY_MS) <= 1.0, f"after a pause {transport.played_ms} ms of {PLAY_MS} ms are played")


async def _hanging_up_ends_recv(make: Make) -> None:
    async with _opened(make) as (line, reading):
        await _do(line.hang_up, "hang up")
        error = await reading.end("the person hung up")
        expect(error is None, f"when the person hangs up recv raises {error!r}; expected it to end")


async def _a_lost_line_is_told(make: Make) -> None:
    async with _opened(make) as (line, reading):
        await _do(line.lose, "lose the line")
        error = await reading.end("the line broke", 120_000.0)
        expect(isinstance(error, LineLost), f"when the line breaks recv ends with {error!r}; expected LineLost")


async def _closing_frees_everything(make: Make) -> None:
    async with make() as line:
        before = Leftovers()
        reading = _Reading(line.transport)
        await Clock().sleep_ms(10 * FRAME_MS)
        await _send(line.transport, FRAME_MS)
        for nth in ("first", "second"):
            await in_time(line.transport.aclose(), f"the end of the {nth} aclose", FAR_MS)
        reading.task.cancel()  # a line may leave its reader waiting: the session ends it
        await in_time(asyncio.wait([reading.task]), "the end of recv after aclose", STOP_MS)
        await before.expect_no_more("it was closed")
        with suppress(TransportClosed):
            more = AudioOut(bytes(64), line.transport.output_rate_hz)
            await in_time(line.transport.send(more), "the end of send after aclose")
        expect(line.transport.played_ms >= 0.0, "after aclose played_ms is gone")


async def _cancelling_recv_frees_everything(make: Make) -> None:
    for after_ms in (0.0, 1.0, FRAME_MS, 10 * FRAME_MS):
        async with make() as line:
            before = Leftovers()
            reading = _Reading(line.transport)
            await Clock().sleep_ms(after_ms)
            reading.task.cancel()
            await in_time(asyncio.wait([reading.task]), f"the end of recv, cancelled after {after_ms:.0f} ms", STOP_MS)
            await in_time(line.transport.aclose(), "the end of aclose", FAR_MS)
            await before.expect_no_more(f"recv was cancelled after {after_ms:.0f} ms")


async def _news_do_not_hold_it_up(make: Make) -> None:
    async with _opened(make) as (line, _):
        for name, data in (
            ("state", {"state": "responding"}),
            ("an_event_of_2031", {"news": [1]}),
            ("state", {"state": "listening"}),
        ):
            line.transport.notify(SessionEvent(name, 0.0, data=data))
        line.transport.covered(0)
        saved = line.transport.saved()
        expect(isinstance(saved, dict), f"saved gives {saved!r}; expected a dictionary of plain values")


CHECKS: dict[str, Callable[[Any], Awaitable[None]]] = {
    "nothing opens before recv": _nothing_opens_before_recv,
    "what is said arrives in order": _what_is_said_arrives_in_order,
    "played_ms counts what was played": _played_counts_what_was_played,
    "playing takes its time": _playing_takes_its_time,
    "cleared sound never counts": _cleared_sound_never_counts,
    "pausing keeps what was sent": _pausing_keeps_what_was_sent,
    "hanging up ends recv": _hanging_up_ends_recv,
    "a lost line is told": _a_lost_line_is_told,
    "closing frees everything": _closing_frees_everything,
    "cancelling recv frees everything": _cancelling_recv_frees_everything,
    "news do not hold it up": _news_do_not_hold_it_up,
}
