"""OpenAI's voices, and those of every server with an `/audio/speech` of the same kind.

>>> OpenAITTS(api_key="sk-...").options.voice
'alloy'
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, ClassVar

import attrs

from beluga_voice.errors import ProtocolError
from beluga_voice.frames import AudioOut
from beluga_voice.options import option
from beluga_voice.remote import Remote, base_url_option, key_option, max_concurrent_option
from beluga_voice.tts import TTS, Options, SentenceSplitter, TTSCapabilities

from .rehearsal import SPEECH, rehearse
from .vendor import OPENAI
from .wav import WavStripper

__all__ = ["OpenAITTS", "OpenAITTSOptions"]

PCM_HZ = 24_000


@attrs.frozen
class OpenAITTSOptions(Options):
    """Options of OpenAI's voices: those of every voice, and what its `/audio/speech` takes."""

    model: str = option("gpt-4o-mini-tts", "which model speaks")
    voice: str = option("alloy", "which voice speaks, by name or id")
    instructions: str = option("", 'how to speak, in plain words: "calm, a little slower"')
    speed: float = option(1.0, "1.0 is the voice's own pace", at_least=0.25, at_most=4.0)
    response_format: str = option(
        "pcm", "pcm is taken as 24,000 Hz; wav, for servers of other rates, says its own", choices=("pcm", "wav")
    )
    extra: dict[str, Any] = option(attrs.Factory(dict), "more fields of the request, as they are")
    api_key: str = key_option(OPENAI.env_var)
    base_url: str = base_url_option(OPENAI.base_url)
    max_concurrent: int = max_concurrent_option()


class OpenAITTS(Remote, TTS):
    """A voice at OpenAI. A sentence is one request; its audio is passed on as it comes.

    Closing the stream ends the request. A text longer than the service takes is spoken in several requests.

    Args:
        options: see `OpenAITTSOptions`.

    Raises:
        OptionError: an option does not fit.
        MissingKeyError: there is no key.
    """

    vendor = OPENAI
    Options: ClassVar[type[Any]] = OpenAITTSOptions
    capabilities = TTSCapabilities()
    longest_text = 4_096

    async def prewarm(self) -> None:
        """Make the client, and load what the SDK would load at its first call."""
        await self.client()

        async def speak(client: Any) -> None:
            async with client.audio.speech.with_streaming_response.create(**self._request("one")) as response:
                await response.read()

        await rehearse(SPEECH, speak)

    async def synthesize_stream(self, texts: AsyncIterator[str]) -> AsyncIterator[AudioOut]:
        """The sound of texts as it comes.

        Raises:
            ProviderError: the service failed; its subclasses say how.
        """
        async for text in texts:
            begun = text
            for part in self._parts(text):
                async with aclosing(self._speak(part)) as pieces:
                    async for pcm, rate_hz in pieces:
                        yield AudioOut(pcm, rate_hz, begun)
                        begun = ""

    def _parts(self, text: str) -> list[str]:
        if len(text) <= self.longest_text:
            return [text] if text.strip() else []
        splitter = SentenceSplitter(self.options.language, self.longest_text)
        return [part for part in (*splitter.feed(text), splitter.rest()) if part]

    async def _speak(self, text: str) -> AsyncGenerator[tuple[bytes, int], None]:
        """The PCM of one request, in whole samples, and its rate."""
        stripper = WavStripper() if self.options.response_format == "wav" else None
        spare = b""
        try:
            client = await self.client()
            speech = client.audio.speech.with_streaming_response
            async with speech.create(**self._request(text)) as response, aclosing(response.iter_bytes()) as chunks:
                self._check(response.headers.get("content-type", ""))
                async for chunk in chunks:
                    pcm = spare + (stripper.feed(chunk) if stripper is not None else chunk)
                    whole = len(pcm) // 2 * 2
                    pcm, spare = pcm[:whole], pcm[whole:]
                    if pcm:
                        yield pcm, stripper.sample_rate_hz if stripper is not None else PCM_HZ
        except Exception as error:
            raise self.failed(error, "speaking") from None

    def _request(self, text: str) -> dict[str, Any]:
        chosen = self.options
        request: dict[str, Any] = {
            "model": chosen.model,
            "voice": chosen.voice,
            "input": text,
            "response_format": chosen.response_format,
        }
        if chosen.instructions:
            request["instructions"] = chosen.instructions
        if chosen.speed != 1.0:
            request["speed"] = chosen.speed
        if chosen.extra:
            request["extra_body"] = chosen.extra
        return request

    def _check(self, content_type: str) -> None:
        if content_type.startswith(("text/", "application/json")):  # a page or a message must not be played
            raise ProtocolError(
                f"tts {self.name!r}: it answered with {content_type[:60]!r}; expected audio. Check base_url",
                provider=self.name,
                kind="tts",
            )
