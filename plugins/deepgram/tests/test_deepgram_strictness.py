"""The loopback server refuses what Deepgram is documented to refuse: the bare SDK shows it, without the plugin."""

import asyncio
import json

import pytest

pytest.importorskip("deepgram", reason="deepgram-sdk is not installed: pip install 'deepgram-sdk>=7.17,<8'")

from beluga_voice_deepgram.vendor import DEEPGRAM
from deepgram.core.api_error import ApiError
from websockets.exceptions import ConnectionClosed

from beluga_voice.clock import Clock, run_simulated
from beluga_voice.remote import Access
from beluga_voice.testing import quiet
from beluga_voice.testing.deepgram_server import DeepgramServer
from beluga_voice.testing.tone_speech import say

LIVE = {"model": "nova-3", "encoding": "linear16", "sample_rate": 16_000}
FLUX = {"model": "flux-general-en", "encoding": "linear16", "sample_rate": 16_000}
VOICE = {"model": "aura-2-thalia-en", "encoding": "linear16", "sample_rate": 24_000}


def with_sdk(work, **server_options):
    """What `work(server, sdk)` gives, with the bare SDK."""

    async def main():
        async with DeepgramServer() as server:
            for name, value in server_options.items():
                setattr(server, name, value)
            client = await asyncio.to_thread(DEEPGRAM.make, Access("loopback-key", server.url))
            try:
                return await work(server, client.sdk)
            finally:
                await client.http.aclose()

    return run_simulated(main())


async def messages(socket, until):
    told = []
    while not told or until not in (getattr(told[-1], "type", None), getattr(told[-1], "event", None)):
        told.append(await socket.recv())
    return told


class TestHandshakes:
    @pytest.mark.parametrize(
        ("kind", "query", "status", "reason"),
        [
            ("listen.v1", {**LIVE, "model": "whisper-1"}, 400, "No such model"),
            ("listen.v1", {"model": "nova-3", "encoding": "linear16"}, 400, "needs sample_rate"),
            ("listen.v1", {**LIVE, "request_options": {"additional_query_parameters": {"typo": 1}}}, 400, "typo"),
            ("listen.v2", {**FLUX, "eot_threshold": 0.3}, 400, "eot_threshold must be between"),
            ("listen.v2", {**FLUX, "eot_threshold": 0.5, "eager_eot_threshold": 0.6}, 400, "must not be above"),
            ("listen.v2", {**FLUX, "model": "nova-3"}, 400, "No such model"),
            ("speak.v1", {**VOICE, "model": "thalia"}, 400, "No such model"),
        ],
    )
    def test_with_wrong_parameters_are_refused(self, kind, query, status, reason):
        async def work(server, sdk):
            product, version = kind.split(".")
            with pytest.raises(ApiError) as caught:
                async with getattr(getattr(sdk, product), version).connect(**query):
                    pass
            return caught.value.status_code, caught.value.__context__.headers["dg-error"]

        got, told = with_sdk(work)
        assert got == status
        assert reason in told

    def test_with_a_wrong_key_are_refused(self):
        async def work(server, sdk):
            with pytest.raises(ApiError) as caught:
                async with sdk.listen.v1.connect(**LIVE):
                    pass
            return caught.value.status_code

        assert with_sdk(work, api_key="another") == 401


class TestListen:
    def test_hangs_up_after_ten_quiet_seconds(self):
        async def work(server, sdk):
            async with sdk.listen.v1.connect(**LIVE) as socket:
                await socket.send_media(quiet(100))
                began_ms = Clock().now_ms()
                with pytest.raises(ConnectionClosed, match="NET-0001"):
                    await messages(socket, "nothing")
                return Clock().now_ms() - began_ms

        assert with_sdk(work) == pytest.approx(10_000, abs=50)

    def test_takes_an_empty_message_for_the_end(self):
        async def work(server, sdk):
            async with sdk.listen.v1.connect(**LIVE) as socket:
                await socket.send_media(say("one"))
                await socket.send_media(b"")
                return [one.type for one in await messages(socket, "Metadata")]

        assert with_sdk(work) == ["Results", "Metadata"]

    def test_answers_finalize_only_where_it_holds_audio(self):
        async def work(server, sdk):
            async with sdk.listen.v1.connect(**LIVE, endpointing=False) as socket:
                await socket.send_finalize()
                await socket.send_media(say("one"))
                await socket.send_finalize()
                await socket.send_close_stream()
                return await messages(socket, "Metadata")

        result, _ = with_sdk(work)
        assert result.from_finalize
        assert result.channel.alternatives[0].transcript == "one"

    def test_tells_of_messages_it_does_not_know(self):
        async def work(server, sdk):
            async with sdk.listen.v1.connect(**LIVE) as socket:
                await socket._send({"type": "Finalise"})
                return (await messages(socket, "Error"))[-1].variant

        assert with_sdk(work) == "SchemaError"

    def test_takes_raw_sound_in_a_batch_only_with_its_format(self):
        async def work(server, sdk):
            with pytest.raises(ApiError) as caught:
                await sdk.listen.v1.media.transcribe_file(request=say("one"), model="nova-3")
            return caught.value.status_code, caught.value.body["err_msg"]

        assert with_sdk(work) == (400, "failed to process audio: corrupt or unsupported data")


