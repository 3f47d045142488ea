"""A recorded caller from a file; both sides of the call go into another."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import soundfile

from .. import audio
from ..clock import Clock
from ..errors import AudioFileError
from ..options import build, option
from .recorded_line import RecordedLine

__all__ = ["FileOptions", "FileTransport"]


@attrs.frozen
class FileOptions:
    """Options of the file transport."""

    input: str = option(doc="the caller's audio file: WAV, FLAC, OGG or MP3")
    output: str = option("", "where both sides go: stereo, caller left, agent right; empty: nowhere")
    sample_rate_hz: int = option(16_000, "the rate of the line", at_least=8_000, at_most=48_000)
    tail_ms: float = option(3_000.0, "how long the line stays open after the last word of either side", at_least=0)


class FileTransport(RecordedLine):
    """A line whose caller is a file. Example: `transport.new("file", input="caller.wav", output="call.wav")`.

    The output is written beside and renamed when the call ends, so there is never half a file.

    Raises:
        AudioFileError: at construction, when the input cannot be read or the output not written.
    """

    Options = FileOptions

    def __init__(self, *, clock: Clock | None = None, **options: Any) -> None:
        self.options: FileOptions = build(FileOptions, options, "transport 'file'")
        caller = audio.read(self.options.input, self.options.sample_rate_hz)
        self._sound: soundfile.SoundFile | None = None
        self._beside = ""
        if self.options.output:
            self._open_output(self.options.output)
        super().__init__(
            caller, tail_ms=self.options.tail_ms, clock=clock, on_audio=self._write if self.options.output else None
        )

    async def aclose(self) -> None:
        """Finish the output file; a call that never began leaves none."""
        await super().aclose()
        if self._opened_ms is None:
            self.discard()
        sound, self._sound = self._sound, None
        if sound is not None:
            sound.close()
            os.replace(self._beside, self.options.output)

    def discard(self) -> None:
        """Leave no output behind, for a call that failed."""
        sound, self._sound = self._sound, None
        if sound is not None:
            with suppress(soundfile.SoundFileError, OSError):  # a full disk refuses the last of it too
                sound.close()
            Path(self._beside).unlink(missing_ok=True)

    def _open_output(self, name: str) -> None:
        kind = audio.file_format(name)
        self._beside = audio.writable_beside(name)
        try:
            self._sound = soundfile.SoundFile(self._beside, "w", self.options.sample_rate_hz, 2, format=kind)
        except soundfile.SoundFileError as error:
            Path(self._beside).unlink(missing_ok=True)
            raise AudioFileError(f"{name}: cannot be written ({error})", path=name) from None

    def _write(self, caller: bytes, agent: bytes) -> None:
        if self._sound is None:
            return
        name = self.options.output
        try:
            self._sound.write(np.stack([np.frombuffer(caller, "<i2"), np.frombuffer(agent, "<i2")], axis=1))
        except (soundfile.SoundFileError, OSError) as error:
            self.discard()
            raise AudioFileError(f"{name}: cannot be written any further ({error}); is the disk full?", path=name) from None
