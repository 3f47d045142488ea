"""What an object must be to stand for a kind, and what a user's own `module:attribute` makes.

>>> import json
>>> checked("vad", "json:dumps", json.dumps)
Traceback (most recent call last):
    ...
beluga_voice.errors.ConfigError: 'json:dumps' is of type function, which is no vad; expected a vad.VAD
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from . import _registry, agent, imports, s2s, store, stt, transport, tts, turn, vad
from .chain import FrameProcessor
from .engine import Engine
from .errors import ConfigError, OptionError, UnknownProviderError
from .options import build

__all__ = ["CONTRACTS", "checked", "new", "own", "sort_of"]

CONTRACTS: dict[str, type] = {
    "vad": vad.VAD,
    "turn": turn.TurnDetector,
    "stt": stt.STT,
    "agent": agent.Agent,
    "tts": tts.TTS,
    "s2s": s2s.S2S,
    "store": store.SessionStore,
    "transport": transport.Transport,
}
EXPECTED = {
    "agent": "an async function or an agent.Agent",
    "processor": "an object with process(frames, context)",
    **{kind: f"a {kind}.{contract.__name__}" for kind, contract in CONTRACTS.items() if kind != "agent"},
}


def new(kind: str, name: str, given: Mapping[str, Any], folders: Sequence[str]) -> Any:
    """What a provider's name, or the user's own "module:attribute", stands for.

    Args:
        kind: its kind.
        name: the name, "distribution:name" or "module:attribute".
        given: its options.
        folders: where the user's own is looked for before the installed packages.

    Raises:
        BelugaVoiceError: there is none of that name, it is of another kind, or does not take these options.
        Exception: what its own code raises.
    """
    registry = _registry.registry
    owner, _, bare = name.rpartition(":")
    is_module = all(part.isidentifier() for part in owner.split("."))
    if is_module and not any((owner, bare) == (one.distribution, one.name) for one in registry.providers(kind)):
        made = own(kind, name, imports.load(name, folders), given)
    else:
        try:
            with imports.searched(folders):  # for options that name what is to be imported
                made = registry.new(kind, name, given)
        except UnknownProviderError as error:
            if "." not in name or ":" in name:
                raise
            raise UnknownProviderError(f'{error} One of your own is written "{":".join(name.rsplit(".", 1))}".') from None
    return checked(kind, name, made)


def own(kind: str, name: str, target: Any, given: Mapping[str, Any]) -> Any:
    """What the user's own `target` stands for: a class or factory is called with the options, an object is itself."""
    if isinstance(target, Engine):
        return target.with_options(**given)
    is_function = inspect.isroutine(target) and not inspect.iscoroutinefunction(target) and kind != "agent"
    if isinstance(target, type) or is_function:
        if hasattr(target, "Options"):
            build(target.Options, given, f"{kind} {name!r}")
        return target(**given)
    if given:
        raise OptionError(f"{kind} {name!r} takes no options, but is given option {next(iter(given))!r}; remove it")
    return target


def checked(kind: str, name: str, made: Any) -> Any:
    """What was made, if it is one of that kind."""
    expected: type = CONTRACTS.get(kind, FrameProcessor)
    if isinstance(made, expected) and not isinstance(made, type) and kind != "agent":
        return made
    if kind != "agent":
        raise ConfigError(f"{name!r} is {sort_of(made)}, which is no {kind}; expected {EXPECTED[kind]}")
    if not callable(made) and not isinstance(made, agent.Agent):
        raise ConfigError(f"{name!r} is {sort_of(made)}, which is no agent; expected {EXPECTED[kind]}")
    try:
        agent.as_frame_processor(made)
    except TypeError as error:
        raise ConfigError(f"{name!r}: {error}") from error
    return made


def sort_of(value: Any) -> str:
    """Its type, for a message."""
    return f"of type {type(value).__name__}"
