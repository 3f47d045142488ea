"""File names on the command line."""

from __future__ import annotations

import click

__all__ = ["file"]


def file(name: str) -> str:
    """The type of an option or argument that names a file.

    Raises:
        click.BadParameter: the name is empty, as of a shell's variable that is not set.
    """
    if not name:
        raise click.BadParameter("a file's name is empty; write a name or leave the option out")
    return name
