"""Recognisers by script that really hear tone speech and are sick as they are told; and lines to speak it over."""

import asyncio

import attrs

from beluga_voice.chain import Chain, processor
from beluga_voice.clock import Clock, run_simulated
from beluga_voice.engine import Context
from beluga_voice.errors import (
    AuthError,
    ConnectFailedError,
    OverloadedError,
    ProtocolError,
    QuotaError,
    RateLimitError,
)
from beluga_voice.frames import AudioIn, SpeechEnded, SpeechStarted, Transcript, TurnEnded
from beluga_voice.stt import STT, STTCapabilities, STTStream
from beluga_voice.testing import quiet
from beluga_voice.testing.tone_speech import say, understand

RATE_HZ = 16_000
CLOCK = Clock()

ERRORS = {
    "refused": lambda: ConnectFailedError("refused"),
    "auth": lambda: AuthError("no"),
    "quota": lambda: QuotaError("no"),
    "limited": lambda: RateLimitError("no", retry_after_ms=60_000),
    "busy": lambda: OverloadedError("no"),
}


@attrs.frozen
class Sick:
    """How a stream is sick, and after how much audio it begins.

    Kinds: those of `ERRORS`, when it is opened; "mute" (never opens); "cut", "ended", "stuck" in mid-audio; "hung", "late",
    "garbage", "empty" instead of an answer.
    """

    kind: str = ""
    after_ms: float = 0.0
    late_ms: float = 5_000.0


class Cloud(STT):
    """A remote recogniser. `sick` is for all its streams, or a list, one a stream, after which it is well.

    `parts`: it tells words before the end, as finals, `lag_ms` late: "placed" (with `through_ms`) or "plain".
    """

    def __init__(
        self,
        name="cloud",
        sick=None,
        *,
        answer_ms=100.0,
        opens_ms=0.0,
        closes_ms=0.0,
        account=True,
        parts="",
        lag_ms=0.0,
        limit=None,
        rate_hz=RATE_HZ,
        continuous=False,
    ):
        self.provider, self.sick, self.parts, self.lag_ms = name, sick, parts, lag_ms
        self.answer_ms, self.opens_ms, self.closes_ms = answer_ms, opens_ms, closes_ms
        self.account = f"{name}@there" if account else ""
        self.max_concurrent = limit
        self.capabilities = STTCapabilities(sample_rate_hz=rate_hz, interim=True, continuous=continuous)
        self.streams = []

    def stream(self):
        sick = self.sick
        if isinstance(sick, list):
            sick = sick[len(self.streams)] if len(self.streams) < len(sick) else None
        self.streams.append(CloudStream(self, sick or Sick()))
        return self.streams[-1]

    @property
    def heard_ms(self):
        return [round(len(stream.all) * 500 / RATE_HZ) for stream in self.streams]


class CloudStream(STTStream):
    def __init__(self, engine, sick):
        self.engine, self.sick, self.rate_hz = engine, sick, engine.capabilities.sample_rate_hz
        self.out = asyncio.Queue()
        self.pcm = self.all = b""
        self.opened = self.closed = False
        self.wishes = []
        self.timers, self.due_ms = [], 0.0

    @property
    def is_sick(self):
        return len(self.all) * 500 / (self.rate_hz or RATE_HZ) >= self.sick.after_ms

    async def connect(self):
        if self.opened:
            return
        if self.sick.kind == "mute":
            await asyncio.Event().wait()
        if self.sick.kind in ERRORS:
            raise ERRORS[self.sick.kind]()
        await CLOCK.sleep_ms(self.engine.opens_ms)
        self.opened = True

    async def send(self, audio):
        assert not self.closed
        assert self.rate_hz in (None, audio.sample_rate_hz)
        await self.connect()
        self.pcm += audio.pcm
        self.all += audio.pcm
        if self.is_sick and self.sick.kind == "cut":
            self.out.put_nowait(ConnectFailedError("cut"))
        elif self.is_sick and self.sick.kind == "ended":
            self.out.put_nowait(None)
        elif self.is_sick and self.sick.kind == "stuck":
            await asyncio.Event().wait()
        elif self.engine.parts and self.sick.kind != "hung" and not any(self.pcm[-1_280:]):
            self.tell_part()

    def tell_part(self):
        text = understand(self.pcm, self.rate_hz)
        if text:
            self.pcm = b""
            through_ms = len(self.all) * 500 / self.rate_hz if self.engine.parts == "placed" else None
            self.say(Transcript(text, through_ms=through_ms), self.engine.lag_ms)

    async def finalize(self):
        pcm, self.pcm = self.pcm, b""
        delay_ms, answer = self.engine.answer_ms, Transcript(understand(pcm, self.rate_hz or RATE_HZ), closes=True)
        if self.is_sick:
            if self.sick.kind == "hung":
                return
            if self.sick.kind == "late":
                delay_ms = self.sick.late_ms
            elif self.sick.kind == "garbage":
                answer = ProtocolError("garbage")
            elif self.sick.kind == "empty":
                answer = Transcript("", closes=True)
        self.say(answer, delay_ms)

    def say(self, answer, delay_ms=0.0):
        """Answers keep their order."""
        self.due_ms = max(CLOCK.now_ms() + delay_ms, self.due_ms + 0.01)
        self.timers.append(CLOCK.call_later_ms(self.due_ms - CLOCK.now_ms(), self.out.put_nowait, answer))

    async def propose(self):
        self.wishes.append("propose")

    async def withdraw(self):
        self.wishes.append("withdraw")

    async def peek(self):
        self.wishes.append("peek")
        self.out.put_nowait(Transcript("peeked", is_final=False))

    async def __anext__(self):
        item = await self.out.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, Exception):
            raise item
        return item

    async def aclose(self):
        self.closed = True
        await CLOCK.sleep_ms(self.engine.closes_ms)
        for timer in self.timers:
            timer.cancel()


