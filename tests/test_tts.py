"""Voices: text in pieces becomes sentences, sentences become sound, and nothing is lost, kept or left running."""

from __future__ import annotations

import asyncio
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice import Audio, Chain, tts
from beluga_voice.clock import run_simulated
from beluga_voice.engine import Context
from beluga_voice.errors import ProtocolError, RateLimitError
from beluga_voice.frames import AudioOut, Failed, TextDelta
from beluga_voice.tts import TTS, SentenceSplitter, TTSCapabilities

RATE_HZ = 16_000
prose = st.text(st.sampled_from("ab1. ,!?\n\t\"'-éß水…"), max_size=120)
cuts = st.lists(st.integers(0, 120), max_size=12)


def pieces_of(text, places):
    places = [0, *sorted(place for place in places if place < len(text)), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(places)]


def letters(text):
    return "".join(text.split())


class TestSplitter:
    @given(prose, cuts, st.integers(5, 60))
    def test_no_text_is_lost_or_invented_at_any_chunking(self, text, places, longest):
        """Everything but white space comes out once, in order, in pieces no longer than the longest."""
        split = SentenceSplitter("en", longest)
        out = [sentence for piece in pieces_of(text, places) for sentence in split.feed(piece)]
        out.append(split.rest())
        assert letters("".join(out)) == letters(text)
        assert all(len(sentence) <= longest for sentence in out)
        assert all(sentence == sentence.strip() for sentence in out)
        assert "" not in out[:-1]
        assert split.rest() == ""

    def test_a_sentence_leaves_when_the_next_has_begun(self):
        split = SentenceSplitter("en")
        text = "Dr. Smith paid $3.50. She left. Then"
        out = [sentence for letter in text for sentence in split.feed(letter)]
        assert out == ["Dr. Smith paid $3.50.", "She left."]
        assert split.rest() == "Then"

    def test_an_unknown_language_is_split_all_the_same(self):
        split = SentenceSplitter("xx-YY")
        assert [*split.feed("One. Two. "), split.rest()] in (["One.", "Two.", ""], ["One.", "Two."])


class Batch(TTS):
    """A sample for every letter, and one for the blank behind: what was said can be read back from the sound."""

    capabilities = TTSCapabilities()

    def __init__(self, rate_hz=RATE_HZ, wait_s=0.0):
        self.rate_hz, self.wait_s, self.said, self.under_way = rate_hz, wait_s, [], 0

    async def synthesize(self, text):
        self.said.append(text)
        self.under_way += 1
        try:
            await asyncio.sleep(self.wait_s)
        finally:
            self.under_way -= 1
        return Audio(np.array([ord(letter) for letter in text + " "], "<i2").tobytes(), self.rate_hz)


def speak(voice, texts, rate_hz=RATE_HZ, gap_s=0.0, read=None):
    """The frames a voice's stage makes of an agent's texts."""

    async def main():
        async def source():
            for text in texts:
                yield TextDelta(text)
                await asyncio.sleep(gap_s)

        out = []
        async with Context(output_rate_hz=rate_hz) as context, Chain._of((voice.as_frame_processor(),)).process(
            source(), context
        ) as frames:
            async for frame in frames:
                out.append(frame)
                if read is not None and len(out) >= read:
                    break
        left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert left == []
        return out

    return run_simulated(main())


def readable(frames):
    pcm = b"".join(frame.pcm for frame in frames if isinstance(frame, AudioOut))
    return "".join(map(chr, np.frombuffer(pcm, "<i2")))


