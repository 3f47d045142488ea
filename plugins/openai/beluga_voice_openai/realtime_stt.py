"""Transcription over a Realtime socket: one a session; audio goes up as it is spoken, `finalize` commits an utterance."""

from __future__ import annotations

import asyncio
import base64
from collections import deque
from typing import TYPE_CHECKING, Any

import attrs

from beluga_voice._streams import Channel, stop
from beluga_voice.audio import BYTES_PER_SAMPLE, Audio, Resampler
from beluga_voice.frames import Transcript
from beluga_voice.stt import STTStream

from .vendor import CONNECT_TIMEOUT_S, EventError, socket_options

if TYPE_CHECKING:
    from .stt import OpenAISTT

__all__ = ["SAMPLE_RATE_HZ", "RealtimeStream"]

SAMPLE_RATE_HZ = 24_000  # the only one it takes
SHORTEST_COMMIT_MS = 100.0  # less is refused: filled up with silence
PIECE_BYTES = 96_000  # two seconds in one message
TRANSCRIPTS_AHEAD = 1_000
MOST_ITEMS = 64  # utterances whose interim words are kept
EMPTY = "input_audio_buffer_commit_empty"


@attrs.define
class _Commit:
    """An utterance that was committed: what it is called at each end, what all audio up to its end lasts, and its words."""

    event_id: str
    through_ms: float
    item_id: str = ""
    text: str | None = None


