"""The torch model gives the numpy model's probabilities, and torch is needed by nobody else."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from beluga_voice_silero.model import SileroModel
from beluga_voice_silero.model_torch import TorchSileroModel

REFERENCE = np.load(Path(__file__).parent / "reference.npz")
STREAMS = REFERENCE["pcm"].astype(np.float32) / 32768
PUBLISHED = REFERENCE["probabilities"]
PROCESSOR_TOLERANCE = 5e-5
"""Measured below 1e-5; see TOLERANCE in test_silero_model.py."""
GPU_TOLERANCE = 1e-3


@pytest.fixture(name="torch")
def _torch() -> Any:
    return pytest.importorskip("torch", reason="the torch backend is an extra: pip install beluga-voice-silero[torch]")


def hear(model: Any, count: int) -> np.ndarray:
    """Return the probabilities of `count` streams, all of them in each call: shape (count, 80)."""
    chosen = np.arange(count) % len(STREAMS)
    states = [model.new_state() for _ in chosen]
    return np.stack([model.probabilities(STREAMS[chosen, i], states) for i in range(STREAMS.shape[1])], axis=1)


@pytest.mark.parametrize("count", [1, 4, 150])
def test_equals_the_published_model(torch: Any, count: int) -> None:
    """On the processor, for one stream and for many in one batch."""
    expected = PUBLISHED[np.arange(count) % len(STREAMS)]
    assert np.abs(hear(TorchSileroModel(), count) - expected).max() <= PROCESSOR_TOLERANCE


def test_equals_the_published_model_on_a_gpu(torch: Any) -> None:
    """On a CUDA device, for many streams in one batch."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    answers = hear(TorchSileroModel(device="cuda"), 150)
    assert np.abs(answers - PUBLISHED[np.arange(150) % len(STREAMS)]).max() <= GPU_TOLERANCE


def test_a_stream_may_move_between_the_models(torch: Any) -> None:
    """Both keep the same state, so a stream begun on one goes on in the other."""
    first, second = SileroModel(), TorchSileroModel()
    state = first.new_state()
    answers = [(first, second)[i % 2].probabilities(STREAMS[1, i : i + 1], [state])[0] for i in range(80)]
    assert np.abs(answers - PUBLISHED[1]).max() <= PROCESSOR_TOLERANCE


def test_refuses_the_same_mistakes(torch: Any) -> None:
    """The checks are those of the numpy model, and an empty batch is an empty answer."""
    model = TorchSileroModel()
    state = model.new_state()
    with pytest.raises(ValueError, match="twice"):
        model.probabilities(STREAMS[0, :2], [state, state])
    assert model.probabilities(np.empty((0, 512), np.float32), []).shape == (0,)


def test_importing_the_module_does_not_import_torch() -> None:
    """Torch takes seconds and hundreds of megabytes; only a `TorchSileroModel` asks for it."""
    program = "import sys, beluga_voice_silero.model_torch; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
def test_without_torch_the_message_says_what_to_install() -> None:
    """The error names the extra and the backend that needs nothing."""
    with pytest.raises(ImportError, match=r"pip install \"beluga-voice-silero\[torch\]\".*backend=\"numpy\""):
        TorchSileroModel()
