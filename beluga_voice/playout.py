"""The reply being spoken: holds its audio, sends it at the pace it is played, can pause, go on and be cut.

At most `send_lead_ms` is sent ahead of what is played; at most `limit_ms` waits to be played: beyond, whoever makes it waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import accumulate

import attrs

from .audio import BYTES_PER_SAMPLE, Resampler
from .clock import Clock
from .frames import AudioOut, Word
from .transport import Transport

__all__ = ["Playout"]

PIECE_MS = 40.0
STEP_MS = 40.0
ONE_MS = 1.0
ROUNDING_MS = 30.0
RECENT_MS = 700.0
FASTEST = 0.02  # letters and blanks a ms: 200 words a minute; hardly a voice speaks faster
UNHEARD_MS = 150.0  # a syllable takes about this long: a reply that was stopped sooner was not heard


@attrs.define(eq=False)
class _Span:
    """One text of the reply and where its audio begins, in samples."""

    start: int
    text: str
    words: list[Word] = attrs.field(factory=list)


class Playout:
    """One reply on its way to one line.

    `on_first_sent()` is called just before the first audio goes to the line. `run` does the sending, as a task of the session;
    everything else returns at once but `add`, which waits while too much is held. `until_ms` is when all it was given will have
    been played, by the clock, if nothing holds it up.
    """

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        *,
        send_lead_ms: float,
        limit_ms: float,
        on_first_sent: Callable[[], None],
    ) -> None:
        self._line, self._clock = transport, clock
        self._limit_ms = limit_ms
        self.lead(send_lead_ms)
        self._on_first_sent = on_first_sent
        self._rate_hz = transport.output_rate_hz
        self._pieces: deque[bytes] = deque()
        self._kept = 0  # the sample at which _pieces begins; all positions count samples of the reply
        self._sent = 0
        self._total = 0
        self._base_ms: float | None = None
        self._stopped_ms: float | None = None
        self.until_ms = 0.0
        self._spans: list[_Span] = []
        self._spread = ""
        self._resampler: Resampler | None = None
        self._finished = self._paused = self._held = self._line_paused = False
        self._news: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    # --- what is made ------------------------------------------------------------------------------------------------

    async def add(self, frame: AudioOut) -> None:
        """Add audio to the reply; waits while `limit_ms` of it is not played yet."""
        while self.held_ms >= self._limit_ms and self._stopped_ms is None:
            self._room = asyncio.get_running_loop().create_future()
            try:
                await self._room
            finally:
                self._room = None
        self.add_now(frame)

    def add_now(self, frame: AudioOut) -> None:
        """Add audio to the reply without waiting."""
        if self._stopped_ms is not None:
            return
        if frame.text:
            self._spans.append(_Span(self._total, frame.text))
        if frame.words and self._spans:
            self._spans[-1].words.extend(frame.words)
        if self._resampler is None or self._resampler.from_hz != frame.sample_rate_hz:
            self._resampler = Resampler(frame.sample_rate_hz, self._rate_hz)
        pcm = self._resampler.feed(frame.pcm)
        if pcm:
            self._pieces.append(pcm)
            self._total += len(pcm) // BYTES_PER_SAMPLE
            self.until_ms = max(self.until_ms, self._clock.now_ms()) + self._ms(len(pcm) // BYTES_PER_SAMPLE)
            self._wake()

    def spread(self, text: str) -> None:
        """Add text whose place in the audio nobody tells: it is taken to be spread evenly over all of it."""
        self._spread += text

    def finish(self, *, broken: bool = False) -> None:
        """No more audio will be added; `broken`: it is not all there, and spread text may be ahead of it."""
        if self._resampler is not None and self._stopped_ms is None:
            rest, self._resampler = self._resampler.feed(b"", last=True), None
            if rest:
                self._pieces.append(rest)
                self._total += len(rest) // BYTES_PER_SAMPLE
        if broken:
            self._spread = _sayable(self._spread, self._ms(self._total))
        self._finished = True
        self._wake()

    # --- what is played ----------------------------------------------------------------------------------------------

    @property
    def played_ms(self) -> float:
        """How much of the reply was played."""
        if self._stopped_ms is not None:
            return self._stopped_ms
        return 0.0 if self._base_ms is None else self._line.played_ms - self._base_ms

    @property
    def held_ms(self) -> float:
        """How much of the reply is not played yet."""
        return self._ms(self._total) - self.played_ms

    @property
    def paused(self) -> bool:
        """True between `pause` and `go_on`, and while the line is lost."""
        return self._paused or self._held

    @property
    def finished(self) -> bool:
        """True when no more audio will be added."""
        return self._finished

    @property
    def started(self) -> bool:
        """True once audio was sent."""
        return self._base_ms is not None

    def pause(self) -> None:
        """Fall silent now. What was sent and not played is kept by the line, or will be sent again by `go_on`."""
        if self._paused or self._stopped_ms is not None:
            return
        self._paused = True
        if self._base_ms is not None:
            self._line_paused = self._line.pause()
            if not self._line_paused:
                self._line.clear()
                self.rewind()

    def go_on(self) -> None:
        """Speak on from where the pause fell."""
        self._paused = False
        if self._line_paused:
            self._line_paused = False
            self._line.go_on()
        self._wake()

    def hold(self) -> None:
        """Send nothing more until `release`: the line is lost. What was sent stays with it."""
        self._held = True

    def release(self) -> None:
        """Send on."""
        self._held = False
        self._wake()

    def rewind(self) -> None:
        """What was sent and not played is gone: send it again."""
        self._sent = min(self._sent, self._samples(self.played_ms))

    def lead(self, send_lead_ms: float) -> None:
        """Send at most so far ahead of what is played."""
        self._lead_ms = send_lead_ms
        self._piece_ms, self._step_ms = min(PIECE_MS, send_lead_ms / 2), min(STEP_MS, send_lead_ms / 2)

    def cut(self) -> float:
        """Stop for good, now; how much was played, in ms."""
        if self._stopped_ms is None:
            if self._base_ms is not None and (self._line_paused or not self._paused):
                self._line.clear()
            self._stopped_ms = min(self.played_ms, self._ms(self._total))
            self._pieces.clear()
            self._wake()
            self._make_room()
        return self._stopped_ms

    @property
    def rate_hz(self) -> int:
        """The rate of what is sent."""
        return self._rate_hz

    def recent(self) -> bytes:
        """What was played in the last `RECENT_MS`, and what was sent beyond: PCM at the line's rate, to tell an echo by."""
        start = max(self._kept, self._samples(max(0.0, self.played_ms - RECENT_MS)))
        pcm = b"".join(self._pieces)
        return pcm[(start - self._kept) * BYTES_PER_SAMPLE : (self._sent - self._kept) * BYTES_PER_SAMPLE]

    def heard_text(self) -> str:
        """The text that was played: whole sentences, and of the last one the words heard (by their times, else by share).

        Of a reply that was stopped within `UNHEARD_MS` nothing was heard; of any other at least a word.
        """
        played = self._samples(self.played_ms + ROUNDING_MS)
        if self.played_ms < UNHEARD_MS and not (self._finished and played >= self._total):
            return ""
        spans = self._spans or [_Span(0, self._spread.strip())]
        ends = [span.start for span in spans[1:]] + [self._total]
        heard = []
        for span, end in zip(spans, ends):
            if end == span.start:
                continue  # a text without a sound
            if end <= played and (self._finished or end < self._total):
                heard.append(span.text)
            elif span.start < played:
                share = (played - span.start) / max(1, end - span.start)
                heard.append(_heard_part(span, self._ms(played - span.start), share, at_least=0 if heard else 1))
        return " ".join(text for text in heard if text)

    # --- sending -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Send until all is played, or until cut."""
        while self._stopped_ms is None:
            played_ms = self.played_ms
            self._sent = max(self._sent, min(self._samples(played_ms), self._total))  # a line may tell late what it played
            unsent = self._total - self._sent
            if self.paused or (unsent <= 0 and not self._finished):
                await self._wait(None)
                continue
            self._forget(self._samples(max(0.0, played_ms - RECENT_MS)))
            if unsent <= 0:
                left_ms = self._ms(self._total) - played_ms
                if left_ms < ONE_MS:  # a line may count in whole ms
                    break
                await self._wait(left_ms)
                continue
            ahead_ms = self._ms(self._sent) - played_ms
            if ahead_ms + self._piece_ms > self._lead_ms:
                await self._wait(max(ONE_MS, min(self._step_ms, ahead_ms + self._step_ms - self._lead_ms)))
                continue
            if self._base_ms is None:
                self._base_ms = self._line.played_ms
                self._on_first_sent()
                if self.paused or self._stopped_ms is not None:
                    continue
            pcm = self._take(self._samples(self._piece_ms))
            self._sent += len(pcm) // BYTES_PER_SAMPLE
            await self._line.send(AudioOut(pcm, self._rate_hz))

    def _take(self, samples: int) -> bytes:
        """The next `samples` to send, or what there is."""
        skip = (self._sent - self._kept) * BYTES_PER_SAMPLE
        wanted = samples * BYTES_PER_SAMPLE
        out = b""
        for piece in self._pieces:
            if skip >= len(piece):
                skip -= len(piece)
                continue
            part = piece[skip : skip + wanted - len(out)]
            if len(part) == wanted:
                return part
            out += part
            skip = 0
            if len(out) >= wanted:
                break
        return out

    def _forget(self, played: int) -> None:
        """Let go of pieces that were played whole."""
        while self._pieces and self._kept + len(self._pieces[0]) // BYTES_PER_SAMPLE <= played:
            self._kept += len(self._pieces.popleft()) // BYTES_PER_SAMPLE
        if self._room is not None and self.held_ms < self._limit_ms:
            self._make_room()

    async def _wait(self, timeout_ms: float | None) -> None:
        news = self._news = asyncio.get_running_loop().create_future()
        timer = None if timeout_ms is None else self._clock.call_later_ms(timeout_ms, self._wake)
        try:
            await news
        finally:
            self._news = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _ms(self, samples: int) -> float:
        return samples * 1000.0 / self._rate_hz

    def _samples(self, ms: float) -> int:
        return int(ms * self._rate_hz / 1000.0 + 1e-6)


def _sayable(text: str, audio_ms: float) -> str:
    """As many words of the text as can have been said in so long."""
    words = text.split()
    ends = accumulate(len(word) + 1 for word in words)
    return " ".join(word for word, end in zip(words, ends) if end <= audio_ms * FASTEST + 1)


def _heard_part(span: _Span, played_ms: float, share: float, at_least: int) -> str:
    """The words of a sentence that were played: by their times where the voice gave them, else by the share played."""
    if span.words:
        known = [word.text for word in span.words]
        return " ".join(known[: max(at_least, sum(word.end_ms <= played_ms for word in span.words))])
    words = span.text.split()
    return " ".join(words[: max(at_least, int(len(words) * share))])