class RealtimeStream(STTStream):
    """One session's socket. It opens at `connect`, or with the first audio; the library's pings keep it alive.

    The service may tell the words of two utterances in the wrong order; here each waits for the one before it. A socket that
    breaks while nothing is owed ends the iteration; one that breaks while something is, raises.
    """

    def __init__(self, engine: OpenAISTT) -> None:
        self._engine = engine
        self._out: Channel[Transcript] = Channel(TRANSCRIPTS_AHEAD)
        self._opening = asyncio.Lock()
        self._connection: Any = None
        self._reading: asyncio.Task[None] | None = None
        self._commits: deque[_Commit] = deque()
        self._count = 0
        self._total_ms = 0.0
        self._since_commit_ms = 0.0
        self._interim: dict[str, str] = {}
        self._resampler: Resampler | None = None

    async def connect(self) -> None:
        """Open the socket now, before there is audio.

        Raises:
            ProviderError: it does not open, or refuses the options.
        """
        async with self._opening:
            if self._connection is not None:
                return
            client = await self._engine.client()
            connection = None
            try:
                connection = await client.realtime.connect(
                    extra_query={"intent": "transcription"},
                    websocket_connection_options=socket_options(self._engine.access),
                ).enter()
                await connection.session.update(session=self._session())
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await _configured(connection)
            except BaseException as error:
                if connection is not None:
                    await connection.close()
                if isinstance(error, Exception):
                    raise self._engine.failed(error, "opening the stream") from None
                raise
            self._connection = connection
            self._reading = asyncio.get_running_loop().create_task(self._read(), name=f"{self._engine.name} socket")

    async def rehearse(self, connection: Any) -> None:
        """What `connect`, `send` and `finalize` do, on a connection that is none."""
        await connection.session.update(session=self._session())
        await _configured(connection)
        await connection.input_audio_buffer.append(audio="")
        await connection.input_audio_buffer.commit(event_id="")

    def _session(self) -> dict[str, Any]:
        from .stt import primary

        options = self._engine.options
        transcription: dict[str, Any] = {"model": self._engine.model}
        if options.language:
            transcription["language"] = primary(options.language)
        if options.prompt:
            transcription["prompt"] = options.prompt
        transcription |= options.extra
        heard = {
            "format": {"type": "audio/pcm", "rate": SAMPLE_RATE_HZ},
            "transcription": transcription,
            "turn_detection": None,  # where an utterance ends is decided here
        }
        return {"type": "transcription", "audio": {"input": heard}}

    async def send(self, audio: Audio) -> None:
        if not audio.pcm:
            return
        await self.connect()
        self._total_ms += audio.duration_ms
        self._since_commit_ms += audio.duration_ms
        await self._append(self._at_its_rate(audio))

    def _at_its_rate(self, audio: Audio) -> bytes:
        if audio.sample_rate_hz == SAMPLE_RATE_HZ:
            return audio.pcm
        if self._resampler is None or self._resampler.from_hz != audio.sample_rate_hz:
            self._resampler = Resampler(audio.sample_rate_hz, SAMPLE_RATE_HZ)
        return self._resampler.feed(audio.pcm)

    async def finalize(self) -> None:
        if not self._since_commit_ms:
            self._commits.append(_Commit("", self._total_ms, text=""))
            self._tell_closed()
            return
        resampler, self._resampler = self._resampler, None
        rest = resampler.feed(b"", last=True) if resampler is not None else b""
        missing_ms, self._since_commit_ms = SHORTEST_COMMIT_MS - self._since_commit_ms, 0.0
        rest += bytes(max(0, round(missing_ms * SAMPLE_RATE_HZ / 1_000.0)) * BYTES_PER_SAMPLE)
        await self._append(rest)
        self._count += 1
        commit = _Commit(f"commit-{self._count}", self._total_ms)
        self._commits.append(commit)
        try:
            await self._connection.input_audio_buffer.commit(event_id=commit.event_id)
        except Exception as error:
            raise self._engine.failed(error, "ending an utterance") from None

    async def aclose(self) -> None:
        self._out.close()
        reading, self._reading = self._reading, None
        try:
            if reading is not None:
                await stop(reading)
        finally:
            if self._connection is not None:
                await self._connection.close()

    async def __anext__(self) -> Transcript:
        return await anext(self._out)

    async def _append(self, pcm: bytes) -> None:
        try:
            for at in range(0, len(pcm), PIECE_BYTES):
                audio = base64.b64encode(pcm[at : at + PIECE_BYTES]).decode("ascii")
                await self._connection.input_audio_buffer.append(audio=audio)
        except Exception as error:
            raise self._engine.failed(error, "sending audio") from None

    # --- what comes back ---------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            while True:
                self._take(await self._connection.recv())
        except Exception as error:
            owed = self._commits or self._since_commit_ms
            self._out.close(self._engine.failed(error, "listening") if owed else None)

    def _take(self, event: Any) -> None:
        match event.type:  # an event of a type the SDK does not know has the class of another
            case "input_audio_buffer.committed":
                commit = self._commit("")
                if commit is not None:
                    commit.item_id = event.item_id
            case "conversation.item.input_audio_transcription.delta":
                self._tell_interim(event.item_id, event.delta or "")
            case "conversation.item.input_audio_transcription.completed":
                self._interim.pop(event.item_id, None)
                self._engine.used(getattr(event, "usage", None))
                self._settle(self._commit(event.item_id) or self._commit(""), event.transcript)
            case "conversation.item.input_audio_transcription.failed":
                raise EventError(event.error)
            case "error":
                if event.error.code != EMPTY:
                    raise EventError(event.error)
                told = [commit for commit in self._commits if commit.event_id == event.error.event_id]
                self._settle(told[0] if told else self._commit(""), "")

    def _commit(self, item_id: str) -> _Commit | None:
        """The first utterance without words yet that the service calls `item_id`."""
        return next((one for one in self._commits if one.item_id == item_id and one.text is None), None)

    def _settle(self, commit: _Commit | None, text: str) -> None:
        if commit is not None:
            commit.text = text.strip()
            self._tell_closed()

    def _tell_closed(self) -> None:
        while self._commits and self._commits[0].text is not None:
            commit = self._commits.popleft()
            self._out.put_over(
                Transcript(commit.text or "", language=self._engine.options.language, closes=True, through_ms=commit.through_ms)
            )

    def _tell_interim(self, item_id: str, delta: str) -> None:
        self._interim[item_id] = self._interim.pop(item_id, "") + delta
        if len(self._interim) > MOST_ITEMS:
            self._interim.pop(next(iter(self._interim)))
        if not self._commits or self._commits[0].item_id == item_id:
            text = self._interim[item_id].strip()
            self._out.put_dropping(Transcript(text, is_final=False, language=self._engine.options.language))


async def _configured(connection: Any) -> None:
    """Wait until the service has taken the session's options."""
    while True:
        event = await connection.recv()
        if event.type in ("session.updated", "transcription_session.updated"):
            return
        if event.type == "error":
            raise EventError(event.error)
