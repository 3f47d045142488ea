"""What `talk` writes of a call: the report as JSON, and files that are whole or not there."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs

from .. import audio
from ..chain import Chain
from ..engine import Engine
from ..errors import AudioFileError, ConfigError
from ..events import SessionEvent
from ..frames import Usage
from ..session import Session

__all__ = ["NewFile", "as_json", "bill", "engine_work", "engines", "fault", "printable", "report", "to_text"]

DEEPEST = 8
OF_AN_ENGINE = re.compile(r"(vad|turn|stt|agent|tts|s2s) '")


class NewFile:
    """A text file to be: refused now where it cannot be written, written beside later, renamed when it is whole.

    Use it as a context manager; without `write` nothing is left behind. What is no plain file (a pipe, /dev/stdout) is
    written straight.

    Raises:
        ConfigError: on entering, when the place is a directory, or its folder is missing or not writable.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._target = os.path.realpath(name)
        self._beside = ""

    def __enter__(self) -> NewFile:
        is_pipe = os.path.exists(self.name) and not os.path.isdir(self.name) and not os.path.isfile(self.name)
        if is_pipe:
            self._target = self.name  # what /dev/stdout really is has no path of its own
        else:
            try:
                self._beside = audio.writable_beside(self._target)
            except AudioFileError as error:
                raise ConfigError(str(error).replace(self._target, self.name, 1)) from None
        return self

    def write(self, text: str) -> None:
        """Write all of it."""
        try:
            Path(self._beside or self._target).write_text(text, encoding="utf-8", errors="replace")
            if self._beside:
                os.replace(self._beside, self._target)
        except OSError as error:
            raise ConfigError(f"{self.name}: cannot be written ({error.strerror}); choose another place") from None
        self._beside = ""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._beside:
            Path(self._beside).unlink(missing_ok=True)


def report(session: Session, events: Sequence[SessionEvent], clock: str, duration_ms: float) -> dict[str, Any]:
    """The call as plain data.

    Args:
        session: the session, ended.
        events: everything it told.
        clock: "wall", or "audio" where time was simulated and engines cost none.
        duration_ms: the length of the call on the caller's line.
    """
    records = [event.data["record"] for event in events if event.name == "turn_finished"]
    told: dict[str, Any] = as_json(
        {
            "session_id": session.session_id,
            "clock": clock,
            "end_reason": session.end_reason,
            "duration_ms": duration_ms,
            "turns": records,
            "events": events,
            "limits": attrs.asdict(session.options),
            "counters": dict(session.counters),
            "engines": engine_work(session.chain),
            "usage": session.usage,
        }
    )
    return told


def engines(chain: Chain) -> Iterator[Engine]:
    """The engines of a chain, each stand-by too."""
    for engine in chain.engines:
        yield from getattr(engine, "engines", (engine,))


def bill(usage: Iterable[Usage]) -> Iterator[str]:
    """What providers were used for, a line each: "stt deepgram nova-3: audio 12.3 s"."""
    for used in usage:
        amounts = ", ".join(_amount(unit, amount) for unit, amount in used.amounts.items() if amount)
        if amounts:
            yield printable(f"{used.kind} {used.provider} {used.model}".strip()) + f": {amounts}"


def _amount(unit: str, amount: float) -> str:
    if unit.endswith("_ms"):
        return f"{printable(unit.removesuffix('_ms'))} {amount / 1000:.1f} s"
    return f"{amount:g} {printable(unit.replace('_', ' '))}"


def engine_work(chain: Chain) -> dict[str, dict[str, Any]]:
    """How often each engine with a pool was called and how long it worked, in ms of wall time."""
    work: dict[str, dict[str, Any]] = {}
    for engine in engines(chain):
        pool = getattr(engine, "pool", None)
        calls, busy_ms = getattr(pool, "calls", None), getattr(pool, "busy_ms", None)
        if calls is not None and busy_ms is not None:
            name = engine.name if engine.name not in work else f"{engine.kind} {engine.name}"
            work[name] = {"kind": engine.kind, "calls": calls, "busy_ms": round(busy_ms, 3)}
    return work


def as_json(value: Any, depth: int = 0) -> Any:
    """`value` as JSON can hold it: errors, and what nobody knows, as text; numbers that are none as null.

    >>> as_json({"error": ValueError("no"), "ms": float("nan")})
    {'error': 'ValueError: no', 'ms': None}
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Enum):
        return as_json(value.value, depth)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return round(float(value), 3) if math.isfinite(value) else None
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<{len(value)} bytes>"
    if depth < DEEPEST:
        if attrs.has(type(value)):
            fields = attrs.fields(type(value))
            return {field.name: as_json(getattr(value, field.name), depth + 1) for field in fields}
        if isinstance(value, Mapping):
            return {str(key): as_json(one, depth + 1) for key, one in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [as_json(one, depth + 1) for one in value]
    return str(value)


def to_text(told: Mapping[str, Any]) -> str:
    """The report as JSON text."""
    return json.dumps(told, indent=1, allow_nan=False) + "\n"


def fault(error: SessionEvent) -> str:
    """What failed, and why, of an event "error". An engine's own error says who it was, which may be a stand-by."""
    message = printable(str(error.data["message"]))
    return message if OF_AN_ENGINE.match(message) else f"{printable(str(error.data['stage']))}: {message}"


def printable(text: str) -> str:
    """`text` on one line, without control characters: no provider's words steer a terminal or break a file."""
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())
