"""Turn ends: quiet ends a turn, hesitation holds it, and a wish ends it at once."""

from hypothesis import given
from hypothesis import strategies as st

from beluga_voice.builtin.energy_vad import EnergyVAD
from beluga_voice.builtin.silence_turn import SilenceTurn
from beluga_voice.chain import Chain
from beluga_voice.clock import run_simulated
from beluga_voice.engine import Context
from beluga_voice.frames import (
    AudioIn,
    EndTurn,
    SpeechEnded,
    SpeechProbability,
    SpeechStarted,
    TurnEnded,
    TurnEndProposed,
    TurnEndWithdrawn,
)
from beluga_voice.vad import Options, SpeechGate

WINDOW_MS = 32.0


def decided(probabilities, *, wishes=(), **options):
    """What the detector decides on a line; `wishes` are the windows after which the turn is to end at once."""
    stream = SilenceTurn(**options).stream()
    gate = SpeechGate(Options(min_silence_ms=100))
    out = []
    for number, probability in enumerate(probabilities):
        start_ms = number * WINDOW_MS
        window = SpeechProbability(probability, start_ms, WINDOW_MS)
        for frame in (window, *gate.feed(probability, start_ms, window.end_ms)):
            out += stream.feed(frame)
        if number in wishes:
            ended = stream.end_now("push")
            out += [ended] if ended else []
    return out


def windows(*pieces):
    """(ms, probability) pieces as windows."""
    return [probability for length_ms, probability in pieces for _ in range(round(length_ms / WINDOW_MS))]


def of(kind, frames):
    return [frame for frame in frames if isinstance(frame, kind)]


class TestSilence:
    def test_ends_a_turn(self):
        """Enough quiet ends the turn, which knows where its speech began and ended and who decided."""
        [ended] = of(TurnEnded, decided(windows((320, 0.0), (960, 1.0), (2_000, 0.0)), silence_ms=700))
        assert (ended.source, ended.speech_start_ms, ended.speech_end_ms) == ("silence", 320, 1_280)
        assert 700 <= ended.at_ms - ended.speech_end_ms < 700 + WINDOW_MS

    def test_is_proposed_before(self):
        """After `early_ms` the end is proposed, so that the words can be worked out meanwhile."""
        proposed, ended = decided(windows((960, 1.0), (2_000, 0.0)), silence_ms=700, early_ms=250)
        assert isinstance(proposed, TurnEndProposed)
        assert 250 <= proposed.at_ms - ended.speech_end_ms < 250 + WINDOW_MS

    def test_is_not_proposed_when_it_would_come_too_late(self):
        """With `early_ms` beyond `silence_ms` there is no proposal, only the end."""
        assert len(decided(windows((960, 1.0), (2_000, 0.0)), silence_ms=500, early_ms=900)) == 1

    def test_of_a_pause_withdraws_the_proposal(self):
        """Speech after a proposal takes it back, and both parts are one turn."""
        out = decided(windows((640, 1.0), (500, 0.0), (640, 1.0), (2_000, 0.0)), silence_ms=700)
        assert [type(frame) for frame in out] == [TurnEndProposed, TurnEndWithdrawn, TurnEndProposed, TurnEnded]
        assert out[-1].speech_start_ms == 0

    def test_without_speech_ends_nothing(self):
        """A quiet line has no turns, nor has a click."""
        assert decided(windows((5_000, 0.0), (32, 1.0), (5_000, 0.0))) == []


class TestHold:
    def test_a_rising_probability_holds_the_end(self):
        """What may be speech again holds a pending end before it is sure; what was proposed is withdrawn."""
        held = decided(windows((640, 1.0), (640, 0.0), (64, 0.9), (2_000, 0.0)), silence_ms=700)
        plain = decided(windows((640, 1.0), (2_000, 0.0)), silence_ms=700)
        assert held[-1].at_ms > plain[-1].at_ms
        assert of(TurnEndWithdrawn, held)
        assert len(of(TurnEnded, held)) == 1

    def test_does_not_last_for_ever(self):
        """A noise that never becomes speech holds the end no longer than `max_hold_ms`."""
        noise = windows((640, 1.0), (160, 0.0), (10_000, 0.4))
        [ended] = of(TurnEnded, decided(noise, silence_ms=700, hold_probability=0.3, max_hold_ms=1_500))
        assert 1_500 <= ended.at_ms - ended.speech_end_ms <= 1_500 + 160 + 2 * WINDOW_MS

    def test_can_be_turned_off(self):
        """With no time to hold, the end comes at its time."""
        noise = windows((640, 1.0), (640, 0.0), (64, 0.9), (2_000, 0.0))
        [ended] = of(TurnEnded, decided(noise, silence_ms=700, max_hold_ms=0))
        assert ended.at_ms - ended.speech_end_ms < 700 + WINDOW_MS


