"""A JSON object from somebody who is not trusted: read within bounds, its fields checked, each fault told readably."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from .errors import BelugaVoiceError

__all__ = ["Fields", "WireError", "read_object", "shorten", "shown"]

MAX_BYTES = 65_536
MAX_DEPTH = 32
MAX_SEQ = 2**32 - 1
MAX_MS = 1e15  # a clock's ms since 1970 fit
MAX_REASON = 120  # a close frame holds 123 bytes
SHOWN = 32


class WireError(BelugaVoiceError):
    """What breaks the protocol. `code` is the close code it earns, `reason` fits a close frame and can be read by a person."""

    def __init__(self, code: int, reason: str) -> None:
        self.code, self.reason = code, shorten(reason)
        super().__init__(f"{code}: {self.reason}")


def shorten(reason: str) -> str:
    """The reason as it fits a close frame: plain ASCII of at most 120 characters."""
    plain = reason if reason.isascii() and reason.isprintable() else ascii(reason)[1:-1]
    return plain if len(plain) <= MAX_REASON else f"{plain[: MAX_REASON - 3]}..."


def read_object(message: str, *, bounded: bool = True) -> dict[str, Any]:
    """The JSON object that a text message is."""
    if not isinstance(message, str):
        raise WireError(4400, f"a message of type {type(message).__name__}; expected text or bytes")
    try:
        size = len(message) if message.isascii() else len(message.encode())
        if size > MAX_BYTES and bounded:
            raise WireError(1009, f"a text message of {size} bytes; expected at most {MAX_BYTES}")
        if message.count("[") + message.count("{") > MAX_DEPTH:
            _check_depth(message)
        value = _decoder.decode(message)
        if "\\u" in message:
            _check_unicode(value)
    except (ValueError, RecursionError) as error:  # UnicodeError is a ValueError
        raise WireError(4400, f"text that is not JSON: {_why(error)}") from None
    if not isinstance(value, dict):
        raise WireError(4400, f"text is a JSON {_kind(value)}; expected an object with a type")
    return value


def _check_depth(message: str) -> None:
    depth = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub("", message)):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise WireError(4400, f"JSON nested deeper than {MAX_DEPTH}; expected a flat object")


def _check_unicode(value: Any) -> None:
    """An escape can make half a surrogate pair, which no encoder takes."""
    json.dumps(value, ensure_ascii=False).encode()


def _not_finite(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:SHOWN]} is too large")
    return value


_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKETS = re.compile(r"[\[\]{}]")
_decoder = json.JSONDecoder(parse_constant=_not_finite, parse_float=_finite)


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos}"
    if isinstance(error, UnicodeError):
        return "a character that is half of one"
    if isinstance(error, RecursionError) or "digits" in str(error):
        return "nested too deep, or a number too long"
    return str(error)


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def shown(value: Any) -> str:
    """A value as a reason may show it: short."""
    if isinstance(value, (dict, list)):
        return f"a JSON {_kind(value)}"
    try:
        told = json.dumps(value) if value is None or isinstance(value, bool) else ascii(value)
    except ValueError:
        return "a number too long"
    return told if len(told) <= SHOWN else f"{told[: SHOWN - 3]}..."


_NEEDED: Any = object()


class Fields:
    """The fields of one message, each checked when it is read; `name` is for the reason."""

    def __init__(self, name: str, fields: dict[str, Any]) -> None:
        self._name, self._fields = name, fields

    def seq(self, name: str = "seq", *, low: int = 0, high: int = MAX_SEQ, default: Any = _NEEDED) -> int:
        return self.integer(name, low, high, default)

    def integer(self, name: str, low: int, high: int, default: Any = _NEEDED) -> int:
        value = self._fields.get(name, default)
        if value is _NEEDED or (value is not default and not (type(value) is int and low <= value <= high)):
            self._wrong(name, f"a whole number from {low} to {high}")
        found: int = value
        return found

    def ms(self, name: str, low: float = 0.0) -> float:
        value = self._fields.get(name)
        if value is None or type(value) not in (int, float) or not low <= value <= MAX_MS:
            self._wrong(name, "a number of milliseconds" if low < 0 else "a number of milliseconds, 0 or more")
        found: float = value
        return found

    def string(self, name: str, longest: int, default: Any = _NEEDED, *, shortest: int = 0, secret: bool = False) -> str:
        value = self._fields.get(name, default)
        if not isinstance(value, str) or not shortest <= len(value) <= longest:
            self._wrong(name, f"text of {f'{shortest} to' if shortest else 'at most'} {longest} characters", secret)
        found: str = value
        return found

    def choice(self, name: str, choices: tuple[str, ...], default: Any, told: str = "") -> str:
        value = self._fields.get(name, default)
        if not isinstance(value, str) or value not in choices:
            self._wrong(name, f"one of {told or ', '.join(choices)}")
        found: str = value
        return found

    def within(self, name: str, needed: bool = True) -> Fields | None:
        value = self._fields.get(name, _NEEDED)
        if value is _NEEDED and not needed:
            return None
        if not isinstance(value, dict):
            self._wrong(name, "a JSON object", secret=True)
        return Fields(f"{self._name}.{name}", value)

    def free(self, name: str, longest: int) -> dict[str, Any]:
        """An object of whatever its sender likes, at most `longest` bytes as JSON; empty without one."""
        value = self._fields.get(name, {})
        if not isinstance(value, dict):
            self._wrong(name, "a JSON object")
        size = len(json.dumps(value))
        if size > longest:
            raise WireError(4400, f"{self._name}: {name} has {size} bytes; expected at most {longest}")
        found: dict[str, Any] = value
        return found

    def _wrong(self, name: str, expected: str, secret: bool = False) -> NoReturn:
        value = self._fields.get(name, _NEEDED)
        if value is _NEEDED:
            told = "is missing"
        elif isinstance(value, str) and (secret or len(value) > SHOWN):
            told = f"has {len(value)} characters"
        else:
            told = f"is a {_kind(value)}" if secret else f"is {shown(value)}"
        raise WireError(4400, f"{self._name}: {name} {told}; expected {expected}")
