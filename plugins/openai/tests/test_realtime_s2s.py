"""The realtime model: the real SDK against a loopback server of the documented protocol, well and sick, in whole sessions."""

from __future__ import annotations

import asyncio
import json
import logging

import numpy as np
import pytest
from beluga_voice_openai.realtime_items import items
from beluga_voice_openai.realtime_s2s import OpenAIRealtime
from hypothesis import given, settings
from hypothesis import strategies as st

from beluga_voice import Chain, Session, s2s, vad
from beluga_voice.audio import Audio
from beluga_voice.builtin.recorded_line import RecordedLine
from beluga_voice.clock import run_simulated
from beluga_voice.errors import AuthError, InvalidRequestError, MissingKeyError, OptionError, ProviderError, RateLimitError
from beluga_voice.frames import EndTurn, StartTurn, TextIn, ToolCalled, ToolReturned
from beluga_voice.history import Message
from beluga_voice.settings import SessionOptions
from beluga_voice.testing import Call, quiet, s2s_checks
from beluga_voice.testing.checking import faults_of
from beluga_voice.testing.loopback import Sickness
from beluga_voice.testing.openai_realtime_server import OpenAIRealtimeServer
from beluga_voice.testing.tone_speech import say, understand
from beluga_voice.tools import tool

RATE_HZ = 16_000
CANARY = "sk-canary-5f0d"
LONG = "one two three four five six seven eight nine ten"
TALK = quiet(500) + say("hello") + quiet(3_000)


def model_of(server, **options):
    return s2s.new("openai", api_key=server.api_key, base_url=server.base_url, **options)


def talk(caller=TALK, *, answer=None, options=None, at=(), with_vad=False, sick=(), tail_ms=3_000.0, server=None, **model):
    """A whole session in simulated time: the call, and the server as it is afterwards."""

    async def main():
        made = server or OpenAIRealtimeServer(answer or (lambda text: [f"you said {text}"]), api_key=CANARY)
        async with made:
            for sickness in sick:
                made.sicken(sickness)
            both, events = [], []
            line = RecordedLine(Audio(caller, RATE_HZ), tail_ms=tail_ms, on_audio=lambda *sides: both.append(sides))
            chain = Chain(*([vad.new("energy")] if with_vad else []), model_of(made, **model))
            session = Session(chain, line, options, listeners=[events.append])
            loop = asyncio.get_running_loop()
            for when_ms, action in at:
                loop.call_later(when_ms / 1_000, lambda action=action: action(session, made))
            reason = await session.run()
            left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            assert [name for name in left if not name.startswith(("loopback", "Task-"))] == []
            await asyncio.sleep(1.5)
            assert made.open_sockets == 0
        heard, said = (b"".join(side) for side in zip(*both))
        return Call(reason, list(session.turns), events, session.history, session, heard, said), made

    return run_simulated(main())


def said(call, name):
    return [event.data for event in call.events if event.name == name]


def messages(call):
    return [(message.role, message.text) for message in call.history]


def sent(server, type_, socket=0):
    """The events of a type that the client sent."""
    return [one for one in map(json.loads, server.sockets[socket].received) if one["type"] == type_]


def errors(server):
    return [code for conversation in server.conversations for code in conversation.errors]


@pytest.mark.parametrize("check", s2s_checks.CHECKS)
def test_is_a_speech_to_speech_model(check):
    async def main():
        def script(text):
            return [ToolCalled("c1", "weather", {"city": "paris"})] if text == "weather please" else ["it is red"]

        async with OpenAIRealtimeServer(script, api_key=CANARY) as server:
            await s2s_checks.check_s2s(
                lambda: model_of(server, turn_detection="server_vad"),
                check,
                audio=Audio(say("what is the time"), RATE_HZ),
                words="what is the time",
                tool_question="weather please",
                sick=faults_of(server),
                canary=CANARY,
            )

    run_simulated(main())


