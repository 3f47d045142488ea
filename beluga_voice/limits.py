"""How long a session may last, be idle, and hear nothing of its line."""

from __future__ import annotations

from collections.abc import Callable

from .clock import Timers
from .floor import Floor
from .intake import Intake
from .replies import Replies
from .settings import SessionOptions

__all__ = ["Limits"]


class Limits:
    """Keeps the limits of one session's time. From `begin` on its timers run, until `stop`.

    Args:
        timers: its own.
        options: the limits.
        floor: tells who is active, and when anybody last was.
        replies: asked to close at a turn's end.
        intake: asked about gaps of the line.
        now_ms: the session's time.
        tell: announces an event.
        close: closes the session with a reason.
    """

    def __init__(
        self,
        timers: Timers,
        options: SessionOptions,
        floor: Floor,
        replies: Replies,
        intake: Intake,
        *,
        now_ms: Callable[[], float],
        tell: Callable[..., None],
        close: Callable[[str], None],
    ) -> None:
        self._timers, self._options, self._floor, self._replies, self._intake = timers, options, floor, replies, intake
        self._now_ms, self._tell, self._close = now_ms, tell, close

    def begin(self) -> None:
        """The session begins."""
        self._timers.set("length", self._options.max_session_ms, self._too_long)
        self._timers.set("idle", self._options.idle_timeout_ms, self._check_idle)
        self._timers.set("gap", self._options.line_gap_ms, self._check_gap)

    def stop(self) -> None:
        """The session ends."""
        self._timers.cancel()

    def _too_long(self) -> None:
        self._tell("warning", -1, message=f"after {self._options.max_session_ms:g} ms the session closes at a turn's end")
        self._replies.end("", "max_session")
        self._timers.set("length", self._options.max_turn_ms, self._close, "max_session")

    def _check_idle(self) -> None:
        idle_ms = self._now_ms() - self._floor.active_ms
        if idle_ms >= self._options.idle_timeout_ms and self._floor.quiet:
            self._close("idle")
            return
        self._timers.set("idle", max(self._options.idle_timeout_ms - idle_ms, 1_000.0), self._check_idle)

    def _check_gap(self) -> None:
        self._timers.set("gap", self._intake.check_gap(), self._check_gap)
