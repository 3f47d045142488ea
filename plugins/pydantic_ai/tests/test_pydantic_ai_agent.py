"""Agents of pydantic-ai as ours: their words, their tools in the session's hands, what they are told and what they used."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, ModelRetry, RunContext, ToolFailed
from pydantic_ai.messages import ModelRequest, ModelResponse, SystemPromptPart, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import DeltaToolCall, FunctionModel
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.toolsets import FunctionToolset

from beluga_voice import Chain, Session, SessionOptions, agent, config, errors, tts, turn
from beluga_voice.clock import run_simulated
from beluga_voice.frames import ToolCalled, ToolReturned, Usage
from beluga_voice.history import Message
from beluga_voice.testing import LoudVAD, ScriptedSTT, hold, quiet, speech
from beluga_voice.testing.loopback import Sickness
from beluga_voice.testing.openai_server import OpenAIServer, Says
from beluga_voice.tools import tool

CANARY = "sk-canary-93ce"
QUESTION = quiet(300) + speech(800)


class Sky(BaseModel):
    clouds: int


class Scripted:
    """A model that says its rounds, one after the other: text in pieces, and calls `(name, arguments)`."""

    def __init__(self, *rounds, word_ms=0):
        self.rounds, self.word_ms = list(rounds), word_ms
        self.asked = []
        self.infos = []
        self._calls = 0

    async def stream(self, messages, info):
        parts = self.rounds[min(len(self.asked), len(self.rounds) - 1)]
        self.asked.append(list(messages))
        self.infos.append(info)
        for at, part in enumerate(parts):
            if self.word_ms:
                await asyncio.sleep(self.word_ms / 1000)
            if isinstance(part, str):
                yield part
            else:
                self._calls += 1
                name, arguments = part
                text = arguments if isinstance(arguments, str) else json.dumps(arguments)
                yield {at: DeltaToolCall(name=name, json_args=text, tool_call_id=f"c{self._calls}")}

    @property
    def model(self):
        return FunctionModel(stream_function=self.stream)


def scripted(*rounds, **options):
    """A user's agent and its model."""
    script = Scripted(*rounds, word_ms=options.pop("word_ms", 0))
    return Agent(script.model, **options), script


def parts_of(mine, text="hello", history=(), session=None, **options):
    async def main():
        async with agent.new("pydantic_ai", agent=mine, **options) as engine:
            return [part async for part in engine.reply(text, history, session)]

    return run_simulated(main())


def words(parts):
    return "".join(part for part in parts if isinstance(part, str))


def frames(parts):
    return [part for part in parts if isinstance(part, (ToolCalled, ToolReturned))]


def call(mine, line, options=None, texts=("what is it", "and tomorrow"), **engine_options):
    """A conversation with the agent in simulated time."""
    talker = agent.new("pydantic_ai", agent=mine, **engine_options)
    voice = tts.new("tone", word_ms=200.0)
    return hold(Chain(LoudVAD(), turn.new("silence"), ScriptedSTT(*texts), talker, voice), line, options)