@processor(makes=(SpeechStarted, SpeechEnded, TurnEnded))
async def told(frames, context):
    """Stands where the VAD and the turn detector do: the line itself tells of speech and turns."""
    async for frame in frames:
        yield frame


def spoken(text, pause_ms=700.0):
    """The sound of an utterance, and the quiet after it in which the turn detector makes up its mind."""
    return say(text) + quiet(pause_ms)


@attrs.define
class Heard:
    """What came of a line: every frame with its time in ms, and when each turn ended."""

    frames: list = attrs.field(factory=list)
    ended_ms: list = attrs.field(factory=list)
    counters: dict = attrs.field(factory=dict)

    def of(self, kind):
        return [frame for _, frame in self.frames if type(frame) is kind]

    @property
    def words(self):
        return " ".join(one.text for one in self.of(Transcript) if one.is_final and one.text).split()

    @property
    def closing(self):
        return [one.text for one in self.of(Transcript) if one.closes]

    @property
    def waits_ms(self):
        """From each turn's end to its closing transcript."""
        closed_ms = [at_ms for at_ms, one in self.frames if type(one) is Transcript and one.closes]
        return [round(at_ms - ended_ms, 3) for at_ms, ended_ms in zip(closed_ms, self.ended_ms)]


async def listen(engine, utterances, *, piece_ms=20.0, pieces_ms=None, between_ms=2_000.0, first_ms=0.0, frames=(), heard=None):
    """Speak utterances over a line at its own pace: what the recogniser's stage makes of it.

    Args:
        engine: the recogniser.
        utterances: texts, or PCM at 16 kHz.
        piece_ms: how long the pieces of audio are; or `pieces_ms`, an endless iterator.
        between_ms: quiet between two utterances.
        first_ms: quiet before the first.
        frames: what else to put on the line: `(after so many ms of audio, frame)`.
        heard: where to write down what came; a new one by default.
    """
    heard = heard or Heard()
    began_ms = CLOCK.now_ms()
    more = sorted(frames, key=lambda one: one[0])

    async def line():
        at_ms = 0.0

        async def silence(ms):
            nonlocal at_ms
            for _ in range(int(ms / 20)):
                yield AudioIn(bytes(640), RATE_HZ, at_ms)
                at_ms += 20
                await CLOCK.sleep_ms(20)

        async for frame in silence(first_ms):
            yield frame
        for text in utterances:
            pcm = spoken(text) if isinstance(text, str) else text
            yield SpeechStarted(at_ms, at_ms, at_ms)
            while pcm:
                ms = next(pieces_ms) if pieces_ms else piece_ms
                size = max(2, round(ms * RATE_HZ / 1000) * 2)
                piece, pcm = pcm[:size], pcm[size:]
                yield AudioIn(piece, RATE_HZ, at_ms)
                at_ms += len(piece) * 500 / RATE_HZ
                while more and more[0][0] <= at_ms:
                    yield more.pop(0)[1]
                await CLOCK.sleep_ms(len(piece) * 500 / RATE_HZ)
            yield SpeechEnded(at_ms, at_ms)
            yield TurnEnded(at_ms, "line")
            async for frame in silence(between_ms):
                yield frame

    async with Context() as context:
        async with Chain(told, engine).process(context.feed(line()), context) as out:
            async for frame in out:
                if type(frame) is TurnEnded:
                    heard.ended_ms.append(CLOCK.now_ms() - began_ms)
                if type(frame) not in (AudioIn, SpeechStarted, SpeechEnded, TurnEnded):
                    heard.frames.append((CLOCK.now_ms() - began_ms, frame))
        heard.counters = dict(context.counters)
    return heard


def hear(engine, utterances, **how):
    """`listen`, by itself, in simulated time; nothing is left behind."""

    async def main():
        heard = await listen(engine, utterances, **how)
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
        return heard

    return run_simulated(main())

