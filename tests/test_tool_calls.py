"""Tools in conversations, in simulated time: what a caller hears, and what the agent is told afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from beluga_voice import Chain, Session, SessionOptions, tts, turn
from beluga_voice.clock import run_simulated
from beluga_voice.engine import Context
from beluga_voice.errors import AgentError
from beluga_voice.frames import AudioOut, ToolCalled, ToolReturned, Word
from beluga_voice.testing import LoudVAD, ScriptedSTT, hold, quiet, speech
from beluga_voice.tools import Toolbox, ToolCall, tool
from beluga_voice.tts import TTS, TTSCapabilities

WORD_MS = 200.0
FILLER = "One moment, please."


def chain(*parts, texts=("what is the weather", "and tomorrow")):
    return Chain(LoudVAD(), turn.new("silence"), ScriptedSTT(*texts), *parts, tts.new("tone", word_ms=WORD_MS))


def slow(wait_ms, **options):
    """A tool that takes its time, and notes what becomes of it."""
    ran = []

    @tool(**options)
    async def look(what: str = "") -> str:
        ran.append("began")
        try:
            await asyncio.sleep(wait_ms / 1000)
        except asyncio.CancelledError:
            ran.append("cancelled")
            raise
        ran.append("ended")
        return f"found {what}".strip()

    return look, ran


def using(*tools, calls=None, before="", after="It is sunny."):
    """An agent that calls tools in its first reply, and says something before and after."""
    box = Toolbox(tools)
    asked = [ToolCall(f"c{at}", one.name) for at, one in enumerate(tools)] if calls is None else calls
    heard = []

    async def agent(text, history, session):
        heard.append(history)
        if len(heard) > 1:
            yield f"You said {text}."
            return
        if before:
            yield before
        async for frame in box.use(session, asked):
            yield frame
        yield after

    agent.histories = heard
    return agent


def times_of(call, name):
    return [event.at_ms for event in call.events if event.name == name]


def tool_frames(message):
    return [type(frame).__name__ for frame in message.tool_calls]


QUESTION = quiet(300) + speech(800)


class TestResults:
    def test_a_tool_is_called_and_its_result_is_in_the_history(self):
        """The message that says the answer holds the call and what it gave; each is told once."""
        look, _ = slow(300)
        call = hold(chain(using(look, calls=[ToolCall("c1", "look", '{"what": "sun"}')])), QUESTION + quiet(4_000))
        question, answer = call.history
        assert question.text == "what is the weather"
        assert answer.text == "It is sunny."
        assert answer.tool_calls == (ToolCalled("c1", "look", {"what": "sun"}), ToolReturned("c1", "found sun"))
        told = [event.data["tool"] for event in call.events if event.name == "tool"]
        assert told == list(answer.tool_calls)

    def test_the_agent_sees_the_call_in_its_next_turn(self):
        """The second reply is given the first one's calls."""
        look, _ = slow(10)
        talker = using(look)
        hold(chain(talker), QUESTION + quiet(3_000) + speech(800) + quiet(3_000))
        assert tool_frames(talker.histories[1][-1]) == ["ToolCalled", "ToolReturned"]

    def test_words_before_and_after_a_call_stay_apart(self):
        """A model begins anew after its tools have returned: "Let me look." and "It is sunny." are two sentences."""
        look, _ = slow(100)
        call = hold(chain(using(look, before="Let me look.")), QUESTION + quiet(6_000))
        assert call.history[1].text == "Let me look. It is sunny."
        assert call.turns[0].agent_text == "Let me look. It is sunny."

    def test_tools_of_one_round_run_side_by_side(self):
        """Three tools of 400 ms take 400 ms."""
        tools = [slow(400, name=name)[0] for name in ("look", "search", "fetch")]
        call = hold(chain(using(*tools)), QUESTION + quiet(4_000))
        called, returned = times_of(call, "tool")[:3], times_of(call, "tool")[3:]
        assert len(returned) == 3
        assert max(returned) - min(called) == pytest.approx(400, abs=1)

    def test_results_come_in_the_order_in_which_they_are_there(self):
        """A quick tool does not wait for a slow one that was called before."""
        tools = [slow(500, name="late")[0], slow(100, name="early")[0]]
        call = hold(chain(using(*tools)), QUESTION + quiet(4_000))
        ids = [frame.call_id for frame in call.history[1].tool_calls if isinstance(frame, ToolReturned)]
        assert ids == ["c1", "c0"]

    def test_a_tool_that_takes_too_long_is_given_up_and_the_reply_goes_on(self, caplog):
        """After timeout_ms the model reads an error; the tool is cancelled."""
        look, ran = slow(60_000, timeout_ms=2_000)
        call = hold(chain(using(look)), QUESTION + quiet(8_000))
        returned = call.history[1].tool_calls[1]
        assert returned.error == "look gave nothing for 2000 ms and was given up"
        assert call.history[1].text == "It is sunny."
        assert ran == ["began", "cancelled"]
        assert "tool look gave nothing for 2000 ms" in caplog.text

    def test_a_tool_may_take_longer_than_the_agent(self):
        """While a tool runs the agent is not late: the tool has a limit of its own."""
        look, _ = slow(20_000, timeout_ms=30_000)
        options = SessionOptions(agent_timeout_ms=3_000)
        call = hold(chain(using(look)), QUESTION + quiet(25_000), options)
        assert call.history[1].text == "It is sunny."

    def test_plain_frames_of_an_agent_count_too(self):
        """An agent that runs its tools itself tells of them by frames."""

        async def own(text, history):
            yield ToolCalled("c1", "look")
            yield ToolReturned("c1", 3)
            yield "Three."

        call = hold(chain(own), QUESTION + quiet(3_000))
        assert tool_frames(call.history[1]) == ["ToolCalled", "ToolReturned"]


