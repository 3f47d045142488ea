"""Deepgram Aura as a voice: one WebSocket a session, or an HTTP call a sentence.

>>> tts.new("deepgram", api_key="...", voice="aura-2-apollo-en").capabilities.sample_rate_hz
24000
"""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, cast

import attrs

from beluga_voice.engine import Context
from beluga_voice.errors import ProviderError
from beluga_voice.frames import AudioOut
from beluga_voice.options import option
from beluga_voice.remote import Remote, base_url_option, key_option, max_concurrent_option
from beluga_voice.tts import TTS, Options, TTSCapabilities

from .speaking import Speaking
from .upstream import Upstream
from .vendor import DEEPGRAM, SILENCE_TIMEOUT_S, EventError, extra_option, request_options

if TYPE_CHECKING:
    from typing import Self

__all__ = ["DeepgramTTS", "DeepgramVoiceOptions"]

DEFAULT_VOICE = "aura-2-thalia-en"


@attrs.frozen
class DeepgramVoiceOptions(Options):
    """Options of Aura: those of every voice, and Deepgram's own."""

    voice: str = option(DEFAULT_VOICE, "which voice speaks: one of Deepgram's Aura models")
    sample_rate_hz: int = option(24_000, "the rate of the sound", choices=(8_000, 16_000, 24_000, 32_000, 48_000))
    transport: str = option(
        "websocket", "websocket: one socket a session; http: one call a sentence", choices=("websocket", "http")
    )
    extra: dict[str, Any] = extra_option()
    api_key: str = key_option(DEEPGRAM.env_var)
    base_url: str = base_url_option(DEEPGRAM.base_url)
    max_concurrent: int = max_concurrent_option()


