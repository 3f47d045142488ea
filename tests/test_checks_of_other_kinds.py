"""The suites of checks for detectors, agents, speech-to-speech models and transports can fail, each check of them."""

import asyncio
import time
from contextlib import asynccontextmanager

import attrs
import pytest
from toy_s2s import ToyS2S, ToySession

from beluga_voice import Audio, vad
from beluga_voice.agent import Agent, AgentCapabilities
from beluga_voice.builtin.memory_transport import MemoryTransport
from beluga_voice.builtin.silence_turn import SilenceTurn, _SilenceStream
from beluga_voice.clock import run_simulated
from beluga_voice.frames import (
    AudioIn,
    AudioOut,
    ReplyEnded,
    SpeechStarted,
    ToolCalled,
    ToolReturned,
    Transcript,
    TurnEnded,
    TurnEndWithdrawn,
)
from beluga_voice.testing import LoudVAD, agent_checks, s2s_checks, transport_checks, turn_checks, vad_checks
from beluga_voice.testing.tone_speech import say
from beluga_voice.testing.transport_checks import Line, check_transport
from beluga_voice.vad import VAD, VADStream

RUNS = pytest.mark.parametrize("run", [run_simulated, asyncio.run], ids=["simulated time", "real time"])
BROKEN = []


def breaks(check, message):
    """Marks what breaks what `check` is about, and is told so in these words."""

    def note(made):
        BROKEN.append(pytest.param(made, check, message, id=f"{made.kind}, {check}: {made.__name__}"))
        return made

    return note


# --- voice activity --------------------------------------------------------------------------------------------------


class Ear(VADStream):
    """What `LoudVAD` hears."""

    def __init__(self, engine):
        self.engine, self.inner = engine, LoudVAD().stream()

    async def probability(self, window):
        return await self.inner.probability(window)


class Ears(VAD):
    ear = Ear

    def stream(self):
        return self.ear(self)


def ears(check, message):
    """Marks a stream that breaks what `check` is about."""

    def note(ear):
        breaks(check, message)(type(ear.__name__, (Ears,), {"ear": ear}))
        return ear

    return note


@ears("speech stands out of quiet", "0% of the windows of speech are speech to it")
class HearsNothing(Ear):
    async def probability(self, window):
        return 0.1


@ears("speech stands out of quiet", "100% of the windows of silence are speech to it")
class HearsVoices(Ear):
    async def probability(self, window):
        return 0.9


@ears("speech stands out of quiet", "a probability is 100.0; expected 0..1")
class HearsInPercent(Ear):
    async def probability(self, window):
        return 100 * await super().probability(window)


@ears("each stream is fresh", "has other probabilities than before")
@ears("many at once are as one alone", "at once: stream of size")
class SharesItsState(Ear):
    windows = 0

    async def probability(self, window):
        SharesItsState.windows += 1
        await asyncio.sleep(0)
        return (SharesItsState.windows % 7) / 7


@ears("no line waits for another", "not there after 1,000 ms")
class WaitsForAll(Ear):
    open = 0

    def __init__(self, engine):
        super().__init__(engine)
        WaitsForAll.open += 1

    async def probability(self, window):
        if WaitsForAll.open > 1:
            await asyncio.Event().wait()
        return await super().probability(window)

    def close(self):
        WaitsForAll.open -= 1


@ears("no line waits for another", "a window takes 30 ms while another line is quiet")
class WaitsForMore(Ear):
    async def probability(self, window):
        await asyncio.sleep(0.03)
        return await super().probability(window)


@ears("closing one disturbs no other", "not there|are others than alone")
class ClosesAll(Ear):
    closed = False

    def __init__(self, engine):
        super().__init__(engine)
        self.engine.closed = False

    async def probability(self, window):
        await asyncio.sleep(0.001)
        return 0.0 if self.engine.closed else await super().probability(window)

    def close(self):
        self.engine.closed = True