class TestInterruption:
    CALLER = QUESTION + quiet(1_700) + speech(900) + quiet(9_000)  # speaks again about 1,000 ms after the tool was called

    @pytest.mark.parametrize("before", ["", "Let me look."])
    @pytest.mark.parametrize("wait_ms", [3_000, 5_000])  # in the middle of the next reply, and after it
    def test_a_tool_that_finishes_does_so_and_its_result_enters_the_history(self, before, wait_ms):
        """The caller interrupts; the tool runs on, and the message that holds its call gets the result, in place."""
        look, ran = slow(wait_ms)
        talker = using(look, before=before)
        call = hold(chain(talker), self.CALLER)
        assert ran == ["began", "ended"]
        assert [message.role for message in call.history] == ["user", "assistant", "user", "assistant"]
        assert call.history[1].tool_calls == (ToolCalled("c0", "look"), ToolReturned("c0", "found"))
        assert call.history[1].text == before
        assert tool_frames(talker.histories[1][1]) == ["ToolCalled"]  # it was not there yet when the next turn was answered
        assert call.history[3].text == "You said and tomorrow."
        told = [event.data["tool"] for event in call.events if event.name == "tool"]
        assert told == [ToolCalled("c0", "look"), ToolReturned("c0", "found")]

    def test_a_tool_that_may_be_cancelled_is(self):
        """The caller interrupts: it stops at once, and the history says so."""
        look, ran = slow(5_000, on_interrupt="cancel")
        call = hold(chain(using(look, before="Let me look.")), self.CALLER)
        assert ran == ["began", "cancelled"]
        assert call.history[1].tool_calls[1] == ToolReturned("c0", error="cancelled")
        interrupted, stopped = times_of(call, "interrupted")[0], times_of(call, "tool")[1]
        assert stopped - interrupted < 50

    def test_a_turn_whose_reply_called_a_tool_is_not_taken_back(self):
        """Going on before a word of the reply was heard re-opens a turn, but not one that has had an effect."""
        look, _ = slow(5_000)
        call = hold(chain(using(look)), self.CALLER, SessionOptions(tool_filler=""))
        assert "turn_reopened" not in [event.name for event in call.events]
        assert [message.text for message in call.history if message.role == "user"] == ["what is the weather", "and tomorrow"]

    def test_what_the_model_asks_for_is_not_lost_when_the_agent_fails(self):
        """The fallback is said; the call and its result are in the history."""
        look, _ = slow(100)
        box = Toolbox([look])

        async def failing(text, history, session):
            async for frame in box.use(session, [ToolCall("c1", "look")]):
                yield frame
            raise KeyError("oh")

        call = hold(chain(failing), QUESTION + quiet(6_000))
        assert tool_frames(call.history[1]) == ["ToolCalled", "ToolReturned"]

    def test_the_end_of_the_session_ends_its_tools(self):
        """Nothing runs on; the history says what became of them."""
        ran = []

        @tool
        async def hang_up(session) -> None:
            session.close("enough")
            try:
                await asyncio.sleep(5)
                ran.append("ended")
            finally:
                ran.append("stopped")

        call = hold(chain(using(hang_up)), QUESTION + quiet(6_000))
        assert call.reason == "enough"
        assert ran == ["stopped"]
        assert call.history[-1].tool_calls[-1] == ToolReturned("c0", error="cancelled")

    def test_a_tool_that_will_not_stop_is_named(self, caplog):
        """At the end of the session it is left behind, with its name in the log."""

        @tool
        async def stubborn(session) -> None:
            session.close("enough")
            while "do not stop" not in caplog.text:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(3_600)

        call = hold(chain(using(stubborn)), QUESTION + quiet(2_000), SessionOptions(close_timeout_ms=500))
        assert "do not stop: tool stubborn" in caplog.text
        assert call.history[-1].tool_calls[-1] == ToolReturned("c0", error="cancelled")

    def test_nothing_is_called_after_the_end(self):
        """An agent that goes on though its session is over finds no tools."""
        look, ran = slow(100)

        async def main():
            context = Context()
            await context.aclose()
            return [frame async for frame in Toolbox([look]).use(context, [ToolCall("c1", "look")])]

        assert run_simulated(main())[1] == ToolReturned("c1", error="the conversation is over")
        assert ran == []

    def test_a_tool_that_holds_the_loop_is_named(self):
        """As a stage or an agent is."""

        @tool
        async def busy() -> str:
            time.sleep(0.15)  # noqa: ASYNC251
            return "done"

        call = hold(chain(using(busy)), QUESTION + quiet(3_000))
        warnings = [event.data["message"] for event in call.events if event.name == "warning"]
        assert any(message.startswith("tool busy held the event loop") for message in warnings)

    def test_a_running_tool_keeps_a_session_from_being_idle(self):
        """The caller interrupted and says no more: the session closes idle_timeout_ms after the tool's result."""
        look, _ = slow(8_000)
        options = SessionOptions(idle_timeout_ms=3_000, tool_filler="")

        async def agent(text, history, session):
            async for frame in Toolbox([look]).use(session, [ToolCall("c1", "look")]):
                yield frame

        line = QUESTION + quiet(1_700) + speech(900) + quiet(30_000)
        call = hold(chain(agent, texts=("one", "")), line, options)
        assert call.reason == "idle"
        returned = times_of(call, "tool")[-1]
        closed = times_of(call, "closing")[0]
        assert closed - returned == pytest.approx(3_000, abs=1_000)


