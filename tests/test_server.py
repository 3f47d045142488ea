"""The server over real sockets: calls, tickets, who is refused and how, the page, health, and an application around it."""

import asyncio
import contextlib
import json
import logging
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from beluga_voice import Chain, server, tts, turn
from beluga_voice.manager import SessionManager
from beluga_voice.server import ServerOptions
from beluga_voice.server.serving import running
from beluga_voice.testing import LoudVAD, ScriptedSTT, quiet, speech

KEY = "a key that nobody guesses 0123456789"
PROTOCOL = "beluga.voice.v1"


async def echo(text, history):
    return f"You said {text}."


def chain(agent=echo, *texts):
    return Chain(LoudVAD(), turn.new("silence"), ScriptedSTT(*(texts or ("hello there",))), agent, tts.new("tone"))


def hello(**more):
    return {"type": "hello", "sample_rate_hz": 16_000, "output_rate_hz": 16_000, **more}


@asynccontextmanager
async def serving(app=None, options=None, **settings):
    """A server of `app`, or of a new manager, and its manager."""
    manager = SessionManager(chain(), **settings) if app is None else None
    async with running(app or server.app(manager, options)) as url:
        yield url, manager


class Caller:
    """One end of a call that notes what it hears."""

    def __init__(self, socket):
        self.socket, self.seq, self.heard = socket, 0, []

    async def say(self, message):
        if message["type"] not in ("hello", "ping", "pong", "ack", "played", "stopped"):
            message = {**message, "seq": self.seq}
            self.seq += 1
        await self.socket.send(json.dumps(message))

    async def speak(self, pcm, step=640):
        """Speak twice as fast as people do."""
        for at in range(0, len(pcm), step):
            await self.socket.send(self.seq.to_bytes(4, "little") + pcm[at : at + step])
            self.seq += 1
            await asyncio.sleep(0.01)

    async def until(self, name, **fields):
        """The next message of that type with these fields."""
        while True:
            message = await self.socket.recv()
            message = {"type": "audio", "pcm": message[4:]} if isinstance(message, bytes) else json.loads(message)
            self.heard.append(message)
            if message["type"] == name and fields.items() <= message.items():
                return message

    async def ended(self):
        """The code and the reason that the call is closed with."""
        try:
            while True:
                await self.socket.recv()
        except ConnectionClosed as closed:
            return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (1006, "")


@asynccontextmanager
async def calling(url, path="/v1/voice", **options):
    options = {"subprotocols": [PROTOCOL], "compression": None, **options}
    async with connect(f"ws{url.removeprefix('http')}{path}", **options) as socket:
        yield Caller(socket)


@asynccontextmanager
async def call(url, path="/v1/voice", **more):
    """A caller who was let in."""
    async with calling(url, path) as caller:
        await caller.say(hello(**more))
        caller.welcome = await caller.until("welcome")
        yield caller


async def closing(url, first, **options):
    """How the server ends a connection that begins with `first`."""
    async with calling(url, **options) as caller:
        with contextlib.suppress(ConnectionClosed):  # it may be closed before it is asked
            if first is not None:
                await caller.say(first)
        return await caller.ended()


async def ask(url, method="GET", path="/", headers=(), body=b""):
    """One HTTP request: status, headers and body of the answer."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = {"Host": f"{host}:{port}", "Connection": "close", "Content-Length": len(body), **dict(headers)}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
    answer = await reader.read()
    writer.close()
    top, _, rest = answer.partition(b"\r\n\r\n")
    status, *fields = top.decode().split("\r\n")
    told = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
    return int(status.split()[1]), told, rest


async def ticket(url, *, key=KEY, **body):
    """The answer to a request for a ticket."""
    status, _, answer = await ask(
        url, "POST", "/v1/sessions", {"Authorization": f"Bearer {key}"}, json.dumps(body).encode()
    )
    return status, json.loads(answer)


async def until(condition):
    """Wait for what the server is about to do."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for is the server's, and sets no event
            await asyncio.sleep(0.005)


def run(coroutine):
    async def bounded():
        async with asyncio.timeout(60):
            return await coroutine

    return asyncio.run(bounded())


