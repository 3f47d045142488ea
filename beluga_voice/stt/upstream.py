"""One open stream of one recogniser: what it is given at its own rate, what it costs, and the place it holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

from .._streams import stop
from ..audio import Audio, Resampler
from ..engine import Context
from ..errors import ProviderTimeoutError
from ..frames import Frame, Transcript, Usage
from ..resilience import Call
from .contract import STT, STTStream
from .log import Wish

__all__ = ["Upstream"]

CLOSE_MS = 5_000.0  # a stream that takes longer to close is left behind


class Upstream:
    """A stream of `engine`, which nobody has opened yet.

    Args:
        engine: the recogniser.
        call: the place it holds with its account; given back by `aclose`.
        context: whose handle of the engine is used.
        tell: told what it uses.

    Attributes:
        is_open: True once the provider has taken the stream.
        reading: the task that reads it, stopped by `aclose`.
    """

    def __init__(self, engine: STT, call: Call, context: Context, tell: Callable[[Frame], object]) -> None:
        self.engine, self.call = engine, call
        self.is_open = False
        self.reading: asyncio.Task[None] | None = None
        self._context, self._tell = context, tell
        self._stream: STTStream | None = None
        self._wanted_hz = engine.capabilities.sample_rate_hz
        self._resampler: Resampler | None = None
        self._unbilled_ms = 0.0

    async def open(self, timeout_ms: float) -> STTStream:
        """Open the stream; one of a remote engine within `timeout_ms`.

        Raises:
            ProviderError: it did not open.
        """
        name = self.engine.name
        try:
            async with asyncio.timeout(timeout_ms / 1000.0 if self.engine.account else None) as limit:
                self._stream = (await self._context.handle(self.engine)).stream()
                await self._stream.connect()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise ProviderTimeoutError(
                f"stt {name!r} did not open its stream within {timeout_ms:g} ms; expected it sooner. Name a stand-by, or "
                "raise connect_timeout_ms in [resilience]",
                provider=name,
                kind="stt",
            ) from error
        self.is_open = True
        return self._stream

    async def give(self, item: Audio | Wish | Literal["finalize"]) -> None:
        """Give it the next audio, or wish."""
        stream = self._stream
        if stream is None:
            raise RuntimeError("nothing can be given to a stream that is not open; expected open() before")
        if type(item) is Audio:
            await stream.send(self._at_its_rate(item))
        elif item == "finalize":
            if self._resampler is not None:
                rest = Audio(self._resampler.feed(b"", last=True), self._resampler.to_hz)
                self._resampler = None
                await stream.send(rest)
            await stream.finalize()
        elif item == "propose":
            await stream.propose()
        elif item == "withdraw":
            await stream.withdraw()
        elif item == "end":
            await stream.finalize()
        else:
            await stream.peek()

    def _at_its_rate(self, audio: Audio) -> Audio:
        self._unbilled_ms += len(audio.pcm) * 500.0 / audio.sample_rate_hz
        wanted_hz = self._wanted_hz
        if wanted_hz is not None and audio.sample_rate_hz != wanted_hz:
            if self._resampler is None or self._resampler.from_hz != audio.sample_rate_hz:
                self._resampler = Resampler(audio.sample_rate_hz, wanted_hz)
            audio = Audio(self._resampler.feed(audio.pcm), wanted_hz)
        return audio

    async def understand(self, pieces: list[Audio], timeout_ms: float) -> Transcript:
        """Open the stream for these pieces alone: their words, as one closing transcript."""
        stream = await self.open(timeout_ms)
        for piece in pieces:
            await self.give(piece)
        await self.give("finalize")
        texts: list[str] = []
        async for transcript in stream:
            if transcript.is_final:
                texts.append(transcript.text)
            if transcript.closes:
                break
        return Transcript(" ".join(text for text in texts if text), closes=True)

    def bill(self) -> None:
        """Tell what was used since the last time, where somebody has to pay for it."""
        used_ms, self._unbilled_ms = self._unbilled_ms, 0.0
        if self.engine.account and used_ms:
            model = getattr(self.engine.options, "model", "")
            self._tell(Usage("stt", self.engine.name, model, {"audio_ms": round(used_ms, 3)}))

    async def aclose(self) -> None:
        """Stop at once, and give the place back."""
        self.bill()
        try:
            if self._stream is not None:
                async with asyncio.timeout(CLOSE_MS / 1000.0):
                    await self._stream.aclose()
        except Exception:
            self._context.counters["stt_streams_not_closed"] += 1
        finally:
            self.call.close()
            if self.reading is not None:
                await stop(self.reading)
