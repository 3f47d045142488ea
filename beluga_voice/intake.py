"""What a line brings, on its way into a session: placed by a running count of its samples, gaps filled, bursts taken whole."""

from __future__ import annotations

from collections.abc import Callable

from .engine import Context
from .frames import AudioIn
from .settings import SessionOptions
from .transport import Transport

__all__ = ["Intake"]

DRIFT_MS = 0.02  # how fast the line's clock may run from ours, per frame: 1 ms a second at 20 ms frames
SETTLED_MS = 100.0
PACE_OVER_MS = 200.0  # the pace of a line is judged over so long
LIVE_PACE = 1.5  # audio that comes faster than this is not being spoken now
FILL_MS = 200.0  # a line known to be silent is filled in such steps
HELD_MS = 100.0  # a look that is so late: the loop was held, and what the caller said meanwhile is still to be read
ONE_MS = 1.0
MOST_WAITING = 2_000  # frames; what weighs nothing is bounded by their number
NOTHING_MS = 400.0  # a line that came back and brings nothing for so long has nothing to catch up on


class Intake:
    """Reads a line into the session's inbox.

    Args:
        line: the transport.
        context: whose inbox, clock and counters.
        options: the session's limits.
        now_ms: the session's time.
        on_caught_up: told when a line that came back is at the present again.

    Attributes:
        heard_ms: how much of the line was taken: where its next audio is placed.
        offset_ms: what to add to a place on the line to get the session's time.
        catching_up: the line came back, and what it brings was spoken before.
        stale_until_ms: speech before this place on the line was spoken while the line was lost.
    """

    def __init__(
        self,
        line: Transport,
        context: Context,
        options: SessionOptions,
        *,
        now_ms: Callable[[], float],
        on_caught_up: Callable[[], None],
    ) -> None:
        self._line, self._context, self._options = line, context, options
        self._now_ms, self._on_caught_up = now_ms, on_caught_up
        self.heard_ms = self.offset_ms = 0.0
        self.catching_up = False
        self.stale_until_ms = 0.0
        self._lost = self._silent = False
        self._came_ms = 0.0
        self._pace_from = (0.0, 0.0)
        self._look_ms = float("inf")  # when the next look for a gap is due

    async def read(self) -> None:
        """Take what the line brings until the caller hangs up. Raises what `Transport.recv` raises."""
        inbox, live = self._context.inbox, self._line.capabilities.live
        frames = self._line.recv()
        try:
            async for frame in frames:
                if type(frame) is AudioIn:
                    frame = self._placed(frame)
                elif inbox.waiting >= MOST_WAITING:
                    self._context.counters["frames_refused"] += 1
                    continue
                if live and not self.catching_up:
                    inbox.put_dropping(frame)
                else:
                    await inbox.put(frame)
        finally:
            close = getattr(frames, "aclose", None)
            if close is not None:
                await close()

    def lost(self) -> None:
        """The line is lost: what it does not bring is not silence."""
        self._lost = True

    def back(self) -> None:
        """The line is back, and may first bring what was spoken meanwhile, faster than it was spoken."""
        self._lost, self.catching_up = False, True
        self.stale_until_ms = float("inf")
        self._came_ms = self._now_ms()
        self._pace_from = self._came_ms, self.heard_ms

    def check_gap(self) -> float:
        """A live line that brings nothing counts as silence, so that a turn still ends when the caller mutes in mid-word.

        Returns how long until it is to be looked at again, in ms.
        """
        now_ms = self._now_ms()
        held = now_ms - self._look_ms >= HELD_MS
        again_ms = FILL_MS if held else self._gap(now_ms)
        self._look_ms = now_ms + again_ms
        return again_ms

    def _gap(self, now_ms: float) -> float:
        if self._lost:
            return FILL_MS
        if self.catching_up:
            if now_ms - self._came_ms >= NOTHING_MS:
                self._caught_up(now_ms)
            return FILL_MS
        gap_ms = now_ms - self.offset_ms - self.heard_ms
        most_ms = FILL_MS if self._silent else self._options.line_gap_ms
        if not self._line.capabilities.live:
            return self._options.line_gap_ms
        if not self.heard_ms or gap_ms < most_ms:
            return min(most_ms, max(ONE_MS, most_ms - gap_ms))
        rate_hz = self._context.input_rate_hz
        frame = AudioIn(bytes(2 * int(gap_ms * rate_hz / 1000)), rate_hz, self.heard_ms)
        self.heard_ms = frame.end_ms
        if not self._silent:
            self._context.counters["line_gaps"] += 1
        self._silent = True
        self._context.inbox.put_dropping(frame)
        return FILL_MS

    def _placed(self, frame: AudioIn) -> AudioIn:
        """Audio at its place on the line, by the running count; how far the line is behind the clock is noted."""
        placed = AudioIn(frame.pcm, frame.sample_rate_hz, self.heard_ms, frame.seq)
        self.heard_ms += len(frame.pcm) * 500.0 / frame.sample_rate_hz
        self._silent = False
        now_ms = self._now_ms()
        if self.catching_up:
            self._judge_pace(now_ms)
            return placed
        late_ms = now_ms - self.heard_ms
        drifted_ms = self.offset_ms + DRIFT_MS
        self.offset_ms = late_ms if late_ms < drifted_ms or self.heard_ms < SETTLED_MS else drifted_ms
        return placed

    def _judge_pace(self, now_ms: float) -> None:
        """The burst is over once audio comes as fast as it is spoken."""
        self._came_ms = now_ms
        from_ms, heard_ms = self._pace_from
        if now_ms - from_ms >= PACE_OVER_MS:
            if self.heard_ms - heard_ms < LIVE_PACE * (now_ms - from_ms):
                self._caught_up(now_ms)
            self._pace_from = now_ms, self.heard_ms

    def _caught_up(self, now_ms: float) -> None:
        self.catching_up = False
        self.stale_until_ms = self.heard_ms
        self.offset_ms = now_ms - self.heard_ms
        self._on_caught_up()
