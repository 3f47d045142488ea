"""When speech during a reply interrupts it: the rule alone, window by window."""

from __future__ import annotations

import asyncio
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice import Audio, Chain, Session, SessionOptions, tts, turn
from beluga_voice.barge_in import BargeIn, Verdict
from beluga_voice.builtin.memory_transport import MemoryTransport
from beluga_voice.builtin.recorded_line import RecordedLine
from beluga_voice.clock import run_simulated
from beluga_voice.frames import AudioIn, SpeechProbability, SpeechStarted, TextIn, Transcript, Word
from beluga_voice.settings import BargeInOptions
from beluga_voice.stt import STT, STTCapabilities
from beluga_voice.testing import LoudVAD, hold, quiet, speech
from beluga_voice.tts import TTS
from beluga_voice.vad import Options, SpeechGate

WINDOW_MS = 32.0
PAUSE, CUT, GO_ON, ASK = Verdict.PAUSE, Verdict.CUT, Verdict.GO_ON, Verdict.ASK


def judge(probabilities, options=None, unheard=False, gate=None, words=None, late=1, echo=None):
    """The verdicts on a line whose windows have these probabilities: (end of window in ms, verdict); stops at a cut.

    `words` gives what the words mean once asked, after `late` windows, by the time of asking; `echo` the windows that are one.
    """
    gate = gate or Options()
    rule = BargeIn(options or BargeInOptions(), gate.threshold, words=words is not None)
    answers = {}
    gating, verdicts = SpeechGate(gate), []
    for number, probability in enumerate(probabilities):
        start_ms, end_ms = number * WINDOW_MS, (number + 1) * WINDOW_MS
        window = SpeechProbability(probability, start_ms, WINDOW_MS)
        steps = [window, *gating.feed(probability, start_ms, end_ms), *answers.pop(number, ())]
        for step in steps:
            if isinstance(step, str):
                verdict = rule.heard(step)
            else:
                verdict = rule.feed(step, unheard=unheard, echo=lambda at=number: bool(echo and at in echo))
            if verdict is ASK:
                meaning = words(end_ms)
                if meaning is not None:
                    answers.setdefault(number + late, []).append(meaning)
                continue
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


class TestWords:
    """The rule with a recogniser that can be asked. Speech begins at 320 ms."""

    LINE = [0.0] * 10

    def kinds(self, loud_ms, words, options=None, late=1, **rest):
        line = self.LINE + [0.9] * windows(loud_ms) + [0.05] * windows(3_000)
        return [(at, kind) for at, kind, _ in judge(line, options, words=words, late=late, **rest)]

    def test_words_that_interrupt_cut_as_soon_as_the_speech_is_long_enough(self):
        assert self.kinds(1_000, lambda _: "interruption") == [(384.0, PAUSE), (544.0, CUT)]

    def test_a_recogniser_that_is_late_delays_the_cut_by_words_wait_ms_only(self):
        """By default not at all: length decides."""
        assert self.kinds(1_000, lambda _: None) == [(384.0, PAUSE), (544.0, CUT)]
        patient = BargeInOptions(words_wait_ms=400)
        assert self.kinds(1_000, lambda _: "interruption", patient, late=9) == [(384.0, PAUSE), (768.0, CUT)]

    def test_a_backchannel_pauses_and_the_reply_goes_on_when_it_is_over(self):
        """320 ms of "yeah": no cut, and the reply goes on once the VAD says that it ended, not after false_alarm_ms."""
        assert self.kinds(320, lambda _: "backchannel") == [(384.0, PAUSE), (928.0, GO_ON)]

    def test_words_after_a_backchannel_interrupt(self):
        """ "Yeah, but ..." """
        verdicts = self.kinds(1_000, lambda at_ms: "backchannel" if at_ms < 600 else "interruption")
        assert verdicts[-1][1] is CUT
        assert verdicts[-1][0] - 320 < 450

    def test_no_backchannel_is_longer_than_backchannel_ms(self):
        at_ms, kind = self.kinds(2_000, lambda _: "backchannel")[-1]
        assert kind is CUT
        assert at_ms - 320 == pytest.approx(1_000, abs=WINDOW_MS)

    def test_speech_too_short_to_interrupt_does_not_whatever_it_says(self):
        """180 ms with min_speech_ms=200: asked for early, and of no account."""
        verdicts = self.kinds(190, lambda _: "interruption")
        assert [kind for _, kind in verdicts] == [PAUSE, GO_ON]

    def test_fewer_words_than_min_words_let_the_reply_go_on(self):
        options = BargeInOptions(min_words=3)
        assert [kind for _, kind in self.kinds(1_500, lambda _: "few", options)] == [PAUSE, GO_ON]
        cut = self.kinds(1_500, lambda at_ms: "few" if at_ms < 1_000 else "interruption", options)
        assert cut[-1][1] is CUT
        assert cut[-1][0] >= 1_000

    def test_min_words_without_words_is_decided_by_length_in_the_end(self):
        """A recogniser that tells nothing within final_timeout_ms cannot make the agent deaf."""
        assert self.kinds(3_000, lambda _: None, BargeInOptions(min_words=3))[-1][1] is CUT
        assert self.kinds(400, lambda _: None, BargeInOptions(min_words=3))[-1][1] is CUT

    def test_an_echo_pauses_nothing(self):
        assert self.kinds(2_000, lambda _: "interruption", echo=range(0, 200)) == []

    def test_somebody_who_speaks_over_the_echo_interrupts(self):
        """From 1,280 ms on it is a caller: 64 ms of that pause, 200 cut, and the start is theirs."""
        line = self.LINE + [0.9] * 80
        verdicts = judge(line, words=lambda _: "interruption", echo=range(0, 40))
        assert verdicts == [(1_344.0, PAUSE, 1_280.0), (1_504.0, CUT, 1_280.0)]

    def test_a_pause_that_turns_out_to_be_an_echo_ends_at_once(self):
        verdicts = self.kinds(1_000, lambda _: "interruption", echo=range(13, 200))
        assert verdicts == [(384.0, PAUSE), (448.0, GO_ON)]


