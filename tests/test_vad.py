"""Voice activity: from windows of sound to speech that begins and ends."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice.audio import silence, to_pcm
from beluga_voice.builtin.energy_vad import EnergyVAD
from beluga_voice.chain import Chain
from beluga_voice.clock import run_simulated
from beluga_voice.engine import Context
from beluga_voice.errors import OptionError
from beluga_voice.frames import AudioIn, SpeechEnded, SpeechProbability, SpeechStarted, SpeechSuspected
from beluga_voice.vad import VAD, Options, SpeechGate, VADStream

WINDOW_MS = 32.0

probabilities = st.lists(st.sampled_from([0.0, 0.2, 0.4, 0.45, 0.5, 0.9, 1.0]), max_size=120)
times_ms = st.sampled_from([0, 32, 64, 100, 250])
any_options = st.builds(
    Options, min_speech_ms=times_ms, suspect_ms=times_ms, min_silence_ms=times_ms, preroll_ms=times_ms
)


def gate_out(options, probabilities):
    gate, out = SpeechGate(options), []
    for number, probability in enumerate(probabilities):
        start_ms = number * WINDOW_MS
        out += gate.feed(probability, start_ms, start_ms + WINDOW_MS)
    return gate, out


def types_of(frames):
    return [type(frame).__name__ for frame in frames]


class TestSpeechGate:
    @given(any_options, probabilities)
    def test_starts_and_ends_take_turns(self, options, probabilities):
        """Speech that started ends before it starts again, and `speaking` says which it is."""
        gate, out = gate_out(options, probabilities)
        turns = [frame for frame in out if not isinstance(frame, SpeechSuspected)]
        assert types_of(turns[::2]) == ["SpeechStarted"] * len(turns[::2])
        assert types_of(turns[1::2]) == ["SpeechEnded"] * len(turns[1::2])
        assert gate.speaking == (len(turns) % 2 == 1)

    @given(any_options, probabilities)
    def test_places_are_in_order(self, options, probabilities):
        """Speech lies where its windows do: pre-roll, start, decision, end, and never before the line began."""
        _, out = gate_out(options, probabilities)
        last_ms = 0.0
        for frame in out:
            assert frame.at_ms >= last_ms
            last_ms = frame.at_ms
            if isinstance(frame, SpeechStarted):
                assert 0 <= frame.audio_from_ms <= frame.speech_start_ms <= frame.at_ms - options.min_speech_ms
                assert frame.audio_from_ms == max(0, frame.speech_start_ms - options.preroll_ms)
                assert probabilities[int(frame.speech_start_ms // WINDOW_MS)] >= options.threshold
            elif isinstance(frame, SpeechEnded):
                assert frame.at_ms - frame.speech_end_ms >= options.min_silence_ms
                quiet = probabilities[int(frame.speech_end_ms // WINDOW_MS) : int(frame.at_ms // WINDOW_MS)]
                assert max(quiet) < options.threshold

    @given(any_options, probabilities)
    def test_suspicion_comes_before_and_once(self, options, probabilities):
        """Speech is suspected at most once before it starts, and not while it goes on."""
        _, out = gate_out(options, probabilities)
        speaking, suspected_ms = False, None
        for frame in out:
            if isinstance(frame, SpeechSuspected):
                assert not speaking
                assert suspected_ms is None or frame.speech_start_ms > suspected_ms
                suspected_ms = frame.speech_start_ms
            else:
                speaking, suspected_ms = isinstance(frame, SpeechStarted), None

    @given(any_options, st.lists(st.sampled_from([0.0, 0.2, 0.4, 0.49]), max_size=80))
    def test_quiet_is_not_speech(self, options, probabilities):
        """Nothing under the threshold starts anything."""
        assert gate_out(options, probabilities)[1] == []

    def test_needs_speech_before_it_believes_it(self):
        """A click shorter than `min_speech_ms` starts nothing; longer speech does, at its own beginning."""
        options = Options(min_speech_ms=96, suspect_ms=64)
        assert types_of(gate_out(options, [0.9, 0.9, 0.0, 0.0])[1]) == ["SpeechSuspected"]
        _, out = gate_out(options, [0.0, 0.9, 0.9, 0.9])
        assert out == [SpeechSuspected(96, 32), SpeechStarted(128, 32, 0)]

    def test_needs_quiet_before_it_ends(self):
        """A pause shorter than `min_silence_ms` ends nothing; the end is where the quiet began."""
        options = Options(min_speech_ms=0, suspect_ms=1_000, min_silence_ms=96, preroll_ms=0)
        speech, pause = [0.9] * 3, [0.0] * 2
        assert types_of(gate_out(options, speech + pause + speech + pause)[1]) == ["SpeechStarted"]
        assert gate_out(options, speech + pause + [0.0])[1][-1] == SpeechEnded(192, 96)

    def test_wavering_does_not_undo_a_beginning(self):
        """Between threshold and release a beginning stays one, and counts when speech goes on; below, it does not."""
        options = Options(min_speech_ms=96, suspect_ms=1_000, release=0.15)
        assert gate_out(options, [0.9, 0.4, 0.9])[1] == [SpeechStarted(96, 0, 0)]
        assert gate_out(options, [0.9, 0.3, 0.9])[1] == []


class Scripted(VAD):
    """A VAD that hears speech in windows that are not silent, and writes down what it heard."""

    def __init__(self):
        self.options = Options(min_speech_ms=32, suspect_ms=1_000, min_silence_ms=32)
        self.heard, self.closed = [], 0

    def stream(self):
        engine = self

        class Stream(VADStream):
            async def probability(self, window):
                engine.heard.append(window)
                return 1.0 if any(window) else 0.0

            def close(self):
                engine.closed += 1

        return Stream()


def line(*pieces, rate_hz=16_000, from_ms=0.0):
    """Pieces of PCM, or ms of a gap, as the frames of a line."""
    frames, at_ms = [], from_ms
    for piece in pieces:
        if isinstance(piece, bytes):
            frames.append(AudioIn(piece, rate_hz, at_ms))
            at_ms = frames[-1].end_ms
        else:
            at_ms += piece
    return frames


def heard(engine, frames):
    async def source():
        for frame in frames:
            yield frame

    async def main():
        async with Context() as context, Chain(engine).process(source(), context) as out:
            return [frame async for frame in out]

    return run_simulated(main())


LOUD = to_pcm(np.full(320, 0.5))
QUIET = bytes(640)


class TestStage:
    @given(st.lists(st.integers(1, 900), min_size=1, max_size=20))
    def test_windows_are_the_line_at_any_chunking(self, lengths):
        """The VAD hears every sample once, in its own window size, placed by count."""
        samples = np.arange(sum(lengths), dtype="<i2")
        edges = np.cumsum([0, *lengths])
        pieces = [samples[start:end].tobytes() for start, end in pairwise(edges)]
        engine = Scripted()
        out = heard(engine, line(*pieces))
        whole = len(samples) // 512
        assert b"".join(engine.heard) == samples[: whole * 512].tobytes()
        placed = [frame.at_ms for frame in out if isinstance(frame, SpeechProbability)]
        assert placed == [number * 32.0 for number in range(whole)]

    def test_every_frame_passes(self):
        """The line goes on unchanged, in order."""
        frames = line(LOUD, QUIET, LOUD)
        assert [frame for frame in heard(Scripted(), frames) if isinstance(frame, AudioIn)] == frames

    def test_speech_is_placed_on_the_line(self):
        """Start and end of speech are positions on the caller's line, wherever it stands."""
        out = heard(Scripted(), line(*[QUIET] * 8, *[LOUD] * 8, *[QUIET] * 8, from_ms=10_000))
        started = next(frame for frame in out if isinstance(frame, SpeechStarted))
        ended = next(frame for frame in out if isinstance(frame, SpeechEnded))
        assert started.speech_start_ms == pytest.approx(10_160, abs=32)
        assert ended.speech_end_ms == pytest.approx(10_320, abs=32)

    def test_a_gap_in_the_line_is_no_sound(self):
        """After a gap windows begin anew at the place of the next audio; none reaches across."""
        engine = Scripted()
        out = heard(engine, line(LOUD, 5_000, *[LOUD] * 2))
        assert [frame.at_ms for frame in out if isinstance(frame, SpeechProbability)] == [5_020.0]

    @pytest.mark.parametrize("rate_hz", [8_000, 24_000, 48_000])
    def test_other_rates_are_converted(self, rate_hz):
        """A line at another rate is heard at the VAD's own, as long as it is."""
        engine = Scripted()
        frames = line(*[bytes(rate_hz // 25)] * 50, rate_hz=rate_hz)
        heard(engine, frames)
        assert {len(window) for window in engine.heard} == {1_024}
        assert len(engine.heard) * 32.0 == pytest.approx(1_000, abs=160)

    def test_the_stream_is_closed(self):
        """The engine's stream is closed when the line ends."""
        engine = Scripted()
        heard(engine, line(LOUD))
        assert engine.closed == 1


class TestEnergyVAD:
    def spoken(self, *pieces, **options):
        engine = EnergyVAD(**options)
        noise = np.random.default_rng(1)
        frames, at_ms = [], 0.0
        for duration_ms, level in pieces:
            for _ in range(duration_ms // 20):
                frames.append(AudioIn(to_pcm(noise.normal(0, level, 320)), 16_000, at_ms))
                at_ms += 20
        return [frame for frame in heard(engine, frames) if isinstance(frame, (SpeechStarted, SpeechEnded))]

    def test_hears_what_stands_out_of_the_noise(self):
        """Loud sound between quiet is speech, once, at its place."""
        started, ended = self.spoken((1_000, 0.002), (1_000, 0.1), (1_000, 0.002))
        assert started.speech_start_ms == pytest.approx(1_000, abs=40)
        assert ended.speech_end_ms == pytest.approx(2_000, abs=40)

    def test_learns_the_noise(self):
        """A noisy line is not speech for ever: the louder speech on it is still found."""
        found = self.spoken((10_000, 0.01), (500, 0.15), (1_000, 0.01))
        *_, started, ended = found
        assert started.speech_start_ms == pytest.approx(10_000, abs=40)
        assert ended.speech_end_ms == pytest.approx(10_500, abs=40)

    def test_silence_is_not_speech(self):
        """Digital silence holds no speech."""
        assert self.spoken((2_000, 0.0)) == []

    @pytest.mark.parametrize("level", [0.0, 1e-5, 0.01, 1.0, 10.0])
    def test_gives_probabilities(self, level):
        """However loud or quiet, it is a number from 0 to 1."""
        out = heard(EnergyVAD(), line(to_pcm(np.full(4_096, level))))
        given = [frame.probability for frame in out if isinstance(frame, SpeechProbability)]
        assert len(given) == 8
        assert all(0 <= probability <= 1 for probability in given)

    def test_an_option_out_of_range_is_refused(self):
        """A threshold that is no probability is refused by name."""
        with pytest.raises(OptionError, match="vad 'energy': option 'threshold' is 2"):
            EnergyVAD(threshold=2)

    def test_silence_is_made_of_nothing(self):
        """The quiet of this file's lines is the package's own."""
        assert silence(20, 16_000).pcm == QUIET
