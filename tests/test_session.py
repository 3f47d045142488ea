"""Whole conversations in simulated time: what a caller would notice."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np
import pytest

from beluga_voice import Audio, Chain, SessionOptions, tts, turn
from beluga_voice.clock import run_simulated
from beluga_voice.errors import ConnectFailedError, SessionClosedError, SessionLimitError
from beluga_voice.frames import DTMF, EndCall, TextIn, Transcript
from beluga_voice.session import Session
from beluga_voice.settings import BargeInOptions
from beluga_voice.stt import STT
from beluga_voice.testing import LoudVAD, ScriptedSTT, hold, quiet, speech
from beluga_voice.tts import TTS

WORD_MS = 200.0


def chain(agent, recogniser=None, voice=None, **turn_options):
    return Chain(
        LoudVAD(),
        turn.new("silence", **turn_options),
        recogniser or ScriptedSTT("one", "two", "three", "four"),
        agent,
        voice or tts.new("tone", word_ms=WORD_MS),
    )


async def short(text, history):
    return f"You said {text}."


async def long(text, history):
    yield "This is a long answer of "
    yield "very many words that goes on and on. "
    yield "It even has a second sentence that is as long as the first one."


class TestGreeting:
    def test_a_caller_who_speaks_first_is_not_greeted_after_their_answer(self):
        """Who says hello as they connect is answered; the greeting's time is over."""
        call = hold(chain(short), speech(1_000) + quiet(4_000), SessionOptions(greeting="Good morning to you."))
        assert [message.text for message in call.history] == ["one", "You said one."]

    def test_what_an_agent_raises_is_logged_where_it_was_raised(self, caplog):
        """The traceback names the agent's own line."""

        async def buggy(text, history):
            raise KeyError("my bug")

        hold(chain(buggy), quiet(300) + speech(800) + quiet(3_000))
        assert "in buggy" in caplog.text
        assert "KeyError: 'my bug'" in caplog.text

    def test_a_service_that_fails_is_a_line_of_the_log(self, caplog):
        """Where a library found out that nobody answers is of no use to whoever runs the calls."""

        async def unreachable(text, history):
            raise ConnectFailedError("agent 'acme', answering: no such host", provider="acme", kind="agent")
            yield ""

        hold(chain(unreachable), quiet(300) + speech(800) + quiet(3_000))
        assert "agent 'acme', answering: no such host" in caplog.text
        assert "Traceback" not in caplog.text


