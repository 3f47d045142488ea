"""The batcher: the windows of many streams in one call, whoever gives up, fails or comes late."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from beluga_voice_silero.batch import MAX_INLINE, Batcher
from beluga_voice_silero.model import SileroModel
from hypothesis import given, settings
from hypothesis import strategies as st

from beluga_voice.clock import run_simulated
from beluga_voice.engine import WorkPool
from beluga_voice.errors import ProtocolError

REFERENCE = np.load(Path(__file__).parent / "reference.npz")
WINDOWS = [[window.astype("<i2").tobytes() for window in stream] for stream in REFERENCE["pcm"]]
PUBLISHED = REFERENCE["probabilities"]
TOLERANCE = 2e-5
"""See test_silero_model.py."""


class Recording:
    """The real model, which notes what it is asked and fails or waits when told to."""

    def __init__(self) -> None:
        self.model = SileroModel()
        self.log: list[Any] = []
        self.failure: Exception | None = None
        self.may_go = threading.Event()
        self.may_go.set()
        self.begun = threading.Event()

    def new_state(self) -> Any:
        return self.model.new_state()

    def probabilities(self, windows: np.ndarray, states: Sequence[Any]) -> np.ndarray:
        self.log.append(len(states))
        self.begun.set()
        self.may_go.wait()
        if self.failure is not None:
            raise self.failure
        return self.model.probabilities(windows, states)


def near(answers: Any, expected: Any) -> bool:
    return bool(np.abs(np.asarray(answers) - np.asarray(expected)).max() <= TOLERANCE)


async def hear(batcher: Batcher, number: int, pauses: Sequence[int] = (0,), windows: int = 20) -> list[float]:
    """What a stream answers to the reference stream of that number, with so many turns of the loop between windows."""
    answers, state = [], batcher.model.new_state()
    for position in range(windows):
        for _ in range(pauses[position % len(pauses)]):
            await asyncio.sleep(0)
        answers.append(await batcher.ask(WINDOWS[number][position], state))
    return answers


def ask_all(batcher: Batcher) -> list[asyncio.Future[float]]:
    """The first window of each reference stream, asked in one turn of the loop."""
    return [batcher.ask(stream[0], batcher.model.new_state()) for stream in WINDOWS]


@settings(deadline=None, max_examples=25)
@given(
    lines=st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.integers(0, 3), min_size=1, max_size=5)), min_size=1, max_size=10
    ),
    pooled=st.booleans(),
)
def test_a_stream_hears_the_same_with_others_as_alone(lines: list[tuple[int, list[int]]], pooled: bool) -> None:
    """However the streams' windows fall into turns of the loop, and wherever the batches are computed."""

    async def main() -> list[list[float]]:
        batcher = Batcher(SileroModel(), WorkPool(1, "test") if pooled else None)
        try:
            return await asyncio.gather(*(hear(batcher, number, pauses) for number, pauses in lines))
        finally:
            await batcher.aclose()

    for (number, _), answers in zip(lines, run_simulated(main()), strict=True):
        assert near(answers, PUBLISHED[number][:20])


def test_windows_of_one_turn_of_the_loop_are_one_call() -> None:
    model = Recording()

    async def main() -> None:
        batcher = Batcher(model)
        await asyncio.gather(*(hear(batcher, number % 4, windows=3) for number in range(50)))

    run_simulated(main())
    assert model.log == [50, 50, 50]


def test_a_lone_stream_waits_one_turn_of_the_loop() -> None:
    async def main() -> list[str]:
        batcher = Batcher(SileroModel())
        order = []
        asked = batcher.ask(WINDOWS[0][0], batcher.model.new_state())
        asyncio.get_running_loop().call_soon(lambda: order.append("answered" if asked.done() else "waits"))
        await asked
        return order

    assert run_simulated(main()) == ["answered"]


