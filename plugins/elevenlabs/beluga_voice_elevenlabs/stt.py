"""ElevenLabs Scribe as a recogniser of beluga-voice: live over a socket, or an utterance a request.

>>> ElevenLabsSTT(api_key="secret-key", mode="batch").options.model
'scribe_v2'
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs

from beluga_voice.audio import Audio, resample
from beluga_voice.frames import Transcript
from beluga_voice.options import option
from beluga_voice.remote import Remote, base_url_option, key_option, max_concurrent_option
from beluga_voice.stt import STT, BatchStream, Options, STTCapabilities, STTStream

from .scribe import ScribeStream, transcript
from .scribe_socket import language_code
from .vendor import VENDOR, Clients

if TYPE_CHECKING:
    from typing import Self

__all__ = ["ElevenLabsSTT", "ElevenLabsSTTOptions"]

MODELS = {"realtime": "scribe_v2_realtime", "batch": "scribe_v2"}
RATES_HZ = (8_000, 16_000, 22_050, 24_000, 44_100, 48_000)
BATCH_RATE_HZ = 16_000  # the one rate it takes as it is, without a file around it


@attrs.frozen
class ElevenLabsSTTOptions(Options):
    """Options of ElevenLabs Scribe."""

    mode: str = option("realtime", "live over a socket, or each utterance in a request", choices=tuple(MODELS))
    model: str = option("", "which model listens; empty: scribe_v2_realtime, in batch mode scribe_v2")
    sample_rate_hz: int = option(16_000, "of the audio sent live; in batch mode always 16,000", choices=RATES_HZ)
    word_times: bool = option(True, "ask when each word was said")
    keyterms: tuple[str, ...] = option((), "words it is to expect; live at most 50, of 20 characters at most")
    api_key: str = key_option(VENDOR.env_var)
    base_url: str = base_url_option(VENDOR.base_url)
    max_concurrent: int = max_concurrent_option()


class ElevenLabsSTT(Remote, STT):
    """Scribe. Live, it has one socket a session, and an utterance is final when the session's own turn detector ends it.

    Args:
        options: see `ElevenLabsSTTOptions`.

    Attributes:
        counters: connections, idle_drops, commits_ignored, unknown_messages.

    Raises:
        OptionError: an option does not fit.
        MissingKeyError: there is no key.
    """

    vendor = VENDOR
    Options = ElevenLabsSTTOptions
    options: ElevenLabsSTTOptions
    capabilities = STTCapabilities(interim=True)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.counters: Counter[str] = Counter()
        self._settle()

    def with_options(self, **changes: Any) -> Self:
        """The same recogniser with other options. Raises what the class does."""
        other = super().with_options(**changes)
        other._settle()
        return other

    def _settle(self) -> None:
        live = self.options.mode == "realtime"
        if self.options.model in ("", *MODELS.values()):  # each of these serves one mode only
            self.options = attrs.evolve(self.options, model=MODELS[self.options.mode])
        rate_hz = self.options.sample_rate_hz if live else BATCH_RATE_HZ
        self.capabilities = STTCapabilities(rate_hz, interim=live)

    def stream(self) -> STTStream:
        """A stream for one session: one socket, or a request an utterance."""
        return ScribeStream(self) if self.options.mode == "realtime" else BatchStream(self)

    async def transcribe(self, audio: Audio) -> Transcript:
        """The words of one piece of audio, with their times in it in ms.

        Raises:
            ProviderError: the service failed; its subclasses say how.
        """
        if self.options.mode == "realtime":
            return await super().transcribe(audio)
        options = self.options
        asked: dict[str, Any] = {"keyterms": list(options.keyterms)} if options.keyterms else {}
        clients: Clients = await self.client()
        try:
            answer = await clients.sdk.speech_to_text.convert(
                model_id=options.model,
                file=("audio.pcm", resample(audio, BATCH_RATE_HZ).pcm, "application/octet-stream"),
                file_format="pcm_s16le_16",
                language_code=language_code(options.language),
                tag_audio_events=False,
                timestamps_granularity="word" if options.word_times else "none",
                request_options={"max_retries": 0},
                **asked,
            )
            return transcript(answer.text, [word.dict() for word in answer.words or ()], answer.language_code)
        except Exception as error:
            raise self.failed(error, "transcribing") from None
