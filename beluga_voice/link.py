"""One end of a connection that survives its sockets: numbers, keeps and replays what it sends, and judges what it receives.

Pure: no socket, no clock; times are handed in. Two ends, one message lost on the way and sent again:

>>> here, there = Link(16_000), Link(16_000)
>>> here.stamp({"type": "text", "text": "one"})
'{"type":"text","text":"one","seq":0}'
>>> there.judge(0, now_ms=0)
'new'
>>> lost = here.stamp_audio(bytes(640))
>>> here.acked(there.received_seq), len(here.replay_from(there.received_seq + 1))
(True, 1)
>>> there.judge(1, now_ms=20), there.judge(1, now_ms=21), there.judge(3, now_ms=22)
('new', 'old', 'gap')
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from itertools import islice
from typing import Any, Literal

from . import wire

__all__ = ["Link"]

BYTES_PER_SAMPLE = 2


class Link:
    """Numbers both directions of one line, from 0 over audio and JSON together and through every resume.

    What is sent is kept until `acked`: a server's until the client has it, a client's until it is safe (`safe_seq`). At most
    `window_ms` of audio and `max_events` other messages are kept; beyond, the oldest fall out and are counted in `lost`.

    Args:
        rate_hz: of the audio that this end sends.
        window_ms: how much audio is kept: the resume window.
        max_events: how many JSON messages are kept.
        next_seq: the number of the first message to be sent.
        received_seq: the last number received; -1 for nothing yet.
        ack_ms: how old something received may become before its acknowledgement is due.

    Attributes:
        next_seq: the number of the next message to be stamped.
        received_seq: the last number received: what `ack` says.
        lost: what fell out unacknowledged, by kind: "audio" and "events", in messages.
        gaps: how often numbers were missing; `missing` counts them, `repeats` those that came again.
    """

    def __init__(
        self,
        rate_hz: int,
        *,
        window_ms: float = 30_000.0,
        max_events: int = 1_000,
        next_seq: int = 0,
        received_seq: int = -1,
        ack_ms: float = 500.0,
    ) -> None:
        self.next_seq, self.received_seq = next_seq, received_seq
        self.lost: Counter[str] = Counter()
        self.gaps = self.missing = self.repeats = 0
        self._ms_per_byte = 1000.0 / BYTES_PER_SAMPLE / rate_hz
        self._window_bytes = window_ms / self._ms_per_byte
        self._max_events, self._ack_ms = max_events, ack_ms
        self._kept: deque[str | bytes] = deque()  # without a hole: the last one's number is next_seq - 1
        self._audio_bytes = self._events = 0
        self._owed_ms: float | None = None

    # --- sending -----------------------------------------------------------------------------------------------------

    @property
    def first_seq(self) -> int:
        """The oldest number that can still be replayed; `next_seq` when nothing is kept."""
        return self.next_seq - len(self._kept)

    @property
    def kept_audio_ms(self) -> float:
        """How much audio is kept."""
        return self._audio_bytes * self._ms_per_byte

    def stamp(self, message: Mapping[str, Any]) -> str:
        """A JSON message with its number, ready to be sent; kept."""
        stamped = wire.text({**message, "seq": self.next_seq})
        self._keep(stamped)
        return stamped

    def stamp_audio(self, pcm: bytes) -> bytes:
        """Audio with its number, ready to be sent; kept."""
        stamped = wire.audio(self.next_seq, pcm)
        self._keep(stamped)
        return stamped

    def amend(self, seq: int, message: Mapping[str, Any]) -> None:
        """Put another JSON message in the place of one that was stamped and never sent; nothing if it is not kept."""
        place = seq - self.first_seq
        if 0 <= place < len(self._kept):
            self._kept[place] = wire.text({**message, "seq": seq})

    def get(self, seq: int) -> str | bytes | None:
        """The kept message of that number; None if it is not kept (any more)."""
        place = seq - self.first_seq
        return self._kept[place] if 0 <= place < len(self._kept) else None

    def acked(self, seq: int) -> bool:
        """The other end has everything up to `seq`: it is not kept any longer. False if that was never sent."""
        if seq >= self.next_seq:
            return False
        for _ in range(min(seq + 1 - self.first_seq, len(self._kept))):
            self._forget()
        return True

    def replay_from(self, seq: int) -> list[str | bytes]:
        """What is to be sent again, in order, to an end that wants `seq` next. If `first_seq` is greater, some is lost."""
        return list(islice(self._kept, max(0, seq - self.first_seq), None))

    def skip_to(self, seq: int) -> None:
        """Go on with number `seq`, which is beyond `next_seq`; what is kept counts as lost."""
        while self._kept:
            self._lose()
        self.next_seq = max(self.next_seq, seq)

    def _keep(self, stamped: str | bytes) -> None:
        self._kept.append(stamped)
        self.next_seq += 1
        if isinstance(stamped, bytes):
            self._audio_bytes += len(stamped) - wire.SEQ_BYTES
        else:
            self._events += 1
        while (self._audio_bytes > self._window_bytes or self._events > self._max_events) and len(self._kept) > 1:
            self._lose()

    def _lose(self) -> None:
        self.lost["audio" if isinstance(self._forget(), bytes) else "events"] += 1

    def _forget(self) -> str | bytes:
        oldest = self._kept.popleft()
        if isinstance(oldest, bytes):
            self._audio_bytes -= len(oldest) - wire.SEQ_BYTES
        else:
            self._events -= 1
        return oldest

    # --- receiving ---------------------------------------------------------------------------------------------------

    def judge(self, seq: int, now_ms: float) -> Literal["new", "old", "gap"]:
        """Note that `seq` was received: "new" is next, "old" is to be ignored, "gap" is to be taken, but some are missing."""
        ahead = seq - self.received_seq - 1
        if ahead < 0:
            self.repeats += 1
        else:
            self.received_seq = seq
        if self._owed_ms is None:
            self._owed_ms = now_ms
        if ahead <= 0:
            return "old" if ahead else "new"
        self.gaps += 1
        self.missing += ahead
        return "gap"

    def owe_ack(self, now_ms: float) -> None:
        """There is something new to tell with the next acknowledgement."""
        if self._owed_ms is None:
            self._owed_ms = now_ms

    @property
    def owes_ack(self) -> bool:
        """True when something was received since the last acknowledgement: send one at the end of a turn."""
        return self._owed_ms is not None

    def ack_due(self, now_ms: float) -> bool:
        """True when something received waits for its acknowledgement since `ack_ms`."""
        return self._owed_ms is not None and now_ms - self._owed_ms >= self._ack_ms

    def ack(self, **more: Any) -> str:
        """The acknowledgement of all that was received, with `more` fields (a server's `safe_seq`); none is owed any longer."""
        self._owed_ms = None
        return wire.text({"type": "ack", "seq": self.received_seq, **more})
