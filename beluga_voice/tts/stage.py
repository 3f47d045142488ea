"""A voice as a stage of the mouth: text is prefetched while it speaks, audio waits for the playout."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from typing import Any

from .._streams import Channel, stop
from ..audio import Audio, Resampler
from ..chain import Stage
from ..engine import Context
from ..frames import AudioOut, Failed, Frame, TextDelta
from ..resilience import provider_error
from .contract import TTS
from .failover import Failover
from .sentences import Script, SentenceSplitter
from .speech import Speech

__all__ = ["as_frame_processor"]

TEXT_AHEAD = 400  # letters that wait for the voice: a few sentences
AHEAD_MS = 1_280.0  # audio that waits between the voice and the playout; a frame without audio counts as 20 ms


def as_frame_processor(engine: TTS, sample_rate_hz: int | None = None, **options: Any) -> Stage:
    """A voice as a stage: passes the text on and adds its audio.

    Text is prefetched from the agent while the voice speaks, and a sentence is synthesised while the one before it is sent.

    Args:
        engine: the voice.
        sample_rate_hz: the rate of the audio it adds; by default the line's own.
        options: its options to change, like `voice="nova"`.
    """
    engine = engine.with_options(**options)
    voices = engine if isinstance(engine, Failover) else Failover(engine)
    SentenceSplitter("en"), Resampler(8_000, 16_000)  # their libraries are loaded now, not in the first reply

    async def run(frames: AsyncIterator[Frame], context: Context) -> AsyncIterator[Frame]:
        out: Channel[Frame] = Channel(AHEAD_MS, _ahead_ms)
        texts: Channel[str] = Channel(TEXT_AHEAD, len)
        rate_hz = sample_rate_hz or context.output_rate_hz
        reading = context.spawn(_read(frames, texts, out), f"{engine.name} text")
        speaking = context.spawn(_speak(voices, context, texts, out, rate_hz), f"{engine.name} audio")
        context.interject = interject = functools.partial(_interject, texts)
        try:
            async for frame in out:
                yield frame
        finally:
            if context.interject is interject:
                context.interject = None
            await stop(speaking)
            await stop(reading)

    needs, makes = frozenset({TextDelta}), frozenset({AudioOut})
    return Stage(engine.name, run, "tts", "mouth", needs, makes, engine=engine)


async def _read(frames: AsyncIterator[Frame], texts: Channel[str], out: Channel[Frame]) -> None:
    """Pass frames on, and their text to the voice."""
    try:
        async for frame in frames:
            await out.put(frame)
            if type(frame) is TextDelta and frame.text:
                await texts.put(frame.text)
    except Exception as error:
        out.close(error)
    finally:
        texts.close()


def _interject(texts: Channel[str], text: str) -> None:
    """Say a sentence that is not the agent's, after what it has said so far."""
    texts.put_over(f"\n\n{text} ")


class _Outlet:
    """Where sound leaves the stage: at one rate, the end of each sentence flushed before the next is marked."""

    def __init__(self, out: Channel[Frame], rate_hz: int) -> None:
        self._out, self._rate_hz = out, rate_hz
        self._resampler: Resampler | None = None

    async def put(self, piece: AudioOut) -> None:
        if piece.text or (self._resampler is not None and self._resampler.from_hz != piece.sample_rate_hz):
            await self.flush()
        if self._resampler is None:
            self._resampler = Resampler(piece.sample_rate_hz, self._rate_hz)
        pcm = self._resampler.feed(piece.pcm)
        if pcm or piece.text or piece.words:
            await self._out.put(AudioOut(pcm, self._rate_hz, piece.text, piece.words))

    async def flush(self) -> None:
        resampler, self._resampler = self._resampler, None
        rest = resampler.feed(b"", last=True) if resampler is not None else b""
        if rest:
            await self._out.put(AudioOut(rest, self._rate_hz))


async def _speak(voices: Failover, context: Context, texts: Channel[str], out: Channel[Frame], rate_hz: int) -> None:
    """Turn texts into audio at `rate_hz`."""
    outlet = _Outlet(out, rate_hz)
    try:
        handle = await context.handle(voices)
        await Speech(handle, Script(texts, voices.language), context, outlet.put).run()
        await outlet.flush()
    except Exception as error:
        await outlet.flush()
        await out.put(Failed(voices.name, provider_error(error, "tts", voices.name)))
        async for _ in texts:
            pass
    finally:
        out.close()


def _ahead_ms(frame: Frame) -> float:
    return Audio(frame.pcm, frame.sample_rate_hz).duration_ms if type(frame) is AudioOut else 20.0
