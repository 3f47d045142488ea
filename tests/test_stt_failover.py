"""Recognisers that fail: every word said is told exactly once, by whoever is well, and each turn gets its answer."""

import asyncio
from contextlib import aclosing
from itertools import cycle
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_stt import CLOCK, ERRORS, RATE_HZ, Cloud, Heard, Sick, hear, listen, spoken

from beluga_voice import stt
from beluga_voice.audio import Audio
from beluga_voice.clock import run_simulated
from beluga_voice.errors import (
    AuthError,
    ChainError,
    ConnectFailedError,
    OptionError,
    OverloadedError,
    ProtocolError,
    ProviderTimeoutError,
)
from beluga_voice.frames import Failed, FailedOver, HealthChanged, Retried, Transcript, TurnEndProposed, Usage, WordsWanted
from beluga_voice.options import build
from beluga_voice.resilience import ResilienceOptions, guards
from beluga_voice.stt import STT, STTCapabilities
from beluga_voice.testing import ScriptedSTT, quiet
from beluga_voice.testing.tone_speech import say, understand

SAID = ["one two three four", "five six", "seven eight nine"]
WORDS = " ".join(SAID).split()
KINDS = [*ERRORS, "mute", "cut", "ended", "stuck", "hung", "late", "garbage", "empty"]


class Local(STT):
    """A batch recogniser that runs here: no account, slow if told."""

    capabilities = STTCapabilities(sample_rate_hz=8_000, quick=True)

    def __init__(self, name="local", delay_ms=100.0, fails=0, error=None):
        self.provider, self.delay_ms, self.fails, self.error = name, delay_ms, fails, error or OverloadedError("no memory")
        self.calls = []

    async def transcribe(self, audio):
        self.calls.append(audio.duration_ms)
        await CLOCK.sleep_ms(self.delay_ms)
        if len(self.calls) <= self.fails:
            raise self.error
        return Transcript(understand(audio.pcm, audio.sample_rate_hz))


class TestSickness:
    @pytest.mark.parametrize("second", ["cloud", "local"])
    @pytest.mark.parametrize("after_ms", [0, 500, 3_000])
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_next_one_goes_on(self, kind, after_ms, second):
        """Killed, hung, slowed, garbage, empty, refused; at the start, in mid-utterance, later: no word is lost or doubled."""
        standby = Cloud("standby") if second == "cloud" else Local("standby")
        engine = stt.failover(Cloud("first", Sick(kind, after_ms)), standby, options=ResilienceOptions(retries=0))
        heard = hear(engine, SAID)
        assert heard.words == WORDS
        assert heard.closing == SAID
        assert max(heard.waits_ms) < 1_200
        assert heard.of(Failed) == []
        (over,) = heard.of(FailedOver)
        assert (over.kind, over.old, over.new) == ("stt", "first", "standby")
        assert over.error is not None

    @pytest.mark.parametrize("kind", ["refused", "busy", "cut", "ended"])
    def test_where_it_may_help_the_same_one_is_tried_again(self, kind):
        """It stumbled once: told as a retry, and nobody fails over."""
        engine = Cloud("first", [Sick(kind, 500)])
        heard = hear(stt.failover(engine, Cloud("standby")), SAID)
        assert (heard.words, heard.closing) == (WORDS, SAID)
        (retried,) = heard.of(Retried)
        assert (retried.kind, retried.provider, retried.attempt) == ("stt", "first", 2)
        assert heard.of(FailedOver) == heard.of(Failed) == []
        assert all(stream.closed for stream in engine.streams[1:])

    @pytest.mark.parametrize(("continuous", "after_ms"), [(False, (1_500, 2_500, 2_000)), (True, (1_500, 5_500, 5_000))])
    def test_each_utterance_has_its_tries(self, continuous, after_ms):
        """Cut once in three of them: tried again each time."""
        engine = Cloud("a", [Sick("cut", ms) for ms in after_ms], continuous=continuous)
        heard = hear(engine, SAID * 2, between_ms=1_000)
        assert heard.words == WORDS * 2
        assert len(heard.of(Retried)) == 3
        assert heard.of(Failed) == []

    def test_a_late_answer_is_not_told_beside_the_other_one(self):
        """The old stream closes slowly, and answers just then."""
        slow = Cloud("a", Sick("late", late_ms=1_000), closes_ms=2_000)
        heard = hear(stt.failover(slow, Cloud("b", answer_ms=300)), [SAID[0]], between_ms=4_000)
        assert heard.words == SAID[0].split()
        assert heard.waits_ms == [pytest.approx(800 + len(spoken(SAID[0])) / 320 + 300, abs=1)]

    def test_one_that_closes_slowly_holds_nobody_up(self):
        """Its place is free for the next try, and a close that hangs is given up and counted."""
        engine = Cloud("a", [Sick("cut", 500)], closes_ms=60_000, limit=1)
        heard = hear(engine, [SAID[0]], between_ms=8_000)
        assert heard.closing == [SAID[0]]
        assert heard.waits_ms == [100]
        assert heard.counters["stt_streams_not_closed"] == 2

    @pytest.mark.parametrize("kind", ["auth", "quota", "garbage"])
    def test_what_is_refused_is_not_tried_again(self, kind):
        engine = Cloud("first", Sick(kind))
        heard = hear(stt.failover(engine, Cloud("standby")), SAID[:1])
        assert heard.of(Retried) == []
        assert len(engine.streams) == 1

    def test_a_third_one_takes_over_from_the_second(self):
        heard = hear(stt.failover(Cloud("a", Sick("garbage")), Cloud("b", Sick("hung")), Cloud("c")), SAID)
        assert (heard.words, heard.closing) == (WORDS, SAID)
        assert [(one.old, one.new) for one in heard.of(FailedOver)] == [("a", "b"), ("b", "c")]

    def test_each_hears_it_at_its_own_rate(self):
        """8 kHz, then 24 kHz: the replay, too, is converted."""
        engine = stt.failover(Cloud("a", Sick("cut", 900), rate_hz=8_000), Cloud("b", rate_hz=24_000))
        assert hear(engine, SAID).words == WORDS


