"""One session's recognition: its audio goes to the first recogniser that takes it, and from one that fails to the next.

What is not answered yet is kept in a `Log`. One task, the driver, opens a stream, feeds it from the log, and when the stream
fails, or owes its closing transcript for too long, begins anew with another: the same recogniser where that may help, else
the next one. So each word is told once, whoever hears it in the end.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import attrs

from .._streams import stop
from ..audio import Audio
from ..clock import Timers
from ..engine import Context
from ..errors import ConnectFailedError, ProtocolError, ProviderError, ProviderTimeoutError
from ..frames import Failed, Frame, Transcript
from ..ranked import Duty, Ranked
from ..resilience import Call, provider_error
from .contract import STTStream
from .log import Log, Utterance, Wish
from .placing import moved
from .upstream import Upstream

__all__ = ["EMPTY_MS", "PATIENCE", "Recognition", "heard_nothing"]

WAITING_AUDIO_MS = 30_000.0
DRAIN_MS = 30_000.0
DOWN_MS = 1_000.0  # when nobody hears the caller, the next try in mid-utterance
PATIENCE = 4  # so many times longer is the last provider waited for: a late answer is better than none
EMPTY_MS = 1_000.0  # nobody says nothing for so long: another provider is asked, too


class Recognition:
    """Takes what a caller says and tells what was said. Nothing that is put in waits.

    Args:
        ranked: the recognisers, in order of preference.
        context: whose tasks, clock, counters and handles.
        tell: told every frame that comes of it: transcripts, `Failed`, `Retried`, `FailedOver`, `HealthChanged`, `Usage`.
    """

    def __init__(self, ranked: Ranked, context: Context, tell: Callable[[Frame], object]) -> None:
        self._engines, self._options, self._context, self._tell = ranked.engines, ranked.resilience, context, tell
        self._ends_turns = self._engines[0].capabilities.ends_turns
        self._duty = Duty(ranked, context, tell, room_ms=0.0)
        self._log = Log(WAITING_AUDIO_MS)
        self._line_ms = 0.0  # where, on the caller's line, the newest audio ends
        self._timers = Timers(context.clock)
        self._driver: asyncio.Task[None] | None = None
        self._work: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._eager = False
        self._upstream: Upstream | None = None
        self._serving: asyncio.Timeout | None = None
        self._failure: Exception | None = None
        self._held: list[Transcript] = []  # finals that a failure would undo: told once the closing one is there
        self._kept: list[Transcript] = []  # those of streams that failed: better than nothing
        self._begin_round()

    def _begin_round(self) -> None:
        """Whatever failed before may be tried again."""
        self._failures: Counter[int] = Counter()
        self._error: ProviderError | None = None

    # --- what is put in ----------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Open a stream now, before there is audio."""
        self._eager = True
        self._wake()

    def audio(self, audio: Audio, end_ms: float = 0.0) -> None:
        """Take audio that ends at `end_ms` on the line. What a stalled provider leaves no room for is left out, and counted."""
        self._line_ms = end_ms
        log = self._log
        if self._error is not None and log.is_empty:
            self._begin_round()
        log.add(audio)
        if log.dropped_ms:
            self._context.counters["stt_audio_dropped_ms"] += round(log.dropped_ms)
            log.dropped_ms = 0.0
        self._wake()

    def wish(self, wish: Wish) -> None:
        """Take a wish concerning the audio so far."""
        self._log.wish(wish)
        self._wake()

    def finalize(self) -> None:
        """The utterance is over; one closing transcript will be told for it, whatever happens."""
        log = self._log
        if log.is_empty:
            self._tell(Transcript("", closes=True))
            return
        first = log.owed is None
        log.close(self._context.clock.now_ms())
        if first:
            self._expect()
        self._wake()

    async def drain(self) -> None:
        """No more will be put in: wait until all of it is answered, and stop."""
        if self._driver is not None and not self._log.is_settled:
            self._drained = asyncio.get_running_loop().create_future()
            self._wake()
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_MS / 1000.0):
                    await self._drained
        await self.aclose()

    async def aclose(self) -> None:
        """Stop at once."""
        self._timers.cancel()
        if self._driver is not None:
            await stop(self._driver)

    def _wake(self) -> None:
        if self._driver is None:
            self._driver = self._context.spawn(self._drive(), f"{self._engines[0].name} stream")
        elif self._work is not None and not self._work.done():
            self._work.set_result(None)

    # --- the driver --------------------------------------------------------------------------------------------------

    async def _drive(self) -> None:
        call: Call | None = None
        while True:
            if call is None:
                while self._log.is_empty and not self._eager:
                    await self._wait()
                try:
                    call = await self._duty.enter(self._failures, self._error)
                except ProviderError as error:
                    self._give_up(error)
                    await self._rest()
                    continue
            call = await self._use(call)

    async def _wait(self) -> None:
        """Wait until something is put in."""
        self._work = work = asyncio.get_running_loop().create_future()
        try:
            await work
        finally:
            self._work = None

    async def _rest(self) -> None:
        """Nobody hears the caller: wait until a final is asked for, at most a moment."""
        if not self._log.is_empty:
            with suppress(TimeoutError):
                async with asyncio.timeout(DOWN_MS / 1000.0):
                    while self._log.owed is None:
                        await self._wait()

    # --- one stream --------------------------------------------------------------------------------------------------

    async def _use(self, call: Call) -> Call | None:
        """Have the one on duty hear all that is not answered, and what comes, until it fails; a call of a better one."""
        index = self._duty.at
        self._failure = None
        self._log.rewind()
        if self._log.missing_ms:
            self._context.counters["stt_replay_missing_ms"] += round(self._log.missing_ms)
        self._upstream = upstream = Upstream(self._engines[index], call, self._context, self._tell)
        better, error = None, None
        try:
            async with asyncio.timeout(None) as self._serving:
                better = await self._serve(upstream)
        except Exception as caught:
            error = self._failure or caught
        except BaseException:
            await upstream.aclose()
            raise
        finally:
            self._serving = self._upstream = None
            self._timers.cancel()
            if upstream.reading is not None:
                upstream.reading.cancel()  # what it still says is told by another
        if error is not None:
            self._failed(index, upstream, provider_error(error, "stt", upstream.engine.name))
        self._held = []
        self._context.spawn(upstream.aclose(), f"close {upstream.engine.name}")  # nobody waits for a dead socket
        return better

    async def _serve(self, upstream: Upstream) -> Call | None:
        log = self._log
        while log.owed is not None and log.owed.told and not log.owed.audio:  # all but its end was told
            self._answer(Transcript("", closes=True))
        self._expect()
        stream = await upstream.open(self._options.connect_timeout_ms)
        if log.owed is None:
            upstream.call.idle()
        upstream.reading = self._context.spawn(self._read(upstream, stream), f"{upstream.engine.name} transcripts")
        while True:
            if self._duty.at and log.at_boundary and not log.is_empty:
                better = self._duty.better()
                if better is not None:
                    return better
            item = log.take()
            if item is not None:
                await upstream.give(item)
                continue
            self._settle()
            await self._wait()

    def _settle(self) -> None:
        if self._drained is not None and self._log.owed is None and not self._drained.done():
            self._drained.set_result(None)

    # --- failing -----------------------------------------------------------------------------------------------------

    def _fail(self, upstream: Upstream, error: Exception) -> None:
        """The stream is of no more use: the driver is woken to deal with it."""
        if upstream is self._upstream and self._failure is None and self._serving is not None:
            self._failure = error
            self._serving.reschedule(asyncio.get_running_loop().time())

    def _failed(self, index: int, upstream: Upstream, error: ProviderError) -> None:
        """It did not answer; whether it is tried again is decided with the next call."""
        upstream.call.failed(error)
        upstream.call.close()
        if upstream.is_open and self._log.is_empty:  # between two utterances: the next one opens another
            self._eager = False
            self._context.counters["stt_streams_lost"] += index == self._duty.at
            return
        self._error = error
        self._kept = self._held or self._kept
        self._failures[index] += 1

    def _give_up(self, error: ProviderError) -> None:
        """All have failed: what is owed is answered with what is known; what is not over yet may be heard later."""
        owed = self._log.owed
        if owed is not None or self._error is not None:
            self._tell(Failed(self._engines[0].name, error))
        if owed is not None:
            for transcript in self._kept:
                self._tell(transcript)
        while self._log.owed is not None:
            self._answer(Transcript("", closes=True))
        self._eager = False
        self._begin_round()
        self._settle()

    # --- what it owes ------------------------------------------------------------------------------------------------

    def _expect(self) -> None:
        """The closing transcript of the first utterance that is over is owed from now on."""
        utterance, upstream = self._log.owed, self._upstream
        if utterance is not None and upstream is not None:
            upstream.call.asked()
            limit_ms = self._options.final_timeout_ms + utterance.audio_ms / 10.0
            self._timers.set("final", limit_ms, self._late, upstream, utterance, limit_ms, 1)

    def _late(self, upstream: Upstream, utterance: Utterance, limit_ms: float, times: int) -> None:
        """Too long: go to another, if there is one; a remote provider that is the last has longer, one here all the time."""
        if times < PATIENCE and not self._duty.others(self._failures):
            if upstream.engine.account:
                wait_ms = limit_ms * (PATIENCE - times)
                self._timers.set("final", wait_ms, self._late, upstream, utterance, limit_ms, PATIENCE)
            return
        name = upstream.engine.name
        error = ProviderTimeoutError(
            f"stt {name!r} gave no closing transcript within {limit_ms * times:.0f} ms for {utterance.audio_ms:.0f} ms of "
            "audio; expected it sooner. Raise final_timeout_ms in [resilience], or put a faster provider first",
            provider=name,
            kind="stt",
        )
        self._fail(upstream, error)

    def _answer(self, transcript: Transcript) -> None:
        """The first utterance has its closing transcript."""
        self._log.answered()
        self._kept = []
        self._tell(transcript)
        self._expect()

    # --- what comes back ---------------------------------------------------------------------------------------------

    async def _read(self, upstream: Upstream, stream: STTStream) -> None:
        try:
            async for frame in stream:
                await self._hear(upstream, frame)
            name, before = upstream.engine.name, " before the final transcript" if self._log.owed else ""
            error: Exception = ConnectFailedError(
                f"stt {name!r} ended its stream{before}; expected it to stay open. Try again, or name a stand-by",
                provider=name,
                kind="stt",
            )
        except Exception as caught:
            error = caught
        self._fail(upstream, error)

    async def _hear(self, upstream: Upstream, frame: Frame) -> None:
        if self._ends_turns:
            self._hear_turns(upstream, frame)
        elif type(frame) is not Transcript:
            self._tell(frame)
        elif not frame.is_final:
            self._show(frame)
        elif frame.closes and self._log.owed is not None and self._log.owed.asked:
            await self._hear_closing(upstream, self._log.owed, frame)
        elif frame.through_ms is None:
            self._show(frame)
            self._held.append(attrs.evolve(frame, closes=False))
        else:
            self._release()
            self._tell(attrs.evolve(frame, closes=False))
            self._log.cover(frame.through_ms)

    def _hear_turns(self, upstream: Upstream, frame: Frame) -> None:
        """Of a recogniser that ends turns all is told as it comes, at its place on the caller's line."""
        self._tell(moved(frame, self._line_ms - self._log.end_ms))
        if type(frame) is Transcript and frame.is_final:
            if frame.through_ms is None:
                self._log.cover_given()
            else:
                self._log.cover(frame.through_ms)
            upstream.call.asked()
            upstream.call.succeeded()
            upstream.bill()
            self._begin_round()

    async def _hear_closing(self, upstream: Upstream, utterance: Utterance, frame: Transcript) -> None:
        self._timers.cancel()
        silent = not (frame.text or utterance.told or any(one.text for one in self._held))
        if silent and utterance.audio_ms >= EMPTY_MS and await self._second_opinion(upstream, utterance):
            return
        upstream.call.succeeded()
        upstream.bill()
        self._release()
        self._begin_round()
        self._answer(frame)
        if self._log.is_settled:
            self._settle()

    async def _second_opinion(self, upstream: Upstream, utterance: Utterance) -> bool:
        """Ask the others where this one heard nothing; True if one heard something: then it goes on in its place."""
        for index in self._duty.others(self._failures):
            found = await self._heard_by(index, utterance)
            if found is not None:
                break
        else:
            return False
        if not found.text:
            return False
        self._error = heard_nothing(upstream.engine.name, self._engines[index].name, utterance.audio_ms)
        self._fail(upstream, self._error)
        self._duty.go_to(index, self._error)
        self._answer(found)
        return True

    async def _heard_by(self, index: int, utterance: Utterance) -> Transcript | None:
        """What another provider hears in an utterance; None if it fails."""
        call = self._duty.guard(index).enter(self._tell)
        if call is None:
            return None
        self._context.counters["stt_empty_checked"] += 1
        limit_ms = self._options.connect_timeout_ms + self._options.final_timeout_ms + utterance.audio_ms / 10.0
        other = Upstream(self._engines[index], call, self._context, self._tell)
        found: Transcript | None = None
        try:
            with suppress(Exception), call:
                async with asyncio.timeout(limit_ms / 1000.0):
                    found = await other.understand(utterance.audio, self._options.connect_timeout_ms)
        except BaseException:
            await other.aclose()
            raise
        self._context.spawn(other.aclose(), f"close {other.engine.name}")  # the answer does not wait for it
        return found

    def _show(self, frame: Transcript) -> None:
        """Tell words that may still change, after those that are held."""
        text = " ".join(one.text for one in (*self._held, frame) if one.text)
        self._tell(attrs.evolve(frame, text=text, is_final=False, closes=False))

    def _release(self) -> None:
        held, self._held = self._held, []
        for transcript in held:
            self._tell(transcript)


def heard_nothing(name: str, other: str, audio_ms: float) -> ProtocolError:
    """What is wrong with a recogniser that heard nothing where another heard words."""
    return ProtocolError(
        f"stt {name!r} heard nothing in {audio_ms:.0f} ms of audio, and {other!r} did; expected its words. "
        "Check its model and language",
        provider=name,
        kind="stt",
    )
