"""What the suites of checks are made of: one engine on trial, what it leaves behind, and servers that are sick.

The suites themselves: `stt_checks`, `tts_checks`, `vad_checks`, `turn_checks`, `agent_checks`, `s2s_checks`, `transport_checks`
and `store_checks`. A suite for a kind of your own is a table of checks and `run_checks`.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import attrs

from .. import audio as _audio
from ..audio import BYTES_PER_SAMPLE, Audio
from ..clock import Clock, wall_ms
from ..engine import Context, Engine
from ..errors import (
    AuthError,
    ConnectFailedError,
    InvalidRequestError,
    OverloadedError,
    ProtocolError,
    ProviderError,
    RateLimitError,
)

if TYPE_CHECKING:
    from .loopback import LoopbackServer, Sickness

__all__ = [
    "SENTENCE",
    "Fault",
    "Leftovers",
    "NotApplicable",
    "Steps",
    "Trial",
    "cut_evenly",
    "cut_unevenly",
    "expect",
    "faults_of",
    "handle_of",
    "in_time",
    "run_checks",
    "same_words",
    "sentence",
    "words_of",
]

T = TypeVar("T")
E = TypeVar("E", bound=Engine)

SENTENCE = "please bring a glass of water and a slice of bread"
PATIENCE_MS = 60_000.0  # for anything a check waits for
WHOLE_CHECK_MS = 600_000.0
STOP_MS = 1_000.0  # for what was cancelled or closed
SETTLE_MS = 5.0

Use = Callable[[Any, int], Coroutine[Any, Any, Any]]
Check = Callable[[Any], Awaitable[None]]


class NotApplicable(Exception):
    """A check has nothing to look at: the engine does not claim what it checks. The message says why."""


def expect(is_so: object, otherwise: str) -> None:
    """Raise an AssertionError that says `otherwise`, unless it is so."""
    if not is_so:
        raise AssertionError(otherwise)


async def in_time(work: Awaitable[T], what: str, limit_ms: float = PATIENCE_MS) -> T:
    """What `work` gives; an AssertionError when `what` does not come about within `limit_ms`."""
    try:
        async with asyncio.timeout(limit_ms / 1000.0) as limit:
            return await work
    except TimeoutError:
        if not limit.expired():
            raise
        raise AssertionError(f"{what}: not there after {limit_ms:,.0f} ms") from None


# --- what is tried ---------------------------------------------------------------------------------------------------


@attrs.frozen
class Fault:
    """Something wrong with the server an engine talks to, and what must come of it.

    Attributes:
        sick: gives a context manager; while it is entered the server is sick.
        errors: one of these must be raised. None at all: everything goes as when the server is well.
        hangs: the server goes silent: the call may wait for it, and must end at once when it is cancelled.
        retry_after_ms: what the error must tell of the server's wish.
    """

    sick: Callable[[], AbstractContextManager[object]]
    errors: tuple[type[ProviderError], ...] = ()
    hangs: bool = False
    retry_after_ms: float | None = None


@attrs.frozen
class Trial(Generic[E]):
    """An engine on trial.

    Attributes:
        make: gives the engine; called anew for each check.
        uses: ordinary uses of it, by name: `await use(engine, size)`. Size 1 is the usual one, 2 is longer, 0 next to nothing.
        same: whether two results of uses are the same.
        sick: faults of its server, by name.
        canary: its key, which must not be told anywhere.
    """

    make: Callable[[], E]
    uses: Mapping[str, Use]
    same: Callable[[Any, Any], bool] = lambda one, other: bool(one == other)
    sick: Mapping[str, Fault] = attrs.field(factory=dict)
    canary: str = ""

    @property
    def use(self) -> Use:
        """The first of the uses."""
        return next(iter(self.uses.values()))


async def run_checks(checks: Mapping[str, Check], trial: Any, only: str = "") -> dict[str, str]:
    """Run all checks, or the one called `only`, and see that each leaves nothing behind.

    Returns:
        The checks that did not apply, and why.

    Raises:
        AssertionError: a promise is broken; the message tells which.
        KeyError: no check is called `only`.
    """
    if only and only not in checks:
        raise KeyError(f"no check is called {only!r}; there are: {', '.join(checks)}")
    left_out = {}
    for name, check in checks.items():
        if only in ("", name):
            before = Leftovers()
            try:
                await in_time(check(trial), f"the end of the check {name!r}", WHOLE_CHECK_MS)
            except NotApplicable as why:
                left_out[name] = str(why)
            await before.expect_no_more("the engine was closed")
    return left_out


@asynccontextmanager
async def handle_of(engine: E) -> AsyncIterator[E]:
    """What a session of its own would use of the engine."""
    async with Context() as context:
        yield await context.handle(engine)


# --- what is left behind ---------------------------------------------------------------------------------------------


class Leftovers:
    """What this process holds now: tasks, threads, sockets. Later: whether there is more of it.

    Sockets are counted on Linux only. The threads of `asyncio.to_thread` belong to the loop and do not count. Those of a pool
    belong to its engine and come as they are needed: leave threads out while it is open.
    """

    def __init__(self, *, threads: bool = True) -> None:
        self._threads = threads
        self._before = _held()

    async def expect_no_more(self, since: str) -> None:
        """Wait a moment for what is on its way out, then raise an AssertionError if there is more than there was."""
        clock = Clock()
        for _ in range(round(STOP_MS / SETTLE_MS)):
            if not (more := self._more()):
                return
            await clock.sleep_ms(SETTLE_MS)
        raise AssertionError(f"left behind {STOP_MS:,.0f} ms after {since}: {more}; everything must be freed")

    def _more(self) -> str:
        parts = []
        for noun, now in _held().items():
            before = self._before[noun]
            if noun == "thread" and not self._threads:
                continue
            if len(now) > len(before):
                new = sorted(name for key, name in now.items() if key not in before)
                parts.append(f"{len(now) - len(before)} {noun}(s) ({', '.join(new[:5])})")
        return ", ".join(parts)


def _held() -> dict[str, dict[object, str]]:
    tasks: dict[object, str] = {task: task.get_name() for task in asyncio.all_tasks()}
    threads: dict[object, str] = {
        thread: thread.name for thread in threading.enumerate() if not thread.name.startswith("asyncio_")
    }
    return {"task": tasks, "thread": threads, "socket": {name: name for name in _sockets()}}


def _sockets() -> Iterator[str]:
    folder = "/proc/self/fd"
    if not os.path.isdir(folder):
        return
    for number in os.listdir(folder):
        try:
            target = os.readlink(f"{folder}/{number}")
        except OSError:
            continue
        if target.startswith("socket:"):
            yield target


# --- driving work step by step ---------------------------------------------------------------------------------------


class _Meter:
    """For how long this thread is held from now on: where Linux tells, without what other threads took of it meanwhile."""

    def __init__(self) -> None:
        self._wall_ms = wall_ms()
        self._busy_ms, self._slept = _used()

    def held_ms(self) -> float:
        took_ms = wall_ms() - self._wall_ms
        busy_ms, slept = _used()
        return took_ms if slept != self._slept or busy_ms == 0.0 else min(took_ms, busy_ms - self._busy_ms)


def _used() -> tuple[float, int]:
    """The processor time of this thread, in ms, and how often it gave way by itself: it slept, or waited for a file."""
    if not sys.platform.startswith("linux"):
        return 0.0, 0
    import resource

    usage = resource.getrusage(resource.RUSAGE_THREAD)
    return (usage.ru_utime + usage.ru_stime) * 1000.0, usage.ru_nvcsw


class Steps(Awaitable[T]):
    """Work driven step by step: counts its waits and times what it does between two of them.

    Args:
        work: a coroutine that has not begun.
        at: called with the number of each wait as it begins, from 1.
    """

    def __init__(self, work: Coroutine[Any, Any, T], at: Callable[[int], None] | None = None) -> None:
        self.waits = 0
        self.longest_ms = 0.0
        self._work, self._at = work, at

    def __await__(self) -> Generator[Any, Any, T]:
        value: Any = None
        error: BaseException | None = None
        while True:
            before = _Meter()
            try:
                waiting = self._work.throw(error) if error is not None else self._work.send(value)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            finally:
                self.longest_ms = max(self.longest_ms, before.held_ms())
            self.waits += 1
            if self._at is not None:
                self._at(self.waits)
            try:
                value, error = (yield waiting), None
            except BaseException as caught:
                value, error = None, caught


# --- sound and words -------------------------------------------------------------------------------------------------


def sentence() -> Audio:
    """A recording of `SENTENCE`, 2.7 s at 16 kHz, made with the voice "espeak"."""
    return _audio.read(Path(__file__).parent / "data" / "sentence.flac")


def cut_evenly(sound: Audio, piece_ms: float) -> list[Audio]:
    """The sound in pieces of `piece_ms`, the last one shorter."""
    step = round(piece_ms * sound.sample_rate_hz / 1000.0) * BYTES_PER_SAMPLE
    return [Audio(sound.pcm[at : at + step], sound.sample_rate_hz) for at in range(0, len(sound.pcm), step)]


def cut_unevenly(sound: Audio) -> list[Audio]:
    """The sound in pieces of one sample up to a quarter of a second, and empty ones, in no order; the same ones each time."""
    chance, at, pieces = random.Random(4), 0, []
    while at < len(sound.pcm):
        samples = chance.choice((0, 1, 7, 333, chance.randrange(1, sound.sample_rate_hz // 4)))
        pieces.append(Audio(sound.pcm[at : at + samples * BYTES_PER_SAMPLE], sound.sample_rate_hz))
        at += samples * BYTES_PER_SAMPLE
    return pieces


def words_of(text: str) -> list[str]:
    """The words of a text, small, without punctuation."""
    bare = ("".join(sign for sign in word if sign.isalnum()) for word in text.lower().split())
    return [word for word in bare if word]


def same_words(heard: list[str], said: list[str], share: float = 0.0) -> bool:
    """Whether at most `share` of the words are wrong, missing or too many."""
    row = list(range(len(said) + 1))
    for at, word in enumerate(heard, 1):
        diagonal, row[0] = row[0], at
        for column, wanted in enumerate(said, 1):
            diagonal, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, diagonal + (word != wanted))
    return row[-1] <= share * len(said)


# --- sick servers ----------------------------------------------------------------------------------------------------


def faults_of(server: LoopbackServer) -> dict[str, Fault]:
    """The usual faults of a server, for the argument `sick` of a suite. It must be up and known to the engines."""
    from .loopback import Sickness

    def sick(sickness: Sickness) -> Callable[[], AbstractContextManager[object]]:
        @contextmanager
        def within() -> Iterator[None]:
            server.sick = sickness
            try:
                yield
            finally:
                server.sick = None

        return within

    def refuses(status: int, *errors: type[ProviderError], body: bytes = b"") -> Fault:
        return Fault(sick(Sickness("refuse", status=status, body=body)), errors)

    told_key = f'{{"error": {{"message": "the key {server.api_key} is wrong"}}}}'.encode()
    broken = (ConnectFailedError, ProtocolError, OverloadedError)
    limited = Sickness("refuse", status=429, retry_after_s=2)
    return {
        "400": refuses(400, InvalidRequestError),
        "401": refuses(401, AuthError),
        "401 that tells the key": refuses(401, AuthError, body=told_key),
        "429": Fault(sick(limited), (RateLimitError,), retry_after_ms=2_000.0),
        "500": refuses(500, OverloadedError),
        "503": refuses(503, OverloadedError),
        "hang": Fault(sick(Sickness("hang")), hangs=True),
        "hang in the middle": Fault(sick(Sickness("hang", after=1)), hangs=True),
        "cut": Fault(sick(Sickness("cut")), broken),
        "cut in the middle": Fault(sick(Sickness("cut", after=1)), broken),
        "garbage": Fault(sick(Sickness("garbage")), broken),
        "garbage in the middle": Fault(sick(Sickness("garbage", after=1)), broken),
        "drip": Fault(sick(Sickness("drip", every_ms=5))),
        "odd pieces": Fault(sick(Sickness("odd"))),
        "unknown messages": Fault(sick(Sickness("unknown"))),
    }
