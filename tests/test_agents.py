"""The agents that need no model."""

import asyncio
import re
from fractions import Fraction

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice.builtin._sums import in_words, number, spoken
from beluga_voice.builtin.agents import EchoAgent, RulesAgent
from beluga_voice.errors import OptionError
from beluga_voice.frames import EndCall


@attrs.frozen
class Said:
    role: str
    text: str


def answers(agent, text, history=()):
    async def main():
        return [part async for part in agent.reply(text, history, None)]

    return asyncio.run(main())


def answer(text, history=(), **options):
    said = answers(RulesAgent(**options), text, history)
    return "".join(part.text if isinstance(part, EndCall) else part for part in said)


class TestEcho:
    def test_says_what_it_heard(self):
        """The caller's words come back."""
        assert answers(EchoAgent(), " Hello,\n world. ") == ["You said: Hello, world."]

    def test_takes_no_options(self):
        """An option is refused by name."""
        with pytest.raises(OptionError, match="agent 'echo' has no option 'loud'"):
            EchoAgent(loud=True)


class TestSums:
    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            ("What is two plus three?", "2 plus 3 is 5."),
            ("12 times 4", "12 times 4 is 48."),
            ("ten divided by four", "10 divided by 4 is 2.5."),
            ("What's 2+3?", "2 plus 3 is 5."),
            ("12 × 4", "12 times 4 is 48."),
            ("10 ÷ 4 =", "10 divided by 4 is 2.5."),
            ("how much is twenty-one minus thirty, please", "21 minus 30 is minus 9."),
            ("two thousand and five take away a hundred", "2005 minus 100 is 1905."),
            ("1,000 plus 2.5", "1000 plus 2.5 is 1002.5."),
            ("two point oh five times two", "2.05 times 2 is 4.1."),
            ("minus five plus three", "minus 5 plus 3 is minus 2."),
            ("two plus three times four", "2 plus 3 times 4 is 14."),
            ("One divided by three.", "1 divided by 3 is about 0.3333."),
            ("Add three to five", "5 plus 3 is 8."),
            ("subtract 3 from 10", "10 minus 3 is 7."),
            ("five divided by zero", "I cannot divide by zero."),
            ("5 divided by 0.0", "I cannot divide by zero."),
            ("one million times one million million", "You said: one million times one million million"),
            ("999999999999999 times 9", "The result is too large for me to say."),
            (f"{'9' * 5000} plus 1", "These numbers are too large for me."),
        ],
    )
    def test_are_worked_out(self, asked, said):
        """Sums in words, digits and signs are answered in a sentence that reads well aloud."""
        assert answer(asked) == said

    @pytest.mark.parametrize(
        "asked",
        ["two three", "I have 2 plus points", "2 plus", "plus two", "twenty twelve plus 1", "two three times 4", "5"],
    )
    def test_what_is_no_sum_is_not_guessed_at(self, asked):
        """Words with numbers in them that are no sum are echoed."""
        assert answer(asked) == f"You said: {asked}"

    @given(st.integers(0, 999_999), st.integers(0, 999_999), st.sampled_from("+-*/"))
    def test_are_right(self, one, other, sign):
        """The result is that of exact arithmetic."""
        asked = in_words(f"{one} {sign} {other}")
        if sign == "/" and other == 0:
            assert asked.answer == "I cannot divide by zero."
            return
        right = {"+": one + other, "-": one - other, "*": one * other, "/": Fraction(one, other or 1)}[sign]
        assert asked.value == right
        assert asked.answer.endswith(f"{spoken(Fraction(right))}.")

    @given(st.integers(0, 999_999_999))
    def test_number_words_are_understood(self, value):
        """Every number up to a thousand million is understood in words."""
        said = words_of(value).split()
        assert number(said) == (value, len(said))

    @given(st.fractions(-(10**6), 10**6))
    def test_numbers_read_well(self, value):
        """A result is digits, one point at most, and "minus": nothing a voice would stumble on."""
        assert re.fullmatch(r"(minus )?\d+(\.\d{1,4})?", spoken(value))
        assert abs(Fraction(spoken(value).replace("minus ", "-")) - value) <= Fraction(1, 20_000)


SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def words_of(value: int) -> str:
    if value < 20:
        return SMALL[value]
    if value < 100:
        return TENS[value // 10 - 2] + (f" {SMALL[value % 10]}" if value % 10 else "")
    for size, name in ((1_000_000, "million"), (1_000, "thousand"), (100, "hundred")):
        if value >= size:
            rest = value % size
            joined = "" if not rest else f" and {words_of(rest)}" if rest < 100 else f" {words_of(rest)}"
            return f"{words_of(value // size)} {name}{joined}"
    raise AssertionError(value)


class TestTime:
    @pytest.mark.parametrize("asked", ["What time is it?", "WHAT'S THE TIME", "Can you tell me the time, please?"])
    def test_tells_the_time(self, asked):
        """The time is told by the twelve-hour clock."""
        assert re.fullmatch(r"It is (1[0-2]|[1-9])(:[0-5]\d)? (AM|PM)\.", answer(asked, timezone="Asia/Tokyo"))

    @pytest.mark.parametrize("asked", ["What day is it?", "what's the date", "What is today's date?"])
    def test_tells_the_date(self, asked):
        """The date is told with its weekday."""
        assert re.fullmatch(r"Today is [A-Z]\w+day, [A-Z]\w+ \d{1,2}, 2\d{3}\.", answer(asked))

    def test_follows_its_zone(self):
        """Two zones twelve hours apart are told apart by AM and PM alone."""
        east, west = (answer("what time is it", timezone=zone) for zone in ("Etc/GMT-6", "Etc/GMT+6"))
        assert {east.split()[-1], west.split()[-1]} == {"AM.", "PM."}

    @pytest.mark.parametrize("timezone", ["Mars/Olympus", "America", "../etc/passwd", "\0"])
    def test_an_unknown_zone_is_refused(self, timezone):
        """A zone that does not exist is refused when the agent is made."""
        with pytest.raises(OptionError, match="expected an IANA name like 'Europe/Berlin'"):
            RulesAgent(timezone=timezone)


class TestRepeating:
    def test_repeats_after_the_caller(self):
        """The words come back as they were said."""
        assert answer("Please repeat after me: Red lorry, yellow Lorry!") == "Red lorry, yellow Lorry!"

    def test_asks_for_the_words(self):
        """With nothing to repeat it says how."""
        assert "the words" in answer("Repeat after me.")

    def test_says_its_last_answer_again(self):
        """It repeats itself, not the caller."""
        history = (Said("user", "hi"), Said("assistant", "Hello."), Said("user", "say that again"))
        assert answer("Say that again?", history) == "Hello."

    def test_has_nothing_to_say_again_at_first(self):
        """Before its first answer it says so."""
        assert answer("What did you say?") == "I have not said anything yet."


class TestCounting:
    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            ("Count to five.", "1, 2, 3, 4, 5."),
            ("count from 3 to seven", "3, 4, 5, 6, 7."),
            ("Can you count down from five?", "5, 4, 3, 2, 1."),
            ("count down from ten to eight", "10, 9, 8."),
            ("count to zero", "1, 0."),
            ("count to 101", "I can only count up to 100."),
            ("count to two point five", "I can only count in whole numbers."),
            ("count to the moon", "You said: count to the moon"),
        ],
    )
    def test_counts(self, asked, said):
        """It counts up and down, in whole numbers, and not for ever."""
        assert answer(asked) == said

    def test_goes_by_tens(self):
        """A long count comes in sentences, so that it can be spoken as it goes."""
        said = answers(RulesAgent(), "count to one hundred")
        assert len(said) == 10
        assert "".join(said).endswith("98, 99, 100.")


class TestConversation:
    @pytest.mark.parametrize(
        "asked", ["Goodbye!", "ok bye", "Bye bye.", "Please hang up", "good bye then", "end the call"]
    )
    def test_goodbye_ends_the_call(self, asked):
        """A goodbye is answered, and the call ends."""
        assert answers(RulesAgent(), asked) == [EndCall("Goodbye.")]

    @pytest.mark.parametrize("asked", ["What can you do?", "help", "Who are you?"])
    def test_says_what_it_can_do(self, asked):
        """Asked for help, it names what it understands, in sentences."""
        said = answers(RulesAgent(), asked)
        assert len(said) == 3
        assert "the time and the date" in "".join(said)

    def test_greets(self):
        """A greeting is answered with one."""
        assert answer("Hello there!").startswith("Hello.")

    def test_echoes_the_rest(self):
        """What it has no rule for it says back."""
        assert answer("The ships hung in the sky.") == "You said: The ships hung in the sky."

    def test_own_answers_come_first(self):
        """An answer of its own goes before the table."""
        own = {r"\btime\b": "Time is an illusion."}
        assert answer("What TIME is it?", answers=own) == "Time is an illusion."

    @pytest.mark.parametrize("own", [{"(": "x"}, {"x": ""}, {"x": 3}])
    def test_a_wrong_answer_is_refused(self, own):
        """A pattern that is none, or an answer that says nothing, is refused when the agent is made."""
        with pytest.raises(OptionError, match="agent 'rules': answers"):
            RulesAgent(answers=own)


PHRASES = (
    "count to from down repeat after me say that again what is time date plus minus times divided by point hundred and "
    "1 2 0.5 1,000 zero two twenty million + - / × . , ? ! ' a goodbye"
)
fragments = st.sampled_from(PHRASES.split(" "))


class TestAnyText:
    @given(st.one_of(st.text(), st.lists(fragments, max_size=12).map(" ".join)), st.booleans())
    def test_is_answered(self, text, spoken_before):
        """No text makes it raise, and it always says something."""
        history = (Said("user", text), Said("assistant", text)) if spoken_before else ()
        for agent in (EchoAgent(), RulesAgent()):
            said = answers(agent, text, history)
            assert said
            assert all(part.text if isinstance(part, EndCall) else part.strip() for part in said)

    @given(st.lists(fragments, max_size=10).map(" ".join))
    def test_capitals_and_punctuation_do_not_matter(self, text):
        """A recogniser that writes capitals and full stops is answered like one that does not."""
        plain, written = answer(text), answer(f"{text.upper()}.")
        if not plain.startswith(("You said", "It is")) and "after" not in text:
            assert written == plain
