"""A recogniser as a stage of the ears: fed and read beside the line, so that no frame ever waits for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from ..audio import Audio, PreRoll
from ..chain import Process, Stage
from ..engine import Context
from ..frames import (
    AudioIn,
    EndTurn,
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
from .contract import STT
from .failover import Failover
from .recognition import Recognition

__all__ = ["as_frame_processor"]

PREROLL_KEPT_MS = 600.0


def as_frame_processor(engine: STT, **options: Any) -> Stage:
    """A recogniser as a stage: adds `Transcript` frames, which enter at the head of the ears.

    After a turn detector it gives its final at `TurnEnded`, begun on speculation at `TurnEndProposed`; before one, at
    `SpeechEnded`. No frame ever waits for the engine. One that is remote is connected as soon as the session begins.

    Args:
        engine: the recogniser.
        options: its options to change, like `language="de"`.
    """
    engine = engine.with_options(**options)
    continuous = engine.capabilities.continuous
    ranked = engine if isinstance(engine, Failover) else Failover(engine)
    for one in ranked.engines:
        if continuous and type(one).stream is STT.stream:
            raise TypeError(
                f"stt {one.name!r} is continuous but has no stream of its own: it would keep all quiet in memory. "
                "Write `def stream(self) -> STTStream`, or leave continuous False"
            )

    def placed(made: frozenset[type]) -> Process:
        finalize_on = TurnEnded if TurnEnded in made else SpeechEnded
        has_vad = SpeechStarted in made

        def run(frames: AsyncIterator[Frame], context: Context) -> AsyncIterator[Frame]:
            return _listen(ranked, frames, context, finalize_on, has_vad)

        return run

    needs = frozenset({AudioIn} if continuous else {AudioIn, SpeechStarted})
    makes = frozenset({Transcript, TurnEnded} if engine.capabilities.ends_turns else {Transcript})
    return Stage(engine.name, placed(frozenset()), "stt", "ears", needs, makes, engine=engine, placed=placed)


async def _listen(
    ranked: Failover, frames: AsyncIterator[Frame], context: Context, finalize_on: type, has_vad: bool
) -> AsyncIterator[Frame]:
    late: list[Frame] | None = None

    def tell(frame: Frame) -> None:
        if has_vad and isinstance(frame, (SpeechStarted, SpeechEnded)):
            return  # it is the VAD that tells of speech
        context.emit(frame) if late is None else late.append(frame)

    recognition = Recognition(ranked, context, tell)
    ring = PreRoll(PREROLL_KEPT_MS)
    continuous, ends_turns = ranked.capabilities.continuous, ranked.capabilities.ends_turns
    capturing, speaking = continuous, False
    try:
        if ranked.account:
            recognition.connect()
        async for frame in frames:
            yield frame
            if type(frame) is SpeechProbability:
                continue
            if isinstance(frame, AudioIn):
                if capturing:
                    recognition.audio(Audio(frame.pcm, frame.sample_rate_hz), frame.end_ms)
                ring.push(frame.at_ms, frame.pcm, frame.sample_rate_hz)
                if ends_turns and not has_vad:  # what a session decides by windows, like a barge-in, it decides by these
                    yield SpeechProbability(float(speaking), frame.at_ms, frame.end_ms - frame.at_ms)
            elif isinstance(frame, SpeechStarted):
                speaking = True
                if not capturing:
                    capturing = True
                    before = ring.take_from(frame.audio_from_ms)
                    if before is not None:
                        recognition.audio(before)
            elif isinstance(frame, SpeechEnded):
                speaking = False
            elif isinstance(frame, TurnEndProposed) and capturing:
                recognition.wish("propose")
            elif isinstance(frame, TurnEndWithdrawn) and capturing:
                recognition.wish("withdraw")
            elif isinstance(frame, WordsWanted) and capturing:
                recognition.wish("peek")
            elif isinstance(frame, WordsFrom) and not ends_turns:
                recognition.finalize()
                again = ring.take_from(frame.at_ms) if capturing and not continuous else None
                if again is not None:
                    recognition.audio(again)
            elif isinstance(frame, EndTurn) and ends_turns:
                recognition.wish("end")
            if type(frame) is finalize_on and not ends_turns:
                recognition.finalize()
                capturing = speaking or continuous
                ring.clear()  # the recogniser has had it
        if capturing and not ends_turns:
            recognition.finalize()
        late = []
        await recognition.drain()
        for frame in late:
            yield frame
    finally:
        await recognition.aclose()
