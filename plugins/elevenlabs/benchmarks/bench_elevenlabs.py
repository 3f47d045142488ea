"""Print what the plugin adds to the bare SDK and the bare socket, against the loopback server, and what its choices bring.

    python plugins/elevenlabs/benchmarks/bench_elevenlabs.py

Latencies are in real time, each pair of calls one after the other, the server as fast as it can; shown is the median of the
differences. When the first audio comes under which setting of the protocol is in simulated time: the server buffers text as the
documentation says, and makes sound at once, so what remains is the waiting for text.
"""

from __future__ import annotations

import asyncio
import base64
import json
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

from beluga_voice_elevenlabs.stt import ElevenLabsSTT
from beluga_voice_elevenlabs.tts import ElevenLabsTTS
from elevenlabs.realtime import AudioFormat, CommitStrategy, RealtimeEvents
from websockets.asyncio.client import connect

from beluga_voice.audio import Audio
from beluga_voice.clock import run_simulated, wall_ms
from beluga_voice.engine import Context
from beluga_voice.testing.elevenlabs_server import ElevenLabsServer
from beluga_voice.testing.tone_speech import say

PAIRS = 100
SENTENCE = "One two three four five."
VOICE = "JBFqnCBsd6RMkjVDRZzb"
SOCKET = f"/v1/text-to-speech/{VOICE}/multi-stream-input?model_id=eleven_flash_v2_5&output_format=pcm_24000&sync_alignment=true"
FAST = 1e9
LONG = "One two three four five six seven eight nine ten eleven twelve. "

Times = tuple[float, float]  # to the first and to the last, in ms


async def given(*texts: str) -> AsyncIterator[str]:
    """A text that is there at once."""
    for text in texts:
        yield text


# --- with the plugin, and without ------------------------------------------------------------------------------------


async def speak(voice: ElevenLabsTTS) -> Times:
    """One reply by the plugin."""
    begun_ms, first_ms = wall_ms(), 0.0
    async for _ in voice.synthesize_stream(given(SENTENCE)):
        first_ms = first_ms or wall_ms()
    return first_ms - begun_ms, wall_ms() - begun_ms


async def speak_bare(socket: object, name: str) -> Times:
    """One reply by the protocol alone: the same messages, the audio decoded."""
    begun_ms, first_ms = wall_ms(), 0.0
    for message in ({"text": " "}, {"text": f"{SENTENCE} ", "flush": True}, {"close_context": True}):
        await socket.send(json.dumps({**message, "context_id": name}))
    async for message in socket:
        told = json.loads(message)
        if told.get("isFinal"):
            break
        base64.b64decode(told["audio"])
        first_ms = first_ms or wall_ms()
    return first_ms - begun_ms, wall_ms() - begun_ms


async def speak_by_sdk(sdk: object) -> Times:
    """One reply by the SDK alone."""
    begun_ms, first_ms = wall_ms(), 0.0
    options = {"model_id": "eleven_flash_v2_5", "output_format": "pcm_24000", "request_options": {"chunk_size": 1_920}}
    async for _ in sdk.text_to_speech.stream(VOICE, text=SENTENCE, **options):
        first_ms = first_ms or wall_ms()
    return first_ms - begun_ms, wall_ms() - begun_ms


async def hear(stream: object, pcm: bytes) -> Times:
    """One utterance by the plugin: what sending takes, and from the request to the final."""
    begun_ms = wall_ms()
    for at in range(0, len(pcm), 640):
        await stream.send(Audio(pcm[at : at + 640], 16_000))
    sent_ms = wall_ms()
    await stream.finalize()
    while not (await anext(stream)).closes:
        pass
    return sent_ms - begun_ms, wall_ms() - sent_ms


async def hear_bare(connection: object, told: asyncio.Queue[object], pcm: bytes) -> Times:
    """One utterance by the SDK alone, in pieces of 100 ms."""
    begun_ms = wall_ms()
    for at in range(0, len(pcm), 3_200):
        await connection.send({"audio_base_64": base64.b64encode(pcm[at : at + 3_200]).decode()})
    sent_ms = wall_ms()
    await connection.commit()
    await told.get()
    return sent_ms - begun_ms, wall_ms() - sent_ms


