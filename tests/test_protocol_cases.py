"""Broken traffic, one case a row, over raw sockets: the right close code, and nobody else is harmed.

The first group is the framing, which the WebSocket library answers: it is here because the server chooses that library and its
settings. The rest is this server's own.
"""

import asyncio
import contextlib
import json
import os
import socket
import struct
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beluga_voice import Chain, server, tts, turn
from beluga_voice.manager import SessionManager
from beluga_voice.server import ServerOptions
from beluga_voice.server.serving import running
from beluga_voice.testing import LoudVAD, ScriptedSTT

CONTINUED, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
HELLO = {"type": "hello", "sample_rate_hz": 16_000, "output_rate_hz": 16_000}
LARGEST = 65_536
PATIENCE_S = 30.0
# A peer that is cut off while it still sends may lose the close frame to the reset that follows.
CUT = 1006


class Raw:
    """A WebSocket client that may break every rule."""

    def __init__(self, port, path="/v1/voice"):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: beluga.voice.v1\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self.buffer:
            self.buffer += self.socket.recv(65_536)
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        assert b" 101 " in head.partition(b"\r\n")[0]
        assert b"deflate" not in head

    def bytes(self, data):
        with contextlib.suppress(OSError):
            self.socket.sendall(data)

    def frame(self, opcode, payload=b"", *, fin=True, reserved=0, masked=True, length=None):
        payload = payload.encode() if isinstance(payload, str) else payload
        size = len(payload) if length is None else length
        head = bytes([fin << 7 | reserved << 4 | opcode])
        if size < 126:
            head += bytes([masked << 7 | size])
        elif size < 65_536:
            head += bytes([masked << 7 | 126]) + struct.pack("!H", size)
        else:
            head += bytes([masked << 7 | 127]) + struct.pack("!Q", size)
        if masked:
            mask = os.urandom(4)
            head += mask
            long = mask * (len(payload) // 4 + 1)
            payload = (int.from_bytes(payload) ^ int.from_bytes(long[: len(payload)])).to_bytes(len(payload))
        self.bytes(head + payload)

    def json(self, **message):
        self.frame(TEXT, json.dumps(message))

    def hello(self, **more):
        self.json(**{**HELLO, **more})
        return self.until("welcome")

    def messages(self):
        """What the server sends, as (opcode, payload), until it closes the connection."""
        while True:
            try:
                head = self._take(2)
                size = head[1] & 127
                if size >= 126:
                    size = int.from_bytes(self._take(2 if size == 126 else 8))
                yield head[0] & 15, self._take(size)
            except OSError:
                return

    def _take(self, count):
        while len(self.buffer) < count:
            data = self.socket.recv(65_536)
            if not data:
                raise ConnectionError
            self.buffer += data
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def until(self, name):
        for opcode, payload in self.messages():
            if opcode == TEXT and (message := json.loads(payload))["type"] == name:
                return message
            assert opcode != CLOSE, f"closed with {int.from_bytes(payload[:2])}: {payload[2:].decode()}"
        raise AssertionError(f"the connection ended before {name}")

    def closed(self):
        """The code and reason that the server closes with."""
        for opcode, payload in self.messages():
            if opcode == CLOSE:
                self.frame(CLOSE, payload[:2])
                return int.from_bytes(payload[:2]), payload[2:].decode()
        return CUT, ""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.socket.close()


class Served:
    """A server in a thread of its own, with one caller who must not notice anything."""

    def __enter__(self):
        self.up = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.run()))
        self.thread.start()
        assert self.up.wait(PATIENCE_S)
        self.bystander = Raw(self.port)
        self.bystander.hello()
        self.pings = 0
        return self

    async def run(self):
        async def agent(text, history):
            return f"You said {text}."

        chain = Chain(LoudVAD(), turn.new("silence"), ScriptedSTT("hello"), agent, tts.new("tone"))
        self.manager = SessionManager(chain, resume_window_ms=0.0, idle_timeout_ms=600_000.0, max_sessions=20)
        self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
        async with running(server.app(self.manager, ServerOptions(hello_timeout_ms=600_000.0))) as url:
            self.port = int(url.rpartition(":")[2])
            self.up.set()
            await self.stop.wait()

    def __exit__(self, *error):
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(PATIENCE_S)
        self.bystander.socket.close()
        assert not self.thread.is_alive()

    def check_bystander(self):
        """The other caller is answered as ever, and is the only one who holds a place."""
        self.pings += 1
        self.bystander.json(type="ping", t_ms=self.pings)
        assert self.bystander.until("pong")["t_ms"] == self.pings
        asyncio.run_coroutine_threadsafe(self.alone(), self.loop).result(PATIENCE_S)

    async def alone(self):
        async with asyncio.timeout(PATIENCE_S):
            while len(self.manager.sessions) > 1:  # noqa: ASYNC110 - a session's end sets no event
                await asyncio.sleep(0.002)


