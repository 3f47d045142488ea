"""Deepgram Nova as a recogniser: live over one socket a session, and batch over HTTP.

>>> stt.new("deepgram", api_key="...", keyterms=["Beluga"]).options.model
'nova-3'
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs

from beluga_voice.audio import Audio
from beluga_voice.frames import Transcript
from beluga_voice.options import option
from beluga_voice.remote import Remote, base_url_option, key_option, max_concurrent_option
from beluga_voice.stt import STT, Options, STTCapabilities

from .nova import NovaStream, transcript_of
from .vendor import DEEPGRAM, extra_option, request_options

if TYPE_CHECKING:
    from typing import Self

__all__ = ["DeepgramOptions", "DeepgramSTT"]

BATCH_TIMEOUT_S = 60.0


@attrs.frozen
class DeepgramOptions(Options):
    """Options of Nova: those of every recogniser, and Deepgram's own."""

    model: str = option("nova-3", "which model listens")
    sample_rate_hz: int = option(16_000, "the rate audio is sent at", at_least=8_000, at_most=48_000)
    keyterms: tuple[str, ...] = option((), "words and names to listen for")
    smart_format: bool = option(True, "numbers, dates and amounts are written as people write them")
    punctuate: bool = option(True, "sentences have punctuation and capitals")
    interim: bool = option(True, "words are told while they are spoken")
    endpointing_ms: float = option(300, "quiet after which words are final, before the turn is over; 0: never", at_least=0)
    finalize_timeout_ms: float = option(
        600, "how long nothing may come after the turn's end before the words so far are final", at_least=50
    )
    extra: dict[str, Any] = extra_option()
    api_key: str = key_option(DEEPGRAM.env_var)
    base_url: str = base_url_option(DEEPGRAM.base_url)
    max_concurrent: int = max_concurrent_option()


class DeepgramSTT(Remote, STT):
    """Nova: interim and final transcripts with words and confidences, ended by the chain's turn detector.

    Args:
        options: see `DeepgramOptions`.

    Attributes:
        counters: what was passed over: "messages_unknown", "finalize_unanswered".

    Raises:
        OptionError: an option does not fit.
        MissingKeyError: there is no key.

    Example:
        >>> async def main():
        ...     async with stt.new("deepgram") as engine:
        ...         return (await engine.transcribe(audio.read("question.wav"))).text
    """

    vendor = DEEPGRAM
    Options = DeepgramOptions
    capabilities = STTCapabilities(interim=True)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.counters: Counter[str] = Counter()
        self._set_capabilities()

    def _set_capabilities(self) -> None:
        options: DeepgramOptions = self.options
        self.capabilities = STTCapabilities(sample_rate_hz=options.sample_rate_hz, interim=options.interim)

    def with_options(self, **changes: Any) -> Self:
        """The same recogniser with other options. Raises what the class does."""
        other = super().with_options(**changes)
        other._set_capabilities()
        return other

    def stream(self) -> NovaStream:
        """A stream for one session; its socket opens with `connect` or the first audio."""
        return NovaStream(self)

    async def transcribe(self, audio: Audio) -> Transcript:
        """The words of one piece of audio at any rate, by one HTTP call.

        Raises:
            ProviderError: the call failed; its subclasses say how.
        """
        if not audio.pcm:
            return Transcript("", language=self.options.language)
        sdk = (await self.client()).sdk
        options: DeepgramOptions = self.options
        try:
            async with asyncio.timeout(BATCH_TIMEOUT_S):
                answer = await sdk.listen.v1.media.transcribe_file(
                    request=audio.pcm,
                    model=options.model,
                    language=options.language,
                    encoding="linear16",
                    smart_format=options.smart_format,
                    punctuate=options.punctuate,
                    keyterm=list(options.keyterms) or None,
                    request_options=request_options(options.extra, sample_rate=audio.sample_rate_hz),
                )
            return transcript_of(answer.results.channels[0], options.language, through_ms=audio.duration_ms)
        except Exception as error:
            raise self.failed(error, "transcribing") from None