class TestOptions:
    def test_the_session_is_configured_as_asked(self):
        """Every option is where the service wants it; nothing answers or interrupts by itself."""

        @tool
        async def weather(city: str) -> str:
            """The weather of a city."""
            return ""

        call, server = talk(
            voice="cedar",
            language="de-CH",
            instructions="Be kind.",
            turn_detection="server_vad",
            threshold=0.7,
            silence_duration_ms=400,
            noise_reduction="near_field",
            speed=1.2,
            max_response_tokens=500,
            tools=(weather,),
            extra={"truncation": "auto"},
        )
        session = server.conversations[0].session
        heard, spoken = session["audio"]["input"], session["audio"]["output"]
        assert heard["turn_detection"] == {
            "type": "server_vad",
            "create_response": False,
            "interrupt_response": False,
            "threshold": 0.7,
            "prefix_padding_ms": 300,
            "silence_duration_ms": 400,
        }
        assert heard["transcription"] == {"model": "gpt-live-transcribe", "language": "de"}
        assert heard["noise_reduction"] == {"type": "near_field"}
        assert (spoken["voice"], spoken["speed"]) == ("cedar", 1.2)
        assert (session["instructions"], session["max_output_tokens"], session["truncation"]) == ("Be kind.", 500, "auto")
        assert [(one["type"], one["name"]) for one in session["tools"]] == [("function", "weather")]
        assert call.turns[0].speech_end_ms == pytest.approx(700, abs=60)
        assert errors(server) == []

    def test_push_to_talk(self):
        """Without turn detection a button ends the turn."""
        button = [(400, lambda one, _: one.feed(StartTurn())), (1_200, lambda one, _: one.feed(EndTurn("push")))]
        call, server = talk(turn_detection="none", at=button)
        assert server.conversations[0].session["audio"]["input"]["turn_detection"] is None
        assert [(turn.user_text, turn.source) for turn in call.turns] == [("hello", "push")]

    def test_without_a_transcript(self):
        """Nobody writes down what the caller said; the conversation goes on all the same."""
        call, server = talk(transcription_model="")
        assert "transcription" not in server.conversations[0].session["audio"]["input"]
        assert messages(call) == [("assistant", "you said hello")]

    @pytest.mark.parametrize(
        "wrong", [{"turn_detection": "both"}, {"speed": 3.0}, {"tools": (3,)}, {"max_response_tokens": 5_000}, {"pitch": 1}]
    )
    def test_wrong_ones_are_refused_where_they_are_given(self, wrong):
        with pytest.raises(OptionError):
            OpenAIRealtime(api_key="sk", **wrong)

    def test_no_key(self, monkeypatch):
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        with pytest.raises(MissingKeyError, match="OPENAI_API_KEY"):
            OpenAIRealtime()


class TestConversation:
    def test_talk(self):
        """One socket a session; words, sound and usage as they are."""
        call, server = talk(quiet(500) + say("one two") + quiet(2_500) + say("three") + quiet(2_500))
        assert messages(call) == [
            ("user", "one two"),
            ("assistant", "you said one two"),
            ("user", "three"),
            ("assistant", "you said three"),
        ]
        assert understand(call.agent, RATE_HZ) == "you said one two you said three"
        assert (len(server.sockets), errors(server)) == (1, [])
        assert {one["model"] for one in said(call, "usage")} == {"gpt-realtime-2.1", "gpt-live-transcribe"}
        used = {one.model: one.amounts for one in call.session.usage}
        assert used["gpt-realtime-2.1"]["output_audio_tokens"] == 16

    def test_greeting_say_and_typed_text(self):
        """What it is told to say, and what is typed instead of spoken."""
        at = [(2_500, lambda one, _: one.feed(TextIn("what is it"))), (5_000, lambda one, _: one.say("please"))]
        call, server = talk(quiet(7_000), options=SessionOptions(greeting="hello you"), at=at)
        assert understand(call.agent, RATE_HZ) == "hello you you said what is it please"
        assert messages(call)[1] == ("user", "what is it")
        assert errors(server) == []

    def test_tools_side_by_side(self):
        """Two calls of one response: one answer, once both have returned."""
        running = []

        @tool
        async def weather(city: str) -> str:
            """The weather."""
            running.append(city)
            await asyncio.sleep(0.5)
            assert len(running) == 2
            return f"red in {city}"

        def answer(text):
            if text == "hello":
                return ["a moment", ToolCalled("c1", "weather", {"city": "paris"}), ToolCalled("c2", "weather", {"city": "it"})]
            return [text]

        call, server = talk(answer=answer, tools=(weather,), tail_ms=5_000)
        assert understand(call.agent, RATE_HZ).startswith("a moment red in")
        assert messages(call)[1][1].startswith("a moment red in")
        assert len(sent(server, "response.create")) == 2
        outputs = [one["item"] for one in sent(server, "conversation.item.create")]
        assert sorted(one["output"] for one in outputs) == ["red in it", "red in paris"]
        assert [type(one["tool"]) for one in said(call, "tool")] == [ToolCalled, ToolCalled, ToolReturned, ToolReturned]
        assert errors(server) == []


    def test_rounds_of_tools_are_bounded(self):
        """A model that would call for ever has to answer after `max_tool_rounds`; the next turn has all of them again."""

        @tool
        async def weather() -> str:
            """The weather."""
            return "red"

        def answer(text):
            return [ToolCalled(f"c{next(numbers)}", "weather")]

        numbers = iter(range(100))
        caller = quiet(500) + say("hello") + quiet(3_000) + say("again") + quiet(3_000)
        call, server = talk(caller, answer=answer, tools=(weather,), max_tool_rounds=2)
        chosen = [one["response"].get("tool_choice", "auto") for one in sent(server, "response.create")]
        assert chosen == ["auto", "auto", "none"] * 2
        assert [turn.user_text for turn in call.turns] == ["hello", "again"]
        assert errors(server) == []

    def test_words_that_never_come_hold_up_nobody_elses_for_ever(self):
        """The service forgets a transcript: those of the turns after it are told, each to its own turn."""
        server = OpenAIRealtimeServer(lambda text: ["yes"], api_key=CANARY)
        server.forgets = 1
        words = ["one", "two", "three", "four", "five", "six"]
        caller = quiet(500) + b"".join(say(word) + quiet(2_500) for word in words)
        call, server = talk(caller, server=server)
        assert [text for role, text in messages(call) if role == "user"] == words[1:]


