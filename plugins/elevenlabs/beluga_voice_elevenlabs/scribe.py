"""Scribe live: one socket for all utterances of a session, each committed when the session says that it is over.

With word times every commit is answered twice, by the bare text and by the timed one, mostly in this order; the caller gets
one transcript.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs

from beluga_voice._streams import Channel, Tasks
from beluga_voice.audio import BYTES_PER_SAMPLE, Audio, resample, silence
from beluga_voice.clock import Clock, Timers
from beluga_voice.errors import ConnectFailedError, ProviderError
from beluga_voice.frames import Transcript, Word
from beluga_voice.stt import STTStream

from .scribe_socket import GOODBYE_MS, ScribeSocket
from .vendor import Refused

if TYPE_CHECKING:
    from .stt import ElevenLabsSTT

__all__ = ["ScribeStream", "transcript"]

CHUNK_MS, LARGEST_MS = 100.0, 1_000.0  # audio is sent in pieces of so much, and larger ones where more is there at once
SHORTEST_MS = 300.0  # the service ignores a commit of less; it is made up with silence
LONGEST_MS = 60_000.0  # it commits by itself after 90 s, wherever that falls; so much is committed before
KEEP_ALIVE_MS = 5_000.0  # it closes a socket that gets no audio for some 15 s
SILENCE_MS = 20.0
TIMED_MS = 300.0  # how long a bare text waits for the timed one
ANSWER_MS = 30_000.0  # longest wait for the text of a commit
ROUNDING_MS = 0.01
INTERIMS = 50  # interim transcripts that wait to be read; the oldest are dropped


class ScribeStream(STTStream):
    """One session's speech. Times are in ms of the audio that the stream was given, over all its connections."""

    def __init__(self, engine: ElevenLabsSTT) -> None:
        self.engine = engine
        self.rate_hz = engine.options.sample_rate_hz
        self.sent_ms = 0.0  # of what it was given
        self.tasks = Tasks()
        self._out: Channel[Transcript] = Channel(INTERIMS, lambda one: 0.0 if one.is_final else 1.0)
        self._connecting = asyncio.Lock()
        self._link: _Link | None = None
        self._error: ProviderError | None = None
        self._waiting = bytearray()

    async def connect(self) -> None:
        """Open the socket now, before there is audio.

        Raises:
            ProviderError: it does not open; its subclasses say why.
        """
        await self._connected()

    async def send(self, audio: Audio) -> None:
        self._waiting += resample(audio, self.rate_hz).pcm
        while len(self._waiting) >= self._bytes(CHUNK_MS):
            await self._send(self._bytes(LARGEST_MS))

    async def finalize(self) -> None:
        if len(self._waiting) >= BYTES_PER_SAMPLE:
            await self._send(len(self._waiting) // BYTES_PER_SAMPLE * BYTES_PER_SAMPLE)
        if self._error is not None:
            raise self._error
        if self._link is None:
            self.tell(Transcript("", closes=True, through_ms=self.sent_ms))
        else:
            await self._link.commit(closes=True)

    async def aclose(self) -> None:
        self._out.close()
        link, self._link = self._link, None
        try:
            if link is not None:
                await link.aclose()
        finally:
            await self.tasks.aclose(GOODBYE_MS)

    async def __anext__(self) -> Transcript:
        return await anext(self._out)

    # --- for its connection ------------------------------------------------------------------------------------------

    def tell(self, heard: Transcript) -> None:
        """Give a transcript to the reader."""
        self._out.put_dropping(heard)

    def ended(self, link: _Link, error: ProviderError, *, idle: bool) -> None:
        """A connection has ended. One that dropped with nothing under way is opened again at the next audio."""
        if link is self._link:
            self._link = None
            if idle and isinstance(error, ConnectFailedError):
                self.engine.counters["idle_drops"] += 1
            else:
                self._error = error
                self._out.close(error)

    # --- to the service ----------------------------------------------------------------------------------------------

    async def _send(self, most: int) -> None:
        link = await self._connected()
        pcm = bytes(self._waiting[: min(most, len(self._waiting)) // BYTES_PER_SAMPLE * BYTES_PER_SAMPLE])
        del self._waiting[: len(pcm)]
        await link.send(pcm)
        if link.uncommitted_ms >= LONGEST_MS:
            await link.commit(closes=False)

    def _bytes(self, ms: float) -> int:
        return BYTES_PER_SAMPLE * round(ms * self.rate_hz / 1000.0)

    async def _connected(self) -> _Link:
        async with self._connecting:
            if self._error is not None:
                raise self._error
            if self._link is None:
                try:
                    link = _Link(self, await ScribeSocket.open(self.engine))
                except Exception as error:
                    raise self.engine.failed(error, "connecting") from None
                self.engine.counters["connections"] += 1
                self._link = link
                self.tasks.spawn(link.read(), "elevenlabs text")
                self.tasks.spawn(link.keep_alive(), "elevenlabs keep-alive")
            return self._link


@attrs.frozen
class _Commit:
    """Something that is owed: the text of all audio up to `through_ms`, at `at_ms` of the connection; `empty`: of none."""

    closes: bool
    through_ms: float
    at_ms: float
    empty: bool = False


class _Link:
    """One connection: what was sent over it, what is owed, what comes."""

    def __init__(self, stream: ScribeStream, socket: ScribeSocket) -> None:
        self.uncommitted_ms = 0.0
        self._stream, self._engine, self._socket = stream, stream.engine, socket
        self._clock = Clock()
        self._timers = Timers(self._clock)
        self._sent_at_ms = self._clock.now_ms()
        self._sent_ms = 0.0  # silence of our own included
        self._seams: deque[tuple[float, float]] = deque()  # from here on the connection, sound from there of what was given
        self._owed: deque[_Commit] = deque()
        self._held: Transcript | None = None  # a bare text whose timed one is to come
        self._early: str | None = None  # what was told with its times, and whose bare text is to come
        self._late: str | None = None  # what was told without its times, and whose timed text may come
        self._over = False

    # --- out ---------------------------------------------------------------------------------------------------------

    async def send(self, pcm: bytes) -> None:
        """Send sound that the stream was given.

        Raises:
            ProviderError: the connection is gone.
        """
        if not self._seams or abs(self._given_ms(self._sent_ms) - self._stream.sent_ms) > ROUNDING_MS:
            self._seams.append((self._sent_ms, self._stream.sent_ms))
        length_ms = self._length_ms(pcm)
        self.uncommitted_ms += length_ms
        self._stream.sent_ms += length_ms
        await self._send(pcm)

    async def commit(self, *, closes: bool) -> None:
        """Ask for the text of what was sent since the last time.

        Raises:
            ProviderError: the connection is gone.
        """
        missing_ms = SHORTEST_MS - self.uncommitted_ms
        empty, self.uncommitted_ms = self.uncommitted_ms == 0, 0.0
        if empty:
            self._owed.append(_Commit(closes, self._stream.sent_ms, self._sent_ms, empty=True))
            self._settle()
            return
        if missing_ms > 0:
            await self._send(silence(missing_ms, self._stream.rate_hz).pcm)
        self._owed.append(_Commit(closes, self._stream.sent_ms, self._sent_ms))
        self._settle()
        await self._out(b"", commit=True)

    async def keep_alive(self) -> None:
        """Send a little silence whenever nothing was sent for a while."""
        pcm = silence(SILENCE_MS, self._stream.rate_hz).pcm
        with suppress(ProviderError):
            while not self._over:
                await self._clock.sleep_ms(self._sent_at_ms + KEEP_ALIVE_MS - self._clock.now_ms())
                if not self._over and self._clock.now_ms() - self._sent_at_ms >= KEEP_ALIVE_MS - ROUNDING_MS:
                    await self._send(pcm)

    async def _send(self, pcm: bytes) -> None:
        self._sent_at_ms = self._clock.now_ms()
        self._sent_ms += self._length_ms(pcm)
        await self._out(pcm)

    async def _out(self, pcm: bytes, *, commit: bool = False) -> None:
        try:
            await self._socket.send(pcm, commit=commit)
        except Exception as error:
            raise self._end(error) from None

    def _length_ms(self, pcm: bytes) -> float:
        return len(pcm) * 1000.0 / BYTES_PER_SAMPLE / self._stream.rate_hz

    # --- in ----------------------------------------------------------------------------------------------------------

    async def read(self) -> None:
        """Take what comes, until the connection ends."""
        try:
            while True:
                self._take(await self._socket.recv())
        except Exception as error:
            self._end(error)

    def _take(self, told: dict[str, Any]) -> None:
        match told.get("message_type"):
            case "partial_transcript":
                if text := told["text"].strip():
                    self._stream.tell(Transcript(text, is_final=False))
            case "committed_transcript":
                self._take_bare(told)
            case "committed_transcript_with_timestamps":
                self._take_timed(told)
            case "commit_throttled":
                if not self._owed:
                    raise Refused(str(told.get("error", "")), "commit_throttled")
                self._engine.counters["commits_ignored"] += 1
                self._answer(Transcript(""))
            case _:
                self._engine.counters["unknown_messages"] += 1

    def _take_bare(self, data: dict[str, Any]) -> None:
        heard = transcript(data["text"], [], data.get("language_code"))
        if not self._engine.options.word_times:
            self._answer(heard)
            return
        self._release()
        early, self._early = self._early, None
        if early != heard.text:
            self._held = heard
            self._timers.set("timed", TIMED_MS, self._release)

    def _take_timed(self, data: dict[str, Any]) -> None:
        heard = transcript(data["text"], data.get("words") or [], data.get("language_code"))
        if self._late == heard.text and (self._held is None or self._held.text != heard.text):
            self._late = None
            return
        if self._held is None:
            self._early = heard.text
        self._held = None
        self._timers.cancel("timed")
        self._answer(heard)

    def _release(self) -> None:
        held, self._held = self._held, None
        self._timers.cancel("timed")
        if held is not None:
            self._late = held.text
            self._answer(held)

    # --- what is owed ------------------------------------------------------------------------------------------------

    def _answer(self, heard: Transcript) -> None:
        commit = self._owed.popleft() if self._owed else None
        words = tuple(self._placed(word) for word in heard.words)
        if commit is not None:
            self._stream.tell(attrs.evolve(heard, words=words, closes=commit.closes, through_ms=commit.through_ms))
            while len(self._seams) > 1 and self._seams[1][0] <= commit.at_ms:
                self._seams.popleft()
        elif heard.text:  # it commits by itself after a long time
            self._stream.tell(attrs.evolve(heard, words=words))
        self._settle()

    def _settle(self) -> None:
        """Answer what is owed no text; wait for the rest, but not for ever."""
        while self._owed and self._owed[0].empty:
            commit = self._owed.popleft()
            self._stream.tell(Transcript("", closes=commit.closes, through_ms=commit.through_ms))
        self._timers.cancel("answer")
        if self._owed:
            late = TimeoutError(f"no text came within {ANSWER_MS:g} ms of a commit")
            self._timers.set("answer", ANSWER_MS, self._end, late)

    def _placed(self, word: Word) -> Word:
        return attrs.evolve(word, start_ms=self._given_ms(word.start_ms), end_ms=self._given_ms(word.end_ms))

    def _given_ms(self, at_ms: float) -> float:
        """Where in what the stream was given the sound at `at_ms` of the connection is."""
        before = [seam for seam in self._seams if seam[0] <= at_ms]
        here_ms, given_ms = before[-1] if before else (0.0, 0.0)
        return given_ms + at_ms - here_ms

    # --- the end -----------------------------------------------------------------------------------------------------

    def _end(self, error: BaseException) -> ProviderError:
        failed = self._engine.failed(error, "listening")
        if not self._over:
            self._release()
            self._over = True
            self._timers.cancel()
            self._stream.tasks.spawn(self.aclose(), "elevenlabs close")
            self._stream.ended(self, failed, idle=not self._owed and self.uncommitted_ms == 0)
        return failed

    async def aclose(self) -> None:
        """Close it, without waiting long for the service to agree."""
        self._over = True
        self._timers.cancel()
        await self._socket.aclose()


# --- its words -------------------------------------------------------------------------------------------------------


def transcript(text: str, words: list[dict[str, Any]], language: str | None) -> Transcript:
    """A final transcript of what the service says; spaces and noises are no words. Times are in ms of the audio it had."""
    spoken = [_word(word) for word in words if word.get("type", "word") == "word" and word.get("end") is not None]
    sure = [word.confidence for word in spoken if word.confidence is not None]
    return Transcript(
        text.strip(), confidence=sum(sure) / len(sure) if sure else None, language=language or "", words=tuple(spoken)
    )


def _word(told: dict[str, Any]) -> Word:
    logprob = told.get("logprob")
    confidence = None if logprob is None else math.exp(min(0.0, float(logprob)))
    return Word(str(told["text"]).strip(), 1000.0 * float(told["start"]), 1000.0 * float(told["end"]), confidence)