@breaks("speech is found however the line is cut", "finds speech at|finds no speech")
class ClaimsAnotherRate(Ears):
    """It takes windows of 512 samples for 32 ms, and asks for 64 ms of sound in them."""

    capabilities = vad.VADCapabilities(sample_rate_hz=8_000, window_samples=512)

    class ear(Ear):
        heard = 0

        async def probability(self, window):
            self.heard += 1
            return await super().probability(window) if self.heard > 40 else 0.0


# --- turns -----------------------------------------------------------------------------------------------------------


class Judge(_SilenceStream):
    """What the silence detector decides."""


def judges(check, message):
    """Marks a stream that breaks what `check` is about."""

    def note(judge):
        breaks(check, message)(type(judge.__name__, (SilenceTurn,), {"stream": lambda self: judge(self.options)}))
        return judge

    return note


@judges("a turn ends once after it", "end 2 times; expected once")
class EndsTwice(Judge):
    def feed(self, frame):
        for decided in super().feed(frame):
            yield decided
            if isinstance(decided, TurnEnded):
                yield decided


@judges("a turn ends once after it", "the second turn, then 10,000 ms of quiet, end 0 times")
class EndsOnce(Judge):
    done = False

    def feed(self, frame):
        decided = () if self.done else tuple(super().feed(frame))
        self.done = self.done or any(isinstance(one, TurnEnded) for one in decided)
        return decided


@judges("a turn ends once after it", "places the first speech at")
class PlacesNothing(Judge):
    def feed(self, frame):
        return [attrs.evolve(one, speech_start_ms=-1.0) if isinstance(one, TurnEnded) else one for one in super().feed(frame)]


@judges("quiet is no turn", "30,000 ms of quiet bring")
class EndsQuiet(Judge):
    def feed(self, frame):
        yield from super().feed(frame)
        if getattr(frame, "at_ms", 0) > 20_000:
            yield TurnEnded(frame.at_ms, "bored")


@judges("no turn ends in its speech", "is ended in its midst")
class Interrupts(Judge):
    def feed(self, frame):
        yield from super().feed(frame)
        if self._began_ms is not None and self._now_ms - self._began_ms > 5_000:
            yield self._end("impatience")


@judges("ends are proposed and withdrawn in order", "TurnEndWithdrawn without a proposal before it")
class WithdrawsAlways(Judge):
    def feed(self, frame):
        if isinstance(frame, SpeechStarted):
            yield TurnEndWithdrawn(frame.at_ms)
        yield from super().feed(frame)


@judges("ends are proposed and withdrawn in order", "TurnEndProposed after one that was neither withdrawn")
class NeverWithdraws(Judge):
    def feed(self, frame):
        return [one for one in super().feed(frame) if not isinstance(one, TurnEndWithdrawn)]


@judges("end_now ends what was said", "before any speech gives")
class EndsNothing(Judge):
    def end_now(self, source):
        return TurnEnded(self._now_ms, source, 0.0, 0.0)


@judges("end_now ends what was said", "end_now after speech gives None")
class DoesNotEnd(Judge):
    def end_now(self, source):
        return None


@breaks("streams are apart", "decided otherwise than alone|on a quiet line beside another it decides")
class MixesLines(SilenceTurn):
    one = None

    def stream(self):
        self.one = self.one or super().stream()
        return self.one


@judges("feed is quick", "feed holds the event loop for")
class Ponders(Judge):
    def feed(self, frame):
        if isinstance(frame, SpeechStarted):
            time.sleep(0.06)
        return super().feed(frame)


# --- agents ----------------------------------------------------------------------------------------------------------


class ToolAgent(Agent):
    """It looks the weather up, and says its answers in two parts."""

    capabilities = AgentCapabilities(tools=True)

    async def reply(self, text, history, session):
        if "weather" in text:
            yield ToolCalled("1", "weather")
            await asyncio.sleep(0.01)
            yield ToolReturned("1", "sunny")
        yield "You said: "
        await asyncio.sleep(0.01)
        yield text


