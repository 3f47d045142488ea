"""What every engine must do, of whatever kind: checks that the suites of the kinds share.

They know an engine only by its ordinary uses, which the suite of its kind gives them in a `Trial`.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from io import StringIO
from typing import Any

import attrs

from ..clock import Clock
from ..engine import Engine
from ..errors import OptionError, ProviderError, RateLimitError
from .checking import STOP_MS, Fault, Leftovers, NotApplicable, Steps, Trial, Use, expect, handle_of, in_time

__all__ = ["CHECKS", "SERVICE_CHECKS"]

MOST_CANCELLED = 16
LATER_MS = 20.0
HANG_MS = 500.0
SIZES_AT_ONCE = (1, 2, 0, 1)
HOLD_MS = 20.0
SLACK = 5.0  # machines that run tests are busy with others' work too
TRIES = 3

Outcome = tuple[Any, Exception | None]


async def _leaves_nothing_behind(trial: Trial[Engine]) -> None:
    engine = trial.make()
    before = Leftovers()
    async with engine, engine:
        for name, use in trial.uses.items():
            await in_time(use(engine, 1), f"the end of its {name}")
        first = Leftovers(threads=False)
        for use in trial.uses.values():
            await use(engine, 1)
        await first.expect_no_more("a second use ended as the first did")
    await before.expect_no_more("it was closed")


async def _cancelled_at_any_await(trial: Trial[Engine]) -> None:
    async with trial.make() as engine:
        for name, use in trial.uses.items():
            well = await use(engine, 1)
            counted = Steps(use(engine, 1))
            await counted
            before = Leftovers(threads=False)
            every = max(1, -(-counted.waits // MOST_CANCELLED))
            for at in range(1, counted.waits + 1, every):
                what = f"its {name}, cancelled at wait {at} of {counted.waits},"
                for later_ms in (0.0, LATER_MS):
                    await _cancelled(use, engine, at, later_ms, what)
                    await before.expect_no_more(f"its {name} was cancelled at wait {at} of {counted.waits}")
            again = await in_time(use(engine, 1), f"the end of its {name} after others were cancelled")
            expect(trial.same(again, well), f"after cancellations its {name} gives {again!r}; before it gave {well!r}")


async def _cancelled(use: Use, engine: Engine, at: int, later_ms: float, what: str) -> None:
    """Use it, cancelled at its wait number `at`, or `later_ms` after that has begun."""
    clock = Clock()

    def reached(wait: int) -> None:
        if wait == at and later_ms:
            clock.call_later_ms(later_ms, task.cancel)
        elif wait == at:
            task.cancel()

    async def steps() -> None:
        await Steps(use(engine, 1), reached)

    task = asyncio.create_task(steps(), name="cancelled use")
    await in_time(asyncio.wait([task]), f"{what} the end")
    if not task.cancelling() or task.cancelled():
        return
    error = task.exception()
    told = f"raised {type(error).__name__}: {error}" if error is not None else "went on to its end"
    raise AssertionError(f"{what} {told}; expected CancelledError to pass through")


async def _closed_twice(trial: Trial[Engine]) -> None:
    await trial.make().aclose()  # never used
    async with trial.make() as engine:
        await trial.use(engine, 1)
        async with handle_of(engine) as handle:
            for _ in range(2 if handle is not engine else 0):
                await in_time(handle.aclose(), "the end of aclose of a session's handle", STOP_MS)
    for _ in range(2):
        await in_time(engine.aclose(), "the end of a further aclose", STOP_MS)


async def _used_again_after_closing(trial: Trial[Engine]) -> None:
    engine = trial.make()
    async with engine:
        well = await trial.use(engine, 1)
    async with engine:
        again = await in_time(trial.use(engine, 1), "the end of a use after it was closed and entered again")
    expect(trial.same(again, well), f"entered again it gives {again!r}; before it was closed it gave {well!r}")


async def _many_at_once_as_one_alone(trial: Trial[Engine]) -> None:
    async with trial.make() as engine:
        limits = [limit for limit in (engine.max_streams, engine.max_concurrent) if limit]
        sizes = SIZES_AT_ONCE[: min(limits, default=len(SIZES_AT_ONCE))]
        for name, use in trial.uses.items():
            alone = [await in_time(use(engine, size), f"the end of its {name}") for size in sizes]
            works = (in_time(use(engine, size), f"the end of one {name} of several") for size in sizes)
            tasks = [asyncio.create_task(work, name="one of several") for work in works]
            try:
                await asyncio.wait(tasks)
            finally:
                for task in tasks:
                    task.cancel()
            for size, one, task in zip(sizes, alone, tasks):
                got = task.result()
                expect(
                    trial.same(got, one), f"{len(sizes)} at once: {name} of size {size} gives {got!r}; alone it gave {one!r}"
                )


async def _options_change_in_a_copy(trial: Trial[Engine]) -> None:
    engine = trial.make()
    with_none_like_it = {"no_such_option_": 1}
    try:
        engine.with_options(**with_none_like_it)
    except OptionError as error:
        expect("no_such_option_" in str(error), f"with_options of an unknown option says {str(error)!r}; expected its name")
    else:
        raise AssertionError("with_options takes an option it does not have; expected OptionError")
    fields = attrs.fields(type(engine.options)) if attrs.has(type(engine.options)) else ()
    names = [field.name for field in fields if field.init and not field.metadata.get("secret")]
    if not names:
        raise NotApplicable("it has no options")
    async with engine:
        well = await trial.use(engine, 1)
        copy = engine.with_options(**{names[0]: getattr(engine.options, names[0])})
        expect(copy is not engine, "with_options gives the engine itself; expected a copy, for others use the engine")
        expect(copy.options == engine.options, f"with_options of {names[0]!r}, unchanged, changes the options")
        async with copy:
            got = await in_time(trial.use(copy, 1), "the end of a use of a copy")
            expect(trial.same(got, well), f"a copy with the same options gives {got!r}; the engine gave {well!r}")
        again = await in_time(trial.use(engine, 1), "the end of a use after a copy was closed")
        expect(trial.same(again, well), f"after a copy was closed it gives {again!r}; before it gave {well!r}")


async def _loop_goes_on(trial: Trial[Engine]) -> None:
    """The shortest of three tries counts, so that a busy machine is not taken for the engine."""
    async with trial.make() as engine:
        for name, use in trial.uses.items():
            held_ms = []
            for _ in range(TRIES):
                with _tasks_timed() as timed:
                    steps = Steps(use(engine, 1))
                    await in_time(steps, f"the end of its {name}")
                held_ms.append(max(one.longest_ms for one in (steps, *timed)))
            least_ms = min(held_ms)
            expect(
                least_ms <= HOLD_MS * SLACK,
                f"its {name} holds the event loop for {least_ms:.0f} ms at a time; expected {HOLD_MS:.0f} ms at most. "
                "Compute in a WorkPool, and wait with await",
            )


_timed: ContextVar[list[Steps[Any]] | None] = ContextVar("timed", default=None)


@contextmanager
def _tasks_timed() -> Iterator[list[Steps[Any]]]:
    """Times the tasks that are begun within, from here and from one another; not those of a server, which runs apart."""
    timed: list[Steps[Any]] = []
    loop = asyncio.get_running_loop()
    before, token = loop.get_task_factory(), _timed.set(timed)

    async def driven(steps: Steps[Any]) -> Any:
        return await steps

    def begin(loop: asyncio.AbstractEventLoop, work: Any, **told: Any) -> asyncio.Task[Any]:
        if _timed.get() is not timed:
            return asyncio.Task(work, loop=loop, **told)
        steps: Steps[Any] = Steps(work)
        timed.append(steps)
        task = asyncio.Task(driven(steps), loop=loop, **told)
        task.add_done_callback(lambda _: work.close())  # one that is cancelled before it ran has not begun it
        return task

    loop.set_task_factory(begin)
    try:
        yield timed
    finally:
        loop.set_task_factory(before)
        _timed.reset(token)


# --- sick servers and secrets ----------------------------------------------------------------------------------------


async def _faults_are_told_as_they_are(trial: Trial[Engine]) -> None:
    if not trial.sick:
        raise NotApplicable("no sick server is given")
    async with trial.make() as engine:
        for use_name, use in trial.uses.items():
            well = await use(engine, 1)
            before = Leftovers(threads=False)
            for name, fault in trial.sick.items():
                what = f"server with fault {name!r}: its {use_name}"
                if fault.hangs:
                    await _hung(use, engine, fault, what)
                else:
                    got, error = await _tried(use, engine, fault, what)
                    _judge(engine, fault, error, what)
                    expect(error is not None or trial.same(got, well), f"{what} gives {got!r}; expected {well!r}")
                await before.expect_no_more(f"{what} ended")
                again = await in_time(use(engine, 1), f"the end of its {use_name} once the server is well again")
                expect(trial.same(again, well), f"after fault {name!r} its {use_name} gives {again!r}; expected {well!r}")


def _judge(engine: Engine, fault: Fault, error: Exception | None, what: str) -> None:
    wanted = " or ".join(cls.__name__ for cls in fault.errors)
    if error is None:
        expect(not fault.errors, f"{what} says nothing of it; expected {wanted}")
        return
    told = f"{type(error).__name__}: {error}"
    expect(fault.errors, f"{what} raises {told}; expected it to go as when the server is well")
    expect(isinstance(error, ProviderError), f"{what} raises {told}; expected {wanted}, never a raw exception")
    expect(isinstance(error, fault.errors), f"{what} raises {told}; expected {wanted}")
    assert isinstance(error, ProviderError)
    who = (error.kind, error.provider)
    expect(who == (engine.kind, engine.name), f"{what}: the error names {who}; expected {(engine.kind, engine.name)}")
    if fault.retry_after_ms is not None and isinstance(error, RateLimitError):
        got_ms = error.retry_after_ms
        expect(got_ms == fault.retry_after_ms, f"{what}: retry_after_ms is {got_ms}; expected {fault.retry_after_ms}")


async def _tried(use: Use, engine: Engine, fault: Fault, what: str) -> Outcome:
    with fault.sick():
        try:
            return await in_time(use(engine, 1), what), None
        except AssertionError:
            raise
        except Exception as error:
            return None, error


async def _hung(use: Use, engine: Engine, fault: Fault, what: str) -> None:
    with fault.sick():
        task = asyncio.ensure_future(use(engine, 1))
        await asyncio.wait([task], timeout=HANG_MS / 1000.0)
        if not task.done():
            task.cancel()
            await in_time(asyncio.wait([task]), f"{what}, cancelled: the end", STOP_MS)
            return
    error = task.exception()
    if not isinstance(error, ProviderError):  # which a deadline of its own may raise
        told = f"raises {type(error).__name__}: {error}" if error else f"gives {task.result()!r}"
        raise AssertionError(f"{what} {told} within {HANG_MS:,.0f} ms; expected it to wait, or a ProviderTimeoutError")


async def _key_is_never_told(trial: Trial[Engine]) -> None:
    if not trial.canary:
        raise NotApplicable("no key is given")
    printed = StringIO()
    with _logged() as records, redirect_stdout(printed), redirect_stderr(printed):
        async with trial.make() as engine:
            await trial.use(engine, 1)
            async with handle_of(engine) as handle:
                for shown in (engine, engine.options, handle, engine.account):
                    expect(trial.canary not in f"{shown!r} {shown}", f"the key is in the repr of {type(shown).__name__}")
            for name, fault in trial.sick.items():
                for use_name, use in trial.uses.items():
                    if fault.hangs:
                        continue
                    _, error = await _tried(use, engine, fault, f"its {use_name} from a server with fault {name!r}")
                    told = "".join(traceback.format_exception(error)) if error is not None else ""
                    expect(trial.canary not in told, f"the key is in the error of its {use_name} at fault {name!r}")
    expect(trial.canary not in printed.getvalue(), "the key is in what it prints")
    for record in records:
        expect(trial.canary not in record, f"the key is in a log record: {record.replace(trial.canary, '***')[:200]!r}")


@contextmanager
def _logged() -> Iterator[list[str]]:
    """What is logged meanwhile, by whomever, at any level."""
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(f"{record.name}: {self.format(record)}")

    root, keep = logging.getLogger(), Keep(logging.DEBUG)
    level = root.level
    root.addHandler(keep)
    root.setLevel(logging.DEBUG)
    try:
        yield records
    finally:
        root.setLevel(level)
        root.removeHandler(keep)


CHECKS: dict[str, Callable[[Any], Awaitable[None]]] = {
    "leaves nothing behind": _leaves_nothing_behind,
    "is cancelled at any await": _cancelled_at_any_await,
    "is closed twice": _closed_twice,
    "is used again after it was closed": _used_again_after_closing,
    "many at once are as one alone": _many_at_once_as_one_alone,
    "options change in a copy": _options_change_in_a_copy,
    "the loop goes on": _loop_goes_on,
}
# For kinds whose engines may call a service.
SERVICE_CHECKS: dict[str, Callable[[Any], Awaitable[None]]] = {
    "faults are told as they are": _faults_are_told_as_they_are,
    "the key is never told": _key_is_never_told,
}