class TestOptions:
    def test_are_known_by_name(self):
        """`beluga-voice providers` and a configuration know them before the agent is made."""
        assert {"agent", "model", "tools"} <= {one.name for one in agent.describe("pydantic_ai").options}

    def test_an_agent_or_a_model_is_needed(self):
        """The message says how to give one."""
        with pytest.raises(errors.OptionError, match="neither the option 'agent' nor 'model'"):
            agent.new("pydantic_ai")

    def test_an_agent_is_imported_from_a_folder_of_the_configuration(self, tmp_path):
        """`agent = "myapp:agent"` in a file finds myapp.py beside it, and tools too."""
        (tmp_path / "desk_agent.py").write_text(
            "from pydantic_ai import Agent\nfrom pydantic_ai.models.test import TestModel\n"
            "agent = Agent(TestModel(custom_output_text='Sunny.', call_tools=[]))\n"
            "async def weather(city: str) -> str:\n    'The weather.'\n    return 'sun'\n"
        )
        file = tmp_path / "call.toml"
        file.write_text(
            '[vad]\nprovider = "energy"\n[stt]\nprovider = "beluga_voice.testing:ScriptedSTT"\n[tts]\nprovider = "tone"\n'
            '[agent]\nprovider = "pydantic_ai"\nagent = "desk_agent:agent"\ntools = ["desk_agent:weather"]\n'
        )
        chain = config.load(file).chain

        async def main():
            return await Session(chain, None).ask("hello")

        assert run_simulated(main()) == "Sunny."

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"agent": 3}, "option 'agent' is a int; expected a pydantic_ai.Agent"),
            ({"agent": Agent(TestModel(), output_type=int)}, "gives <class 'int'>; expected an agent whose output_type is str"),
            ({"agent": Agent(TestModel(), output_type=[str, int])}, "expected an agent whose output_type is str"),
            ({"agent": Agent()}, "option 'agent' has no model"),
            ({"model": "nobody:gpt-5"}, "option 'model': Unknown model: nobody:gpt-5"),
            ({"model": "test", "tools": [3]}, "option 'tools': tool 3 is a int"),
            ({"model": "test", "tools": ["nowhere:look"]}, "no module is called 'nowhere'"),
            ({"agent": "nowhere:agent"}, "no module is called 'nowhere'"),
            ({"model": "test", "on_interrupt": "wait"}, "expected one of 'finish', 'cancel'"),
        ],
    )
    def test_what_does_not_fit_is_refused_when_it_is_made(self, options, told):
        """With the option's name and what was expected."""
        with pytest.raises(errors.ConfigError) as error:
            agent.new("pydantic_ai", **options)
        assert told in str(error.value)

    def test_a_model_without_its_key_says_which_variable(self, monkeypatch):
        """As other providers do."""
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        with pytest.raises(errors.MissingKeyError, match="OPENAI_API_KEY") as error:
            agent.new("pydantic_ai", model="openai:gpt-5.4-mini")
        assert error.value.env_var == "OPENAI_API_KEY"

    def test_a_key_that_is_none_garbles_no_message(self, monkeypatch):
        """A server of one's own wants none, and the SDK any word."""
        monkeypatch.setenv("OPENAI_API_KEY", "on")
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")

        async def main():
            async with agent.new("pydantic_ai", model="openai:gpt-5.4-mini") as mine:
                session = Session(Chain(LoudVAD(), turn.new("silence"), ScriptedSTT(), mine, tts.new("tone")), None)
                await session.ask("Hello?")

        with pytest.raises(errors.ProviderError, match="Connection error"):
            run_simulated(main())

    def test_a_model_by_name_answers_briefly_unless_told_otherwise(self):
        """Its instructions are for a voice line by default."""
        mine, script = scripted(["Hi."])
        other = agent.new("pydantic_ai", model="test")
        assert "voice line" in other._runs._instructions
        parts_of(mine, instructions="Be Ann.")
        assert script.infos[0].instructions == "Be Ann."

    def test_the_sdk_does_not_retry_by_itself(self, monkeypatch):
        """A model by name is asked once: what is done about failures is decided around the engine."""

        async def main():
            async with OpenAIServer(api_key=CANARY) as server:
                monkeypatch.setenv("OPENAI_API_KEY", CANARY)
                monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
                server.sick = Sickness("refuse", status=500)
                async with agent.new("pydantic_ai", model="openai:gpt-5.4-mini") as engine:
                    with pytest.raises(errors.OverloadedError):
                        [part async for part in engine.reply("hello", (), None)]
                return len(server.requests), engine.account

        requests, account = run_simulated(main())
        assert requests == 1
        assert account.startswith("openai@http://127.0.0.1:")
        assert CANARY not in account


class TestWords:
    def test_come_as_the_model_says_them(self):
        """Piece by piece, and those of two rounds with a blank between."""
        mine, _ = scripted(["Let me ", "look.", ("look", {})], ["It is ", "sunny."])

        @mine.tool_plain
        async def look() -> str:
            return "sun"

        parts = parts_of(mine)
        assert [part for part in parts if isinstance(part, str)] == ["Let me ", "look.", " It is ", "sunny."]

    def test_are_heard_before_the_reply_is_whole(self):
        """The first words do not wait for the last."""
        mine, _ = scripted(["One. ", "Two. ", "Three."], word_ms=1_000)

        async def main():
            loop = asyncio.get_running_loop()
            async with agent.new("pydantic_ai", agent=mine) as engine:
                began = loop.time()
                return [round(loop.time() - began) async for part in engine.reply("hi", (), None) if isinstance(part, str)]

        assert run_simulated(main()) == [1, 2, 3]


