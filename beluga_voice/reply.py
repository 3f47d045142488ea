"""One reply: the mouth that makes it and the playout that speaks it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from ._streams import Channel
from .apart import Apart
from .barge_in import BargeIn
from .chain import Chain
from .engine import Context
from .errors import AgentError
from .events import Turn
from .frames import AudioOut, EndCall, Failed, Frame, ReplyEnded, TextDelta, ToolCalled, ToolReturned
from .playout import Playout

__all__ = ["Reply"]

NOTHING = "the agent gave nothing to say; expected text. Return or yield a str."
MOST_RELAYED_BYTES = 32 * 2**20  # eleven minutes at 24 kHz: a model may be that far ahead of what is played


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
        asked: of a reply that comes by the ears: what comes now is it, and nothing from before.
        before: what was heard of the failed reply that a fallback stands in for.
        asides: what was said in it and is no part of it: fillers.
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
        self.fallback = self.asked = False
        self.interruptible = True
        self.before = ""
        self.asides: list[str] = []
        self.seen = (-1.0, 0.0)
        self.tasks: list[asyncio.Task[None]] = []
        self._stages, self._first, self._on_frame = stages, first, on_frame
        self._apart = Apart()
        self._broken = False  # who made it elsewhere broke off
        self._relayed: Channel[AudioOut] = Channel(MOST_RELAYED_BYTES, lambda frame: float(len(frame.pcm)))

    @property
    def made_here(self) -> bool:
        """True for a reply that the session's own stages make."""
        return self._stages is not None

    async def make(self, context: Context) -> None:
        """Run the stages, or what comes by the ears, into the playout."""
        if self._stages is None:
            await self._play_relayed()
            return

        async def beginning() -> AsyncGenerator[Frame, None]:
            yield self._first

        try:
            async with aclosing(beginning()) as first, self._stages.process(first, context) as frames:
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

    def relay(self, frame: TextDelta | AudioOut | ToolCalled | ReplyEnded) -> bool:
        """Take one frame that comes by the ears, as fast as it comes; False for audio there is no room for any more."""
        if isinstance(frame, ReplyEnded):
            self.failed = not (self.text or self.made_audio or self.tools or self.excused)
            self._broken = frame.interrupted
            self._relayed.close()
        elif isinstance(frame, AudioOut):
            if not self.made_audio:
                self.made_audio = True
                self._on_frame(self, frame)
            if self._relayed.load + len(frame.pcm) > MOST_RELAYED_BYTES:
                return False
            self._relayed.put_over(frame)
        else:
            told = self._apart.frame(frame)
            if isinstance(told, TextDelta):
                self.playout.spread(told.text)
            self.note(told)
        return True

    async def _play_relayed(self) -> None:
        try:
            async for frame in self._relayed:
                await self.playout.add(frame)
        finally:
            self.playout.finish(broken=self._broken)

    def note(self, frame: Frame) -> None:
        """Keep what `frame` says of the reply, and pass it on."""
        if isinstance(frame, TextDelta):
            self.text += frame.text
        elif isinstance(frame, (ToolCalled, ToolReturned)):
            if any(frame is told for told in self.tools):
                return  # the session told it already, and here it comes by the stages
            self.tools.append(frame)
            self._apart.frame(frame)
        elif isinstance(frame, Failed):
            self.failed = self.failed or (self._stages is not None and frame.stage == self._stages.stages[0].name)
        elif isinstance(frame, EndCall):
            self.excused = True
        self._on_frame(self, frame)

    def owns(self, frame: ToolCalled | ToolReturned) -> bool:
        """True for a call made now, and for the result of one of its own."""
        return isinstance(frame, ToolCalled) or any(call.call_id == frame.call_id for call in self.tools)

    @property
    def waits_for_tools(self) -> bool:
        """True while a tool it called has not returned."""
        called = Counter(call.call_id for call in self.tools if isinstance(call, ToolCalled))
        return bool(called - Counter(call.call_id for call in self.tools if isinstance(call, ToolReturned)))

    @property
    def undoable(self) -> bool:
        """True while it is as if it had never been: nothing of it was heard, and it called no tool."""
        return not self.tools and not self.heard_text()

    def heard_text(self) -> str:
        """What was heard of it, without fillers, and before it of the reply it stands in for."""
        heard = _without(self.playout.heard_text(), self.asides) if self.asides else self.playout.heard_text()
        return " ".join(text for text in (self.before, heard) if text)

    def cut(self) -> float:
        """Stop speaking, now; how much was played, in ms. The mouth is still to be stopped."""
        self.cancelled = True
        return self.playout.cut()


def _without(heard: str, asides: list[str]) -> str:
    """`heard` without `asides`, in the order they were said; the last one may have been cut."""
    words, begin = heard.split(), 0
    plain = [_plain(word) for word in words]
    for aside in asides:
        said = [_plain(word) for word in aside.split()]
        for at in range(begin, len(words)):
            if plain[at : at + len(said)] == said[: len(plain) - at]:
                del words[at : at + len(said)], plain[at : at + len(said)]
                begin = at
                break
    return " ".join(words)


def _plain(word: str) -> str:
    return "".join(sign for sign in word.casefold() if sign.isalnum())
