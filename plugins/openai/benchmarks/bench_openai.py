"""Print what the plugin adds to the bare SDK, how soon a cancelled call has stopped upstream, and how long the loop is held.

    python benchmarks/bench_openai.py

The loopback server runs in a process of its own. Bare SDK and plugin make the same call with one client, in turn; the median
of the differences is told, in us. The loop's longest hold is taken in new processes, at the first calls after `prewarm`.
Other work on the machine disturbs times of the clock; those of the processor, of this process alone, less.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from multiprocessing.connection import Connection
from typing import Any

from beluga_voice_openai.wav import wav

from beluga_voice import agent, stt, tts
from beluga_voice.audio import Audio
from beluga_voice.testing.loopback import Answer, Request
from beluga_voice.testing.openai_server import OpenAIServer
from beluga_voice.testing.tone_speech import say

PAIRS = 400
CANCELS = 60
PROCESSES = 5
TEXT = "one two three four five six seven eight nine ten"
HEARD = Audio(say("one two three four", 16_000), 16_000)
KINDS = ("tts", "agent chat", "agent responses", "stt batch", "stt realtime")

Call = Callable[[], Awaitable[object]]


class Measured(OpenAIServer):
    """Tells when its last call ended, of the clock that all processes share, and takes its time when told to."""

    async def answer(self, request: Request) -> Answer:
        if request.path == "/ended":
            last = [one for one in self.requests if one.path != "/ended"][-1]
            await last.over.wait()
            return Answer(200, {}, f"{last.ended_ms}".encode())
        if request.path == "/slow":
            self.word_ms = 100.0
            return Answer(200)
        return await super().answer(request)


def serve(pipe: Connection) -> None:
    """The server's process."""

    async def main() -> None:
        async with Measured() as server:
            pipe.send(server.url)
            await asyncio.get_running_loop().run_in_executor(None, pipe.recv)

    asyncio.run(main())


def engine_of(kind: str, url: str) -> Any:
    """The engine of that name, at the loopback server."""
    given = {"api_key": "loopback-key", "base_url": f"{url}/v1"}
    makes: dict[str, Callable[[], Any]] = {
        "tts": lambda: tts.new("openai", **given),
        "agent chat": lambda: agent.new("openai", api="chat", instructions="", **given),
        "agent responses": lambda: agent.new("openai", api="responses", instructions="", **given),
        "stt batch": lambda: stt.new("openai", **given),
        "stt realtime": lambda: stt.new("openai", mode="realtime", **given),
    }
    return makes[kind]()


async def one_text() -> Any:
    """What the voice is given."""
    yield TEXT


def with_plugin(kind: str, engine: Any) -> Call:
    """The first piece of an answer, or the whole transcription, by the plugin."""

    async def first_piece() -> object:
        pieces = engine.synthesize_stream(one_text()) if kind == "tts" else engine.reply("hello", (), None)
        async with aclosing(pieces):
            return await anext(pieces)

    async def transcription() -> object:
        return await engine.transcribe(HEARD)

    return transcription if kind.startswith("stt") else first_piece


def bare(kind: str, client: Any) -> Call:
    """The same by the SDK alone."""

    async def speech() -> object:
        request = {"model": "gpt-4o-mini-tts", "voice": "alloy", "input": TEXT, "response_format": "pcm"}
        speaking = client.audio.speech.with_streaming_response.create(**request)
        async with speaking as response, aclosing(response.iter_bytes()) as chunks:
            return await anext(chunks)

    async def chat() -> object:
        messages = [{"role": "user", "content": "hello"}]
        stream = await client.chat.completions.create(
            model="gpt-5.4-mini", messages=messages, stream=True, stream_options={"include_usage": True}
        )
        async with stream:
            async for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    return chunk.choices[0].delta.content
        return None

    async def responses() -> object:
        asked = [{"role": "user", "content": "hello"}]
        async with await client.responses.create(model="gpt-5.4-mini", input=asked, stream=True, store=False) as stream:
            async for event in stream:
                if event.type == "response.output_text.delta":
                    return event.delta
        return None

    async def transcription() -> object:
        file = ("speech.wav", wav(HEARD), "audio/wav")
        return await client.audio.transcriptions.create(model="gpt-transcribe", file=file, language="en")

    return {"tts": speech, "agent chat": chat, "agent responses": responses, "stt batch": transcription}[kind]