class TestFiller:
    def test_it_is_said_after_its_time_and_not_before(self):
        """1,000 ms after a tool was called, in a reply that says nothing else."""
        look, _ = slow(3_000)
        call = hold(chain(using(look)), QUESTION + quiet(8_000))
        called = times_of(call, "tool")[0]
        assert times_of(call, "filler") == [pytest.approx(called + 1_000, abs=1)]
        assert times_of(call, "reply_started")[0] - called == pytest.approx(1_000, abs=150)
        assert call.history[1].text == "It is sunny."
        assert call.turns[0].heard_text == "It is sunny."

    def test_a_tool_that_is_quick_needs_none(self):
        """Nothing is said before the time is over."""
        look, _ = slow(950)
        call = hold(chain(using(look)), QUESTION + quiet(5_000))
        assert times_of(call, "filler") == []

    @pytest.mark.parametrize("options", [{"tool_filler": ""}, {"tool_filler_after_ms": 0}])
    def test_it_can_be_left_out(self, options):
        """An empty text or 0 ms: silence."""
        look, _ = slow(3_000)
        call = hold(chain(using(look)), QUESTION + quiet(8_000), SessionOptions(**options))
        assert times_of(call, "filler") == []
        assert call.history[1].text == "It is sunny."

    def test_it_waits_for_the_end_of_what_is_being_said(self):
        """Silence counts, not the time of the call: words before the call are spoken first."""
        look, _ = slow(6_000)
        call = hold(chain(using(look, before="Let me have a good look at that for you.")), QUESTION + quiet(12_000))
        spoken_ms = 10 * WORD_MS
        (said,) = times_of(call, "filler")
        assert said - times_of(call, "reply_started")[0] == pytest.approx(spoken_ms + 1_000, abs=150)
        assert call.history[1].text == "Let me have a good look at that for you. It is sunny."

    def test_it_is_said_once_a_round(self):
        """Two tools at once have one filler, however long they take; the next round has its own."""
        first, second, third = (slow(ms, name=name)[0] for ms, name in ((5_000, "a"), (2_500, "b"), (4_000, "c")))
        box = Toolbox([first, second, third])

        async def agent(text, history, session):
            async for frame in box.use(session, [ToolCall("c1", "a"), ToolCall("c2", "b")]):
                yield frame
            async for frame in box.use(session, [ToolCall("c3", "c")]):
                yield frame
            yield "Done."

        call = hold(chain(agent), QUESTION + quiet(16_000))
        assert len(times_of(call, "filler")) == 2
        assert call.history[1].text == "Done."

    def test_a_round_whose_calls_have_the_ids_of_the_last_has_one_too(self):
        """Some models number their calls anew in each round."""
        look, _ = slow(2_000)
        box = Toolbox([look])

        async def agent(text, history, session):
            for _ in range(2):
                async for frame in box.use(session, [ToolCall("call_0", "look")]):
                    yield frame
            yield "It is sunny."

        call = hold(chain(agent), QUESTION + quiet(12_000))
        assert len(times_of(call, "filler")) == 2

    def test_a_round_that_grows_has_one_too(self):
        """An agent that calls a second tool while the first runs, and speaks meanwhile, does not repeat it."""

        async def agent(text, history):
            yield ToolCalled("c1", "a")
            await asyncio.sleep(3)
            yield ToolCalled("c2", "b")
            yield "Nearly there."
            await asyncio.sleep(3)
            yield ToolReturned("c1")
            yield ToolReturned("c2")
            yield "Done."

        call = hold(chain(agent), QUESTION + quiet(12_000))
        assert len(times_of(call, "filler")) == 1
        assert call.history[1].text == "Nearly there. Done."

    def test_interrupting_it_leaves_nothing_of_it(self):
        """The caller speaks into the filler: the message holds the call, and no words."""
        look, _ = slow(4_000)
        call = hold(chain(using(look)), QUESTION + quiet(1_800) + speech(900) + quiet(8_000))
        assert len(times_of(call, "filler")) == 1
        assert call.history[1].text == ""
        assert tool_frames(call.history[1]) == ["ToolCalled", "ToolReturned"]

    @pytest.mark.parametrize("words", [True, False])
    def test_it_is_said_by_a_voice_that_takes_text_as_it_comes(self, words):
        """Between what the agent said before and after; with or without the times of words."""
        given = []

        class Streaming(TTS):
            capabilities = TTSCapabilities(streaming_text=True)

            async def synthesize_stream(self, texts):
                async for text in texts:
                    given.append(text)
                    said = text.split()
                    times = tuple(Word(one, at * WORD_MS, (at + 1) * WORD_MS) for at, one in enumerate(said)) if words else ()
                    yield AudioOut(bytes(2 * 16 * round(WORD_MS) * len(said)), 16_000, text, times)

        look, _ = slow(4_000)
        parts = LoudVAD(), turn.new("silence"), ScriptedSTT("one"), using(look, before="Let me look."), Streaming()
        call = hold(Chain(*parts), QUESTION + quiet(10_000))
        assert "".join(given).split() == ["Let", "me", "look.", *FILLER.split(), "It", "is", "sunny."]
        assert call.history[1].text == "Let me look. It is sunny."

    def test_words_without_a_full_stop_stay_apart_from_it(self):
        """What the agent left unfinished is said, then the filler."""
        look, _ = slow(4_000)
        call = hold(chain(using(look, before="Let me look")), QUESTION + quiet(10_000))
        assert len(times_of(call, "filler")) == 1
        assert call.history[1].text == "Let me look It is sunny."

    def test_one_cut_in_its_middle_leaves_nothing_of_it_either(self):
        """Of what was said before it, all; of the filler no word."""
        look, _ = slow(6_000)
        line = QUESTION + quiet(2_500) + speech(900) + quiet(9_000)
        call = hold(chain(using(look, before="Let me look.")), line)
        (interrupted,) = [event for event in call.events if event.name == "interrupted"]
        assert 0 < interrupted.at_ms - times_of(call, "filler")[0] < 600
        assert call.history[1].text == "Let me look."

    def test_it_is_in_the_callers_language(self):
        """The text is an option."""
        look, _ = slow(3_000)
        call = hold(chain(using(look)), QUESTION + quiet(8_000), SessionOptions(tool_filler="Einen Moment, bitte."))
        assert [event.data["text"] for event in call.events if event.name == "filler"] == ["Einen Moment, bitte."]
        assert call.history[1].text == "It is sunny."


