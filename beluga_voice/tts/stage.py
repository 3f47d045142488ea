"""A voice as a stage of the mouth: text is prefetched while it speaks, audio waits for the playout."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from .._streams import Channel, stop
from ..audio import Audio, Resampler
from ..chain import Stage
from ..clock import Timers
from ..engine import Context
from ..errors import ProtocolError, ProviderError
from ..frames import AudioOut, Failed, Frame, TextDelta
from .contract import TTS
from .sentences import SentenceSplitter

__all__ = ["as_frame_processor"]

SENTENCES_AHEAD = 4
FLUSH_MS = 80.0  # an agent that pauses for longer after a full stop has finished a sentence: "It costs 3." may go on with "50"
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
    SentenceSplitter("en"), Resampler(8_000, 16_000)  # their libraries are loaded now, not in the first reply

    async def run(frames: AsyncIterator[Frame], context: Context) -> AsyncIterator[Frame]:
        out: Channel[Frame] = Channel(AHEAD_MS, _ahead_ms)
        texts: Channel[str] = Channel(SENTENCES_AHEAD)
        rate_hz = sample_rate_hz or context.output_rate_hz
        reading = context.spawn(_read(engine, context, frames, texts, out), f"{engine.name} text")
        speaking = context.spawn(_speak(engine, context, texts, out, rate_hz), f"{engine.name} audio")
        try:
            async for frame in out:
                yield frame
        finally:
            await stop(speaking)
            await stop(reading)

    needs, makes = frozenset({TextDelta}), frozenset({AudioOut})
    return Stage(engine.name, run, "tts", "mouth", needs, makes, engine=engine)


async def _read(
    engine: TTS, context: Context, frames: AsyncIterator[Frame], texts: Channel[str], out: Channel[Frame]
) -> None:
    """Pass frames on, and their text to the voice: whole sentences, or as it comes where the voice takes that."""
    whole = engine.capabilities.streaming_text
    splitter = SentenceSplitter(getattr(engine.options, "language", "en"))
    timers = Timers(context.clock)

    def flush() -> None:
        rest = splitter.rest()
        if rest:
            texts.put_over(rest)

    try:
        async for frame in frames:
            timers.cancel()
            await out.put(frame)
            if type(frame) is TextDelta and frame.text:
                for text in [frame.text] if whole else splitter.feed(frame.text):
                    await texts.put(text)
                if not whole and splitter.complete:
                    timers.set("flush", FLUSH_MS, flush)
        flush()
    except Exception as error:
        out.close(error)
    finally:
        timers.cancel()
        texts.close()


async def _speak(engine: TTS, context: Context, texts: Channel[str], out: Channel[Frame], rate_hz: int) -> None:
    """Turn texts into audio at `rate_hz`."""
    try:
        voice = await context.handle(engine)
        if engine.capabilities.streaming_text:
            await _speak_texts(voice, texts, out, rate_hz, "")
        else:
            async for sentence in texts:
                await _speak_texts(voice, _once(sentence), out, rate_hz, sentence)
    except Exception as error:
        if not isinstance(error, ProviderError):
            wrapped = ProtocolError(f"tts {engine.name!r} failed: {error!r}", provider=engine.name, kind="tts")
            wrapped.__cause__ = error
            error = wrapped
        await out.put(Failed(engine.name, error))
        async for _ in texts:
            pass
    finally:
        out.close()


async def _speak_texts(
    voice: TTS, texts: AsyncIterator[str], out: Channel[Frame], rate_hz: int, sentence: str
) -> None:
    """One call of the voice; its first audio is marked with the sentence, where it is one."""
    resampler: Resampler | None = None
    async with aclosing(cast(Any, voice.synthesize_stream(texts))) as pieces:
        async for piece in pieces:
            if resampler is None or resampler.from_hz != piece.sample_rate_hz:
                resampler = Resampler(piece.sample_rate_hz, rate_hz)
            pcm = resampler.feed(piece.pcm)
            text, sentence = (sentence or piece.text), ""
            if pcm or text or piece.words:
                await out.put(AudioOut(pcm, rate_hz, text, piece.words))
    rest = resampler.feed(b"", last=True) if resampler is not None else b""
    if rest:
        await out.put(AudioOut(rest, rate_hz))


def _ahead_ms(frame: Frame) -> float:
    return Audio(frame.pcm, frame.sample_rate_hz).duration_ms if type(frame) is AudioOut else 20.0


async def _once(text: str) -> AsyncIterator[str]:
    yield text