class TestHistory:
    HISTORY = (
        Message("user", "Book a table"),
        Message("assistant", "Done.", "Done.", (ToolCalled("a1", "book", {"n": 2}), ToolReturned("a1", {"table": 7}))),
        Message("user", "And a taxi"),
        Message("assistant", "", "", (ToolCalled("a2", "taxi"), ToolCalled("a3", "taxi"), ToolReturned("a2", error="full"))),
    )

    def test_is_told_as_pydantic_ai_has_it(self):
        """Calls with their arguments, results, failures, and calls that go on."""
        mine, script = scripted(["Yes."])
        parts_of(mine, "Is it there?", self.HISTORY)
        (messages,) = script.asked
        calls = [part for message in messages if isinstance(message, ModelResponse) for part in message.parts]
        assert [(part.tool_name, part.args) for part in calls if isinstance(part, ToolCallPart)] == [
            ("book", {"n": 2}),
            ("taxi", {}),
            ("taxi", {}),
        ]
        returns = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
        assert [(part.tool_call_id, part.content, part.outcome) for part in returns] == [
            ("a1", '{"table": 7}', "success"),
            ("a2", "error: full", "failed"),
            ("a3", "error: no result yet", "interrupted"),
        ]
        last = messages[-1].parts[-1]
        assert (type(last), last.content) == (UserPromptPart, "Is it there?")

    def test_the_system_prompt_is_in_every_turn(self):
        """Not only in the first: a history of ours does not hold it."""
        mine, script = scripted(["Yes."], system_prompt="You are Ann.")
        parts_of(mine, "hello", self.HISTORY)
        assert isinstance(script.asked[0][0], ModelRequest)
        assert script.asked[0][0].parts[0].content == "You are Ann."
        assert sum(isinstance(part, SystemPromptPart) for message in script.asked[0] for part in message.parts) == 1

    def test_is_bounded(self):
        """Only the newest messages are told."""
        mine, script = scripted(["Yes."])
        parts_of(mine, "hello", tuple(Message("user", str(at)) for at in range(50)), max_messages=2)
        told = [part.content for message in script.asked[0] for part in message.parts]
        assert [text for text in told if text.isdigit()] == ["48", "49"]

    def test_a_conversation_goes_on_from_what_was_heard(self):
        """Through a session: the second turn's model sees the first turn's call and result."""
        mine, script = scripted(["Wait. ", ("look", {})], ["It is sunny."], ["Rain."])

        @mine.tool_plain
        async def look() -> str:
            return "sun"

        done = call(mine, QUESTION + quiet(4_000) + speech(800) + quiet(3_000))
        assert [message.text for message in done.history] == ["what is it", "Wait. It is sunny.", "and tomorrow", "Rain."]
        parts = [part for message in script.asked[2] for part in message.parts]
        assert [part.content for part in parts if isinstance(part, ToolReturnPart)] == ["sun"]


