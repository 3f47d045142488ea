"""eSpeak NG, the real library: what is said, when each word sounds, and that no text or caller can break it."""

import ctypes
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("espeakng_loader")

from beluga_voice_espeak import synth
from beluga_voice_espeak.synth import SAMPLE_RATE_HZ, SpokenWord, speak, variants, voices


def say(text: str, **options) -> tuple[np.ndarray, list[SpokenWord]]:
    pcm = bytearray()
    words: list[SpokenWord] = []
    assert speak(text, lambda chunk: not pcm.extend(chunk), on_word=words.append, **options)
    return np.frombuffer(bytes(pcm), "<i2").astype(np.int32), words


def loud_ms(samples: np.ndarray) -> float:
    """When the first sound comes."""
    return float(np.argmax(np.abs(samples) > 500)) * 1000 / SAMPLE_RATE_HZ


def length_ms(samples: np.ndarray) -> float:
    return len(samples) * 1000 / SAMPLE_RATE_HZ


def test_a_sentence_takes_a_plausible_time_and_is_audible():
    samples, _ = say("The quick brown fox jumps over the lazy dog.")
    assert 2000 < length_ms(samples) < 4000
    assert np.abs(samples).max() > 5000


def test_audio_comes_in_pieces_of_at_most_60_ms():
    sizes: list[int] = []
    speak("One, two, three. Four.", lambda chunk: not sizes.append(len(chunk)))
    assert len(sizes) > 20
    assert max(sizes) <= 2 * (SAMPLE_RATE_HZ * 61 // 1000)


def test_words_are_those_of_the_text_and_end_where_the_audio_ends():
    text = "Hello there, Mr. Smith. It cost 42 dollars \u2014 na\u00efve \u201cquoted\u201d, don't you? Yes: 3.14!"
    samples, words = say(text)
    assert [word.text for word in words] == text.split()
    assert words[-1].end_ms == pytest.approx(length_ms(samples), abs=1)
    for earlier, later in itertools.pairwise(words):
        assert earlier.start_ms <= earlier.end_ms <= later.start_ms


def test_a_word_sounds_when_it_is_said_to():
    """After each full stop there is silence, so the next sound must be the next word."""
    samples, words = say("Stop. Go. Dig. Bad.")
    for word in words:
        start = word.start_ms * SAMPLE_RATE_HZ // 1000
        if start:
            assert np.abs(samples[start - 800 : start]).max() < 100
        assert loud_ms(samples[start:]) < 60


def test_a_number_is_one_word_for_as_long_as_it_is_read_out():
    _, words = say("a 1,234,567.89 b")
    number = words[1]
    assert number.text == "1,234,567.89"
    assert number.end_ms - number.start_ms > 3000


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=60))
def test_every_word_of_any_text_is_reported_in_order(text):
    samples, words = say(text)
    assert [word.text for word in words] == text.split()
    times = [time for word in words for time in (word.start_ms, word.end_ms)]
    assert times == sorted(times)
    assert all(time <= length_ms(samples) + 1 for time in times)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60), st.sampled_from(["en-us", "de", "cmn", "ar", "hi", "ja", "ru", "en-us+f3"]))
def test_any_text_is_survived_by_any_voice(text, voice):
    say(text, voice=voice)


@pytest.mark.parametrize("text", ["", "   ", "\n\n", "\0", "\x1b\x07", "\ud83d"])
def test_text_with_nothing_to_say_gives_nothing(text):
    samples, words = say(text)
    assert (len(samples), words) == (0, [])


def test_a_nul_does_not_cut_the_text_off():
    _, words = say("before\0after")
    assert [word.text for word in words] == ["before", "after"]
    assert words[1].end_ms - words[1].start_ms > 100


@pytest.mark.parametrize("text", ["word " * 2000, "x" * 10_000, "\U0001f642" * 2000, "1" * 10_000, "<b>" * 3000])
def test_ten_thousand_characters_are_spoken(text):
    samples, words = say(text)
    assert length_ms(samples) > 1000
    assert [word.text for word in words] == text.split()


def test_stopping_ends_the_audio_at_once_and_the_next_text_is_whole():
    chunks: list[bytes] = []

    def third_is_enough(chunk: bytes) -> bool:
        chunks.append(chunk)
        return len(chunks) < 3

    assert speak("One two three four five six seven. Eight.", third_is_enough) is False
    assert len(chunks) == 3
    _, words = say("nine ten")
    assert [word.text for word in words] == ["nine", "ten"]
    assert words[0].start_ms == 0


