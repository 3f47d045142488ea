"""Tools: what a model is told of a function, and what becomes of whatever it asks for."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
import json
import logging
from typing import Annotated, Any, Literal, Optional

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from beluga_voice.clock import run_simulated
from beluga_voice.errors import ConfigError, ToolError
from beluga_voice.frames import ToolCalled, ToolReturned
from beluga_voice.history import History
from beluga_voice.tool_runs import MOST_AT_ONCE, MOST_TEXT, ToolRuns
from beluga_voice.tools import NO_RESULT, Tool, Toolbox, ToolCall, as_text, paired, tool


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


@tool
async def order(
    dish: str,
    count: int = 1,
    size: Size = Size.SMALL,
    *,
    price: float | None = None,
    sauces: list[Literal["hot", "mild"]] = [],  # noqa: B006
    notes: Optional[dict[str, str]] = None,  # noqa: UP045
    gift: bool = False,
    seat: Annotated[str, "where they sit"] = "",
    session: Any = None,
) -> str:
    """Order a dish
    from the kitchen.

    It is made at once.

    Args:
        dish: what it is,
            in plain words.
        count (int): how many.

    Returns:
        A number.
    """
    return f"{count} {size.name} {dish}"


def use(tools, calls, session=None):
    async def main():
        return [frame async for frame in Toolbox(tools).use(session, calls)]

    return run_simulated(main())


def error_of(tools, call):
    """What the model is told of a call that fails, which is neither an exception nor a traceback."""
    called, returned = use(tools, [call])
    assert isinstance(called, ToolCalled)
    assert returned.call_id == call.call_id
    assert returned.result is None
    assert "Traceback" not in returned.error
    return returned.error


def assert_declared(arguments):
    """Each argument of `order` has the type that the function declares."""
    assert type(arguments["dish"]) is str
    assert type(arguments.get("count", 1)) is int
    assert isinstance(arguments.get("size", Size.SMALL), Size)
    assert type(arguments.get("price")) in (float, type(None))
    assert set(arguments.get("sauces", [])) <= {"hot", "mild"}
    assert type(arguments.get("gift", False)) is bool


class TestSchema:
    def test_says_what_the_function_says(self):
        """Types, defaults, choices and the docstring, without the session."""
        assert order.name == "order"
        assert order.description == "Order a dish from the kitchen."
        assert order.parameters == {
            "type": "object",
            "properties": {
                "dish": {"type": "string", "description": "what it is, in plain words."},
                "count": {"type": "integer", "default": 1, "description": "how many."},
                "size": {"type": "string", "enum": ["small", "large"], "default": "small"},
                "price": {"anyOf": [{"type": "number"}, {"type": "null"}]},
                "sauces": {"type": "array", "items": {"type": "string", "enum": ["hot", "mild"]}, "default": []},
                "notes": {
                    "anyOf": [{"type": "object", "additionalProperties": {"type": "string"}}, {"type": "null"}]
                },
                "gift": {"type": "boolean", "default": False},
                "seat": {"type": "string", "default": "", "description": "where they sit"},
            },
            "required": ["dish"],
            "additionalProperties": False,
        }

    def test_is_json(self):
        """What models are told of a toolbox can be sent."""
        assert json.loads(json.dumps(Toolbox([order]).specs))[0]["name"] == "order"

    def test_a_type_that_is_only_there_for_checkers_does_not_matter_for_the_session(self):
        """`session: Session` under TYPE_CHECKING is usual."""

        @tool
        async def whose(session: OnlyForCheckers) -> None:  # noqa: F821
            pass

        assert whose.parameters["properties"] == {}

    def test_options_change_what_is_told(self):
        """Name, description, time and what becomes of it."""
        made = tool(timeout_ms=500, on_interrupt="cancel", name="cook", description="Cook.")(order.function)
        assert (made.name, made.description, made.timeout_ms, made.on_interrupt) == ("cook", "Cook.", 500, "cancel")

    def test_a_method_of_an_object_can_be_one(self):
        """`tool(desk.look)`: self is not told."""

        class Desk:
            async def look(self, what: str) -> str:
                return f"seen {what}"

        made = tool(Desk().look)
        assert list(made.parameters["properties"]) == ["what"]
        assert use([made], [ToolCall("1", "look", {"what": "it"})])[1].result == "seen it"

    def test_a_partial_with_a_name_can_be_one(self):
        """What is bound already is still to be seen; it has a default."""
        made = tool(functools.partial(order.function, gift=True), name="present")
        assert use([made], [ToolCall("1", "present", {"dish": "soup"})])[1].result == "1 SMALL soup"

    @pytest.mark.parametrize(
        ("parameters", "told"),
        [
            ("city", "parameter 'city' has no type"),
            ("*cities: str", "parameter 'cities' cannot be given by name"),
            ("**more: str", "parameter 'more' cannot be given by name"),
            ("city, /", "parameter 'city' cannot be given by name"),
            ("when: bytes", "parameter 'when' has the type <class 'bytes'>"),
            ("when: complex", "which no schema can tell a model"),
            ("when: tuple[int, int]", "which no schema can tell a model"),
            ("when: dict[int, str]", "which no schema can tell a model"),
            ("when: list[bytes]", "which no schema can tell a model"),
            ("when: Nowhere", "cannot be found"),
            ("when: 'Nowhere'", "cannot be found"),
            ("self, city: str", "parameter 'self' has no type"),
        ],
    )
    def test_what_cannot_be_told_is_refused_where_it_is_decorated(self, parameters, told):
        """The message names the tool and the parameter."""
        names = {}
        exec(f"from __future__ import annotations\nasync def look({parameters}): pass", names)
        with pytest.raises(TypeError) as error:
            tool(names["look"])
        assert "tool look" in str(error.value)
        assert told in str(error.value)

    def test_a_sync_function_is_refused_like_a_sync_agent(self):
        """The message says what to write instead."""

        def look(what: str) -> str:
            return what

        with pytest.raises(TypeError, match=r"tool look is not async; write `async def look\(...\)`, or wrap blocking work"):
            tool(look)
        with pytest.raises(TypeError, match="not async"):
            Toolbox([look])

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"timeout_ms": 0}, "timeout_ms is 0"),
            ({"timeout_ms": float("nan")}, "timeout_ms is nan"),
            ({"on_interrupt": "wait"}, 'expected "finish" or "cancel"'),
            ({"name": "two words"}, "expected a name of 1 to 64"),
        ],
    )
    def test_options_are_checked(self, options, told):
        """Each with its value."""
        with pytest.raises(ValueError, match=told):
            tool(order.function, **options)


class TestToolbox:
    def test_takes_tools_functions_and_names(self, tmp_path, monkeypatch):
        """Objects, bare async functions, "module:attribute"."""
        (tmp_path / "shop_tools.py").write_text(
            "from beluga_voice.tools import tool\n"
            "@tool(timeout_ms=9)\nasync def close() -> None: ...\n"
            "async def open_() -> None: ...\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        box = Toolbox([order, "shop_tools:close", "shop_tools:open_"])
        assert [one.name for one in box.tools] == ["order", "close", "open_"]
        assert [one.timeout_ms for one in box.tools] == [10_000, 9, 10_000]
        assert len(box) == 3

    def test_two_of_one_name_are_refused(self):
        """A model could not tell them apart."""
        with pytest.raises(ValueError, match="two tools are called 'order'"):
            Toolbox([order, order])

    def test_what_is_no_tool_is_refused(self):
        """With what it is."""
        with pytest.raises(TypeError, match="tool 3 is a int; expected an async function"):
            Toolbox([3])
        with pytest.raises(ConfigError, match=r"no module is called 'nowhere'.*; write its file there, or install it"):
            Toolbox(["nowhere:look"])

    def test_a_tool_can_be_called_like_its_function(self):
        """Tests of one's own tools need no toolbox."""
        assert asyncio.run(order("soup", 2)) == "2 SMALL soup"


