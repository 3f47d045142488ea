"""The doors: what a module's `__all__` says is what it has, and all that it has."""

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import beluga_voice


def module_names():
    found = pkgutil.walk_packages(beluga_voice.__path__, "beluga_voice.")
    return ["beluga_voice", *(one.name for one in found if not one.name.endswith("__main__"))]


def is_public(name):
    return not any(part.startswith("_") for part in name.split("."))


PUBLIC = [name for name in module_names() if is_public(name)]
# These hold hooks or commands, found by their marks and not by import.
DOORLESS = {name for name in PUBLIC if name == "beluga_voice.builtin" or name.startswith("beluga_voice.cli")}


def in_order(name):
    """CONSTANTS, then Classes, then functions and modules, as ruff sorts them."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2, name)


def is_found_by_mark(value):
    """A hook's specification: pluggy finds it."""
    return any(mark.endswith(("_spec", "_impl")) for mark in getattr(value, "__dict__", ()))


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - DOORLESS))
class TestEveryModule:
    def test_states_what_it_offers(self, name):
        """Every name of `__all__` exists, once, in the order of the house."""
        module = importlib.import_module(name)
        offered = module.__all__
        assert [one for one in offered if not hasattr(module, one)] == []
        assert list(offered) == sorted(set(offered), key=in_order)

    def test_offers_all_it_defines(self, name):
        """A class or function without an underscore is offered; what is not meant for others has one."""
        module = importlib.import_module(name)
        defined = {
            title
            for title, value in vars(module).items()
            if not title.startswith("_")
            and (inspect.isclass(value) or inspect.isfunction(value))
            and value.__module__ == name
            and not is_found_by_mark(value)
        }
        assert sorted(defined - set(module.__all__)) == []

    def test_has_docstrings(self, name):
        """The module, and every class and function it offers, says what it does."""
        module = importlib.import_module(name)
        assert module.__doc__
        offered = [getattr(module, title) for title in module.__all__]
        silent = [
            value.__name__
            for value in offered
            if (inspect.isclass(value) or inspect.isfunction(value)) and not (value.__doc__ or "").strip()
        ]
        assert silent == []


class TestFrontDoor:
    @pytest.mark.parametrize(
        "name", ["Audio", "Chain", "Session", "hookimpl", "vad", "turn", "stt", "agent", "tts", "transport"]
    )
    def test_has_what_an_application_needs(self, name):
        """The main nouns and kinds come from the package itself."""
        assert name in beluga_voice.__all__

    @pytest.mark.parametrize("kind", ["stt", "tts", "vad", "turn", "agent", "s2s", "transport", "store", "processor"])
    def test_every_kind_has_the_same_four_doors(self, kind):
        """`new`, `names`, `describe` and `register` are there for every kind."""
        module = getattr(beluga_voice, kind)
        assert {"new", "names", "describe", "register"} <= set(module.__all__)

    def test_import_does_nothing_to_be_seen(self):
        """Importing the package loads no provider, reads no environment, starts no thread and prints nothing."""
        script = (
            "import os, sys, threading\n"
            "class Env(dict):\n"
            "    def get(self, key, default=None): read.append(key); return default\n"
            "    def __getitem__(self, key): read.append(key); raise KeyError(key)\n"
            "read = []\n"
            "import attrs, numpy, soundfile, soxr, sentencex, pluggy, asyncio, importlib.metadata, json\n"
            "os.environ = Env()\n"
            "import beluga_voice\n"
            "rooms = ('beluga_voice.builtin', 'beluga_voice_', 'beluga_voice.testing', 'beluga_voice.cli')\n"
            "loaded = [name for name in sys.modules if name.startswith(rooms)]\n"
            "assert not loaded, loaded\n"
            "assert not [key for key in read if 'BELUGA' in key or 'KEY' in key], read\n"
            "assert threading.active_count() == 1\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
