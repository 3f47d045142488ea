"""Who is let in: hard caps in all, per user and per tenant, on what engines can bear, and a bounded queue for those who wait.

Nothing here awaits but the waiting itself, so a count cannot change between being looked at and being raised.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from .clock import Clock
from .engine import Engine
from .errors import DuplicateSessionError, SessionLimitError
from .options import option

__all__ = ["Admission", "ManagerOptions", "Slot"]

RETRY_AFTER_MS = 5_000.0
LOOK_MS = 250.0


@attrs.frozen
class ManagerOptions:
    """Limits over all sessions, which stand in the `[session]` table too."""

    max_sessions: int = option(100, "sessions at once; one more is refused", at_least=1)
    max_per_user: int = option(0, "sessions at once of one user; 0: no limit of its own", at_least=0)
    max_per_tenant: int = option(0, "sessions at once of one tenant; 0: no limit of its own", at_least=0)
    max_waiting: int = option(0, "callers who may wait for room; 0: whoever finds none is refused at once", at_least=0)
    max_wait_ms: float = option(5_000.0, "the longest wait for room", at_least=0)
    max_engine_wait_ms: float = option(1_500.0, "nobody is let in while an engine makes its calls wait longer", at_least=0)
    drain_timeout_ms: float = option(25_000.0, "how long turns may take to end when the process goes away", at_least=0)


@attrs.define(eq=False)
class Slot:
    """One session's place. It is taken before anything is made: `session`, `running` and `keeper` come later."""

    session_id: str
    user_id: str = ""
    tenant: str = ""
    session: Any = None
    running: asyncio.Task[None] | None = None
    keeper: Any = None
    listeners: tuple[Callable[[Any], None], ...] = ()
    begun: asyncio.Event = attrs.field(factory=asyncio.Event)


@attrs.define(eq=False)
class _Waiting:
    slot: Slot
    engines: tuple[Engine, ...]
    let_in: asyncio.Future[None]


class Admission:
    """The places, taken and free.

    Attributes:
        slots: the places taken, by session id.
    """

    def __init__(self, limits: ManagerOptions, clock: Clock) -> None:
        self.slots: dict[str, Slot] = {}
        self._limits, self._clock = limits, clock
        self._waiting: list[_Waiting] = []
        self._looking = False

    @property
    def waiting(self) -> int:
        """How many wait for room."""
        return len(self._waiting)

    async def enter(self, slot: Slot, engines: Iterable[Engine] = (), *, first: bool = False) -> Slot:
        """Take a place, waiting for one where the limits allow it.

        Args:
            slot: whose place.
            engines: what the session will use.
            first: it is a session that comes back: it may wait, and goes before all new ones.

        Raises:
            SessionLimitError: there is no room; `.limit` names why.
            DuplicateSessionError: that id has a place, or waits for one.
        """
        waiting_ids = {waiting.slot.session_id for waiting in self._waiting}
        if slot.session_id in self.slots or slot.session_id in waiting_ids:
            raise DuplicateSessionError(f"a session {slot.session_id!r} lives already; choose another id, or resume it")
        engines = tuple(engines)
        refusal = self._refusal(slot, engines)
        if refusal is None:  # those who wait do so for other reasons: whoever fits is let in at once
            self.slots[slot.session_id] = slot
            return slot
        if len(self._waiting) >= (self._limits.max_waiting or int(first)):
            raise refusal or self._full("max_waiting", self._limits.max_waiting)
        waiting = _Waiting(slot, engines, asyncio.get_running_loop().create_future())
        self._waiting.insert(0 if first else len(self._waiting), waiting)
        timer = self._clock.call_later_ms(self._limits.max_wait_ms, self._give_up, waiting)
        self._look_again()
        try:
            await waiting.let_in
        except BaseException:
            if self.slots.get(slot.session_id) is slot:
                self.leave(slot)
            raise
        finally:
            timer.cancel()
            if waiting in self._waiting:
                self._waiting.remove(waiting)
        return slot

    def leave(self, slot: Slot) -> None:
        """Give a place back; the next who fits takes it at once."""
        if self.slots.get(slot.session_id) is slot:
            del self.slots[slot.session_id]
        self._let_in()

    async def settled(self, session_id: str) -> Slot | None:
        """The place of that id, once its session has begun; one whose session is ending is waited out, and is none."""
        while (slot := self.slots.get(session_id)) is not None:
            if slot.session is None:
                await slot.begun.wait()
            elif slot.session.end_reason and slot.running is not None:
                await asyncio.wait({slot.running})
            else:
                return slot
        return None

    def recheck(self, slot: Slot, engines: Iterable[Engine]) -> None:
        """Check what engines can bear for one who has a place, and whose engines were not known before.

        Raises:
            SessionLimitError: they cannot.
        """
        refusal = self._engines_refuse(tuple(engines), len(self.slots) - 1)
        if refusal is not None:
            raise refusal

    def _look_again(self) -> None:
        """While anybody waits: an engine that was behind may be so no longer."""
        self._let_in()
        if self._waiting and not self._looking:
            self._looking = True
            self._clock.call_later_ms(LOOK_MS, self._looked)

    def _looked(self) -> None:
        self._looking = False
        self._look_again()

    def _let_in(self) -> None:
        for waiting in tuple(self._waiting):
            if not waiting.let_in.done() and self._refusal(waiting.slot, waiting.engines) is None:
                self._waiting.remove(waiting)
                self.slots[waiting.slot.session_id] = waiting.slot
                waiting.let_in.set_result(None)

    def refuse_all(self, why: Callable[[], Exception]) -> None:
        """Nobody who waits is let in any more."""
        for waiting in self._waiting:
            if not waiting.let_in.done():
                waiting.let_in.set_exception(why())

    def _give_up(self, waiting: _Waiting) -> None:
        if not waiting.let_in.done():
            error = self._refusal(waiting.slot, waiting.engines) or self._full("max_waiting", self._limits.max_waiting)
            waiting.let_in.set_exception(error)

    def _refusal(self, slot: Slot, engines: tuple[Engine, ...]) -> SessionLimitError | None:
        """Why the session cannot be let in now."""
        limits = self._limits
        if len(self.slots) >= limits.max_sessions:
            return self._full("max_sessions", limits.max_sessions)
        for name, value, most in (
            ("user_id", slot.user_id, limits.max_per_user),
            ("tenant", slot.tenant, limits.max_per_tenant),
        ):
            if value and most and sum(getattr(other, name) == value for other in self.slots.values()) >= most:
                return self._full(f"max_per_{name.removesuffix('_id')}", most, f" of {name} {value!r}")
        return self._engines_refuse(engines, len(self.slots))

    def _engines_refuse(self, engines: tuple[Engine, ...], others: int) -> SessionLimitError | None:
        limits = self._limits
        for engine in engines:
            if engine.max_streams is not None and others >= engine.max_streams:
                return self._full("max_streams", engine.max_streams, f" on {engine.kind} {engine.name!r}")
            if engine.wait_ms > limits.max_engine_wait_ms:
                return SessionLimitError(
                    f"{engine.kind} {engine.name!r} makes its calls wait {engine.wait_ms:.0f} ms, more than "
                    f"{limits.max_engine_wait_ms:g}; try again later",
                    limit="max_engine_wait_ms",
                    retry_after_ms=RETRY_AFTER_MS,
                )
        return None

    def _full(self, limit: str, most: int, whose: str = "") -> SessionLimitError:
        return SessionLimitError(
            f"{len(self.slots)} sessions live{whose and ', too many' + whose}; {limit} is {most}; try again later",
            limit=limit,
            retry_after_ms=RETRY_AFTER_MS,
        )