meanings = st.lists(st.sampled_from([None, "", "few", "backchannel", "echo", "interruption"]), min_size=1, max_size=6)


@given(lines, meanings, st.integers(1, 40), st.sampled_from([0, 2]), st.sets(st.integers(0, 400)), st.booleans())
def test_no_reply_stays_paused_whatever_is_said(line, told, late, min_words, echo, unheard):
    """Any speech, any words however late, any echo: pauses and goings-on alternate, and after quiet nothing is left paused."""
    answers = iter(told * 200)
    options = BargeInOptions(min_words=min_words)
    end = line + [0.0] * windows(4_000)
    verdicts = judge(end, options, unheard, words=lambda _: next(answers, None), late=late, echo=echo)
    kinds = [kind for _, kind, _ in verdicts]
    paused = False
    for at_ms, kind, start_ms in verdicts:
        if kind is CUT:
            assert unheard or at_ms - start_ms >= options.min_speech_ms
        else:
            assert (kind is PAUSE) == (not paused)
            paused = kind is PAUSE
    assert CUT in kinds or not paused


# --- whole conversations ---------------------------------------------------------------------------------------------

YEAH, STOP, HELLO = (speech(ms, seed) for seed, ms in ((11, 400), (12, 500), (14, 800)))
SAYINGS = {YEAH: "Yeah.", STOP: "Stop it.", HELLO: "Hello."}
REPLY = "This is a long answer of very many words that goes on and on. It even has a second sentence as long as the first."


class Knowing(STT):
    """Knows a few utterances by their first 100 ms, wherever they are in what it hears; slow with all but "Hello."."""

    capabilities = STTCapabilities(quick=True)

    def __init__(self, delay_ms=0):
        self.delay_ms = delay_ms

    async def transcribe(self, audio):
        if HELLO[:3_200] not in audio.pcm:
            await asyncio.sleep(self.delay_ms / 1_000)
        found = sorted((audio.pcm.find(sound[:3_200]), text) for sound, text in SAYINGS.items())
        return Transcript(" ".join(text for at, text in found if at >= 0))


async def answer(text, history):
    return REPLY


def call(talk, recogniser=None, barge_in=None, words_first=False, **rest):
    stages = [LoudVAD(), turn.new("silence"), recogniser or Knowing(), answer, tts.new("tone", word_ms=200)]
    if words_first:
        stages[1:3] = stages[2], stages[1]
    return hold(Chain(*stages), quiet(500) + talk, SessionOptions(barge_in=barge_in or BargeInOptions()), **rest)


