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

from . import agent, imports, s2s, store, stt, tts
from ._contracts import new
from ._tables import DEFAULTS, Tables
from ._toml import Path, TomlFile, read_text, shown
from .admission import ManagerOptions
from .chain import Chain
from .engine import Engine
from .errors import BelugaVoiceError, ChainError, ConfigError
from .hybrid import Hybrid, HybridOptions, on_tool_overload
from .options import nearest
from .resilience import ResilienceOptions
from .server.options import ServerOptions
from .settings import SessionOptions

__all__ = ["Config", "ManagerOptions", "default", "engine", "failover", "load", "loads", "server_options", "tables"]

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
    return _reader(path).first(kind)


def failover(kind: str, path: str | os.PathLike[str] | None = None) -> Any:
    """All engines of one kind, as a file (or the default) has them, as one: the first works while it can, then the next.

    The kind is "stt", "agent", "tts" or "s2s"; the `[resilience]` table counts. Raises what `load` raises.
    """
    return _reader(path).failover(kind)


def server_options(path: str | os.PathLike[str]) -> ServerOptions:
    """The `[server]` table of a file alone, for a manager that the program has made. Raises what `load` raises."""
    return _Reader(os.fspath(path)).server()


def tables(path: str | os.PathLike[str], but: str) -> list[str]:
    """The tables that a file has, without the one called `but`. Raises what `load` raises."""
    return [f"[{name}]" for name in _Reader(os.fspath(path)).tables.given if name != but]


def _reader(path: str | os.PathLike[str] | None) -> _Reader:
    return _Reader("", "") if path is None else _Reader(os.fspath(path))


class _Reader:
    """One file on its way to a `Config`; without a name, the default configuration."""

    def __init__(self, name: str, text: str | None = None) -> None:
        self.tables = Tables(TomlFile(read_text(name) if text is None else text, name))
        self.file = self.tables.file
        self.folders = [os.path.dirname(os.path.abspath(name)), os.getcwd()] if name else [os.getcwd()]

    def config(self) -> Config:
        """Everything the file says."""
        made: dict[str, Any] = {kind: self._engine(kind) for kind in self.tables.kinds()}
        if "stt" in made and made["stt"].capabilities.ends_turns and "turn" not in self.tables.given:
            del made["turn"]
        session, manager = self.tables.session()
        names = {kind: self.tables.provider(kind) for kind in made}
        chain = self._chain(made)
        return Config(chain, session, manager, names, store=self.store(), server=self.server(), resilience=self.resilience())

    def first(self, kind: str) -> Any:
        """The engine of the kind's first table, or the default one."""
        places = self.tables.places(kind)
        if places:
            return self._made(kind, *places[0])
        try:
            return new(kind, DEFAULTS[kind], {}, self.folders)
        except BelugaVoiceError as error:
            if not self.file.name:
                raise
            raise ConfigError(f"{self.file.name}: no [{kind}] table, and its default fails: {error}") from error

    def _engine(self, kind: str) -> Any:
        """The kind's engine: one, or all of its tables as one."""
        if len(self.tables.places(kind)) > 1:
            return self.failover(kind)
        engine = self.first(kind)
        is_watched = "resilience" in self.tables.given and kind in FAILOVER and isinstance(engine, Engine)
        return FAILOVER[kind](engine, options=self.resilience()) if is_watched else engine

    def failover(self, kind: str) -> Any:
        """All of the kind's tables as one, even if there is only one."""
        places = self.tables.places(kind)
        engines = [self.first(kind), *(self._made(kind, *place) for place in places[1:])]
        try:
            return FAILOVER[kind](*engines, options=self.resilience())
        except ChainError as error:
            raise ChainError(f"{self.file.where(*places[-1][0])}: {error}", stage=error.stage) from None

    def resilience(self) -> ResilienceOptions:
        """The `[resilience]` table."""
        options: ResilienceOptions = self.tables.options("resilience", ResilienceOptions)
        return options

    def store(self) -> Any:
        """The store; None without a table."""
        places = self.tables.places("store")
        return self._made("store", *places[0]) if places else None

    def server(self) -> ServerOptions:
        """The `[server]` table, what it names as module:attribute imported."""
        given = self.tables.given.get("server", {})
        named = given.get("authenticate")
        if isinstance(named, str):
            name = self.file.filled(named, ("server", "authenticate"))
            try:
                given = {**given, "authenticate": imports.load(name, self.folders)}
            except ConfigError as error:
                raise self.tables.error(("server", "authenticate"), f"[server] authenticate: {error}") from error
        options: ServerOptions = self.tables.options("server", ServerOptions, given)
        return options

    # --- engines -----------------------------------------------------------------------------------------------------

    def _made(self, kind: str, path: Path, table: Mapping[str, Any]) -> Any:
        """What the table describes."""
        name = self.tables.named(kind, path, table)
        given = {key: self.file.filled(value, (*path, key)) for key, value in table.items() if key != "provider"}
        try:
            return new(kind, name, given, self.folders)
        except Exception as error:
            located = self.tables.located(path, table, error)
            raise located from (error if self.file.redacted(str(error)) == str(error) else None)

    # --- joining -----------------------------------------------------------------------------------------------------

    def _chain(self, made: Mapping[str, Any]) -> Chain:
        reads_words = getattr(getattr(made.get("turn"), "capabilities", None), "reads_words", False)
        order = ("vad", "stt", "turn") if reads_words else ("vad", "turn", "stt")
        kinds = (*order, "agent", "tts", "s2s")
        try:
            if "hybrid" not in self.tables.given:
                return self._row(made, kinds)
            options: HybridOptions = self.tables.options("hybrid", HybridOptions)
            heard = ("vad", "s2s") if "vad" in self.tables.given else ("s2s",)
            return Hybrid(
                cascade=self._row(made, kinds[:-1], elsewhere={"s2s"}),
                s2s=self._row(made, heard, elsewhere=set(kinds) - set(heard)),
                policy=on_tool_overload(options.tool_overload, options.back_after_turns),
                start=options.start,
            )
        except ChainError as error:
            if not self.file.name:
                raise
            places = self.tables.all_places()
            place = next((path for path, table in places if error.stage in (path[0], table.get("provider"))), ())
            raise ChainError(f"{self.file.where(*place)}: {error}", stage=error.stage, missing=error.missing) from None

    def _row(self, made: Mapping[str, Any], kinds: Sequence[str], elsewhere: Set[str] = frozenset()) -> Chain:
        row = [(kind, made[kind]) for kind in kinds if kind in made]
        return Chain(*(stage for _, stage in self._with_processors(row, elsewhere)))

    def _with_processors(self, row: list[tuple[str, Any]], elsewhere: Set[str]) -> list[tuple[str, Any]]:
        """The row with every [[processor]] beside its anchor, those of one place in the order of the file.

        One that stands beside what is `elsewhere`, in the other row of a hybrid, is not of this one.
        """
        waiting = []
        for path, table in self.tables.places("processor"):
            side, anchor = self.tables.anchor(path, table)
            name = self.tables.named("processor", path, table)
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

    def _no_anchor(self, one: tuple[Path, str, str, str, Any], names: Sequence[str]) -> ConfigError:
        path, side, anchor, name, _ = one
        others = [other for other in dict.fromkeys(names) if other != name]
        close = nearest(anchor, others)
        hint = f"Did you mean {close!r}? " if close and close != anchor else ""
        message = f"{shown(path)} stands {side} {anchor!r}, which is not there. {hint}The chain has: {', '.join(others)}"
        return self.tables.error((*path, side), message)
