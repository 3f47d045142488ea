"""`beluga-voice say`: a text spoken into a sound file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import click

from .. import audio, config
from ..audio import Audio
from ..clock import wall_ms
from ..engine import Context
from ..errors import BelugaVoiceError, ConfigError, ProtocolError
from ..tts import TTS, SentenceSplitter

__all__ = ["say", "speak"]


@click.command()
@click.argument("text")
@click.option("-o", "--output", required=True, metavar="FILE", help="Sound file to write: .wav, .flac, .ogg or .mp3.")
@click.option("--voice", help="Which voice speaks, for providers that have several.")
@click.option("--config", "config_path", metavar="FILE", help="Configuration whose [tts] table is used.")
def say(text: str, output: str, voice: str | None, config_path: str | None) -> None:
    """Speak TEXT into a sound file."""
    if not text.strip():
        raise ConfigError("there is nothing to say: TEXT is empty; write some words")
    Path(audio.writable_beside(output)).unlink()
    audio.file_format(output)
    engine: TTS = config.engine("tts", config_path)
    if voice is not None:
        engine = engine.with_options(voice=voice)
    sound, took_ms = asyncio.run(speak(engine, text))
    audio.write(output, sound)
    click.echo(f"{output}: {sound.duration_ms / 1000:.1f} s of speech by {engine.name}, made in {took_ms:.0f} ms")


async def speak(engine: TTS, text: str) -> tuple[Audio, float]:
    """The sound of a whole text, sentence by sentence, and the wall time in ms that the engine took."""
    async with engine, Context() as context:
        handle = await context.handle(engine)
        began_ms = wall_ms()
        try:
            sound = await _sound(handle, text)
        except BelugaVoiceError:
            raise
        except Exception as error:
            message = f"tts {engine.name!r} failed: {type(error).__name__}: {error}"
            raise ProtocolError(message, provider=engine.name, kind="tts") from error
        took_ms = wall_ms() - began_ms
    if not sound.samples:
        message = f"tts {engine.name!r} made no sound of this text; try other words"
        raise ProtocolError(message, provider=engine.name, kind="tts")
    return sound, took_ms


async def _sound(engine: TTS, text: str) -> Audio:
    pieces: list[bytes] = []
    rate_hz = 0
    async with aclosing(cast(Any, engine.synthesize_stream(_sentences(engine, text)))) as stream:
        async for piece in stream:
            rate_hz = rate_hz or piece.sample_rate_hz
            pieces.append(audio.resample(Audio(piece.pcm, piece.sample_rate_hz), rate_hz).pcm)
    return Audio(b"".join(pieces), rate_hz)


async def _sentences(engine: TTS, text: str) -> AsyncIterator[str]:
    splitter = SentenceSplitter(getattr(engine.options, "language", "en"))
    for sentence in [*splitter.feed(text), splitter.rest()]:
        if sentence:
            yield sentence
