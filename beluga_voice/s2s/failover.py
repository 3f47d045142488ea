"""Finding a model to talk to: trying again where it may help, else the next one.

>>> class Model(S2S):
...     async def connect(self, history=()):
...         raise NotImplementedError
>>> failover(Model(), Model()).name
'Model'
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import attrs

from ..engine import Context
from ..errors import ConnectFailedError, OverloadedError, ProtocolError, ProviderError, ProviderTimeoutError
from ..frames import FailedOver, Retried
from ..resilience import Call, ResilienceOptions, guard, provider_error, retry_delay_ms
from .contract import S2S, S2SSession

__all__ = ["Dialer", "Failover", "Link", "failover"]

Work = Coroutine[Any, Any, Exception]

STABLE_MS = 1_000.0  # a connection that lasted longer did not die at once: the next one is made at once, too


class Failover(S2S):
    """Several models in order of preference: when the connection to one breaks and cannot be had again, the next takes over.

    The preferred one is tried again when a connection is made `return_after_ms` later, not in the middle of a conversation
    that goes well.

    Args:
        engines: the models, the preferred one first. Give all the same tools: those of the first are run.
        options: how long and how often each is tried.
    """

    def __init__(self, *engines: S2S, options: ResilienceOptions | None = None) -> None:
        if not engines:
            raise TypeError("failover() has no models; expected at least one")
        self.engines = engines
        self.resilience = options or ResilienceOptions()
        self.toolbox = engines[0].toolbox
        self._entered: list[S2S] = []
        first = engines[0].capabilities
        self.capabilities = attrs.evolve(first, says=all(engine.capabilities.says for engine in engines))

    @property
    def name(self) -> str:
        """The preferred provider's name."""
        return self.engines[0].name

    async def prewarm(self) -> None:
        """Make all of them ready. One that cannot be is no reason to do without the others, unless none can."""
        entered = await asyncio.gather(*(engine.__aenter__() for engine in self.engines), return_exceptions=True)
        self._entered = [engine for engine, made in zip(self.engines, entered) if not isinstance(made, BaseException)]
        if not self._entered and isinstance(entered[0], BaseException):
            raise entered[0]

    async def aclose(self) -> None:
        """Free all of them."""
        entered, self._entered = self._entered, []
        await asyncio.gather(*(engine.__aexit__(None, None, None) for engine in entered))

    async def connect(self, history: tuple[Any, ...] = ()) -> S2SSession:
        """Begin a conversation with the first that can be reached. Raises what the last one does."""
        error: ProviderError | None = None
        for engine in self.engines:
            try:
                return await engine.connect(history)
            except ProviderError as caught:
                error = caught
        assert error is not None
        raise error


def failover(*engines: S2S, options: ResilienceOptions | None = None) -> Failover:
    """One model made of several, in order of preference; see `Failover`."""
    return Failover(*engines, options=options)


@attrs.define(eq=False)
class Link:
    """A connection that is open: with whom, what it was told first, since when, and what is done over it."""

    engine: S2S
    session: S2SSession
    history: tuple[Any, ...]
    call: Call
    since_ms: float
    _tasks: list[asyncio.Task[Exception]] = attrs.field(init=False, factory=list)
    _given_up: asyncio.Future[Exception] = attrs.field(init=False, factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def answers_by_itself(self) -> bool:
        """True for a model that need not be asked for an answer."""
        return type(self.session).answer is S2SSession.answer

    def was_told(self, typed: str) -> bool:
        """True when the last thing in its history is what the caller typed."""
        return bool(typed and self.history) and self.history[-1].role == "user" and self.history[-1].text.endswith(typed)

    async def work(self, context: Context, hear: Work, feed: Work) -> Exception:
        """Do both in tasks of the session, until one of them ends or the connection is given up: why."""
        for part, name in ((hear, "events"), (feed, "input")):
            self._tasks.append(context.spawn(part, f"{self.engine.name} {name}"))
        ends = (*self._tasks, self._given_up)
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        return next(one.result() for one in ends if one.done())

    def give_up(self, error: Exception) -> None:
        """It is no good any more."""
        if not self._given_up.done():
            self._given_up.set_result(error)

    async def stop(self) -> None:
        """Do nothing more over it; what is behind it is still to be closed."""
        self.call.close()
        for task in self._tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):  # once more; they end all the same
            await asyncio.wait(self._tasks)