class TestEveryMoment:
    @settings(max_examples=150)
    @given(
        kind=st.sampled_from(KINDS),
        after_ms=st.integers(0, 4_000),
        parts=st.sampled_from(["", "plain", "placed"]),
        pieces_ms=st.lists(st.floats(5, 400), min_size=1, max_size=8),
        more=st.sampled_from([[], [Sick("cut", 300)], [Sick("hung")]]),
        lag_ms=st.sampled_from([0, 150]),
        pause_ms=st.integers(100, 1_000),
        between_ms=st.sampled_from([0, 20, 700, 3_000]),
    )
    def test_each_word_is_told_once(self, kind, after_ms, parts, lag_ms, pieces_ms, more, pause_ms, between_ms):
        """Whenever it falls ill, however the sound is cut up, whether or not it tells words before the end."""
        how = {"parts": parts, "lag_ms": lag_ms}
        engines = [Cloud("a", Sick(kind, after_ms), **how), Cloud("b", list(more), **how), Cloud("c", **how)]
        if kind == "empty":
            pause_ms += 500  # an empty answer to less than a second is believed
        pieces = [spoken(text, pause_ms) for text in SAID]
        heard = hear(stt.failover(*engines), pieces, pieces_ms=cycle(pieces_ms), between_ms=between_ms)
        assert heard.words == WORDS
        assert len(heard.closing) == len(SAID)
        assert heard.of(Failed) == []

    @settings(max_examples=150)
    @given(stop_ms=st.integers(0, 6_000), kind=st.sampled_from(["", *KINDS]), piece_ms=st.sampled_from([20, 170]))
    def test_stopped_at_any_moment_everything_is_freed(self, stop_ms, kind, piece_ms):
        """Streams closed, places given back, no task left."""

        async def main():
            engines = [Cloud("a", Sick(kind, 300), limit=5), Cloud("b", Sick("hung"), limit=5), Local()]
            running = asyncio.get_running_loop().create_task(listen(stt.failover(*engines), SAID, piece_ms=piece_ms))
            await CLOCK.sleep_ms(stop_ms)
            running.cancel()
            await asyncio.wait([running])
            assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
            assert all(stream.closed for engine in engines[:2] for stream in engine.streams if stream.opened)
            assert [one.under_way for one in guards()] == [0] * len(guards())

        run_simulated(main())


