"""The bounds of one caller's line."""

from __future__ import annotations

import attrs

from ..options import option

__all__ = ["LineOptions"]


@attrs.frozen
class LineOptions:
    """Bounds of one caller's line. What is dropped at a bound is counted in `WireLine.counters`."""

    has_store: bool = option(False, "the session is kept in a store: only what that covers is told as safe")
    window_ms: float = option(30_000.0, "ms of unacknowledged audio kept to be sent again", at_least=0)
    max_events: int = option(1_000, "unacknowledged JSON messages kept to be sent again", at_least=1)
    inbound_ms: float = option(5_000.0, "ms of the caller's audio that may wait for the session", at_least=20)
    inbound_frames: int = option(100, "other things from the caller that may wait for the session", at_least=1)
    unsent_ms: float = option(1_000.0, "ms of reply audio that may wait for the socket", at_least=20)
    audio_pace: float = option(2.0, "how many times faster than real time a caller may send", at_least=1.0)
    audio_burst_ms: float = option(5_000.0, "ms of audio a caller may send at once", at_least=100)
    audio_patience_ms: float = option(30_000.0, "ms of audio beyond the pace before the caller is cut off", at_least=0)
    messages_per_s: float = option(50.0, "JSON messages a caller may send each second", at_least=1)
    messages_burst: int = option(200, "JSON messages a caller may send at once", at_least=1)
    messages_patience: int = option(1_000, "JSON messages beyond the pace before the caller is cut off", at_least=0)
    ping_ms: float = option(5_000.0, "ms without sending anything before a ping", at_least=100)
    lost_after_ms: float = option(9_500.0, "ms without receiving anything before the line counts as lost", at_least=100)
    unproven_ms: float = option(3_000.0, "ms a caller who was never heard on this line may be gone", at_least=0)
    write_timeout_ms: float = option(10_000.0, "ms one write may take before the line counts as lost", at_least=100)
    flush_ms: float = option(2_000.0, "ms for what is left to be sent when the session ends", at_least=0)
    tick_ms: float = option(500.0, "ms between looks at the line; something received is acknowledged within it", at_least=20)
