"""What a command says on stderr of a provider that failed and was stood in for."""

from __future__ import annotations

import click

from ..engine import Context
from ..frames import FailedOver
from ._report import printable

__all__ = ["tell_stand_ins"]


def tell_stand_ins(context: Context) -> None:
    """Say who stood in for whom, and why: a line for each two of them, the first time."""
    told: dict[tuple[str, str], FailedOver] = {}
    for frame in context.inbox.drain():
        if isinstance(frame, FailedOver) and frame.error is not None:
            told.setdefault((frame.old, frame.new), frame)
    for (old, new), frame in told.items():
        click.echo(printable(f"beluga-voice: {frame.kind} {new!r} stands in for {old!r}: {frame.error}"), err=True)
