"""Print what the plugin adds to the bare SDK, how fast it stops the server, how long it holds the loop, and what TLS costs.

    pip install psutil trustme
    python benchmarks/bench_deepgram.py

The server is `DeepgramServer` in a process of its own, so that its work is not counted. Bare SDK and plugin are measured in
turn, call by call; the column "added" is the median of the differences of these pairs. No figure says anything of Deepgram's
own speed.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import ssl
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from pathlib import Path
from typing import Any, cast

import certifi
import psutil
import trustme

from beluga_voice import Chain, Session, stt, tts, turn
from beluga_voice.audio import Audio
from beluga_voice.builtin.recorded_line import RecordedLine
from beluga_voice.clock import run_simulated
from beluga_voice.engine import Context
from beluga_voice.testing import LoudVAD, quiet
from beluga_voice.testing.deepgram_server import DeepgramServer
from beluga_voice.testing.loopback import Socket
from beluga_voice.testing.tone_speech import say

PAIRS = 1_000
CALLS = 100
STOPS = 50
CONNECTIONS = 50
RATE_HZ = 16_000
FRAME = Audio(say("one")[:640], RATE_HZ)
LISTEN = {"model": "nova-3", "encoding": "linear16", "sample_rate": RATE_HZ}
SPEAK = {"model": "aura-2-thalia-en", "encoding": "linear16", "sample_rate": 24_000}
Call = Callable[[], Awaitable[object]]


class Echo(DeepgramServer):
    """Answers every message of audio with an interim result at once; tells when a call was stopped."""

    async def converse(self, socket: Socket) -> None:
        """As Deepgram does, but for sockets that want no punctuation."""
        if socket.request.query.get("punctuate") != ["false"]:
            await super().converse(socket)
            return
        words = [{"word": "one", "punctuated_word": "one", "start": 0.0, "end": 0.2, "confidence": 0.9}] * 8
        number = 0
        async for message in socket:
            if isinstance(message, bytes):
                number += 1
                alternative = {"transcript": f"one {number}", "confidence": 0.9, "words": words}
                info = {"name": "general", "version": "1", "arch": "nova"}
                await socket.send(
                    {
                        "type": "Results",
                        "channel_index": [0, 1],
                        "start": 0.0,
                        "duration": number * 0.02,
                        "is_final": False,
                        "speech_final": False,
                        "from_finalize": False,
                        "channel": {"alternatives": [alternative]},
                        "metadata": {"request_id": "r", "model_uuid": "u", "model_info": info},
                    }
                )


def serve(url: Any, stopped: Any, certificate: str = "") -> None:
    """Be the server, until the process is ended; with a certificate, over TLS."""

    async def main() -> None:
        echo = Echo()
        if certificate:
            echo.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            echo.tls.load_cert_chain(certificate)
        async with echo as server:
            server.chunk_every_ms = 0.0
            url.put(server.url)
            while True:  # tells when the client's Clear or goodbye came
                await asyncio.sleep(0.001)
                seen = sum(len(socket.received) + socket.closed.is_set() for socket in server.sockets)
                ended = sum(request.over.is_set() for request in server.requests)
                stopped.value = seen * 1_000_000 + ended
                slow = bool(server.requests) and "slow" in server.requests[-1].query.get("tag", "")
                server.chunk_every_ms = 100.0 if slow else 0.0

    asyncio.run(main())


async def pairs(name: str, bare: Call, ours: Call, count: int) -> None:
    """Measure both in turn."""
    times: list[tuple[float, float]] = []
    gc.collect()
    gc.disable()
    for number in range(count + count // 10):
        both = []
        for call in (bare, ours):
            began = time.perf_counter()
            await call()
            both.append((time.perf_counter() - began) * 1e6)
        if number >= count // 10:
            times.append((both[0], both[1]))
    gc.enable()
    medians = [statistics.median(side) for side in zip(*times)]
    added = statistics.median(ours - bare for bare, ours in times)
    print(f"{name:<44}{medians[0]:>10.0f} {medians[1]:>10.0f} {added:>10.0f}")


async def added(url: str) -> None:
    """What the plugin adds to each call."""
    given = {"api_key": "loopback-key", "base_url": url}
    ears = stt.new("deepgram", **given, punctuate=False)
    voice, over_http = tts.new("deepgram", **given), tts.new("deepgram", **given, transport="http")
    print(f"{'median us':<44}{'bare SDK':>10} {'plugin':>10} {'added':>10}")
    async with ears, voice, over_http, Context() as context, aclosing(ears.stream()) as stream:
        sdk = (await cast(Any, ears).client()).sdk
        async with sdk.listen.v1.connect(**LISTEN, punctuate=False) as socket, sdk.speak.v1.connect(**SPEAK) as speak:
            await stream.connect()

            async def bare_send() -> None:
                await socket.send_media(FRAME.pcm)

            async def our_send() -> None:
                await stream.send(FRAME)

            async def bare_result() -> None:
                await socket.send_media(FRAME.pcm)
                await socket.recv()

            async def our_result() -> None:
                await stream.send(FRAME)
                await anext(stream)

            await pairs("listen: send 20 ms", bare_send, our_send, PAIRS)
            await asyncio.sleep(0.5)
            for _ in range(PAIRS + PAIRS // 10):
                await socket.recv()
                await anext(stream)
            await pairs("listen: send 20 ms, wait for its result", bare_result, our_result, PAIRS)

            from deepgram.speak.v1.types import SpeakV1Text

            sockets = [speak]

            async def bare_speak() -> None:
                await sockets[0].send_text(SpeakV1Text(text="one two"))
                await sockets[0].send_flush()
                while getattr(await sockets[0].recv(), "type", None) != "Flushed":
                    pass

            handle = await context.handle(voice)

            async def our_speak() -> None:
                async for _ in handle.synthesize_stream(once("one two")):
                    pass

            await pairs("speak: a text over the open socket", bare_speak, our_speak, 17)  # 20 flushes a socket and minute

        async def bare_http() -> None:
            sounding = sdk.speak.v1.audio.generate(text="one two", container="none", **SPEAK)
            async for _ in sounding:
                pass

        async def our_http() -> None:
            async for _ in over_http.synthesize_stream(once("one two")):
                pass

        await pairs("speak: a text over HTTP", bare_http, our_http, CALLS)
        said = Audio(say("one two"), RATE_HZ)
        more = {"additional_query_parameters": {"sample_rate": RATE_HZ}}

        async def bare_batch() -> None:
            await sdk.listen.v1.media.transcribe_file(
                request=said.pcm, model="nova-3", encoding="linear16", request_options=more
            )

        async def our_batch() -> None:
            await ears.transcribe(said)

        await pairs("listen: a batch over HTTP", bare_batch, our_batch, CALLS)


async def once(text: str) -> AsyncIterator[str]:
    """One text."""
    yield text


async def stops(url: str, stopped: Any) -> None:
    """How long it takes from closing what reads until the server has been told."""
    given = {"api_key": "loopback-key", "base_url": url}
    text = "one two three four five six seven eight nine ten " * 4

    async def cut_voice(voice: tts.TTS) -> Call:
        pieces = cast(Any, voice.synthesize_stream(once(text)))
        await anext(pieces)
        closing: Call = pieces.aclose
        return closing

    async def cut_ears(ears: stt.STT) -> Call:
        stream = ears.stream()
        await stream.send(FRAME)
        return stream.aclose

    async def measure(name: str, begin: Callable[[], Awaitable[Call]]) -> None:
        took = []
        for _ in range(STOPS):
            close = await begin()
            await asyncio.sleep(0.02)
            before = stopped.value
            began = time.perf_counter()
            await close()
            while stopped.value == before:  # noqa: ASYNC110 (another process tells)
                await asyncio.sleep(0.0005)
            took.append((time.perf_counter() - began) * 1e3)
            await asyncio.sleep(0.02)
        print(f"{name:<44}{statistics.median(took):>10.1f} {max(took):>10.1f}")

    print(f"\n{'closed -> server told, ms':<44}{'median':>10} {'worst':>10}")
    slow = {"extra": {"tag": "slow"}}
    ears = stt.new("deepgram", **given)
    voice = tts.new("deepgram", **given, **slow)
    over_http = tts.new("deepgram", **given, **slow, transport="http")
    async with ears, voice, over_http:
        await measure("listen: stream closed", lambda: cut_ears(ears))
        async with Context() as context:
            handle = await context.handle(voice)
            await measure("speak: reply cut, socket kept (Clear)", lambda: cut_voice(handle))
        await measure("speak: reply cut, socket of its own", lambda: cut_voice(voice))
        await measure("speak: reply cut, HTTP", lambda: cut_voice(over_http))


async def holds(url: str) -> None:
    """The longest step of the event loop, in processor time, from the end of prewarm on: the first calls, and more."""
    given = {"api_key": "loopback-key", "base_url": url}
    print(f"\n{'longest step of the loop, ms':<44}{'processor':>10} {'wall':>10}")
    ears, flux, voice = stt.new("deepgram", **given), stt.new("deepgram-flux", **given), tts.new("deepgram", **given)
    over_http = tts.new("deepgram", **given, transport="http")
    with longest_step() as longest:
        async with ears, flux, voice, over_http:
            print(f"{'prewarm':<44}{longest['cpu']:>10.1f} {longest['wall']:>10.1f}")
            for round_of in ("first calls after it", "later calls"):
                longest.update(cpu=0.0, wall=0.0)
                async with Context() as context, aclosing(ears.stream()) as one, aclosing(flux.stream()) as other:
                    for stream in (one, other):
                        for _ in range(50):
                            await stream.send(FRAME)
                        await stream.finalize()
                        while not getattr(await anext(stream), "closes", False):
                            pass
                    for speaker in (await context.handle(voice), over_http):
                        async for _ in speaker.synthesize_stream(once("one two three four five")):
                            pass
                    await ears.transcribe(Audio(say("one two"), RATE_HZ))
                print(f"{round_of:<44}{longest['cpu']:>10.1f} {longest['wall']:>10.1f}")


@contextmanager
def longest_step() -> Iterator[dict[str, float]]:
    """The longest step of the event loop so far, in ms."""
    longest = {"cpu": 0.0, "wall": 0.0}
    run = asyncio.events.Handle._run  # type: ignore[attr-defined]

    def timed(handle: Any) -> None:
        cpu, wall = time.thread_time(), time.perf_counter()
        run(handle)
        longest["cpu"] = max(longest["cpu"], (time.thread_time() - cpu) * 1e3)
        longest["wall"] = max(longest["wall"], (time.perf_counter() - wall) * 1e3)

    asyncio.events.Handle._run = timed  # type: ignore[attr-defined]
    try:
        yield longest
    finally:
        asyncio.events.Handle._run = run  # type: ignore[attr-defined]


def over_tls(url: str, side: str) -> None:
    """What each of many open connections costs, in a process of its own."""

    async def main() -> None:
        async with stt.new("deepgram", api_key="loopback-key", base_url=url) as ears, AsyncExitStack() as stack:
            sdk = (await cast(Any, ears).client()).sdk
            process, rss = psutil.Process(), 0
            steps: list[float] = []

            async def connect() -> None:
                if side == "bare SDK":
                    await stack.enter_async_context(sdk.listen.v1.connect(**LISTEN))
                else:
                    await (await stack.enter_async_context(aclosing(ears.stream()))).connect()

            with longest_step() as longest:
                for number in range(CONNECTIONS + 2):
                    if number == 2:  # what is made once is made
                        gc.collect()
                        rss = process.memory_info().rss
                        steps.clear()
                    await asyncio.sleep(0)  # the step that collected ends
                    longest.update(cpu=0.0, wall=0.0)
                    await connect()
                    steps.append(longest["cpu"])
            gc.collect()
            kb = (process.memory_info().rss - rss) / CONNECTIONS / 1024
            print(f"{side:<44}{statistics.median(steps):>10.1f} {max(steps):>10.1f} {kb:>10.0f}")

    asyncio.run(main())


def tls() -> None:
    """What the SDK and the plugin pay for a connection; the authorities of `certifi` are trusted, and the server's own."""
    print(f"\n{'each connection over TLS':<44}{'loop, ms':>10} {'worst':>10} {'RSS, kB':>10}")
    authority, spawn = trustme.CA(), multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        certificate, trusted = Path(folder, "server.pem"), Path(folder, "authorities.pem")
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
        trusted.write_bytes(Path(certifi.where()).read_bytes() + authority.cert_pem.bytes())
        os.environ["SSL_CERT_FILE"] = str(trusted)
        url, stopped = spawn.Queue(), spawn.Value("q", 0)
        server = spawn.Process(target=serve, args=(url, stopped, str(certificate)), daemon=True)
        server.start()
        try:
            address = url.get(timeout=30)
            for side in ("bare SDK", "plugin"):
                child = spawn.Process(target=over_tls, args=(address, side))
                child.start()
                child.join()
        finally:
            server.terminate()
            del os.environ["SSL_CERT_FILE"]


