"""Moonshine, the real engine: the words are right, whoever asks and however many at once."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

moonshine_voice = pytest.importorskip("moonshine_voice")

from beluga_voice_moonshine import model as engine  # noqa: E402
from beluga_voice_moonshine.model import SAMPLE_RATE_HZ, MoonshineModel  # noqa: E402


def words(text: str) -> str:
    return re.sub("[^a-z ]", "", text.lower())


@pytest.fixture(scope="module")
def recording() -> np.ndarray:
    """44 s of read Dickens that comes inside moonshine-voice, at 16 kHz."""
    samples, rate_hz = moonshine_voice.load_wav_file(moonshine_voice.get_assets_path() / "two_cities.wav")
    at = np.arange(len(samples) * SAMPLE_RATE_HZ // rate_hz) * rate_hz / SAMPLE_RATE_HZ
    return np.interp(at, np.arange(len(samples)), samples).astype(np.float32)


@pytest.fixture(scope="module")
def opening(recording: np.ndarray) -> np.ndarray:
    return recording[: 6 * SAMPLE_RATE_HZ]


@pytest.fixture(scope="module")
def model():
    model = MoonshineModel()
    yield model
    model.close()


OPENING = "it was the best of times it was the worst of times it was the age of wisdom"


def test_speech_becomes_its_words(model, opening):
    assert words(model.transcribe(opening)) == OPENING


def test_threads_at_once_get_the_same_texts_as_one_after_the_other(model, recording):
    spans = ((0, 2), (1, 3), (6, 2), (9, 3), (20, 2))
    clips = [recording[start * SAMPLE_RATE_HZ :][: length * SAMPLE_RATE_HZ] for start, length in spans]
    alone = [model.transcribe(clip) for clip in clips]
    assert len(set(alone)) == len(clips)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(model.transcribe, clips * 2)) == alone * 2


@pytest.mark.parametrize("length_ms", [0, 1, 40, 50, 60, 100, 199])
def test_a_sound_too_short_for_a_word_is_no_text(model, length_ms):
    noise = np.random.default_rng(0).normal(0, 0.1, length_ms * 16).astype(np.float32)
    assert model.transcribe(noise) == ""


@pytest.mark.parametrize("level", [0, 1, 4])
def test_silence_and_dither_are_no_text(model, level):
    silence = np.random.default_rng(0).integers(-level, level + 1, 2 * SAMPLE_RATE_HZ).astype(np.float32) / 32768
    assert model.transcribe(silence) == ""


def test_quiet_speech_is_not_taken_for_silence(model, opening):
    peak = 24  # of 32,768
    quiet = np.round(opening / np.abs(opening).max() * peak).astype(np.float32) / 32768
    assert "best of times" in words(model.transcribe(quiet))


def test_an_answer_without_a_word_is_no_text(model):
    hum = 0.05 * np.sin(2 * np.pi * 50 * np.arange(10 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ).astype(np.float32)
    assert all(character.isalnum() or character in " .,?!'-" for character in model.transcribe(hum))


def test_long_speech_is_heard_to_its_end_without_running_in_circles(model, recording):
    """In one piece, these 55 s end in "it was the age of force" over and over."""
    heard = words(model.transcribe(np.concatenate([recording, recording[: 11 * SAMPLE_RATE_HZ]])))
    assert heard.count("best of times") == 2
    assert heard.count("superlative degree of comparison") == 1
    assert "it was the epoch of belief" in heard[-60:]


def test_long_audio_is_cut_where_it_is_quiet_and_nothing_is_lost():
    samples = np.ones(50 * SAMPLE_RATE_HZ, np.float32)
    quiet = slice(17 * SAMPLE_RATE_HZ, 17 * SAMPLE_RATE_HZ + 3200)
    samples[quiet] = 0
    pieces = list(engine._pieces(samples))
    assert np.array_equal(np.concatenate(pieces), samples)
    assert max(map(len, pieces)) <= 20 * SAMPLE_RATE_HZ
    assert quiet.start < len(pieces[0]) < quiet.stop


@pytest.mark.parametrize(
    "samples", [np.zeros((2, 16_000), np.float32), np.zeros(16_000, np.int16)], ids=["stereo", "16-bit"]
)
def test_a_wrong_array_is_refused_with_the_remedy(model, samples):
    with pytest.raises(ValueError, match="Divide 16-bit samples by 32768"):
        model.transcribe(samples)


def test_float64_and_strided_samples_are_taken(model, opening):
    assert words(model.transcribe(opening.astype(np.float64))) == OPENING
    assert words(model.transcribe(np.repeat(opening, 2)[::2])) == OPENING


def test_every_stream_is_freed_even_when_the_engine_fails(opening):
    """The engine is wrapped, not replaced: it counts the streams that are open."""

    class Counting:
        def __init__(self, library):
            self._library = library
            self.open = 0
            self.failing = False

        def __getattr__(self, name):
            return getattr(self._library, name)

        def moonshine_create_stream(self, *args):
            self.open += 1
            return self._library.moonshine_create_stream(*args)

        def moonshine_free_stream(self, *args):
            self.open -= 1
            return self._library.moonshine_free_stream(*args)

        def moonshine_transcribe_stream(self, *args):
            return -1 if self.failing else self._library.moonshine_transcribe_stream(*args)

    class Borrowed:
        def __init__(self, transcriber):
            self._lib = Counting(transcriber._lib)
            self._handle = transcriber._handle

    with moonshine_voice.Transcriber(
        str(moonshine_voice.get_model_path()), moonshine_voice.ModelArch.TINY, options={"vad_threshold": "0"}
    ) as transcriber:
        borrowed = Borrowed(transcriber)
        assert words(engine._decode_native(borrowed, opening)) == OPENING
        assert borrowed._lib.open == 0
        borrowed._lib.failing = True
        with pytest.raises(RuntimeError, match="failed with -1"):
            engine._decode_native(borrowed, opening)
        assert borrowed._lib.open == 0


def test_the_engine_still_has_the_private_names_of_the_native_way(opening):
    """Fails first when moonshine-voice renames them; users would then get the public way, which copies."""
    with moonshine_voice.Transcriber(
        str(moonshine_voice.get_model_path()), moonshine_voice.ModelArch.TINY, options={"vad_threshold": "0"}
    ) as transcriber:
        assert engine._decoder_for(transcriber) is engine._decode_native

        class PublicOnly:
            create_stream = transcriber.create_stream

        assert engine._decoder_for(PublicOnly()) is engine._decode_public
        assert engine._decode_public(PublicOnly(), opening) == engine._decode_native(transcriber, opening)


def test_after_close_it_is_loaded_anew(opening):
    model = MoonshineModel()
    model.load()
    model.close()
    model.close()
    assert words(model.transcribe(opening)) == OPENING
    model.close()


def test_closing_lets_calls_under_way_finish(opening):
    model = MoonshineModel()
    model.load()
    loaded = model._loaded
    begun, closed = threading.Event(), threading.Event()
    decode = loaded.decode

    def decode_after_the_close(transcriber, samples):
        begun.set()
        assert closed.wait(30)
        return decode(transcriber, samples)

    loaded.decode = decode_after_the_close
    with ThreadPoolExecutor(1) as pool:
        text = pool.submit(model.transcribe, opening)
        assert begun.wait(30)
        model.close()
        assert loaded.transcriber._handle is not None
        closed.set()
        assert words(text.result()) == OPENING
    assert loaded.transcriber._handle is None


def test_a_missing_directory_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist.*encoder_model\.ort"):
        MoonshineModel(str(tmp_path / "nowhere"))


def test_missing_files_are_named(tmp_path: Path):
    (tmp_path / "encoder_model.ort").touch()
    with pytest.raises(FileNotFoundError, match=r"lacks decoder_model_merged\.ort, tokenizer\.bin"):
        MoonshineModel(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"lacks frontend\.ort"):
        MoonshineModel(str(tmp_path), "small-streaming")


def test_a_directory_of_the_users_own_is_used(tmp_path: Path, opening):
    for file in Path(moonshine_voice.get_model_path("tiny-en")).iterdir():
        (tmp_path / file.name).symlink_to(file)
    model = MoonshineModel(str(tmp_path), "tiny")
    assert words(model.transcribe(opening)) == OPENING
    model.close()


def test_files_that_are_no_weights_are_refused_by_name(tmp_path: Path):
    for name in engine.ARCHITECTURES["tiny"]:
        (tmp_path / name).write_bytes(b"no weights")
    with pytest.raises(RuntimeError, match="could not load the 'tiny' weights"):
        MoonshineModel(str(tmp_path)).load()


@pytest.mark.parametrize(("arch", "message"), [("huge", "no architecture 'huge'"), ("base", "needs model_dir")])
def test_an_architecture_that_cannot_be_had_is_refused(arch, message):
    with pytest.raises(ValueError, match=message):
        MoonshineModel(arch=arch)
