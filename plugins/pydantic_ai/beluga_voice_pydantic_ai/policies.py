"""Tools as a session wants them: each call in a task that the session owns, for a bounded time, told as it happens.

A capability of pydantic-ai: whatever toolset a tool is of, an MCP server's too, its call comes through here.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from pydantic_ai import ModelRetry, RunContext, ToolFailed, ToolReturn
from pydantic_ai import Tool as PydanticTool
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import (
    ApprovalRequired,
    CallDeferred,
    RunCancelled,
    SkipToolExecution,
    ToolFailedError,
    ToolRetryError,
    UsageLimitExceeded,
)
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.tools import ToolDefinition
from pydantic_core import to_jsonable_python

from beluga_voice.errors import ToolError
from beluga_voice.frames import ToolCalled, ToolReturned
from beluga_voice.tool_runs import OnInterrupt, ToolRuns
from beluga_voice.tools import Tool

__all__ = ["SessionTools", "as_pydantic_tool"]

# What pydantic-ai itself acts upon; everything else a tool raises is a failure that the model is told of.
SIGNALS = (
    ModelRetry,
    ToolFailed,
    ToolFailedError,
    ToolRetryError,
    CallDeferred,
    ApprovalRequired,
    SkipToolExecution,
    UsageLimitExceeded,
    RunCancelled,
)


class SessionTools(AbstractCapability[Any]):
    """Runs the tool calls of one reply.

    A tool's own `metadata` says more of it: `metadata={"timeout_ms": 2_000, "on_interrupt": "cancel"}`.

    Args:
        runs: the session's tool calls.
        timeout_ms: how long a call may take.
        on_interrupt: what becomes of a call when the reply is cut.
    """

    def __init__(self, runs: ToolRuns, timeout_ms: float, on_interrupt: OnInterrupt) -> None:
        self._runs, self._timeout_ms, self._on_interrupt = runs, timeout_ms, on_interrupt
        self._called: dict[str, ToolCalled] = {}
        self._returned: dict[str, ToolReturned] = {}

    def called(self, part: ToolCallPart) -> ToolCalled:
        """The call as our frame: the same one each time."""
        if part.tool_call_id not in self._called:
            try:
                arguments = part.args_as_dict(raise_if_invalid=True)
            except (ValueError, AssertionError):
                arguments = {}  # pydantic-ai tells the model
            self._called[part.tool_call_id] = ToolCalled(part.tool_call_id, part.tool_name, arguments)
        return self._called[part.tool_call_id]

    def returned(self, part: Any) -> ToolReturned:
        """What the call gave, as our frame; the same one that the session was told, if it was made at all."""
        done = self._returned.get(part.tool_call_id)
        if done is not None:
            return done
        told = getattr(part, "content", "")
        if getattr(part, "outcome", "") == "success":
            return ToolReturned(part.tool_call_id, _plain(told))
        return ToolReturned(part.tool_call_id, error=str(told)[:500] or "it was refused")

    async def wrap_tool_execute(
        self, ctx: RunContext[Any], *, call: ToolCallPart, tool_def: ToolDefinition, args: Any, handler: Any
    ) -> Any:
        """Run the call in a task of the session, and wait for it."""
        gave: list[Any] = []
        raised: list[Exception] = []

        async def work() -> Any:
            try:
                gave.append(await handler(args))
            except SIGNALS as signal:
                raised.append(signal)
                raise ToolError(str(signal)) from None
            return _plain(gave[0])

        told = tool_def.metadata or {}
        own_ms = None if tool_def.timeout is None else tool_def.timeout * 1000.0
        run = self._runs.begin(
            self.called(call),
            work,
            timeout_ms=told.get("timeout_ms", own_ms or self._timeout_ms),
            on_interrupt=told.get("on_interrupt", self._on_interrupt),
        )
        try:
            await asyncio.wait([run.returned])
        finally:
            run.leave()
        returned = self._returned[call.tool_call_id] = run.returned.result()
        if raised:
            raise raised[0]
        if returned.error:
            raise ToolFailed(returned.error)
        return gave[0]


def as_pydantic_tool(tool: Tool, session: Any) -> PydanticTool[Any]:
    """One of our tools as one of pydantic-ai's, for one reply."""

    async def call(**arguments: Any) -> Any:
        try:
            checked = tool.check(arguments)
        except ValueError as error:
            raise ModelRetry(str(error)) from None
        return await tool.call(checked, session)

    made = PydanticTool.from_schema(call, tool.name, tool.description, cast(Any, dict(tool.parameters)))
    made.metadata = {"timeout_ms": tool.timeout_ms, "on_interrupt": tool.on_interrupt}
    return made


def _plain(result: Any) -> Any:
    """A result as JSON values: models and dataclasses become objects."""
    if isinstance(result, ToolReturn):
        result = result.return_value
    return to_jsonable_python(result, fallback=str, serialize_unknown=True)
