"""The ears of a session: the stages that hear, run over its inbox, and changed for others without missing anything."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from .chain import Chain
from .engine import Context
from .frames import AudioIn, Frame

__all__ = ["Ears"]

log = logging.getLogger("beluga_voice.session")
WARM_MS = 200.0  # what new stages hear again: less than what it takes to be sure of quiet
_HERE: Any = object()  # the place in the inbox where others go on


class Ears:
    """Runs the stages, and rebuilds them once if one crashes.

    Args:
        chain: the stages.
        context: whose inbox.
        hear: takes what comes out of them, frame by frame.
        on_crash: told the error of a stage, and whether it was the last chance.
        changeable: others may take their place.
    """

    def __init__(
        self,
        chain: Chain,
        context: Context,
        *,
        hear: Callable[[Frame], None],
        on_crash: Callable[[Exception, bool], None],
        changeable: bool = False,
    ) -> None:
        self._chain, self._context, self._hear, self._on_crash = chain, context, hear, on_crash
        self._changeable = changeable
        self._next: Chain | None = None
        self._recent: list[AudioIn] = []  # a list: it holds few
        self._again_ms = -1.0  # audio before this place has been through the ears that were before

    def use(self, chain: Chain) -> None:
        """Go on with other stages, from what is in the inbox now."""
        self._next = chain
        self._context.inbox.put_urgent(_HERE)

    async def run(self) -> None:
        """Hear until the inbox is closed."""
        last_chance = False
        while True:
            try:
                await self._run()
                if self._next is None:
                    return
                self._chain, self._next = self._next, None
            except Exception as error:
                log.debug("session %s: the ears failed", self._context.session_id, exc_info=True)
                self._on_crash(error, last_chance)
                if last_chance:
                    return
                last_chance = True

    async def _run(self) -> None:
        inbox = self._context.inbox
        if not self._changeable:
            async with self._chain.process(inbox, self._context) as frames:
                async for frame in frames:
                    self._hear(frame)
        else:
            async with aclosing(self._up_to_here()) as source, self._chain.process(source, self._context) as frames:
                async for frame in frames:
                    if type(frame) is not AudioIn or frame.at_ms >= self._again_ms:
                        self._hear(frame)
        if not inbox.closed and self._next is None:
            raise RuntimeError("a stage stopped passing frames on; expected it to go on until its input ends")

    async def _up_to_here(self) -> AsyncGenerator[Frame, None]:
        """The last moments, for stages that begin; then the inbox, up to where others go on."""
        self._again_ms = self._recent[-1].end_ms if self._recent else -1.0
        for frame in tuple(self._recent):
            yield frame
        async for one in self._context.inbox:
            if one is _HERE:
                return
            if type(one) is AudioIn:
                self._recent.append(one)
                while self._recent[-1].at_ms - self._recent[0].at_ms >= WARM_MS:
                    self._recent.pop(0)
            yield one