class TestArguments:
    def test_arrive_as_the_function_wants_them(self):
        """Enum members for their values, numbers as declared."""
        found, arguments = Toolbox([order]).check(
            "order", '{"dish": "soup", "count": 2.0, "size": "large", "price": 3, "sauces": ["hot"], "notes": {"a": "b"}}'
        )
        assert isinstance(found, Tool)
        assert arguments == {
            "dish": "soup",
            "count": 2,
            "size": Size.LARGE,
            "price": 3.0,
            "sauces": ["hot"],
            "notes": {"a": "b"},
        }
        assert type(arguments["count"]) is int
        assert type(arguments["price"]) is float

    @pytest.mark.parametrize("arguments", ["", "{}", {}])
    def test_none_are_an_empty_object(self, arguments):
        """Some models send nothing at all."""

        @tool
        async def look() -> str:
            return "seen"

        assert use([look], [ToolCall("1", "look", arguments)])[1].result == "seen"

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            ('{"dish": ', "the arguments are not JSON"),
            ('["soup"]', "the arguments are a list; expected an object"),
            ("null", "the arguments are a NoneType; expected an object"),
            ('{"dish": NaN}', "NaN is no JSON number"),
            ("{}", "argument 'dish' is missing; expected dish (a string), count (a whole number)"),
            ('{"dish": 3}', "argument 'dish' is 3; expected a string"),
            ('{"dish": "a", "count": true}', "argument 'count' is true; expected a whole number"),
            ('{"dish": "a", "count": 1.5}', "argument 'count' is 1.5; expected a whole number"),
            ('{"dish": "a", "gift": 1}', "argument 'gift' is 1; expected true or false"),
            ('{"dish": "a", "size": "tiny"}', 'argument \'size\' is "tiny"; expected one of "small", "large"'),
            ('{"dish": "a", "sauces": ["hot", "red"]}', "argument 'sauces'[1] is \"red\"; expected one of"),
            ('{"dish": "a", "price": "3"}', "argument 'price' is \"3\"; expected a number or null"),
            ('{"dish": "a", "session": "mine"}', 'there is no argument "session"'),
            ('{"dish": "a", "colour": 1}', 'there is no argument "colour"; expected dish'),
            ("[" * 100_000, "the arguments are not JSON"),
            (json.dumps({"dish": "a" * MOST_TEXT}), f"expected at most {MOST_TEXT}"),
            ({"dish": {1, 2}}, "the arguments are not JSON"),
        ],
    )
    def test_what_does_not_fit_is_told_to_the_model(self, arguments, told):
        """The call is answered with what was expected, and the tool is not called."""
        assert told in error_of([order], ToolCall("1", "order", arguments))

    def test_an_unknown_tool_is_told_with_the_known_ones(self):
        """The model may try again."""
        assert error_of([order], ToolCall("1", "ordr")) == "there is no tool 'ordr'; expected one of: order"

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
            max_leaves=12,
        )
        | st.fixed_dictionaries(
            {"dish": st.text() | st.integers()},
            optional={
                "count": st.integers() | st.floats() | st.booleans(),
                "size": st.sampled_from(["small", "large", "huge", 1]),
                "price": st.none() | st.floats() | st.integers() | st.text(),
                "sauces": st.lists(st.sampled_from(["hot", "mild", "red", 0])),
                "notes": st.none() | st.dictionaries(st.text(), st.text() | st.integers()),
                "gift": st.booleans() | st.integers(),
            },
        )
    )
    def test_whatever_a_model_sends_is_taken_or_refused_in_words(self, arguments):
        """Any JSON: the function gets values of the declared types, or the model gets a sentence."""
        try:
            _, given_ = Toolbox([order]).check("order", json.dumps(arguments))
        except ValueError as error:
            event("refused")
            told = str(error)
        else:
            event("taken")
            told = "it is taken"
            assert_declared(given_)
        assert 10 < len(told) < 1_000

    @given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
    def test_whatever_text_a_model_sends_is_taken_or_refused_in_words(self, text):
        """Also what is no JSON."""
        called, returned = use([order], [ToolCall("1", "order", text)])
        assert isinstance(called, ToolCalled)
        assert returned.error or returned.result

    @given(st.sampled_from([int, float, str, bool, list[int], dict[str, float], int | None, Literal[1, "a"], Any]), st.data())
    def test_what_the_schema_allows_is_taken(self, hint, data):
        """A value made by the schema passes the check."""

        async def look(what):
            return "seen"

        look.__annotations__ = {"what": hint}
        made = tool(look)
        value = data.draw(_values(made.parameters["properties"]["what"]))
        assert made.check({"what": value})["what"] == value


