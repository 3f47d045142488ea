"""The engine: made by name, in a chain, many sessions in one batch, and nobody harmed by another's mistake."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from beluga_voice_silero.batch import MAX_INLINE, Batcher
from beluga_voice_silero.model import SileroModel
from beluga_voice_silero.vad import SileroVAD
from hypothesis import given, settings
from hypothesis import strategies as st

from beluga_voice import vad
from beluga_voice.chain import Chain
from beluga_voice.clock import run_simulated
from beluga_voice.engine import Context, WorkPool
from beluga_voice.errors import AudioFormatError, InvalidRequestError, OptionError, ProtocolError
from beluga_voice.frames import AudioIn, Frame, SpeechEnded, SpeechProbability, SpeechStarted

REFERENCE = np.load(Path(__file__).parent / "reference.npz")
WINDOWS = [[window.astype("<i2").tobytes() for window in stream] for stream in REFERENCE["pcm"]]
PUBLISHED = REFERENCE["probabilities"]
TOLERANCE = 2e-5
"""See test_silero_model.py."""
HAS_TORCH = importlib.util.find_spec("torch") is not None


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


async def hear(stream: vad.VADStream, number: int, pauses: Sequence[int] = (0,), windows: int = 80) -> list[float]:
    """What a stream answers to the reference stream of that number, with so many turns of the loop between windows."""
    answers = []
    for position in range(windows):
        for _ in range(pauses[position % len(pauses)]):
            await asyncio.sleep(0)
        answers.append(await stream.probability(WINDOWS[number][position]))
    return answers


# --- by name, and in a chain -----------------------------------------------------------------------------------------


def test_is_made_by_name() -> None:
    engine = vad.new("silero", threshold=0.6)
    assert (engine.name, engine.options.threshold, engine.options.backend) == ("silero", 0.6, "numpy")

    async def main() -> list[float]:
        async with engine:
            return await hear(engine.stream(), 0)

    assert near(run_simulated(main()), PUBLISHED[0])


def test_describe_tells_the_options_and_loads_nothing() -> None:
    told = vad.describe("silero")
    assert {"threshold", "min_silence_ms", "backend", "device"} <= {one.name for one in told.options}
    assert (told.capabilities.sample_rate_hz, told.capabilities.window_samples) == (16_000, 512)
    program = (
        "import sys; from beluga_voice import vad; vad.describe('silero'); vad.new('silero')\n"
        "sys.exit(' '.join(sys.modules.keys() & {'beluga_voice_silero.model', 'threadpoolctl', 'torch'}) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


async def line(number: int) -> AsyncIterator[Frame]:
    """The reference stream of that number as a transport brings it, 20 ms a frame, then a second of silence."""
    pcm = b"".join(WINDOWS[number]) + bytes(32_000)
    for first in range(0, len(pcm), 640):
        await asyncio.sleep(0.020)
        yield AudioIn(pcm[first : first + 640], 16_000, at_ms=first / 32)


async def call(chain: Chain, number: int) -> list[Frame]:
    async with Context() as context, chain.process(context.feed(line(number)), context) as frames:
        return [frame async for frame in frames if not isinstance(frame, AudioIn)]


def decided(number: int, options: vad.Options) -> list[Frame]:
    """The speech frames that the published model's probabilities lead to."""
    gate = vad.SpeechGate(options)
    return [frame for at, one in enumerate(PUBLISHED[number]) for frame in gate.feed(one, at * 32.0, at * 32.0 + 32.0)]


@pytest.mark.parametrize("sessions", [1, 12])
def test_hears_speech_in_a_chain(sessions: int) -> None:
    engine = vad.new("silero")
    chain = Chain(engine)

    async def main() -> list[list[Frame]]:
        async with engine:
            return await asyncio.gather(*(call(chain, number % 4) for number in range(sessions)))

    for number, frames in enumerate(run_simulated(main())):
        heard = [frame for frame in frames if isinstance(frame, SpeechProbability)]
        assert near([frame.probability for frame in heard][:80], PUBLISHED[number % 4])
        assert [frame.at_ms for frame in heard] == [at * 32.0 for at in range(len(heard))]
        speech = [frame for frame in frames if not isinstance(frame, SpeechProbability)]
        during = [frame for frame in speech if frame.at_ms <= 80 * 32.0]  # type: ignore[union-attr]
        assert during == decided(number % 4, engine.options)
        kinds = [type(frame) for frame in speech]
        assert kinds.count(SpeechStarted) == kinds.count(SpeechEnded)
    assert SpeechStarted in [type(frame) for frame in decided(0, engine.options)]


def test_a_lower_threshold_hears_faint_speech() -> None:
    """The stage of an engine with other options uses them."""

    async def main() -> list[list[Frame]]:
        async with vad.new("silero") as engine:
            keen = vad.as_frame_processor(engine, threshold=0.3)
            return [await call(Chain(engine), 2), await call(Chain(keen), 2)]

    normal, keen = run_simulated(main())
    assert SpeechStarted not in map(type, normal)
    assert SpeechStarted in map(type, keen)