class DeepgramTTS(Remote, TTS):
    """Aura. A session opens one socket and speaks all its sentences over it; without a session each call opens its own.

    Args:
        options: see `DeepgramVoiceOptions`.

    Attributes:
        counters: what was passed over: "messages_unknown", "warnings" of the server, "audio_dropped" (messages of sound that
            came after the reply was cut), "odd_bytes" (half a sample at the end of a sentence).

    Raises:
        OptionError: an option does not fit.
        MissingKeyError: there is no key.

    Example:
        >>> async def main():
        ...     async with tts.new("deepgram") as engine:
        ...         return await engine.synthesize("Hello.")
    """

    vendor = DEEPGRAM
    Options = DeepgramVoiceOptions
    capabilities = TTSCapabilities(sample_rate_hz=24_000)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.counters: Counter[str] = Counter()
        self._session: _SessionSocket | None = None
        self._set_capabilities()

    def _set_capabilities(self) -> None:
        self.capabilities = TTSCapabilities(sample_rate_hz=self.options.sample_rate_hz)  # type: ignore[misc]

    def with_options(self, **changes: Any) -> Self:
        """The same voice with other options. Raises what the class does."""
        other = super().with_options(**changes)
        other._set_capabilities()
        return other

    async def open(self, context: Context) -> Self:
        """A session's own: it keeps one socket open between sentences.

        A socket that does not open now is opened with the first sentence.
        """
        await self.client()
        if self.options.transport != "websocket":
            return self
        handle = copy.copy(self)
        handle._session = _SessionSocket(await self._connected_or_none())
        return handle

    async def aclose(self) -> None:
        """Close the session's socket; for the engine itself, give the client back."""
        if self._session is not None:
            await self._session.aclose()
        else:
            await super().aclose()

    async def synthesize_stream(self, texts: AsyncIterator[str]) -> AsyncIterator[AudioOut]:
        """The sound of texts as it is made, each text spoken by itself.

        Raises:
            ProviderError: the call failed; its subclasses say how.
        """
        speak = self._over_socket if self.options.transport == "websocket" else self._over_http
        async for text in texts:
            if not text.strip():
                continue
            first, odd = text, b""
            async with aclosing(cast(Any, speak(text))) as pieces:
                async for piece in pieces:
                    piece = odd + piece
                    odd = piece[len(piece) // 2 * 2 :]  # half a sample belongs to the next piece
                    pcm = piece[: len(piece) - len(odd)]
                    if pcm:
                        yield AudioOut(pcm, self.options.sample_rate_hz, first)
                        first = ""
            self.counters["odd_bytes"] += len(odd)

    # --- HTTP --------------------------------------------------------------------------------------------------------

    async def _over_http(self, text: str) -> AsyncIterator[bytes]:
        options: DeepgramVoiceOptions = self.options
        sdk = (await self.client()).sdk
        generating = sdk.speak.v1.audio.with_raw_response.generate(
            text=text,
            model=options.voice or DEFAULT_VOICE,
            encoding="linear16",
            container="none",
            sample_rate=options.sample_rate_hz,
            request_options=request_options(options.extra),
        )
        try:
            async with generating as answer:
                content = answer.headers.get("content-type", "")
                if content.startswith(("text/", "application/json")):
                    raise EventError(f"the answer is {content}, and no sound")
                async for piece in answer.data:
                    yield piece
        except Exception as error:
            raise self.failed(error, "speaking") from None

    # --- WebSocket ---------------------------------------------------------------------------------------------------

    async def _over_socket(self, text: str) -> AsyncIterator[bytes]:
        speaking = await self._begin(text)
        done = False
        try:
            while True:
                async with asyncio.timeout(SILENCE_TIMEOUT_S):
                    piece = await speaking.piece()
                if piece is None:
                    done = True
                    return
                yield piece
        except Exception as error:
            speaking.broken = True
            raise self.failed(error, "speaking") from None
        finally:
            if self._session is not None:
                await self._session.give_back(speaking, done)
            else:
                await speaking.aclose()

    async def _begin(self, text: str) -> Speaking:
        """A socket that has been given the text: the session's own, unless the server has closed it meanwhile."""
        kept = await self._session.take() if self._session is not None else None
        if kept is not None:
            try:
                await kept.say(text)
                return kept
            except BaseException as error:
                await kept.aclose()
                if not isinstance(error, Exception):
                    raise
        speaking = await self._connected()
        try:
            await speaking.say(text)
        except BaseException as error:
            await speaking.aclose()
            if isinstance(error, Exception):
                raise self.failed(error, "sending the text") from None
            raise
        return speaking

    async def _connected(self) -> Speaking:
        options: DeepgramVoiceOptions = self.options
        voice = options.voice or DEFAULT_VOICE
        query = {"model": voice, "encoding": "linear16", "sample_rate": options.sample_rate_hz, **options.extra}
        try:
            return Speaking(await Upstream.open(await self.client(), "/v1/speak", query), self.counters)
        except Exception as error:
            raise self.failed(error, "opening the stream") from None

    async def _connected_or_none(self) -> Speaking | None:
        with suppress(ProviderError):
            return await self._connected()
        return None


class _SessionSocket:
    """The one socket of a session, between its sentences."""

    def __init__(self, speaking: Speaking | None) -> None:
        self._kept = speaking
        self._closed = False

    async def take(self) -> Speaking | None:
        """It, if it is free and well."""
        kept, self._kept = self._kept, None
        if kept is None:
            return None
        try:
            ready = await kept.ready()
        except asyncio.CancelledError:
            await self.give_back(kept, done=True)  # it is the next one's
            raise
        if not ready:
            await kept.aclose()
        return kept if ready else None

    async def give_back(self, speaking: Speaking, done: bool) -> None:
        """Keep it for the next sentence; one that was not `done` is silenced, and its sound dropped."""
        if self._closed or self._kept is not None or speaking.broken:
            await speaking.aclose()
            return
        if not done:
            speaking.hush()
        self._kept = speaking

    async def aclose(self) -> None:
        """Close it."""
        self._closed = True
        kept, self._kept = self._kept, None
        if kept is not None:
            await kept.aclose()