def _values(schema):
    """Values that a schema allows."""
    if "anyOf" in schema:
        return st.one_of([_values(one) for one in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    return {
        "string": st.text(),
        "integer": st.integers(),
        "number": st.floats(allow_nan=False, allow_infinity=False),
        "boolean": st.booleans(),
        "null": st.none(),
        "array": st.lists(_values(schema.get("items", {})), max_size=3) if schema.get("type") == "array" else None,
        "object": st.dictionaries(st.text(), _values(schema.get("additionalProperties", {})), max_size=3)
        if schema.get("type") == "object"
        else None,
        None: st.integers() | st.text(),
    }[schema.get("type")]


class TestFailures:
    def test_what_a_tool_raises_is_told_to_the_developer_and_not_to_the_model(self, caplog):
        """The model reads that it failed; the log has the traceback; what the exception says stays here."""

        @tool
        async def look() -> str:
            raise KeyError("postgres://admin:canary-7f3a@db")

        told = error_of([look], ToolCall("1", "look"))
        assert told == "look failed (KeyError)"
        assert "in look" in caplog.text

    def test_a_tool_error_is_told_to_the_model(self):
        """Raised on purpose, its message is for the model."""

        @tool
        async def look() -> str:
            raise ToolError("there is no such city; ask for another one")

        assert error_of([look], ToolCall("1", "look")) == "there is no such city; ask for another one"

    @pytest.mark.parametrize(
        ("result", "told"),
        [
            (object(), "it returned a object that is not JSON"),
            ({"when": {1}}, "it returned a dict that is not JSON"),
            (float("nan"), "it returned a float that is not JSON"),
            ("a" * (MOST_TEXT + 1), f"expected at most {MOST_TEXT}"),
        ],
    )
    def test_a_result_that_cannot_be_told_is_a_failure(self, result, told):
        """The developer's log and the model get the reason."""

        @tool
        async def look() -> Any:
            return result

        assert told in error_of([look], ToolCall("1", "look"))

    @pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError])
    def test_nothing_a_tool_raises_gets_out(self, error):
        """Not even what ends programs and tasks."""

        @tool
        async def look() -> str:
            raise error

        assert error_of([look], ToolCall("1", "look")) in ("look failed (SystemExit)", "cancelled")

    def test_too_many_at_once_are_refused(self):
        """A model that asks for more reads so, and the others run."""

        @tool
        async def look() -> str:
            await asyncio.sleep(1)
            return "seen"

        frames = use([look], [ToolCall(str(at), "look") for at in range(MOST_AT_ONCE + 2)])
        refused = [frame.error for frame in frames if isinstance(frame, ToolReturned) and frame.error]
        assert refused == [f"{MOST_AT_ONCE} tools run already; call it again when one has returned"] * 2
        assert len(frames) == 2 * (MOST_AT_ONCE + 2)

    def test_a_tool_that_swallows_its_cancellation_delays_nobody(self, caplog):
        """It is given up on time, and named when it does not stop."""
        let_go = asyncio.Event()

        @tool(timeout_ms=100)
        async def look() -> str:
            while not let_go.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await let_go.wait()
            return "too late"

        async def main():
            runs = ToolRuns()
            session = type("Small", (), {"tool_runs": runs})
            loop = asyncio.get_running_loop()
            frames = [frame async for frame in Toolbox([look]).use(session, [ToolCall("1", "look")])]
            took_ms = loop.time() * 1_000
            await asyncio.sleep(2)
            stuck = dict(runs.counters)
            let_go.set()
            return frames, took_ms, stuck, await runs.aclose()

        frames, took_ms, counters, left = run_simulated(main())
        assert frames[1].error == "look gave nothing for 100 ms and was given up"
        assert took_ms == pytest.approx(100, abs=1)
        assert counters == {"tools_timed_out": 1, "tools_stuck": 1}
        assert left == []
        assert "tool look was cancelled and does not stop" in caplog.text

    def test_a_result_is_a_copy(self):
        """What a tool changes later does not change the history."""
        kept = {"n": 1}

        @tool
        async def look() -> dict:
            return kept

        _, returned = use([look], [ToolCall("1", "look")])
        kept["n"] = 2
        assert returned.result == {"n": 1}

    def test_arguments_are_not_logged(self, caplog):
        """What callers say may be private; a call that fails or does not fit is logged by name."""
        caplog.set_level(logging.INFO)

        @tool
        async def look(what: str) -> str:
            raise RuntimeError

        error_of([look], ToolCall("1", "look", {"what": "canary-7f3a"}))
        error_of([look], ToolCall("1", "look", {"what": ["canary-7f3a"]}))
        assert "tool look is not called" in caplog.text
        assert "canary-7f3a" not in caplog.text


