"""What a caller sent and the session has not taken yet: bounded, and counted where something has to be dropped."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Literal

from .._streams import Channel
from ..errors import LineLost
from ..frames import AudioIn, Frame
from .pace import Pace

__all__ = ["Inbound"]

LEAST_COST_MS = 4.0  # what an audio message costs at least, however short: at the usual pace, 500 a second


def _ms(item: Frame | LineLost) -> float:
    return len(item.pcm) * 500.0 / item.sample_rate_hz if isinstance(item, AudioIn) else 0.0


class Inbound:
    """A queue from the socket's reader to the session.

    Live audio beyond `limit_ms` drops the oldest; audio that is sent again after a resume waits, outside the pace. Other
    frames are refused beyond `max_frames`.

    Args:
        limit_ms: how much audio waits here.
        max_frames: how many other frames wait here.
        pace: how much live audio may come, in ms of it.
        counters: what was dropped, by name.
    """

    def __init__(self, limit_ms: float, max_frames: int, pace: Pace, counters: Counter[str]) -> None:
        self._channel: Channel[Frame | LineLost] = Channel(limit_ms, _ms)
        self._max_frames, self._pace, self._counters = max_frames, pace, counters
        self._frames = 0
        self._lost_waits = False
        self._again_ms = self._again_until_ms = 0.0
        self._again_seq = self._given_seq = -1

    @property
    def dropped(self) -> int:
        """How many audio messages were dropped because the session did not take them."""
        return self._channel.dropped

    @property
    def closed(self) -> bool:
        """True when nothing more is taken."""
        return self._channel.closed

    def expect_again(self, ms: float, now_ms: float, within_ms: float) -> None:
        """The next `ms` of audio, if it comes within `within_ms`, was spoken before: it waits instead of being dropped.

        What was expected and did not come, because the line broke again on its way, is still to come.
        """
        left_ms = max(0.0, self._again_ms) if now_ms < self._again_until_ms else 0.0
        self._again_ms, self._again_until_ms = min(left_ms + ms, max(ms, within_ms)), now_ms + within_ms

    async def audio(self, frame: AudioIn, now_ms: float) -> Literal["fine", "over", "broken"]:
        """Take audio; waits only if it is audio sent again, or live audio behind such. The pace's verdict."""
        cost_ms = max(_ms(frame), LEAST_COST_MS)
        if self._again_ms > 0 and now_ms < self._again_until_ms:
            self._again_ms -= cost_ms
            self._again_seq = frame.seq
            await self._wait_with(frame)
            return "fine"
        verdict = self._pace.judge(cost_ms, now_ms)
        if verdict != "fine":
            self._counters["audio_over_pace"] += 1
        elif self._given_seq < self._again_seq:
            await self._wait_with(frame)
        else:
            self._channel.put_dropping(frame)
        return verdict

    async def _wait_with(self, frame: AudioIn) -> None:
        try:
            await self._channel.put(frame)
        except asyncio.CancelledError:
            self._channel.put_over(frame)  # it counts as received: nobody would send it again
            raise

    def frame(self, frame: Frame) -> bool:
        """Take any other frame; False if too many wait."""
        if self._frames >= self._max_frames:
            self._counters["frames_refused"] += 1
            return False
        self._frames += 1
        self._channel.put_over(frame)
        return True

    def lost(self, error: LineLost) -> None:
        """After what is here, the session is to hear that the line was lost."""
        if not self._lost_waits:
            self._lost_waits = True
            self._channel.put_over(error)

    def close(self, error: Exception | None = None) -> None:
        """Nothing more comes: after what is here, the session gets `error`, or the end."""
        self._channel.close(error)

    async def frames(self) -> AsyncIterator[Frame]:
        """What came, in order. Raises `LineLost` where the line was lost; called again, it goes on from there."""
        async for item in self._channel:
            if isinstance(item, LineLost):
                self._lost_waits = False
                raise item
            if isinstance(item, AudioIn):
                self._given_seq = item.seq
            else:
                self._frames -= 1
            yield item
