"""Agents that need no model: one says what it heard, one answers by pattern.

What the rules agent understands, the first that fits; capitals and punctuation do not matter:

=============================================  ==================================================
the caller says                                it answers
=============================================  ==================================================
what matches a pattern of its own `answers`    that answer
"repeat after me, ..."                         the words after it
"say that again", "what did you say"           its own last answer
"count to five", "count down from 9 to 3"      the numbers, up to 100
"what is two plus three", "12 times 4"         the sum (`_sums.py`)
"what time is it"                              "It is 3:05 PM."
"what day is it", "what is the date"           "Today is Wednesday, March 5, 2025."
"what can you do", "help", "who are you"       what it can do
"hello"; "thank you"                           a greeting; "You are welcome."
"goodbye", "hang up", "end the call"           "Goodbye.", and the call ends
anything else                                  "You said: " and the words
=============================================  ==================================================

>>> async def main():
...     return [part async for part in RulesAgent().reply("What is ten divided by four?", ())]
>>> asyncio.run(main())
['10 divided by 4 is 2.5.']
"""

from __future__ import annotations

import datetime
import re
import unicodedata
import zoneinfo
from collections.abc import AsyncIterator, Callable
from fractions import Fraction
from typing import Any

import attrs

from ..agent import Agent
from ..clock import local_now
from ..frames import EndCall
from ..options import build, option
from . import _sums

__all__ = ["EchoAgent", "RulesAgent", "RulesOptions"]

COUNTS_TO = 100
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)

Answer = list[str | EndCall] | None


def _echo(text: str) -> str:
    said = " ".join(text.split())
    return f"You said: {said}" if re.search(r"\w", said) else "You said nothing."


class EchoAgent(Agent):
    """Says what it heard: "You said: ...". Example: `agent.new("echo")`."""

    def __init__(self, **options: Any) -> None:
        build(_NoOptions, options, "agent 'echo'")

    async def reply(self, text: str, history: tuple[Any, ...], session: Any = None) -> AsyncIterator[str]:
        """One sentence with the caller's words."""
        yield _echo(text)


@attrs.frozen
class _NoOptions:
    pass


@attrs.frozen
class RulesOptions:
    """Options of the rules agent."""

    timezone: str = option("", 'IANA name like "Europe/Berlin" of the time it tells; empty: the machine\'s own')
    answers: dict[str, str] = option(
        attrs.Factory(dict), "its own answers by regular expression, searched in the caller's lower-case words"
    )

    def __attrs_post_init__(self) -> None:
        _zone(self.timezone)
        for pattern, answer in self.answers.items():
            if not isinstance(answer, str) or not answer.strip():
                raise ValueError(f"answers[{pattern!r}] is {answer!r}; expected the text to say")
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                raise ValueError(f"answers: {pattern!r} is no regular expression ({error}); correct it") from None


def _zone(name: str) -> datetime.tzinfo | None:
    try:
        return zoneinfo.ZoneInfo(name) if name else None
    except (KeyError, ValueError, OSError):
        raise ValueError(
            f"timezone {name!r} is not known here; expected an IANA name like 'Europe/Berlin'. "
            "Where the system has no time zones: pip install tzdata"
        ) from None


class RulesAgent(Agent):
    """Answers by pattern, as in the module's table. Example: `agent.new("rules", timezone="Europe/Berlin")`.

    Raises:
        OptionError: the time zone is not known, or a pattern of `answers` is no regular expression.
    """

    Options = RulesOptions

    def __init__(self, **options: Any) -> None:
        self.options: RulesOptions = build(RulesOptions, options, "agent 'rules'")

    async def reply(self, text: str, history: tuple[Any, ...], session: Any = None) -> AsyncIterator[str | EndCall]:
        """The answer to `text`, sentence by sentence; it never fails and never stays silent."""
        *before, last = self._answer(_Heard(text, _words(text), history, self.options.timezone))
        for sentence in before:
            yield f"{sentence} "
        yield last

    def _answer(self, heard: _Heard) -> list[str | EndCall]:
        for pattern, answer in self.options.answers.items():
            if re.search(pattern, heard.words):
                return [answer]
        for rule, answer_to in RULES:
            found = rule.search(heard.words)
            if found and (answers := answer_to(heard)):
                return answers
        return [_echo(heard.text)]


