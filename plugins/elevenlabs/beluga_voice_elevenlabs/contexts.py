"""The multi-context socket: one a session, one context a reply.

A context gets whole sentences, each generated at once; `close_context` ends it and is answered by one `isFinal` after all of
its audio. What still comes for a context nobody listens to any more is dropped and counted, and so is what nobody knows.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from beluga_voice._streams import Channel, Tasks, finish
from beluga_voice.audio import BYTES_PER_SAMPLE
from beluga_voice.clock import Clock
from beluga_voice.errors import ConnectFailedError, ProviderError, SessionClosedError

from .script import Letters, letters_of
from .vendor import Refused

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

__all__ = ["Context", "ContextSocket"]

MOST_CONTEXTS = 5  # the service closes a socket with more; one counts until its isFinal
KEEP_ALIVE_MS = 15_000.0
ROUNDING_MS = 1.0  # who slept for a time may wake a rounding error early
SEND_MS = 2_000.0  # longest time for a message of a few hundred bytes to leave
ANSWER_MS = 30_000.0  # longest silence after a text
QUEUED_MS = 300_000.0  # audio of one context that waits for its reader; who feeds it stops long before (see `ahead_ms`)
STEADY_MS = 10_000.0  # a socket that lived so long is opened again when it drops, without waiting for a reply
GOODBYE_MS = 1_000.0

Piece = tuple[bytes, Letters]
Dial = Callable[[], Awaitable["ClientConnection"]]
Failure = Callable[[BaseException, str], ProviderError]


class Context:
    """One reply on its way: sentences in, audio and letter times out.

    Iterating gives pieces of whole samples until the reply is over, and raises what went wrong.
    """

    def __init__(self, owner: ContextSocket) -> None:
        self._owner = owner
        self._link: _Link | None = None
        self._name = ""
        self._pieces: Channel[Piece] = Channel(QUEUED_MS, owner.length_ms)
        self._odd = b""
        self._asked = self.closed = False
        self.moved = asyncio.Event()  # set whenever a piece of it was read

    @property
    def ahead_ms(self) -> float:
        """Audio that came and was not read yet."""
        return self._pieces.load

    async def say(self, sentence: str) -> None:
        """Have a sentence generated. The first one opens the context.

        Raises:
            ProviderError: it could not be sent.
        """
        if self._link is None:
            self._link, self._name = await self._owner.begin(self)
        self._asked = True
        await self._link.send({"text": f"{sentence} ", "context_id": self._name, "flush": True})

    async def finish(self) -> None:
        """No more sentences."""
        if self._link is None:
            self._pieces.close()
        else:
            await self._close()

    def leave(self) -> None:
        """Nobody reads it any more: have the service stop, if it has not finished."""
        if self._link is not None and self._link.contexts.get(self._name) is self:
            self._link.contexts[self._name] = None
            if not self.closed:
                self._owner.tasks.spawn(self._close(), "elevenlabs close")

    def fail(self, error: Exception) -> None:
        """Reading it ends with `error`, after what came before; the first one counts."""
        self._pieces.close(error)

    def take(self, pcm: bytes, letters: Letters, final: bool) -> None:
        """What the service made of it."""
        pcm = self._odd + pcm
        whole = len(pcm) - len(pcm) % BYTES_PER_SAMPLE
        self._odd = pcm[whole:]
        if self.ahead_ms > QUEUED_MS:
            self.fail(self._owner.failed(Refused(f"more than {QUEUED_MS:g} ms of audio wait to be read"), "speaking"))
        elif whole:
            self._pieces.put_over((pcm[:whole], letters))
        if final and not self.closed:
            self.fail(self._owner.failed(Refused("the context ended before its text did"), "speaking"))
        elif final:
            self._pieces.close()

    async def _close(self) -> None:
        assert self._link is not None
        self.closed = True
        await self._link.send({"context_id": self._name, "close_context": True})

    def __aiter__(self) -> Context:
        return self

    async def __anext__(self) -> Piece:
        while True:
            asked, self._asked = self._asked, False
            try:
                async with asyncio.timeout(ANSWER_MS / 1000.0):
                    piece = await anext(self._pieces)
            except TimeoutError as error:
                if isinstance(error, ProviderError):
                    raise
                if asked or self.closed:
                    told = TimeoutError(f"nothing came for {ANSWER_MS:g} ms after a text")
                    raise self._owner.failed(told, "speaking") from None
            else:
                self.moved.set()
                return piece


class ContextSocket:
    """What a session speaks over: connects when told to or needed, and again after a drop.

    Args:
        dial: opens a socket.
        settings: what the first message of a context says beside its name.
        sample_rate_hz: of the audio that comes.
        failed: makes an error of ours of any other.
        counters: what is dropped, and how often it connected, is counted here.
    """

    def __init__(
        self, dial: Dial, settings: Mapping[str, Any], sample_rate_hz: int, failed: Failure, counters: Counter[str]
    ) -> None:
        self.settings, self.failed, self.counters = settings, failed, counters
        self._dial, self._rate_hz = dial, sample_rate_hz
        self._link: _Link | None = None
        self._dialing, self._beginning = asyncio.Lock(), asyncio.Lock()
        self.tasks = Tasks()
        self._over = False

    def length_ms(self, piece: Piece) -> float:
        """How long a piece lasts."""
        return len(piece[0]) * 1000.0 / BYTES_PER_SAMPLE / self._rate_hz

    def warm(self) -> None:
        """Connect in the background. If that fails, the next reply tries again, and tells why."""

        async def connect() -> None:
            with suppress(ProviderError):
                await self._connected()

        if not self._over:
            self.tasks.spawn(connect(), "elevenlabs connect")

    async def begin(self, context: Context) -> tuple[_Link, str]:
        """Open a context upstream; where, and its name.

        Raises:
            ProviderError: there is no connection to be had.
        """
        async with self._beginning:
            link = await self._connected()
            if link.spare is None and len(link.contexts) >= MOST_CONTEXTS:
                self.counters["sockets_renewed"] += 1  # those left before are not finished, and one more would be refused
                await link.aclose()
                link = await self._connected()
            if link.spare is None:
                await link.open()
            name, link.spare = cast(str, link.spare), None
            link.contexts[name] = context
            return link, name

    async def _connected(self) -> _Link:
        async with self._dialing:
            if self._over:
                raise SessionClosedError("this voice of a session is closed; open another")
            if self._link is None or self._link.ended:
                try:
                    socket = await self._dial()
                except Exception as error:
                    raise self.failed(error, "connecting") from None
                if self._over:  # meanwhile
                    socket.transport.abort()
                    raise SessionClosedError("this voice of a session is closed; open another")
                self.counters["connections"] += 1
                self._link = _Link(self, socket)
                self._link.reading = self.tasks.spawn(self._link.read(), "elevenlabs audio")
                self._link.keeping = self.tasks.spawn(self._link.keep_alive(), "elevenlabs keep-alive")
            return self._link

    def dropped(self, link: _Link, error: ProviderError, lived_ms: float) -> None:
        """A connection has ended by itself. One that was lost is replaced; one that was refused is not, until it is needed."""
        if link is self._link and isinstance(error, ConnectFailedError) and lived_ms >= STEADY_MS:
            self.warm()

    async def aclose(self) -> None:
        """Close the connection, and open none any more."""
        self._over = True
        try:
            if self._link is not None:
                await self._link.aclose()
        finally:
            await self.tasks.aclose(GOODBYE_MS)


class _Link:
    """One connection. `contexts` are those the service may still speak in, with their readers (None: nobody any more)."""

    reading: asyncio.Task[None]
    keeping: asyncio.Task[None]

    def __init__(self, owner: ContextSocket, socket: ClientConnection) -> None:
        self.contexts: dict[str, Context | None] = {}
        self.spare: str | None = None  # a context opened only to keep the connection alive; the next reply takes it
        self.ended = False
        self._owner, self._socket = owner, socket
        self._clock = Clock()
        self._since_ms = self._sent_ms = self._clock.now_ms()

    async def open(self) -> None:
        """Open a context: the spare one."""
        self.spare = secrets.token_hex(8)
        self.contexts[self.spare] = None
        await self.send({"text": " ", "context_id": self.spare, **self._owner.settings})

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send a message. It leaves even if whoever waits for that is cancelled.

        Raises:
            ProviderError: the connection is gone.
        """
        self._sent_ms = self._clock.now_ms()
        sending = self._owner.tasks.spawn(self._socket.send(json.dumps(message)), "elevenlabs send")
        await asyncio.wait([sending], timeout=SEND_MS / 1000.0)
        error = sending.exception() if sending.done() else TimeoutError(f"a message did not leave within {SEND_MS:g} ms")
        if error is not None:
            self._socket.transport.abort()
            await finish(self.reading)  # which may have been told why
            raise self._owner.failed(error, "sending text") from None

    async def read(self) -> None:
        """Hand out what comes, until the connection ends; then every reader is told why."""
        error: Exception = Refused("the connection was closed", status=1000)
        try:
            async for message in self._socket:
                self._take(message)
        except Exception as caught:
            error = caught
            self._socket.transport.abort()
        finally:
            self.ended = True
            self.keeping.cancel()
            failed = self._owner.failed(error, "speaking")
            readers = [context for context in self.contexts.values() if context is not None]
            self.contexts.clear()
            for context in readers:
                context.fail(failed)
        self._owner.dropped(self, failed, self._clock.now_ms() - self._since_ms)

    def _take(self, message: str | bytes) -> None:
        told = json.loads(message)
        if not isinstance(told, dict):
            raise Refused(f"a message is {type(told).__name__}, no object")
        if told.get("error"):
            status = told.get("code")
            raise Refused(str(told.get("message", "")), str(told["error"]), status if isinstance(status, int) else None)
        audio, final = told.get("audio"), bool(told.get("isFinal"))
        name = told.get("contextId")
        if not final and not isinstance(audio, str):
            self._owner.counters["unknown_messages"] += "audio" not in told
            return
        context = self.contexts.get(name) if isinstance(name, str) else None
        if final and isinstance(name, str):
            self.contexts.pop(name, None)
            self.spare = None if self.spare == name else self.spare
        if context is not None:
            context.take(base64.b64decode(audio or "", validate=True), letters_of(told.get("alignment")), final)
        elif audio:
            self._owner.counters["late_audio_dropped"] += 1

    async def keep_alive(self) -> None:
        """Send something whenever nothing was sent for a while: empty text, to a context that is open."""
        with suppress(ProviderError):
            while True:
                await self._clock.sleep_ms(self._sent_ms + KEEP_ALIVE_MS - self._clock.now_ms())
                if self._clock.now_ms() - self._sent_ms < KEEP_ALIVE_MS - ROUNDING_MS:
                    continue
                spoken = (name for name, context in self.contexts.items() if context is not None and not context.closed)
                name = next(spoken, self.spare)
                if name is None:
                    await self.open()
                else:
                    await self.send({"text": "", "context_id": name})

    async def aclose(self) -> None:
        """Close it, without waiting long for the service to agree."""
        self.ended = True
        self.keeping.cancel()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_MS / 1000.0):
                    await self._socket.close()
        finally:
            self._socket.transport.abort()
        await finish(self.reading)
