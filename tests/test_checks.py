"""The suites of checks for recognisers and voices can fail: each promise is broken by an engine, and the breach is told."""

import asyncio
import functools
import logging
import threading
import time

import attrs
import pytest
from toy_service import KEY, ToyServer, ToyStream, ToySTT, ToyTTS, audio_of

from beluga_voice import Audio
from beluga_voice.clock import run_simulated
from beluga_voice.errors import AuthError, InvalidRequestError, ProviderError
from beluga_voice.frames import AudioOut, Transcript, Word
from beluga_voice.stt import STT, BatchStream, STTCapabilities
from beluga_voice.testing import stt_checks, tts_checks
from beluga_voice.testing.checking import Leftovers, Steps, faults_of, in_time, same_words
from beluga_voice.testing.stt_checks import check_stt
from beluga_voice.testing.tone_speech import say, understand, word_times
from beluga_voice.testing.tts_checks import check_tts
from beluga_voice.tts import TTS, TTSCapabilities

WORDS = "one two three four"
RUNS = pytest.mark.parametrize("run", [run_simulated, asyncio.run], ids=["simulated time", "real time"])


async def check_ear(engine, check):
    """Run a check on a recogniser that calls the toy service."""
    async with ToyServer(api_key=KEY) as server:
        make = functools.partial(engine, api_key=KEY, base_url=server.url)
        return await check_stt(make, check, audio=audio_of(WORDS), words=WORDS, sick=faults_of(server), canary=KEY)


async def check_voice(engine, check):
    """Run a check on a voice that calls the toy service."""
    async with ToyServer(api_key=KEY) as server:
        make = functools.partial(engine, api_key=KEY, base_url=server.url)
        return await check_tts(make, check, understand=understand, sick=faults_of(server), canary=KEY)


@RUNS
@pytest.mark.parametrize("check", stt_checks.CHECKS)
def test_a_good_recogniser_passes(check, run):
    in_vain = check in run(check_ear(ToySTT, check))
    assert in_vain == (check == "quick as claimed" or (check == "hears after a minute of quiet" and run is asyncio.run))


@RUNS
@pytest.mark.parametrize("check", tts_checks.CHECKS)
def test_a_good_voice_passes(check, run):
    assert (check in run(check_voice(ToyTTS, check))) == (check == "spoken however it is cut")


BROKEN = []


def breaks(check, message):
    """Marks an engine, or the stream of one, that breaks what `check` is about, and is told so in these words."""

    def note(made):
        streams = issubclass(made, ToyStream)
        engine = type(made.__name__, (ToySTT,), {"stream": lambda self: made(self)}) if streams else made
        BROKEN.append(pytest.param(engine, check, message, id=f"{engine.kind}, {check}: {made.__name__}"))
        return made

    return note


# --- recognisers -----------------------------------------------------------------------------------------------------


@breaks("words are heard", "by its transcribe it hears 'one two three'; expected 'one two three four'")
class LosesTheEnd(ToySTT):
    async def transcribe(self, audio):
        return await super().transcribe(Audio(audio.pcm[:-8_000], audio.sample_rate_hz))


@breaks("each finalize is answered once", "after the final that closes the first utterance came")
class ClosesTwice(ToyStream):
    again = None

    async def __anext__(self):
        told, self.again = self.again or await super().__anext__(), None
        if told.closes and told.text:
            self.again = attrs.evolve(told, text="")
        return told


@breaks("each finalize is answered once", "in the second utterance of a stream it hears")
class TellsWhatWasToldBefore(ToyStream):
    before = ""

    def transcript(self, message):
        told = super().transcript(message)
        if told.is_final:
            self.before = f"{self.before} {told.text}".strip()
        return attrs.evolve(told, text=self.before) if told.is_final else told


@breaks("each finalize is answered once", "the final transcript that answers finalize: not there after 60,000 ms")
class NeverCloses(ToyStream):
    def transcript(self, message):
        return attrs.evolve(super().transcript(message), closes=False)


