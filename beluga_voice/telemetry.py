"""Traces and metrics of sessions, by OpenTelemetry: a listener on their events, that nothing else knows of.

Without providers of your own it uses the process's, as every library does; where none is set up, it tells nobody.

>>> from beluga_voice import Chain, agent, tts, turn
>>> from beluga_voice.session import Session
>>> from beluga_voice.testing import LoudVAD, ScriptedSTT
>>> telemetry = Telemetry()
>>> chain = Chain(LoudVAD(), turn.new("silence"), ScriptedSTT(), agent.new("echo"), tts.new("tone"))
>>> session = Session(chain, None, listeners=[telemetry.listener()])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from ._instruments import Instruments, SessionMetrics
from ._spans import SessionSpans
from .clock import epoch_ns
from .errors import ConfigError
from .events import SessionEvent

__all__ = ["Prometheus", "Telemetry", "prometheus"]

Listener = Callable[[SessionEvent], None]


class Telemetry:
    """Makes spans (tracer `beluga.voice.session`) and metrics (meter `beluga.voice`) of sessions; one for a process.

    Args:
        tracer_provider: where spans go; the process's own if left out.
        meter_provider: where metrics go; the process's own if left out.
        private_text: put what was said and who called into spans, under `voice.pii.*`. Never into metrics.

    Example: `SessionManager(chain, listeners=[Telemetry().listener])`.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        *,
        private_text: bool = False,
    ) -> None:
        self._tracer = trace.get_tracer("beluga.voice.session", tracer_provider=tracer_provider)
        self._instruments = Instruments(metrics.get_meter("beluga.voice", meter_provider=meter_provider))
        self._private_text = private_text
        self._live: dict[str, SessionSpans] = {}

    def listener(self, session: Any = None) -> Listener:
        """What one session is to be given as a listener.

        Args:
            session: the session, where it is known already. Without it nothing is told of dropped frames, a held event loop
                and other things that only `session.counters` knows, nor of its user or the trace it was called from.
        """
        told = SessionMetrics(self._instruments, session)
        spans = SessionSpans(self._tracer, epoch_ns, private_text=self._private_text, on_turn=told.turn, session=session)

        def listen(event: SessionEvent) -> None:
            if event.name == "opened":
                self._live[event.data["session_id"]] = spans
            spans(event)
            told(event)
            if event.name == "closed" and self._live.get(spans.session_id) is spans:
                del self._live[spans.session_id]

        return listen

    def context(self, session: Any) -> Context:
        """The parent for spans of an agent's own: its `voice.agent` span, while it answers a turn of `session`.

        At other times the session's span; an empty context for a session that this does not listen to. Use it as the
        `context` of each span, or `opentelemetry.context.attach` it once at the agent's beginning: a reply runs in a task of
        its own, so there is nothing to detach.
        """
        spans = self._live.get(session.session_id)
        return Context() if spans is None else spans.context

    def manager(self, manager: Any) -> None:
        """Tell of a manager, whenever metrics are collected: how many sessions it has, refused, resumed, failed to save.

        Args:
            manager: a `SessionManager`: its `counters` and `sessions` are read. Once for a process.
        """
        self._instruments.watch(manager)


@attrs.frozen
class Prometheus:
    """Metrics for Prometheus to fetch.

    Attributes:
        meter_provider: give it to `Telemetry`.
        render: the metrics now, as the body of an answer.
        content_type: its type.
    """

    meter_provider: MeterProvider
    render: Callable[[], bytes]
    content_type: str


def prometheus() -> Prometheus:
    """A meter provider whose metrics are rendered as text, in a registry of their own.

    Raises:
        ConfigError: the SDK or the exporter is not installed.

    >>> exported = prometheus()
    >>> telemetry = Telemetry(meter_provider=exported.meter_provider)
    >>> exported.content_type
    'text/plain; version=...; charset=utf-8'
    """
    try:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from opentelemetry.sdk import metrics as sdk
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is not installed; metrics for Prometheus need it. Run: pip install 'beluga-voice[telemetry]'"
        ) from error
    registry = CollectorRegistry()
    reader = PrometheusMetricReader(registry=registry, scope_info_enabled=False)
    provider = sdk.MeterProvider([reader], shutdown_on_exit=False)
    return Prometheus(provider, lambda: generate_latest(registry), CONTENT_TYPE_LATEST)