class TestDeadlines:
    @pytest.mark.parametrize("kind", ["hung", "late", "stuck", "mute"])
    def test_a_final_is_waited_for_so_long_and_a_tenth_of_its_audio(self, kind):
        """Then the next one hears it all, and answers in its 100 ms."""
        heard = hear(stt.failover(Cloud("a", Sick(kind, 1_000 if kind != "mute" else 0)), Cloud("b")), [SAID[0]])
        audio_ms = len(spoken(SAID[0])) / 32
        assert heard.waits_ms == [pytest.approx(800 + audio_ms / 10 + 100, abs=1)]
        assert isinstance(heard.of(FailedOver)[0].error, ProviderTimeoutError)

    def test_one_that_does_not_open_is_left_before_anybody_waits(self):
        """The caller speaks for longer than a stream may take to open."""
        heard = hear(stt.failover(Cloud("a", Sick("mute")), Cloud("b")), [" ".join(SAID * 2)])
        assert heard.waits_ms == [100]
        assert "did not open its stream within 3000 ms" in str(heard.of(FailedOver)[0].error)

    def test_the_last_one_is_waited_for_longer(self):
        """With nobody else to ask, a late answer is better than none."""
        heard = hear(Cloud("a", Sick("late", late_ms=3_000)), [SAID[0]], between_ms=6_000)
        assert heard.closing == [SAID[0]]
        assert heard.waits_ms == [3_000]
        assert heard.of(Retried) == heard.of(Failed) == []

    def test_the_last_one_is_tried_once_more_when_it_hangs(self):
        heard = hear(Cloud("a", [Sick("hung")]), [SAID[0]], between_ms=9_000)
        assert heard.closing == [SAID[0]]
        assert 3_200 < heard.waits_ms[0] < 4_500
        assert len(heard.of(Retried)) == 1

    def test_a_hung_one_alone_is_given_up_at_last(self):
        heard = hear(Cloud("a", Sick("hung")), [SAID[0]], between_ms=20_000)
        assert heard.closing == [""]
        (failed,) = heard.of(Failed)
        assert isinstance(failed.error, ProviderTimeoutError)
        assert heard.waits_ms[0] < 10_000

    def test_one_that_runs_here_has_all_the_time(self):
        """A slow machine is not asked again, and not given up."""
        engine = Local(delay_ms=7_000)
        heard = hear(engine, SAID[:2], between_ms=9_000)
        assert heard.closing == SAID[:2]
        assert len(engine.calls) == 2
        assert heard.of(Retried) == heard.of(Failed) == heard.of(HealthChanged) == []

    def test_one_that_runs_here_is_left_for_one_that_is_quicker(self):
        heard = hear(stt.failover(Local(delay_ms=7_000), Cloud("b")), [SAID[0]])
        assert heard.closing == [SAID[0]]
        assert heard.waits_ms[0] < 1_200

    def test_a_slow_one_alone_goes_on_being_used(self):
        """Its breaker is open for slowness, but nobody else is there to ask."""
        engine = Cloud("a", Sick("late", late_ms=1_500))
        heard = hear(engine, ["one two"] * 9, between_ms=2_000)
        assert heard.closing == ["one two"] * 9
        assert next((one.old, one.new) for one in heard.of(HealthChanged)) == ("closed", "open")


class TestReturning:
    def speak(self, sick, between_ms=9_000.0, **options):
        engine = stt.failover(Cloud("a", sick), Cloud("b"), options=ResilienceOptions(**options))
        return engine, hear(engine, SAID * 2, between_ms=between_ms)

    def test_the_preferred_one_is_used_again_after_a_while(self):
        """At the beginning of an utterance, told without an error."""
        engine, heard = self.speak([Sick("garbage")], return_after_ms=30_000)
        assert heard.words == WORDS * 2
        first, back = heard.of(FailedOver)
        assert (first.old, first.new) == ("a", "b")
        assert (back.old, back.new, back.error) == ("b", "a", None)
        told_ms = [at_ms for at_ms, one in heard.frames if type(one) is FailedOver]
        assert 30_000 <= told_ms[1] - told_ms[0] < 45_000
        assert engine.engines[1].streams[0].closed

    def test_while_it_is_ill_every_return_is_heard_by_the_other(self):
        _, heard = self.speak(Sick("garbage"), return_after_ms=5_000)
        assert heard.words == WORDS * 2
        assert heard.of(Failed) == []
        assert len(heard.of(FailedOver)) > 3

    def test_not_before(self):
        engine, heard = self.speak([Sick("garbage")], return_after_ms=300_000)
        assert heard.words == WORDS * 2
        assert len(engine.engines[0].streams) == 1

    def test_not_while_its_breaker_is_open(self):
        _, heard = self.speak([Sick("auth")], return_after_ms=1_000, open_ms=25_000)
        assert heard.words == WORDS * 2
        back_ms = [at_ms for at_ms, one in heard.frames if type(one) is FailedOver][1]
        assert back_ms > 25_000

    def test_not_in_mid_utterance(self):
        """A long utterance is heard to its end by the one that began it."""
        engine = stt.failover(Cloud("a", [Sick("garbage")]), Cloud("b"), options=ResilienceOptions(return_after_ms=3_000))
        heard = hear(engine, ["one", " ".join(SAID * 3), "two"], between_ms=1_000)
        assert heard.closing == ["one", " ".join(SAID * 3), "two"]
        back_ms = [at_ms for at_ms, one in heard.frames if type(one) is FailedOver][1]
        assert back_ms > heard.ended_ms[1]