class TestCall:
    def test_a_spoken_turn_is_answered(self):
        """Audio in, transcript and reply audio out, over a real socket."""

        async def main():
            async with serving() as (url, _), call(url) as caller:
                await caller.speak(quiet(300) + speech(800) + quiet(1_000))
                await caller.until("reply_end")
                return caller.heard

        heard = run(main())
        assert [one["text"] for one in heard if one["type"] == "transcript" and one["final"]] == ["hello there"]
        assert sum(len(one["pcm"]) for one in heard if one["type"] == "audio") > 16_000

    def test_a_typed_turn_is_answered(self):
        """Text goes the same way."""

        async def main():
            async with serving() as (url, _), call(url) as caller:
                await caller.say({"type": "text", "text": "good day"})
                return await caller.until("reply_end")

        assert run(main())["heard_text"] == "You said good day."

    def test_goodbye_ends_it(self):
        """`bye` closes with 1000 and the session with "bye"."""

        async def main():
            async with serving() as (url, manager), call(url) as caller:
                await caller.say({"type": "bye"})
                code, _ = await caller.ended()
                await until(lambda: not manager.sessions)
                return code, dict(manager.counters)

        code, counters = run(main())
        assert code == 1000
        assert counters["closed_bye"] == 1

    def test_closing_with_1000_is_goodbye_too(self):
        """A client that closes properly has hung up, and holds no place for the resume window."""

        async def main():
            async with serving() as (url, manager):
                async with call(url) as caller:
                    await caller.socket.close(1000)
                await until(lambda: not manager.sessions)
                return dict(manager.counters)

        assert run(main())["closed_bye"] == 1

    def test_any_other_close_is_a_lost_line(self):
        """A page that is left (1001) may come back."""

        async def main():
            async with serving() as (url, manager):
                async with call(url) as caller:
                    await caller.socket.close(1001)
                await until(lambda: manager.sessions[0].state == "reconnecting")
                return len(manager.sessions)

        assert run(main()) == 1

    def test_no_compression(self):
        """What a client offers is not taken."""

        async def main():
            async with serving() as (url, _), calling(url, compression="deflate") as caller:
                return caller.socket.protocol.extensions, caller.socket.subprotocol

        assert run(main()) == ([], PROTOCOL)

    def test_a_client_without_subprotocols_is_let_in(self):
        """And one that offers only others is told so."""

        async def main():
            async with serving() as (url, _):
                async with calling(url, subprotocols=None) as caller:
                    await caller.say(hello())
                    await caller.until("welcome")
                return await closing(url, hello(), subprotocols=["beluga.voice.v9"])

        code, reason = run(main())
        assert code == 4400
        assert PROTOCOL in reason

    def test_choose_is_told_what_the_caller_wants(self):
        """A manager that chooses the chain gets the hello's metadata and rates."""
        asked = []

        def choose(said):
            asked.append(said)
            return chain()

        async def main():
            async with serving(server.app(SessionManager(choose))) as (url, _), call(url, metadata={"language": "de"}):
                pass

        run(main())
        assert asked == [
            {"metadata": {"language": "de"}, "input_rate_hz": 16_000, "output_rate_hz": 16_000, "push": False}
        ]


class TestResume:
    def test_comes_back_to_the_same_session(self):
        """A cut line and a new one: the same id, another token, and the conversation goes on."""

        async def main():
            async with serving() as (url, manager):
                async with call(url) as caller:
                    first = caller.welcome
                    caller.socket.transport.abort()
                again = {"session_id": first["session_id"], "resume_token": first["resume_token"], "received_seq": 0}
                async with call(url, resume=again) as caller:
                    await caller.say({"type": "text", "text": "good day"})
                    ended = await caller.until("reply_end")
                    return first, caller.welcome, ended, len(manager.sessions)

        first, second, ended, count = run(main())
        assert second["resumed"]
        assert second["session_id"] == first["session_id"]
        assert second["resume_token"] != first["resume_token"]
        assert ended["heard_text"] == "You said good day."
        assert count == 1

    @pytest.mark.parametrize("known", [True, False])
    def test_a_wrong_token_learns_nothing(self, known):
        """A session that lives and one that does not give the same answer, and the one that lives is not disturbed."""

        async def main():
            async with serving() as (url, _), call(url) as caller:
                session_id = caller.welcome["session_id"] if known else "nobody"
                wrong = {"session_id": session_id, "resume_token": "guess", "received_seq": -1}
                refused = await closing(url, hello(resume=wrong))
                await caller.say({"type": "text", "text": "still here"})
                await caller.until("reply_end")
                return refused

        code, reason = run(main())
        assert code == 4410
        assert reason == "the session is over, or the resume token is not its newest; begin a new one"

    def test_needs_no_ticket(self):
        """The resume token is proof enough."""

        async def main():
            async with serving(options=ServerOptions(api_keys=[KEY])) as (url, _):
                _, given = await ticket(url)
                async with call(url, token=given["token"]) as caller:
                    first = caller.welcome
                    caller.socket.transport.abort()
                again = {"session_id": first["session_id"], "resume_token": first["resume_token"], "received_seq": 0}
                async with call(url, resume=again) as caller:
                    return caller.welcome["resumed"]

        assert run(main())


