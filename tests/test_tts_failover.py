"""Voices that fail: what one leaves unsaid another says, no word is lost, and the history has each word once."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scripted_voices import RATE_HZ, Books, Voice, read

from beluga_voice import Chain, Session, SessionOptions, transport, tts, turn
from beluga_voice.clock import run_simulated
from beluga_voice.engine import Context
from beluga_voice.errors import AuthError, OverloadedError, ProtocolError, ProviderError, ProviderTimeoutError, RateLimitError
from beluga_voice.frames import AudioOut, Failed, FailedOver, HealthChanged, Retried, TextDelta, Usage
from beluga_voice.resilience import ResilienceOptions, guard
from beluga_voice.testing import LoudVAD, ScriptedSTT, hold, quiet, speech
from beluga_voice.tts.spoken import WORD

TEXT = (
    "The first of our trains leaves the central station at half past seven. It stops at every village along the river. "
    "After the bridge it goes on to the harbour without any further stop. "
)
WORDS = WORD.findall(TEXT)


class Spoken:
    """What a voice's stage made: its frames, the news of it, and how long it took."""

    def __init__(self, books, frames, news, took_ms):
        self.frames, self.news, self.took_ms = frames, news, took_ms
        self.audio = [frame for frame in frames if isinstance(frame, AudioOut)]
        self.failed = [frame.error for frame in frames if isinstance(frame, Failed)]
        self.marks = " ".join(frame.text for frame in self.audio if frame.text)
        self.runs = read(b"".join(frame.pcm for frame in self.audio), books)

    def told(self, *types):
        return [frame for frame in self.news if isinstance(frame, types)]

    def whole_words(self, *voices):
        """The words that were said to their end, by any of the voices."""
        by = {voice.provider: voice for voice in voices}
        return [word for voice, word, long in self.runs if long >= by[voice].samples(word)[0]]

    def spans(self):
        """Each marked text with the times of its words, and how long its sound is."""
        spans = []
        for frame in self.audio:
            if frame.text:
                spans.append((frame.text, [], [0.0]))
            spans[-1][1].extend(frame.words)
            spans[-1][2][0] += len(frame.pcm) / 2 * 1_000 / frame.sample_rate_hz
        return spans


async def spoken(voices, texts, *, context, gap_s=0.0):
    """Have the voices' stage say texts."""

    async def source():
        for text in texts:
            yield TextDelta(text)
            await asyncio.sleep(gap_s)

    began_s, frames = asyncio.get_running_loop().time(), []
    async with Chain._of((voices.as_frame_processor(),)).process(source(), context) as out:
        async for frame in out:
            frames.append(frame)
    took_ms = (asyncio.get_running_loop().time() - began_s) * 1_000
    return frames, context.inbox.drain(), took_ms


