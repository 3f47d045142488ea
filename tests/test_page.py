"""The web page in a real browser, with a recorded file as its microphone and the real server at the other end."""

import asyncio
from contextlib import asynccontextmanager, contextmanager

import numpy as np
import pytest
import soundfile
from chromium import chromium, tab
from scripted_server import ScriptedServer, line_to, served

from beluga_voice import Chain, SessionManager, server, tts, turn, vad
from beluga_voice.audio import to_pcm
from beluga_voice.frames import Transcript
from beluga_voice.server import ServerOptions
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


@in_a_call(quiet(1_000), words("alpha bravo charlie"), quiet(20_000))
async def test_a_caller_is_heard_and_answered_and_the_answer_is_played(address):
    async with calling(address, tapped=True) as (page, _, told):
        await page.click("#call")
        await page.until(f"{state('listening')} && document.querySelector('.latency')")
        assert await page.run(said("user")) == ["alpha bravo charlie"]
        assert await page.run(said("agent")) == ["You said alpha bravo charlie."]
        (ended,) = told.all("reply_ended")
        assert ended["heard_text"] == "You said alpha bravo charlie."
        assert not ended["interrupted"]
        (record,) = [one["record"] for one in told.all("turn_finished")]
        parts = await page.run("Array.from(document.querySelectorAll('.parts .part'), (part) => part.textContent)")
        assert [part.rsplit(" ", 2)[0] for part in parts] == ["end of turn", "words", "agent", "voice"]
        assert sum(int(part.rsplit(" ", 2)[1]) for part in parts) == pytest.approx(record.e2e_latency_ms, abs=2)
        sound = np.trim_zeros(await page.run("sounded"))
        spectrum = np.abs(np.fft.rfft(sound, 24_000))
        assert abs(np.argmax(spectrum) - 440) <= 10, "another tone than the agent's voice"
        assert np.count_nonzero(sound) > 0.8 * 5 * 0.15 * 24_000, "five words of 150 ms, and a busy machine"
        assert [one for one in page.complaints if "ScriptProcessorNode" not in one] == []


@in_a_call(quiet(1_000), words("alpha bravo charlie delta echo foxtrot golf"), quiet(20_000))
async def test_a_line_cut_in_mid_word_and_in_mid_reply_loses_nothing(address):
    async with calling(address) as (page, line, told):
        speaking, replying = told.next("speech_started"), told.next("reply_started")
        await page.click("#call")
        await speaking
        line.cut()
        await page.until("document.querySelector('#banner.back')")
        await replying
        line.cut()
        await page.until(f"{state('listening')} && document.querySelector('.latency')")
        assert await page.run(said("user")) == ["alpha bravo charlie delta echo foxtrot golf"]
        (ended,) = told.all("reply_ended")
        assert ended["heard_text"] == "You said alpha bravo charlie delta echo foxtrot golf."
        assert not ended["interrupted"]
        assert len(told.all("resumed")) == 2
        notes = await page.run("Array.from(document.querySelectorAll('.note'), (note) => note.textContent)")
        assert [note.split(" after")[0] for note in notes] == ["Line lost, back"] * 2


@in_a_call(quiet(30_000))
async def test_the_button_cuts_the_line_and_the_page_says_that_it_is_back(address):
    async with calling(address) as (page, _, told):
        await page.click("#call")
        await page.until(state("listening"))
        await page.click("#cut")
        await page.until("document.querySelector('#banner.back')?.innerText.includes('Nothing was lost')")
        await page.until(state("listening"))
        assert len(told.all("resumed")) == 1
        assert page.complaints == []


@in_a_call(quiet(1_000), words("alpha"), quiet(3_000), words("bravo charlie delta"), quiet(20_000))
async def test_who_speaks_during_a_reply_cuts_it_and_sees_what_was_not_heard(address):
    async with calling(address, talk_on) as (page, _, told):
        await page.click("#call")
        await page.until("document.querySelectorAll('.latency').length === 2")
        heard, unheard = await page.run("""
            const line = document.querySelector('.agent[data-reply=cut] .words');
            return [line.firstChild.data, line.querySelector('.unheard').lastChild.data];
        """)
        assert heard.strip() == told.all("interrupted")[0]["heard_text"]
        assert len(f"{heard} {unheard}".split()) == 60
        assert (await page.run(said("agent")))[-1] == "You said bravo charlie delta."


