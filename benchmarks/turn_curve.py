"""How often a turn is cut off against how long its end takes: the silence detector over labelled conversations.

usage: python benchmarks/turn_curve.py FOLDER [option=value ...]      FOLDER holds audio/conv*.flac and labels/conv*.json

For each silence_ms: labelled turns ended before their end (cut), not ended before the next begins (merged), never heard
(missed), and the delay from the labelled end to the decision. Audio only: no transcript is waited for.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from beluga_voice import audio, turn, vad
from beluga_voice.chain import Chain
from beluga_voice.clock import run_simulated
from beluga_voice.engine import Context
from beluga_voice.frames import AudioIn, Frame, SpeechStarted, TurnEnded

EDGE_MS = 100.0


async def ends(name: Path, vad_name: str, **options: Any) -> tuple[list[float], list[float]]:
    """Where turns ended and speech started, in ms."""
    sound = audio.read(name, 16_000)

    async def line() -> AsyncIterator[Frame]:
        for at in range(0, len(sound.pcm), 640):
            yield AudioIn(sound.pcm[at : at + 640], 16_000, at / 32.0)
        yield AudioIn(bytes(32 * 3_000), 16_000, sound.duration_ms)

    chain = Chain(vad.new(vad_name), turn.new("silence", **options))
    ended, started = [], []
    async with Context() as context, chain.process(line(), context) as frames:
        async for frame in frames:
            if isinstance(frame, TurnEnded):
                ended.append(frame.at_ms)
            elif isinstance(frame, SpeechStarted):
                started.append(frame.speech_start_ms)
    return ended, started


def score(ended: list[float], started: list[float], turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts and delays for one recording."""
    cut = merged = missed = 0
    delays = []
    for at, one in enumerate(turns):
        begins, over = one["start"] * 1000, one["end"] * 1000
        upto = turns[at + 1]["start"] * 1000 if at + 1 < len(turns) else float("inf")
        cut += any(begins < ms < over - EDGE_MS for ms in ended)
        after = [ms for ms in ended if over - EDGE_MS <= ms < upto + 500]
        if not any(begins - 600 < ms < over + 600 for ms in started):
            missed += 1
        elif not after:
            merged += 1
        else:
            delays.append(after[0] - over)
    return {"turns": len(turns), "cut": cut, "merged": merged, "missed": missed, "delays": delays}


def main() -> None:
    folder = Path(sys.argv[1])
    options = {key: float(value) for key, value in (pair.split("=") for pair in sys.argv[2:])}
    print("silence_ms  turns  cut  merged  missed  median_ms  p90_ms")
    for silence_ms in (300, 400, 500, 600, 700, 800, 900, 1000):
        total: dict[str, Any] = {"turns": 0, "cut": 0, "merged": 0, "missed": 0, "delays": []}
        for name in sorted(folder.glob("audio/conv*.flac")):
            turns = json.loads((folder / "labels" / f"{name.stem}.json").read_text())["turns"]
            heard = run_simulated(ends(name, "silero", silence_ms=silence_ms, **options))
            for key, value in score(*heard, turns).items():
                total[key] += value
        delays = sorted(total["delays"])
        print(
            f"{silence_ms:10d}  {total['turns']:5d}  {total['cut']:3d}  {total['merged']:6d}  {total['missed']:6d}"
            f"  {statistics.median(delays):9.0f}  {delays[int(len(delays) * 0.9)]:6.0f}"
        )


if __name__ == "__main__":
    main()
