"""The web page in a real browser, with a recorded file as its microphone and the real server at the other end."""

import re
from pathlib import Path

import numpy as np
import pytest
from chromium import tab
from page_call import calling, in_a_call, quiet, said, state, talk_on, words
from scripted_server import ScriptedServer, line_to, served

from beluga_voice.server import ServerOptions


@in_a_call(quiet(1_000), words("alpha bravo charlie"), quiet(20_000))
async def test_a_caller_is_heard_and_answered_and_the_answer_is_played(address):
    async with calling(address, tapped=True) as (page, _, told):
        await page.click("#call")
        await page.until(f"{state('listening')} && document.querySelector('.latency')")
        assert await page.run(said("user")) == ["alpha bravo charlie"]
        assert await page.run(said("agent")) == ["You said alpha bravo charlie."]
        (ended,) = told.all("reply_ended")
        assert ended["heard_text"] == "You said alpha bravo charlie."
        assert not ended["interrupted"]
        (record,) = [one["record"] for one in told.all("turn_finished")]
        parts = await page.run("Array.from(document.querySelectorAll('.parts .part'), (part) => part.textContent)")
        assert [part.rsplit(" ", 2)[0] for part in parts] == ["end of turn", "words", "agent", "voice"]
        assert sum(int(part.rsplit(" ", 2)[1]) for part in parts) == pytest.approx(record.e2e_latency_ms, abs=2)
        sound = np.trim_zeros(await page.run("sounded"))
        spectrum = np.abs(np.fft.rfft(sound, 24_000))
        assert abs(np.argmax(spectrum) - 440) <= 10, "another tone than the agent's voice"
        assert np.count_nonzero(sound) > 0.8 * 5 * 0.15 * 24_000, "five words of 150 ms, and a busy machine"
        assert [one for one in page.complaints if "ScriptProcessorNode" not in one] == []


@in_a_call(quiet(1_000), words("alpha bravo charlie delta echo foxtrot golf"), quiet(20_000))
async def test_a_line_cut_in_mid_word_and_in_mid_reply_loses_nothing(address):
    async with calling(address) as (page, line, told):
        speaking, replying = told.next("speech_started"), told.next("reply_started")
        await page.click("#call")
        await speaking
        line.cut()
        await page.until("document.querySelector('#banner.back')")
        await replying
        line.cut()
        await page.until(f"{state('listening')} && document.querySelector('.latency')")
        assert await page.run(said("user")) == ["alpha bravo charlie delta echo foxtrot golf"]
        (ended,) = told.all("reply_ended")
        assert ended["heard_text"] == "You said alpha bravo charlie delta echo foxtrot golf."
        assert not ended["interrupted"]
        assert len(told.all("resumed")) == 2
        notes = await page.run("Array.from(document.querySelectorAll('.note'), (note) => note.textContent)")
        assert [note.split(" after")[0] for note in notes] == ["Line lost, back"] * 2


@in_a_call(quiet(30_000))
async def test_the_button_cuts_the_line_and_the_page_says_that_it_is_back(address):
    async with calling(address) as (page, _, told):
        await page.click("#call")
        await page.until(state("listening"))
        await page.click("#cut")
        await page.until("document.querySelector('#banner.back')?.innerText.includes('Nothing was lost')")
        await page.until(state("listening"))
        assert len(told.all("resumed")) == 1
        assert page.complaints == []


@in_a_call(quiet(1_000), words("alpha"), quiet(3_000), words("bravo charlie delta"), quiet(20_000))
async def test_who_speaks_during_a_reply_cuts_it_and_sees_what_was_not_heard(address):
    async with calling(address, talk_on) as (page, _, told):
        await page.click("#call")
        await page.until("document.querySelectorAll('.latency').length === 2")
        heard, unheard = await page.run("""
            const line = document.querySelector('.agent[data-reply=cut] .words');
            return [line.firstChild.data, line.querySelector('.unheard').lastChild.data];
        """)
        assert heard.strip() == told.all("interrupted")[0]["heard_text"]
        assert len(f"{heard} {unheard}".split()) == 60
        assert (await page.run(said("agent")))[-1] == "You said bravo charlie delta."


def sounds(message):
    """Whether an audio message is not silence."""
    return any(message["pcm"])


@in_a_call(words("alpha bravo charlie " * 20))
async def test_push_to_talk_makes_a_turn_of_what_is_said_while_it_is_held(address):
    async with calling(address) as (page, _, told):
        await page.click("#push")
        await page.click("#call")
        await page.until(f"{state('listening')} && !document.querySelector('#talk').hidden")
        begun = told.next("turn_started")
        await page.run("document.activeElement.blur()")
        await page.key("Space", up=False)
        await begun
        await page.until("document.querySelector('#talk').innerText === 'Release to send'")
        await page.run("new Promise((resolve) => setTimeout(resolve, 1500))")
        await page.key("Space", down=False)
        await page.until("document.querySelector('.latency')")
        (ended,) = told.all("turn_ended")
        assert ended["source"] == "push"
        (heard,) = await page.run(said("user"))
        assert 2 <= len(heard.split()) <= 8, heard