class TestRefusal:
    def test_a_full_server_says_when_to_come_back(self):
        """One more than `max_sessions` gets 1013; a resume still gets in."""

        async def main():
            async with serving(max_sessions=1) as (url, _), call(url) as caller:
                refused = await closing(url, hello())
                again = {key: caller.welcome[key] for key in ("session_id", "resume_token")} | {"received_seq": 0}
                async with call(url, resume=again) as back:
                    return refused, back.welcome["resumed"]

        (code, reason), resumed = run(main())
        assert code == 1013
        assert reason.startswith("retry_after_ms=")
        assert resumed

    def test_no_hello_in_time(self):
        """Whoever says nothing is let go."""

        async def main():
            async with serving(options=ServerOptions(hello_timeout_ms=50)) as (url, _):
                return await closing(url, None)

        assert run(main()) == (4408, "no hello within 50 ms")

    def test_no_request_in_time(self):
        """A connection that trickles its request is cut: it costs nothing yet, and must not for ever."""

        async def main():
            async with serving(options=ServerOptions(hello_timeout_ms=50)) as (url, _):
                reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
                writer.write(b"GET / HTTP/1.1\r\nHost:")
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
                writer.close()

        run(main())

    @pytest.mark.parametrize(
        "part", ["GET / HTTP/1.1\r\nHost:", "POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"]
    )
    def test_nor_the_next_one_or_a_body(self, part):
        """On a connection that has served one already, and for a body that never ends."""

        async def main():
            async with serving(options=ServerOptions(hello_timeout_ms=200)) as (url, _):
                reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
                writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b"200" in await reader.readline()
                writer.write(part.encode())
                with contextlib.suppress(ConnectionError):
                    await reader.read()
                writer.close()

        run(main())

    @pytest.mark.parametrize("limit", ["max_handshakes", "max_handshakes_per_ip"])
    def test_handshakes_in_flight_are_bounded(self, limit):
        """Those who have not said hello hold few places; when one is free again the next gets in."""

        async def main():
            async with serving(options=ServerOptions(**{limit: 2})) as (url, _):
                async with calling(url), calling(url):
                    refused = await closing(url, None)
                async with call(url):
                    return refused

        assert run(main()) == (1013, "retry_after_ms=1000")

    @pytest.mark.parametrize("origin", ["https://evil.example", "null"])
    def test_a_strange_page(self, origin):
        """Its browser gets no WebSocket at all."""

        async def main():
            async with serving() as (url, _):
                with pytest.raises(InvalidStatus) as refused:
                    async with calling(url, origin=origin):
                        pass
                return refused.value.response.status_code

        assert run(main()) == 403

    def test_pages_that_may(self):
        """The server's own, and those on the list."""

        async def main():
            async with serving(options=ServerOptions(origins=["https://app.example"])) as (url, _):
                for origin in (url, "https://app.example"):
                    async with calling(url, origin=origin) as caller:
                        await caller.say(hello())
                        await caller.until("welcome")

        run(main())

    def test_a_crash_harms_one_call(self, caplog):
        """What `choose` raises closes that caller with 4500; the other goes on."""

        def choose(said):
            if said["metadata"]:
                raise ZeroDivisionError("a bug")
            return chain()

        async def main():
            async with serving(server.app(SessionManager(choose))) as (url, _), call(url) as caller:
                crashed = await closing(url, hello(metadata={"x": 1}))
                await caller.say({"type": "text", "text": "still here"})
                await caller.until("reply_end")
                return crashed

        assert run(main())[0] == 4500
        assert "a bug" in caplog.text

    def test_an_unknown_path(self):
        """Only one path takes calls."""

        async def main():
            async with serving() as (url, _):
                with pytest.raises(InvalidStatus):
                    async with calling(url, "/v1/other"):
                        pass

        run(main())


