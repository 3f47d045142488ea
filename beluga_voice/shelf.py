"""A manager's dealings with its store: whose a session is and what is kept of it, each answer in bounded time."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

from ._streams import Tasks
from .clock import Clock
from .errors import DuplicateSessionError, ProviderError, ProviderTimeoutError, SessionNotFoundError
from .keeping import LEASE_MS, Keeper
from .session import Session
from .snapshot import Snapshot
from .store import Claim, SessionStore

__all__ = ["Shelf", "read"]

T = TypeVar("T")

log = logging.getLogger("beluga_voice.manager")
STORE_MS = 5_000.0  # a store that takes longer counts as failed


class Shelf:
    """Where a manager's sessions are kept; without a store, nowhere.

    Args:
        store: where; None: they live in this process only.
        tasks: who owns the saving.
        counters: what failed, by name.
        clock: whose time.
        ttl_ms: how long what is kept of a session outlives its last saving.
    """

    def __init__(
        self, store: SessionStore | None, tasks: Tasks, counters: Counter[str], clock: Clock, *, ttl_ms: float
    ) -> None:
        self.store, self._tasks, self._counters, self._clock, self._ttl_ms = store, tasks, counters, clock, ttl_ms

    async def open(self) -> None:
        """Make the store ready. Raises what it raises."""
        if self.store is not None:
            await _in_time(self.store.prewarm())

    async def close(self) -> None:
        """Free the store; one that cannot be is left."""
        if self.store is not None:
            try:
                await _in_time(self.store.aclose())
            except ProviderError as error:
                log.warning("the store was left open: %s", error)

    async def look(self, session_id: str) -> Snapshot:
        """What is kept of a session, without owning it.

        Raises:
            SessionNotFoundError: nothing, or nothing that can be read.
            ProviderError: the store fails.
        """
        return read(session_id, await _in_time(self.store.get(session_id)) if self.store is not None else None)

    async def claim(self, session_id: str, *, force: bool) -> Claim | None:
        """Own a session; None without a store, or when it is out of reach: the call begins, and is claimed later.

        Raises:
            DuplicateSessionError: another process owns it, and `force` is not set.
            ProviderError: `force` is set, and the store fails.
        """
        if self.store is None:
            return None
        try:
            claim = await _in_time(self.store.claim(session_id, lease_ms=LEASE_MS, force=force))
        except Exception as error:
            if force:
                raise
            self._counters["store_failed"] += 1
            log.warning("session %s is not kept for now: %s", session_id, error)
            return None
        if claim is None:
            raise DuplicateSessionError(f"a session {session_id!r} lives in another process; resume it with its token")
        return claim

    def keeper(self, session: Session, claim: Claim | None) -> Keeper | None:
        """Who keeps the session from now on; None without a store. Without a claim it is still to be claimed."""
        if self.store is None:
            return None
        return Keeper(
            self.store,
            session,
            claim.epoch if claim is not None else None,
            ttl_ms=self._ttl_ms,
            tasks=self._tasks,
            counters=self._counters,
            clock=self._clock,
        )

    async def let_go(self, session_id: str, claim: Claim) -> None:
        """Nothing came of a claim: the session is anybody's again."""
        if self.store is not None:
            with suppress(Exception):
                await _in_time(self.store.delete(session_id, claim.epoch))


def read(session_id: str, state: bytes | None) -> Snapshot:
    """What was kept, as a snapshot.

    Raises:
        SessionNotFoundError: nothing was, or nothing that can be read.
    """
    if state is None:
        raise SessionNotFoundError(f"session {session_id!r} has ended, or its time to come back is over")
    try:
        return Snapshot.from_bytes(state)
    except ValueError as error:
        raise SessionNotFoundError(f"session {session_id!r} cannot be read: {error}") from error


async def _in_time(work: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(STORE_MS / 1000.0):
            return await work
    except TimeoutError as error:
        if isinstance(error, ProviderTimeoutError):
            raise
        raise ProviderTimeoutError(f"the store did not answer within {STORE_MS:g} ms", kind="store") from None
