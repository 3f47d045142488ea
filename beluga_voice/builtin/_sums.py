"""Numbers and sums as people say them in English, in digits or in words.

>>> number("two thousand and five".split())
(Fraction(2005, 1), 4)
>>> in_words("what is 2 plus three times four").answer
'2 plus 3 times 4 is 14.'
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

import attrs

__all__ = ["Sum", "in_words", "number", "spoken", "tokens"]

LARGEST = 10**15
DECIMALS = 4

_TEENS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SMALL = {word: value for value, word in enumerate(_TEENS)} | {word: 20 + 10 * n for n, word in enumerate(_TENS)}
_SCALES = {"thousand": 1_000, "million": 1_000_000}
_OPERATORS = {
    "plus": "plus",
    "+": "plus",
    "minus": "minus",
    "less": "minus",
    "-": "minus",
    "−": "minus",
    "times": "times",
    "multiplied": "times",
    "x": "times",
    "*": "times",
    "×": "times",
    "divided": "divided by",
    "over": "divided by",
    "/": "divided by",
    "÷": "divided by",
}
_VERBS = {
    "add": ("plus", ("and", "to")),
    "subtract": ("minus", ("from",)),
    "multiply": ("times", ("by", "and", "with")),
    "divide": ("divided by", ("by",)),
}
_BEFORE = {
    *("what", "whats", "what's", "is", "how", "much", "does", "the", "result", "sum", "of", "equals"),
    *("calculate", "compute", "work", "out", "tell", "me", "can", "could", "would", "you", "please"),
    *("and", "so", "ok", "okay", "well", "then", "now", "hey"),
}
_AFTER = {"please", "equal", "equals", "is", "make", "makes", "now", "then", "thanks", "thank", "you"}
_TOKEN = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9])|[0-9]+(?:\.[0-9]+)?|[a-z']+|[-+*/×÷−]")


def tokens(text: str) -> list[str]:
    """The words, numbers and signs of `text`, in lower case; all else is left out."""
    plain = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    return _TOKEN.findall(re.sub(r"(?<=[a-z])-(?=[a-z])", " ", plain))


def number(words: Sequence[str], at: int = 0) -> tuple[Fraction, int] | None:
    """The number that begins at `at` and where it ends; None when none begins there."""
    begun = at
    total = part = Fraction(0)
    scale = LARGEST
    while at < len(words):
        word = words[at]
        if word[0].isdigit() and at == begun:
            part = _digits(word)
        elif word in ("a", "an") and at == begun and words[at + 1 : at + 2] and words[at + 1] in ("hundred", *_SCALES):
            part = Fraction(1)
        elif word in _SMALL and _follows(words, begun, at):
            part += _SMALL[word]
        elif word == "hundred" and 0 < part < 100:
            part *= 100
        elif word in _SCALES and part and _SCALES[word] < scale:
            scale = _SCALES[word]
            total, part = total + part * scale, Fraction(0)
        elif not (word == "and" and at > begun and _joins(words, at)):
            break
        at += 1
    if at == begun:
        return None
    if words[at : at + 1] == ["point"]:
        return _decimals(words, at, total + part)
    return total + part, at


def _digits(word: str) -> Fraction:
    plain = word.replace(",", "")
    return Fraction(plain) if len(plain) <= 30 else Fraction(LARGEST)


def _follows(words: Sequence[str], begun: int, at: int) -> bool:
    """Whether the small number word at `at` goes on with the number: "twenty three" does, "two three" does not."""
    if at == begun:
        return True
    before = words[at - 1]
    if before in _TENS:
        return 0 < _SMALL[words[at]] < 10
    return before in ("hundred", "and", *_SCALES) and _SMALL[words[at]] > 0


def _joins(words: Sequence[str], at: int) -> bool:
    after = words[at + 1 : at + 2]
    return words[at - 1] in ("hundred", *_SCALES) and bool(after) and _SMALL.get(after[0], 0) > 0


def _decimals(words: Sequence[str], at: int, whole: Fraction) -> tuple[Fraction, int]:
    """What stands after "point", digit by digit."""
    end, digits = at + 1, ""
    while end < len(words) and len(digits) < 30:
        word = words[end]
        digit = "0" if word == "oh" else str(_SMALL[word]) if _SMALL.get(word, 10) < 10 else word
        if not digit.isdecimal():
            break
        digits += digit
        end += 1
    return (whole + Fraction(int(digits), 10 ** len(digits)), end) if digits else (whole, at)


@attrs.frozen
class Sum:
    """A sum that was understood: its numbers and, between them, "plus", "minus", "times" or "divided by"."""

    numbers: tuple[Fraction, ...]
    operators: tuple[str, ...]

    @property
    def value(self) -> Fraction:
        """The result; times and divided by bind closer.

        Raises:
            ZeroDivisionError: it divides by zero.
        """
        terms = [self.numbers[0]]
        for operator, value in zip(self.operators, self.numbers[1:], strict=True):
            if operator == "times":
                terms[-1] *= value
            elif operator == "divided by":
                terms[-1] /= value
            else:
                terms.append(value if operator == "plus" else -value)
        return sum(terms, Fraction(0))

    @property
    def answer(self) -> str:
        """The sentence that answers it."""
        if any(abs(value) >= LARGEST for value in self.numbers):
            return "These numbers are too large for me."
        try:
            value = self.value
        except ZeroDivisionError:
            return "I cannot divide by zero."
        if abs(value) >= LARGEST:
            return "The result is too large for me to say."
        said = [spoken(self.numbers[0])]
        for operator, operand in zip(self.operators, self.numbers[1:], strict=True):
            said += [operator, spoken(operand)]
        exact = round(value, DECIMALS) == value
        return f"{' '.join(said)} is {'' if exact else 'about '}{spoken(value)}."


def spoken(value: Fraction) -> str:
    """A number for a voice to read: "minus 2.5", at most four decimals."""
    rounded = abs(round(value, DECIMALS))
    whole, rest = divmod(rounded, 1)
    decimals = f"{int(rest * 10**DECIMALS):0{DECIMALS}d}".rstrip("0")
    sign = "minus " if value < 0 and rounded else ""
    return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"


def in_words(text: str) -> Sum | None:
    """The sum that `text` asks for, courtesies aside; None when it is not one."""
    words = tokens(text)
    first, last = 0, len(words)
    while first < last and words[first] in _BEFORE:
        first += 1
    while last > first and words[last - 1] in _AFTER:
        last -= 1
    words = words[first:last]
    if words and words[0] in _VERBS:
        return _commanded(words)
    return _chained(words)


def _chained(words: list[str]) -> Sum | None:
    """Two plus three, times four, ..."""
    numbers: list[Fraction] = []
    operators: list[str] = []
    at = 0
    while True:
        found = _signed(words, at)
        if found is None:
            return None
        numbers.append(found[0])
        at = found[1]
        if at == len(words):
            return Sum(tuple(numbers), tuple(operators)) if operators else None
        if words[at : at + 2] == ["take", "away"]:
            operators.append("minus")
            at += 2
        elif words[at] in _OPERATORS:
            operators.append(_OPERATORS[words[at]])
            at += 2 if words[at + 1 : at + 2] == ["by"] else 1
        else:
            return None


def _commanded(words: list[str]) -> Sum | None:
    """Add two and three; subtract two from three."""
    operator, between = _VERBS[words[0]]
    one = _signed(words, 1)
    if one is None or one[1] >= len(words) or words[one[1]] not in between:
        return None
    other = _signed(words, one[1] + 1)
    if other is None or other[1] != len(words):
        return None
    pair = (other[0], one[0]) if words[one[1]] in ("from", "to") else (one[0], other[0])
    return Sum(pair, (operator,))


def _signed(words: list[str], at: int) -> tuple[Fraction, int] | None:
    negative = words[at : at + 1] and words[at] in ("minus", "negative", "-", "−")
    found = number(words, at + 1 if negative else at)
    return (-found[0], found[1]) if found and negative else found
