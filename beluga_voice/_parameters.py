"""The parameters of a tool: the JSON schema that a function's type hints say, and arguments checked against them.

>>> async def weather(city: str, days: int = 1, unit: Literal["C", "F"] = "C"):
...     '''The weather forecast.
...
...     Args:
...         city: where.
...     '''
>>> schema(parameters(weather))["properties"]["city"]
{'type': 'string', 'description': 'where.'}
>>> checked(parameters(weather), {"city": "Oslo", "days": "two"})
Traceback (most recent call last):
    ...
ValueError: argument 'days' is "two"; expected a whole number
"""

from __future__ import annotations

import enum
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

import attrs

__all__ = ["Parameter", "checked", "description", "parameters", "schema"]

SESSION = "session"
PLAIN: dict[Any, tuple[str, str]] = {
    str: ("string", "a string"),
    int: ("integer", "a whole number"),
    float: ("number", "a number"),
    bool: ("boolean", "true or false"),
    type(None): ("null", "null"),
    list: ("array", "a list"),
    dict: ("object", "an object"),
}
KNOWN = "str, int, float, bool, list, dict, Literal, Optional, an Enum or Any"
SHOWN = 60  # characters of a wrong value that its error shows
UNTOLD = inspect.Parameter.empty


@attrs.frozen
class Parameter:
    """One parameter: `hint` is its type, `default` is `UNTOLD` where one must be given."""

    name: str
    hint: Any
    default: Any = UNTOLD
    doc: str = ""


# --- from a function -------------------------------------------------------------------------------------------------


def parameters(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    """The parameters of `function` that a model fills in: all but `session`.

    Raises:
        TypeError: a parameter has no type, one that JSON schema cannot tell, or cannot be given by name.
    """
    name = getattr(function, "__name__", type(function).__name__)
    found = []
    docs = _documented(inspect.getdoc(function) or "")
    for one in inspect.signature(function).parameters.values():
        if one.name == SESSION:
            continue
        where = f"tool {name}: parameter {one.name!r}"
        if one.kind not in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
            raise TypeError(f"{where} cannot be given by name; write each parameter out, like {one.name}: str")
        if one.annotation is UNTOLD:
            raise TypeError(f"{where} has no type; expected one of {KNOWN}, like {one.name}: str")
        hint, doc = _resolved(function, one.annotation, where)
        _schema(hint, where)
        found.append(Parameter(one.name, hint, one.default, doc or docs.get(one.name, "")))
    return tuple(found)


def _resolved(function: Any, annotation: Any, where: str) -> tuple[Any, str]:
    """The type an annotation means, and what is said beside it: `Annotated[str, "where"]`."""
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    inner = inspect.unwrap(getattr(function, "func", function))
    names = getattr(inner, "__globals__", None) or getattr(type(inner).__call__, "__globals__", {})
    try:
        hint = typing.get_type_hints(holder, globalns=names, include_extras=True)["it"]
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise TypeError(f"{where} has the type {annotation!r}, which cannot be found: {error}. Import it at the top") from None
    doc = ""
    if typing.get_origin(hint) is typing.Annotated:
        hint, *said = typing.get_args(hint)
        doc = next((one for one in said if isinstance(one, str)), "")
    return hint, doc


def description(function: Callable[..., Any]) -> str:
    """The first paragraph of a function's docstring, in one line."""
    text = inspect.getdoc(function) or ""
    return " ".join(text.split("\n\n")[0].split())


def _documented(text: str) -> dict[str, str]:
    """What a docstring says of each parameter under "Args:"."""
    section = re.search(r"^(?:Args|Arguments|Parameters):\n((?:[ \t]+.*\n?|\n)+)", text, re.MULTILINE)
    found: dict[str, str] = {}
    if section is None:
        return found
    lines = inspect.cleandoc(section[1]).split("\n")
    name = ""
    for line in lines:
        begins = re.match(r"(\w+)(?: *\([^)]*\))?: *(.*)", line)
        if begins:
            name, found[begins[1]] = begins[1], begins[2].strip()
        elif name and line.strip():
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found


# --- as a schema -----------------------------------------------------------------------------------------------------


def schema(told: tuple[Parameter, ...]) -> dict[str, Any]:
    """The JSON schema of an object with these parameters."""
    properties = {}
    for one in told:
        properties[one.name] = _schema(one.hint, one.name)
        if one.doc:
            properties[one.name]["description"] = one.doc
        default = one.default.value if isinstance(one.default, enum.Enum) else one.default
        if default is not UNTOLD and default is not None and _is_json(default):
            properties[one.name]["default"] = default
    required = [one.name for one in told if one.default is UNTOLD]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _schema(hint: Any, where: str) -> dict[str, Any]:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object:
        return {}
    if hint in PLAIN:
        return {"type": PLAIN[hint][0]}
    if hint is None:
        return {"type": "null"}
    if origin is typing.Annotated:
        return _schema(inside[0], where)
    if origin is list:
        return {"type": "array", "items": _schema(inside[0], where)}
    if origin is dict and inside[0] is str:
        return {"type": "object", "additionalProperties": _schema(inside[1], where)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(one, where) for one in inside]}
    values = _choices(hint)
    if values and all(isinstance(value, (str, int, float, bool, type(None))) for value in values):
        sorts = sorted({PLAIN[type(value)][0] for value in values})
        return {"type": sorts[0] if len(sorts) == 1 else sorts, "enum": values}
    raise TypeError(f"{where} has the type {hint!r}, which no schema can tell a model; expected {KNOWN}, or lists of these")


