"""Pure PCM: lengths, cutting, conversion, pre-roll, files."""

import contextlib
import os
import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beluga_voice import audio
from beluga_voice.audio import Audio, AudioFormat, PreRoll, Rechunker, Resampler
from beluga_voice.errors import AudioFileError, AudioFormatError

DITHER = 4  # soxr adds noise of the last bits when it rounds to 16 bits
RATES_HZ = (8_000, 16_000, 22_050, 24_000, 44_100, 48_000)


def tone(duration_ms: float, rate_hz: int, pitch_hz: float = 440.0) -> Audio:
    samples = np.arange(round(duration_ms * rate_hz / 1000))
    return Audio(audio.to_pcm(0.5 * np.sin(2 * np.pi * pitch_hz * samples / rate_hz)), rate_hz)


def pieces_of(pcm: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(pcm) + 1) for cut in cuts), len(pcm)]
    return [pcm[start:end] for start, end in pairwise(edges)]


cuts = st.lists(st.integers(0, 10**6), max_size=12)


class TestFormat:
    @pytest.mark.parametrize("rate_hz", [0, -1, 7_999, 48_001])
    def test_refuses_rates_outside_8_to_48_khz(self, rate_hz):
        """A rate no chain can carry is refused with the value and the range."""
        with pytest.raises(AudioFormatError, match=f"{rate_hz} Hz; expected 8000 to 48000") as caught:
            AudioFormat(rate_hz)
        assert caught.value.got == rate_hz

    @pytest.mark.parametrize("told", [{"channels": 2}, {"encoding": "mulaw"}])
    def test_refuses_what_is_not_mono_pcm16(self, told):
        """Stereo and other encodings are refused."""
        with pytest.raises(AudioFormatError, match="mono 'pcm16'"):
            AudioFormat(16_000, **told)


class TestSamples:
    @given(st.lists(st.integers(-32768, 32767), max_size=50))
    def test_float_and_back_is_the_same(self, samples):
        """PCM as float and back is the same PCM."""
        pcm = np.array(samples, "<i2").tobytes()
        assert audio.to_pcm(audio.to_float(pcm)) == pcm

    def test_what_is_too_loud_is_clipped(self):
        """Samples beyond -1..1 become the loudest ones, not their opposite."""
        assert np.frombuffer(audio.to_pcm(np.array([2.0, -2.0])), "<i2").tolist() == [32767, -32768]

    @given(st.floats(0, 5_000), st.sampled_from(RATES_HZ))
    def test_silence_is_as_long_as_asked(self, duration_ms, rate_hz):
        """Silence lasts what was asked, to half a sample."""
        made = audio.silence(duration_ms, rate_hz)
        assert abs(made.duration_ms - duration_ms) <= 500.0 / rate_hz + 1e-6
        assert not any(made.pcm)


class TestRechunker:
    @given(st.binary(max_size=400), cuts, st.integers(1, 40))
    def test_loses_and_invents_nothing(self, pcm, cuts, chunk_samples):
        """The pieces have the exact length and, with the rest, are the input."""
        cut = Rechunker(chunk_samples)
        out = [piece for part in pieces_of(pcm, cuts) for piece in cut.feed(part)]
        assert {len(piece) for piece in out} <= {chunk_samples * 2}
        rest = cut.rest()
        assert len(rest) < chunk_samples * 2
        assert b"".join(out) + rest == pcm
        assert cut.rest() == b""


