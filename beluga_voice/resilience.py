"""Surviving a provider's bad days: what a process knows of each account, who may call now, and when to try again.

The adapters of the kinds retry, keep deadlines and go to the next provider; what they share is here. A `Guard` is what the
process knows of one account: its circuit breaker, and how many calls are under way.

>>> async def main():
...     health = guard(Engine(), ResilienceOptions())
...     call = health.enter()
...     with call:
...         call.first()  # its first byte came
...     return health.breaker.state, health.under_way, dict(health.counters)
>>> asyncio.run(main())
('closed', 0, {'calls': 1})
"""

from __future__ import annotations

import asyncio
import random
import weakref
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import attrs

from .breaker import Attempt, Breaker, State
from .clock import Clock
from .engine import Engine
from .errors import ProtocolError, ProviderError, ProviderTimeoutError, RateLimitError
from .frames import HealthChanged
from .options import option

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Call", "Guard", "ResilienceOptions", "guard", "guards", "provider_error", "retry_delay_ms"]

LONGEST_RETRY_MS = 2_000.0  # nobody in a conversation waits longer for a second try
MOST_GUARDS = 1_000  # accounts a process keeps in mind


@attrs.frozen
class ResilienceOptions:
    """How long providers are waited for, how often tried again, when left alone: the `[resilience]` table."""

    retries: int = option(1, "calls made again on the same provider, where the error says it may help", at_least=0, at_most=5)
    retry_base_ms: float = option(100.0, "the wait before a retry is random, under this, doubling", at_least=0, at_most=2_000)
    connect_timeout_ms: float = option(3_000.0, "the longest wait for a stream or session to open", at_least=10)
    final_timeout_ms: float = option(
        800.0, "the longest wait for a recogniser's closing transcript, beside a tenth of the utterance's length", at_least=10
    )
    first_audio_timeout_ms: float = option(2_500.0, "the longest wait for a voice's first audio", at_least=10)
    first_words_timeout_ms: float = option(8_000.0, "the longest wait for a remote agent's first words", at_least=10)
    stall_ms: float = option(1_500.0, "how far a voice may fall behind its own playing time", at_least=10)
    slow_ms: float = option(1_000.0, "a first byte or closing transcript later than this is slow", at_least=1)
    return_after_ms: float = option(30_000.0, "how long until a preferred provider that failed is tried again", at_least=0)
    window: int = option(20, "how many of an account's last calls its breaker looks at", at_least=1, at_most=1_000)
    minimum_calls: int = option(5, "so many must be there before shares count", at_least=1, at_most=1_000)
    failure_share: float = option(0.5, "the share of failures that opens the breaker", at_least=0.01, at_most=1)
    slow_share: float = option(0.8, "the share of slow calls that opens it", at_least=0.01, at_most=1)
    open_ms: float = option(10_000.0, "how long it stays open; doubles with each failed probe, up to 60,000", at_least=1)
    probes: int = option(2, "good calls that close it again; no more are under way at once", at_least=1, at_most=100)
    probe_timeout_ms: float = option(5_000.0, "how long a probe may owe its answer", at_least=10)

    def __attrs_post_init__(self) -> None:
        if self.minimum_calls > self.window:
            raise ValueError(
                f"minimum_calls is {self.minimum_calls} and window {self.window}; expected a window at least as large, "
                "or the breaker never opens"
            )


# --- what a process knows of an account ------------------------------------------------------------------------------


class Guard:
    """What this process knows of one account: shared by all engines of the account and kind, per event loop.

    Attributes:
        kind: "stt", "tts", ...
        provider: the provider's name.
        account: whose it is; empty for an engine that runs here.
        breaker: its health.
        max_concurrent: how many calls may be under way at once; None: as many as come.
        under_way: how many are.
        engine: the one that it is of, if that runs here: they are forgotten together.
        counters: "calls", "failures", "barred" (by the breaker), "overflow" (over `max_concurrent`), "opened".
    """

    def __init__(self, kind: str, provider: str, account: str, options: ResilienceOptions, clock: Clock | None = None) -> None:
        self.kind, self.provider, self.account = kind, provider, account
        self.breaker = Breaker(
            window=options.window,
            minimum_calls=options.minimum_calls,
            failure_share=options.failure_share,
            slow_share=options.slow_share,
            slow_ms=options.slow_ms,
            open_ms=options.open_ms,
            probes=options.probes,
            probe_timeout_ms=options.probe_timeout_ms,
            clock=clock,
        )
        self.max_concurrent: int | None = None
        self.under_way = 0
        self.engine: weakref.ref[Engine] | None = None
        self.counters: Counter[str] = Counter()

    @property
    def is_full(self) -> bool:
        """True when `max_concurrent` calls are under way."""
        return self.max_concurrent is not None and self.under_way >= self.max_concurrent

    @property
    def admits(self) -> bool:
        """True when a call would be let in now."""
        return not self.is_full and self.breaker.wait_ms <= 0.0

    def enter(self, tell: Callable[[HealthChanged], object] | None = None, *, anyway: bool = False) -> Call | None:
        """Ask to make a call; None: not now, go to the next provider.

        Args:
            tell: told when this call changes the breaker's state, like `context.emit`.
            anyway: there is no other provider: one that is slow or fails often, but answers at times, or that runs here, is
                used all the same.
        """
        if self.is_full:
            self.counters["overflow"] += 1
            return None

        def changed(old: State, new: State) -> None:
            self.counters["opened"] += new == "open"
            if tell is not None:
                tell(HealthChanged(self.kind, self.provider, old, new))

        attempt = self.breaker.enter(changed)
        if attempt is None and anyway and (self.breaker.may_answer or not self.account):
            attempt = self.breaker.aside()
        if attempt is None:
            self.counters["barred"] += 1
            return None
        self.counters["calls"] += 1
        self.under_way += 1
        return Call(self, attempt, changed)


