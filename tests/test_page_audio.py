"""The page's loudspeaker and microphone in a real browser: every sample, and where playing stopped.

An offline context renders as fast as it can and gives back what would have been heard.
"""

import asyncio

import numpy as np
import pytest
from chromium import chromium, tab
from scripted_server import ScriptedServer, served

SETUP = """
const {Player} = await import("/audio.js");
const pcm = (from, count) => Int16Array.from({length: count}, (_, i) => from + i);
const context = new OfflineAudioContext(1, 24_000, 24_000);
const player = await Player.open({context});
const reports = [];
player.onplayed = (position) => reports.push({...position, what: "played"});
let answered = () => {};
player.onstopped = (position) => { reports.push({...position, what: "stopped"}); answered(); };
const stop = (how) => new Promise((resolve) => { answered = resolve; player[how](); });
const settle = () => new Promise((resolve) => setTimeout(resolve, 50));
const at = (ms, what) => context.suspend(ms / 1000).then(what).then(settle).then(() => context.resume());
const render = async () => {
    await settle();
    const heard = (await context.startRendering()).getChannelData(0);
    await settle();
    return {heard: Array.from(heard, (sample) => Math.round(sample * 32768)), reports};
};
"""


@pytest.fixture(scope="module")
def address():
    with chromium() as where:
        yield where


def browse(address, script):
    """What a script in a blank page returns."""

    async def scenario():
        far = ScriptedServer()
        async with served(far.app) as port, tab(address) as page:
            await page.go(f"http://127.0.0.1:{port}/blank")
            told = await page.run(script)
            assert page.complaints == []
            return told

    return asyncio.run(scenario())


def ramp(start, count):
    return list(range(start, start + count))


def test_what_comes_is_played_sample_for_sample_and_reported(address):
    told = browse(address, SETUP + "player.play(3, pcm(1, 480)); player.play(7, pcm(481, 4800)); return render()")
    heard = told["heard"]
    first = heard.index(1)
    assert heard[first : first + 5280] == ramp(1, 5280)
    assert not any(heard[first + 5280 :])
    last = told["reports"][-1]
    assert last == {"seq": 7, "ms": 200, "totalMs": 220, "idle": True, "what": "played"}
    assert [report["idle"] for report in told["reports"][:-1]] == [False] * (len(told["reports"]) - 1)
    assert all(0 < later["totalMs"] - sooner["totalMs"] < 110 for sooner, later in zip(told["reports"], told["reports"][1:]))


def test_pause_is_silence_and_continue_goes_on_with_the_next_sample(address):
    told = browse(address, SETUP + """
        player.play(0, pcm(1, 12_000));
        at(128 * 30 / 24, () => stop("pause"));
        at(128 * 90 / 24, () => player.goOn());
        return render();
    """)
    heard, (stopped,) = told["heard"], [report for report in told["reports"] if report["what"] == "stopped"]
    first, count = heard.index(1), round(stopped["totalMs"] * 24)
    assert stopped["seq"] == 0
    assert stopped["ms"] == stopped["totalMs"]
    assert heard[first : first + count - 128] == ramp(1, count - 128)
    fading = heard[first + count - 128 : first + count]
    assert fading == sorted(fading, reverse=True), "it fades, and does not click"
    assert fading[-1] < 0.01 * count
    resumed = heard.index(count + 129)  # after a fade of 128 samples
    assert not any(heard[first + count : resumed - 128])
    assert resumed - first > 90 * 128
    assert heard[resumed : resumed + 12_000 - count - 128] == ramp(count + 129, 12_000 - count - 128)
    assert told["reports"][-1]["totalMs"] == 500


def test_clear_drops_what_was_not_played_and_plays_what_comes_after(address):
    told = browse(address, SETUP + """
        player.play(0, pcm(1, 12_000));
        at(128 * 30 / 24, async () => { await stop("clear"); player.play(9, pcm(20_000, 480)); });
        return render();
    """)
    heard, (stopped,) = told["heard"], [report for report in told["reports"] if report["what"] == "stopped"]
    count = round(stopped["totalMs"] * 24)
    assert 0 < count < 6_000
    assert max(heard) == 20_479
    assert set(heard) & set(range(count + 1, 12_001)) == set()
    new = heard.index(20_000)
    assert heard[new : new + 480] == ramp(20_000, 480)
    assert told["reports"][-1] == {"seq": 9, "ms": 20, "totalMs": stopped["totalMs"] + 20, "idle": True, "what": "played"}


def test_a_stop_with_nothing_to_stop_is_answered(address):
    told = browse(address, SETUP + "await stop('pause'); await stop('clear'); await stop('clear'); return reports")
    assert [(report["what"], report["seq"], report["ms"]) for report in told] == [("stopped", -1, 0)] * 3


LISTEN = """
const [fromHz, hertz] = [FROM, HERTZ];
const context = new OfflineAudioContext(1, 2 * fromHz, fromHz);
await context.audioWorklet.addModule("/microphone.js");
const node = new AudioWorkletNode(context, "beluga-microphone", {processorOptions: {rateHz: 16_000}});
const heard = [];
node.port.onmessage = ({data}) => heard.push(Array.from(data));
const tone = new OscillatorNode(context, {frequency: hertz});
tone.connect(new GainNode(context, {gain: 0.5})).connect(node).connect(context.destination);
tone.start();
const silence = (await context.startRendering()).getChannelData(0);
await new Promise((resolve) => setTimeout(resolve, 200));
return {heard, sounding: silence.some((sample) => sample !== 0)};
"""


@pytest.mark.parametrize("from_hz", [8_000, 16_000, 44_100, 48_000])
def test_the_microphone_gives_20_ms_messages_at_the_rate_of_the_line(address, from_hz):
    told = browse(address, LISTEN.replace("FROM", str(from_hz)).replace("HERTZ", "1000"))
    assert {len(message) for message in told["heard"]} == {320}
    assert 98 <= len(told["heard"]) <= 100
    assert not told["sounding"], "the user would hear themselves"
    samples = np.concatenate(told["heard"])[800:-800] / 32_768
    at = np.arange(len(samples)) / 16_000
    wave = np.stack([np.sin(2000 * np.pi * at), np.cos(2000 * np.pi * at)])
    amplitudes = 2 * wave @ samples / len(samples)
    assert np.hypot(*amplitudes) == pytest.approx(0.5, rel=0.01)
    assert np.std(samples - amplitudes @ wave) < 0.5 * 10 ** (-50 / 20)


@pytest.mark.parametrize("hertz", [8_800, 12_000, 17_000])
def test_what_the_line_cannot_carry_does_not_come_back_as_another_tone(address, hertz):
    told = browse(address, LISTEN.replace("FROM", "48000").replace("HERTZ", str(hertz)))
    samples = np.concatenate(told["heard"])[800:-800] / 32_768
    assert 20 * np.log10(np.std(samples) / (0.5 / np.sqrt(2)) + 1e-9) < -60
