"""A call from the web page in a real browser: a recording as its microphone, the real server at the other end."""

import asyncio
from contextlib import asynccontextmanager, contextmanager

import numpy as np
import soundfile
from chromium import chromium, tab
from scripted_server import line_to, served

from beluga_voice import Chain, SessionManager, server, tts, turn, vad
from beluga_voice.audio import to_pcm
from beluga_voice.frames import Transcript
from beluga_voice.stt import STT

RATE_HZ = 16_000
PITCHES_HZ = {"alpha": 600, "bravo": 800, "charlie": 1000, "delta": 1300, "echo": 1700, "foxtrot": 2200, "golf": 2800}
WORD_MS, GAP_MS = 260, 120

# Keeps what the loudspeaker gets, as the page gives it.
TAP = """
globalThis.sounded = [];
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (target, ...rest) {
    if (target instanceof AudioDestinationNode && this instanceof AudioWorkletNode && this.numberOfInputs === 0) {
        const tap = target.context.createScriptProcessor(4096, 1, 1);
        tap.onaudioprocess = ({inputBuffer}) => sounded.push(...inputBuffer.getChannelData(0));
        connect.call(this, tap);
        connect.call(tap, target);
    }
    return connect.call(this, target, ...rest);
};
"""


def words(text):
    """A recording of somebody saying `text`, each word a tone."""
    at = np.arange(WORD_MS * RATE_HZ // 1000) / RATE_HZ
    gap = np.zeros(GAP_MS * RATE_HZ // 1000)
    return np.concatenate([np.concatenate([0.3 * np.sin(2 * np.pi * PITCHES_HZ[word] * at), gap]) for word in text.split()])


def quiet(duration_ms):
    return np.zeros(duration_ms * RATE_HZ // 1000)


class ToneSTT(STT):
    """Understands `words`: each stretch of tone is one, so that a lost one is missing and a doubled one is there twice."""

    async def transcribe(self, audio):
        samples = np.frombuffer(audio.pcm, "<i2") / 32_768
        hop = audio.sample_rate_hz // 50
        loud = [np.std(samples[at : at + hop]) > 0.05 for at in range(0, len(samples) - hop + 1, hop)]
        edges = np.flatnonzero(np.diff([0, *loud, 0])).reshape(-1, 2) * hop
        tones = [samples[start:end] for start, end in edges if end - start > hop]
        return Transcript(" ".join(self._word(tone, audio.sample_rate_hz) for tone in tones))

    def _word(self, tone, rate_hz):
        pitch_hz = np.argmax(np.abs(np.fft.rfft(tone, rate_hz)))
        return min(PITCHES_HZ, key=lambda word: abs(PITCHES_HZ[word] - pitch_hz))


async def repeat(text, history):
    return f"You said {text}."


async def talk_on(text, history):
    return "word " * 60 if text == "alpha" else f"You said {text}."


class Told:
    """What the sessions of a test tell: `events`, and who waits for one."""

    def __init__(self):
        self.events = []
        self._waiting = []

    def listener(self, session):
        return self._hear

    def _hear(self, event):
        self.events.append(event)
        for name, future in self._waiting:
            if name == event.name and not future.done():
                future.set_result(event)

    def next(self, name):
        """A future for the next event of that name."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((name, future))
        return future

    def all(self, name):
        return [event.data for event in self.events if event.name == name]


@contextmanager
def recording(tmp_path, *parts):
    """A browser whose microphone hears the parts one after another."""
    file = tmp_path / "caller.wav"
    soundfile.write(file, np.frombuffer(to_pcm(np.concatenate(parts)), "<i2"), RATE_HZ, subtype="PCM_16")
    with chromium(file) as address:
        yield address


@asynccontextmanager
async def calling(address, agent=repeat, options=None, tapped=False, **settings):
    """The page, open and not yet in a call; with it the line and what the sessions tell."""
    told = Told()
    chain = Chain(vad.new("energy"), turn.new("silence"), ToneSTT(), agent, tts.new("tone", sample_rate_hz=24_000))
    manager = SessionManager(chain, listeners=[told.listener], **settings)
    async with served(server.app(manager, options)) as port, line_to(port) as (line, url), tab(address) as page:
        if tapped:
            await page.command("Page.addScriptToEvaluateOnNewDocument", source=TAP)
        await page.go(f"{url}/?raw=1")
        yield page, line, told


def state(name):
    return f"document.querySelector('#state').dataset.state === {name!r}"


def said(who):
    return f"Array.from(document.querySelectorAll('.{who} .words'), (one) => one.innerText)"


def in_a_call(*parts):
    """A test with a browser of its own, whose caller says `parts`."""

    def decorate(scenario):
        def test(tmp_path):
            with recording(tmp_path, *parts) as address:
                asyncio.run(scenario(address))

        test.__name__ = scenario.__name__
        return test

    return decorate
