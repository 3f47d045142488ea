"""A session store inside the process."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import attrs

from ..clock import Clock
from ..errors import InvalidRequestError, OverloadedError
from ..options import build, option
from ..store import Claim, SessionStore

__all__ = ["MemoryStore", "MemoryStoreOptions"]

SWEEP_MS = 60_000.0  # what is over is dropped at the first claim after this long


@attrs.frozen
class MemoryStoreOptions:
    """Options of the memory store."""

    max_entries: int = option(10_000, "sessions kept; beyond, the oldest that nobody owns is forgotten and counted", at_least=1)
    max_state_bytes: int = option(1_048_576, "largest state of one session", at_least=1)


@attrs.define
class _Entry:
    """One session: who owns it until when, what is kept until when, and when all of it is over."""

    epoch: int = 0
    leased_until_ms: float = 0.0
    over_ms: float = 0.0
    state: bytes | None = None
    kept_until_ms: float = 0.0


class MemoryStore(SessionStore):
    """Bytes in a dict, gone with the process: for one machine, and for tests.

    `counters` counts `refused` (polite claims), `fenced` (calls of an owner that is one no more) and `forgotten` (sessions
    that the bound pushed out).

    Raises:
        OverloadedError: from `claim`, when all `max_entries` sessions have an owner.
    """

    Options = MemoryStoreOptions

    def __init__(self, *, clock: Clock | None = None, **options: Any) -> None:
        self.options: MemoryStoreOptions = build(MemoryStoreOptions, options, "store 'memory'")
        self.counters: Counter[str] = Counter()
        self._clock = clock or Clock()
        self._entries: dict[str, _Entry] = {}
        self._epochs = itertools.count(1)  # of the store, not of the session: none repeats after a session was forgotten
        self._swept_ms: float | None = None

    async def claim(self, session_id: str, *, lease_ms: float, force: bool = False) -> Claim | None:
        now_ms = self._clock.now_ms()
        entry = self._find(session_id, now_ms)
        if entry is not None and entry.leased_until_ms > now_ms and not force:
            self.counters["refused"] += 1
            return None
        if entry is None:
            self._make_room(now_ms)
            entry = self._entries[session_id] = _Entry()
        entry.epoch, entry.leased_until_ms = next(self._epochs), now_ms + lease_ms
        self._used(session_id, entry, now_ms + lease_ms)
        return Claim(entry.epoch, entry.state)

    async def renew(self, session_id: str, epoch: int, *, lease_ms: float) -> bool:
        now_ms = self._clock.now_ms()
        entry = self._owned(session_id, epoch, now_ms)
        if entry is None:
            return False
        entry.leased_until_ms = now_ms + lease_ms
        entry.over_ms = max(entry.over_ms, now_ms + lease_ms)
        return True

    async def save(self, session_id: str, epoch: int, state: bytes, *, ttl_ms: float) -> bool:
        if len(state) > self.options.max_state_bytes:
            raise InvalidRequestError(
                f"the state of session {session_id!r} has {len(state)} bytes; the store 'memory' takes at most "
                f"{self.options.max_state_bytes}. Keep less of the history, or raise max_state_bytes",
                provider=self.provider or "memory",
                kind=self.kind,
            )
        now_ms = self._clock.now_ms()
        entry = self._owned(session_id, epoch, now_ms)
        if entry is None:
            return False
        entry.state, entry.kept_until_ms = bytes(state), now_ms + ttl_ms
        self._used(session_id, entry, now_ms + ttl_ms)
        return True

    async def get(self, session_id: str) -> bytes | None:
        entry = self._find(session_id, self._clock.now_ms())
        return entry.state if entry is not None else None

    async def delete(self, session_id: str, epoch: int) -> bool:
        if self._owned(session_id, epoch, self._clock.now_ms()) is None:
            return False
        del self._entries[session_id]
        return True

    def _find(self, session_id: str, now_ms: float) -> _Entry | None:
        entry = self._entries.get(session_id)
        if entry is None:
            return None
        if entry.over_ms <= now_ms:
            del self._entries[session_id]
            return None
        if entry.kept_until_ms <= now_ms:
            entry.state = None
        return entry

    def _owned(self, session_id: str, epoch: int, now_ms: float) -> _Entry | None:
        entry = self._find(session_id, now_ms)
        if entry is not None and entry.epoch == epoch:
            return entry
        self.counters["fenced"] += 1
        return None

    def _used(self, session_id: str, entry: _Entry, until_ms: float) -> None:
        entry.over_ms = max(entry.over_ms, until_ms)
        self._entries[session_id] = self._entries.pop(session_id)  # the newest is last

    def _make_room(self, now_ms: float) -> None:
        is_full = len(self._entries) >= self.options.max_entries
        if is_full or self._swept_ms is None or now_ms - self._swept_ms >= SWEEP_MS:
            self._swept_ms = now_ms
            for session_id in list(self._entries):
                self._find(session_id, now_ms)
        if len(self._entries) < self.options.max_entries:
            return
        unowned = (key for key, entry in self._entries.items() if entry.leased_until_ms <= now_ms)
        oldest = next(unowned, None)
        if oldest is None:
            raise OverloadedError(
                f"the store 'memory' keeps {len(self._entries)} sessions, all with an owner, and max_entries is "
                f"{self.options.max_entries}; raise it above the most sessions at once",
                provider=self.provider or "memory",
                kind=self.kind,
            )
        del self._entries[oldest]
        self.counters["forgotten"] += 1