class TestOverflow:
    def test_one_more_than_the_account_allows_goes_to_the_next(self):
        """That is no illness: the breaker stays closed; a stream holds its place while it is open."""

        async def main():
            engine = stt.failover(Cloud("a", limit=2), Cloud("b"))
            calls = [asyncio.get_running_loop().create_task(listen(engine, SAID)) for _ in range(3)]
            heard = [await call for call in calls]
            after = await listen(engine, SAID)
            health = next(one for one in guards() if one.provider == "a")
            return heard, after, health, [len(one.streams) for one in engine.engines]

        heard, after, health, streams = run_simulated(main())
        assert all(one.words == WORDS for one in [*heard, after])
        assert streams == [3, 1]
        (over,) = [frame for one in heard for frame in one.of(FailedOver)]
        assert "max_concurrent" in str(over.error)
        assert after.of(FailedOver) == []
        assert (health.breaker.state, health.counters["failures"], health.under_way) == ("closed", 0, 0)

    def test_alone_the_turn_fails_and_says_why(self):
        async def main():
            engine = Cloud("a", limit=1)
            first = asyncio.get_running_loop().create_task(listen(engine, SAID))
            await CLOCK.sleep_ms(10)
            second = await listen(engine, SAID[:1])
            return await first, second

        first, second = run_simulated(main())
        assert first.words == WORDS
        assert second.closing == [""]
        assert "max_concurrent" in str(second.of(Failed)[-1].error)


class TestHealth:
    def test_what_one_session_learns_the_others_know(self):
        """After five failures nobody goes there any more; the session whose call it was tells."""

        async def main():
            engine = stt.failover(Cloud("a", Sick("garbage")), Cloud("b"))
            heard = [await listen(engine, SAID[:1]) for _ in range(8)]
            return heard, len(engine.engines[0].streams)

        heard, streams = run_simulated(main())
        assert all(one.closing == SAID[:1] for one in heard)
        assert streams == 5
        changes = [one.of(HealthChanged) for one in heard]
        assert changes == [[], [], [], [], [HealthChanged("stt", "a", "closed", "open")], [], [], []]
        assert "left alone" in str(heard[-1].of(FailedOver)[0].error)

    def test_well_again_it_is_probed_and_closed(self):
        async def main():
            engine = stt.failover(Cloud("a", [Sick("auth")]), Cloud("b"))
            heard = [await listen(engine, SAID[:1])]
            await CLOCK.sleep_ms(11_000)
            heard += [await listen(engine, SAID[:1]) for _ in range(3)]
            return heard

        heard = run_simulated(main())
        states = [(one.old, one.new) for heard_by_one in heard for one in heard_by_one.of(HealthChanged)]
        assert states == [("closed", "open"), ("open", "half_open"), ("half_open", "closed")]
        assert [len(one.of(FailedOver)) for one in heard] == [1, 0, 0, 0]

    def test_a_caller_who_speaks_for_longer_than_a_probe_may_take_is_no_failure(self):
        async def main():
            engine = stt.failover(Cloud("a", [Sick("auth")]), Cloud("b"))
            await listen(engine, SAID[:1])
            await CLOCK.sleep_ms(11_000)
            watching = asyncio.get_running_loop().create_task(watch())
            heard = [await listen(engine, [" ".join(SAID * 3)]) for _ in range(3)]
            watching.cancel()
            return heard

        async def watch():
            """A health page."""
            while [one.breaker.state for one in guards()]:
                await CLOCK.sleep_ms(1_000)

        heard = run_simulated(main())
        states = [(one.old, one.new) for heard_by_one in heard for one in heard_by_one.of(HealthChanged)]
        assert states == [("open", "half_open"), ("half_open", "closed")]

    def test_no_more_sessions_than_probes_try_a_sick_one(self):
        """A hundred callers at once, and a provider that may be well again: two find out."""

        async def main():
            engine = stt.failover(Cloud("a", [Sick("auth"), *[Sick("hung")] * 99]), Cloud("b"))
            await listen(engine, SAID[:1])
            await CLOCK.sleep_ms(11_000)
            calls = [asyncio.get_running_loop().create_task(listen(engine, SAID[:1])) for _ in range(100)]
            heard = [await call for call in calls]
            return heard, len(engine.engines[0].streams)

        heard, streams = run_simulated(main())
        assert all(one.closing == SAID[:1] for one in heard)
        assert streams == 1 + 2

    def test_callers_who_hang_up_say_nothing_of_it(self):
        async def main():
            engine = Cloud("a", Sick("hung"))
            for _ in range(20):
                running = asyncio.get_running_loop().create_task(listen(engine, SAID))
                await CLOCK.sleep_ms(1_000)
                running.cancel()
                await asyncio.wait([running])
            return [(one.breaker.state, one.under_way) for one in guards()]

        assert run_simulated(main()) == [("closed", 0)]