# --- batches ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    lines=st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.integers(0, 3), min_size=1, max_size=5)), min_size=1, max_size=10
    ),
    pooled=st.booleans(),
)
def test_a_session_hears_the_same_with_others_as_alone(lines: list[tuple[int, list[int]]], pooled: bool) -> None:
    """However the sessions' windows fall into turns of the loop, and wherever the batches are computed."""

    async def main() -> list[list[float]]:
        batcher = Batcher(SileroModel(), WorkPool(1, "test") if pooled else None)
        try:
            return await asyncio.gather(*(hear(_stream(batcher), number, pauses, 20) for number, pauses in lines))
        finally:
            await batcher.aclose()

    for (number, _), answers in zip(lines, run_simulated(main()), strict=True):
        assert near(answers, PUBLISHED[number][:20])


def _stream(batcher: Batcher) -> vad.VADStream:
    engine = SileroVAD()
    engine._shared.batcher = batcher
    return engine.stream()


def test_windows_of_one_turn_of_the_loop_are_one_call() -> None:
    model = Recording()

    async def main() -> None:
        batcher = Batcher(model)
        await asyncio.gather(*(hear(_stream(batcher), number % 4, windows=3) for number in range(50)))

    run_simulated(main())
    assert model.log == [50, 50, 50]


def test_a_lone_session_waits_one_turn_of_the_loop() -> None:
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


# --- cancellation, failures, misuse ----------------------------------------------------------------------------------


def test_a_cancelled_wait_harms_nobody() -> None:
    """The others of the batch get their answers, and the stream itself goes on as if it had not been asked."""

    async def main() -> tuple[list[float], list[float]]:
        batcher = Batcher(SileroModel())
        streams = [_stream(batcher) for _ in range(4)]
        waits = [asyncio.ensure_future(stream.probability(WINDOWS[n][0])) for n, stream in enumerate(streams)]
        await asyncio.sleep(0)
        waits[1].cancel()
        others = await asyncio.gather(waits[0], waits[2], waits[3])
        assert waits[1].cancelled()
        return others, await hear(streams[1], 1)

    others, again = run_simulated(main())
    assert near(others, PUBLISHED[[0, 2, 3], 0])
    assert near(again, PUBLISHED[1])


def test_a_wait_cancelled_while_the_pool_works_harms_nobody() -> None:
    model = Recording()
    model.may_go.clear()

    async def main() -> tuple[list[float], float]:
        batcher = Batcher(model, WorkPool(1, "test"))
        streams = [_stream(batcher) for _ in range(4)]
        waits = [asyncio.ensure_future(stream.probability(WINDOWS[n][0])) for n, stream in enumerate(streams)]
        await asyncio.to_thread(model.begun.wait)
        waits[1].cancel()
        await asyncio.sleep(0)
        model.may_go.set()
        others = await asyncio.gather(waits[0], waits[2], waits[3])
        after = await streams[1].probability(WINDOWS[1][1])
        await batcher.aclose()
        return others, after

    others, after = run_simulated(main())
    assert near(others, PUBLISHED[[0, 2, 3], 0])
    assert near(after, PUBLISHED[1, 1])
    assert model.log == [4, 1]


def test_a_window_whose_caller_gave_up_was_not_heard() -> None:
    """Asked again in the same turn of the loop, the stream is in the batch once, and its answer is as if asked once."""

    async def main() -> float:
        stream = SileroVAD().stream()
        first = asyncio.ensure_future(stream.probability(WINDOWS[1][7]))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        return await stream.probability(WINDOWS[0][0])

    assert near(run_simulated(main()), PUBLISHED[0, 0])


@pytest.mark.parametrize("pooled", [False, True])
def test_a_failing_model_tells_every_waiter(pooled: bool) -> None:
    model = Recording()

    async def main() -> tuple[list[Any], float]:
        batcher = Batcher(model, WorkPool(1, "test") if pooled else None)
        streams = [_stream(batcher) for _ in range(3)]
        model.failure = ArithmeticError("out of numbers")
        told = await asyncio.gather(*(s.probability(WINDOWS[0][0]) for s in streams), return_exceptions=True)
        model.failure = None
        after = await streams[0].probability(WINDOWS[0][0])
        await batcher.aclose()
        return told, after

    told, after = run_simulated(main())
    assert [type(one) for one in told] == [ProtocolError] * 3
    assert len({id(one) for one in told}) == 3
    assert all(isinstance(one.__cause__, ArithmeticError) for one in told)
    assert "batch of 3 windows (ArithmeticError: out of numbers)" in str(told[0])
    assert (told[0].provider, told[0].kind, told[0].other_may_help) == ("silero", "vad", True)
    assert near(after, PUBLISHED[0, 0])


def test_a_wrong_window_is_refused_alone() -> None:
    async def main() -> list[Any]:
        engine = SileroVAD()
        asked = [engine.stream().probability(window) for window in (WINDOWS[0][0], bytes(640), WINDOWS[1][0])]
        return await asyncio.gather(*asked, return_exceptions=True)

    first, refused, last = run_simulated(main())
    assert near([first, last], PUBLISHED[:2, 0])
    assert isinstance(refused, AudioFormatError)
    assert (refused.wanted, refused.got) == (1024, 640)


