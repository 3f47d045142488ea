"""Requests that are cancelled at any moment leave no connection behind, and none that counts as busy."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from beluga_voice.cancelling import cancellable_transport
from beluga_voice.clock import run_simulated
from beluga_voice.testing.loopback import Answer, LoopbackServer

MOMENTS = 60  # steps of the loop; a whole request takes fewer


class Server(LoopbackServer):
    async def answer(self, request):
        async def body():
            for _ in range(5):
                yield b"x" * 1_000
                await asyncio.sleep(0)

        return Answer(200, {}, body())


async def ask(client):
    async with client.stream("GET", "/") as answer:
        return len(b"".join([piece async for piece in answer.aiter_bytes()]))


@pytest.mark.parametrize("keep", [0, 1], ids=["new connections", "a kept connection"])
def test_the_next_request_has_its_connection(keep):
    async def main():
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=keep)
        async with (
            Server() as server,
            httpx.AsyncClient(base_url=server.url, transport=cancellable_transport(httpx, limits=limits), timeout=5) as client,
        ):
            cancelled = 0
            for moment in range(MOMENTS):
                asking = asyncio.create_task(ask(client))
                for _ in range(moment):
                    await asyncio.sleep(0)
                asking.cancel()
                await asyncio.wait([asking])
                cancelled += asking.cancelled()
                assert await ask(client) == 5_000, f"after a request that was cancelled at step {moment}"
                await asyncio.sleep(0.01)
                assert server.open_connections <= keep
        await asyncio.sleep(0.01)
        return cancelled, server.open_connections, len(asyncio.all_tasks())

    cancelled, connections, tasks = run_simulated(main())
    assert cancelled >= 10
    assert (connections, tasks) == (0, 1)