@breaks("finalizes are answered in order", "in the first it hears")
class FinalizesWhenItIsRead(ToyStream):
    owed = 0

    async def finalize(self):
        self.owed += 1

    async def __anext__(self):
        for _ in range(self.owed):
            self.owed -= 1
            await super().finalize()
        return await super().__anext__()


@breaks("finalize with nothing sent", "the final transcript that answers finalize: not there")
class FinalizesOnlyAudio(ToyStream):
    heard = False

    async def send(self, audio):
        self.heard = self.heard or bool(audio.pcm)
        await super().send(audio)

    async def finalize(self):
        if self.heard:
            await super().finalize()


@breaks("heard however it is cut", "cut in 7 ms it hears ''")
class LosesWhatIsLeftOfBlocks(ToyStream):
    async def send(self, audio):
        await super().send(Audio(audio.pcm[: len(audio.pcm) // 640 * 640], audio.sample_rate_hz))


@breaks("heard however it is cut", "cut in two it hears 'one two'")
class LosesTheLastPieceUnlessItIsABlock(ToyStream):
    last = b""

    async def send(self, audio):
        last, self.last = self.last, audio.pcm
        await self.write(last)

    async def finalize(self):
        if len(self.last) % 640 == 0:
            await self.write(self.last)
        self.last = b""
        await super().finalize()


@breaks("heard however it is cut", "cut in 20 ms it hears ''")
class LosesSmallPieces(ToyStream):
    async def send(self, audio):
        if audio.duration_ms >= 50:
            await super().send(audio)


class Offline(STT):
    """A recogniser that calls nobody; it takes all audio for its own rate."""

    capabilities = STTCapabilities()

    def __init__(self, **options):
        pass

    async def transcribe(self, audio):
        return Transcript(understand(audio.pcm, 16_000))


@breaks("heard at any rate", "at 8000 Hz it hears")
class ClaimsAnyRate(Offline):
    capabilities = STTCapabilities(sample_rate_hz=None)


@breaks("heard at any rate", "on a line of 8000 Hz it hears")
class ClaimsAnotherRate(Offline):
    capabilities = STTCapabilities(sample_rate_hz=8_000)


@breaks("interims as claimed", "it claims interim transcripts and gives none")
class ClaimsInterims(Offline):
    capabilities = STTCapabilities(interim=True)


@breaks("interims as claimed", "it claims no interim transcripts and gives")
class HidesInterims(ToySTT):
    capabilities = STTCapabilities()


@breaks("interims as claimed", "only a final answers finalize")
class InterimsClose(ToyStream):
    interims = 0

    def transcript(self, message):
        told = super().transcript(message)
        self.interims += not told.is_final
        return attrs.evolve(told, closes=True) if self.interims == 3 else told


@breaks("quick as claimed", "it claims to be quick and calls 'toy@")
class ClaimsToBeQuick(ToySTT):
    capabilities = STTCapabilities(interim=True, quick=True)


@breaks("quick as claimed", "the interim transcript that answers a peek: not there after 2,000 ms")
class IsSlow(Offline):
    capabilities = STTCapabilities(quick=True)

    async def transcribe(self, audio):
        await asyncio.sleep(2.5)
        return await super().transcribe(audio)


@breaks("quick as claimed", "a peek is answered by Transcript")
class AnswersPeeksByFinals(Offline):
    capabilities = STTCapabilities(quick=True)

    def stream(self):
        return FinalPeeks(self)


class FinalPeeks(BatchStream):
    async def peek(self):
        await self.finalize()


class Retold(ToyStream):
    """Its finals are told otherwise."""

    def transcript(self, message):
        told = super().transcript(message)
        return attrs.evolve(told, **self.otherwise(told)) if told.is_final else told


@breaks("words have times", "comes after a word that starts at")
class TimesGoBack(Retold):
    def otherwise(self, told):
        return {"words": tuple(Word(word.text, 1_000 - word.start_ms, 1_100 - word.start_ms) for word in told.words)}


@breaks("words have times", "ends after the audio, of 1040 ms")
class TimesAreLate(Retold):
    def otherwise(self, told):
        return {"words": tuple(Word(word.text, word.start_ms + 500, word.end_ms + 500) for word in told.words)}


@breaks("words have times", "expected those of the text")
class TimesLackAWord(Retold):
    def otherwise(self, told):
        return {"words": told.words[1:]}


@breaks("words have times", "has the confidence 87; expected 0..1")
class SureInPercent(Retold):
    def otherwise(self, told):
        return {"confidence": 87}


@breaks("words have times", "through_ms is 9000: more than was sent")
class CoversMoreThanWasSent(Retold):
    def otherwise(self, told):
        return {"through_ms": 9_000}


@breaks("closing a stream stops it", "iterating raises ConnectionResetError")
class RaisesWhenClosed(ToyStream):
    async def __anext__(self):
        try:
            return await super().__anext__()
        except StopAsyncIteration:
            raise ConnectionResetError("closed") from None


@breaks("closing a stream stops it", "the end of the second aclose of a stream unused: not there after 1,000 ms")
class HangsWhenClosedTwice(ToyStream):
    async def aclose(self):
        if self.closed:
            await asyncio.Event().wait()
        await super().aclose()


@breaks("closing a stream stops it", "the end of iterating a stream that was closed: not there after 1,000 ms")
class IsReadForEver(ToyStream):
    async def __anext__(self):
        try:
            return await super().__anext__()
        except StopAsyncIteration:
            await asyncio.Event().wait()


@breaks("closing a stream stops it", r"a stream was closed, with audio: .* socket")
@breaks("leaves nothing behind", r"a second use ended as the first did: .* socket")
@breaks("is cancelled at any await", r"was cancelled at wait \d+ of \d+: .* socket")
class LeavesItsSocket(ToyStream):
    left = []

    async def aclose(self):
        self.closed = True
        self.opened.set()
        self.left.append(self.socket)


@breaks("connecting early changes nothing", "it is connected already")
class ConnectsOnce(ToyStream):
    async def connect(self):
        if self.socket is not None:
            raise RuntimeError("it is connected already")
        await super().connect()


@breaks("hears after a minute of quiet", "close code 1006")
class TiresOfQuiet(ToyStream):
    async def finalize(self):
        await super().finalize()
        asyncio.get_running_loop().call_later(30, self.socket.transport.abort)


# --- engines of any kind, here recognisers ---------------------------------------------------------------------------


@breaks("leaves nothing behind", r"1 task.s. \(left behind\)")
@breaks("words are heard", r"1 task.s. \(left behind\)")
class LeavesATask(Offline):
    async def prewarm(self):
        self.left = asyncio.create_task(asyncio.sleep(3_600), name="left behind")


@breaks("leaves nothing behind", r"1 thread.s. \(left behind\)")
class LeavesAThread(Offline):
    async def prewarm(self):
        threading.Thread(target=threading.Event().wait, args=(1,), name="left behind").start()


@breaks("is cancelled at any await", "went on to its end; expected CancelledError to pass")
class SwallowsCancellation(Offline):
    async def transcribe(self, audio):
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            return Transcript("")
        return await super().transcribe(audio)


@breaks("is cancelled at any await", "raised ConnectionError: given up; expected CancelledError to pass")
class RenamesCancellation(Offline):
    async def transcribe(self, audio):
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            raise ConnectionError("given up") from None
        return await super().transcribe(audio)


@breaks("is cancelled at any await", "the end of its stream after others were cancelled: not there")
class KeepsItsLock(Offline):
    def __init__(self, **options):
        self.busy = asyncio.Lock()

    async def transcribe(self, audio):
        await self.busy.acquire()
        await asyncio.sleep(0.01)
        self.busy.release()
        return await super().transcribe(audio)


@breaks("is cancelled at any await", r"its stream was cancelled at wait 1 of 1: 1 task.s. \(works on\)")
class WorksOn(Offline):
    async def transcribe(self, audio):
        self.work = asyncio.create_task(asyncio.sleep(2), name="works on")
        await asyncio.shield(self.work)
        return await super().transcribe(audio)


@breaks("is closed twice", "closed already")
class ClosesOnce(Offline):
    closed = False

    async def aclose(self):
        if self.closed:
            raise RuntimeError("closed already")
        self.closed = True


@breaks("is used again after it was closed", "gone for good")
class NeverComesBack(Offline):
    closed = False

    async def aclose(self):
        self.closed = True

    async def transcribe(self, audio):
        if self.closed:
            raise RuntimeError("gone for good")
        return await super().transcribe(audio)


@breaks("many at once are as one alone", "4 at once: stream of size 2 gives")
class MixesItsCallers(Offline):
    async def transcribe(self, audio):
        self.heard = audio
        await asyncio.sleep(0.01)
        return await super().transcribe(self.heard)


@breaks("many at once are as one alone", "the end of one stream of several: not there")
class ServesNoTwo(Offline):
    """Whoever comes while another is served waits for good."""

    busy = False

    async def transcribe(self, audio):
        if self.busy:
            await asyncio.Event().wait()
        self.busy = True
        await asyncio.sleep(0.01)
        self.busy = False
        return await super().transcribe(audio)


@breaks("options change in a copy", "takes an option it does not have")
class TakesAnyOption(ToySTT):
    def with_options(self, **changes):
        return self


@breaks("options change in a copy", "gives the engine itself")
class ChangesItself(ToySTT):
    def with_options(self, **changes):
        self.options = super().with_options(**changes).options
        return self


@breaks("options change in a copy", "changes the options")
class CopiesForgetOptions(ToySTT):
    def with_options(self, **changes):
        return type(self)(**{**changes, "api_key": KEY})


@breaks("options change in a copy", "after a copy was closed it gives")
class CopiesCloseTheirOriginal(ToySTT):
    def __init__(self, **options):
        super().__init__(**options)
        self.shared = {"open": True}

    async def aclose(self):
        await super().aclose()
        self.shared["open"] = False

    async def transcribe(self, audio):
        return await super().transcribe(audio)

    def stream(self):
        if not self.shared["open"]:
            return DeafStream(self)
        return ToyStream(self)


class DeafStream(ToyStream):
    async def send(self, audio):
        pass


@breaks("the loop goes on", "its stream holds the event loop for [12]..? ms")
class ComputesInTheLoop(Offline):
    async def transcribe(self, audio):
        until = time.thread_time() + 0.12
        while time.thread_time() < until:
            pass
        return await super().transcribe(audio)


@breaks("the loop goes on", "its stream holds the event loop for 1")
class WaitsInTheLoop(Offline):
    async def transcribe(self, audio):
        time.sleep(0.12)  # noqa: ASYNC251
        return await super().transcribe(audio)


@breaks("the loop goes on", "its stream holds the event loop for 1")
class WaitsInATaskOfItsOwn(Offline):
    async def transcribe(self, audio):
        async def hold():
            time.sleep(0.12)  # noqa: ASYNC251

        await asyncio.create_task(hold())
        return await super().transcribe(audio)


# --- services --------------------------------------------------------------------------------------------------------


@breaks("faults are told as they are", "raises ConnectionClosed.*expected ConnectFailedError or")
class RawErrors(ToySTT):
    def failed(self, error, doing=""):
        told = super().failed(error, doing)
        return told if "HTTP" in str(told) else error


def mistold(check_name, message, change):
    """A recogniser whose errors are changed."""

    class Mistold(ToySTT):
        def failed(self, error, doing=""):
            return change(super().failed(error, doing))

    breaks(check_name, message)(Mistold)


def _without_names(error):
    error.provider = ""
    return error


def _without_wish(error):
    error.retry_after_ms = None
    return error


mistold(
    "faults are told as they are",
    "fault '401': its stream raises InvalidRequestError.*expected AuthError",
    lambda error: InvalidRequestError(str(error), provider="toy", kind="stt") if isinstance(error, AuthError) else error,
)
mistold("faults are told as they are", "the error names \\('stt', ''\\); expected \\('stt', 'toy'\\)", _without_names)
mistold("faults are told as they are", "retry_after_ms is None; expected 2000", _without_wish)


@breaks("faults are told as they are", "fault 'cut': its stream says nothing of it")
class SilentWhenCut(ToyStream):
    async def __anext__(self):
        try:
            return await super().__anext__()
        except ProviderError:
            return Transcript("", closes=True)


@breaks("faults are told as they are", "fault 'unknown messages': its stream raises ProtocolError: .*KeyError")
class KnowsEveryMessage(ToyStream):
    def transcript(self, message):
        return super().transcript(message) if "interim" in message or message["final"] is not None else None


@breaks("faults are told as they are", "fault 'hang': its stream, cancelled: the end: not there after 1,000 ms")
class HangsWithIt(ToyStream):
    async def connect(self):
        work = asyncio.ensure_future(super().connect())
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError:
                await asyncio.sleep(5)
                work.cancel()
        work.result()


@breaks("the key is never told", "the key is in the repr of")
class ShowsItsKey(ToySTT):
    def __repr__(self):
        return f"ShowsItsKey({self.access.api_key!r})"


@breaks("the key is never told", "the key is in a log record")
class LogsItsKey(ToySTT):
    def stream(self):
        logging.getLogger("toy").debug("calling with %s", self.access.api_key)
        return super().stream()


@breaks("the key is never told", "the key is in what it prints")
class PrintsItsKey(ToySTT):
    def stream(self):
        print("with", self.access.api_key)
        return super().stream()


@breaks("the key is never told", "the key is in the error of its stream at fault")
class ErrorsTellTheKey(ToySTT):
    def failed(self, error, doing=""):
        return ProviderError(f"with {self.access.api_key}: {error}", provider="toy", kind="stt")


# --- voices ----------------------------------------------------------------------------------------------------------


class Tones(TTS):
    """A voice that calls nobody."""

    capabilities = TTSCapabilities(sample_rate_hz=16_000)

    def __init__(self, **options):
        pass

    async def synthesize_stream(self, texts):
        async for text in texts:
            yield AudioOut(say(text), 16_000, text)


@breaks("texts are spoken", "have a peak of 0")
class Mute(Tones):
    async def synthesize(self, text):
        return Audio(bytes(len(say(text))), 16_000)

    async def synthesize_stream(self, texts):
        async for text in texts:
            yield AudioOut(bytes(len(say(text))), 16_000, text)


@breaks("texts are spoken", "it gives 600[0-9]00 ms of sound for 3 characters, and more")
class NeverEnds(Tones):
    async def synthesize_stream(self, texts):
        async for text in texts:
            while True:
                yield AudioOut(say("one") * 10, 16_000, text)


@breaks("texts are spoken", "expected whole samples of 2 bytes")
class GivesOddBytes(Tones):
    async def synthesize_stream(self, texts):
        async for text in texts:
            pcm = say(text)
            for at in range(0, len(pcm), 333):
                yield AudioOut(pcm[at : at + 333], 16_000, "" if at else text)


@breaks("texts are spoken", "are of .16000. Hz; capabilities say 24000")
class ClaimsAnotherVoiceRate(Tones):
    capabilities = TTSCapabilities(sample_rate_hz=24_000)


@breaks("texts are spoken", "the pieces say that they begin")
class DoesNotTellItsTexts(Tones):
    async def synthesize_stream(self, texts):
        async for text in texts:
            yield AudioOut(say(text), 16_000)


@breaks("texts are spoken", "one hears 'one two three four'; expected 'one two three four five'")
class CutsTheEndOff(Tones):
    async def synthesize_stream(self, texts):
        async for text in texts:
            pcm = say(text)
            yield AudioOut(pcm[:-10_000] if " " in text else pcm, 16_000, text)


@breaks("batch is as long as the stream", "expected the same sound")
class ShortensBatches(Tones):
    async def synthesize(self, text):
        return Audio(say(text.rpartition(" ")[0] or text), 16_000)


class TakesDeltas(Tones):
    """It takes text in any pieces, and speaks word by word."""

    capabilities = TTSCapabilities(sample_rate_hz=16_000, streaming_text=True)

    async def synthesize_stream(self, texts):
        held = ""
        async for text in texts:
            *words, held = (held + text).split(" ")
            for word in words:
                yield AudioOut(say(word), 16_000, f"{word} ")
        if held.strip():
            yield AudioOut(say(held), 16_000, held)


def test_a_good_voice_of_streaming_text_passes():
    left_out = run_simulated(check_tts(TakesDeltas, understand=understand))
    assert "spoken however it is cut" not in left_out


@breaks("spoken however it is cut", "given in pieces of 1 the text gives")
class SpeaksDeltas(TakesDeltas):
    synthesize_stream = Tones.synthesize_stream


@breaks("sound leaves before the text ends", "no sound came within 5,000 ms of the first text")
class WaitsForTheEnd(Tones):
    async def synthesize_stream(self, texts):
        for text in [text async for text in texts]:
            yield AudioOut(say(text), 16_000, text)


@breaks("nothing to say", "the texts \\[''\\] sound for 260 ms")
class SpeaksNothing(Tones):
    async def synthesize_stream(self, texts):
        async for text in texts:
            yield AudioOut(say(text) or say("yes"), 16_000, text)


@breaks("nothing to say", "list index out of range")
class FailsAtNothing(Tones):
    async def synthesize_stream(self, texts):
        async for text in texts:
            text.split()[0]
            yield AudioOut(say(text), 16_000, text)


class Timed(Tones):
    """A voice with word times, told otherwise than they are."""

    capabilities = TTSCapabilities(sample_rate_hz=16_000, word_times=True)

    async def synthesize_stream(self, texts):
        async for text in texts:
            words = tuple(Word(*word) for word in self.otherwise(word_times(text)))
            yield AudioOut(say(text), 16_000, text, words)


@breaks("words have times", "the timed words are \\[\\]")
class ClaimsTimes(Timed):
    def otherwise(self, words):
        return []


@breaks("words have times", "comes after a word that starts at")
class VoiceTimesGoBack(Timed):
    def otherwise(self, words):
        return [(word, 1_000 - start_ms, 1_100 - start_ms) for word, start_ms, _ in words]


@breaks("words have times", "ends after its sentence")
class TimesOfTheWhole(Timed):
    """Counted from the first sentence on, not from each."""

    before_ms = 0.0

    def otherwise(self, words):
        self.before_ms += 1_300
        return [(word, start_ms + self.before_ms, end_ms + self.before_ms) for word, start_ms, end_ms in words]


@breaks("closing the stream stops it", r"a stream was closed after its first piece: 1 task.s. \(reads on\)")
class ReadsOn(Tones):
    async def synthesize_stream(self, texts):
        queue = asyncio.Queue()

        async def read():
            async for text in texts:
                queue.put_nowait(text)
                await asyncio.sleep(0.1)
            queue.put_nowait(None)

        self.reading = asyncio.create_task(read(), name="reads on")
        while (text := await queue.get()) is not None:
            yield AudioOut(say(text), 16_000, text)
        await self.reading


@breaks("closing the stream stops it", "the end of aclose after its first piece: not there after 1,000 ms")
class SpeaksToTheEnd(Tones):
    async def synthesize_stream(self, texts):
        async for text in texts:
            try:
                yield AudioOut(say(text), 16_000, text)
            finally:
                await asyncio.sleep(2)


@breaks("failing text is passed on", "ended as if all was said")
class HidesFailures(Tones):
    async def synthesize_stream(self, texts):
        try:
            async for text in texts:
                yield AudioOut(say(text), 16_000, text)
        except Exception:
            return


@breaks("faults are told as they are", "fault 'cut': its stream says nothing of it")
class HidesCuts(ToyTTS):
    async def synthesize_stream(self, texts):
        async for text in texts:
            try:
                async for piece in super().synthesize_stream(_one(text)):
                    yield piece
            except ProviderError as error:
                if "HTTP" in str(error) or "expected audio/pcm" in str(error):
                    raise


async def _one(text):
    yield text


# --- what the suites are made of -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("engine", "check", "message"), BROKEN)
def test_a_broken_promise_is_told(engine, check, message):
    """An AssertionError that names it; where the engine itself raises, that."""
    with pytest.raises(Exception, match=message):
        run_simulated((check_ear if engine.kind == "stt" else check_voice)(engine, check))


def test_every_check_is_broken_by_somebody():
    """No check is there that nothing fails."""
    broken = {(values[0].kind, values[1]) for values in (param.values for param in BROKEN)}
    shared = {check for _, check in broken}
    assert {check for check in stt_checks.CHECKS if ("stt", check) not in broken} == set()
    assert {check for check in tts_checks.CHECKS if check not in shared} == set()


def test_a_whole_run_uses_no_more_than_is_told():
    """What `beluga-voice check` says before it begins."""
    sent = []

    class Counting(ToyStream):
        async def send(self, audio):
            sent.append(audio.pcm)
            await super().send(audio)

    class CountedEar(ToySTT):
        def stream(self):
            return Counting(self)

    async def main():
        async with ToyServer(api_key=KEY) as server:
            said = {"audio": audio_of(WORDS), "words": WORDS}
            await check_stt(lambda: CountedEar(api_key=KEY, base_url=server.url), **said)
            await check_tts(lambda: ToyTTS(api_key=KEY, base_url=server.url))
            spoken = [request.body for request in server.requests if request.path == "/speak"]
            return len(b"".join(sent)) / len(audio_of(WORDS).pcm), len(b"".join(spoken)) / len(" ".join(tts_checks.TEXTS))

    times_heard, times_spoken = run_simulated(main())
    assert stt_checks.AUDIO_COST / 2 < times_heard < stt_checks.AUDIO_COST
    assert tts_checks.TEXTS_COST / 4 < times_spoken < tts_checks.TEXTS_COST


def test_a_check_of_another_name_is_refused():
    with pytest.raises(KeyError, match="no check is called 'words'; there are: words are heard, "):
        run_simulated(check_stt(Offline, "words"))


def test_what_was_there_before_is_not_left_behind():
    async def main():
        waiting = asyncio.create_task(asyncio.Event().wait())
        await asyncio.sleep(0)
        before = Leftovers()
        await before.expect_no_more("nothing happened")
        waiting.cancel()

    run_simulated(main())


def test_steps_are_counted_and_timed():
    async def work():
        await asyncio.sleep(0)
        time.sleep(0.02)  # noqa: ASYNC251
        await asyncio.sleep(1)
        return "done"

    async def main():
        waits = []
        steps = Steps(work(), waits.append)
        return await steps, steps.waits, waits, steps.longest_ms

    result, count, waits, longest_ms = run_simulated(main())
    assert (result, count, waits) == ("done", 2, [1, 2])
    assert longest_ms >= 20


@pytest.mark.parametrize(
    ("heard", "share", "same"),
    [("a b c d", 0, True), ("a b c", 0, False), ("a b c", 0.25, True), ("a x c d", 0.25, True), ("", 0.5, False)],
)
def test_words_are_compared(heard, share, same):
    assert same_words(heard.split(), ["a", "b", "c", "d"], share) is same


def test_a_time_out_of_the_work_itself_is_its_own():
    async def fails():
        raise TimeoutError("mine")

    async def main():
        with pytest.raises(TimeoutError, match="mine"):
            await in_time(fails(), "anything")
        with pytest.raises(AssertionError, match="anything: not there after 10 ms"):
            await in_time(asyncio.sleep(1), "anything", 10)

    run_simulated(main())
