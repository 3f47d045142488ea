"""Deepgram Flux as a recogniser that hears by itself when the caller begins, and when the caller has finished (`/v2/listen`).

>>> stt.new("deepgram-flux", api_key="...", eager_eot_threshold=0.4).capabilities.ends_turns
True
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs

from beluga_voice.audio import Audio
from beluga_voice.clock import Timers
from beluga_voice.frames import (
    SpeechEnded,
    SpeechStarted,
    Transcript,
    TurnEnded,
    TurnEndProposed,
    TurnEndWithdrawn,
    Word,
)
from beluga_voice.options import option
from beluga_voice.remote import Remote, base_url_option, key_option, max_concurrent_option
from beluga_voice.stt import STT, Options, STTCapabilities

from .stream import LiveStream
from .vendor import DEEPGRAM, extra_option

if TYPE_CHECKING:
    from typing import Self

__all__ = ["FluxOptions", "FluxSTT"]

SOURCE = "flux"
HANG_MS = 3_000.0  # Flux tells of every quarter of a second of audio: nothing for so much, and so long, and it hangs
HANGOVER_MS = 300.0  # so long after its last word, speech is over; the turn may go on
KNOWN = ("Connected", "ConfigureSuccess", "ConfigureFailure", "Warning")


@attrs.frozen
class FluxOptions(Options):
    """Options of Flux: those of every recogniser, and Deepgram's own."""

    model: str = option("flux-general-en", 'which model listens; "flux-general-multi" knows more languages')
    sample_rate_hz: int = option(16_000, "the rate audio is sent at", at_least=8_000, at_most=48_000)
    keyterms: tuple[str, ...] = option((), "words and names to listen for")
    eot_threshold: float = option(0.7, "how sure Flux is that a turn is over when it ends it", at_least=0.5, at_most=1)
    eager_eot_threshold: float = option(
        0.0, "how sure it is when it proposes that the turn may be over: 0.3 to 0.9; 0: never", at_least=0, at_most=0.9
    )
    eot_timeout_ms: float = option(5_000, "quiet that ends a turn, however unsure", at_least=500, at_most=60_000)
    finalize_timeout_ms: float = option(600, "how long an asked-for end of the turn may take", at_least=50)
    extra: dict[str, Any] = extra_option()
    api_key: str = key_option(DEEPGRAM.env_var)
    base_url: str = base_url_option(DEEPGRAM.base_url)
    max_concurrent: int = max_concurrent_option()


class FluxSTT(Remote, STT):
    """Flux: needs no turn detector, and no VAD. It wants all audio of the line.

    Its stream gives `SpeechStarted`, `SpeechEnded` and interim transcripts; with `eager_eot_threshold`, `TurnEndProposed` and
    `TurnEndWithdrawn`; and at the end of a turn the final transcript and `TurnEnded`.

    Args:
        options: see `FluxOptions`.

    Attributes:
        counters: what was passed over: "messages_unknown", "finalize_unanswered".

    Raises:
        OptionError: an option does not fit.
        MissingKeyError: there is no key.

    Example:
        >>> chain = Chain(stt.new("deepgram-flux"), reply, tts.new("deepgram"))
    """

    vendor = DEEPGRAM
    Options = FluxOptions
    capabilities = STTCapabilities(continuous=True, interim=True, ends_turns=True)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.counters: Counter[str] = Counter()
        self._set_capabilities()

    def _set_capabilities(self) -> None:
        self.capabilities = attrs.evolve(type(self).capabilities, sample_rate_hz=self.options.sample_rate_hz)

    def with_options(self, **changes: Any) -> Self:
        """The same recogniser with other options. Raises what the class does."""
        other = super().with_options(**changes)
        other._set_capabilities()
        return other

    def stream(self) -> FluxStream:
        """A stream for one session; its socket opens with `connect` or the first audio."""
        return FluxStream(self)