class TestResampler:
    @settings(max_examples=60, deadline=None)
    @given(
        st.sampled_from(RATES_HZ), st.sampled_from(RATES_HZ), st.integers(0, 6_000), cuts, st.sampled_from(["LQ", "MQ"])
    )
    def test_chunking_changes_nothing(self, from_hz, to_hz, samples, cuts, quality):
        """Any split, at odd bytes too, gives the samples of the whole, as many as the rates say."""
        pcm = np.random.default_rng(samples).integers(-9_000, 9_000, samples).astype("<i2").tobytes()
        whole = Resampler(from_hz, to_hz, quality).feed(pcm, last=True)
        stream = Resampler(from_hz, to_hz, quality)
        parts = [stream.feed(part) for part in pieces_of(pcm, cuts)]
        joined = b"".join(parts) + stream.feed(b"", last=True)
        assert abs(len(joined) // 2 - samples * to_hz / from_hz) <= 1
        assert len(joined) == len(whole)
        difference = np.frombuffer(joined, "<i2").astype(int) - np.frombuffer(whole, "<i2")
        assert np.abs(difference).max(initial=0) <= DITHER

    def test_an_ended_stream_starts_anew(self):
        """After `last` the next sound is not touched by the one before, nor by half a sample of it."""
        stream = Resampler(16_000, 8_000)
        stream.feed(tone(50, 16_000).pcm + b"\x7f", last=True)
        after = np.frombuffer(stream.feed(bytes(3_200), last=True), "<i2").astype(int)
        assert np.abs(after).max() <= DITHER

    @pytest.mark.parametrize("to_hz", RATES_HZ)
    def test_keeps_the_sound(self, to_hz):
        """A tone is the same tone at another rate, as loud and as long."""
        heard = audio.resample(tone(200, 16_000), to_hz)
        assert heard.duration_ms == pytest.approx(200, abs=0.1)
        samples = audio.to_float(heard.pcm)[to_hz // 50 : -to_hz // 50]
        assert np.sqrt(np.mean(samples**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.02)
        spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
        assert np.argmax(spectrum) * to_hz / len(samples) == pytest.approx(440, abs=8)

    def test_the_right_rate_is_left_alone(self):
        """Audio at the wanted rate comes back as it is."""
        hum = tone(20, 16_000)
        assert audio.resample(hum, 16_000) is hum


class TestPreRoll:
    @settings(max_examples=60)
    @given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 300), st.floats(0, 1))
    def test_gives_exactly_the_audio_from_the_moment_asked_for(self, lengths_ms, keep_ms, share):
        """What is taken is the end of the line from `from_ms` on, as far back as was kept."""
        ring, line, at_ms = PreRoll(keep_ms), b"", 0.0
        for number, length_ms in enumerate(lengths_ms):
            pcm = struct.pack("<h", number + 1) * (16 * length_ms)
            ring.push(at_ms, pcm, 16_000)
            line += pcm
            at_ms += length_ms
        from_ms = at_ms - share * min(keep_ms, at_ms)
        taken = ring.take_from(from_ms)
        expected = line[round(from_ms * 16) * 2 :]
        assert (taken.pcm if taken else b"") == expected
        assert ring.take_from(0.0) is None

    def test_is_bounded(self):
        """However long the line, no more than the time asked for and one piece is held."""
        ring = PreRoll(100)
        for number in range(1_000):
            ring.push(number * 20.0, bytes(640), 16_000)
        assert ring.take_from(0.0).duration_ms <= 120


@pytest.fixture
def wav(tmp_path):
    path = tmp_path / "hum.wav"
    audio.write(path, tone(100, 16_000))
    return path


class TestRead:
    @pytest.mark.parametrize("ending", ["wav", "flac"])
    def test_gives_what_was_written(self, tmp_path, ending):
        """A lossless file gives back the very samples."""
        path, hum = tmp_path / f"hum.{ending}", tone(100, 22_050)
        audio.write(path, hum)
        assert audio.read(path) == hum

    @pytest.mark.parametrize("ending", ["ogg", "mp3"])
    def test_gives_much_the_same_of_what_was_pressed(self, tmp_path, ending):
        """A lossy file gives back the same sound, give or take its padding."""
        path = tmp_path / f"hum.{ending}"
        audio.write(path, tone(500, 24_000))
        assert audio.read(path).duration_ms == pytest.approx(500, abs=120)

    def test_converts_the_rate(self, wav):
        """The file comes in the rate asked for."""
        heard = audio.read(wav, 8_000)
        assert (heard.sample_rate_hz, heard.samples) == (8_000, 800)

    def test_mixes_channels(self, tmp_path):
        """A stereo file is averaged to mono."""
        import soundfile

        path = tmp_path / "stereo.wav"
        soundfile.write(path, np.array([[1_000, 3_000]] * 160, "int16"), 16_000)
        assert set(np.frombuffer(audio.read(path).pcm, "<i2").tolist()) == {2_000}

    def refused(self, path, *words):
        with pytest.raises(AudioFileError) as caught:
            audio.read(path)
        assert caught.value.path == str(path)
        for word in (str(path), *words):
            assert word in str(caught.value)

    def test_refuses_a_missing_file(self, tmp_path):
        """A path that leads nowhere says so."""
        self.refused(tmp_path / "none.wav", "no such file", "check the path")

    def test_refuses_a_directory(self, tmp_path):
        """A directory is told from a file."""
        self.refused(tmp_path, "is a directory")

    def test_refuses_an_empty_file(self, tmp_path):
        """Nothing at all is called empty."""
        (tmp_path / "empty.wav").touch()
        self.refused(tmp_path / "empty.wav", "the file is empty")

    @pytest.mark.parametrize("content", [b"hello, this is text\n", bytes(range(256)), b"RIFF"])
    def test_refuses_what_is_not_audio(self, tmp_path, content):
        """Text and noise are not taken for sound."""
        (tmp_path / "notes.wav").write_bytes(content)
        self.refused(tmp_path / "notes.wav", "not audio that can be read", "expected WAV, FLAC, OGG or MP3")

    def test_refuses_every_truncated_header(self, wav, tmp_path):
        """A header cut off anywhere is refused or holds no sound; it never gives noise or another error."""
        whole = wav.read_bytes()
        for length in range(1, 44):
            (tmp_path / "cut.wav").write_bytes(whole[:length])
            self.refused(tmp_path / "cut.wav")

    def test_gives_the_sound_there_is_of_a_truncated_file(self, wav, tmp_path):
        """A recording that was cut off is heard as far as it goes."""
        (tmp_path / "cut.wav").write_bytes(wav.read_bytes()[:-1_000])
        assert audio.read(tmp_path / "cut.wav").samples == 1_600 - 500

    @pytest.mark.parametrize("rate_hz", [0, 0xFFFFFFFF])
    def test_refuses_a_rate_that_cannot_be(self, wav, rate_hz):
        """A header of 0 Hz, or of more than any sound has, is refused."""
        header = bytearray(wav.read_bytes())
        header[24:28] = struct.pack("<I", rate_hz)
        wav.write_bytes(header)
        self.refused(wav)

    def test_refuses_a_file_without_sound(self, tmp_path):
        """A header with no sample behind it is refused."""
        audio.write(tmp_path / "none.wav", Audio(b"", 16_000))
        self.refused(tmp_path / "none.wav", "holds no sound")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_refuses_a_file_it_may_not_read(self, wav):
        """A file without read permission says so."""
        wav.chmod(0)
        self.refused(wav, "permission denied")

    @settings(max_examples=80, deadline=None)
    @given(st.data())
    def test_damage_never_ends_in_another_error(self, tmp_path_factory, data):
        """Whatever bytes of a file are damaged, it gives audio or an AudioFileError."""
        path = tmp_path_factory.getbasetemp() / "damaged.wav"
        audio.write(path, tone(20, 16_000))
        content = bytearray(path.read_bytes())
        for at in data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=6)):
            content[at] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        with contextlib.suppress(AudioFileError):
            assert audio.read(path).samples > 0


