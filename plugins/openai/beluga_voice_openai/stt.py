"""OpenAI's recognisers, and those of every server with an `/audio/transcriptions` of the same kind.

>>> OpenAISTT(api_key="sk-...").model, OpenAISTT(api_key="sk-...", mode="realtime").model
('gpt-transcribe', 'gpt-live-transcribe')
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from beluga_voice.audio import Audio, silence
from beluga_voice.engine import Context
from beluga_voice.errors import ProtocolError
from beluga_voice.frames import Transcript, Usage
from beluga_voice.options import option
from beluga_voice.remote import Remote, base_url_option, key_option, max_concurrent_option
from beluga_voice.stt import STT, BatchStream, Options, STTCapabilities, STTStream

from .realtime_stt import SAMPLE_RATE_HZ, RealtimeStream
from .rehearsal import TRANSCRIPTION, rehearse, rehearse_socket
from .vendor import OPENAI
from .wav import wav

if TYPE_CHECKING:
    from typing import Self

__all__ = ["OpenAISTT", "OpenAISTTOptions"]

MODELS = {"batch": "gpt-transcribe", "realtime": "gpt-live-transcribe"}
LIVE = STTCapabilities(sample_rate_hz=SAMPLE_RATE_HZ, interim=True)


@attrs.frozen
class OpenAISTTOptions(Options):
    """Options of OpenAI's recognisers: those of every recogniser, and how it is asked."""

    mode: str = option("batch", "batch sends whole turns; realtime streams over one socket a session", choices=tuple(MODELS))
    model: str = option("", f"which model listens; empty: {MODELS['batch']}, or in realtime {MODELS['realtime']}")
    language: str = option("en", "BCP-47 tag of the language spoken; empty: the model finds out")
    prompt: str = option("", "what the talk is about, for the spelling of names")
    extra: dict[str, Any] = option(
        attrs.Factory(dict), "more fields as they are, of the request, or in realtime of audio.input.transcription"
    )
    api_key: str = key_option(OPENAI.env_var)
    base_url: str = base_url_option(OPENAI.base_url)
    max_concurrent: int = max_concurrent_option()


class OpenAISTT(Remote, STT):
    """A recogniser at OpenAI.

    In mode "batch" a turn is one request when it is over, its audio sent as a WAV file. In mode "realtime" the audio is
    streamed as it is spoken and a turn's words are there sooner, with interim ones before.

    Args:
        options: see `OpenAISTTOptions`.

    Raises:
        OptionError: an option does not fit.
        MissingKeyError: there is no key.
    """

    vendor = OPENAI
    Options: ClassVar[type[Any]] = OpenAISTTOptions
    capabilities = STTCapabilities(sample_rate_hz=None)
    _emit: Callable[[Usage], None] | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._fit()

    @property
    def model(self) -> str:
        """The model that listens."""
        return str(self.options.model or MODELS[self.options.mode])

    @property
    def _is_realtime(self) -> bool:
        return bool(self.options.mode == "realtime")

    def _fit(self) -> None:
        """Tell what it can do, which depends on the mode."""
        self.capabilities = LIVE if self._is_realtime else type(self).capabilities

    def with_options(self, **changes: Any) -> Self:
        """The same engine with other options. Raises what the class does."""
        other = super().with_options(**changes)
        other._fit()
        return other

    async def prewarm(self) -> None:
        """Make the client, and load what the SDK would load at its first call."""
        client = await self.client()
        if self._is_realtime:
            await asyncio.to_thread(lambda: client.realtime)
            await rehearse_socket(RealtimeStream(self).rehearse, {"type": "session.updated"})
        else:
            sound = silence(100.0, 16_000)
            await rehearse(TRANSCRIPTION, lambda client: client.audio.transcriptions.create(**self._request(sound)))

    async def open(self, context: Context) -> Self:
        """The session's own handle: what a call used is told to the session."""
        handle = copy.copy(self)
        handle._lease = None  # it has one of its own, and gives it back
        handle._emit = context.emit
        return handle

    def stream(self) -> STTStream:
        """A stream for one session."""
        return RealtimeStream(self) if self._is_realtime else BatchStream(self)

    async def transcribe(self, audio: Audio) -> Transcript:
        """The words of one piece of audio.

        Raises:
            ProviderError: the service failed; its subclasses say how.
        """
        if self._is_realtime:
            return await super().transcribe(audio)
        if not audio.pcm:
            return Transcript("", language=self.options.language)
        client = await self.client()
        try:
            said = await client.audio.transcriptions.create(**self._request(audio))
        except Exception as error:
            raise self.failed(error, "transcribing") from None
        if not isinstance(getattr(said, "text", None), str):
            raise ProtocolError(
                f"stt {self.name!r}: it answered without a text ({type(said).__name__}); expected a transcription. "
                "Check base_url and model",
                provider=self.name,
                kind="stt",
            )
        self.used(getattr(said, "usage", None))
        return Transcript(said.text.strip(), language=self.options.language or _language(said))

    def _request(self, audio: Audio) -> dict[str, Any]:
        request: dict[str, Any] = {"model": self.model, "file": ("speech.wav", wav(audio), "audio/wav")}
        if self.options.language:
            request["language"] = primary(self.options.language)
        if self.options.prompt:
            request["prompt"] = self.options.prompt
        if self.options.extra:
            request["extra_body"] = self.options.extra
        return request

    def used(self, usage: Any) -> None:
        """Tell the session what a call used, where the service says so."""
        amounts: dict[str, float] = {}
        for unit in ("input_tokens", "output_tokens"):
            if isinstance(getattr(usage, unit, None), int):
                amounts[unit] = getattr(usage, unit)
        if isinstance(getattr(usage, "seconds", None), (int, float)):
            amounts["billed_ms"] = usage.seconds * 1_000.0
        if amounts and self._emit is not None:
            self._emit(Usage("stt", self.name, self.model, amounts))


def primary(language: str) -> str:
    """The language of a BCP-47 tag, as the service wants it: "en" of "en-GB"."""
    return language.split("-")[0].lower()


def _language(said: Any) -> str:
    found = getattr(said, "languages", None) or ()
    return str(getattr(found[0], "code", "")) if found else str(getattr(said, "language", None) or "")