class TestFlux:
    def test_follows_its_state_machine(self):
        """An eager end comes before a resumed turn, an end last; sequence numbers grow; Updates go on in between."""

        async def work(server, sdk):
            async with sdk.listen.v2.connect(**FLUX, eager_eot_threshold=0.4) as socket:
                await socket.send_media(quiet(500) + say("one") + quiet(500) + say("two") + quiet(1_000))
                return await messages(socket, "EndOfTurn")

        told = with_sdk(work)
        assert told[0].type == "Connected"
        events = [one.event for one in told[1:]]
        assert [event for event in events if event != "Update"] == [
            *("StartOfTurn", "EagerEndOfTurn", "TurnResumed", "EagerEndOfTurn", "EndOfTurn")
        ]
        assert events[0] == "Update"
        assert [one.sequence_id for one in told] == list(range(len(told)))
        assert (told[-1].trigger, told[-1].transcript, told[-1].turn_index) == ("model", "one two", 0)

    def test_ends_no_turn_by_itself_where_it_must_not(self):
        async def work(server, sdk):
            async with sdk.listen.v2.connect(**FLUX, eot_threshold=1.0, eot_timeout_ms=2_000) as socket:
                await socket.send_media(say("one") + quiet(3_000))
                return (await messages(socket, "EndOfTurn"))[-1]

        end = with_sdk(work)
        assert end.trigger == "timeout"
        assert end.audio_window_end == pytest.approx(2.2, abs=0.05)

    @pytest.mark.parametrize("message", ["KeepAlive", "Finalize"])
    def test_does_not_know_the_messages_of_the_other_version(self, message):
        async def work(server, sdk):
            async with sdk.listen.v2.connect(**FLUX) as socket:
                await socket._send({"type": message})
                told = await messages(socket, "Error")
                with pytest.raises(ConnectionClosed):
                    await socket.recv()
                return told[-1].code

        assert with_sdk(work) == "UNPARSABLE_CLIENT_MESSAGE"


class TestSpeak:
    def test_over_http_begins_with_a_header_unless_told_not_to(self):
        async def work(server, sdk):
            wav = b"".join([piece async for piece in sdk.speak.v1.audio.generate(text="one", **VOICE)])
            raw = b"".join([piece async for piece in sdk.speak.v1.audio.generate(text="one", container="none", **VOICE)])
            return wav[:4], wav.endswith(raw), raw == say("one", 24_000)

        assert with_sdk(work) == (b"RIFF", True, True)

    @pytest.mark.parametrize(("text", "status"), [("", 400), ("a" * 2_001, 413)])
    def test_over_http_refuses_texts_of_no_size(self, text, status):
        async def work(server, sdk):
            with pytest.raises(ApiError) as caught:
                async for _ in sdk.speak.v1.audio.generate(text=text, container="none", **VOICE):
                    pass
            return caught.value.status_code

        assert with_sdk(work) == status

    def test_says_nothing_before_flush_and_warns_of_too_many(self):
        from deepgram.speak.v1.types import SpeakV1Text

        async def work(server, sdk):
            server.chunk_every_ms = 0.0
            async with sdk.speak.v1.connect(**VOICE) as socket:
                assert (await socket.recv()).type == "Metadata"
                await socket.send_text(SpeakV1Text(text="one"))
                await Clock().sleep_ms(1_000)
                for _ in range(21):
                    await socket.send_flush()
                told = await messages(socket, "Warning")
                return [getattr(one, "type", "sound") for one in told]

        told = with_sdk(work)
        assert told.count("Flushed") >= 19  # the last may be on its way
        assert told[0] == "sound"

    def test_cleared_comes_after_the_sound_it_cut(self):
        """And as an object of the class of Flushed: only its `type` tells."""
        from deepgram.speak.v1.types import SpeakV1Text

        async def work(server, sdk):
            async with sdk.speak.v1.connect(**VOICE) as socket:
                await socket.send_text(SpeakV1Text(text="one two three four"))
                await socket.send_flush()
                await messages(socket, "Metadata")
                await socket.recv()
                await socket.send_clear()
                return await messages(socket, "Cleared")

        told = with_sdk(work)
        assert all(isinstance(one, bytes) for one in told[:-1])
        assert type(told[-1]).__name__ == "SpeakV1Flushed"

    def test_hangs_up_on_what_it_does_not_understand(self):
        async def work(server, sdk):
            async with sdk.speak.v1.connect(**VOICE) as socket:
                await socket._send(json.dumps({"type": "Shout"}))
                with pytest.raises(ConnectionClosed, match="DATA-0000"):
                    await messages(socket, "nothing")

        with_sdk(work)
