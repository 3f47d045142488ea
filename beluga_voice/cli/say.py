"""`beluga-voice say`: a text spoken into a sound file."""

from __future__ import annotations

import asyncio
from pathlib import Path

import attrs
import click

from .. import audio, config, tts
from .._streams import Channel
from ..audio import Audio
from ..clock import wall_ms
from ..engine import Context
from ..errors import ConfigError, ProtocolError
from ..frames import AudioOut
from ..tts import TTS, Failover
from ..tts.sentences import Script
from ..tts.speech import Speech
from ._files import file
from ._stand_ins import tell_stand_ins

__all__ = ["Spoken", "say", "speak", "spoken"]


@attrs.frozen
class Spoken:
    """A text as sound; `by`: who spoke it, several where one broke off; `took_ms` of wall time."""

    sound: Audio
    by: str
    took_ms: float


@click.command()
@click.argument("text")
@click.option("-o", "--output", required=True, type=file, help="Sound file to write: .wav, .flac, .ogg or .mp3.")
@click.option("--voice", help="Which voice speaks, for providers that have several; stand-bys keep their own.")
@click.option(
    "--config", "config_path", type=file, help="Configuration whose [tts] is used; of several the first that is well."
)
def say(text: str, output: str, voice: str | None, config_path: str | None) -> None:
    """Speak TEXT into a sound file."""
    if not text.strip():
        raise ConfigError("there is nothing to say: TEXT is empty; write some words")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ConfigError("TEXT is not written in the encoding of this terminal; write it in UTF-8")
    Path(audio.writable_beside(output)).unlink()
    audio.file_format(output)
    voices: Failover = config.failover("tts", config_path)
    if voice is not None:
        first, *rest = voices.engines
        voices = tts.failover(first.with_options(voice=voice), *rest, options=voices.resilience)
    made = asyncio.run(spoken(voices, text))
    audio.write(output, made.sound)
    click.echo(f"{output}: {made.sound.duration_ms / 1000:.1f} s of speech by {made.by}, made in {made.took_ms:.0f} ms")


async def spoken(voices: Failover, text: str) -> Spoken:
    """The sound of a text, telling who stood in. Raises what `speak` raises."""
    async with voices, Context() as context:
        try:
            return await speak(voices, text, context)
        finally:
            tell_stand_ins(context)


async def speak(voice: TTS, text: str, context: Context) -> Spoken:
    """The sound of a text, at the rate of whoever spoke first.

    Args:
        voice: who speaks; entered already.
        text: what it says.
        context: whose handles are used, and who is told of a stand-by's taking over.

    Raises:
        ProviderError: nobody could speak it.
    """
    voices = voice if isinstance(voice, Failover) else tts.failover(voice)
    handle = await context.handle(voices)
    takes: list[tuple[int, bytearray]] = []
    speakers: dict[str, None] = {}

    async def put(piece: AudioOut) -> None:
        if piece.pcm:
            if not takes or takes[-1][0] != piece.sample_rate_hz:
                takes.append((piece.sample_rate_hz, bytearray()))
            takes[-1][1].extend(piece.pcm)
            speakers[handle.duty.engine.name] = None

    script: Channel[str] = Channel(1)
    script.put_over(text)
    script.close()
    began_ms = wall_ms()
    await Speech(handle, Script(script, voices.language), context, put).run()
    took_ms = wall_ms() - began_ms
    if not takes:
        message = f"tts {voices.name!r} made no sound of this text; try other words"
        raise ProtocolError(message, provider=voices.name, kind="tts")
    rate_hz = takes[0][0]
    pcm = b"".join(audio.resample(Audio(bytes(pcm), hz), rate_hz).pcm for hz, pcm in takes)
    return Spoken(Audio(pcm, rate_hz), " and ".join(speakers), took_ms)