async def paired(one: Callable[[int], Awaitable[Times]], other: Callable[[int], Awaitable[Times]]) -> str:
    """What `one` takes more than `other`: medians in us, of the first and of the second of their times."""
    both = []
    for number in range(PAIRS + 5):
        a, b = (one, other) if number % 2 else (other, one)
        first, second = await a(number), await b(number)
        both.append((first, second) if number % 2 else (second, first))
    more = [[1_000 * (ours[at] - bare[at]) for ours, bare in both[5:]] for at in (0, 1)]
    bare = [1_000 * statistics.median(times[at] for _, times in both[5:]) for at in (0, 1)]
    return " | ".join(f"{statistics.median(more[at]):+6.0f} us ({bare[at]:.0f} us bare)" for at in (0, 1))


async def latencies() -> None:
    """What the plugin adds."""
    async with ElevenLabsServer() as server:
        server.pace = FAST
        access = {"api_key": server.api_key, "base_url": server.url}
        key = {"xi-api-key": server.api_key}
        async with ElevenLabsTTS(**access) as engine, Context() as context:
            voice = await context.handle(engine)
            url = server.url.replace("http", "ws") + SOCKET + "&auto_mode=true"
            async with connect(url, additional_headers=key, compression=None) as socket:
                print(
                    "voice, socket   first audio, whole:",
                    await paired(lambda _: speak(voice), lambda n: speak_bare(socket, f"c{n}")),
                )
        async with ElevenLabsTTS(transport="http", **access) as engine:
            sdk = (await engine.client()).sdk
            print("voice, requests first audio, whole:", await paired(lambda _: speak(engine), lambda _: speak_by_sdk(sdk)))
        async with ElevenLabsSTT(**access) as engine, aclosing(engine.stream()) as stream:
            sdk, told, pcm = (await engine.client()).sdk, asyncio.Queue(), say(SENTENCE)
            connection = await sdk.speech_to_text.realtime.connect(
                {
                    "model_id": "scribe_v2_realtime",
                    "audio_format": AudioFormat.PCM_16000,
                    "sample_rate": 16_000,
                    "commit_strategy": CommitStrategy.MANUAL,
                    "include_timestamps": True,
                }
            )
            connection.on(RealtimeEvents.COMMITTED_TRANSCRIPT_WITH_TIMESTAMPS, told.put_nowait)
            print(
                "Scribe  sending 1.3 s, to its final:",
                await paired(lambda _: hear(stream, pcm), lambda _: hear_bare(connection, told, pcm)),
            )
            await connection.close()


# --- a session -------------------------------------------------------------------------------------------------------


async def session() -> None:
    """Connections, how soon an interruption reaches the service, and how long the loop is held."""
    async with ElevenLabsServer() as server:
        access = {"api_key": server.api_key, "base_url": server.url}
        for transport in ("websocket", "http"):
            before = len(server.sockets)
            async with ElevenLabsTTS(transport=transport, **access) as engine, Context() as context:
                voice = await context.handle(engine)
                held_ms = await longest_hold(replies(voice, 20))
                stops_ms = [await interrupted(server, voice) for _ in range(20)]
            sockets = len(server.sockets) - before
            print(f"voice, {transport}: {sockets} sockets for 40 replies, 20 of them interrupted; ", end="")
            print(
                f"interruption to service: median {statistics.median(stops_ms):.2f} ms, worst {max(stops_ms):.2f} ms; ", end=""
            )
            print(f"loop held at most {held_ms:.1f} ms")
        before = len(server.sockets)
        async with ElevenLabsSTT(**access) as engine, aclosing(engine.stream()) as stream:
            held_ms = await longest_hold(utterances(stream, 20))
        print(f"Scribe: {len(server.sockets) - before} sockets for 20 utterances; loop held at most {held_ms:.1f} ms")


async def replies(voice: ElevenLabsTTS, count: int) -> None:
    """Some replies."""
    for _ in range(count):
        async for _ in voice.synthesize_stream(given(SENTENCE)):
            pass


async def utterances(stream: object, count: int) -> None:
    """Some utterances."""
    for _ in range(count):
        await hear(stream, say("yes"))


