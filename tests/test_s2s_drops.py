"""A speech-to-speech model's connection drops at an awkward moment: whose words, who answers, and what was heard."""

import asyncio

import pytest

from beluga_voice import Chain, s2s, turn, vad
from beluga_voice.audio import Audio
from beluga_voice.errors import ConnectFailedError
from beluga_voice.frames import AudioOut, EndTurn, StartTurn, TextDelta, TextIn, ToolCalled, Transcript
from beluga_voice.hybrid import Hybrid
from beluga_voice.settings import SessionOptions
from beluga_voice.stt import STT
from beluga_voice.testing import hold, quiet
from beluga_voice.testing.scripted_s2s import ScriptedS2S, ScriptedS2SSession
from beluga_voice.testing.tone_speech import RATE_HZ, say, understand
from beluga_voice.tools import tool
from beluga_voice.tts import TTS

LONG = "one two three four five six seven eight nine ten"


def messages(call):
    return [(message.role, message.text) for message in call.history]


def told(call):
    """The words of each turn, whenever they came."""
    return [(event.turn, event.data["text"]) for event in call.events if event.name == "transcript"]


def chain(model, with_vad):
    return Chain(*([vad.new("energy")] if with_vad else []), model)


def drop(model, failures=0):
    """What breaks the newest connection; the next ones cannot be made."""

    def do(session):
        model.failures = [ConnectFailedError("down")] * failures
        model.sessions[-1].drop()

    return do


def made_of(session, *args, **options):
    """A model by script whose connections are of that class."""

    class Model(ScriptedS2S):
        async def connect(self, history=()):
            await super().connect(history)
            self.sessions[-1] = session(self, history)
            return self.sessions[-1]

    return Model(*args, **options)


both = pytest.mark.parametrize("with_vad", [False, True], ids=["model hears", "vad before"])


class TestWords:
    @both
    @pytest.mark.parametrize("dropped_ms", [2_200, 2_350, 2_420, 2_600])
    def test_of_a_turn_that_is_answered_are_told_it_by_the_next_connection(self, with_vad, dropped_ms):
        """They had not come; the caller speaks before the drop, or while it connects."""
        model = ScriptedS2S(delay_ms=50, words_ms=1_500, connect_ms=300)
        talk = quiet(500) + say("one") + quiet(1_640) + say("two") + quiet(4_000) + say("three") + quiet(4_000)
        call = hold(chain(model, with_vad), talk, at=[(dropped_ms, drop(model))])
        assert told(call) == [(0, "one"), (1, "two"), (2, "three")]
        assert [text for _, text in messages(call)] == [
            *("one", "you said one", "two", "you said two", "three", "you said three")
        ]

    @both
    def test_of_a_turn_that_goes_on_are_all_there(self, with_vad):
        """The caller speaks on before the answer, and the connection drops before any words came."""
        model = ScriptedS2S(delay_ms=1_500, words_ms=1_500, connect_ms=300)
        talk = quiet(500) + say("one") + quiet(900) + say("two three") + quiet(6_000)
        call = hold(chain(model, with_vad), talk, at=[(1_850, drop(model))])
        assert [record.user_text for record in call.turns] == ["one two three"]

    def test_are_told_again_as_often_as_it_takes(self):
        """The connection that hears the turn again breaks, too."""
        model = ScriptedS2S(words_ms=1_500, delay_ms=1_800)
        drops = [(when_ms, drop(model)) for when_ms in (1_700, 2_900, 4_100)]
        call = hold(chain(model, True), quiet(500) + say("one two") + quiet(9_000), at=drops)
        assert len(model.sessions) == 4
        assert messages(call) == [("user", "one two"), ("assistant", "you said one two")]

    def test_that_come_late_leave_the_next_turn_to_be_heard_again(self):
        """Of two turns the first is told its words, then the connection drops: the second is not lost with them."""
        model = ScriptedS2S(lambda text: ["yes"], delay_ms=50, words_ms=2_500)
        talk = quiet(500) + say("one") + quiet(1_700) + say("two") + quiet(8_000)
        call = hold(chain(model, True), talk, at=[(4_200, drop(model))])
        assert told(call) == [(0, "one"), (1, "two")]

    def test_of_a_model_that_tells_them_before_the_turn_is_over(self):
        """It closes nothing by itself: what it tells again belongs to the turn before, what comes next to the next."""

        class Early(ScriptedS2SSession):
            async def _tell_words(self, text):
                pass

            def _end_turn(self, end_ms, text):
                self._out.put_over(Transcript(text))
                super()._end_turn(end_ms, text)

        first, second = ScriptedS2S(words_ms=2_000, delay_ms=1_000), made_of(Early)
        second.capabilities = s2s.S2SCapabilities(24_000, 24_000, closes=False)

        def break_first(session):
            first.failures = [ConnectFailedError("down")] * 10
            first.sessions[0].drop()

        talk = quiet(500) + say("one") + quiet(4_000) + say("two") + quiet(4_000)
        call = hold(chain(s2s.failover(first, second), True), talk, at=[(1_600, break_first)])
        assert told(call) == [(0, "one"), (1, "two")]
        assert [text for _, text in messages(call)] == ["one", "you said one", "two", "you said two"]


