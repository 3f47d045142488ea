"""Barge-in as a caller feels it: recorded people speak into an agent's replies; who stops it, and how soon.

usage: python benchmarks/bench_barge_in.py FOLDER [option=value ...]     FOLDER holds manifest.csv, audio/ and labels/

Silero, Moonshine and espeak in simulated time; the recogniser is charged the CPU time it took, or charge=MS a call (on an
idle machine the first words of speech take it 21 ms, p95 36). The agent says a text of some twenty seconds; the caller comes in
at a random point of it. Onsets are the labels' (conversations), else where the sound comes within 20 dB of its loud parts and
stays there; recordings too noisy to tell are left out. Backchannels are spoken by synthetic voices: the folder holds none.
Options are those of [barge_in], and silero.<option> those of the VAD. Times are at the line; the network comes on top.
"""

from __future__ import annotations

import asyncio
import csv
import json
import logging
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from beluga_voice_moonshine.model import MoonshineModel
from numpy.typing import NDArray

from beluga_voice import BargeInOptions, Chain, Session, SessionOptions, tts, turn, vad
from beluga_voice.audio import Audio, read, resample
from beluga_voice.builtin.recorded_line import RecordedLine
from beluga_voice.clock import Clock, run_simulated
from beluga_voice.events import SessionEvent
from beluga_voice.frames import AudioIn, Frame, Transcript
from beluga_voice.stt import STT, STTCapabilities

RATE_HZ = 16_000
FLOOR = 10.0 ** (-60 / 20) * 32768  # the line's own noise
SPEECH = 10.0 ** (-26 / 20) * 32768  # a caller's loud parts
REPLY = (
    "The library opens at nine in the morning and closes at six in the evening on weekdays. On Saturdays it opens at ten, and "
    "it is closed on Sundays and public holidays. You can borrow up to ten books at a time, and keep them for three weeks. "
    "If nobody has asked for a book, you may renew it twice, by telephone or at the desk. There is a small charge for each day "
    "that a book is late. The reading room on the second floor is quiet, and you do not need a card to work there."
)
BACKCHANNELS = (
    *("Mm-hm.", "Hmm.", "Uh-huh.", "Yeah.", "Okay.", "Right.", "Yes.", "Sure.", "I see.", "Oh.", "Yeah, yeah.", "Okay, okay."),
    *("Got it.", "All right.", "Oh, right."),
)
SHORT = ("No.", "Stop.", "Wait.", "What?", "Hold on.", "Excuse me.", "No, no.", "Thank you, that's enough.")
VOICES = (("espeak", "en-us"), ("espeak", "en-gb"), ("espeak", "en-us+f3"), ("espeak", "en-us+m3"), ("piper", ""))
ECHOES = ((20, 150, 0), (10, 150, 0), (30, 150, 0), (20, 50, 0), (20, 300, 0), (20, 150, 300), (20, 150, 600))  # dB, late, room

Sound = NDArray[np.float64]


class Moonshine(STT):
    """The recogniser, its work done at once and its time slept: simulated time would else make it free."""

    capabilities = STTCapabilities(sample_rate_hz=RATE_HZ, quick=True)
    model = MoonshineModel()
    charge_ms: float | None = None
    took_ms: list[float] = []

    async def transcribe(self, audio: Audio) -> Transcript:
        began = time.process_time()
        text = self.model.transcribe(samples(audio.pcm).astype(np.float32) / 32768)
        self.took_ms.append((time.process_time() - began) * 1000)
        await Clock().sleep_ms(self.took_ms[-1] if self.charge_ms is None else self.charge_ms)
        return Transcript(text)


@attrs.frozen
class Echo:
    """How the agent's voice comes back: quieter by `down_db`, late by `late_ms`, perhaps from a room (its decay to -60 dB)."""

    down_db: float = 20.0
    late_ms: float = 150.0
    room_ms: float = 0.0

    def response(self) -> Sound:
        out = np.zeros(round((self.late_ms + self.room_ms) * RATE_HZ / 1000) + 1)
        first = round(self.late_ms * RATE_HZ / 1000)
        if self.room_ms:
            n = len(out) - first
            out[first:] = np.random.default_rng(7).normal(size=n) * 10.0 ** (-3 * np.arange(n) / n)
            out[first:] /= np.linalg.norm(out[first:])
        out[first] += 1.0
        return out / np.linalg.norm(out) * 10.0 ** (-self.down_db / 20)