@in_a_call(quiet(60_000))
async def test_typing_stopping_and_hanging_up_by_keyboard_alone(address):
    async with calling(address, talk_on) as (page, _, told):
        focus = "document.activeElement.id"
        shows = "getComputedStyle(document.activeElement).outlineStyle !== 'none'"
        order = []
        for _ in range(3):
            await page.key("Tab")
            order.append(await page.run(focus))
            assert await page.run(shows), f"{order[-1]} does not show that it has the focus"
        assert order == ["conversation", "call", "push"]
        await page.key("Tab", shift=True)
        await page.key("Enter")
        await page.until(state("listening"))
        while await page.run(focus) != "text":
            await page.key("Tab")
        await page.type("alpha")
        await page.key("Enter")
        await page.until(state("responding"))
        assert await page.run(said("user")) == ["alpha"]
        while await page.run(focus) != "stop":
            await page.key("Tab", shift=True)
        await page.key("Space")
        await page.until(f"{state('listening')} && document.querySelector('.unheard')")
        assert told.all("interrupted")[0]["source"] == "caller"
        while await page.run(focus) != "call":
            await page.key("Tab", shift=True)
        await page.key("Enter")
        await page.until(state("ready"))
        assert "The call has ended." in await page.text()
        assert page.complaints == []


@in_a_call(words("alpha bravo charlie " * 20))
async def test_push_to_talk_makes_a_turn_of_what_is_said_while_it_is_held(address):
    async with calling(address) as (page, _, told):
        await page.click("#push")
        await page.click("#call")
        await page.until(f"{state('listening')} && !document.querySelector('#talk').hidden")
        begun = told.next("turn_started")
        await page.run("document.activeElement.blur()")
        await page.key("Space", up=False)
        await begun
        await page.until("document.querySelector('#talk').innerText === 'Release to send'")
        await page.run("new Promise((resolve) => setTimeout(resolve, 1500))")
        await page.key("Space", down=False)
        await page.until("document.querySelector('.latency')")
        (ended,) = told.all("turn_ended")
        assert ended["source"] == "push"
        (heard,) = await page.run(said("user"))
        assert 2 <= len(heard.split()) <= 8, heard


@in_a_call(words("alpha bravo charlie " * 60))
async def test_push_to_talk_sends_no_sound_unless_it_is_held(address):
    def sounds(message):
        return any(message["pcm"])

    def is_still(message):
        return not sounds(message)

    far = ScriptedServer()
    async with served(far.app) as port, tab(address) as page:
        await page.go(f"http://127.0.0.1:{port}/?raw=1")
        await page.click("#push")
        await page.click("#call")
        call = await far.call()
        await call.welcome()
        for _ in range(30):
            assert is_still(await call.hears("audio"))
        await page.click("#conversation")
        await page.key("Space", up=False)
        await call.hears("start_turn")
        await call.hears("audio", sounds)
        await page.key("Space", down=False)
        await call.hears("end_turn")
        await call.hears("audio", is_still)
        for _ in range(30):
            await call.hears("audio")
        for _ in range(30):
            assert is_still(await call.hears("audio"))


@in_a_call(quiet(1_000), words("alpha bravo"), quiet(60_000))
async def test_muted_the_caller_is_not_heard(address):
    async with calling(address) as (page, _, told):
        await page.click("#call")
        await page.until(f"{state('listening')} && !document.querySelector('#mute').disabled")
        await page.click("#mute")
        assert await page.run("document.querySelector('#mute').ariaPressed") == "true"
        assert "You are muted." in await page.text()
        await page.run("new Promise((resolve) => setTimeout(resolve, 2500))")
        assert told.all("speech_started") == []
        await page.click("#mute")
        assert "You are muted." not in await page.text()


@in_a_call(quiet(60_000))
async def test_a_server_with_keys_is_asked_with_one(address):
    key = "k" * 32
    async with calling(address, options=ServerOptions(api_keys=(key,))) as (page, _, told):
        assert await page.run("document.querySelector('#key-form').hidden")
        await page.click("#call")
        await page.until("document.activeElement.id === 'key'")
        assert "asks for an access key" in await page.text()
        await page.type("wrong")
        await page.key("Enter")
        await page.until("document.body.innerText.includes('did not take this access key')")
        await page.run("document.querySelector('#key').value = ''")
        await page.type(key)
        await page.key("Enter")
        await page.until(state("listening"))
        assert await page.run("document.querySelector('#key-form').hidden && document.querySelector('#problem').hidden")
        assert len(told.all("opened")) == 1


@in_a_call(quiet(60_000))
async def test_a_full_server_says_so_and_the_next_call_works(address):
    async with calling(address, max_sessions=1) as (page, _, told):
        await page.run("""
            const {VoiceClient} = await import("/beluga-voice.js");
            window.other = new VoiceClient({});
            other.connect();
            return true;
        """)
        await page.until("other.status === 'connected'")
        await page.click("#call")
        await page.until("document.body.innerText.includes('All lines are busy')")
        closed = told.next("closed")
        await page.run("other.close()")
        await closed
        await page.click("#call")
        await page.until(state("listening"))