class TestATurnUnderWay:
    def test_whose_speech_is_over_is_heard_again(self):
        """The model takes its time to say that the turn is over, as a semantic one does; the drop comes before."""
        model = ScriptedS2S(silence_ms=3_000)
        talk = quiet(500) + say("one two three four five") + quiet(9_000)
        call = hold(chain(model, True), talk, at=[(3_600, drop(model)), (5_500, drop(model))])
        words = "one two three four five"
        assert messages(call) == [("user", words), ("assistant", f"you said {words}")]

    def test_speech_that_was_no_turn_is_not_told_for_ever(self):
        """A cough the model passed over is not part of what the next connection hears much later."""
        heard_ms = []

        class Keeping(ScriptedS2SSession):
            async def send_audio(self, audio):
                heard_ms.append((len(self._engine.sessions), audio.duration_ms))

        model = made_of(Keeping)
        hold(chain(model, True), quiet(500) + say("hello") + quiet(14_000), at=[(14_000, drop(model))])
        assert 1_000 <= sum(ms for number, ms in heard_ms if number == 2) <= 1_000 + 4_000

    def test_words_while_nobody_can_be_reached_are_heard_later(self):
        """Five seconds of them, also where no VAD tells of speech."""
        model = ScriptedS2S()
        talk = quiet(2_000) + say("one two three four") + quiet(6_000)
        call = hold(chain(model, False), talk, at=[(1_500, drop(model, failures=2))])
        assert messages(call) == [("user", "one two three four"), ("assistant", "you said one two three four")]

    @pytest.mark.parametrize("released_ms", [1_350, 3_000], ids=["while it connects", "while nobody can be reached"])
    def test_that_ends_by_a_button_is_answered(self, released_ms):
        """The model alone would wait for minutes: the next connection is told where the turn ended."""
        model = ScriptedS2S(silence_ms=60_000, connect_ms=300)
        button = [(400, lambda one: one.feed(StartTurn())), (released_ms, lambda one: one.feed(EndTurn("push")))]
        talk = quiet(500) + say("one two") + quiet(9_000)
        call = hold(chain(model, False), talk, at=[*button, (1_200, drop(model, failures=2))])
        assert [(record.user_text, record.source) for record in call.turns if record.user_text] == [("one two", "push")]


    def test_that_a_button_ended_is_ended_for_the_next_connection_too(self):
        """It is over and its words have not come when the connection drops."""
        model = ScriptedS2S(silence_ms=60_000, words_ms=1_500, delay_ms=1_000)
        button = [(400, lambda one: one.feed(StartTurn())), (1_200, lambda one: one.feed(EndTurn("push")))]
        talk = quiet(500) + say("one two") + quiet(5_000)
        call = hold(chain(model, False), talk, at=[*button, (1_600, drop(model))])
        assert messages(call) == [("user", "one two"), ("assistant", "you said one two")]

    def test_two_that_ended_while_nobody_listened_leave_the_next_its_words(self):
        """Of two in a row the later is heard; no words are owed for ever."""
        model = ScriptedS2S()
        talk = quiet(3_500) + say("one") + quiet(1_000) + say("two") + quiet(7_000) + say("three") + quiet(4_000)
        slow = (3_300, lambda one: setattr(model, "connect_ms", 2_500))
        call = hold(chain(model, True), talk, at=[(2_500, drop(model, failures=1)), slow])
        assert told(call)[-1] == (call.turns[-1].index, "three")
        assert messages(call)[-4:] == [
            *(("user", "two"), ("assistant", "you said two")),
            *(("user", "three"), ("assistant", "you said three")),
        ]

    @both
    def test_after_one_that_the_model_takes_for_none_is_answered(self, with_vad):
        """A button was pressed and nothing said, while nobody could be reached: nobody waits for that turn's words."""

        class Strict(ScriptedS2SSession):
            async def end_turn(self):
                pass  # nothing was said

        model = made_of(Strict, connect_ms=300)
        button = [(2_500, lambda one: one.feed(StartTurn())), (3_200, lambda one: one.feed(EndTurn("push")))]
        talk = quiet(5_500) + say("one two") + quiet(5_000) + say("three") + quiet(5_000)
        call = hold(chain(model, with_vad), talk, at=[*button, (1_200, drop(model, failures=2))])
        assert [text for _, text in messages(call)] == ["one two", "you said one two", "three", "you said three"]


