"""
Moonshine as a plain function from samples to text: no framework, no event loop.

`MoonshineModel` owns the one native transcriber of the process and lets many threads use it at once. Anything
asynchronous (a bounded pool, speculation, interim transcripts) belongs to whoever calls it.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["ARCHITECTURES", "SAMPLE_RATE_HZ", "MoonshineModel"]

SAMPLE_RATE_HZ: Final = 16_000

# The engine fails with an internal error between 40 and 65 ms, and answers noise of 100 ms with "You". No word that a
# recogniser can use is shorter than this (the shortest of 40 recorded digits, cut tight, lasts 236 ms).
_MIN_AUDIO_MS: Final = 200
# Speech with a peak of 16 steps of 16-bit audio still comes out almost right; under 8 (-72 dBFS) nothing does, and
# silence or dither is answered with "You".
_SILENCE_PEAK: Final = 2.0**-12
# Cost grows faster than length (5 s: 54 ms of CPU a second, 40 s: 103) and at 88 s in one piece it repeats itself
# without end, so long audio goes in pieces, each cut at the quietest place of its last five seconds.
_MAX_PIECE_MS: Final = 20_000
# Silence around the audio. Whole files, 1,566 words of recorded speech: 7.7 % wrong without, 6.9 with 100 ms, 6.8 with 200.
# Through sessions, with 350 words of conversation in noise: 9.5 % without, 9.1 with 100, 8.9 with 200.
_PAD_MS: Final = 200
_CUT_SEARCH_MS: Final = 5_000
_CUT_WINDOW_MS: Final = 100

_FORCE_UPDATE: Final = 1  # MOONSHINE_FLAG_FORCE_UPDATE: transcribe all that was added, not only what is due
_BATCH_FILES: Final = ("encoder_model.ort", "decoder_model_merged.ort", "tokenizer.bin")
_STREAMING_FILES: Final = (
    "frontend.ort", "encoder.ort", "adapter.ort", "cross_kv.ort", "decoder_kv.ort", "streaming_config.json",
    "tokenizer.bin",
)  # fmt: skip

ARCHITECTURES: Final = {
    "tiny": _BATCH_FILES,
    "base": _BATCH_FILES,
    "tiny-streaming": _STREAMING_FILES,
    "base-streaming": _STREAMING_FILES,
    "small-streaming": _STREAMING_FILES,
    "medium-streaming": _STREAMING_FILES,
}
"""Architecture name -> the files its model directory must hold."""

Samples = NDArray[np.float32]
_Decoder = Callable[[Any, Samples], str]


class MoonshineModel:
    """
    One Moonshine transcriber, loaded at first use and shared by every thread.

    Args:
        model_dir: Directory with the weights; `None` means the tiny English ones inside `moonshine-voice` 0.1.0.
        arch: Which architecture these weights are, a key of `ARCHITECTURES`.

    Raises:
        ValueError: `arch` is not known, or another than "tiny" has no `model_dir`.
        FileNotFoundError: `model_dir` does not exist or lacks a file of that architecture.

    Example:
        >>> model = MoonshineModel()
        >>> model.transcribe(np.zeros(16_000, np.float32))
        ''
        >>> model.close()
    """

    def __init__(self, model_dir: str | None = None, arch: str = "tiny") -> None:
        if arch not in ARCHITECTURES:
            raise ValueError(f"Moonshine has no architecture {arch!r}. Use one of {', '.join(ARCHITECTURES)}.")
        if model_dir is None and arch != "tiny":
            raise ValueError(
                f"arch={arch!r} needs model_dir: moonshine-voice 0.1.0 ships weights for arch='tiny' only. "
                f"Give the directory that holds {', '.join(ARCHITECTURES[arch])}."
            )
        self._arch = arch
        self._model_dir = None if model_dir is None else Path(model_dir).expanduser()
        if self._model_dir is not None:
            _check_files(self._model_dir, arch)
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None

    def load(self) -> None:
        """
        Load engine and weights now, so that the first call does not pay for it (0.5 s of CPU, 170 MB).

        Raises:
            ModuleNotFoundError: `moonshine-voice` is not installed.
            FileNotFoundError: The installed `moonshine-voice` has no weights inside.
            RuntimeError: The engine refused the weights.
        """
        with self._lock:
            self._get()

    def transcribe(self, samples: Samples) -> str:
        """
        Return the words in `samples`.

        Any number of threads may call this at once; the interpreter lock is released while the engine works. A call
        that has begun cannot be stopped. On sound without speech the engine invents a word ("You"): ask a voice
        activity detector first. Only what is plainly no speech is caught here.

        Args:
            samples: One utterance, float32 in -1..1, shape (n,), 16 kHz, with about 300 ms before and after the speech.

        Returns:
            The text, or '' for audio under 200 ms, silence, and answers without a letter or digit ("♪♪♪").

        Raises:
            ValueError: `samples` is not a one-dimensional array of floats.
            RuntimeError: The engine failed.
            ModuleNotFoundError, FileNotFoundError: As for `load`.
        """
        if samples.ndim != 1 or samples.dtype.kind != "f":
            raise ValueError(
                f"Got samples of shape {samples.shape} and type {samples.dtype}; expected (n,), float32 in -1..1. "
                "Divide 16-bit samples by 32768."
            )
        if len(samples) * 1000 < _MIN_AUDIO_MS * SAMPLE_RATE_HZ or np.abs(samples).max() < _SILENCE_PEAK:
            return ""
        with self._lock:
            loaded = self._get()
            loaded.in_use += 1
        try:
            pieces = _pieces(np.ascontiguousarray(samples, np.float32))
            pad = _PAD_MS * SAMPLE_RATE_HZ // 1000
            texts = [loaded.decode(loaded.transcriber, np.pad(piece, pad)) for piece in pieces]
        finally:
            with self._lock:
                loaded.in_use -= 1
                loaded.free_if_idle()
        text = " ".join(" ".join(texts).split())
        return text if any(character.isalnum() for character in text) else ""

    def close(self) -> None:
        """
        Free the engine, once the calls under way have returned. Never waits; may be repeated.

        The next call to `transcribe` loads it anew.
        """
        with self._lock:
            loaded, self._loaded = self._loaded, None
            if loaded is not None:
                loaded.closed = True
                loaded.free_if_idle()

    def _get(self) -> _Loaded:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def _load(self) -> _Loaded:
        engine = _import_engine()
        model_dir = self._model_dir or _packaged_weights(engine)
        architecture = engine.string_to_model_arch(self._arch)
        # Its own voice activity detector adds ghost words and drops real ones: 10.6 % errors with it, 3.3 % without.
        options = {"vad_threshold": "0", "return_audio_data": "false"}
        try:
            return _Loaded(engine.Transcriber(str(model_dir), architecture, options=options))
        except engine.MoonshineError as error:
            raise RuntimeError(
                f"Moonshine could not load the {self._arch!r} weights in {model_dir}: {error} "
                "Check that `arch` names the architecture of these files, and that they are whole."
            ) from error


class _Loaded:
    """The native transcriber, how to call it, and how many calls are inside."""

    def __init__(self, transcriber: Any) -> None:
        self.transcriber = transcriber
        self.decode = _decoder_for(transcriber)
        self.in_use = 0
        self.closed = False

    def free_if_idle(self) -> None:
        if self.closed and self.in_use == 0:
            self.transcriber.close()


def _import_engine() -> Any:
    try:
        return importlib.import_module("moonshine_voice")
    except ModuleNotFoundError as error:
        if error.name != "moonshine_voice":
            raise
        raise ModuleNotFoundError(
            "The package moonshine-voice is not installed. Run: pip install moonshine-voice==0.1.0", name=error.name
        ) from error


def _packaged_weights(engine: Any) -> Path:
    model_dir = Path(engine.get_model_path("tiny-en"))
    try:
        _check_files(model_dir, "tiny")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"moonshine-voice {engine.__version__} has no weights inside (releases after 0.1.0 download them). "
            "Run: pip install moonshine-voice==0.1.0, or give model_dir."
        ) from error
    return model_dir


def _check_files(model_dir: Path, arch: str) -> None:
    if not model_dir.is_dir():
        raise FileNotFoundError(
            f"The model directory {model_dir} does not exist. "
            f"Give the directory that holds {', '.join(ARCHITECTURES[arch])}."
        )
    missing = [name for name in ARCHITECTURES[arch] if not (model_dir / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{model_dir} lacks {', '.join(missing)}, which the {arch!r} architecture needs. "
            "Give the right `arch` for this directory, or complete it."
        )


def _pieces(samples: Samples) -> Iterator[Samples]:
    """Cut long audio at quiet places, so that no piece is over 20 s."""
    longest, search, window = (ms * SAMPLE_RATE_HZ // 1000 for ms in (_MAX_PIECE_MS, _CUT_SEARCH_MS, _CUT_WINDOW_MS))
    while len(samples) > longest:
        tail = samples[longest - search : longest].reshape(-1, window)
        quietest = int(np.square(tail).sum(axis=1).argmin())
        cut = longest - search + quietest * window + window // 2
        yield samples[:cut]
        samples = samples[cut:]
    yield samples


def _decoder_for(transcriber: Any) -> _Decoder:
    # The native way needs two private names of the Python wrapper. A release without them works as well, but copies the
    # samples through a Python list, holding the interpreter lock meanwhile (27 ms for 10 s of audio).
    return _decode_native if hasattr(transcriber, "_lib") and hasattr(transcriber, "_handle") else _decode_public


def _decode_native(transcriber: Any, samples: Samples) -> str:
    """One stream of its own per utterance: results of the shared transcriber are overwritten by other threads."""
    library, handle = transcriber._lib, transcriber._handle
    transcript_type = importlib.import_module("moonshine_voice.moonshine_api").TranscriptC
    stream = library.moonshine_create_stream(handle, 0)
    _check(library, stream)
    try:
        _check(library, library.moonshine_start_stream(handle, stream))
        pointer = samples.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        _check(
            library,
            library.moonshine_transcribe_add_audio_to_stream(handle, stream, pointer, len(samples), SAMPLE_RATE_HZ, 0),
        )
        # Read before any stop: stopping first loses the text.
        out = ctypes.POINTER(transcript_type)()
        _check(library, library.moonshine_transcribe_stream(handle, stream, _FORCE_UPDATE, ctypes.byref(out)))
        transcript = out.contents
        lines = [ctypes.string_at(transcript.lines[i].text) for i in range(transcript.line_count)]
    finally:
        library.moonshine_free_stream(handle, stream)
    return " ".join(line.decode("utf-8", "replace") for line in lines)


def _decode_public(transcriber: Any, samples: Samples) -> str:
    # An endless update interval: add_audio() would otherwise transcribe once more by itself.
    stream = transcriber.create_stream(update_interval=float("inf"))
    try:
        stream.start()
        stream.add_audio(samples.tolist(), SAMPLE_RATE_HZ)
        return " ".join(line.text for line in stream.update_transcription(_FORCE_UPDATE).lines)
    finally:
        stream.close()


def _check(library: Any, code: int) -> None:
    if code < 0:
        reason = (library.moonshine_error_to_string(code) or b"unknown error").decode("utf-8", "replace")
        raise RuntimeError(
            f"Moonshine failed with {code} ({reason}); its own report is on stderr. Another utterance may well succeed."
        )
