"""The spans of one session, made from its events alone.

A turn is a trace of its own, linked to the session's span: a session may last an hour, and a trace can be judged, sampled and
shown only when it is whole. No span is ever made current here; each gets its parent, its start and its end by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ._turn_spans import TurnSpans, error_type
from .errors import AgentError, ProviderError
from .events import SessionEvent, TurnRecord

__all__ = ["KINDS", "SessionSpans", "kind_of"]

KINDS = ("vad", "turn", "stt", "agent", "tts", "s2s")
IN_TURN = {"listening", "processing", "responding"}


def kind_of(stage: str, error: object, providers: Mapping[str, str]) -> str:
    """The kind ("stt", "tts", ...) that an error event's stage is of; "other" for none."""
    if isinstance(error, ProviderError) and error.kind:
        return error.kind
    if isinstance(error, AgentError):
        return "agent"
    return next((kind for kind, name in providers.items() if stage in (kind, name)), "other")


class SessionSpans:
    """Makes the spans of one session out of its events: call it with each.

    Args:
        tracer: makes the spans.
        epoch_ns: reads the time of day, once.
        private_text: put what was said, and who said it, under `voice.pii.*`.
        on_turn: told of every turn that is over.
        session: whose user and remote trace are known, if given.
    """

    def __init__(
        self,
        tracer: Tracer,
        epoch_ns: Callable[[], int],
        *,
        private_text: bool,
        on_turn: Callable[[TurnSpans], None],
        session: Any = None,
    ) -> None:
        self._tracer, self._epoch_ns, self._private_text, self._on_turn = tracer, epoch_ns, private_text, on_turn
        self._user_id: str = getattr(session, "user_id", "")
        self.session_id = ""
        self._parent = _remote(getattr(session, "metadata", None) or {})
        self._zero_ns = 0
        self._common: dict[str, str] = {}
        self._providers: dict[str, str] = {}  # who serves now, by kind
        self._preferred: dict[str, str] = {}
        self._cascade = True
        self._span: Span = trace.INVALID_SPAN
        self._context = Context()
        self._turns: dict[int, TurnSpans] = {}
        self._count = 0
        self._hearing: TurnSpans | None = None
        self._asked: TurnSpans | None = None
        self._onset_ms: float | None = None
        self._lost: Span | None = None

    def __call__(self, event: SessionEvent) -> None:
        handler = _HANDLERS.get(event.name)
        if handler is not None:
            handler(self, event)

    @property
    def context(self) -> Context:
        """The parent of what the agent does now."""
        return self._context if self._asked is None else self._asked.agent_context

    # --- the session -------------------------------------------------------------------------------------------------

    def _opened(self, event: SessionEvent) -> None:
        data = event.data
        self.session_id = data["session_id"]
        self._zero_ns = self._epoch_ns() - round(event.at_ms * 1e6)
        self._providers = {kind: name for kind, name in data["providers"].items() if kind in KINDS}
        self._preferred = dict(self._providers)  # as stages are called
        self._cascade = data["mode"] != "s2s"
        self._common = {"session.id": self.session_id, "gen_ai.conversation.id": self.session_id}
        attributes = {
            "voice.transport": data["transport"],
            "voice.mode": data["mode"],
            "voice.resumed": data["resumed"],
            **{f"voice.{kind}_provider": name for kind, name in self._providers.items()},
        }
        if self._private_text and self._user_id:
            attributes["voice.pii.user_id"] = self._user_id
        self._span = self._begin("voice.session", self._parent, event.at_ms, attributes)
        self._context = trace.set_span_in_context(self._span, Context())

    def _state(self, event: SessionEvent) -> None:
        """Moves within turns are to be seen in the turns' own spans, and would crowd an hour's span."""
        moved = {"from": event.data["old"], "to": event.data["state"]}
        if not set(moved.values()) <= IN_TURN:
            self._span.add_event("state", moved, self._at(event.at_ms))

    def _goaway(self, event: SessionEvent) -> None:
        self._span.add_event("goaway", {"voice.deadline_ms": event.data["deadline_ms"]}, self._at(event.at_ms))

    def _handed_over(self, event: SessionEvent) -> None:
        """The other chain of a hybrid goes on."""
        self._cascade = event.data["new"] != "s2s"
        moved = {"from": event.data["old"], "to": event.data["new"], "voice.why": event.data["why"]}
        self._span.add_event("handed_over", moved, self._at(event.at_ms))

    def _line_lost(self, event: SessionEvent) -> None:
        self._end_lost(event.at_ms, "failed")
        self._lost = self._begin("voice.reconnect", self._context, event.at_ms)

    def _resumed(self, event: SessionEvent) -> None:
        self._end_lost(event.at_ms, event.data["kind"])

    def _end_lost(self, at_ms: float, outcome: str) -> None:
        lost, self._lost = self._lost, None
        if lost is not None:
            lost.set_attribute("voice.reconnect.outcome", outcome)
            if outcome == "failed":
                lost.set_status(StatusCode.ERROR)
            lost.end(self._at(at_ms))

    def _closed(self, event: SessionEvent) -> None:
        for index in tuple(self._turns):
            self._finish(index, event.at_ms, None, "abandoned")
        self._end_lost(event.at_ms, "failed")
        self._span.set_attributes({"voice.end_reason": event.data["reason"], "voice.turn_count": self._count})
        if event.data["reason"] == "error":
            self._span.set_status(StatusCode.ERROR)
        self._span.end(self._at(event.at_ms))

    # --- turns -------------------------------------------------------------------------------------------------------

    def _turn(self, event: SessionEvent) -> TurnSpans | None:
        return self._turns.get(event.turn)

    def _turn_started(self, event: SessionEvent) -> TurnSpans:
        self._finish(event.turn, event.at_ms, None, "abandoned")
        start_ms = event.at_ms if self._onset_ms is None else min(event.at_ms, self._onset_ms)
        attributes: dict[str, Any] = {"voice.turn.index": event.turn}
        for kind in ("stt", "tts") if self._cascade else ("s2s",):
            if kind in self._providers:
                attributes[f"voice.{kind}_provider"] = self._providers[kind]
        link = Link(self._span.get_span_context())
        span = self._begin("voice.turn", Context(), start_ms, attributes, links=[link])
        turn = TurnSpans(event.turn, span, self._begin, self._at)
        self._turns[event.turn] = self._hearing = turn
        self._count += 1
        if self._onset_ms is not None:
            turn.note("speech_start", self._onset_ms)
        return turn

    def _speech_started(self, event: SessionEvent) -> None:
        self._onset_ms = event.data["speech_start_ms"]
        if self._hearing is not None:
            self._hearing.note("speech_start", event.data["speech_start_ms"])

    def _speech_ended(self, event: SessionEvent) -> None:
        self._onset_ms = None
        if self._hearing is not None:
            self._hearing.speech_ended(event.data["speech_end_ms"])

    def _turn_ended(self, event: SessionEvent) -> None:
        turn = self._turn(event) or self._turn_started(event)
        self._hearing, self._asked = None, turn
        typed = event.data.get("source") == "text"
        turn.ended(event, "s2s" if not self._cascade else "" if typed else "stt")

    def _turn_heard(self, event: SessionEvent) -> None:
        turn = self._asked = self._turn(event) or self._turn_started(event)
        if self._cascade:
            turn.heard(event.at_ms)

    def _turn_reopened(self, event: SessionEvent) -> None:
        turn = self._hearing = self._turn(event) or self._turn_started(event)
        turn.reopened(event)
        if self._onset_ms is not None:
            turn.note("speech_start", self._onset_ms)

    def _turn_empty(self, event: SessionEvent) -> None:
        self._finish(event.turn, event.at_ms, None, "empty")

    def _turn_finished(self, event: SessionEvent) -> None:
        if event.turn not in self._turns:
            self._turn_started(event)
        self._finish(event.turn, event.at_ms, event.data["record"], "")

    def _finish(self, index: int, at_ms: float, record: TurnRecord | None, outcome: str) -> None:
        turn = self._turns.pop(index, None)
        if turn is None:
            return
        self._hearing = None if self._hearing is turn else self._hearing
        self._asked = None if self._asked is turn else self._asked
        turn.finish(at_ms, record, outcome, self._private_text, self._cascade)
        self._on_turn(turn)

    # --- replies -----------------------------------------------------------------------------------------------------

    def _reply_text(self, event: SessionEvent) -> None:
        if turn := self._turn(event):
            turn.words(event)

    def _reply_audio(self, event: SessionEvent) -> None:
        if turn := self._turn(event):
            turn.audio(event.at_ms)

    def _reply_started(self, event: SessionEvent) -> None:
        if turn := self._turn(event):
            turn.note("playout_start", event.at_ms)

    def _reply_ended(self, event: SessionEvent) -> None:
        if turn := self._turn(event):
            turn.reply_ended(event)

    def _interrupted(self, event: SessionEvent) -> None:
        if turn := self._turn(event):
            turn.interrupted = True
            turn.note("interrupt", event.at_ms, source=event.data["source"], played_ms=event.data["played_ms"])

    def _tool(self, event: SessionEvent) -> None:
        if turn := self._turn(event):
            turn.tool(event.data["tool"], event.at_ms, self._private_text)

    def _error(self, event: SessionEvent) -> None:
        error = event.data["error"]
        kind = kind_of(event.data["stage"], error, self._preferred)
        if turn := self._turn(event):
            turn.error(kind, error, event.at_ms)
        else:
            told = {"error.type": error_type(error), "voice.kind": kind}
            self._span.add_event("error", told, self._at(event.at_ms))

    def _retried(self, event: SessionEvent) -> None:
        data = event.data
        told = {"voice.kind": data["kind"], "voice.provider": data["provider"], "error.type": error_type(data["error"])}
        self._note(event, "retry", {**told, "voice.attempt": data["attempt"]})

    def _failed_over(self, event: SessionEvent) -> None:
        data = event.data
        kind, new = data["kind"], data["new"]
        self._providers[kind] = new
        told = {"voice.kind": kind, "voice.from": data["old"], "voice.to": new}
        if data["error"] is not None:
            told["error.type"] = error_type(data["error"])
        self._note(event, "failover", told)
        if turn := self._turn(event):
            turn.served_by(kind, new)

    def _note(self, event: SessionEvent, name: str, told: Mapping[str, str | int]) -> None:
        """Something that happened, in the span of its turn or else of the session."""
        turn = self._turn(event)
        span = self._span if turn is None else turn.span
        span.add_event(name, told, self._at(event.at_ms))

    # --- making spans ------------------------------------------------------------------------------------------------

    def _at(self, at_ms: float) -> int:
        return self._zero_ns + round(at_ms * 1e6)

    def _begin(
        self,
        name: str,
        parent: Context,
        at_ms: float,
        attributes: Mapping[str, Any] | None = None,
        *,
        part: str = "",
        links: list[Link] | None = None,
    ) -> Span:
        given = {**self._common, **(attributes or {})}
        if part in self._providers:
            given["voice.provider"] = self._providers[part]
        if part == "agent":
            given["gen_ai.operation.name"] = "invoke_agent"
        return self._tracer.start_span(name, parent, attributes=given, links=links, start_time=self._at(at_ms))


