"""Two chains for one conversation: who answers, when they change places, and that nothing is lost by it."""

import asyncio

import numpy as np
import pytest

from beluga_voice import Chain, SessionManager, agent, config, transport, turn, vad
from beluga_voice.audio import Audio
from beluga_voice.clock import run_simulated
from beluga_voice.errors import ChainError, ConfigError, ConnectFailedError
from beluga_voice.frames import ToolCalled, Transcript
from beluga_voice.hybrid import Hybrid, Situation, on_tool_overload
from beluga_voice.session import Session
from beluga_voice.settings import BargeInOptions, SessionOptions
from beluga_voice.stt import STT
from beluga_voice.testing import hold, quiet
from beluga_voice.testing.scripted_s2s import ScriptedS2S
from beluga_voice.testing.tone_speech import RATE_HZ, say, understand
from beluga_voice.tools import tool
from beluga_voice.tts import TTS


class Ear(STT):
    """A recogniser of tone speech."""

    async def transcribe(self, audio):
        return Transcript(understand(audio.pcm, audio.sample_rate_hz))


class Voice(TTS):
    """A voice that speaks it."""

    async def synthesize(self, text):
        return Audio(say(text), RATE_HZ)


def cascade(reply, recogniser=None):
    return Chain(vad.new("energy"), turn.new("silence", silence_ms=500), recogniser or Ear(), reply, Voice())


LOUD_SAMPLES = np.count_nonzero(np.abs(np.frombuffer(say("two three"), "<i2").astype(int)) > 300)


async def cascaded(text, history):
    return f"i heard {text}"


def s2s_says(text):
    return [f"you said {text}"]


def spoken(*texts, gap_ms=3_500):
    return quiet(500) + b"".join(say(text) + quiet(gap_ms) for text in texts)


def said(call, name):
    return [event.data for event in call.events if event.name == name]


def messages(call):
    return [(message.role, message.text) for message in call.history]


def turns_of(policy_modes):
    """A policy that gives these modes, one at the end of each turn, and keeps what it was asked."""
    asked = []

    def policy(so_far):
        asked.append(so_far)
        return policy_modes[min(len(asked), len(policy_modes)) - 1]

    return policy, asked


class TestPolicy:
    def test_on_tool_overload(self):
        """By number of tools, and back after some turns without so many."""
        policy = on_tool_overload(threshold=2, back_after_turns=2)
        assert policy(Situation("s2s", tool_calls=1)) == "s2s"
        assert policy(Situation("s2s", tool_calls=2)) == "cascade"
        assert policy(Situation("cascade", turns=1)) == "cascade"
        assert policy(Situation("cascade", turns=2)) == "s2s"
        assert policy(Situation("cascade", tool_calls=2, turns=3)) == "cascade"

    @pytest.mark.parametrize("numbers", [(0, 1), (1, 0)])
    def test_numbers_below_one_are_refused(self, numbers):
        with pytest.raises(ValueError, match="at least 1"):
            on_tool_overload(*numbers)

    def test_a_policy_that_fails_changes_nothing(self):
        """A warning, and the conversation goes on as it was."""
        for broken in (lambda so_far: 1 / 0, lambda so_far: "both"):
            hybrid = Hybrid(cascade=cascade(cascaded), s2s=Chain(ScriptedS2S(s2s_says)), policy=broken)
            call = hold(hybrid, spoken("one", "two"))
            assert len(call.turns) == 2
            assert "policy failed" in said(call, "warning")[0]["message"]
            assert not said(call, "handed_over")


