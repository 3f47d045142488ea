"""What every speech-to-speech model must do, as checks that run against any of them.

In a plugin's tests, one test for each check, against a server that can be made sick:

    @pytest.mark.parametrize("check", CHECKS)
    def test_is_a_speech_to_speech_model(check):
        async def main():
            async with RealtimeServer() as server:
                make = lambda: s2s.new("openai", api_key=server.api_key, base_url=server.url)
                said = Audio(say("what is the time"), 16_000)
                await check_s2s(make, check, audio=said, words="what is the time", sick=faults_of(server))

        run_simulated(main())
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

import attrs

from ..audio import BYTES_PER_SAMPLE, Audio, resample, silence
from ..clock import Clock
from ..frames import (
    AudioOut,
    Failed,
    Frame,
    ReplyEnded,
    SpeechEnded,
    SpeechStarted,
    TextDelta,
    ToolCalled,
    ToolReturned,
    Transcript,
    TurnEnded,
)
from ..s2s import S2S, S2SSession
from . import engine_checks
from .agent_checks import HISTORY
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

__all__ = ["AUDIO_COST", "CHECKS", "REPLIES_COST", "check_s2s"]

AUDIO_COST, REPLIES_COST = 60, 150  # how often a whole run says the audio and gets a reply, at most
PIECE_MS = 100.0
LEAD_MS, QUIET_MS = 500.0, 2_000.0
LATE_MS = 2_000.0
EDGE_MS = 600.0  # by which the place of speech may be off
SHARE_WRONG = 0.25  # of the words: a model's transcript of its caller is a by-product
TEXT = "What is the time?"


@attrs.frozen
class _Talking(Trial[S2S]):
    """A model on trial: `audio` says `words`."""

    audio: Audio = attrs.field(kw_only=True)
    words: list[str] = attrs.field(kw_only=True)
    tool_question: str = attrs.field(kw_only=True)


@attrs.frozen
class _Turn:
    """What came of one turn of the caller."""

    words: list[str]
    reply: list[Frame] = attrs.field(repr=False, eq=False)

    @property
    def reply_ms(self) -> float:
        """How long the reply sounds."""
        return sum(Audio(one.pcm, one.sample_rate_hz).duration_ms for one in self.reply if isinstance(one, AudioOut))


async def check_s2s(
    make: Callable[[], S2S],
    only: str = "",
    *,
    audio: Audio | None = None,
    words: str = SENTENCE,
    tool_question: str = "",
    sick: Mapping[str, Fault] | None = None,
    canary: str = "",
) -> dict[str, str]:
    """Run all checks, or the one called `only`.

    Args:
        make: gives a model; called anew for each check.
        only: a name of `CHECKS`.
        audio: a turn of the caller; the recording of `SENTENCE` if left out.
        words: what `audio` says.
        tool_question: a typed turn that makes it call a tool.
        sick: faults of the server it talks to, by name: `faults_of(server)`.
        canary: its key, which must not be told anywhere.

    Returns:
        The checks that did not apply to it, and why.

    Raises:
        AssertionError: the model breaks a promise; the message tells which.
        ProviderError: it failed.
    """
    sound = audio or sentence()

    async def spoken(engine: S2S, size: int) -> list[list[str]]:
        async with _talk(engine) as (session, events):
            return [(await _spoken_turn(session, events, engine, sound)).words for _ in range(size)]

    async def typed(engine: S2S, size: int) -> int:
        async with _talk(engine) as (session, events):
            return len([await _typed_turn(session, events, TEXT) for _ in range(size)])

    uses: dict[str, Use] = {"spoken turn": spoken, "typed turn": typed}
    trial = _Talking(
        make, uses, sick=sick or {}, canary=canary, audio=sound, words=words_of(words), tool_question=tool_question
    )
    return await run_checks(CHECKS, trial, only)


# --- a conversation --------------------------------------------------------------------------------------------------


class _Events:
    """A session's events, read beside what else is done with it."""

    def __init__(self, session: S2SSession) -> None:
        self._session = session
        self._told: asyncio.Queue[Frame | None] = asyncio.Queue()
        self.reading = asyncio.create_task(self._read(), name="reading events")

    async def _read(self) -> None:
        try:
            async for event in self._session.events():
                self._told.put_nowait(event)
        finally:
            self._told.put_nowait(None)

    async def next(self, what: str) -> Frame:
        """The next event, on the way to `what`."""
        event = await in_time(self._told.get(), what)
        if event is None:
            self.reading.result()
            raise AssertionError(f"the events ended before {what}")
        if isinstance(event, Failed):
            raise event.error
        return event

    async def within(self, limit_ms: float) -> list[Frame]:
        """What is told within a time."""
        await Clock().sleep_ms(limit_ms)
        told = [self._told.get_nowait() for _ in range(self._told.qsize())]
        return [event for event in told if event is not None]

    async def aclose(self) -> None:
        """Read no more."""
        self.reading.cancel()
        await asyncio.wait([self.reading])


