"""Moonshine by name: transcripts, lifetimes, and a conversation from sound to sound."""

import asyncio
import re
import subprocess
import sys
import threading
from contextlib import aclosing
from pathlib import Path

import pytest

moonshine_voice = pytest.importorskip(
    "moonshine_voice", reason="Moonshine is not installed: pip install moonshine-voice==0.1.0"
)

from beluga_voice_moonshine.model import ARCHITECTURES  # noqa: E402

from beluga_voice import Audio, Chain, SessionManager, agent, audio, stt, transport, tts, turn, vad  # noqa: E402
from beluga_voice.clock import run_simulated  # noqa: E402
from beluga_voice.errors import (  # noqa: E402
    BrokenPluginError,
    InvalidRequestError,
    OptionError,
    ProviderError,
    SessionLimitError,
)
from beluga_voice.testing import LoudVAD, hold, quiet  # noqa: E402

OPENING = "it was the best of times it was the worst of times"


def words(text):
    return re.sub("[^a-z ]", "", text.lower())


def cut(recording, start_ms, end_ms):
    start, end = (2 * (ms * recording.sample_rate_hz // 1000) for ms in (start_ms, end_ms))
    return Audio(recording.pcm[start:end], recording.sample_rate_hz)


def threads():
    """The engines' threads; other tests' engines may have some."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("moonshine")}


@pytest.fixture(scope="module")
def recording():
    """44 s of read Dickens that comes inside moonshine-voice."""
    return audio.read(moonshine_voice.get_assets_path() / "two_cities.wav", 16_000)


@pytest.fixture(scope="module")
def opening(recording):
    return cut(recording, 0, 5_000)


@pytest.fixture(scope="module")
def engine():
    """One engine for the tests that do not close it."""
    engine = stt.new("moonshine")
    yield engine
    asyncio.run(engine.aclose())


@pytest.fixture(params=[asyncio.run, run_simulated], ids=["real time", "simulated time"])
def run(request):
    return request.param


def test_it_is_found_by_name_with_its_options():
    provider = stt.describe("moonshine")
    assert "moonshine" in stt.names()
    assert provider.distribution == "beluga-voice-moonshine"
    assert {one.name: one.default for one in provider.options} == {
        "language": "en",
        "model_dir": "",
        "arch": "tiny",
        "threads": 2,
        "max_streams": 0,
    }
    assert provider.capabilities == stt.STTCapabilities(sample_rate_hz=16_000, quick=True)


def test_describing_or_making_it_loads_no_engine():
    code = (
        "import sys; from beluga_voice import stt; stt.describe('moonshine'); stt.new('moonshine');"
        "print('moonshine_voice' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100])
def test_speech_at_any_rate_becomes_its_words(engine, opening, rate_hz):
    transcript = run_simulated(engine.transcribe(audio.resample(opening, rate_hz)))
    assert words(transcript.text) == OPENING
    assert (transcript.is_final, transcript.language, transcript.confidence) == (True, "en", None)


@pytest.mark.parametrize("sound", [Audio(b"", 16_000), audio.silence(2_000, 16_000), audio.silence(2_000, 8_000)])
def test_silence_is_no_text(engine, sound):
    assert run_simulated(engine.transcribe(sound)).text == ""


def test_many_streams_at_once_each_get_their_own_words(engine, recording):
    clips = [cut(recording, start_ms, start_ms + 2_500) for start_ms in (0, 4_000, 9_000, 12_000)]

    async def listen(clip):
        async with aclosing(engine.stream()) as stream:
            await stream.send(cut(clip, 0, 1_000))
            await stream.send(cut(clip, 1_000, 2_500))
            await stream.finalize()
            return (await anext(stream)).text

    async def main():
        alone = [(await engine.transcribe(clip)).text for clip in clips]
        return alone, await asyncio.gather(*map(listen, clips))

    alone, together = run_simulated(main())
    assert len(set(alone)) == len(clips)
    assert together == alone


def test_the_loop_goes_on_while_it_works(engine, opening):
    async def main():
        work, turns = asyncio.create_task(engine.transcribe(opening)), 0
        while not work.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(main()) > 10


def test_cancelling_ends_the_wait_at_once_and_leaves_nothing(recording, run):
    async def main():
        engine, before, long = stt.new("moonshine", threads=1), threads(), cut(recording, 0, 8_000)
        async with engine:
            works = [asyncio.create_task(engine.transcribe(long)) for _ in range(3)]
            while engine._model._loaded.in_use == 0:  # noqa: ASYNC110
                await asyncio.sleep(0)
            loaded, calls = engine._model._loaded, engine.pool.calls
            for work in works:
                work.cancel()
            await asyncio.wait(works)
            assert all(work.cancelled() for work in works)
            assert (loaded.in_use, engine.pool.calls) == (1, calls)
            assert engine.pool.waiting == 0
            assert asyncio.all_tasks() == {asyncio.current_task()}
        assert threads() == before
        assert (loaded.in_use, engine.pool.calls) == (0, calls + 1)
        assert loaded.transcriber._handle is None

    run(main())


def test_a_manager_admits_no_more_callers_than_it_can_serve():
    engine = stt.new("moonshine", max_streams=2)
    manager = SessionManager(Chain(LoudVAD(), turn.new("silence"), engine, agent.new("echo"), tts.new("tone")))

    async def main():
        async with manager:
            for _ in range(2):
                await manager.create(transport.new("memory"))
            with pytest.raises(SessionLimitError, match=r"too many on stt 'moonshine'; max_streams is 2") as told:
                await manager.create(transport.new("memory"))
            assert told.value.retry_after_ms > 0

    run_simulated(main())


def test_it_serves_as_many_as_its_option_says():
    engine = stt.new("moonshine")
    assert engine.max_streams >= 10
    assert engine.max_streams % 10 == 0
    assert engine.with_options(max_streams=3).max_streams == 3
    assert stt.new("moonshine", max_streams=3).with_options(max_streams=0).max_streams == engine.max_streams


@pytest.mark.parametrize(("thread_count", "calls", "waits"), [(1, 0, 0.0), (1, 1, 1.0), (1, 3, 3.0), (2, 1, 0.0), (2, 4, 1.5)])
def test_it_tells_how_long_an_utterance_would_wait(opening, thread_count, calls, waits):
    """`waits` is in utterances as long as those before."""

    async def main():
        async with stt.new("moonshine", threads=thread_count) as engine:
            await engine.transcribe(opening)
            mean_ms = engine.pool.busy_ms / engine.pool.calls
            go_on = threading.Event()
            works = [asyncio.create_task(engine.pool.run(go_on.wait)) for _ in range(calls)]
            await asyncio.sleep(0)
            wait_ms = engine.wait_ms
            go_on.set()
            await asyncio.gather(*works)
            assert wait_ms == pytest.approx(waits * mean_ms)
            assert engine.wait_ms == 0.0

    asyncio.run(main())


def test_closed_and_used_again_it_is_loaded_anew(opening):
    async def main():
        engine, before = stt.new("moonshine"), threads()
        async with engine, engine:
            assert engine.pool.calls == 1
        assert threads() == before
        await engine.aclose()
        assert words((await engine.transcribe(opening)).text) == OPENING
        assert engine.pool.busy_ms > 0
        await engine.aclose()
        assert threads() == before

    run_simulated(main())


def test_a_copy_shares_the_model_until_both_are_closed(opening):
    async def main():
        first, before = stt.new("moonshine"), threads()
        copy = first.with_options(language="en-GB")
        assert copy.pool is first.pool
        assert first.with_options() is first
        await first.prewarm()
        assert (await copy.transcribe(opening)).language == "en-GB"
        model = first._model._loaded
        await first.aclose()
        assert words((await copy.transcribe(opening)).text) == OPENING
        assert copy._model._loaded is model
        assert model.transcriber._handle is not None
        await copy.aclose()
        assert model.transcriber._handle is None
        assert threads() == before

    run_simulated(main())


def test_a_copy_with_other_weights_uses_them(tmp_path: Path, opening):
    """Weights that do not load: only an engine that really turns to them notices."""
    for name in ARCHITECTURES["tiny"]:
        (tmp_path / name).write_bytes(b"no weights")

    async def main():
        before = threads()
        async with stt.new("moonshine") as engine:
            other = engine.with_options(model_dir=str(tmp_path))
            with pytest.raises(ProviderError, match=r"stt 'moonshine': .*could not load the 'tiny' weights") as caught:
                await other.transcribe(opening)
            assert (caught.value.provider, caught.value.kind) == ("moonshine", "stt")
            await other.aclose()
            assert words((await engine.transcribe(opening)).text) == OPENING
        assert threads() == before

    run_simulated(main())


def test_weights_of_the_users_own_are_used_for_any_language(tmp_path: Path, opening):
    for file in Path(moonshine_voice.get_model_path("tiny-en")).iterdir():
        (tmp_path / file.name).symlink_to(file)

    async def main():
        async with stt.new("moonshine", model_dir=str(tmp_path), language="es") as engine:
            return await engine.transcribe(opening)

    transcript = run_simulated(main())
    assert (words(transcript.text), transcript.language) == (OPENING, "es")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "de"}, "'language' is 'de'; expected 'en'"),
        ({"model_dir": "/no/where"}, "/no/where does not exist"),
        ({"arch": "base"}, "needs model_dir"),
        ({"arch": "huge"}, "expected one of 'tiny'"),
        ({"threads": 0}, "expected 1 to 64"),
        ({"max_streams": -1}, "expected at least 0"),
        ({"model": "tiny"}, "did you mean 'model_dir'"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_at_once(engine, options, message):
    with pytest.raises(OptionError, match=f"^stt 'moonshine'.*{message}"):
        stt.new("moonshine", **options)
    with pytest.raises(OptionError, match=message):
        engine.with_options(**options)


def test_half_a_sample_is_an_invalid_request(engine):
    with pytest.raises(InvalidRequestError, match="stt 'moonshine'"):
        run_simulated(engine.transcribe(Audio(b"123", 16_000)))


def test_a_missing_engine_package_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "moonshine_voice", None)
    with pytest.raises(BrokenPluginError, match=r"pip install moonshine-voice==0\.1\.0"):
        stt.new("moonshine")


def test_what_espeak_says_is_understood_and_answered_in_a_conversation():
    pytest.importorskip("espeakng_loader", reason="eSpeak NG is not installed: pip install espeakng-loader==0.2.4")
    pytest.importorskip("beluga_voice_espeak", reason="beluga-voice-espeak is not installed")
    before = threads()
    voice, recogniser = tts.new("espeak", voice="en-gb"), stt.new("moonshine")

    async def say(text):
        return audio.resample(await voice.synthesize(text), 16_000).pcm

    question = run_simulated(say("Count to five."))
    chain = Chain(vad.new("energy"), turn.new("silence"), recogniser, agent.new("rules"), voice)
    call = hold(chain, quiet(500) + question + quiet(4_000))
    (record,) = call.turns
    assert words(record.user_text) == "count to five"
    assert record.heard_text == "1, 2, 3, 4, 5."
    assert recogniser.pool.calls >= 2
    answer = run_simulated(recogniser.transcribe(Audio(call.agent, 16_000)))
    assert {"two", "three", "four", "2", "3", "4"} & set(re.findall(r"\w+", answer.text.lower()))
    for used in (voice, recogniser):
        run_simulated(used.aclose())
    assert threads() == before
