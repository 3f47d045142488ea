"""What tests of agents and providers are made of: callers, engines by script, simulated time.

No microphone, key or network. A whole conversation in simulated time:

>>> from beluga_voice import tts, turn
>>> async def reply(text, history):
...     return f"You said {text}."
>>> call = hold(
...     Chain(LoudVAD(), turn.new("silence"), ScriptedSTT("hello there"), reply, tts.new("tone")),
...     quiet(500) + speech(800) + quiet(3_000),
... )
>>> [(record.user_text, record.heard_text) for record in call.turns]
[('hello there', 'You said hello there.')]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs
import numpy as np

from ..audio import Audio, to_pcm
from ..builtin.recorded_line import RecordedLine
from ..chain import Chain
from ..clock import Clock, run_simulated
from ..events import SessionEvent, TurnRecord
from ..frames import Transcript
from ..history import Message
from ..session import Session
from ..settings import SessionOptions
from ..stt import STT
from ..vad import VAD, VADStream

__all__ = ["Call", "LoudVAD", "ScriptedSTT", "hold", "quiet", "speech"]

RATE_HZ = 16_000


def speech(duration_ms: float, seed: int = 0) -> bytes:
    """Noise loud enough to be speech to `LoudVAD` and the energy VAD: PCM at 16 kHz."""
    return to_pcm(np.random.default_rng(seed).normal(0.0, 0.1, round(duration_ms * RATE_HZ / 1000)))


def quiet(duration_ms: float) -> bytes:
    """Digital silence: PCM at 16 kHz."""
    return bytes(2 * round(duration_ms * RATE_HZ / 1000))


class LoudVAD(VAD):
    """Calls a window speech when at least half of its samples are not zero: exact, for speech made by `speech`."""

    def stream(self) -> VADStream:
        return _LoudStream()


class _LoudStream(VADStream):
    async def probability(self, window: bytes) -> float:
        return float(np.count_nonzero(np.frombuffer(window, "<i2")) * 2 >= len(window) // 2)


class ScriptedSTT(STT):
    """Gives the texts of a script, one a call, the last one again and again; keeps what it was given in `heard`.

    Args:
        texts: what it understands.
        delay_ms: how long each call takes.
        clock: whose time.
    """

    def __init__(self, *texts: str, delay_ms: float = 0.0, clock: Clock | None = None) -> None:
        self.texts, self.delay_ms = list(texts) or ["something"], delay_ms
        self.heard: list[Audio] = []
        self._clock = clock or Clock()

    async def transcribe(self, audio: Audio) -> Transcript:
        if self.delay_ms:
            await self._clock.sleep_ms(self.delay_ms)
        text = self.texts[min(len(self.heard), len(self.texts) - 1)]
        self.heard.append(audio)
        return Transcript(text)


@attrs.frozen
class Call:
    """A conversation that is over: what it brought, and what both sides sounded like (PCM at 16 kHz, in true time)."""

    reason: str
    turns: list[TurnRecord]
    events: list[SessionEvent]
    history: tuple[Message, ...]
    session: Session
    caller: bytes = attrs.field(repr=False)
    agent: bytes = attrs.field(repr=False)

    def times(self, name: str) -> list[float]:
        """When events of that name happened, in ms."""
        return [event.at_ms for event in self.events if event.name == name]

    def states(self) -> list[str]:
        """The states it went through."""
        return [event.data["state"] for event in self.events if event.name == "state"]


def hold(
    chain: Chain,
    caller: bytes,
    options: SessionOptions | None = None,
    *,
    tail_ms: float = 3_000.0,
    at: Iterable[tuple[float, Callable[[Session], Any]]] = (),
) -> Call:
    """Hold a whole session over a caller's audio, in simulated time.

    Args:
        chain: the stages.
        caller: PCM at 16 kHz.
        options: the session's.
        tail_ms: how long the line stays open after the last word.
        at: things to do at a time: `[(1_500, lambda session: session.say("hi"))]`.
    """
    return run_simulated(_hold(chain, caller, options, tail_ms, at))


async def _hold(
    chain: Chain,
    caller: bytes,
    options: SessionOptions | None,
    tail_ms: float,
    at: Iterable[tuple[float, Callable[[Session], Any]]],
) -> Call:
    both: list[tuple[bytes, bytes]] = []
    events: list[SessionEvent] = []
    line = RecordedLine(Audio(caller, RATE_HZ), tail_ms=tail_ms, on_audio=lambda *sides: both.append(sides))
    session = Session(chain, line, options, listeners=[events.append])
    clock = Clock()
    timers = [clock.call_later_ms(when_ms, action, session) for when_ms, action in at]
    try:
        reason = await session.run()
    finally:
        for timer in timers:
            timer.cancel()
    heard, said = (b"".join(side) for side in zip(*both)) if both else (b"", b"")
    return Call(reason, list(session.turns), events, session.history, session, heard, said)
