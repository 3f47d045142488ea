"""The README of each plugin that is installed names every option of its providers, no other, with the default it has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from beluga_voice import agent, processor, s2s, store, stt, transport, tts, turn, vad

PLUGINS = Path(__file__).parents[1] / "plugins"
KINDS = (agent, processor, s2s, store, stt, transport, tts, turn, vad)
TABLE = re.compile(r"^\| option \|.*\n\|[-|]+\n((?:\|.*\n)+)", re.MULTILINE)


def readme(distribution):
    return PLUGINS / distribution.removeprefix("beluga-voice-").replace("-", "_") / "README.md"


def offered():
    """The options of each plugin's providers: all defaults that each name has."""
    plugins = {}
    for kind in KINDS:
        for provider in map(kind.describe, kind.names()):
            options = plugins.setdefault(provider.distribution, {})
            for one in provider.options:
                default = list(one.default) if isinstance(one.default, tuple) else one.default
                options.setdefault(one.name, []).append(default)
    return {name: options for name, options in plugins.items() if options and readme(name).exists()}


def told(text):
    """The rows of all tables of options: names, and the cell of their default."""
    for rows in TABLE.findall(text):
        for row in rows.splitlines():
            names, default, _ = row.removeprefix("|").split("|", 2)
            for name in re.findall(r"`(\w+)`", names):
                yield name, default.strip().strip("`")


@pytest.mark.parametrize(("distribution", "options"), offered().items(), ids=offered())
class TestTables:
    def test_have_every_option_and_no_other(self, distribution, options):
        assert {name for name, _ in told(readme(distribution).read_text("utf-8"))} == set(options)

    def test_have_the_defaults(self, distribution, options):
        """Cells that hold more than one value are for people to compare."""
        for name, default in told(readme(distribution).read_text("utf-8")):
            try:
                value = json.loads(default)
            except ValueError:
                continue
            assert value in options[name], f"{name}: the README says {default}, it is one of {options[name]}"
