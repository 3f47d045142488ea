"""Moonshine as a recogniser of beluga-voice: options, threads and lifetimes around `model.MoonshineModel`.

>>> MoonshineSTT().options.threads
2
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakSet

import attrs

from beluga_voice.audio import Audio, resample, to_float
from beluga_voice.engine import WorkPool
from beluga_voice.errors import InvalidRequestError, OptionError, OverloadedError, ProviderError
from beluga_voice.frames import Transcript
from beluga_voice.options import build, option
from beluga_voice.stt import STT, Options, STTCapabilities

from .model import ARCHITECTURES, SAMPLE_RATE_HZ, MoonshineModel

if TYPE_CHECKING:
    from typing import Self

__all__ = ["MoonshineOptions", "MoonshineSTT"]

T = TypeVar("T")

OWNER: Final = "stt 'moonshine'"

STREAMS_A_CORE: Final = 10  # callers who speak a third of the time, with the voice and the server on the same cores

# What the model raises -> what a session is told; the first that fits.
ERRORS: Final[tuple[tuple[type[Exception], type[ProviderError]], ...]] = (
    (MemoryError, OverloadedError),
    (ValueError, InvalidRequestError),  # audio that is no whole number of samples
    (Exception, ProviderError),  # the engine failed, or its weights do not load: another recogniser may do it
)


def _cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@attrs.frozen
class MoonshineOptions(Options):
    """Options of Moonshine: those of every recogniser, and which weights."""

    model_dir: str = option("", "a directory with other Moonshine weights; empty: the packaged tiny English ones")
    arch: str = option("tiny", "what the weights in model_dir are", choices=tuple(ARCHITECTURES))
    threads: int = option(2, "how many utterances are worked on at once; more wait", at_least=1, at_most=64)
    max_streams: int = option(0, f"sessions it serves at once; 0: {STREAMS_A_CORE} for each core", at_least=0)


class MoonshineSTT(STT):
    """Moonshine on the CPU: English, whole utterances, one model for all sessions.

    The model is loaded when the engine is entered (a session does so), else at the first call: 0.5 s, in a thread. An
    utterance is worked on in a thread as well. One that has begun cannot be stopped: cancelling ends the wait at once,
    the thread runs out and its text is dropped.

    Copies made by `with_options` share model and threads, freed when the last copy that used them is closed. A copy
    with another `model_dir`, `arch` or `threads` has its own (165 MB).

    Args:
        options: see `MoonshineOptions`.

    Attributes:
        pool: the threads; `pool.calls` and `pool.busy_ms` tell what they did.

    Raises:
        OptionError: an option does not fit, the packaged weights do not know the language, or `model_dir` lacks a file.
        ModuleNotFoundError: `moonshine-voice` is not installed.

    Example:
        >>> async def main():
        ...     async with MoonshineSTT() as engine:
        ...         return (await engine.transcribe(audio.read("question.wav"))).text
    """

    Options = MoonshineOptions
    capabilities = STTCapabilities(sample_rate_hz=SAMPLE_RATE_HZ, quick=True)

    def __init__(self, **options: Any) -> None:
        self.options: MoonshineOptions = build(MoonshineOptions, options, OWNER)
        if find_spec("moonshine_voice") is None:
            raise ModuleNotFoundError("run: pip install moonshine-voice==0.1.0", name="moonshine_voice")
        _check_language(self.options)
        self.max_streams = self.options.max_streams or STREAMS_A_CORE * _cores()
        self._own_model()

    def _own_model(self) -> None:
        self._model = _model(self.options)
        self.pool = WorkPool(self.options.threads, "moonshine")
        self._in_use: WeakSet[MoonshineSTT] = WeakSet()  # who used model and pool, and was not closed since

    def with_options(self, **changes: Any) -> Self:
        """The same recogniser with other options; see the class for what it shares.

        Raises:
            OptionError: as for the class.
        """
        other = super().with_options(**changes)
        _check_language(other.options)
        other.max_streams = other.options.max_streams or STREAMS_A_CORE * _cores()
        if _weights(other.options) != _weights(self.options):
            other._own_model()
        return other

    @property
    def wait_ms(self) -> float:
        """How long an utterance would wait for a thread now, by how long those before took."""
        pool = self.pool
        ahead = pool.waiting - pool.threads + 1
        return max(ahead, 0) / pool.threads * pool.busy_ms / max(pool.calls, 1)

    async def prewarm(self) -> None:
        """Load the model in a thread.

        Raises:
            ProviderError: the weights do not load.
        """
        await self._run(self._model.load)

    async def transcribe(self, audio: Audio) -> Transcript:
        """The words of one utterance, at any rate, with about 300 ms before and after the speech.

        Returns:
            A final transcript without confidence or word times; no text for silence.

        Raises:
            ProviderError: the engine failed.
            InvalidRequestError: the audio is no whole number of samples.
            OverloadedError: there is not enough memory.
        """
        return Transcript(await self._run(_text, self._model, audio), language=self.options.language)

    async def aclose(self) -> None:
        """Wait for what is under way, end the threads and free the model, unless a copy of this engine uses them."""
        self._in_use.discard(self)
        if self._in_use:
            return
        try:
            await self.pool.aclose()
        finally:
            await asyncio.to_thread(self._model.close)  # 30 ms

    async def _run(self, function: Callable[..., T], *args: Any) -> T:
        self._in_use.add(self)
        try:
            return await self.pool.run(function, *args)
        except Exception as error:
            told = next(told for raised, told in ERRORS if isinstance(error, raised))
            raise told(f"stt {self.name!r}: {error}", provider=self.name, kind="stt") from error


def _text(model: MoonshineModel, audio: Audio) -> str:
    if audio.sample_rate_hz != SAMPLE_RATE_HZ:
        audio = resample(audio, SAMPLE_RATE_HZ)
    return model.transcribe(to_float(audio.pcm))


def _weights(options: MoonshineOptions) -> tuple[str, str, int]:
    return options.model_dir, options.arch, options.threads


def _model(options: MoonshineOptions) -> MoonshineModel:
    try:
        return MoonshineModel(options.model_dir or None, options.arch)
    except (ValueError, FileNotFoundError) as error:
        raise OptionError(f"{OWNER}: {error}") from error


def _check_language(options: MoonshineOptions) -> None:
    if not options.model_dir and re.split("[-_]", options.language.lower())[0] != "en":
        raise OptionError(
            f"{OWNER}: option 'language' is {options.language!r}; expected 'en' or one of its regions, like 'en-GB': "
            "the packaged weights know English only. Choose another recogniser, or give other weights with model_dir."
        )
