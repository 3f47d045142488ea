"""What a session's events become on the wire: the JSON messages a caller is told.

>>> teller = Teller()
>>> teller.messages(SessionEvent("turn_ended", 0.0, 3, {"source": "silence"}))
[{'type': 'turn_end', 'turn': 3}]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import ProviderError, SessionLimitError
from ..events import SessionEvent
from ..history import Message

__all__ = ["Teller", "history_message"]

MAX_TEXT = 10_000  # characters: as JSON in ASCII they fit a message
MAX_HISTORY = 60_000  # bytes of texts in one message
LATENCIES = ("stt_latency_ms", "agent_latency_ms", "tts_latency_ms", "e2e_latency_ms")


class Teller:
    """Turns events into messages, without their numbers. `reply_start` waits for the reply's first audio, to name it.

    Attributes:
        turn: whose reply was begun last.
    """

    def __init__(self) -> None:
        self.turn = -1
        self._start: dict[str, Any] | None = None
        self._last_seq = -1

    def messages(self, event: SessionEvent) -> list[dict[str, Any]]:
        """What to tell of an event; nothing of most."""
        tell = _TELL.get(event.name)
        return tell(self, event) if tell is not None else []

    def begin_audio(self, seq: int) -> list[dict[str, Any]]:
        """Audio is about to be sent, and `seq` is the next number: what is to be told before it."""
        start, self._start = self._start, None
        return [] if start is None else [{**start, "first_seq": seq + 1}]

    def audio(self, seq: int) -> None:
        """Audio was given the number `seq`."""
        self._last_seq = seq

    def _reply_started(self, event: SessionEvent) -> list[dict[str, Any]]:
        self._start = {"type": "reply_start", "turn": event.turn, "reply": event.data["reply"]}
        self.turn, self._last_seq = event.turn, -1
        return []

    def _reply_text(self, event: SessionEvent) -> list[dict[str, Any]]:
        text = event.data["text"]
        reply = {"type": "reply", "turn": event.turn, "reply": event.data["reply"]}
        return [{**reply, "text": text[at : at + MAX_TEXT]} for at in range(0, len(text), MAX_TEXT)]

    def _reply_ended(self, event: SessionEvent) -> list[dict[str, Any]]:
        self._start, last_seq = None, self._last_seq
        self._last_seq = -1
        return [
            {
                "type": "reply_end",
                "turn": event.turn,
                "reply": event.data["reply"],
                "last_seq": last_seq,
                "interrupted": event.data["interrupted"],
                "heard_text": event.data["heard_text"][:MAX_TEXT],
            }
        ]

    def _transcript(self, event: SessionEvent) -> list[dict[str, Any]]:
        told = {"text": event.data["text"][:MAX_TEXT], "final": event.data["is_final"]}
        return [{"type": "transcript", "turn": event.turn, **told, "confidence": _number(event.data["confidence"])}]

    def _turn_finished(self, event: SessionEvent) -> list[dict[str, Any]]:
        record = event.data["record"]
        return [{"type": "metrics", "turn": record.index, **{name: _number(getattr(record, name)) for name in LATENCIES}}]

    def _error(self, event: SessionEvent) -> list[dict[str, Any]]:
        # An error's own words may hold addresses, keys or other callers' texts: they stay in the log.
        error, stage = event.data.get("error"), event.data.get("stage", "session")
        limit = "limit" if isinstance(error, SessionLimitError) else "internal"
        kind = "provider" if isinstance(error, ProviderError) else limit
        why = f" ({type(error).__name__})" if error is not None else ""
        return [{"type": "error", "code": kind, "message": f"{stage} failed{why}", "fatal": False}]

    def _closing(self, event: SessionEvent) -> list[dict[str, Any]]:
        if event.data["reason"] != "error":
            return []
        return [{"type": "error", "code": "internal", "message": "the session failed and ends", "fatal": True}]


def history_message(messages: Iterable[Message]) -> dict[str, Any]:
    """The conversation so far as a message; of a long one, its newest part."""
    told: list[dict[str, str]] = []
    room = MAX_HISTORY
    for message in reversed(list(messages)):
        text = message.text[:MAX_TEXT]
        room -= 40 + len(ascii(text))
        if room < 0:
            break
        told.append({"role": message.role, "text": text})
    return {"type": "history", "messages": told[::-1]}


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


_TELL: dict[str, Callable[[Teller, SessionEvent], list[dict[str, Any]]]] = {
    "state": lambda self, event: [{"type": "state", "state": event.data["state"], "turn": event.turn}],
    "transcript": Teller._transcript,
    "turn_ended": lambda self, event: [{"type": "turn_end", "turn": event.turn}],
    "turn_reopened": lambda self, event: [{"type": "turn_reopened", "turn": event.turn}],
    "reply_started": Teller._reply_started,
    "reply_text": Teller._reply_text,
    "reply_ended": Teller._reply_ended,
    "turn_finished": Teller._turn_finished,
    "error": Teller._error,
    "closing": Teller._closing,
}
