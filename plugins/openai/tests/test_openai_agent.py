"""The agents: the conversation as it goes up, words and tool calls as they come down, by both interfaces."""

from __future__ import annotations

import asyncio
import json

import pytest
from beluga_voice_openai.agent import OpenAIAgent
from beluga_voice_openai.groq import GroqAgent

from beluga_voice.clock import Clock, run_simulated
from beluga_voice.errors import (
    ConfigError,
    ConnectFailedError,
    InvalidRequestError,
    OptionError,
    OverloadedError,
    ProtocolError,
    QuotaError,
    RateLimitError,
)
from beluga_voice.frames import ToolCalled, ToolReturned, Usage
from beluga_voice.history import Message
from beluga_voice.testing.loopback import Sickness
from beluga_voice.testing.openai_server import OpenAIServer, Says
from beluga_voice.tools import tool

APIS = ("chat", "responses")
both = pytest.mark.parametrize("api", APIS)


def serve(work, model=None):
    """Run `work(server)` in simulated time, with a server whose models say what `model` does."""

    async def main():
        async with OpenAIServer() as server:
            if model is not None:
                server.model = model
            return await work(server)

    return run_simulated(main())


def agent_of(server, api, **options):
    return OpenAIAgent(api_key=server.api_key, base_url=server.base_url, api=api, **options)


async def parts_of(agent, text="tell me", history=(), session=None):
    return [part async for part in agent.reply(text, history, session)]


def asked(api, *, history=(), **options):
    """The bodies of the requests of one reply."""

    async def work(server):
        async with agent_of(server, api, **options) as agent:
            await parts_of(agent, history=history)
        return [json.loads(request.body) for request in server.requests]

    return serve(work)


@tool
async def weather(city: str, day: str = "today") -> str:
    """The weather of a city."""
    await asyncio.sleep(0.1)
    return f"sunny in {city} {day}"


@tool
async def clock() -> dict[str, int]:
    """The time."""
    return {"hour": 9}


@tool
async def broken() -> str:
    """Fails."""
    raise RuntimeError("no such thing")


def calling(*calls, then="Done."):
    """A model that makes these calls, and speaks when it has their results."""

    def model(messages):
        return Says(then) if messages[-1]["role"] == "tool" else Says("One moment. ", calls)

    return model


class TestConversation:
    HISTORY = (
        Message("user", "hello"),
        Message("assistant", "Hi th", "Hi th"),
        Message("user", "weather"),
        Message(
            "assistant",
            "It is",
            "It is",
            (ToolCalled("c1", "weather", {"city": "Oslo"}), ToolReturned("c1", {"degrees": 3}), ToolCalled("c2", "clock")),
        ),
    )

    def test_chat_is_told_what_was_heard(self):
        """Roles, heard text, and every tool call with its result, one that has none too."""
        (body,) = asked("chat", history=self.HISTORY, instructions="Be Ann.")
        called = [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
            {"id": "c2", "type": "function", "function": {"name": "clock", "arguments": "{}"}},
        ]
        assert body["messages"] == [
            {"role": "system", "content": "Be Ann."},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "Hi th"},
            {"role": "user", "content": "weather"},
            {"role": "assistant", "content": None, "tool_calls": called},
            {"role": "tool", "tool_call_id": "c1", "content": '{"degrees": 3}'},
            {"role": "tool", "tool_call_id": "c2", "content": "error: no result yet"},
            {"role": "assistant", "content": "It is"},
            {"role": "user", "content": "tell me"},
        ]

    def test_responses_is_told_the_same(self):
        (body,) = asked("responses", history=self.HISTORY, instructions="Be Ann.")
        assert body["instructions"] == "Be Ann."
        assert body["store"] is False
        assert body["input"] == [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "Hi th"},
            {"role": "user", "content": "weather"},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Oslo"}'},
            {"type": "function_call", "call_id": "c2", "name": "clock", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": '{"degrees": 3}'},
            {"type": "function_call_output", "call_id": "c2", "output": "error: no result yet"},
            {"role": "assistant", "content": "It is"},
            {"role": "user", "content": "tell me"},
        ]

    @both
    def test_only_the_newest_messages_go_up(self, api):
        history = tuple(Message("user", str(number)) for number in range(9))
        (body,) = asked(api, history=history, max_messages=2, instructions="")
        told = body["messages" if api == "chat" else "input"]
        assert [message["content"] for message in told] == ["7", "8", "tell me"]
        (body,) = asked(api, history=history, max_messages=0, instructions="")
        assert len(body["messages" if api == "chat" else "input"]) == 1

    def test_options_go_up_under_the_names_of_each_interface(self):
        chosen = {"temperature": 0.5, "max_output_tokens": 50}
        (chat,) = asked("chat", **chosen, extra={"reasoning_effort": "low"})
        (responses,) = asked("responses", **chosen, extra={"reasoning": {"effort": "low"}})
        assert (chat["temperature"], chat["max_completion_tokens"], chat["reasoning_effort"]) == (0.5, 50, "low")
        assert (responses["temperature"], responses["max_output_tokens"]) == (0.5, 50)
        assert responses["reasoning"] == {"effort": "low"}
        (plain,) = asked("chat")
        assert set(plain) == {"model", "messages", "stream", "stream_options"}

    def test_which_interface(self):
        """Responses at OpenAI, in any region; chat everywhere else; what is given goes before both."""
        assert OpenAIAgent(api_key="x").api == "responses"
        assert OpenAIAgent(api_key="x", base_url="https://eu.api.openai.com/v1").api == "responses"
        assert OpenAIAgent(api_key="x", base_url="https://api.openai.com.example.org/v1").api == "chat"
        assert OpenAIAgent(api_key="x", base_url="http://127.0.0.1:8000/v1").api == "chat"
        assert OpenAIAgent(api_key="x", base_url="http://127.0.0.1:8000/v1", api="responses").api == "responses"
        assert GroqAgent(api_key="x").api == "chat"


