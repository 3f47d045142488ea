"""Text on its way to a voice, and the times of its words on their way back, however both are cut."""

import asyncio

import pytest
from beluga_voice_elevenlabs.script import Script, letters_of, sentences
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice.clock import run_simulated

RATE_HZ = 1_000  # one sample a ms
LETTER_MS = 50
WORDS = st.sampled_from(["one", "two,", "three.", "Four", "five!", "Is", "it", "six?", "a"])
TEXTS = st.lists(st.lists(WORDS, min_size=1, max_size=6).map(" ".join), min_size=1, max_size=5)


def cut(text, sizes):
    """`text` in pieces of these sizes, in turn."""
    out, at = [], 0
    while at < len(text):
        size = sizes[len(out) % len(sizes)]
        out.append(text[at : at + size])
        at += size
    return out


async def given_as(pieces, pause_s=0.0):
    for piece in pieces:
        yield piece
        await asyncio.sleep(pause_s)


async def all_of(pieces, pause_s=0.0):
    return [sentence async for sentence in sentences(given_as(pieces, pause_s), "en")]


class TestSentences:
    @given(st.lists(WORDS, max_size=20).map(" ".join), st.lists(st.integers(1, 9), min_size=1, max_size=4))
    def test_lose_nothing_however_the_text_is_cut(self, text, sizes):
        """Every word reaches the voice, in order, once."""
        assert " ".join(run_simulated(all_of(cut(text, sizes)))).split() == text.split()

    def test_come_when_they_are_whole(self):
        """An agent that pauses after a full stop has ended a sentence; one that pauses elsewhere has not."""
        assert run_simulated(all_of(["It costs three. ", "Is it", " much?"], 0.5)) == ["It costs three.", "Is it much?"]

    def test_a_long_first_one_begins_with_a_clause(self):
        """Later ones are whole: by then the caller hears something."""
        long = "As far as I have heard of it from you and all the others, it is three, and it was two before that, I think."
        assert run_simulated(all_of(cut(f"{long} {long}", [4]), 0.02)) == [
            *long.split(" it is", 1)[:1],
            f"it is{long.split(' it is', 1)[1]}",
            long,
        ]

    @pytest.mark.parametrize("text", ["", "   ", "...", "\N{EM DASH}", "\N{GRINNING FACE}"])
    def test_without_a_word_are_left_out(self, text):
        """What has no sound would open a context for nothing."""
        assert run_simulated(all_of([text])) == []

    def test_a_failing_text_fails_them(self):
        """What goes wrong in the agent is not taken for the end of its text."""

        async def failing():
            yield "One. "
            raise LookupError("no more")

        async def main():
            return [sentence async for sentence in sentences(failing(), "en")]

        with pytest.raises(LookupError, match="no more"):
            run_simulated(main())

    def test_stop_asking_when_they_are_closed(self):
        """A text that is waited for is let go."""
        let_go = []

        async def waiting():
            try:
                yield "One. Two. "
                await asyncio.Event().wait()
            finally:
                let_go.append(True)

        async def main():
            ready = sentences(waiting(), "en")
            assert [await anext(ready), await anext(ready)] == ["One.", "Two."]
            await ready.aclose()
            assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

        run_simulated(main())
        assert let_go == [True]


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3), st.lists, max_leaves=9)


class TestLetters:
    @pytest.mark.parametrize("s", ["", "s"])
    def test_are_those_that_are_not_blank(self, s):
        """In either spelling of the service."""
        alignment = {"chars": ["I", "t", " "], f"char{s}StartTimesMs": [0, 50, 90], f"char{s}DurationsMs": [50, 40, 10]}
        assert letters_of(alignment) == [(0, 50), (50, 90)]

    @given(JSON | st.fixed_dictionaries({"chars": JSON, "charStartTimesMs": JSON, "charDurationsMs": JSON}))
    def test_of_anything_else_are_none_or_numbers(self, told):
        """What the service says wrongly costs word times, and no more."""
        assert all(-2e9 < start < 2e9 and -2e9 < end < 2e9 for start, end in letters_of(told))


def sound_of(texts):
    """The letters of the texts, 50 ms each with 50 ms between words and texts: (letter, start_ms, end_ms)."""
    out, at_ms = [], 0.0
    for word in " ".join(texts).split():
        for letter in word:
            out.append((letter, at_ms, at_ms + LETTER_MS))
            at_ms += LETTER_MS
        at_ms += LETTER_MS
    return out, at_ms


class TestScript:
    @given(TEXTS, st.lists(st.integers(1, 700), min_size=1, max_size=5))
    def test_tells_each_text_and_word_once_however_the_audio_is_cut(self, texts, sizes):
        """Nothing of the audio is lost; every word is where its letters are, seen from where its text begins."""
        letters, total_ms = sound_of(texts)
        script = Script(RATE_HZ)
        for text in texts:
            script.add(text)
        pieces, begins_ms = [], []
        for chunk in cut(range(int(total_ms)), sizes):
            here = [(start - chunk[0], end - chunk[0]) for _, start, end in letters if chunk[0] <= start <= chunk[-1]]
            for piece in script.place(bytes(2 * len(chunk)), here):
                if piece.text:
                    begins_ms.append(sum(len(one.pcm) // 2 for one in pieces))
                pieces.append(piece)
        assert [piece.text for piece in pieces if piece.text] == texts
        assert sum(len(piece.pcm) for piece in pieces) == 2 * int(total_ms)
        at, told = -1, []
        for piece in pieces:
            at += bool(piece.text)
            told += [(word.text, begins_ms[at] + word.start_ms, begins_ms[at] + word.end_ms) for word in piece.words]
        wanted, at = [], 0
        for word in " ".join(texts).split():
            wanted.append((word, letters[at][1], letters[at + len(word) - 1][2]))
            at += len(word)
        assert told == wanted

    @given(TEXTS, st.lists(st.lists(st.tuples(st.floats(-1e3, 1e5), st.floats(-1e3, 1e5)), max_size=9), max_size=9))
    def test_survives_times_that_make_no_sense(self, texts, letters):
        """Whatever times come, the audio is kept, texts are told in order, and no word ends before it begins."""
        script = Script(RATE_HZ)
        for text in texts:
            script.add(text)
        pieces = [piece for times in letters for piece in script.place(bytes(400), times)]
        assert sum(len(piece.pcm) for piece in pieces) == 400 * len(letters)
        assert " ".join(texts).startswith(" ".join(piece.text for piece in pieces if piece.text))
        assert all(0 <= word.start_ms <= word.end_ms for piece in pieces for word in piece.words)

    def test_without_times_tells_what_was_given(self):
        """A voice that times nothing still says what it speaks."""
        script = Script(RATE_HZ)
        script.add("One.")
        script.add("Two.")
        [first], [second] = script.place(bytes(4)), script.place(bytes(4))
        assert (first.text, second.text, script.waiting) == ("One. Two.", "", 0)
