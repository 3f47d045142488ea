"""Keeping one session's state in a store, beside the session and never in its way: the latest snapshot wins, failures are
tried again, and whoever lost the ownership is told.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from ._streams import Tasks, stop
from .clock import Clock
from .events import SessionEvent
from .reconnect import backoff_ms
from .session import Session
from .store import SessionStore

__all__ = ["BEAT_MS", "LEASE_MS", "Keeper"]

LEASE_MS = 15_000.0  # how long a process that says nothing still owns its sessions
BEAT_MS = LEASE_MS / 3
RETRY_MS = 250.0
SAVE_ON = ("opened", "resumed", "turn_heard", "turn_finished", "goaway")
TO_BE_CONTINUED = ("drain", "cancelled")  # the process ends, not the conversation


class Keeper:
    """The owner of one session's entry in the store.

    Args:
        store: where it is kept.
        session: whose state.
        epoch: what the claim gave; None: the session is still to be claimed, which is tried before each saving.
        ttl_ms: how long the state outlives its last saving.
        tasks: who owns the saving.
        counters: what failed, by name.
        clock: whose time.
    """

    def __init__(
        self,
        store: SessionStore,
        session: Session,
        epoch: int | None,
        *,
        ttl_ms: float,
        tasks: Tasks,
        counters: Counter[str],
        clock: Clock,
    ) -> None:
        self._store, self._session, self._epoch, self._ttl_ms = store, session, epoch, ttl_ms
        self._tasks, self._counters, self._clock = tasks, counters, clock
        self._saving: asyncio.Task[None] | None = None
        self._dirty = False
        self._beating = False
        self._kept_seq = -1
        self._saved_ms = 0.0
        self.fenced = False

    def on_event(self, event: SessionEvent) -> None:
        """Save when something changed that another process would have to know."""
        if event.name in SAVE_ON:
            self.save_soon()

    def save_soon(self) -> None:
        """Save the state as it is then; returns at once. One saving runs at a time."""
        self._dirty = True
        if self._saving is None and not self.fenced:
            self._saving = self._tasks.spawn(self._save(), f"save {self._session.session_id}")

    def beat(self) -> None:
        """Tell the store that the owner lives; returns at once. Lasting quiet is saved as heard."""
        self._session.settle()
        stale = self._clock.now_ms() - self._saved_ms >= self._ttl_ms / 3
        if stale or self._session.snapshot().seq > self._kept_seq:
            self.save_soon()
        if not self._beating and not self.fenced and self._epoch is not None:
            self._beating = True
            self._tasks.spawn(self._renew(), f"renew {self._session.session_id}")

    async def last(self) -> None:
        """Save once more, or forget the session if it is over for good. Called when nothing changes any more."""
        if self._saving is not None:  # perhaps asleep until its next try: this is the last
            await stop(self._saving)
        if self.fenced:
            return
        try:
            if self._session.end_reason in TO_BE_CONTINUED:
                await self._save_once()
            elif self._epoch is not None:
                await self._store.delete(self._session.session_id, self._epoch)
        except Exception:
            self._counters["store_failed"] += 1

    async def _save(self) -> None:
        attempt = 0
        try:
            while self._dirty and not self.fenced:
                self._dirty = False
                try:
                    await self._save_once()
                    attempt = 0
                except Exception:
                    self._counters["store_failed"] += 1
                    self._dirty = True
                    if self._session.end_reason:
                        return
                    attempt += 1
                    # no longer than a beat: the store is asked that often anyhow, and a crash loses what waits here
                    await self._clock.sleep_ms(RETRY_MS + backoff_ms(attempt, RETRY_MS, longest_ms=BEAT_MS))
        finally:
            self._saving = None

    async def _save_once(self) -> None:
        snapshot = self._session.snapshot()
        if self._epoch is None:
            claim = await self._store.claim(snapshot.session_id, lease_ms=LEASE_MS)
            self._epoch = claim.epoch if claim is not None else None
        if self._epoch is None or not await self._store.save(
            snapshot.session_id, self._epoch, snapshot.to_bytes(), ttl_ms=self._ttl_ms
        ):
            self._lose()
            return
        self._kept_seq, self._saved_ms = snapshot.seq, self._clock.now_ms()
        if snapshot.seq >= 0 and self._session.line is not None:
            self._session.line.covered(snapshot.seq)

    async def _renew(self) -> None:
        assert self._epoch is not None
        try:
            if not await self._store.renew(self._session.session_id, self._epoch, lease_ms=LEASE_MS):
                self._lose()
        except Exception:
            self._counters["store_failed"] += 1
        finally:
            self._beating = False

    def _lose(self) -> None:
        """Another process has taken the session over."""
        if not self.fenced:
            self.fenced = True
            self._counters["store_fenced"] += 1
            self._session.close("replaced")
