"""A TOML file, or none, made into a `Chain` and session options: every provider by its name.

One table per kind; what is left out takes its default (silero, silence, moonshine, rules, espeak)::

    [session]
    greeting = "Hello, this is Ann."
    [barge_in]
    min_speech_ms = 200
    [turn]
    provider = "silence"
    silence_ms = 500
    [stt]
    provider = "deepgram"
    api_key = "${DEEPGRAM_API_KEY}"     # from the environment; $${ is a plain ${
    [agent]
    provider = "myapp:reply"            # module:attribute, looked for beside the file and in the current folder
    [[processor]]                       # anything else, placed by `before` or `after`
    provider = "gain"
    db = 6
    before = "vad"
    [store]
    provider = "redis"                  # where calls outlive this process; none if left out
    url = "redis://localhost"
    [server]
    api_keys = ["${VOICE_API_KEY}"]     # what `beluga-voice serve` asks for

Of several `[[stt]]`, `[[tts]]`, `[[agent]]` or `[[s2s]]` tables the first is preferred, and the others take over in their
order when it fails; `[resilience]` says when that is.

>>> loads("[agnet]", "call.toml")
Traceback (most recent call last):
    ...
beluga_voice.errors.ConfigError: call.toml:1: no table is called [agnet]. Did you mean [agent]? The tables are: \
session, barge_in, vad, turn, stt, agent, tts, s2s, processor, store, server, resilience, hybrid
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import attrs

from . import _registry, agent, imports, s2s, store, stt, tts
from ._contracts import checked, own, sort_of
from ._toml import Path, TomlFile, read_text, shown
from .admission import ManagerOptions
from .chain import Chain
from .engine import Engine
from .errors import BelugaVoiceError, ChainError, ConfigError, OptionError, UnknownProviderError
from .hybrid import Hybrid, HybridOptions, on_tool_overload
from .options import build, nearest
from .resilience import ResilienceOptions
from .server.options import ServerOptions
from .settings import BargeInOptions, SessionOptions

__all__ = ["Config", "ManagerOptions", "default", "engine", "load", "loads", "server_options", "tables"]

DEFAULTS = {"vad": "silero", "turn": "silence", "stt": "moonshine", "agent": "rules", "tts": "espeak"}
KINDS = ("vad", "turn", "stt", "agent", "tts", "s2s")
TABLES = ("session", "barge_in", *KINDS, "processor", "store", "server", "resilience", "hybrid")
FAILOVER: Mapping[str, Callable[..., Any]] = {
    "stt": stt.failover,
    "agent": agent.failover,
    "tts": tts.failover,
    "s2s": s2s.failover,
}


@attrs.frozen(eq=False)
class Config:
    """What a configuration says.

    Attributes:
        chain: the stages, engines made and order checked.
        session: the `[session]` and `[barge_in]` tables.
        manager: the limits over all sessions, from `[session]`.
        names: the preferred provider's name of each kind in the chain, as written.
        store: where sessions outlive this process, from `[store]`; None: nowhere.
        server: the `[server]` table.
        resilience: the `[resilience]` table.
    """

    chain: Chain
    session: SessionOptions = attrs.field(factory=SessionOptions)
    manager: ManagerOptions = attrs.field(factory=ManagerOptions)
    names: Mapping[str, str] = attrs.field(factory=dict)
    store: store.SessionStore | None = None
    server: ServerOptions = attrs.field(factory=ServerOptions)
    resilience: ResilienceOptions = attrs.field(factory=ResilienceOptions)


def load(path: str | os.PathLike[str]) -> Config:
    """The configuration in a TOML file.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or holds a table, option, provider or value that cannot be
            used; the message begins with file and line and lists the valid choices.
        MissingKeyError: a `${NAME}` that is not set.
        ChainError: the stages are in an order that cannot work.
    """
    return _Reader(os.fspath(path)).config()


def loads(text: str, name: str = "configuration") -> Config:
    """The configuration in a TOML text, which errors call `name`. Raises what `load` raises."""
    return _Reader(name, text).config()


def default() -> Config:
    """The configuration with no file: silero, silence, moonshine, rules, espeak.

    Raises:
        UnknownProviderError: one of them is not installed; the message says how to install it.
    """
    return _Reader("", "").config()


def engine(kind: str, path: str | os.PathLike[str] | None = None) -> Any:
    """The preferred engine of one kind alone, as a file (or the default) has it: `engine("tts", "call.toml")`.

    Nothing else is made, so the other providers need not be installed. Raises what `load` raises.
    """
    reader = _Reader("", "") if path is None else _Reader(os.fspath(path))
    return reader.first(kind)


def server_options(path: str | os.PathLike[str]) -> ServerOptions:
    """The `[server]` table of a file alone, for a manager that the program has made. Raises what `load` raises."""
    return _Reader(os.fspath(path)).server()


def tables(path: str | os.PathLike[str], but: str) -> list[str]:
    """The tables that a file has, without the one called `but`. Raises what `load` raises."""
    return [f"[{name}]" for name in _Reader(os.fspath(path)).file.tables if name != but]


class _Reader:
    """One file on its way to a `Config`; without a name, the default configuration."""

    def __init__(self, name: str, text: str | None = None) -> None:
        self.file = TomlFile(read_text(name) if text is None else text, name)
        self.folders = [os.path.dirname(os.path.abspath(name)), os.getcwd()]
        self._check_tables()

    def config(self) -> Config:
        """Everything the file says."""
        kinds = self._kinds()
        made: dict[str, Any] = {}
        for kind in kinds:
            made[kind] = self._engine(kind)
        if "stt" in made and made["stt"].capabilities.ends_turns and "turn" not in self.file.tables:
            del made["turn"]
        session, manager = self._session()
        names = {kind: self._provider(kind) for kind in made}
        chain = self._chain(made)
        return Config(chain, session, manager, names, store=self.store(), server=self.server(), resilience=self.resilience())

    def first(self, kind: str) -> Any:
        """The engine of the kind's first table, or the default one."""
        places = self._places(kind)
        if places:
            return self._made(kind, *places[0])
        try:
            return self._new(kind, DEFAULTS[kind], {})
        except BelugaVoiceError as error:
            if not self.file.name:
                raise
            raise ConfigError(f"{self.file.name}: no [{kind}] table, and its default fails: {error}") from error

    def _engine(self, kind: str) -> Any:
        """The kind's engine: one, or all of its tables as one."""
        first, places = self.first(kind), self._places(kind)
        engines = [first, *(self._made(kind, *place) for place in places[1:])]
        if len(engines) == 1 and not ("resilience" in self.file.tables and kind in FAILOVER and isinstance(first, Engine)):
            return first
        try:
            return FAILOVER[kind](*engines, options=self.resilience())
        except ChainError as error:
            raise ChainError(f"{self.file.where(*places[-1][0])}: {error}", stage=error.stage) from None

    def resilience(self) -> ResilienceOptions:
        """The `[resilience]` table."""
        options: ResilienceOptions = self._options("resilience", ResilienceOptions, self.file.tables.get("resilience", {}))
        return options

    def store(self) -> Any:
        """The store; None without a table."""
        places = self._places("store")
        return self._made("store", *places[0]) if places else None

    def server(self) -> ServerOptions:
        """The `[server]` table, what it names as module:attribute imported."""
        given = self.file.tables.get("server", {})
        named = given.get("authenticate")
        if isinstance(named, str):
            name = self.file.filled(named, ("server", "authenticate"))
            try:
                given = {**given, "authenticate": imports.load(name, self.folders)}
            except ConfigError as error:
                raise self._error(("server", "authenticate"), f"[server] authenticate: {error}") from error
        options: ServerOptions = self._options("server", ServerOptions, given)
        return options

    # --- tables ------------------------------------------------------------------------------------------------------

    def _check_tables(self) -> None:
        for name, value in self.file.tables.items():
            if name not in TABLES:
                raise self._unknown_table(name, value)
            listed = name == "processor" or name in FAILOVER
            if isinstance(value, dict) or (listed and _is_tables(value)):
                continue
            if _is_tables(value):
                raise self._error((name,), f"[[{name}]] is a list of tables; there is one {name}: write [{name}]")
            raise self._error((name,), f"{name!r} is {sort_of(value)}; expected a table: write [{name}]")

    def _unknown_table(self, name: str, value: Any) -> ConfigError:
        if name in _options_of(SessionOptions, ManagerOptions) or not isinstance(value, (dict, list)):
            return self._error((name,), f"{name!r} stands outside any table; move it under [session] or its own table")
        close = nearest(name, TABLES)
        hint = f"Did you mean [{close}]? " if close else ""
        return self._error((name,), f"no table is called [{name}]. {hint}The tables are: {', '.join(TABLES)}")

    def _kinds(self) -> list[str]:
        """The kinds that the chain will have; a speech-to-speech model stands for all but the VAD."""
        tables = self.file.tables
        if "hybrid" in tables and "s2s" not in tables:
            raise self._error(("hybrid",), "[hybrid] needs a speech-to-speech model beside the cascade; add [s2s]")
        if "s2s" not in tables or "hybrid" in tables:
            return [*DEFAULTS, *(["s2s"] if "s2s" in tables else [])]
        for kind in ("turn", "stt", "agent", "tts"):
            if kind in tables:
                message = f"[{kind}] cannot stand beside [s2s], which takes its place; remove one, or add [hybrid]"
                raise self._error((kind,), message)
        return ["vad", "s2s"] if "vad" in tables else ["s2s"]

    def _places(self, kind: str) -> list[tuple[Path, dict[str, Any]]]:
        """The kind's tables, each with its path."""
        value = self.file.tables.get(kind)
        if value is None:
            return []
        if isinstance(value, dict):
            return [((kind,), value)]
        return [((kind, at), table) for at, table in enumerate(value)]

    def _all_places(self) -> list[tuple[Path, dict[str, Any]]]:
        return [place for kind in (*KINDS, "processor") for place in self._places(kind)]

    def _provider(self, kind: str) -> str:
        places = self._places(kind)
        name: str = self._named(kind, *places[0]) if places else DEFAULTS[kind]
        return name

    def _session(self) -> tuple[SessionOptions, ManagerOptions]:
        barge_in = self._options("barge_in", BargeInOptions, self.file.tables.get("barge_in", {}))
        given = self.file.tables.get("session", {})
        known = _options_of(SessionOptions, ManagerOptions)
        for key in given:
            if key == "barge_in":
                raise self._error(("session", key), "[session] barge_in is a table of its own: write [barge_in]")
            if key not in known:
                close = nearest(key, known)
                hint = f"Did you mean {close!r}? " if close else ""
                message = f"[session] has no option {key!r}. {hint}It takes: {', '.join(known)}"
                raise self._error(("session", key), message, OptionError)
        of_manager = _options_of(ManagerOptions)
        session = self._options("session", SessionOptions, {k: v for k, v in given.items() if k not in of_manager})
        manager = self._options("session", ManagerOptions, {k: v for k, v in given.items() if k in of_manager})
        return attrs.evolve(session, barge_in=barge_in), manager

    def _options(self, table: str, options: type[Any], given: Mapping[str, Any]) -> Any:
        try:
            return build(options, self.file.filled(given, (table,)), f"[{table}]")
        except (OptionError, OverflowError) as error:
            raise self._located((table,), given, error) from None

    # --- engines -----------------------------------------------------------------------------------------------------

    def _named(self, kind: str, path: Path, table: Mapping[str, Any]) -> str:
        """The table's provider."""
        first = path in ((kind,), (kind, 0))
        name = self.file.filled(table.get("provider", DEFAULTS.get(kind) if first else None), (*path, "provider"))
        if name is None:
            raise self._error(path, f'{shown(path)} has no provider; add a line like provider = "{_example(kind)}"')
        if not isinstance(name, str) or not name:
            got = sort_of(name) if name != "" else "empty"
            message = f"{shown(path)} provider is {got}; expected a provider's name, like {_example(kind)!r}"
            raise self._error((*path, "provider"), message)
        return name

    def _made(self, kind: str, path: Path, table: Mapping[str, Any]) -> Any:
        """What the table describes."""
        name = self._named(kind, path, table)
        given = {key: self.file.filled(value, (*path, key)) for key, value in table.items() if key != "provider"}
        try:
            return self._new(kind, name, given)
        except Exception as error:
            located = self._located(path, table, error)
            raise located from (error if self.file.redacted(str(error)) == str(error) else None)

    def _new(self, kind: str, name: str, given: Mapping[str, Any]) -> Any:
        registry = _registry.registry
        owner, _, bare = name.rpartition(":")
        is_module = all(part.isidentifier() for part in owner.split("."))
        if is_module and not any((owner, bare) == (one.distribution, one.name) for one in registry.providers(kind)):
            made = own(kind, name, imports.load(name, self.folders), given)
        else:
            with imports.searched(self.folders):  # for options that name what is to be imported
                made = registry.new(kind, name, given)
        return checked(kind, name, made)

    # --- joining -----------------------------------------------------------------------------------------------------

    def _chain(self, made: Mapping[str, Any]) -> Chain:
        reads_words = getattr(getattr(made.get("turn"), "capabilities", None), "reads_words", False)
        order = ("vad", "stt", "turn") if reads_words else ("vad", "turn", "stt")
        kinds = (*order, "agent", "tts", "s2s")
        try:
            if "hybrid" not in self.file.tables:
                return self._row(made, kinds)
            options: HybridOptions = self._options("hybrid", HybridOptions, self.file.tables["hybrid"])
            heard = ("vad", "s2s") if "vad" in self.file.tables else ("s2s",)
            return Hybrid(
                cascade=self._row(made, kinds[:-1], elsewhere={"s2s"}),
                s2s=self._row(made, heard, elsewhere=set(kinds) - set(heard)),
                policy=on_tool_overload(options.tool_overload, options.back_after_turns),
                start=options.start,
            )
        except ChainError as error:
            if not self.file.name:
                raise
            place = next((path for path, table in self._all_places() if error.stage in (path[0], table.get("provider"))), ())
            raise ChainError(f"{self.file.where(*place)}: {error}", stage=error.stage, missing=error.missing) from None

    def _row(self, made: Mapping[str, Any], kinds: Sequence[str], elsewhere: Set[str] = frozenset()) -> Chain:
        row = [(kind, made[kind]) for kind in kinds if kind in made]
        return Chain(*(stage for _, stage in self._with_processors(row, elsewhere)))

    def _with_processors(self, row: list[tuple[str, Any]], elsewhere: Set[str]) -> list[tuple[str, Any]]:
        """The row with every [[processor]] beside its anchor, those of one place in the order of the file.

        One that stands beside what is `elsewhere`, in the other row of a hybrid, is not of this one.
        """
        waiting = []
        for path, table in self._places("processor"):
            side, anchor = self._anchor(path, table)
            name = self._named("processor", path, table)
            rest = {key: value for key, value in table.items() if key not in ("before", "after")}
            waiting.append((path, side, anchor, name, self._made("processor", path, rest)))
        last_after: dict[str, str] = {}
        while waiting:
            at = {name: position for position, (name, _) in enumerate(row)}
            ready = next((one for one in waiting if one[2] in at), None)
            away = next((one for one in waiting if one[2] in elsewhere), None)
            if ready is None and away is not None:
                waiting.remove(away)
                elsewhere = elsewhere | {away[3]}
                continue
            if ready is None:
                raise self._no_anchor(waiting[0], [name for name, _ in row] + [one[3] for one in waiting])
            waiting.remove(ready)
            _, side, anchor, name, stage = ready
            if side == "before":
                row.insert(at[anchor], (name, stage))
            else:
                row.insert(at[last_after.get(anchor, anchor)] + 1, (name, stage))
                last_after[anchor] = name
        return row

    def _anchor(self, path: Path, table: Mapping[str, Any]) -> tuple[str, str]:
        given = [side for side in ("before", "after") if side in table]
        if len(given) != 1:
            got = "both `before` and `after`" if given else "neither `before` nor `after`"
            raise self._error(path, f'{shown(path)} has {got}; write one of them, like before = "vad"')
        anchor = self.file.filled(table[given[0]], (*path, given[0]))
        if not isinstance(anchor, str):
            message = f"{shown((*path, given[0]))} is {sort_of(anchor)}; expected a kind or a processor's name"
            raise self._error((*path, given[0]), message)
        return given[0], anchor

    def _no_anchor(self, one: tuple[Path, str, str, str, Any], names: Sequence[str]) -> ConfigError:
        path, side, anchor, name, _ = one
        others = [other for other in dict.fromkeys(names) if other != name]
        close = nearest(anchor, others)
        hint = f"Did you mean {close!r}? " if close and close != anchor else ""
        message = f"{shown(path)} stands {side} {anchor!r}, which is not there. {hint}The chain has: {', '.join(others)}"
        return self._error((*path, side), message)

    # --- errors ------------------------------------------------------------------------------------------------------

    def _error(self, path: Path, message: str, error: type[ConfigError] = ConfigError) -> ConfigError:
        return error(self.file.redacted(f"{self.file.where(*path)}: {message}"))

    def _located(self, path: Path, table: Mapping[str, Any], error: Exception) -> ConfigError:
        """The error with the file and line of the key it is about."""
        told = str(error)
        about = [key for key in table if f"option {key!r}" in told or f"argument {key!r}" in told]
        if not about and "provider" in table and not isinstance(error, OptionError):
            about = ["provider"]
        name = str(table.get("provider"))
        if isinstance(error, UnknownProviderError) and "." in name and ":" not in name:
            told += f' One of your own is written "{":".join(name.rsplit(".", 1))}".'
        if not isinstance(error, BelugaVoiceError):
            told = f"{shown(path)} cannot be made: {type(error).__name__}: {error}"
        return self._error((*path, *about[:1]), told, OptionError if isinstance(error, OptionError) else ConfigError)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _options_of(*classes: type[Any]) -> list[str]:
    return [field.name for options in classes for field in attrs.fields(options) if field.name != "barge_in"]


def _example(kind: str) -> str:
    return DEFAULTS.get(kind, {"processor": "gain", "store": "redis"}.get(kind, "openai"))