def connections() -> None:
    """How many connections a session of two turns makes, in simulated time."""

    async def reply(text: str, history: object) -> str:
        return f"I heard {text}. one two three four."

    async def main() -> None:
        async with DeepgramServer() as server:
            given = {"api_key": server.api_key, "base_url": server.url}
            ears = {"deepgram": (LoudVAD(), turn.new("silence"), stt.new("deepgram", **given))}
            ears["deepgram-flux"] = (stt.new("deepgram-flux", **given),)
            for name, stages in ears.items():
                before = len(server.requests)
                caller = quiet(500) + say("hello one") + quiet(6_000) + say("thank you") + quiet(2_000)
                chain = Chain(*stages, reply, tts.new("deepgram", **given))
                session = Session(chain, RecordedLine(Audio(caller, RATE_HZ), tail_ms=6_000.0))
                await session.run()
                made = [request.path for request in server.requests[before:]]
                print(f"{name + ': ' + str(len(session.turns)) + ' turns':<44}{len(made):>10}   {', '.join(sorted(made))}")

    print(f"\n{'upstream connections of a session':<44}{'made':>10}")
    run_simulated(main())


def main() -> None:
    """Print all tables."""
    spawn = multiprocessing.get_context("spawn")
    url, stopped = spawn.Queue(), spawn.Value("q", 0)
    server = spawn.Process(target=serve, args=(url, stopped), daemon=True)
    server.start()
    try:
        address = url.get(timeout=30)
        asyncio.run(holds(address))
        print()
        asyncio.run(added(address))
        asyncio.run(stops(address, stopped))
        tls()
        connections()
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
