"""The manager's own counts as Prometheus reads them, for where OpenTelemetry's SDK is not installed."""

from __future__ import annotations

import re

from ..manager import SessionManager

__all__ = ["PLAIN", "counts"]

PLAIN = "text/plain; version=0.0.4; charset=utf-8"


def counts(manager: SessionManager) -> str:
    """Sessions now, whether they drain, and what happened so far.

    >>> from types import SimpleNamespace as Namespace
    >>> manager = Namespace(sessions=(1, 2), draining=False, counters={"created": 3, "closed_bye": 1})
    >>> print(counts(manager), end="")
    # TYPE beluga_voice_sessions gauge
    beluga_voice_sessions 2
    # TYPE beluga_voice_draining gauge
    beluga_voice_draining 0
    # TYPE beluga_voice_manager_total counter
    beluga_voice_manager_total{event="closed_bye"} 1
    beluga_voice_manager_total{event="created"} 3
    """
    lines = [
        "# TYPE beluga_voice_sessions gauge",
        f"beluga_voice_sessions {len(manager.sessions)}",
        "# TYPE beluga_voice_draining gauge",
        f"beluga_voice_draining {int(manager.draining)}",
        "# TYPE beluga_voice_manager_total counter",
    ]
    for name, count in sorted(manager.counters.items()):
        lines.append(f'beluga_voice_manager_total{{event="{re.sub("[^A-Za-z0-9_]", "_", name)}"}} {count:g}')
    return "\n".join(lines) + "\n"
