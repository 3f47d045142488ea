"""Telling the world what happens in a session: its listeners hear every event, plugins the lifecycle hooks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from ._registry import registry
from .errors import ProviderError
from .events import SessionEvent, TurnRecord

__all__ = ["Announcer", "Listener"]

Listener = Callable[[SessionEvent], None]

log = logging.getLogger("beluga_voice.session")


class Announcer:
    """Tells the events of one session. A listener or a plugin that fails is logged, and harms nobody.

    Args:
        session_id: whose events.
        listeners: called with every `SessionEvent`, in order.
        now_ms: the session's time.
    """

    def __init__(self, session_id: str, listeners: Iterable[Listener], now_ms: Callable[[], float]) -> None:
        self._session_id, self._listeners, self._now_ms = session_id, tuple(listeners), now_ms

    def tell(self, name: str, turn: int, **data: Any) -> None:
        """Announce an event."""
        event = SessionEvent(name, self._now_ms(), turn, data)
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                log.exception("session %s: a listener failed on %s", self._session_id, name)
        if name == "state":
            self._call("state_changed", old=data["old"], new=data["state"])
        elif name == "transcript":
            self._call("transcript", text=data["text"], is_final=data["is_final"])
        elif name == "interrupted":
            self._call("interrupted", heard_text=data["heard_text"])
        elif name == "error":
            error = data["error"]
            # With the cause's traceback: what an agent of one's own raised is found where it was raised. A service's failure
            # is told by its message.
            why = error and (error.__cause__ or (None if isinstance(error, ProviderError) else error))
            log.warning("session %s: %s failed: %s", self._session_id, data["stage"], data["message"], exc_info=why)
            if error is not None:
                self._call("error", stage=data["stage"], error=error)
        elif name == "failed_over":
            why = data["error"]
            log.warning("session %s: %s went from %s to %s: %s", self._session_id, data["kind"], data["old"], data["new"], why)
            self._call("failed_over", kind=data["kind"], old=data["old"], new=data["new"])
        elif name == "turn_finished":
            self._call("turn_finished", turn=data["record"])
        elif name == "opened":
            self._call("session_opened")
        elif name == "closed":
            self._call("session_closed", reason=data["reason"])
        elif name == "warning":
            log.warning("session %s: %s", self._session_id, data["message"])

    def turn_finished(self, record: TurnRecord) -> None:
        """Announce a finished turn."""
        self.tell("turn_finished", record.index, record=record)

    def _call(self, hook: str, **given: Any) -> None:
        try:
            getattr(registry.hook, hook)(session_id=self._session_id, **given)
        except Exception:
            log.exception("session %s: a plugin's %s hook failed", self._session_id, hook)