@asynccontextmanager
async def _talk(engine: S2S, history: tuple[Any, ...] = ()) -> AsyncIterator[tuple[S2SSession, _Events]]:
    async with handle_of(engine) as handle:
        session = await in_time(handle.connect(history), "the end of connect")
        async with aclosing(session), aclosing(_Events(session)) as events:
            yield session, events


async def _say(session: S2SSession, engine: S2S, sound: Audio, quiet_ms: float = QUIET_MS) -> None:
    """The sound between quiet, at its own pace."""
    sound = resample(sound, engine.capabilities.input_rate_hz)
    around = [silence(ms, sound.sample_rate_hz).pcm for ms in (LEAD_MS, quiet_ms)]
    for piece in cut_evenly(Audio(sound.pcm.join(around), sound.sample_rate_hz), PIECE_MS):
        await in_time(session.send_audio(piece), "the end of send_audio")
        await Clock().sleep_ms(piece.duration_ms)


async def _turn_events(session: S2SSession, events: _Events, closes: bool) -> list[Frame]:
    """Everything up to the end of a reply to a spoken turn, and of the turn's words."""
    told: list[Frame] = []

    def waits() -> bool:
        closed = not closes or any(isinstance(one, Transcript) and one.closes for one in told)
        return not (closed and any(isinstance(one, ReplyEnded) for one in told))

    while waits():
        told.append(await events.next("the end of a reply and the words of its turn"))
        if isinstance(told[-1], TurnEnded):
            await in_time(session.answer(), "the end of answer")
    return told


async def _spoken_turn(session: S2SSession, events: _Events, engine: S2S, sound: Audio) -> _Turn:
    saying = asyncio.create_task(_say(session, engine, sound), name="the caller")
    try:
        told = await _turn_events(session, events, engine.capabilities.closes)
        await saying
    finally:
        saying.cancel()
        await asyncio.wait([saying])
    words = [word for one in told if isinstance(one, Transcript) and one.is_final for word in words_of(one.text)]
    return _Turn(words, told)


async def _typed_turn(session: S2SSession, events: _Events, text: str) -> list[Frame]:
    await in_time(session.send_text(text), "the end of send_text")
    return await _reply(events)


async def _reply(events: _Events) -> list[Frame]:
    told: list[Frame] = []
    while not (told and isinstance(told[-1], ReplyEnded)):
        told.append(await events.next("the end of a reply"))
    return told


def _expect_sound(engine: S2S, told: list[Frame], what: str) -> None:
    sound = [one for one in told if isinstance(one, AudioOut)]
    expect(any(any(one.pcm) for one in sound), f"{what} has no sound")
    odd = [len(one.pcm) for one in sound if len(one.pcm) % BYTES_PER_SAMPLE]
    expect(not odd, f"{what} has pieces of {odd[:3]} bytes; expected whole samples of {BYTES_PER_SAMPLE} bytes")
    rates_hz = {one.sample_rate_hz for one in sound}
    claimed_hz = engine.capabilities.output_rate_hz
    expect(rates_hz == {claimed_hz}, f"{what} is of {rates_hz} Hz; capabilities say {claimed_hz}")
    text = "".join(one.text for one in told if isinstance(one, (TextDelta, AudioOut)))
    expect(text.strip(), f"{what} has no text")


# --- checks ----------------------------------------------------------------------------------------------------------


async def _a_spoken_turn_is_answered(trial: _Talking) -> None:
    async with trial.make() as engine, _talk(engine) as (session, events):
        sent_ms = 0.0
        for nth in ("first", "second"):
            turn = await _spoken_turn(session, events, engine, trial.audio)
            heard_so = same_words(turn.words, trial.words, SHARE_WRONG)
            expect(heard_so, f"in the {nth} turn it hears {' '.join(turn.words)!r}; expected {' '.join(trial.words)!r}")
            _expect_sound(engine, turn.reply, f"the reply to the {nth} turn")
            _expect_order(engine, turn.reply)
            _expect_places(turn.reply, sent_ms + LEAD_MS, sent_ms + LEAD_MS + trial.audio.duration_ms)
            sent_ms += LEAD_MS + trial.audio.duration_ms + QUIET_MS