class TestEmptyAnswers:
    def test_the_other_is_asked_and_goes_on_if_it_heard_something(self):
        heard = hear(stt.failover(Cloud("a", Sick("empty")), Cloud("b")), SAID)
        assert heard.closing == SAID
        assert heard.counters["stt_empty_checked"] == 1
        (over,) = heard.of(FailedOver)
        assert isinstance(over.error, ProtocolError)

    def test_if_it_hears_nothing_either_all_is_well(self):
        """A cough: the empty answer is told, and the first one goes on."""
        engine = stt.failover(Cloud("a"), Cloud("b"))
        heard = hear(engine, [quiet(1_500), "one two"])
        assert heard.closing == ["", "one two"]
        assert heard.of(FailedOver) == heard.of(Failed) == []
        assert [len(one.streams) for one in engine.engines] == [1, 1]

    def test_the_answer_does_not_wait_until_the_other_has_closed(self):
        heard = hear(stt.failover(Cloud("a"), Cloud("b", closes_ms=4_000)), [quiet(1_500)], between_ms=8_000)
        assert heard.waits_ms == [200]

    @pytest.mark.parametrize("kind", [*ERRORS, "mute", "hung", "garbage", "cut"])
    def test_if_the_other_is_sick_the_empty_answer_stands(self, kind):
        heard = hear(stt.failover(Cloud("a"), Cloud("b", Sick(kind))), [quiet(1_500), "one two"], between_ms=6_000)
        assert heard.closing == ["", "one two"]
        assert heard.of(FailedOver) == []

    def test_a_moment_is_not_worth_asking(self):
        heard = hear(stt.failover(Cloud("a"), Cloud("b")), [quiet(900)])
        assert heard.closing == [""]
        assert "stt_empty_checked" not in heard.counters

    def test_what_was_told_before_is_an_answer(self):
        """All its words came as earlier finals: an empty closing one is as it should be."""
        for parts in ("plain", "placed"):
            heard = hear(stt.failover(Cloud("a", parts=parts), Cloud("b")), SAID)
            assert heard.words == WORDS
            assert "stt_empty_checked" not in heard.counters


