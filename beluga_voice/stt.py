"""Speech to text. An author writes what the engine has, batch or stream; the base class serves the other.

>>> class Length(STT):
...     async def transcribe(self, audio):
...         return Transcript(f"{audio.duration_ms:.0f} ms")
>>> async def main():
...     async with closing(Length().stream()) as stream:
...         await stream.send(Audio(bytes(3200), 16000))
...         await stream.finalize()
...         return (await anext(stream)).text
>>> asyncio.run(main())
'100 ms'
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing as closing
from contextlib import suppress
from typing import Any, ClassVar, Literal, cast

import attrs

from ._registry import Kind, Provider
from ._streams import Channel, finish, stop
from .audio import BYTES_PER_SAMPLE, Audio, PreRoll, Resampler, resample
from .chain import Process, Stage
from .engine import Context, Engine
from .errors import ProtocolError, ProviderError
from .frames import (
    AudioIn,
    Failed,
    Frame,
    SpeechEnded,
    SpeechProbability,
    SpeechStarted,
    Transcript,
    TurnEnded,
    TurnEndProposed,
    TurnEndWithdrawn,
    WordsFrom,
    WordsWanted,
)
from .options import option

__all__ = [
    "STT",
    "BatchStream",
    "Options",
    "STTCapabilities",
    "STTStream",
    "as_frame_processor",
    "describe",
    "names",
    "new",
    "register",
]

PREROLL_KEPT_MS = 600.0
WAITING_AUDIO_MS = 30_000.0
DRAIN_MS = 30_000.0
PEEK_MS = 4_000.0  # a peek hears no more than this: it is to be quick


@attrs.frozen
class Options:
    """What every recogniser is asked; a provider's own options class adds to these by inheriting."""

    language: str = option("en", "BCP-47 tag of the language spoken")


@attrs.frozen
class STTCapabilities:
    """What a recogniser can do.

    Attributes:
        sample_rate_hz: the rate it wants its audio in; None takes any.
        continuous: it wants all audio of the line, quiet included, on one stream a session; otherwise only utterances.
        interim: it gives interim transcripts.
        quick: it runs here and has the words of a second of speech within some 50 ms, at no price: it may be asked for the
            words of speech under way, again and again.
        ends_turns: it makes `TurnEnded` itself.
        max_streams: how many sessions one engine serves at once; None: no limit known.
    """

    sample_rate_hz: int | None = 16_000
    continuous: bool = False
    interim: bool = False
    quick: bool = False
    ends_turns: bool = False
    max_streams: int | None = None


class STTStream(AsyncIterator[Transcript], ABC):
    """One caller's speech on its way to becoming text.

    Iterating gives interim and final transcripts in order. Each `finalize` is answered by exactly one final transcript with
    `closes` set (its text may be empty), after all other finals of what was sent before.
    """

    @abstractmethod
    async def send(self, audio: Audio) -> None:
        """Add audio; may wait for a slow engine."""

    @abstractmethod
    async def finalize(self) -> None:
        """Ask for the final transcript of all that was sent since the last `finalize`."""

    async def propose(self) -> None:
        """The speech may be over: an engine may begin its final on speculation. The default does nothing."""

    async def withdraw(self) -> None:
        """It was not over. The default does nothing."""

    async def peek(self) -> None:
        """Somebody wants to know what the speech says so far: tell it as an interim transcript. The default does nothing."""

    @abstractmethod
    async def aclose(self) -> None:
        """Stop at once and free everything."""


