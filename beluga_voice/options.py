"""Options of providers and sessions: an attrs class whose fields carry a type, a default, a check and a sentence.

>>> @attrs.frozen
... class Options:
...     voice: str = option("nova", "which voice speaks")
...     speed: float = option(1.0, "1.0 is the voice's own pace", at_least=0.25, at_most=4.0)
>>> build(Options, {"speed": 2}, "tts 'demo'").speed
2.0
>>> build(Options, {"sped": 2}, "tts 'demo'")
Traceback (most recent call last):
    ...
beluga_voice.errors.OptionError: tts 'demo' has no option 'sped'; did you mean 'speed'? It takes: voice (str), speed (float)
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import attrs

from .errors import OptionError

__all__ = ["OptionInfo", "build", "changed", "describe", "nearest", "option"]

T = TypeVar("T")


def option(
    default: Any = attrs.NOTHING,
    doc: str = "",
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    choices: Sequence[object] = (),
    secret: bool = False,
) -> Any:
    """A field of an options class.

    Args:
        default: the value when none is given; left out, the option is required.
        doc: one sentence for the people who set it, with the unit.
        at_least: the smallest number allowed.
        at_most: the largest number allowed.
        choices: the only values allowed.
        secret: a key or password: never printed.
    """
    metadata = {"doc": doc, "at_least": at_least, "at_most": at_most, "choices": tuple(choices), "secret": secret}
    return attrs.field(default=default, metadata=metadata, repr=(lambda _: "***") if secret else True)


@attrs.frozen
class OptionInfo:
    """One option as `describe` tells it: `name`, `type` as written, `default` (None where `required`), `doc`, `choices`."""

    name: str
    type: str
    default: Any
    required: bool
    doc: str
    choices: tuple[object, ...]


def describe(options: type | None) -> tuple[OptionInfo, ...]:
    """The options of an attrs class, in order; nothing for None."""
    if options is None:
        return ()
    hints = typing.get_type_hints(options)
    return tuple(
        OptionInfo(
            name=field.name,
            type=_type_name(hints[field.name]),
            default=None if field.default is attrs.NOTHING else _default(field),
            required=field.default is attrs.NOTHING,
            doc=field.metadata.get("doc", ""),
            choices=field.metadata.get("choices", ()),
        )
        for field in attrs.fields(options)
        if field.init
    )


def build(options: type[T], given: Mapping[str, Any], owner: str) -> T:
    """Make `options(**given)`, each value checked for name, type, range and choice. Whole numbers do for floats.

    Args:
        options: an attrs class made with `option`.
        given: the values by name.
        owner: who takes the options, for the message: "stt 'deepgram'".

    Raises:
        OptionError: an option is unknown, missing, of the wrong type or out of range; the message lists the valid ones.
    """
    hints = typing.get_type_hints(options)
    fields = {field.name: field for field in attrs.fields(cast(Any, options)) if field.init}
    valid = ", ".join(f"{name} ({_type_name(hints[name])})" for name in fields) or "no options"
    for name in given:
        if name not in fields:
            raise OptionError(f"{owner} has no option {name!r}{_did_you_mean(name, fields)} It takes: {valid}")
    for name, field in fields.items():
        if field.default is attrs.NOTHING and name not in given:
            raise OptionError(f"{owner} needs the option {name!r} ({_type_name(hints[name])}). It takes: {valid}")
    checked = {name: _checked(value, hints[name], fields[name], owner) for name, value in given.items()}
    try:
        return options(**checked)
    except (ValueError, TypeError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"{owner}: {error}") from error


def changed(options: T, changes: Mapping[str, Any], owner: str) -> T:
    """The same options but for `changes`, each value checked as `build` does. Raises what `build` raises."""
    now = {field.name: getattr(options, field.name) for field in attrs.fields(cast(Any, type(options))) if field.init}
    return build(type(options), {**now, **changes}, owner)


def nearest(word: str, known: typing.Iterable[str]) -> str | None:
    """The known word most like `word`, if any is like it at all."""
    import difflib

    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def _did_you_mean(word: str, known: typing.Iterable[str]) -> str:
    close = nearest(word, known)
    return f"; did you mean {close!r}?" if close else "."


def _checked(value: Any, hint: Any, field: attrs.Attribute[Any], owner: str) -> Any:
    shown = "***" if field.metadata.get("secret") else repr(value)
    if not _fits(value, hint):
        raise OptionError(
            f"{owner}: option {field.name!r} is {shown} ({type(value).__name__}); expected {_type_name(hint)}"
        )
    meta = field.metadata
    low, high, choices = meta.get("at_least"), meta.get("at_most"), meta.get("choices")
    if choices and value not in choices:
        raise OptionError(
            f"{owner}: option {field.name!r} is {shown}; expected one of {', '.join(map(repr, choices))}"
        )
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and ((low is not None and not value >= low) or (high is not None and not value <= high)):
        bounds = f"at least {low}" if high is None else f"at most {high}" if low is None else f"{low} to {high}"
        raise OptionError(f"{owner}: option {field.name!r} is {shown}; expected {bounds}")
    if isinstance(value, int) and number and _fits(1.5, hint) and not _fits("", hint):
        try:
            return float(value)
        except OverflowError:
            raise OptionError(f"{owner}: option {field.name!r} is too large; expected a number below 1e308") from None
    return value


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any or hint is object:
        return True
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if origin is not None:
        return isinstance(value, origin) or (origin is tuple and isinstance(value, list))
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_type_name(part) for part in typing.get_args(hint))
    if hint is type(None):
        return "None"
    if typing.get_origin(hint) is tuple:  # given as a list, in a file and in Python
        return f"list[{_type_name(typing.get_args(hint)[0])}]"
    return hint.__name__ if isinstance(hint, type) and not typing.get_origin(hint) else str(hint).replace("typing.", "")


def _default(field: attrs.Attribute[Any]) -> Any:
    default: Any = field.default
    return default.factory() if hasattr(default, "factory") else default
