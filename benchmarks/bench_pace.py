"""The pace of a conversation in real time: Moonshine, echo and espeak over recorded callers, and what the framework adds.

usage: python benchmarks/bench_pace.py CALLER.flac [CALLER.flac ...]

Every caller is played twice in real time, with and without speculative transcription. Printed per run: end of speech (as the
VAD saw it) to first reply audio, less the configured silence; and beside it what the engines themselves took on the same
turns: the recogniser's thread, and the bare voice up to its first audio.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
from typing import Any

from beluga_voice import Chain, Session, SessionEvent, agent, audio, stt, tts, turn, vad
from beluga_voice.builtin.recorded_line import RecordedLine
from beluga_voice.clock import wall_ms

SILENCE_MS = 700.0


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def converse(caller: str, speculate: bool, engines: dict[str, Any]) -> list[dict[str, float]]:
    """One call in real time; the parts of each turn's latency, in ms."""
    busy_ms: list[float] = []

    def note(event: SessionEvent) -> None:
        if event.name == "reply_started":
            busy_ms.append(engines["stt"].pool.busy_ms)

    chain = Chain(
        engines["vad"],
        turn.new("silence", silence_ms=SILENCE_MS, **({} if speculate else {"early_ms": 10_000})),
        engines["stt"],
        agent.new("echo"),
        engines["tts"],
    )
    session = Session(chain, RecordedLine(audio.read(caller, 16_000), tail_ms=1_500), listeners=[note])
    start_ms = engines["stt"].pool.busy_ms
    await session.run()
    rows = []
    for record, before, after in zip(session.turns, [start_ms, *busy_ms], busy_ms):
        if record.e2e_latency_ms is not None and record.endpointing_ms is not None and not record.reopened:
            rows.append(
                {
                    "over": record.e2e_latency_ms - SILENCE_MS,
                    "windows": record.endpointing_ms - SILENCE_MS,
                    "stt": record.stt_latency_ms or 0.0,
                    "stt_engine": after - before,
                    "agent": record.agent_latency_ms or 0.0,
                    "tts": record.tts_latency_ms or 0.0,
                    "tts_engine": bare_voice_ms(record.agent_text),
                    "send": record.send_latency_ms or 0.0,
                }
            )
    return rows


def bare_voice_ms(text: str) -> float:
    """The bare voice's time to its first audio, without the framework."""
    from beluga_voice_espeak.synth import speak

    began_ms, first_ms = wall_ms(), []

    def on_audio(pcm: bytes) -> bool:
        first_ms.append(wall_ms() - began_ms)
        return False

    speak(text, on_audio)
    return first_ms[0] if first_ms else 0.0


async def main() -> None:
    engines = {"vad": vad.new("silero"), "stt": stt.new("moonshine"), "tts": tts.new("espeak")}
    for engine in engines.values():
        await engine.__aenter__()
    try:
        for speculate in (True, False):
            rows = [row for caller in sys.argv[1:] for row in await converse(caller, speculate, engines)]
            print(f"\n{'with' if speculate else 'without'} speculative transcription, {len(rows)} turns, ms:  median    p95")
            for key, title in (
                ("over", "end of speech -> first audio, less silence"),
                ("windows", "  of it: the end of the turn seen late (VAD windows, frames)"),
                ("stt", "  of it: waiting for the transcript"),
                ("agent", "  of it: the agent"),
                ("tts", "  of it: the voice"),
                ("send", "  of it: sending"),
                ("stt_engine", "the recogniser's own time"),
                ("tts_engine", "the bare voice's own time"),
            ):
                values = [row[key] for row in rows]
                print(f"{title:62s} {statistics.median(values):8.1f} {quantile(values, 0.95):7.1f}")
            added = [row["agent"] + row["tts"] + row["send"] - row["tts_engine"] for row in rows]
            if not speculate:  # then all of the recogniser's time is waited for
                added = [own + row["stt"] - row["stt_engine"] for own, row in zip(added, rows)]
            print(f"{'added by the framework':62s} {statistics.median(added):8.1f} {quantile(added, 0.95):7.1f}")
        print("load", *(f"{load:.1f}" for load in os.getloadavg()))
    finally:
        for engine in engines.values():
            await engine.__aexit__(None, None, None)


if __name__ == "__main__":
    asyncio.run(main())
