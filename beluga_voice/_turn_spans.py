"""The spans of one turn: the turn's own, those of its parts, and how it went."""

from __future__ import annotations

import json
from collections.abc import Callable

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, StatusCode

from .events import SessionEvent, TurnRecord
from .frames import ToolCalled, ToolReturned

__all__ = ["TurnSpans", "error_type"]

TEXT_LIMIT = 4_096
SAME_MS = 1.0
RECORDED = ("endpointing_ms", "stt_latency_ms", "agent_latency_ms", "tts_latency_ms", "send_latency_ms", "e2e_latency_ms")
OF_A_CASCADE = {"stt_latency_ms", "agent_latency_ms", "tts_latency_ms"}


def error_type(error: object) -> str:
    """An error's class, never its message: that may hold what was said, or a secret."""
    return type(error).__qualname__ if isinstance(error, BaseException) else "_OTHER"


class TurnSpans:
    """One turn: its span, those of its parts, and how it went.

    Attributes:
        index: of the turn.
        span: the `voice.turn` span; `context` has it as the parent of others.
        outcome: "completed", "interrupted", "empty", "failed" or "abandoned", once it is over.
        record: the session's record of it, if it made one.
        agent_ms: what the agent took to its last words.
        s2s_ms: what a speech-to-speech model took to its first audio.
    """

    def __init__(self, index: int, span: Span, begin: Callable[..., Span], at: Callable[[float], int]) -> None:
        self.index, self.span = index, span
        self.context = trace.set_span_in_context(span, Context())
        self.outcome = ""
        self.record: TurnRecord | None = None
        self.agent_ms: float | None = None
        self.s2s_ms: float | None = None
        self.failed = self.deaf = self.interrupted = self.replied = False
        self._begin, self._at = begin, at
        self._open: dict[str, Span] = {}
        self._tools: dict[str, Span] = {}
        self._speech_end_ms: float | None = None
        self._heard_ms = self._active_ms = 0.0
        self._reply: int | None = None
        self._words = self._audio = self._sounds = False

    @property
    def agent_context(self) -> Context:
        """The parent of what the agent does."""
        agent = self._open.get("agent") or self._open.get("s2s")
        return self.context if agent is None else trace.set_span_in_context(agent, Context())

    def note(self, name: str, at_ms: float, **attributes: str | float) -> None:
        """Something that happened in the turn."""
        self.span.add_event(name, attributes or None, self._at(at_ms))

    def speech_ended(self, end_ms: float | None) -> None:
        """Speech ended at `end_ms`; said twice, it counts once."""
        if end_ms is None or (self._speech_end_ms is not None and abs(end_ms - self._speech_end_ms) < SAME_MS):
            return
        self._speech_end_ms = end_ms
        self.note("speech_end", end_ms)

    def ended(self, event: SessionEvent, part: str) -> None:
        """The caller's turn is over: `part` ("stt", "s2s", or none) is what is waited for."""
        self.speech_ended(event.data.get("speech_end_ms"))
        self.note("eot", event.at_ms, source=event.data.get("source", ""))
        self.begin_part(part, event.at_ms)
        self._begin_reply(event.at_ms)

    def heard(self, at_ms: float) -> None:
        """The words are known, and the agent is asked."""
        self.end_part("stt", at_ms)
        self._begin_reply(at_ms)
        self.begin_part("agent", at_ms)

    def _begin_reply(self, at_ms: float) -> None:
        self._heard_ms = self._active_ms = at_ms
        self._reply = None
        self._words = self._audio = self._sounds = self.replied = self.failed = False

    def words(self, event: SessionEvent) -> None:
        """The reply has more words; the first ones are handed to the voice."""
        if self._reply is None:
            self._reply = event.data["reply"]
            self.end_part("stt", event.at_ms)
        if self._reply == event.data["reply"]:
            self._active_ms = event.at_ms
        if not self._words:
            self._words = True
            self.note("first_token", event.at_ms)
        if not self._sounds and "s2s" not in self._open:
            self.begin_part("tts", event.at_ms)

    def audio(self, at_ms: float) -> None:
        """The voice gave its first audio."""
        if not self._audio:
            self._audio = True
            self.note("first_audio", at_ms)
        if "s2s" in self._open:
            self.s2s_ms = at_ms - self._heard_ms
        self._sounds = True
        self.end_part("tts", at_ms)

    def reply_ended(self, event: SessionEvent) -> None:
        """A reply is over: spoken, failed or cut."""
        cut = event.data["interrupted"]
        self.replied = True
        if self._sounds:
            self.note("playout_end", event.at_ms)
        self._sounds = False
        self.end_part("tts", event.at_ms, cancelled=cut)
        self._end_agent(event.at_ms, cut)

    def _end_agent(self, at_ms: float, cut: bool) -> None:
        for span in self._tools.values():
            span.set_attribute("voice.cancelled", True)
            span.end(self._at(at_ms))
        self._tools.clear()
        waited_for = self._active_ms == self._heard_ms and not self._words
        end_ms = at_ms if waited_for else self._active_ms
        if "agent" in self._open and not waited_for:
            self.agent_ms = end_ms - self._heard_ms
        self.end_part("agent", end_ms, cancelled=cut and waited_for)
        self.end_part("s2s", end_ms, cancelled=cut and waited_for)

    def tool(self, frame: ToolCalled | ToolReturned, at_ms: float, private_text: bool) -> None:
        """The agent called a tool, or one returned."""
        self._active_ms = at_ms
        if isinstance(frame, ToolCalled):
            attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": frame.name}
            span = self._begin(f"execute_tool {frame.name}", self.agent_context, at_ms, attributes)
            if private_text:
                span.set_attribute("voice.pii.tool_arguments", _shown(frame.arguments))
            self._tools[frame.call_id] = span
            return
        done = self._tools.pop(frame.call_id, None)
        if done is None:
            return
        if frame.error:
            done.set_status(StatusCode.ERROR)
            done.set_attribute("error.type", "tool_error")
        if private_text:
            done.set_attribute("voice.pii.tool_result", _shown(frame.error or frame.result))
        done.end(self._at(at_ms))

    def error(self, kind: str, error: object, at_ms: float) -> None:
        """A part failed; what becomes of the turn is decided at its end."""
        if kind == "stt":
            self.deaf = True
        else:
            self.failed = True
        part = self._open.get(kind)
        for span in (self.span, part):
            if span is not None:
                span.set_attribute("error.type", error_type(error))
        if part is not None:
            part.set_status(StatusCode.ERROR)
            self.end_part(kind, at_ms)

    def reopened(self, event: SessionEvent) -> None:
        """The caller goes on; what was done for an answer is void."""
        self._cancel(event.at_ms)
        self._begin_reply(event.at_ms)
        self.note("reopened", event.at_ms)

    def _cancel(self, at_ms: float) -> None:
        self._end_agent(at_ms, True)
        for part in tuple(self._open):
            self.end_part(part, at_ms, cancelled=True)

    def finish(self, at_ms: float, record: TurnRecord | None, outcome: str, private_text: bool, cascade: bool) -> None:
        """The turn is over: by `record`, or as `outcome` says."""
        self._cancel(at_ms)
        self.record, self.outcome = record, outcome or self._judged(record)
        span = self.span
        span.set_attribute("voice.turn.outcome", self.outcome)
        if self.outcome == "failed":
            span.set_status(StatusCode.ERROR)
        if record is not None:
            span.set_attributes(_recorded(record, cascade))
            if private_text:
                for name in ("user_text", "agent_text", "heard_text"):
                    span.set_attribute(f"voice.pii.{name}", getattr(record, name)[:TEXT_LIMIT])
        if self.s2s_ms is not None:
            span.set_attribute("voice.s2s_latency_ms", self.s2s_ms)
        span.end(self._at(at_ms))

    def _judged(self, record: TurnRecord | None) -> str:
        if self.interrupted:
            return "interrupted"
        if record is None or record.interrupted or not self.replied:
            return "abandoned"
        return "failed" if self.failed or (self.deaf and not record.user_text) else "completed"

    def served_by(self, kind: str, provider: str) -> None:
        """Another provider goes on with a part of the turn."""
        if kind in self._open:
            self._open[kind].set_attribute("voice.provider", provider)

    # --- the spans of its parts --------------------------------------------------------------------------------------

    def begin_part(self, part: str, at_ms: float) -> None:
        """Begin the span of a part of the turn, unless it is under way."""
        if part and part not in self._open:
            self._open[part] = self._begin(f"voice.{part}", self.context, at_ms, part=part)

    def end_part(self, part: str, at_ms: float, *, cancelled: bool = False) -> None:
        """End it, if it is under way."""
        span = self._open.pop(part, None)
        if span is not None:
            if cancelled:
                span.set_attribute("voice.cancelled", True)
            span.end(self._at(at_ms))


def _recorded(record: TurnRecord, cascade: bool) -> dict[str, str | int | float | bool]:
    """A record as attributes; a speech-to-speech model has no parts to tell apart."""
    told: dict[str, str | int | float | bool] = {
        "voice.turn.source": record.source,
        "voice.turn.reopened": record.reopened,
        "voice.interrupted": record.interrupted,
        "voice.heard_chars": len(record.heard_text),
    }
    for name in ("stt_provider", "tts_provider"):
        if getattr(record, name):
            told[f"voice.{name}"] = getattr(record, name)
    for name in RECORDED:
        value = getattr(record, name)
        if value is not None and (cascade or name not in OF_A_CASCADE):
            told[f"voice.{name}"] = value
    return told


def _shown(value: object) -> str:
    return json.dumps(value, default=repr, ensure_ascii=False)[:TEXT_LIMIT]
