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
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from ._streams import Tasks
from .admission import Admission, ManagerOptions, Slot
from .chain import Chain
from .clock import Clock
from .errors import (
    OptionError,
    SessionClosedError,
    SessionNotFoundError,
)
from .events import SessionEvent
from .keeping import Keeper
from .options import build, nearest
from .reconnect import Breaker
from .session import Session
from .settings import SessionOptions
from .shelf import BEAT_MS, Shelf, read
from .snapshot import Snapshot
from .store import SessionStore
from .transport import Transport

if TYPE_CHECKING:
    from typing import Self

__all__ = ["ManagerOptions", "SessionManager"]

T = TypeVar("T")
Listener = Callable[[SessionEvent], None]
Choose = Callable[[Mapping[str, Any]], "Chain | Awaitable[Chain]"]

log = logging.getLogger("beluga_voice.manager")
CLOSING_MS = 10_000.0
MOST_HELD = 256  # engines kept ready beyond their last session


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
        of_limits = {field.name for field in attrs.fields(ManagerOptions)}
        _check_names(settings, of_limits | {field.name for field in attrs.fields(SessionOptions)})
        self.options: SessionOptions = _changed(options or SessionOptions(), settings, lambda name: name not in of_limits)
        self.limits: ManagerOptions = _changed(limits or ManagerOptions(), settings, lambda name: name in of_limits)
        self.chain, self.store = chain, store
        self.counters: Counter[str] = Counter()
        self._shelf = Shelf(store, self.counters)
        self._listeners, self._on_state_changed = tuple(listeners), on_state_changed
        self._clock = clock or Clock()
        self._admission = Admission(self.limits, self._clock)
        self._tasks = Tasks()
        self._engines = AsyncExitStack()
        self._entered: set[int] = set()
        self._entering = asyncio.Lock()
        self._breaker = Breaker(clock=self._clock)
        self._draining = self._open = False
        self._cleaning: asyncio.Task[int] | None = None
        self._running: dict[str, asyncio.Task[None]] = {}

    # --- its life ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Make the store and the engines ready."""
        await self._shelf.open()
        try:
            if isinstance(self.chain, Chain):
                await self._enter(self.chain)
        except BaseException:
            await self._engines.aclose()
            raise
        self._open = True
        self._tasks.spawn(self._beat(), "beat")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._draining, self._open = True, False
        self._admission.refuse_all(_going)
        try:
            await self._close_all(self.sessions, "closed")
        finally:
            await self._tasks.aclose(1_000.0)
            try:
                async with self._entering:
                    await self._engines.aclose()
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
        self._draining = True
        self._admission.refuse_all(_going)
        for session in self.sessions:
            session.drain(left_ms)
        if self._running:
            await asyncio.wait(set(self._running.values()), timeout=left_ms / 1000.0)
        await self._close_all(self.sessions, "drain")

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
            session = await self._living(session_id)
            if session is not None:
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
        """Close every session in which nothing happened for `timeout_ms`; how many. Runs by itself with `idle_timeout_ms`."""
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
        keeper: list[Keeper] = []
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
                before_hang_up=lambda: keeper[0].last() if keeper else _nothing(),
                breaker=self._breaker,
                listeners=[lambda event: self._hear(slot, event)],
                clock=self._clock,
            )
            if self.store is not None:
                keeper.append(self._keeper(self.store, session, claim.epoch if claim is not None else None))
            slot.listeners = (*(made(session) for made in self._listeners), *(one.on_event for one in keeper))
        except BaseException:
            self._admission.leave(slot)
            slot.begun.set()
            if isinstance(line, Transport):
                await line.aclose()
            if claim is not None and not resumes:
                letting = self._tasks.spawn(self._shelf.let_go(slot.session_id, claim), "let go")
                await asyncio.wait({letting})
            raise
        slot.session, slot.keeper = session, keeper[0] if keeper else None
        slot.begun.set()
        self.counters["created"] += 1
        self._running[slot.session_id] = self._tasks.spawn(self._run(slot, session), f"session {slot.session_id}")
        return session

    async def _run(self, slot: Slot, session: Session) -> None:
        try:
            await session.run()
        except Exception:
            log.exception("session %s failed", slot.session_id)
        finally:
            self.counters[f"closed_{session.end_reason or 'error'}"] += 1
            self._running.pop(slot.session_id, None)
            self._admission.leave(slot)

    async def _close_all(self, sessions: Iterable[Session], reason: str) -> None:
        ending = []
        for session in sessions:
            session.close(reason)
            task = self._running.get(session.session_id)
            if task is not None:
                ending.append(task)
        if ending:
            await asyncio.wait(ending, timeout=CLOSING_MS / 1000.0)

    def _hear(self, slot: Slot, event: SessionEvent) -> None:
        for listener in slot.listeners:
            try:
                listener(event)
            except Exception:
                log.exception("session %s: a listener failed on %s", slot.session_id, event.name)
        if event.name == "state" and self._on_state_changed is not None and slot.session is not None:
            self._on_state_changed(slot.session, event.data["old"], event.data["state"])

    # --- engines -----------------------------------------------------------------------------------------------------

    async def _choose(self, hello: Mapping[str, Any]) -> Chain:
        if isinstance(self.chain, Chain):
            return self.chain
        chosen = self.chain(hello)
        chain = await chosen if inspect.isawaitable(chosen) else chosen
        if not isinstance(chain, Chain):
            raise TypeError(f"the function that chooses a chain gave {chain!r}; expected a Chain")
        await self._enter(chain)
        return chain

    async def _enter(self, chain: Chain) -> None:
        """Keep the engines of a chain ready until the manager is closed."""
        async with self._entering:
            if self._draining:
                raise _going()
            for engine in chain.engines:
                if id(engine) not in self._entered and len(self._entered) < MOST_HELD:
                    await self._engines.enter_async_context(engine)
                    self._entered.add(id(engine))

    # --- keeping and tidying -----------------------------------------------------------------------------------------

    async def _living(self, session_id: str) -> Session | None:
        """The session of that id, once it has begun; one that is ending is gone first."""
        while True:
            slot = self._admission.slots.get(session_id)
            if slot is None:
                return None
            if slot.session is None:
                await slot.begun.wait()
            elif slot.session.end_reason:
                await asyncio.wait({self._running[session_id]})
            else:
                session: Session = slot.session
                return session

    def _keeper(self, store: SessionStore, session: Session, epoch: int | None) -> Keeper:
        return Keeper(
            store,
            session,
            epoch,
            ttl_ms=self.options.resume_window_ms,
            tasks=self._tasks,
            counters=self.counters,
            clock=self._clock,
            on_fenced=lambda lost: lost.close("replaced"),
        )

    async def _beat(self) -> None:
        """Now and then: own the sessions further, and close those in which nothing happens."""
        while True:
            await self._clock.sleep_ms(BEAT_MS)
            for slot in tuple(self._admission.slots.values()):
                try:
                    if slot.keeper is not None:
                        slot.keeper.beat()
                except Exception:
                    log.exception("session %s cannot be kept", slot.session_id)
            if self._cleaning is None or self._cleaning.done():
                self._cleaning = self._tasks.spawn(self.cleanup_idle(self.options.idle_timeout_ms), "idle clean-up")


def _check_names(settings: Mapping[str, Any], known: set[str]) -> None:
    for name in settings:
        if name not in known:
            close = nearest(name, sorted(known))
            hint = f"did you mean {close!r}? " if close else ""
            raise OptionError(f"SessionManager has no setting {name!r}; {hint}It takes: {', '.join(sorted(known))}")


def _changed(options: Any, settings: Mapping[str, Any], mine: Callable[[str], bool]) -> Any:
    """The options with those of `settings` that are theirs."""
    changes = {name: value for name, value in settings.items() if mine(name)}
    if not changes:
        return options
    now = {field.name: getattr(options, field.name) for field in attrs.fields(type(options))}
    return build(type(options), {**now, **changes}, "SessionManager")


def _going() -> SessionClosedError:
    return SessionClosedError("the server is going away and takes no more calls; call another one")


async def _nothing() -> None:
    return None
