"""A line that calls a server of this package: the session is the caller, and an agent may talk to another agent."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs

from .._streams import Tasks
from ..clock import Clock
from ..errors import ConfigError, LineLost, ProtocolError, SessionClosedError
from ..frames import AudioIn, AudioOut, Frame
from ..options import build, option
from ..transport import Transport, TransportCapabilities
from .player import Player

if TYPE_CHECKING:
    from ..client import Call

__all__ = ["WebSocketOptions", "WebSocketTransport"]

FRAMES_A_SECOND = 50
FRAME_MS = 1000.0 / FRAMES_A_SECOND
MOST_QUEUED_MS = 2_000.0
# What a loop that was held made late is caught up on; more would come as a burst, and is let go.
MOST_LATE_MS = 200.0
CLOSE_MS = 1_000.0
HUNG_UP = ("bye", "idle", "max_session", "closed")
MISUNDERSTOOD = ("protocol", "too_large")


@attrs.frozen
class WebSocketOptions:
    """Options of the websocket transport."""

    url: str = option(doc='the server to call, like "ws://127.0.0.1:8080/v1/voice"')
    token: str | Callable[[], Awaitable[str]] = option(
        "", "the ticket, where the server asks for one, or a coroutine function that gives one for each try", secret=True
    )
    input_rate_hz: int = option(16_000, "the rate of what the server says", at_least=8_000, at_most=48_000)
    output_rate_hz: int = option(16_000, "the rate of what this session says", at_least=8_000, at_most=48_000)
    metadata: dict[str, Any] = option(attrs.Factory(dict), "what the server's application may want to know, as JSON values")
    connect_timeout_ms: float = option(
        10_000.0, "how long a server that is full or says no welcome is tried", at_least=1, at_most=600_000
    )


class WebSocketTransport(Transport):
    """A line to a beluga-voice server: what this session says is the server's caller, what the server says is heard here.

    Both ways 20 ms at a time by the clock, silence included, so that both sides see a turn end when it does. A lost line
    comes back by itself within the server's resume window; meanwhile what this session says waits, and counts as not played.
    Needs the package `websockets`: pip install 'beluga-voice[client]'.

    Args:
        clock: whose time it keeps.
        dial: opens the WebSocket, as for `client.connect`; for tests and for tunnels of your own.
        options: `WebSocketOptions`.

    Attributes:
        call: the call underneath: its `session_id`, `rtt_ms`, `send_text`, `dtmf`. Its events are read by the line.

    Raises:
        ConfigError: at construction: `websockets` is missing, or `url` is no WebSocket address (OptionError: an option is
            unknown, of the wrong type or out of range).

    Example::

        session = Session(chain, transport.new("websocket", url="ws://127.0.0.1:8080/v1/voice"))
    """

    Options = WebSocketOptions
    capabilities = TransportCapabilities(live=True)

    def __init__(self, *, clock: Clock | None = None, dial: Any = None, **options: Any) -> None:
        made = build(WebSocketOptions, options, "transport 'websocket'")
        _check_installed()
        from .. import client

        self.options = made
        self.input_rate_hz, self.output_rate_hz = made.input_rate_hz, made.output_rate_hz
        self._clock = clock or Clock()
        self.call: Call = client.connect(
            made.url,
            token=made.token or None,
            input_rate_hz=made.output_rate_hz,
            output_rate_hz=made.input_rate_hz,
            metadata=made.metadata,
            paced=False,
            connect_timeout_ms=made.connect_timeout_ms,
            clock=self._clock,
            **({"dial": dial} if dial is not None else {}),
        )
        self._player = Player(self.output_rate_hz, record=True)
        self._said_ms = self._late_ms = 0.0
        self._frames = 0
        self._tasks = Tasks()
        self._following: asyncio.Task[None] | None = None
        self._leaving = False
        self._news = asyncio.Event()

    async def open(self) -> None:
        """Call the server now instead of at `recv`: where another is to be tried if it fails. Twice does nothing.

        Raises:
            ConnectFailedError: nobody answers at `url`, or nobody said welcome in time.
            AuthError: the token was refused.
            SessionLimitError: the server was full all the while.
            InvalidRequestError: the server refused the call for another reason.
            SessionError: the line was closed.
        """
        if self._following is not None:
            return
        await self.call.__aenter__()
        self._following = self._tasks.spawn(self._follow(), "websocket line")
        if self._leaving:  # closed while it was dialled
            await self.aclose()

    async def recv(self) -> AsyncIterator[Frame]:
        """What the server says, in real time, silence included; the line is opened if it is not.

        Raises:
            LineLost: the line did not come back within the window, or the server failed, has forgotten the call or gave it
                to another: a new line may be made.
            ProtocolError: the two sides do not understand each other.
            BelugaVoiceError: what `open` raises.
        """
        await self.open()
        following = self._following
        assert following is not None
        due_ms = self._clock.now_ms()
        unheard_ms = 0.0
        # Once the server has hung up, what it said last is still heard, unless it is paused.
        while not self._leaving and (not following.done() or 0.0 < self.call.queued_ms != unheard_ms):
            unheard_ms = self.call.queued_ms
            due_ms = await self._due(due_ms + FRAME_MS)
            await self._say_frame()
            yield AudioIn(self._hear_frame(), self.input_rate_hz)
        if not self._leaving:
            following.result()
            self._check_lost()

    async def send(self, frame: AudioOut) -> None:
        """Queue audio to be said in real time; waits while 2 s wait already. After the server has hung up it does nothing.

        Raises:
            LineLost: the line was lost for good.
        """
        while self._player.queued_ms(self._said_ms) >= MOST_QUEUED_MS and not self.call.end_reason:
            self._news.clear()
            await self._news.wait()
        if self.call.end_reason:
            self._check_lost()
        else:
            self._player.send(self._said_ms, frame.pcm)

    def clear(self) -> None:
        self._player.clear(self._said_ms)
        self._news.set()

    @property
    def played_ms(self) -> float:
        """How much was said to the server, in steps of 20 ms."""
        return self._player.played_ms(self._said_ms)

    @property
    def counters(self) -> Counter[str]:
        """What went wrong and was survived: those of the call, and "late_ms", by which the loop was held too long."""
        return +(self.call.counters + Counter({"late_ms": round(self._late_ms)}))

    async def aclose(self) -> None:
        """Hang up. The server has a second to say goodbye."""
        self._leaving = True
        try:
            await self.call.aclose()
        finally:
            self._news.set()
            await self._tasks.aclose(CLOSE_MS)

    async def _follow(self) -> None:
        """Take the call's events out of its way, until it ends; raises what the client failed with."""
        try:
            async for _ in self.call:
                pass
        finally:
            self._news.set()

    async def _due(self, due_ms: float) -> float:
        """Wait for the time of the next frame; gives when that is, later where too much time was lost."""
        late_ms = self._clock.now_ms() - due_ms
        if late_ms > MOST_LATE_MS:
            self._late_ms += late_ms
            due_ms += late_ms
        await self._clock.sleep_ms(due_ms - self._clock.now_ms())
        return due_ms

    async def _say_frame(self) -> None:
        """Say what is next, or silence; nothing while the line is down, so that nothing is taken for heard."""
        if not self.call.is_up:
            return
        self._said_ms += FRAME_MS
        self._player.played_ms(self._said_ms)
        self._news.set()
        with suppress(SessionClosedError):
            await self.call.send_audio(self._player.take_record())

    def _hear_frame(self) -> bytes:
        rate_hz = self.input_rate_hz
        before = self._frames * rate_hz // FRAMES_A_SECOND
        self._frames += 1
        samples = self._frames * rate_hz // FRAMES_A_SECOND - before
        return self.call.read(samples * 1000.0 / rate_hz)

    def _check_lost(self) -> None:
        """Raise what tells why the call ended, if the server did not just hang up."""
        call = self.call
        if call.end_reason in HUNG_UP:
            return
        told = f"the call to {self.options.url} ended ({call.end_reason}: {call.close_reason or 'no reason given'})"
        if call.end_reason in MISUNDERSTOOD:
            raise ProtocolError(f"{told}; are both sides of the same version?", provider="websocket", kind="transport")
        raise LineLost(f"{told}; make a new line with session.reconnect")


def _check_installed() -> None:
    """Load what dialling needs: now, because it would hold the loop of a call that is going on."""
    try:
        import websockets.asyncio.client  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"transport 'websocket' needs the package websockets ({error}); pip install 'beluga-voice[client]'"
        ) from None
