"""Words before and after a tool call: two answers of a model, which knows nothing of the space between them.

>>> apart = Apart()
>>> [apart.frame(frame) for frame in (TextDelta("Let me see."), ToolCalled("c1", "look"), TextDelta("It is red."))][2]
TextDelta(text=' It is red.')
"""

from __future__ import annotations

from .frames import Frame, TextDelta, ToolCalled, ToolReturned

__all__ = ["Apart"]


class Apart:
    """Sees the frames of one reply, in order."""

    def __init__(self) -> None:
        self._last, self._called = " ", False

    def frame(self, frame: Frame) -> Frame:
        """The frame, or words with a space before them where one is missing."""
        if isinstance(frame, (ToolCalled, ToolReturned)):
            self._called = True
        elif isinstance(frame, TextDelta) and frame.text:
            if self._called and not (self._last.isspace() or frame.text[0].isspace()):
                frame = TextDelta(f" {frame.text}")
            self._last, self._called = frame.text[-1], False
        return frame