class TestTickets:
    OPTIONS = ServerOptions(api_keys=[KEY, KEY + "2"])

    def test_let_in_once_under_their_user(self):
        """The session is the user's that the ticket was issued for; the ticket is used up."""

        async def main():
            async with serving(options=self.OPTIONS) as (url, manager):
                status, given = await ticket(url, user_id="ann", tenant="acme", metadata={"plan": "gold"})
                async with call(url, token=given["token"], metadata={"plan": "free", "page": "x"}):
                    (session,) = manager.sessions
                    again = await closing(url, hello(token=given["token"]))
                    return status, given, session.user_id, session.tenant, session.metadata, again

        status, given, user_id, tenant, metadata, again = run(main())
        assert status == 200
        assert given["url"].startswith("ws://127.0.0.1:")
        assert given["url"].endswith("/v1/voice")
        assert given["expires_in_ms"] <= 60_000
        assert (user_id, tenant) == ("ann", "acme")
        assert metadata == {"plan": "gold", "page": "x"}  # what the issuer vouches for wins
        assert again == (4401, "the ticket was used before; get a new one from POST /v1/sessions")

    @pytest.mark.parametrize("token", ["", "guess", "t1.eyJ9.x"])
    def test_nobody_else(self, token):
        """No ticket, or what is none."""

        async def main():
            async with serving(options=self.OPTIONS) as (url, manager):
                return await closing(url, hello(token=token)), manager.counters["created"]

        (code, _), created = run(main())
        assert (code, created) == (4401, 0)

    def test_for_another_service(self):
        """The same secret, another audience."""
        secret = "s" * 32

        async def main():
            there = ServerOptions(api_keys=[KEY], ticket_secret=secret, audience="there")
            here = ServerOptions(api_keys=[KEY], ticket_secret=secret)
            async with serving(options=there) as (other, _), serving(options=here) as (url, _):
                _, given = await ticket(other)
                return await closing(url, hello(token=given["token"]))

        assert run(main())[0] == 4401

    def test_expired(self):
        """A ticket that waited too long."""

        async def main():
            app = server.app(SessionManager(chain()), self.OPTIONS)
            tickets = app.state.service.tickets
            tickets._ttl_ms = -1.0
            async with serving(app) as (url, _):
                return await closing(url, hello(token=tickets.issue()))

        code, reason = run(main())
        assert (code, "too old" in reason) == (4401, True)

    @pytest.mark.parametrize("key", [KEY[:-1], KEY + "3", "", "ü"])
    def test_need_a_key(self, key):
        """Almost a key is none."""

        async def main():
            async with serving(options=self.OPTIONS) as (url, _):
                return [await ticket(url, key=one) for one in (key, KEY + "2")]

        (refused, _), (granted, _) = run(main())
        assert (refused, granted) == (401, 200)

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            (b"", 200),
            (b"{", 400),
            (b"[]", 400),
            (b'{"user": "ann"}', 400),
            (b'{"user_id": 7}', 400),
            (b'{"user_id": "%s"}' % (b"a" * 257), 400),
            (b'{"metadata": []}', 400),
            (b'{"metadata": {"a": "%s"}}' % (b"a" * 5_000), 400),
            (b"[" * 16_000, 400),
            (b"\xff", 400),
            (b'{"user_id": "%s"}' % (b"a" * 20_000), 413),
        ],
    )
    def test_the_body_is_checked(self, body, status):
        """What is no such object is refused before anything is made of it."""

        async def main():
            async with serving(options=self.OPTIONS) as (url, _):
                return await ask(url, "POST", "/v1/sessions", {"Authorization": f"Bearer {KEY}"}, body)

        assert run(main())[0] == status

    @pytest.mark.parametrize(
        ("told", "status", "user_id"),
        [
            (None, 401, ""),
            (False, 401, ""),
            ("", 401, ""),
            (True, 200, "body"),
            ("cookie", 200, "cookie"),
            ({"user_id": "mapped", "tenant": "acme"}, 200, "mapped"),
        ],
    )
    def test_a_check_of_your_own(self, told, status, user_id):
        """What `authenticate` returns, also awaited, decides whom the ticket is for."""

        async def check(request):
            return told if request.headers["x-who"] == "me" else None

        async def main():
            async with serving(options=ServerOptions(authenticate=check)) as (url, manager):
                body = b'{"user_id": "body"}'
                got, _, answer = await ask(url, "POST", "/v1/sessions", {"X-Who": "me"}, body)
                if got != 200:
                    return got, ""
                async with call(url, token=json.loads(answer)["token"]):
                    return got, manager.sessions[0].user_id

        assert run(main()) == (status, user_id)

    def test_strange_pages_get_none(self):
        """A page that may not call may not ask either: its cookies are not its own."""

        async def main():
            async with serving(options=ServerOptions(authenticate=lambda request: "ann")) as (url, _):
                return await ask(url, "POST", "/v1/sessions", {"Origin": "https://evil.example"})

        assert run(main())[0] == 403

    def test_where_none_is_needed_one_that_is_given_counts(self):
        """An open server still names its user by ticket, and refuses a wrong one."""

        async def main():
            async with serving() as (url, manager):
                _, given = await ticket(url, user_id="ann")
                async with call(url, token=given["token"]):
                    return manager.sessions[0].user_id, (await closing(url, hello(token="guess")))[0]

        assert run(main()) == ("ann", 4401)

    def test_secrets_are_not_logged(self, caplog):
        """Keys, tickets and resume tokens, right or wrong, appear in no log line and no reason."""
        canary = "canary-0123456789abcdef"

        async def main():
            reasons = []
            async with serving(options=self.OPTIONS) as (url, _):
                _, given = await ticket(url)
                await ticket(url, key=canary)
                await ask(url, "GET", f"/?token={canary}")
                reasons.append(await closing(url, hello(token=canary)))
                reasons.append(await closing(url, hello(token=[canary])))
                wrong = {"session_id": "x", "resume_token": canary, "received_seq": -1}
                reasons.append(await closing(url, hello(resume=wrong)))
                reasons.append(await closing(url, hello(resume=wrong | {"resume_token": [canary]})))
                async with call(url, token=given["token"]) as caller:
                    resume_token = caller.welcome["resume_token"]
                    await caller.say({"type": "bye"})
                    reasons.append(await caller.ended())
            return given["token"], resume_token, str(reasons)

        with caplog.at_level(logging.DEBUG, "beluga_voice"):
            *used, reasons = run(main())
        for secret in (KEY, canary, *used):
            assert secret not in caplog.text
            assert secret not in reasons