class TestTheLog:
    def test_what_is_told_for_good_is_not_heard_again(self):
        """Finals that say how far they go: the next one hears the rest only."""
        engine = stt.failover(Cloud("a", Sick("cut", 600), parts="placed"), Cloud("b"), options=ResilienceOptions(retries=0))
        heard = hear(engine, [SAID[0]])
        assert heard.words == SAID[0].split()
        assert heard.closing == ["three four"]
        (replayed_ms,) = engine.engines[1].heard_ms
        assert replayed_ms < len(spoken(SAID[0])) / 32 - 400

    @pytest.mark.parametrize("first_ms", [700, 3_000])
    def test_each_goes_on_where_the_one_before_stopped(self, first_ms):
        """Two of them fail in one utterance, the first or a later one; each had told a part of it for good."""
        how = {"parts": "placed", "lag_ms": 150}
        sick = [Cloud("a", Sick("cut", first_ms), **how), Cloud("b", Sick("cut", 800), **how)]
        engine = stt.failover(*sick, Cloud("c"), options=ResilienceOptions(retries=0))
        heard = hear(engine, [" ".join(SAID[:2]), " ".join(SAID), "ten"])
        assert heard.words == [*SAID[0].split(), *SAID[1].split(), *WORDS, "ten"]

    def test_finals_that_do_not_say_so_are_shown_and_told_at_the_end(self):
        heard = hear(Cloud("a", parts="plain"), [SAID[0]])
        shown = [(one.text, one.is_final) for one in heard.of(Transcript)]
        assert shown[:2] == [("one", False), ("one two", False)]
        assert [text for text, is_final in shown if is_final] == ["one", "two", "three", "four", ""]
        finals_ms = [at_ms for at_ms, one in heard.frames if type(one) is Transcript and one.is_final]
        assert len(set(finals_ms)) == 1

    def test_nobody_asks_for_the_end_of_what_was_told_to_its_end(self):
        """It fails after its last word, before it closes: there is nothing left to hear."""
        engine = stt.failover(Cloud("a", Sick("garbage"), parts="placed"), Cloud("b"))
        heard = hear(engine, [say("one two")[:-640]])
        assert heard.words == ["one", "two"]
        assert heard.closing == [""]
        assert sum(engine.engines[1].heard_ms) == 0
        assert heard.waits_ms == [100]

    def test_it_is_bounded_and_what_a_replay_lacks_is_counted(self):
        """Forty seconds, cut near the end: the last thirty are heard again."""
        text = " ".join(["one two three four five"] * 28)
        engine = stt.failover(Cloud("a", Sick("cut", 36_000)), Cloud("b"), options=ResilienceOptions(retries=0))
        heard = hear(engine, [text])
        assert heard.words == (["one", "two", "three", "four", "five"] * 28)[-len(heard.words) :]
        assert 110 < len(heard.words) < 120
        assert heard.counters["stt_replay_missing_ms"] == pytest.approx(6_000, abs=50)

    def test_several_owed_answers_are_given_in_order(self):
        """It hangs while two turns wait: both are answered by the other, first the first."""
        heard = hear(stt.failover(Cloud("a", Sick("hung")), Cloud("b")), SAID, between_ms=0)
        assert heard.closing == SAID

    def test_one_that_answers_the_first_and_hangs_at_the_second_is_left(self):
        """Each owed answer has a deadline of its own."""
        said = [spoken(text, 100) for text in SAID[:2]]
        first_ms = len(said[0]) / 32
        engine = stt.failover(Cloud("a", Sick("hung", first_ms + 100), answer_ms=700), Cloud("b"))
        heard = hear(engine, [*said, spoken(SAID[2], 3_000)], between_ms=0)
        assert heard.closing == SAID
        assert heard.waits_ms[0] == 700
        assert heard.waits_ms[1] < 1_300

    def test_a_proposal_that_stands_is_made_to_the_next_one_too(self):
        engine = stt.failover(Cloud("a", Sick("cut", 1_400)), Cloud("b"), options=ResilienceOptions(retries=0))
        hear(engine, [SAID[0]], frames=[(1_200, TurnEndProposed(1_200))])
        assert [engine.engines[n].streams[0].wishes for n in (0, 1)] == [["propose"], ["propose"]]

    def test_wishes_are_passed_on(self):
        engine = Cloud("a")
        heard = hear(engine, [SAID[0]], frames=[(400, WordsWanted(400)), (800, TurnEndProposed(800))])
        assert engine.streams[0].wishes == ["peek", "propose"]
        assert "peeked" in [one.text for one in heard.of(Transcript) if not one.is_final]


class TestWhenAllFail:
    def test_the_turn_is_answered_with_nothing_and_the_next_is_tried(self):
        """The error of the last is told, once."""
        options = ResilienceOptions(open_ms=100)
        engine = stt.failover(Cloud("a", [Sick("auth")] * 2), Cloud("b", [Sick("hung")]), options=options)
        heard = hear(engine, SAID, between_ms=6_000)
        assert heard.closing == ["", *SAID[1:]]
        (failed,) = heard.of(Failed)
        assert isinstance(failed.error, AuthError)

    def test_words_that_were_known_are_told_after_all(self):
        """It told them as finals before it broke, and nobody else can be asked."""
        engine = Cloud("a", [Sick("cut", 900), *[Sick("refused")] * 9], parts="plain")
        heard = hear(engine, [SAID[0]])
        assert heard.words == ["one", "two", "three"]
        assert len(heard.closing) == 1

    def test_an_outage_that_is_over_before_the_caller_is_does_no_harm(self):
        """In mid-utterance nobody waits yet: it is heard from its beginning once the provider is back."""
        engine = Cloud("a", [Sick("cut", 400), Sick("refused"), Sick("refused")])
        heard = hear(engine, [" ".join(SAID)])
        assert heard.closing == [" ".join(SAID)]
        assert len(heard.of(Failed)) == 1

    def test_one_that_fails_often_and_is_alone_goes_on_being_used(self):
        """No stream lasts for long: its breaker opens, but it answers at times, and nobody else is there."""
        heard = hear(Cloud("a", Sick("cut", 2_500)), SAID * 4)
        assert heard.words == WORDS * 4
        assert HealthChanged("stt", "a", "closed", "open") in heard.of(HealthChanged)
        assert heard.of(Failed) == []

    def test_one_that_stays_away_is_not_asked_all_the_time(self):
        """A long utterance: a few tries, then its breaker is open, and nothing more is told until somebody waits."""
        engine = Cloud("a", Sick("refused"))
        heard = hear(engine, [" ".join(SAID * 4), "one"])
        assert heard.closing == ["", ""]
        assert len(engine.streams) <= 6
        assert len(heard.of(Failed)) <= 5

    @pytest.mark.parametrize("fails", [1, 2])
    def test_one_that_runs_here_is_asked_again_where_that_may_help(self, fails):
        engine = Local(fails=fails)
        heard = hear(engine, SAID)
        assert heard.closing == (SAID if fails == 1 else ["", *SAID[1:]])

    def test_a_stream_lost_in_silence_is_opened_for_the_next_turn(self):
        """Between two turns nothing is lost: nobody is told, but it is counted."""
        engine = Cloud("a")

        async def main():
            heard = Heard()
            running = asyncio.get_running_loop().create_task(listen(engine, SAID, between_ms=5_000, heard=heard))
            await CLOCK.sleep_ms(5_000)
            engine.streams[0].out.put_nowait(ConnectFailedError("idle for too long"))
            return await running

        heard = run_simulated(main())
        assert heard.closing == SAID
        assert heard.of(Failed) == heard.of(Retried) == []
        assert heard.counters["stt_streams_lost"] == 1
        assert len(engine.streams) == 2


