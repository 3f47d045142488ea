"""When speech during a reply interrupts it: the rule alone, window by window."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice.barge_in import BargeIn, Verdict
from beluga_voice.frames import SpeechProbability, SpeechStarted
from beluga_voice.settings import BargeInOptions
from beluga_voice.vad import Options, SpeechGate

WINDOW_MS = 32.0
PAUSE, CUT, GO_ON = Verdict.PAUSE, Verdict.CUT, Verdict.GO_ON


def judge(probabilities, options=None, unheard=False, gate=None):
    """The verdicts on a line whose windows have these probabilities: (end of window in ms, verdict); stops at a cut."""
    gate = gate or Options()
    rule = BargeIn(options or BargeInOptions(), gate.threshold)
    gating, verdicts = SpeechGate(gate), []
    for number, probability in enumerate(probabilities):
        start_ms, end_ms = number * WINDOW_MS, (number + 1) * WINDOW_MS
        window = SpeechProbability(probability, start_ms, WINDOW_MS)
        for frame in [window, *gating.feed(probability, start_ms, end_ms)]:
            verdict = rule.feed(frame, unheard=unheard)
            if verdict is not None:
                verdicts.append((end_ms, verdict, rule.speech_start_ms))
            if verdict is CUT:
                return verdicts
    return verdicts


def windows(ms):
    return round(ms / WINDOW_MS)


def test_speech_pauses_at_64_ms_and_cuts_at_200():
    """The first window that reaches each bound decides; the start told is the onset."""
    assert judge([0.0] * 10 + [0.9] * 30) == [(384.0, PAUSE, 320.0), (544.0, CUT, 320.0)]


def test_a_cough_pauses_and_the_reply_goes_on_after_the_false_alarm_time():
    verdicts = judge([0.9] * 4 + [0.0] * 100)
    assert [verdict for _, verdict, _ in verdicts] == [PAUSE, GO_ON]
    assert verdicts[1][0] - 4 * WINDOW_MS == pytest.approx(1_000, abs=WINDOW_MS)


def test_nothing_heard_yet_needs_no_more_than_sure_speech():
    """Before the reply sounds speech that is sure cuts at once, and what was only suspected holds nothing up."""
    assert [verdict for _, verdict, _ in judge([0.9] * 10, unheard=True)] == [PAUSE, CUT]
    verdicts = judge([0.9] * 3 + [0.0] * 20, unheard=True)
    assert [verdict for _, verdict, _ in verdicts] == [PAUSE, GO_ON]
    assert verdicts[1][0] == 4 * WINDOW_MS


def test_speech_already_sure_when_the_reply_is_made_cuts_by_itself():
    """No suspicion came before: the start of speech is enough to pause, or to cut an unheard reply."""
    started = SpeechStarted(128.0, 0.0, 0.0)
    assert BargeIn(BargeInOptions()).feed(started, unheard=False) is PAUSE
    assert BargeIn(BargeInOptions()).feed(started, unheard=True) is CUT


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_loud_is_what_the_vad_calls_speech(threshold):
    """Just over the threshold cuts; just under it is quiet, and a paused reply goes on."""
    over, under = threshold + 0.05, threshold - 0.05
    gate = Options(threshold=threshold)
    assert judge([over] * 20, gate=gate)[-1][1] is CUT
    assert judge([over] * 3 + [under] * 60, gate=gate)[-1][1] is GO_ON


lines = st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=12).map(
    lambda runs: [0.9 if loud else 0.05 for loud, count in runs for _ in range(count)]
)


@given(lines, st.sampled_from([0, 100, 200, 400]), st.sampled_from([0, 300, 1_000]), st.booleans())
def test_it_is_never_stuck_and_never_hasty(line, min_speech_ms, false_alarm_ms, unheard):
    """Pause and go on alternate; a cut has its speech behind it; quiet at the end lets every paused reply go on."""
    options = BargeInOptions(min_speech_ms=min_speech_ms, false_alarm_ms=false_alarm_ms)
    verdicts = judge(line + [0.0] * windows(2_000), options, unheard)
    kinds = [verdict for _, verdict, _ in verdicts]
    paused = False
    for at_ms, verdict, start_ms in verdicts:
        if verdict is CUT:
            assert at_ms - start_ms >= (0 if unheard else min_speech_ms)
            assert at_ms - start_ms >= Options().min_speech_ms
            spoken = line[int(start_ms / WINDOW_MS) : int(at_ms / WINDOW_MS)]
            assert spoken[0] > 0.5
            assert spoken[-1] > 0.5
        else:
            assert (verdict is PAUSE) == (not paused)
            paused = verdict is PAUSE
    assert CUT in kinds or not paused


@given(lines)
def test_long_speech_is_always_an_interruption(line):
    """A second of speech cuts whatever was before it."""
    assert judge(line + [0.0] * 50 + [0.9] * windows(1_000))[-1][1] is CUT