async def interrupted(server: ElevenLabsServer, voice: ElevenLabsTTS) -> float:
    """From closing the reply to the service's knowing: its context closed, or its connection."""
    server.pace = 10.0
    closed, requests = server.counters["contexts_closed"], len(server.requests)

    async def agent() -> AsyncIterator[str]:
        yield LONG
        await asyncio.sleep(60)

    pieces = voice.synthesize_stream(agent())
    await anext(pieces)
    begun_ms = wall_ms()
    closing = asyncio.create_task(pieces.aclose())
    over = server.requests[-1].over if len(server.requests) > requests else None
    for _ in range(1_000_000):
        if server.counters["contexts_closed"] > closed or (over is not None and over.is_set()):
            break
        await asyncio.sleep(0)
    took_ms = wall_ms() - begun_ms
    await closing
    await asyncio.sleep(0.4)  # in which the service finishes what it had begun
    server.pace = 20.0
    return took_ms


async def longest_hold(work: Awaitable[None]) -> float:
    """The longest the loop did not come round while `work` ran; the server's own work is in the same loop."""
    longest_ms = 0.0
    task = asyncio.ensure_future(work)
    while not task.done():
        begun_ms = wall_ms()
        await asyncio.sleep(0)
        longest_ms = max(longest_ms, wall_ms() - begun_ms)
    await task
    return longest_ms


# --- the protocol's settings -----------------------------------------------------------------------------------------

AGENTS = {
    "short first sentence (11 letters)": "Sure thing. I heard you say one two three four five six seven eight nine.",
    "usual (40 letters)": "The weather in paris is nice right now. Tell me about the time and place you like.",
    "long, with clauses (125 letters)": "I heard one two three four five six seven, eight nine ten eleven twelve, "
    "red green blue and left right, and tell me about it now. And you?",
    "long, without (110 letters)": "I heard " + "one two three four five six seven " * 3 + ". And you?",
}


async def first_audio_ms(text: str, letters_per_s: float, schedule: list[int] | None) -> float:
    """Text in tokens of four letters: by the plugin (None), or as it comes with that chunk_length_schedule and a flush."""
    async with ElevenLabsServer() as server:
        clock = server.clock

        async def tokens() -> AsyncIterator[str]:
            for at in range(0, len(text), 4):
                await clock.sleep_ms(4_000 / letters_per_s)
                yield text[at : at + 4]

        if schedule is None:
            async with ElevenLabsTTS(api_key=server.api_key, base_url=server.url) as engine, Context() as context:
                voice = await context.handle(engine)
                await clock.sleep_ms(1_000)
                begun_ms = clock.now_ms()
                async with aclosing(voice.synthesize_stream(tokens())) as pieces:
                    await anext(pieces)
                    return clock.now_ms() - begun_ms
        url = server.url.replace("http", "ws") + SOCKET
        async with connect(url, additional_headers={"xi-api-key": server.api_key}) as socket:
            config = {"generation_config": {"chunk_length_schedule": schedule}}
            await socket.send(json.dumps({"text": " ", "context_id": "a", **config}))
            begun_ms = clock.now_ms()

            async def feed() -> None:
                held = ""
                async for token in tokens():
                    *words, held = (held + token).split(" ")
                    for word in words:
                        await socket.send(json.dumps({"text": f"{word} ", "context_id": "a"}))
                await socket.send(json.dumps({"text": f"{held} ", "context_id": "a", "flush": True}))

            feeding = asyncio.create_task(feed())
            async for message in socket:
                if json.loads(message).get("audio"):
                    feeding.cancel()
                    return clock.now_ms() - begun_ms
    raise AssertionError("no audio came")


def settings() -> None:
    """When the first audio comes."""
    print("\nfirst audio after the first letter, ms: whole sentences with auto_mode (the plugin), as it comes [50], [120, ...]")
    for name, text in AGENTS.items():
        for letters_per_s in (80, 200, 400):
            times = [run_simulated(first_audio_ms(text, letters_per_s, one)) for one in (None, [50], [120, 160, 250, 290])]
            print(f"{name:35} {letters_per_s:4} letters/s: " + " ".join(f"{ms:6.0f}" for ms in times))


if __name__ == "__main__":
    asyncio.run(latencies())
    asyncio.run(session())
    settings()
