"""A speech-to-speech model by script: it understands tone speech, and answers in tone speech, as fast as you like.

>>> model = ScriptedS2S(lambda text: [f"You said {text}."])
>>> model.name, model.capabilities.says
('ScriptedS2S', True)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from .._streams import Channel
from ..audio import Audio
from ..clock import Clock
from ..frames import (
    AudioOut,
    Frame,
    ReplyEnded,
    SpeechStarted,
    TextDelta,
    ToolCalled,
    ToolReturned,
    Transcript,
    TurnEnded,
    Usage,
)
from ..s2s import S2S, S2SCapabilities, S2SSession
from ..tools import NO_RESULT, Tool, Toolbox, as_text, paired
from ._tone_ears import PREFIX_MS, ToneEars
from .tone_speech import say

__all__ = ["Answer", "ScriptedS2S", "ScriptedS2SSession"]

RATE_HZ = 24_000
PIECE_MS = 100.0

Answer = Callable[[str], "Sequence[str | ToolCalled | Exception]"]


class ScriptedS2S(S2S):
    """Gives by a function of what the caller said, or of what a tool returned, texts to say and tools to call, in order.

    An exception among them breaks the connection there.

    Args:
        answer: the function.
        delay_ms: from a turn's end to the answer's first sound.
        words_ms: from a turn's end to its words.
        speed: how many times faster than it is played its speech comes.
        connect_ms: how long connecting takes.
        silence_ms: how much quiet ends a turn.
        tools: what it may call.
        says: it can be told to say a text.
        clock: whose time.

    Attributes:
        sessions: every connection, in order.
        failures: what the next connections fail with.
    """

    def __init__(
        self,
        answer: Answer = lambda text: [f"you said {text}"],
        *,
        delay_ms: float = 200.0,
        words_ms: float = 400.0,
        speed: float = 10.0,
        connect_ms: float = 0.0,
        silence_ms: float = 500.0,
        tools: Sequence[Tool] = (),
        says: bool = True,
        clock: Clock | None = None,
    ) -> None:
        self.answer, self.delay_ms, self.words_ms, self.speed = answer, delay_ms, words_ms, speed
        self.connect_ms, self.silence_ms = connect_ms, silence_ms
        self.toolbox = Toolbox(tools)
        self.capabilities = S2SCapabilities(RATE_HZ, RATE_HZ, tools=True, says=says, closes=True)
        self.clock = clock or Clock()
        self.sessions: list[ScriptedS2SSession] = []
        self.failures: list[Exception] = []

    async def connect(self, history: tuple[Any, ...] = ()) -> ScriptedS2SSession:
        await self.clock.sleep_ms(self.connect_ms)
        if self.failures:
            raise self.failures.pop(0)
        self.sessions.append(ScriptedS2SSession(self, history))
        return self.sessions[-1]


class ScriptedS2SSession(S2SSession):
    """One connection.

    Attributes:
        history: what it was told when it was made.
        heard: what the caller said over it; `typed`: what they typed.
        interrupted: how much of each interrupted reply was heard, in ms.
        results: what tools returned.
        asked: how often it was asked to answer.
        closed: it was hung up.
    """

    def __init__(self, engine: ScriptedS2S, history: tuple[Any, ...]) -> None:
        self.history = history
        self.heard: list[str] = []
        self.typed: list[str] = []
        self.interrupted: list[float] = []
        self.results: list[ToolReturned] = []
        self.asked = 0
        self.closed = False
        self._engine = engine
        self._ears = ToneEars(RATE_HZ, engine.silence_ms)
        self._out: Channel[Frame] = Channel(100_000)
        self._tasks: set[asyncio.Task[None]] = set()
        self._replying: asyncio.Task[None] | None = None
        self._last = next((message.text for message in reversed(history) if message.role == "user"), "")
        self._calls: set[str] = set()
        for called, returned in paired(history[-1].tool_calls) if history else ():
            if returned.error == NO_RESULT:
                self._calls.add(called.call_id)
            self._last = as_text(returned)

    def drop(self, error: Exception | None = None) -> None:
        """Break the connection."""
        self._out.close(error or ConnectionResetError("dropped"))

    async def send_audio(self, audio: Audio) -> None:
        if self._out.closed:
            raise ConnectionResetError("dropped")
        for heard in self._ears.feed(audio.pcm):
            if heard.what == "started":
                self._out.put_over(SpeechStarted(self._ears.fed_ms, heard.at_ms + PREFIX_MS, heard.at_ms))
            else:
                self._end_turn(heard.at_ms - self._engine.silence_ms, heard.text)

    async def send_text(self, text: str) -> None:
        self._last = text
        self.typed.append(text)
        await self.answer()

    async def answer(self) -> None:
        self.asked += 1
        self._begin(self._reply(self._last, self._engine.delay_ms))

    async def say(self, text: str) -> None:
        self._begin(self._speak([text]))

    async def end_turn(self) -> None:
        if self._ears.waiting_ms:
            heard = self._ears.commit()
            self._end_turn(heard.at_ms, heard.text)

    async def send_tool_result(self, result: ToolReturned) -> None:
        self.results.append(result)
        if result.call_id in self._calls:
            self._calls.remove(result.call_id)
            if not self._calls:
                self._begin(self._reply(as_text(result), 0.0))

    async def interrupt(self, played_ms: float) -> None:
        self.interrupted.append(played_ms)
        self._calls.clear()
        if self._replying is not None:
            self._replying.cancel()

    async def events(self) -> AsyncIterator[Frame]:
        async for frame in self._out:
            yield frame

    async def aclose(self) -> None:
        self.closed = True
        self._out.close()
        for task in self._tasks:
            task.cancel()

    def _end_turn(self, end_ms: float, text: str) -> None:
        self._last = text
        self.heard.append(text)
        self._out.put_over(TurnEnded(self._ears.fed_ms, "model", speech_end_ms=end_ms))
        self._spawn(self._tell_words(text))

    async def _tell_words(self, text: str) -> None:
        await self._engine.clock.sleep_ms(self._engine.words_ms)
        self._out.put_over(Transcript(text, closes=True))

    def _begin(self, work: Any) -> None:
        self._replying = self._spawn(work)

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name="scripted model")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _reply(self, text: str, delay_ms: float) -> None:
        await self._engine.clock.sleep_ms(delay_ms)
        await self._speak(self._engine.answer(text))

    async def _speak(self, steps: Sequence[str | ToolCalled | Exception]) -> None:
        for step in steps:
            if isinstance(step, Exception):
                self.drop(step)
                return
            if isinstance(step, ToolCalled):
                self._calls.add(step.call_id)
                self._out.put_over(step)
            else:
                await self._say(step)
        self._out.put_over(Usage("s2s", self._engine.name, "script", {"output_tokens": 1}))
        if not self._calls:
            self._out.put_over(ReplyEnded(0, "", False))

    async def _say(self, text: str) -> None:
        """The words, each a little before its sound, piece by piece."""
        for word in text.split():
            self._out.put_over(TextDelta(word + " "))
            pcm = say(word, RATE_HZ)
            size = round(PIECE_MS * RATE_HZ / 1000) * 2
            for at in range(0, len(pcm), size):
                piece = pcm[at : at + size]
                self._out.put_over(AudioOut(piece, RATE_HZ))
                await self._engine.clock.sleep_ms(len(piece) * 500.0 / RATE_HZ / self._engine.speed)