def _expect_order(engine: S2S, told: list[Frame]) -> None:
    kinds = [type(one) for one in told]
    ends = kinds.count(TurnEnded)
    expect(ends == 1, f"one turn has {ends} TurnEnded; expected one")
    ended = kinds.index(TurnEnded)
    first = min(at for at, kind in enumerate(kinds) if kind in (AudioOut, TextDelta))
    expect(ended < first, "the reply begins before TurnEnded")
    expect(kinds.count(ReplyEnded) == 1, f"one reply has {kinds.count(ReplyEnded)} ReplyEnded; expected one")
    last = max(at for at, kind in enumerate(kinds) if kind in (AudioOut, TextDelta))
    expect(last < kinds.index(ReplyEnded), "after ReplyEnded came more of the reply")
    finals = [at for at, one in enumerate(told) if isinstance(one, Transcript) and one.is_final]
    if not engine.capabilities.closes:
        expect(max(finals) < ended, "the turn's words come after TurnEnded; capabilities say that they do not (closes)")
        return
    closing = [at for at in finals if getattr(told[at], "closes", False)]
    expect(len(closing) == 1, f"the turn is told its words by {len(closing)} closing transcripts; expected one")


def _expect_places(told: list[Frame], start_ms: float, end_ms: float) -> None:
    for one in told:
        place = (one.speech_start_ms, start_ms) if isinstance(one, SpeechStarted) else None
        place = (one.speech_end_ms, end_ms) if isinstance(one, SpeechEnded) else place
        if place is not None:
            near = abs(place[0] - place[1]) <= EDGE_MS
            expect(
                near, f"{type(one).__name__} places speech at {place[0]:.0f} ms of the audio sent; expected {place[1]:.0f} ms"
            )


async def _a_typed_turn_is_answered(trial: _Talking) -> None:
    async with trial.make() as engine, _talk(engine) as (session, events):
        for nth in ("first", "second"):
            told = await _typed_turn(session, events, TEXT)
            _expect_sound(engine, told, f"the reply to the {nth} typed turn")
            of_speech = [one for one in told if isinstance(one, (TurnEnded, Transcript))]
            expect(not of_speech, f"a typed turn is told as {of_speech[:1]!r}; expected only its reply")


async def _heard_however_it_is_cut(trial: _Talking) -> None:
    async with trial.make() as engine, _talk(engine) as (session, events):
        rate_hz = engine.capabilities.input_rate_hz
        quiet = silence(QUIET_MS, rate_hz).pcm
        sound = Audio(quiet + resample(trial.audio, rate_hz).pcm + quiet, rate_hz)

        async def say() -> None:
            for piece in cut_unevenly(sound):
                await session.send_audio(piece)
                await Clock().sleep_ms(piece.duration_ms)

        saying = asyncio.create_task(say(), name="the caller")
        told = await _turn_events(session, events, engine.capabilities.closes)
        await in_time(saying, "the end of send_audio")
        got = [word for one in told if isinstance(one, Transcript) and one.is_final for word in words_of(one.text)]
        heard_so = same_words(got, trial.words, SHARE_WRONG)
        expect(heard_so, f"cut unevenly it hears {' '.join(got)!r}; expected {' '.join(trial.words)!r}")


async def _interrupting_stops_the_reply(trial: _Talking) -> None:
    async with trial.make() as engine, _talk(engine) as (session, events):
        for played_ms in (0.0, 50.0):
            await in_time(session.send_text(TEXT), "the end of send_text")
            while not isinstance(await events.next("the reply's sound"), AudioOut):
                pass
            await in_time(session.interrupt(played_ms), "the end of interrupt")
            late = [one for one in await events.within(LATE_MS) if isinstance(one, (AudioOut, TextDelta))]
            expect(not late, f"after interrupt came {len(late)} more piece(s) of the reply, like {late[:1]!r}; expected none")
        told = await _typed_turn(session, events, TEXT)
        _expect_sound(engine, told, "the reply after an interruption")


async def _a_turn_is_ended_by_a_button(trial: _Talking) -> None:
    async with trial.make() as engine, _talk(engine) as (session, events):
        if type(session).end_turn is S2SSession.end_turn:
            raise NotApplicable("its turns cannot be ended from outside")
        await in_time(session.end_turn(), "the end of end_turn")
        told = await events.within(LATE_MS)
        early = [one for one in told if isinstance(one, TurnEnded)]
        expect(not early, f"end_turn before any speech gives {early[:1]!r}; expected nothing")
        await _say(session, engine, trial.audio, quiet_ms=0.0)
        await in_time(session.end_turn(), "the end of end_turn")
        _expect_order(engine, await _turn_events(session, events, engine.capabilities.closes))


