"""What telemetry costs: CPU time of whole simulated conversations with it on and off, and of its listener alone.

usage: python benchmarks/bench_telemetry.py
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from beluga_voice import Audio, Chain, tts, turn
from beluga_voice.builtin.recorded_line import RecordedLine
from beluga_voice.clock import run_simulated
from beluga_voice.events import SessionEvent
from beluga_voice.session import Session
from beluga_voice.telemetry import Telemetry
from beluga_voice.testing import LoudVAD, ScriptedSTT, quiet, speech

TURNS = 20
RUNS = 9
TALK = quiet(500) + (speech(600) + quiet(2_500)) * TURNS


class Nowhere(SpanExporter):
    """Takes spans as an exporter does, and sends them nowhere."""

    def export(self, spans: Iterable[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


async def reply(text: str, history: object):
    for word in ("You ", "said ", "this: ", f"{text}."):
        yield word


def hold(*listeners: Callable[[SessionEvent], None]) -> float:
    """CPU us of one conversation of TURNS turns."""

    async def main() -> None:
        chain = Chain(LoudVAD(), turn.new("silence"), ScriptedSTT("one"), reply, tts.new("tone"))
        session = Session(chain, RecordedLine(Audio(TALK, 16_000)), listeners=listeners)
        await session.run()
        assert len(session.turns) == TURNS, len(session.turns)

    gc.collect()
    began = time.process_time_ns()
    run_simulated(main())
    return (time.process_time_ns() - began) / 1e3


def alone(make: Callable[[], Callable[[SessionEvent], None]], events: list[SessionEvent]) -> float:
    """CPU us for the listener alone to hear the events of one conversation."""
    spent = []
    for _ in range(RUNS * 5):
        listener = make()
        began = time.process_time_ns()
        for event in events:
            listener(event)
        spent.append((time.process_time_ns() - began) / 1e3)
    return statistics.median(spent)


def main() -> None:
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(BatchSpanProcessor(Nowhere(), max_queue_size=100_000, schedule_delay_millis=600_000))
    meters = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    kinds = {
        "nothing listens": None,
        "on, no providers set up": Telemetry(),
        "on, metrics": Telemetry(meter_provider=meters),
        "on, traces": Telemetry(tracers),
        "on, both": Telemetry(tracers, meters),
    }
    events: list[SessionEvent] = []
    hold(events.append)
    told = f"{len(events)} events, {len(events) / TURNS:.1f} a turn; CPU us, median of {RUNS}"
    print(f"one conversation of {TURNS} turns, {told}\n")
    print(f"{'':26}{'whole turn':>12}{'more than off':>15}{'listener alone, a turn':>24}{'an event':>10}")
    whole: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(RUNS):  # by turns, so that a slow moment of the machine strikes all alike
        for name, telemetry in kinds.items():
            whole[name].append(hold(*([telemetry.listener()] if telemetry else [])) / TURNS)
    off_us = statistics.median(whole["nothing listens"])
    for name, telemetry in kinds.items():
        own_us = alone(telemetry.listener, events) if telemetry else 0.0
        turn_us = statistics.median(whole[name])
        print(f"{name:26}{turn_us:12.0f}{turn_us - off_us:15.0f}{own_us / TURNS:24.1f}{own_us / len(events):10.2f}")


if __name__ == "__main__":
    main()
