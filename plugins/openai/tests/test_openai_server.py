"""The loopback server: what the documentation does not allow is refused in OpenAI's words; a fake that forgives hides bugs."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import openai
import pytest
from beluga_voice_openai.wav import wav

from beluga_voice.audio import Audio
from beluga_voice.clock import run_simulated
from beluga_voice.testing.openai_server import GroqServer, OpenAIServer
from beluga_voice.testing.tone_speech import say

CHAT = {"model": "gpt-5.4-mini", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
RESPONSE = {"model": "gpt-5.4-mini", "stream": True, "input": [{"role": "user", "content": "hello"}]}
SPEECH = {"model": "gpt-4o-mini-tts", "voice": "alloy", "input": "hello", "response_format": "pcm"}
CALL = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "9"}
SCHEMA = {"type": "object", "properties": {"day": {"type": "string"}}, "required": []}


@asynccontextmanager
async def served(server_class=OpenAIServer):
    """The SDK's client of a server."""
    async with server_class() as server:
        yield openai.AsyncOpenAI(api_key=server.api_key, base_url=server.base_url, max_retries=0)


def post(path, body, server_class=OpenAIServer):
    """The error that the real SDK raises for this request, if any."""

    async def main():
        async with served(server_class) as client, client:
            try:
                await client.post(path, body=body, cast_to=object)
            except openai.APIStatusError as error:
                return error
        return None

    return run_simulated(main())


@pytest.mark.parametrize(("path", "body"), [("/chat/completions", CHAT), ("/responses", RESPONSE), ("/audio/speech", SPEECH)])
def test_takes_what_is_right(path, body):
    assert post(path, body) is None


@pytest.mark.parametrize(
    ("path", "body", "status", "why"),
    [
        ("/chat/completions", {**CHAT, "model": "gpt-9"}, 404, "gpt-9"),
        ("/chat/completions", {**CHAT, "max_tokens": 9}, 400, "max_tokens"),
        ("/chat/completions", {**CHAT, "messages": []}, 400, "messages"),
        ("/chat/completions", {**CHAT, "messages": [{"role": "user", "content": None}]}, 400, "content"),
        ("/chat/completions", {**CHAT, "messages": [{"role": "caller", "content": "x"}]}, 400, "caller"),
        ("/chat/completions", {**CHAT, "messages": [{"role": "assistant", "tool_calls": [CALL]}]}, 400, "No tool output"),
        (
            "/chat/completions",
            {**CHAT, "messages": [{"role": "tool", "tool_call_id": "c", "content": ""}]},
            400,
            "No tool call",
        ),
        ("/chat/completions", {**CHAT, "tool_choice": "none"}, 400, "tool_choice"),
        ("/responses", {**RESPONSE, "messages": []}, 400, "messages"),
        ("/responses", {**RESPONSE, "input": [OUTPUT]}, 400, "No tool call found"),
        ("/responses", {**RESPONSE, "tools": [{"type": "function", "name": "a", "parameters": SCHEMA}]}, 400, "required"),
        ("/audio/speech", {**SPEECH, "input": "x" * 4_097}, 400, "4096"),
        ("/audio/speech", {**SPEECH, "speed": 5}, 400, "speed"),
        ("/audio/speech", {**SPEECH, "voice": ""}, 400, "voice"),
        ("/audio/nothing", SPEECH, 404, "Invalid URL"),
    ],
)
def test_refuses_what_is_wrong(path, body, status, why):
    error = post(path, body)
    assert error.status_code == status
    assert why in str(error)


def test_groq_has_no_pcm():
    error = post("/audio/speech", {**SPEECH, "model": "canopylabs/orpheus-v1-english"}, GroqServer)
    assert "['wav']" in str(error)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"language": "en-GB"}, "ISO-639-1"),
        ({"model": "whisper-9"}, "whisper-9"),
        ({"file": ("a.wav", wav(Audio(say("one"), 16_000))[:-2])}, "corrupted"),
        ({"file": ("a.wav", wav(Audio(bytes(4), 16_000)))}, "too short"),
        ({"file": ("speech", wav(Audio(say("one"), 16_000)))}, "format"),
    ],
)
def test_refuses_sound_it_cannot_read(change, why):
    async def main():
        given = {"model": "gpt-transcribe", "file": ("a.wav", wav(Audio(say("one"), 16_000))), **change}
        async with served() as client, client:
            await client.audio.transcriptions.create(**given)

    with pytest.raises((openai.BadRequestError, openai.NotFoundError), match=why):
        run_simulated(main())


def test_a_realtime_socket_wants_its_options_first():
    """Audio before session.update, text that is no audio, and an utterance of nothing are told as errors; the socket stays."""

    async def main():
        told = []
        connecting = {"extra_query": {"intent": "transcription"}}
        async with served() as client, client, client.realtime.connect(**connecting) as connection:
            heard = {"format": {"type": "audio/pcm", "rate": 24_000}, "transcription": {"model": "gpt-live-transcribe"}}
            session = {"type": "transcription", "audio": {"input": {**heard, "turn_detection": None}}}
            events = [
                {"type": "input_audio_buffer.append", "audio": "AAAA"},
                {"type": "session.update", "session": {**session, "type": "realtime"}},
                {"type": "session.update", "session": session},
                {"type": "input_audio_buffer.append", "audio": "!"},
                {"type": "input_audio_buffer.commit", "event_id": "mine"},
                {"type": "response.create"},
            ]
            assert (await connection.recv()).type == "session.created"
            for event in events:
                await connection.send(event)
                answer = json.loads(await connection.recv_bytes())
                told.append(answer["error"]["code"] if answer["type"] == "error" else answer["type"])
        return told

    assert run_simulated(main()) == [
        "session_not_configured",
        "invalid_value",
        "session.updated",
        "invalid_value",
        "input_audio_buffer_commit_empty",
        "invalid_value",
    ]
