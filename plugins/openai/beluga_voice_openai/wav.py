"""WAV in memory: around PCM that goes up, away from PCM that comes down."""

from __future__ import annotations

import struct

from beluga_voice.audio import BYTES_PER_SAMPLE, Audio

__all__ = ["WavStripper", "wav"]

PCM, EXTENSIBLE = 1, 0xFFFE
LONGEST_HEADER_BYTES = 65_536


def wav(audio: Audio) -> bytes:
    """`audio` as the bytes of a WAV file.

    >>> len(wav(Audio(bytes(320), 16_000)))
    364
    """
    size, rate_hz = len(audio.pcm), audio.sample_rate_hz
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, PCM, 1, rate_hz, rate_hz * BYTES_PER_SAMPLE, BYTES_PER_SAMPLE, 16)
    return struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE") + form + struct.pack("<4sI", b"data", size) + audio.pcm


class WavStripper:
    """The PCM of a WAV file that comes in pieces of any size. `sample_rate_hz` is known once there is some.

    A stream's maker did not know its length when it wrote the header, so what the header says of it is not believed: all that
    comes after the header is sound.

    >>> stripper = WavStripper()
    >>> stripper.feed(wav(Audio(b"sound!", 8_000)))
    b'sound!'
    """

    def __init__(self) -> None:
        self.sample_rate_hz = 0
        self._header = b""
        self._in_data = False

    def feed(self, data: bytes) -> bytes:
        """More of the file; gives the PCM in it.

        Raises:
            ValueError: this is no WAV file of 16-bit mono PCM.
        """
        if self._in_data:
            return data
        self._header += data
        if not b"RIFF".startswith(self._header[:4]) and self._header[:4] != b"RIFF":
            raise ValueError(f"the audio begins with {self._header[:4]!r}; expected a WAV file")
        at = 12
        while len(self._header) >= at + 8:
            name, size = struct.unpack_from("<4sI", self._header, at)
            if name == b"data":
                if not self.sample_rate_hz:
                    raise ValueError("the WAV file does not say of which format its audio is")
                self._in_data = True
                pcm, self._header = self._header[at + 8 :], b""
                return pcm
            if name == b"fmt " and len(self._header) >= at + 24:
                self._read_format(at + 8)
            at += 8 + size + size % 2
        if len(self._header) > LONGEST_HEADER_BYTES:
            raise ValueError(f"the WAV file has a header of over {LONGEST_HEADER_BYTES} bytes")
        return b""

    def _read_format(self, at: int) -> None:
        form, channels, rate_hz, _, _, bits = struct.unpack_from("<HHIIHH", self._header, at)
        if form not in (PCM, EXTENSIBLE) or channels != 1 or bits != 16 or not rate_hz:
            raise ValueError(f"the WAV file is of format {form}, {channels} channels, {bits} bits; expected 16-bit mono PCM")
        self.sample_rate_hz = rate_hz