class TestWords:
    @both
    def test_leave_as_they_come(self, api):
        """The first word does not wait for the last; what was used comes at the end."""

        async def work(server):
            clock, server.word_ms = Clock(), 100.0
            at = []
            async with agent_of(server, api) as agent:
                began_ms = clock.now_ms()
                async for part in agent.reply("one two", (), None):
                    at.append((part, round(clock.now_ms() - began_ms, -1)))
            return at

        *words, (usage, _) = serve(work)
        assert words == [("I ", 100), ("heard ", 200), ("one ", 300), ("two", 400)]
        assert isinstance(usage, Usage)
        assert (usage.kind, usage.provider, usage.model) == ("agent", "openai", "gpt-5.4-mini")
        assert usage.amounts["output_tokens"] == 4
        assert usage.amounts["cached_input_tokens"] == 5

    @both
    def test_none_at_all_is_an_empty_reply(self, api):
        """The session speaks its fallback; here nothing is made up."""

        async def work(server):
            async with agent_of(server, api) as agent:
                return [part for part in await parts_of(agent) if not isinstance(part, Usage)]

        assert serve(work, lambda messages: Says()) == []

    @both
    def test_pass_events_nobody_knows(self, api):
        """Next year's events, with the types of none of today's, are read over."""

        async def work(server):
            server.sick = Sickness("unknown")
            async with agent_of(server, api) as agent:
                return [part for part in await parts_of(agent, "one") if isinstance(part, str)]

        assert serve(work) == ["I ", "heard ", "one"]

    @both
    def test_cut_short_are_kept_and_none_before_the_limit_is_a_fault(self, api):
        """An answer of `max_output_tokens` is spoken; thinking that used them all up is told."""

        async def work(server):
            async with agent_of(server, api) as agent:
                server.model = lambda messages: Says("One two", finish="length")
                said = [part for part in await parts_of(agent) if isinstance(part, str)]
                server.model = lambda messages: Says(finish="length")
                with pytest.raises(InvalidRequestError, match="give it more max_output_tokens"):
                    await parts_of(agent)
                return said

        assert serve(work) == ["One ", "two"]


