"""Print what the engine adds to the bare model: batching over live sessions, futures and tasks, in microseconds.

    python benchmarks/bench_vad.py

Each live session asks for its next window as soon as it has the answer before, so all of them share each batch. Times
are `time.process_time()` per window; both columns of a row are measured in turn, and the median of the runs is told.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from beluga_voice_silero.model import WINDOW_SAMPLES, SileroModel
from beluga_voice_silero.vad import SileroVAD

from beluga_voice.vad import VADStream

SESSIONS = (1, 8, 32, 128, 1000)
RUNS = 11
WINDOWS_PER_RUN = 6000
PCM = np.load(Path(__file__).parents[1] / "tests" / "reference.npz")["pcm"].reshape(-1, WINDOW_SAMPLES).astype("<i2")
WINDOWS = [window.tobytes() for window in PCM]


def bare_us(model: SileroModel, sessions: int, turns: int) -> float:
    """Processor time of one window, in batches of at most 128 as the engine makes them, from ready float32 arrays."""
    states = [model.new_state() for _ in range(sessions)]
    audio = PCM.astype(np.float32) / 32768
    ticks = [audio[(np.arange(sessions) + turn) % len(audio)] for turn in range(min(turns, 20))]
    started = time.process_time()
    for turn in range(turns):
        for first in range(0, sessions, 128):
            model.probabilities(ticks[turn % len(ticks)][first : first + 128], states[first : first + 128])
    return (time.process_time() - started) * 1e6 / turns / sessions


def engine_us(streams: Sequence[VADStream], turns: int) -> float:
    """Processor time of one window, asked for by as many tasks as there are streams."""

    async def live(number: int, stream: VADStream) -> None:
        for turn in range(number, number + turns):
            await stream.probability(WINDOWS[turn % len(WINDOWS)])

    async def main() -> float:
        started = time.process_time()
        await asyncio.gather(*(live(number, stream) for number, stream in enumerate(streams)))
        return (time.process_time() - started) * 1e6 / turns / len(streams)

    return asyncio.run(main())


def main() -> None:
    """Print the table."""
    model, engine = SileroModel(), SileroVAD()
    print(f"{'live sessions':>13} {'bare model':>11} {'engine':>8} {'added':>7}")
    for sessions in SESSIONS:
        turns = max(3, WINDOWS_PER_RUN // sessions)
        streams = [engine.stream() for _ in range(sessions)]
        runs = [(bare_us(model, sessions, turns), engine_us(streams, turns)) for _ in range(RUNS)][1:]
        bare, whole = (statistics.median(column) for column in zip(*runs, strict=True))
        added = statistics.median(engine - bare for bare, engine in runs)
        print(f"{sessions:13,} {bare:11.1f} {whole:8.1f} {added:7.1f}")


if __name__ == "__main__":
    main()
