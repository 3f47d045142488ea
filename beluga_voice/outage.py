"""The time in which a session's line is lost: what is heard waits, nobody is given up, and then all goes on from there."""

from __future__ import annotations

from collections.abc import Callable

from .floor import Floor
from .owed import Owed
from .replies import Replies
from .state import Happening

__all__ = ["Outage"]


class Outage:
    """A conversation's account of its lost line. It `begin`s and `end`s any number of times.

    Args:
        floor: whose turn it is.
        replies: asked to go on once the line is back.
        owed: whose words are waited for.
        stale_until_ms: speech before this position on the line was spoken while the line was lost.

    Attributes:
        lasts: the line is lost now.
    """

    def __init__(self, floor: Floor, replies: Replies, owed: Owed, *, stale_until_ms: Callable[[], float]) -> None:
        self._floor, self._replies, self._owed, self._stale_until_ms = floor, replies, owed, stale_until_ms
        self._waiting: list[Callable[[], None]] = []
        self.lasts = False

    def begin(self) -> None:
        """The line is lost: what is being said waits, what is heard still is kept, nobody is given up."""
        self.lasts = True
        self._owed.hold()
        self._floor.mouth.hold()
        self._floor.move(Happening.LINE_LOST)

    def put_off(self, what: Callable[[], None]) -> bool:
        """Have `what` done when the line is back; False if it is not lost, and the time is now."""
        if self.lasts:
            self._waiting.append(what)
        return self.lasts

    def end(self) -> None:
        """The line is back: be where it was lost, and go on."""
        floor, mouth = self._floor, self._floor.mouth
        waiting, self._waiting, self.lasts = self._waiting, [], False
        floor.active_ms = floor.now_ms()
        floor.move(Happening.RESUMED)
        reply = mouth.reply
        if reply is not None and reply.playout.started:
            floor.move(Happening.REPLY_AUDIO)
        elif reply is None or reply.turn is not None:
            floor.move(Happening.READY)
            if reply is not None or self._owed.overdue is not None:
                floor.move(Happening.TURN_ENDED)
        mouth.line_back()
        self._owed.go_on()
        for what in waiting:
            what()
        self._replies.next()

    def caught_up(self) -> None:
        """All that was spoken while the line was lost is heard."""
        self._floor.mouth.release()

    def is_stale(self, place_ms: float) -> bool:
        """True for speech of a time when the line was lost, if a reply is being spoken: it interrupts nobody."""
        reply = self._floor.mouth.reply
        return place_ms < self._stale_until_ms() and reply is not None and reply.playout.started