BEFORE = HELLO + quiet(2_000)  # the reply to it begins at about 2,000 ms


class TestConversations:
    @pytest.mark.parametrize("words_first", [False, True])
    def test_yeah_does_not_stop_the_agent(self, words_first):
        """It pauses, goes on when the word is over, is said to whoever listens, and belongs to nobody."""
        told = call(BEFORE + YEAH + quiet(12_000), words_first=words_first)
        (resumed,) = [event for event in told.events if event.name == "reply_resumed"]
        assert resumed.data["why"] == "backchannel"
        paused_ms = told.times("reply_paused")[0]
        assert resumed.at_ms - paused_ms < 700
        assert [record.user_text for record in told.turns] == ["Hello."]
        assert told.turns[0].heard_text == REPLY
        assert not told.turns[0].interrupted
        assert [event.data["text"] for event in told.events if event.name == "transcript" and event.data["is_final"]] == [
            "Hello."
        ]

    @pytest.mark.parametrize("words_first", [False, True])
    def test_stop_it_stops_the_agent_and_is_the_next_turn(self, words_first):
        told = call(BEFORE + STOP + quiet(12_000), words_first=words_first)
        (cut,) = [event for event in told.events if event.name == "interrupted"]
        onset_ms = 500 + 800 + 2_000
        assert cut.data["speech_start_ms"] == pytest.approx(onset_ms, abs=32)
        assert cut.at_ms - onset_ms < 300
        assert told.times("reply_paused")[0] - onset_ms < 100
        assert [record.user_text for record in told.turns] == ["Hello.", "Stop it."]

    def test_yeah_and_then_something_is_one_turn_with_all_its_words(self):
        """The first word holds the decision open; nothing of it is lost once the rest interrupts."""
        told = call(BEFORE + YEAH + quiet(100) + STOP + quiet(12_000))
        assert [record.user_text for record in told.turns] == ["Hello.", "Yeah. Stop it."]
        assert told.turns[0].interrupted

    def test_words_known_only_when_the_turn_is_over_still_make_a_turn(self):
        """min_words asks for words that a slow recogniser has after the end of turn: the turn is answered all the same."""
        told = call(BEFORE + STOP + quiet(14_000), Knowing(delay_ms=1_100), BargeInOptions(min_words=2))
        assert told.times("interrupted")[0] > 500 + 800 + 2_000 + 500 + 700
        assert [record.user_text for record in told.turns] == ["Hello.", "Stop it."]
        assert told.turns[0].interrupted
        assert not told.turns[1].interrupted
        assert told.turns[1].heard_text == REPLY

    def test_without_a_quick_recogniser_length_decides_as_ever(self):
        class Slow(Knowing):
            capabilities = STTCapabilities()

        told = call(BEFORE + YEAH + quiet(12_000), Slow())
        assert told.turns[0].interrupted
        assert told.times("interrupted")[0] - told.times("reply_paused")[0] == pytest.approx(160, abs=40)

    def test_a_stuck_recogniser_keeps_nobody_waiting(self):
        """It answers after 5 s: the caller interrupts by length, and the agent is silent from 64 ms on."""
        told = call(BEFORE + STOP + quiet(14_000), Knowing(delay_ms=5_000))
        assert told.times("interrupted")[0] - told.times("reply_paused")[0] < 250

    def test_typing_while_a_backchannel_is_undecided_leaves_nothing_behind(self):
        """The typed turn has its own words only."""
        at = [(3_500, lambda session: session.feed(TextIn("typed")))]
        told = call(BEFORE + YEAH + quiet(14_000), at=at)
        assert [record.user_text for record in told.turns] == ["Hello.", "typed"]

    def test_two_backchannels_in_one_reply(self):
        told = call(BEFORE + YEAH + quiet(1_500) + YEAH + quiet(12_000))
        assert [event.data["why"] for event in told.events if event.name == "reply_resumed"] == ["backchannel"] * 2
        assert told.turns[0].heard_text == REPLY