_HANDLERS: dict[str, Callable[[SessionSpans, SessionEvent], object]] = {
    "opened": SessionSpans._opened,
    "state": SessionSpans._state,
    "goaway": SessionSpans._goaway,
    "handed_over": SessionSpans._handed_over,
    "line_lost": SessionSpans._line_lost,
    "resumed": SessionSpans._resumed,
    "closed": SessionSpans._closed,
    "speech_started": SessionSpans._speech_started,
    "speech_ended": SessionSpans._speech_ended,
    "turn_started": SessionSpans._turn_started,
    "turn_ended": SessionSpans._turn_ended,
    "turn_heard": SessionSpans._turn_heard,
    "turn_reopened": SessionSpans._turn_reopened,
    "turn_empty": SessionSpans._turn_empty,
    "turn_finished": SessionSpans._turn_finished,
    "reply_text": SessionSpans._reply_text,
    "reply_audio": SessionSpans._reply_audio,
    "reply_started": SessionSpans._reply_started,
    "reply_ended": SessionSpans._reply_ended,
    "interrupted": SessionSpans._interrupted,
    "tool": SessionSpans._tool,
    "error": SessionSpans._error,
    "retried": SessionSpans._retried,
    "failed_over": SessionSpans._failed_over,
}


def _remote(metadata: Mapping[str, Any]) -> Context:
    """The trace that the caller is in, if it sent one as W3C `traceparent`."""
    sent = metadata.get("traceparent")
    return TraceContextTextMapPropagator().extract({"traceparent": sent}, Context()) if isinstance(sent, str) else Context()