class TestHandingOver:
    @pytest.mark.parametrize("vad_before_model", [False, True])
    def test_in_both_directions_with_the_whole_history(self, vad_before_model):
        """Each knows what was said with the other."""
        told = []

        async def reply(text, history):
            told.append([message.text for message in history])
            return f"i heard {text}"

        model = ScriptedS2S(s2s_says)
        policy, asked = turns_of(["cascade", "cascade", "s2s", "s2s"])
        stages = [vad.new("energy"), model] if vad_before_model else [model]
        call = hold(Hybrid(cascade=cascade(reply), s2s=Chain(*stages), policy=policy), spoken("one", "two", "three", "four"))
        assert messages(call) == [
            ("user", "one"),
            ("assistant", "you said one"),
            ("user", "two"),
            ("assistant", "i heard two"),
            ("user", "three"),
            ("assistant", "i heard three"),
            ("user", "four"),
            ("assistant", "you said four"),
        ]
        assert understand(call.agent, RATE_HZ) == "you said one i heard two i heard three you said four"
        assert told == [["one", "you said one"], ["one", "you said one", "two", "i heard two"]]
        assert [message.text for message in model.sessions[1].history] == [text for _, text in messages(call)[:6]]
        assert said(call, "handed_over") == [
            {"old": "s2s", "new": "cascade", "why": "policy"},
            {"old": "cascade", "new": "s2s", "why": "policy"},
        ]
        assert [(one.mode, one.turns) for one in asked] == [("s2s", 1), ("cascade", 1), ("cascade", 2), ("s2s", 1)]
        assert model.sessions[0].closed

    def test_tools_make_it_change(self):
        """A turn with as many tools as the threshold: the cascade takes the next, and hands back after one."""

        @tool
        async def look(what: str) -> str:
            """Look something up."""
            return "it is red"

        def answer(text):
            return [ToolCalled(f"c{at}", "look", {"what": str(at)}) for at in range(3)] if text == "one" else [text]

        model = ScriptedS2S(answer, tools=[look])
        hybrid = Hybrid(cascade=cascade(cascaded), s2s=Chain(model), policy=on_tool_overload(3, back_after_turns=1))
        call = hold(hybrid, spoken("one", "two", "three"))
        assert [event["new"] for event in said(call, "handed_over")] == ["cascade", "s2s"]
        assert [text for role, text in messages(call) if role == "assistant"] == ["it is red", "i heard two", "three"]

    @pytest.mark.parametrize("gap_ms", [*range(700, 1_300, 20)])
    @pytest.mark.parametrize("vad_before_model", [False, True])
    def test_no_word_is_lost_whenever_it_comes(self, gap_ms, vad_before_model):
        """The caller's next words begin just before, at and just after the hand-over."""
        model = ScriptedS2S(lambda text: ["yes"], delay_ms=50, words_ms=50)
        stages = [vad.new("energy"), model] if vad_before_model else [model]
        options = SessionOptions(barge_in=BargeInOptions(enabled=False))
        given = []

        class Keeping(Ear):
            async def transcribe(self, audio):
                given.append(audio.pcm)
                return await super().transcribe(audio)

        hybrid = Hybrid(cascade=cascade(cascaded, recogniser=Keeping()), s2s=Chain(*stages), policy=turns_of(["cascade"])[0])
        call = hold(hybrid, quiet(500) + say("one") + quiet(gap_ms) + say("two three") + quiet(4_000), options)
        heard = " ".join(record.user_text for record in call.turns)
        assert heard == "one two three"
        for pcm in given:  # to the sample, but for what is as good as silent
            assert np.count_nonzero(np.abs(np.frombuffer(pcm, "<i2").astype(int)) > 300) >= 0.95 * LOUD_SAMPLES

    def test_words_that_are_late_are_waited_for(self):
        """What the model still owes is told before the cascade takes over, and is no turn of its own."""
        model = ScriptedS2S(s2s_says, words_ms=2_500)
        hybrid = Hybrid(cascade=cascade(cascaded), s2s=Chain(model), policy=turns_of(["cascade"])[0])
        call = hold(hybrid, spoken("one", "two", gap_ms=4_500))
        assert messages(call) == [
            ("user", "one"),
            ("assistant", "you said one"),
            ("user", "two"),
            ("assistant", "i heard two"),
        ]

    def test_starting_with_the_cascade(self):
        call = hold(
            Hybrid(cascade=cascade(cascaded), s2s=Chain(ScriptedS2S(s2s_says)), policy=turns_of(["s2s"])[0], start="cascade"),
            spoken("one", "two"),
            SessionOptions(greeting="hello"),
        )
        assert messages(call) == [
            ("assistant", "hello"),
            ("user", "one"),
            ("assistant", "i heard one"),
            ("user", "two"),
            ("assistant", "you said two"),
        ]
        assert said(call, "opened")[0]["mode"] == "cascade"

    def test_what_waits_to_be_said_is_said_by_who_is_there(self):
        """A text put off until the boundary is said after the hand-over, by the cascade's voice for a model that cannot."""
        model = ScriptedS2S(s2s_says, says=False)
        hybrid = Hybrid(cascade=cascade(cascaded), s2s=Chain(model))
        call = hold(hybrid, spoken("one"), at=[(2_000, lambda one: one.say("please"))])
        assert messages(call)[-1] == ("assistant", "please")
        assert understand(call.agent, RATE_HZ) == "you said one please"


