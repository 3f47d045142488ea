"""What is said to a caller who waits for a tool: "One moment, please."

It is heard, but it is no part of what the agent said: an agent that read it in its history would think it had answered, and
would begin to talk like that.
"""

from __future__ import annotations

from collections.abc import Callable

from .clock import Timers
from .engine import Context
from .frames import Frame, TextDelta, ToolCalled, ToolReturned
from .reply import Reply
from .settings import SessionOptions

__all__ = ["Filler"]


class Filler:
    """Says the filler once for each round of tool calls that has kept the caller waiting in silence for too long.

    Args:
        context: what the stages share; the one that speaks lends its voice.
        options: the text, and how long the silence may last.
        tell: announces an event: `tell(name, turn_index, **data)`.
    """

    def __init__(self, context: Context, options: SessionOptions, tell: Callable[..., None]) -> None:
        self._context, self._tell = context, tell
        self._text, self._after_ms = options.tool_filler, options.tool_filler_after_ms
        self._timers = Timers(context.clock)
        self._said = False

    def note(self, reply: Reply, frame: Frame) -> None:
        """Hear of a frame of the reply under way."""
        if not (self._text and self._after_ms) or not isinstance(frame, (TextDelta, ToolCalled, ToolReturned)):
            return
        if not reply.waits_for_tools:
            self.stop()
        elif not self._said and not isinstance(frame, ToolReturned):
            self._timers.set("filler", self._after_ms, self._due, reply)

    def stop(self) -> None:
        """The round is over, or the reply."""
        self._timers.cancel()
        self._said = False

    def _due(self, reply: Reply) -> None:
        playout = reply.playout
        left_ms = playout.until_ms + self._after_ms - self._context.clock.now_ms()
        if left_ms > 0 or playout.held_ms > 0 or playout.paused:
            self._timers.set("filler", left_ms if left_ms > 0 else self._after_ms, self._due, reply)
            return
        if self._context.interject is None:
            return
        self._said = True
        reply.asides.append(self._text)
        self._tell("filler", reply.turn.index if reply.turn is not None else -1, reply=reply.number, text=self._text)
        self._context.interject(self._text)
