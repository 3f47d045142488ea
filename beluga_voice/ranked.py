"""Engines of one kind in order of preference, used as one: what the voices' and the agents' failover have in common.

>>> class Local(Engine):
...     kind = "tts"
>>> class Failover(Ranked):
...     kind = "tts"
>>> async def main():
...     either = Failover(Local(), Local())
...     async with Context() as context:
...         duty = (await context.handle(either)).duty
...         with await duty.enter():
...             return duty.at
>>> asyncio.run(main())
0
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

from .engine import Context, Engine
from .errors import OverloadedError, ProviderError
from .frames import FailedOver, Frame, Retried
from .resilience import Call, Guard, ResilienceOptions, guard, retry_delay_ms

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Duty", "Ranked"]

log = logging.getLogger(__name__)
ROOM_MS = 20.0  # how often an account with `max_concurrent` calls under way is looked at


class Ranked(Engine):
    """An engine made of engines of its kind. Inherit it first: `class Failover(Ranked, TTS)`.

    Args:
        engines: one or more, the preferred one first.
        options: the `[resilience]` table.

    Attributes:
        engines: the engines.
        resilience: how long each is waited for, and how often tried.
        duty: of a session's handle: who does the work now.

    Raises:
        TypeError: there is none, or one is of another kind.
    """

    engines: tuple[Any, ...]
    duty: Duty

    def __init__(self, *engines: Any, options: ResilienceOptions | None = None) -> None:
        if not engines or not all(isinstance(engine, Engine) and engine.kind == self.kind for engine in engines):
            raise TypeError(f"Failover{engines!r}: expected engines of the kind {self.kind}, like {self.kind}.new(name)")
        self.engines = tuple(
            one for engine in engines for one in (engine.engines if isinstance(engine, type(self)) else (engine,))
        )
        self.resilience = options or ResilienceOptions()
        self.options = self.engines[0].options
        self.account = self.engines[0].account
        limits = [engine.max_streams for engine in self.engines]
        self.max_streams = None if None in limits else sum(limit for limit in limits if limit is not None)
        self._warmed = AsyncExitStack()
        self._is_handle = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(engine.name for engine in self.engines)})"

    @property
    def name(self) -> str:
        """The name of the preferred one."""
        return str(self.engines[0].name)

    @property
    def wait_ms(self) -> float:
        """How long a call made now would wait before it begins, with the one that makes it wait least."""
        return float(min(engine.wait_ms for engine in self.engines))

    @property
    def watched(self) -> bool:
        """True where deadlines hold: an engine that runs here and has no stand-by may take its time."""
        return len(self.engines) > 1 or bool(self.account)

    async def open(self, context: Context) -> Self:
        """What one session uses: it knows who is on duty. The preferred one's own handle is opened beside it."""
        handle = copy.copy(self)
        handle._is_handle = True
        handle.duty = Duty(self, context)
        if self.account:
            dialling = _dial(self.engines[0], context, self.resilience.connect_timeout_ms)
            context.tasks.spawn(dialling, f"dial {self.name}")
        return handle

    async def prewarm(self) -> None:
        """Make all of them ready. One that cannot be made ready stops nobody while another can.

        Raises:
            Exception: what the last one raised, when none can be made ready.
        """
        errors = [error for error in await asyncio.gather(*map(self._warm_one, self.engines)) if error is not None]
        if len(errors) == len(self.engines):
            raise errors[-1]

    async def _make_ready(self) -> None:
        await self.prewarm()  # each of them has a limit of its own, or none

    async def _warm_one(self, engine: Engine) -> Exception | None:
        try:
            await engine.__aenter__()
        except Exception as error:
            log.warning("%s %r could not be made ready: %s", self.kind, engine.name, error)
            return error
        self._warmed.push_async_exit(engine)
        return None

    async def aclose(self) -> None:
        """Free what they hold."""
        if not self._is_handle:
            await self._warmed.aclose()

    def with_options(self, **changes: Any) -> Self:
        """The same engines, each with these options changed.

        Raises:
            OptionError: one of them has no such option, or the value does not fit.
        """
        if not changes:
            return self
        return type(self)(*(engine.with_options(**changes) for engine in self.engines), options=self.resilience)


async def _dial(engine: Engine, context: Context, limit_ms: float) -> None:
    with suppress(Exception):  # its first use has another try
        async with asyncio.timeout(limit_ms / 1000.0):
            await context.handle(engine)


