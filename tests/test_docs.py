"""Every example in a docstring runs and gives what it says."""

import asyncio
import doctest
import importlib
import pkgutil

import pytest

import beluga_voice

MODULES = [
    "beluga_voice",
    *(one.name for one in pkgutil.walk_packages(beluga_voice.__path__, "beluga_voice.") if "__main__" not in one.name),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    """The examples of one module, with its own names and asyncio at hand."""
    module = importlib.import_module(name)
    said = []
    for example in doctest.DocTestFinder().find(module, name, globs={**vars(module), "asyncio": asyncio}):
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        if runner.run(example, out=said.append).failed:
            pytest.fail("".join(said))


def test_there_are_examples():
    """The finder finds what it is for."""
    found = [len(one.examples) for one in doctest.DocTestFinder().find(importlib.import_module("beluga_voice.tts"))]
    assert sum(found) >= 3
