"""Silero VAD v6 (16 kHz) in plain numpy: how likely is speech in each 32 ms of audio?

One `SileroModel` serves every stream of a process. Each stream keeps a `State` of 1,280 bytes, and one call answers for
one window of each of many streams, which costs far less than a call per stream.

    >>> model = SileroModel()
    >>> quiet = np.zeros((2, WINDOW_SAMPLES), np.float32)            # one window of each of two streams
    >>> states = [model.new_state(), model.new_state()]
    >>> bool((model.probabilities(quiet, states) < 0.1).all())
    True

The layers, for one window (the weights and their shapes are those of the published model, see NOTICE):

    64 samples of context + 512 + 64 mirrored        640 samples = 5 blocks of 128
    magnitude spectrum, Hann window 256, hop 128     4 frames x 129 bins
    conv1 .. conv4, each 3 taps wide, ReLU           4 x 128, 2 x 64, 1 x 64, 1 x 128
    lstm_cell                                        128
    ReLU, final_conv, sigmoid                        1 probability
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

__all__ = ["SAMPLE_RATE_HZ", "WINDOW_SAMPLES", "SileroModel", "State", "check_batch", "load_weights"]

SAMPLE_RATE_HZ = 16_000
WINDOW_SAMPLES = 512
CONTEXT_SAMPLES = 64
UNITS = 128
STATE_VALUES = 2 * UNITS + CONTEXT_SAMPLES
FRAME = 256
HOP = 128
MAX_CHUNK = 64
"""Most windows computed at once. With 128, glibc gives the larger temporary arrays back to the kernel after each call,
and the page faults cost more than the batch saves: 19 us a window instead of 12 (benchmarks/bench_silero.py)."""

Floats = NDArray[np.float32]
HANN: Floats = np.hanning(FRAME + 1)[:FRAME].astype(np.float32)


class State:
    """What the model remembers of one stream between two windows: 1,280 bytes.

    Made by `new_state`; it belongs to one stream and must not be in two calls at once. The numpy and the torch model
    use the same kind of state.

    Attributes:
        values: 320 float32: the LSTM's hidden (128) and cell values (128), and the last 64 samples heard.
    """

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: Floats = np.zeros(STATE_VALUES, np.float32)

    def reset(self) -> None:
        """Forget everything heard, as at the start of a stream. Right after a gap in the audio."""
        self.values[:] = 0


class SileroModel:
    """Silero VAD on the processor, with numpy alone.

    The weights are read once per process and shared, read-only, by all instances. An instance holds nothing else, so it
    may be used by several threads at once (each with its own states); numpy releases the GIL in the large steps.

    Args:
        one_blas_thread: whether to hold numpy's matrix library to one thread, from now on and in the whole process.
            These products are too small to share: more threads double the processor time, and while another program
            keeps a core busy they wait for each other, so that a batch of 128 was seen to take 340 ms instead of
            1.5 ms. False if other numpy code in the process needs the threads.

    Raises:
        RuntimeError: the weights file is damaged. Reinstall the package.
    """

    def __init__(self, *, one_blas_thread: bool = True) -> None:
        if one_blas_thread:
            threadpool_limits(1, user_api="blas")
        self._layers = _load_layers()

    def new_state(self) -> State:
        """Return the state of a stream of which nothing has been heard."""
        return State()

    def probabilities(self, windows: Floats, states: Sequence[State]) -> Floats:
        """Return the probability of speech in one window of each stream, and update the streams' states in place.

        A stream's answers do not depend on which others share the batch, but for float32 rounding: 2e-7 on average,
        2e-5 at worst. Nothing here waits, but 128 windows take 1.5 ms: give an event loop no more than that at a time,
        as `batch.Batcher` does.

        Args:
            windows: shape (B, 512), float32, the next 32 ms of each stream at 16,000 Hz, within -1..1.
            states: the B states of these streams, each of them once.

        Returns:
            Shape (B,), float32, within 0..1.

        Raises:
            ValueError: a wrong shape or dtype, NaN or infinity in a window, or a state given twice. Nothing changed.

        Example:
            >>> model, stream = SileroModel(), State()
            >>> model.probabilities(np.zeros((1, 512), np.float32), [stream]).shape
            (1,)
        """
        check_batch(windows, states)
        count = len(states)
        probabilities = np.empty(count, np.float32)
        # Chunks of equal size: a last chunk of one window would cost as much as six in a full one.
        chunks = -(-count // MAX_CHUNK)
        for chunk in range(chunks):
            part = slice(count * chunk // chunks, count * (chunk + 1) // chunks)
            probabilities[part] = self._step(windows[part], states[part])
        return probabilities

    def _step(self, windows: Floats, states: Sequence[State]) -> Floats:
        layers = self._layers
        memory = np.concatenate([state.values for state in states]).reshape(-1, STATE_VALUES)
        hidden, cell, context = memory[:, :UNITS], memory[:, UNITS : 2 * UNITS], memory[:, 2 * UNITS :]

        encoded = _spectrum(context, windows)
        encoded = _conv(encoded, 4, layers["conv1.weight"], layers["conv1.bias"], stride=1)
        encoded = _conv(encoded, 4, layers["conv2.weight"], layers["conv2.bias"], stride=2)
        encoded = _conv(encoded, 2, layers["conv3.weight"], layers["conv3.bias"], stride=2)
        encoded = _conv(encoded, 1, layers["conv4.weight"], layers["conv4.bias"], stride=1)

        gates = np.concatenate([encoded, hidden], axis=1) @ layers["lstm_cell.weight"]
        gates += layers["lstm_cell.bias"]
        np.tanh(gates, out=gates)
        enter, forget, candidate, leave = (gates[:, start : start + UNITS] for start in range(0, 4 * UNITS, UNITS))
        for gate in (enter, forget, leave):
            _finish_sigmoid(gate)
        cell *= forget
        cell += enter * candidate
        np.multiply(leave, np.tanh(cell), out=hidden)
        context[:] = windows[:, -CONTEXT_SAMPLES:]
        for state, row in zip(states, memory, strict=True):
            state.values[:] = row

        spoken = np.maximum(hidden, 0) @ layers["final_conv.weight"]
        spoken += layers["final_conv.bias"]
        return _finish_sigmoid(np.tanh(spoken))


def check_batch(windows: Floats, states: Sequence[State]) -> None:
    """Refuse what would give wrong answers or spoil a state; both backends call it first.

    Raises:
        ValueError: see `SileroModel.probabilities`.
    """
    if windows.dtype != np.float32 or windows.ndim != 2 or windows.shape[1] != WINDOW_SAMPLES:
        raise ValueError(
            f"windows has shape {windows.shape} and dtype {windows.dtype}, expected (streams, {WINDOW_SAMPLES}) and "
            "float32. Divide 16-bit samples by 32768 as float32, and cut them into windows of 512."
        )
    if len(windows) != len(states):
        raise ValueError(f"{len(windows)} windows came with {len(states)} states, expected one state for each window.")
    if len({id(state) for state in states}) != len(states):
        raise ValueError("A state is in the batch twice. Give a stream's windows one per call, in the order heard.")
    # A NaN would stay in the stream's state, and that stream would be deaf from then on.
    finite = np.isfinite(windows)
    if not finite.all():
        row = int(np.argmin(finite.all(axis=1)))
        raise ValueError(f"Window {row} holds NaN or infinity, expected samples within -1..1. Check what makes them.")


@lru_cache(maxsize=1)
def load_weights() -> dict[str, Floats]:
    """Return the published weights by name, read-only, read once per process.

    Raises:
        RuntimeError: `silero16k.npz` is not the file whose checksum was published with it.
    """
    folder = resources.files(__package__)
    packed = (folder / "silero16k.npz").read_bytes()
    wanted = (folder / "silero16k.npz.sha256").read_text("ascii").split()[0]
    got = hashlib.sha256(packed).hexdigest()
    if got != wanted:
        raise RuntimeError(
            f"silero16k.npz is damaged: its SHA-256 is {got}, expected {wanted}. "
            "Reinstall with: pip install --force-reinstall --no-deps beluga-voice-silero"
        )
    with np.load(io.BytesIO(packed)) as archive:
        weights = {name: archive[name] for name in archive.files}
    for array in weights.values():
        array.setflags(write=False)
    return weights


@lru_cache(maxsize=1)
def _load_layers() -> dict[str, Floats]:
    """Return the weights laid out for `rows @ weight`."""
    weights = load_weights()
    layers: dict[str, Floats] = {}
    for name in ("conv1", "conv2", "conv3", "conv4"):
        kernel = weights[f"{name}.weight"]  # (out, in, 3)
        layers[f"{name}.weight"] = kernel.transpose(2, 1, 0).reshape(-1, len(kernel))
        layers[f"{name}.bias"] = weights[f"{name}.bias"]
    # sigmoid(x) = (1 + tanh(x / 2)) / 2, which cannot overflow as exp can. The inner half is put into the weights here,
    # for three of the four gates; `_finish_sigmoid` does the rest.
    half = np.repeat(np.array([0.5, 0.5, 1, 0.5], np.float32), UNITS)
    both = np.concatenate([weights["lstm_cell.weight_ih"], weights["lstm_cell.weight_hh"]], axis=1)
    layers["lstm_cell.weight"] = both.T * half
    layers["lstm_cell.bias"] = (weights["lstm_cell.bias_ih"] + weights["lstm_cell.bias_hh"]) * half
    layers["final_conv.weight"] = weights["final_conv.weight"].reshape(UNITS) * half[0]
    layers["final_conv.bias"] = weights["final_conv.bias"] * half[0]
    layers = {name: np.ascontiguousarray(array) for name, array in layers.items()}
    for array in layers.values():
        array.setflags(write=False)
    return layers


def _spectrum(context: Floats, windows: Floats) -> Floats:
    """Return the magnitudes of four overlapping frames of each window, side by side: shape (B, 4 * 129)."""
    audio = np.empty((len(windows), 5 * HOP), np.float32)
    audio[:, :64] = context
    audio[:, 64:576] = windows
    audio[:, 576:] = audio[:, 574:510:-1]
    blocks = audio.reshape(-1, 5, HOP)
    frames = np.empty((len(windows), 4, FRAME), np.float32)
    np.multiply(blocks[:, :-1], HANN[:HOP], out=frames[..., :HOP])
    np.multiply(blocks[:, 1:], HANN[HOP:], out=frames[..., HOP:])
    magnitudes: Floats = np.abs(np.fft.rfft(frames))
    return magnitudes.reshape(len(windows), -1)


def _conv(rows: Floats, steps: int, weight: Floats, bias: Floats, stride: int) -> Floats:
    """Return a convolution over time, 3 taps wide and padded by one step at either end, then ReLU.

    Each output step is one product of the input steps it sees, which lie side by side in `rows`, with the taps for
    them. At the ends a tap sees only padding, which is zero, so it is left out: a sixth of the work of conv1, two of
    the three taps of conv4.

    Args:
        rows: shape (B, steps * channels).
        weight: shape (3 * channels, outputs), the first tap's rows first.
    """
    channels = rows.shape[1] // steps
    outputs = weight.shape[1]
    starts = range(-1, steps - 1, stride)
    result = np.empty((len(rows), len(starts), outputs), np.float32)
    for index, start in enumerate(starts):
        first, last = max(start, 0), min(start + 3, steps)
        taps = weight[(first - start) * channels : (last - start) * channels]
        np.matmul(rows[:, first * channels : last * channels], taps, out=result[:, index])
    result += bias
    np.maximum(result, 0, out=result)
    return result.reshape(len(rows), -1)


def _finish_sigmoid(tanh_of_half: Floats) -> Floats:
    tanh_of_half += 1
    tanh_of_half *= 0.5
    return tanh_of_half