@pytest.fixture(scope="module")
def served():
    with Served() as served:
        yield served


def seq_audio(seq, pcm):
    return seq.to_bytes(4, "little") + pcm


def frames(*given):
    """A case that sends these frames: (opcode, payload) or (opcode, payload, options)."""

    def send(raw):
        for opcode, payload, *options in given:
            raw.frame(opcode, payload, **(options[0] if options else {}))

    return send


def first(message):
    return frames((TEXT, message if isinstance(message, (str, bytes)) else json.dumps(message)))


def then(*given):
    """The same after a hello."""

    def send(raw):
        raw.hello()
        frames(*given)(raw)

    return send


def hello(**more):
    return first({**HELLO, **more})


def after(**message):
    return then((TEXT, json.dumps(message)))


MORE = {"fin": False}
FRAMING = {
    "a reserved bit": (frames((TEXT, "{}", {"reserved": 1})), 1002),
    "a compressed frame that was not agreed": (frames((TEXT, b"\xab\x56\x4a\x05\x00", {"reserved": 4})), 1002),
    "an unknown kind of frame": (frames((3, "{}")), 1002),
    "an unknown control frame": (frames((11, "")), 1002),
    "an unmasked frame": (frames((TEXT, "{}", {"masked": False})), 1002),
    "a ping of 126 bytes": (frames((PING, b"x" * 126)), 1002),
    "a ping in fragments": (frames((PING, b"x", MORE)), 1002),
    "a continuation of nothing": (frames((CONTINUED, "{}")), 1002),
    "a message inside another": (frames((TEXT, "{", MORE), (TEXT, "}")), 1002),
    "text that is not UTF-8": (frames((TEXT, b"\xff\xfe")), 1007),
    "text that is not UTF-8, in fragments": (frames((TEXT, b"\xce", MORE), (CONTINUED, b"\x28")), 1007),
    "text that ends within a character": (frames((TEXT, b"\xce")), 1007),
    "a surrogate as UTF-8": (frames((TEXT, b"\xed\xa0\x80")), 1007),
    "a message over 64 KiB": (frames((BINARY, b"x" * (LARGEST + 1))), 1009),
    "a length over 64 KiB, before its bytes": (frames((BINARY, b"", {"length": LARGEST + 1})), 1009),
    "a message over 64 KiB, in fragments": (frames((BINARY, b"x" * LARGEST, MORE), (CONTINUED, b"x")), 1009),
    "a length that nobody has": (frames((BINARY, b"", {"length": 2**62})), 1009),
    "a length with its highest bit": (frames((BINARY, b"", {"length": 2**63})), (1002, 1009)),
    "a close of one byte": (frames((CLOSE, b"\x03")), 1002),
    "a close with a code that is never sent": (frames((CLOSE, struct.pack("!H", 1005))), 1002),
    "a close with a code that is none": (frames((CLOSE, struct.pack("!H", 99))), 1002),
    "a close whose reason is not UTF-8": (frames((CLOSE, struct.pack("!H", 1000) + b"\xff")), (1002, 1007)),
    "a close without a code": (frames((CLOSE, b"")), (1000, 1005, 0)),
    "not a frame at all": (lambda raw: raw.bytes(b"GET / HTTP/1.1\r\n\r\n" * 10), 1002),
}
BEFORE_HELLO = {
    "audio first": (frames((BINARY, seq_audio(0, bytes(640)))), 4400),
    "an empty binary message": (frames((BINARY, b"")), 4400),
    "an empty text": (first(""), 4400),
    "a goodbye first": (first({"type": "bye", "seq": 0}), 4400),
    "a ping first": (first({"type": "ping", "t_ms": 1}), 4400),
    "a type of one's own first": (first({"type": "x-mine"}), 4400),
    "a typed turn first": (first({"type": "text", "seq": 0, "text": "hi"}), 4400),
    "null": (first("null"), 4400),
    "a list": (first("[]"), 4400),
    "a number": (first("1"), 4400),
    "an object without a type": (first("{}"), 4400),
    "a type that is a number": (first('{"type": 1}'), 4400),
    "an unknown type": (first('{"type": "hallo"}'), 4400),
    "not JSON": (first("{'type': 'hello'}"), 4400),
    "JSON and more": (first(json.dumps(HELLO) + "{}"), 4400),
    "NaN": (first('{"type": "hello", "sample_rate_hz": NaN}'), 4400),
    "half a surrogate pair": (hello(metadata={"a": "\ud800"}), 4400),
    "a number of 10,000 digits": (first('{"type": "hello", "sample_rate_hz": %s}' % ("9" * 10_000)), 4400),
    "33 levels": (hello(metadata=json.loads("[" * 32 + "]" * 32)), 4400),
    "30,000 levels": (first("[" * 30_000), 4400),
    "no rate": (first({"type": "hello", "output_rate_hz": 16_000}), 4400),
    "a rate as text": (hello(sample_rate_hz="16000"), 4400),
    "a rate that is true": (hello(output_rate_hz=True), 4400),
    "a rate too low": (hello(sample_rate_hz=7_999), 4400),
    "a rate too high": (hello(output_rate_hz=48_001), 4400),
    "another encoding": (hello(encoding="opus"), 4400),
    "another turn mode": (hello(turn_mode="shout"), 4400),
    "metadata that is a list": (hello(metadata=[]), 4400),
    "too much metadata": (hello(metadata={"a": "x" * 17_000}), 4400),
    "a token that is a number": (hello(token=1), 4400),
    "a token that lets nobody in": (hello(token="guess"), 4401),
    "a resume that is text": (hello(resume="s1"), 4400),
    "a resume without its token": (hello(resume={"session_id": "s1", "received_seq": 0}), 4400),
    "a resume of nothing": (hello(resume={"session_id": "s1", "resume_token": "x", "received_seq": 0}), 4410),
}
AFTER_HELLO = {
    "a second hello": (after(**HELLO), 4400),
    "audio without a sample": (then((BINARY, seq_audio(0, b""))), 4400),
    "audio of one byte": (then((BINARY, b"x")), 4400),
    "half a sample": (then((BINARY, seq_audio(0, bytes(641)))), 4400),
    "text that is no message": (then((TEXT, "hello")), 4400),
    "a type nobody knows": (after(type="jump", seq=0), 4400),
    "a server's message": (after(type="welcome", seq=0), 4400),
    "a message without its number": (after(type="bye"), 4400),
    "a negative number": (after(type="text", seq=-1, text="hi"), 4400),
    "a number over 32 bits": (after(type="text", seq=2**32, text="hi"), 4400),
    "a typed turn without text": (after(type="text", seq=0), 4400),
    "a typed turn too long": (after(type="text", seq=0, text="x" * 10_001), 4400),
    "a key that no telephone has": (after(type="dtmf", seq=0, digit="E"), 4400),
    "two keys at once": (after(type="dtmf", seq=0, digit="12"), 4400),
    "played before anything": (after(type="played", seq=0, ms=-1), 4400),
    "played that is text": (after(type="played", seq="0", ms=0), 4400),
    "an ack of text": (after(type="ack", seq="all"), 4400),
    "a ping without a time": (after(type="ping"), 4400),
    "33 levels later": (then((TEXT, '{"type": "x-a", "a": ' + "[" * 33 + "]" * 33 + "}")), 4400),
    "a text over 64 KiB": (then((TEXT, " " * (LARGEST + 1))), 1009),
    "bad UTF-8 later": (then((TEXT, b"\xff")), 1007),
    "a goodbye": (after(type="bye", seq=0), 1000),
}
CASES = {**FRAMING, **BEFORE_HELLO, **AFTER_HELLO}