class TestTools:
    def test_are_told_as_frames(self):
        """A call with its arguments, then what it gave."""
        mine, _ = scripted([("look", {"what": "sun"})], ["Sunny."])

        @mine.tool_plain
        async def look(what: str) -> dict:
            return {"seen": what}

        assert frames(parts_of(mine)) == [ToolCalled("c1", "look", {"what": "sun"}), ToolReturned("c1", {"seen": "sun"})]

    def test_a_result_that_is_a_model_becomes_an_object(self):
        """As the model reads it."""
        mine, script = scripted([("look", {})], ["Sunny."])

        @mine.tool_plain
        async def look() -> Sky:
            return Sky(clouds=3)

        assert frames(parts_of(mine))[1].result == {"clouds": 3}
        assert script.asked[1][-1].parts[0].model_response_str() == '{"clouds":3}'

    @pytest.mark.parametrize(
        ("raised", "told"),
        [
            (KeyError("postgres://canary"), "look failed (KeyError)"),
            (errors.ToolError("no such city"), "no such city"),
            (ToolFailed("closed on Sundays"), "closed on Sundays"),
            (SystemExit(1), "look failed (SystemExit)"),
        ],
    )
    def test_one_that_raises_is_told_to_the_model_and_the_reply_goes_on(self, raised, told):
        """No crash; what an exception says that was not meant for the model stays here."""
        mine, script = scripted([("look", {})], ["I cannot see it."])

        @mine.tool_plain
        async def look() -> str:
            raise raised

        parts = parts_of(mine)
        assert frames(parts)[1] == ToolReturned("c1", error=told)
        assert words(parts) == "I cannot see it."
        content = str(script.asked[1][-1].parts[0].content)
        assert told in content
        assert "canary" not in content

    def test_a_retry_asked_for_is_made_by_pydantic_ai(self):
        """ModelRetry means to it what it always does."""
        mine, script = scripted([("look", {"n": 1})], [("look", {"n": 2})], ["Two."])

        @mine.tool_plain
        async def look(n: int) -> int:
            if n < 2:
                raise ModelRetry("more, please")
            return n

        parts = parts_of(mine)
        returned = [frame for frame in frames(parts) if isinstance(frame, ToolReturned)]
        assert [frame.error or frame.result for frame in returned] == ["more, please", 2]
        assert words(parts) == "Two."
        assert "more, please" in str(script.asked[1][-1].parts[0].content)
        assert script.asked[1][-1].parts[0].outcome == "retried"

    @pytest.mark.parametrize("call_", [("look", {"n": "many"}), ("look", "{broken"), ("lok", {}), ("look", "[1]")])
    def test_a_call_that_does_not_fit_is_answered_too(self, call_):
        """Every ToolCalled has its ToolReturned."""
        mine, _ = scripted([call_], ["Sorry."])

        @mine.tool_plain
        async def look(n: int = 0) -> int:
            return n

        parts = parts_of(mine)
        called, returned = frames(parts)
        assert called.call_id == returned.call_id
        assert returned.error
        assert words(parts) == "Sorry."

    def test_of_one_round_run_side_by_side_and_have_their_time(self, caplog):
        """One takes too long and is given up; the other is not held up by it."""
        mine, _ = scripted([("slow", {}), ("quick", {})], ["Done."])

        @mine.tool_plain(metadata={"timeout_ms": 2_000})
        async def slow() -> str:
            await asyncio.sleep(60)
            return "never"

        @mine.tool_plain
        async def quick() -> str:
            await asyncio.sleep(0.1)
            return "here"

        parts = parts_of(mine)
        returned = [frame for frame in frames(parts) if isinstance(frame, ToolReturned)]
        assert returned == [
            ToolReturned("c2", "here"),
            ToolReturned("c1", error="slow gave nothing for 2000 ms and was given up"),
        ]
        assert words(parts) == "Done."
        assert "tool slow gave nothing for 2000 ms" in caplog.text

    @pytest.mark.parametrize(("own", "option", "expected"), [(None, 700, 700), (3.0, 700, 3_000)])
    def test_how_long_one_may_take_is_said_by_itself_or_by_an_option(self, own, option, expected):
        """pydantic-ai's own timeout counts before the option."""
        mine, _ = scripted([("slow", {})], ["Done."])

        @mine.tool_plain(timeout=own)
        async def slow() -> str:
            await asyncio.sleep(60)
            return "never"

        async def main():
            loop = asyncio.get_running_loop()
            async with agent.new("pydantic_ai", agent=mine, tool_timeout_ms=option) as engine:
                began = loop.time()
                parts = [part async for part in engine.reply("hi", (), None)]
                return parts, (loop.time() - began) * 1000

        parts, took_ms = run_simulated(main())
        assert frames(parts)[1].error
        assert took_ms == pytest.approx(expected, abs=1)

    def test_tools_of_ours_may_be_added(self):
        """With their own time and policy; a parameter called session is given ours; arguments are checked."""
        mine, script = scripted([("greet", {"name": 3})], [("greet", {"name": "Ann"})], ["Done."])
        got = []

        @tool(timeout_ms=5)
        async def greet(name: str, session) -> str:
            """Say hello.

            Args:
                name: to whom.
            """
            got.append(session)
            return f"Hello, {name}."

        session = object()
        parts = parts_of(mine, session=session, tools=[greet])
        errors_ = [frame.error for frame in frames(parts) if isinstance(frame, ToolReturned)]
        assert errors_[0].startswith("argument 'name' is 3; expected a string")
        assert frames(parts)[3] == ToolReturned("c2", "Hello, Ann.")
        assert got == [session]
        (told,) = script.infos[0].function_tools
        assert (told.name, told.description) == ("greet", "Say hello.")
        assert told.parameters_json_schema["properties"] == {"name": {"type": "string", "description": "to whom."}}

    @pytest.mark.parametrize("deps", ["session", "function", "object", "name"])
    def test_deps_are_the_session_or_what_is_named(self, deps, tmp_path, monkeypatch):
        """The session, a function of it, a value, or where to import it."""
        (tmp_path / "its_deps.py").write_text("shop = {'name': 'shop'}\n")
        monkeypatch.syspath_prepend(tmp_path)
        mine, _ = scripted([("look", {})], ["Done."])
        got = []

        @mine.tool
        async def look(ctx: RunContext) -> str:
            got.append(ctx.deps)
            return ""

        async def made(session):
            return [session]

        session = object()
        given = {"session": "session", "function": made, "object": {"a": 1}, "name": "its_deps:shop"}[deps]
        parts_of(mine, session=session, deps=given)
        expected = {"session": session, "function": [session], "object": {"a": 1}, "name": {"name": "shop"}}[deps]
        assert got == [expected]