class TestEndTurn:
    def test_ends_the_turn_at_once(self):
        """A wish ends the turn in the middle of speech, under its own name."""
        [ended] = decided(windows((960, 1.0)), wishes=[20])
        assert (ended.source, ended.at_ms, ended.speech_end_ms) == ("push", 21 * WINDOW_MS, 21 * WINDOW_MS)

    def test_of_nothing_is_nothing(self):
        """A wish when nobody has spoken ends no turn."""
        assert decided(windows((960, 0.0)), wishes=[3, 9]) == []

    def test_what_is_said_after_it_is_the_next_turn(self):
        """Speech that goes on after a wish is a turn of its own."""
        first, second = of(TurnEnded, decided(windows((960, 1.0), (2_000, 0.0)), wishes=[10]))
        assert (first.source, second.source) == ("push", "silence")
        assert second.speech_start_ms == first.at_ms

    def test_is_obeyed_by_the_stage(self):
        """In a chain the wish passes and the turn ends after it, whatever the detector thinks."""
        frames = [SpeechStarted(100, 0, 0), EndTurn("max_turn"), SpeechEnded(400, 300)]

        async def source():
            for frame in frames:
                yield frame

        async def main():
            stages = Chain(EnergyVAD(), SilenceTurn())
            async with Context() as context, stages.process(source(), context) as out:
                return [frame async for frame in out]

        out = run_simulated(main())
        assert [type(frame) for frame in out] == [SpeechStarted, EndTurn, TurnEnded, SpeechEnded]
        assert out[2].source == "max_turn"


probabilities = st.lists(st.sampled_from([0.0, 0.3, 0.49, 0.5, 1.0]), max_size=200)


class TestAnyLine:
    @given(probabilities, st.lists(st.integers(0, 199), max_size=3), st.sampled_from([100, 300, 700]))
    def test_proposals_and_turns_fit_together(self, probabilities, wishes, silence_ms):
        """Only what was proposed is withdrawn, no proposal outlives its turn, and turns do not overlap."""
        proposed, last_end_ms = False, 0.0
        for frame in decided(probabilities, wishes=wishes, silence_ms=silence_ms):
            if isinstance(frame, TurnEndProposed):
                assert not proposed
                proposed = True
            elif isinstance(frame, TurnEndWithdrawn):
                assert proposed
                proposed = False
            else:
                proposed = False
                assert last_end_ms <= frame.speech_start_ms <= frame.speech_end_ms <= frame.at_ms
                last_end_ms = frame.speech_end_ms

    @given(probabilities, st.sampled_from([100, 300, 700]))
    def test_every_turn_ends_in_the_end(self, probabilities, silence_ms):
        """However it was spoken, speech followed by lasting quiet leaves no turn open."""
        gate = SpeechGate(Options(min_silence_ms=100))
        spoke = False
        for number, probability in enumerate(probabilities):
            spoke |= bool(of(SpeechStarted, gate.feed(probability, number * 32.0, number * 32.0 + 32.0)))
        out = decided(probabilities + [0.0] * 200, silence_ms=silence_ms)
        assert bool(of(TurnEnded, out)) == spoke
        if spoke:
            assert isinstance(out[-1], TurnEnded)

    def test_audio_passes_untouched(self):
        """The stage passes audio on without looking at it."""
        frame = AudioIn(bytes(64), 16_000, 0.0)

        async def source():
            yield frame

        async def main():
            async with Context() as context, Chain(EnergyVAD(), SilenceTurn()).process(source(), context) as out:
                return [one async for one in out]

        assert run_simulated(main()) == [frame]
