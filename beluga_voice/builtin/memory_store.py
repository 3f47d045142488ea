"""A session store inside the process."""

from __future__ import annotations

from typing import Any

import attrs

from ..clock import Clock
from ..options import build, option
from ..store import SessionStore

__all__ = ["MemoryStore", "MemoryStoreOptions"]


@attrs.frozen
class MemoryStoreOptions:
    """Options of the memory store."""

    max_entries: int = option(10_000, "sessions kept; beyond, the oldest is forgotten and counted", at_least=1)


class MemoryStore(SessionStore):
    """Bytes in a dict, with a time to live and a bound. `forgotten` counts what the bound pushed out."""

    Options = MemoryStoreOptions

    def __init__(self, *, clock: Clock | None = None, **options: Any) -> None:
        self.options: MemoryStoreOptions = build(MemoryStoreOptions, options, "store 'memory'")
        self.forgotten = 0
        self._clock = clock or Clock()
        self._kept: dict[str, tuple[float, bytes]] = {}

    async def put(self, session_id: str, state: bytes, *, ttl_ms: float) -> None:
        now_ms = self._clock.now_ms()
        self._kept.pop(session_id, None)
        if len(self._kept) >= self.options.max_entries:
            self._kept = {key: kept for key, kept in self._kept.items() if kept[0] > now_ms}
        while len(self._kept) >= self.options.max_entries:
            self._kept.pop(next(iter(self._kept)))
            self.forgotten += 1
        self._kept[session_id] = (now_ms + ttl_ms, state)

    async def get(self, session_id: str) -> bytes | None:
        until_ms, state = self._kept.get(session_id, (0.0, b""))
        if session_id not in self._kept or until_ms <= self._clock.now_ms():
            self._kept.pop(session_id, None)
            return None
        return state

    async def delete(self, session_id: str) -> bool:
        found = await self.get(session_id) is not None
        self._kept.pop(session_id, None)
        return found