def _choices(hint: Any) -> list[Any]:
    """The values of a Literal or of an enum, as JSON has them."""
    if typing.get_origin(hint) is Literal:
        return list(typing.get_args(hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return [member.value for member in hint]
    return []


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


# --- checking --------------------------------------------------------------------------------------------------------


def checked(told: tuple[Parameter, ...], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as the function wants them: enum members for their values, floats for whole numbers.

    Raises:
        ValueError: one is unknown, missing or of the wrong type; written for the model.
    """
    known = {one.name for one in told}
    takes = ", ".join(f"{one.name} ({_wanted(one.hint)})" for one in told) or "no arguments"
    for name in arguments:
        if name not in known:
            raise ValueError(f"there is no argument {_shown(name)}; expected {takes}")
    for one in told:
        if one.default is UNTOLD and one.name not in arguments:
            raise ValueError(f"argument {one.name!r} is missing; expected {takes}")
    return {
        one.name: _fitted(arguments[one.name], one.hint, f"argument {one.name!r}") for one in told if one.name in arguments
    }


def _fitted(value: Any, hint: Any, where: str) -> Any:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object:
        return value
    if origin is typing.Annotated:
        return _fitted(value, inside[0], where)
    if origin in (typing.Union, types.UnionType):
        return _fitted_to_one(value, inside, hint, where)
    choices = _choices(hint)
    if choices:
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            raise _misfit(value, hint, where)
        return hint(value) if isinstance(hint, type) else value
    plain = origin or hint
    if plain is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise _misfit(value, hint, where) from None
    if plain is int and type(value) is float and value.is_integer():  # some models write 3.0
        return int(value)
    wanted: Any = type(None) if plain is None else plain
    if type(value) is not wanted:
        raise _misfit(value, hint, where)
    if origin is list:
        return [_fitted(item, inside[0], f"{where}[{at}]") for at, item in enumerate(value)]
    if origin is dict:
        return {key: _fitted(item, inside[1], f"{where}[{_shown(key)}]") for key, item in value.items()}
    return value


def _fitted_to_one(value: Any, hints: tuple[Any, ...], hint: Any, where: str) -> Any:
    exact = [one for one in hints if type(value) is one]
    for one in (*exact, *hints):
        try:
            return _fitted(value, one, where)
        except ValueError:
            continue
    raise _misfit(value, hint, where)


def _misfit(value: Any, hint: Any, where: str) -> ValueError:
    return ValueError(f"{where} is {_shown(value)}; expected {_wanted(hint)}")


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _wanted(hint: Any) -> str:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object:
        return "any value"
    if origin is typing.Annotated:
        return _wanted(inside[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_wanted(one) for one in inside)
    choices = _choices(hint)
    if choices:
        return f"one of {', '.join(map(_shown, choices))}"
    if origin is list:
        return f"a list, each {_wanted(inside[0])}"
    return PLAIN[origin or (type(None) if hint is None else hint)][1]