class TestInterrupting:
    @pytest.mark.parametrize("with_vad", [False, True])
    @pytest.mark.parametrize("speed", [1.0, 50.0], ids=["while it is made", "after it was made"])
    def test_the_model_knows_what_was_heard(self, with_vad, speed):
        """It stops, and its item is cut where the caller stopped hearing: never beyond what it has sound for."""
        server = OpenAIRealtimeServer(lambda text: [LONG] if text == "hello" else ["yes"], speed=speed, api_key=CANARY)
        caller = quiet(500) + say("hello") + quiet(1_800) + say("stop now") + quiet(3_000)
        call, server = talk(caller, server=server, with_vad=with_vad)
        (interrupted,) = said(call, "interrupted")
        (cut,) = server.truncations
        assert cut.audio_end_ms == int(interrupted["played_ms"])
        assert cut.audio_end_ms <= cut.length_ms
        assert len(sent(server, "response.cancel")) == (1 if speed == 1.0 else 0)
        assert errors(server) == []
        assert LONG.startswith(call.turns[0].heard_text)
        assert call.turns[0].heard_text
        assert messages(call)[2:] == [("user", "stop now"), ("assistant", "yes")]

    def test_typing_into_a_reply_that_is_being_made(self):
        """The next response is asked for when the one that was stopped is over."""
        server = OpenAIRealtimeServer(lambda text: [LONG] if text == "hello" else ["yes"], speed=1.0, api_key=CANARY)
        call, server = talk(server=server, at=[(2_500, lambda one, _: one.feed(TextIn("what is it")))])
        assert messages(call)[2:] == [("user", "what is it"), ("assistant", "yes")]
        assert server.conversations[0].responses == ["cancelled", "completed"]
        assert errors(server) == []

    def test_of_two_items_each_is_cut_where_it_belongs(self):
        """What it said before and after a tool are two items: the first was heard, the second in part."""

        @tool
        async def weather() -> str:
            """The weather."""
            return "red"

        def answer(text):
            steps = {"hello": ["a moment", ToolCalled("c1", "weather")], "red": [LONG]}
            return steps.get(text, ["yes"])

        caller = quiet(500) + say("hello") + quiet(2_300) + say("stop now") + quiet(3_000)
        call, server = talk(caller, answer=answer, tools=(weather,))
        (interrupted,) = said(call, "interrupted")
        (cut,) = server.truncations
        assert cut.audio_end_ms == pytest.approx(interrupted["played_ms"] - 2 * 260, abs=1)
        assert errors(server) == []

    def test_before_it_spoke(self):
        """The caller goes on while the model thinks: the response is cancelled, and one answers both parts."""
        server = OpenAIRealtimeServer(delay_ms=1_500, api_key=CANARY)
        caller = quiet(500) + say("one") + quiet(900) + say("two") + quiet(4_000)
        call, server = talk(caller, server=server)
        assert [turn.user_text for turn in call.turns] == ["one two"]
        assert server.conversations[0].responses == ["cancelled", "completed"]
        assert errors(server) == []

    @settings(max_examples=25, deadline=None)
    @given(played=st.lists(st.floats(0, 4_000), min_size=1, max_size=3), after_ms=st.floats(0, 900))
    def test_at_any_moment(self, played, after_ms):
        """Whatever is said to have been played, the service never refuses the truncation."""

        async def main():
            async with OpenAIRealtimeServer(lambda text: [LONG], speed=3.0) as server, model_of(server) as model:
                session = await model.connect()
                events = asyncio.create_task(_drain(session))
                for played_ms in played:
                    await session.send_text("hello")
                    await asyncio.sleep(after_ms / 1_000)
                    await session.interrupt(played_ms)
                await asyncio.sleep(0.5)
                await session.aclose()
                await events
                return errors(server)

        assert set(run_simulated(main())) <= {"response_cancel_not_active"}  # it was over when it was to be stopped