def test_stopping_tells_the_library_to_stop_working():
    """Else a long text would keep everybody else's waiting."""
    utterance = synth._Utterance("hello", lambda chunk: len(chunk) > 4, None)
    no_events = (synth._Event * 1)()
    samples = (ctypes.c_short * 4)()
    assert utterance.receive(ctypes.addressof(samples), 4, no_events) == 0
    assert utterance.receive(ctypes.addressof(samples), 2, no_events) == 1
    assert utterance.receive(ctypes.addressof(samples), 4, no_events) == 1


def test_what_on_audio_raises_reaches_the_caller_and_ends_the_speech():
    calls: list[int] = []

    def broken(chunk: bytes) -> bool:
        calls.append(len(chunk))
        raise LookupError("no line")

    with pytest.raises(LookupError, match="no line"):
        speak("One two three four five.", broken)
    assert len(calls) == 1
    assert len(say("still there")[0]) > 0


def test_a_stop_reports_no_word_that_was_not_made():
    words: list[SpokenWord] = []
    chunks: list[bytes] = []
    speak(
        "One two three four five six seven.",
        lambda chunk: not chunks.append(chunk) and len(chunks) < 9,
        on_word=words.append,
    )
    made_ms = sum(map(len, chunks)) / 2 * 1000 / SAMPLE_RATE_HZ
    assert words
    assert all(word.end_ms <= made_ms for word in words)


def test_threads_at_once_each_get_their_own_words():
    texts = [f"Caller number {n} says {word}." for n, word in enumerate(("apple", "pear", "plum", "fig") * 5)]
    ready = threading.Barrier(4)

    def call(text: str) -> list[str]:
        if not ready.broken:
            ready.wait(5)
        return [word.text for word in say(text)[1]]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, texts)) == [text.split() for text in texts]


def test_rate_pitch_and_volume_are_heard():
    text = "The quick brown fox jumps over the lazy dog."
    plain, _ = say(text)
    assert len(say(text, rate_wpm=350)[0]) < 0.7 * len(plain)
    assert np.abs(say(text, volume=25)[0]).max() < 0.5 * np.abs(plain).max()
    assert not np.array_equal(say(text, pitch=90)[0][:20_000], plain[:20_000])


def test_options_of_one_call_do_not_leak_into_the_next():
    text = "The quick brown fox jumps over the lazy dog."
    plain, _ = say(text)
    say("Guten Tag.", voice="de", rate_wpm=400, pitch=90, volume=20)
    again, _ = say(text)
    assert len(again) == pytest.approx(len(plain), rel=0.01)
    assert np.abs(again).max() == pytest.approx(np.abs(plain).max(), rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rate_wpm": 20}, "rate_wpm is 20"), ({"pitch": 101}, "pitch is 101"), ({"volume": -1}, "volume is -1")],
)
def test_a_number_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        say("hello", **options)


@pytest.mark.parametrize("voice", ["xx", "", "en_us", "mb-us1", "de\0", "\u00e9\u00f1", "x" * 500])
def test_an_unknown_voice_is_refused_with_some_that_exist(voice):
    with pytest.raises(ValueError, match=r"no voice .* Some of its 1\d\d: .*\w"):
        say("hello", voice=voice)


def test_the_nearest_voices_are_offered():
    with pytest.raises(ValueError, match="en-us,"):
        say("hello", voice="en_us")


def test_an_unknown_variant_is_refused():
    """The library itself would take it in silence."""
    with pytest.raises(ValueError, match="no variant 'zzz' for voice 'en-us'"):
        say("hello", voice="en-us+zzz")


def test_every_voice_that_is_listed_can_be_chosen_by_language_and_by_name():
    for voice in voices():
        say("1", voice=voice.language)
        say("1", voice=voice.name)
    assert len(say("hello there")[0]) > 10_000


@pytest.mark.parametrize("voice", ["EN-US", "en-gb", "en-GB+f3", "English (Great Britain)"])
def test_a_voice_is_found_by_language_in_either_case_and_by_name(voice):
    assert len(say("hello there", voice=voice)[0]) > 1000


def test_variants_change_the_sound():
    assert "f3" in variants()
    assert not np.array_equal(say("hello there")[0][:5000], say("hello there", voice="en-us+f3")[0][:5000])
