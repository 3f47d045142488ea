"""One reply: the mouth that makes it and the playout that speaks it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from .barge_in import BargeIn
from .chain import Chain
from .engine import Context
from .errors import AgentError
from .events import Turn
from .frames import AudioOut, EndCall, Failed, Frame, TextDelta, ToolCalled, ToolReturned
from .playout import Playout

__all__ = ["Reply"]

NOTHING = "the agent gave nothing to say; expected text. Return or yield a str."


class Reply:
    """A reply under way: to a turn, or something to say of one's own accord.

    Args:
        number: counts the session's replies; a reply that was cut is out of date, and what it still makes is dropped.
        stages: the stages that make it; None for one that comes by the ears.
        first: the frame they begin with.
        turn: the turn it answers, if any.
        playout: where its audio goes.
        barge_in: what decides about interrupting it; None: nothing may.
        on_frame: told of every frame of the mouth but later audio.

    Attributes:
        text: what it says, as far as it is made.
        failed: the agent failed.
        excused: it may end without a word: the agent hangs up, or speaks by `say`.
        fallback: it is what is said when the agent failed.
        interruptible: whether the caller may stop it.
        before: what was heard of the failed reply that a fallback stands in for.
        seen: when its playing was last seen to go on, and how much was played then, in ms.
    """

    def __init__(
        self,
        number: int,
        stages: Chain | None,
        first: Frame,
        *,
        turn: Turn | None,
        playout: Playout,
        barge_in: BargeIn | None,
        on_frame: Callable[[Reply, Frame], None],
    ) -> None:
        self.number, self.turn, self.playout, self.barge_in = number, turn, playout, barge_in
        self.text = ""
        self.tools: list[ToolCalled | ToolReturned] = []
        self.failed = self.cancelled = self.made_audio = self.excused = False
        self.fallback = False
        self.interruptible = True
        self.before = ""
        self.seen = (-1.0, 0.0)
        self.tasks: list[asyncio.Task[None]] = []
        self._stages, self._first, self._on_frame = stages, first, on_frame

    @property
    def made_here(self) -> bool:
        """True for a reply that the session's own stages make."""
        return self._stages is not None

    async def make(self, context: Context) -> None:
        """Run the stages into the playout."""
        assert self._stages is not None

        async def beginning() -> AsyncIterator[Frame]:
            yield self._first

        try:
            async with self._stages.process(beginning(), context) as frames:
                async for frame in frames:
                    if self.cancelled:
                        context.counters["stale_frames_dropped"] += 1
                        return
                    if type(frame) is AudioOut:
                        if not self.made_audio:
                            self.made_audio = True
                            self._on_frame(self, frame)
                        await self.playout.add(frame)
                    else:
                        self.note(frame)
        except Exception as error:
            if not self.cancelled:
                self.note(Failed(self._stages.stages[0].name, error))
        else:
            if not (self.text or self.tools or self.failed or self.excused):
                self.note(Failed(self._stages.stages[0].name, AgentError(NOTHING)))
        finally:
            self.playout.finish()

    def note(self, frame: Frame) -> None:
        """Keep what `frame` says of the reply, and pass it on."""
        if isinstance(frame, TextDelta):
            self.text += frame.text
        elif isinstance(frame, (ToolCalled, ToolReturned)):
            self.tools.append(frame)
        elif isinstance(frame, Failed):
            self.failed = self.failed or (self._stages is not None and frame.stage == self._stages.stages[0].name)
        elif isinstance(frame, EndCall):
            self.excused = True
        self._on_frame(self, frame)

    def heard_text(self) -> str:
        """What was heard of it, and before it of the reply it stands in for."""
        return " ".join(text for text in (self.before, self.playout.heard_text()) if text)

    def cut(self) -> float:
        """Stop speaking, now; how much was played, in ms. The mouth is still to be stopped."""
        self.cancelled = True
        return self.playout.cut()