class FluxStream(LiveStream):
    """One session's socket. Positions are in ms of the audio it was given.

    `finalize` ends the turn under way (ForceEndTurn); where there is none, its final is empty.
    """

    path = "/v2/listen"

    def __init__(self, engine: FluxSTT) -> None:
        super().__init__(engine, engine.counters)
        self._options = engine.options
        self._timers = Timers(self._clock)
        self._asked = 0  # ends of turns that were asked for, and have not come
        self._start_ms: float | None = None  # where the turn under way began
        self._quiet_ms = 0.0  # no turn was under way up to here
        self._speaking = False
        self._text, self._text_ms = "", 0.0  # what was last told of it, and when it last grew
        self._interim: Transcript | None = None
        self._heard_ms = self._heard_at_ms = 0.0  # how much audio the server has told of, and when it last told anything

    def _query(self) -> dict[str, Any]:
        options = self._options
        return {
            "model": options.model,
            "encoding": "linear16",
            "sample_rate": options.sample_rate_hz,
            "eot_threshold": options.eot_threshold,
            "eager_eot_threshold": options.eager_eot_threshold or None,
            "eot_timeout_ms": round(options.eot_timeout_ms),
            "keyterm": options.keyterms,
            "language_hint": options.language if options.model.endswith("multi") else None,
            **options.extra,
        }

    async def send(self, audio: Audio) -> None:
        await super().send(audio)
        now_ms = self._clock.now_ms()
        self._heard_at_ms = self._heard_at_ms or now_ms
        silent_ms = min(self._sent_ms - self._heard_ms, now_ms - self._heard_at_ms)
        if silent_ms >= HANG_MS:
            self._fail(TimeoutError(f"nothing came of {silent_ms:.0f} ms of audio"))

    async def finalize(self) -> None:
        """End the turn under way.

        Raises:
            ProviderError: the server cannot be asked.
        """
        upstream = await self._open()
        self._asked += 1
        await self._say(upstream.send(upstream.socket.send_force_end_turn()))
        self._timers.set("finalize", self._options.finalize_timeout_ms, self._unanswered)

    async def peek(self) -> None:
        """Tell again what the turn says so far."""
        if self._interim is not None:
            self._out.put_dropping(self._interim)

    async def aclose(self) -> None:
        self._timers.cancel()
        await super().aclose()

    # --- what comes --------------------------------------------------------------------------------------------------

    async def _take(self, message: Any) -> bool:
        if getattr(message, "type", None) != "TurnInfo":
            return getattr(message, "type", None) in KNOWN
        self._heard_ms, self._heard_at_ms = message.audio_window_end * 1000.0, self._clock.now_ms()
        for frame in self._told(message):
            await self._out.put(frame)
        return True

    def _told(self, message: Any) -> list[Any]:
        """The frames that one message makes."""
        event, at_ms, text, words = message.event, message.audio_window_end * 1000.0, message.transcript, _words(message)
        if self._start_ms is None and not (text or event == "StartOfTurn"):
            self._quiet_ms = at_ms
            return [self._final(message, at_ms, words)] if event == "EndOfTurn" and self._asked else []
        frames: list[Any] = []
        grew, self._text = text != self._text, text
        if grew:
            self._text_ms = at_ms
        if self._start_ms is None or (grew and not self._speaking):
            frames.append(self._started(at_ms, words))
        if event == "TurnResumed":
            frames.append(TurnEndWithdrawn(at_ms))
        end_ms = words[-1].end_ms if words else self._text_ms
        if self._speaking and (event == "EndOfTurn" or at_ms - end_ms >= HANGOVER_MS):
            self._speaking = False
            frames.append(SpeechEnded(at_ms, end_ms))
        if event == "EndOfTurn":
            frames += [self._final(message, at_ms, words), TurnEnded(at_ms, SOURCE, self._start_ms or 0.0, end_ms)]
            self._start_ms, self._quiet_ms, self._text = None, at_ms, ""
            self._interim = None
        elif grew:
            self._interim = Transcript(text, False, _confidence(message), self._language(message), words)
            frames.append(self._interim)
        if event == "EagerEndOfTurn":
            frames.append(TurnEndProposed(at_ms))
        return frames

    def _started(self, at_ms: float, words: tuple[Word, ...]) -> SpeechStarted:
        """Speech begins, in a turn of its own, or again after a pause within it."""
        self._speaking = True
        if self._start_ms is None:
            self._start_ms = start_ms = words[0].start_ms if words else self._quiet_ms
        else:
            start_ms = words[-1].start_ms if words else at_ms
        return SpeechStarted(at_ms, start_ms, start_ms)

    def _final(self, message: Any, at_ms: float, words: tuple[Word, ...]) -> Transcript:
        closes = self._asked > 0
        self._asked -= closes
        if not self._asked:
            self._timers.cancel()
        return Transcript(
            message.transcript, True, _confidence(message), self._language(message), words, closes=closes, through_ms=at_ms
        )

    def _language(self, message: Any) -> str:
        return str((getattr(message, "languages", None) or [self._options.language])[0])

    # --- what does not come ------------------------------------------------------------------------------------------

    def _unanswered(self) -> None:
        """No end of turn came: the server ignores the request where no turn is under way."""
        self._counters["finalize_unanswered"] += 1
        while self._asked:
            self._asked -= 1
            self._out.put_over(Transcript("", language=self._options.language, closes=True))


def _words(message: Any) -> tuple[Word, ...]:
    """The words with their times; none where the server gives no times."""
    timed = [word for word in message.words or () if getattr(word, "start", None) is not None and word.end is not None]
    return tuple(Word(word.word, word.start * 1000.0, word.end * 1000.0, word.confidence) for word in timed)


def _confidence(message: Any) -> float | None:
    known = [word.confidence for word in message.words or ()]
    return sum(known) / len(known) if known else None
