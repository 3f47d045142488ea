"""What words spoken into a reply mean, and whether a sound is the reply itself come back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice.audio import Audio, resample
from beluga_voice.echo import EchoEar
from beluga_voice.overheard import is_backchannel, meaning, repeats, words
from beluga_voice.settings import BACKCHANNELS, BargeInOptions

RATE_HZ = 16_000
SAID = "You can borrow up to ten books at a time, and keep them for three weeks."


@pytest.mark.parametrize(
    "text", ["mm-hm", "Mm hm.", "MMHM!", "uh-huh, yeah", "Okay. Okay, okay!", "All right, I see.", "right…", "Yeah"]
)
def test_a_backchannel_is_known_however_it_is_written(text):
    """Case, punctuation, hyphens and repetition make no difference."""
    assert meaning(text, BargeInOptions()) == "backchannel"


@pytest.mark.parametrize("text", ["no", "yeah but", "okay, stop", "wait", "all", "see", "mm-hm what"])
def test_one_other_word_makes_it_an_interruption(text):
    assert meaning(text, BargeInOptions()) == "interruption"


def test_the_list_can_be_changed_and_emptied():
    german = BargeInOptions(ignore=("ja", "genau", "ach so"))
    assert meaning("Ja, ach so!", german) == "backchannel"
    assert meaning("yeah", german) == "interruption"
    assert meaning("mm-hm", BargeInOptions(ignore=())) == "interruption"


@pytest.mark.parametrize("text", ["", " ", "...", "?!"])
def test_nothing_understood_means_nothing(text):
    assert meaning(text, BargeInOptions()) == ""


def test_too_few_words_are_told_apart():
    options = BargeInOptions(min_words=3)
    assert meaning("wait a", options) == "few"
    assert meaning("wait a moment", options) == "interruption"


@pytest.mark.parametrize(
    ("text", "is_echo"),
    [
        ("up to ten books at a time", True),
        ("you can bother up to ten books", True),  # as a recogniser mishears it
        ("keep them for three week", True),
        ("can I keep them longer", False),
        ("ten books", False),  # so few words may be an answer in the agent's own
        ("weeks three for them keep", False),  # not in order
    ],
)
def test_speech_that_repeats_the_reply_is_an_echo(text, is_echo):
    assert (meaning(text, BargeInOptions(), SAID) == "echo") is is_echo
    assert meaning(text, BargeInOptions(echo_guard=False), SAID) == "interruption"


def test_what_was_said_long_ago_does_not_come_back():
    long_ago = SAID + " " + "The reading room on the second floor is quiet and you need no card to work there at all."
    assert meaning("you can borrow up to ten books", BargeInOptions(), long_ago) == "interruption"


texts = st.text(max_size=60)


@given(texts, texts)
def test_any_text_has_a_meaning(text, said):
    assert meaning(text, BargeInOptions(), said) in {"", "backchannel", "echo", "interruption"}
    assert all(word == word.casefold() and word for word in words(text))


@given(st.lists(st.sampled_from(BACKCHANNELS), min_size=1, max_size=8))
def test_any_run_of_backchannels_is_one(said):
    assert is_backchannel(words(" ".join(said)), BACKCHANNELS)


@given(st.integers(0, 12), st.integers(3, 12))
def test_whatever_is_cut_out_of_the_reply_repeats_it(start, count):
    heard = words(SAID)[start : start + count]
    assert repeats(heard, words(SAID)[: start + count + 3])


def voice(seed, seconds=2.0):
    """A sound with the ups and downs of speech."""
    rng = np.random.default_rng(seed)
    count = round(seconds * RATE_HZ)
    noise = np.convolve(rng.normal(0, 1, count), np.hanning(12), "same")
    return noise * 2_000 * (1 + np.sin(np.arange(count) / 700 + seed))


def pcm(samples):
    return np.clip(samples, -32768, 32767).astype("<i2").tobytes()


def ear(samples, rate_hz=RATE_HZ):
    heard = EchoEar()
    data = pcm(samples)
    for at in range(0, len(data), rate_hz // 25):
        heard.hear(data[at : at + rate_hz // 25], rate_hz)
    return heard


def test_the_reply_come_back_is_known_by_its_sound():
    """20 dB down, late, over the line's own noise, after 64 ms of it; another voice is none."""
    said, late = voice(1), 2_400
    line = np.random.default_rng(9).normal(0, 10, len(said))
    for at_ms in (64, 128, 320, 900):
        now = late + at_ms * 16
        heard = line[:now].copy()
        heard[late:] += said[: now - late] / 10
        assert ear(heard).hears(pcm(said[:now]), RATE_HZ)
        other = line[:now].copy()
        other[late:] += voice(2)[: now - late] / 10
        assert not ear(other).hears(pcm(said[:now]), RATE_HZ)


def test_a_caller_who_speaks_over_the_echo_is_no_echo():
    said, now = voice(1), 24_000
    heard = np.zeros(now)
    heard[2_400:] = said[: now - 2_400] / 10
    heard[now - 1_600 :] += voice(3)[:1_600]
    assert not ear(heard).hears(pcm(said[:now]), RATE_HZ)


def test_the_line_may_be_heard_and_spoken_at_different_rates():
    said, now = voice(1), 24_000
    heard = np.zeros(now)
    heard[2_400:] = said[: now - 2_400] / 10
    wide = resample(Audio(pcm(said[:now]), RATE_HZ), 24_000)
    assert ear(heard).hears(wide.pcm, 24_000)


def test_quiet_is_no_echo_and_nothing_played_has_none():
    assert not ear(np.zeros(8_000)).hears(pcm(voice(1)), RATE_HZ)
    assert not ear(voice(1)).hears(b"", RATE_HZ)
    assert not EchoEar().hears(pcm(voice(1)), RATE_HZ)
