"""Speech to speech in a chain: one conversation over as many connections as it takes."""

import asyncio
import functools

import pytest

from beluga_voice import Chain, Session, s2s, transport, vad
from beluga_voice.audio import Audio
from beluga_voice.clock import run_simulated
from beluga_voice.errors import AuthError, ConnectFailedError, OverloadedError
from beluga_voice.frames import AudioOut, EndTurn, StartTurn, TextDelta, TextIn, ToolCalled, ToolReturned
from beluga_voice.history import Message
from beluga_voice.resilience import ResilienceOptions
from beluga_voice.settings import BargeInOptions, SessionOptions
from beluga_voice.snapshot import Snapshot
from beluga_voice.testing import hold, quiet, s2s_checks
from beluga_voice.testing.scripted_s2s import ScriptedS2S
from beluga_voice.testing.tone_speech import say, understand
from beluga_voice.tools import tool

RATE_HZ = 16_000
LONG = "one two three four five six seven eight nine ten"
TALK = quiet(500) + say("hello") + quiet(3_000)


def said(call, name):
    return [event.data for event in call.events if event.name == name]


def messages(call):
    return [(message.role, message.text) for message in call.history]


def chain(model, with_vad=False):
    return Chain(*([vad.new("energy")] if with_vad else []), model)


both = pytest.mark.parametrize("with_vad", [False, True], ids=["model hears", "vad before"])


class TestTurns:
    @both
    def test_talk(self, with_vad):
        """What is said is heard, answered, told and kept, turn by turn, as with a cascade."""
        talk = quiet(500) + say("one two") + quiet(2_500) + say("three") + quiet(2_500)
        call = hold(chain(ScriptedS2S(), with_vad), talk)
        assert messages(call) == [
            ("user", "one two"),
            ("assistant", "you said one two"),
            ("user", "three"),
            ("assistant", "you said three"),
        ]
        assert understand(call.agent, RATE_HZ) == "you said one two you said three"
        assert [turn.user_text for turn in call.turns] == ["one two", "three"]
        assert call.states()[:4] == ["listening", "processing", "responding", "listening"]
        first = call.turns[0]
        assert first.speech_end_ms == pytest.approx(500 + 2 * 260 - 60, abs=60)
        assert first.e2e_latency_ms == pytest.approx(first.endpointing_ms + 200, abs=1)
        assert said(call, "usage")[0]["kind"] == "s2s"

    def test_words_that_come_after_the_reply_has_begun_are_the_turns(self):
        """The answer is quicker than the transcript: both are in the record and the history."""
        call = hold(chain(ScriptedS2S(delay_ms=50, words_ms=500)), TALK)
        names = [event.name for event in call.events]
        assert names.index("reply_started") < names.index("turn_heard")
        assert call.turns[0].user_text == "hello"
        assert messages(call) == [("user", "hello"), ("assistant", "you said hello")]

    def test_words_that_come_after_the_reply_is_over_enter_the_history_where_they_belong(self):
        """The caller answers quickly, and the first words come after the second turn was begun."""
        talk = quiet(500) + say("one") + quiet(1_700) + say("two") + quiet(7_000)
        call = hold(chain(ScriptedS2S(lambda text: ["yes"], delay_ms=50, words_ms=2_500)), talk)
        assert messages(call) == [("user", "one"), ("assistant", "yes"), ("user", "two"), ("assistant", "yes")]
        assert call.turns[0].user_text == ""
        assert [event.turn for event in call.events if event.name == "transcript"] == [0, 1]

    def test_typed_text_is_answered_and_kept(self):
        """As in a cascade; it interrupts what is being said."""
        model = ScriptedS2S(lambda text: [LONG] if text == "hello" else ["yes"])
        call = hold(chain(model), TALK, at=[(2_600, lambda session: session.feed(TextIn("what is it")))])
        assert [role for role, _ in messages(call)] == ["user", "assistant", "user", "assistant"]
        assert messages(call)[2:] == [("user", "what is it"), ("assistant", "yes")]
        assert call.turns[1].source == "text"
        assert said(call, "interrupted")[0]["source"] == "text"

    def test_speech_that_the_model_takes_for_none_is_no_turn_for_ever(self):
        """The VAD hears something, the model does not: the turn is empty after a while, and what waits is said."""
        deaf = ScriptedS2S(silence_ms=60_000)
        call = hold(chain(deaf, True), quiet(500) + say("hello") + quiet(20_000), at=[(5_000, lambda one: one.say("yes"))])
        assert [data for data in said(call, "turn_empty")] == [{}]
        assert understand(call.agent, RATE_HZ) == "yes"

    def test_push_to_talk(self):
        """The button, not the model, says when the turn is over."""
        button = [(400, lambda one: one.feed(StartTurn())), (1_200, lambda one: one.feed(EndTurn("push")))]
        call = hold(chain(ScriptedS2S(silence_ms=60_000)), TALK, at=button)
        assert [(turn.user_text, turn.source) for turn in call.turns] == [("hello", "push")]

    def test_a_model_that_answers_by_itself_is_not_heard_where_nobody_asked(self):
        """It answers a word into its reply too: that answer is dropped, and the next one is to the next turn."""

        class Eager(s2s.S2SSession):
            def __init__(self, inner):
                self.inner = inner

            async def send_audio(self, audio):
                before = len(self.inner.heard)
                await self.inner.send_audio(audio)
                if len(self.inner.heard) > before:
                    await self.inner.answer()

            async def send_text(self, text):
                await self.inner.send_text(text)

            async def send_tool_result(self, result):
                await self.inner.send_tool_result(result)

            async def interrupt(self, played_ms):
                await self.inner.interrupt(played_ms)

            def events(self):
                return self.inner.events()

            async def aclose(self):
                await self.inner.aclose()

        class EagerModel(ScriptedS2S):
            async def connect(self, history=()):
                return Eager(await super().connect(history))

        talk = quiet(500) + say("one") + quiet(1_500) + say("no") + quiet(3_500) + say("two") + quiet(3_000)
        model = EagerModel(lambda text: [LONG] if text == "one" else [f"it is {text}"])
        call = hold(chain(model), talk, SessionOptions(barge_in=BargeInOptions(enabled=False)))
        assert messages(call) == [("user", "one"), ("assistant", LONG), ("user", "two"), ("assistant", "it is two")]