@in_a_call(words("alpha bravo charlie " * 60))
async def test_push_to_talk_sends_no_sound_unless_it_is_held(address):
    far = ScriptedServer()
    async with served(far.app) as port, tab(address) as page:
        await page.go(f"http://127.0.0.1:{port}/?raw=1")
        await page.click("#push")
        await page.click("#call")
        call = await far.call()
        await call.welcome()
        for _ in range(30):
            assert not sounds(await call.hears("audio"))
        await page.click("#conversation")
        await page.key("Space", up=False)
        await call.hears("start_turn")
        await call.hears("audio", sounds)
        await page.key("Space", down=False)
        await call.hears("end_turn")
        for _ in range(60):
            await call.hears("audio")
        for _ in range(30):
            assert not sounds(await call.hears("audio"))


@in_a_call(words("alpha bravo charlie " * 60))
async def test_muted_the_caller_is_not_heard(address):
    far = ScriptedServer()
    async with served(far.app) as port, tab(address) as page:
        await page.go(f"http://127.0.0.1:{port}/?raw=1")
        await page.click("#call")
        call = await far.call()
        await call.welcome()
        await call.say({"type": "state", "state": "listening", "turn": 0})
        await call.hears("audio", sounds)
        await page.until(f"{state('listening')} && !document.querySelector('#mute').disabled")
        await page.click("#mute")
        assert await page.run("document.querySelector('#mute').ariaPressed") == "true"
        assert "You are muted." in await page.text()
        for _ in range(60):
            await call.hears("audio")
        for _ in range(30):
            assert not sounds(await call.hears("audio"))
        await page.click("#mute")
        assert "You are muted." not in await page.text()
        await call.hears("audio", sounds)


@in_a_call(quiet(60_000))
async def test_a_server_with_keys_is_asked_with_one(address):
    key = "k" * 32
    async with calling(address, options=ServerOptions(api_keys=(key,))) as (page, _, told):
        assert await page.run("document.querySelector('#key-form').hidden")
        await page.click("#call")
        await page.until("document.activeElement.id === 'key'")
        assert "asks for an access key" in await page.text()
        await page.type("wrong")
        await page.key("Enter")
        await page.until("document.body.innerText.includes('did not take this access key')")
        await page.run("document.querySelector('#key').value = ''")
        await page.type(key)
        await page.key("Enter")
        await page.until(state("listening"))
        assert await page.run("document.querySelector('#key-form').hidden && document.querySelector('#problem').hidden")
        assert len(told.all("opened")) == 1


@in_a_call(quiet(60_000))
async def test_a_full_server_says_so_and_the_next_call_works(address):
    async with calling(address, max_sessions=1) as (page, _, told):
        await page.run("""
            const {VoiceClient} = await import("/beluga-voice.js");
            window.other = new VoiceClient({});
            other.connect();
            return true;
        """)
        await page.until("other.status === 'connected'")
        await page.click("#call")
        await page.until("document.body.innerText.includes('All lines are busy')")
        closed = told.next("closed")
        await page.run("other.close()")
        await closed
        await page.click("#call")
        await page.until(state("listening"))


@in_a_call(quiet(100))
async def test_without_a_microphone_one_can_type(address):
    async with calling(address) as (page, _, _):
        await page.run("""
            navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("no", "NotAllowedError"); };
            return true;
        """)
        await page.click("#call")
        await page.until(state("listening"))
        assert "The microphone cannot be used: it was not allowed. You can still type." in await page.text()
        assert await page.run("document.querySelector('#mute').disabled")
        await page.click("#text")
        await page.type("hello")
        await page.key("Enter")
        await page.until(f"{said('agent')}.includes('You said hello.')")


@in_a_call(quiet(1_000), words("alpha bravo"), quiet(60_000))
async def test_the_guides_example_of_a_page_of_ones_own_holds_a_call(address):
    guide = (Path(__file__).parent.parent / "docs" / "how-to" / "web-page.md").read_text("utf-8")
    example = re.search(r"^`talk.js`:\n\n```text\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)[1]
    async with calling(address) as (page, _, _):
        script = re.sub(r'import (.*) from "\.(.*)"', r'const \1 = await import("\2")', example).replace("export ", "")
        await page.run(f"""
            {script}
            globalThis.logged = [];
            console.info = (...words) => logged.push(words.join(" "));
            globalThis.client = await talk("/v1/voice");
            return true;
        """)
        await page.until("logged.includes('agent: You said alpha bravo.')")
        await page.run("client.close()")
        lines = ["line: connecting", "line: connected", "you: alpha bravo", "agent: You said alpha bravo.", "line: closed"]
        assert await page.run("logged") == lines


@in_a_call(quiet(60_000))
async def test_after_another_server_took_over_the_page_shows_what_that_one_knows(address):
    far = ScriptedServer()
    async with served(far.app) as port, line_to(port) as (line, url), tab(address) as page:
        await page.go(f"{url}/?raw=1")
        await page.click("#call")
        call = await far.call()
        await call.welcome()
        await call.say({"type": "transcript", "turn": 0, "text": "How", "final": False, "confidence": None})
        await page.until("document.querySelector('.interim')")
        line.cut()
        call = await far.call()
        await call.welcome(resumed=True, events_lost=True)
        told = [{"role": "user", "text": "How are you?"}, {"role": "assistant", "text": "Well."}]
        await call.say({"type": "history", "messages": told})
        await page.until("!document.querySelector('.interim')")
        assert await page.run(said("user")) == ["How are you?"]
        assert await page.run(said("agent")) == ["Well."]
        await call.say({"type": "transcript", "turn": 1, "text": "Good.", "final": True, "confidence": None})
        await page.until(f"{said('user')}.length === 2")
