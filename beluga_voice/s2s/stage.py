"""A speech-to-speech model as a stage of the ears: what it hears, says and calls enters at the head of the ears."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from .._streams import stop
from ..chain import Process, Stage
from ..engine import Context
from ..frames import (
    AudioIn,
    AudioOut,
    EndTurn,
    Frame,
    Interrupted,
    ReplyEnded,
    ReplyWanted,
    SpeechEnded,
    SpeechStarted,
    TextDelta,
    ToolReturned,
    Transcript,
    TurnEnded,
)
from .contract import S2S
from .talk import Talk

__all__ = ["as_frame_processor"]

FOR_THE_MODEL = (AudioIn, EndTurn, Interrupted, ReplyEnded, ReplyWanted, SpeechEnded, SpeechStarted, ToolReturned)


def as_frame_processor(engine: S2S, **options: Any) -> Stage:
    """A speech-to-speech model as a stage. No frame waits for it.

    After a VAD, that says when the caller speaks, and the session's own rule for interruptions holds; without one, the model
    says so, and what it takes for speech interrupts.

    Args:
        engine: the model.
        options: its options to change.
    """
    engine = engine.with_options(**options)

    def placed(made: frozenset[type]) -> Process:
        vad_before = SpeechStarted in made

        async def run(frames: AsyncIterator[Frame], context: Context) -> AsyncIterator[Frame]:
            talk = Talk(engine, context, vad_before=vad_before)
            talking = context.spawn(talk.run(), f"{engine.name} session")
            try:
                async for frame in frames:
                    if type(frame) in FOR_THE_MODEL:
                        talk.put(frame)
                    yield frame
            finally:
                await stop(talking)

        return run

    makes = frozenset({Transcript, TurnEnded, TextDelta, AudioOut})
    needs = frozenset({AudioIn})
    return Stage(engine.name, placed(frozenset()), "s2s", "ears", needs, makes, engine=engine, placed=placed)