class STT(Engine, ABC):
    """A recogniser. Write `transcribe` (batch) or `stream`; the other follows.

    Raises:
        TypeError: when a subclass is defined with neither.
    """

    kind = "stt"
    capabilities: ClassVar[STTCapabilities] = STTCapabilities()
    options: Any = Options()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.transcribe is STT.transcribe and cls.stream is STT.stream:
            raise TypeError(
                f"{cls.__name__} has neither transcribe nor stream; "
                "write `async def transcribe(self, audio: Audio) -> Transcript`, or `def stream(self) -> STTStream`"
            )

    async def transcribe(self, audio: Audio) -> Transcript:
        """The words of one piece of audio.

        Raises:
            ProviderError: the engine failed; its subclasses say how.
        """
        texts: list[Transcript] = []
        async with closing(self.stream()) as stream:
            await stream.send(audio)
            await stream.finalize()
            async for transcript in stream:
                if transcript.is_final:
                    texts.append(transcript)
                if transcript.closes:
                    break
        words = tuple(word for one in texts for word in one.words)
        last = texts[-1] if texts else Transcript("")
        return attrs.evolve(last, text=" ".join(one.text for one in texts if one.text), words=words)

    def stream(self) -> STTStream:
        """A stream for one session."""
        return BatchStream(self)

    def as_frame_processor(self) -> Stage:
        """The stage this recogniser makes in a chain."""
        return as_frame_processor(self)


class BatchStream(STTStream):
    """Serves a stream from a batch engine: keeps the audio, transcribes it at `finalize`, or earlier on speculation."""

    def __init__(self, engine: STT) -> None:
        self._engine = engine
        self._pcm: list[bytes] = []
        self._rate_hz = 0
        self._early: asyncio.Task[Transcript] | None = None
        self._peek: asyncio.Task[Transcript] | None = None
        self._out: Channel[Transcript] = Channel(1_000)

    async def send(self, audio: Audio) -> None:
        if self._rate_hz and audio.sample_rate_hz != self._rate_hz:
            audio = resample(audio, self._rate_hz)
        self._rate_hz = audio.sample_rate_hz
        self._pcm.append(audio.pcm)

    async def propose(self) -> None:
        if self._early is None and self._pcm:
            self._early = asyncio.get_running_loop().create_task(self._transcribe(b"".join(self._pcm)), name="early stt")
            self._early.add_done_callback(self._tell_interim)

    async def withdraw(self) -> None:
        if self._early is not None:
            early, self._early = self._early, None
            early.remove_done_callback(self._tell_interim)
            await stop(early)

    async def peek(self) -> None:
        if self._engine.capabilities.quick and self._early is None and self._peek is None and self._pcm:
            pcm = b"".join(self._pcm)[-round(PEEK_MS * self._rate_hz / 1000.0) * BYTES_PER_SAMPLE :]
            self._peek = asyncio.get_running_loop().create_task(self._transcribe(pcm), name="stt peek")
            self._peek.add_done_callback(self._tell_peek)

    async def finalize(self) -> None:
        await self._stop_peek()
        early, self._early = self._early, None
        pcm, self._pcm = self._pcm, []
        if early is not None:
            early.remove_done_callback(self._tell_interim)
            try:
                transcript = await early
            except asyncio.CancelledError:
                await stop(early)
                raise
        else:
            transcript = await self._transcribe(b"".join(pcm)) if pcm else Transcript("")
        await self._out.put(attrs.evolve(transcript, is_final=True, closes=True))

    async def aclose(self) -> None:
        await self.withdraw()
        await self._stop_peek()
        self._out.close()

    async def __anext__(self) -> Transcript:
        return await anext(self._out)

    async def _transcribe(self, pcm: bytes) -> Transcript:
        return await self._engine.transcribe(Audio(pcm, self._rate_hz))

    def _tell_interim(self, early: asyncio.Task[Transcript]) -> None:
        if early is self._early and not early.cancelled() and early.exception() is None and early.result().text:
            self._out.put_dropping(attrs.evolve(early.result(), is_final=False))

    def _tell_peek(self, peek: asyncio.Task[Transcript]) -> None:
        if peek is self._peek:
            self._peek = None
            if not peek.cancelled() and peek.exception() is None:
                self._out.put_dropping(attrs.evolve(peek.result(), is_final=False))

    async def _stop_peek(self) -> None:
        if self._peek is not None:
            peek, self._peek = self._peek, None
            await stop(peek)


Command = Literal["propose", "withdraw", "finalize", "peek"]


def _audio_ms(item: Audio | Command) -> float:
    return item.duration_ms if isinstance(item, Audio) else 0.0


