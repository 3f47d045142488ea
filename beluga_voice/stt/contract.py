"""What a recogniser is: what it can do, its stream, and the base class that serves batch from stream and stream from batch."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import aclosing as closing
from typing import Any

import attrs

from .._streams import Channel, stop
from ..audio import BYTES_PER_SAMPLE, Audio, resample
from ..chain import Stage
from ..engine import Engine
from ..frames import Transcript
from ..options import option

__all__ = ["STT", "BatchStream", "Options", "STTCapabilities", "STTStream"]

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

    async def connect(self) -> None:
        """Open now what the first `send` would have to open. The default does nothing."""

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
    capabilities: STTCapabilities = STTCapabilities()
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
                if type(transcript) is not Transcript:  # one that ends turns tells of them, too
                    continue
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
        from .stage import as_frame_processor  # which is made of what this file defines

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
