"""The conversation so far, as an agent is given it: what was said, and of the agent's words only what was heard."""

from __future__ import annotations

from typing import Any, Literal

import attrs

__all__ = ["History", "Message"]


@attrs.frozen
class Message:
    """One message. Of the agent's, `text` is what the caller heard (`heard_text` the same); a user's has no `heard_text`."""

    role: Literal["user", "assistant"]
    text: str
    heard_text: str = ""
    tool_calls: tuple[Any, ...] = ()


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

    def add_turn(self, user_text: str, heard_text: str, tool_calls: tuple[Any, ...] = ()) -> None:
        """Add a turn: the user's text, if any, and what was heard of the reply, if anything."""
        new = [Message("user", user_text)] if user_text else []
        if heard_text or tool_calls:
            new.append(Message("assistant", heard_text, heard_text, tool_calls))
        messages = (*self.messages, *new)
        over = max(0, len(messages) - self._max_messages)
        self.dropped += over
        self.messages = messages[over:]
