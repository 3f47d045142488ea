"""What every agent must do, as checks that run against any of them.

In a plugin's tests, one test for each check:

    @pytest.mark.parametrize("check", CHECKS)
    def test_is_an_agent(check):
        asyncio.run(check_agent(lambda: agent.new("rules"), check))

>>> from beluga_voice import agent
>>> from beluga_voice.clock import run_simulated
>>> run_simulated(check_agent(lambda: agent.new("echo"), "it answers"))
{}
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs

from ..agent import Agent
from ..clock import Clock
from ..frames import EndCall, TextDelta, ToolCalled, ToolReturned, Usage
from ..history import Message
from . import engine_checks
from .checking import STOP_MS, Fault, Leftovers, NotApplicable, Trial, Use, expect, handle_of, in_time, run_checks

__all__ = ["CHECKS", "QUESTIONS_COST", "AskedSession", "check_agent"]

QUESTIONS_COST = 100  # how often a whole run asks, at most

HISTORY = (
    Message("user", "hello"),
    Message("assistant", "Hi there.", "Hi there."),
    Message("user", "and then"),
    Message("user", "are you there"),
    Message("assistant", "", "", (ToolCalled("c1", "clock", {"zone": "Europe/Paris"}), ToolReturned("c1", {"time": "12:00"}))),
    Message("assistant", "It is", "It is"),
    Message("user", "x" * 2_000),
    Message("assistant", "", "", (ToolCalled("c2", "clock"), ToolReturned("c2", None, "TimeoutError: no answer"))),
)


class AskedSession:
    """What an agent sees of a session, without one: it says nothing and ends nothing, and keeps what it was asked to."""

    def __init__(self) -> None:
        self.session_id, self.user_id = "check", ""
        self.metadata: dict[str, Any] = {}
        self.data: dict[str, Any] = {}
        self.clock = Clock()
        self.said: list[str] = []
        self.ended = False

    async def say(self, text: str, **_: Any) -> None:
        """Keep what is to be said."""
        self.said.append(text)

    async def end(self, text: str = "", **_: Any) -> None:
        """Keep that the call is to end."""
        self.ended = True


@attrs.frozen
class _Asking(Trial[Agent]):
    """An agent on trial."""

    question: str = attrs.field(kw_only=True)
    tool_question: str = attrs.field(kw_only=True)


async def check_agent(
    make: Callable[[], Agent],
    only: str = "",
    *,
    question: str = "What is two plus three?",
    tool_question: str = "",
    session: Callable[[], Any] = AskedSession,
    sick: Mapping[str, Fault] | None = None,
    canary: str = "",
) -> dict[str, str]:
    """Run all checks, or the one called `only`.

    Args:
        make: gives an agent; called anew for each check.
        only: a name of `CHECKS`.
        question: what it is asked.
        tool_question: what it is asked to make it call a tool.
        session: gives what it is told is the session, one a question.
        sick: faults of the server it talks to, by name: `faults_of(server)`, for one that calls a service.
        canary: its key, which must not be told anywhere.

    Returns:
        The checks that did not apply to it, and why.

    Raises:
        AssertionError: the agent breaks a promise; the message tells which.
    """

    async def reply(engine: Agent, size: int) -> str:
        history = HISTORY if size == 2 else ()
        async with handle_of(engine) as handle:
            return _text(await _parts(handle, question if size else "hello", history, session()))

    uses: dict[str, Use] = {"reply": reply}
    trial = _Asking(make, uses, sick=sick or {}, canary=canary, question=question, tool_question=tool_question)
    return await run_checks(CHECKS, trial, only)


async def _parts(agent: Agent, text: str, history: tuple[Any, ...], session: Any, most: int = 0) -> list[Any]:
    """What an agent gives; with `most`, it is closed after so many parts."""
    said = _called(agent, text, history, session)
    if inspect.isawaitable(said):
        said = await said
    if not hasattr(said, "__aiter__"):
        return [] if said in (None, "") else [said]
    parts: list[Any] = []
    try:
        async for part in said:
            parts.append(part)
            if len(parts) == most:
                break
    finally:
        if hasattr(said, "aclose"):
            await said.aclose()
    return parts


def _called(agent: Agent, text: str, history: tuple[Any, ...], session: Any) -> Any:
    try:
        inspect.signature(agent.reply).bind(text, history, session)
    except TypeError:
        return agent.reply(text, history)  # type: ignore[call-arg]
    return agent.reply(text, history, session)


def _text(parts: list[Any]) -> str:
    texts = (part if isinstance(part, str) else getattr(part, "text", "") for part in parts)
    return "".join(texts)


# --- checks ----------------------------------------------------------------------------------------------------------


async def _it_answers(trial: _Asking) -> None:
    async with trial.make() as engine, handle_of(engine) as handle:
        parts = await in_time(_parts(handle, trial.question, (), AskedSession()), "the end of a reply")
        expect(_text(parts).strip(), f"asked {trial.question!r} it gives {parts!r}; expected text to say")
        for part in parts:
            known = isinstance(part, (str, TextDelta, ToolCalled, ToolReturned, EndCall, Usage))
            expect(known, f"it gives {type(part).__name__} {part!r}; expected str, ToolCalled, ToolReturned, EndCall or Usage")


async def _it_takes_any_history(trial: _Asking) -> None:
    async with trial.make() as engine, handle_of(engine) as handle:
        for count in range(len(HISTORY) + 1):
            history = HISTORY[:count]
            parts = await in_time(_parts(handle, trial.question, history, AskedSession()), "the end of a reply")
            expect(_text(parts).strip(), f"after {count} messages it gives {parts!r}; expected text to say")
            expect(history == HISTORY[:count], "it changes the history it was given; only the session writes it")
        parts = await in_time(_parts(handle, trial.question, HISTORY * 25, AskedSession()), "the end of a reply")
        expect(_text(parts).strip(), f"after {len(HISTORY) * 25} messages it gives {parts!r}; expected text to say")


async def _closing_the_reply_stops_it(trial: _Asking) -> None:
    async with trial.make() as engine, handle_of(engine) as handle:
        await trial.use(engine, 1)
        before = Leftovers(threads=False)
        for most in (1, 2):
            await in_time(
                _parts(handle, trial.question, (), AskedSession(), most), "the end of a reply that was closed", STOP_MS * 10
            )
            await before.expect_no_more(f"a reply was closed after {most} part(s)")
        unread = _called(handle, trial.question, (), AskedSession())
        await in_time(unread.aclose(), "the end of aclose of a reply nobody read", STOP_MS) if hasattr(
            unread, "aclose"
        ) else unread.close()
        await before.expect_no_more("a reply was closed unread")


async def _tools_are_answered(trial: _Asking) -> None:
    async with trial.make() as engine, handle_of(engine) as handle:
        if not engine.capabilities.tools:
            raise NotApplicable("it claims no tools")
        if not trial.tool_question:
            raise NotApplicable("no question is given that makes it call a tool")
        parts = await in_time(_parts(handle, trial.tool_question, (), AskedSession()), "the end of a reply with a tool")
    calls = [part.call_id for part in parts if isinstance(part, ToolCalled)]
    expect(calls, f"it claims tools; asked {trial.tool_question!r} it calls none: {parts!r}")
    expect(len(set(calls)) == len(calls), f"two tool calls have one call_id: {calls}")
    open_calls: list[str] = []
    for part in parts:
        if isinstance(part, ToolCalled):
            open_calls.append(part.call_id)
        elif isinstance(part, ToolReturned):
            expect(part.call_id in open_calls, f"{part!r} answers no call before it")
            open_calls.remove(part.call_id)
    expect(not open_calls, f"the tool calls {open_calls} have no ToolReturned")
    last = max(at for at, part in enumerate(parts) if isinstance(part, ToolReturned))
    expect(_text(parts[last:]).strip(), "it says nothing after its tools have returned")


CHECKS: dict[str, Callable[[Any], Awaitable[None]]] = {
    "it answers": _it_answers,
    "it takes any history": _it_takes_any_history,
    "closing the reply stops it": _closing_the_reply_stops_it,
    "tools are answered": _tools_are_answered,
    **engine_checks.CHECKS,
    **engine_checks.SERVICE_CHECKS,
}
