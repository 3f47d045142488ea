"""Nova's live protocol (`/v1/listen`): results that grow, and the end of an utterance by the message Finalize."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs

from beluga_voice.audio import Audio
from beluga_voice.clock import Timers
from beluga_voice.frames import Transcript, Word

from .stream import LiveStream
from .upstream import Upstream

if TYPE_CHECKING:
    from .stt import DeepgramSTT

__all__ = ["NovaStream", "transcript_of"]

KEEP_ALIVE_MS = 4_000.0  # the server closes after 10 s without audio or KeepAlive
ROUNDING_MS = 1.0  # who slept for a time may wake a rounding error early
SLACK_MS = 20.0  # the server rounds times to hundredths of a second
HANG_MS = 1_000.0  # so much audio of which no result tells, not even an interim one, and the server hangs
SPOKEN_SHARE = 0.25  # of `finalize_timeout_ms`: where the server has said that the speech is over, there is little to wait for
KNOWN = ("Metadata", "SpeechStarted", "UtteranceEnd", "ConfigureSuccess", "ConfigureFailure")


class NovaStream(LiveStream):
    """One session's socket. Positions, in words and `through_ms`, are in ms of the audio it was given.

    Each `finalize` is answered once. The server may leave Finalize unanswered where it holds no speech. So an utterance is also
    over when finals cover it; and when nothing came for `finalize_timeout_ms`: then the words last told are final. Words that
    come later still are told as finals of their own.
    """

    path = "/v1/listen"

    def __init__(self, engine: DeepgramSTT) -> None:
        super().__init__(engine, engine.counters)
        self._options = engine.options
        self._timers = Timers(self._clock)
        self._asked: deque[float] = deque()  # where the utterances end whose final is owed
        self._closed_ms = 0.0  # where the last one ended
        self._told_ms = 0.0  # finals cover the audio up to here
        self._guessed_ms = 0.0  # up to here interim words were told as final: real finals come too late
        self._interim = Transcript("", is_final=False)
        self._heard_ms = 0.0  # results, interim ones too, cover the audio up to here
        self._over = False  # the server has said that the speech is over, and has told no words since
        self._active_ms = 0.0

    def _query(self) -> dict[str, Any]:
        options = self._options
        return {
            "model": options.model,
            "language": options.language,
            "encoding": "linear16",
            "sample_rate": options.sample_rate_hz,
            "channels": 1,
            "interim_results": options.interim,
            "smart_format": options.smart_format,
            "punctuate": options.punctuate,
            "endpointing": round(options.endpointing_ms) or False,
            "keyterm": options.keyterms,
            **options.extra,
        }

    def _run(self, upstream: Upstream) -> None:
        super()._run(upstream)
        self._spawn(self._keep_alive(upstream), "keep-alive")

    async def send(self, audio: Audio) -> None:
        await super().send(audio)
        self._active_ms = self._clock.now_ms()

    async def finalize(self) -> None:
        """Ask for the rest of the words sent so far.

        Raises:
            ProviderError: the server cannot be asked.
        """
        if self._asked or self._told_ms < self._sent_ms - SLACK_MS:
            self._asked.append(self._sent_ms)
            upstream = await self._open()
            await self._say(upstream.send(upstream.socket.send_finalize()))
            self._wait()
        else:  # it was told already, or there was nothing
            self._asked.append(self._sent_ms)
            await self._answer(Transcript("", language=self._options.language, through_ms=self._told_ms))

    async def peek(self) -> None:
        """Tell again what was last told of words that are not final."""
        if self._interim.text:
            self._out.put_dropping(self._interim)

    async def aclose(self) -> None:
        self._timers.cancel()
        await super().aclose()

    # --- what comes --------------------------------------------------------------------------------------------------

    async def _take(self, message: Any) -> bool:
        if getattr(message, "type", None) != "Results":
            return getattr(message, "type", None) in KNOWN
        through_ms = (message.start + message.duration) * 1000.0
        self._heard_ms = max(self._heard_ms, through_ms)
        transcript = transcript_of(
            message.channel,
            self._options.language,
            through_ms=through_ms,
            from_ms=self._guessed_ms,
            is_final=bool(message.is_final),
        )
        self._over = bool(message.speech_final) or (self._over and not transcript.text)
        if not message.is_final:
            self._interim = transcript
            if transcript.text:
                await self._out.put(transcript)
        else:
            self._interim = Transcript("", is_final=False)
            self._told_ms = max(self._told_ms, through_ms)
            is_answer = bool(message.from_finalize) and through_ms > self._closed_ms + SLACK_MS
            if self._asked and (is_answer or through_ms >= self._asked[0] - SLACK_MS):
                await self._answer(transcript)
            elif transcript.text:
                await self._out.put(transcript)
        self._wait()
        return True

    async def _answer(self, transcript: Transcript) -> None:
        """The final of the oldest utterance that waits for it, and of those that end with it."""
        self._end_utterance()
        await self._out.put(attrs.evolve(transcript, is_final=True, closes=True))
        while self._asked and self._told_ms >= self._asked[0] - SLACK_MS:
            self._end_utterance()
            await self._out.put(attrs.evolve(transcript, text="", words=(), is_final=True, closes=True))

    def _end_utterance(self) -> None:
        self._closed_ms = self._asked.popleft()
        self._over = False
        if not self._asked:
            self._timers.cancel()

    # --- what does not come ------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Give the server its time, from now; words on their way prolong it."""
        if self._asked:
            wait_ms = self._options.finalize_timeout_ms * (SPOKEN_SHARE if self._over else 1.0)
            self._timers.set("finalize", wait_ms, self._unanswered)

    def _unanswered(self) -> None:
        unheard_ms = self._asked[0] - self._heard_ms
        if unheard_ms >= HANG_MS:
            self._fail(TimeoutError(f"nothing came of the last {unheard_ms:.0f} ms of audio"))
            return
        self._counters["finalize_unanswered"] += 1
        guess, self._interim = self._interim, Transcript("", is_final=False)
        while self._asked:
            self._guessed_ms = self._asked[0] if guess.text else self._guessed_ms
            self._end_utterance()
            self._out.put_over(
                attrs.evolve(guess, language=self._options.language, is_final=True, closes=True, through_ms=self._closed_ms)
            )
            guess = Transcript("")

    async def _keep_alive(self, upstream: Upstream) -> None:
        self._active_ms = self._clock.now_ms()
        with suppress(Exception):  # whoever reads the socket tells of it
            while True:
                quiet_ms = self._clock.now_ms() - self._active_ms
                if quiet_ms >= KEEP_ALIVE_MS - ROUNDING_MS:
                    await upstream.send(upstream.socket.send_keep_alive())
                    self._active_ms = self._clock.now_ms()
                else:
                    await self._clock.sleep_ms(KEEP_ALIVE_MS - quiet_ms)


def transcript_of(
    channel: Any, language: str, *, through_ms: float, from_ms: float = 0.0, is_final: bool = True
) -> Transcript:
    """What a channel of a result says; of its words only those after `from_ms`."""
    best = channel.alternatives[0]
    words = tuple(
        Word(word.punctuated_word or word.word, word.start * 1000.0, word.end * 1000.0, word.confidence)
        for word in best.words or ()
    )
    late = tuple(word for word in words if word.start_ms + word.end_ms > 2.0 * from_ms)
    text = best.transcript if len(late) == len(words) else " ".join(word.text for word in late)
    spoken = getattr(best, "languages", None) or [language]
    return Transcript(text, is_final, best.confidence, spoken[0], late, through_ms=through_ms)