@pytest.mark.parametrize("name", CASES)
def test_closes_with_its_code(served, name):
    """The code is the one that the protocol names, with a reason, and the bystander's call goes on."""
    case, wanted = CASES[name]
    with Raw(served.port) as raw:
        case(raw)
        code, reason = raw.closed()
    assert code in (wanted if isinstance(wanted, tuple) else (wanted,)), reason
    assert reason or code < 4000
    served.check_bystander()


LEGAL = {
    "a hello in three pieces, a ping between": lambda raw, text: frames(
        (TEXT, text[:9], MORE), (PING, b"are you there"), (CONTINUED, text[9:20], MORE), (CONTINUED, text[20:])
    )(raw),
    "a hello byte by byte": lambda raw, text: [
        raw.frame(CONTINUED if at else TEXT, text[at : at + 1], fin=at == len(text) - 1) for at in range(len(text))
    ],
    "a ping of 125 bytes before": lambda raw, text: frames((PING, b"x" * 125), (TEXT, text))(raw),
    "a pong that nobody asked for": lambda raw, text: frames((PONG, b"x"), (TEXT, text))(raw),
    "an empty fragment at the end": lambda raw, text: frames((TEXT, text, MORE), (CONTINUED, b""))(raw),
    "spaces round it": lambda raw, text: frames((TEXT, b" \n" + text + b" \n"))(raw),
    "fields nobody knows": lambda raw, text: frames((TEXT, text[:-1] + b', "colour": [1]}'))(raw),
}


