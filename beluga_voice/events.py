"""What a session tells its listeners: events as they happen, and a record of every turn."""

from __future__ import annotations

from typing import Any

import attrs

__all__ = ["SessionEvent", "Turn", "TurnRecord"]


@attrs.frozen
class SessionEvent:
    """Something that happened in a session.

    Attributes:
        name: "opened", "state", "speech_started", "speech_ended", "turn_started", "turn_end_proposed",
            "turn_end_withdrawn", "turn_ended", "transcript", "turn_heard", "turn_reopened", "turn_empty",
            "reply_started", "reply_text", "reply_audio", "reply_paused", "reply_resumed", "interrupted", "reply_ended",
            "turn_finished", "dtmf", "tool", "filler", "handed_over", "usage", "retried", "failed_over", "provider_health",
            "line_lost", "resumed", "goaway", "error", "warning", "closing", "closed".
        at_ms: when, in ms since the session began.
        turn: the turn it belongs to; -1 for none.
        data: what else is known, by name; times end in `_ms`.
    """

    name: str
    at_ms: float
    turn: int = -1
    data: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class TurnRecord:
    """One finished turn: what was said, heard and answered, and how long each part took.

    Times are in ms since the session began; latencies in ms, None where the part did not happen, or began before the one
    before it was over (a speech-to-speech model may speak before it tells its words). Speech ends where the VAD saw it end,
    less its hangover, and never after the decision. `e2e_latency_ms` (end of speech to first audio sent) is the sum of
    `endpointing_ms` (to the decision), `stt_latency_ms` (to the text), `agent_latency_ms` (to its first words),
    `tts_latency_ms` (to its first audio) and `send_latency_ms`, where there are all of them. `stt_provider` and `tts_provider`
    are those that served the turn, the last ones where it took several; empty where none did.
    """

    index: int
    user_text: str
    agent_text: str
    heard_text: str
    started_ms: float
    speech_start_ms: float | None
    speech_end_ms: float | None
    endpointing_ms: float | None
    stt_latency_ms: float | None
    agent_latency_ms: float | None
    tts_latency_ms: float | None
    send_latency_ms: float | None
    e2e_latency_ms: float | None
    interrupted: bool
    source: str = ""
    reopened: int = 0
    stt_provider: str = ""
    tts_provider: str = ""


@attrs.define(eq=False)
class Turn:
    """A turn under way: the user's words so far and the moments its latencies are made of (ms since the session began)."""

    index: int
    started_ms: float
    source: str = ""
    speech_start_ms: float | None = None
    speech_end_ms: float | None = None
    finals: list[str] = attrs.field(factory=list)
    seq: int = -1
    owed: int = 0
    reopened: int = 0
    stt_provider: str = ""
    tts_provider: str = ""
    ended_ms: float | None = None
    text_ms: float | None = None
    words_ms: float | None = None
    audio_ms: float | None = None
    sent_ms: float | None = None

    @property
    def text(self) -> str:
        """The user's words so far."""
        return " ".join(text for text in self.finals if text)

    def begin_reply(self, now_ms: float) -> None:
        """The words are known; what an earlier, cancelled reply measured is void."""
        self.text_ms = now_ms
        self.words_ms = self.audio_ms = self.sent_ms = None

    def record(self, agent_text: str, heard_text: str, interrupted: bool) -> TurnRecord:
        """The turn as it went."""
        return TurnRecord(
            index=self.index,
            user_text=self.text,
            agent_text=agent_text,
            heard_text=heard_text,
            started_ms=self.started_ms,
            speech_start_ms=self.speech_start_ms,
            speech_end_ms=self.speech_end_ms,
            endpointing_ms=_between(self.speech_end_ms, self.ended_ms),
            stt_latency_ms=_between(self.ended_ms, self.text_ms),
            agent_latency_ms=_between(self.text_ms, self.words_ms),
            tts_latency_ms=_between(self.words_ms, self.audio_ms),
            send_latency_ms=_between(self.audio_ms, self.sent_ms),
            e2e_latency_ms=_between(self.ended_ms if self.speech_end_ms is None else self.speech_end_ms, self.sent_ms),
            interrupted=interrupted,
            source=self.source,
            reopened=self.reopened,
            stt_provider=self.stt_provider,
            tts_provider=self.tts_provider,
        )


def _between(start_ms: float | None, end_ms: float | None) -> float | None:
    return None if start_ms is None or end_ms is None or end_ms < start_ms else round(end_ms - start_ms, 3)
