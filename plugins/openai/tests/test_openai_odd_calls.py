"""Tool calls as some models and servers make them: odd names, no ids, the same ones twice, one place for several."""

from __future__ import annotations

import json

import pytest
from beluga_voice_openai.agent import OpenAIAgent
from beluga_voice_openai.realtime_items import items

from beluga_voice.clock import run_simulated
from beluga_voice.errors import ProtocolError
from beluga_voice.frames import ToolCalled, ToolReturned
from beluga_voice.history import Message
from beluga_voice.testing.loopback import Answer, LoopbackServer
from beluga_voice.testing.openai_realtime_server import OpenAIRealtimeServer
from beluga_voice.testing.openai_server import OpenAIServer, Says
from beluga_voice.tools import tool

both = pytest.mark.parametrize("api", ["chat", "responses"])
LONG_ID = "pyd_ai_0123456789abcdef0123456789abcdef"


@tool
async def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


class ChatServer(LoopbackServer):
    """A server that speaks Chat Completions its own way: it streams these tool call pieces, and then an answer."""

    def __init__(self, *pieces, for_ever=False):
        super().__init__(api_key="x")
        self.pieces, self.for_ever = pieces, for_ever

    async def answer(self, request):
        told = not self.for_ever and json.loads(request.body)["messages"][-1]["role"] == "tool"
        deltas = [{"content": "Done."}] if told else [{"tool_calls": [piece]} for piece in self.pieces]
        return Answer(200, {"content-type": "text/event-stream"}, self._events(deltas, "stop" if told else "tool_calls"))

    async def _events(self, deltas, finish):
        head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        for delta in deltas:
            yield b"data: " + json.dumps({**head, "choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"
        ended = {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}
        yield b"data: " + json.dumps(ended).encode() + b"\n\ndata: [DONE]\n\n"


def called(name="weather", **piece):
    arguments = json.dumps({"city": piece.pop("city", "Oslo")})
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **piece}


def ask(server, turns=1, **options):
    """The parts of each turn's answer, and the bodies of the requests."""

    async def main():
        async with server:
            base_url = getattr(server, "base_url", server.url)
            async with OpenAIAgent(api_key=server.api_key, base_url=base_url, tools=(weather,), **options) as agent:
                history, answers = (), []
                for _ in range(turns):
                    parts = [part async for part in agent.reply("go", history, None)]
                    frames = tuple(part for part in parts if isinstance(part, (ToolCalled, ToolReturned)))
                    history = (*history, Message("user", "go"), Message("assistant", "Done.", "Done.", frames))
                    answers.append(parts)
            return answers, [json.loads(request.body) for request in server.requests]

    return run_simulated(main())


def calls_of(parts):
    return [part for part in parts if isinstance(part, ToolCalled)]


def results_of(parts):
    return {part.call_id: part.result or part.error for part in parts if isinstance(part, ToolReturned)}


class TestNames:
    @both
    @pytest.mark.parametrize("name", ["functions.weather", "weather<|channel|>commentary", "wetter für alle", "", "w" * 100])
    def test_one_that_no_service_takes_back_does_not_end_the_conversation(self, api, name):
        """The model learns that there is no such tool; what goes up after it, in this turn and the next, is accepted."""
        server = OpenAIServer()
        server.model = lambda messages: Says("Done.") if messages[-1]["role"] == "tool" else Says(calls=[(name, {})])
        answers, requests = ask(server, turns=2, api=api)
        assert [parts[-2] for parts in answers] == ["Done."] * 2
        assert len(requests) == 4
        assert all("there is no tool" in text for parts in answers for text in results_of(parts).values())

    @both
    def test_one_of_another_agent_is_told_as_it_may_be(self, api):
        """The history may hold calls that somebody else has made."""
        frames = (ToolCalled(LONG_ID * 3, "look up"), ToolReturned(LONG_ID * 3, "red"))

        async def main():
            async with OpenAIServer() as server:
                options = {"api_key": server.api_key, "base_url": server.base_url, "api": api, "tools": (weather,)}
                async with OpenAIAgent(**options) as agent:
                    return [part async for part in agent.reply("go", (Message("assistant", "", "", frames),), None)]

        assert run_simulated(main())[0] == "I "


class TestIds:
    @pytest.mark.parametrize("given", [{}, {"id": ""}, {"id": None}, {"id": "c1"}], ids=str)
    def test_each_call_has_one_of_its_own(self, given):
        """A server that gives none, or always the same: a result that comes late goes to its own call."""
        pieces = [called(index=0, city="Oslo", **given), called(index=1, city="Rome", **given)]
        answers, requests = ask(ChatServer(*pieces), turns=2, api="chat")
        made = [call for parts in answers for call in calls_of(parts)]
        assert [call.arguments["city"] for call in made] == ["Oslo", "Rome"] * 2
        assert len({call.call_id for call in made}) == 4
        for parts in answers:
            results = results_of(parts)
            assert [results[call.call_id] for call in calls_of(parts)] == ["sunny in Oslo", "sunny in Rome"]
        for request in requests:
            asked = [call["id"] for message in request["messages"] for call in message.get("tool_calls", ())]
            answered = [message["tool_call_id"] for message in request["messages"] if message["role"] == "tool"]
            assert asked == answered
            assert len(set(asked)) == len(asked)

    def test_a_realtime_model_takes_the_conversation_of_an_agent(self):
        """Ids that are longer than it takes, of calls that have returned and of one that has not."""

        async def main():
            from beluga_voice import s2s

            frames = (ToolCalled(LONG_ID, "look up"), ToolReturned(LONG_ID, "red"), ToolCalled(LONG_ID + "x", "wait"))
            history = (Message("user", "go"), Message("assistant", "", "", frames))
            async with OpenAIRealtimeServer() as server:
                async with s2s.new("openai", api_key=server.api_key, base_url=server.base_url) as model:
                    session = await model.connect(history)
                    await session.send_tool_result(ToolReturned(LONG_ID, "red"))
                    await session.send_tool_result(ToolReturned(LONG_ID + "x", "blue"))
                    async for event in session.events():
                        if type(event).__name__ == "ReplyEnded":
                            break
                    await session.aclose()
                (conversation,) = server.conversations
                outputs = [item["output"] for item in conversation.items if item["type"] == "function_call_output"]
                return conversation.errors, outputs, conversation.responses

        assert run_simulated(main()) == ([], ["red", "blue"], ["completed"])

    def test_short_ones_are_told_as_they_are(self):
        frames = (ToolCalled("c1", "look"), ToolReturned("c1", "red"))
        assert [one["call_id"] for one in items((Message("assistant", "", "", frames),)).items] == ["c1", "c1"]


class TestPieces:
    @pytest.mark.parametrize("index", [0, None])
    def test_several_calls_in_one_place(self, index):
        """Some servers give every call of an answer the same place, or none: a new id and name are a new call."""
        pieces = [called(index=index, id="a", city="Oslo"), called(index=index, id="b", city="Rome")]
        answers, _ = ask(ChatServer(*pieces), api="chat")
        assert sorted(results_of(answers[0]).values()) == ["sunny in Oslo", "sunny in Rome"]

    def test_an_id_that_comes_with_every_piece_is_one_call(self):
        """Others repeat it."""
        pieces = [
            {"index": 0, "id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city"'}},
            {"index": 0, "id": "a", "function": {"name": None, "arguments": ': "Oslo"}'}},
        ]
        answers, _ = ask(ChatServer(*pieces), api="chat")
        assert list(results_of(answers[0]).values()) == ["sunny in Oslo"]

    @pytest.mark.parametrize("arguments", ["[1]", '"Oslo"', "3", '{"city": NaN}'])
    def test_arguments_go_back_up_as_an_object(self, arguments):
        """Some servers read them: what is none, or no JSON, is shown in one."""
        piece = {"index": 0, "id": "a", "type": "function", "function": {"name": "weather", "arguments": arguments}}
        _, requests = ask(ChatServer(piece), api="chat")
        (call,) = [call for message in requests[1]["messages"] for call in message.get("tool_calls", ())]
        assert json.loads(call["function"]["arguments"]) == {"malformed": arguments}


class TestForEver:
    def test_a_model_that_calls_when_it_may_not_is_a_fault(self):
        """A server that does not know `tool_choice`: after the last round there is nothing to say, and that is an error."""
        server = ChatServer(called(index=0, id="a"), for_ever=True)
        with pytest.raises(ProtocolError, match="max_tool_rounds"):
            ask(server, api="chat", max_tool_rounds=2)
        assert len(server.requests) == 3
