"""What the framework itself costs, without providers: CPU time, medians of several runs, beside a bare loop in the same run.

usage: python benchmarks/bench_core.py
"""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator

from beluga_voice import Audio, Chain, Session, each_frame, stt, transport, tts, turn
from beluga_voice.chain import processor
from beluga_voice.clock import run_simulated
from beluga_voice.engine import Context
from beluga_voice.frames import AudioIn, AudioOut, Frame, TextIn, Transcript
from beluga_voice.testing import speech
from beluga_voice.vad import VAD, VADStream

FRAME = AudioIn(bytes(640), 16_000, 0.0)


def cpu_us(work, runs: int = 7) -> float:
    """Median CPU time of `work()` in us."""
    times = []
    for _ in range(runs):
        began = time.process_time_ns()
        work()
        times.append((time.process_time_ns() - began) / 1e3)
    return statistics.median(times)


@processor()
async def passthrough(frames: AsyncIterator[Frame], context: Context) -> AsyncIterator[Frame]:
    async for frame in frames:
        yield frame


@each_frame
def look(frame: Frame) -> None:
    return None


def per_frame(*stages, watched: bool = False, count: int = 100_000) -> float:
    """CPU us a frame through a chain of `stages`."""

    async def main() -> None:
        async def source() -> AsyncIterator[Frame]:
            for _ in range(count):
                yield FRAME

        async with Context() as context:
            if watched:
                from beluga_voice._watch import LoopWatch

                context.watch = LoopWatch(50, lambda name, held: None)
                context.watch.begin("bench")
            async with Chain(*stages).process(source(), context) as frames:
                async for _ in frames:
                    pass

    return cpu_us(lambda: asyncio.run(main())) / count


class InstantSTT(stt.STT):
    async def transcribe(self, audio: Audio) -> Transcript:
        return Transcript("hello")


class InstantTTS(tts.TTS):
    async def synthesize_stream(self, texts: AsyncIterator[str]) -> AsyncIterator[AudioOut]:
        async for text in texts:
            yield AudioOut(bytes(3200), 16_000, text)


async def hello(text: str, history: tuple) -> str:
    return "Hello."


class FakeVAD(VAD):
    def stream(self) -> VADStream:
        return FakeStream()


class FakeStream(VADStream):
    async def probability(self, window: bytes) -> float:
        return 1.0 if window[0] else 0.0


def chain() -> Chain:
    return Chain(FakeVAD(), turn.new("silence"), InstantSTT(), hello, InstantTTS())


def turn_to_audio(live: int, turns: int = 100) -> list[float]:
    """Wall ms from a typed turn to the first audio handed to the line, instant providers, `live` sessions open."""
    took: list[float] = []

    async def main() -> None:
        shared = chain()
        lines = [transport.new("memory") for _ in range(live)]
        sessions = [Session(shared, line) for line in lines]
        running = [asyncio.create_task(session.run()) for session in sessions]
        await asyncio.sleep(0.05)
        line, session = lines[0], sessions[0]

        async def chatter() -> None:
            while True:
                for other in lines[1:]:
                    other.push(FRAME)
                await asyncio.sleep(0.02)

        busy = asyncio.create_task(chatter())
        for _ in range(turns):
            before = len(line.sent)
            sent = asyncio.get_running_loop().create_future()
            original = line.send

            async def send(frame, original=original, sent=sent) -> None:
                await original(frame)
                if not sent.done():
                    sent.set_result(time.perf_counter_ns())

            line.send = send
            began = time.perf_counter_ns()
            session._context.emit(TextIn("hi"))
            took.append((await sent - began) / 1e6)
            line.send = original
            assert len(line.sent) > before
            await asyncio.sleep(0.15)
        busy.cancel()
        for one in lines:
            one.hang_up()
        await asyncio.gather(*running)

    asyncio.run(main())
    return sorted(took)


def idle_session(count: int = 500) -> tuple[float, float]:
    """kB and tasks of a session that is open and quiet."""
    result: list[tuple[float, float]] = []

    async def main() -> None:
        shared = chain()
        warm = Session(shared, transport.new("memory"))
        task = asyncio.create_task(warm.run())
        await asyncio.sleep(0.01)
        gc.collect()
        tracemalloc.start()
        tasks_before = len(asyncio.all_tasks())
        lines = [transport.new("memory") for _ in range(count)]
        sessions = [Session(shared, line) for line in lines]
        running = [asyncio.create_task(session.run()) for session in sessions]
        await asyncio.sleep(0.05)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        result.append((held / count / 1e3, (len(asyncio.all_tasks()) - tasks_before) / count))
        for line in [*lines]:
            line.hang_up()
        warm.close()
        await asyncio.gather(*running, task)

    asyncio.run(main())
    return result[0]


def sessions_per_core(talking: bool, count: int = 100, seconds: int = 10) -> float:
    """Sessions that one core carries in real time: CPU time of `count` sessions over `seconds` of simulated audio."""
    loud = speech(500)[:640]

    async def main() -> None:
        shared = chain()
        lines = [transport.new("memory") for _ in range(count)]
        sessions = [Session(shared, line) for line in lines]
        running = [asyncio.create_task(session.run()) for session in sessions]
        for at in range(seconds * 50):
            frame = AudioIn(loud if talking and at % 150 < 50 else bytes(640), 16_000)
            for line in lines:
                line.push(frame)
            await asyncio.sleep(0.02)
        for line in lines:
            line.hang_up()
        await asyncio.gather(*running)
        if talking:
            assert sum(len(session.turns) for session in sessions) > 0

    took_us = cpu_us(lambda: run_simulated(main()), runs=3)
    return count * seconds * 1e6 / took_us


def import_cost() -> tuple[float, float]:
    """CPU s and MB of RSS that `import beluga_voice` adds to `import numpy`."""

    def run(what: str) -> tuple[float, float]:
        code = (
            f"import time,resource;import numpy;b=time.process_time();r=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
            f"{what};print(time.process_time()-b,(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-r)/1024,"
            "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024)"
        )
        out = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(7)]
        rows = [tuple(map(float, one.stdout.split())) for one in out]
        return tuple(statistics.median(column) for column in zip(*rows))

    return run("import beluga_voice")


def main() -> None:
    async def bare() -> None:
        async def source() -> AsyncIterator[Frame]:
            for _ in range(100_000):
                yield FRAME

        async for _ in source():
            pass

    base_us = cpu_us(lambda: asyncio.run(bare())) / 100_000
    print(f"bare async generator           {base_us:6.3f} us a frame")
    for name, one in (("passthrough @processor", passthrough), ("@each_frame", look)):
        for watched in (False, True):
            us = per_frame(one, watched=watched) - base_us
            print(f"{name:22s} {'watched' if watched else '':7s} {us:6.3f} us CPU a frame")
    for live in (1, 100):
        took = turn_to_audio(live)
        print(
            f"turn -> first audio, {live:3d} live: median {statistics.median(took):.3f} ms, "
            f"p99 {took[int(len(took) * 0.99)]:.3f} ms"
        )
    kilobytes, tasks = idle_session()
    print(f"idle session: {kilobytes:.1f} kB, {tasks:.1f} tasks")
    for talking in (False, True):
        print(f"sessions per core, {'talking' if talking else 'silent'}: {sessions_per_core(talking):.0f}")
    print("import over numpy's: {:.3f} s CPU, {:.1f} MB; {:.1f} MB in all".format(*import_cost()))
    print("load", *(f"{load:.1f}" for load in os.getloadavg()))


if __name__ == "__main__":
    main()
