"""How long a conversation waits when a provider falls ill, and what the framework's part in it costs.

The providers are scripts, in simulated time; the words are tones that they really hear. A fault begins at a random moment of an
utterance, or of the wait for its words; the stand-by takes 200 ms to answer.

A voice falls ill at a random moment of a sentence's sound. It makes its sound twice as fast as that is played; "silence" is the
longest gap that the caller hears. "Ended" is a voice that ends a sentence too early without an error, at a random moment.

usage: python benchmarks/bench_failover.py [stt] [tts]
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable

from beluga_voice import Audio, Chain, stt, tts
from beluga_voice.chain import processor
from beluga_voice.clock import Clock, run_simulated
from beluga_voice.engine import Context
from beluga_voice.errors import ConnectFailedError, ProtocolError
from beluga_voice.frames import (
    AudioIn,
    AudioOut,
    FailedOver,
    Frame,
    SpeechEnded,
    SpeechStarted,
    TextDelta,
    Transcript,
    TurnEnded,
    Word,
)
from beluga_voice.resilience import ResilienceOptions
from beluga_voice.testing import quiet
from beluga_voice.testing.tone_speech import GAP_MS, VOCABULARY, WORD_MS, say, understand, word_times

CLOCK = Clock()
RATE_HZ = 16_000
RUNS = 300
PIECE = 1_280  # bytes: 40 ms
ANSWER_MS, STANDBY_MS, SLOW_MS, QUIET_MS = 100.0, 200.0, 5_000.0, 700.0


def shares(values: list[float]) -> str:
    """Median, 95th percentile and worst."""
    values = sorted(values)
    return f"p50 {statistics.median(values):7.1f}  p95 {values[int(len(values) * 0.95)]:7.1f}  max {values[-1]:7.1f}"


# --- speech to text --------------------------------------------------------------------------------------------------


class Hearing(stt.STT):
    """A remote recogniser that hears tones, well until `ill_ms` after its stream's first audio."""

    def __init__(self, name: str, answer_ms: float, fault: str = "", ill_ms: float = 0.0) -> None:
        self.provider, self.account = name, f"{name}@there"
        self.answer_ms, self.fault, self.ill_ms = answer_ms, fault, ill_ms

    def stream(self) -> stt.STTStream:
        return HearingStream(self)


class HearingStream(stt.STTStream):
    def __init__(self, engine: Hearing) -> None:
        self.engine, self.pcm, self.ill = engine, b"", False
        self.out: asyncio.Queue[Transcript | Exception] = asyncio.Queue()
        self.began = False

    async def send(self, audio: Audio) -> None:
        self.pcm += audio.pcm
        if self.engine.fault and not self.began:
            CLOCK.call_later_ms(self.engine.ill_ms, self.fall_ill)
        self.began = True

    def fall_ill(self) -> None:
        self.ill = True
        if self.engine.fault == "killed":
            self.out.put_nowait(ConnectFailedError("cut"))
        elif self.engine.fault == "garbage":
            self.out.put_nowait(ProtocolError("garbage"))

    async def finalize(self) -> None:
        words, self.pcm = understand(self.pcm, RATE_HZ), b""
        slow = self.ill and self.engine.fault == "slow"
        CLOCK.call_later_ms(SLOW_MS if slow else self.engine.answer_ms, self.answer, Transcript(words, closes=True))

    def answer(self, transcript: Transcript) -> None:
        if not (self.ill and self.engine.fault == "hung"):
            self.out.put_nowait(transcript)

    async def __anext__(self) -> Transcript:
        item = await self.out.get()
        if isinstance(item, Exception):
            raise item
        return item

    async def aclose(self) -> None:
        pass


@processor(makes=(SpeechStarted, SpeechEnded, TurnEnded))
async def told(frames: AsyncIterator[Frame], context: Context) -> AsyncIterator[Frame]:
    async for frame in frames:
        yield frame


async def utterance(engine: stt.STT, pcm: bytes) -> tuple[list[Transcript], list[float], float, float]:
    """Say one utterance: its finals, when each came, when the turn ended, when the stand-by took over (or 0)."""
    finals: list[Transcript] = []
    at: dict[str, float] = {"over": 0.0}
    times: list[float] = []
    done = asyncio.Event()

    async def line() -> AsyncIterator[Frame]:
        yield SpeechStarted(0.0, 0.0, 0.0)
        for start in range(0, len(pcm), 640):
            piece = pcm[start : start + 640]
            yield AudioIn(piece, RATE_HZ, start / 32)
            await CLOCK.sleep_ms(len(piece) / 32)
        yield SpeechEnded(len(pcm) / 32, len(pcm) / 32)
        yield TurnEnded(len(pcm) / 32, "line")
        await done.wait()

    async with Context() as context, Chain(told, engine).process(context.feed(line()), context) as frames:
        async for frame in frames:
            if isinstance(frame, TurnEnded):
                at["ended"] = CLOCK.now_ms()
            elif isinstance(frame, FailedOver):
                at["over"] = CLOCK.now_ms()
            elif isinstance(frame, Transcript) and frame.is_final:
                finals.append(frame)
                times.append(CLOCK.now_ms())
                if frame.closes:
                    done.set()
    return finals, times, at["ended"], at["over"]


