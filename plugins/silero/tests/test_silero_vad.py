"""The engine: made by name, in a chain, many sessions in one batch, and nobody harmed by another's mistake."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from beluga_voice_silero.batch import Batcher
from beluga_voice_silero.model import SileroModel
from beluga_voice_silero.vad import SileroVAD

from beluga_voice import vad
from beluga_voice.chain import Chain
from beluga_voice.clock import run_simulated
from beluga_voice.engine import Context, WorkPool
from beluga_voice.errors import AudioFormatError, InvalidRequestError, OptionError
from beluga_voice.frames import AudioIn, Frame, SpeechEnded, SpeechProbability, SpeechStarted

REFERENCE = np.load(Path(__file__).parent / "reference.npz")
WINDOWS = [[window.astype("<i2").tobytes() for window in stream] for stream in REFERENCE["pcm"]]
PUBLISHED = REFERENCE["probabilities"]
TOLERANCE = 2e-5
"""See test_silero_model.py."""
HAS_TORCH = importlib.util.find_spec("torch") is not None


def near(answers: Any, expected: Any) -> bool:
    return bool(np.abs(np.asarray(answers) - np.asarray(expected)).max() <= TOLERANCE)


async def hear(stream: vad.VADStream, number: int) -> list[float]:
    """What a stream answers to the reference stream of that number."""
    return [await stream.probability(window) for window in WINDOWS[number]]


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


# --- misuse -----------------------------------------------------------------------------------------------------------


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
    import torch  # type: ignore[import-not-found,unused-ignore]

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
