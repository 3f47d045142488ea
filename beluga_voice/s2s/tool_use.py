"""The tools a speech-to-speech model calls: run in tasks of the session, their results on the way back to the model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import attrs

from ..engine import Context
from ..frames import ToolCalled, ToolReturned
from ..tools import Toolbox

__all__ = ["ToolUse"]


@attrs.frozen
class _Run:
    """A call under way: who waits for it, and whether it ends with the reply."""

    task: asyncio.Task[None]
    stops: bool


class ToolUse:
    """The calls of the reply under way. The session tells of each call and its result by itself.

    Args:
        toolbox: the tools; without any, a call is emitted for somebody else to run.
        context: the session's.
        give: takes each result, for the model.
    """

    def __init__(self, toolbox: Toolbox, context: Context, give: Callable[[ToolReturned], None]) -> None:
        self._toolbox, self._context, self._give = toolbox, context, give
        self._calls: dict[str, _Run | None] = {}
        self._back: set[str] = set()  # calls whose results wait for the model
        self._known: set[str] = set()  # calls whose results wait, and need not: it knows them from the history
        self.used = False  # the reply has called any

    @property
    def open(self) -> bool:
        """True while a call of the reply has not returned, or its result is not with the model."""
        return bool(self._calls)

    def use(self, call: ToolCalled) -> None:
        """Run the tool that is called."""
        self.used = True
        if not len(self._toolbox):
            self._calls[call.call_id] = None
            self._context.emit(call)
            return
        found = self._toolbox.find(call.name)
        stops = found is not None and found.on_interrupt == "cancel"
        self._calls[call.call_id] = _Run(self._context.spawn(self._run(call), f"use {call.name}"), stops)

    def came(self, frame: ToolReturned) -> None:
        """A result is on its way to the model."""
        self._back.add(frame.call_id)

    def goes(self, frame: ToolReturned) -> bool:
        """The result has its turn: True if the model is to be told."""
        self._back.discard(frame.call_id)
        self._calls.pop(frame.call_id, None)
        known = frame.call_id in self._known
        self._known.discard(frame.call_id)
        return not known

    def connected(self, history: tuple[Any, ...]) -> None:
        """A new connection knows what is in `history`."""
        told = {frame.call_id for message in history for frame in message.tool_calls if isinstance(frame, ToolReturned)}
        self._known |= self._back & told
        for call_id in self._known:
            self._calls.pop(call_id, None)

    def leave(self) -> None:
        """The reply is over. Who may be cancelled is; the others finish, and the model is told what they gave."""
        calls, self._calls, self.used = self._calls, {}, False
        for call_id, call in calls.items():
            if call is not None and call.stops and not call.task.done():
                call.task.cancel()
                self._give(ToolReturned(call_id, error="cancelled"))

    async def _run(self, call: ToolCalled) -> None:
        async for frame in self._toolbox.use(self._context.session, [call]):
            if isinstance(frame, ToolReturned):
                self._give(frame)
