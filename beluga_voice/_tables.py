"""The tables of a configuration: which there may be, what each says, and where whatever is wrong stands.

>>> tables = Tables(TomlFile("[[stt]]\\nprovider = 'deepgram'\\n[[stt]]\\nprovider = 'moonshine'", "call.toml"))
>>> tables.provider("stt"), [path for path, _ in tables.places("stt")], tables.provider("tts")
('deepgram', [('stt', 0), ('stt', 1)], 'espeak')
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from ._contracts import sort_of
from ._toml import Path, TomlFile, shown
from .admission import ManagerOptions
from .errors import BelugaVoiceError, ConfigError, OptionError
from .options import build, nearest
from .settings import BargeInOptions, SessionOptions

__all__ = ["DEFAULTS", "TABLES", "Tables"]

DEFAULTS = {"vad": "silero", "turn": "silence", "stt": "moonshine", "agent": "rules", "tts": "espeak"}
KINDS = ("vad", "turn", "stt", "agent", "tts", "s2s")
TABLES = ("session", "barge_in", *KINDS, "processor", "store", "server", "resilience", "hybrid")
RANKED = ("stt", "agent", "tts", "s2s")  # of these there may be several, the first preferred


class Tables:
    """The tables of one file.

    Args:
        file: the file.

    Attributes:
        file: the file.
        given: what stands in it, by table.

    Raises:
        ConfigError: there is a table or a key that no configuration has.
    """

    def __init__(self, file: TomlFile) -> None:
        self.file = file
        self.given: dict[str, Any] = file.tables
        self._check()

    def kinds(self) -> list[str]:
        """The kinds that the chain will have; a speech-to-speech model stands for all but the VAD."""
        tables = self.given
        if "hybrid" in tables and "s2s" not in tables:
            raise self.error(("hybrid",), "[hybrid] needs a speech-to-speech model beside the cascade; add [s2s]")
        if "s2s" not in tables or "hybrid" in tables:
            return [*DEFAULTS, *(["s2s"] if "s2s" in tables else [])]
        for kind in ("turn", "stt", "agent", "tts"):
            if kind in tables:
                message = f"[{kind}] cannot stand beside [s2s], which takes its place; remove one, or add [hybrid]"
                raise self.error((kind,), message)
        return ["vad", "s2s"] if "vad" in tables else ["s2s"]

    def places(self, kind: str) -> list[tuple[Path, dict[str, Any]]]:
        """The kind's tables, each with its path."""
        value = self.given.get(kind)
        if value is None:
            return []
        if isinstance(value, dict):
            return [((kind,), value)]
        return [((kind, at), table) for at, table in enumerate(value)]

    def all_places(self) -> list[tuple[Path, dict[str, Any]]]:
        """The tables of all kinds of stages, each with its path."""
        return [place for kind in (*KINDS, "processor") for place in self.places(kind)]

    def provider(self, kind: str) -> str:
        """The name of the kind's preferred provider."""
        places = self.places(kind)
        name: str = self.named(kind, *places[0]) if places else DEFAULTS[kind]
        return name

    def named(self, kind: str, path: Path, table: Mapping[str, Any]) -> str:
        """The table's provider."""
        first = path in ((kind,), (kind, 0))
        name = self.file.filled(table.get("provider", DEFAULTS.get(kind) if first else None), (*path, "provider"))
        if name is None:
            raise self.error(path, f'{shown(path)} has no provider; add a line like provider = "{_example(kind)}"')
        if not isinstance(name, str) or not name:
            got = sort_of(name) if name != "" else "empty"
            message = f"{shown(path)} provider is {got}; expected a provider's name, like {_example(kind)!r}"
            raise self.error((*path, "provider"), message)
        return name

    def anchor(self, path: Path, table: Mapping[str, Any]) -> tuple[str, str]:
        """Where a [[processor]] is to be: "before" or "after", and what."""
        given = [side for side in ("before", "after") if side in table]
        if len(given) != 1:
            got = "both `before` and `after`" if given else "neither `before` nor `after`"
            raise self.error(path, f'{shown(path)} has {got}; write one of them, like before = "vad"')
        anchor = self.file.filled(table[given[0]], (*path, given[0]))
        if not isinstance(anchor, str):
            message = f"{shown((*path, given[0]))} is {sort_of(anchor)}; expected a kind or a processor's name"
            raise self.error((*path, given[0]), message)
        return given[0], anchor

    def session(self) -> tuple[SessionOptions, ManagerOptions]:
        """What [session] and [barge_in] say of one session, and of all of them."""
        barge_in = self.options("barge_in", BargeInOptions)
        given = self.given.get("session", {})
        known = _options_of(SessionOptions, ManagerOptions)
        for key in given:
            if key == "barge_in":
                raise self.error(("session", key), "[session] barge_in is a table of its own: write [barge_in]")
            if key not in known:
                close = nearest(key, known)
                hint = f"Did you mean {close!r}? " if close else ""
                message = f"[session] has no option {key!r}. {hint}It takes: {', '.join(known)}"
                raise self.error(("session", key), message, OptionError)
        of_manager = _options_of(ManagerOptions)
        session = self.options("session", SessionOptions, {k: v for k, v in given.items() if k not in of_manager})
        manager = self.options("session", ManagerOptions, {k: v for k, v in given.items() if k in of_manager})
        return attrs.evolve(session, barge_in=barge_in), manager

    def options(self, table: str, options: type[Any], given: Mapping[str, Any] | None = None) -> Any:
        """The options that a table gives; `given`, in the place of all that stands in it."""
        given = self.given.get(table, {}) if given is None else given
        try:
            return build(options, self.file.filled(given, (table,)), f"[{table}]")
        except (OptionError, OverflowError) as error:
            raise self.located((table,), given, error) from None

    def error(self, path: Path, message: str, error: type[ConfigError] = ConfigError) -> ConfigError:
        """The error with the file and line of what is wrong, and no secret in it."""
        return error(self.file.redacted(f"{self.file.where(*path)}: {message}"))

    def located(self, path: Path, table: Mapping[str, Any], error: Exception) -> ConfigError:
        """What a table's provider or options raised, with the file and line of the key it is about."""
        told = str(error)
        about = [key for key in table if f"option {key!r}" in told or f"argument {key!r}" in told]
        if not about and "provider" in table and not isinstance(error, OptionError):
            about = ["provider"]
        if not isinstance(error, BelugaVoiceError):
            told = f"{shown(path)} cannot be made: {type(error).__name__}: {error}"
        return self.error((*path, *about[:1]), told, OptionError if isinstance(error, OptionError) else ConfigError)

    def _check(self) -> None:
        for name, value in self.given.items():
            if name not in TABLES:
                raise self._unknown_table(name, value)
            listed = name == "processor" or name in RANKED
            if isinstance(value, dict) or (listed and _is_tables(value)):
                continue
            if _is_tables(value):
                raise self.error((name,), f"[[{name}]] is a list of tables; there is one {name}: write [{name}]")
            raise self.error((name,), f"{name!r} is {sort_of(value)}; expected a table: write [{name}]")

    def _unknown_table(self, name: str, value: Any) -> ConfigError:
        if name in _options_of(SessionOptions, ManagerOptions) or not isinstance(value, (dict, list)):
            return self.error((name,), f"{name!r} stands outside any table; move it under [session] or its own table")
        close = nearest(name, TABLES)
        hint = f"Did you mean [{close}]? " if close else ""
        return self.error((name,), f"no table is called [{name}]. {hint}The tables are: {', '.join(TABLES)}")


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _options_of(*classes: type[Any]) -> list[str]:
    return [field.name for options in classes for field in attrs.fields(options) if field.name != "barge_in"]


def _example(kind: str) -> str:
    return DEFAULTS.get(kind, {"processor": "gain", "store": "redis"}.get(kind, "openai"))
