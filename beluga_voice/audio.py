"""Pure PCM: what sound is, cut to length, converted in rate, kept for a moment, read from and written to files.

Sound is signed 16-bit little-endian mono unless an `AudioFormat` says otherwise; lengths are counted in samples and told in ms.

>>> hum = Audio(b"\\x00\\x10" * 160, sample_rate_hz=16000)
>>> hum.duration_ms, hum.samples
(10.0, 160)
>>> resample(hum, 8000).samples
80
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from soundfile import SoundFile

from .errors import AudioFileError, AudioFormatError

__all__ = [
    "BYTES_PER_SAMPLE",
    "Audio",
    "AudioFormat",
    "PreRoll",
    "Rechunker",
    "Resampler",
    "file_format",
    "read",
    "resample",
    "silence",
    "to_float",
    "to_pcm",
    "writable_beside",
    "write",
]

BYTES_PER_SAMPLE = 2
RATES_HZ = (8_000, 48_000)
LONGEST_FILE_MS = 4 * 3_600_000


@attrs.frozen
class AudioFormat:
    """How raw audio is to be read: `sample_rate_hz`, `channels` (1 in every chain) and `encoding` ("pcm16")."""

    sample_rate_hz: int
    channels: int = 1
    encoding: str = "pcm16"

    def __attrs_post_init__(self) -> None:
        low, high = RATES_HZ
        if not low <= self.sample_rate_hz <= high:
            raise AudioFormatError(
                f"a rate of {self.sample_rate_hz} Hz; expected {low} to {high} Hz. Convert the audio first.",
                wanted=RATES_HZ,
                got=self.sample_rate_hz,
            )
        if self.channels != 1 or self.encoding != "pcm16":
            raise AudioFormatError(
                f"{self.channels} channel(s) of {self.encoding!r}; a chain takes mono 'pcm16'. Mix and convert it first.",
                wanted=(1, "pcm16"),
                got=(self.channels, self.encoding),
            )


@attrs.frozen
class Audio:
    """A piece of sound: `pcm` (signed 16-bit little-endian mono) at `sample_rate_hz`."""

    pcm: bytes = attrs.field(repr=lambda pcm: f"<{len(pcm)} bytes>")
    sample_rate_hz: int

    @property
    def samples(self) -> int:
        """The length in samples."""
        return len(self.pcm) // BYTES_PER_SAMPLE

    @property
    def duration_ms(self) -> float:
        """The length in ms."""
        return self.samples * 1000.0 / self.sample_rate_hz


def silence(duration_ms: float, sample_rate_hz: int) -> Audio:
    """`duration_ms` of digital silence."""
    return Audio(bytes(BYTES_PER_SAMPLE * round(duration_ms * sample_rate_hz / 1000)), sample_rate_hz)


def to_float(pcm: bytes) -> NDArray[np.float32]:
    """PCM as float32 in -1..1, shape (samples,)."""
    return np.frombuffer(pcm, "<i2").astype(np.float32) / np.float32(32768.0)


def to_pcm(samples: NDArray[np.floating]) -> bytes:
    """Floats in -1..1, shape (samples,), as PCM; what is beyond is clipped."""
    scaled = np.clip(np.rint(np.asarray(samples) * 32768.0), -32768, 32767)
    return scaled.astype("<i2").tobytes()


class Rechunker:
    """Cuts a stream of PCM into pieces of exactly `chunk_samples`, whatever pieces it comes in.

    >>> cut = Rechunker(2)
    >>> [len(piece) for piece in cut.feed(b"123456")], cut.rest()
    ([4], b'56')
    """

    def __init__(self, chunk_samples: int) -> None:
        self._size = chunk_samples * BYTES_PER_SAMPLE
        self._held = b""

    def feed(self, pcm: bytes) -> list[bytes]:
        """The pieces that `pcm` completes, in order."""
        held = self._held + pcm if self._held else pcm
        size = self._size
        if len(held) < size:
            self._held = held
            return []
        whole = len(held) - len(held) % size
        self._held = held[whole:]
        return [held[at : at + size] for at in range(0, whole, size)]

    def rest(self) -> bytes:
        """What is left, shorter than a piece; the rechunker is empty afterwards."""
        rest, self._held = self._held, b""
        return rest


class Resampler:
    """Converts a stream of PCM from one rate to another, without a seam between pieces.

    The whole output has `round(input samples * to / from)` samples at any chunking. A stream lags its input: with
    `quality` "LQ" by about 20 ms (60 ms from 8 kHz), "MQ" 40 ms (120 ms), "HQ" the same with a steeper filter.
    """

    def __init__(self, from_hz: int, to_hz: int, quality: str = "MQ") -> None:
        self.from_hz, self.to_hz = from_hz, to_hz
        self._stream = None
        if from_hz != to_hz:
            import soxr

            self._stream = soxr.ResampleStream(from_hz, to_hz, 1, "int16", quality)
        self._odd = b""

    def feed(self, pcm: bytes, *, last: bool = False) -> bytes:
        """The output that `pcm` brings; with `last`, also all that was still inside."""
        if self._odd:
            pcm = self._odd + pcm
        whole = len(pcm) - len(pcm) % BYTES_PER_SAMPLE
        self._odd, pcm = (b"" if last else pcm[whole:]), pcm[:whole]
        if self._stream is None:
            return pcm
        out = self._stream.resample_chunk(np.frombuffer(pcm, "<i2"), last=last)
        if last:
            self._stream.clear()
        return bytes(out.astype("<i2", copy=False).tobytes())


def resample(audio: Audio, sample_rate_hz: int) -> Audio:
    """The same sound at another rate; the same object when the rate is right already."""
    if audio.sample_rate_hz == sample_rate_hz:
        return audio
    import soxr

    samples = soxr.resample(np.frombuffer(audio.pcm, "<i2"), audio.sample_rate_hz, sample_rate_hz)
    return Audio(samples.astype("<i2", copy=False).tobytes(), sample_rate_hz)


class PreRoll:
    """The last moments of a line, so that speech can be had from before it was noticed.

    Keeps at least `keep_ms`, by whole pieces. Positions are in ms on the line.
    """

    def __init__(self, keep_ms: float) -> None:
        self.keep_ms = keep_ms
        self._pieces: list[tuple[float, bytes, int]] = []  # a list: it holds few
        self._held_ms = 0.0

    def push(self, at_ms: float, pcm: bytes, sample_rate_hz: int) -> None:
        """Add a piece that begins at `at_ms`."""
        pieces = self._pieces
        pieces.append((at_ms, pcm, sample_rate_hz))
        self._held_ms += len(pcm) * 500.0 / sample_rate_hz
        while pieces:
            oldest_ms = len(pieces[0][1]) * 500.0 / pieces[0][2]
            if self._held_ms - oldest_ms < self.keep_ms:
                break
            self._held_ms -= oldest_ms
            pieces.pop(0)

    def take_from(self, from_ms: float) -> Audio | None:
        """The kept audio from `from_ms` on, if there is any; nothing is kept afterwards."""
        out = []
        rate_hz = 0
        for at_ms, pcm, rate_hz in self._pieces:
            if at_ms + len(pcm) * 500.0 / rate_hz > from_ms:
                out.append(pcm[max(0, round((from_ms - at_ms) * rate_hz / 1000)) * BYTES_PER_SAMPLE :])
        self.clear()
        return Audio(b"".join(out), rate_hz) if out else None

    def clear(self) -> None:
        """Keep nothing of what was pushed so far."""
        self._pieces.clear()
        self._held_ms = 0.0


def read(path: str | os.PathLike[str], sample_rate_hz: int | None = None) -> Audio:
    """A whole audio file (WAV, FLAC, OGG, MP3) as mono, converted to `sample_rate_hz` if given.

    Raises:
        AudioFileError: the file is missing, not readable, not audio, empty, or longer than four hours.
    """
    name = os.fspath(path)
    blocks: list[NDArray[np.int16]] = []
    import soundfile

    try:
        with open(name, "rb") as raw, soundfile.SoundFile(raw) as sound:
            rate = int(sound.samplerate)
            for block in _mono_blocks(sound):
                blocks.append(block)
                if len(blocks) * 1000.0 > LONGEST_FILE_MS:
                    raise AudioFileError(f"{name}: longer than 4 hours; cut it into parts first", path=name)
    except FileNotFoundError:
        raise AudioFileError(f"{name}: no such file; check the path", path=name) from None
    except IsADirectoryError:
        raise AudioFileError(f"{name}: is a directory; name an audio file in it", path=name) from None
    except PermissionError:
        raise AudioFileError(f"{name}: permission denied; make the file readable", path=name) from None
    except OSError as error:
        raise AudioFileError(f"{name}: cannot be read ({error.strerror or error})", path=name) from None
    except (soundfile.SoundFileError, ValueError, TypeError) as error:
        if os.path.getsize(name) == 0:
            raise AudioFileError(f"{name}: the file is empty; expected WAV, FLAC, OGG or MP3 audio", path=name) from None
        detail = str(error).split(": ", 1)[-1].rstrip(".")
        raise AudioFileError(
            f"{name}: not audio that can be read ({detail}); expected WAV, FLAC, OGG or MP3", path=name
        ) from None
    if not blocks:
        raise AudioFileError(f"{name}: holds no sound; expected at least one sample", path=name)
    audio = Audio(np.concatenate(blocks).astype("<i2", copy=False).tobytes(), rate)
    return resample(audio, sample_rate_hz) if sample_rate_hz else audio


def _mono_blocks(sound: SoundFile) -> Iterator[NDArray[np.int16]]:
    """Blocks of one second, channels averaged."""
    while True:
        block = sound.read(int(sound.samplerate), dtype="int16", always_2d=True)
        if not len(block):
            return
        yield block[:, 0] if block.shape[1] == 1 else block.mean(axis=1).astype(np.int16)


def write(path: str | os.PathLike[str], audio: Audio) -> None:
    """Write a sound file whose format follows the name (.wav, .flac, .ogg); beside first, then renamed: never half a file.

    Raises:
        AudioFileError: the folder does not exist or is not writable, or the ending names no format.
    """
    import soundfile

    name = os.fspath(path)
    ending = file_format(name)
    beside = writable_beside(name)
    try:
        soundfile.write(beside, np.frombuffer(audio.pcm, "<i2"), audio.sample_rate_hz, format=ending)
        os.replace(beside, name)
    except (OSError, ValueError, soundfile.SoundFileError) as error:
        Path(beside).unlink(missing_ok=True)
        raise AudioFileError(f"{name}: cannot be written ({error})", path=name) from None


def file_format(name: str) -> str:
    """The sound format that a file's ending names.

    Raises:
        AudioFileError: an ending that is not wav, flac, ogg or mp3.
    """
    ending = Path(name).suffix.lower().lstrip(".")
    if ending not in ("wav", "flac", "ogg", "mp3"):
        raise AudioFileError(f"{name}: unknown ending {ending!r}; expected .wav, .flac, .ogg or .mp3", path=name)
    return ending.upper()


def writable_beside(name: str) -> str:
    """An empty temporary file beside `name`, to be written and then renamed over it.

    Raises:
        AudioFileError: `name` is a directory, or its folder is missing or not writable.
    """
    if os.path.isdir(name):
        raise AudioFileError(f"{name}: is a directory; name a file in it", path=name)
    folder = os.path.dirname(name) or "."
    try:
        import tempfile

        handle, beside = tempfile.mkstemp(dir=folder, prefix=f".{os.path.basename(name)}.", suffix=".part")
    except OSError as error:
        raise AudioFileError(f"{name}: cannot be written ({error.strerror}); choose another place", path=name) from None
    os.close(handle)
    os.chmod(beside, 0o666 & ~_umask())
    return beside


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