class TestInterrupting:
    @both
    def test_the_model_is_told_what_was_heard(self, with_vad):
        """It stops, keeps of its words what was played, and the caller's next turn is answered."""
        model = ScriptedS2S(lambda text: [LONG] if text == "hello" else ["yes"])
        talk = quiet(500) + say("hello") + quiet(1_800) + say("stop now") + quiet(3_000)
        call = hold(chain(model, with_vad), talk)
        (interrupted,) = said(call, "interrupted")
        assert interrupted["source"] == "speech"
        assert model.sessions[0].interrupted == [interrupted["played_ms"]]
        heard = understand(call.agent[: round(call.times("interrupted")[0] * 32)], RATE_HZ)
        assert 0 < len(heard.split()) < 10
        assert abs(len(call.turns[0].heard_text.split()) - len(heard.split())) <= 1
        assert LONG.startswith(call.turns[0].heard_text)
        assert messages(call)[2:] == [("user", "stop now"), ("assistant", "yes")]

    def test_what_is_left_of_a_cut_reply_is_not_the_next_ones(self):
        """Sound that was on its way when the caller typed is dropped, and counted."""
        model = ScriptedS2S(lambda text: [LONG] if text == "hello" else ["yes"])

        def type_and_hear(session):
            for frame in (TextIn("what"), AudioOut(say("sorry", 24_000), 24_000), TextDelta("sorry")):
                session._context.emit(frame)

        call = hold(chain(model), TALK, at=[(2_600, type_and_hear)])
        assert understand(call.agent, RATE_HZ).split()[-1] == "yes"
        assert "sorry" not in understand(call.agent, RATE_HZ)
        assert call.session.counters["stale_frames_dropped"] >= 2

    @both
    def test_before_anything_was_heard_the_turn_goes_on(self, with_vad):
        """The caller speaks on while the model thinks: one turn of two parts."""
        model = ScriptedS2S(delay_ms=1_500)
        talk = quiet(500) + say("one") + quiet(900) + say("two") + quiet(4_000)
        call = hold(chain(model, with_vad), talk)
        assert [turn.user_text for turn in call.turns] == ["one two"]
        assert call.turns[0].reopened == 1
        assert model.sessions[0].interrupted == [0.0]

    def test_half_duplex_lets_it_speak_on(self):
        """`[barge_in] enabled = false`: what the model hears meanwhile is nobody's turn, and is not answered."""
        model = ScriptedS2S(lambda text: [LONG])
        talk = quiet(500) + say("hello") + quiet(1_800) + say("stop") + quiet(4_000)
        call = hold(chain(model), talk, SessionOptions(barge_in=BargeInOptions(enabled=False)))
        assert messages(call) == [("user", "hello"), ("assistant", LONG)]
        assert model.sessions[0].asked == 1
        assert understand(call.agent, RATE_HZ) == LONG

    def test_a_short_word_does_not_interrupt_where_a_vad_is_before(self):
        """The session's own rule decides, whatever the model hears."""
        model = ScriptedS2S(lambda text: [LONG])
        talk = quiet(500) + say("hello") + quiet(1_800) + say("yes")[: 2 * 16 * 110] + quiet(5_000)
        options = SessionOptions(barge_in=BargeInOptions(min_speech_ms=800))
        call = hold(chain(model, True), talk, options)
        assert not said(call, "interrupted")
        assert messages(call) == [("user", "hello"), ("assistant", LONG)]

    def test_sound_far_ahead_of_playing_is_kept_and_bounded(self):
        """A minute comes in a second: all of it is played, in order, and the playout never holds more than its limit."""
        most = []
        text = " ".join([LONG] * 6)
        call = hold(
            chain(ScriptedS2S(lambda _: [text], speed=200)),
            TALK,
            SessionOptions(max_reply_audio_ms=2_000),
            tail_ms=25_000,
            at=[(ms, lambda one: most.append(one._dialogue.mouth.reply.playout.held_ms)) for ms in (2_000, 3_000, 6_000)],
        )
        assert understand(call.agent, RATE_HZ) == text
        assert max(most) <= 2_200
        assert call.session.counters["reply_audio_dropped_ms"] == 0

    def test_sound_without_end_is_cut_off_and_told(self, monkeypatch):
        """Beyond the cap nothing more is kept: counted, and told once."""
        from beluga_voice import reply

        monkeypatch.setattr(reply, "MOST_RELAYED_BYTES", 100_000)
        call = hold(chain(ScriptedS2S(lambda _: [" ".join([LONG] * 20)], speed=1_000)), TALK, tail_ms=20_000)
        assert call.session.counters["reply_audio_dropped_ms"] > 10_000
        assert len(said(call, "error")) == 1


