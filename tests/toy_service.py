"""A small service, and engines that call it and keep every promise: the broken ones of the tests are made from them."""

import asyncio
import json
import urllib.parse

import attrs
import h11
from websockets.asyncio.client import connect

from beluga_voice import Audio
from beluga_voice.errors import ProtocolError
from beluga_voice.failures import Told, retry_after_ms, websocket_failures
from beluga_voice.frames import AudioOut, Transcript, Word
from beluga_voice.remote import Remote, Vendor, base_url_option, key_option, max_concurrent_option
from beluga_voice.stt import STT, STTCapabilities, STTStream
from beluga_voice.stt import Options as EarOptions
from beluga_voice.testing.loopback import Answer, LoopbackServer
from beluga_voice.testing.tone_speech import RATE_HZ, say, understand, word_times
from beluga_voice.tts import TTS, TTSCapabilities
from beluga_voice.tts import Options as VoiceOptions

KEY = "toy-canary-key"
PIECE_BYTES = 3_200


class ToyServer(LoopbackServer):
    """`POST /speak` gives the text's PCM; the WebSocket `/hear` takes PCM and "finalize", and gives transcripts."""

    async def answer(self, request):
        if request.headers.get("authorization") != self.api_key:
            return Answer(401, body=b'{"error": "who are you?"}')
        return Answer(200, {"content-type": "audio/pcm"}, self._speech(request.body.decode()))

    async def _speech(self, text):
        pcm = say(text)
        for at in range(0, len(pcm), PIECE_BYTES):
            yield pcm[at : at + PIECE_BYTES]

    async def greet(self, request):
        return None if request.headers.get("authorization") == self.api_key else Answer(401, body=b"who are you?")

    async def converse(self, socket):
        pcm, before, interim, unheard = b"", 0, "", 0
        async for message in socket:
            if isinstance(message, bytes):
                pcm += message
                unheard += len(message)
                if unheard < PIECE_BYTES:
                    continue
                heard, unheard = understand(pcm, RATE_HZ), 0
                if heard != interim:
                    interim = heard
                    await socket.send({"interim": heard})
                continue
            offset_ms = before * 500 / RATE_HZ
            text = understand(pcm, RATE_HZ)
            words = [[word, offset_ms + start, offset_ms + end] for word, start, end in word_times(text)]
            before += len(pcm)
            await socket.send({"final": text, "words": words, "through_ms": before * 500 / RATE_HZ})
            pcm, interim = b"", ""


class Refused(Exception):
    def __init__(self, status, body, headers):
        super().__init__(body)
        self.status, self.headers = status, headers


def told(error):
    return Told(str(error), error.status, retry_after_ms=retry_after_ms(error.headers))


TOY = Vendor(
    name="toy",
    env_var="TOY_API_KEY",
    base_url="https://toy.example",
    make=lambda access: object(),
    failures=((Refused, told), (h11.RemoteProtocolError, ProtocolError), *websocket_failures()),
)


@attrs.frozen
class ToyEarOptions(EarOptions):
    """Options of the recogniser."""

    api_key: str = key_option("TOY_API_KEY")
    base_url: str = base_url_option(TOY.base_url)
    max_concurrent: int = max_concurrent_option()


class ToySTT(Remote, STT):
    """A recogniser: one socket a stream."""

    vendor = TOY
    Options = ToyEarOptions
    capabilities = STTCapabilities(sample_rate_hz=RATE_HZ, interim=True)

    def stream(self):
        return ToyStream(self)


class ToyStream(STTStream):
    """A socket, opened at the first need."""

    def __init__(self, engine):
        self.engine, self.socket, self.closed = engine, None, False
        self.opening, self.opened = asyncio.Lock(), asyncio.Event()

    async def connect(self):
        async with self.opening:
            if self.socket is None and not self.closed:
                access = self.engine.access
                try:
                    headers = {"authorization": access.api_key}
                    self.socket = await connect(f"{access.ws_url}/hear", additional_headers=headers, logger=None)
                except Exception as error:
                    raise self.engine.failed(error, "opening the stream") from None
                self.opened.set()

    async def send(self, audio):
        await self.write(audio.pcm)

    async def finalize(self):
        await self.write("finalize")

    async def write(self, message):
        await self.connect()
        try:
            await self.socket.send(message)
        except Exception as error:
            raise self.engine.failed(error) from None

    async def __anext__(self):
        while not self.opened.is_set() and not self.closed:
            await self.opened.wait()
        if self.closed:
            raise StopAsyncIteration
        try:
            return self.transcript(json.loads(await self.socket.recv()))
        except Exception as error:
            if self.closed:
                raise StopAsyncIteration from None
            raise self.engine.failed(error, "reading transcripts") from None

    def transcript(self, message):
        if "interim" in message:
            return Transcript(message["interim"], is_final=False)
        if "final" not in message:
            return Transcript("", is_final=False)  # a message that it does not know
        words = tuple(Word(*word) for word in message["words"])
        return Transcript(message["final"], words=words, closes=True, through_ms=message["through_ms"])

    async def aclose(self):
        self.closed = True
        self.opened.set()
        if self.socket is not None:
            self.socket.transport.abort()
            await self.socket.wait_closed()


@attrs.frozen
class ToyVoiceOptions(VoiceOptions):
    """Options of the voice."""

    api_key: str = key_option("TOY_API_KEY")
    base_url: str = base_url_option(TOY.base_url)
    max_concurrent: int = max_concurrent_option()


class ToyTTS(Remote, TTS):
    """A voice: one HTTP request a sentence."""

    vendor = TOY
    Options = ToyVoiceOptions
    capabilities = TTSCapabilities(sample_rate_hz=RATE_HZ, word_times=True)

    async def synthesize_stream(self, texts):
        async for text in texts:
            held, words = b"", tuple(Word(*word) for word in word_times(text))
            try:
                async for piece in speak(self.access, text):
                    held += piece
                    whole = len(held) // 2 * 2
                    if whole:
                        yield AudioOut(held[:whole], RATE_HZ, text, words)
                        held, text, words = held[whole:], "", ()
            except Exception as error:
                raise self.failed(error, "speaking") from None


async def speak(access, text):
    """The body of the answer, as it comes."""
    url = urllib.parse.urlsplit(access.base_url)
    http = h11.Connection(h11.CLIENT)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        body = text.encode()
        headers = {"host": url.netloc, "authorization": access.api_key, "content-length": str(len(body))}
        for event in (
            h11.Request(method="POST", target="/speak", headers=list(headers.items())),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            writer.write(http.send(event) or b"")
        response, refusal = None, b""
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await reader.read(4_096))
            elif isinstance(event, h11.Response):
                response = event
                kind = dict(event.headers).get(b"content-type", b"")
                if event.status_code == 200 and kind != b"audio/pcm":
                    raise ProtocolError(f"tts 'toy' got {kind.decode()!r}; expected audio/pcm", provider="toy", kind="tts")
            elif isinstance(event, h11.Data):
                if response.status_code == 200:
                    yield bytes(event.data)
                else:
                    refusal += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                if response.status_code != 200:
                    headers = {name.decode(): value.decode() for name, value in response.headers}
                    raise Refused(response.status_code, refusal.decode(), headers)
                return
            else:
                raise ConnectionResetError("the connection was closed in mid-answer")
    finally:
        writer.transport.abort()


def audio_of(text):
    """`text` as the toy recogniser hears it."""
    return Audio(say(text), RATE_HZ)
