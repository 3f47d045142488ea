"""Imports what a configuration names as `module:attribute`, with the user's own folders on the search path.

>>> load("json:dumps", [])([1])
'[1]'
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

from .errors import ConfigError
from .options import nearest

__all__ = ["load", "searched"]


def load(target: str, folders: Sequence[str]) -> Any:
    """The attribute that `target` names, like "myapp:reply" or "myapp.agents:Support".

    Args:
        target: "module:attribute"; both may have dots.
        folders: looked in before the installed packages; they are on `sys.path` only while the module is imported.

    Raises:
        ConfigError: the module is not found or does not import, or has no such attribute.
    """
    module_name, _, attribute = target.partition(":")
    if not all(part.isidentifier() for part in f"{module_name}.{attribute}".split(".")):
        raise ConfigError(f'{target!r} cannot be imported; expected "module:attribute", like "myapp:reply"')
    found: Any = _module(module_name, folders)
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in dir(found) if not name.startswith("_")]
            close = nearest(part, public)
            hint = f"did you mean {close!r}?" if close else "check the spelling"
            raise ConfigError(f"{module_name!r} has no attribute {attribute!r}; {hint}")
        found = getattr(found, part)
    return found


def _module(name: str, folders: Sequence[str]) -> ModuleType:
    try:
        with searched(folders):
            module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(f"module {name!r} needs {error.name!r}, which is not installed; install it") from error
        close = nearest(name, [entry.removesuffix(".py") for folder in folders for entry in _entries(folder)])
        hint = f"Did you mean {close!r}? " if close else ""
        places = f"in {', '.join(dict.fromkeys(folders))} and the installed packages" if folders else "on Python's path"
        message = f"no module is called {name!r}. {hint}Looked {places}; write its file there, or install it"
        raise ConfigError(message) from None
    except (Exception, SystemExit) as error:
        raise ConfigError(f"module {name!r} does not import: {type(error).__name__}: {error}") from error
    _check_origin(module, folders)
    return module


def _check_origin(module: ModuleType, folders: Sequence[str]) -> None:
    """Refuse a module that was imported before from elsewhere: it is not the one the user sees in the folder."""
    top = module.__name__.partition(".")[0]
    if top == __name__.partition(".")[0]:  # this package, named in a copy of its repository
        return
    wanted = PathFinder.find_spec(top, list(folders))
    got = getattr(sys.modules.get(top), "__file__", None)
    if wanted is None or wanted.origin is None or got is None:
        return
    if os.path.realpath(wanted.origin) != os.path.realpath(got):
        raise ConfigError(f"module {top!r} is {wanted.origin} here, but {got} was imported before it; rename one")


@contextmanager
def searched(folders: Sequence[str]) -> Iterator[None]:
    """The folders are on `sys.path` meanwhile, before the installed packages."""
    added = [folder for folder in dict.fromkeys(folders) if folder not in sys.path]
    sys.path[:0] = added
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for folder in added:
            if folder in sys.path:
                sys.path.remove(folder)


def _entries(folder: str) -> list[str]:
    try:
        return [entry for entry in os.listdir(folder) if entry.removesuffix(".py").isidentifier()]
    except OSError:
        return []
