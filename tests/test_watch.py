"""Who holds the event loop is named."""

import asyncio
import time

import pytest

from beluga_voice._watch import LoopWatch
from beluga_voice.chain import Chain, each_frame, processor
from beluga_voice.engine import Context
from beluga_voice.frames import TextDelta

# A machine under load may hold any step for a while: the limit is far above that, and the sleep far above the limit.
LIMIT_MS = 500.0
HOLD_S = 1.0


@each_frame
def quick(frame):
    return frame


@each_frame
def holding(frame):
    time.sleep(HOLD_S)
    return frame


@processor()
async def waiting(frames, context):
    async for frame in frames:
        await asyncio.sleep(HOLD_S)
        yield frame


@processor()
async def holding_after_a_wait(frames, context):
    async for frame in frames:
        await asyncio.sleep(0)
        time.sleep(HOLD_S)  # noqa: ASYNC251
        yield frame


async def one():
    yield TextDelta("a")


def who_holds(*stages, consume=lambda: None):
    told = []

    async def read(context):
        async with Chain(*stages).process(one(), context) as frames:
            async for _ in frames:
                consume()

    async def main():
        watch = LoopWatch(LIMIT_MS, lambda name, held_ms: told.append((name, held_ms)))
        async with Context() as context:
            context.watch = watch
            await context.spawn(read(context), "ears")

    asyncio.run(main())
    assert all(held_ms >= HOLD_S * 1000 * 0.99 for _, held_ms in told)
    return [name for name, _ in told]


class TestLoopWatch:
    @pytest.mark.parametrize("at", [0, 1, 2])
    def test_names_the_stage_that_holds_it(self, at):
        """The stage that sleeps is named, wherever it stands, and no other."""
        stages = [quick, quick]
        stages.insert(at, holding)
        assert who_holds(*stages) == ["holding"]

    def test_names_a_stage_that_holds_it_after_a_wait(self):
        """A stage that waits first and holds the loop afterwards is named all the same."""
        assert who_holds(quick, holding_after_a_wait, quick) == ["holding_after_a_wait"]

    def test_waiting_is_not_holding(self):
        """A stage that waits for as long as it likes holds nobody up."""
        assert who_holds(quick, waiting) == []

    def test_names_the_task_of_a_consumer(self):
        """What reads the chain is told from the stages."""
        assert who_holds(quick, consume=lambda: time.sleep(HOLD_S)) == ["session"]

    def test_names_a_task_without_stages(self):
        """Work beside the chain is known by its task's name."""
        told = []

        async def work():
            await asyncio.sleep(0)
            time.sleep(HOLD_S)  # noqa: ASYNC251
            return "done"

        async def main():
            watch = LoopWatch(LIMIT_MS, lambda name, held_ms: told.append(name))
            return await watch.drive(work(), "tool call")

        assert asyncio.run(main()) == "done"
        assert told == ["tool call"]

    def test_driven_work_is_cancelled_and_fails_as_ever(self):
        """A driven coroutine gets its cancellation, cleans up, and its error comes out."""
        cleaned = []

        async def work():
            try:
                await asyncio.Event().wait()
            finally:
                cleaned.append(True)

        async def fail():
            await asyncio.sleep(0)
            raise KeyError("x")

        async def main():
            watch = LoopWatch(LIMIT_MS, lambda name, held_ms: None)
            task = asyncio.create_task(watch.drive(work(), "work"))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(KeyError):
                await watch.drive(fail(), "fail")

        asyncio.run(main())
        assert cleaned == [True]
