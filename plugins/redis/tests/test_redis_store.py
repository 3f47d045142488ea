"""The Redis store against a real server: what every store does, and what happens when the server fails."""

import asyncio
import logging
import subprocess
import sys
import traceback

import pytest

pytest.importorskip("redis", reason="redis-py is not installed: pip install 'redis>=8.1,<9'")

from beluga_voice_redis.store import RedisStore

from beluga_voice import store
from beluga_voice.errors import (
    AuthError,
    ConnectFailedError,
    InvalidRequestError,
    MissingKeyError,
    OptionError,
    OverloadedError,
    ProtocolError,
    ProviderTimeoutError,
)
from beluga_voice.testing.store_checks import CHECKS, check_store

LONG_MS = 60_000


@pytest.fixture(autouse=True)
def no_url_from_outside(monkeypatch):
    monkeypatch.delenv("REDIS_URL", raising=False)


@pytest.mark.parametrize("check", CHECKS)
def test_is_a_store(check, shared_server):
    """What every store must do."""
    asyncio.run(check_store(lambda: store.new("redis", url=shared_server.url), check))


def test_is_found_by_name_without_importing_its_client():
    """Listing the stores costs no import of redis-py."""
    script = (
        "import sys; from beluga_voice import store; told = store.describe('redis'); "
        "print('redis' in sys.modules, told.capabilities.shared, told.distribution)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["False", "True", "beluga-voice-redis"]


class TestKeys:
    def test_are_three_of_one_slot_and_each_ends_by_itself(self, shared_server):
        """Nothing stays in Redis for ever; what is there can be read by people."""

        async def main():
            async with RedisStore(url=shared_server.url) as sessions:
                claim = await sessions.claim("a b", lease_ms=15_000)
                await sessions.save("a b", claim.epoch, b"kept", ttl_ms=LONG_MS)
                await sessions.renew("a b", claim.epoch, lease_ms=15_000)
                client = sessions._client
                keys = sorted(await client.keys("voice:session:{a b}:*"))
                values = [await client.get(key) for key in keys]
                lives = [await client.pttl(key) for key in keys]
                return keys, values, lives, sessions.owner, claim.epoch

        keys, values, lives, owner, epoch = asyncio.run(main())
        assert keys == [b"voice:session:{a b}:epoch", b"voice:session:{a b}:own", b"voice:session:{a b}:state"]
        assert values == [str(epoch).encode(), owner.encode(), b"kept"]
        assert 0 < lives[1] <= 15_000
        assert 15_000 < lives[2] <= LONG_MS < lives[0] <= 600_000

    def test_of_two_prefixes_do_not_mix(self, shared_server):
        async def main():
            async with (
                RedisStore(url=shared_server.url, prefix="one:") as one,
                RedisStore(url=shared_server.url, prefix="two:") as two,
            ):
                claim = await one.claim("s", lease_ms=LONG_MS)
                await one.save("s", claim.epoch, b"1", ttl_ms=LONG_MS)
                return await two.get("s"), (await two.claim("s", lease_ms=LONG_MS)).state

        assert asyncio.run(main()) == (None, None)

    def test_deleting_leaves_nothing_of_the_state(self, shared_server):
        """Only a number stays, to fence owners that are late, and it ends by itself."""

        async def main():
            async with RedisStore(url=shared_server.url) as sessions:
                claim = await sessions.claim("gone", lease_ms=LONG_MS)
                await sessions.save("gone", claim.epoch, b"secret", ttl_ms=LONG_MS)
                await sessions.delete("gone", claim.epoch)
                keys = await sessions._client.keys("voice:session:{gone}:*")
                return keys, [await sessions._client.pttl(key) for key in keys]

        keys, lives = asyncio.run(main())
        assert keys == [b"voice:session:{gone}:epoch"]
        assert 0 < lives[0] <= 600_000


class TestFailingServer:
    def test_frozen_is_a_timeout_and_thawed_goes_on(self, own_server):
        """Nobody waits longer than the deadline, and the claim is still good afterwards."""

        async def main():
            async with RedisStore(url=own_server.url, max_connections=2, pool_timeout_ms=5_000) as sessions:
                claim = await sessions.claim("s", lease_ms=LONG_MS)
                own_server.freeze()
                calls = [
                    sessions.claim("s", lease_ms=LONG_MS),
                    sessions.renew("s", claim.epoch, lease_ms=LONG_MS),
                    sessions.save("s", claim.epoch, b"1", ttl_ms=LONG_MS),
                    sessions.get("s"),
                    sessions.delete("s", claim.epoch + 1),
                ]
                async with asyncio.timeout(30):  # a hang, not a measure
                    errors = await asyncio.gather(*calls, return_exceptions=True)
                own_server.thaw()
                saved = await sessions.save("s", claim.epoch, b"2", ttl_ms=LONG_MS)
                return errors, saved, await sessions.get("s"), sessions.counters["failed"]

        errors, saved, kept, failed = asyncio.run(main())
        assert [type(error) for error in errors] == [ProviderTimeoutError] * 5
        assert all((error.kind, error.provider, error.retryable) == ("store", "redis", True) for error in errors)
        assert (saved, kept, failed) == (True, b"2", 5)

    def test_frozen_before_the_first_call(self, own_server):
        """Connecting has the same deadline: the kernel takes the connection, the server never speaks."""

        async def main():
            own_server.freeze()
            async with asyncio.timeout(30):
                async with RedisStore(url=own_server.url, timeout_ms=100):
                    pass

        with pytest.raises(ProviderTimeoutError, match="timeout_ms"):
            asyncio.run(main())

    def test_a_new_server_without_the_scripts_and_the_data(self, own_server):
        """Its owners put their claims back; nobody is thrown out of a conversation by it."""

        async def main():
            async with RedisStore(url=own_server.url) as sessions, RedisStore(url=own_server.url) as others:
                old = await sessions.claim("s", lease_ms=LONG_MS)
                new = await others.claim("s", lease_ms=LONG_MS, force=True)
                await others.save("s", new.epoch, b"1", ttl_ms=LONG_MS)
                own_server.stop()
                with pytest.raises(ConnectFailedError):
                    await others.renew("s", new.epoch, lease_ms=LONG_MS)
                own_server.start()
                assert await others.get("s") is None
                # The fenced owner does not know yet and comes first; the right one has the greater epoch.
                await sessions.renew("s", old.epoch, lease_ms=LONG_MS)
                assert await others.renew("s", new.epoch, lease_ms=LONG_MS)
                assert await others.save("s", new.epoch, b"2", ttl_ms=LONG_MS)
                late = await sessions.save("s", old.epoch, b"late", ttl_ms=LONG_MS)
                polite = await sessions.claim("s", lease_ms=LONG_MS)
                return late, polite, await sessions.get("s"), others.counters["restored"]

        assert asyncio.run(main()) == (False, None, b"2", 1)

    def test_away_for_longer_than_lease_and_state(self, own_server):
        """A claim that nobody took over is still good when Redis comes back: a store's absence ends no conversation."""

        async def main():
            async with RedisStore(url=own_server.url) as sessions:
                claim = await sessions.claim("s", lease_ms=20)
                await sessions.save("s", claim.epoch, b"1", ttl_ms=20)
                await asyncio.sleep(0.1)
                assert await sessions.get("s") is None
                return await sessions.renew("s", claim.epoch, lease_ms=LONG_MS), sessions.counters["restored"]

        assert asyncio.run(main()) == (True, 0)

    def test_a_long_state_keeps_its_fence(self, own_server):
        """The epoch lives as long as what it protects, whatever comes after."""

        async def main():
            async with RedisStore(url=own_server.url, fence_ms=0) as sessions:
                claim = await sessions.claim("s", lease_ms=20)
                await sessions.save("s", claim.epoch, b"1", ttl_ms=LONG_MS)
                await sessions.renew("s", claim.epoch, lease_ms=20)
                await asyncio.sleep(0.1)
                return await sessions._client.get("voice:session:{s}:epoch") == str(claim.epoch).encode()

        assert asyncio.run(main())

    def test_lost_data_gives_no_right_to_who_had_none(self, own_server):
        """A claim that may have ended by itself, or that was never given, is not put back."""

        async def main():
            async with RedisStore(url=own_server.url, fence_ms=20) as sessions:
                short = await sessions.claim("short", lease_ms=20)
                ended = await sessions.claim("ended", lease_ms=LONG_MS)
                await sessions.delete("ended", ended.epoch)
                await asyncio.sleep(0.05)
                await sessions._client.flushall()
                return [
                    await sessions.save("short", short.epoch, b"", ttl_ms=LONG_MS),
                    await sessions.save("ended", ended.epoch, b"", ttl_ms=LONG_MS),
                    await sessions.save("never", short.epoch, b"", ttl_ms=LONG_MS),
                ]

        assert asyncio.run(main()) == [False, False, False]

    def test_scripts_flushed(self, shared_server):
        """The script cache is not a promise of Redis's; each script finds its way back."""

        async def main():
            async with RedisStore(url=shared_server.url) as sessions:
                await sessions._client.script_flush()
                claim = await sessions.claim("flushed", lease_ms=LONG_MS)
                return await sessions.save("flushed", claim.epoch, b"", ttl_ms=LONG_MS)

        assert asyncio.run(main())

    def test_not_there(self, own_server):
        own_server.stop()

        async def main():
            async with RedisStore(url=own_server.url):
                pass

        with pytest.raises(ConnectFailedError, match=rf"127\.0\.0\.1:{own_server.port}/0 could not be reached"):
            asyncio.run(main())

    def test_out_of_memory(self, shared_server):
        """A full server is told as one; what was kept stays."""

        async def main():
            async with RedisStore(url=shared_server.url) as sessions:
                claim = await sessions.claim("full", lease_ms=LONG_MS)
                await sessions.save("full", claim.epoch, b"kept", ttl_ms=LONG_MS)
                await sessions._client.config_set("maxmemory", "1mb")
                try:
                    with pytest.raises(OverloadedError, match="maxmemory"):
                        await sessions.save("full", claim.epoch, b"more", ttl_ms=LONG_MS)
                finally:
                    await sessions._client.config_set("maxmemory", "0")
                return await sessions.get("full")

        assert asyncio.run(main()) == b"kept"

    def test_too_few_connections(self, own_server):
        """Callers beyond the pool wait, and are told so when none comes free."""

        async def main():
            told = {"timeout_ms": 30_000, "max_connections": 1}
            async with RedisStore(url=own_server.url, pool_timeout_ms=30_000, **told) as patient:
                waited = await asyncio.gather(*(patient.get(str(number)) for number in range(200)))
            async with RedisStore(url=own_server.url, pool_timeout_ms=50, **told) as hasty:
                own_server.freeze()
                first = asyncio.create_task(hasty.get("s"))
                await asyncio.sleep(0)
                with pytest.raises(OverloadedError, match="max_connections"):
                    await hasty.get("s")
                own_server.thaw()
                return waited, await first

        assert asyncio.run(main()) == ([None] * 200, None)

    def test_the_deadline_is_of_the_whole_call(self):
        """Callers that wait for a connection do not begin to wait anew once they have it."""
        callers = []

        async def main():
            async def be_silent(reader, writer):
                callers.append(writer)
                await reader.read()
                writer.close()

            async with await asyncio.start_server(be_silent, "127.0.0.1", 0) as server:
                port = server.sockets[0].getsockname()[1]
                sessions = RedisStore(
                    url=f"redis://127.0.0.1:{port}", timeout_ms=100, pool_timeout_ms=60_000, max_connections=1
                )
                async with asyncio.timeout(30):
                    errors = await asyncio.gather(*(sessions.get("s") for _ in range(10)), return_exceptions=True)
                await sessions.aclose()
                return errors

        assert {type(error) for error in asyncio.run(main())} == {ProviderTimeoutError}
        assert len(callers) < 5

    def test_more_connections_than_the_server_takes(self, own_server):
        async def main():
            async with RedisStore(url=own_server.url) as first, RedisStore(url=own_server.url) as second:
                await first._client.config_set("maxclients", "1")
                await second.aclose()
                with pytest.raises(OverloadedError, match="maxclients"):
                    await second.get("s")
                return await first.get("s")

        assert asyncio.run(main()) is None

    def test_cancelled_calls_give_their_connections_back(self, shared_server):
        """Callers that go away at any moment do not use the pool up, and nobody gets another's answer."""

        async def main():
            async with RedisStore(url=shared_server.url, max_connections=2) as sessions:
                claims = {str(number): await sessions.claim(f"c{number}", lease_ms=LONG_MS) for number in range(4)}
                for key, claim in claims.items():
                    await sessions.save(f"c{key}", claim.epoch, key.encode(), ttl_ms=LONG_MS)
                for round_ in range(60):
                    calls = [asyncio.create_task(sessions.get(f"c{number % 4}")) for number in range(20)]
                    for _ in range(round_ % 12):
                        await asyncio.sleep(0)
                    for call in calls[::2]:
                        call.cancel()
                    answers = await asyncio.gather(*calls, return_exceptions=True)
                    assert answers[1::2] == [str(number % 4).encode() for number in range(1, 20, 2)]

        asyncio.run(main())


class TestPassword:
    def shown(self, caplog, store_or_error):
        text = "".join(traceback.format_exception(store_or_error)) if isinstance(store_or_error, Exception) else ""
        return f"{store_or_error} {store_or_error!r} {text} {caplog.text} {vars(store_or_error).get('options', '')}"

    def test_wrong_is_an_auth_error_that_does_not_tell_it(self, shared_server, caplog):
        caplog.set_level(logging.DEBUG)
        url = f"redis://:wr0ng-word@127.0.0.1:{shared_server.port}/0"
        sessions = RedisStore(url=url)
        with pytest.raises(AuthError, match="password") as refused:
            asyncio.run(sessions.prewarm())
        for one in (refused.value, sessions):
            assert "wr0ng" not in self.shown(caplog, one)
        assert repr(sessions) == f"<RedisStore at 127.0.0.1:{shared_server.port}/0>"

    def test_none_where_one_is_needed(self, shared_server):
        with pytest.raises(AuthError):
            asyncio.run(RedisStore(url=f"redis://127.0.0.1:{shared_server.port}").prewarm())

    def test_of_a_user_who_may_do_no_more_than_the_readme_says(self, own_server):
        """The store needs just that, and without it the error is about rights."""
        needed = ["+ping", "+get", "+evalsha", "+script|load", "+set", "+del", "+exists", "+pttl", "+time"]

        async def main(session_id, rights):
            async with RedisStore(url=own_server.url) as admin:
                await admin._client.execute_command(
                    "ACL", "SETUSER", "voice", "reset", "on", ">word", "~voice:session:*", *rights
                )
            async with RedisStore(url=f"redis://voice:word@127.0.0.1:{own_server.port}/0") as sessions:
                claim = await sessions.claim(session_id, lease_ms=LONG_MS)
                return [
                    await sessions.save(session_id, claim.epoch, b"1", ttl_ms=LONG_MS),
                    await sessions.renew(session_id, claim.epoch, lease_ms=LONG_MS),
                    await sessions.get(session_id),
                    await sessions.delete(session_id, claim.epoch),
                ]

        assert asyncio.run(main("all", needed)) == [True, True, b"1", True]
        for right in needed:
            with pytest.raises(AuthError, match="ACL"):
                asyncio.run(main(right, [one for one in needed if one != right]))

    def test_repeated_by_the_server_is_struck_out(self, caplog):
        """A server on which AUTH has another name repeats the arguments of what it does not know."""

        async def main():
            async def answer(reader, writer):
                said = await reader.readuntil(b"wr0ng-word\r\n")
                assert b"AUTH" in said
                writer.write(b"-ERR unknown command 'AUTH', with args beginning with: 'wr0ng-word'\r\n")
                await reader.read()
                writer.close()

            async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
                port = server.sockets[0].getsockname()[1]
                sessions = RedisStore(url=f"redis://:wr0ng-word@127.0.0.1:{port}")
                try:
                    await sessions.get("s")
                except ProtocolError as error:
                    return error
                finally:
                    await sessions.aclose()

        error = asyncio.run(main())
        assert "unknown command" in str(error)
        assert "wr0ng" not in self.shown(caplog, error)

    @pytest.mark.parametrize("url", ["redis://:wr0ng/word@localhost", "wr0ng@localhost", "redis://localhost?wr0ng=1"])
    def test_of_a_url_that_cannot_be_read_is_not_told(self, url, caplog):
        with pytest.raises(OptionError, match="%2F") as refused:
            store.new("redis", url=url)
        assert "wr0ng" not in self.shown(caplog, refused.value)


class TestOptions:
    def test_the_url_may_come_from_the_environment(self, monkeypatch):
        monkeypatch.setenv("REDIS_URL", "redis://:secret@example.test:7000/3")
        assert repr(store.new("redis")) == "<RedisStore at example.test:7000/3>"

    def test_no_url_at_all(self):
        with pytest.raises(MissingKeyError, match="REDIS_URL") as missing:
            store.new("redis")
        assert missing.value.env_var == "REDIS_URL"

    @pytest.mark.parametrize("told", [{"prefix": "voice:{x}:"}, {"timeout_ms": 0}, {"max_connections": 0}, {"url": 5}])
    def test_a_wrong_option_is_refused(self, told):
        with pytest.raises(OptionError, match=next(iter(told))):
            store.new("redis", **{"url": "redis://localhost", **told})

    def test_a_state_too_large_is_refused_before_it_is_sent(self):
        """There is no server at all here."""
        sessions = RedisStore(url="redis://127.0.0.1:1", max_state_bytes=10)
        with pytest.raises(InvalidRequestError, match=r"11 bytes.*at most 10"):
            asyncio.run(sessions.save("s", 1, bytes(11), ttl_ms=LONG_MS))

    def test_a_session_id_that_no_key_can_hold_is_refused(self):
        sessions = RedisStore(url="redis://127.0.0.1:1")
        with pytest.raises(InvalidRequestError, match="session id"):
            asyncio.run(sessions.get("\ud800"))


def test_closed_it_opens_again(shared_server):
    async def main():
        sessions = store.new("redis", url=shared_server.url)
        async with sessions:
            claim = await sessions.claim("again", lease_ms=LONG_MS)
        renewed = await sessions.renew("again", claim.epoch, lease_ms=LONG_MS)
        await sessions.aclose()
        return renewed

    assert asyncio.run(main())
