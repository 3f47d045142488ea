"""Engines kept ready over many sessions: entered for the first session that uses them, freed with the last of all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack

from .engine import Engine

__all__ = ["EnginePool"]

MOST_HELD = 256  # beyond, an engine is ready only while a session uses it


class EnginePool:
    """Holds engines open from `enter` to `aclose`, so that a call finds them ready."""

    def __init__(self) -> None:
        self._held = AsyncExitStack()
        self._entered: set[int] = set()
        self._lock = asyncio.Lock()
        self._refusal: Callable[[], Exception] | None = None

    async def enter(self, engines: Iterable[Engine]) -> None:
        """Make ready what is not. Raises what an engine raises, or the refusal."""
        async with self._lock:
            if self._refusal is not None:
                raise self._refusal()
            for engine in engines:
                if id(engine) not in self._entered and len(self._entered) < MOST_HELD:
                    await self._held.enter_async_context(engine)
                    self._entered.add(id(engine))

    def refuse(self, why: Callable[[], Exception]) -> None:
        """Make nothing ready any more: who asks, or waits, gets the error that `why` makes."""
        self._refusal = why

    async def aclose(self) -> None:
        """Free them all, once nobody is in the middle of making one ready."""
        async with self._lock:
            await self._held.aclose()
