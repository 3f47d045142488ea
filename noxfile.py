"""The checks of the project: `nox` runs lint, typing and tests, each in an environment of its own.

`nox -s tests -- -k chain` hands what follows "--" to pytest; `nox -s plugins` tests every plugin alone with the core;
`nox -r` uses the environments of the last run again.
"""

import os
from pathlib import Path

import nox

PLUGINS = ("silero", "moonshine", "espeak", "piper", "redis", "deepgram", "openai", "elevenlabs", "pydantic_ai")
PROJECT = nox.project.load_toml("pyproject.toml")

nox.options.sessions = ["lint", "typing", "tests"]


def group(name: str) -> list[str]:
    """The requirements of a dependency group; pip itself reads groups only from version 25.1."""
    return list(nox.project.dependency_groups(PROJECT, name))


@nox.session
def lint(session: nox.Session) -> None:
    """Style and the usual mistakes, by ruff."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")


@nox.session
def typing(session: nox.Session) -> None:
    """Types of the core and of the plugins, by mypy."""
    session.install(".[server]", *(f"./plugins/{name}" for name in PLUGINS), *group("lint"))
    session.run("mypy")
    for name in PLUGINS:
        session.run("mypy", f"plugins/{name}/beluga_voice_{name}")


@nox.session
def tests(session: nox.Session) -> None:
    """Every test, with the core and the plugins installed as a user installs them.

    Those of redis run a `redis-server` of their own; where the system has none they say so and skip.
    """
    session.install(".[server]", *(f"./plugins/{name}" for name in PLUGINS), *group("test"))
    if os.environ.get("CI"):  # hundreds of megabytes, for silero's torch backend alone: without it those tests say so and skip
        session.run("pip", "install", "torch==2.13.0", success_codes=[0, 1])
    few_arenas = {"MALLOC_ARENA_MAX": "2"}  # else the C library keeps hundreds of megabytes of the models that were freed
    session.run("pytest", "-n", "2", "--dist", "loadfile", *session.posargs, env=few_arenas)


@nox.session
@nox.parametrize("plugin", sorted(path.parent.name for path in Path("plugins").glob("*/pyproject.toml")))
def plugins(session: nox.Session, plugin: str) -> None:
    """One plugin alone: it must not lean on another one being installed."""
    session.install(".", f"./plugins/{plugin}", *group("test"))
    session.run("pytest", f"plugins/{plugin}", *session.posargs)
