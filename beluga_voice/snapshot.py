"""What is kept of a session so that another process can go on with it: plain values, as JSON.

>>> kept = Snapshot("s1", history=(Message("user", "hello"), Message("assistant", "Hi.", "Hi.")))
>>> Snapshot.from_bytes(kept.to_bytes()) == kept
True
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs

from .frames import ToolCalled, ToolReturned
from .history import Message

__all__ = ["Snapshot"]

VERSION = 1
MOST_TEXT = 10_000
TOOL_FRAMES: dict[str, type[Any]] = {"called": ToolCalled, "returned": ToolReturned}


@attrs.frozen
class Snapshot:
    """A session at one moment.

    Attributes:
        session_id: whose it is.
        user_id: who calls.
        tenant: on whose account.
        metadata: what else was known of the call.
        history: the conversation; of the agent's words only what was heard.
        pending: what the caller said last, where it was not answered to its end.
        turns: how many turns there were.
        seq: everything that the line brought up to this number is in here; -1: nothing.
        line: what the transport needs to be taken up again.
        data: the agent's notes, as far as they are JSON values.
    """

    session_id: str
    user_id: str = ""
    tenant: str = ""
    metadata: Mapping[str, Any] = attrs.field(factory=dict)
    history: tuple[Message, ...] = ()
    pending: str = ""
    turns: int = 0
    seq: int = -1
    line: Mapping[str, Any] = attrs.field(factory=dict)
    data: Mapping[str, Any] = attrs.field(factory=dict)

    def to_bytes(self) -> bytes:
        """As UTF-8 JSON. Notes and tool results that JSON does not know are left out, or become text."""
        told = attrs.asdict(self, recurse=False)
        told["history"] = [_message_out(message) for message in self.history]
        told["line"] = _plain(self.line)
        for name in ("metadata", "data"):
            told[name] = {key: value for key, value in told[name].items() if _is_json(key, value)}
        return json.dumps({"version": VERSION, **told}, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, state: bytes) -> Snapshot:
        """The snapshot that `to_bytes` wrote.

        Raises:
            ValueError: it is none, or of another version.
        """
        try:
            told = json.loads(state)
            version = told.pop("version")
            if version != VERSION:
                raise ValueError(f"a session was kept in version {version!r}; this program reads {VERSION}")
            told["history"] = tuple(_message_in(message) for message in told["history"])
            return cls(**told)
        except (UnicodeDecodeError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"what is kept is no session: {type(error).__name__}: {error}") from error


def _is_json(key: Any, value: Any) -> bool:
    try:
        json.dumps({key: value}, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return isinstance(key, str)


def _plain(value: Any) -> Any:
    """The value as JSON can hold it; what it cannot becomes text."""
    try:
        json.dumps(value, allow_nan=False)
        return value
    except (TypeError, ValueError, RecursionError):
        pass
    if isinstance(value, dict):
        return {str(key): _plain_text(inner) for key, inner in value.items() if isinstance(key, str)}
    return _plain_text(value)


def _plain_text(value: Any) -> Any:
    if _is_json("", value):
        return value
    try:
        return str(value)[:MOST_TEXT]
    except Exception:
        return f"<{type(value).__name__}>"


def _message_out(message: Message) -> dict[str, Any]:
    told: dict[str, Any] = {"role": message.role, "text": message.text}
    if message.heard_text:
        told["heard_text"] = message.heard_text
    if message.tool_calls:
        told["tool_calls"] = [
            [
                next(name for name, frame in TOOL_FRAMES.items() if isinstance(call, frame)),
                {name: _plain(value) for name, value in attrs.asdict(call, recurse=False).items()},
            ]
            for call in message.tool_calls
        ]
    return told


def _message_in(told: dict[str, Any]) -> Message:
    calls = tuple(TOOL_FRAMES[name](**values) for name, values in told.get("tool_calls", ()))
    return Message(told["role"], told["text"], told.get("heard_text", ""), calls)