class Ear(STT):
    """A recogniser of tone speech."""

    async def transcribe(self, audio):
        return Transcript(understand(audio.pcm, audio.sample_rate_hz))


class Voice(TTS):
    """A voice that speaks it."""

    async def synthesize(self, text):
        return Audio(say(text), RATE_HZ)


async def agent(text, history):
    return f"i heard {text}"


class TestHybrid:
    @pytest.mark.parametrize(("with_vad", "dropped_ms"), [(True, 720), (True, 1_000), (False, 1_000)])
    def test_a_turn_left_open_is_asked_for_again_at_once(self, with_vad, dropped_ms):
        """Who would have ended it is gone: the cascade's voice says so, and the cascade hears the next words."""
        model = ScriptedS2S()
        cascade = Chain(vad.new("energy"), turn.new("silence", silence_ms=500), Ear(), agent, Voice())
        talk = quiet(500) + say("one") + quiet(3_500) + say("two") + quiet(3_500)
        call = hold(
            Hybrid(cascade=cascade, s2s=chain(model, with_vad)),
            talk,
            SessionOptions(fallback="sorry again"),
            at=[(dropped_ms, drop(model, failures=100))],
        )
        assert understand(call.agent, RATE_HZ) == "sorry again i heard two"
        assert call.times("reply_started")[0] - call.times("error")[0] < 1_500
        assert "turn_empty" not in [event.name for event in call.events]


class Ahead(ScriptedS2SSession):
    """Gives all its text at once, and its sound at twice the pace at which it is played."""

    async def _say(self, text):
        self._out.put_over(TextDelta(text))
        await self._engine.clock.sleep_ms(300)
        for word in text.split():
            self._out.put_over(AudioOut(say(word, 24_000), 24_000))
            await self._engine.clock.sleep_ms(130)


class TestWhatWasHeard:
    @pytest.mark.parametrize("dropped_ms", [2_100, 2_300, 2_500])
    def test_of_half_an_answer_only_what_has_sound_is_kept(self, dropped_ms):
        """Its text was there long before: of it no more than can have been said in so much sound."""
        model = made_of(Ahead, lambda text: [LONG])
        call = hold(chain(model, False), quiet(500) + say("hello") + quiet(6_000), at=[(dropped_ms, drop(model))])
        heard = understand(call.agent, RATE_HZ)
        assert 1 < len(heard.split()) < 10
        assert messages(call) == [("user", "hello"), ("assistant", heard)]

    def test_text_of_which_no_sound_came_is_not_told_twice(self):
        """The next connection answers, in words of its own."""
        answers = [["one two"], ["red"]]
        model = made_of(Ahead, lambda text: answers.pop(0), words_ms=100)
        call = hold(chain(model, False), quiet(500) + say("hello") + quiet(6_000), at=[(1_600, drop(model))])
        assert understand(call.agent, RATE_HZ) == "red"
        assert messages(call) == [("user", "hello"), ("assistant", "red")]

    def test_text_of_which_no_sound_came_is_not_the_next_answers(self):
        """The caller types before the first sound: what was to be said is gone."""
        model = made_of(Ahead, lambda text: ["one two"] if text == "hello" else ["red"])
        typed = [(1_600, lambda one: one.feed(TextIn("what")))]
        call = hold(chain(model, False), quiet(500) + say("hello") + quiet(6_000), at=typed)
        assert understand(call.agent, RATE_HZ) == "red"
        assert messages(call)[-1] == ("assistant", "red")

    def test_the_model_is_told_what_was_heard_of_what_it_said_itself(self):
        """The words before the tool came over the connection before: what is cut is counted from the first of the new."""

        @tool
        async def look() -> str:
            """Look."""
            model.sessions[0].drop()
            await asyncio.sleep(0.2)
            return "red"

        said = {"hello": ["a moment please", ToolCalled("c1", "look", {})], "red": [LONG]}
        model = ScriptedS2S(lambda text: said.get(text, ["yes"]), tools=[look], words_ms=50)
        talk = quiet(500) + say("hello") + quiet(3_000) + say("stop now") + quiet(3_000)
        call = hold(chain(model, True), talk)
        (cut,) = [event.data for event in call.events if event.name == "interrupted"]
        assert model.sessions[1].interrupted == [pytest.approx(cut["played_ms"] - 3 * 260, abs=1)]