class TestAsk:
    def ask(self, agent, *texts):
        async def main():
            session = Session(chain(agent), None)
            answers = [await session.ask(text) for text in texts]
            return session, answers

        return run_simulated(main())

    def test_tools_work_without_a_line(self):
        """The answer's message holds the call and its result; the next question sees them."""
        look, _ = slow(100)
        talker = using(look)
        session, answers = self.ask(talker, "hello", "and now")
        assert answers[0] == "It is sunny."
        assert session.history[1].tool_calls == (ToolCalled("c0", "look"), ToolReturned("c0", "found"))
        assert tool_frames(talker.histories[1][1]) == ["ToolCalled", "ToolReturned"]

    def test_what_was_done_is_kept_when_the_answer_fails(self):
        """The question and the call are in the history, though there is no answer."""
        look, _ = slow(100)

        async def failing(text, history, session):
            async for frame in Toolbox([look]).use(session, [ToolCall("c1", "look")]):
                yield frame
            raise KeyError("oh")

        async def main():
            session = Session(chain(failing), None)
            with pytest.raises(AgentError):
                await session.ask("hello")
            return session.history

        user, assistant = run_simulated(main())
        assert user.text == "hello"
        assert tool_frames(assistant) == ["ToolCalled", "ToolReturned"]

    def test_a_result_that_comes_after_the_question_was_given_up_enters_the_history(self):
        """The asker stops waiting; the tool finishes all the same."""
        look, ran = slow(2_000)

        async def main():
            session = Session(chain(using(look)), None)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await session.ask("hello")
            before = session.history[1].tool_calls
            await asyncio.sleep(2)
            return before, session.history[1].tool_calls

        before, after = run_simulated(main())
        assert [type(frame) for frame in before] == [ToolCalled]
        assert after[1] == ToolReturned("c0", "found")
        assert ran == ["began", "ended"]


class TestSmallWorlds:
    def test_without_a_session_a_call_ends_with_who_waits_for_it(self):
        """Nobody could take the result, so nothing runs on."""
        look, ran = slow(5_000)

        async def main():
            frames = Toolbox([look]).use(None, [ToolCall("c1", "look")])
            await anext(frames)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await anext(frames)
            await frames.aclose()
            return len(asyncio.all_tasks())

        assert run_simulated(main()) == 1
        assert ran == ["began", "cancelled"]

    def test_a_context_owns_calls_too(self):
        """A stage in a test needs no session."""
        look, _ = slow(100)

        async def main():
            async with Context() as context:
                return [frame async for frame in Toolbox([look]).use(context, [ToolCall("c1", "look")])]

        assert run_simulated(main())[1] == ToolReturned("c1", "found")

    def test_a_tool_is_given_the_session(self):
        """The parameter called session is what the agent was given."""
        got = []

        @tool
        async def whose(session) -> str:
            got.append(session)
            return "yours"

        async def main():
            session = Session(chain(using(whose)), None)
            await session.ask("hello")
            return session

        assert run_simulated(main()) is got[0]
