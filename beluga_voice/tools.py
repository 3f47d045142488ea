"""Tools: async functions that a model may call while it makes a reply.

>>> @tool(timeout_ms=5_000, on_interrupt="cancel")
... async def weather(city: str) -> str:
...     '''The weather of a city, now.'''
...     return f"Sunny in {city}."
>>> async def main():
...     toolbox = Toolbox([weather])
...     return [frame async for frame in toolbox.use(None, [ToolCall("c1", "weather", '{"city": "Oslo"}')])]
>>> asyncio.run(main())[-1]
ToolReturned(call_id='c1', result='Sunny in Oslo.', error='')

A tool runs in a task of the session, not of the reply: when the caller interrupts, a tool that should "finish" does, and what
it gave is in the history; one that may be cancelled is. Whatever goes wrong is told to the model, in words, and logged.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any

import attrs

from . import _parameters, imports
from ._parameters import Parameter
from .frames import ToolCalled, ToolReturned
from .tool_runs import MOST_TEXT, TIMEOUT_MS, OnInterrupt, ToolRun, ToolRuns

__all__ = ["NO_RESULT", "Tool", "ToolCall", "Toolbox", "as_text", "paired", "plain_name", "tool"]

NO_RESULT = "no result yet"
LONGEST_NAME = 64


# --- what a tool is --------------------------------------------------------------------------------------------------


@attrs.frozen
class ToolCall:
    """A call as a model asks for it: `arguments` as JSON, or read from it."""

    call_id: str
    name: str
    arguments: str | Mapping[str, Any] = "{}"


@attrs.frozen
class Tool:
    """A function that a model may call. Made by `tool`; calling it calls the function.

    Attributes:
        name: what the model calls it.
        description: what it is for, in the model's eyes.
        parameters: the JSON schema of its arguments.
        function: what is called.
        timeout_ms: how long a call may take.
        on_interrupt: whether a call goes on to its end when the reply is cut ("finish"), or not ("cancel").
    """

    name: str
    description: str
    parameters: Mapping[str, Any] = attrs.field(repr=False)
    function: Callable[..., Awaitable[Any]] = attrs.field(repr=False)
    timeout_ms: float = TIMEOUT_MS
    on_interrupt: OnInterrupt = "finish"
    _told: tuple[Parameter, ...] = attrs.field(default=(), repr=False, alias="told")
    _wants_session: bool = attrs.field(default=False, repr=False, alias="wants_session")

    def __call__(self, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        """Call the function."""
        return self.function(*args, **kwargs)

    def check(self, arguments: str | Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as the function takes them.

        Raises:
            ValueError: they are not JSON, too long, or do not fit; the message is for the model.
        """
        return _parameters.checked(self._told, _read(arguments))

    def call(self, arguments: Mapping[str, Any], session: Any) -> Awaitable[Any]:
        """Call the function with checked `arguments`, and with the session if it wants it."""
        given = {_parameters.SESSION: session} if self._wants_session else {}
        return self.function(**arguments, **given)


def tool(
    function: Callable[..., Awaitable[Any]] | None = None,
    *,
    timeout_ms: float = TIMEOUT_MS,
    on_interrupt: OnInterrupt = "finish",
    name: str = "",
    description: str = "",
) -> Any:
    """Make an async function a tool: `@tool`, or `@tool(timeout_ms=2_000)`.

    Its parameters' types and its docstring tell the model how to call it; a parameter called `session` is given the session,
    and the model does not see it. What the function returns is text, or values that JSON has. To tell the model what went
    wrong, raise `ToolError`; of any other exception the model learns only that there was one.

    Args:
        function: the function.
        timeout_ms: how long a call may take; then it is cancelled, and the model is told.
        on_interrupt: "finish" (what it changes in the world is wanted), or "cancel" (nothing is lost with it).
        name: another name than the function's.
        description: another description than the first paragraph of the docstring.

    Raises:
        TypeError: the function is not async, or a parameter's type cannot be told.
        ValueError: an option does not fit.
    """
    if function is None:
        return functools.partial(
            tool, timeout_ms=timeout_ms, on_interrupt=on_interrupt, name=name, description=description
        )
    called = name or getattr(function, "__name__", "")
    if not called or called != plain_name(called):
        raise ValueError(f"tool {called or function!r}: expected a name of 1 to 64 letters, digits, _ or -; give name=")
    if not inspect.iscoroutinefunction(function):
        raise TypeError(
            f"tool {called} is not async; write `async def {called}(...)`, or wrap blocking work in "
            "`await asyncio.to_thread(...)` inside one"
        )
    if not timeout_ms > 0:
        raise ValueError(f"tool {called}: timeout_ms is {timeout_ms!r}; expected more than 0")
    if on_interrupt not in ("finish", "cancel"):
        raise ValueError(f'tool {called}: on_interrupt is {on_interrupt!r}; expected "finish" or "cancel"')
    told = _parameters.parameters(function)
    return Tool(
        called,
        description or _parameters.description(function),
        _parameters.schema(told),
        function,
        timeout_ms,
        on_interrupt,
        told=told,
        wants_session=_parameters.SESSION in inspect.signature(function).parameters,
    )