@pytest.mark.parametrize("name", LEGAL)
def test_lets_in_what_is_legal(served, name):
    """Unusual, and yet by the rules."""
    with Raw(served.port) as raw:
        LEGAL[name](raw, json.dumps(HELLO).encode())
        assert raw.until("welcome")["session_id"]
        raw.json(type="bye", seq=0)
        assert raw.closed()[0] == 1000
    served.check_bystander()


class TestAfterAll:
    def test_a_message_of_exactly_64_kib(self, served):
        """The limit itself is allowed."""
        with Raw(served.port) as raw:
            raw.hello()
            raw.frame(BINARY, seq_audio(0, bytes(LARGEST - 4)))
            raw.json(type="ping", t_ms=7)
            assert raw.until("pong")["t_ms"] == 7
            raw.json(type="bye", seq=1)
            assert raw.closed()[0] == 1000
        served.check_bystander()

    def test_a_type_of_ones_own_is_passed_over(self, served):
        """`x-` is for whoever wants it."""
        with Raw(served.port) as raw:
            raw.hello()
            raw.json(type="x-mine", seq=0, anything={"goes": None})
            raw.json(type="bye", seq=1)
            assert raw.closed()[0] == 1000

    def test_a_gap_is_told_and_does_not_end_the_call(self, served):
        """What is missing is an error of code "protocol", not a fatal one."""
        with Raw(served.port) as raw:
            raw.hello()
            raw.json(type="text", seq=5, text="hi")
            error = raw.until("error")
            assert (error["code"], error["fatal"]) == ("protocol", False)
            raw.json(type="bye", seq=6)
            assert raw.closed()[0] == 1000
        served.check_bystander()

    def test_a_caller_that_vanishes(self, served):
        """At every step of a call, with or without a word."""
        for step in range(4):
            with Raw(served.port) as raw:
                if step > 0:
                    raw.hello()
                if step > 1:
                    raw.json(type="text", seq=0, text="tell me a story")
                if step > 2:
                    raw.until("reply_start")
                raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            served.check_bystander()


messages = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=300),
    st.sampled_from(["ack", "bye", "dtmf", "end_turn", "hello", "ping", "played", "pong", "stopped", "text", "x-a"]).flatmap(
        lambda name: st.dictionaries(
            st.sampled_from(["seq", "text", "ms", "t_ms", "digit", "resume", "metadata", "sample_rate_hz", "token"]),
            st.recursive(
                st.none() | st.booleans() | st.integers(-5, 70_000) | st.floats(allow_nan=False) | st.text(max_size=5),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
                max_leaves=5,
            ),
            max_size=5,
        ).map(lambda fields: json.dumps({"type": name, **fields}))
    ),
)
RULES = {1000, 1002, 1007, 1009, 4400, 4401, 4410}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(greeted=st.booleans(), sent=st.lists(messages, min_size=1, max_size=6))
def test_any_messages(served, greeted, sent):
    """Whatever well-framed nonsense comes: a code of the protocol or none, and the bystander is not disturbed."""
    with Raw(served.port) as raw:
        if greeted:
            raw.hello()
        for message in sent:
            raw.frame(BINARY if isinstance(message, bytes) else TEXT, message)
        raw.frame(CLOSE, struct.pack("!H", 1000))
        assert raw.closed()[0] in RULES
    served.check_bystander()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(greeted=st.booleans(), data=st.binary(min_size=1, max_size=600))
def test_any_bytes(served, greeted, data):
    """Bytes that are no frames at all."""
    with Raw(served.port) as raw:
        if greeted:
            raw.hello()
        raw.bytes(data)
        raw.socket.shutdown(socket.SHUT_WR)
        assert raw.closed()[0] in RULES | {CUT}
    served.check_bystander()
