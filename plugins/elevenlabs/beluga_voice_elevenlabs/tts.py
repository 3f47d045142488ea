"""ElevenLabs as a voice of beluga-voice: whole sentences over one socket a session, or in requests.

>>> ElevenLabsTTS(api_key="secret-key", speed=1.1).options.model
'eleven_flash_v2_5'
"""

from __future__ import annotations

import asyncio
import copy
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlencode

import attrs

from beluga_voice._streams import stop
from beluga_voice.audio import BYTES_PER_SAMPLE
from beluga_voice.engine import Context as SessionContext
from beluga_voice.errors import OptionError
from beluga_voice.frames import AudioOut
from beluga_voice.options import option
from beluga_voice.remote import Remote, base_url_option, key_option, max_concurrent_option
from beluga_voice.tts import TTS, Options, TTSCapabilities
from beluga_voice.vendor_socket import open_socket

from .contexts import Context, ContextSocket
from .script import Script, sentences
from .vendor import VENDOR, Clients, Refused

if TYPE_CHECKING:
    from typing import Self

    from websockets.asyncio.client import ClientConnection

__all__ = ["ElevenLabsTTS", "ElevenLabsTTSOptions"]

RATES_HZ = (8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
INACTIVITY_S = 180  # the longest the service allows before it closes a context that gets nothing
SENTENCES_AHEAD = 2  # sentences the service has and has not begun
AHEAD_MS = 5_000.0  # audio that waits here; while there is more, no further sentence is sent
NO_NEWS_MS = 1_000.0  # a sentence may have no sound: after this long without news the next one is sent
CHUNK_MS = 40.0  # an answer to a request is given on in pieces of this length
CONTEXT_LETTERS = 200  # of the sentence before and after, told with a request
END = ""  # no sentence is empty


@attrs.frozen
class ElevenLabsTTSOptions(Options):
    """Options of ElevenLabs' voices."""

    voice: str = option("JBFqnCBsd6RMkjVDRZzb", "the id of a voice, as in its address")
    language: str = option("", "BCP-47 tag to speak in, for models that take one; empty: as the text is")
    model: str = option("eleven_flash_v2_5", "which model speaks")
    sample_rate_hz: int = option(24_000, "of the audio; 44,100 and more need a larger plan", choices=RATES_HZ)
    transport: str = option("websocket", "one socket a session, with word times; or requests", choices=("websocket", "http"))
    stability: float = option(0.5, "0 gives more emotion, 1 the same tone throughout", at_least=0.0, at_most=1.0)
    similarity_boost: float = option(0.75, "how closely it keeps to the original voice", at_least=0.0, at_most=1.0)
    style: float = option(0.0, "how much it exaggerates the style; above 0 it is slower", at_least=0.0, at_most=1.0)
    speed: float = option(1.0, "1.0 is the voice's own pace", at_least=0.7, at_most=1.2)
    speaker_boost: bool = option(True, "sound more like the original speaker; a little slower")
    api_key: str = key_option(VENDOR.env_var)
    base_url: str = base_url_option(VENDOR.base_url)
    max_concurrent: int = max_concurrent_option()


class ElevenLabsTTS(Remote, TTS):
    """A voice of ElevenLabs.

    With `transport="websocket"` each session has one socket and each reply one context on it; the audio says when every word
    is spoken. With "http" each sentence is a request, told what comes before and after it.

    Args:
        options: see `ElevenLabsTTSOptions`.

    Attributes:
        counters: connections, sockets_renewed, late_audio_dropped, unknown_messages.

    Raises:
        OptionError: an option does not fit.
        MissingKeyError: there is no key.
    """

    vendor = VENDOR
    Options = ElevenLabsTTSOptions
    capabilities = TTSCapabilities(24_000, streaming_text=True, word_times=True)
    options: ElevenLabsTTSOptions
    _line: ContextSocket | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.counters: Counter[str] = Counter()
        self._settle()

    def with_options(self, **changes: Any) -> Self:
        """The same voice with other options. Raises what the class does."""
        other = super().with_options(**changes)
        other._settle()
        return other

    def _settle(self) -> None:
        options = self.options
        if not re.fullmatch(r"[A-Za-z0-9_-]+", options.voice):
            raise OptionError(
                f"tts {self.name!r}: option 'voice' is {options.voice!r}; expected the id of a voice, like "
                "'JBFqnCBsd6RMkjVDRZzb'. Copy it from the voice's page"
            )
        socket = options.transport == "websocket"
        if socket and options.model.startswith("eleven_v3"):
            raise OptionError(
                f"tts {self.name!r}: option 'model' is {options.model!r}, which does not speak over the socket; expected "
                "another model, or transport='http'"
            )
        self.capabilities = TTSCapabilities(options.sample_rate_hz, streaming_text=True, word_times=socket)  # type: ignore[misc]

    async def open(self, context: SessionContext) -> Self:
        """A session's own socket, connecting from now on; with `transport="http"` the engine itself."""
        if self.options.transport == "http":
            return self
        handle = copy.copy(self)
        handle._line = self._new_line()
        handle._line.warm()
        return handle

    async def aclose(self) -> None:
        """Close the session's socket; for the engine itself, give the shared client back."""
        if self._line is not None:
            await self._line.aclose()
        else:
            await super().aclose()

    async def synthesize_stream(self, texts: AsyncIterator[str]) -> AsyncIterator[AudioOut]:
        """The sound of one reply, whose text may come in any pieces. A piece that begins a sentence carries it in `text`.

        Raises:
            ProviderError: the service failed; its subclasses say how.
        """
        speak = self._over_http if self.options.transport == "http" else self._over_socket
        async with aclosing(cast(Any, speak(texts))) as pieces:
            async for piece in pieces:
                yield piece

    def _voice_settings(self) -> dict[str, Any]:
        options = self.options
        return {
            "stability": options.stability,
            "similarity_boost": options.similarity_boost,
            "style": options.style,
            "speed": options.speed,
            "use_speaker_boost": options.speaker_boost,
        }

    # --- over the socket ---------------------------------------------------------------------------------------------

    async def _over_socket(self, texts: AsyncIterator[str]) -> AsyncIterator[AudioOut]:
        line = self._line or self._new_line()
        context, script = Context(line), Script(self.options.sample_rate_hz)
        feeding = asyncio.create_task(self._feed(context, script, texts), name="elevenlabs text")
        try:
            async for pcm, letters in context:
                for piece in script.place(pcm, letters):
                    yield piece
        finally:
            context.leave()
            try:
                await stop(feeding)
            finally:
                if line is not self._line:
                    await line.aclose()

    async def _feed(self, context: Context, script: Script, texts: AsyncIterator[str]) -> None:
        """Give the context sentence by sentence, a little ahead of what is heard: what nobody hears is paid for too."""
        try:
            async with aclosing(cast(Any, sentences(texts, self.options.language))) as ready:
                async for sentence in ready:
                    while script.waiting >= SENTENCES_AHEAD or context.ahead_ms > AHEAD_MS:
                        context.moved.clear()
                        try:
                            async with asyncio.timeout(NO_NEWS_MS / 1000.0):
                                await context.moved.wait()
                        except TimeoutError:
                            if context.ahead_ms <= AHEAD_MS:
                                break
                    script.add(sentence)
                    await context.say(sentence)
            await context.finish()
        except Exception as error:
            context.fail(error)

    def _new_line(self) -> ContextSocket:
        settings = {"voice_settings": self._voice_settings()}
        return ContextSocket(self._dial, settings, self.options.sample_rate_hz, self.failed, self.counters)

    async def _dial(self) -> ClientConnection:
        await self.client()  # made in a thread, with what the socket needs
        options = self.options
        query = {
            "model_id": options.model,
            "output_format": f"pcm_{options.sample_rate_hz}",
            "auto_mode": "true",
            "sync_alignment": "true",
            "inactivity_timeout": INACTIVITY_S,
        }
        if options.language:
            query["language_code"] = _language_code(options.language)
        url = f"{self.access.ws_url}/v1/text-to-speech/{options.voice}/multi-stream-input?{urlencode(query)}"
        return await open_socket(url, {"xi-api-key": self.access.api_key})

    # --- in requests -------------------------------------------------------------------------------------------------

    async def _over_http(self, texts: AsyncIterator[str]) -> AsyncIterator[AudioOut]:
        clients: Clients = await self.client()
        ready: asyncio.Queue[str | Exception] = asyncio.Queue(SENTENCES_AHEAD)
        reading = asyncio.create_task(_collect(texts, self.options.language, ready), name="elevenlabs text")
        before = ""
        try:
            sentence = await ready.get()
            while isinstance(sentence, str) and sentence != END:
                after = None if ready.empty() else ready.get_nowait()
                request = self._request(clients, sentence, before, after if isinstance(after, str) else "")
                async with aclosing(cast(Any, request)) as pieces:
                    async for piece in pieces:
                        yield piece
                before = sentence
                sentence = after if after is not None else await ready.get()
            if isinstance(sentence, Exception):
                raise sentence
        finally:
            await stop(reading)

    async def _request(self, clients: Clients, text: str, before: str, after: str) -> AsyncIterator[AudioOut]:
        options, untold, odd = self.options, text, b""
        about = {
            "previous_text": before[-CONTEXT_LETTERS:],
            "next_text": after[:CONTEXT_LETTERS],
            "language_code": _language_code(options.language),
        }
        chunk_bytes = round(options.sample_rate_hz * CHUNK_MS / 1000.0) * BYTES_PER_SAMPLE
        answering = clients.sdk.text_to_speech.with_raw_response.stream(
            options.voice,
            text=text,
            model_id=options.model,
            output_format=f"pcm_{options.sample_rate_hz}",
            voice_settings=self._voice_settings(),
            request_options={"chunk_size": chunk_bytes, "max_retries": 0},
            **{name: value for name, value in about.items() if value},
        )
        try:
            async with answering as answer:
                kind = answer.headers.get("content-type", "")
                if kind.startswith(("text/", "application/json")):
                    raise Refused(f"the answer is {kind.split(';')[0]}, no audio")
                async for chunk in answer.data:
                    pcm = odd + chunk
                    whole = len(pcm) - len(pcm) % BYTES_PER_SAMPLE
                    odd = pcm[whole:]
                    if whole:
                        yield AudioOut(pcm[:whole], options.sample_rate_hz, untold)
                        untold = ""
        except Exception as error:
            raise self.failed(error, "speaking") from None


async def _collect(texts: AsyncIterator[str], language: str, ready: asyncio.Queue[str | Exception]) -> None:
    """Put the sentences of a text into `ready`, then `END`, or what went wrong with the text."""
    last: str | Exception = END
    try:
        async with aclosing(cast(Any, sentences(texts, language))) as whole:
            async for sentence in whole:
                await ready.put(sentence)
    except Exception as error:
        last = error
    await ready.put(last)


def _language_code(language: str) -> str:
    """ "en-GB" is "en" to the service."""
    return language.split("-")[0].lower()
