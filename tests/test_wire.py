"""The protocol's codec: what is right is read, what is wrong is refused with a readable reason, nothing else ever happens."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice import wire

HELLO = {"type": "hello", "token": "t", "sample_rate_hz": 16_000, "output_rate_hz": 24_000, "encoding": "pcm16"}
RESUME = {"session_id": "s", "resume_token": "r", "received_seq": 7, "played": {"seq": 5, "ms": 12.5}}
NAMES = ["hello", "played", "stopped", "text", "start_turn", "end_turn", "interrupt", "dtmf", "bye", "ack", "ping", "pong"]

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
fields = st.fixed_dictionaries(
    {"type": st.sampled_from([*NAMES, "x-new", "unknown"]) | values},
    optional={
        name: values
        for name in (
            *("seq", "ms", "t_ms", "text", "digit", "token", "sample_rate_hz", "output_rate_hz", "encoding"),
            *("turn_mode", "metadata", "resume", "session_id"),
        )
    },
)


def refused(message):
    with pytest.raises(wire.WireError) as error:
        wire.parse_client(message if isinstance(message, (str, bytes)) else json.dumps(message))
    assert 1 <= len(error.value.reason.encode()) <= 123
    assert error.value.reason.isascii()
    return error.value


def reason_of(parse, message):
    """Why it is refused, or "read"."""
    try:
        parse(message)
    except wire.WireError as error:
        return error.reason
    return "read"


def said(message):
    return wire.parse_client(json.dumps(message))


class TestReading:
    @pytest.mark.parametrize(
        ("message", "meant"),
        [
            ({"type": "played", "seq": 3, "ms": 20}, wire.Played(3, 20)),
            ({"type": "stopped", "seq": -1, "ms": 0.5}, wire.Stopped(-1, 0.5)),
            ({"type": "text", "seq": 0, "text": "hi \u00e9"}, wire.Text(0, "hi \u00e9")),
            ({"type": "start_turn", "seq": 1}, wire.StartTurn(1)),
            ({"type": "end_turn", "seq": 1}, wire.EndTurn(1)),
            ({"type": "interrupt", "seq": 1}, wire.Interrupt(1)),
            ({"type": "dtmf", "seq": 1, "digit": "#"}, wire.Dtmf(1, "#")),
            ({"type": "bye", "seq": 9, "more": [1]}, wire.Bye(9)),
            ({"type": "ack", "seq": -1}, wire.Ack(-1)),
            ({"type": "ping", "t_ms": -4.5}, wire.Ping(-4.5)),
            ({"type": "pong", "t_ms": 1.7e12}, wire.Pong(1.7e12)),
            ({"type": "x-mood", "seq": 4, "mood": {}}, wire.Extension(4, "x-mood")),
            ({"type": "x-mood"}, wire.Extension(-1, "x-mood")),
        ],
    )
    def test_reads_every_message(self, message, meant):
        """Each message of a client is what it says; fields that nobody knows are ignored."""
        assert said(message) == meant

    def test_reads_hello(self):
        """A hello with all that it may have, and one with only what it must."""
        full = said({**HELLO, "turn_mode": "push", "metadata": {"a": [1]}, "resume": RESUME})
        assert full == wire.Hello("t", 16_000, 24_000, True, {"a": [1]}, wire.Resume("s", "r", 7, 5, 12.5))
        assert said({"type": "hello", "sample_rate_hz": 8_000, "output_rate_hz": 48_000}) == wire.Hello("", 8_000, 48_000)

    def test_shows_no_token(self):
        """Neither a hello nor what is wrong with it shows a secret."""
        hello = said({**HELLO, "token": "secret1", "resume": {**RESUME, "resume_token": "secret2"}})
        assert "secret" not in repr(hello)
        assert "secret" not in refused({**HELLO, "token": "secret" * 1_000}).reason
        assert "secret" not in refused({**HELLO, "resume": {**RESUME, "resume_token": "secret" * 100}}).reason
        assert "secret" not in refused({**HELLO, "resume": "secret token"}).reason

    @given(st.integers(0, 2**32 - 1), st.binary(min_size=2, max_size=200).filter(lambda pcm: len(pcm) % 2 == 0))
    def test_audio_comes_back(self, seq, pcm):
        """Audio that was written is read as it was, by both ends."""
        message = wire.audio(seq, pcm)
        assert wire.parse_client(message) == wire.parse_server(message) == wire.AudioMessage(seq, pcm)


class TestRefusing:
    @pytest.mark.parametrize("size", [0, 1, 4, 5, 7, 645, 65_537])
    def test_audio_of_a_wrong_size(self, size):
        """No sample, half a sample, or more than 64 KiB."""
        assert refused(bytes(size)).code == (1009 if size > 65_536 else 4400)

    @pytest.mark.parametrize("message", ["", "x", "[]", "3", "null", '"text"', "{", "{}", '{"type":3}', '{"type":""}'])
    def test_text_that_is_no_message(self, message):
        """Text must be a JSON object with a type."""
        assert refused(message).code == 4400

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5_000])
    def test_numbers_that_are_none(self, number):
        """No NaN, nothing infinite, nothing endless, wherever it stands."""
        refused(f'{{"type":"ping","t_ms":{number}}}')
        refused(f'{{"type":"x-a","seq":1,"b":[{number}]}}')

    def test_depth(self):
        """32 levels are allowed, 33 are not; brackets in text are no levels."""
        deep = '{"type":"x-a","seq":1,"a":' + "[" * 31 + "]" * 31 + "}"
        assert wire.parse_client(deep) == wire.Extension(1, "x-a")
        refused(deep.replace("[]", "[[]]"))
        refused("[" * 60_000)
        refused('{"a":' * 10_000)
        assert said({"type": "text", "seq": 1, "text": "[{" * 100 + '"\\'}).text.startswith("[{")

    def test_half_a_character(self):
        """An escape that is half of a surrogate pair is in no text that a program could write."""
        refused(r'{"type":"text","seq":1,"text":"\ud800"}')
        assert wire.parse_client(r'{"type":"text","seq":1,"text":"\ud83d\ude00"}') == wire.Text(1, "\U0001f600")
        refused("{\"type\":\"text\",\"seq\":1,\"text\":\"\ud800\"}")

    def test_too_large(self):
        """A text message of more than 64 KiB, counted in bytes."""
        assert refused('{"type":"text","seq":1,"text":"' + "\u00e9" * 33_000 + '"}').code == 1009

    @pytest.mark.parametrize(
        ("message", "told"),
        [
            ({"type": "hallo"}, "type 'hallo' is unknown"),
            ({**HELLO, "sample_rate_hz": 7_999}, "sample_rate_hz is 7999; expected a whole number from 8000 to 48000"),
            ({**HELLO, "output_rate_hz": 48_001}, "output_rate_hz is 48001"),
            ({**HELLO, "output_rate_hz": 16_000.0}, "output_rate_hz is 16000.0"),
            ({**HELLO, "sample_rate_hz": True}, "sample_rate_hz is true"),
            ({**HELLO, "sample_rate_hz": None}, "sample_rate_hz is null"),
            ({**HELLO, "encoding": "opus"}, "encoding is 'opus'; expected one of pcm16"),
            ({**HELLO, "turn_mode": ["vad"]}, "turn_mode is a JSON list"),
            ({**HELLO, "metadata": []}, "metadata is a JSON list"),
            ({**HELLO, "metadata": {"a": "b" * 20_000}}, "metadata has 20009 bytes"),
            ({**HELLO, "token": 5}, "token is a number"),
            ({**HELLO, "resume": {**RESUME, "received_seq": 2**31}}, "received_seq is 2147483648"),
            ({**HELLO, "resume": {**RESUME, "session_id": ""}}, "session_id is ''"),
            ({**HELLO, "resume": {**RESUME, "played": {"seq": 1}}}, "hello.resume.played: ms is missing"),
            ({"type": "hello"}, "sample_rate_hz is missing"),
            ({"type": "text", "text": "a"}, "text: seq is missing"),
            ({"type": "text", "seq": True, "text": "a"}, "seq is true"),
            ({"type": "text", "seq": 2**32, "text": "a"}, "seq is 4294967296"),
            ({"type": "text", "seq": 1, "text": "a" * 10_001}, "text has 10001 characters"),
            ({"type": "x-a", "seq": "1"}, "seq is '1'"),
            ({"type": "played", "seq": 1, "ms": -0.1}, "ms is -0.1"),
            ({"type": "played", "seq": 1, "ms": 10**400}, "ms is 1000"),
            ({"type": "dtmf", "seq": 1, "digit": "10"}, "digit is '10'"),
            ({"type": "dtmf", "seq": 1, "digit": ""}, "digit is ''"),
            ({"type": "ping"}, "t_ms is missing"),
        ],
    )
    def test_says_what_is_wrong(self, message, told):
        """The reason names the field, its value and what was expected."""
        error = refused(message)
        assert error.code == 4400
        assert told in error.reason

    @given(st.text() | st.binary(max_size=50))
    def test_garbage_is_refused_or_read(self, message):
        """Whatever comes, nothing but WireError is raised."""
        for parse in (wire.parse_client, wire.parse_server):
            assert reason_of(parse, message)

    @given(fields)
    def test_any_json_is_refused_or_read(self, message):
        """Fields of any kind and value raise nothing but WireError, whose reason fits a close frame."""
        assert 1 <= len(reason_of(wire.parse_client, json.dumps(message)).encode()) <= 123


class TestServerMessages:
    def test_a_client_reads_leniently(self):
        """Types and fields that nobody knows come through; what is no message does not."""
        assert wire.parse_server('{"type":"new","a":1}') == {"type": "new", "a": 1}
        for bad in ("[]", "{}", b"1", "x"):
            with pytest.raises(wire.WireError):
                wire.parse_server(bad)

    def test_is_plain_ascii(self):
        """What is written can be sent whatever characters a program made."""
        assert wire.parse_server(wire.text({"type": "a", "b": "\u00e9"})) == {"type": "a", "b": "\u00e9"}
        assert wire.text({"type": "a", "b": "\ud800"}).isascii()

    @pytest.mark.parametrize(
        ("reason", "code"),
        [
            *(("bye", 1000), ("agent_ended", 1000), ("closed", 1000), ("my own reason", 1000), ("", 1000), ("idle", 4408)),
            *(("max_session", 4413), ("drain", 1012), ("replaced", 4409), ("error", 4500)),
        ],
    )
    def test_every_end_has_a_code_and_words(self, reason, code):
        """A session's end is told by a code and words that fit a close frame."""
        told, words = wire.close_code(reason)
        assert told == code
        assert 1 <= len(words) <= 123