def _read(arguments: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """Arguments from their JSON, or as they are."""
    text: str | None = arguments if isinstance(arguments, str) else None
    try:
        read = json.loads(text or "{}", parse_constant=_refuse) if text is not None else arguments
        length = len(text if text is not None else json.dumps(read, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the arguments are not JSON ({str(error)[:100]}); expected an object") from None
    if length > MOST_TEXT:
        raise ValueError(f"the arguments have {length} characters; expected at most {MOST_TEXT}")
    if not isinstance(read, Mapping):
        raise ValueError(f"the arguments are a {type(read).__name__}; expected an object")
    return read


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


# --- several of them -------------------------------------------------------------------------------------------------


class Toolbox:
    """The tools of an agent.

    Args:
        tools: `Tool` objects, async functions, or names to import: "module:attribute".

    Raises:
        ConfigError: a name cannot be imported.
        TypeError: one is no async function, or a parameter's type cannot be told.
        ValueError: two have the same name.
    """

    def __init__(self, tools: Iterable[Tool | Callable[..., Awaitable[Any]] | str] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        for one in tools:
            found = imports.load(one, []) if isinstance(one, str) else one
            if not isinstance(found, Tool) and not callable(found):
                raise TypeError(f"tool {one!r} is a {type(found).__name__}; expected an async function")
            made: Tool = found if isinstance(found, Tool) else tool(found)
            if made.name in self._tools:
                raise ValueError(f"two tools are called {made.name!r}; give one another name: @tool(name=...)")
            self._tools[made.name] = made

    def __len__(self) -> int:
        return len(self._tools)

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools, in order."""
        return tuple(self._tools.values())

    @property
    def specs(self) -> list[dict[str, Any]]:
        """`name`, `description` and `parameters` (a JSON schema) of each, as models are told."""
        return [
            {"name": one.name, "description": one.description, "parameters": dict(one.parameters)}
            for one in self._tools.values()
        ]

    def find(self, name: str) -> Tool | None:
        """The tool of that name, if there is one."""
        return self._tools.get(name)

    def check(self, name: str, arguments: str | Mapping[str, Any]) -> tuple[Tool, dict[str, Any]]:
        """The tool of that name, and the arguments as it takes them.

        Raises:
            ValueError: there is none, or they do not fit; the message is for the model.
        """
        found = self._tools.get(name)
        if found is None:
            raise ValueError(f"there is no tool {name[:80]!r}; expected one of: {', '.join(self._tools) or 'none'}")
        return found, found.check(arguments)

    async def use(
        self, session: Any, calls: Iterable[ToolCall | ToolCalled]
    ) -> AsyncIterator[ToolCalled | ToolReturned]:
        """Run the calls side by side; gives a `ToolCalled` for each, then each `ToolReturned` as it comes.

        Closing this iterator, or cancelling who waits for it, is an interruption: see `on_interrupt`. It never raises for
        what a tool does: unknown tools, arguments that do not fit, failures and time-outs are a `ToolReturned` with `error`.

        Args:
            session: the session that owns the calls, as an agent is given it; None: they end with this iterator.
            calls: what the model asks for.
        """
        owner = getattr(session, "tool_runs", None)
        runs: ToolRuns = owner or ToolRuns()
        begun: list[ToolRun] = []
        try:
            for call in calls:
                begun.append(self._begin(runs, session, call))
                yield begun[-1].called
            waiting = {run.returned for run in begun}
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for run in begun:
                    if run.returned in done:
                        yield run.returned.result()
        finally:
            for run in begun:
                run.leave()
            if owner is None:
                await runs.aclose()

    def _begin(self, runs: ToolRuns, session: Any, call: ToolCall | ToolCalled) -> ToolRun:
        try:
            read = dict(_read(call.arguments))
        except ValueError as error:
            return runs.refuse(ToolCalled(call.call_id, call.name), str(error))
        called = call if isinstance(call, ToolCalled) else ToolCalled(call.call_id, call.name, read)
        try:
            found, arguments = self.check(call.name, read)
        except ValueError as error:
            return runs.refuse(called, str(error))
        work = functools.partial(found.call, arguments, session)
        return runs.begin(called, work, timeout_ms=found.timeout_ms, on_interrupt=found.on_interrupt)


# --- what a model is told --------------------------------------------------------------------------------------------


def as_text(returned: ToolReturned) -> str:
    """What a model is told of a result: text as it is, anything else as JSON; a failure as "error: ...".

    >>> as_text(ToolReturned("c1", {"degrees": 21}))
    '{"degrees": 21}'
    """
    if returned.error:
        return f"error: {returned.error}"
    return returned.result if isinstance(returned.result, str) else json.dumps(returned.result, ensure_ascii=False, default=str)


def plain_name(name: str) -> str:
    """The name of a tool that was called, in signs that every model takes: one that a model made up may have others.

    >>> plain_name("functions.weather")
    'functions_weather'
    """
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:LONGEST_NAME] or "_"


def paired(tool_calls: Iterable[Any]) -> list[tuple[ToolCalled, ToolReturned]]:
    """The calls of a message (`message.tool_calls`), each with what it gave; a call that goes on has "no result yet".

    >>> paired((ToolCalled("c1", "book"),))[0][1].error
    'no result yet'
    """
    frames = list(tool_calls)
    returned = [frame for frame in frames if isinstance(frame, ToolReturned)]
    pairs = []
    for called in frames:
        if isinstance(called, ToolCalled):
            answer = next((one for one in returned if one.call_id == called.call_id), None)
            if answer is not None:
                returned.remove(answer)
            called = attrs.evolve(called, name=plain_name(called.name))
            pairs.append((called, answer or ToolReturned(called.call_id, error=NO_RESULT)))
    return pairs