class TestFaults:
    ERRORS = (
        ({"message": "it broke", "type": "server_error", "code": "server_error"}, OverloadedError),
        ({"message": "too fast", "type": "tokens", "code": "rate_limit_exceeded"}, RateLimitError),
        ({"message": "no credit", "type": "insufficient_quota", "code": "insufficient_quota"}, QuotaError),
        ({"message": "nobody knows", "type": "news", "code": "of_2031"}, ProtocolError),
    )

    async def _words_then(self, server, api, error):
        words = []
        async with agent_of(server, api) as agent:
            try:
                async for part in agent.reply("one", (), None):
                    words.append(part)
            except error as told:
                return words, str(told)
        raise AssertionError(f"no {error.__name__} was raised")

    @both
    @pytest.mark.parametrize(("error", "wanted"), ERRORS)
    def test_an_error_in_mid_stream_comes_after_the_words(self, api, error, wanted):
        words, told = serve(lambda server: self._words_then(server, api, wanted), lambda _: Says("One two ", error=error))
        assert words == ["One ", "two "]
        assert error["message"] in told

    @pytest.mark.parametrize(("error", "wanted"), [ERRORS[0], ERRORS[1]])
    def test_a_response_that_failed(self, error, wanted):
        failed = Says("One ", error={**error, "type": "failed"})
        words, told = serve(lambda server: self._words_then(server, "responses", wanted), lambda _: failed)
        assert words == ["One "]
        assert error["message"] in told

    @both
    def test_a_cut_in_mid_stream_comes_after_the_words(self, api):
        async def work(server):
            server.sicken(Sickness("cut", after=4_000))
            return await self._words_then(server, api, ConnectFailedError)

        words, _ = serve(work, lambda messages: Says("one " * 100))
        assert 1 < len(words) < 100
        assert set(words) == {"one "}

    @both
    def test_an_answer_without_its_end_is_a_fault(self, api):
        words, told = serve(lambda server: self._words_then(server, api, ProtocolError), lambda _: Says("One two", ends=False))
        assert words == ["One ", "two"]
        assert "stopped without its end" in told

    @both
    def test_a_page_is_no_answer(self, api):
        async def work(server):
            server.sicken(Sickness("garbage"))
            return await self._words_then(server, api, ProtocolError)

        assert serve(work)[0] == []


class TestStopping:
    @both
    @pytest.mark.parametrize("how", ["close", "cancel"])
    def test_stops_upstream_within_50_ms(self, api, how):
        async def work(server):
            clock, server.word_ms = Clock(), 100.0
            async with agent_of(server, api) as agent:
                reply = agent.reply("one two three", (), None)
                await anext(reply)
                waiting = asyncio.ensure_future(anext(reply))
                await clock.sleep_ms(30)
                if how == "close":
                    await waiting
                    stopped_ms = clock.now_ms()
                    await reply.aclose()
                else:
                    stopped_ms = clock.now_ms()
                    waiting.cancel()
                    await asyncio.wait([waiting])
                (request,) = server.requests
                await request.over.wait()
                return clock.now_ms() - stopped_ms, request.whole

        took_ms, whole = serve(work)
        assert took_ms < 50
        assert not whole


