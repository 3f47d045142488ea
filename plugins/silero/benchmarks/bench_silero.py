"""Print what one 32 ms window of one stream costs in processor time, by the number of streams in a batch.

    python benchmarks/bench_silero.py [--blas-threads]

With `--blas-threads` numpy's matrix library keeps the threads it has by default (see `one_blas_thread`).

Times are `time.process_time()` (user and system, all threads), the median of several runs, so neighbours on the machine
disturb them less than they would a wall clock. onnxruntime (with silero-vad's own file) and torch are measured too
where they are installed. The last column is arithmetic: how many live streams use up one core.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from beluga_voice_silero.model import WINDOW_SAMPLES, SileroModel
from beluga_voice_silero.model_torch import TorchSileroModel

BATCHES = (1, 32, 128, 1000)
RUNS = 9
WINDOWS_PER_RUN = 3000
WINDOW_US = 32_000
REFERENCE = Path(__file__).parents[1] / "tests" / "reference.npz"


def bench_ours(model: Any, batch: int) -> Callable[[np.ndarray], object]:
    """Return a function that answers one batch with one of this package's models."""
    states = [model.new_state() for _ in range(batch)]
    return lambda windows: model.probabilities(windows, states)


def bench_onnxruntime(batch: int) -> Callable[[np.ndarray], object]:
    """Return the same with the published ONNX file in one shared session of one thread."""
    import onnxruntime

    source = Path(importlib.util.find_spec("silero_vad").origin).parent / "data" / "silero_vad_16k_op15.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(source), options)
    memory = {"state": np.zeros((2, batch, 128), np.float32), "context": np.zeros((batch, 64), np.float32)}

    def answer(windows: np.ndarray) -> object:
        audio = np.concatenate([memory["context"], windows], axis=1)
        inputs = {"input": audio, "state": memory["state"], "sr": np.array(16_000)}
        probabilities, memory["state"] = session.run(None, inputs)
        memory["context"] = windows[:, -64:]
        return probabilities

    return answer


def candidates() -> Iterator[tuple[str, Callable[[int], Callable[[np.ndarray], object]]]]:
    """Yield a name and a maker for each engine that is installed."""
    numpy_model = SileroModel(one_blas_thread="--blas-threads" not in sys.argv)
    yield "numpy", lambda batch: bench_ours(numpy_model, batch)
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("silero_vad"):
        yield "onnxruntime", bench_onnxruntime
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)
        torch_model = TorchSileroModel()
        yield "torch, cpu", lambda batch: bench_ours(torch_model, batch)
        if torch.cuda.is_available():
            cuda_model = TorchSileroModel("cuda")
            yield "torch, cuda", lambda batch: bench_ours(cuda_model, batch)


def measure(answer: Callable[[np.ndarray], object], batch: int) -> float:
    """Return the median processor time of one window, in microseconds."""
    audio = np.load(REFERENCE)["pcm"].reshape(-1, WINDOW_SAMPLES).astype(np.float32) / 32768
    rounds = max(2, WINDOWS_PER_RUN // batch)
    # Each round gives every stream its next window, as a call does.
    ticks = [audio[(np.arange(batch) * 7 + tick) % len(audio)] for tick in range(min(rounds, 20))]
    runs_us = []
    for _ in range(RUNS):
        started = time.process_time()
        for tick in range(rounds):
            answer(ticks[tick % len(ticks)])
        runs_us.append((time.process_time() - started) * 1e6 / rounds / batch)
    return statistics.median(runs_us[1:])  # the first warms up


def main() -> None:
    """Print one table for all engines."""
    print(f"{'engine':12} {'streams in a batch':>18} {'us CPU a window':>16} {'streams a core':>15}")
    for name, make in candidates():
        for batch in BATCHES:
            cost_us = measure(make(batch), batch)
            print(f"{name:12} {batch:18,} {cost_us:16.1f} {int(WINDOW_US / cost_us):15,}")


if __name__ == "__main__":
    main()