class TestBesideTheCalls:
    def test_the_page(self):
        """It comes with its files, and with a policy that lets nothing else in."""

        async def main():
            async with serving() as (url, _):
                first = await ask(url)
                script = await ask(url, path="/beluga-voice.js")
                outside = await ask(url, path="/../options.py")
                return first, script, outside

        (status, headers, body), (found, script, _), (outside, _, _) = run(main())
        assert (status, found) == (200, 200)
        assert b"<html" in body.lower()
        assert "javascript" in script["content-type"]
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["cache-control"] == "no-cache"
        assert headers["x-content-type-options"] == "nosniff"
        assert outside == 404

    def test_the_page_may_call_where_the_server_says(self):
        """A public address on another host is let through the page's policy."""

        async def main():
            async with serving(options=ServerOptions(public_url="wss://voice.example/v1/voice")) as (url, _):
                return await ask(url)

        _, headers, _ = run(main())
        assert " wss://voice.example;" in headers["content-security-policy"]

    def test_no_page(self):
        """It can be left out."""

        async def main():
            async with serving(options=ServerOptions(page=False)) as (url, _):
                return await ask(url)

        assert run(main())[0] == 404

    def test_health(self):
        """Alive, ready, and counted."""

        async def main():
            async with serving() as (url, _):
                async with call(url) as caller:
                    await caller.say({"type": "text", "text": "good day"})
                    await caller.until("reply_end")
                    await caller.say({"type": "bye"})
                    await caller.ended()
                return [await ask(url, path=path) for path in ("/healthz", "/readyz", "/metrics")]

        (healthy, _, _), (ready, _, _), (counted, headers, text) = run(main())
        assert (healthy, ready, counted) == (200, 200, 200)
        assert headers["content-type"].startswith("text/plain")
        assert b"# TYPE" in text

    def test_providers_tell_how_they_are(self):
        """Who was called, and whether the breaker is closed; nothing of accounts and keys."""

        async def main():
            async with serving() as (url, _):
                async with call(url) as caller:
                    await caller.say({"type": "text", "text": "good day"})
                    await caller.until("reply_end")
                    await caller.say({"type": "bye"})
                    await caller.ended()
                return await ask(url, path="/providers")

        status, _, body = run(main())
        (voice,) = [one for one in json.loads(body)["providers"] if one["kind"] == "tts"]
        assert (status, voice["state"], voice["under_way"], voice["calls"] > 0) == (200, "closed", 0, True)
        assert "account" not in voice

    def test_draining_is_not_ready(self):
        """It refuses new calls with a time to come back, and new tickets; the call on the line is told."""

        async def main():
            async with serving() as (url, manager), call(url) as caller:
                draining = asyncio.create_task(manager.drain(10_000))
                gone = await caller.until("goaway")
                ready = await ask(url, path="/readyz")
                refused = await closing(url, hello())
                no_ticket = await ticket(url)
                await draining
                return gone, ready[0], refused, no_ticket[0], await caller.ended()

        gone, ready, (code, reason), no_ticket, (ended, _) = run(main())
        assert gone["deadline_ms"] > 0
        assert ready == 503
        assert (code, reason) == (1013, "retry_after_ms=1000")
        assert no_ticket == 503
        assert ended in (1000, 1001, 1012)

    def test_an_ended_session_is_a_line_of_json(self, caplog):
        """Who, why, how long, how many turns and how fast; nothing that was said."""

        async def main():
            async with serving() as (url, manager), call(url) as caller:
                await caller.speak(quiet(300) + speech(800) + quiet(1_000))
                await caller.until("reply_end")
                await caller.say({"type": "bye"})
                await caller.ended()
                await until(lambda: not manager.sessions)
                return caller.welcome["session_id"]

        with caplog.at_level(logging.INFO, "beluga_voice.sessions"):
            session_id = run(main())
        (line,) = [record.getMessage() for record in caplog.records if record.name == "beluga_voice.sessions"]
        told = json.loads(line)
        assert (told["session_id"], told["reason"], told["turns"]) == (session_id, "bye", 1)
        assert told["e2e_p95_ms"] == told["e2e_p50_ms"] > 0
        assert told["duration_ms"] > 0
        assert "hello there" not in line