class Duty:
    """Who of the engines does one session's work.

    Args:
        ranked: the engines.
        context: the session: whose clock, and told who takes over from whom, and why.
        tell: told in its place.
        room_ms: how long a place is waited for where `max_concurrent` calls are under way; None: as for the first audio.

    Attributes:
        at: the number of the one that works now.
    """

    def __init__(
        self,
        ranked: Ranked,
        context: Context,
        tell: Callable[[Frame], object] | None = None,
        *,
        room_ms: float | None = None,
    ) -> None:
        self._engines, self._options, self._kind = ranked.engines, ranked.resilience, ranked.kind
        self._context, self._tell = context, tell or context.emit
        self._room_ms = ranked.resilience.first_audio_timeout_ms if room_ms is None else room_ms
        self.at = 0
        self._return_ms = 0.0

    @property
    def engine(self) -> Any:
        """The one that works now."""
        return self._engines[self.at]

    async def enter(
        self, failures: Counter[int] | None = None, error: ProviderError | None = None, *, again: bool = True
    ) -> Call:
        """Begin a call of the one that is to do a piece of work; it is `engine` from then on.

        Args:
            failures: how often each has failed at this piece of work; who has is only tried again at once.
            error: what the last one failed with.
            again: the last one may be tried again although there is another.

        Raises:
            ProviderError: nobody is left: `error`, or why nobody was asked.
        """
        failed: Counter[int] = failures if failures is not None else Counter()
        if error is not None:
            call = await self._again(failed, error, again)
            if call is not None:
                return call
        clock = self._context.clock
        known = [index for index in self._order() if index not in failed]
        until_ms = clock.now_ms() + self._room_ms
        while True:
            for anyway in (False, True):
                for index in known:
                    call = self.guard(index).enter(self._tell, anyway=anyway)
                    if call is not None:
                        self.go_to(index, error)
                        return call
            if not any(self.guard(index).is_full for index in known) or clock.now_ms() >= until_ms:
                raise error or self._barred(known)
            await clock.sleep_ms(ROOM_MS)

    def better(self) -> Call | None:
        """A call of one that is preferred to the one that works, if its time has come and it may be well again."""
        if self._context.clock.now_ms() >= self._return_ms:
            for index in range(self.at):
                call = self.guard(index).enter(self._tell)
                if call is not None:
                    self.go_to(index, None)
                    return call
        return None

    def others(self, failed: Counter[int]) -> list[int]:
        """Who else could be asked now, of those that have not failed."""
        known = [index for index in self._order() if index != self.at and index not in failed]
        return [index for index in known if self.guard(index).admits]

    async def _again(self, failed: Counter[int], error: ProviderError, again: bool) -> Call | None:
        """A call of the same engine once more, if that may help."""
        others = bool(self.others(failed))
        delay_ms = retry_delay_ms(error, failed[self.at], self._options, others=others)
        if delay_ms is None or (others and not again):
            return None
        await self._context.clock.sleep_ms(delay_ms)
        call = self.guard(self.at).enter(self._tell, anyway=not others)
        if call is not None:
            self._tell(Retried(self._kind, self.engine.name, error, failed[self.at] + 1))
        return call

    def _order(self) -> list[int]:
        """All by preference; those that were left for another come last until their time is over."""
        early = self._context.clock.now_ms() < self._return_ms
        return sorted(range(len(self._engines)), key=lambda index: early and index < self.at)

    def go_to(self, index: int, error: ProviderError | None) -> None:
        """From now on it is this one's work."""
        if index == self.at:
            return
        if index > self.at:
            error = error or self._barred([self.at])
            self._return_ms = self._context.clock.now_ms() + self._options.return_after_ms
        old, self.at = self.engine, index
        self._tell(FailedOver(self._kind, old.name, self.engine.name, error))

    def guard(self, index: int) -> Guard:
        """What is known of one of them."""
        return guard(self._engines[index], self._options)

    def _barred(self, indices: list[int]) -> OverloadedError:
        """Why nobody was asked at all."""
        names = ", ".join(repr(self._engines[index].name) for index in indices)
        wait_ms = min(self.guard(index).breaker.wait_ms for index in indices)
        why = f"failed too often and is left alone for {wait_ms:.0f} ms" if wait_ms else "has max_concurrent calls under way"
        return OverloadedError(
            f"{self._kind} {names} {why}; expected one that takes the call. Name a stand-by, or try again later",
            provider=self._engines[indices[0]].name,
            kind=self._kind,
        )
