"""Recognisers: every word of the line reaches one, and every request for a final is answered once."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice import Audio, Chain, turn
from beluga_voice.clock import run_simulated
from beluga_voice.engine import Context
from beluga_voice.errors import ProtocolError
from beluga_voice.frames import AudioIn, Failed, Transcript, TurnEnded, TurnEndProposed
from beluga_voice.stt import STT, BatchStream, STTCapabilities, STTStream
from beluga_voice.testing import LoudVAD, ScriptedSTT, quiet, speech

RATE_HZ = 16_000
TALK = quiet(500) + speech(1_000) + quiet(1_200) + speech(800, seed=1) + quiet(1_200)


def placed(pcm, rate_hz=RATE_HZ):
    step = rate_hz // 50 * 2
    return [AudioIn(pcm[at : at + step], rate_hz, at * 500 / rate_hz) for at in range(0, len(pcm), step)]


def listen(engine, pcm=TALK, rate_hz=RATE_HZ, order="turn first", pace_s=0.02, then_s=0.0):
    """All frames that ears with this recogniser make of a line, and what was counted; nothing is left behind."""

    async def main():
        stages = [LoudVAD(), turn.new("silence"), engine] if order == "turn first" else [LoudVAD(), engine, turn.new("silence")]

        async def line():
            for frame in placed(pcm, rate_hz):
                yield frame
                await asyncio.sleep(pace_s)
            await asyncio.sleep(then_s)

        async with Context(input_rate_hz=rate_hz) as context:
            async with Chain(*stages).process(context.feed(line()), context) as frames:
                out = [frame async for frame in frames]
            counters = dict(context.counters)
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
        return out, counters

    return run_simulated(main())


def closing(frames):
    return [frame.text for frame in frames if isinstance(frame, Transcript) and frame.closes]


class Streaming(STT):
    """Says how many ms of sound it was given between two finals; interims on the way; can be told to fail."""

    capabilities = STTCapabilities(sample_rate_hz=16_000, interim=True)
    ends_early_after = 10**9

    def __init__(self, continuous=False, fail_at=None):
        if continuous:
            self.capabilities = STTCapabilities(sample_rate_hz=16_000, continuous=True, interim=True)
        self.streams, self.fail_at, self.fails = [], fail_at, 1

    def stream(self):
        self.streams.append(_Streaming(self))
        return self.streams[-1]

    def failing(self, where):
        if self.fail_at == where and self.fails:
            self.fails -= 1
            raise ConnectionResetError(f"lost at {where}")


class _Streaming(STTStream):
    def __init__(self, engine):
        self.engine, self.out, self.pcm, self.closed = engine, asyncio.Queue(), b"", False
        self.all = b""

    async def send(self, audio):
        assert audio.sample_rate_hz == 16_000
        assert not self.closed
        self.engine.failing("send")
        if self.engine.fail_at in ("read", "end") and self.engine.fails:
            self.engine.fails -= 1
            await self.out.put(self.engine.fail_at)
        self.pcm += audio.pcm
        self.all += audio.pcm

    async def finalize(self):
        self.engine.failing("finalize")
        await asyncio.sleep(0.1)
        await self.out.put(Transcript(f"{len(self.pcm) / 32:.0f}", closes=True))
        self.pcm = b""

    async def __anext__(self):
        item = await self.out.get()
        if item == "read":
            raise ConnectionResetError("lost at read")
        if item == "end":
            raise StopAsyncIteration
        return item

    async def aclose(self):
        self.closed = True


class TestOrders:
    @pytest.mark.parametrize("order", ["turn first", "words first"])
    @pytest.mark.parametrize("kind", ["batch", "stream", "continuous"])
    def test_each_utterance_is_answered_once_before_the_next(self, order, kind):
        """With the turn detector before or after it: one final an utterance, in order, at its turn's end or its own."""
        engine = ScriptedSTT("one", "two") if kind == "batch" else Streaming(kind == "continuous")
        frames, _ = listen(engine, order=order)
        finals = [n for n, frame in enumerate(frames) if isinstance(frame, Transcript) and frame.closes]
        ends = [n for n, frame in enumerate(frames) if isinstance(frame, TurnEnded)]
        assert len(ends) == 2
        spoken = closing(frames)[:2]
        if kind == "batch":
            assert spoken == ["one", "two"]
        if order == "words first":
            assert finals[0] < ends[0] < finals[1] < ends[1]
        else:
            assert ends[0] < finals[0] < ends[1] < finals[1]

    def test_only_speech_reaches_one_that_wants_utterances(self):
        """From the pre-roll to the end of the turn, and never the quiet between."""
        engine = Streaming()
        listen(engine)
        heard_ms = len(engine.streams[0].all) / 32
        assert heard_ms == pytest.approx(300 + 1_000 + 700 + 300 + 800 + 700, abs=150)

    def test_all_of_the_line_reaches_a_continuous_one(self):
        engine = Streaming(continuous=True)
        listen(engine)
        assert engine.streams[0].all == TALK

    @pytest.mark.parametrize("rate_hz", [8_000, 48_000])
    def test_another_rate_is_converted_without_losing_the_end(self, rate_hz):
        """A continuous recogniser at 16 kHz on an 8 or 48 kHz line hears as long as was spoken."""
        engine = Streaming(continuous=True)
        pcm = TALK[: len(TALK) // 6 * 6]
        listen(engine, pcm, rate_hz)
        assert len(engine.streams[0].all) / 32 == pytest.approx(len(pcm) * 500 / rate_hz, abs=1)
        assert engine.streams[0].closed


class TestFailing:
    @pytest.mark.parametrize("fail_at", ["send", "finalize", "read", "end"])
    @pytest.mark.parametrize("continuous", [False, True])
    def test_a_stream_that_fails_is_opened_again_and_nobody_waits(self, fail_at, continuous):
        """Wherever it breaks: told, what was owed is answered, and the next utterance is understood."""
        engine = Streaming(continuous, fail_at)
        frames, _ = listen(engine)
        failed = [frame for frame in frames if isinstance(frame, Failed)]
        assert len(failed) == (0 if fail_at == "end" else 1)
        assert all(isinstance(frame.error, ProtocolError) and "Streaming" in str(frame.error) for frame in failed)
        ends = [n for n, frame in enumerate(frames) if isinstance(frame, TurnEnded)]
        finals = [n for n, frame in enumerate(frames) if isinstance(frame, Transcript) and frame.closes]
        assert len(finals) == len(ends) + continuous
        assert float(closing(frames)[1]) > 1_000
        assert len(engine.streams) == 2
        assert all(stream.closed for stream in engine.streams)

    @pytest.mark.parametrize("times", [1, 9])
    def test_a_stream_that_ends_while_a_final_is_owed_is_opened_again(self, times):
        """The provider hangs up instead of answering: asked once more, it may know; if not, that is a failure."""

        class HangsUp(Streaming):
            def stream(self):
                stream = super().stream()
                if len(self.streams) <= times:
                    stream.finalize = lambda: stream.out.put("end")
                return stream

        frames, _ = listen(HangsUp())
        failed = [frame for frame in frames if isinstance(frame, Failed)]
        if times == 1:
            assert failed == []
            assert [float(text) > 1_000 for text in closing(frames)] == [True, True]
        else:
            assert ["before the final" in str(frame.error) for frame in failed] == [True, True]
            assert closing(frames) == ["", ""]

    def test_a_recogniser_that_stalls_holds_bounded_audio_and_counts_the_rest(self):
        """Ten minutes of speech into one that takes nothing: thirty seconds wait, the rest is counted."""

        class Stalled(Streaming):
            capabilities = STTCapabilities(continuous=True)

            def stream(self):
                stream = super().stream()

                async def send(audio):
                    await asyncio.Event().wait()

                stream.send = send
                return stream

        async def main():
            async def line():
                for frame in placed(bytes(32 * 600_000)):
                    yield frame

            async with Context() as context:
                engine = Stalled()
                async with Chain(engine.as_frame_processor()).process(context.feed(line()), context) as frames:
                    count = 0
                    async for _ in frames:
                        count += 1
                        if count == 30_000:
                            break
                return context.counters["stt_audio_dropped_ms"]

        assert run_simulated(main()) == pytest.approx(600_000 - 30_000, abs=100)

    @given(st.integers(0, 5_000), st.sampled_from(["batch", "stream", "continuous"]))
    def test_stopped_at_any_moment_everything_is_freed(self, stop_ms, kind):
        """The ears are closed in the middle: streams closed, calls cancelled, no task left."""

        async def main():
            engine = ScriptedSTT("a", delay_ms=400) if kind == "batch" else Streaming(kind == "continuous")

            async def line():
                for frame in placed(TALK):
                    yield frame
                    await asyncio.sleep(0.02)

            async def run():
                async with Context() as context:
                    chain = Chain(LoudVAD(), turn.new("silence"), engine)
                    async with chain.process(context.feed(line()), context) as frames:
                        async for _ in frames:
                            pass

            running = asyncio.get_running_loop().create_task(run())
            await asyncio.sleep(stop_ms / 1_000)
            running.cancel()
            await asyncio.wait([running])
            assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
            assert all(stream.closed for stream in getattr(engine, "streams", []))

        run_simulated(main())


class TestTheEndOfTheLine:
    @pytest.mark.parametrize("kind", ["batch", "stream", "continuous"])
    def test_what_was_said_last_is_still_written_down(self, kind):
        """The line ends in mid-word: its final comes before the frames do."""
        engine = ScriptedSTT("cut off", delay_ms=700) if kind == "batch" else Streaming(kind == "continuous")
        frames, _ = listen(engine, quiet(500) + speech(900))
        (last,) = closing(frames)
        assert last == "cut off" if kind == "batch" else float(last) >= 900

    def test_one_that_never_answers_is_not_waited_for_for_ever(self):
        class Hung(Streaming):
            def stream(self):
                stream = super().stream()

                async def finalize():
                    return None

                stream.finalize = finalize
                return stream

        frames, _ = listen(Hung(), quiet(500) + speech(900))
        assert closing(frames) == []


class TestBothWays:
    def test_a_stream_serves_a_batch_call(self):
        """Its finals are joined, up to the closing one."""

        class Words(STT):
            def stream(self):
                stream = _Streaming(Streaming())

                async def finalize():
                    for one in (Transcript("hal", is_final=False), Transcript("hello"), Transcript("there", closes=True)):
                        await stream.out.put(one)

                stream.finalize = finalize
                self.stream_made = stream
                return stream

        engine = Words()
        transcript = run_simulated(engine.transcribe(Audio(speech(100), RATE_HZ)))
        assert transcript.text == "hello there"
        assert engine.stream_made.closed

    @given(st.lists(st.integers(0, 900), min_size=1, max_size=6))
    def test_a_batch_engine_serves_a_stream(self, sizes):
        """All that was sent since the last final, in one piece; with nothing sent, an empty final and no call."""

        async def main():
            engine = ScriptedSTT("text")
            stream = BatchStream(engine)
            sound = np.arange(sum(sizes), dtype="<i2").tobytes()
            at = 0
            for size in sizes:
                await stream.send(Audio(sound[2 * at : 2 * (at + size)], RATE_HZ))
                at += size
            await stream.finalize()
            first = await anext(stream)
            await stream.finalize()
            second = await anext(stream)
            await stream.aclose()
            return first, second, [audio.pcm for audio in engine.heard], sound

        first, second, heard, sound = run_simulated(main())
        assert (first.text, first.closes, second.text, second.closes) == ("text", True, "", True)
        assert heard == [sound]

    def test_speculation_is_used_once_and_shown_as_an_interim(self):
        """Proposed, transcribed, finalised: one call; withdrawn: the call is cancelled and another is made."""

        async def main():
            engine = ScriptedSTT("early", "late", delay_ms=100)
            stream = BatchStream(engine)
            await stream.send(Audio(speech(100), RATE_HZ))
            await stream.propose()
            await asyncio.sleep(0.05)
            await stream.withdraw()
            await stream.propose()
            await asyncio.sleep(0.2)
            await stream.send(Audio(quiet(100), RATE_HZ))
            await stream.finalize()
            got = [await anext(stream), await anext(stream)]
            await stream.aclose()
            return [(one.text, one.is_final, one.closes) for one in got], len(engine.heard)

        assert run_simulated(main()) == ([("early", False, False), ("early", True, True)], 1)

    def test_a_speculative_call_that_fails_fails_the_final(self):
        class Sick(ScriptedSTT):
            async def transcribe(self, audio):
                raise OSError("no disk")

        frames, _ = listen(Sick(), quiet(500) + speech(900) + quiet(1_200))
        assert [type(frame) for frame in frames if isinstance(frame, (Failed, TurnEndProposed))] == [TurnEndProposed, Failed]
        assert closing(frames)[0] == ""
