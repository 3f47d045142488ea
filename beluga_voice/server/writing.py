"""The writing half of a line: what waits goes out in order, what is due is sent, and a dead socket is given up."""

from __future__ import annotations

import asyncio
from collections import Counter

from .. import wire
from ..clock import Clock
from ..errors import LineLost
from ..link import Link
from .attachment import Attachment
from .bounds import LineOptions
from .playhead import Playhead

__all__ = ["Writing"]

GONE, LOST = 0, 1001


class Writing:
    """Writes one line's messages to whichever socket it is on.

    Attributes:
        closing: once set, the close code and reason for when all is written.
        room: set whenever audio went out.
        safe_seq: what a store covers of what was received.
    """

    def __init__(
        self, options: LineOptions, *, clock: Clock, link: Link, head: Playhead, counters: Counter[str], safe_seq: int
    ) -> None:
        self._options, self._clock, self._link, self._head, self._counters = options, clock, link, head, counters
        self.safe_seq = safe_seq
        self.closing: tuple[int, str] | None = None
        self.room = asyncio.Event()

    async def write(self, here: Attachment) -> None:
        while True:
            message = self._next(here)
            if message is None:
                if self.closing is not None:
                    here.end(*self.closing)
                    return
                await here.news.wait()
                here.news.clear()
                continue
            here.writing_ms = self._clock.now_ms()
            try:
                await here.socket.send(message)
            except LineLost as error:
                here.end(GONE, str(error))
                return
            now_ms = self._clock.now_ms()
            here.writing_ms, here.written_ms = None, now_ms
            if isinstance(message, bytes):
                self._head.sent(here.cursor - 1, now_ms)
                self.room.set()

    def _next(self, here: Attachment) -> str | bytes | None:
        """The next message to write: reports first, then what has a number, in order."""
        if here.ack_wanted:
            here.ack_wanted = here.ping_wanted = False
            return self._link.ack(safe_seq=self._safe())
        if here.pongs:
            return wire.text({"type": "pong", "t_ms": here.pongs.popleft()})
        here.cursor = max(here.cursor, self._link.first_seq)
        message = self._link.get(here.cursor)
        if message is not None:
            here.cursor += 1
        elif here.ping_wanted:
            message = wire.text({"type": "ping", "t_ms": round(self._clock.now_ms(), 3)})
        here.ping_wanted = False
        return message

    def tick(self, here: Attachment) -> None:
        """Look after the line: what is due is sent, and a dead one is given up."""
        now_ms, told = self._clock.now_ms(), self._options
        if here.writing_ms is not None and now_ms - here.writing_ms >= told.write_timeout_ms:
            self._counters["write_timeouts"] += 1
            here.end(LOST, f"nothing was taken for {told.write_timeout_ms:g} ms")
        elif not here.holds and now_ms - here.heard_ms >= told.lost_after_ms:
            self._counters["silent"] += 1
            here.end(LOST, f"nothing was received for {told.lost_after_ms:g} ms")
        here.ack_wanted = here.ack_wanted or self._link.owes_ack
        here.ping_wanted = now_ms - here.written_ms > told.ping_ms - told.tick_ms
        if here.ack_wanted or here.ping_wanted:
            here.news.set()
        here.timer = self._clock.call_later_ms(told.tick_ms, self.tick, here)

    def _safe(self) -> int:
        received_seq = self._link.received_seq
        return min(self.safe_seq, received_seq) if self._options.has_store else received_seq
