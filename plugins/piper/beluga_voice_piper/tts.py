"""Piper as a voice of beluga-voice: options, a thread and lifetimes around `voice.PiperModel`.

>>> PiperTTS(speed=1.1).options.volume
1.0
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakSet

import attrs

from beluga_voice.engine import WorkPool
from beluga_voice.errors import InvalidRequestError, OptionError, OverloadedError, ProviderError
from beluga_voice.frames import AudioOut
from beluga_voice.options import build, option
from beluga_voice.tts import TTS, Options, TTSCapabilities

from .voice import PiperModel

if TYPE_CHECKING:
    from typing import Self

__all__ = ["PiperOptions", "PiperTTS"]

T = TypeVar("T")

OWNER: Final = "tts 'piper'"

# What the model raises -> what a session is told; the first that fits.
ERRORS: Final[tuple[tuple[type[Exception], type[ProviderError]], ...]] = (
    (MemoryError, OverloadedError),
    (ValueError, InvalidRequestError),
    (Exception, ProviderError),  # the runtime failed, or the voice does not load: another voice may do it
)


@attrs.frozen
class PiperOptions(Options):
    """Options of Piper: those of every voice, of which `voice` stays empty, and how it speaks."""

    voice_path: str = option("", 'a voice\'s .onnx file, its .onnx.json beside it; empty: the packaged voice "joe"')
    speed: float = option(1.0, "1.0 is the voice's own pace, 2.0 twice it", at_least=0.25, at_most=4.0)
    volume: float = option(1.0, "0 to 1, where 1 is full range", at_least=0.0, at_most=1.0)
    speaker_id: int | None = option(None, "which speaker of a voice that has several, from 0", at_least=0)


class PiperTTS(TTS):
    """Piper on the CPU: natural, sentence by sentence, one voice in memory for all sessions.

    The voice is loaded when the engine is entered (a session does so), else at the first call: 1 s, in a thread. One
    sentence at a time is made, in a thread, and given away whole. One that has begun cannot be stopped: cancelling ends
    the wait at once, the thread runs out and its sound is dropped.

    Copies made by `with_options` share voice and thread, freed when the last copy that used them is closed. A copy with
    another `voice_path` has its own (120 MB).

    Args:
        options: see `PiperOptions`.

    Attributes:
        pool: the thread; `pool.calls` and `pool.busy_ms` tell what it did.

    Raises:
        OptionError: an option does not fit, the voice file does not exist, or the voice has no such speaker.
        ModuleNotFoundError: `piper-tts`, or the packaged voice where none was named, is not installed.

    Example:
        >>> async def main():
        ...     async with PiperTTS(speed=1.2) as engine:
        ...         return (await engine.synthesize("Good morning.")).sample_rate_hz
        >>> asyncio.run(main())
        22050
    """

    Options = PiperOptions
    capabilities = TTSCapabilities()

    def __init__(self, **options: Any) -> None:
        self.options: PiperOptions = build(PiperOptions, options, OWNER)
        if find_spec("piper") is None:
            raise ModuleNotFoundError("run: pip install piper-tts", name="piper")
        self._own_model()
        _check(self.options, self._model)

    def _own_model(self) -> None:
        self._model = _model(self.options)
        self.pool = WorkPool(1, "piper")
        self._in_use: WeakSet[PiperTTS] = WeakSet()  # who used model and pool, and was not closed since

    def with_options(self, **changes: Any) -> Self:
        """The same engine with other options; see the class for what it shares.

        Raises:
            OptionError: as for the class.
        """
        other = super().with_options(**changes)
        if other.options.voice_path != self.options.voice_path:
            other._own_model()
        _check(other.options, other._model)
        return other

    async def prewarm(self) -> None:
        """Load the voice in a thread.

        Raises:
            ProviderError: the voice does not load.
        """
        await self._run(self._model.load)

    async def synthesize_stream(self, texts: AsyncIterator[str]) -> AsyncIterator[AudioOut]:
        """The sound of each text, a sentence a piece. Texts with nothing to say give nothing.

        Raises:
            ProviderError: the runtime failed.
            OverloadedError: there is not enough memory.
        """
        options = self.options
        async for text in texts:
            untold = text
            sentences = self._model.synthesize(
                text, speed=options.speed, volume=options.volume, speaker_id=options.speaker_id
            )
            while (sentence := await self._run(next, sentences, None)) is not None:
                pcm, rate_hz = sentence
                yield AudioOut(pcm, rate_hz, untold)
                untold = ""

    async def aclose(self) -> None:
        """Wait for the sentence under way, end the thread, free the voice, unless a copy of this engine uses them."""
        self._in_use.discard(self)
        if self._in_use:
            return
        try:
            await self.pool.aclose()
        finally:
            await asyncio.to_thread(self._model.close)  # 50 ms

    async def _run(self, function: Callable[..., T], *args: Any) -> T:
        self._in_use.add(self)
        try:
            return await self.pool.run(function, *args)
        except Exception as error:
            told = next(told for raised, told in ERRORS if isinstance(error, raised))
            raise told(f"tts {self.name!r}: {error}", provider=self.name, kind="tts") from error


def _model(options: PiperOptions) -> PiperModel:
    try:
        return PiperModel(options.voice_path or None)
    except FileNotFoundError as error:
        raise OptionError(f"{OWNER}: {error}") from error


def _check(options: PiperOptions, model: PiperModel) -> None:
    if options.voice:
        raise OptionError(
            f"{OWNER}: option 'voice' is {options.voice!r}, but Piper's voices are files. Leave it out and name the "
            ".onnx file with voice_path."
        )
    try:
        count = model.speaker_count()
    except RuntimeError as error:
        raise OptionError(f"{OWNER}: {error}") from error
    if options.speaker_id is not None and options.speaker_id >= count:
        raise OptionError(
            f"{OWNER}: option 'speaker_id' is {options.speaker_id}; expected 0 to {count - 1}: this voice has {count} "
            "speaker(s)."
        )
