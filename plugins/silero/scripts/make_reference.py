"""Write tests/reference.npz: made-up audio, and the probabilities that the published ONNX model gives for it.

Needed once per release of the weights, by a maintainer:

    pip install numpy soxr onnxruntime==1.32.0 espeakng-loader==0.2.4
    pip install --no-deps silero-vad==6.2.3
    python scripts/make_reference.py

The speech is espeak-ng's, so it may be in the repository: nobody's voice and nobody's recording.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import espeakng_loader
import numpy as np
import onnxruntime
import soxr
from export_weights import find_source

TARGET = Path(__file__).parents[1] / "tests" / "reference.npz"
SAMPLE_RATE_HZ = 16_000
WINDOW_SAMPLES = 512
WINDOWS = 80
"""For each stream: 2.56 s."""


def speak(text: str, voice: str) -> np.ndarray:
    """Return `text` spoken by espeak-ng: float32 at 16,000 Hz, within -1..1."""
    espeak = ctypes.CDLL(espeakng_loader.get_library_path())
    rate_hz = espeak.espeak_Initialize(2, 60, espeakng_loader.get_data_path().encode(), 0)  # 2: synchronous
    parts: list[np.ndarray] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def take(samples: ctypes._Pointer[ctypes.c_short], count: int, _events: object) -> int:
        if samples and count:
            parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    espeak.espeak_SetSynthCallback(take)
    espeak.espeak_SetVoiceByName(voice.encode())
    sentence = text.encode() + b"\0"
    espeak.espeak_Synth(sentence, len(sentence), 0, 1, 0, 1, None, None)
    espeak.espeak_Synchronize()
    return soxr.resample(np.concatenate(parts).astype(np.float32) / 32768, rate_hz, SAMPLE_RATE_HZ)


def make_streams() -> dict[str, np.ndarray]:
    """Return four streams of int16, shape (80, 512), by what they hold."""
    rng = np.random.default_rng(16_000)
    length = WINDOWS * WINDOW_SAMPLES
    time_s = np.arange(length) / SAMPLE_RATE_HZ

    def place(audio: np.ndarray, start_ms: int) -> np.ndarray:
        stream = np.zeros(length)
        start = start_ms * SAMPLE_RATE_HZ // 1000
        audio = audio[: length - start]
        stream[start : start + len(audio)] = audio
        return stream

    def noise(level: float) -> np.ndarray:
        return level * rng.standard_normal(length)

    hum = 0.01 * np.sin(2 * np.pi * 50 * time_s)
    tone = 0.3 * np.sin(2 * np.pi * 440 * time_s) * (time_s > 0.8) * (time_s < 1.4)
    bursts = noise(0.2) * (time_s > 1.6) * (np.sin(2 * np.pi * 4 * time_s) > 0)
    streams = {
        "clean": place(0.6 * speak("Yes, please. Half past seven.", "en-us"), 300),
        "noisy": place(0.4 * speak("My name is Ann Smith, with an I.", "en-gb-x-rp"), 200) + noise(0.02),
        "faint": place(0.04 * speak("One. Two. Three.", "en-us"), 500) + hum + noise(0.0005),
        "no speech": tone + bursts,
    }
    return {
        name: np.clip(np.round(32768 * audio), -32768, 32767).astype(np.int16).reshape(WINDOWS, WINDOW_SAMPLES)
        for name, audio in streams.items()
    }


def ask(session: onnxruntime.InferenceSession, stream: np.ndarray) -> np.ndarray:
    """Return the published model's probability for each window of one stream."""
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32)
    probabilities = []
    for window in stream[:, None].astype(np.float32) / 32768:
        audio = np.concatenate([context, window], axis=1)
        inputs = {"input": audio, "state": state, "sr": np.array(SAMPLE_RATE_HZ)}
        probability, state = session.run(None, inputs)
        context = window[:, -64:]
        probabilities.append(probability.item())
    return np.array(probabilities, np.float32)


def main() -> None:
    """Write the reference file and print what is in it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(find_source()), options)
    streams = make_streams()
    probabilities = {name: ask(session, stream) for name, stream in streams.items()}
    np.savez_compressed(
        TARGET,
        names=np.array(list(streams)),
        pcm=np.stack(list(streams.values())),
        probabilities=np.stack(list(probabilities.values())),
    )
    for name, values in probabilities.items():
        print(f"{name:10} speech in {np.mean(values >= 0.5):4.0%} of windows, {values.min():.4f} to {values.max():.4f}")
    print(f"{TARGET.name}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