def stt_switches(fault: str, runs: int = RUNS) -> None:
    """Faults of one kind at random moments: waits of the caller, and switch times."""
    chance = random.Random(fault)
    waits, switches, whole = [], [], 0
    for _ in range(runs):
        words = " ".join(chance.choices(VOCABULARY, k=chance.randint(2, 12)))
        pcm = say(words) + quiet(QUIET_MS)
        audio_ms = len(pcm) / 32
        ill_ms = chance.uniform(0.0, audio_ms + ANSWER_MS - 1.0)
        engines = Hearing("first", ANSWER_MS, fault, ill_ms), Hearing("second", STANDBY_MS)
        options = ResilienceOptions(retries=0)  # straight to the stand-by
        finals, times, ended_ms, over_ms = run_simulated(utterance(stt.failover(*engines, options=options), pcm))
        whole += " ".join(one.text for one in finals if one.text) == words
        waits.append(times[-1] - ended_ms)
        if over_ms:
            switches.append(times[-1] - max(over_ms, ended_ms))
    print(f"stt {fault:8s} whole {whole}/{runs}   turn's end -> words: {shares(waits)} ms")
    print(f"{'':12s} {len(switches)} switched       failure or deadline -> words: {shares(switches)} ms")


def cpu_ms(work: Callable[[], object], runs: int = 200) -> float:
    """Mean CPU time of `work()` in ms."""
    work()
    began = time.process_time()
    for _ in range(runs):
        work()
    return (time.process_time() - began) / runs * 1e3


def stt_cost() -> None:
    """What a switch costs in CPU: a conversation with one, less the same with none, both with the stand-by's hearing."""
    pcm = say("one two three four five six seven eight") + quiet(QUIET_MS)

    def talk(*engines: Hearing) -> Callable[[], object]:
        return lambda: run_simulated(utterance(stt.failover(*engines, options=ResilienceOptions(retries=0)), pcm))

    second = Hearing("second", STANDBY_MS)
    well_ms = cpu_ms(talk(Hearing("first", ANSWER_MS), second))
    over_ms = cpu_ms(talk(Hearing("first", ANSWER_MS, "killed", 1_000.0), second))
    frames = len(pcm) // 640
    print(f"stt CPU of an utterance of {frames} frames: {well_ms:.2f} ms; a switch at 1,000 ms: {over_ms - well_ms:+.2f} ms")


def stt_part() -> None:
    for fault in ("killed", "hung", "slow", "garbage"):
        stt_switches(fault)
    stt_cost()


# --- text to speech --------------------------------------------------------------------------------------------------


class Speaking(tts.TTS):
    """A remote voice that speaks in tones, well until `ill_ms` of a sentence's sound."""

    def __init__(self, name: str, answer_ms: float, fault: str = "", ill_ms: float = 0.0, *, times: bool = False) -> None:
        self.provider, self.account = name, f"{name}@there"
        self.answer_ms, self.fault, self.ill_ms, self.times = answer_ms, fault, ill_ms, times
        self.capabilities = tts.TTSCapabilities(sample_rate_hz=RATE_HZ, word_times=times)  # type: ignore[misc]

    async def synthesize_stream(self, texts: AsyncIterator[str]) -> AsyncIterator[AudioOut]:
        async for text in texts:
            await CLOCK.sleep_ms(self.answer_ms)
            pcm, times = say(text), word_times(text) if self.times else []
            for start in range(0, len(pcm), PIECE):
                piece, from_ms, to_ms = pcm[start : start + PIECE], start / 32, (start + PIECE) / 32
                if self.fault and to_ms > self.ill_ms:
                    room = max(0, 2 * int((self.ill_ms - from_ms) * 16))
                    if room:
                        yield AudioOut(piece[:room], RATE_HZ)
                    if self.fault in ("empty", "ended"):
                        return
                    await self.fall_ill()
                    piece = piece[room:]
                words = tuple(Word(*word) for word in times if from_ms <= word[1] < to_ms)
                yield AudioOut(piece, RATE_HZ, "", words)
                await CLOCK.sleep_ms(len(piece) / 64)

    async def fall_ill(self) -> None:
        if self.fault == "killed":
            raise ConnectFailedError("cut")
        if self.fault == "garbage":
            raise ProtocolError("garbage")
        await CLOCK.sleep_ms(500.0 if self.fault == "drip" else 1e9)