class TestInASession:
    CALLER = QUESTION + quiet(1_700) + speech(900) + quiet(9_000)

    def waiting(self, wait_ms, **metadata):
        mine, script = scripted(["Let me look. ", ("look", {})], ["You said so."], ["Still here."])
        ran = []

        @mine.tool_plain(metadata=metadata)
        async def look() -> str:
            ran.append("began")
            try:
                await asyncio.sleep(wait_ms / 1000)
            except asyncio.CancelledError:
                ran.append("cancelled")
                raise
            ran.append("ended")
            return "sun"

        return mine, script, ran

    @pytest.mark.parametrize("policy", ["metadata", "option"])
    def test_a_tool_finishes_when_the_caller_interrupts_and_its_result_is_kept(self, policy):
        """It runs in a task of the session, not of the run that was cancelled."""
        mine, _, ran = self.waiting(5_000, **({"on_interrupt": "finish"} if policy == "metadata" else {}))
        done = call(mine, self.CALLER, on_interrupt="cancel" if policy == "metadata" else "finish")
        assert ran == ["began", "ended"]
        assert done.history[1].text == "Let me look."
        assert done.history[1].tool_calls == (ToolCalled("c1", "look"), ToolReturned("c1", "sun"))
        told = [event.data["tool"] for event in done.events if event.name == "tool"]
        assert told == list(done.history[1].tool_calls)

    def test_a_tool_that_may_be_cancelled_is(self):
        """By its metadata."""
        mine, _, ran = self.waiting(5_000, on_interrupt="cancel")
        done = call(mine, self.CALLER)
        assert ran == ["began", "cancelled"]
        assert done.history[1].tool_calls[1] == ToolReturned("c1", error="cancelled")

    def test_the_filler_is_said(self):
        """While the tool keeps the caller waiting; it is no part of the history."""
        mine, _, _ = self.waiting(4_000)
        done = call(mine, QUESTION + quiet(9_000))
        assert len([event for event in done.events if event.name == "filler"]) == 1
        assert done.history[1].text == "Let me look. You said so."

    def test_each_call_is_told_once(self):
        """Though the session hears of it directly and by the stages."""
        mine, _, _ = self.waiting(100)
        done = call(mine, QUESTION + quiet(5_000))
        assert len([event for event in done.events if event.name == "tool"]) == 2
        assert len(done.history[1].tool_calls) == 2

    def test_usage_is_summed(self):
        """Of all requests of the session."""
        mine, _, _ = self.waiting(100)

        async def main():
            session = Session(Chain(LoudVAD(), turn.new("silence"), ScriptedSTT(), agent.new("pydantic_ai", agent=mine)), None)
            await session.ask("hello")
            return session.usage

        (usage,) = run_simulated(main())
        assert (usage.kind, usage.provider) == ("agent", "function")
        assert usage.amounts["input_tokens"] > 0