class TestWrite:
    def test_leaves_only_the_file(self, wav):
        """Nothing beside the file remains."""
        assert [path.name for path in wav.parent.iterdir()] == ["hum.wav"]

    @pytest.mark.parametrize(
        ("name", "made", "word"),
        [
            ("hum.txt", Audio(bytes(320), 16_000), "unknown ending 'txt'"),
            ("hum", Audio(bytes(320), 16_000), "unknown ending ''"),
            ("hum.wav", Audio(bytes(321), 16_000), "cannot be written"),
            ("hum.mp3", Audio(bytes(320), 12_345), "cannot be written"),
            ("missing/hum.wav", Audio(bytes(320), 16_000), "cannot be written"),
            ("n" * 300 + ".wav", Audio(bytes(320), 16_000), "cannot be written"),
        ],
    )
    def test_a_refusal_leaves_nothing_behind(self, tmp_path, name, made, word):
        """What cannot be written is refused with the path, and no half of it stays."""
        with pytest.raises(AudioFileError, match=word) as caught:
            audio.write(tmp_path / name, made)
        assert caught.value.path == str(tmp_path / name)
        assert list(tmp_path.iterdir()) == []

    def test_refuses_a_directory(self, tmp_path):
        """A directory is not overwritten."""
        (tmp_path / "folder.wav").mkdir()
        with pytest.raises(AudioFileError, match="is a directory"):
            audio.write(tmp_path / "folder.wav", tone(10, 16_000))

    def test_a_refusal_keeps_the_old_file(self, wav):
        """When the new sound cannot be written, the old one is still there."""
        before = wav.read_bytes()
        with pytest.raises(AudioFileError):
            audio.write(wav, Audio(b"\0" * 3, 16_000))
        assert wav.read_bytes() == before

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_refuses_a_folder_it_may_not_write(self, tmp_path):
        """A folder without write permission says so."""
        tmp_path.chmod(0o500)
        with pytest.raises(AudioFileError, match="cannot be written"):
            audio.write(tmp_path / "hum.wav", tone(10, 16_000))
