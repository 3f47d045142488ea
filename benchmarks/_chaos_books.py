"""The reckoning: what callers said against what the sessions' histories hold, what was answered against what was played."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import attrs
from _chaos_caller import Caller
from _chaos_words import WORD_SAMPLES, read

CLIPPED, STRETCHED = 0.95, 1.05


@attrs.define
class Books:
    """Sums over all callers; `notes` tells of each thing that was lost."""

    sessions: int = 0
    lost_sessions: int = 0
    utterances: int = 0
    turns_lost: int = 0
    turns_unanswered: int = 0
    words: int = 0
    words_lost: int = 0
    words_clipped: int = 0
    words_doubled: int = 0
    foreign: int = 0
    replies: int = 0
    reply_words: int = 0
    reply_words_lost: int = 0
    reply_words_clipped: int = 0
    reply_words_doubled: int = 0
    interrupted: int = 0
    notes: list[str] = attrs.field(factory=list)

    def row(self) -> str:
        return (
            f"sessions {self.sessions}, lost {self.lost_sessions}; turns {self.utterances}, lost {self.turns_lost}, "
            f"unanswered {self.turns_unanswered}\n"
            f"words said {self.words}: lost {self.words_lost}, clipped {self.words_clipped}, "
            f"doubled {self.words_doubled}, in another's session {self.foreign}\n"
            f"reply words told {self.reply_words} (replies interrupted {self.interrupted}): "
            f"not played {self.reply_words_lost}, clipped {self.reply_words_clipped}, played twice {self.reply_words_doubled}"
        )


def reckon(callers: Sequence[Caller], told: Iterable[dict[str, Any]]) -> Books:
    """Compare what the callers know with what the servers wrote."""
    by_session: dict[str, list[dict[str, Any]]] = {}
    for line in told:
        if "session" in line:
            by_session.setdefault(line["session"], []).append(line)
    books = Books()
    for caller in callers:
        _one(books, caller, by_session.get(caller.session_id, []))
    return books


def history_of(lines: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What was said in all: the history at the last end, or all finished turns of a session that was not closed."""
    ends = [line for line in lines if line["event"] == "closed"]
    kept = [line for line in ends if line["reason"] != "replaced"] or ends
    if kept:
        return [(role, text) for role, text in kept[-1]["history"]]
    turns = [line for line in lines if line["event"] == "turn_finished"]
    return [part for line in turns for part in (("user", line["user"]), ("assistant", line["heard"])) if part[1]]


def _one(books: Books, caller: Caller, lines: list[dict[str, Any]]) -> None:
    name = f"caller {caller.number} ({caller.session_id[:6]})"
    books.sessions += 1
    if caller.failure or caller.end_reason != "bye":
        books.lost_sessions += 1
        books.notes.append(f"{name}: ended {caller.end_reason!r} {caller.close_reason!r} {caller.failure}")
    history = history_of(lines)
    heard = _samples(text for role, text in history if role == "user")
    answered = {word for role, text in history if role == "assistant" for word, _ in read(text)}
    said = [word for utterance in caller.said for word in utterance.words]
    books.utterances += len(caller.said)
    books.words += len(said)
    for word in said:
        share = heard[word] / WORD_SAMPLES
        books.words_lost += share < 0.5
        books.words_clipped += 0.5 <= share < CLIPPED
        books.words_doubled += share > STRETCHED
        if not CLIPPED <= share <= STRETCHED:
            books.notes.append(f"{name}: word {word} heard {share:.2f} times")
    books.foreign += len(set(heard) - set(said))
    for utterance in caller.said:
        if not any(heard[word] for word in utterance.words):
            books.turns_lost += 1
            books.notes.append(f"{name}: turn {utterance.words[0]}-{utterance.words[-1]} lost")
        elif not answered & set(utterance.words) or not utterance.answered:
            books.turns_unanswered += 1
            by = "history" if not answered & set(utterance.words) else "client"
            books.notes.append(f"{name}: turn {utterance.words[0]}-{utterance.words[-1]} not answered, says the {by}")
    _replies(books, caller, name, history, lines)


def _replies(
    books: Books, caller: Caller, name: str, history: list[tuple[str, str]], lines: list[dict[str, Any]]
) -> None:
    books.interrupted += sum(line["event"] == "interrupted" for line in lines)
    wanted = _samples(text for role, text in history if role == "assistant")
    warm = any(line["event"] == "resumed" and line["kind"] == "warm" for line in lines)  # it begins an open answer again
    played: Counter[int] = Counter()
    for word, length in caller.played:
        played[word] += length
    books.replies += sum(role == "assistant" for role, _ in history)
    books.reply_words += sum(count // WORD_SAMPLES for count in wanted.values())
    for word in set(wanted) | set(played):
        off = (played[word] - wanted[word]) / WORD_SAMPLES
        if abs(off) > 1 - CLIPPED:
            books.reply_words_lost += off <= -0.5
            books.reply_words_clipped += -0.5 < off < 0
            books.reply_words_doubled += off > 0
            if off < 0 or not warm:
                books.notes.append(
                    f"{name}: reply word {word} played {played[word] / WORD_SAMPLES:.2f} times, "
                    f"told {wanted[word] // WORD_SAMPLES}"
                )


def _samples(texts: Iterable[str]) -> Counter[int]:
    samples: Counter[int] = Counter()
    for text in texts:
        for word, length in read(text):
            samples[word] += length
    return samples


def share(values: Sequence[float], part: float) -> float:
    """The smallest value that at least `part` of them do not exceed; 0 of nothing."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, int(part * len(ordered) + 0.999999) - 1))] if ordered else 0.0