class Noting(Context):
    """Notes when a stand-by took over."""

    over_ms = 0.0

    def emit(self, frame: Frame) -> None:
        if type(frame) is FailedOver:
            self.over_ms = CLOCK.now_ms()


async def sentence(engine: tts.TTS, text: str) -> tuple[bytes, float, float]:
    """Say a text: its sound, the longest silence in the middle of it, from the decision to the stand-by's first sound."""
    pcm, played_ms, silence_ms, switch_ms = b"", 0.0, 0.0, 0.0

    async def words() -> AsyncIterator[Frame]:
        yield TextDelta(text)

    async with Noting() as context, Chain._of((engine.as_frame_processor(),)).process(words(), context) as frames:
        async for frame in frames:
            if isinstance(frame, AudioOut) and frame.pcm:
                now_ms = CLOCK.now_ms()
                silence_ms = max(silence_ms, now_ms - played_ms) if pcm else 0.0
                switch_ms = switch_ms or (now_ms - context.over_ms if context.over_ms else 0.0)
                played_ms = max(now_ms, played_ms) + len(frame.pcm) / 32
                pcm += frame.pcm
    return pcm, silence_ms, switch_ms


def lost_and_twice(heard: list[str], words: list[str]) -> tuple[int, int]:
    """How many words were not heard, and how many twice: the part that is said again begins some words back."""
    for back in range(len(heard)):
        for at in range(len(heard) - back + 1):
            if heard[:at] + heard[at + back :] == words:
                return 0, back
    return max(1, len(words) - len(heard)), 0


async def acquainted(first: Speaking, voices: tts.TTS, chance: random.Random) -> None:
    """Have the first voice say some texts well, as it has in any process that runs for a while."""
    fault, first.fault = first.fault, ""
    for _ in range(5):
        await sentence(voices, " ".join(chance.choices(VOCABULARY, k=12)))
    first.fault = fault


def tts_switches(fault: str, runs: int = RUNS, *, times: bool = False, known: bool = False) -> None:
    """Faults of one kind at random moments of sentences: what the caller hears. `known`: the voice has spoken before."""
    chance = random.Random(fault)
    silences, switches, lost, twice = [], [], 0, []
    for _ in range(runs):
        words = chance.choices(VOCABULARY, k=chance.randint(4, 20))
        ill_ms = chance.uniform(0.0, len(words) * (WORD_MS + GAP_MS) - 1.0) if fault != "empty" else 0.0
        engines = Speaking("first", ANSWER_MS, fault, ill_ms, times=times), Speaking("second", STANDBY_MS, times=times)
        voices = tts.failover(*engines, options=ResilienceOptions(retries=0))
        if known:
            run_simulated(acquainted(engines[0], voices, chance))
        pcm, silence_ms, switch_ms = run_simulated(sentence(voices, " ".join(words)))
        missing, again = lost_and_twice(understand(pcm, RATE_HZ).split(), words)
        lost += missing
        twice.append(again)
        silences.append(silence_ms)
        if switch_ms:
            switches.append(switch_ms)
    about = f"times {'known' if times else 'guessed'}{', voice known' if known else ''}"
    print(f"tts {fault:8s} {about:13s} words lost {lost} in {runs} sentences; said twice: {shares(twice)}")
    print(f"{'':12s} {len(switches)} switched        failure or deadline -> sound: {shares(switches)} ms")
    print(f"{'':12s} {'':20s} silence: {shares(silences)} ms")


def tts_cost() -> None:
    """What a switch costs in CPU."""
    text = "one two three four five six seven eight nine ten"

    def talk(*engines: Speaking) -> Callable[[], object]:
        return lambda: run_simulated(sentence(tts.failover(*engines, options=ResilienceOptions(retries=0)), text))

    second = Speaking("second", STANDBY_MS)
    well_ms = cpu_ms(talk(Speaking("first", ANSWER_MS), second))
    over_ms = cpu_ms(talk(Speaking("first", ANSWER_MS, "killed", 1_000.0), second))
    pieces = len(say(text)) // PIECE
    print(f"tts CPU of a sentence of {pieces} pieces: {well_ms:.2f} ms; a switch at 1,000 ms: {over_ms - well_ms:+.2f} ms")


def tts_part() -> None:
    for times in (False, True):
        for fault in ("killed", "hung", "drip", "garbage", "empty", "ended"):
            tts_switches(fault, times=times)
        tts_switches("ended", times=times, known=True)
    tts_cost()


PARTS = {"stt": stt_part, "tts": tts_part}


def main() -> None:
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main()
