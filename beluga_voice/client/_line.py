"""The line to the server, which outlives its sockets: pumps both ways, notices a loss, comes back, moves when asked."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import attrs

from .. import wire
from .._streams import Tasks
from ..clock import Clock
from ..errors import ConfigError
from ..link import Link
from ._dialer import ATTEMPT_MS, FULL, LOST_CODES, NOT_RESUMABLE, Attached, Dialer
from ._player import Place
from ._socket import NO_CLOSE_FRAME, Closed, Socket
from ._welcome import Welcome, as_ms, is_number

__all__ = ["Line"]

BYE, REPLACED = 1000, 4409
PING_MS, SILENCE_MS, TICK_MS = 5_000.0, 9_500.0, 500.0
STEADY_MS = 2_000.0
MOVE_BY, MOVE_SPREAD, MOVE_SPREAD_MS, LOOK_MS = 0.8, 0.1, 1_000.0, 50.0
MOST_REPORTS = 100
# More than the silence after which a dead line is noticed: until then live audio waits for nobody.
FEW_UNSENT, MOST_UNSENT_MS = 50, 15_000.0
FARTHEST_JUMP = 1_000_000
HANG_UP_S = 1.0
LAST_TRY_MS = 500.0


@attrs.frozen
class GoAway:
    """The server wants us elsewhere within `deadline_ms` from `told_ms` on."""

    told_ms: float
    deadline_ms: float


class Line:
    """One session's line.

    Args:
        dialer: how to reach the server.
        rate_hz: of the audio we send.
        tasks: own what runs here.
        rng: spreads the clients of one server when it sends them away.
        take: is given what the server sent: audio, or a JSON object; each once and in order.
        tell: is given events of the line's own.
        place: says where playing is.
        at_boundary: says that nobody is in the middle of a turn: a good moment to move.
    """

    def __init__(
        self,
        dialer: Dialer,
        rate_hz: int,
        *,
        tasks: Tasks,
        clock: Clock,
        rng: random.Random,
        take: Callable[[wire.AudioMessage | dict[str, Any]], None],
        tell: Callable[..., None],
        place: Callable[[], Place],
        at_boundary: Callable[[], bool],
    ) -> None:
        self.session_id = ""
        self.welcome: Welcome | None = None
        self.counters: Counter[str] = Counter()
        self.rtt_ms: float | None = None
        self._dialer, self._rate_hz, self._tasks = dialer, rate_hz, tasks
        self._clock, self._rng = clock, rng
        self._take, self._tell, self._place, self._at_boundary = take, tell, place, at_boundary
        self._link = Link(rate_hz)
        self._attached: Attached | None = None
        self._attached_ms = self._heard_ms = self._lost_ms = 0.0
        self._tries = 0
        self._reports: deque[str] = deque(maxlen=MOST_REPORTS)
        self._next = self._given_up = 0
        self._wake, self._sent, self._asked_away = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._go_away = GoAway(0.0, 0.0)
        self._moving = self._leaving = False
        self._ended: Closed | None = None

    # --- what the caller's side says ---------------------------------------------------------------------------------

    @property
    def is_up(self) -> bool:
        """True while a socket carries the line."""
        return self._attached is not None

    def say(self, message: Mapping[str, Any]) -> None:
        """Send a numbered JSON message, now or when the line is back."""
        self._link.stamp(message)
        self._wake.set()

    async def say_audio(self, pcm: bytes) -> None:
        """Send audio, now or when the line is back; waits while a line that is up takes no more."""
        self._link.stamp_audio(pcm)
        self._wake.set()
        while self.is_up and self._unsent_ms() > MOST_UNSENT_MS:
            self._sent.clear()
            await self._sent.wait()

    def report(self, message: Mapping[str, Any]) -> None:
        """Send a message without a number, or drop it when the line is down."""
        if self.is_up:
            self._reports.append(wire.text(message))
            self._wake.set()

    def _unsent_ms(self) -> float:
        waiting = range(self._next, self._link.next_seq)
        if len(waiting) < FEW_UNSENT:
            return 0.0
        sizes = (len(message) for seq in waiting if isinstance(message := self._link.get(seq), bytes))
        return sum(sizes) * 500.0 / self._rate_hz

    # --- its life ----------------------------------------------------------------------------------------------------

    async def open(self, timeout_ms: float) -> None:
        """Dial until the server says welcome; raises what `Dialer.first` does."""
        attached = await self._dialer.first(timeout_ms)
        self._link = Link(self._rate_hz, window_ms=attached.welcome.resume_window_ms)
        self.session_id = attached.welcome.session_id
        self._adopt(attached)
        self._tell("connected", session_id=self.session_id)

    async def run(self) -> Closed:
        """Carry the line until it ends; how that was."""
        while self._attached is not None:
            attached = self._attached
            outcome = await self._serve(attached.socket)
            if isinstance(outcome, Closed):
                self._detach(attached, outcome)
                if self._leaving or outcome.code not in LOST_CODES:
                    return outcome
                outcome = await self._come_back(outcome)
            else:
                self._dialer.retire(attached.socket, "moved to another connection")
            if isinstance(outcome, Closed):
                return outcome
            moved = self._attached is not None
            unsent_lost = self._adopt(outcome)
            self.counters["moved" if moved else "resumed"] += 1
            gap_ms = 0.0 if moved else self._attached_ms - self._lost_ms
            events_lost = outcome.welcome.events_lost
            self._tell("resumed", gap_ms=gap_ms, moved=moved, events_lost=events_lost, unsent_lost=unsent_lost)
        return Closed(NO_CLOSE_FRAME, "the line was never opened")

    async def hang_up(self, running: asyncio.Task[Any]) -> None:
        """Say goodbye and see `run` end; at most a second, and not at all when the line is down."""
        self._leaving = True
        attached = self._attached
        if attached is None or running.done():
            return
        self.say({"type": "bye"})
        await asyncio.wait([running], timeout=HANG_UP_S)
        if not running.done():
            await attached.socket.close(BYE, "bye")

    def _adopt(self, attached: Attached) -> int:
        """Go on over this socket; how many of our messages cannot be sent again."""
        welcome = attached.welcome
        self._attached, self.welcome = attached, welcome
        self._attached_ms = self._heard_ms = self._clock.now_ms()
        self._dialer.learn_token(welcome.resume_token)
        self._ended = None
        self._asked_away.clear()
        self._reports.clear()
        if welcome.received_seq >= self._link.next_seq:
            self._link.skip_to(welcome.received_seq + 1)
        lost = self._go_on_with(welcome.received_seq + 1)
        self.report({"type": "ping", "t_ms": self._clock.now_ms()})  # at once: it proves that the new token arrived
        return lost

    def _go_on_with(self, seq: int) -> int:
        """Write message `seq` next, or the first after it that is still kept; how many are given up that were not before."""
        first = self._link.first_seq
        lost = max(0, first - max(seq, self._given_up))
        self._next, self._given_up = max(seq, first), max(first, self._given_up)
        self.counters["unsent_lost"] += lost
        return lost

    def _detach(self, attached: Attached, closed: Closed) -> None:
        self._attached = None
        self._lost_ms = self._clock.now_ms()
        if self._lost_ms - self._attached_ms >= STEADY_MS:
            self._tries = 0
        self._reports.clear()
        self._sent.set()
        self._dialer.retire(attached.socket, closed.reason)

    async def _come_back(self, why: Closed) -> Attached | Closed:
        """Dial until the line is back, the window is over, or there is no coming back."""
        self._tell("lost", code=why.code, reason=why.reason)
        assert self.welcome is not None
        until_ms = self._lost_ms + self.welcome.resume_window_ms
        delay_ms = self._dialer.delay_ms(self._tries - 1, why) if self._tries else 0.0
        attempts = 0
        while True:
            left_ms = until_ms - self._clock.now_ms()
            if left_ms > LAST_TRY_MS:  # never a wait to the window's end: the server may be back shortly before
                delay_ms = min(delay_ms, left_ms / 2)
            if delay_ms >= left_ms:
                await self._clock.sleep_ms(left_ms)
                return Closed(NO_CLOSE_FRAME, f"the line did not come back in {attempts} attempts; the last: {why.reason}")
            if delay_ms:
                self._tell("retrying", attempt=attempts + 1, delay_ms=delay_ms, reason=why.reason)
                await self._clock.sleep_ms(delay_ms)
            token = self._dialer.tokens[0]
            outcome = await self._attach_again(attempts, token, until_ms - self._clock.now_ms())
            attempts += 1
            self._tries += 1
            if isinstance(outcome, Attached):
                return outcome
            why, delay_ms = outcome, self._dialer.delay_ms(self._tries - 1, outcome)
            if outcome.code == NOT_RESUMABLE:
                self._dialer.tokens.remove(token)
                delay_ms = 0.0
            if not self._dialer.tokens or outcome.code not in (*LOST_CODES, FULL, NOT_RESUMABLE):
                return outcome

    async def _attach_again(self, tries: int, token: str, within_ms: float) -> Attached | Closed:
        def resume() -> dict[str, Any]:
            place = self._place()
            return {
                "session_id": self.session_id,
                "resume_token": token,
                "received_seq": self._link.received_seq,
                "played": {"seq": place.seq, "ms": place.ms},
            }

        return await self._dialer.again(tries, within_ms, resume)

    # --- while a socket carries it -----------------------------------------------------------------------------------

    async def _serve(self, socket: Socket) -> Attached | Closed:
        """Everything a socket needs, until one part of it is done; what that gave."""
        works: tuple[Coroutine[Any, Any, Attached | Closed], ...]
        works = (self._read(socket), self._write(socket), self._keep_alive(), self._move())
        tasks = [self._tasks.spawn(work, "client-line") for work in works]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        given = [task.result() for task in tasks if not task.cancelled()]
        return next((one for one in given if isinstance(one, Attached)), given[0])

    async def _read(self, socket: Socket) -> Closed:
        while True:
            got = await socket.receive()
            if isinstance(got, Closed):
                if not self._moving:
                    return got
                # The new connection took over, or the server could not wait; what becomes of the new one decides.
                self._ended = Closed(NO_CLOSE_FRAME, got.reason) if got.code == REPLACED else got
                return await _never()
            self._heard_ms = self._clock.now_ms()
            try:
                message = wire.parse_server(got)
            except wire.WireError as error:
                self._garbage(error.reason)
                continue
            if isinstance(message, dict):
                self._read_json(message)
            elif self._is_new(message.seq):
                self._take(message)

    def _read_json(self, message: dict[str, Any]) -> None:
        name = message["type"]
        if name == "ack":
            safe_seq = message.get("safe_seq", message.get("seq"))
            if type(safe_seq) is int:
                self._link.acked(safe_seq)
        elif name == "ping":
            if is_number(message.get("t_ms")):
                self.report({"type": "pong", "t_ms": message["t_ms"]})
        elif name == "pong":
            if is_number(message.get("t_ms")):
                self.rtt_ms = max(0.0, self._clock.now_ms() - message["t_ms"])
        elif name != "welcome":
            seq = message.get("seq")
            if type(seq) is not int or seq < 0:
                self._garbage(f"{name}: seq is {wire.shorten(repr(seq))}; expected a whole number")
            elif self._is_new(seq):
                if name == "goaway":
                    self._asked(message)
                self._take(message)
                if name in ("turn_end", "reply_end"):
                    self._report_ack()

    def _is_new(self, seq: int) -> bool:
        if seq - self._link.received_seq > FARTHEST_JUMP:
            self._garbage(f"number {seq} after {self._link.received_seq}")
            return False
        before = self._link.missing
        verdict = self._link.judge(seq, self._clock.now_ms())
        if verdict == "gap":
            self.counters["gaps"] += 1
            self._tell("gap", missing=self._link.missing - before)
        return verdict != "old"

    def _garbage(self, why: str) -> None:
        self.counters["garbage"] += 1
        self._tell("garbage", message=why)

    def _report_ack(self) -> None:
        self._reports.append(self._link.ack())
        self._wake.set()

    async def _write(self, socket: Socket) -> Closed:
        link = self._link
        while True:
            self._wake.clear()
            while self._reports:
                await socket.send(self._reports.popleft())
            if self._next < link.first_seq:
                self._tell("behind", unsent_lost=self._go_on_with(self._next))
            message = link.get(self._next)
            if message is None:
                await self._wake.wait()
                continue
            self._next += 1
            await socket.send(message)
            self._sent.set()

    async def _keep_alive(self) -> Closed:
        pinged_ms = self._attached_ms
        while True:
            await self._clock.sleep_ms(TICK_MS)
            now_ms = self._clock.now_ms()
            if now_ms - self._heard_ms >= SILENCE_MS:
                return Closed(NO_CLOSE_FRAME, f"nothing was heard for {SILENCE_MS / 1000:.0f} s")
            if self._link.owes_ack:
                self._report_ack()
            if now_ms - pinged_ms >= PING_MS - TICK_MS:
                pinged_ms = now_ms
                self.report({"type": "ping", "t_ms": now_ms})

    # --- moving to another server ------------------------------------------------------------------------------------

    def _asked(self, message: Mapping[str, Any]) -> None:
        """The server is going away: know how to come back, and when."""
        token, url = message.get("resume_token"), message.get("url")
        if isinstance(token, str) and 0 < len(token) <= wire.MAX_NAME:
            self._dialer.learn_token(token)
        if isinstance(url, str) and url:
            try:
                self._dialer.learn_url(url)
            except ConfigError as error:
                self._garbage(f"goaway: {error}")
        self._go_away = GoAway(self._clock.now_ms(), as_ms(message.get("deadline_ms"), 0.0))
        self._asked_away.set()

    async def _move(self) -> Attached | Closed:
        """Once told to go away: attach anew at a turn boundary or shortly before the deadline, this line still being up."""
        await self._asked_away.wait()
        asked = self._go_away
        await self._clock.sleep_ms(self._rng.uniform(0.0, min(MOVE_SPREAD_MS, asked.deadline_ms * MOVE_SPREAD)))
        while not self._at_boundary() and self._clock.now_ms() - asked.told_ms < asked.deadline_ms * MOVE_BY:
            await self._clock.sleep_ms(LOOK_MS)
        tries = 0
        while tries == 0 or self._clock.now_ms() - asked.told_ms < asked.deadline_ms:
            outcome = await self._move_once(tries)
            if isinstance(outcome, Attached):
                return outcome
            if self._ended is not None:
                return self._ended
            await self._clock.sleep_ms(self._dialer.delay_ms(tries, outcome))
            tries += 1
        return await _never()

    async def _move_once(self, tries: int) -> Attached | Closed:
        outcome: Attached | Closed = Closed(NOT_RESUMABLE, "no token")
        self._moving = True
        try:
            for token in tuple(self._dialer.tokens):
                outcome = await self._attach_again(tries, token, ATTEMPT_MS)
                if isinstance(outcome, Attached) or outcome.code != NOT_RESUMABLE:
                    break
        finally:
            self._moving = False
        return outcome


async def _never() -> Closed:
    """Wait until another work of the socket decides."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nobody sets it")