class TestFailure:
    def test_a_model_that_cannot_be_reached_is_replaced_before_anybody_speaks(self):
        model = ScriptedS2S()
        model.failures = [ConnectFailedError("down")] * 100
        call = hold(Hybrid(cascade=cascade(cascaded), s2s=Chain(model)), spoken("one"))
        assert messages(call) == [("user", "one"), ("assistant", "i heard one")]
        assert said(call, "handed_over") == [{"old": "s2s", "new": "cascade", "why": "failure"}]

    def test_the_turn_it_leaves_unanswered_is_answered(self):
        """Its words are known: the agent gets them, at once."""
        model = ScriptedS2S(lambda text: [ConnectFailedError("gone")], delay_ms=800, words_ms=100)

        def die(session):
            model.failures = [ConnectFailedError("down")] * 100

        call = hold(Hybrid(cascade=cascade(cascaded), s2s=Chain(model)), spoken("one", "two"), at=[(600, die)])
        assert messages(call) == [
            ("user", "one"),
            ("assistant", "i heard one"),
            ("user", "two"),
            ("assistant", "i heard two"),
        ]

    def test_words_nobody_knows_are_asked_for_again(self):
        """It died with what it heard: the cascade's voice says so."""
        model = ScriptedS2S(lambda text: [ConnectFailedError("gone")], delay_ms=300, words_ms=900)

        def die(session):
            model.failures = [ConnectFailedError("down")] * 100

        options = SessionOptions(fallback="sorry again")
        call = hold(Hybrid(cascade=cascade(cascaded), s2s=Chain(model)), spoken("one", "two"), options, at=[(600, die)])
        assert understand(call.agent, RATE_HZ) == "sorry again i heard two"

    def test_it_is_tried_again_after_some_turns(self):
        """The policy hands back; a model that is well again goes on with the history."""
        model = ScriptedS2S(s2s_says)
        model.failures = [ConnectFailedError("down")] * 2
        hybrid = Hybrid(cascade=cascade(cascaded), s2s=Chain(model), policy=on_tool_overload(back_after_turns=1))
        call = hold(hybrid, spoken("one", "two"))
        assert messages(call)[-1] == ("assistant", "you said two")
        assert [message.text for message in model.sessions[0].history] == ["one", "i heard one"]


class TestWhereAChainIsTaken:
    def test_a_manager_takes_it(self):
        """Its engines are made ready, all of them, and closed."""
        states = []

        class Warm(ScriptedS2S):
            async def prewarm(self):
                states.append("warm")

            async def aclose(self):
                states.append("closed")

        async def main():
            hybrid = Hybrid(cascade=cascade(cascaded), s2s=Chain(Warm(s2s_says)), start="cascade")
            async with SessionManager(hybrid) as manager:
                session = await manager.create(transport.new("memory"))
                await asyncio.sleep(1)
                return session.state.value

        assert run_simulated(main()) == "listening"
        assert states == ["warm", "closed"]

    def test_it_can_be_asked_by_text(self):
        """By its cascade's agent."""

        async def main():
            return await Session(Hybrid(cascade=cascade(cascaded), s2s=Chain(ScriptedS2S())), None).ask("one")

        assert run_simulated(main()) == "i heard one"

    @pytest.mark.parametrize("wrong", ["cascade", "s2s", "start", "nested"])
    def test_what_cannot_work_is_refused(self, wrong):
        good = {"cascade": cascade(cascaded), "s2s": Chain(ScriptedS2S()), "start": "s2s"}
        others = {"cascade": good["s2s"], "s2s": good["cascade"], "start": "both", "nested": Hybrid(**good)}
        with pytest.raises((ChainError, TypeError, ValueError), match=r"Hybrid"):
            Hybrid(**{**good, wrong.replace("nested", "cascade"): others[wrong]})