class EchoLine(RecordedLine):
    """A recorded caller on a line that lets the agent's voice back in."""

    def __init__(self, audio: Audio, echo: Echo | None, **rest: Any) -> None:
        self._response = None if echo is None else echo.response()
        kept = 1 if self._response is None else len(self._response) // 320 + 3
        self._said: deque[bytes] = deque([bytes(640)] * kept, maxlen=kept)
        super().__init__(audio, on_audio=lambda _, agent: self._said.append(agent[:640]), **rest)

    async def recv(self) -> AsyncIterator[Frame]:
        async for frame in super().recv():
            if self._response is not None and isinstance(frame, AudioIn):
                past = samples(b"".join(self._said))[-len(self._response) - 320 :]
                back = np.convolve(past, self._response, "valid")[-320:]
                frame = attrs.evolve(frame, pcm=pcm(samples(frame.pcm) + back))
            yield frame


@attrs.frozen
class Trial:
    """What one call brought, from the onset of the caller's sound on."""

    paused_ms: float | None
    cut_ms: float | None
    pauses: int
    resumed: list[tuple[str, float]]
    text: str

    @property
    def silent_ms(self) -> float:
        """How long the reply was silent before it went on."""
        return sum(ms for _, ms in self.resumed)


@attrs.frozen
class Bench:
    """Holds calls with one set of options."""

    options: BargeInOptions
    silero: dict[str, Any]

    def call(self, sound: Sound, at_ms: float, onset_ms: float = 0.0, echo: Echo | None = None) -> Trial:
        """`sound` comes at `at_ms` of the call; its onset lies `onset_ms` into it."""
        line = np.random.default_rng(5).normal(0, FLOOR, round(at_ms * 16) + len(sound) + 2 * RATE_HZ)
        line[round(at_ms * 16) : round(at_ms * 16) + len(sound)] += sound
        events: list[SessionEvent] = []
        run_simulated(self._hold(Audio(pcm(line), RATE_HZ), echo, events))
        onset = at_ms + onset_ms
        times: dict[str, list[float]] = {}
        for event in events:
            times.setdefault(event.name, []).append(event.at_ms - onset)
        pauses, resumes = times.get("reply_paused", []), [e for e in events if e.name == "reply_resumed"]
        resumed = [
            (e.data["why"], e.at_ms - max(p.at_ms for p in events if p.name == "reply_paused" and p.at_ms < e.at_ms))
            for e in resumes
        ]
        cut = min((ms for ms in times.get("interrupted", [])), default=None)
        text = next((e.data["text"] for e in events if e.name == "turn_heard"), "")
        before_cut = [ms for ms in pauses if cut is None or ms <= cut]
        after = [ms for ms in before_cut if ms >= -100]
        return Trial(after[0] if after else None, cut, len(pauses), resumed, text)

    async def _hold(self, audio: Audio, echo: Echo | None, events: list[SessionEvent]) -> None:
        async def agent(text: str, history: object) -> str:
            return "Okay."

        chain = Chain(vad.new("silero", **self.silero), turn.new("silence"), Moonshine(), agent, tts.new("espeak"))
        options = SessionOptions(greeting=REPLY, barge_in=self.options, loop_warning_ms=10_000)
        session = Session(chain, EchoLine(audio, echo, tail_ms=1_000), options, listeners=[events.append])
        running = asyncio.get_running_loop().create_task(session.run())
        end_ms = audio.duration_ms
        await asyncio.wait([running], timeout=end_ms / 1000)
        session.close()
        await running


def samples(data: bytes) -> Sound:
    return np.frombuffer(data, "<i2").astype(np.float64)


def pcm(sound: Sound) -> bytes:
    return np.clip(sound, -32768, 32767).astype("<i2").tobytes()


