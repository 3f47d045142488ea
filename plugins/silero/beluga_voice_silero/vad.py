"""Silero as a VAD of beluga-voice: options, lifetimes, and a stream for each line.

    >>> SileroVAD(threshold=0.6).options.backend
    'numpy'
"""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import attrs
import numpy as np

from beluga_voice.engine import WorkPool
from beluga_voice.errors import AudioFormatError, InvalidRequestError, OptionError
from beluga_voice.options import build, option
from beluga_voice.vad import VAD, Options, VADCapabilities, VADStream
from beluga_voice_silero.batch import Batcher, Model

if TYPE_CHECKING:
    from typing import Self

    from beluga_voice_silero.model import State

__all__ = ["SileroOptions", "SileroVAD"]

WINDOW_BYTES = 1024


@attrs.frozen
class SileroOptions(Options):
    """Options of the Silero VAD: those of every VAD, and where the model is computed."""

    backend: str = option("numpy", "what computes the model", choices=("numpy", "torch"))
    device: str = option("cpu", 'where the torch backend computes: "cpu", "cuda", "cuda:1"')

    def __attrs_post_init__(self) -> None:
        if self.backend == "numpy" and self.device != "cpu":
            raise ValueError(f"device is {self.device!r}, but backend 'numpy' has only 'cpu'. Add backend=\"torch\".")
        if self.backend == "torch" and find_spec("torch") is None:
            raise ValueError(
                "backend 'torch' needs the torch package, which is not installed. "
                'Install it: pip install "beluga-voice-silero[torch]", or leave the backend out.'
            )


class _Shared:
    """What an engine and the copies `with_options` makes of it have in common: the loaded model, and who entered."""

    def __init__(self) -> None:
        self.batcher: Batcher | None = None
        self.entered: WeakSet[SileroVAD] = WeakSet()


class SileroVAD(VAD):
    """Silero VAD v6: one model for all sessions, their windows answered in batches.

    The model is loaded when the engine is entered (a session does so), in a thread; otherwise at the first stream,
    which then takes 20 ms with numpy and seconds with torch. It is freed when all who entered have left. The windows
    that all sessions ask about in one turn of the event loop are one call of the model: on the loop itself for a model
    on the processor, at most 128 windows (1.5 ms) at a time, and in a thread for a model on a GPU.

    Args:
        options: see `SileroOptions`, like `threshold=0.6` or `backend="torch", device="cuda"`.

    Raises:
        OptionError: an unknown option or a value that does not fit, and when the model is loaded: a device that torch
            does not have.

    Example:
        >>> async def main():
        ...     async with SileroVAD() as engine:
        ...         stream = engine.stream()
        ...         return await stream.probability(bytes(1024))        # 32 ms of silence
        >>> asyncio.run(main()) < 0.1
        True
    """

    capabilities = VADCapabilities(sample_rate_hz=16_000, window_samples=WINDOW_BYTES // 2)
    Options = SileroOptions

    def __init__(self, **options: Any) -> None:
        self.options: SileroOptions = build(SileroOptions, options, "vad 'silero'")
        self._shared = _Shared()

    def with_options(self, **changes: Any) -> Self:
        """The same VAD with other options, sharing the loaded model unless `backend` or `device` changes."""
        other = super().with_options(**changes)
        if (other.options.backend, other.options.device) != (self.options.backend, self.options.device):
            other._shared = _Shared()
        return other

    async def prewarm(self) -> None:
        """Load the model in a thread, unless a copy of this engine has done so."""
        shared = self._shared
        if shared.batcher is None:
            batcher = await asyncio.to_thread(_load, self.options)
            shared.batcher = shared.batcher or batcher
        shared.entered.add(self)

    def stream(self) -> VADStream:
        """A stream for one line, 1.3 KB; it loads the model first if the engine was not entered."""
        shared = self._shared
        if shared.batcher is None:
            shared.batcher = _load(self.options)
        return _SileroStream(shared.batcher)

    async def aclose(self) -> None:
        """Free the model and its thread, unless a copy of this engine is in use."""
        shared = self._shared
        shared.entered.discard(self)
        if not shared.entered and shared.batcher is not None:
            batcher, shared.batcher = shared.batcher, None
            await batcher.aclose()


class _SileroStream(VADStream):
    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._state: State | None = batcher.model.new_state()
        self._asked: asyncio.Future[float] | None = None

    async def probability(self, window: bytes) -> float:
        if len(window) != WINDOW_BYTES:
            raise AudioFormatError(
                f"vad 'silero' got a window of {len(window)} bytes, expected {WINDOW_BYTES}: 512 samples of 16-bit PCM "
                "at 16,000 Hz. Cut the audio with audio.Rechunker(512).",
                wanted=WINDOW_BYTES,
                got=len(window),
            )
        if self._state is None or (self._asked is not None and not self._asked.done()):
            raise _misuse("closed" if self._state is None else "still busy with the window before")
        self._asked = self._batcher.ask(window, self._state)
        return await self._asked

    def close(self) -> None:
        """Forget what was heard; a window that is being answered still is."""
        self._state = None


def _misuse(found: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"this stream of vad 'silero' is {found}; expected one caller at a time, until close(). "
        "Take a stream for each line: engine.stream()",
        provider="silero",
        kind="vad",
    )


def _load(options: SileroOptions) -> Batcher:
    model: Model
    if options.backend == "numpy":
        from beluga_voice_silero.model import SileroModel

        model = SileroModel()
    else:
        model = _load_torch(options.device)
    # The first call is the slowest: FFT plans, memory, and on a GPU its libraries.
    model.probabilities(np.zeros((1, WINDOW_BYTES // 2), np.float32), [model.new_state()])
    on_processor = options.device.split(":")[0] == "cpu"
    return Batcher(model, None if on_processor else WorkPool(1, "silero"))


def _load_torch(device: str) -> Model:
    from beluga_voice_silero.model import load_weights
    from beluga_voice_silero.model_torch import TorchSileroModel

    load_weights()
    try:
        return TorchSileroModel(device)
    except (AssertionError, RuntimeError) as error:
        # torch raises AssertionError for a device that it was built without.
        raise OptionError(
            f"vad 'silero': option 'device' is {device!r}, which torch cannot use ({error}); expected a device of this "
            'machine, like "cpu" or "cuda". See torch.cuda.is_available().'
        ) from error