async def _it_says_what_it_is_told(trial: _Talking) -> None:
    async with trial.make() as engine, _talk(engine) as (session, events):
        if not engine.capabilities.says:
            raise NotApplicable("it does not claim to say a text")
        await in_time(session.say("One moment, please."), "the end of say")
        told = await _reply(events)
        _expect_sound(engine, told, "what it was told to say")
        got = words_of("".join(one.text for one in told if isinstance(one, (TextDelta, AudioOut))))
        expect(same_words(got, words_of("One moment, please.")), f"told to say 'One moment, please.' it says {' '.join(got)!r}")


async def _it_goes_on_from_any_history(trial: _Talking) -> None:
    async with trial.make() as engine:
        for count in (0, 2, 3, len(HISTORY)):
            async with _talk(engine, HISTORY[:count]) as (session, events):
                told = await _typed_turn(session, events, TEXT)
                _expect_sound(engine, told, f"the reply after {count} messages")
        async with _talk(engine, HISTORY[:3]) as (session, events):  # whose last is the caller's
            if type(session).answer is S2SSession.answer:
                return
            early = [one for one in await events.within(LATE_MS) if isinstance(one, (AudioOut, TextDelta))]
            expect(not early, "it answers the last message of its history unasked; expected it to wait for answer()")
            await in_time(session.answer(), "the end of answer")
            _expect_sound(engine, await _reply(events), "the reply to the last message of its history")


async def _tools_are_called_and_answered(trial: _Talking) -> None:
    async with trial.make() as engine, _talk(engine) as (session, events):
        if not engine.capabilities.tools:
            raise NotApplicable("it claims no tools")
        if not trial.tool_question:
            raise NotApplicable("no question is given that makes it call a tool")
        await in_time(session.send_text(trial.tool_question), "the end of send_text")
        told: list[Frame] = []
        while not (told and isinstance(told[-1], ReplyEnded)):
            told.append(await events.next("the end of a reply with a tool"))
            if isinstance(told[-1], ToolCalled):
                result = ToolReturned(told[-1].call_id, {"result": "five"})
                await in_time(session.send_tool_result(result), "the end of send_tool_result")
        called = [at for at, one in enumerate(told) if isinstance(one, ToolCalled)]
        expect(called, f"it claims tools; asked {trial.tool_question!r} it calls none")
        _expect_sound(engine, told[called[-1] :], "the reply after a tool was answered")


async def _hanging_up_ends_everything(trial: _Talking) -> None:
    async with trial.make() as engine, handle_of(engine) as handle:
        await trial.use(engine, 1)
        before = Leftovers(threads=False)
        for moment in ("unused", "with a reader", "in a reply"):
            session = await in_time(handle.connect(), "the end of connect")
            events = _Events(session) if moment != "unused" else None
            if events is not None and moment == "in a reply":
                await session.send_text(TEXT)
                while not isinstance(await events.next("the reply's sound"), AudioOut):
                    pass
            await asyncio.sleep(0)
            for nth in ("first", "second"):
                await in_time(session.aclose(), f"the end of the {nth} aclose of a session {moment}", STOP_MS)
            if events is not None:
                await in_time(asyncio.wait([events.reading]), "the end of the events of a session that was closed", STOP_MS)
                error = events.reading.exception()
                expect(error is None, f"the events raise {error!r} when their session is closed; expected them to end")
            await before.expect_no_more(f"a session was closed {moment}")


CHECKS: dict[str, Callable[[Any], Awaitable[None]]] = {
    "a spoken turn is answered": _a_spoken_turn_is_answered,
    "a typed turn is answered": _a_typed_turn_is_answered,
    "heard however it is cut": _heard_however_it_is_cut,
    "interrupting stops the reply": _interrupting_stops_the_reply,
    "a turn is ended by a button": _a_turn_is_ended_by_a_button,
    "it says what it is told": _it_says_what_it_is_told,
    "it goes on from any history": _it_goes_on_from_any_history,
    "tools are called and answered": _tools_are_called_and_answered,
    "hanging up ends everything": _hanging_up_ends_everything,
    **engine_checks.CHECKS,
    **engine_checks.SERVICE_CHECKS,
}
