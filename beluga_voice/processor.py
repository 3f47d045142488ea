"""Any other frame processor by name: gain, noise suppression, a filter, a recorder.

>>> louder = new("gain", db=6)
>>> louder.name
'gain'
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._registry import Kind, Provider
from .chain import FrameProcessor, Stage, each_frame, processor

__all__ = ["FrameProcessor", "Stage", "describe", "each_frame", "names", "new", "processor", "register"]

_kind = Kind("processor")


def new(name: str, **options: Any) -> Any:
    """Make the processor of that name, like `new("gain", db=6)`; put it into a `Chain`."""
    return _kind.new(name, **options)


def names() -> list[str]:
    """The installed processors."""
    return _kind.names()


def describe(name: str) -> Provider:
    """What is known of a processor: options, distribution, capabilities."""
    return _kind.describe(name)


def register(name: str, factory: Callable[..., Any], **told: Any) -> None:
    """Register a processor of this program's own."""
    _kind.register(name, factory, **told)