def test_a_second_caller_is_refused_and_the_first_is_answered() -> None:
    async def main() -> list[Any]:
        stream = SileroVAD().stream()
        return await asyncio.gather(*(stream.probability(WINDOWS[0][0]) for _ in range(2)), return_exceptions=True)

    answer, refused = run_simulated(main())
    assert near(answer, PUBLISHED[0, 0])
    assert isinstance(refused, InvalidRequestError)
    assert "still busy" in str(refused)


def test_closing_a_stream_ends_it_alone() -> None:
    async def main() -> list[float]:
        engine = SileroVAD()
        closed, other = engine.stream(), engine.stream()
        answers = [await other.probability(WINDOWS[0][0])]
        closed.close()
        closed.close()
        with pytest.raises(InvalidRequestError, match="closed"):
            await closed.probability(WINDOWS[0][0])
        return [*answers, await other.probability(WINDOWS[0][1])]

    assert near(run_simulated(main()), PUBLISHED[0, :2])


# --- lifetimes -------------------------------------------------------------------------------------------------------


def test_one_engine_serves_one_event_loop_after_another() -> None:
    """Also when a loop was stopped with a window still waiting."""
    engine = SileroVAD()
    abandoned = engine.stream().probability(WINDOWS[0][0])

    def ask_and_stop(loop: asyncio.AbstractEventLoop) -> None:
        abandoned.send(None)
        loop.stop()

    for _ in range(2):
        assert near(asyncio.run(hear(engine.stream(), 0)), PUBLISHED[0])
    loop = asyncio.new_event_loop()
    loop.call_soon(ask_and_stop, loop)
    loop.run_forever()
    loop.close()
    abandoned.close()
    assert near(run_simulated(hear(engine.stream(), 1)), PUBLISHED[1])


def test_event_loops_in_several_threads_share_one_engine() -> None:
    engine = SileroVAD()
    streams = [engine.stream() for _ in range(4)]

    def run(number: int) -> list[float]:
        return asyncio.run(hear(streams[number], number))

    with ThreadPoolExecutor(4) as threads:
        assert near(list(threads.map(run, range(4))), PUBLISHED)


def test_copies_with_other_options_share_the_model_while_one_is_entered() -> None:
    async def main() -> None:
        engine = SileroVAD()
        copy = engine.with_options(threshold=0.7)
        assert (engine.options.threshold, copy.options.threshold) == (0.5, 0.7)
        async with engine:
            model = engine.stream()._batcher  # type: ignore[attr-defined]
            async with copy:
                assert copy.stream()._batcher is model  # type: ignore[attr-defined]
            assert engine.stream()._batcher is model, "one that leaves does not unload for all"  # type: ignore[attr-defined]
        assert near(await hear(copy.stream(), 0), PUBLISHED[0]), "after all left, the next use loads again"

    run_simulated(main())


def test_leaving_ends_the_thread_of_a_pooled_model() -> None:
    async def main() -> None:
        engine = SileroVAD()
        engine._shared.batcher = Batcher(SileroModel(), WorkPool(1, "silero-pooled"))
        async with engine:
            assert near(await hear(engine.stream(), 0), PUBLISHED[0])
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("silero-pooled")]

    run_simulated(main())


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"backend": "onnx"}, "expected one of 'numpy', 'torch'"),
        ({"device": "cuda"}, "only 'cpu'"),
        ({"treshold": 0.6}, "did you mean 'threshold'"),
        ({"threshold": 2}, "expected 0.01 to 0.99"),
    ],
)
def test_refuses_options_that_cannot_work(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match="vad 'silero'") as refused:
        vad.new("silero", **options)
    assert says in str(refused.value)


@pytest.mark.skipif(HAS_TORCH, reason="torch is installed")
def test_without_torch_the_torch_backend_is_refused_when_made() -> None:
    with pytest.raises(OptionError, match=r"pip install \"beluga-voice-silero\[torch\]\""):
        vad.new("silero", backend="torch")


@pytest.mark.skipif(not HAS_TORCH, reason="the torch backend is an extra: pip install beluga-voice-silero[torch]")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_torch_backend_answers_the_same(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        with pytest.raises(OptionError, match="torch cannot use"):
            vad.new("silero", backend="torch", device=device).stream()
        return

    async def main() -> list[list[float]]:
        async with vad.new("silero", backend="torch", device=device) as engine:
            return await asyncio.gather(*(hear(engine.stream(), number) for number in range(4)))

    assert np.abs(np.array(run_simulated(main())) - PUBLISHED).max() <= (5e-5 if device == "cpu" else 1e-3)


def test_another_backend_is_another_model() -> None:
    if not HAS_TORCH:
        pytest.skip("the torch backend is an extra: pip install beluga-voice-silero[torch]")
    engine = SileroVAD()
    other = engine.with_options(backend="torch")
    assert type(engine.stream()._batcher.model) is not type(other.stream()._batcher.model)  # type: ignore[attr-defined]
