"""The conversation so far, as an agent is given it: what was said, and of the agent's words only what was heard."""

from __future__ import annotations

from typing import Any, Literal

import attrs

from .frames import ToolCalled, ToolReturned

__all__ = ["History", "Message"]


@attrs.frozen
class Message:
    """One message. Of the agent's, `text` is what the caller heard (`heard_text` the same); a user's has no `heard_text`.

    `tool_calls` are the `ToolCalled` and `ToolReturned` of a reply, in order; `tools.paired` puts them together.
    """

    role: Literal["user", "assistant"]
    text: str
    heard_text: str = ""
    tool_calls: tuple[Any, ...] = ()

    def awaits(self, frame: ToolReturned) -> bool:
        """True when it holds the call that `frame` answers, and no answer to it."""
        told = [type(call) for call in self.tool_calls if call.call_id == frame.call_id]
        return told.count(ToolCalled) > told.count(ToolReturned)


class History:
    """Messages in order, bounded: beyond `max_messages` the oldest are let go and counted in `dropped`.

    >>> history = History()
    >>> history.add_turn("hello", "Hi there.")
    >>> [(message.role, message.text) for message in history.messages]
    [('user', 'hello'), ('assistant', 'Hi there.')]
    """

    def __init__(self, max_messages: int = 10_000) -> None:
        self.messages: tuple[Message, ...] = ()
        self.dropped = 0
        self._max_messages = max_messages
        self._places: dict[int, int] = {}  # by turn, where words belong that are not known yet, counted from the first message

    def add_turn(
        self, user_text: str, heard_text: str, tool_calls: tuple[Any, ...] = (), *, awaits: int | None = None
    ) -> None:
        """Add a turn: the user's text, if any, and what was heard of the reply, if anything.

        `awaits` is the number of a turn whose words are still to come, by `add_words`.
        """
        if awaits is not None and not user_text:
            self._places[awaits] = self.dropped + len(self.messages)
        new = [Message("user", user_text)] if user_text else []
        if heard_text or tool_calls:
            new.append(Message("assistant", heard_text, heard_text, tool_calls))
        self._keep((*self.messages, *new))

    def add_tool(self, frame: ToolCalled | ToolReturned) -> None:
        """Add what a tool call that belongs to no reply told: a result goes to the message that holds its call."""
        if isinstance(frame, ToolReturned):
            for at in reversed(range(len(self.messages))):
                message = self.messages[at]
                if message.awaits(frame):
                    told = attrs.evolve(message, tool_calls=(*message.tool_calls, frame))
                    self.messages = (*self.messages[:at], told, *self.messages[at + 1 :])
                    return
            return  # its message was let go
        self._keep((*self.messages, Message("assistant", "", "", (frame,))))

    def add_words(self, turn: int, user_text: str) -> None:
        """Add the words of a turn that was added without any, where they belong; nothing for any other turn."""
        place = self._places.pop(turn, self.dropped - 1)
        at = place - self.dropped
        if at >= 0:
            self._places = {other: there + (there >= place) for other, there in self._places.items()}
            self._keep((*self.messages[:at], Message("user", user_text), *self.messages[at:]))

    def _keep(self, messages: tuple[Message, ...]) -> None:
        over = max(0, len(messages) - self._max_messages)
        self.dropped += over
        self.messages = messages[over:]