class Call:
    """One call of an account, which holds one of its `max_concurrent` places until `close`.

    As a context manager it tells by itself: left by an exception, the call has failed; by cancellation, it was given up;
    else it has succeeded. A stream that answers again and again tells `asked` and `succeeded` of each answer.
    """

    def __init__(self, guard: Guard, attempt: Attempt, changed: Callable[[State, State], None]) -> None:
        self.guard = guard
        self._attempt, self._changed = attempt, changed
        self._open = True

    def first(self) -> None:
        """The answer begins: its first byte is there."""
        self._attempt.first()

    def idle(self) -> None:
        """Nothing is owed until `asked`."""
        self._attempt.idle()

    def asked(self) -> None:
        """An answer is owed from now on: the first, or another of the same stream."""
        if self._attempt.over:
            self._attempt = self._another()
        else:
            self._attempt.asked()

    def succeeded(self) -> None:
        """The answer is there."""
        self._attempt.succeeded()

    def failed(self, error: BaseException) -> None:
        """The call failed."""
        self.guard.counters["failures"] += 1
        if self._attempt.over:  # a stream that breaks between two answers
            self._attempt = self._another()
        self._attempt.failed(error)

    def left(self) -> None:
        """The call was given up by its caller: says nothing of the provider."""
        self._attempt.left()

    def _another(self) -> Attempt:
        breaker = self.guard.breaker
        return breaker.enter(self._changed) or breaker.aside()

    def close(self) -> None:
        """Give its place back; what was not told is as if it had not been tried."""
        self.left()
        if self._open:
            self._open = False
            self.guard.under_way -= 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc is None:
            self.succeeded()
        elif isinstance(exc, Exception):
            self.failed(exc)
        self.close()


_guards: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Any, Guard]] = WeakKeyDictionary()


def guard(engine: Engine, options: ResilienceOptions) -> Guard:
    """What is known of the engine's account; an engine that runs here has a guard of its own.

    The options are those of whoever asks first; of several `max_concurrent` the smallest holds.
    """
    known = _guards.setdefault(asyncio.get_running_loop(), {})
    key = (engine.kind, engine.account or id(engine))
    found = known.get(key)
    if found is None:
        _make_room(known)
        found = known[key] = Guard(engine.kind, engine.name, engine.account, options)
        if not engine.account:
            found.engine = weakref.ref(engine, lambda _: known.pop(key, None))
    if engine.max_concurrent is not None:
        found.max_concurrent = min(engine.max_concurrent, found.max_concurrent or engine.max_concurrent)
    return found


def guards() -> tuple[Guard, ...]:
    """All that this event loop knows: for health pages and telemetry."""
    return tuple(_guards.get(asyncio.get_running_loop(), {}).values())


def _make_room(known: dict[Any, Guard]) -> None:
    """Forget accounts that are not in use, first the oldest that are well: keys may come and go with users, wrong ones too."""
    if len(known) >= MOST_GUARDS:
        unused = [key for key, one in known.items() if one.under_way == 0]
        unused.sort(key=lambda key: known[key].breaker.state != "closed")
        for key in unused[: len(known) // 2]:
            del known[key]


# --- trying again ----------------------------------------------------------------------------------------------------


def retry_delay_ms(
    error: Exception,
    tries: int,
    options: ResilienceOptions,
    *,
    others: bool = False,
    jitter: Callable[[float, float], float] = random.uniform,
) -> float | None:
    """How long to wait before the same provider is called again; None: do not.

    Full jitter, so that the callers of a provider that stumbled do not come back in the same moment.

    Args:
        error: what the last call failed with.
        tries: how many calls of this provider have failed in a row.
        options: how often, and how long.
        others: another provider could be asked: then nobody waits for one that gave no answer in time, or wants fewer calls.
        jitter: `random.uniform`, or what a test puts in its place.
    """
    if tries > options.retries or not isinstance(error, ProviderError) or not error.retryable:
        return None
    if others and isinstance(error, (ProviderTimeoutError, RateLimitError)):
        return None
    if isinstance(error, RateLimitError) and error.retry_after_ms is not None:
        return error.retry_after_ms * 1.1 if error.retry_after_ms <= LONGEST_RETRY_MS else None
    return jitter(0.0, min(LONGEST_RETRY_MS, options.retry_base_ms * 2.0 ** (tries - 1)))


def provider_error(error: Exception, kind: str, provider: str) -> ProviderError:
    """The error as a provider's: as it is, or wrapped if an engine let another through."""
    if isinstance(error, ProviderError):
        return error
    wrapped = ProtocolError(f"{kind} {provider!r} failed: {type(error).__name__}: {error}", provider=provider, kind=kind)
    wrapped.__cause__ = error
    return wrapped
