"""A call to a beluga-voice server."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Any

from .. import wire
from .._streams import Channel, Tasks
from ..audio import BYTES_PER_SAMPLE
from ..clock import Clock
from ..errors import AudioFormatError, OptionError, SessionClosedError, SessionError
from ._dialer import Dialer, Token
from ._line import Line
from ._player import Place, Player
from ._socket import Closed, Dial, dial

__all__ = ["Call", "connect"]

MOST_EVENTS = 1_000
PLAY_MS, REPORT_MS = 20.0, 100.0
PLAY_LIMIT_MS = 10_000.0
PIECE_MS = 100
BYE, LOST = 1000, 1006
END_REASONS = {
    1000: "bye",
    1009: "too_large",
    4400: "protocol",
    4401: "unauthorised",
    4408: "idle",
    4409: "replaced",
    4410: "not_resumable",
    4413: "max_session",
    4500: "error",
}


def connect(
    url: str,
    *,
    token: Token = None,
    input_rate_hz: int = 16_000,
    output_rate_hz: int = 16_000,
    metadata: Mapping[str, Any] | None = None,
    push: bool = False,
    paced: bool = True,
    on_audio: Callable[[bytes], None] | None = None,
    connect_timeout_ms: float = 10_000.0,
    dial: Dial = dial,
    clock: Clock | None = None,
    rng: random.Random | None = None,
) -> Call:
    """A call to the server at `url`; it begins with `async with`.

    Args:
        url: like "ws://127.0.0.1:8080/v1/voice".
        token: the ticket of `POST /v1/sessions`, where the server asks for one; or a coroutine function that gives a fresh
            one for each try, as a ticket is good for one.
        input_rate_hz: the rate of the audio you send, 8,000 to 48,000.
        output_rate_hz: the rate of the audio you hear, 8,000 to 48,000.
        metadata: what the server's application may want to know, as JSON values.
        push: push-to-talk: turns begin with `start_turn` and end with `end_turn`, whatever is heard.
        paced: the call plays by the clock, whether anybody listens or not. False: what plays takes the sound with `read`.
        on_audio: of a paced call: called from the loop with the sound of each 20 ms as it is played; not during silence.
        connect_timeout_ms: how long a server that is full or says no welcome is tried before there is a session.
        dial: opens the WebSocket; for tests and for tunnels of your own.
        clock: whose time it keeps.
        rng: where the jitter of retries comes from.

    Raises:
        ConfigError: `url` is no WebSocket address (OptionError: an argument is of the wrong type or out of range).

    On entering:
        ConnectFailedError: nobody answers at `url`, or nobody said welcome in time.
        AuthError: the token was refused.
        SessionLimitError: the server was full all the while.
        InvalidRequestError: the server refused the call for another reason.
    """
    hello = {
        "sample_rate_hz": input_rate_hz,
        "output_rate_hz": output_rate_hz,
        "encoding": "pcm16",
        "turn_mode": "push" if push else "vad",
        "metadata": dict(metadata or {}),
    }
    _check({"type": "hello", "token": token if isinstance(token, str) else "", **hello})
    if on_audio is not None and not paced:
        raise OptionError("on_audio is called by a paced call, and paced is False; leave one of them out")
    return Call(url, hello, token, paced, on_audio, connect_timeout_ms, dial, clock or Clock(), rng or random.Random())


class Call(AsyncIterator[dict[str, Any]]):
    """A call that survives the loss of its line; made by `connect`.

    Iterating gives what the server says, as dicts of the protocol ("state", "transcript", "reply", ...), and
    `{"type": "line", "state": ...}` of the client's own: "connected"; "lost" and "retrying" with a `reason`; "resumed" with
    `gap_ms`, `moved` (the old line was still up), `events_lost` (the server could not send everything again) and
    `unsent_lost` (messages of ours that fell out of the window); "behind" with `unsent_lost`; "gap" with `missing`;
    "garbage" with a `message`; "ended". It ends when the call does. At most 1,000 wait to be read; then the oldest are
    dropped and counted.

    Attributes:
        session_id: the server's name for the session.
        end_reason: why the call ended, "" while it goes on: "bye", "lost", "idle", "replaced", "not_resumable",
            "max_session", "error", "protocol", "unauthorised", "too_large", "closed".
        close_code: the WebSocket's close code then; 1006 where the line was lost, None while the call goes on.
        close_reason: the server's own words.
        state: the session's state as last told.
        counters: what went wrong and was survived: "resumed", "moved", "gaps", "garbage" (what the server sent that is no
            message), "unsent_lost" (messages that fell out of the resume window), "events_dropped", "play_dropped_ms".

    Example::

        async with client.connect("ws://127.0.0.1:8080/v1/voice") as call:
            await call.send_text("What is the weather like?")
            async for event in call:
                if event["type"] == "reply_end":
                    break
    """

    def __init__(
        self,
        url: str,
        hello: dict[str, Any],
        token: Token,
        paced: bool,
        on_audio: Callable[[bytes], None] | None,
        connect_timeout_ms: float,
        dial: Dial,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self.input_rate_hz: int = hello["sample_rate_hz"]
        self.output_rate_hz: int = hello["output_rate_hz"]
        self.end_reason, self.close_reason, self.state = "", "", "connected"
        self.close_code: int | None = None
        self.paced, self._on_audio = paced, on_audio
        self._timeout_ms, self._clock = connect_timeout_ms, clock
        self._events: Channel[dict[str, Any]] = Channel(MOST_EVENTS)
        self._player = Player(self.output_rate_hz, limit_ms=PLAY_LIMIT_MS, now_ms=clock.now_ms if paced else None)
        self._audible = asyncio.Event()
        self._told: Place | None = Place()
        self._tasks = Tasks()
        self._dialer = Dialer(url, hello, token=token, dial=dial, clock=clock, rng=rng, tasks=self._tasks)
        self._line = Line(
            self._dialer,
            self.input_rate_hz,
            tasks=self._tasks,
            clock=clock,
            rng=rng,
            take=self._take,
            tell=self._tell,
            place=lambda: self._player.place,
            at_boundary=lambda: self.state in ("listening", "connected") and not self._player.is_playing,
        )
        self._running: asyncio.Task[None] | None = None
        self._leaving = False

    # --- its life ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Call:
        if self._running is not None or self.end_reason:
            raise SessionError("a call is entered once; connect anew for another")
        try:
            await self._line.open(self._timeout_ms)
            self._running = self._tasks.spawn(self._run(), "client-call")
        except BaseException:
            self.end_reason = "closed"
            await self._free()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Hang up and free everything; may be called twice. The server has a second to say goodbye."""
        self._leaving = True
        try:
            if self._running is not None and not self._running.done():
                await self._line.hang_up(self._running)
        finally:
            self._end(Closed(BYE if self._line.is_up else LOST, "hung up"), "bye")
            await self._free()

    async def _free(self) -> None:
        try:
            await self._tasks.aclose(grace_ms=2_000.0)
        finally:
            self._dialer.abort()

    async def _run(self) -> None:
        playing = self._tasks.spawn(self._play(), "client-play")
        running = self._tasks.spawn(self._line.run(), "client-run")
        try:
            await asyncio.wait((playing, running), return_when=asyncio.FIRST_COMPLETED)
            if playing.done() and not playing.cancelled() and (error := playing.exception()) is not None:
                self._end(Closed(LOST, f"on_audio raised {type(error).__name__}"), "error", error)
            elif running.done() and not running.cancelled():
                failed = running.exception()
                if failed is not None:
                    self._end(Closed(LOST, f"the client failed: {failed}"), "error", failed)
                else:
                    closed = running.result()
                    reason = END_REASONS.get(closed.code, "lost" if closed.code == LOST else "closed")
                    self._end(closed, "bye" if self._leaving else reason)
        finally:
            playing.cancel()
            running.cancel()

    def _end(self, closed: Closed, reason: str, error: BaseException | None = None) -> None:
        if self.close_code is not None:
            return
        self.end_reason, self.close_code, self.close_reason = reason, closed.code, closed.reason
        self._tell("ended", reason=reason, code=closed.code, message=closed.reason)
        self._events.close(error)

    # --- what you say ------------------------------------------------------------------------------------------------

    async def send_audio(self, pcm: bytes) -> None:
        """Send live audio: signed 16-bit little-endian mono at `input_rate_hz`, of any length.

        While the line is down it is kept, as much as the resume window holds, and sent when the line is back; beyond that the
        oldest is dropped. Waits only while a line that is up is 15 s behind.

        Raises:
            AudioFormatError: half a sample.
            SessionClosedError: the call has ended.
        """
        self._check_live()
        if len(pcm) % BYTES_PER_SAMPLE:
            raise AudioFormatError(f"{len(pcm)} bytes of audio; expected whole samples of 2 bytes", wanted="pcm16")
        step = self.input_rate_hz * PIECE_MS // 1000 * BYTES_PER_SAMPLE
        for at in range(0, len(pcm), step):
            await self._line.say_audio(bytes(pcm[at : at + step]))

    async def send_text(self, text: str) -> None:
        """Send a typed turn, at most 10,000 characters.

        Raises:
            OptionError: the text is too long.
            SessionClosedError: the call has ended.
        """
        self._say({"type": "text", "text": text})

    def start_turn(self) -> None:
        """Push-to-talk is pressed: the turn begins now, whatever is heard. Raises SessionClosedError."""
        self._say({"type": "start_turn"})

    def end_turn(self) -> None:
        """Push-to-talk is released, or enough was said: the turn ends now. Raises SessionClosedError."""
        self._say({"type": "end_turn"})

    def interrupt(self) -> None:
        """Stop the reply. Raises SessionClosedError."""
        self._say({"type": "interrupt"})

    def dtmf(self, digit: str) -> None:
        """Press a key: 0-9, *, #, A-D. Raises OptionError for another, SessionClosedError when the call has ended."""
        self._say({"type": "dtmf", "digit": digit})

    def _say(self, message: dict[str, Any]) -> None:
        self._check_live()
        _check({**message, "seq": 0})
        self._line.say(message)

    def _check_live(self) -> None:
        if self._running is None or self.close_code is not None:
            told = f"has ended ({self.end_reason}: {self.close_reason})" if self.end_reason else "was not entered"
            raise SessionClosedError(f"the call {told}; connect anew with `async with client.connect(...)`")

    # --- what you hear -----------------------------------------------------------------------------------------------

    def read(self, duration_ms: float) -> bytes:
        """The next `duration_ms` to be heard, filled up with silence; taking it is playing it. May be called from any thread.

        Raises:
            SessionError: the call is paced and plays by itself.
        """
        if self.paced:
            raise SessionError("this call plays by the clock; connect with paced=False to read, or with on_audio to listen")
        samples = round(duration_ms * self.output_rate_hz / 1000)
        pcm = self._player.take(samples)
        return pcm + bytes(samples * BYTES_PER_SAMPLE - len(pcm))

    @property
    def queued_ms(self) -> float:
        """How much waits to be heard."""
        return self._player.queued_ms

    @property
    def rtt_ms(self) -> float | None:
        """How long the server takes to answer a ping; None before the first."""
        return self._line.rtt_ms

    @property
    def is_up(self) -> bool:
        """True while the line is up, False while it is lost and the client comes back."""
        return self._line.is_up and self.close_code is None

    @property
    def session_id(self) -> str:
        """The server's name for the session."""
        return self._line.session_id

    @property
    def limits(self) -> Mapping[str, Any]:
        """The limits that the server told."""
        return self._line.welcome.limits if self._line.welcome else {}

    @property
    def counters(self) -> Counter[str]:
        """What went wrong and was survived, counted."""
        told = {"events_dropped": self._events.dropped, "play_dropped_ms": round(self._player.dropped_ms)}
        return +(self._line.counters + Counter(told))

    async def __anext__(self) -> dict[str, Any]:
        return await self._events.__anext__()

    def _take(self, message: wire.AudioMessage | dict[str, Any]) -> None:
        if isinstance(message, wire.AudioMessage):
            self._player.put(message.seq, message.pcm)
            self._audible.set()
            return
        name = message["type"]
        if name == "pause":
            self._stopped(self._player.pause())
        elif name == "clear":
            self._stopped(self._player.clear())
        elif name == "continue":
            self._player.go_on()
            self._audible.set()
        elif name == "state":
            self.state = str(message.get("state"))
        self._events.put_dropping(message)

    def _stopped(self, place: Place) -> None:
        self._told = place
        self._line.report({"type": "stopped", "seq": place.seq, "ms": place.ms})

    def _tell(self, state: str, **told: Any) -> None:
        if state == "resumed":
            self._told = None  # where playing is may have been told to a line that was down
            self._audible.set()
            if told["events_lost"] and self._player.paused:
                # The pause belongs to a reply that another process does not know: nothing would end it.
                self._player.clear()
        self._events.put_dropping({"type": "line", "state": state, **told})

    async def _play(self) -> None:
        """While there is something to hear: hand out what the clock has played, and report where playing is."""
        step_ms = REPORT_MS if self._on_audio is None else PLAY_MS
        while True:
            await self._audible.wait()
            self._audible.clear()
            told_ms = self._clock.now_ms()
            while self._player.is_playing or self._told != self._player.place:
                await self._clock.sleep_ms(step_ms)
                self._hand_out()
                now_ms = self._clock.now_ms()
                if now_ms - told_ms >= REPORT_MS - 1e-6 or not self._player.is_playing:
                    told_ms = now_ms
                    self._report_place()
            self._hand_out()  # what was played to its end while the last of it was handed out

    def _hand_out(self) -> None:
        due = self._player.take_due()
        if due and self._on_audio is not None:
            self._on_audio(due)

    def _report_place(self) -> None:
        place = self._player.place
        if place != self._told and place.seq >= 0:
            self._line.report({"type": "played", "seq": place.seq, "ms": place.ms})
        self._told = place


def _check(message: Mapping[str, Any]) -> None:
    """Refuse what the server would close the line for.

    Raises:
        OptionError: a field is of the wrong type or out of range.
    """
    try:
        wire.parse_client(wire.text(message))
    except (wire.WireError, ValueError, TypeError) as error:
        raise OptionError(getattr(error, "reason", str(error))) from None
