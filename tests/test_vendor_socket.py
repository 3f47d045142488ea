"""Sockets to vendors: what they trust, where they take a key, how long they wait; in simulated time."""

from __future__ import annotations

import asyncio
import ssl

import pytest
import websockets

from beluga_voice.clock import Clock, run_simulated
from beluga_voice.errors import ProtocolError
from beluga_voice.failures import failure, websocket_failures
from beluga_voice.testing.loopback import Answer, LoopbackServer, Sickness
from beluga_voice.vendor_socket import open_socket, tls_context

from .certificates import trusted, untrusted
from .loopback_proxy import LoopbackProxy, no_proxies

KEY = {"authorization": "Token canary-key-4711"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No proxy but those that a test names."""
    no_proxies(monkeypatch)


class Echo(LoopbackServer):
    """Repeats what it hears; sends its callers to `elsewhere`, where that is set."""

    elsewhere = ""

    async def greet(self, request):
        return Answer(301, {"location": self.elsewhere}) if self.elsewhere else None

    async def converse(self, socket):
        async for message in socket:
            await socket.send(message)


def ws(server):
    return server.url.replace("http", "ws", 1)


async def repeated(server):
    socket = await open_socket(ws(server), KEY)
    try:
        await socket.send("hello")
        return await socket.recv()
    finally:
        await socket.close()


class TestTrust:
    def test_a_server_whose_authority_is_named(self, monkeypatch, tmp_path):
        """SSL_CERT_FILE names it; what is said comes back."""

        async def main():
            async with trusted(Echo(), monkeypatch, tmp_path) as server:
                return await repeated(server)

        assert run_simulated(main()) == "hello"

    def test_a_server_nobody_vouches_for(self):
        """No key goes to it."""

        async def main():
            async with untrusted(Echo()) as server:
                with pytest.raises(ssl.SSLCertVerificationError):
                    await repeated(server)
                return server.requests

        assert run_simulated(main()) == []

    def test_all_sockets_share_one_context(self, monkeypatch, tmp_path):
        """A context of its own would cost each socket 0.8 MB."""

        async def main():
            async with trusted(Echo(), monkeypatch, tmp_path) as server:
                sockets = [await open_socket(ws(server)) for _ in range(3)]
                used = {id(socket.transport.get_extra_info("sslcontext")) for socket in sockets}
                await asyncio.gather(*(socket.close() for socket in sockets))
                return used

        assert len(run_simulated(main())) == 1

    def test_another_authority_is_another_context(self, monkeypatch, tmp_path):
        """Who changes the variable while the process runs gets what it names then."""
        before = tls_context()

        async def main():
            async with trusted(Echo(), monkeypatch, tmp_path) as server:
                return await repeated(server)

        assert run_simulated(main()) == "hello"
        assert tls_context() is not before


class TestTheKey:
    def test_it_follows_no_redirect(self):
        """A server that sends elsewhere is told of as a refusal; nobody elsewhere sees the key."""

        async def main():
            async with Echo() as other, Echo() as server:
                server.elsewhere = ws(other)
                with pytest.raises(websockets.InvalidStatus, match="301"):
                    await repeated(server)
                return other.requests

        assert run_simulated(main()) == []


class TestTime:
    @pytest.mark.parametrize("timeout_ms", [100.0, 3_000.0])
    def test_a_handshake_that_hangs(self, timeout_ms):
        """It is given up in time, and nothing stays open."""
        clock = Clock()

        async def main():
            async with Echo() as server:
                server.sick = Sickness("hang")
                before_ms = clock.now_ms()
                with pytest.raises(TimeoutError, match=f"within {timeout_ms:g} ms"):
                    await open_socket(ws(server), timeout_ms=timeout_ms)
                took_ms = clock.now_ms() - before_ms
                await clock.sleep_ms(10)
                return took_ms, server.open_connections

        took_ms, left = run_simulated(main())
        assert took_ms == pytest.approx(timeout_ms, abs=5)
        assert left == 0

    def test_cancelled_while_it_opens(self):
        """Nothing stays open."""
        clock = Clock()

        async def main():
            async with Echo() as server:
                server.sick = Sickness("hang")
                opening = asyncio.create_task(open_socket(ws(server)))
                await clock.sleep_ms(50)
                opening.cancel()
                await asyncio.wait([opening])
                await clock.sleep_ms(10)
                return server.open_connections

        assert run_simulated(main()) == 0

    def test_a_message_over_the_cap(self):
        """It ends the connection, before it is kept; trying again would not help."""

        async def main():
            async with Echo() as server:
                socket = await open_socket(ws(server), max_bytes=100)
                await socket.send("x" * 101)
                with pytest.raises(websockets.ConnectionClosed) as caught:
                    await socket.recv()
                return caught.value

        closed = run_simulated(main())
        told = failure(closed, websocket_failures(), provider="acme", kind="stt")
        assert closed.sent.code == 1009
        assert isinstance(told, ProtocolError)
        assert "larger than is taken" in str(told)


class TestTheProxy:
    @pytest.mark.parametrize("secure", [True, False])
    @pytest.mark.parametrize("variable", ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
    def test_is_the_one_that_the_environment_names(self, variable, secure, monkeypatch, tmp_path):
        """That of requests to the same host. It makes a tunnel in any case, and sees no key."""

        async def main():
            made = trusted(Echo(), monkeypatch, tmp_path) if secure else Echo()
            async with made as server, LoopbackProxy() as proxy:
                monkeypatch.setenv(variable, proxy.url)
                assert await repeated(server) == "hello"
                by_it = proxy.asked == [f"CONNECT {server.url.partition('//')[2]}"]
                assert by_it or proxy.asked == []
                return by_it, b"".join(proxy.headers)

        by_it, seen = run_simulated(main())
        assert by_it is (variable != ("HTTP_PROXY" if secure else "HTTPS_PROXY"))
        assert b"canary" not in seen

    def test_is_not_used_where_it_is_not_wanted(self, monkeypatch):
        """NO_PROXY says so."""

        async def main():
            async with Echo() as server, LoopbackProxy() as proxy:
                monkeypatch.setenv("ALL_PROXY", proxy.url)
                monkeypatch.setenv("NO_PROXY", "127.0.0.1")
                await repeated(server)
                return proxy.asked

        assert run_simulated(main()) == []

    @pytest.mark.parametrize("ends", ["by itself", "cancelled"])
    def test_leads_to_a_server_that_hangs(self, ends, monkeypatch, tmp_path):
        """No connection is kept, whether the time is over, or nobody wants the socket any more."""
        clock = Clock()

        async def main():
            async with trusted(Echo(), monkeypatch, tmp_path) as server, LoopbackProxy() as proxy:
                monkeypatch.setenv("HTTPS_PROXY", proxy.url)
                server.sick = Sickness("hang")
                opening = asyncio.create_task(open_socket(ws(server)))
                await clock.sleep_ms(1_000 if ends == "cancelled" else 10_000)
                opening.cancel()
                await asyncio.wait([opening])
                assert opening.cancelled() or isinstance(opening.exception(), TimeoutError)
                await clock.sleep_ms(10)
                return server.open_connections, proxy.open_connections

        assert run_simulated(main()) == (0, 0)

    def test_that_answers_nothing(self, monkeypatch):
        """It is given up in time."""
        clock = Clock()

        async def main():
            async with Echo() as server, LoopbackProxy() as proxy:
                monkeypatch.setenv("HTTP_PROXY", proxy.url)
                proxy.silent = True
                with pytest.raises(TimeoutError):
                    await open_socket(ws(server), timeout_ms=1_000.0)
                return clock.now_ms()

        assert run_simulated(main()) == pytest.approx(1_000, abs=5)

    def test_that_breaks_the_tunnel(self, monkeypatch, tmp_path):
        """It is a failed connection, and nothing else is said of it: `websockets` has the loop print a traceback."""
        said = []

        async def main():
            asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
            async with trusted(Echo(), monkeypatch, tmp_path) as server, LoopbackProxy() as proxy:
                monkeypatch.setenv("HTTPS_PROXY", proxy.url)
                proxy.breaks = True
                with pytest.raises(ConnectionResetError):
                    await open_socket(ws(server))
                await asyncio.sleep(0.01)

        run_simulated(main())
        assert said == []