class TestInAnApplication:
    @staticmethod
    def host(voice):
        async def front(request):
            return PlainTextResponse("my own application")

        return Starlette(routes=[Route("/", front), Mount("/voice", voice)])

    def test_mounts_with_one_line(self):
        """Under a prefix everything is there: calls, tickets with the right address, the page and its files."""

        async def main():
            host = self.host(server.app(SessionManager(chain())))
            async with serving(host) as (url, _):
                _, _, answer = await ask(url, "POST", "/voice/v1/sessions")
                where = json.loads(answer)["url"]
                pages = [(await ask(url, path=path))[0] for path in ("/", "/voice/", "/voice/app.js", "/v1/sessions")]
                async with call(url, "/voice/v1/voice") as caller:
                    await caller.say({"type": "text", "text": "good day"})
                    await caller.until("reply_end")
                return where.removeprefix(f"ws{url.removeprefix('http')}"), pages

        assert run(main()) == ("/voice/v1/voice", [200, 200, 200, 404])

    def test_a_strange_server_is_told_what_to_set(self, caplog):
        """Whoever serves it with something else reads in the log what live audio needs there."""
        app = server.app(SessionManager(chain()))

        async def main():
            sent = []

            async def receive():
                return {"type": "http.request", "body": b"", "more_body": False}

            async def send(message):
                sent.append(message)

            scope = {"type": "http", "method": "GET", "path": "/readyz", "headers": [], "query_string": b"", "root_path": ""}
            await app(scope, receive, send)
            await until(lambda: app.state.service.ready)
            await app(scope, receive, send)
            await server.drain(app, 100)
            return [message["status"] for message in sent if "status" in message]

        assert run(main()) == [503, 200]
        for advice in ("--ws-max-size 65536", "--ws-per-message-deflate false", "server.drain", "authentication"):
            assert advice in caplog.text

    def test_drain_finds_what_is_mounted(self):
        """`server.drain` takes the host application too, and refuses what has no calls in it."""

        async def main():
            manager = SessionManager(chain())
            host = self.host(server.app(manager))
            async with serving(host) as (url, _), call(url, "/voice/v1/voice") as caller:
                await server.drain(host, 5_000)
                with pytest.raises(TypeError, match=r"server\.app"):
                    await server.drain(Starlette())
                return (await caller.ended())[0], manager.draining

        code, draining = run(main())
        assert code in (1000, 1001, 1012)
        assert draining