class Later(Agent):
    """An agent whose reply is one text, later."""

    async def reply(self, text, history):
        await asyncio.sleep(0.01)
        return f"You said: {text}"


@RUNS
@pytest.mark.parametrize("make", [ToolAgent, Later])
@pytest.mark.parametrize("check", agent_checks.CHECKS)
def test_good_agents_pass(make, check, run):
    left_out = run(agent_checks.check_agent(make, check, tool_question="What is the weather?"))
    assert (check == "tools are answered" and make is ToolAgent) <= (left_out == {})


@breaks("it answers", "expected text to say")
class SaysNothing(ToolAgent):
    async def reply(self, text, history, session):
        yield ""


@breaks("it answers", "it gives int 5; expected str")
class GivesNumbers(ToolAgent):
    async def reply(self, text, history, session):
        yield "two plus three is "
        yield 5


@breaks("it takes any history", "no words")
class ReadsOnlyWords(ToolAgent):
    async def reply(self, text, history, session):
        if any(not message.text for message in history):
            raise ValueError("no words")
        yield text


@breaks("it takes any history", "expected text to say")
class TiresOfHistory(ToolAgent):
    async def reply(self, text, history, session):
        yield text if len(history) < 100 else ""


@breaks("closing the reply stops it", r"a reply was closed after 1 part.*1 task.s. \(thinks on\)")
class ThinksOn(ToolAgent):
    async def reply(self, text, history, session):
        thinking = asyncio.create_task(asyncio.sleep(1.5), name="thinks on")
        yield "You said: "
        await thinking
        yield text


@breaks("closing the reply stops it", "the end of a reply that was closed: not there")
class SpeaksToItsEnd(ToolAgent):
    async def reply(self, text, history, session):
        try:
            yield text
        finally:
            await asyncio.sleep(60)


@breaks("tools are answered", "it calls none")
class ClaimsTools(ToolAgent):
    async def reply(self, text, history, session):
        yield text


@breaks("tools are answered", r"the tool calls \['1'\] have no ToolReturned")
class ForgetsItsTools(ToolAgent):
    async def reply(self, text, history, session):
        yield ToolCalled("1", "weather")
        yield ToolReturned("2", "sunny") if "?" not in text else text


@breaks("tools are answered", "answers no call before it")
class AnswersUnasked(ToolAgent):
    async def reply(self, text, history, session):
        yield ToolCalled("1", "weather")
        yield ToolReturned("2", "sunny")
        yield text


@breaks("tools are answered", "says nothing after its tools have returned")
class StopsAtTools(ToolAgent):
    async def reply(self, text, history, session):
        yield text
        yield ToolCalled("1", "weather")
        yield ToolReturned("1", "sunny")


# --- speech to speech ------------------------------------------------------------------------------------------------

SAID = {"audio": Audio(say("one two three four"), 16_000), "words": "one two three four"}
ASKED = {**SAID, "tool_question": "What is the weather in paris?"}


@pytest.mark.parametrize("check", s2s_checks.CHECKS)
def test_a_good_model_passes(check):
    left_out = run_simulated(s2s_checks.check_s2s(ToyS2S, check, **ASKED))
    assert set(left_out) <= {"options change in a copy", "faults are told as they are", "the key is never told"}


def test_a_good_model_passes_in_real_time():
    asyncio.run(s2s_checks.check_s2s(ToyS2S, "a spoken turn is answered", **ASKED))


def talks(check, message):
    """Marks a session that breaks what `check` is about."""

    def note(made):
        async def connect(self, history=()):
            return made(self)

        breaks(check, message)(type(made.__name__, (ToyS2S,), {"connect": connect}))
        return made

    return note