class _Listener:
    """Keeps a stream fed and read beside the line, so that no frame ever waits for the engine."""

    def __init__(self, engine: STT, context: Context) -> None:
        self._engine, self._context = engine, context
        self._work: Channel[Audio | Command] = Channel(WAITING_AUDIO_MS, _audio_ms)
        self._feeding: asyncio.Task[None] | None = None
        self._stream: STTStream | None = None
        self._reading: asyncio.Task[None] | None = None
        self._resampler: Resampler | None = None
        self._owed = 0
        self._all_answered: asyncio.Future[None] | None = None
        self._late: list[Frame] | None = None

    def put(self, item: Audio | Command) -> None:
        """Hand over audio or a command. Audio that a stalled engine leaves no room for is left out and counted."""
        if isinstance(item, Audio) and self._work.load >= self._work.limit:
            self._context.counters["stt_audio_dropped_ms"] += round(item.duration_ms)
            return
        if item == "finalize":
            self._owed += 1
        self._work.put_over(item)
        if self._feeding is None:
            self._feeding = self._context.spawn(self._feed(), f"{self._engine.name} stream")

    async def drain(self) -> list[Frame]:
        """No more audio will come: wait for what is owed and give what was not told yet."""
        self._late = []
        self._work.close()
        if self._feeding is not None:
            await finish(self._feeding)
        return self._late

    async def aclose(self) -> None:
        """Stop at once."""
        if self._feeding is not None:
            await stop(self._feeding)

    async def _feed(self) -> None:
        try:
            async for item in self._work:
                try:
                    await self._do(item)
                except Exception as error:
                    await self._give_up(error)
            if self._owed > 0:
                with suppress(TimeoutError):
                    self._all_answered = asyncio.get_running_loop().create_future()
                    await asyncio.wait_for(self._all_answered, DRAIN_MS / 1000.0)
        finally:
            await self._close_stream()

    async def _do(self, item: Audio | Command) -> None:
        if self._reading is not None and self._reading.done():
            await self._close_stream()
        if self._stream is None:
            self._stream = (await self._context.handle(self._engine)).stream()
            self._reading = self._context.spawn(self._read(self._stream), f"{self._engine.name} transcripts")
        if isinstance(item, Audio):
            await self._send(self._stream, item)
        elif item == "propose":
            await self._stream.propose()
        elif item == "withdraw":
            await self._stream.withdraw()
        elif item == "peek":
            await self._stream.peek()
        else:
            if self._resampler is not None:
                rest = Audio(self._resampler.feed(b"", last=True), self._resampler.to_hz)
                self._resampler = None
                await self._stream.send(rest)
            await self._stream.finalize()

    async def _send(self, stream: STTStream, audio: Audio) -> None:
        wanted_hz = self._engine.capabilities.sample_rate_hz or audio.sample_rate_hz
        if audio.sample_rate_hz != wanted_hz:
            if self._resampler is None or self._resampler.from_hz != audio.sample_rate_hz:
                self._resampler = Resampler(audio.sample_rate_hz, wanted_hz)
            audio = Audio(self._resampler.feed(audio.pcm), wanted_hz)
        await stream.send(audio)

    async def _read(self, stream: STTStream) -> None:
        try:
            async for transcript in stream:
                self._tell(transcript)
                if type(transcript) is Transcript and transcript.closes:  # one that ends turns gives TurnEnded too
                    self._answer()
            if stream is self._stream and self._owed > 0:
                raise ConnectionError("its stream ended before the final transcript")
        except Exception as error:
            self._fail(error)

    def _tell(self, frame: Frame) -> None:
        if self._late is not None:
            self._late.append(frame)
        else:
            self._context.emit(frame)

    def _answer(self) -> None:
        self._owed -= 1
        if self._owed <= 0 and self._all_answered is not None and not self._all_answered.done():
            self._all_answered.set_result(None)

    def _fail(self, error: Exception) -> None:
        """Announce the failure; what was owed is answered with nothing."""
        if not isinstance(error, ProviderError):
            name = self._engine.name
            wrapped = ProtocolError(f"stt {name!r} failed: {error!r}", provider=name, kind="stt")
            wrapped.__cause__ = error
            error = wrapped
        self._tell(Failed(self._engine.name, error))
        while self._owed > 0:
            self._tell(Transcript("", closes=True))
            self._answer()

    async def _give_up(self, error: Exception) -> None:
        """The stream is of no more use; the next audio opens another."""
        self._fail(error)
        await self._close_stream()

    async def _close_stream(self) -> None:
        stream, self._stream = self._stream, None
        reading, self._reading = self._reading, None
        self._resampler = None
        if stream is not None:
            await stream.aclose()
        if reading is not None:
            await stop(reading)


