"""A speech-to-speech model in memory, which hears and speaks tone speech and keeps every promise."""

import asyncio

from beluga_voice import Audio, audio
from beluga_voice.frames import AudioOut, ReplyEnded, SpeechEnded, SpeechStarted, TextDelta, ToolCalled, Transcript, TurnEnded
from beluga_voice.s2s import S2S, S2SCapabilities, S2SSession
from beluga_voice.testing.tone_speech import say, understand

RATE_HZ = 24_000
QUIET_MS = 600.0
BYTES_A_MS = RATE_HZ // 500


class ToyS2S(S2S):
    """It says again what it is told; told "weather" it calls a tool first."""

    capabilities = S2SCapabilities(input_rate_hz=RATE_HZ, output_rate_hz=RATE_HZ, tools=True, says=True)

    def __init__(self, **options):
        pass

    async def connect(self, history=()):
        return ToySession(self)


class ToySession(S2SSession):
    """Speech is what is loud; a turn ends after 600 ms of quiet."""

    def __init__(self, engine):
        self.engine = engine
        self.out = asyncio.Queue()
        self.replying = None
        self.sent_ms, self.began_ms, self.loud_ms, self.turn = 0.0, None, 0.0, b""
        self.text, self.odd = "nothing", b""
        self.tool_done = None

    async def send_audio(self, sound):
        self.odd += sound.pcm
        step = 10 * BYTES_A_MS
        while len(self.odd) >= step:
            piece, self.odd = self.odd[:step], self.odd[step:]
            self.hear(piece)

    def hear(self, piece):
        if max(abs(audio.to_float(piece))) > 0.01:
            if self.began_ms is None:
                self.began_ms, self.turn = self.sent_ms, b""
                self.tell(SpeechStarted(self.sent_ms, self.sent_ms, self.sent_ms))
            self.loud_ms = self.sent_ms + 10
        self.sent_ms += 10
        if self.began_ms is not None:
            self.turn += piece
            if self.sent_ms - self.loud_ms >= QUIET_MS:
                self.end()

    def end(self):
        began_ms, self.began_ms = self.began_ms, None
        self.text = understand(self.turn, RATE_HZ)
        self.tell(SpeechEnded(self.sent_ms, self.loud_ms))
        self.tell(Transcript(self.text))
        self.tell(TurnEnded(self.sent_ms, "toy", began_ms, self.loud_ms))

    def tell(self, frame):
        self.out.put_nowait(frame)

    async def send_text(self, text):
        self.text = text
        await self.answer()

    async def answer(self):
        await self.say(self.text)

    async def say(self, text):
        await self.interrupt(0)
        self.replying = asyncio.create_task(self.reply(text), name="reply")

    async def reply(self, text):
        if "weather" in text.lower():
            self.tool_done = asyncio.Event()
            self.tell(ToolCalled("call-1", "weather"))
            await self.tool_done.wait()
        sound = Audio(say(text, RATE_HZ), RATE_HZ)
        self.tell(TextDelta(text))
        for at in range(0, len(sound.pcm), 100 * BYTES_A_MS):
            self.tell(AudioOut(sound.pcm[at : at + 100 * BYTES_A_MS], RATE_HZ))
            await asyncio.sleep(0.02)
        self.tell(ReplyEnded(0, text, False))

    async def end_turn(self):
        if self.began_ms is not None:
            self.end()

    async def send_tool_result(self, result):
        self.tool_done.set()

    async def interrupt(self, played_ms):
        if self.replying is not None:
            self.replying.cancel()
            await asyncio.wait([self.replying])
            if not self.replying.cancelled():
                self.replying.result()
            kept = [self.out.get_nowait() for _ in range(self.out.qsize())]
            for frame in kept:
                if not isinstance(frame, (AudioOut, TextDelta, ReplyEnded)):
                    self.tell(frame)

    async def events(self):
        while (frame := await self.out.get()) is not None:
            yield frame

    async def aclose(self):
        await self.interrupt(0)
        self.tell(None)