@talks("a spoken turn is answered", "in the first turn it hears 'one two'")
class HearsHalf(ToySession):
    def end(self):
        self.turn = self.turn[: len(self.turn) // 3]
        super().end()


@talks("a spoken turn is answered", "one turn has 2 TurnEnded")
class EndsEveryTurnTwice(ToySession):
    def end(self):
        super().end()
        self.tell(TurnEnded(self.sent_ms, "toy"))


@talks("a spoken turn is answered", "the turn's words come after TurnEnded")
class TellsItsWordsLate(ToySession):
    def end(self):
        super().end()
        kept = [self.out.get_nowait() for _ in range(self.out.qsize())]
        for frame in sorted(kept, key=lambda frame: isinstance(frame, Transcript)):
            self.tell(frame)


@talks("a spoken turn is answered", "places speech at 1500 ms")
class PlacesElsewhere(ToySession):
    def tell(self, frame):
        if isinstance(frame, SpeechStarted):
            frame = attrs.evolve(frame, speech_start_ms=frame.speech_start_ms + 1_000)
        super().tell(frame)


@talks("a spoken turn is answered", "after ReplyEnded came more of the reply|has no sound")
class EndsTooSoon(ToySession):
    def tell(self, frame):
        if isinstance(frame, AudioOut) and not getattr(self, "told", False):
            self.told = True
            super().tell(ReplyEnded(0, "", False))
        super().tell(frame)


@breaks("a spoken turn is answered", "capabilities say 16000")
class ClaimsAnotherOutput(ToyS2S):
    capabilities = attrs.evolve(ToyS2S.capabilities, output_rate_hz=16_000)


@talks("a typed turn is answered", "a typed turn is told as")
class TellsTypedTurns(ToySession):
    async def send_text(self, text):
        self.tell(Transcript(text))
        await super().send_text(text)


@talks("heard however it is cut", "cut unevenly it hears")
class LosesSmallPieces(ToySession):
    async def send_audio(self, sound):
        if sound.duration_ms > 50:
            await super().send_audio(sound)


@talks("interrupting stops the reply", "more piece.s. of the reply")
class TalksOn(ToySession):
    async def interrupt(self, played_ms):
        pass


@talks("a turn is ended by a button", "end_turn before any speech gives")
class EndsSilence(ToySession):
    async def end_turn(self):
        self.began_ms = self.began_ms or 0.0
        self.end()


@talks("it says what it is told", "it says 'one moment please as you wish'")
class AddsToIt(ToySession):
    async def say(self, text):
        await super().say(f"{text} As you wish.")


@talks("it goes on from any history", "it answers the last message of its history unasked")
class AnswersUnbidden(ToySession):
    def __init__(self, engine):
        super().__init__(engine)
        self.tell(AudioOut(say("hello", 24_000), 24_000))


@breaks("it goes on from any history", "no words")
class ReadsOnlyTexts(ToyS2S):
    async def connect(self, history=()):
        if any(not message.text for message in history):
            raise ValueError("no words")
        return ToySession(self)


@talks("tools are called and answered", "it calls none")
class CallsNoTools(ToySession):
    async def reply(self, text):
        await super().reply("sunny")


@talks("hanging up ends everything", "the end of the events of a session that was closed")
class LeavesItsReader(ToySession):
    async def aclose(self):
        await self.interrupt(0)


@talks("hanging up ends everything", "left behind 1,000 ms after a session was closed in a reply|the events raise")
class TalksAfterHangingUp(ToySession):
    async def aclose(self):
        self.tell(None)
        self.replying and asyncio.create_task(asyncio.sleep(3))


# --- transports ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def memory(made=MemoryTransport):
    line = made()
    yield Line(line, speak=line.speak, hang_up=line.hang_up, lose=line.lose)


def lines(check, message):
    """Marks a line that breaks what `check` is about."""

    def note(line):
        breaks(check, message)(line)
        return line

    return note


@lines("nothing opens before recv", r"it was made|1 task")
class OpensAtOnce(MemoryTransport):
    def clear(self):
        super().clear()
        self.opening = asyncio.create_task(asyncio.sleep(5), name="opening")


@lines("what is said arrives in order", "not all came, as they were")
class LosesFrames(MemoryTransport):
    async def recv(self):
        at = 0
        async for frame in super().recv():
            at += 1
            if at % 10:
                yield frame


@lines("what is said arrives in order", "audio is placed at 0.0 ms")
class PlacesAudio(MemoryTransport):
    async def recv(self):
        async for frame in super().recv():
            yield AudioIn(frame.pcm, frame.sample_rate_hz, 0.0)


@lines("what is said arrives in order", "audio of 8000 Hz came; input_rate_hz is 16000")
class ClaimsAnotherLineRate(MemoryTransport):
    async def recv(self):
        async for frame in super().recv():
            yield AudioIn(frame.pcm, 8_000)


@lines("played_ms counts what was played", "of 1000.0 ms sent")
class CountsTooMuch(MemoryTransport):
    @property
    def played_ms(self):
        return 2 * super().played_ms


@lines("playing takes its time", "are played as soon as they are sent")
class CountsWhatIsSent(MemoryTransport):
    counted_ms = 0.0

    async def send(self, frame):
        self.counted_ms += len(frame.pcm) * 500 / frame.sample_rate_hz

    @property
    def played_ms(self):
        return self.counted_ms


@lines("cleared sound never counts", "after clear; expected it to stay")
class CannotClear(MemoryTransport):
    def clear(self):
        pass


@lines("pausing keeps what was sent", "it plays on to")
class ClaimsToPause(MemoryTransport):
    def pause(self):
        return True


@lines("hanging up ends recv", "when the person hangs up recv raises LineLost")
class HangsUpAsLost(MemoryTransport):
    def hang_up(self):
        self.lose()


@lines("a lost line is told", "when the line breaks recv ends with None; expected LineLost")
class LosesAsHungUp(MemoryTransport):
    def lose(self):
        self.hang_up()


@lines("closing frees everything", r"1 task.s. \(keeps alive\)")
@lines("cancelling recv frees everything", r"1 task.s. \(keeps alive\)")
class KeepsAlive(MemoryTransport):
    async def recv(self):
        self.task = asyncio.create_task(asyncio.sleep(60), name="keeps alive")
        async for frame in super().recv():
            yield frame


@lines("closing frees everything", "the end of the second aclose: not there")
class ClosesOnce(MemoryTransport):
    closed = False

    async def aclose(self):
        if self.closed:
            await asyncio.Event().wait()
        self.closed = True
        await super().aclose()


@lines("news do not hold it up", "KeyError: 'state'|'state'")
class KnowsEveryEvent(MemoryTransport):
    def notify(self, event):
        self.state = event.data["state"]


# --- all of them -----------------------------------------------------------------------------------------------------

SUITES = {
    "vad": (vad_checks.CHECKS, vad_checks.check_vad, {}),
    "turn": (turn_checks.CHECKS, turn_checks.check_turn, {}),
    "agent": (agent_checks.CHECKS, agent_checks.check_agent, {"tool_question": "What is the weather?"}),
    "s2s": (s2s_checks.CHECKS, s2s_checks.check_s2s, ASKED),
    "transport": (transport_checks.CHECKS, check_transport, {}),
}


@pytest.mark.parametrize(("made", "check", "message"), BROKEN)
def test_a_broken_promise_is_told(made, check, message):
    _, suite, given = SUITES[made.kind]
    make = (lambda: memory(made)) if made.kind == "transport" else made
    with pytest.raises(Exception, match=message):
        run_simulated(suite(make, check, **given))


@pytest.mark.parametrize("kind", SUITES)
def test_every_check_is_broken_by_somebody(kind):
    """Those that all kinds share are broken by recognisers, in test_checks.py."""
    from beluga_voice.testing import engine_checks

    shared = {**engine_checks.CHECKS, **engine_checks.SERVICE_CHECKS}
    broken = {param.values[1] for param in BROKEN if param.values[0].kind == kind}
    assert set(SUITES[kind][0]) - set(shared) - broken == set()
