"""The metrics: one table of instruments for the process, and what one session's events tell them.

No label holds a session, a user, or anything that callers or models can make up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from ._spans import KINDS, kind_of
from ._turn_spans import TurnSpans, error_type
from .errors import ProviderError
from .events import SessionEvent
from .state import end_reason

__all__ = ["Instruments", "SessionMetrics"]

# In seconds. The SDK's own begin at 5, as if they were ms.
LATENCY_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8, 1, 1.25, 1.5, 2, 3, 5, 10)
RECONNECT_S = (0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 60)
SESSION_S = (1, 5, 10, 30, 60, 120, 300, 600, 1_200, 1_800, 3_600)

HISTOGRAMS = {
    "voice.turn.e2e_latency": (LATENCY_S, "From the end of the caller's speech to the first audio sent"),
    "voice.turn.endpointing_delay": (LATENCY_S, "From the end of the caller's speech to the decision that the turn is over"),
    "voice.stt.latency": (LATENCY_S, "From that decision to the turn's words"),
    "voice.stt.time_to_first_interim": (LATENCY_S, "From the beginning of speech to the first words of it"),
    "voice.agent.latency": (LATENCY_S, "From the turn's words to the agent's first words"),
    "voice.agent.duration": (LATENCY_S, "From the turn's words to the agent's last words"),
    "voice.tts.latency": (LATENCY_S, "From the agent's first words to the first audio"),
    "voice.s2s.latency": (LATENCY_S, "From the end of the turn to the first audio of a speech-to-speech model"),
    "voice.bargein.stop_latency": (LATENCY_S, "From the beginning of an interruption to the last audio sent"),
    "voice.reconnect.duration": (RECONNECT_S, "How long a line was lost"),
    "voice.session.duration": (SESSION_S, "From open to close"),
}
COUNTERS = {
    "voice.turns": "Turns that are over",
    "voice.interruptions": "Speech into a reply: true ones cut it, the others let it go on",
    "voice.sessions.started": "Sessions begun",
    "voice.sessions.ended": "Sessions over",
    "voice.reconnect.attempts": "Lost lines, by what became of them",
    "voice.provider.errors": "Work that failed, by the kind of engine",
    "voice.provider.retries": "Calls made again, by what the one before failed with",
    "voice.provider.failovers": "Another provider took over; without an error.type: back to the preferred one",
    "voice.provider.health": "Changes of a provider's breaker, by its new state",
    "voice.provider.usage": "What calls used, by unit",
    "voice.buffer.dropped": "What was dropped from a full or outdated queue",
    "voice.loop.held": "Times that one piece of code held the event loop too long",
    "voice.troubles": "Late transcripts, gaps on the line, replies that do not stop, turns that are too long",
}
FROM_COUNTERS: dict[str, tuple[str, dict[str, str]]] = {
    "inbound_frames_dropped": ("voice.buffer.dropped", {"queue": "inbound"}),
    "stale_frames_dropped": ("voice.buffer.dropped", {"queue": "reply"}),
    "s2s_audio_dropped": ("voice.buffer.dropped", {"queue": "s2s"}),
    "loop_held": ("voice.loop.held", {}),
    "finals_late": ("voice.troubles", {"what": "final_late"}),
    "line_gaps": ("voice.troubles", {"what": "line_gap"}),
    "stuck": ("voice.troubles", {"what": "reply_stuck"}),
    "turns_too_long": ("voice.troubles", {"what": "turn_too_long"}),
}
MOST_PRICES = 256  # providers, models and units of a process, for agents tell what they like; beyond, they are "other"
VERDICTS = {"false_alarm": "false", "backchannel": "backchannel", "echo": "echo"}
BY_CALLER = {"speech", "text", "push", "caller"}


class Instruments:
    """Every metric, made once for a meter. `record` and `add` take a value and its labels."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._histograms = {
            name: meter.create_histogram(name, "s", text, explicit_bucket_boundaries_advisory=buckets)
            for name, (buckets, text) in HISTOGRAMS.items()
        }
        self._counters = {name: meter.create_counter(name, "1", text) for name, text in COUNTERS.items()}
        self._prices: set[tuple[str, ...]] = set()
        self.live: Counter[tuple[str, str]] = Counter()
        meter.create_observable_up_down_counter("voice.sessions.active", [self._observe_live], "1", "Sessions now, by state")

    def record_ms(self, name: str, value_ms: float | None, labels: Mapping[str, str], context: Any = None) -> None:
        """Add a duration to a histogram; None is none. `context` ties it to a trace."""
        if value_ms is not None:
            self._histograms[name].record(max(0.0, value_ms / 1000.0), labels, context)

    def add(self, name: str, labels: Mapping[str, str], count: float = 1) -> None:
        """Count."""
        self._counters[name].add(count, labels)

    def add_usage(self, kind: str, provider: str, model: str, amounts: Mapping[str, float]) -> None:
        """Count what a call used."""
        for unit, amount in amounts.items():
            price = kind, provider, model, unit
            if price in self._prices or len(self._prices) < MOST_PRICES:
                self._prices.add(price)
            else:
                price = "other", "other", "other", "other"
            self.add("voice.provider.usage", dict(zip(("kind", "provider", "model", "unit"), price)), amount)

    def watch(self, manager: Any) -> None:
        """Read a manager's counts whenever the metrics are collected."""

        def counted(key: str, labels: dict[str, str] | None = None) -> Observation:
            return Observation(manager.counters[key], labels or {})

        def observe(name: str, text: str, read: Callable[[], list[Observation]]) -> None:
            self._meter.create_observable_counter(name, [lambda _: read()], "1", text)

        observe("voice.sessions.rejected", "Calls that were refused", lambda: [counted("rejected")])
        observe(
            "voice.sessions.resumed",
            "Sessions taken up again: here (hot), from the store (warm), or not (failed)",
            lambda: [counted(f"resumed_{kind}", {"kind": kind}) for kind in ("hot", "warm", "failed")],
        )
        observe("voice.store.failed", "Saves that the store failed at", lambda: [counted("store_failed")])
        observe("voice.store.fenced", "Saves refused: another process has the session", lambda: [counted("store_fenced")])
        self._meter.create_observable_gauge(
            "voice.manager.sessions",
            [lambda _: [Observation(len(manager.sessions))]],
            "1",
            "Sessions that hold one of the manager's places",
        )

    def _observe_live(self, _: CallbackOptions) -> Iterable[Observation]:
        return [Observation(count, {"state": state, "mode": mode}) for (state, mode), count in list(self.live.items())]