def test_the_loop_runs_between_large_batches() -> None:
    """Hundreds of windows at once are computed 128 at a time, and other work has its turn in between."""
    model = Recording()

    async def main() -> list[float]:
        batcher = Batcher(model)
        loop = asyncio.get_running_loop()

        def tick(left: int) -> None:
            model.log.append("tick")
            if left:
                loop.call_soon(tick, left - 1)

        asked = [batcher.ask(WINDOWS[number % 4][0], model.new_state()) for number in range(300)]
        loop.call_soon(tick, 2)
        return await asyncio.gather(*asked)

    answers = run_simulated(main())
    assert near(answers, PUBLISHED[np.arange(300) % 4, 0])
    assert [one for one in model.log if one != "tick"] == [MAX_INLINE, MAX_INLINE, 300 - 2 * MAX_INLINE]
    assert model.log.index("tick") < len(model.log) - 1 - model.log[::-1].index(44)


def test_what_is_asked_during_a_pooled_batch_is_the_next_batch() -> None:
    """The loop goes on while the model works in its thread, and nothing waits for more than the batch under way."""
    model = Recording()
    model.may_go.clear()

    async def main() -> list[float]:
        batcher = Batcher(model, WorkPool(1, "test"))
        asked = [batcher.ask(WINDOWS[0][0], model.new_state())]
        await asyncio.to_thread(model.begun.wait)
        asked += [batcher.ask(WINDOWS[number][0], model.new_state()) for number in (1, 2, 3)]
        model.may_go.set()
        await batcher.aclose()
        assert all(one.done() for one in asked), "aclose waits for what is under way"
        return await asyncio.gather(*asked)

    assert near(run_simulated(main()), PUBLISHED[:, 0])
    assert model.log == [1, 3]


def test_a_cancelled_wait_harms_nobody() -> None:
    """The others of the batch get their answers; the window was not heard, and its stream may ask again at once."""

    async def main() -> tuple[list[float], float]:
        batcher = Batcher(SileroModel())
        waits, state = ask_all(batcher), batcher.model.new_state()
        given_up = batcher.ask(WINDOWS[1][7], state)
        given_up.cancel()
        again = batcher.ask(WINDOWS[0][0], state)
        waits[1].cancel()
        return [await waits[0], await waits[2], await waits[3]], await again

    others, again = run_simulated(main())
    assert near(others, PUBLISHED[[0, 2, 3], 0])
    assert near(again, PUBLISHED[0, 0])


def test_a_wait_cancelled_while_the_pool_works_harms_nobody() -> None:
    model = Recording()
    model.may_go.clear()

    async def main() -> tuple[list[float], float]:
        batcher = Batcher(model, WorkPool(1, "test"))
        waits = ask_all(batcher)
        await asyncio.to_thread(model.begun.wait)
        waits[1].cancel()
        later = batcher.ask(WINDOWS[1][0], model.new_state())
        model.may_go.set()
        others = [await waits[0], await waits[2], await waits[3]]
        after = await later
        await batcher.aclose()
        return others, after

    others, after = run_simulated(main())
    assert near(others, PUBLISHED[[0, 2, 3], 0])
    assert near(after, PUBLISHED[1, 0])
    assert model.log == [4, 1]


@pytest.mark.parametrize("pooled", [False, True])
def test_a_failing_model_tells_every_waiter(pooled: bool) -> None:
    """Each gets an error of its own, and the next batch is a new try."""
    model = Recording()

    async def main() -> tuple[list[Any], list[float]]:
        batcher = Batcher(model, WorkPool(1, "test") if pooled else None)
        model.failure = ArithmeticError("out of numbers")
        told = await asyncio.gather(*ask_all(batcher), return_exceptions=True)
        model.failure = None
        after = await asyncio.gather(*ask_all(batcher))
        await batcher.aclose()
        return told, after

    told, after = run_simulated(main())
    assert [type(one) for one in told] == [ProtocolError] * 4
    assert len({id(one) for one in told}) == 4
    assert all(isinstance(one.__cause__, ArithmeticError) for one in told)
    assert "batch of 4 windows (ArithmeticError: out of numbers)" in str(told[0])
    assert (told[0].provider, told[0].kind, told[0].other_may_help) == ("silero", "vad", True)
    assert near(after, PUBLISHED[:, 0])
