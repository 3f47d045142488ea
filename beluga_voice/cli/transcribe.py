"""`beluga-voice transcribe`: what is said in a sound file.

The VAD finds the speech first, because a recogniser that is given silence or noise invents words. A file of up to 30 s
is then transcribed as a whole; a longer one is cut in its pauses into pieces of up to 30 s. Shorter pieces are worse:
in 126 recorded passages (1,566 words) moonshine made 7.7 % word errors with pieces of up to 30 s, 8.7 % with 8 s and
9.3 % with single utterances.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import attrs
import click

from .. import audio, config
from ..audio import Audio
from ..chain import Chain
from ..clock import wall_ms
from ..engine import Context
from ..errors import BelugaVoiceError, ProtocolError
from ..frames import AudioIn, Frame, SpeechEnded, SpeechStarted
from ..stt import STT
from ..vad import VAD

__all__ = ["Piece", "pieces_of", "transcribe"]

LONGEST_PIECE_MS = 30_000.0
MARGIN_MS = 300.0
FRAME_MS = 100.0

Span = tuple[float, float]


@attrs.frozen
class Piece:
    """A part of a file that holds speech from `start_ms` to `end_ms`; its audio goes from `from_ms` to `to_ms`."""

    start_ms: float
    end_ms: float
    from_ms: float
    to_ms: float


@click.command()
@click.argument("file")
@click.option(
    "--json", "as_json", is_flag=True, help="Write JSON: text, segments with their times, language, engine time."
)
@click.option("--config", "config_path", metavar="FILE", help="Configuration whose [vad] and [stt] tables are used.")
def transcribe(file: str, as_json: bool, config_path: str | None) -> None:
    """Write down what is said in a sound FILE (WAV, FLAC, OGG or MP3)."""
    detector: VAD = config.engine("vad", config_path)
    recogniser: STT = config.engine("stt", config_path)
    sound = audio.read(file)
    report = asyncio.run(_report(detector, recogniser, sound))
    if as_json:
        click.echo(json.dumps({"file": file, **report}, indent=2, ensure_ascii=False))
    elif report["segments"]:
        click.echo(report["text"])
    else:
        click.echo(f"{file}: no speech heard", err=True)


def pieces_of(speech: Sequence[Span], duration_ms: float, longest_ms: float = LONGEST_PIECE_MS) -> list[Piece]:
    """How a file is cut for a recogniser: in pauses, each piece as long as they allow, up to `longest_ms`.

    Args:
        speech: where the VAD heard speech, start and end in ms, in order.
        duration_ms: the length of the file.
        longest_ms: the longest piece, unless one stretch of speech is longer: no cut is made inside speech.

    >>> [(piece.from_ms, piece.to_ms) for piece in pieces_of([(0, 900), (2_000, 2_500)], 3_000, longest_ms=2_000)]
    [(0.0, 1200.0), (1700.0, 2800.0)]
    """
    if not speech:
        return []
    if duration_ms <= longest_ms:
        return [Piece(speech[0][0], speech[-1][1], 0.0, duration_ms)]
    groups: list[list[Span]] = [[speech[0]]]
    for span in speech[1:]:
        if span[1] - groups[-1][0][0] + 2 * MARGIN_MS > longest_ms:
            groups.append([])
        groups[-1].append(span)
    pieces = []
    for at, group in enumerate(groups):
        start_ms, end_ms = group[0][0], group[-1][1]
        before_ms = 0.0 if at == 0 else (groups[at - 1][-1][1] + start_ms) / 2
        after_ms = duration_ms if at + 1 == len(groups) else (end_ms + groups[at + 1][0][0]) / 2
        from_ms, to_ms = max(start_ms - MARGIN_MS, before_ms, 0.0), min(end_ms + MARGIN_MS, after_ms, duration_ms)
        pieces.append(Piece(start_ms, end_ms, from_ms, to_ms))
    return pieces


async def _report(detector: VAD, recogniser: STT, sound: Audio) -> dict[str, Any]:
    pieces = pieces_of(await _speech(detector, sound), sound.duration_ms)
    segments: list[dict[str, Any]] = []
    engine_ms = 0.0
    language = getattr(recogniser.options, "language", None)
    async with recogniser, Context() as context:
        handle = await context.handle(recogniser)
        if pieces:
            await recogniser.prewarm()
        for piece in pieces:
            part = _cut(sound, piece.from_ms, piece.to_ms, recogniser.capabilities.sample_rate_hz)
            began_ms = wall_ms()
            try:
                transcript = await handle.transcribe(part)
            except BelugaVoiceError:
                raise
            except Exception as error:
                message = f"stt {recogniser.name!r} failed: {type(error).__name__}: {error}"
                raise ProtocolError(message, provider=recogniser.name, kind="stt") from error
            engine_ms += wall_ms() - began_ms
            language = transcript.language or language
            if transcript.text:
                span = {"start_ms": round(piece.start_ms, 1), "end_ms": round(piece.end_ms, 1)}
                segments.append({**span, "text": transcript.text})
    return {
        "duration_ms": round(sound.duration_ms, 1),
        "text": " ".join(segment["text"] for segment in segments),
        "language": language,
        "segments": segments,
        "provider": recogniser.name,
        "engine_wall_ms": round(engine_ms, 1),
    }


async def _speech(detector: VAD, sound: Audio) -> list[Span]:
    """Where the VAD hears speech."""
    spans: list[Span] = []
    start_ms: float | None = None
    chain = Chain(detector)
    async with detector, Context() as context, chain.process(context.feed(_frames(sound)), context) as frames:
        async for frame in frames:
            if isinstance(frame, SpeechStarted):
                start_ms = frame.speech_start_ms
            elif isinstance(frame, SpeechEnded) and start_ms is not None:
                spans.append((start_ms, frame.speech_end_ms))
                start_ms = None
    if start_ms is not None:
        spans.append((start_ms, sound.duration_ms))
    return spans


async def _frames(sound: Audio) -> AsyncIterator[Frame]:
    size = round(FRAME_MS * sound.sample_rate_hz / 1000) * audio.BYTES_PER_SAMPLE
    for at in range(0, len(sound.pcm), size):
        yield AudioIn(sound.pcm[at : at + size], sound.sample_rate_hz, at * 500.0 / sound.sample_rate_hz)


def _cut(sound: Audio, from_ms: float, to_ms: float, sample_rate_hz: int | None) -> Audio:
    first, last = (round(at_ms * sound.sample_rate_hz / 1000) * audio.BYTES_PER_SAMPLE for at_ms in (from_ms, to_ms))
    part = Audio(sound.pcm[first:last], sound.sample_rate_hz)
    return audio.resample(part, sample_rate_hz) if sample_rate_hz else part
