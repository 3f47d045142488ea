"""A recogniser as a stage of the ears: fed and read beside the line, so that no frame ever waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Literal

from .._streams import Channel, finish, stop
from ..audio import Audio, PreRoll, Resampler
from ..chain import Process, Stage
from ..engine import Context
from ..errors import ProtocolError, ProviderError
from ..frames import (
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
from .contract import STT, STTStream

__all__ = ["as_frame_processor"]

PREROLL_KEPT_MS = 600.0
WAITING_AUDIO_MS = 30_000.0
DRAIN_MS = 30_000.0

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