def as_frame_processor(engine: STT, **options: Any) -> Stage:
    """A recogniser as a stage: adds `Transcript` frames, which enter at the head of the ears.

    After a turn detector it gives its final at `TurnEnded`, begun on speculation at `TurnEndProposed`; before one, at
    `SpeechEnded`. No frame ever waits for the engine.

    Args:
        engine: the recogniser.
        options: its options to change, like `language="de"`.
    """
    engine = engine.with_options(**options)
    continuous = engine.capabilities.continuous
    if continuous and type(engine).stream is STT.stream:
        raise TypeError(
            f"stt {engine.name!r} is continuous but has no stream of its own: it would keep all quiet in memory. "
            "Write `def stream(self) -> STTStream`, or leave continuous False"
        )

    def placed(made: frozenset[type]) -> Process:
        finalize_on = TurnEnded if TurnEnded in made else SpeechEnded

        def run(frames: AsyncIterator[Frame], context: Context) -> AsyncIterator[Frame]:
            return _listen(engine, frames, context, finalize_on)

        return run

    needs = frozenset({AudioIn} if continuous else {AudioIn, SpeechStarted})
    makes = frozenset({Transcript, TurnEnded} if engine.capabilities.ends_turns else {Transcript})
    return Stage(engine.name, placed(frozenset()), "stt", "ears", needs, makes, engine=engine, placed=placed)


async def _listen(
    engine: STT, frames: AsyncIterator[Frame], context: Context, finalize_on: type
) -> AsyncIterator[Frame]:
    listener = _Listener(engine, context)
    ring = PreRoll(PREROLL_KEPT_MS)
    continuous, ends_turns = engine.capabilities.continuous, engine.capabilities.ends_turns
    capturing, speaking = continuous, False
    try:
        async for frame in frames:
            yield frame
            if type(frame) is SpeechProbability:
                continue
            if isinstance(frame, AudioIn):
                if capturing:
                    listener.put(Audio(frame.pcm, frame.sample_rate_hz))
                ring.push(frame.at_ms, frame.pcm, frame.sample_rate_hz)
            elif isinstance(frame, SpeechStarted):
                speaking = True
                if not capturing:
                    capturing = True
                    before = ring.take_from(frame.audio_from_ms)
                    if before is not None:
                        listener.put(before)
            elif isinstance(frame, SpeechEnded):
                speaking = False
            elif isinstance(frame, TurnEndProposed) and capturing:
                listener.put("propose")
            elif isinstance(frame, TurnEndWithdrawn) and capturing:
                listener.put("withdraw")
            elif isinstance(frame, WordsWanted) and capturing:
                listener.put("peek")
            elif isinstance(frame, WordsFrom) and not ends_turns:
                listener.put("finalize")
                again = ring.take_from(frame.at_ms) if capturing and not continuous else None
                if again is not None:
                    listener.put(again)
            if type(frame) is finalize_on and not ends_turns:
                listener.put("finalize")
                capturing = speaking or continuous
                ring.clear()  # the recogniser has had it
        if capturing and not ends_turns:
            listener.put("finalize")
        for late in await listener.drain():
            yield late
    finally:
        await listener.aclose()


_kind = Kind("stt")


def new(name: str, **options: Any) -> STT:
    """Make the recogniser of that name, like `new("moonshine")`."""
    return cast(STT, _kind.new(name, **options))


def names() -> list[str]:
    """The installed recognisers."""
    return _kind.names()


def describe(name: str) -> Provider:
    """What is known of a recogniser: options, distribution, capabilities."""
    return _kind.describe(name)


def register(name: str, factory: Callable[..., STT], **told: Any) -> None:
    """Register a recogniser of this program's own."""
    _kind.register(name, factory, **told)