class TestTurn:
    def test_a_turn_is_heard_answered_and_recorded(self):
        """One utterance makes one turn with its text, its reply and its times."""
        call = hold(chain(short), quiet(500) + speech(1_000) + quiet(3_000))
        (record,) = call.turns
        assert (record.user_text, record.agent_text, record.heard_text) == ("one", "You said one.", "You said one.")
        assert record.speech_start_ms == pytest.approx(500, abs=32)
        assert record.speech_end_ms == pytest.approx(1_500, abs=32)
        assert record.endpointing_ms == pytest.approx(700, abs=52)
        assert not record.interrupted
        assert call.reason == "bye"
        assert [(m.role, m.text) for m in call.history] == [("user", "one"), ("assistant", "You said one.")]
        assert call.states() == ["listening", "processing", "responding", "listening", "disconnected"]

    def test_the_parts_of_the_latency_add_up(self):
        """End of speech to first audio is the sum of its parts, with every engine slow."""

        class SlowVoice(TTS):
            async def synthesize(self, text):
                await asyncio.sleep(0.07)
                return Audio(speech(500), 16_000)

        async def slow(text, history):
            await asyncio.sleep(0.3)
            yield "Well."

        call = hold(
            chain(slow, ScriptedSTT("one", delay_ms=900), SlowVoice()), quiet(500) + speech(1_000) + quiet(4_000)
        )
        (record,) = call.turns
        parts = [
            record.endpointing_ms,
            record.stt_latency_ms,
            record.agent_latency_ms,
            record.tts_latency_ms,
            record.send_latency_ms,
        ]
        assert record.e2e_latency_ms == pytest.approx(sum(parts), abs=0.01)
        assert record.agent_latency_ms == pytest.approx(300, abs=1)
        assert record.tts_latency_ms == pytest.approx(70, abs=1)
        assert record.stt_latency_ms == pytest.approx(900 - 450, abs=60)

    def test_a_pause_of_900_ms_with_a_slow_agent_is_one_turn(self):
        """A caller who goes on before the reply sounds has one turn, with both texts, and one reply."""

        async def slow(text, history):
            await asyncio.sleep(1.0)
            return f"You said {text}."

        call = hold(chain(slow), quiet(500) + speech(800) + quiet(900) + speech(800) + quiet(4_000))
        assert [record.user_text for record in call.turns] == ["one two"]
        assert call.turns[0].reopened == 1
        assert [m.role for m in call.history] == ["user", "assistant"]

    def test_speech_that_no_transcript_comes_of_is_no_turn(self):
        """An empty final makes no reply and leaves no message."""
        call = hold(chain(short, ScriptedSTT("")), quiet(500) + speech(500) + quiet(2_000))
        assert call.turns == []
        assert call.history == ()
        assert call.times("turn_empty")

    def test_the_transcript_is_worked_out_while_the_silence_is_waited_for(self):
        """Speculation at early_ms: a 400 ms recogniser adds nothing to a 700 ms silence, and is asked once."""
        recogniser = ScriptedSTT("one", delay_ms=400)
        call = hold(chain(short, recogniser), quiet(500) + speech(1_000) + quiet(3_000))
        assert call.turns[0].stt_latency_ms == 0
        assert len(recogniser.heard) == 1

    def test_without_speculation_the_recogniser_is_waited_for(self):
        """With early_ms as long as the silence, the recogniser's time is felt."""
        recogniser = ScriptedSTT("one", delay_ms=400)
        call = hold(chain(short, recogniser, early_ms=10_000), quiet(500) + speech(1_000) + quiet(3_000))
        assert call.turns[0].stt_latency_ms == pytest.approx(400, abs=1)

    def test_a_speculative_transcript_is_dropped_when_speech_follows(self):
        """Speech after a proposed end: what was worked out too early is not used."""
        recogniser = ScriptedSTT("too early", "all of it")
        call = hold(chain(short, recogniser), quiet(500) + speech(800) + quiet(450) + speech(800) + quiet(3_000))
        assert [record.user_text for record in call.turns] == ["all of it"]
        assert recogniser.heard[-1].duration_ms > 2_000

    def test_a_final_that_comes_late_is_not_lost(self):
        """A recogniser slower than final_timeout_ms still gets its turn answered."""
        call = hold(
            chain(short, ScriptedSTT("late words", delay_ms=2_500)),
            quiet(500) + speech(800) + quiet(6_000),
            SessionOptions(final_timeout_ms=500),
        )
        assert [record.user_text for record in call.turns] == ["late words"]
        assert call.session.counters["finals_late"] == 1

    def test_a_late_final_joins_the_turn_that_has_begun_meanwhile(self):
        """Words that come late belong to the turn the caller is in."""

        class Slow(ScriptedSTT):
            async def transcribe(self, audio):
                self.delay_ms = 1_900 if not self.heard else 0
                return await super().transcribe(audio)

        call = hold(
            chain(short, Slow("first", "second")),
            quiet(500) + speech(800) + quiet(1_900) + speech(900) + quiet(4_000),
            SessionOptions(final_timeout_ms=300),
        )
        assert [record.user_text for record in call.turns] == ["first second"]

    def test_no_window_waits_for_the_recogniser(self):
        """A 2 s final delays no VAD window by more than 5 ms."""
        lags = []

        class Watching(LoudVAD):
            def stream(self):
                inner, count = super().stream(), [0]

                class Stream(type(inner)):
                    async def probability(self, window):
                        count[0] += 1
                        due_ms = -(-count[0] * 32 // 20) * 20  # the end of the 20 ms frame that completes the window
                        lags.append(asyncio.get_running_loop().time() * 1_000 - due_ms)
                        return await inner.probability(window)

                return Stream()

        talk = quiet(500) + speech(800) + quiet(1_000) + speech(700) + quiet(5_000)
        hold(
            Chain(Watching(), turn.new("silence"), ScriptedSTT("a", delay_ms=2_000), short, tts.new("tone")), talk
        )
        assert max(lags) <= 5
        assert len(lags) > 200


class TestBargeIn:
    # the reply to speech that ends at 1,500 ms begins at about 2,200 ms
    def test_the_reply_pauses_then_stops_and_only_what_was_heard_is_history(self):
        """Speech at 4,000 ms: silence within 100 ms, cut within 280 ms, history holds what was heard."""
        talk = quiet(500) + speech(1_000) + quiet(2_500) + speech(1_000) + quiet(4_000)
        call = hold(chain(long), talk)
        assert call.times("reply_paused")[0] == pytest.approx(4_064, abs=40)
        assert call.times("interrupted")[0] == pytest.approx(4_224, abs=40)
        first = call.turns[0]
        assert first.interrupted
        assert first.agent_text.startswith(first.heard_text[:20])
        words = len(first.heard_text.split())
        assert words == pytest.approx((4_064 - call.times("reply_started")[0]) / WORD_MS, abs=1)
        assert call.history[1].text == first.heard_text
        agent = np.frombuffer(call.agent, "<i2")
        spoken_after = np.flatnonzero(agent[int(4.11 * 16_000) : int(5.6 * 16_000)])
        assert len(spoken_after) == 0

    def test_the_next_turn_keeps_its_first_syllable(self):
        """The interrupting utterance reaches the recogniser from before its onset."""
        recogniser = ScriptedSTT("one", "two")
        talk = quiet(500) + speech(1_000) + quiet(2_500) + speech(1_000) + quiet(4_000)
        call = hold(chain(long, recogniser), talk)
        assert [record.user_text for record in call.turns] == ["one", "two"]
        heard = np.frombuffer(recogniser.heard[1].pcm, "<i2")
        onset_ms = np.flatnonzero(heard)[0] / 16
        assert 250 <= onset_ms <= 400
        assert call.turns[1].speech_start_ms == pytest.approx(4_000, abs=32)

    def test_a_false_alarm_goes_on_where_it_stopped(self):
        """A cough pauses the reply; after the quiet it goes on, and no sample is lost or said twice."""
        cough = quiet(500) + speech(1_000) + quiet(2_500) + speech(100) + quiet(9_000)
        call = hold(chain(long), cough)
        undisturbed = hold(chain(long), quiet(500) + speech(1_000) + quiet(11_600))
        assert call.times("reply_resumed")
        assert not call.turns[0].interrupted
        assert call.turns[0].heard_text == undisturbed.turns[0].heard_text
        assert _loud(call.agent) == _loud(undisturbed.agent)
        paused_ms = call.times("reply_resumed")[0] - call.times("reply_paused")[0]
        assert paused_ms == pytest.approx(1_000 + 32, abs=64)

    def test_interrupting_before_the_first_word_leaves_no_unheard_message(self):
        """Speech just as the reply begins: the turn re-opens and nothing unheard is in the history."""
        talk = quiet(500) + speech(1_000) + quiet(740) + speech(1_000) + quiet(6_000)
        call = hold(chain(long), talk)
        assert [record.user_text for record in call.turns] == ["one two"]
        assert [message.role for message in call.history] == ["user", "assistant"]
        assert call.times("turn_reopened")

    def test_speech_shorter_than_min_speech_ms_is_no_interruption(self):
        """150 ms of sound during a reply pauses it but starts no turn."""
        talk = quiet(500) + speech(1_000) + quiet(2_000) + speech(150) + quiet(8_000)
        call = hold(chain(long), talk)
        assert len(call.turns) == 1
        assert not call.turns[0].interrupted

    def test_strict_half_duplex_hears_nothing_during_a_reply(self):
        """With barge-in off the reply is spoken to its end."""
        talk = quiet(500) + speech(1_000) + quiet(2_000) + speech(1_500) + quiet(9_000)
        call = hold(chain(long), talk, SessionOptions(barge_in=BargeInOptions(enabled=False)))
        assert len(call.turns) == 1
        assert call.turns[0].heard_text == call.turns[0].agent_text.strip()
        assert not call.times("reply_paused")

    def test_half_duplex_ignores_speech_that_ends_within_the_reply(self):
        """Even when its turn end falls after the reply; speech that goes on beyond the reply is a turn."""
        deaf = SessionOptions(barge_in=BargeInOptions(enabled=False))
        # "You said one." takes 600 ms from about 2,210 ms
        inside = hold(chain(short), quiet(500) + speech(1_000) + quiet(900) + speech(250) + quiet(4_000), deaf)
        assert [record.user_text for record in inside.turns] == ["one"]
        beyond = hold(chain(short), quiet(500) + speech(1_000) + quiet(900) + speech(1_500) + quiet(4_000), deaf)
        assert [record.user_text for record in beyond.turns] == ["one", "two"]
        assert beyond.turns[1].speech_start_ms == pytest.approx(2_400, abs=32)

    @pytest.mark.parametrize("clean_up_s", [0.05, 3.0])
    def test_an_agent_that_will_not_stop_delays_nobody(self, clean_up_s):
        """One that cleans up for 3 s, or swallows its cancellation, neither delays nor speaks into the next turn."""

        async def stubborn(text, history):
            try:
                for _ in range(100):
                    yield "word word. "
                    await asyncio.sleep(0.05)
            finally:
                await asyncio.shield(asyncio.sleep(clean_up_s))

        talk = quiet(500) + speech(1_000) + quiet(2_500) + speech(1_000) + quiet(800) + quiet(2_000)
        call = hold(chain(stubborn), talk)
        second = call.turns[1]
        assert second.endpointing_ms == pytest.approx(700, abs=52)
        assert second.e2e_latency_ms < 800
        warned = [e.data["message"] for e in call.events if e.name == "warning"]
        assert any("stubborn" in message or "tone" in message for message in warned) == (clean_up_s > 0.1)

    def test_a_voice_that_swallows_cancellation_cannot_talk_over_the_next_turn(self):
        """What a cut reply still makes is dropped."""

        class Deaf(TTS):
            async def synthesize_stream(self, texts):
                from beluga_voice.frames import AudioOut

                async for text in texts:
                    for _ in range(60):
                        with contextlib.suppress(asyncio.CancelledError):
                            await asyncio.sleep(0.05)
                        yield AudioOut(speech(100), 16_000, text)
                        text = ""

        async def quick(text, history):
            return "One sentence." if text == "one" else "Two."

        talk = quiet(500) + speech(1_000) + quiet(2_500) + speech(1_000) + quiet(3_000)
        call = hold(chain(quick, voice=Deaf()), talk)
        assert call.turns[0].interrupted
        assert call.turns[1].e2e_latency_ms < 900


def _loud(pcm: bytes) -> bytes:
    samples = np.frombuffer(pcm, "<i2")
    return samples[samples != 0].tobytes()


class TestAgent:
    def failing(self, kind):
        calls = []

        async def agent(text, history):
            calls.append(text)
            if len(calls) != 2:
                yield f"You said {text}."
                return
            if kind == "raises":
                raise ValueError("no idea")
            if kind == "dict":
                yield {"text": "hello"}
            elif kind == "late":
                await asyncio.sleep(60)

        return agent

    @pytest.mark.parametrize("kind", ["raises", "dict", "nothing", "late"])
    def test_a_failing_agent_speaks_the_fallback_and_the_session_listens_on(self, kind):
        """Raised, wrong type, nothing, too late: fallback and an error event, and the next turn is answered."""
        talk = b"".join([quiet(500), speech(600), quiet(3_000), speech(600), quiet(7_000), speech(600), quiet(3_000)])
        call = hold(
            chain(self.failing(kind)), talk, SessionOptions(agent_timeout_ms=2_000, fallback="Sorry about that.")
        )
        assert [record.heard_text for record in call.turns] == ["You said one.", "Sorry about that.", "You said three."]
        (error,) = [event.data["message"] for event in call.events if event.name == "error"]
        expected = {"raises": "no idea", "dict": "gave dict", "nothing": "nothing to say", "late": "2000 ms"}
        assert expected[kind] in error

    def test_history_is_what_was_said_before_without_the_current_turn(self):
        """The agent sees earlier turns, immutable."""
        seen = []

        async def agent(text, history):
            seen.append(history)
            return f"re {text}"

        talk = quiet(500) + speech(600) + quiet(3_000) + speech(600) + quiet(3_000)
        hold(chain(agent), talk)
        assert seen[0] == ()
        assert isinstance(seen[1], tuple)
        assert [(m.role, m.text) for m in seen[1]] == [("user", "one"), ("assistant", "re one")]

    def test_end_says_goodbye_and_hangs_up(self):
        """`session.end` in the middle of a turn: the words are played, uninterrupted, then the call ends."""

        async def agent(text, history, session):
            await session.end("Goodbye now.")
            return

        talk = quiet(500) + speech(600) + quiet(900) + speech(2_000) + quiet(9_000)
        call = hold(chain(agent), talk)
        assert call.reason == "agent_ended"
        assert call.history[-1].text == "Goodbye now."
        assert not [event for event in call.events if event.name == "error"]

    def test_end_call_hangs_up_after_the_reply(self):
        """`EndCall` in the stream says its text and ends the call."""

        async def agent(text, history):
            yield "Well. "
            yield EndCall("Bye bye.")

        call = hold(chain(agent), quiet(500) + speech(600) + quiet(9_000))
        assert call.reason == "agent_ended"
        assert call.turns[0].heard_text == "Well. Bye bye."

    def test_ask_tests_an_agent_by_text(self):
        """No line, no audio: the answer, and both messages in the history."""

        async def main():
            session = Session(chain(short), None)
            first = await session.ask("hello")
            return first, session.history

        answer, history = run_simulated(main())
        assert answer == "You said hello."
        assert [m.text for m in history] == ["hello", "You said hello."]

    def test_ask_counts_what_is_said_by_say_and_end(self):
        """An agent that ends the call answers with its goodbye; asking on is refused, and nobody is accused of holding."""

        async def agent(text, history, session):
            if text == "bye":
                await session.end("Goodbye.")
                return
            session.say("By the way.")
            await asyncio.sleep(3)
            yield "Hello."

        async def main():
            session = Session(chain(agent), None)
            answers = [await session.ask("hi"), await session.ask("bye")]
            with pytest.raises(SessionClosedError):
                await session.ask("more")
            return answers, session.end_reason, session.counters["loop_held"], len(asyncio.all_tasks())

        assert run_simulated(main()) == (["By the way.Hello.", "Goodbye."], "agent_ended", 0, 1)

    def test_a_sentence_sounds_before_the_next_begins(self):
        """An agent that thinks after a full stop is heard up to it meanwhile."""

        async def agent(text, history):
            yield "Let me see. "
            await asyncio.sleep(2)
            yield "It is"
            yield " three."
            await asyncio.sleep(2)
            yield " I think."

        call = hold(chain(agent), quiet(500) + speech(600) + quiet(9_000))
        assert call.turns[0].tts_latency_ms < 10
        begins = [event.at_ms for event in call.events if event.name == "reply_text"]
        agent_audio = np.frombuffer(call.agent, "<i2")
        third = agent_audio[int((begins[2] + 300) * 16) : int((begins[2] + 600) * 16)]
        assert third.any()  # "It is three." sounds though nothing has followed it

    def test_who_holds_the_loop_is_named(self):
        """An agent that blocks for 80 ms is warned of by its name."""
        import time

        async def blocker(text, history):
            time.sleep(0.08)  # noqa: ASYNC251 - the fault under test
            return "Done."

        call = hold(chain(blocker), quiet(500) + speech(600) + quiet(3_000))
        messages = [event.data["message"] for event in call.events if event.name == "warning"]
        assert any(message.startswith("blocker held the event loop") for message in messages)


class TestSay:
    def test_the_greeting_comes_first(self):
        """A greeting is a reply before the first turn."""
        call = hold(chain(short), quiet(2_000), SessionOptions(greeting="Hello there you."))
        assert call.history[0].text == "Hello there you."
        assert call.states()[0] == "responding"

    def test_says_wait_their_turn(self):
        """First in first out, and not while the caller speaks."""
        said = [(700, lambda session: session.say("First.")), (750, lambda session: session.say("Second."))]
        call = hold(chain(short), quiet(500) + speech(1_000) + quiet(4_000), at=said)
        assert [m.text for m in call.history] == ["one", "You said one.", "First.", "Second."]

    def test_say_with_interrupt_cuts_what_is_being_said(self):
        """The reply stops for it."""
        said = [(3_000, lambda session: session.say("Stop the press.", interrupt=True))]
        call = hold(chain(long), quiet(500) + speech(1_000) + quiet(6_000), at=said)
        assert call.turns[0].interrupted
        assert call.history[-1].text == "Stop the press."
        assert call.times("reply_started")[1] == pytest.approx(3_000, abs=100 + 1)

    def test_a_handle_tells_whether_it_was_played(self):
        """True when played, False when cancelled or cut."""
        outcomes = []

        def say(session):
            played, taken = session.say("Played."), session.say("Taken back.")
            taken.cancel()

            async def wait():
                outcomes.append((await played.wait_for_playout(), await taken.wait_for_playout()))

            session.data["waiting"] = asyncio.get_running_loop().create_task(wait())

        hold(chain(short), quiet(3_000), at=[(500, say)])
        assert outcomes == [(True, False)]

    def test_a_say_the_caller_talks_into_before_it_sounds_is_said_later(self):
        """Nothing heard of it: it comes again after the turn."""

        class SlowVoice(TTS):
            async def synthesize(self, text):
                await asyncio.sleep(0.4)
                return Audio(speech(500, seed=2), 16_000)

        said = [(400, lambda session: session.say("Announcement."))]
        call = hold(chain(short, voice=SlowVoice()), quiet(500) + speech(1_000) + quiet(5_000), at=said)
        assert [m.text for m in call.history] == ["one", "You said one.", "Announcement."]

    def test_too_many_says_are_refused(self):
        """The bound is an error that names it."""
        refused = []

        def many(session):
            for _ in range(20):
                try:
                    session.say("More.")
                except SessionLimitError as error:
                    refused.append(error.limit)

        hold(chain(short), quiet(1_000), SessionOptions(max_says=3), at=[(100, many)])
        assert set(refused) == {"max_says"}

    def test_a_closed_session_says_nothing(self):
        """`say` after the end is an error that says so."""
        call = hold(chain(short), quiet(500))
        with pytest.raises(SessionClosedError, match="has ended"):
            call.session.say("Too late.")


class TestMisuse:
    def test_what_a_session_is_made_of_is_checked_at_once(self):
        """A path for a line, a dict for options, a name for a chain: an error that says what was expected."""
        with pytest.raises(TypeError, match=r"line is 'caller.wav'; expected a Transport"):
            Session(chain(short), "caller.wav")
        with pytest.raises(TypeError, match="expected a SessionOptions"):
            Session(chain(short), None, {"greeting": "hi"})
        with pytest.raises(TypeError, match="expected a Chain"):
            Session("chain", None)
        with pytest.raises(TypeError, match=r"write Chain\(\*stages\)"):
            Chain([LoudVAD()])

    def test_ears_that_stop_listening_are_told_and_rebuilt(self):
        """A stage that ends before its input does not leave a deaf session in silence."""
        from beluga_voice.chain import processor

        runs = []

        @processor(side="ears")
        async def early(frames, context):
            runs.append(1)
            async for frame in frames:
                yield frame
                if len(runs) == 1 and getattr(frame, "at_ms", 0) > 300:
                    return

        stages = chain(short).stages
        call = hold(Chain(early, *stages), quiet(800) + speech(800) + quiet(3_000))
        assert len(call.turns) == 1
        assert any("stopped passing frames" in event.data["message"] for event in call.events if event.name == "error")

    def test_words_that_were_not_answered_when_the_line_ends_are_kept(self):
        """Hanging up while the agent thinks: the turn is recorded and in the history."""

        async def thinker(text, history):
            await asyncio.sleep(5)
            return "Too late."

        call = hold(
            chain(thinker), quiet(300) + speech(700) + quiet(3_000), at=[(3_000, lambda session: session.close("bye"))]
        )
        assert [(m.role, m.text) for m in call.history] == [("user", "one")]
        assert [record.user_text for record in call.turns] == ["one"]


class TestLimits:
    def test_a_turn_that_is_too_long_is_ended_and_answered(self):
        """max_turn_ms of speech ends the turn."""
        call = hold(chain(short), quiet(500) + speech(6_000) + quiet(4_000), SessionOptions(max_turn_ms=2_000))
        assert call.turns[0].source == "max_turn"
        assert call.session.counters["turns_too_long"] >= 1

    def test_an_idle_session_closes(self):
        """Nothing for idle_timeout_ms: closed, reason idle."""
        call = hold(chain(short), quiet(9_000), SessionOptions(idle_timeout_ms=4_000), tail_ms=60_000)
        assert call.reason == "idle"
        assert call.events[-1].at_ms == pytest.approx(4_000, abs=1_100)

    def test_a_long_session_closes_at_a_turn_boundary(self):
        """max_session_ms in mid-reply: the reply is played out first."""
        call = hold(chain(long), quiet(500) + speech(600) + quiet(9_000), SessionOptions(max_session_ms=3_000))
        assert call.reason == "max_session"
        assert call.turns[0].heard_text == call.turns[0].agent_text.strip()

    def test_a_fast_voice_waits_at_the_reply_limit(self):
        """No more than max_reply_audio_ms of a reply is made ahead of its playing."""
        made = []

        class Endless(TTS):
            async def synthesize(self, text):
                made.append(asyncio.get_running_loop().time() * 1_000)
                return Audio(speech(1_000), 16_000)

        async def talker(text, history):
            for _ in range(40):
                yield "One sentence. "

        call = hold(
            chain(talker, voice=Endless()), quiet(500) + speech(600) + quiet(9_000), SessionOptions(max_reply_audio_ms=3_000)
        )
        begun = call.times("reply_started")[0]
        ahead = [n - (at - begun) / 1_000 for n, at in enumerate(made)]
        assert max(ahead) <= 3 + 1 + 4 + 64  # the limit, one in hand, and what the stages between may hold
        assert len([at for at in made if at <= begun + 1]) < 80

    def test_typed_text_and_keys_are_heard(self):
        """A typed turn is answered; a key is an event."""

        def typed(session):
            session._context.emit(TextIn("typed words"))
            session._context.emit(DTMF("5"))

        call = hold(chain(short), quiet(4_000), at=[(500, typed)])
        assert call.turns[0].user_text == "typed words"
        assert [event.data["digit"] for event in call.events if event.name == "dtmf"] == ["5"]


class TestFaults:
    def test_a_recogniser_that_fails_speaks_the_fallback(self):
        """The error is told, the fallback spoken, and the next turn works."""

        class Sick(ScriptedSTT):
            async def transcribe(self, audio):
                if not self.heard:
                    self.heard.append(audio)
                    raise OSError("disk on fire")
                return await super().transcribe(audio)

        talk = quiet(500) + speech(600) + quiet(5_000) + speech(600) + quiet(3_000)
        call = hold(chain(short, Sick("x", "fine")), talk, SessionOptions(fallback="Pardon?"))
        assert [m.text for m in call.history] == ["Pardon?", "fine", "You said fine."]
        assert "disk on fire" in next(event.data["message"] for event in call.events if event.name == "error")

    def test_a_voice_that_fails_is_told_and_the_session_listens_on(self):
        """A broken voice makes a silent reply, not a dead session."""

        class Mute(TTS):
            async def synthesize(self, text):
                raise OSError("no sound card")

        talk = quiet(500) + speech(600) + quiet(3_000) + speech(600) + quiet(3_000)
        call = hold(chain(short, voice=Mute()), talk)
        assert call.reason == "bye"
        assert len(call.turns) == 2
        assert any("no sound card" in event.data["message"] for event in call.events if event.name == "error")

    @pytest.mark.parametrize(("crashes", "reason"), [(1, "bye"), (2, "error")])
    def test_ears_that_crash_are_rebuilt_once(self, crashes, reason):
        """The first crash is survived, the second ends the session."""
        left = [crashes]

        class Crashing(LoudVAD):
            def stream(self):
                inner = super().stream()

                class Stream(type(inner)):
                    async def probability(self, window):
                        if left[0] and any(window):
                            left[0] -= 1
                            raise RuntimeError("bad window")
                        return await inner.probability(window)

                return Stream()

        talk = quiet(500) + speech(600) + quiet(3_000)
        call = hold(Chain(Crashing(), turn.new("silence"), ScriptedSTT("one"), short, tts.new("tone")), talk)
        assert call.reason == reason
        assert (len(call.turns) == 1) == (reason == "bye")

    def test_a_stream_engine_that_dies_is_opened_again(self):
        """The stream raises in mid-session; the next utterance has a new one."""
        opened = []

        class Dying(STT):
            def stream(self):
                from beluga_voice.stt import BatchStream

                opened.append(1)
                return BatchStream(self)

            async def transcribe(self, audio):
                if len(opened) == 1:
                    raise ConnectionResetError("gone")
                return Transcript("again")

        talk = quiet(500) + speech(600) + quiet(5_000) + speech(600) + quiet(3_000)
        call = hold(chain(short, Dying()), talk, SessionOptions(fallback=""))
        assert [record.user_text for record in call.turns] == ["again"]


class TestSpeechToSpeech:
    def test_a_model_that_hears_and_speaks_makes_turns_by_itself(self):
        """Its transcript, text and audio make a turn that is played, can be interrupted, and enters the history."""
        from beluga_voice import s2s
        from beluga_voice.frames import AudioOut, ReplyEnded, TextDelta, TurnEnded

        interrupts = []

        class Talking(s2s.S2SSession):
            def __init__(self):
                self.loud_ms = self.quiet_ms = 0.0
                self.turns = asyncio.Queue()

            async def send_audio(self, audio):
                loud = np.abs(np.frombuffer(audio.pcm, "<i2")).max(initial=0) > 100  # resampled silence is dithered
                self.loud_ms += audio.duration_ms if loud else 0
                self.quiet_ms = 0 if loud else self.quiet_ms + audio.duration_ms
                if self.loud_ms > 200 and self.quiet_ms > 300:
                    self.loud_ms = 0
                    await self.turns.put("spoken")

            async def send_text(self, text):
                await self.turns.put(text)

            async def send_tool_result(self, result):
                pass

            async def interrupt(self, played_ms):
                interrupts.append(played_ms)

            async def events(self):
                while True:
                    text = await self.turns.get()
                    yield Transcript(text)
                    yield TurnEnded(0.0, "model")
                    yield TextDelta("I am a model.")
                    yield AudioOut(speech(2_000), 24_000, "I am a model.")
                    yield ReplyEnded(0, "", False)

            async def aclose(self):
                pass

        class Model(s2s.S2S):
            async def connect(self, history=()):
                return Talking()

        talk = quiet(500) + speech(800) + quiet(1_200) + speech(900) + quiet(5_000)
        call = hold(Chain(LoudVAD(), Model()), talk)
        assert [record.user_text for record in call.turns] == ["spoken", "spoken"]
        assert call.turns[0].interrupted
        assert len(interrupts) == 1
        assert call.turns[1].heard_text == "I am a model."
        assert call.history[-1].text == "I am a model."

    def test_sound_before_its_words_is_no_negative_latency(self):
        """A model may speak before it tells what it says: that part is unknown, the whole is not."""
        from beluga_voice import s2s
        from beluga_voice.frames import AudioOut, ReplyEnded, TextDelta, TurnEnded

        class SoundFirst(s2s.S2SSession):
            def __init__(self):
                self.asked = asyncio.Event()

            async def send_audio(self, audio):
                if np.abs(np.frombuffer(audio.pcm, "<i2")).max(initial=0) > 100:
                    self.asked.set()

            async def send_text(self, text):
                pass

            async def send_tool_result(self, result):
                pass

            async def interrupt(self, played_ms):
                pass

            async def events(self):
                await self.asked.wait()
                await asyncio.sleep(1.0)
                yield Transcript("spoken")
                yield TurnEnded(0.0, "model")
                await asyncio.sleep(0.25)
                yield AudioOut(speech(1_000), 24_000, "I am a model.")
                await asyncio.sleep(0.1)
                yield TextDelta("I am a model.")
                yield ReplyEnded(0, "", False)
                await asyncio.Event().wait()

            async def aclose(self):
                pass

        class Model(s2s.S2S):
            async def connect(self, history=()):
                return SoundFirst()

        (record,) = hold(Chain(LoudVAD(), Model()), quiet(500) + speech(400) + quiet(4_000)).turns
        assert record.heard_text == "I am a model."
        assert record.tts_latency_ms is None
        assert record.agent_latency_ms == pytest.approx(350, abs=1)
        assert record.e2e_latency_ms == pytest.approx(record.endpointing_ms + 250, abs=1)