class TestLimitsAndFailures:
    def test_a_model_that_calls_tools_for_ever_is_stopped(self):
        """After request_limit rounds the reply fails; what was used is told."""
        mine, script = scripted([("look", {})])

        @mine.tool_plain
        async def look() -> str:
            return "again"

        async def main():
            parts = []

            async def read(engine):
                async for part in engine.reply("hi", (), None):
                    parts.append(part)

            async with agent.new("pydantic_ai", agent=mine, request_limit=3) as engine:
                with pytest.raises(errors.AgentError, match="UsageLimitExceeded"):
                    await read(engine)
            return parts

        parts = run_simulated(main())
        assert len(script.asked) == 3
        assert len([part for part in parts if isinstance(part, Usage)]) == 3

    def test_a_failing_agent_speaks_the_fallback(self):
        """Like any other."""
        mine, _ = scripted(["Hello."], system_prompt="x")

        @mine.instructions
        def broken() -> str:
            raise KeyError("mine")

        done = call(mine, QUESTION + quiet(6_000), SessionOptions(fallback="Sorry."))
        assert done.history[1].text == "Sorry."

    def openai(self, server):
        model = OpenAIResponsesModel("gpt-5.4-mini", provider=OpenAIProvider(api_key=CANARY, base_url=server.base_url))
        model.client.max_retries = 0
        return Agent(model)

    @pytest.mark.parametrize(
        ("sickness", "expected"),
        [
            (Sickness("refuse", status=401), errors.AuthError),
            (Sickness("refuse", status=402), errors.QuotaError),
            (Sickness("refuse", status=400), errors.InvalidRequestError),
            (Sickness("refuse", status=404), errors.InvalidRequestError),
            (Sickness("refuse", status=429, retry_after_s=7), errors.RateLimitError),
            (Sickness("refuse", status=500), errors.OverloadedError),
            (Sickness("refuse", status=503), errors.OverloadedError),
            (Sickness("cut"), errors.ConnectFailedError),
            (Sickness("cut", after=300), errors.ConnectFailedError),
            (Sickness("refuse", status=401, body=f'{{"error": {{"message": "key {CANARY}"}}}}'.encode()), errors.AuthError),
        ],
        ids=str,
    )
    def test_what_the_vendor_says_is_told_in_our_words(self, sickness, expected, caplog):
        """By pydantic-ai's categories; the key is told nowhere."""

        async def main():
            async with OpenAIServer(api_key=CANARY) as server:
                server.model = lambda messages: Says("one two three four five six seven eight")
                server.sick = sickness
                async with agent.new("pydantic_ai", agent=self.openai(server)) as engine:
                    with pytest.raises(errors.ProviderError) as caught:
                        [part async for part in engine.reply("hello", (), None)]
                    assert CANARY not in repr(engine.options)
                return caught.value

        error = run_simulated(main())
        assert type(error) is expected
        assert CANARY not in f"{error!r} {error} {error.__cause__!r} {caplog.text}"
        if expected is errors.RateLimitError:
            assert error.retry_after_ms == 7_000

    def test_closing_the_reply_ends_the_request_upstream(self):
        """Within 50 ms of the interruption nothing is open there."""

        async def main():
            async with OpenAIServer(api_key=CANARY) as server:
                server.model = lambda messages: Says("word " * 100)
                server.word_ms = 100
                loop = asyncio.get_running_loop()
                async with agent.new("pydantic_ai", agent=self.openai(server)) as engine:
                    said = engine.reply("hello", (), None)
                    await anext(said)
                    closed_ms = loop.time() * 1000
                    await said.aclose()
                    await asyncio.wait_for(server.requests[0].over.wait(), 1)
                    return loop.time() * 1000 - closed_ms, server.requests[0].whole

        took_ms, whole = run_simulated(main())
        assert not whole
        assert took_ms <= 50

    def test_a_toolset_that_never_starts_can_be_given_up(self):
        """Whoever enters the engine is cancelled meanwhile: nothing waits for the start any more."""

        class Stuck(FunctionToolset):
            async def __aenter__(self):
                await asyncio.sleep(3_600)

        async def main():
            engine = agent.new("pydantic_ai", agent=Agent(TestModel(), toolsets=[Stuck()]))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(5), engine:
                    pass
            assert asyncio.get_running_loop().time() < 6
            return len(asyncio.all_tasks())

        assert run_simulated(main()) == 1

    def test_nothing_is_left_behind(self):
        """No task, whether the reply ended, was closed or cancelled."""
        mine, _ = scripted(["One ", ("look", {})], ["two."], word_ms=50)

        @mine.tool_plain
        async def look() -> str:
            await asyncio.sleep(5)
            return "sun"

        async def main():
            async with agent.new("pydantic_ai", agent=mine) as engine:
                for wait_s in (0.01, 0.07, 0.2, 1.0):
                    before = asyncio.all_tasks()
                    said = engine.reply("hi", (), None)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(wait_s):
                            async for _ in said:
                                pass
                    await said.aclose()
                    await asyncio.sleep(0)
                    assert asyncio.all_tasks() == before
            return len(asyncio.all_tasks())

        assert run_simulated(main()) == 1