def speak(voices, texts, books, gap_s=0.0):
    """What the voices' stage makes of texts, in simulated time; nothing is left running."""

    async def main():
        async with Context(output_rate_hz=RATE_HZ) as context:
            frames, news, took_ms = await spoken(voices, texts, context=context, gap_s=gap_s)
        assert [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
        return Spoken(books, frames, news, took_ms)

    return run_simulated(main())


def lost_and_twice(heard, words):
    """How many of `words` were not heard, and how many more than once, going through both from left to right."""
    at = lost = twice = 0
    for word in heard:
        if at < len(words) and word == words[at]:
            at += 1
        elif word in words[:at][-60:]:
            twice += 1
        else:
            lost += 1
    return lost + len(words) - at, twice


async def _one(text):
    yield text


# --- one falls sick in the middle ------------------------------------------------------------------------------------

paces = st.floats(11.5, 20.0)
sick = st.sampled_from(["cut", "hang", "drip", "garbage"])


class TestInMidSentence:
    @settings(max_examples=150)
    @given(sick, st.floats(1, 14_000), paces, paces, st.booleans(), st.booleans(), st.booleans(), st.booleans())
    @example("cut", 5_000.0, 14.0, 14.0, False, False, True, False)
    @example("hang", 2_000.0, 14.0, 14.0, True, True, False, True)
    def test_no_word_is_lost_wherever_it_stops(self, how, after_ms, pace, other, times, others, streams, other_streams):
        """However it stops, at any moment, whichever of them takes text as it comes, or knows the times of its words."""
        books = Books()
        one = Voice(books, "one", pace=pace, sick=how, after_ms=after_ms, times=times, streaming=streams)
        two = Voice(books, "two", pace=other, times=others, streaming=other_streams)
        said = speak(tts.failover(one, two), [TEXT], books)
        assert said.failed == []
        lost, twice = lost_and_twice(said.whole_words(one, two), WORDS)
        assert lost == 0
        if times:
            assert twice <= 1
        assert WORD.findall(said.marks) == WORDS  # each once

    @settings(max_examples=60)
    @given(st.floats(1, 14_000), st.floats(1, 6_000), paces, st.tuples(st.booleans(), st.booleans(), st.booleans()))
    def test_nor_when_the_next_fails_as_well(self, first_ms, second_ms, pace, times):
        books = Books()
        voices = [
            Voice(books, "one", pace=pace, sick="cut", after_ms=first_ms, times=times[0]),
            Voice(books, "two", pace=14.5, sick="hang", after_ms=second_ms, times=times[1]),
            Voice(books, "three", times=times[2]),
        ]
        said = speak(tts.failover(*voices), [TEXT], books)
        assert said.failed == []
        assert lost_and_twice(said.whole_words(*voices), WORDS)[0] == 0
        assert WORD.findall(said.marks) == WORDS

    @settings(max_examples=60)
    @given(st.floats(250, 4_500), st.booleans(), st.booleans())
    def test_the_times_of_words_go_on_behind_what_was_said(self, after_ms, times, others):
        """If either knows times, each word of the sentence has one, once, in order and within its sound."""
        books = Books()
        one = Voice(books, "one", sick="cut", after_ms=after_ms, times=times)
        two = Voice(books, "two", pace=12.0, times=others)
        said = speak(tts.failover(one, two), [TEXT[:71]], books)
        ((text, words, (long_ms,)),) = said.spans()
        if not (times or others):
            assert words == []
            return
        assert [word.text for word in words] == WORD.findall(text)
        assert all(a.end_ms <= b.end_ms for a, b in itertools.pairwise(words))
        assert words[-1].end_ms <= long_ms * 1.3

    def test_what_was_learned_of_a_voice_tells_where_it_stopped(self):
        """A fast voice is known after a sentence: little of the next is said twice. Unknown, it is taken for a slower one."""
        twice = []
        for before in ("", TEXT[:71]):
            books = Books()
            one = Voice(books, "one", pace=25.0, sick="cut", after_ms=1_500, calls=0)
            two = Voice(books, "two")

            async def main(one=one, two=two, books=books, before=before):
                voices = tts.failover(one, two)
                async with Context(output_rate_hz=RATE_HZ) as context:
                    if before:
                        await spoken(voices, [before], context=context)
                    one.calls = 1
                    return Spoken(books, *await spoken(voices, [TEXT[71:]], context=context))

            said = run_simulated(main())
            lost, again = lost_and_twice(said.whole_words(one, two), WORD.findall(TEXT[71:]))
            assert lost == 0
            twice.append(again)
        assert twice[1] <= 2 < twice[0]

    def test_who_took_over_and_why_is_told_once(self):
        books = Books()
        said = speak(tts.failover(Voice(books, "one", sick="cut", after_ms=900), Voice(books, "two")), [TEXT], books)
        (news,) = said.told(FailedOver)
        assert (news.kind, news.old, news.new) == ("tts", "one", "two")
        assert "the connection broke" in str(news.error)

    def test_the_one_that_began_a_sentence_says_the_rest_where_there_is_no_other(self):
        books = Books()
        one = Voice(books, "one", sick="cut", after_ms=1_500, calls=1, account="one@home")
        said = speak(one, [TEXT], books)
        assert lost_and_twice(said.whole_words(one), WORDS)[0] == 0
        assert [(news.provider, news.attempt) for news in said.told(Retried)] == [("one", 2)]


# --- deadlines and limits --------------------------------------------------------------------------------------------


class TestPatience:
    @pytest.mark.parametrize("how", ["hang", "drip"])
    def test_a_voice_that_falls_behind_is_left(self, how):
        """After its sound is played out and `stall_ms` more, not before."""
        books = Books()
        one = Voice(books, "one", sick=how, after_ms=1_000, speed=100)
        said = speak(tts.failover(one, Voice(books, "two", speed=1_000)), [TEXT[:71]], books)
        assert isinstance(said.told(FailedOver)[0].error, ProviderTimeoutError)
        assert 2_500 <= said.took_ms <= 3_000

    def test_a_first_sound_has_its_own_limit(self):
        books = Books()
        one = Voice(books, "one", sick="hang")
        said = speak(tts.failover(one, Voice(books, "two", first_ms=0)), [TEXT[:71]], books)
        assert isinstance(said.told(FailedOver)[0].error, ProviderTimeoutError)
        assert 2_500 <= one.left_ms[0] <= 2_510

    def test_time_in_which_nobody_takes_its_sound_does_not_count(self):
        """A reply that is paused for a minute in the middle of a sentence, or played slowly, is no stall."""
        books = Books()
        one = Voice(books, "one", account="one@home")

        async def main():
            frames = []

            async def source():
                yield TextDelta(TEXT)

            async with (
                Context(output_rate_hz=RATE_HZ) as context,
                Chain._of((tts.failover(one, Voice(books, "two")).as_frame_processor(),)).process(source(), context) as out,
            ):
                async for frame in out:
                    frames.append(frame)
                    await asyncio.sleep(60 if len(frames) == 20 else 0.3)
                return Spoken(books, frames, context.inbox.drain(), 0.0)

        said = run_simulated(main())
        assert said.told(FailedOver, Retried) == []
        assert lost_and_twice(said.whole_words(one), WORDS) == (0, 0)

    def test_an_agent_that_thinks_in_mid_sentence_is_not_the_voices_fault(self):
        """A voice that takes text as it comes owes nothing while it has no whole sentence."""
        books = Books()
        one = Voice(books, "one", streaming=True, account="one@home")
        said = speak(tts.failover(one, Voice(books, "two")), ["The train ", "leaves ", "at seven. ", "Now."], books, gap_s=20.0)
        assert said.told(FailedOver, Retried) == []
        assert lost_and_twice(said.whole_words(one), WORD.findall("The train leaves at seven. Now.")) == (0, 0)

    def test_but_a_whole_sentence_is_owed(self):
        books = Books()

        class Reader(Voice):
            """Takes all text that there is and says nothing."""

            async def synthesize_stream(self, texts):
                try:
                    async for _ in texts:
                        pass
                    yield AudioOut(b"", RATE_HZ)
                finally:
                    self.left_ms.append(asyncio.get_running_loop().time() * 1_000)

        one, two = Reader(books, "one", streaming=True), Voice(books, "two", first_ms=0)
        said = speak(tts.failover(one, two), ["The train ", "leaves at seven. ", "Now."], books, gap_s=20.0)
        assert 22_500 <= one.left_ms[0] <= 22_600  # it had the sentence after 20 s
        assert lost_and_twice(said.whole_words(two), WORD.findall("The train leaves at seven. Now.")) == (0, 0)

    def test_an_engine_that_runs_here_alone_may_take_its_time(self):
        books = Books()
        said = speak(Voice(books, first_ms=9_000, speed=0.1), [TEXT[:71]], books)
        assert (said.failed, said.told(Retried)) == ([], [])

    @pytest.mark.parametrize("streaming", [False, True])
    def test_endless_sound_is_cut(self, streaming):
        """At 10 s for a short text, or 400 ms a letter."""
        books = Books()
        for text, most_ms in (("Hello.", 10_000), (TEXT[:71], 400 * 71)):
            one = Voice(books, "one", sick="endless", streaming=streaming, account="one@home")
            said = speak(one, [text], books)
            assert isinstance(said.failed[0], ProtocolError)
            assert most_ms <= said.spans()[0][2][0] <= most_ms + 600

    def test_a_voice_that_does_not_stop_is_not_waited_for(self):
        """It swallows its cancellation: the other speaks all the same, and the session is told who did not stop."""
        books = Books()

        class Stubborn(Voice):
            async def synthesize_stream(self, texts):
                async for _ in texts:
                    while asyncio.get_running_loop().time() < 60:
                        try:
                            await asyncio.sleep(3_600)
                        except asyncio.CancelledError:
                            continue
                yield AudioOut(b"", RATE_HZ)

        async def main():
            context = Context(output_rate_hz=RATE_HZ)
            voices = tts.failover(Stubborn(books, "one"), Voice(books, "two", first_ms=0, speed=1_000))
            said = Spoken(books, *await spoken(voices, [TEXT], context=context))
            stuck = await context.aclose(100)
            await asyncio.sleep(60)
            await context.aclose(100)
            return said, stuck

        said, stuck = run_simulated(main())
        assert WORD.findall(said.marks) == WORDS
        assert said.took_ms < 3_000
        assert stuck == ["one speech"]


class TestWhatItGives:
    def test_no_sound_for_words_is_a_failure(self):
        books = Books()
        said = speak(tts.failover(Voice(books, "one", sick="empty"), Voice(books, "two")), [TEXT], books)
        assert isinstance(said.told(FailedOver)[0].error, ProtocolError)
        assert WORD.findall(said.marks) == WORDS

    @pytest.mark.parametrize(("after_ms", "times", "caught"), [(600, False, True), (1_500, True, True), (4_900, True, False)])
    def test_an_early_end_without_an_error_is_a_failure(self, after_ms, times, caught):
        """Where so little sound came that words must be missing; what is nearly whole is left alone."""
        books = Books()

        class Ends(Voice):
            async def synthesize_stream(self, texts):
                given_ms = 0.0
                async for piece in super().synthesize_stream(texts):
                    given_ms += len(piece.pcm) / 32
                    if given_ms > after_ms:
                        return
                    yield piece

        one, two = Ends(books, "one", times=times), Voice(books, "two")
        said = speak(tts.failover(one, two), [TEXT[:71]], books)
        assert [news.new for news in said.told(FailedOver)] == (["two"] if caught else [])
        if caught:
            assert lost_and_twice(said.whole_words(one, two), WORD.findall(TEXT[:71]))[0] == 0

    @pytest.mark.parametrize(
        ("share", "times", "caught"), [(0.5, False, True), (0.7, False, False), (0.7, True, True), (0.9, True, False)]
    )
    def test_of_a_voice_that_is_known_an_earlier_end_is_noticed(self, share, times, caught):
        """After five texts its usual pace is known; that of a sentence said 1.4 times as fast is no failure."""
        books, texts = Books(), [part.strip() for part in TEXT.split(".") if part.strip()] * 2
        least = 1.0

        class Ends(Voice):
            async def synthesize_stream(self, texts):
                given_ms, whole_ms = 0.0, 0.0
                async for text in texts:
                    whole_ms = len(self.sound(text)[0]) / 32
                    async for piece in super().synthesize_stream(_one(text)):
                        given_ms += len(piece.pcm) / 32
                        if given_ms > least * whole_ms:
                            return
                        yield piece

        async def main():
            nonlocal least
            one, two = Ends(books, "one", times=times), Voice(books, "two")
            voices = tts.failover(one, two)
            async with Context(output_rate_hz=RATE_HZ) as context:
                for text in texts:
                    assert not Spoken(books, *await spoken(voices, [text], context=context)).told(FailedOver)
                one.pace *= 1.4
                quick = Spoken(books, *await spoken(voices, [TEXT[:71]], context=context))
                one.pace, least = one.pace / 1.4, share
                return one, two, quick, Spoken(books, *await spoken(voices, [TEXT[:71]], context=context))

        one, two, quick, said = run_simulated(main())
        assert quick.told(FailedOver) == []
        assert [news.new for news in said.told(FailedOver)] == (["two"] if caught else [])
        if caught:
            assert lost_and_twice(said.whole_words(one, two), WORD.findall(TEXT[:71]))[0] == 0

    def test_no_sound_for_a_text_without_letters_is_none(self):
        said = speak(Voice(Books(), sick="empty"), ["... !"], Books())
        assert said.failed == []

    @given(st.lists(st.integers(1, 999), min_size=1, max_size=30))
    def test_odd_bytes_are_carried(self, sizes):
        """Cut anywhere, samples stay whole: no piece has half of one."""
        books = Books()

        class Odd(Voice):
            async def synthesize_stream(self, texts):
                async for text in texts:
                    pcm, _ = self.sound(text)
                    at = 0
                    for size in sizes:
                        yield AudioOut(pcm[at : at + size], RATE_HZ, text if at == 0 else "")
                        at += size
                    yield AudioOut(pcm[at:], RATE_HZ)

        one = Odd(books)
        said = speak(one, [TEXT[:71]], books)
        assert all(len(frame.pcm) % 2 == 0 for frame in said.audio)
        assert lost_and_twice(said.whole_words(one), WORD.findall(TEXT[:71])) == (0, 0)

    def test_a_voice_that_marks_nothing_is_marked_by_what_it_was_given(self):
        books = Books()

        class Unmarked(Voice):
            async def synthesize_stream(self, texts):
                async for piece in super().synthesize_stream(texts):
                    yield AudioOut(piece.pcm, piece.sample_rate_hz)

        said = speak(Unmarked(books, streaming=True), ["One two. ", "Three four. ", "Five."], books, gap_s=1.0)
        assert said.marks == "One two. Three four. Five."

    def test_a_call_that_gave_nothing_is_on_no_bill(self):
        books = Books()
        one = Voice(books, "one", sick="garbage", account="one@home")
        said = speak(tts.failover(one, Voice(books, "two", account="two@home")), [TEXT[:71]], books)
        assert [news.provider for news in said.told(Usage)] == ["two"]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_what_it_used_is_told_of_a_service(self, streaming):
        """The characters it took, also where it failed; of an engine that runs here nothing."""
        books = Books()
        one = Voice(books, "one", sick="cut", after_ms=500, account="one@home", streaming=streaming)
        said = speak(tts.failover(one, Voice(books, "two", account="two@home"), Voice(books, "three")), [TEXT[:71]], books)
        used = {news.provider: news.amounts["characters"] for news in said.told(Usage)}
        assert used["one"] == len("".join(one.asked))
        assert 55 <= used["two"] <= 75
        assert "three" not in used


# --- who is asked ----------------------------------------------------------------------------------------------------


class TestChoice:
    def test_the_preferred_voice_is_tried_again_after_its_time(self):
        """At a sentence's beginning; that it is well again is told without an error."""
        books = Books()
        one, two = Voice(books, "one", sick="cut", calls=2), Voice(books, "two")

        async def main():
            voices = tts.failover(one, two, options=ResilienceOptions(retries=0, return_after_ms=5_000))
            served = []
            async with Context(output_rate_hz=RATE_HZ) as context:
                for _ in range(4):
                    said = Spoken(books, *await spoken(voices, ["Hello there."], context=context))
                    served.append([(news.old, news.new, news.error is None) for news in said.told(FailedOver)])
                    await asyncio.sleep(3)
            return served

        assert run_simulated(main()) == [
            [("one", "two", False)],
            [],
            [("two", "one", True), ("one", "two", False)],
            [],
        ]

    def test_it_comes_back_within_a_reply(self):
        books = Books()
        one, two = Voice(books, "one", sick="cut", after_ms=500, calls=1), Voice(books, "two", speed=1.0)
        options = ResilienceOptions(return_after_ms=4_000)
        said = speak(tts.failover(one, two, options=options), [TEXT], books)
        assert [(news.old, news.new) for news in said.told(FailedOver)] == [("one", "two"), ("two", "one")]
        assert lost_and_twice(said.whole_words(one, two), WORDS)[0] == 0
        assert WORD.findall(said.marks) == WORDS

    def test_what_may_help_is_tried_again_before_another_is_asked(self):
        books = Books()
        said = speak(tts.failover(Voice(books, "one", sick="cut", calls=1), Voice(books, "two")), [TEXT], books)
        assert [news.attempt for news in said.told(Retried)] == [2]
        assert said.told(FailedOver) == []

    @pytest.mark.parametrize("error", [AuthError("no"), RateLimitError("slow down", retry_after_ms=9_000), ProtocolError("?")])
    def test_what_does_not_help_is_not(self, error):
        books = Books()

        class Refused(Voice):
            async def synthesize_stream(self, texts):
                self.asked.append("")
                raise error
                yield

        one = Refused(books, "one")
        said = speak(tts.failover(one, Voice(books, "two")), [TEXT], books)
        assert (len(one.asked), said.told(Retried), said.failed) == (1, [], [])
        assert said.told(FailedOver)[0].error is error

    def test_all_fail_and_the_last_error_is_told_once(self):
        books = Books()
        voices = tts.failover(Voice(books, "one", sick="garbage"), Voice(books, "two", sick="cut"))
        said = speak(voices, [TEXT, TEXT], books)
        assert [str(error) for error in said.failed] == ["the connection broke"]
        assert [frame.text for frame in said.frames if isinstance(frame, TextDelta)] == [TEXT, TEXT]

    def test_an_open_breaker_is_passed_over_and_closes_again(self):
        books = Books()
        one, two = Voice(books, "one", sick="garbage", calls=5, account="one@home"), Voice(books, "two")

        async def main():
            voices = tts.failover(one, two, options=ResilienceOptions(return_after_ms=0))
            news = []
            async with Context(output_rate_hz=RATE_HZ) as context:
                for _ in range(40):
                    news += (await spoken(voices, ["Hello there."], context=context))[1]
                    await asyncio.sleep(0.5)
            return news, guard(one, ResilienceOptions()).breaker.state

        news, state = run_simulated(main())
        moves = [(frame.old, frame.new) for frame in news if isinstance(frame, HealthChanged)]
        assert moves == [("closed", "open"), ("open", "half_open"), ("half_open", "closed")]
        assert state == "closed"
        assert 20 <= len(one.asked) < 35  # none while it was open

    def test_a_new_session_knows_what_others_learned(self):
        books = Books()
        one, two = Voice(books, "one", sick="garbage", account="one@home"), Voice(books, "two")

        async def main():
            voices = tts.failover(one, two)
            for _ in range(6):
                async with Context(output_rate_hz=RATE_HZ) as context:
                    _, news, _ = await spoken(voices, ["Hello there."], context=context)
            return news

        (told,) = [frame for frame in run_simulated(main()) if isinstance(frame, FailedOver)]
        assert len(one.asked) == 5
        assert isinstance(told.error, OverloadedError)
        assert "failed too often" in str(told.error)

    def test_an_engine_that_runs_here_alone_is_never_left_alone(self):
        books = Books()
        one = Voice(books, "one", sick="garbage")

        async def main():
            async with Context(output_rate_hz=RATE_HZ) as context:
                for _ in range(8):
                    await spoken(one, ["Hello there."], context=context)

        run_simulated(main())
        assert len(one.asked) == 8

    @pytest.mark.parametrize("others", [0, 1])
    def test_more_than_max_concurrent_go_to_the_next_or_wait(self, others):
        """Twenty at once, two allowed: the rest goes to the other voice; without one it waits, but not for ever."""
        books = Books()
        one = Voice(books, "one", account="one@home", max_concurrent=2, speed=2.0)
        two = Voice(books, "two")

        async def main():
            voices = tts.failover(*[one, two][: 1 + others])

            async def session():
                async with Context(output_rate_hz=RATE_HZ) as context:
                    return Spoken(books, *await spoken(voices, ["Hello there."], context=context))

            return await asyncio.gather(*(session() for _ in range(20)))

        said = run_simulated(main())
        assert one.most == 2
        if others:
            assert len(two.asked) == 18
            assert all(not one.failed for one in said)
        else:
            waited = [one for one in said if one.failed]
            assert 0 < len(waited) < 18
            assert all(isinstance(one.failed[0], OverloadedError) and one.took_ms < 2_600 for one in waited)

    def test_what_is_no_voice_is_refused(self):
        with pytest.raises(TypeError, match="tts"):
            tts.failover()
        with pytest.raises(TypeError, match="tts"):
            tts.failover(ScriptedSTT())


# --- in a session ----------------------------------------------------------------------------------------------------


class TestInASession:
    def chain(self, *voices):
        async def reply(text, history):
            yield TEXT

        return Chain(LoudVAD(), turn.new("silence"), ScriptedSTT("hello"), reply, tts.failover(*voices))

    @settings(max_examples=40, deadline=None)
    @given(st.floats(0, 12_000), st.sampled_from(["cut", "hang"]), st.booleans(), st.booleans())
    def test_the_history_has_each_word_once(self, after_ms, how, times, others):
        books = Books()
        one, two = Voice(books, "one", sick=how, after_ms=after_ms, times=times), Voice(books, "two", times=others)
        call = hold(self.chain(one, two), quiet(500) + speech(800) + quiet(22_000))
        (record,) = call.turns
        assert WORD.findall(record.heard_text) == WORDS
        assert record.tts_provider == ("two" if after_ms < 5_000 else "one") or 5_000 <= after_ms <= 5_100

    @settings(max_examples=40, deadline=None)
    @given(st.floats(0, 4_000), st.floats(2_500, 9_000), st.booleans(), st.booleans())
    def test_an_interrupted_one_has_what_was_heard_once(self, after_ms, at_ms, times, others):
        """Cut anywhere, before or behind the switch: the words heard are the first ones of the text."""
        books = Books()
        one, two = Voice(books, "one", sick="cut", after_ms=after_ms, times=times), Voice(books, "two", times=others)
        call = hold(self.chain(one, two), quiet(500) + speech(800) + quiet(at_ms) + speech(1_000) + quiet(500), tail_ms=0)
        heard = WORD.findall(call.turns[0].heard_text)
        assert heard == WORDS[: len(heard)]
        assert len(heard) >= 1

    def test_a_barge_in_stops_the_voice_at_once(self):
        """Its generator is closed within 50 ms of the cut."""
        books = Books()
        one = Voice(books, "one", speed=1.0, account="one@home")
        talk = quiet(500) + speech(800) + quiet(3_000) + speech(1_000) + quiet(1_000)
        call = hold(self.chain(one, Voice(books, "two")), talk)
        (cut_ms,) = call.times("interrupted")[:1]
        assert any(0 <= left_ms - cut_ms <= 50 for left_ms in one.left_ms)

    def test_the_preferred_voices_socket_is_opened_at_the_start(self):
        """Of engines with an account only, and only the preferred one's; who cannot be opened is tried again in use."""
        books, opened = Books(), []

        class Dialled(Voice):
            async def open(self, context):
                opened.append(self.name)
                if len(opened) == 1:
                    raise OSError("no network yet")
                return self

        one, two = Dialled(books, "one", account="one@home"), Dialled(books, "two", account="two@home")
        call = hold(self.chain(one, two), quiet(500) + speech(800) + quiet(20_000))
        assert opened == ["one", "one"]
        assert [event for event in call.events if event.name in ("failed_over", "error")] == []

    def test_a_fallback_is_said_when_no_voice_could_answer_and_one_is_well_again(self):
        books = Books()
        one = Voice(books, "one", sick="garbage", calls=1, account="one@home")
        call = hold(
            Chain(LoudVAD(), turn.new("silence"), ScriptedSTT("a", "b"), self.chain(one).stage("agent"), one),
            quiet(500) + speech(800) + quiet(3_000) + speech(800) + quiet(15_000),
            SessionOptions(fallback="Sorry."),
        )
        assert [event.data["stage"] for event in call.events if event.name == "error"] == ["one"]
        assert WORD.findall(call.turns[-1].heard_text) == WORDS

    def test_without_a_session_it_speaks_all_the_same(self):
        books = Books()
        one, two = Voice(books, "one", sick="cut", after_ms=900), Voice(books, "two")

        async def main():
            async with tts.failover(one, two) as either:
                sound = await either.synthesize(TEXT)
            with pytest.raises(ProviderError):
                await tts.failover(Voice(books, "one", sick="garbage")).synthesize(TEXT)
            return sound

        heard = [word for _, word, _ in read(run_simulated(main()).pcm, books)]
        assert set(WORDS) <= set(heard)

    def test_stand_bys_are_made_ready_and_freed_with_it(self):
        books, said = Books(), []

        class Ready(Voice):
            async def prewarm(self):
                said.append(f"{self.name} ready")
                if self.name == "one":
                    raise OSError("no model")

            async def aclose(self):
                said.append(f"{self.name} freed")

        async def main():
            either = tts.failover(Ready(books, "one"), Ready(books, "two"))
            async with either, either:
                pass
            with pytest.raises(OSError, match="no model"):
                async with tts.failover(Ready(books, "one")):
                    pass

        run_simulated(main())
        assert said.count("one ready") == 2
        assert said.count("two ready") == 1
        assert said.count("two freed") == 1


def test_a_session_with_a_transport_ends_clean():
    """No task is left of a session that ends while a voice hangs."""
    books = Books()

    async def main():
        async def reply(text, history):
            return TEXT

        voices = tts.failover(Voice(books, "one", sick="hang", after_ms=500), Voice(books, "two"))
        chain = Chain(LoudVAD(), turn.new("silence"), ScriptedSTT("x"), reply, voices)
        session = Session(chain, transport.new("memory"))
        running = asyncio.create_task(session.run())
        await asyncio.sleep(0.1)
        session.say(TEXT)
        await asyncio.sleep(1)
        session.close()
        await running
        return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    assert run_simulated(main()) == []