class TestConfiguration:
    PARTS = """
        [s2s]
        provider = "beluga_voice.testing.scripted_s2s:ScriptedS2S"
        delay_ms = 100.0
        [vad]
        provider = "energy"
        [stt]
        provider = "beluga_voice.testing:ScriptedSTT"
        [agent]
        provider = "echo"
        [tts]
        provider = "tone"
    """

    def test_a_file_may_have_both(self):
        """With `[hybrid]` the tables of a cascade stand beside `[s2s]`; a processor stands where its anchor is."""
        gain = '[[processor]]\nprovider = "gain"\ndb = 6\n'
        text = "[hybrid]\nback_after_turns = 4\nstart = 'cascade'\n" + self.PARTS
        made = config.loads(text + gain + 'before = "vad"\n' + gain + 'before = "turn"\n').chain
        kinds = {mode: [stage.kind for stage in chain.stages] for mode, chain in made.chains.items()}
        assert kinds == {
            "s2s": ["processor", "vad", "s2s"],
            "cascade": ["processor", "vad", "processor", "turn", "stt", "agent", "tts"],
        }
        assert made.start == "cascade"
        assert [made.policy(Situation("cascade", turns=turns)) for turns in (3, 4)] == ["cascade", "s2s"]

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("[hybrid]\n[agent]\nprovider = 'echo'", "add [s2s]"),
            (PARTS, "or add [hybrid]"),
            ("[hybrid]\ntool_overload = 0\n" + PARTS, "tool_overload"),
            ("[hybrid]\nstart = 'both'\n" + PARTS, "start"),
        ],
    )
    def test_what_cannot_work_is_refused_with_its_line(self, text, told):
        with pytest.raises(ConfigError, match=r"^configuration:\d+: ") as caught:
            config.loads(text)
        assert told in str(caught.value)


class TestTheSameConversation:
    """One conversation by three configurations: the same history, the same kinds of events."""

    INHERENT = {
        "turn_end_proposed",  # a cascade's: its recogniser begins on speculation
        "turn_end_withdrawn",
        "usage",  # the scripted model's, as a service tells it
        "handed_over",  # a hybrid's
    }

    def hold(self, chain):
        options = SessionOptions(greeting="hello")
        return hold(chain, spoken("one two", "three", "four"), options)

    def test_cascade_s2s_and_hybrid(self):
        async def reply(text, history):
            return f"you said {text}"

        chains = {
            "cascade": cascade(reply),
            "s2s": Chain(vad.new("energy"), ScriptedS2S(s2s_says)),
            "hybrid": Hybrid(
                cascade=cascade(reply),
                s2s=Chain(vad.new("energy"), ScriptedS2S(s2s_says)),
                policy=turns_of(["cascade", "s2s", "s2s"])[0],
            ),
        }
        calls = {name: self.hold(chain) for name, chain in chains.items()}
        histories = {name: call.history for name, call in calls.items()}
        assert histories["cascade"] == histories["s2s"] == histories["hybrid"]
        kinds = {name: {event.name for event in call.events} - self.INHERENT for name, call in calls.items()}
        assert kinds["cascade"] == kinds["s2s"] == kinds["hybrid"]
        fields = {
            name: {(event.name, *sorted(event.data)) for event in call.events if event.name not in self.INHERENT}
            for name, call in calls.items()
        }
        assert fields["cascade"] == fields["s2s"] == fields["hybrid"]
        records = {
            name: [(one.user_text, one.heard_text, one.interrupted) for one in call.turns] for name, call in calls.items()
        }
        assert records["cascade"] == records["s2s"] == records["hybrid"]
        for call in calls.values():
            assert call.states() == calls["cascade"].states()


def test_there_is_an_agent_by_name():
    """What a hybrid's cascade may hold is what any cascade may."""
    assert Hybrid(cascade=cascade(agent.new("echo")), s2s=Chain(ScriptedS2S())).chains["cascade"].stage("agent")
