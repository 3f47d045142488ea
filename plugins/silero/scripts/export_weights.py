"""Write beluga_voice_silero/silero16k.npz from the model file that the silero-vad package ships.

Needed once per release of the weights, by a maintainer, never by a user of the plugin:

    pip install numpy onnx
    pip install --no-deps silero-vad==6.2.3        # without its dependencies: only one file of it is read
    python scripts/export_weights.py

Source: `silero_vad/data/silero_vad_16k_op15.onnx` in the MIT-licensed silero-vad 6.2.3 wheel. Do not take
`silero_vad_16k.safetensors` beside it: it holds other weights, whose probabilities differ by up to 0.45.

The script refuses any other file (by its SHA-256), and writes the same bytes at each run. Beside the weights it writes
`silero16k.npz.sha256`, in the form that `sha256sum --check` reads and that the plugin checks when it loads them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import zipfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

SOURCE_SHA256 = "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49"
TARGET = Path(__file__).parents[1] / "beluga_voice_silero" / "silero16k.npz"
STFT = "model.stft.forward_basis_buffer"
NAMES = {
    "model.encoder.0.reparam_conv": "conv1",
    "model.encoder.1.reparam_conv": "conv2",
    "model.encoder.2.reparam_conv": "conv3",
    "model.encoder.3.reparam_conv": "conv4",
    "model.decoder.rnn": "lstm_cell",
    "model.decoder.decoder.2": "final_conv",
}


def find_source() -> Path:
    """Return the ONNX file of the installed silero-vad package, without importing it (that would import torch)."""
    package = importlib.util.find_spec("silero_vad")
    if package is None or package.origin is None:
        raise SystemExit("silero-vad is not installed. Run: pip install --no-deps silero-vad==6.2.3")
    source = Path(package.origin).parent / "data" / "silero_vad_16k_op15.onnx"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    if digest != SOURCE_SHA256:
        raise SystemExit(
            f"{source.name} has SHA-256 {digest}, expected {SOURCE_SHA256} (silero-vad 6.2.3). "
            "If newer weights are wanted, change SOURCE_SHA256 and make tests/reference.npz again."
        )
    return source


def read_weights(source: Path) -> dict[str, np.ndarray]:
    """Return the learned arrays under the short names that the plugin uses, as float32 in their published shapes."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(source).graph.initializer}
    check_stft(tensors.pop(STFT))
    weights = {}
    for name, array in tensors.items():
        layer, parameter = name.rsplit(".", 1)
        weights[f"{NAMES[layer]}.{parameter}"] = array.astype("<f4")
    return weights


def check_stft(basis: np.ndarray) -> None:
    """Refuse weights whose first layer is not a plain Fourier transform, which the plugin computes with numpy's FFT."""
    samples, bins = np.arange(256), np.arange(129)[:, None]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * samples / 256)
    fourier = hann * np.exp(-2j * np.pi * bins * samples / 256)
    error = np.abs(basis[:, 0] - np.concatenate([fourier.real, fourier.imag])).max()
    if error > 1e-7:
        raise SystemExit(f"The first layer is {error:.1e} off a Hann-windowed Fourier transform: export it too.")


def pack(weights: dict[str, np.ndarray]) -> bytes:
    """Return the bytes of an .npz archive that depend on the weights alone: sorted, uncompressed, with a fixed date."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(weights):
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # else the byte differs between Windows and the rest
            array = io.BytesIO()
            np.lib.format.write_array(array, np.ascontiguousarray(weights[name]), version=(1, 0), allow_pickle=False)
            archive.writestr(entry, array.getvalue())
    return packed.getvalue()


def main() -> None:
    """Write the weights and their checksum, and print both."""
    weights = read_weights(find_source())
    packed = pack(weights)
    digest = hashlib.sha256(packed).hexdigest()
    TARGET.write_bytes(packed)
    TARGET.with_name(TARGET.name + ".sha256").write_text(f"{digest}  {TARGET.name}\n", encoding="ascii", newline="\n")
    for name in sorted(weights):
        print(f"{name:24} {weights[name].shape}")
    print(f"{TARGET.name}: {len(packed):,} bytes, SHA-256 {digest}")


if __name__ == "__main__":
    main()
