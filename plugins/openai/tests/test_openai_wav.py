"""WAV in memory: what is wrapped comes out again, whatever the pieces; what is no WAV is refused."""

from __future__ import annotations

import io

import pytest
import soundfile
from beluga_voice_openai.wav import WavStripper, wav
from hypothesis import given, settings
from hypothesis import strategies as st

from beluga_voice.audio import Audio

CHUNK = b"LIST\x05\0\0\0INFO.\0"


def strip(data, cuts):
    stripper, out, start = WavStripper(), b"", 0
    for cut in [*sorted(cuts), len(data)]:
        out += stripper.feed(data[start:cut])
        start = max(start, cut)
    return out, stripper.sample_rate_hz


def test_others_can_read_it():
    """The header is one that a library for sound files takes."""
    samples, rate_hz = soundfile.read(io.BytesIO(wav(Audio(b"\1\0\2\0", 16_000))), dtype="int16")
    assert (samples.tolist(), rate_hz) == ([1, 2], 16_000)


@settings(deadline=None)
@given(st.binary(max_size=400), st.lists(st.integers(0, 460)), st.sampled_from([8_000, 24_000, 48_000]), st.booleans())
def test_comes_out_as_it_went_in(pcm, cuts, rate_hz, more_chunks):
    """In any pieces, with chunks nobody asked for, with lengths that are not true."""
    data = wav(Audio(pcm, rate_hz))
    if more_chunks:
        data = data[:12] + CHUNK + data[12:36] + CHUNK + data[36:]
    for length in (data[-len(pcm) - 4 :][:4] if pcm else data[-4:], b"\0\0\0\0", b"\xff\xff\xff\xff"):
        at = len(data) - len(pcm) - 4
        assert strip(data[:at] + length + data[at + 4 :], cuts) == (pcm, rate_hz)


@settings(deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(0, 200)))
def test_what_is_no_wav_is_refused_or_silent(data, cuts):
    """Bytes of any kind raise ValueError, or give nothing as long as they may still become a WAV file."""
    try:
        pcm, rate_hz = strip(data, cuts)
    except ValueError:
        return
    assert pcm == b"" or rate_hz


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"ID3\4....", "begins with b'ID3"),
        (b"RIFF\0\0\0\0WAVEdata\0\0\0\0", "does not say of which format"),
        (b"RIFF\0\0\0\0WAVE" + b"junk\xff\xff\0\0" + bytes(70_000), "header of over 65536 bytes"),
        (wav(Audio(b"", 8_000)).replace(b"\1\0\1\0", b"\3\0\1\0"), "format 3, 1 channels"),
    ],
)
def test_says_what_is_wrong(data, why):
    with pytest.raises(ValueError, match=why):
        strip(data, [])