class TestTold:
    def test_results_as_text(self):
        """Text as it is, values as JSON, failures with their mark."""
        assert as_text(ToolReturned("1", "sunny")) == "sunny"
        assert as_text(ToolReturned("1", ["ä", 1])) == '["ä", 1]'
        assert as_text(ToolReturned("1", error="gone")) == "error: gone"

    def test_calls_are_paired_with_their_results(self):
        """By id and order; a call that goes on has no result yet."""
        a1, b, a2 = ToolCalled("a", "x"), ToolCalled("b", "y"), ToolCalled("a", "z")
        first, second = ToolReturned("a", 1), ToolReturned("a", 2)
        assert paired((a1, b, first, a2, second)) == [(a1, first), (b, ToolReturned("b", error=NO_RESULT)), (a2, second)]


class TestHistory:
    def test_a_late_result_goes_to_the_message_that_holds_its_call(self):
        """The tuple before is as it was: who was given it sees no change."""
        history = History()
        history.add_turn("book it", "", (ToolCalled("1", "book"),))
        history.add_turn("hello", "Hi.")
        before = history.messages
        history.add_tool(ToolReturned("1", "booked"))
        assert before[1].tool_calls == (ToolCalled("1", "book"),)
        assert history.messages[1].tool_calls == (ToolCalled("1", "book"), ToolReturned("1", "booked"))
        assert history.messages[2:] == before[2:]

    def test_the_newest_call_of_an_id_is_answered(self):
        """Some models count anew in every reply."""
        history = History()
        history.add_turn("a", "", (ToolCalled("1", "x"), ToolReturned("1", "old")))
        history.add_turn("b", "", (ToolCalled("1", "x"),))
        history.add_tool(ToolReturned("1", "new"))
        assert [message.tool_calls[-1].result for message in history.messages if message.tool_calls] == ["old", "new"]

    def test_a_call_of_no_reply_is_a_message_of_its_own(self):
        """And its result joins it; a result of nobody's call is dropped."""
        history = History()
        history.add_tool(ToolCalled("1", "x"))
        history.add_tool(ToolReturned("1", "y"))
        history.add_tool(ToolReturned("9", "z"))
        (message,) = history.messages
        assert message.tool_calls == (ToolCalled("1", "x"), ToolReturned("1", "y"))