class TestSaying:
    def test_greeting_and_say(self):
        """The model says them, and the history has them."""
        options = SessionOptions(greeting="hello you")
        call = hold(chain(ScriptedS2S()), quiet(4_000), options, at=[(2_000, lambda one: one.say("please"))])
        assert messages(call) == [("assistant", "hello you"), ("assistant", "please")]
        assert understand(call.agent, RATE_HZ) == "hello you please"

    def test_end_says_goodbye_and_hangs_up(self):
        call = hold(chain(ScriptedS2S()), quiet(6_000), at=[(1_000, lambda one: asyncio.ensure_future(one.end("goodbye")))])
        assert (call.reason, messages(call)) == ("agent_ended", [("assistant", "goodbye")])

    def test_a_model_that_cannot_says_so(self):
        """A warning, no silence for ever: the session listens, the handle tells that nothing was said."""
        handles = []
        call = hold(
            chain(ScriptedS2S(says=False)),
            TALK,
            SessionOptions(greeting="hello you"),
            at=[(100, lambda one: handles.append(one.say("please")))],
        )
        assert len([data for data in said(call, "warning") if "cannot be told to say" in data["message"]]) == 2
        assert handles[0].done
        assert messages(call) == [("user", "hello"), ("assistant", "you said hello")]


class TestTools:
    def script(self, text):
        if text == "hello":
            return ["moment please", ToolCalled("c1", "weather", {"city": "paris"})]
        return [text]

    def test_a_tool_is_run_and_its_result_is_answered(self):
        """One reply: what it says before, the call, what it says to the result."""

        @tool
        async def weather(city: str) -> str:
            """The weather."""
            await asyncio.sleep(0.5)
            return f"it is red in {city}"

        model = ScriptedS2S(self.script, tools=[weather])
        call = hold(chain(model), TALK, tail_ms=4_000)
        assert understand(call.agent, RATE_HZ) == "moment please it is red in paris"
        assert messages(call) == [("user", "hello"), ("assistant", "moment please it is red in paris")]
        kinds = [type(data["tool"]) for data in said(call, "tool")]
        assert kinds == [ToolCalled, ToolReturned]
        assert [type(one) for one in call.history[-1].tool_calls] == kinds

    @pytest.mark.parametrize("on_interrupt", ["finish", "cancel"])
    def test_interrupted_while_a_tool_runs(self, on_interrupt):
        """One that should finish does, the model and the history have its result; neither makes it speak again."""
        done = []

        @tool(on_interrupt=on_interrupt)
        async def weather(city: str) -> str:
            """The weather."""
            await asyncio.sleep(2.0)
            done.append(city)
            return "red"

        model = ScriptedS2S(lambda text: self.script(text) if text == "hello" else ["yes"], tools=[weather])
        talk = quiet(500) + say("hello") + quiet(1_400) + say("stop now") + quiet(5_000)
        call = hold(chain(model), talk)
        assert done == (["paris"] if on_interrupt == "finish" else [])
        (result,) = model.sessions[0].results
        assert (result.result, result.error) == (("red", "") if on_interrupt == "finish" else (None, "cancelled"))
        assert understand(call.agent, RATE_HZ).split()[-1] == "yes"
        returned = [one for message in call.history for one in message.tool_calls if isinstance(one, ToolReturned)]
        assert len(returned) == 1