class TestBadDays:
    def test_a_drop_in_mid_reply_is_rebuilt_with_the_history(self):
        """The conversation so far is told to the new socket: texts, and tool calls with what they gave."""

        @tool
        async def weather() -> str:
            """The weather."""
            return "red"

        def answer(text):
            return {"hello": [ToolCalled("c1", "weather")], "red": ["it is red"]}.get(text, [LONG])

        caller = quiet(500) + say("hello") + quiet(2_500) + say("again") + quiet(4_500) + say("now") + quiet(3_000)
        at = [(4_700, lambda one, server: server.sockets[0].abort())]
        server = OpenAIRealtimeServer(answer, speed=1.5, api_key=CANARY)
        call, server = talk(caller, server=server, tools=(weather,), at=at)
        assert len(server.sockets) == 2
        told = [(one["type"], one.get("role"), one.get("output")) for one in server.conversations[1].items[:5]]
        assert told == [
            ("message", "user", None),
            ("function_call", None, None),
            ("function_call_output", None, "red"),
            ("message", "assistant", None),
            ("message", "user", None),
        ]
        assert server.conversations[1].heard == ["now"]
        assert messages(call)[-2:] == [("user", "now"), ("assistant", LONG)]
        assert said(call, "retried")[0]["provider"] == "openai"
        assert errors(server) == []

    SICK = {
        "refused once": Sickness("refuse", status=500),
        "busy": Sickness("refuse", status=429, retry_after_s=0.5),
        "hangs at once": Sickness("hang"),
        "hangs unconfigured": Sickness("hang", after=1),
        "hangs in mid-answer": Sickness("hang", after=18),
        "hangs before the answer": Sickness("hang", after=9),
        "cut at once": Sickness("cut"),
        "cut in mid-answer": Sickness("cut", after=18),
        "garbage at once": Sickness("garbage"),
        "garbage in mid-answer": Sickness("garbage", after=18),
        "drips": Sickness("drip", every_ms=40),
        "unknown events": Sickness("unknown"),
        "odd lengths": Sickness("odd"),
    }

    @pytest.mark.parametrize("name", SICK)
    def test_a_sick_service_is_survived(self, name):
        """Whatever is wrong with the first socket, the second turn is heard and answered."""
        caller = quiet(500) + say("hello") + quiet(11_500) + say("again") + quiet(4_000)
        call, _ = talk(caller, sick=[self.SICK[name]], tail_ms=5_000)
        assert messages(call)[-2:] == [("user", "again"), ("assistant", "you said again")]
        assert CANARY not in repr([event for event in call.events])

    def test_odd_lengths_are_whole_sound(self):
        """Pieces that end in mid-sample are put together: every word is understood."""
        call, _ = talk(sick=[Sickness("odd")])
        assert understand(call.agent, RATE_HZ) == "you said hello"
        assert np.abs(np.frombuffer(call.agent, "<i2").astype(int)).max() < 12_000  # half a sample off is noise, and loud

    def test_nothing_to_say_is_a_failed_answer(self):
        """A response without sound or text: the fallback is said."""
        call, _ = talk(sick=[Sickness("empty")], options=SessionOptions(fallback="sorry again"), tail_ms=4_000)
        assert len(call.turns) == 1

    def test_a_response_that_fails_is_asked_for_again(self):
        """The service had a bad moment: a new socket, the same question."""

        class Failing(OpenAIRealtimeServer):
            pass

        server = Failing(api_key=CANARY)
        server.fails = [{"type": "server_error", "code": "server_error", "message": "try again"}]
        call, server = talk(server=server)
        assert messages(call) == [("user", "hello"), ("assistant", "you said hello")]
        assert len(server.sockets) == 2

    def test_an_error_event_does_not_end_the_conversation(self):
        """The service refuses one thing: told, and the socket lives."""

        async def refuse(server):
            await server.conversations[0].tell("error", error={"type": "invalid_request_error", "message": "no"})

        call, server = talk(at=[(300, lambda one, server: one._context.spawn(refuse(server), "refuse"))])
        assert messages(call)[-1] == ("assistant", "you said hello")
        (error,) = said(call, "error")
        assert isinstance(error["error"], InvalidRequestError)
        assert len(server.sockets) == 1

    def test_an_hour_is_over(self):
        """The service ends a session that is too old: the next one goes on."""

        async def expire(server):
            error = {"type": "invalid_request_error", "code": "session_expired", "message": "Your session hit the limit"}
            await server.conversations[0].tell("error", error=error)

        at = [(1_000, lambda one, server: one._context.spawn(expire(server), "expire"))]
        call, server = talk(quiet(2_000) + TALK, at=at)
        assert messages(call)[-1] == ("assistant", "you said hello")
        assert (len(server.sockets), said(call, "error")) == (2, [])

    @pytest.mark.parametrize(
        ("sickness", "error"),
        [
            (Sickness("refuse", status=401), AuthError),
            (Sickness("refuse", status=429, retry_after_s=7), RateLimitError),
            (Sickness("refuse", status=400), InvalidRequestError),
        ],
    )
    def test_refusals_are_told_in_our_words_and_without_the_key(self, sickness, error, caplog):
        """The error tree, the retry time, and no key in message, log or repr."""

        async def main():
            async with OpenAIRealtimeServer(api_key=CANARY) as server, model_of(server) as model:
                server.sicken(sickness)
                with pytest.raises(error) as caught:
                    await model.connect()
                assert CANARY not in repr(model.options)
                return caught.value

        with caplog.at_level(logging.DEBUG):
            told = run_simulated(main())
        assert getattr(told, "retry_after_ms", 7_000) == 7_000
        assert CANARY not in f"{told} {told!r} {caplog.text}"
        assert told.provider == "openai"

    def test_a_wrong_voice_is_refused_at_the_start(self):
        """The service's own words, at connecting."""

        async def main():
            async with OpenAIRealtimeServer() as server, model_of(server, voice="nobody") as model:
                with pytest.raises(ProviderError, match="nobody"):
                    await model.connect()
                await asyncio.sleep(1.5)
                return server.open_sockets

        assert run_simulated(main()) == 0


class TestHistory:
    def test_calls_are_told_with_what_they_gave(self):
        """A call of an old message that never returned has an answer all the same; one of the last is waited for."""
        old = Message("assistant", "Hm.", "Hm.", (ToolCalled("c1", "weather", {"city": "Oslo"}),))
        new = Message("assistant", "", "", (ToolCalled("c2", "clock"),))
        told = items((old, Message("user", "and now"), new))
        assert [one["type"] for one in told.items] == [
            "function_call",
            "function_call_output",
            "message",
            "message",
            "function_call",
        ]
        assert (told.answered, told.waiting) == ({"c1"}, {"c2"})
        assert told.items[0]["arguments"] == '{"city": "Oslo"}'

    def test_only_the_newest_are_told(self):
        """A long conversation is not told from its beginning."""

        async def main():
            history = tuple(Message("user", str(at)) for at in range(50))
            async with OpenAIRealtimeServer() as server, model_of(server, max_messages=10) as model:
                session = await model.connect(history)
                await asyncio.sleep(0.1)
                await session.aclose()
                return [one["content"][0]["text"] for one in server.conversations[0].items]

        assert run_simulated(main()) == [str(at) for at in range(40, 50)]


async def _drain(session):
    async for _ in session.events():
        pass