async def took_us(call: Call) -> tuple[float, float]:
    """How long one call takes, in us: of the clock, of the processor."""
    began, worked = time.perf_counter_ns(), time.process_time_ns()
    await call()
    return (time.perf_counter_ns() - began) / 1_000.0, (time.process_time_ns() - worked) / 1_000.0


async def added(kind: str, url: str) -> str:
    """The medians of the bare calls and of what the plugin adds to them."""
    async with engine_of(kind, url) as engine:
        calls = bare(kind, await engine.client()), with_plugin(kind, engine)
        for call in calls * 10:
            await call()
        alone: list[tuple[float, float]] = []
        more: list[tuple[float, float]] = []
        for number in range(PAIRS):
            first, second = calls if number % 2 else calls[::-1]
            took = {first: await took_us(first), second: await took_us(second)}
            alone.append(took[calls[0]])
            more.append((took[calls[1]][0] - took[calls[0]][0], took[calls[1]][1] - took[calls[0]][1]))
    return ", ".join(
        f"{unit}: {statistics.median(column):6.0f} us bare, {statistics.median(extra):+5.0f} by the plugin"
        for unit, column, extra in zip(("clock", "processor"), zip(*alone), zip(*more))
    )


async def stopped(kind: str, url: str) -> str:
    """From the cancelling of a call in mid-answer to its end at the server."""
    import httpx2

    took_ms = []
    async with engine_of(kind, url) as engine, httpx2.AsyncClient(base_url=url, headers={"authorization": "x"}) as other:
        await other.get("/slow")
        for _ in range(CANCELS):
            pieces = engine.synthesize_stream(one_text()) if kind == "tts" else engine.reply("hello", (), None)
            await anext(pieces)
            waiting = asyncio.ensure_future(anext(pieces))
            await asyncio.sleep(0.02)
            cancelled_ms = time.monotonic_ns() / 1e6
            waiting.cancel()
            await asyncio.wait([waiting])
            took_ms.append(float((await other.get("/ended")).text) - cancelled_ms)
    took_ms.sort()
    return f"{statistics.median(took_ms):6.2f} ms median, {took_ms[-1]:6.2f} ms worst of {CANCELS}"


async def held(kind: str, url: str) -> float:
    """The longest that the loop was held by the first two calls after `prewarm`, in ms."""
    longest_ms, done = 0.0, False

    async def watch() -> None:
        nonlocal longest_ms
        while not done:
            before = time.perf_counter_ns()
            await asyncio.sleep(0)
            longest_ms = max(longest_ms, (time.perf_counter_ns() - before) / 1e6)

    async with engine_of(kind, url) as engine:
        watching = asyncio.ensure_future(watch())
        for _ in range(2):
            await with_plugin(kind, engine)()
        done = True
        await watching
    return longest_ms


def main() -> None:
    """Measure and print."""
    if len(sys.argv) == 3:
        print(json.dumps(asyncio.run(held(sys.argv[1], sys.argv[2]))))
        return
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    server.start()
    url = here.recv()
    print(f"until the first sound, the first word, or the whole transcription ({PAIRS} pairs)")
    for kind in KINDS[:4]:
        print(f"  {kind:16} {asyncio.run(added(kind, url))}")
    print(f"the loop's longest hold at the first calls after prewarm, in each of {PROCESSES} processes")
    for kind in KINDS:
        runs = [
            subprocess.run([sys.executable, __file__, kind, url], capture_output=True, check=True) for _ in range(PROCESSES)
        ]
        print(f"  {kind:16} {', '.join(f'{json.loads(run.stdout):.1f}' for run in runs)} ms")
    print("from cancelling in mid-answer to the end at the server")
    for kind in KINDS[:3]:
        print(f"  {kind:16} {asyncio.run(stopped(kind, url))}")
    here.send("end")
    server.join()


if __name__ == "__main__":
    main()
