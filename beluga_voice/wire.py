"""The WebSocket protocol `beluga.voice.v1` as a pure codec, for both ends: no socket, no clock, no state.

Text messages are JSON objects with a `type`; binary ones are audio: a number (4 bytes, unsigned, little-endian), then PCM16.
After the handshake every message carries its direction's next number, JSON in the field `seq`. Those that only report do not:
`ack`, `ping`, `pong`, and `played` and `stopped`, whose `seq` names the server's audio they speak of.

>>> parse_client('{"type": "text", "seq": 7, "text": "hello"}')
Text(seq=7, text='hello')
>>> parse_client(audio(8, b"ab"))
AudioMessage(seq=8, pcm=<2 bytes>)
>>> parse_client('{"type": "dtmf", "seq": 9, "digit": "E"}')
Traceback (most recent call last):
    ...
beluga_voice._fields.WireError: 4400: dtmf: digit is 'E'; expected one of 0-9, *, #, A-D
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from ._fields import MAX_BYTES, MAX_MS, Fields, WireError, read_object, shorten, shown

__all__ = [
    "CLOSE",
    "MAX_BYTES",
    "MAX_MS",
    "PATH",
    "SUBPROTOCOL",
    "Ack",
    "AudioMessage",
    "Bye",
    "ClientMessage",
    "Dtmf",
    "EndTurn",
    "Extension",
    "Hello",
    "Interrupt",
    "Ping",
    "Played",
    "Pong",
    "Resume",
    "StartTurn",
    "Stopped",
    "Text",
    "WireError",
    "audio",
    "close_code",
    "parse_client",
    "parse_server",
    "shorten",
    "text",
]

SUBPROTOCOL, PATH = "beluga.voice.v1", "/v1/voice"

SEQ_BYTES = 4
MAX_RESUME_SEQ = 2**31 - 1  # a resume may move the server's numbers: half of them stay free
MAX_TEXT = 10_000
MAX_METADATA = 16_384
MAX_TOKEN = 4_096
MAX_NAME = 256
MIN_RATE_HZ, MAX_RATE_HZ = 8_000, 48_000
DIGITS = "0123456789*#ABCD"

CLOSE: dict[str, int] = {
    "bye": 1000,
    "agent_ended": 1000,
    "closed": 1000,
    "lost": 1001,
    "too_large": 1009,
    "drain": 1012,
    "cancelled": 1012,
    "full": 1013,
    "protocol": 4400,
    "unauthorised": 4401,
    "no_hello": 4408,
    "idle": 4408,
    "replaced": 4409,
    "not_resumable": 4410,
    "max_session": 4413,
    "error": 4500,
}
_MEANING = {
    "bye": "bye",
    "agent_ended": "the agent ended the call",
    "closed": "the session was closed",
    "lost": "the line was lost",
    "too_large": f"message too large: expected at most {MAX_BYTES} bytes",
    "drain": "the server is restarting: come back with the resume token",
    "cancelled": "the server is stopping",
    "full": "full: try again later",
    "protocol": "the protocol was broken",
    "unauthorised": "unauthorised",
    "no_hello": "no hello in time: expected it within 5 s",
    "idle": "idle for too long",
    "replaced": "replaced by a newer connection of the same session",
    "not_resumable": "the session cannot be resumed",
    "max_session": "the session reached its longest time",
    "error": "internal error",
}


def close_code(end_reason: str) -> tuple[int, str]:
    """The close code for why a session ended, and a text for a person; a reason of the application's own is a plain 1000.

    >>> close_code("idle")
    (4408, 'idle for too long')
    """
    return CLOSE.get(end_reason, 1000), shorten(_MEANING.get(end_reason, end_reason or "closed"))


# --- client messages -------------------------------------------------------------------------------------------------


def _size(pcm: bytes) -> str:
    return f"<{len(pcm)} bytes>"


@attrs.frozen
class Resume:
    """What a client says to take up a session again: what it has received, and what it has played (-1: not told)."""

    session_id: str
    resume_token: str = attrs.field(repr=False)
    received_seq: int
    played_seq: int = -1
    played_ms: float = 0.0


@attrs.frozen
class Hello:
    """The first message of a client. `push` is push-to-talk (`turn_mode`)."""

    token: str = attrs.field(repr=False)
    input_rate_hz: int
    output_rate_hz: int
    push: bool = False
    metadata: dict[str, Any] = attrs.field(factory=dict)
    resume: Resume | None = None


@attrs.frozen
class AudioMessage:
    """Audio of either direction: PCM16 little-endian mono at the rate agreed for it."""

    seq: int
    pcm: bytes = attrs.field(repr=_size)


@attrs.frozen
class Played:
    """All the server's audio messages before `seq` are played, and `ms` of it."""

    seq: int
    ms: float


@attrs.frozen
class Stopped:
    """Where playing stopped, in answer to `pause` and `clear`; as `Played`."""

    seq: int
    ms: float


@attrs.frozen
class Text:
    """A typed turn."""

    seq: int
    text: str


@attrs.frozen
class StartTurn:
    """Push-to-talk was pressed."""

    seq: int


@attrs.frozen
class EndTurn:
    """Push-to-talk was released."""

    seq: int


@attrs.frozen
class Interrupt:
    """The stop button."""

    seq: int


@attrs.frozen
class Dtmf:
    """A key of a telephone: one of 0-9, *, #, A-D."""

    seq: int
    digit: str


@attrs.frozen
class Bye:
    """The client hangs up."""

    seq: int


