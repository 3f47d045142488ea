"""What happened from when to when in a call, read from its report: what a timeline draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

__all__ = ["Reply", "Span", "Spans", "Turn", "spans"]


@attrs.frozen
class Span:
    """From `start_ms` to `end_ms`, with words to it."""

    start_ms: float
    end_ms: float
    text: str = ""

    @property
    def duration_ms(self) -> float:
        """How long it lasted."""
        return self.end_ms - self.start_ms


@attrs.define(eq=False)
class Reply:
    """One reply: when it was asked for, written, spoken and played."""

    number: int
    turn: int
    asked_ms: float
    text: str = ""
    first_text_ms: float | None = None
    last_text_ms: float | None = None
    audio_ms: float | None = None
    started_ms: float | None = None
    ended_ms: float | None = None
    cut: bool = False
    paused: list[Span] = attrs.field(factory=list)


@attrs.define(eq=False)
class Turn:
    """One turn of the caller: where it is drawn, and how long the caller waited for the first sound of the reply."""

    index: int
    start_ms: float
    end_ms: float
    speech_end_ms: float | None = None
    sent_ms: float | None = None
    reopened_ms: list[float] = attrs.field(factory=list)


@attrs.define(eq=False)
class Spans:
    """All of a call.

    Attributes:
        speech: what the VAD heard as speech.
        waits: from the end of speech to the decision that the turn is over.
        early: transcription begun before that decision.
        stt: from the decision to the text.
        turns: the caller's turns, in order.
        replies: the agent's replies.
        faults: errors, without length.
    """

    speech: list[Span] = attrs.field(factory=list)
    waits: list[Span] = attrs.field(factory=list)
    early: list[Span] = attrs.field(factory=list)
    stt: list[Span] = attrs.field(factory=list)
    turns: list[Turn] = attrs.field(factory=list)
    replies: list[Reply] = attrs.field(factory=list)
    faults: list[Span] = attrs.field(factory=list)


def spans(facts: Mapping[str, Any]) -> Spans:
    """Read the events and turns of a report."""
    reader = _Reader(facts["duration_ms"])
    for event in facts["events"]:
        reader.read(event)
    reader.close()
    for turn in facts["turns"]:
        reader.place(turn)
    reader.found.turns.sort(key=lambda turn: turn.start_ms)
    return reader.found


class _Reader:
    def __init__(self, duration_ms: float) -> None:
        self.found = Spans()
        self._duration_ms = duration_ms
        self._speech_ms: float | None = None
        self._ended_ms: float | None = None
        self._speech_end_ms: float | None = None
        self._proposed_ms: float | None = None
        self._paused: dict[int, float] = {}
        self._asked_ms = 0.0
        self._replies: dict[int, Reply] = {}
        self._reopened: dict[int, list[float]] = {}
        self._handlers: dict[str, Callable[[float, int, Mapping[str, Any]], None]] = {
            "speech_started": self._speech_started,
            "speech_ended": self._speech_ended,
            "turn_end_proposed": self._turn_end_proposed,
            "turn_ended": self._turn_ended,
            "transcript": self._transcript,
            "turn_reopened": self._turn_reopened,
            "reply_text": self._reply_text,
            "reply_audio": self._reply_audio,
            "reply_started": self._reply_started,
            "reply_paused": self._reply_paused,
            "reply_resumed": self._reply_resumed,
            "reply_ended": self._reply_ended,
            "error": self._error,
        }

    def read(self, event: Mapping[str, Any]) -> None:
        handler = self._handlers.get(event["name"])
        if handler is not None:
            handler(event["at_ms"], event["turn"], event["data"])

    def close(self) -> None:
        """The call is over, and with it what was still going on."""
        if self._speech_ms is not None:
            self.found.speech.append(Span(self._speech_ms, self._duration_ms))
        for reply in self._replies.values():
            if reply.started_ms is not None and reply.ended_ms is None:
                self._end_reply(reply, self._duration_ms, cut=True)

    def place(self, turn: Mapping[str, Any]) -> None:
        """A finished turn, from its first sound to its reply's last."""
        start_ms = turn["speech_start_ms"] if turn["speech_start_ms"] is not None else turn["started_ms"]
        replies = [reply for reply in self.found.replies if reply.turn == turn["index"]]
        ends = [reply.ended_ms for reply in replies if reply.ended_ms is not None]
        speech_end_ms, e2e_ms = turn["speech_end_ms"], turn["e2e_latency_ms"]
        end_ms = max([start_ms, *ends, *([speech_end_ms] if speech_end_ms is not None else [])])
        shown = Turn(turn["index"], start_ms, end_ms, speech_end_ms)
        if speech_end_ms is not None and e2e_ms is not None:
            shown.sent_ms = speech_end_ms + e2e_ms
        shown.reopened_ms = self._reopened.get(turn["index"], [])
        self.found.turns.append(shown)

    # --- the caller --------------------------------------------------------------------------------------------------

    def _speech_started(self, at_ms: float, turn: int, data: Mapping[str, Any]) -> None:
        self._speech_ms = data["speech_start_ms"]
        self._proposed_ms = None

    def _speech_ended(self, at_ms: float, turn: int, data: Mapping[str, Any]) -> None:
        if self._speech_ms is not None:
            self.found.speech.append(Span(self._speech_ms, data["speech_end_ms"]))
        self._speech_ms, self._speech_end_ms = None, at_ms

    def _turn_end_proposed(self, at_ms: float, turn: int, data: Mapping[str, Any]) -> None:
        self._proposed_ms = at_ms

    def _turn_ended(self, at_ms: float, turn: int, data: Mapping[str, Any]) -> None:
        if data["speech_end_ms"] is not None:
            self.found.waits.append(Span(data["speech_end_ms"], at_ms))
        self._ended_ms = self._asked_ms = at_ms
        self._speech_end_ms = None

    def _transcript(self, at_ms: float, turn: int, data: Mapping[str, Any]) -> None:
        if not data["is_final"]:
            if self._proposed_ms is not None:
                self.found.early.append(Span(self._proposed_ms, at_ms))
            self._proposed_ms = None
            return
        start_ms = self._ended_ms if self._ended_ms is not None else self._speech_end_ms
        self.found.stt.append(Span(at_ms if start_ms is None else start_ms, at_ms, data["text"]))
        self._ended_ms, self._asked_ms = None, at_ms

    def _turn_reopened(self, at_ms: float, turn: int, data: Mapping[str, Any]) -> None:
        self._reopened.setdefault(turn, []).append(at_ms)
        for reply in self._replies.values():
            if reply.turn == turn and reply.started_ms is not None and reply.ended_ms is None:
                self._end_reply(reply, at_ms, cut=True)

    # --- the agent ---------------------------------------------------------------------------------------------------

    def _reply(self, turn: int, data: Mapping[str, Any], at_ms: float) -> Reply:
        number = data["reply"]
        if number not in self._replies:
            reply = Reply(number, turn, self._asked_ms if turn >= 0 else at_ms)
            self._replies[number] = reply
            self.found.replies.append(reply)
        return self._replies[number]

    def _reply_text(self, at_ms: float, turn: int, data: Mapping[str, Any]) -> None:
        reply = self._reply(turn, data, at_ms)
        reply.text += data["text"]
        reply.first_text_ms = at_ms if reply.first_text_ms is None else reply.first_text_ms
        reply.last_text_ms = at_ms

    def _reply_audio(self, at_ms: float, turn: int, data: Mapping[str, Any]) -> None:
        self._reply(turn, data, at_ms).audio_ms = at_ms

    def _reply_started(self, at_ms: float, turn: int, data: Mapping[str, Any]) -> None:
        self._reply(turn, data, at_ms).started_ms = at_ms

    def _reply_paused(self, at_ms: float, turn: int, data: Mapping[str, Any]) -> None:
        self._paused[data["reply"]] = at_ms

    def _reply_resumed(self, at_ms: float, turn: int, data: Mapping[str, Any]) -> None:
        self._end_pause(self._reply(turn, data, at_ms), at_ms)

    def _end_pause(self, reply: Reply, at_ms: float) -> None:
        """A reply may be paused before its first sound; what is drawn begins with that."""
        paused_ms = self._paused.pop(reply.number, None)
        if paused_ms is not None and reply.started_ms is not None:
            reply.paused.append(Span(max(paused_ms, reply.started_ms), at_ms))

    def _reply_ended(self, at_ms: float, turn: int, data: Mapping[str, Any]) -> None:
        reply = self._replies.get(data["reply"])
        if reply is not None and reply.ended_ms is None:
            self._end_reply(reply, at_ms, cut=data["interrupted"])

    def _end_reply(self, reply: Reply, at_ms: float, *, cut: bool) -> None:
        reply.ended_ms, reply.cut = at_ms, cut
        self._end_pause(reply, at_ms)

    def _error(self, at_ms: float, turn: int, data: Mapping[str, Any]) -> None:
        self.found.faults.append(Span(at_ms, at_ms, f"{data['stage']}: {data['message']}"))