class TestStage:
    @given(prose, cuts, st.sampled_from([0.0, 0.2]))
    def test_all_text_passes_by_and_all_of_it_is_spoken(self, text, places, gap_s):
        """In any pieces and at any pace: the deltas come through as they were, the sound says all of them, in order."""
        texts = [piece for piece in pieces_of(text, places) if piece]
        frames = speak(Batch(), texts, gap_s=gap_s)
        assert [frame.text for frame in frames if isinstance(frame, TextDelta)] == texts
        assert letters(readable(frames)) == letters(text)
        marked = [frame.text for frame in frames if isinstance(frame, AudioOut) and frame.text]
        assert letters("".join(marked)) == letters(text)

    @pytest.mark.parametrize("line_hz", [8_000, 48_000])
    @pytest.mark.parametrize("voice_hz", [8_000, 22_050, 24_000, 48_000])
    def test_the_line_gets_its_own_rate(self, line_hz, voice_hz):
        """The length in ms is kept, sentence by sentence, and the text stands where its sound begins."""

        class Long(TTS):
            async def synthesize(self, text):
                return Audio(bytes(2 * voice_hz // 4), voice_hz)

        frames = [frame for frame in speak(Long(), ["One. ", "Two. "], line_hz) if isinstance(frame, AudioOut)]
        assert {frame.sample_rate_hz for frame in frames} == {line_hz}
        assert sum(len(frame.pcm) for frame in frames) / 2 / line_hz * 1_000 == pytest.approx(500, abs=1)
        first = next(n for n, frame in enumerate(frames) if frame.text == "Two.")
        assert sum(len(frame.pcm) for frame in frames[:first]) / 2 / line_hz * 1_000 == pytest.approx(250, abs=1)

    def test_a_sample_cut_in_two_is_put_together(self):
        """A voice that streams bytes as they come off a socket: every sample is whole, and the next sentence too."""

        class Bytes(TTS):
            async def synthesize_stream(self, texts):
                async for text in texts:
                    pcm = np.arange(1, 11, dtype="<i2").tobytes()
                    for at in range(0, 20, 3):
                        yield AudioOut(pcm[at : at + 3], RATE_HZ, text if at == 0 else "")
                    yield AudioOut(b"x", RATE_HZ)  # and half a sample too many

        frames = speak(Bytes(), ["One. ", "Two. "])
        pcm = b"".join(frame.pcm for frame in frames if isinstance(frame, AudioOut))
        assert np.frombuffer(pcm, "<i2").tolist() == [*range(1, 11)] * 2

    @pytest.mark.parametrize("empty", ["nothing", "no bytes"])
    def test_a_voice_that_gives_nothing_ends_all_the_same(self, empty):
        class Silent(TTS):
            async def synthesize_stream(self, texts):
                async for _ in texts:
                    if empty == "no bytes":
                        yield AudioOut(b"", RATE_HZ)

        frames = speak(Silent(), ["One. ", "Two."])
        assert [frame for frame in frames if isinstance(frame, TextDelta)] == [TextDelta("One. "), TextDelta("Two.")]
        assert readable(frames) == ""

    def test_streaming_text_goes_to_the_voice_in_whole_words_as_it_comes(self):
        got = []

        class Streaming(TTS):
            capabilities = TTSCapabilities(streaming_text=True)

            async def synthesize_stream(self, texts):
                async for text in texts:
                    got.append(text)
                    yield AudioOut(b"\1\0", RATE_HZ, text)

        speak(Streaming(), ["On", "e. T", "wo. Thr", "ee"], gap_s=0.02)
        assert got == ["One. ", "Two. ", "Three"]

    @pytest.mark.parametrize("error", [OSError("no socket"), RateLimitError("slow down")])
    def test_a_failure_is_told_once_and_all_text_still_passes(self, error):
        """A provider's own error as it is, any other as a protocol error that says whose."""

        class Sick(Batch):
            async def synthesize(self, text):
                if len(self.said) == 1:
                    raise error
                return await super().synthesize(text)

        texts = [f"Sentence {n}. " for n in range(30)]
        frames = speak(Sick(), texts)
        (failed,) = [frame for frame in frames if isinstance(frame, Failed)]
        assert isinstance(failed.error, type(error) if isinstance(error, RateLimitError) else ProtocolError)
        assert "Sick" in str(failed.error) or isinstance(error, RateLimitError)
        assert [frame.text for frame in frames if isinstance(frame, TextDelta)] == texts

    @pytest.mark.parametrize("read", [1, 2, 5])
    def test_stopping_at_any_moment_stops_the_voice(self, read):
        """Nothing goes on being synthesised for a reply that nobody wants."""
        voice = Batch(wait_s=0.5)
        speak(voice, [f"Sentence {n}. " for n in range(30)], read=read)
        assert voice.under_way == 0

    def test_a_reply_nobody_reads_makes_the_agent_and_the_voice_wait(self):
        """An endless agent: bounded text and sentences are taken ahead, however long it is left alone."""
        taken, voice = [], Batch()

        async def main():
            async def source():
                for number in range(100_000):
                    taken.append(number)
                    yield TextDelta(f"Sentence number {number}. ")
                    await asyncio.sleep(0.1)

            async with Context() as context, Chain._of((voice.as_frame_processor(),)).process(source(), context) as frames:
                await anext(frames)
                await asyncio.sleep(600)

        run_simulated(main())
        assert len(taken) < 100
        assert len(voice.said) < 100

    def test_a_sentence_is_made_while_the_one_before_is_still_sent(self):
        """Two seconds a sentence: the next is ready as soon as the first was."""

        async def main():
            voice, loop = Batch(wait_s=2.0), asyncio.get_running_loop()
            chain, at_s = Chain._of((voice.as_frame_processor(),)), []

            async def source():
                yield TextDelta("One. Two. Three. ")

            async with Context() as context, chain.process(source(), context) as frames:
                async for frame in frames:
                    if isinstance(frame, AudioOut):
                        at_s.append(loop.time())
                        await asyncio.sleep(2.0)  # the line takes it at the pace it is spoken
            return at_s

        assert run_simulated(main()) == [2.0, 4.0, 6.0]


class TestBothWays:
    def test_a_batch_voice_streams(self):
        async def main():
            async def texts():
                yield "hi"
                yield "there"

            return [(piece.text, len(piece.pcm)) async for piece in Batch().synthesize_stream(texts())]

        assert run_simulated(main()) == [("hi", 6), ("there", 12)]

    def test_a_streaming_voice_gives_one_piece(self):
        class Streaming(TTS):
            async def synthesize_stream(self, texts):
                async for text in texts:
                    for letter in text:
                        yield AudioOut(letter.encode() * 2, 24_000)

        assert run_simulated(Streaming().synthesize("abc")) == Audio(b"aabbcc", 24_000)

    def test_a_voice_with_neither_is_refused_when_defined(self):
        with pytest.raises(TypeError, match="async def synthesize"):
            type("Empty", (TTS,), {})

    def test_the_tone_says_when_each_word_is_spoken(self):
        async def main():
            async def texts():
                yield "one two"

            return [piece async for piece in tts.new("tone", word_ms=100, sample_rate_hz=8_000).synthesize_stream(texts())]

        one, two = run_simulated(main())
        assert [(word.text, word.start_ms, word.end_ms) for word in (*one.words, *two.words)] == [
            ("one", 0, 100),
            ("two", 100, 200),
        ]
        assert len(one.pcm) == len(two.pcm) == 1_600