class SessionMetrics:
    """Tells the instruments of one session: call it with each event, and `turn` with each turn that is over.

    Args:
        instruments: the process's.
        session: whose `counters` are read, if given; it is let go when it closes.
    """

    def __init__(self, instruments: Instruments, session: Any = None) -> None:
        self._add, self._record, self._live = instruments.add, instruments.record_ms, instruments.live
        self._add_usage = instruments.add_usage
        self._session = session
        self._counted: Counter[str] = Counter()
        self._providers: dict[str, str] = {}
        self._serving: dict[str, str] = {}
        self._of: dict[str, dict[str, str]] = {}
        self._mode = "cascade"
        self._line: dict[str, str] = {}
        self._state = ""
        self._opened_ms = 0.0
        self._lost_ms: float | None = None
        self._onset_ms: float | None = None
        self._paused_ms: float | None = None

    def __call__(self, event: SessionEvent) -> None:
        handler = _HANDLERS.get(event.name)
        if handler is not None:
            handler(self, event)

    def turn(self, turn: TurnSpans) -> None:
        """A turn is over."""
        record, context = turn.record, turn.context
        self._add("voice.turns", {"mode": self._mode, "outcome": turn.outcome})
        if record is not None:
            labels = {**self._line, "outcome": turn.outcome}
            self._record("voice.turn.e2e_latency", record.e2e_latency_ms, labels, context)
            by = {"detector": self._detector(record.source)}
            self._record("voice.turn.endpointing_delay", record.endpointing_ms, by, context)
            if self._mode == "s2s":
                self._record("voice.s2s.latency", turn.s2s_ms, self._by("s2s"), context)
            else:
                if record.source != "text":
                    self._record("voice.stt.latency", record.stt_latency_ms, self._by("stt", record.stt_provider), context)
                self._record("voice.agent.latency", record.agent_latency_ms, self._by("agent"), context)
                self._record("voice.agent.duration", turn.agent_ms, self._by("agent"), context)
                self._record("voice.tts.latency", record.tts_latency_ms, self._by("tts", record.tts_provider), context)
        self._read_counters()

    def _detector(self, source: str) -> str:
        """What ended the turn; a button may call itself anything."""
        return source if source in (self._providers.get("turn"), "silence", "max_turn", "push", "text", "ears") else "other"

    def _by(self, kind: str, provider: str = "") -> dict[str, str]:
        """By whose work it was; where that is not told, by who does it now."""
        provider = provider or self._serving.get(kind, "")
        labels = self._of.get(provider)
        if labels is None:
            labels = self._of[provider] = {"provider": provider}
        return labels

    def _opened(self, event: SessionEvent) -> None:
        data = event.data
        self._opened_ms = event.at_ms
        self._providers = {kind: name for kind, name in data["providers"].items() if kind in KINDS}
        self._serving = dict(self._providers)
        self._mode = data["mode"]
        self._line = {"mode": self._mode, "transport": data["transport"]}
        self._add("voice.sessions.started", self._line)
        self._move("connected")

    def _state_moved(self, event: SessionEvent) -> None:
        self._move(event.data["state"])

    def _move(self, state: str) -> None:
        if self._state:
            self._live[self._state, self._mode] -= 1
        self._state = "" if state in ("disconnected", "error") else state
        if self._state:
            self._live[self._state, self._mode] += 1

    def _handed_over(self, event: SessionEvent) -> None:
        """The other chain of a hybrid goes on: what comes now is counted as its mode."""
        state = self._state
        self._move("disconnected")
        self._mode = event.data["new"]
        self._move(state)

    def _speech_started(self, event: SessionEvent) -> None:
        self._onset_ms = event.data["speech_start_ms"]

    def _transcript(self, event: SessionEvent) -> None:
        if self._onset_ms is not None:
            self._record("voice.stt.time_to_first_interim", event.at_ms - self._onset_ms, self._by("stt"))
            self._onset_ms = None

    def _reply_paused(self, event: SessionEvent) -> None:
        self._paused_ms = event.at_ms

    def _reply_resumed(self, event: SessionEvent) -> None:
        self._paused_ms = None
        self._add("voice.interruptions", {"verdict": VERDICTS.get(event.data["why"], "false")})

    def _interrupted(self, event: SessionEvent) -> None:
        stopped_ms, self._paused_ms = self._paused_ms, None
        if event.data["source"] not in BY_CALLER:
            return
        self._add("voice.interruptions", {"verdict": "true"})
        onset_ms = event.data["speech_start_ms"]
        if onset_ms is not None:
            silent_ms = event.at_ms if stopped_ms is None else stopped_ms
            self._record("voice.bargein.stop_latency", silent_ms - onset_ms, {"transport": self._line.get("transport", "")})

    def _reply_ended(self, event: SessionEvent) -> None:
        if not event.data["interrupted"]:
            self._paused_ms = None

    def _line_lost(self, event: SessionEvent) -> None:
        self._lost_ms = event.at_ms

    def _resumed(self, event: SessionEvent) -> None:
        self._line_is("warm" if event.data["kind"] == "warm" else "hot", event.at_ms)

    def _line_is(self, outcome: str, at_ms: float) -> None:
        if self._lost_ms is not None:
            self._add("voice.reconnect.attempts", {"outcome": outcome})
            self._record("voice.reconnect.duration", at_ms - self._lost_ms, {"outcome": outcome})
            self._lost_ms = None

    def _error(self, event: SessionEvent) -> None:
        error, stage = event.data["error"], event.data["stage"]
        kind = kind_of(stage, error, self._providers)
        told = error.provider if isinstance(error, ProviderError) else ""
        labels = {"kind": kind, "provider": told or self._serving.get(kind, ""), "error.type": error_type(error)}
        self._add("voice.provider.errors", labels)

    def _used(self, event: SessionEvent) -> None:
        self._add_usage(event.data["kind"], event.data["provider"], event.data["model"], event.data["amounts"])

    def _retried(self, event: SessionEvent) -> None:
        data = event.data
        labels = {"kind": data["kind"], "provider": data["provider"], "error.type": error_type(data["error"])}
        self._add("voice.provider.retries", labels)

    def _failed_over(self, event: SessionEvent) -> None:
        data = event.data
        self._serving[data["kind"]] = data["new"]
        labels = {"kind": data["kind"], "from": data["old"], "to": data["new"]}
        if data["error"] is not None:
            labels["error.type"] = error_type(data["error"])
        self._add("voice.provider.failovers", labels)

    def _health(self, event: SessionEvent) -> None:
        data = event.data
        self._add("voice.provider.health", {"kind": data["kind"], "provider": data["provider"], "state": data["state"]})

    def _closed(self, event: SessionEvent) -> None:
        reason = end_reason(event.data["reason"])
        self._line_is("failed", event.at_ms)
        self._move("disconnected")
        self._add("voice.sessions.ended", {"mode": self._mode, "reason": reason})
        self._record("voice.session.duration", event.at_ms - self._opened_ms, {"end_reason": reason})
        self._read_counters()
        self._session = None

    def _read_counters(self) -> None:
        """What the session has counted since the last look."""
        if self._session is None:
            return
        for key, count in self._session.counters.items():
            more = count - self._counted[key]
            if more > 0 and key in FROM_COUNTERS:
                name, labels = FROM_COUNTERS[key]
                self._add(name, labels, more)
                self._counted[key] = count


_HANDLERS: dict[str, Callable[[SessionMetrics, SessionEvent], None]] = {
    "opened": SessionMetrics._opened,
    "state": SessionMetrics._state_moved,
    "speech_started": SessionMetrics._speech_started,
    "transcript": SessionMetrics._transcript,
    "reply_paused": SessionMetrics._reply_paused,
    "reply_resumed": SessionMetrics._reply_resumed,
    "interrupted": SessionMetrics._interrupted,
    "reply_ended": SessionMetrics._reply_ended,
    "handed_over": SessionMetrics._handed_over,
    "line_lost": SessionMetrics._line_lost,
    "resumed": SessionMetrics._resumed,
    "error": SessionMetrics._error,
    "usage": SessionMetrics._used,
    "retried": SessionMetrics._retried,
    "failed_over": SessionMetrics._failed_over,
    "provider_health": SessionMetrics._health,
    "closed": SessionMetrics._closed,
}