@attrs.frozen
class Extension:
    """A message whose `type` starts with `x-`: nobody's business but its number's (-1 without one)."""

    seq: int
    type: str


@attrs.frozen
class Ack:
    """All of the receiver's messages up to `seq` arrived."""

    seq: int


@attrs.frozen
class Ping:
    """Asks for a `Pong` of the same `t_ms`."""

    t_ms: float


@attrs.frozen
class Pong:
    """Answers a `Ping`."""

    t_ms: float


ClientMessage = (
    Hello
    | AudioMessage
    | Played
    | Stopped
    | Text
    | StartTurn
    | EndTurn
    | Interrupt
    | Dtmf
    | Bye
    | Extension
    | Ack
    | Ping
    | Pong
)


# --- writing ---------------------------------------------------------------------------------------------------------


def audio(seq: int, pcm: bytes) -> bytes:
    """Audio as a binary message."""
    return seq.to_bytes(SEQ_BYTES, "little") + pcm


def text(message: Mapping[str, Any]) -> str:
    """A JSON message, compact and in ASCII.

    Raises:
        ValueError: a number in it is not finite.
    """
    return json.dumps(message, separators=(",", ":"), allow_nan=False)


# --- reading ---------------------------------------------------------------------------------------------------------


def parse_client(message: str | bytes) -> ClientMessage:
    """A client's message, checked by every rule of the protocol that needs no memory.

    What it leaves to whoever has one: the order of numbers, and that `hello` comes first and once.

    Raises:
        WireError: a rule is broken (4400), or the message is larger than 64 KiB (1009). Nothing else is ever raised.
    """
    if isinstance(message, bytes):
        return _audio(message)
    fields = read_object(message)
    name = _typed(fields)
    reader = _READERS.get(name)
    if reader is not None:
        return reader(Fields(name, fields))
    if name.startswith("x-"):
        return Extension(Fields("x-", fields).seq(default=-1), name)
    raise WireError(4400, f"type {shown(name)} is unknown; expected one of: {', '.join(_READERS)}")


def parse_server(message: str | bytes) -> dict[str, Any] | AudioMessage:
    """A server's message: audio, or the JSON object as it is, whatever its type and fields.

    Raises:
        WireError: it is neither audio nor a JSON object with a `type`.
    """
    if isinstance(message, bytes):
        return _audio(message)
    fields = read_object(message, bounded=False)
    _typed(fields)
    return fields


def _audio(message: bytes) -> AudioMessage:
    size = len(message)
    if size < SEQ_BYTES + 2 or size & 1 or size > MAX_BYTES:
        if size > MAX_BYTES:
            raise WireError(1009, f"an audio message of {size} bytes; expected at most {MAX_BYTES}")
        wanted = "whole samples of 2 bytes" if size & 1 else "at least 6: a number and one sample"
        raise WireError(4400, f"an audio message of {size} bytes; expected {wanted}")
    return AudioMessage(int.from_bytes(message[:SEQ_BYTES], "little"), message[SEQ_BYTES:])


def _typed(fields: dict[str, Any]) -> str:
    name = fields.get("type")
    if not isinstance(name, str) or not name:
        raise WireError(4400, f"a message whose type is {shown(name)}; expected the name of a message")
    return name


def _hello(fields: Fields) -> Hello:
    fields.choice("encoding", ("pcm16",), "pcm16")
    resume = fields.within("resume", needed=False)
    return Hello(
        token=fields.string("token", MAX_TOKEN, "", secret=True),
        input_rate_hz=fields.integer("sample_rate_hz", MIN_RATE_HZ, MAX_RATE_HZ),
        output_rate_hz=fields.integer("output_rate_hz", MIN_RATE_HZ, MAX_RATE_HZ),
        push=fields.choice("turn_mode", ("vad", "push"), "vad") == "push",
        metadata=fields.free("metadata", MAX_METADATA),
        resume=None if resume is None else _resume(resume),
    )


def _resume(fields: Fields) -> Resume:
    played = fields.within("played", needed=False)
    return Resume(
        session_id=fields.string("session_id", MAX_NAME, shortest=1),
        resume_token=fields.string("resume_token", MAX_NAME, shortest=1, secret=True),
        received_seq=fields.seq("received_seq", low=-1, high=MAX_RESUME_SEQ),
        played_seq=-1 if played is None else played.seq(low=-1),
        played_ms=0.0 if played is None else played.ms("ms"),
    )


_READERS: dict[str, Callable[[Fields], ClientMessage]] = {
    "hello": _hello,
    "played": lambda fields: Played(fields.seq(low=-1), fields.ms("ms")),
    "stopped": lambda fields: Stopped(fields.seq(low=-1), fields.ms("ms")),
    "text": lambda fields: Text(fields.seq(), fields.string("text", MAX_TEXT)),
    "start_turn": lambda fields: StartTurn(fields.seq()),
    "end_turn": lambda fields: EndTurn(fields.seq()),
    "interrupt": lambda fields: Interrupt(fields.seq()),
    "dtmf": lambda fields: Dtmf(fields.seq(), fields.choice("digit", tuple(DIGITS), "", "0-9, *, #, A-D")),
    "bye": lambda fields: Bye(fields.seq()),
    "ack": lambda fields: Ack(fields.seq(low=-1)),
    "ping": lambda fields: Ping(fields.ms("t_ms", -MAX_MS)),
    "pong": lambda fields: Pong(fields.ms("t_ms", -MAX_MS)),
}
