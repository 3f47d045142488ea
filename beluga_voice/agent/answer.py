"""What an agent gives, one part after another, however it gives it; and by whom, where several may be asked."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from ..engine import Context
from ..errors import ProtocolError, ProviderError, ProviderTimeoutError
from ..frames import TextDelta, Usage
from ..resilience import Call, provider_error
from .contract import Agent

if TYPE_CHECKING:
    from .failover import Failover

__all__ = ["answer", "arguments", "parts"]

END = object()
ANEW = "... "  # between the words of an answer that broke off and the one that is begun anew


async def parts(function: Callable[..., Any], given: tuple[Any, ...]) -> AsyncGenerator[Any, None]:
    """What an agent's function gives: what it returns, or each thing it yields."""
    said = function(*given)
    try:
        if inspect.isawaitable(said):
            said = await said
        if hasattr(said, "__aiter__"):
            async for part in said:
                yield part
        elif said is not None and said != "":
            yield said
    finally:
        close = getattr(said, "aclose", None)
        if close is not None:
            await close()


async def answer(agents: Failover, given: tuple[Any, ...], context: Context) -> AsyncGenerator[Any, None]:
    """What the first agent gives that can answer. One that breaks off in its words is asked again, or the next one is: the
    answer then begins anew. One that has called a tool is not: it would act twice.

    Args:
        agents: the session's handle of them.
        given: text, history and session.
        context: the session's.

    Raises:
        ProviderError: none could, or one failed in the middle of its answer.
    """
    failures: Counter[int] = Counter()
    error: ProviderError | None = None
    broken_off = acted = False
    while True:
        call = await agents.duty.enter(failures, error, again=not broken_off)  # rather the next than twice the same words
        engine, begun = agents.duty.engine, False
        try:
            with call:
                async with aclosing(_asked(agents, engine, call, given, context)) as said:
                    async for part in said:
                        if broken_off and not begun and _counts(part):
                            yield ANEW
                        begun = begun or _counts(part)
                        acted = acted or not isinstance(part, (str, TextDelta, Usage))
                        yield part
            return
        except Exception as caught:
            error = provider_error(caught, "agent", engine.name)
            if acted:
                raise error from caught.__cause__
        broken_off = broken_off or begun
        failures[agents.duty.at] += 1


async def _asked(
    agents: Failover, engine: Agent, call: Call, given: tuple[Any, ...], context: Context
) -> AsyncGenerator[Any, None]:
    """One agent's answer; its first words, or its first call of a tool, must come in time."""
    limit_ms = agents.resilience.first_words_timeout_ms if agents.watched else None
    begun = False
    handle: Agent = await _in_time(context.handle(engine), engine, limit_ms)
    async with aclosing(parts(handle.reply, given)) as said:
        while True:
            part = await _in_time(anext(said, END), engine, None if begun else limit_ms)
            if part is END:
                break
            if _counts(part) and not begun:
                begun = True
                call.succeeded()  # the answer begins; should it break off, that is another failure
            yield part
    if not begun and engine.account:
        raise ProtocolError(
            f"agent {engine.name!r} gave no words; expected an answer. Check its model, or name a stand-by",
            provider=engine.name,
            kind="agent",
        )


async def _in_time(waiting: Awaitable[Any], engine: Agent, limit_ms: float | None) -> Any:
    try:
        async with asyncio.timeout(None if limit_ms is None else limit_ms / 1000.0) as wait:
            return await waiting
    except TimeoutError:
        if wait.expired():
            raise _late(engine, limit_ms) from None
        raise


def _counts(part: Any) -> bool:
    """True for what nobody can take back: words, and calls of tools."""
    return part != "" and not isinstance(part, Usage)


def _late(engine: Agent, limit_ms: float | None) -> ProviderTimeoutError:
    return ProviderTimeoutError(
        f"agent {engine.name!r} gave no words within {limit_ms:g} ms; expected them sooner. Raise first_words_timeout_ms in "
        "[resilience], or name a stand-by",
        provider=engine.name,
        kind="agent",
    )


def arguments(function: Callable[..., Any], name: str) -> int:
    """How many arguments an agent's function takes: 2, or 3 with the session.

    Raises:
        TypeError: it is not async, or takes others.
    """
    plain = inspect.isroutine(function) or isinstance(function, functools.partial)
    called = function if plain else getattr(function, "__call__", function)  # noqa: B004
    if not (inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called)):
        raise TypeError(
            f"agent {name} is not async; write `async def {name}(text, history)`, or wrap blocking work in "
            "`await asyncio.to_thread(...)` inside one"
        )
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):
        return 2
    for count in (3, 2):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return count
    raise TypeError(f"agent {name}{signature} takes other arguments; expected (text, history) or (text, history, session)")
