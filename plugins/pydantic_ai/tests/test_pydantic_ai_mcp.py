"""Tools of an MCP server, which is a process of its own: in real time, as simulated time does not wait for processes."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest
from fastmcp.client.transports import StdioTransport
from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.messages import ToolReturnPart
from pydantic_ai.models.function import DeltaToolCall, FunctionModel

from beluga_voice import agent, errors
from beluga_voice.engine import Context
from beluga_voice.frames import ToolCalled, ToolReturned

SERVER = '''
import asyncio, os, pathlib
from mcp.server import MCPServer

server = MCPServer("shop")

@server.tool()
async def price(item: str) -> str:
    """The price of an item."""
    return f"{item}: 3 euros, {os.getpid()}"

@server.tool()
async def order(item: str) -> str:
    """Order an item: takes until somebody says so."""
    while not pathlib.Path("go").exists():
        await asyncio.sleep(0.01)
    return f"{item} is ordered"

server.run("stdio")
'''


def asking(server, call, command=sys.executable):
    """An agent whose model calls one tool of the server, and says what it gave."""

    async def stream(messages, info):
        last = messages[-1].parts[-1]
        if isinstance(last, ToolReturnPart):
            yield str(last.content)
        else:
            yield {0: DeltaToolCall(name=call, json_args='{"item": "tea"}', tool_call_id="c1")}

    transport = StdioTransport(command, [str(server)], cwd=str(server.parent), keep_alive=False)
    return Agent(FunctionModel(stream_function=stream), toolsets=[MCPToolset(transport)])


@pytest.fixture
def server(tmp_path):
    file = tmp_path / "server.py"
    file.write_text(SERVER)
    return file


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_its_tools_are_called_and_it_runs_as_long_as_the_engine(server):
    """Started once, for all replies; ended with the engine."""

    async def main():
        said = []
        async with agent.new("pydantic_ai", agent=asking(server, "price")) as engine:
            for _ in range(2):
                parts = [part async for part in engine.reply("what is it", (), None)]
                assert [type(part) for part in parts[:1]] == [ToolCalled]
                said.append("".join(part for part in parts if isinstance(part, str)))
        return said

    first, second = asyncio.run(main())
    assert first.startswith("tea: 3 euros, ")
    assert first == second
    assert not is_running(int(first.rsplit(" ", 1)[1]))


def test_a_call_finishes_though_its_reply_was_cut(server):
    """The run that asked for it is over; the server is still there, and the session gets the result."""

    async def main():
        told = asyncio.Queue()
        async with agent.new("pydantic_ai", agent=asking(server, "order")) as engine, Context() as context:
            context.tool_runs.tell = told.put_nowait
            said = engine.reply("order it", (), context)
            called = await anext(said)
            begun = await told.get()
            await said.aclose()
            (server.parent / "go").touch()
            return called, begun, await told.get()

    called, begun, returned = asyncio.run(main())
    assert called is begun
    assert returned == ToolReturned("c1", "tea is ordered")


def test_one_that_does_not_start_fails_when_the_engine_is_entered(server):
    """Not in the first call of a caller."""

    async def main():
        async with agent.new("pydantic_ai", agent=asking(server, "price", "/nowhere/python")):
            pass

    with pytest.raises(errors.AgentError, match="agent 'pydantic_ai'"):
        asyncio.run(main())