class TestConnecting:
    def test_a_remote_one_is_connected_before_anybody_speaks(self):
        engine = Cloud("a", opens_ms=400)
        heard = hear(engine, SAID, first_ms=1_000)
        assert heard.waits_ms == [100, 100, 100]
        assert len(engine.streams) == 1

        async def main():
            running = asyncio.get_running_loop().create_task(listen(Cloud("b", opens_ms=400), [], first_ms=1_000))
            await CLOCK.sleep_ms(500)
            opened = guards()[-1].under_way
            await running
            return opened

        assert run_simulated(main()) == 1

    def test_one_that_runs_here_is_not(self):
        engine = Cloud("a", account=False)
        hear(engine, [], first_ms=1_000)
        assert engine.streams == []

    def test_one_that_cannot_be_connected_is_told_at_once(self):
        """A wrong key shows when the session begins, not when the caller has spoken."""
        heard = hear(Cloud("a", Sick("auth")), [], first_ms=1_000)
        assert [type(one.error) for one in heard.of(Failed)] == [AuthError]

    def test_the_stand_by_is_connected_in_its_place(self):
        engine = stt.failover(Cloud("a", Sick("auth")), Cloud("b"))
        heard = hear(engine, SAID, first_ms=1_000)
        assert heard.words == WORDS
        assert heard.frames[1][0] < 100
        assert heard.of(Failed) == []


class TestUsage:
    def test_what_each_was_sent_is_on_its_bill(self):
        """Told at each answer, and for what was sent in vain; the replay is paid for as well."""

        class Priced(Cloud):
            options = SimpleNamespace(model="best")

        engine = stt.failover(Priced("a", Sick("cut", 1_000)), Priced("b"), options=ResilienceOptions(retries=0))
        heard = hear(engine, SAID)
        used = {"a": 0.0, "b": 0.0}
        for usage in heard.of(Usage):
            assert (usage.kind, usage.model) == ("stt", "best")
            used[usage.provider] += usage.amounts["audio_ms"]
        audio_ms = sum(len(spoken(text)) for text in SAID) / 32
        assert used["a"] == pytest.approx(1_000, abs=40)
        assert used["b"] == pytest.approx(audio_ms, abs=1)

    def test_one_that_runs_here_costs_nothing(self):
        assert hear(Local(), SAID).of(Usage) == []


