"""What Deepgram's two live recognisers share: one socket for a session, opened once, read by a task, told in order."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import Counter
from typing import Any, ClassVar

from beluga_voice.audio import BYTES_PER_SAMPLE, Audio
from beluga_voice.clock import Clock
from beluga_voice.engine import Channel
from beluga_voice.errors import SessionClosedError
from beluga_voice.remote import Remote
from beluga_voice.stt import STTStream

from .upstream import Upstream
from .vendor import EventError

__all__ = ["LiveStream"]

MOST_WAITING = 1_000  # transcripts nobody has read; then the server waits
LONGEST_MESSAGE_MS = 250.0


class LiveStream(STTStream):
    """A socket that takes audio and gives messages; subclasses say which (`path`), and what the messages mean.

    Args:
        engine: whose stream it is.
        counters: counts what is passed over.
    """

    path: ClassVar[str]

    def __init__(self, engine: Remote, counters: Counter[str]) -> None:
        self._engine, self._counters = engine, counters
        self._clock = Clock()
        self._out: Channel[Any] = Channel(MOST_WAITING)
        self._upstream: Upstream | None = None
        self._opening = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False
        self._sent_ms = 0.0  # how much audio the server was given

    # --- what a subclass says ----------------------------------------------------------------------------------------

    @abstractmethod
    def _query(self) -> dict[str, Any]:
        """Deepgram's parameters, by their names there."""

    @abstractmethod
    async def _take(self, message: Any) -> bool:
        """Tell what a message says; False where its type is not known."""

    def _run(self, upstream: Upstream) -> None:
        """The socket is open."""
        self._spawn(self._read(upstream), "messages")

    # --- the stream --------------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Open the socket now, before there is audio.

        Raises:
            ProviderError: it does not open.
        """
        await self._open()

    async def send(self, audio: Audio) -> None:
        """Send audio on; the first opens the socket.

        Raises:
            ProviderError: it does not open, or takes nothing.
        """
        upstream = await self._open()
        step = round(LONGEST_MESSAGE_MS * audio.sample_rate_hz / 1000.0) * BYTES_PER_SAMPLE
        for at in range(0, len(audio.pcm), step):  # an empty message would close the stream
            piece = audio.pcm[at : at + step]
            await self._say(upstream.send(upstream.socket.send_media(piece)))
            self._sent_ms += Audio(piece, audio.sample_rate_hz).duration_ms

    async def aclose(self) -> None:
        """Tell the server that it is over, and close at once."""
        self._closed = True
        self._out.close()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            await upstream.aclose(upstream.socket.send_close_stream())
        if tasks:
            await asyncio.wait(tasks)

    async def __anext__(self) -> Any:
        return await anext(self._out)

    # --- for subclasses ----------------------------------------------------------------------------------------------

    async def _open(self) -> Upstream:
        async with self._opening:
            if self._closed:
                raise SessionClosedError(f"this stream of stt {self._engine.name!r} is closed; open another")
            if self._upstream is not None:
                return self._upstream
            try:
                upstream = await Upstream.open(await self._engine.client(), self.path, self._query())
            except Exception as error:
                raise self._engine.failed(error, "opening the stream") from None
            if self._closed:  # meanwhile
                await upstream.aclose()
                raise SessionClosedError(f"this stream of stt {self._engine.name!r} is closed; open another")
            self._upstream = upstream
            self._run(upstream)
            return upstream

    async def _say(self, sending: Any) -> None:
        try:
            await sending
        except Exception as error:
            raise self._engine.failed(error, "sending") from None

    def _spawn(self, work: Any, name: str) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work, name=f"{self._engine.name} {name}"))

    def _fail(self, error: Exception) -> None:
        """Tell what came before, then the error."""
        self._out.close(self._engine.failed(error, "listening"))

    async def _read(self, upstream: Upstream) -> None:
        try:
            while True:
                message = await upstream.recv()
                if getattr(message, "type", None) == "Error":
                    raise EventError(str(message.description), str(getattr(message, "variant", None) or message.code or ""))
                if not await self._take(message):
                    self._counters["messages_unknown"] += 1
        except Exception as error:
            self._fail(error)