@in_a_call(quiet(100))
async def test_without_a_microphone_one_can_type(address):
    async with calling(address) as (page, _, _):
        await page.run("""
            navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("no", "NotAllowedError"); };
            return true;
        """)
        await page.click("#call")
        await page.until(state("listening"))
        assert "The microphone cannot be used: it was not allowed. You can still type." in await page.text()
        assert await page.run("document.querySelector('#mute').disabled")
        await page.click("#text")
        await page.type("hello")
        await page.key("Enter")
        await page.until(f"{said('agent')}.includes('You said hello.')")


CONTRAST = """
const channels = (colour) => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d");
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return Array.from(canvas.getImageData(0, 0, 1, 1).data);
};
const luminance = (rgb) => {
    const [r, g, b] = rgb.map((one) => one / 255).map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (node) => {
    for (; node; node = node.parentElement) {
        const colour = channels(getComputedStyle(node).backgroundColor);
        if (colour[3] === 255) return colour.slice(0, 3);
    }
    throw new Error("no ground");
};
const faint = [];
for (const node of document.querySelectorAll("body *")) {
    const own = Array.from(node.childNodes).some((child) => child.nodeType === 3 && child.data.trim());
    if (!own || !node.checkVisibility() || node.closest(":disabled")) continue;
    const text = channels(getComputedStyle(node).color).slice(0, 3);
    const [light, dark] = [luminance(text), luminance(ground(node))].sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05);
    if (ratio < 4.5) faint.push([node.id || node.className || node.tagName, ratio]);
}
return faint;
"""
OVERFLOW = """
const width = document.documentElement.clientWidth;
const wide = Array.from(document.querySelectorAll("body *")).filter((node) =>
    node.checkVisibility() && !node.closest(".unseen") && node.getBoundingClientRect().right > width + 0.5);
return [document.documentElement.scrollWidth - width, wide.map((node) => node.id || node.className)];
"""
WORDS = "A" + "a" * 80 + " and the rest of it, as long as a reply may be when the agent likes to talk."


@in_a_call(quiet(100))
async def test_every_state_fits_a_phone_and_can_be_read_in_light_and_dark(address):
    async def boast(text, history):
        return WORDS * 3

    async def check(page, name):
        for dark in (False, True):
            for width, height in ((360, 640), (1100, 800)):
                await page.look(width, height, dark=dark)
                assert await page.run(OVERFLOW) == [0, []], f"{name} is too wide at {width} px"
                low = await page.run("document.querySelector('footer').getBoundingClientRect().bottom - innerHeight")
                assert low <= 0, f"{name}: the controls are not all to be seen at {width} x {height}"
                assert await page.run(CONTRAST) == [], f"{name} is faint, {'dark' if dark else 'light'}"
        await page.look(360, 640)

    async with calling(address, boast) as (page, line, _):
        await check(page, "ready")
        await page.click("#call")
        await page.until(state("listening"))
        await check(page, "listening")
        await page.run(f"document.querySelector('#text').value = {WORDS!r}; document.querySelector('#send').click(); return 1")
        await page.until(f"{state('responding')} && {said('agent')}[0].length > 300")
        await check(page, "responding")
        await page.click("#stop")
        await page.until("document.querySelector('.latency') && document.querySelector('.unheard')")
        await check(page, "cut off")
        line.refuse()
        line.cut()
        await page.until("document.querySelector('#banner.lost')")
        await check(page, "reconnecting")
        await page.click("#call")
        await page.until(state("ready"))
        await page.run("document.querySelector('#key-form').hidden = false; return 1")
        await check(page, "asking for a key")



@in_a_call(quiet(60_000))
async def test_every_control_has_a_name_and_changes_are_announced(address):
    async with calling(address) as (page, _, _):
        await page.click("#push")
        await page.click("#call")
        await page.until(state("listening"))
        await page.run("document.querySelector('#key-form').hidden = false; return 1")
        nodes = (await page.command("Accessibility.getFullAXTree"))["nodes"]
        controls = {"button", "textbox", "switch", "checkbox", "region", "img"}
        named = {}
        for node in nodes:
            if not node["ignored"] and node.get("role", {}).get("value") in controls:
                named.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
        assert all(name for names in named.values() for name in names), named
        assert set(named["button"]) == {"Use key", "Mute", "Hang up", "Hold to talk", "Stop reply", "Send", "Cut the line"}
        assert set(named["textbox"]) == {"Access key", "Type instead of speaking"}
        assert named["switch"] == ["Push to talk"]
        await page.click("#text")
        await page.type("hello")
        await page.key("Enter")
        await page.until("document.querySelector('#spoken').textContent === 'Agent: You said hello.'")
        live = "Array.from(document.querySelectorAll('[aria-live=polite], [role=status], [role=alert]'), (node) => node.id)"
        assert await page.run(live) == ["state", "banner", "spoken", "problem"]

