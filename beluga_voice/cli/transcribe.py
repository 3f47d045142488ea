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
from ..frames import AudioIn, Frame, SpeechEnded, SpeechStarted
from ..stt import Failover
from ..stt.batch import Batch
from ..vad import VAD
from ._files import file
from ._report import printable
from ._stand_ins import tell_stand_ins

__all__ = ["Piece", "pieces_of", "report_of", "transcribe"]

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
@click.argument("path", metavar="FILE", type=file)
@click.option(
    "--json", "as_json", is_flag=True, help="Write JSON: text, segments with their times, language, engine time."
)
@click.option(
    "--config",
    "config_path",
    type=file,
    help="Configuration whose [vad] and [stt] tables are used; of several [[stt]] the first that is well.",
)
def transcribe(path: str, as_json: bool, config_path: str | None) -> None:
    """Write down what is said in a sound FILE (WAV, FLAC, OGG or MP3)."""
    detector: VAD = config.engine("vad", config_path)
    recognisers: Failover = config.failover("stt", config_path)
    sound = audio.read(path)
    report = asyncio.run(report_of(detector, recognisers, sound))
    if as_json:
        click.echo(json.dumps({"file": path, **report}, indent=2, ensure_ascii=False))
    elif report["segments"]:
        click.echo(printable(report["text"]))
    else:
        click.echo(f"{path}: no speech heard", err=True)


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


async def report_of(detector: VAD, recognisers: Failover, sound: Audio) -> dict[str, Any]:
    """What is said in the sound, as plain data, telling who stood in.

    Raises:
        ProviderError: nobody could transcribe it.
    """
    pieces = pieces_of(await _speech(detector, sound), sound.duration_ms)
    segments: list[dict[str, Any]] = []
    hearers: dict[str, None] = {}
    language = getattr(recognisers.options, "language", None)
    began_ms = ended_ms = 0.0
    if pieces:
        async with recognisers, Context() as context:
            batch = Batch(recognisers, context)
            began_ms = wall_ms()
            try:
                for piece in pieces:
                    transcript = await batch.transcribe(_cut(sound, piece.from_ms, piece.to_ms))
                    hearers[batch.engine.name] = None
                    language = transcript.language or language
                    if transcript.text:
                        span = {"start_ms": round(piece.start_ms, 1), "end_ms": round(piece.end_ms, 1)}
                        segments.append({**span, "text": transcript.text})
            finally:
                tell_stand_ins(context)
            ended_ms = wall_ms()
    return {
        "duration_ms": round(sound.duration_ms, 1),
        "text": " ".join(segment["text"] for segment in segments),
        "language": language,
        "segments": segments,
        "provider": " and ".join(hearers) or recognisers.name,
        "engine_wall_ms": round(ended_ms - began_ms, 1),
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


def _cut(sound: Audio, from_ms: float, to_ms: float) -> Audio:
    first, last = (round(at_ms * sound.sample_rate_hz / 1000) * audio.BYTES_PER_SAMPLE for at_ms in (from_ms, to_ms))
    return Audio(sound.pcm[first:last], sound.sample_rate_hz)