def levelled(sound: Sound, level: float = SPEECH) -> Sound:
    return sound * level / np.percentile(levels(sound), 90)


def levels(sound: Sound) -> Sound:
    frames = sound[: len(sound) // 160 * 160].reshape(-1, 160)
    return np.sqrt(np.mean(frames**2, axis=1) + 1e-9)


def onset_ms(sound: Sound) -> float | None:
    """Where speech begins; None where the recording is too noisy to tell."""
    level = levels(sound)
    loud = level > np.percentile(level, 95) * 10 ** (-20 / 20)
    if np.percentile(level, 10) > np.percentile(level, 95) * 10 ** (-30 / 20):
        return None
    stays = [at for at in range(len(loud) - 12) if loud[at] and loud[at : at + 12].mean() >= 0.9]
    return 10.0 * stays[0] if stays else None


def utterances(folder: Path) -> Iterator[tuple[str, Sound, float]]:
    """Recorded interruptions: name, sound, onset in it."""
    for name in sorted((folder / "labels").glob("conv*.json")):
        whole = samples(read(folder / "audio" / f"{name.stem}.flac", RATE_HZ).pcm)
        for number, one in enumerate(json.loads(name.read_text())["turns"]):
            part = whole[round((one["start"] - 0.1) * RATE_HZ) : round(min(one["end"], one["start"] + 3) * RATE_HZ)]
            yield f"{name.stem}/{number}", levelled(part), 100.0
    for row in csv.DictReader((folder / "manifest.csv").open()):
        if row["kind"] == "speech" and row["transcript_confidence"] == "high" and float(row["seconds"]) < 12:
            sound = levelled(samples(read(folder / "audio" / f"{row['id']}.flac", RATE_HZ).pcm))
            onset = onset_ms(sound)
            if onset is not None:
                yield row["id"], sound[: round((onset + 3_000) * 16)], onset


def spoken(texts: tuple[str, ...]) -> Iterator[tuple[str, Sound, float]]:
    """Synthetic voices say short texts."""

    async def say(name: str, voice: str, text: str) -> Audio:
        async with tts.new(name, **({"voice": voice} if voice else {})) as engine:
            return resample(await engine.synthesize(text), RATE_HZ)

    for name, voice in VOICES:
        for text in texts:
            sound = levelled(samples(asyncio.run(say(name, voice, text)).pcm))
            yield text, sound, onset_ms(np.concatenate((sound, np.zeros(8_000)))) or 0.0


def percentiles(values: list[float]) -> str:
    if not values:
        return "    -     -     -"
    return f"{np.percentile(values, 50):5.0f} {np.percentile(values, 95):5.0f} {max(values):5.0f}"


def interruptions(bench: Bench, name: str, cases: list[tuple[str, Sound, float]], echo: Echo | None = None) -> None:
    rng = np.random.default_rng(3)
    paused, cut, missed, late, dirty = [], [], [], [], 0
    for text, sound, onset in cases:
        trial = bench.call(sound, rng.uniform(1_500, 5_000), onset, echo)
        if trial.cut_ms is None or trial.cut_ms < -150:
            missed.append((text, trial.cut_ms, trial.resumed))
            continue
        cut.append(trial.cut_ms)
        paused.append(trial.paused_ms if trial.paused_ms is not None else trial.cut_ms)
        if trial.cut_ms > 350:
            late.append((text, round(trial.paused_ms or 0), round(trial.cut_ms), [why for why, _ in trial.resumed]))
        dirty += any(word in trial.text.lower() for word in ("library", "borrow", "weekdays", "saturdays", "holidays"))
    times = f"paused {percentiles(paused)}   cut {percentiles(cut)}"
    print(f"{name:38s} {len(cases):4d}  missed {len(missed):3d}   {times}", flush=True)
    if missed:
        print("    missed:", missed[:6])
    if late:
        print(f"    over 350 ms: {len(late)}", late[:8])
    if dirty:
        print(f"    the agent's words in the turn's text: {dirty}")


def disturbances(bench: Bench, name: str, cases: list[tuple[str, Sound, float]], echo: Echo | None = None) -> None:
    rng = np.random.default_rng(4)
    cuts, why, silent, paused = [], Counter[str](), [], 0
    for text, sound, onset in cases:
        trial = bench.call(sound, rng.uniform(1_500, 5_000), onset, echo)
        paused += trial.pauses > 0
        why.update(reason for reason, _ in trial.resumed)
        if trial.cut_ms is not None:
            cuts.append(text)
        elif trial.pauses:
            silent.append(trial.silent_ms)
    shown = ", ".join(f"{reason} {count}" for reason, count in why.items())
    middle = f"{np.median(silent):5.0f}" if silent else "    -"
    counts = f"false {len(cuts):4d}   paused {paused:4d}   silent (median) {middle}   {shown}"
    print(f"{name:38s} {len(cases):4d}  {counts}", flush=True)
    if cuts:
        print("    cut by:", dict(Counter(cuts).most_common(8)))


def babble(folder: Path, down_db: float) -> list[tuple[str, Sound, float]]:
    """Three other people at once, `down_db` under a caller's level."""
    speech = [sound for _, sound, _ in utterances(folder)]
    rng, out = np.random.default_rng(6), []
    for number in range(12):
        mixed = np.zeros(6 * RATE_HZ)
        for _ in range(3):
            run = np.concatenate([speech[at] for at in rng.integers(0, len(speech), 4)])[: len(mixed)]
            mixed[: len(run)] += run
        out.append((f"babble {number}", levelled(mixed, SPEECH * 10 ** (-down_db / 20)), 0.0))
    return out


def nonspeech(folder: Path) -> list[tuple[str, Sound, float]]:
    rows = csv.DictReader((folder / "manifest.csv").open())
    names = [row["id"] for row in rows if row["kind"] == "nonspeech"]
    return [(name, samples(read(folder / "audio" / f"{name}.flac", RATE_HZ).pcm), 0.0) for name in names]


def main() -> None:
    folder, given = Path(sys.argv[1]), dict(pair.split("=") for pair in sys.argv[2:] if "=" in pair)
    Moonshine.charge_ms = float(given.pop("charge")) if "charge" in given else None
    silero = {key.split(".")[1]: float(value) for key, value in given.items() if key.startswith("silero.")}
    bench = Bench(BargeInOptions(**{key: json.loads(value) for key, value in given.items() if "." not in key}), silero)
    Moonshine.model.load()
    logging.disable(logging.WARNING)
    began = time.perf_counter()
    recorded, backs, shorts = list(utterances(folder)), list(spoken(BACKCHANNELS)), list(spoken(SHORT))
    print(f"{'':38s} calls                      p50   p95   max           p50   p95   max   (ms from the onset)")
    interruptions(bench, "interruptions, recorded", recorded)
    interruptions(bench, "short interruptions, synthetic", shorts)
    interruptions(bench, "interruptions over echo -20 dB 150 ms", recorded[::4], Echo())
    interruptions(bench, "interruptions over echo, small room", recorded[::8], Echo(room_ms=300))
    disturbances(bench, "nonspeech", nonspeech(folder))
    disturbances(bench, "backchannels, synthetic", backs)
    for down_db in (0.0, 10.0, 20.0, 30.0):
        disturbances(bench, f"babble of three, {down_db:.0f} dB under", babble(folder, down_db))
    still = [("own voice", np.zeros(RATE_HZ * 16), 0.0)] * 3
    for down_db, late_ms, room_ms in ECHOES:
        room = f", room {room_ms} ms" if room_ms else ""
        disturbances(bench, f"own voice -{down_db} dB {late_ms} ms{room}", still, Echo(down_db, late_ms, room_ms))
    took = list(Moonshine.took_ms)
    plain = Bench(BargeInOptions(ignore=(), echo_guard=False), silero)
    interruptions(plain, "length alone: interruptions", recorded[::2])
    disturbances(plain, "length alone: backchannels", backs)
    disturbances(plain, "length alone: own voice -20 dB 150 ms", still[:1], Echo())
    print(f"recogniser: {len(took)} calls, p50 {np.percentile(took, 50):.0f} ms, p95 {np.percentile(took, 95):.0f} ms of CPU")
    print(f"took {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