class TestConnections:
    def test_a_drop_in_mid_reply_ends_it_and_the_next_connection_knows_all(self):
        """What was made of the answer is played; the conversation goes on over a new connection that has the history."""
        model = ScriptedS2S(lambda text: ["one two", ConnectionResetError("gone")] if text == "hello" else ["yes"])
        talk = quiet(500) + say("hello") + quiet(3_500) + say("again") + quiet(3_000)
        call = hold(chain(model), talk)
        assert messages(call) == [("user", "hello"), ("assistant", "one two"), ("user", "again"), ("assistant", "yes")]
        assert len(model.sessions) == 2
        assert [(one.role, one.text) for one in model.sessions[1].history] in (
            [("assistant", "one two")],  # its words had not come
            [("user", "hello"), ("assistant", "one two")],
        )
        assert model.sessions[0].closed
        assert not call.turns[0].interrupted
        assert [data["kind"] for data in said(call, "retried")] == ["s2s"]

    def test_a_drop_before_the_answer_asks_again(self):
        """The words are known: the next connection is given them and answers."""
        answers = [[ConnectionResetError("gone")], ["yes"]]
        model = ScriptedS2S(lambda text: answers.pop(0), delay_ms=600, words_ms=100)
        call = hold(chain(model), TALK)
        assert messages(call) == [("user", "hello"), ("assistant", "yes")]
        assert [one.text for one in model.sessions[1].history] == ["hello"]

    def test_a_drop_before_the_words_lets_the_next_one_hear_them(self):
        """Nobody knows what was said: its sound is told again, and answered, as the same turn."""
        model = ScriptedS2S(words_ms=600, delay_ms=800)
        talk = quiet(500) + say("one two") + quiet(4_000)
        at = [(1_550, lambda one: model.sessions[0].drop())]
        call = hold(chain(model), talk, at=at)
        assert len(model.sessions) == 2
        assert messages(call) == [("user", "one two"), ("assistant", "you said one two")]
        assert len(call.turns) == 1

    @both
    def test_a_drop_in_mid_word_loses_nothing(self, with_vad):
        """The caller is speaking: the next connection hears the turn from its beginning."""
        model = ScriptedS2S(connect_ms=300)
        talk = quiet(1_000) + say("one two three four five") + quiet(3_000)
        call = hold(chain(model, with_vad), talk, at=[(1_700, lambda one: model.sessions[0].drop())])
        assert [turn.user_text for turn in call.turns] == ["one two three four five"]
        assert len(call.times("speech_started")) == 1
        assert call.turns[0].speech_end_ms == pytest.approx(1_000 + 5 * 260 - 60, abs=120)

    @pytest.mark.parametrize("takes_ms", [0, 100])
    def test_a_result_that_comes_while_there_is_no_connection(self, takes_ms):
        """The tool is called once; its result is told once, in the history of the next connection or to it, and answered."""
        runs = []

        @tool
        async def weather(city: str) -> str:
            """The weather."""
            runs.append(city)
            model.sessions[0].drop()
            await asyncio.sleep(takes_ms / 1_000)
            return "red"

        model = ScriptedS2S(TestTools().script, tools=[weather], connect_ms=500, words_ms=100)
        call = hold(chain(model), TALK, tail_ms=4_000)
        assert runs == ["paris"]
        assert len(model.sessions[1].history[-1].tool_calls) + len(model.sessions[1].results) == 2
        assert messages(call)[0] == ("user", "hello")
        assert understand(call.agent, RATE_HZ) == "moment please red"

    def test_nobody_can_be_reached(self):
        """An error, an end to the waiting for an answer, and another try: the conversation goes on when it is back."""
        model = ScriptedS2S()
        model.failures = [ConnectFailedError("down")] * 2
        talk = quiet(500) + say("one") + quiet(14_000) + say("two") + quiet(3_000)
        call = hold(chain(model), talk)
        assert {data["stage"] for data in said(call, "error")} == {"s2s"}
        assert messages(call)[-2:] == [("user", "two"), ("assistant", "you said two")]

    def test_audio_of_the_gap_is_kept(self):
        """What was said while connecting is heard in one go."""
        call = hold(chain(ScriptedS2S(connect_ms=2_500)), quiet(200) + say("one") + quiet(2_000) + say("two") + quiet(3_000))
        assert [turn.user_text for turn in call.turns] == ["one two"]
        assert call.session.counters["s2s_audio_dropped"] == 0

    def test_audio_of_the_gap_is_bounded(self):
        """Of a longer one the oldest is dropped, and counted."""
        call = hold(chain(ScriptedS2S(connect_ms=60_000)), quiet(8_000))
        assert call.session.counters["s2s_audio_dropped"] == pytest.approx(50, abs=5)

    def test_a_connection_that_dies_at_once_is_no_loop(self):
        """Accepted and dropped, again and again: bounded tries, then a pause."""

        class Flapping(ScriptedS2S):
            async def connect(self, history=()):
                made = await super().connect(history)
                made.drop()
                return made

        model = Flapping()
        hold(chain(model), quiet(5_000))
        assert len(model.sessions) <= 6

    @both
    def test_a_bad_minute_is_no_outage(self, with_vad):
        """A connection that breaks every few seconds: each time the next one goes on at once, and nothing is lost."""
        model = ScriptedS2S()
        talk = quiet(500) + b"".join(say(word) + quiet(2_500) for word in ("one", "two", "three", "four"))
        drops = [(when_ms, lambda one: model.sessions[-1].drop()) for when_ms in (2_900, 4_500, 6_200, 7_900)]
        call = hold(chain(model, with_vad), talk, at=drops)
        assert [turn.user_text for turn in call.turns] == ["one", "two", "three", "four"]
        assert (len(model.sessions), said(call, "error")) == (5, [])

    def test_failover_goes_to_the_next_model_with_the_history(self):
        """The first refuses for good; the second goes on with the conversation."""
        first, second = ScriptedS2S(), ScriptedS2S(lambda text: ["red"])
        talk = quiet(500) + say("one") + quiet(3_000) + say("two") + quiet(3_000)

        def die(session):
            first.failures = [OverloadedError("busy")] * 10
            first.sessions[0].drop()

        call = hold(chain(s2s.failover(first, second)), talk, at=[(3_000, die)])
        assert messages(call)[-1] == ("assistant", "red")
        (moved,) = said(call, "failed_over")
        assert (moved["kind"], moved["old"], moved["new"]) == ("s2s", "ScriptedS2S", "ScriptedS2S")
        assert [one.text for one in second.sessions[0].history] == ["one", "you said one"]

    def test_a_refused_key_is_not_tried_again(self):
        """Retries are for what they may help."""
        first, second = ScriptedS2S(), ScriptedS2S()
        first.failures = [AuthError("no such key")] * 5
        call = hold(chain(s2s.failover(first, second, options=ResilienceOptions(retries=3))), TALK)
        assert len(first.failures) == 4
        assert not said(call, "retried")
        assert messages(call)[-1] == ("assistant", "you said hello")

    def test_a_lost_line_comes_back_into_the_reply(self):
        """The model speaks on into what is kept; over the new line the rest is played."""

        async def main():
            line = transport.new("memory")
            session = Session(Chain(ScriptedS2S(lambda text: [LONG], speed=3)), line)
            running = asyncio.create_task(session.run())
            await asyncio.sleep(0.2)
            line.push(TextIn("hello"))
            await asyncio.sleep(0.7)
            line.lose()
            await asyncio.sleep(2.0)
            await session.reattach(transport.new("memory"))
            await asyncio.sleep(4.0)
            session.close()
            await running
            return session

        session = run_simulated(main())
        assert [(one.heard_text, one.interrupted) for one in session.turns] == [(LONG, False)]

    def test_another_process_goes_on_with_it(self):
        """What was kept of the session is told to the model, and what was not answered yet is."""

        async def main():
            model = ScriptedS2S(lambda text: [f"you said {text}"])
            kept = Snapshot("s1", history=(Message("user", "one"), Message("assistant", "two", "two")), pending="three")
            session = Session(Chain(model), transport.new("memory"), snapshot=kept)
            running = asyncio.create_task(session.run())
            await asyncio.sleep(4.0)
            session.close()
            await running
            return session, model

        session, model = run_simulated(main())
        assert [one.text for one in model.sessions[0].history] == ["one", "two", "three"]
        assert model.sessions[0].typed == []  # it knows it already
        assert [one.text for one in session.history][2:] == ["three", "you said three"]

    def test_nothing_is_left_behind(self):
        """The session ends in mid-reply: the connection is hung up, no task remains."""
        model = ScriptedS2S(lambda text: [LONG])
        call = hold(chain(model), TALK, at=[(2_000, lambda one: one.close())])
        assert call.reason == "closed"
        assert all(one.closed for one in model.sessions)



@pytest.mark.parametrize("check", s2s_checks.CHECKS)
def test_the_scripted_model_keeps_what_a_model_promises(check):
    """What the tests here are made of is a model like any other."""

    def answer(text):
        return [ToolCalled("c1", "weather", {"city": "paris"})] if text == "weather" else ["it is ten"]

    said = Audio(say("what is the time"), RATE_HZ)
    make = functools.partial(ScriptedS2S, answer)
    run_simulated(s2s_checks.check_s2s(make, check, audio=said, words="what is the time", tool_question="weather"))
