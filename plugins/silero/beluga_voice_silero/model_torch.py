"""The model of `model.py` with PyTorch, for a GPU or for those who have torch anyway.

The same weights file, the same states and the same two methods; probabilities equal within 1e-3 (5e-5 on the
processor, see tests/test_silero_torch.py). torch is imported when a model is made, never before. Nothing is downloaded.

On the processor the numpy model is the faster one (README).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from beluga_voice_silero.model import CONTEXT_SAMPLES, FRAME, HOP, UNITS, Floats, State, check_batch, load_weights

__all__ = ["TorchSileroModel"]


class TorchSileroModel:
    """Silero VAD with PyTorch: all windows of a call are one batch on one device.

    The states stay in main memory as they are in `SileroModel`: 1,280 bytes a stream go to the device and back at each
    window, so a stream can come and go without leaving anything there.

    Args:
        device: a torch device name: "cpu", "cuda", "cuda:1".

    Raises:
        ImportError: torch is not installed.
        RuntimeError: torch does not have that device, or the weights file is damaged.

    Example:
        model = TorchSileroModel(device="cuda")
        states = [model.new_state() for _ in range(500)]
        probabilities = model.probabilities(windows, states)      # (500, 512) float32 -> (500,) float32
    """

    def __init__(self, device: str = "cpu") -> None:
        try:
            import torch  # type: ignore[import-not-found,unused-ignore]
        except ImportError as error:
            raise ImportError(
                'The silero backend "torch" needs the torch package, which is not installed. '
                'Install it with: pip install "beluga-voice-silero[torch]", or use backend="numpy".'
            ) from error
        self._torch: Any = torch
        self._device = torch.device(device)
        self._hann = torch.hann_window(FRAME, device=self._device)
        # A copy, as torch cannot wrap the read-only arrays that the numpy model shares.
        self._weights = {name: torch.tensor(array, device=self._device) for name, array in load_weights().items()}

    def new_state(self) -> State:
        """Return the state of a stream of which nothing has been heard."""
        return State()

    def probabilities(self, windows: Floats, states: Sequence[State]) -> Floats:
        """Return the probability of speech in one window of each stream, and update the streams' states in place.

        Arguments, result and errors are those of `SileroModel.probabilities`.
        """
        check_batch(windows, states)
        if not states:
            return np.empty(0, np.float32)
        memory = np.stack([state.values for state in states])
        with self._torch.inference_mode():
            probabilities, recurrent = self._step(
                self._torch.from_numpy(np.concatenate([memory[:, 2 * UNITS :], windows], axis=1)).to(self._device),
                self._torch.from_numpy(memory[:, : 2 * UNITS]).to(self._device),
            )
        memory[:, : 2 * UNITS] = recurrent.cpu().numpy()
        memory[:, 2 * UNITS :] = windows[:, -CONTEXT_SAMPLES:]
        for state, row in zip(states, memory, strict=True):
            state.values[:] = row
        result: Floats = probabilities.cpu().numpy()
        return result

    def _step(self, audio: Any, recurrent: Any) -> tuple[Any, Any]:
        torch, weights, linear = self._torch, self._weights, self._torch.nn.functional.linear
        audio = torch.nn.functional.pad(audio, (0, CONTEXT_SAMPLES), mode="reflect")
        encoded = torch.fft.rfft(audio.unfold(1, FRAME, HOP) * self._hann).abs()
        for name, stride in (("conv1", 1), ("conv2", 2), ("conv3", 2), ("conv4", 1)):
            encoded = self._conv(encoded, name, stride)
        hidden, cell = recurrent.chunk(2, dim=1)
        gates = linear(encoded.squeeze(1), weights["lstm_cell.weight_ih"], weights["lstm_cell.bias_ih"])
        gates += linear(hidden, weights["lstm_cell.weight_hh"], weights["lstm_cell.bias_hh"])
        enter, forget, candidate, leave = gates.chunk(4, dim=1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
        hidden = leave.sigmoid() * cell.tanh()
        spoken = linear(hidden.relu(), weights["final_conv.weight"].squeeze(2), weights["final_conv.bias"])
        return spoken.sigmoid().squeeze(1), torch.cat([hidden, cell], dim=1)

    def _conv(self, steps: Any, name: str, stride: int) -> Any:
        """Return a convolution over time, 3 taps wide, then ReLU: (B, steps, in) -> (B, steps / stride, out).

        As a product of matrices: torch lets cuDNN round the inputs of a convolution to 10 bits (TF32), but not those of
        a product, unless the process asks for it.
        """
        functional = self._torch.nn.functional
        seen = functional.pad(steps, (0, 0, 1, 1)).unfold(1, 3, stride).flatten(2)
        return functional.linear(seen, self._weights[f"{name}.weight"].flatten(1), self._weights[f"{name}.bias"]).relu()
