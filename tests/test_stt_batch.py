"""Whole pieces of audio by several recognisers: however long, each is transcribed once, by the first that can."""

import asyncio

import pytest
from scripted_stt import CLOCK, RATE_HZ, Cloud, Sick

from beluga_voice import stt
from beluga_voice.audio import Audio
from beluga_voice.clock import run_simulated
from beluga_voice.engine import Context
from beluga_voice.errors import AuthError, ProtocolError, ProviderTimeoutError
from beluga_voice.frames import FailedOver, Transcript
from beluga_voice.resilience import ResilienceOptions, guards
from beluga_voice.stt.batch import Batch
from beluga_voice.testing.tone_speech import say, understand


class Whole(stt.STT):
    """Takes whole pieces: says what it hears after so long, or raises."""

    def __init__(self, name, answer_ms=100.0, error=None, deaf=False, account=True, rate_hz=RATE_HZ):
        self.provider, self.answer_ms, self.error, self.deaf = name, answer_ms, error, deaf
        self.account = f"{name}@there" if account else ""
        self.capabilities = stt.STTCapabilities(sample_rate_hz=rate_hz)
        self.given_ms = []

    async def transcribe(self, audio):
        self.given_ms.append(audio.duration_ms)
        assert self.capabilities.sample_rate_hz in (None, audio.sample_rate_hz)
        await CLOCK.sleep_ms(self.answer_ms)
        if self.error is not None:
            raise self.error
        return Transcript("" if self.deaf else understand(audio.pcm, audio.sample_rate_hz))


def batch(*engines, texts=("one two",), quiet_ms=1_000.0, **options):
    """What was heard of each text (or its error), who heard it, the failovers, and how long it took in ms."""

    async def main():
        async with Context() as context:
            pieces = Batch(stt.failover(*engines, options=ResilienceOptions(**options)), context)
            heard = []
            began_ms = CLOCK.now_ms()
            for text in texts:
                sound = Audio(say(text) + bytes(round(quiet_ms * RATE_HZ / 500)), RATE_HZ)
                try:
                    heard.append(((await pieces.transcribe(sound)).text, pieces.engine.name))
                except Exception as error:
                    heard.append(error)
            over = [frame for frame in context.inbox.drain() if isinstance(frame, FailedOver)]
            assert [one.under_way for one in guards()] == [0] * len(guards())
            return heard, over, CLOCK.now_ms() - began_ms

    return run_simulated(main())


@pytest.mark.parametrize("engines", [(Whole("a"),), (Whole("a", error=AuthError("no")), Whole("b", rate_hz=8_000))], ids=len)
def test_a_piece_of_any_length_is_heard_whole(engines):
    """A session's recognition keeps 30 s."""
    text = " ".join(["one two three"] * 100)
    assert batch(*engines, texts=[text])[0] == [(text, engines[-1].name)]


def test_outside_of_a_session_too():
    async def main():
        said = " ".join(["four"] * 200)
        return said, (await stt.failover(Cloud("a", Sick("hung")), Whole("b")).transcribe(Audio(say(said), RATE_HZ))).text

    said, heard = run_simulated(main())
    assert heard == said


def test_whoever_took_over_goes_on():
    first, second = Whole("a", error=AuthError("no")), Whole("b")
    heard, over, _ = batch(first, second, texts=["one", "two", "three"])
    assert heard == [("one", "b"), ("two", "b"), ("three", "b")]
    assert [(one.old, one.new, str(one.error)) for one in over] == [("a", "b", "no")]
    assert len(first.given_ms) == 1


def test_one_that_works_long_for_a_long_piece_is_not_ill():
    """A conversation would call it slow, and leave it alone."""
    first, second = Whole("a", answer_ms=3_000), Whole("b")
    heard, over, _ = batch(first, second, texts=["one"] * 30, quiet_ms=25_000)
    assert heard == [("one", "a")] * 30
    assert over == second.given_ms == []


def test_one_that_hangs_is_left_and_the_last_one_waited_for():
    heard, _, took_ms = batch(Whole("a", answer_ms=60_000), Whole("b", answer_ms=10_000))
    assert heard == [("one two", "b")]
    assert took_ms == pytest.approx(3_000 + 800 + 152 + 10_000, abs=5)


def test_the_last_one_is_not_waited_for_without_end():
    (error,), _, took_ms = batch(Whole("a", answer_ms=60_000), final_timeout_ms=1_000, retries=0)
    assert isinstance(error, ProviderTimeoutError)
    assert "stt 'a' gave no words within 16608 ms for 1520 ms of audio" in str(error)
    assert took_ms == pytest.approx(16_608, abs=5)


def test_one_that_runs_here_and_is_alone_takes_its_time():
    assert batch(Whole("a", answer_ms=600_000, account=False))[0] == [("one two", "a")]


def test_where_one_hears_nothing_another_is_asked():
    heard, over, _ = batch(Whole("a", deaf=True), Whole("b"), texts=["one two", "three"])
    assert heard == [("one two", "b"), ("three", "b")]
    assert isinstance(over[0].error, ProtocolError)
    assert "stt 'a' heard nothing in 1520 ms of audio, and 'b' did" in str(over[0].error)


@pytest.mark.parametrize("other", [Whole("b", deaf=True), Whole("b", error=AuthError("no"))], ids=["deaf", "refused"])
def test_where_nobody_hears_anything_nobody_takes_over(other):
    heard, over, _ = batch(Whole("a", deaf=True), other)
    assert heard == [("", "a")]
    assert over == []


def test_a_short_piece_without_words_is_nobodys_fault():
    second = Whole("b")
    assert batch(Whole("a", deaf=True), second, texts=["one"], quiet_ms=100)[0] == [("", "a")]
    assert second.given_ms == []


def test_when_all_fail_the_last_ones_error_is_raised_and_others_are_the_engines_own():
    (error,), over, _ = batch(Whole("a", error=AuthError("no")), Whole("b", error=TimeoutError("of its own")))
    assert str(error) == "stt 'b' failed: TimeoutError: of its own"
    assert isinstance(error, ProtocolError)
    assert len(over) == 1


def test_a_piece_that_is_cancelled_frees_its_place():
    async def main():
        async with Context() as context:
            pieces = Batch(stt.failover(Whole("a", answer_ms=60_000), Whole("b")), context)
            task = asyncio.create_task(pieces.transcribe(Audio(say("one"), RATE_HZ)))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return sum(one.under_way for one in guards())

    assert run_simulated(main()) == 0