class TestTogether:
    def test_they_take_what_each_of_them_takes(self):
        same = stt.failover(Cloud("a"), Cloud("b")).capabilities
        assert (same.sample_rate_hz, same.interim, same.continuous) == (RATE_HZ, True, False)
        assert stt.failover(Cloud("a"), Cloud("b", rate_hz=8_000)).capabilities.sample_rate_hz is None
        assert stt.failover(Local(), Cloud("a")).capabilities.quick

    def test_all_of_the_line_only_if_all_want_it(self):
        def one(continuous):
            engine = Cloud()
            engine.capabilities = STTCapabilities(continuous=continuous)
            return engine

        assert stt.failover(one(True), one(True)).capabilities.continuous
        assert not stt.failover(one(True), one(False)).capabilities.continuous

    @pytest.mark.parametrize("first", [True, False])
    def test_one_that_ends_turns_and_one_that_does_not_cannot_stand_in_for_each_other(self, first):
        ends = Cloud("flux")
        ends.capabilities = STTCapabilities(continuous=True, ends_turns=True)
        engines = [ends, Cloud("nova")] if first else [Cloud("nova"), ends]
        with pytest.raises(ChainError, match="'flux' ends turns by itself and its stand-by 'nova' does not"):
            stt.failover(*engines)

    @pytest.mark.parametrize(("limits", "together"), [((3, 4), 7), ((3, None), None), ((None, None), None)])
    def test_so_many_sessions_as_they_serve_together(self, limits, together):
        assert stt.failover(*(Cloud(limit=limit) for limit in limits)).max_streams == together

    def test_a_call_waits_no_longer_than_with_the_quickest(self):
        class Busy(Local):
            wait_ms = 900.0

        assert stt.failover(Busy(), Local()).wait_ms == 0.0
        assert stt.failover(Busy(), Busy()).wait_ms == 900.0

    def test_failovers_within_failovers_are_one_row(self):
        a, b, c = Cloud("a"), Cloud("b"), Cloud("c")
        assert stt.failover(stt.failover(a, b), c).engines == (a, b, c)
        assert repr(stt.failover(a, b)) == "Failover(a, b)"

    def test_options_are_changed_for_all(self):
        class Spoken(ScriptedSTT):
            options = stt.Options()

        engine = stt.failover(Spoken(), Spoken()).with_options(language="de")
        assert [one.options.language for one in engine.engines] == ["de", "de"]
        assert engine.options.language == "de"
        with pytest.raises(OptionError):
            engine.with_options(tongue="de")

    @pytest.mark.parametrize("engines", [(), ("deepgram",)])
    def test_what_is_no_recogniser_is_refused(self, engines):
        with pytest.raises(TypeError, match="expected engines of the kind stt"):
            stt.failover(*engines)

    def test_the_table_is_checked(self):
        with pytest.raises(OptionError, match="final_timeout_ms"):
            build(ResilienceOptions, {"final_timeout_ms": 0}, "[resilience]")

    def test_outside_a_session_it_is_a_recogniser_like_any(self):
        """Batch and stream; when all fail, the error of the last is raised."""

        async def main():
            either = stt.failover(Cloud("a", Sick("hung")), Cloud("b"))
            said = await either.transcribe(Audio(say("one two"), RATE_HZ))
            async with aclosing(either.stream()) as stream:
                await stream.connect()
                texts = []
                for text in SAID:
                    await stream.send(Audio(spoken(text), RATE_HZ))
                    await stream.finalize()
                    texts.append((await anext(stream)).text)
            with pytest.raises(AuthError):
                await stt.failover(Cloud("a", Sick("cut")), Cloud("c", Sick("auth"))).transcribe(Audio(say("one"), RATE_HZ))
            assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
            return said.text, texts

        assert run_simulated(main()) == ("one two", SAID)


class Warm(Cloud):
    """Can be made ready, or not."""

    def __init__(self, name, error=None, hangs=False):
        super().__init__(name)
        self.error, self.hangs, self.log = error, hangs, []

    async def prewarm(self):
        if self.hangs:
            await asyncio.Event().wait()
        self.log.append("warm")
        if self.error:
            raise self.error

    async def aclose(self):
        self.log.append("closed")


class TestMakingReady:
    def test_one_that_cannot_be_made_ready_stops_nobody(self):
        async def main():
            engines = [Warm("a", AuthError("no")), Warm("b")]
            async with stt.failover(*engines) as either:
                async with either:
                    pass
                assert [one.log for one in engines] == [["warm", "closed"], ["warm"]]
            return [one.log for one in engines]

        assert run_simulated(main()) == [["warm", "closed"], ["warm", "closed"]]

    @pytest.mark.parametrize("hung", [0, 1])
    def test_one_that_hangs_holds_nobody_up_for_long(self, hung):
        """A call begins all the same: with the other."""

        async def main():
            began_ms = CLOCK.now_ms()
            async with stt.failover(*(Warm(name, hangs=at == hung) for at, name in enumerate("ab"))):
                return CLOCK.now_ms() - began_ms

        assert run_simulated(main()) == 15_000

    def test_if_none_can_the_session_does_not_begin(self):
        async def main():
            async with stt.failover(Warm("a", AuthError("no")), Warm("b", ConnectFailedError("no"))):
                pass

        with pytest.raises(ConnectFailedError):
            run_simulated(main())