class TestTools:
    def told(self, api, model, **options):
        """The parts of one reply, what was asked, and how long it took in ms."""

        async def work(server):
            clock_ = Clock()
            async with agent_of(server, api, tools=(weather, clock, broken), **options) as agent:
                began_ms = clock_.now_ms()
                parts = await parts_of(agent)
                took_ms = clock_.now_ms() - began_ms
            return [part for part in parts if not isinstance(part, Usage)], server.requests, took_ms

        return serve(work, model)

    @both
    def test_are_called_side_by_side_and_answered(self, api):
        """Two calls at once take the time of one; the model hears both results, and goes on."""
        model = calling(("weather", {"city": "Oslo"}), ("weather", {"city": "Rome", "day": "now"}), ("clock", {}))
        parts, requests, took_ms = self.told(api, model)
        called = [part for part in parts if isinstance(part, ToolCalled)]
        returned = {part.call_id: part.result for part in parts if isinstance(part, ToolReturned)}
        assert "".join(part for part in parts if isinstance(part, str)) == "One moment. Done."
        assert [(one.name, one.arguments) for one in called] == [
            ("weather", {"city": "Oslo"}),
            ("weather", {"city": "Rome", "day": "now"}),
            ("clock", {}),
        ]
        assert [returned[one.call_id] for one in called] == ["sunny in Oslo today", "sunny in Rome now", {"hour": 9}]
        assert took_ms == pytest.approx(100, abs=20)
        assert len(requests) == 2
        told = json.loads(requests[1].body)["messages" if api == "chat" else "input"]
        texts = {one.get("content") or one.get("output") for one in told}
        assert {"sunny in Oslo today", "sunny in Rome now", '{"hour": 9}'} <= texts
        assert any((text or "").startswith("One moment.") for text in texts)

    @both
    @pytest.mark.parametrize(
        ("call", "why"),
        [
            (("weather", '{"city": '), "not JSON"),
            (("weather", "[1]"), "expected an object"),
            (("weather", {"town": "Oslo"}), "town"),
            (("wether", {"city": "Oslo"}), "there is no tool 'wether'"),
            (("broken", {}), "broken failed"),
        ],
    )
    def test_a_call_that_cannot_be_made_is_told_to_the_model(self, api, call, why):
        """Malformed arguments, an unknown tool, one that raises: the model learns of it, and answers."""
        parts, requests, _ = self.told(api, calling(call))
        (returned,) = [part for part in parts if isinstance(part, ToolReturned)]
        assert why in returned.error
        assert parts[-1] == "Done."
        told = json.loads(requests[1].body)["messages" if api == "chat" else "input"]
        (output,) = [one.get("output") or one["content"] for one in told if "output" in one or one.get("role") == "tool"]
        assert why in output
        called = [
            one["tool_calls"][0]["function"] if api == "chat" else one for one in told if "tool_calls" in one or "name" in one
        ]
        assert [json.loads(one["arguments"]) for one in called]  # some servers read them

    @both
    def test_rounds_are_bounded(self, api):
        """A model that would call for ever has to answer after `max_tool_rounds`."""

        def for_ever(messages):
            return Says("Enough.", [("clock", {})])

        parts, requests, _ = self.told(api, for_ever, max_tool_rounds=3)
        assert sum(isinstance(part, ToolCalled) for part in parts) == 3
        assert [json.loads(request.body)["tool_choice"] for request in requests] == ["auto", "auto", "auto", "none"]
        assert parts[-1] == "Enough."

    @both
    def test_are_described_to_the_model(self, api):
        """Name, sentence and schema of each; what may be left out is not required."""
        _, requests, _ = self.told(api, None)
        first = json.loads(requests[0].body)["tools"][0]
        spec = first["function"] if api == "chat" else first
        assert (spec["name"], spec["description"]) == ("weather", "The weather of a city.")
        assert spec["parameters"]["required"] == ["city"]

    def test_what_is_no_tool_is_refused_when_it_is_made(self):
        with pytest.raises(OptionError, match="'tools'"):
            OpenAIAgent(api_key="x", tools=(3,))
        with pytest.raises(ConfigError, match="no_such_module"):
            OpenAIAgent(api_key="x", tools=("no_such_module:weather",))

    @both
    def test_a_copy_has_its_own(self, api):
        """What a session changes is not what the others call."""

        async def work(server):
            async with agent_of(server, api, tools=(weather,)) as agent, agent.with_options(tools=[clock]) as copy:
                for one in (agent, copy):
                    await parts_of(one)
            told = [json.loads(request.body)["tools"][0] for request in server.requests]
            return [one.get("function", one)["name"] for one in told]

        assert serve(work) == ["weather", "clock"]

    @both
    def test_an_interrupted_reply_leaves_no_request_and_a_tool_that_may_be_cancelled_is(self, api):
        """Closing the reply while a tool runs."""
        ended = []

        @tool(on_interrupt="cancel")
        async def slow() -> str:
            """Slow."""
            try:
                await asyncio.sleep(5)
            finally:
                ended.append("slow")
            return "late"

        async def work(server):
            async with agent_of(server, api, tools=(slow,)) as agent:
                reply = agent.reply("go", (), None)
                async for part in reply:
                    if isinstance(part, ToolCalled):
                        break
                await asyncio.sleep(0.05)
                await reply.aclose()
            return len(server.requests)

        assert serve(work, calling(("slow", {}))) == 1
        assert ended == ["slow"]