@attrs.frozen
class _Heard:
    """What the caller said: as it came, as plain words, and what was said before."""

    text: str
    words: str
    history: tuple[Any, ...]
    timezone: str


def _words(text: str) -> str:
    """Lower-case words with one space between: "What's 2+3?" is "whats 2 3"."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", re.sub(r"['’]", "", plain)))


def _repeat_after(heard: _Heard) -> Answer:
    asked = re.search(r"\bafter\s+me\b\W*(.*)", heard.text, re.IGNORECASE | re.DOTALL)
    said = " ".join(asked[1].split()) if asked else ""
    return [said or "Say: repeat after me. And then the words."]


def _repeat_last(heard: _Heard) -> Answer:
    own = [message.text for message in heard.history if message.role != "user" and message.text.strip()]
    return [own[-1] if own else "I have not said anything yet."]


def _count(heard: _Heard) -> Answer:
    words = _sums.tokens(heard.text)
    words = words[words.index("count") + 1 :] if "count" in words else []
    down = words[:1] == ["down"]
    first, last = _after(words, "from"), _after(words, "to")
    if (first is None and "from" in words) or (last is None and "to" in words) or (first is None and last is None):
        return None
    start, end = first if first is not None else Fraction(1), last if last is not None else Fraction(1)
    if down and first is None:
        return None
    if start.denominator != 1 or end.denominator != 1:
        return ["I can only count in whole numbers."]
    if max(start, end) > COUNTS_TO:
        return [f"I can only count up to {COUNTS_TO}."]
    step = 1 if start <= end else -1
    numbers = [str(value) for value in range(int(start), int(end) + step, step)]
    return [", ".join(numbers[at : at + 10]) + "." for at in range(0, len(numbers), 10)]


def _after(words: list[str], word: str) -> Fraction | None:
    found = _sums.number(words, words.index(word) + 1) if word in words else None
    return found[0] if found else None


def _sum(heard: _Heard) -> Answer:
    asked = _sums.in_words(heard.text)
    return [asked.answer] if asked else None


def _time(heard: _Heard) -> Answer:
    now = local_now(_zone(heard.timezone))
    minutes = f":{now.minute:02d}" if now.minute else ""
    return [f"It is {now.hour % 12 or 12}{minutes} {'AM' if now.hour < 12 else 'PM'}."]


def _date(heard: _Heard) -> Answer:
    now = local_now(_zone(heard.timezone))
    return [f"Today is {DAYS[now.weekday()]}, {MONTHS[now.month - 1]} {now.day}, {now.year}."]


def _help(heard: _Heard) -> Answer:
    return [
        "I am a simple voice agent.",
        "I can tell the time and the date, do sums, count, and repeat what you say.",
        "Say goodbye to end the call.",
    ]


def _say(*parts: str | EndCall) -> Callable[[_Heard], Answer]:
    return lambda heard: list(parts)


RULES: tuple[tuple[re.Pattern[str], Callable[[_Heard], Answer]], ...] = tuple(
    (re.compile(pattern), answer_to)
    for pattern, answer_to in (
        (r"\b(repeat|say) after me\b", _repeat_after),
        (r"\b(say|repeat) (that|it)( again)?$|\bsay again$|\bwhat did you say\b|^(pardon( me)?|repeat)$", _repeat_last),
        (r"\bcount (down )?(from|to)\b", _count),
        (r"", _sum),
        (r"\btime (is it|it is)\b|\b(whats|what is|tell me|have|got|know) the (current )?time\b", _time),
        (r"\b(day|month|year) (is it|it is|is today)\b|\b(todays|current|whats the|what is the) (date|day)\b", _date),
        (r"\bwhat can you do\b|^(can you )?help( me)?$|\bwho are you\b|\b(introduce yourself|your name)\b", _help),
        (r"^(hello|hi|hey|good (morning|afternoon|evening))( there)?$", _say("Hello. How can I help?")),
        (r"^(thanks|thank you)( very much| so much| a lot)?$", _say("You are welcome.")),
        (r"^(good ?bye|bye)\b|\b(good ?bye|bye)$|\bhang up\b|\bend (the|this) call\b", _say(EndCall("Goodbye."))),
    )
)
