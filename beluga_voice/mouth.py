"""One reply: the mouth that makes it and the playout that speaks it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from .barge_in import BargeIn
from .chain import Chain
from .engine import Context
from .events import Turn
from .frames import AudioOut, Failed, Frame, TextDelta, ToolCalled, ToolReturned
from .playout import Playout

__all__ = ["Reply"]


class Reply:
    """A reply under way: to a turn, or something to say of one's own accord.

    Args:
        number: counts the session's replies; a reply that was cut is out of date, and what it still makes is dropped.
        mouth: the stages that make it.
        first: the frame they begin with.
        turn: the turn it answers, if any.
        playout: where its audio goes.
        barge_in: what decides about interrupting it; None: nothing may.
        on_frame: told of every frame of the mouth but later audio.
    """

    def __init__(
        self,
        number: int,
        mouth: Chain,
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
        self.failed = self.cancelled = self.made_audio = False
        self.fallback = False
        self.tasks: list[asyncio.Task[None]] = []
        self._mouth, self._first, self._on_frame = mouth, first, on_frame

    async def make(self, context: Context) -> None:
        """Run the mouth into the playout."""

        async def beginning() -> AsyncIterator[Frame]:
            yield self._first

        try:
            async with self._mouth.process(beginning(), context) as frames:
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
                        self._note(frame)
        except Exception as error:
            if not self.cancelled:
                self._note(Failed(self._mouth.stages[0].name if self._mouth.stages else "mouth", error))
        finally:
            self.playout.finish()

    def _note(self, frame: Frame) -> None:
        if isinstance(frame, TextDelta):
            self.text += frame.text
        elif isinstance(frame, (ToolCalled, ToolReturned)):
            self.tools.append(frame)
        elif isinstance(frame, Failed):
            self.failed = True
        self._on_frame(self, frame)

    def cut(self) -> float:
        """Stop speaking, now; how much was played, in ms. The mouth is still to be stopped."""
        self.cancelled = True
        return self.playout.cut()
