"""Requests cancelled at any moment, by whatever way they go, leave no connection behind, and none that counts as busy."""

from __future__ import annotations

import asyncio
import gc
from contextlib import AsyncExitStack

import httpx
import httpx2
import pytest

from beluga_voice.cancelling import cancellable_transport
from beluga_voice.clock import Clock, run_simulated
from beluga_voice.testing.loopback import Answer, LoopbackServer, Sickness

from .certificates import trusted, untrusted
from .loopback_proxy import LoopbackProxy, no_proxies

MOMENTS = 60  # steps of the loop; a whole request takes fewer
WAYS = ["http", "https", "http by proxy", "https by proxy"]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No proxy but those that a test names."""
    no_proxies(monkeypatch)


class Server(LoopbackServer):
    async def answer(self, request):
        async def body():
            for _ in range(5):
                yield b"x" * 1_000
                await asyncio.sleep(0)

        return Answer(200, {}, body())


async def ask(client):
    async with client.stream("GET", "/", headers={"xi-api-key": "canary"}) as answer:
        return len(b"".join([piece async for piece in answer.aiter_bytes()]))


def client_of(server, keep=0, library=httpx):
    limits = library.Limits(max_connections=1, max_keepalive_connections=keep)
    transport = cancellable_transport(library, url=server.url, limits=limits)
    return library.AsyncClient(base_url=server.url, transport=transport, timeout=5)


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_who_is_cancelled_twice_leaves_nothing_to_log(library):
    """In mid-answer, and again while the first cancelling is under way."""
    logged = []

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, told: logged.append(told["message"]))
        for moments in range(4):
            async with Server() as server, client_of(server, library=library) as client:
                server.sick = Sickness("hang", after=1_000)
                asking = asyncio.create_task(ask(client))
                await Clock().sleep_ms(100)
                asking.cancel()
                for _ in range(moments):
                    await asyncio.sleep(0)
                asking.cancel()
                await asyncio.wait([asking])
                await Clock().sleep_ms(100)
            gc.collect()

    run_simulated(main())
    assert logged == []


@pytest.mark.parametrize("keep", [0, 1], ids=["new connections", "a kept connection"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_the_next_request_has_its_connection(library, way, keep, monkeypatch, tmp_path):
    async def main():
        async with AsyncExitStack() as stack:
            made = trusted(Server(), monkeypatch, tmp_path) if way.startswith("https") else Server()
            server, proxy = await stack.enter_async_context(made), await stack.enter_async_context(LoopbackProxy())
            if "proxy" in way:
                monkeypatch.setenv("ALL_PROXY", proxy.url)
            client = await stack.enter_async_context(client_of(server, keep, library))
            cancelled = 0
            for moment in range(MOMENTS):
                asking = asyncio.create_task(ask(client))
                for _ in range(moment):
                    await asyncio.sleep(0)
                asking.cancel()
                await asyncio.wait([asking])
                cancelled += asking.cancelled()
                await asyncio.sleep(0.01)
                assert server.open_connections <= keep, f"after a request that was cancelled at step {moment}"
                assert proxy.open_connections <= keep
                assert await ask(client) == 5_000, f"after a request that was cancelled at step {moment}"
                await asyncio.sleep(0.01)
                assert server.open_connections <= keep
            assert bool(proxy.asked) == ("proxy" in way)
            await client.aclose()
            await asyncio.sleep(0.01)
            left = server.open_connections, proxy.open_connections
        await asyncio.sleep(0.01)
        return cancelled, left, len(asyncio.all_tasks())

    cancelled, left, tasks = run_simulated(main())
    assert cancelled >= 10
    assert (left, tasks) == ((0, 0), 1)


def test_requests_that_want_the_same_kept_connection():
    """`httpcore` gives it to several that come at once, and all but one have to look for another."""

    async def main():
        async with Server() as server:
            transport = cancellable_transport(httpx, url=server.url)
            async with httpx.AsyncClient(base_url=server.url, transport=transport) as client:
                await ask(client)
                return await asyncio.gather(*(ask(client) for _ in range(5)))

    assert run_simulated(main()) == [5_000] * 5


@pytest.mark.parametrize("hangs", ["the proxy", "the server"])
def test_a_tunnel_that_hangs_can_be_left_at_once(hangs, monkeypatch, tmp_path):
    """And is not counted as a connection any more."""
    clock = Clock()

    async def main():
        async with trusted(Server(), monkeypatch, tmp_path) as server, LoopbackProxy() as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            proxy.silent = hangs == "the proxy"
            server.sick = Sickness("hang")
            async with client_of(server) as client:
                asking = asyncio.create_task(ask(client))
                await clock.sleep_ms(1_000)
                began_ms = clock.now_ms()
                asking.cancel()
                await asyncio.wait([asking])
                took_ms = clock.now_ms() - began_ms
                await clock.sleep_ms(10)
                left = server.open_connections, proxy.open_connections
                proxy.silent, server.sick = False, None
                return took_ms, left, await ask(client)

    took_ms, left, got = run_simulated(main())
    assert took_ms < 10
    assert left == (0, 0)
    assert got == 5_000


@pytest.mark.parametrize("way", ["https", "https by proxy"])
def test_a_certificate_nobody_trusts_takes_no_place(way, monkeypatch):
    """The only connection allowed is there for the next request; no key goes to that server."""

    async def main():
        async with untrusted(Server()) as server, LoopbackProxy() as proxy:
            if "proxy" in way:
                monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            async with client_of(server) as client:
                for _ in range(3):
                    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                        await ask(client)
                await asyncio.sleep(0.01)
                return server.requests, server.open_connections, proxy.open_connections

    assert run_simulated(main()) == ([], 0, 0)


class TestTheProxy:
    @pytest.mark.parametrize(
        ("variables", "used"),
        [
            ({}, False),
            ({"HTTP_PROXY": "{}"}, True),
            ({"http_proxy": "{}"}, True),
            ({"ALL_PROXY": "{}"}, True),
            ({"HTTPS_PROXY": "{}"}, False),
            ({"ALL_PROXY": "{}", "NO_PROXY": "localhost,127.0.0.1"}, False),
            ({"ALL_PROXY": "{}", "no_proxy": "*"}, False),
            ({"ALL_PROXY": "{}", "NO_PROXY": "example.com"}, True),
        ],
    )
    def test_is_the_one_that_the_environment_names_for_that_address(self, variables, used, monkeypatch):
        """With or without a scheme before it."""

        async def main(scheme):
            async with Server() as server, LoopbackProxy() as proxy:
                for name, value in variables.items():
                    monkeypatch.setenv(name, value.format(scheme + proxy.url.removeprefix("http://")))
                async with client_of(server) as client:
                    await ask(client)
                return proxy.asked == [f"GET {server.url}/"]

        assert run_simulated(main("http://")) is run_simulated(main("")) is used

    def test_of_a_tunnel_sees_no_key(self, monkeypatch, tmp_path):
        """It is told which host to reach, and no more."""

        async def main():
            async with trusted(Server(), monkeypatch, tmp_path) as server, LoopbackProxy() as proxy:
                monkeypatch.setenv("HTTPS_PROXY", proxy.url)
                async with client_of(server) as client:
                    await ask(client)
                assert proxy.asked == [f"CONNECT {server.url.removeprefix('https://')}"]
                return b"".join(proxy.headers), server.requests[0].headers["xi-api-key"]

        seen, key = run_simulated(main())
        assert b"canary" not in seen
        assert key == "canary"

    def test_that_refuses_is_told_of(self, monkeypatch, tmp_path):
        """And takes no place either."""

        async def main():
            async with trusted(Server(), monkeypatch, tmp_path) as server, LoopbackProxy() as proxy:
                monkeypatch.setenv("HTTPS_PROXY", proxy.url)
                async with client_of(server) as client:
                    proxy.status = 403
                    for _ in range(3):
                        with pytest.raises(httpx.ProxyError, match="403"):
                            await ask(client)
                    proxy.status = 200
                    return await ask(client)

        assert run_simulated(main()) == 5_000
