"""What every voice must do, as checks that run against any of them.

In a plugin's tests, one test for each check:

    @pytest.mark.parametrize("check", CHECKS)
    def test_is_a_voice(check):
        asyncio.run(check_tts(lambda: tts.new("espeak"), check))

A voice of a service is given a server that can be made sick; one that speaks as `tone_speech` does is really understood:

    async def main():
        async with OpenAIServer() as server:
            make = lambda: tts.new("openai", api_key=server.api_key, base_url=server.url)
            await check_tts(make, understand=understand, sick=faults_of(server), canary=server.api_key)

>>> from beluga_voice import tts
>>> from beluga_voice.clock import run_simulated
>>> run_simulated(check_tts(lambda: tts.new("tone"), "words have times"))
{}
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, cast

import attrs
import numpy as np

from ..audio import BYTES_PER_SAMPLE, Audio
from ..frames import AudioOut
from ..tts import TTS
from . import engine_checks
from .checking import (
    STOP_MS,
    Fault,
    Leftovers,
    NotApplicable,
    Trial,
    Use,
    expect,
    handle_of,
    in_time,
    run_checks,
    same_words,
    words_of,
)

__all__ = ["CHECKS", "TEXTS", "TEXTS_COST", "check_tts"]

TEXTS = ("One two three four five.", "Six seven eight nine ten.")
TEXTS_COST = 100  # how often a whole run has the texts spoken, at most; counted in tests/test_checks.py
Understand = Callable[[bytes, int], str]
LOUD = 100
ENDLESS_MS = 600_000.0
PATIENT_MS = 5_000.0  # for the first sound of a text that goes on
LONG_TEXTS = 6  # as often the texts are given to a voice that takes text as it is made, before its first sound is due
SHARE, SLACK_MS = 0.25, 150.0  # by which the length of two sounds of one text may differ
AFTER_THE_END_MS = 250.0  # a word's time may be that much off


@attrs.frozen
class _Spoken:
    """The sound of texts: `told` is what its pieces say they begin to speak, `words` what is understood of it, if anything."""

    told: tuple[str, ...]
    duration_ms: float
    sample_rate_hz: int
    words: tuple[str, ...] | None


@attrs.frozen
class _Speaking(Trial[TTS]):
    """A voice on trial."""

    texts: tuple[str, ...] = attrs.field(kw_only=True)
    understand: Understand | None = attrs.field(kw_only=True)


async def check_tts(
    make: Callable[[], TTS],
    only: str = "",
    *,
    texts: Sequence[str] = TEXTS,
    understand: Understand | None = None,
    sick: Mapping[str, Fault] | None = None,
    canary: str = "",
) -> dict[str, str]:
    """Run all checks, or the one called `only`.

    Args:
        make: gives a voice; called anew for each check.
        only: a name of `CHECKS`.
        texts: what it is to say, two sentences or more.
        understand: gives the words in PCM of a rate, so that no more than lengths need be compared: `tone_speech.understand`.
        sick: faults of the server it talks to, by name: `faults_of(server)`, for one that calls a service.
        canary: its key, which must not be told anywhere.

    Returns:
        The checks that did not apply to it, and why.

    Raises:
        AssertionError: the voice breaks a promise; the message tells which.
        ProviderError: it failed.
    """

    async def stream(engine: TTS, size: int) -> _Spoken:
        async with handle_of(engine) as handle:
            return _spoken(await _pieces(handle, _given(engine, _sized(texts, size))), understand)

    async def synthesize(engine: TTS, size: int) -> _Spoken:
        async with handle_of(engine) as handle:
            sound = await handle.synthesize(" ".join(_sized(texts, size)))
            return _spoken([AudioOut(sound.pcm, sound.sample_rate_hz)], understand)

    uses: dict[str, Use] = {"stream": stream, "synthesize": synthesize}
    trial = _Speaking(make, uses, _same, sick or {}, canary, texts=tuple(texts), understand=understand)
    return await run_checks(CHECKS, trial, only)


# --- what it is given, and what it gives -----------------------------------------------------------------------------


def _sized(texts: Sequence[str], size: int) -> list[str]:
    return [texts[0].split()[0]] if size == 0 else list(texts[:size])


def _given(engine: TTS, sentences: Sequence[str], piece: int = 5) -> list[str]:
    """The sentences, or pieces of them in any length for a voice that takes text as it is made."""
    if not engine.capabilities.streaming_text:
        return list(sentences)
    whole = " ".join(sentences)
    return [whole[at : at + piece] for at in range(0, len(whole), piece)]


async def _each(texts: Sequence[str]) -> AsyncIterator[str]:
    for text in texts:
        yield text


async def _pieces(engine: TTS, texts: Sequence[str]) -> list[AudioOut]:
    given: list[AudioOut] = []
    sound_ms = 0.0
    async with aclosing(cast(Any, engine.synthesize_stream(_each(texts)))) as pieces:
        async for piece in pieces:
            given.append(piece)
            sound_ms += len(piece.pcm) * 500.0 / piece.sample_rate_hz
            letters = len(" ".join(texts))
            expect(sound_ms < ENDLESS_MS, f"it gives {sound_ms:.0f} ms of sound for {letters} characters, and more")
    return given


def _spoken(pieces: Sequence[AudioOut], understand: Understand | None) -> _Spoken:
    pcm, rate_hz = b"".join(piece.pcm for piece in pieces), pieces[0].sample_rate_hz if pieces else 0
    words = None if understand is None else tuple(words_of(understand(pcm, rate_hz)))
    told = tuple(piece.text for piece in pieces if piece.text)
    return _Spoken(told, Audio(pcm, rate_hz).duration_ms if pcm else 0.0, rate_hz, words)


def _same(one: _Spoken, other: _Spoken) -> bool:
    """The same voice does not give the same sound twice: told text and words are the same, and the length nearly."""
    near = abs(one.duration_ms - other.duration_ms) <= SHARE * other.duration_ms + SLACK_MS
    return near and (_told(one), one.sample_rate_hz, one.words) == (_told(other), other.sample_rate_hz, other.words)


def _told(spoken: _Spoken) -> str:
    return "".join("".join(spoken.told).split())


def _expect_told(spoken: _Spoken, engine: TTS, sentences: Sequence[str], what: str) -> None:
    """Each sentence is told by the piece that begins it; pieces of text that a voice takes as it is made, in any pieces."""
    if engine.capabilities.streaming_text:
        got, wanted = _told(spoken), "".join(" ".join(sentences).split())
    else:
        got, wanted = " | ".join(spoken.told), " | ".join(sentences)
    expect(got == wanted, f"{what} the pieces say that they begin {got!r}; expected {wanted!r}")


def _expect_words(spoken: _Spoken, sentences: Sequence[str], what: str) -> None:
    if spoken.words is not None:
        wanted = words_of(" ".join(sentences))
        expect(
            same_words(list(spoken.words), wanted),
            f"{what} one hears {' '.join(spoken.words)!r}; expected {' '.join(wanted)!r}",
        )


# --- checks ----------------------------------------------------------------------------------------------------------


async def _texts_are_spoken(trial: _Speaking) -> None:
    async with trial.make() as engine:
        rate_hz = engine.capabilities.sample_rate_hz
        lengths_ms = []
        for size in (0, 1, len(trial.texts)):
            sentences, what = _sized(trial.texts, size), f"of {size or 'half'} text(s)"
            async with handle_of(engine) as handle:
                pieces = await in_time(_pieces(handle, _given(engine, sentences)), "the end of a sound")
            pcm = b"".join(piece.pcm for piece in pieces)
            loudest = int(np.abs(np.frombuffer(pcm[: len(pcm) // 2 * 2], "<i2").astype(np.int32)).max(initial=0))
            expect(loudest >= LOUD, f"{len(pcm)} bytes of sound {what} have a peak of {loudest}; expected to hear something")
            odd = [len(piece.pcm) for piece in pieces if len(piece.pcm) % BYTES_PER_SAMPLE]
            expect(not odd, f"pieces {what} have {odd[:3]} bytes; expected whole samples of {BYTES_PER_SAMPLE} bytes")
            rates_hz = {piece.sample_rate_hz for piece in pieces}
            true_hz = {rate_hz} if rate_hz else rates_hz
            expect(
                len(rates_hz) == 1 and rates_hz == true_hz, f"pieces {what} are of {rates_hz} Hz; capabilities say {rate_hz}"
            )
            spoken = _spoken(pieces, trial.understand)
            _expect_told(spoken, engine, sentences, what)
            _expect_words(spoken, sentences, what)
            lengths_ms.append(round(spoken.duration_ms))
        grow = lengths_ms == sorted(set(lengths_ms))
        expect(
            grow, f"a word, a sentence and {len(trial.texts)} sentences last {lengths_ms} ms; expected more text to last longer"
        )


async def _batch_is_as_long_as_the_stream(trial: _Speaking) -> None:
    async with trial.make() as engine:
        streamed, whole = [await in_time(use(engine, 1), f"the end of its {name}") for name, use in trial.uses.items()]
        told_alike = attrs.evolve(whole, told=streamed.told)
        expect(
            _same(told_alike, streamed), f"synthesize gives {whole!r}, synthesize_stream {streamed!r}; expected the same sound"
        )


async def _spoken_however_it_is_cut(trial: _Speaking) -> None:
    async with trial.make() as engine, handle_of(engine) as handle:
        if not engine.capabilities.streaming_text:
            raise NotApplicable("it takes whole sentences")
        whole = _spoken(await _pieces(handle, [" ".join(trial.texts)]), trial.understand)
        for size in (1, 2, 7, 40):
            texts = _given(engine, trial.texts, size)
            got = _spoken(await in_time(_pieces(handle, [*texts[:1], "", *texts[1:]]), "the end of a sound"), trial.understand)
            what = f"given in pieces of {size}"
            expect(_same(got, whole), f"{what} the text gives {got!r}; in one piece it gave {whole!r}")
            _expect_told(got, engine, trial.texts, what)
            _expect_words(got, trial.texts, what)


async def _sound_leaves_before_the_text_ends(trial: _Speaking) -> None:
    sounded = asyncio.Event()
    early = False

    async def texts() -> AsyncIterator[str]:
        nonlocal early
        first = list(trial.texts) * LONG_TEXTS if engine.capabilities.streaming_text else trial.texts[:1]
        for text in _given(engine, first):
            yield text
        waiting = asyncio.ensure_future(sounded.wait())
        try:
            await asyncio.wait([waiting], timeout=PATIENT_MS / 1000.0)
            early = sounded.is_set()
        finally:
            waiting.cancel()
        for text in _given(engine, trial.texts[1:]):
            yield text

    engine = trial.make()
    async with engine, handle_of(engine) as handle, aclosing(cast(Any, handle.synthesize_stream(texts()))) as pieces:
        async for piece in pieces:
            if piece.pcm:
                sounded.set()
    expect(
        early,
        f"no sound came within {PATIENT_MS:,.0f} ms of the first text, while more was to follow; expected it to leave early",
    )


async def _nothing_to_say(trial: _Speaking) -> None:
    async with trial.make() as engine, handle_of(engine) as handle:
        for texts in ([], [""], ["  "], ["..."], ["\N{EM DASH}"]):
            await in_time(_pieces(handle, texts), f"the end of the sound of {texts}")
        for texts in ([], [""], ["  "]):
            length_ms = _spoken(await _pieces(handle, texts), None).duration_ms
            expect(length_ms <= SLACK_MS, f"the texts {texts} sound for {length_ms:.0f} ms; expected nothing to be heard")
        spoken = _spoken(await _pieces(handle, _given(engine, trial.texts[:1])), trial.understand)
        _expect_words(spoken, trial.texts[:1], "after nothing was to be said")


async def _words_have_times(trial: _Speaking) -> None:
    async with trial.make() as engine, handle_of(engine) as handle:
        if not engine.capabilities.word_times:
            raise NotApplicable("it claims no word times")
        pieces = await in_time(_pieces(handle, _given(engine, trial.texts)), "the end of a sound")
    words = [word for piece in pieces for word in piece.words]
    got, wanted = words_of(" ".join(word.text for word in words)), words_of(" ".join(trial.texts))
    expect(got == wanted, f"the timed words are {got}; expected those of the text, {wanted}")
    total_ms = _spoken(pieces, None).duration_ms
    sentences: list[list[AudioOut]] = []
    for piece in pieces:
        if piece.text or not sentences:
            sentences.append([])
        sentences[-1].append(piece)
    for parts in sentences:
        length_ms = total_ms if engine.capabilities.streaming_text else _spoken(parts, None).duration_ms
        before_ms = 0.0
        for word in (word for part in parts for word in part.words):
            expect(before_ms <= word.start_ms <= word.end_ms, f"{word!r} comes after a word that starts at {before_ms} ms")
            expect(word.end_ms <= length_ms + AFTER_THE_END_MS, f"{word!r} ends after its sentence, of {length_ms:.0f} ms")
            before_ms = word.start_ms


async def _closing_the_stream_stops_it(trial: _Speaking) -> None:
    asked, asking = 0, False

    async def texts() -> AsyncIterator[str]:
        nonlocal asked, asking
        for text in _given(engine, list(trial.texts) * LONG_TEXTS):
            asked += 1
            yield text
        asking = True
        try:
            await asyncio.Event().wait()
        finally:
            asking = False

    async with trial.make() as engine, handle_of(engine) as handle:
        await trial.use(engine, 1)
        before = Leftovers(threads=False)
        for moment in ("before its first piece", "after its first piece", "after its third piece"):
            pieces = cast(Any, handle.synthesize_stream(texts()))
            for _ in range(("before its first piece", "after its first piece", "", "after its third piece").index(moment)):
                await in_time(anext(pieces, None), f"a piece of sound, before closing {moment}")
            await in_time(pieces.aclose(), f"the end of aclose {moment}", STOP_MS)
            stopped_at = asked
            await before.expect_no_more(f"a stream was closed {moment}")
            expect(asked == stopped_at, f"after aclose {moment} {asked - stopped_at} more texts were asked for; expected none")
            expect(not asking, f"after aclose {moment} it still waits for text")
        spoken = await in_time(trial.use(engine, 1), "the end of a use after others were closed early")
        _expect_words(spoken, trial.texts[:1], "after streams were closed early")


async def _failing_text_is_passed_on(trial: _Speaking) -> None:
    class AgentFailed(Exception):
        pass

    async def texts() -> AsyncIterator[str]:
        for text in _given(engine, trial.texts[:1]):
            yield text
        raise AgentFailed("the text failed")

    async with trial.make() as engine, handle_of(engine) as handle:
        await trial.use(engine, 1)  # what it keeps between uses, like a connection, is there from now on
        before = Leftovers(threads=False)
        try:
            async with aclosing(cast(Any, handle.synthesize_stream(texts()))) as pieces:
                async for _ in pieces:
                    pass
        except AgentFailed:
            pass
        else:
            raise AssertionError("its text failed in the middle, and the stream ended as if all was said; expected the failure")
        await trial.use(engine, 1)
        await before.expect_no_more("its text failed")


CHECKS: dict[str, Callable[[Any], Awaitable[None]]] = {
    "texts are spoken": _texts_are_spoken,
    "batch is as long as the stream": _batch_is_as_long_as_the_stream,
    "spoken however it is cut": _spoken_however_it_is_cut,
    "sound leaves before the text ends": _sound_leaves_before_the_text_ends,
    "nothing to say": _nothing_to_say,
    "words have times": _words_have_times,
    "closing the stream stops it": _closing_the_stream_stops_it,
    "failing text is passed on": _failing_text_is_passed_on,
    **engine_checks.CHECKS,
    **engine_checks.SERVICE_CHECKS,
}
