"""One line of JSON for every session that has ended, on the logger `beluga_voice.sessions`."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence

from ..events import SessionEvent
from ..session import Session

__all__ = ["percentile", "session_log"]

log = logging.getLogger("beluga_voice.sessions")


def session_log(session: Session) -> Callable[[SessionEvent], None]:
    """The listener that writes the line when `session` has closed.

    It tells session, user, reason, how long it lasted, its turns, the median and the 95th percentile of `e2e_latency_ms`, how
    often the line was taken up again, errors by stage, and every counter that is not zero; nothing that was said.
    """
    resumed = {"hot": 0, "warm": 0}
    errors: dict[str, int] = {}

    def listen(event: SessionEvent) -> None:
        if event.name == "resumed":
            resumed[event.data["kind"]] += 1
        elif event.name == "error":
            stage = str(event.data.get("stage", "session"))
            errors[stage] = errors.get(stage, 0) + 1
        elif event.name == "closed" and log.isEnabledFor(logging.INFO):
            log.info("%s", json.dumps(_ended(session, event, resumed, errors), separators=(",", ":"), default=str))

    return listen


def _ended(
    session: Session, event: SessionEvent, resumed: dict[str, int], errors: dict[str, int]
) -> dict[str, object]:
    delays_ms = [record.e2e_latency_ms for record in session.turns if record.e2e_latency_ms is not None]
    return {
        "event": "session_ended",
        "session_id": session.session_id,
        "user_id": session.user_id,
        "reason": event.data["reason"],
        "duration_ms": round(event.at_ms),
        "turns": len(session.turns),
        "interrupted": sum(record.interrupted for record in session.turns),
        "e2e_p50_ms": percentile(delays_ms, 0.5),
        "e2e_p95_ms": percentile(delays_ms, 0.95),
        "resumed": {kind: count for kind, count in resumed.items() if count},
        "errors": errors,
        "counters": {name: count for name, count in sorted(session.counters.items()) if count},
    }


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` of them do not exceed; None of nothing.

    >>> percentile([10, 20, 30, 40], 0.5), percentile([10, 20, 30, 40], 0.95), percentile([], 0.5)
    (20, 40, None)
    """
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else None
