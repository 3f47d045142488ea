"""What a caller's messages mean to a line: each is checked for its number, its kind and the pace, and passed on or obeyed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from .. import wire
from ..frames import DTMF, AudioIn, EndTurn, Frame, Interrupt, StartTurn, TextIn
from ..link import Link
from .attachment import Attachment
from .bounds import LineOptions
from .inbound import Inbound
from .pace import Pace
from .playhead import Playhead

__all__ = ["Hearing"]

PROTOCOL = 4400
SLACK_MS = 2_000.0  # of audio under way when a line breaks
UNNUMBERED = (wire.Hello, wire.Ack, wire.Ping, wire.Pong, wire.Played, wire.Stopped)


class Hearing:
    """The reading half of a line.

    Args:
        options: the line's bounds.
        rate_hz: of the caller's audio.
        push: only audio between `start_turn` and `end_turn` is meant.
        link: judges the numbers.
        head: told what was played.
        counters: what was refused, by name.
        complain: tells the caller `(code, message, now_ms)`.
    """

    def __init__(
        self,
        options: LineOptions,
        rate_hz: int,
        push: bool,
        *,
        link: Link,
        head: Playhead,
        counters: Counter[str],
        complain: Callable[[str, str, float], None],
    ) -> None:
        self._options, self._rate_hz, self._push = options, rate_hz, push
        self._link, self._head, self._counters, self._complain = link, head, counters, complain
        pace = Pace(1_000.0 * options.audio_pace, options.audio_burst_ms, options.audio_patience_ms)
        self.inbound = Inbound(options.inbound_ms, options.inbound_frames, pace, counters)
        self._pace = Pace(options.messages_per_s, options.messages_burst, options.messages_patience)
        self._again = 0  # how many messages may still be ones that are sent again
        self._in_turn = False

    def back(self, away_ms: float | None, now_ms: float) -> None:
        """The caller comes back after `away_ms` (None: not known), and first sends again what was not received."""
        window_ms = self._options.window_ms
        again_ms = window_ms if away_ms is None else min(away_ms, window_ms)
        self.inbound.expect_again(again_ms + SLACK_MS, now_ms, window_ms)
        self._again = self._options.max_events

    async def audio(self, here: Attachment, heard: wire.AudioMessage, now_ms: float) -> None:
        """Take audio; waits where audio that is sent again has to wait for the session.

        Raises:
            WireError: too much came.
        """
        if not self._is_new(heard.seq, now_ms):
            return
        if self._push and not self._in_turn:
            self._counters["audio_outside_turn"] += 1
            return
        here.holds = True
        verdict = await self.inbound.audio(AudioIn(heard.pcm, self._rate_hz, seq=heard.seq), now_ms)
        here.holds = False
        if verdict == "broken":
            raise wire.WireError(PROTOCOL, f"audio came faster than {self._options.audio_pace:g} times real time for too long")
        if verdict == "over":
            self._complain("limit", "audio comes faster than it can be spoken: some is dropped", now_ms)

    def control(self, here: Attachment, heard: wire.ClientMessage, now_ms: float) -> None:
        """Take any other message.

        Raises:
            WireError: it breaks the protocol, or too many came.
        """
        numbered = not isinstance(heard, UNNUMBERED)
        verdict = "fine"
        if numbered and self._again > 0:
            self._again -= 1
        else:
            verdict = self._pace.judge(1.0, now_ms)
        seq = getattr(heard, "seq", -1)
        new = self._is_new(seq, now_ms) if numbered and seq >= 0 else True
        if verdict == "broken":
            raise wire.WireError(PROTOCOL, f"more than {self._options.messages_per_s:g} messages a second for too long")
        if verdict == "over":
            self._counters["messages_over_pace"] += 1
            self._complain("limit", "too many messages: some are ignored", now_ms)
        elif new:
            self._obey(here, heard, now_ms)

    def _obey(self, here: Attachment, heard: wire.ClientMessage, now_ms: float) -> None:
        match heard:
            case wire.Played():
                self._head.report(heard.seq, heard.ms, now_ms)
            case wire.Stopped():
                self._head.stopped(heard.seq, heard.ms, now_ms)
            case wire.Ack():
                if heard.seq >= here.cursor or not self._link.acked(heard.seq):
                    self._counters["acks_of_nothing"] += 1
                    self._complain("protocol", f"an ack of {heard.seq}, which was never sent", now_ms)
            case wire.Ping():
                here.pongs.append(heard.t_ms)
                here.news.set()
            case wire.Text() if heard.text.strip():
                self._pass_on(TextIn(heard.text, heard.seq), now_ms)
            case wire.StartTurn():
                self._in_turn = True
                self._pass_on(StartTurn(), now_ms)
            case wire.EndTurn():
                self._in_turn = False
                self._pass_on(EndTurn("push"), now_ms)
            case wire.Interrupt():
                self._pass_on(Interrupt(), now_ms)
            case wire.Dtmf():
                self._pass_on(DTMF(heard.digit), now_ms)
            case wire.Bye():
                self.inbound.close()
            case wire.Hello():
                raise wire.WireError(PROTOCOL, "a second hello; expected it first and once")
            case _:
                return

    def _pass_on(self, frame: Frame, now_ms: float) -> None:
        if not self.inbound.frame(frame):
            self._complain("limit", "the session is too busy to take more", now_ms)

    def _is_new(self, seq: int, now_ms: float) -> bool:
        wanted = self._link.received_seq + 1
        verdict = self._link.judge(seq, now_ms)
        if verdict == "gap":
            self._complain("protocol", f"number {seq} came where {wanted} was expected: {seq - wanted} are missing", now_ms)
        return verdict != "old"