@pytest.mark.parametrize("loud_ms", [80, 240, 400])
def test_a_caller_who_mutes_in_mid_word_leaves_no_reply_paused(loud_ms):
    """The line brings nothing more after some speech into the reply: the gap counts as silence."""

    async def main():
        line, events = MemoryTransport(), []
        chain = Chain(LoudVAD(), turn.new("silence"), Knowing(), answer, tts.new("tone", word_ms=200))
        session = Session(chain, line, SessionOptions(greeting=REPLY), listeners=[events.append])
        running = asyncio.get_running_loop().create_task(session.run())
        for at in range(0, len(quiet(1_000) + YEAH[: loud_ms * 32]), 640):
            line.push(AudioIn((quiet(1_000) + YEAH[: loud_ms * 32])[at : at + 640], 16_000))
            await asyncio.sleep(0.02)
        await asyncio.sleep(12)
        session.close()
        await running
        return [event.name for event in events if event.name in ("reply_paused", "reply_resumed", "interrupted")]

    assert run_simulated(main()) == ["reply_paused", "reply_resumed"]


class EchoLine(RecordedLine):
    """Lets the agent's voice back in, 20 dB down and 150 ms late."""

    def __init__(self, audio, **rest):
        self._said = deque([bytes(640)] * 9, maxlen=9)
        super().__init__(audio, on_audio=lambda _, agent: self._said.append(agent), **rest)

    async def recv(self):
        async for frame in super().recv():
            late = np.frombuffer(b"".join(self._said), "<i2")[-2_400 - 320 : -2_400]
            yield AudioIn((np.frombuffer(frame.pcm, "<i2") + late // 10).astype("<i2").tobytes(), 16_000)


class Noisy(TTS):
    """A voice whose sound never repeats, so that an echo can be told."""

    async def synthesize(self, text):
        return Audio(speech(8_000, seed=5), 16_000)


@pytest.mark.parametrize("guarded", [True, False])
def test_the_agents_own_voice_come_back_stops_nothing(guarded):
    """The guard alone makes the difference; a caller who speaks over the echo is heard, without the agent's words."""

    class Length(STT):
        capabilities = STTCapabilities(quick=True)

        async def transcribe(self, audio):
            return Transcript(f"{audio.duration_ms:.0f}")

    async def main(talk):
        events = []
        chain = Chain(LoudVAD(), turn.new("silence"), Length(), answer, Noisy())
        options = SessionOptions(greeting="Something long.", barge_in=BargeInOptions(echo_guard=guarded))
        session = Session(chain, EchoLine(Audio(talk, 16_000)), options, listeners=[events.append])
        running = asyncio.get_running_loop().create_task(session.run())
        await asyncio.sleep(7)
        session.close()
        await running
        return events, session.counters["echoes"]

    events, echoes = run_simulated(main(quiet(6_500)))
    stopped = [event.name for event in events if event.name in ("reply_paused", "interrupted")]
    assert (stopped == []) is guarded
    assert (echoes > 0) is guarded
    if guarded:
        events, _ = run_simulated(main(quiet(3_000) + STOP + quiet(3_000)))
        (cut,) = [event for event in events if event.name == "interrupted"]
        assert cut.data["speech_start_ms"] == pytest.approx(3_000, abs=64)
        assert cut.at_ms < 3_350
        (heard,) = [event.data["text"] for event in events if event.name == "turn_heard"]
        assert 500 <= float(heard) <= 1_100  # 500 ms of speech and the quiet after it, not 3 s of echo before


class Timed(TTS):
    """Says each sentence in a second and gives the times of its words, all in the second half."""

    async def synthesize_stream(self, texts):
        from beluga_voice.frames import AudioOut

        async for text in texts:
            spoken = text.split()
            each_ms = 1_000 / len(spoken)
            times = tuple(Word(word, 1_000 + n * each_ms, 1_000 + (n + 1) * each_ms) for n, word in enumerate(spoken))
            yield AudioOut(speech(2_000), 16_000, text, times)


def test_heard_text_goes_by_the_word_times_of_the_voice():
    """Cut 900 ms into a sentence whose first word sounds at 1,000: by share half would be heard, by times a single word."""
    chain = Chain(LoudVAD(), turn.new("silence"), Knowing(), answer, Timed())
    by_times = hold(chain, quiet(500) + HELLO + quiet(1_600) + STOP + quiet(12_000)).turns[0]
    assert by_times.interrupted
    assert len(by_times.heard_text.split()) == 1
    by_share = call(HELLO + quiet(1_600) + STOP + quiet(12_000)).turns[0]
    assert len(by_share.heard_text.split()) > 3
    assert REPLY.startswith(by_share.heard_text)
