"""What every recogniser must do, as checks that run against any of them.

In a plugin's tests, one test for each check:

    @pytest.mark.parametrize("check", CHECKS)
    def test_is_a_recogniser(check):
        asyncio.run(check_stt(lambda: stt.new("moonshine"), check))

By default it is asked to understand a recorded sentence, `checking.SENTENCE`. A recogniser that understands something else is
given that as `audio` and `words`; one of a service is given a server that can be made sick:

    async def main():
        async with DeepgramServer() as server:
            make = lambda: stt.new("deepgram", api_key=server.api_key, base_url=server.url)
            said = Audio(say("one two three"), 16_000)
            await check_stt(make, audio=said, words="one two three", sick=faults_of(server), canary=server.api_key)

>>> from beluga_voice.clock import run_simulated
>>> from beluga_voice.testing.tone_speech import say, understand
>>> class ToneSTT(STT):
...     async def transcribe(self, audio):
...         return Transcript(understand(audio.pcm, audio.sample_rate_hz))
>>> said = Audio(say("one two"), 16_000)
>>> run_simulated(check_stt(ToneSTT, "heard however it is cut", audio=said, words="one two"))
{}
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, cast

import attrs

from ..audio import BYTES_PER_SAMPLE, Audio, resample, silence
from ..chain import Chain
from ..clock import Clock, SimulatedLoop
from ..engine import Context
from ..frames import AudioIn, Frame, Transcript, TurnEnded
from ..stt import STT, STTStream
from . import LoudVAD, engine_checks
from .checking import (
    SENTENCE,
    STOP_MS,
    Fault,
    Leftovers,
    NotApplicable,
    Trial,
    Use,
    cut_evenly,
    cut_unevenly,
    expect,
    handle_of,
    in_time,
    run_checks,
    same_words,
    sentence,
    words_of,
)

__all__ = ["AUDIO_COST", "CHECKS", "check_stt"]

AUDIO_COST = 100  # how often a whole run sends the audio, at most; counted in tests/test_checks.py
PIECE_MS = 100.0
TURN_QUIET_MS = 3_000.0  # after which one that ends turns has ended its
BETWEEN_MS = 700.0
ONE_UTTERANCE = {"min_speech_ms": 0.0, "min_silence_ms": 5_000.0}  # of a VAD: pauses in the audio do not part it
LATE_MS = 300.0
QUICK_MS = 2_000.0  # machines that run tests are busy with others' work too
MINUTE_MS = 60_000.0
OTHER_RATES_HZ = (8_000, 24_000, 44_100)
SHARE_WRONG = 0.25  # of the words, at another rate than the recogniser's own
AFTER_THE_END_MS = 250.0  # a word's time may be that much off


@attrs.frozen
class _Hearing(Trial[STT]):
    """A recogniser on trial: `audio` says `words`."""

    audio: Audio = attrs.field(kw_only=True)
    words: list[str] = attrs.field(kw_only=True)


async def check_stt(
    make: Callable[[], STT],
    only: str = "",
    *,
    audio: Audio | None = None,
    words: str = SENTENCE,
    sick: Mapping[str, Fault] | None = None,
    canary: str = "",
) -> dict[str, str]:
    """Run all checks, or the one called `only`.

    Args:
        make: gives a recogniser; called anew for each check.
        only: a name of `CHECKS`.
        audio: what it is to understand, some seconds of it; the recording of `SENTENCE` if left out.
        words: what `audio` says.
        sick: faults of the server it talks to, by name: `faults_of(server)`, for one that calls a service.
        canary: its key, which must not be told anywhere.

    Returns:
        The checks that did not apply to it, and why.

    Raises:
        AssertionError: the recogniser breaks a promise; the message tells which.
        ProviderError: it failed.
    """
    sound = audio or sentence()

    async def stream(engine: STT, size: int) -> list[str]:
        async with handle_of(engine) as handle, aclosing(handle.stream()) as hearing:
            said = _times(_at_its_rate(engine, sound), size)
            return await _turn(hearing, said) if engine.capabilities.ends_turns else await _utterance(hearing, said)

    async def transcribe(engine: STT, size: int) -> list[str]:
        said = _at_its_rate(engine, sound)
        async with handle_of(engine) as handle:
            return words_of((await handle.transcribe(_times(said, size) if size else _half(said))).text)

    uses: dict[str, Use] = {"stream": stream, "transcribe": transcribe}
    trial = _Hearing(make, uses, sick=sick or {}, canary=canary, audio=sound, words=words_of(words))
    return await run_checks(CHECKS, trial, only)


# --- what is said to it, and what it says ----------------------------------------------------------------------------


def _at_its_rate(engine: STT, sound: Audio) -> Audio:
    return resample(sound, engine.capabilities.sample_rate_hz or sound.sample_rate_hz)


def _times(sound: Audio, count: int) -> Audio:
    """The sound `count` times, with pauses."""
    pause = silence(BETWEEN_MS, sound.sample_rate_hz).pcm
    return Audio(pause.join([sound.pcm] * count), sound.sample_rate_hz)


def _half(sound: Audio) -> Audio:
    return Audio(sound.pcm[: sound.samples // 2 * BYTES_PER_SAMPLE], sound.sample_rate_hz)


async def _say(stream: STTStream, sound: Audio) -> None:
    for piece in cut_evenly(sound, PIECE_MS):
        await in_time(stream.send(piece), "the end of send")


async def _closing(stream: STTStream) -> list[Transcript]:
    """What it tells, up to and with the final that closes."""
    told: list[Transcript] = []
    while not (told and told[-1].closes):
        try:
            told.append(await in_time(anext(stream), "the final transcript that answers finalize"))
        except StopAsyncIteration:
            raise AssertionError("the stream ended before the final that answers finalize; expected one with closes") from None
    return told


def _words(told: list[Transcript]) -> list[str]:
    return [word for one in told if one.is_final for word in words_of(one.text)]


async def _utterance(stream: STTStream, sound: Audio) -> list[str]:
    """What it hears in `sound`, by finalize."""
    await _say(stream, sound)
    await in_time(stream.finalize(), "the end of finalize")
    return _words(await _closing(stream))


async def _turn(stream: STTStream, sound: Audio) -> list[str]:
    """What one that ends turns itself hears in `sound`, said at its own pace, with quiet after it."""
    if not sound.pcm:
        return []
    return _words(await _until_turn_ends(stream, sound))


async def _until_turn_ends(stream: STTStream, sound: Audio) -> list[Any]:
    quiet = silence(TURN_QUIET_MS, sound.sample_rate_hz)
    await _at_its_pace(stream, Audio(sound.pcm + quiet.pcm, sound.sample_rate_hz))
    told: list[Any] = []
    while not (told and isinstance(told[-1], TurnEnded)):
        told.append(await in_time(anext(stream), "the TurnEnded of one that ends turns"))
    return [one for one in told if isinstance(one, Transcript)]


async def _at_its_pace(stream: STTStream, sound: Audio) -> None:
    for piece in cut_evenly(sound, PIECE_MS):
        await in_time(stream.send(piece), "the end of send")
        await Clock().sleep_ms(piece.duration_ms)


async def _to_its_end(stream: STTStream) -> None:
    async for _ in stream:
        pass


async def _nothing_more(stream: STTStream, after: str) -> None:
    more = asyncio.ensure_future(anext(stream))
    await asyncio.wait([more], timeout=LATE_MS / 1000.0)
    if more.done() and more.exception() is None:
        raise AssertionError(f"after {after} came {more.result()!r}; expected nothing")
    more.cancel()
    await asyncio.wait([more])


def _answers_finalize(engine: STT) -> None:
    if engine.capabilities.ends_turns:
        raise NotApplicable("it ends turns itself: nobody asks it to finalize")


def _expect_words(got: list[str], wanted: list[str], what: str, share: float = 0.0) -> None:
    expect(same_words(got, wanted, share), f"{what} it hears {' '.join(got)!r}; expected {' '.join(wanted)!r}")


# --- checks ----------------------------------------------------------------------------------------------------------


async def _words_are_heard(trial: _Hearing) -> None:
    async with trial.make() as engine:
        for name, use in trial.uses.items():
            _expect_words(await in_time(use(engine, 1), f"the end of its {name}"), trial.words, f"by its {name}")


async def _each_finalize_is_answered_once(trial: _Hearing) -> None:
    async with trial.make() as engine, handle_of(engine) as handle:
        _answers_finalize(engine)
        said = _at_its_rate(engine, trial.audio)
        async with aclosing(handle.stream()) as stream:
            for nth in ("first", "second", "third"):
                _expect_words(await _utterance(stream, said), trial.words, f"in the {nth} utterance of a stream")
                await _nothing_more(stream, f"the final that closes the {nth} utterance")


async def _finalizes_are_answered_in_order(trial: _Hearing) -> None:
    async with trial.make() as engine, handle_of(engine) as handle:
        _answers_finalize(engine)
        said = _at_its_rate(engine, trial.audio)
        async with aclosing(handle.stream()) as stream:
            for times in (1, 2):
                await _say(stream, _times(said, times))
                await in_time(stream.finalize(), "the end of finalize")
            for times, nth in ((1, "first"), (2, "second")):
                what = f"of two utterances sent before the answers are read, in the {nth}"
                _expect_words(_words(await _closing(stream)), trial.words * times, what)
            await _nothing_more(stream, "the last final that closes")


async def _finalize_with_nothing_sent(trial: _Hearing) -> None:
    async with trial.make() as engine, handle_of(engine) as handle:
        _answers_finalize(engine)
        async with aclosing(handle.stream()) as stream:
            for when in ("before all audio", "again"):
                _expect_words(await _utterance(stream, Audio(b"", 16_000)), [], f"finalised {when}, with nothing sent,")
            said = _at_its_rate(engine, trial.audio)
            _expect_words(await _utterance(stream, said), trial.words, "after finalizes with nothing sent")
            _expect_words(
                await _utterance(stream, Audio(b"", said.sample_rate_hz)), [], "with nothing sent since the last finalize"
            )


async def _heard_however_it_is_cut(trial: _Hearing) -> None:
    async with trial.make() as engine, handle_of(engine) as handle:
        said = _at_its_rate(engine, trial.audio)
        if engine.capabilities.ends_turns:
            said = Audio(said.pcm + silence(TURN_QUIET_MS, said.sample_rate_hz).pcm, said.sample_rate_hz)
        whole = await trial.use(engine, 1)
        middle = (said.samples // 2 | 1) * BYTES_PER_SAMPLE  # neither half is of whole ms
        cuts = {
            "in one piece": [said],
            "in two": [Audio(pcm, said.sample_rate_hz) for pcm in (said.pcm[:middle], said.pcm[middle:])],
            "in 20 ms": cut_evenly(said, 20.0),
            "in 7 ms": cut_evenly(said, 7.0),
            "unevenly": cut_unevenly(said),
        }
        for how, pieces in cuts.items():
            async with aclosing(handle.stream()) as stream:
                for piece in pieces:
                    await in_time(stream.send(piece), "the end of send")
                    if engine.capabilities.ends_turns:
                        await Clock().sleep_ms(piece.duration_ms)
                if engine.capabilities.ends_turns:
                    got = _words(await _until_turn_ends(stream, Audio(b"", said.sample_rate_hz)))
                else:
                    await in_time(stream.finalize(), "the end of finalize")
                    got = _words(await _closing(stream))
            _expect_words(got, whole, f"cut {how}")


async def _heard_at_any_rate(trial: _Hearing) -> None:
    """On a line of another rate; where it takes any rate itself, also without a line."""
    for rate_hz in OTHER_RATES_HZ:
        said = resample(trial.audio, rate_hz)
        async with trial.make() as engine:
            if engine.capabilities.sample_rate_hz is None:
                async with handle_of(engine) as handle, aclosing(handle.stream()) as stream:
                    _expect_words(await _utterance(stream, said), trial.words, f"at {rate_hz} Hz", SHARE_WRONG)
            heard = await in_time(_on_a_line(engine, said), f"the end of a call at {rate_hz} Hz")
            _expect_words(heard, trial.words, f"on a line of {rate_hz} Hz", SHARE_WRONG)


async def _on_a_line(engine: STT, said: Audio) -> list[str]:
    rate_hz, alone = said.sample_rate_hz, engine.capabilities.ends_turns
    chain = Chain(engine) if alone else Chain(LoudVAD().with_options(**ONE_UTTERANCE), engine)
    quiet_ms = TURN_QUIET_MS if alone else LATE_MS
    pcm = silence(500.0, rate_hz).pcm + said.pcm + silence(quiet_ms, rate_hz).pcm

    async def frames() -> AsyncIterator[Frame]:
        for piece in cut_evenly(Audio(pcm, rate_hz), 20.0):
            yield AudioIn(piece.pcm, rate_hz, at_ms[0])
            at_ms[0] += piece.duration_ms
            if alone:
                await Clock().sleep_ms(piece.duration_ms)

    at_ms = [0.0]
    async with Context(input_rate_hz=rate_hz) as context, chain.process(context.feed(frames()), context) as out:
        told = [frame async for frame in out]
    for frame in told:
        if error := getattr(frame, "error", None):
            raise cast(Exception, error)
    return _words([frame for frame in told if isinstance(frame, Transcript)])


async def _interims_as_claimed(trial: _Hearing) -> None:
    async with trial.make() as engine, handle_of(engine) as handle:
        async with aclosing(handle.stream()) as stream:
            said = _at_its_rate(engine, trial.audio)
            if engine.capabilities.ends_turns:
                told = await _until_turn_ends(stream, said)
            else:
                await _at_its_pace(stream, said)
                await in_time(stream.finalize(), "the end of finalize")
                told = await _closing(stream)
        interims = [one for one in told if not one.is_final]
        if engine.capabilities.interim:
            expect(interims, "it claims interim transcripts and gives none before the final")
        else:
            expect(not interims, f"it claims no interim transcripts and gives {interims[:1]!r} unasked")
        closing = [one for one in interims if one.closes]
        expect(not closing, f"an interim transcript has closes: {closing[:1]!r}; only a final answers finalize")
        first = next(at for at, one in enumerate(told) if one.is_final and one.text)
        expect(not interims or told.index(interims[0]) < first, "its first interim transcript comes after the words' final")


async def _quick_as_claimed(trial: _Hearing) -> None:
    async with trial.make() as engine, handle_of(engine) as handle:
        if not engine.capabilities.quick:
            raise NotApplicable("it does not claim to be quick")
        expect(not engine.account, f"it claims to be quick and calls {engine.account!r}; only what runs here is, at no price")
        said = _at_its_rate(engine, trial.audio)
        await trial.use(engine, 1)
        async with aclosing(handle.stream()) as stream:
            await _say(stream, said)
            await in_time(stream.peek(), "the end of peek")
            told = await in_time(anext(stream), "the interim transcript that answers a peek", QUICK_MS)
            expect(not told.is_final, f"a peek is answered by {told!r}; expected an interim transcript")
            await in_time(stream.finalize(), "the end of finalize")
            _expect_words(_words(await _closing(stream)), trial.words, "after a peek")


async def _words_have_times(trial: _Hearing) -> None:
    async with trial.make() as engine, handle_of(engine) as handle, aclosing(handle.stream()) as stream:
        said = _at_its_rate(engine, trial.audio)
        if engine.capabilities.ends_turns:
            told = await _until_turn_ends(stream, said)
        else:
            await _say(stream, said)
            await in_time(stream.finalize(), "the end of finalize")
            told = await _closing(stream)
        finals = [one for one in told if one.is_final]
        for one in finals:
            sure = one.confidence
            expect(sure is None or 0.0 <= sure <= 1.0, f"a final has the confidence {sure}; expected 0..1 or None")
            covers = one.through_ms
            expect(covers is None or covers <= said.duration_ms + TURN_QUIET_MS, f"through_ms is {covers}: more than was sent")
        covered = [one.through_ms for one in finals if one.through_ms is not None]
        expect(covered == sorted(covered), f"through_ms of the finals is {covered}; expected it to grow")
        timed = [word for one in finals for word in one.words]
        if not timed:
            raise NotApplicable("its transcripts have no words with times")
        texts = words_of(" ".join(word.text for word in timed))
        expect(texts == _words(finals), f"the timed words are {texts}; expected those of the text, {_words(finals)}")
        before_ms = 0.0
        for word in timed:
            expect(before_ms <= word.start_ms <= word.end_ms, f"{word!r} comes after a word that starts at {before_ms} ms")
            expect(
                word.end_ms <= said.duration_ms + AFTER_THE_END_MS,
                f"{word!r} ends after the audio, of {said.duration_ms:.0f} ms",
            )
            before_ms = word.start_ms


async def _closing_a_stream_stops_it(trial: _Hearing) -> None:
    async with trial.make() as engine, handle_of(engine) as handle:
        said = _at_its_rate(engine, trial.audio)
        await trial.use(engine, 1)
        before = Leftovers(threads=False)
        for moment in ("unused", "with audio", "with a reader", "asked to finalize"):
            stream = handle.stream()
            reading = asyncio.ensure_future(_to_its_end(stream)) if moment == "with a reader" else None
            if moment != "unused":
                await _say(stream, said)
            if moment == "asked to finalize" and not engine.capabilities.ends_turns:
                await in_time(stream.finalize(), "the end of finalize")
            for nth in ("first", "second"):
                await in_time(stream.aclose(), f"the end of the {nth} aclose of a stream {moment}", STOP_MS)
            if reading is not None:
                try:
                    await in_time(asyncio.wait([reading]), "the end of iterating a stream that was closed", STOP_MS)
                finally:
                    reading.cancel()
                error = reading.exception() if not reading.cancelled() else None
                expect(error is None, f"iterating raises {error!r} when the stream is closed; expected the iteration to end")
            await before.expect_no_more(f"a stream was closed, {moment}")
        _expect_words(await trial.use(engine, 1), trial.words, "after streams were closed in their work")


async def _connecting_early_changes_nothing(trial: _Hearing) -> None:
    async with trial.make() as engine, handle_of(engine) as handle, aclosing(handle.stream()) as stream:
        if type(stream).connect is STTStream.connect:
            raise NotApplicable("it has nothing to connect to")
        for _ in range(2):
            await in_time(stream.connect(), "the end of connect")
        said = _at_its_rate(engine, trial.audio)
        hear = _turn if engine.capabilities.ends_turns else _utterance
        _expect_words(await hear(stream, said), trial.words, "connected early")


async def _hears_after_a_minute_of_quiet(trial: _Hearing) -> None:
    if not isinstance(asyncio.get_running_loop(), SimulatedLoop):
        raise NotApplicable("it takes a minute; checked in simulated time only")
    async with trial.make() as engine, handle_of(engine) as handle, aclosing(handle.stream()) as stream:
        _answers_finalize(engine)
        said = _at_its_rate(engine, trial.audio)
        for when in ("at first", "after a minute without audio", "after another"):
            _expect_words(await _utterance(stream, said), trial.words, when)
            await Clock().sleep_ms(MINUTE_MS)


CHECKS: dict[str, Callable[[Any], Awaitable[None]]] = {
    "words are heard": _words_are_heard,
    "each finalize is answered once": _each_finalize_is_answered_once,
    "finalizes are answered in order": _finalizes_are_answered_in_order,
    "finalize with nothing sent": _finalize_with_nothing_sent,
    "heard however it is cut": _heard_however_it_is_cut,
    "heard at any rate": _heard_at_any_rate,
    "interims as claimed": _interims_as_claimed,
    "quick as claimed": _quick_as_claimed,
    "words have times": _words_have_times,
    "closing a stream stops it": _closing_a_stream_stops_it,
    "connecting early changes nothing": _connecting_early_changes_nothing,
    "hears after a minute of quiet": _hears_after_a_minute_of_quiet,
    **engine_checks.CHECKS,
    **engine_checks.SERVICE_CHECKS,
}