class Dialer:
    """Makes one session's connections.

    Args:
        engine: the model, or a `Failover`.
        context: the session's.

    Attributes:
        options: how long and how often a model is tried.
        serving: the model talked to last.
    """

    def __init__(self, engine: S2S, context: Context) -> None:
        self._members = engine.engines if isinstance(engine, Failover) else (engine,)
        self.options = engine.resilience if isinstance(engine, Failover) else ResilienceOptions()
        self._context = context
        self.serving = self._members[0]
        self._left_ms = 0.0
        self._tries = 0
        self._error: ProviderError | None = None

    async def dial(self) -> Link:
        """Connect: to who served last, else to the others in order.

        Raises:
            ProviderError: nobody can be reached.
        """
        error, self._error = self._error, None
        for engine in self._order():
            tries = self._tries if engine is self.serving else 0
            while True:
                if tries and not await self._may_retry(engine, error, tries):
                    break
                try:
                    link = await self._connect(engine)
                except ProviderError as caught:
                    error = caught
                    tries += 1
                    continue
                self._tries = tries
                self._serve(engine, error)
                return link
        self._tries = 0
        assert error is not None
        raise error

    def lost(self, link: Link, error: Exception) -> ProviderError:
        """The connection broke; what to tell of it."""
        told = _lost(error, link.engine.name)
        link.call.failed(told)
        link.call.close()
        lasted_ms = self._context.clock.now_ms() - link.since_ms
        self._tries = 1 if lasted_ms >= STABLE_MS else self._tries + 1
        self._error = told
        return told

    def _order(self) -> tuple[S2S, ...]:
        others = tuple(engine for engine in self._members if engine is not self.serving)
        away_ms = self._context.clock.now_ms() - self._left_ms
        if self.serving is not self._members[0] and away_ms >= self.options.return_after_ms:
            return self._members
        return (self.serving, *others)

    def _serve(self, engine: S2S, error: ProviderError | None) -> None:
        old, self.serving = self.serving, engine
        if old is self._members[0] and engine is not old:
            self._left_ms = self._context.clock.now_ms()
        if engine is not old:
            back = engine is self._members[0]
            self._context.emit(FailedOver("s2s", old.name, engine.name, None if back else error))

    async def _may_retry(self, engine: S2S, error: ProviderError | None, tries: int) -> bool:
        """Wait until the engine may be tried again; False if it may not."""
        assert error is not None
        delay_ms = retry_delay_ms(error, tries, self.options, others=len(self._members) > 1)
        if delay_ms is None:
            return False
        self._context.emit(Retried("s2s", engine.name, error, tries + 1))
        await self._context.clock.sleep_ms(delay_ms)
        return True

    async def _connect(self, engine: S2S) -> Link:
        call = guard(engine, self.options).enter(self._context.emit, anyway=len(self._members) == 1)
        if call is None:
            raise OverloadedError(
                f"s2s {engine.name!r} is left alone for a while: it failed too often, or has as many calls as it takes",
                provider=engine.name,
                kind="s2s",
            )
        opened, history = False, self._context.so_far()
        try:
            async with asyncio.timeout(self.options.connect_timeout_ms / 1000.0):
                session = await (await self._context.handle(engine)).connect(history)
            opened = True
            call.first()
            call.succeeded()
            return Link(engine, session, history, call, self._context.clock.now_ms())
        except TimeoutError as error:
            told: ProviderError = ProviderTimeoutError(
                f"s2s {engine.name!r} did not connect within {self.options.connect_timeout_ms:g} ms; "
                "expected it sooner. Try again, or name a stand-by",
                provider=engine.name,
                kind="s2s",
            )
            if isinstance(error, ProviderError):
                told = error
            call.failed(told)
            raise told from None
        except Exception as error:
            told = provider_error(error, "s2s", engine.name)
            call.failed(told)
            raise told from error.__cause__
        finally:
            if not opened:
                call.close()


def _lost(error: Exception, name: str) -> ProviderError:
    """Why a connection broke; a new one may help against all but what would be refused again."""
    if isinstance(error, ProviderError) and not isinstance(error, ProtocolError):
        return error
    told = ConnectFailedError(f"s2s {name!r}: the connection broke: {error}", provider=name, kind="s2s")
    told.__cause__ = error
    return told
