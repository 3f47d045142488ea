"""What words spoken into a reply mean: an interruption, a backchannel, or the reply itself come back. Pure.

>>> meaning("Mm-hm. Yeah!", BargeInOptions()), meaning("Wait, stop.", BargeInOptions())
('backchannel', 'interruption')
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import lru_cache

from .settings import BargeInOptions

__all__ = ["is_backchannel", "meaning", "repeats", "words"]

RECENT_WORDS = 12  # what the agent said of late: about four seconds
ECHO_WORDS = 3  # fewer may well be an answer in the agent's words: "tea with sugar"
ECHO_SHARE = 0.75
SAME_WORD = 0.7  # recognisers mishear an echo: "borrow" comes back as "borrowed"

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")


def meaning(text: str, options: BargeInOptions, said: str = "") -> str:
    """What `text`, heard during a reply, is: "interruption", "backchannel", "echo", "few" (under `min_words`) or "" (nothing).

    Args:
        text: what a recogniser heard so far.
        options: the `[barge_in]` table.
        said: what the agent has said of the reply so far.
    """
    heard = words(text)
    if not heard:
        return ""
    if is_backchannel(heard, options.ignore):
        return "backchannel"
    if options.echo_guard and repeats(heard, words(said)):
        return "echo"
    return "few" if len(heard) < options.min_words else "interruption"


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation.

    >>> words("Mm-hm, it's FINE.")
    ['mm', 'hm', 'its', 'fine']
    """
    return [word.replace("'", "").replace("\u2019", "") for word in _WORD.findall(text.casefold())]


def is_backchannel(heard: Sequence[str], ignore: Sequence[str]) -> bool:
    """True when `heard` is made of entries of `ignore` and nothing else, in any order and number.

    >>> is_backchannel(words("uh huh, okay okay"), ["uh-huh", "okay"])
    True
    """
    known, longest = _known(tuple(ignore))
    reachable = [True] + [False] * len(heard)  # is all before this word explained?
    for end in range(1, len(heard) + 1):
        for start in range(max(0, end - longest), end):
            if reachable[start] and "".join(heard[start:end]) in known:
                reachable[end] = True
                break
    return bool(heard) and reachable[-1]


def repeats(heard: Sequence[str], said: Sequence[str]) -> bool:
    """True when most of `heard` is found, in order, in the last of what was `said`; words need only be alike.

    >>> repeats(words("borrow up to turn books"), words("You can borrow up to ten books at a time"))
    True
    """
    if len(heard) < ECHO_WORDS:
        return False
    recent = said[-RECENT_WORDS - len(heard) :]
    found = [0] * (len(recent) + 1)  # the longest common subsequence, row by row
    for word in heard:
        row = [0]
        for at, other in enumerate(recent):
            row.append(found[at] + 1 if _alike(word, other) else max(row[at], found[at + 1]))
        found = row
    return found[-1] >= ECHO_SHARE * len(heard)


def _alike(one: str, other: str) -> bool:
    if one == other:
        return True
    if min(len(one), len(other)) < 3:
        return False
    return SequenceMatcher(None, one, other, autojunk=False).ratio() >= SAME_WORD


@lru_cache(maxsize=64)
def _known(ignore: tuple[str, ...]) -> tuple[frozenset[str], int]:
    """The entries as letters alone ("mm-hm", "mm hm" and "mmhm" are one), and how many words one may be heard as."""
    known = frozenset("".join(words(entry)) for entry in ignore)
    return known, max((max(len(words(entry)), 2) for entry in ignore), default=0)
