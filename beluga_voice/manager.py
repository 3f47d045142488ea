"""Many sessions: who is let in, where they are found, how they end. One `SessionManager` a process.

>>> async def main():
...     chain = Chain(vad.new("energy"), turn.new("silence"), stt_engine, reply, tts.new("tone"))
...     async with SessionManager(chain, max_sessions=1) as manager:
...         session = await manager.create(transport.new("memory"))
...         try:
...             await manager.create(transport.new("memory"))
...         except SessionLimitError as error:
...             return error.limit
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import attrs

from ._streams import Tasks
from .admission import Admission, ManagerOptions, Slot
from .announcing import Listener
from .chain import Chain
from .clock import Clock
from .engine_pool import EnginePool
from .errors import OptionError, SessionClosedError, SessionNotFoundError
from .events import SessionEvent
from .keeping import BEAT_MS
from .options import changed, nearest
from .reconnect import Breaker
from .session import Session
from .settings import SessionOptions
from .shelf import Shelf, read
from .snapshot import Snapshot
from .state import end_reason
from .store import SessionStore
from .transport import Transport

__all__ = ["ManagerOptions", "SessionManager"]

Choose = Callable[[Mapping[str, Any]], "Chain | Awaitable[Chain]"]

log = logging.getLogger("beluga_voice.manager")
CLOSING_MS = 10_000.0


class SessionManager:
    """Creates, finds, resumes and closes sessions, under hard limits. Use it as an async context manager.

    Args:
        chain: the stages of every session, or a function that chooses them from what the caller's hello said.
        options: every session's settings.
        limits: the limits over all sessions.
        store: where sessions outlive this process; None: they live in it only.
        listeners: each is called with a new session and gives what is to hear its events.
        on_state_changed: called with session, old and new state at every move.
        clock: whose time is kept.
        settings: any field of `SessionOptions` and `ManagerOptions`, like `greeting="Hello."`.

    Attributes:
        counters: what happened, by name: "created", "rejected", "resumed_hot", "resumed_warm", "resumed_failed",
            "closed_bye" and so on, "store_failed", "store_fenced".

    Raises:
        OptionError: `settings` has a name that neither knows, or a value that does not fit.
    """

    def __init__(
        self,
        chain: Chain | Choose,
        options: SessionOptions | None = None,
        limits: ManagerOptions | None = None,
        *,
        store: SessionStore | None = None,
        listeners: Iterable[Callable[[Session], Listener]] = (),
        on_state_changed: Callable[[Session, str, str], None] | None = None,
        clock: Clock | None = None,
        **settings: Any,
    ) -> None:
        if not isinstance(chain, Chain) and not callable(chain):
            raise TypeError(f"SessionManager: chain is {chain!r}; expected a Chain, or a function that chooses one")
        _check_names(settings)
        self.options: SessionOptions = _changed(options or SessionOptions(), settings)
        self.limits: ManagerOptions = _changed(limits or ManagerOptions(), settings)
        self.chain, self.store = chain, store
        self.counters: Counter[str] = Counter()
        self._listeners, self._on_state_changed = tuple(listeners), on_state_changed
        self._clock = clock or Clock()
        self._tasks = Tasks()
        self._admission = Admission(self.limits, self._clock)
        self._pool = EnginePool()
        self._shelf = Shelf(store, self._tasks, self.counters, self._clock, ttl_ms=self.options.resume_window_ms)
        self._breaker = Breaker(clock=self._clock)
        self._draining = self._open = False

    # --- its life ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Make the store and the engines ready."""
        await self._shelf.open()
        try:
            if isinstance(self.chain, Chain):
                await self._pool.enter(self.chain.engines)
        except BaseException:
            await self._pool.aclose()
            raise
        self._open = True
        self._tasks.spawn(self._beat(), "beat")
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._open = False
        self._take_no_more()
        try:
            await self._close_all(self.sessions, "closed")
        finally:
            await self._tasks.aclose(1_000.0)
            try:
                await self._pool.aclose()
            finally:
                await self._shelf.close()

    @property
    def ready(self) -> bool:
        """True while calls are taken: not before the engines are ready, nor while draining."""
        return self._open and not self._draining

    @property
    def draining(self) -> bool:
        """True once `drain` was called."""
        return self._draining

    async def drain(self, timeout_ms: float | None = None) -> None:
        """Take no more calls, tell every caller's side to go elsewhere, let turns end, and close what is left after the time.

        Args:
            timeout_ms: how long turns may take; `drain_timeout_ms` of the limits if left out.
        """
        left_ms = self.limits.drain_timeout_ms if timeout_ms is None else timeout_ms
        self._take_no_more()
        for session in self.sessions:
            session.drain(left_ms)
        await self._gone(self.sessions, left_ms)
        await self._close_all(self.sessions, "drain")

    def _take_no_more(self) -> None:
        self._draining = True
        self._admission.refuse_all(_going)
        self._pool.refuse(_going)

    def listen(self, listener: Callable[[Session], Listener]) -> None:
        """Have `listener(session)` give what is to hear the events of every later session. Told twice, it counts once."""
        if listener not in self._listeners:
            self._listeners = (*self._listeners, listener)

    # --- sessions ----------------------------------------------------------------------------------------------------

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The sessions that live now."""
        return tuple(slot.session for slot in self._admission.slots.values() if slot.session is not None)

    def find(self, session_id: str) -> Session | None:
        """The session of that id, if it lives here."""
        slot = self._admission.slots.get(session_id)
        return slot.session if slot is not None else None

    def get(self, session_id: str) -> Session:
        """The session of that id.

        Raises:
            SessionNotFoundError: none lives here.
        """
        session = self.find(session_id)
        if session is None:
            raise SessionNotFoundError(f"no session {session_id!r} lives here; it has ended, or another process holds it")
        return session

    async def create(
        self,
        line: Transport,
        *,
        session_id: str = "",
        user_id: str = "",
        tenant: str = "",
        metadata: Mapping[str, Any] | None = None,
        hello: Mapping[str, Any] | None = None,
    ) -> Session:
        """Begin a session over `line`. Whoever is refused has cost nothing: no engine or provider was touched.

        Args:
            line: the transport; it is the session's from now on, also when this raises.
            session_id: a name of its own if left out.
            user_id: who calls, for the limits and the agent.
            tenant: on whose account, for the limits.
            metadata: what else is known, for the agent.
            hello: what `choose` is given to choose the stages by; the metadata if left out.

        Raises:
            SessionLimitError: a limit is reached; `.limit` names it.
            DuplicateSessionError: a session of that id lives already, here or in another process.
            SessionClosedError: the manager is draining, or was not entered.
        """
        try:
            slot = await self._admit(session_id or uuid.uuid4().hex, user_id, tenant)
        except BaseException:
            await line.aclose()
            raise
        return await self._start(slot, line, metadata or {}, hello, named=bool(session_id))

    async def resume(
        self,
        session_id: str,
        connect: Callable[[Snapshot], Transport],
        check: Callable[[Session], object] | None = None,
    ) -> Session:
        """The session of that id, to go on with: the living one, or from the store what another process kept of it.

        Args:
            session_id: which.
            connect: makes the line for what was kept, or raises to refuse it; not called for a session that lives here.
            check: called with a session that lives here; raises to refuse it.

        Raises:
            SessionNotFoundError: it neither lives here nor is kept.
            SessionLimitError: there is no room for it.
            SessionClosedError: the manager is draining, or was not entered.
        """
        try:
            living = await self._admission.settled(session_id)
            if living is not None:
                session: Session = living.session
                if check is not None:
                    check(session)
                self.counters["resumed_hot"] += 1
                return session
            snapshot = await self._shelf.look(session_id)
            await connect(snapshot).aclose()  # whoever may not have it is refused before anything is taken
            slot = await self._admit(session_id, snapshot.user_id, snapshot.tenant, first=True)
            session = await self._start(slot, connect, snapshot.metadata, None, resumes=True)
        except BaseException:
            self.counters["resumed_failed"] += 1
            raise
        self.counters["resumed_warm"] += 1
        return session

    async def close(self, session_id: str, reason: str = "closed") -> None:
        """Close a session and wait until it is gone.

        Raises:
            SessionNotFoundError: none of that id lives here.
        """
        await self._close_all([self.get(session_id)], reason)

    async def cleanup_idle(self, timeout_ms: float) -> int:
        """Close every session in which nothing happened for `timeout_ms`; how many. By `idle_timeout_ms` each does itself."""
        idle = [session for session in self.sessions if session.idle_ms >= timeout_ms]
        await self._close_all(idle, "idle")
        return len(idle)

    # --- beginning and ending ----------------------------------------------------------------------------------------

    async def _admit(self, session_id: str, user_id: str, tenant: str, *, first: bool = False) -> Slot:
        if not self.ready:
            raise _going() if self._draining else SessionClosedError("the SessionManager is not entered; use `async with`")
        engines = self.chain.engines if isinstance(self.chain, Chain) else ()
        try:
            return await self._admission.enter(Slot(session_id, user_id, tenant), engines, first=first)
        except BaseException:
            self.counters["rejected"] += 1
            raise

    async def _start(
        self,
        slot: Slot,
        line: Transport | Callable[[Snapshot], Transport],
        metadata: Mapping[str, Any],
        hello: Mapping[str, Any] | None,
        *,
        named: bool = True,
        resumes: bool = False,
    ) -> Session:
        """Make the session in its slot and run it; what fails on the way leaves nothing behind."""
        claim, snapshot = None, None
        try:
            chain = await self._choose(metadata if hello is None else hello)
            self._admission.recheck(slot, chain.engines)
            if named:
                claim = await self._shelf.claim(slot.session_id, force=resumes)
            if not isinstance(line, Transport):  # now nobody else writes: what is kept is the newest
                snapshot = read(slot.session_id, claim.state if claim is not None else None)
                line = line(snapshot)
            if not self.ready:
                raise _going()
            session = Session(
                chain,
                line,
                self.options,
                session_id=slot.session_id,
                user_id=slot.user_id,
                tenant=slot.tenant,
                metadata=metadata,
                snapshot=snapshot,
                before_hang_up=None if self.store is None else lambda: slot.keeper.last(),
                breaker=self._breaker,
                listeners=[lambda event: self._hear(slot, event)],
                clock=self._clock,
            )
            slot.keeper = keeper = self._shelf.keeper(session, claim)
            keeping = () if keeper is None else (keeper.on_event,)
            slot.listeners = (*(made(session) for made in self._listeners), *keeping)
        except BaseException:
            self._admission.leave(slot)
            slot.begun.set()
            if isinstance(line, Transport):
                await line.aclose()
            if claim is not None and not resumes:
                letting = self._tasks.spawn(self._shelf.let_go(slot.session_id, claim), "let go")
                await asyncio.wait({letting})
            raise
        slot.session = session
        slot.begun.set()
        self.counters["created"] += 1
        slot.running = self._tasks.spawn(self._run(slot, session), f"session {slot.session_id}")
        return session

    async def _choose(self, hello: Mapping[str, Any]) -> Chain:
        if isinstance(self.chain, Chain):
            return self.chain
        chosen = self.chain(hello)
        chain = await chosen if inspect.isawaitable(chosen) else chosen
        if not isinstance(chain, Chain):
            raise TypeError(f"the function that chooses a chain gave {chain!r}; expected a Chain")
        await self._pool.enter(chain.engines)
        return chain

    async def _run(self, slot: Slot, session: Session) -> None:
        try:
            await session.run()
        except Exception:
            log.exception("session %s failed", slot.session_id)
        finally:
            self.counters[f"closed_{end_reason(session.end_reason or 'error')}"] += 1
            self._admission.leave(slot)

    async def _close_all(self, sessions: Sequence[Session], reason: str) -> None:
        for session in sessions:
            session.close(reason)
        await self._gone(sessions, CLOSING_MS)

    async def _gone(self, sessions: Sequence[Session], within_ms: float) -> None:
        """Wait until they are, or the time is over."""
        slots = [self._admission.slots.get(session.session_id) for session in sessions]
        running = [slot.running for slot in slots if slot is not None and slot.running is not None]
        if running:
            await asyncio.wait(running, timeout=within_ms / 1000.0)

    def _hear(self, slot: Slot, event: SessionEvent) -> None:
        for listener in slot.listeners:
            try:
                listener(event)
            except Exception:
                log.exception("session %s: a listener failed on %s", slot.session_id, event.name)
        if event.name == "state" and self._on_state_changed is not None and slot.session is not None:
            self._on_state_changed(slot.session, event.data["old"], event.data["state"])

    async def _beat(self) -> None:
        """Now and then: own the sessions further."""
        while True:
            await self._clock.sleep_ms(BEAT_MS)
            for slot in tuple(self._admission.slots.values()):
                try:
                    if slot.keeper is not None:
                        slot.keeper.beat()
                except Exception:
                    log.exception("session %s cannot be kept", slot.session_id)


def _check_names(settings: Mapping[str, Any]) -> None:
    known = sorted(field.name for options in (SessionOptions, ManagerOptions) for field in attrs.fields(options))
    for name in settings:
        if name not in known:
            close = nearest(name, known)
            hint = f"did you mean {close!r}? " if close else ""
            raise OptionError(f"SessionManager has no setting {name!r}; {hint}It takes: {', '.join(known)}")


def _changed(options: Any, settings: Mapping[str, Any]) -> Any:
    """The options with those of `settings` that are theirs."""
    changes = {name: value for name, value in settings.items() if name in attrs.fields_dict(type(options))}
    return changed(options, changes, "SessionManager") if changes else options


def _going() -> SessionClosedError:
    return SessionClosedError("the server is going away and takes no more calls; call another one")
