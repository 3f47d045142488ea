"""The server's welcome, read with care: a server may be newer, broken or no server of ours."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import attrs

from .. import wire

__all__ = ["Welcome", "as_ms", "is_number", "retry_after_ms"]

RESUME_WINDOW_MS = 30_000.0
LONGEST_MS = 3_600_000.0


@attrs.frozen
class Welcome:
    """What the server agreed to."""

    session_id: str
    resume_token: str = attrs.field(repr=False)
    resumed: bool
    received_seq: int
    resume_window_ms: float
    events_lost: bool
    limits: Mapping[str, Any]

    @classmethod
    def read(cls, message: Mapping[str, Any]) -> Welcome:
        """The welcome that `message` is.

        Raises:
            ValueError: what resuming needs is missing or of the wrong type.
        """
        session_id, token = message.get("session_id"), message.get("resume_token")
        if not (isinstance(session_id, str) and 0 < len(session_id) <= wire.MAX_NAME):
            raise ValueError("session_id is not a name")
        if not (isinstance(token, str) and 0 < len(token) <= wire.MAX_NAME):
            raise ValueError("resume_token is not a token")
        received_seq = message.get("received_seq", -1)
        if type(received_seq) is not int or not -1 <= received_seq <= wire.MAX_RESUME_SEQ:
            raise ValueError("received_seq is not a number")
        limits = message.get("limits")
        limits = limits if isinstance(limits, dict) else {}
        return cls(
            session_id=session_id,
            resume_token=token,
            resumed=message.get("resumed") is True,
            received_seq=received_seq,
            resume_window_ms=as_ms(limits.get("resume_window_ms"), RESUME_WINDOW_MS),
            events_lost=message.get("events_lost") is True,
            limits=limits,
        )


def is_number(value: object) -> bool:
    """True for a finite number that is no boolean."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < wire.MAX_MS


def as_ms(value: Any, default_ms: float) -> float:
    """`value` if it is a time of at most an hour, the nearer end if it is a number, else `default_ms`."""
    return min(max(0.0, float(value)), LONGEST_MS) if is_number(value) and math.isfinite(value) else default_ms


def retry_after_ms(reason: str) -> float | None:
    """When to try again, if the reason of a close says so: "retry_after_ms=N"."""
    found = re.search(r"retry_after_ms=(\d{1,9})\b", reason)
    return as_ms(int(found[1]), 0.0) if found else None
