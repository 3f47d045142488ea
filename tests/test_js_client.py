"""The JavaScript client in a real browser, against a far end that does what the test says: no word is lost or doubled."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
from chromium import chromium, tab
from scripted_server import ScriptedServer, line_to, served

VOICE = [bytes([number]) * 640 for number in range(1, 100)]  # 20 ms of the caller's voice each, all different


@pytest.fixture(scope="module")
def address():
    with chromium() as where:
        yield where


@asynccontextmanager
async def calling(address, *, player=False, **options):
    """A page with a client that has called: the far end, the line, the page and the first connection."""
    far = ScriptedServer()
    async with served(far.app) as port, line_to(port) as (line, url), tab(address) as page:
        await page.go(f"{url}/blank")
        await page.run(f"""
            const {{VoiceClient}} = await import("/beluga-voice.js");
            const {{Player}} = await import("/audio.js");
            const player = {"await Player.open()" if player else "undefined"};
            const client = new VoiceClient({{url: "/v1/voice", player, ...{json.dumps(options)}}});
            Object.assign(window, {{client, heard: [], statuses: [], played: []}});
            window.speak = (number) => client.sendAudio(new Int16Array(320).fill(number * 257));
            client.addEventListener("message", ({{detail}}) => heard.push(detail));
            client.addEventListener("status", ({{detail}}) => statuses.push(detail));
            client.addEventListener("audio", ({{detail}}) => played.push(detail.pcm[0]));
            client.connect();
            return true;
        """)
        yield far, line, page, await far.call()


def in_browser(scenario):
    """A test that runs in an event loop of its own."""

    def test(address):
        asyncio.run(scenario(address))

    test.__name__, test.__doc__ = scenario.__name__, scenario.__doc__
    return test


async def speak(page, *numbers):
    await page.run(f"for (const number of {list(numbers)}) speak(number); return true")


def spoken(*numbers):
    return b"".join(VOICE[number - 1] for number in numbers)


@in_browser
async def test_a_call_is_numbered_from_0_over_audio_and_messages_together(address):
    async with calling(address) as (far, _, page, call):
        assert call.hello == {
            "type": "hello", "sample_rate_hz": 16_000, "output_rate_hz": 24_000, "encoding": "pcm16",
            "turn_mode": "vad", "metadata": {},
        }  # fmt: skip
        await call.welcome()
        await page.until("client.status === 'connected'")
        await speak(page, 1, 2)
        await page.run("client.sendText('hello'), client.sendDtmf('#'), client.interrupt()")
        await speak(page, 3)
        await page.run("client.close()")
        await call.hears("bye")
        assert call.numbers == list(range(7))
        assert far.pcm == spoken(1, 2, 3)
        told = [{name: value for name, value in message.items() if name != "seq"} for message in far.taken]
        assert told == [
            {"type": "text", "text": "hello"}, {"type": "dtmf", "digit": "#"}, {"type": "interrupt"}, {"type": "bye"},
        ]  # fmt: skip


@in_browser
async def test_what_is_said_before_the_welcome_is_sent_after_it(address):
    async with calling(address) as (far, _, page, call):
        await speak(page, 1, 2)
        await call.welcome()
        await speak(page, 3)
        await call.hears("audio", lambda message: message["seq"] == 2)
        assert far.pcm == spoken(1, 2, 3)


@in_browser
async def test_what_arrives_is_acknowledged_at_the_end_of_a_turn_and_in_time(address):
    async with calling(address) as (_, _, _, call):
        await call.welcome()
        await call.say({"type": "state", "state": "listening", "turn": 0}, {"type": "turn_end", "turn": 0})
        assert (await call.hears("ack"))["seq"] == 1
        await call.say(VOICE[0], VOICE[1])
        await call.hears("ack", lambda ack: ack["seq"] == 3)


@in_browser
async def test_a_ping_is_answered_and_a_quiet_line_is_pinged(address):
    async with calling(address, timing={"pingEveryMs": 50, "tickMs": 10}) as (_, _, _, call):
        await call.welcome()
        await call.control(type="ping", t_ms=1234.5)
        assert (await call.hears("pong"))["t_ms"] == 1234.5
        await call.hears("ping")
        await call.hears("ping")


@in_browser
async def test_a_cut_line_comes_back_and_loses_no_word(address):
    async with calling(address) as (far, line, page, call):
        await call.welcome(token="one")
        await call.say({"type": "state", "state": "listening", "turn": 0})
        await speak(page, 1, 2, 3)
        await call.hears("audio", lambda message: message["seq"] == 2)
        line.cut()
        await page.until("client.status === 'reconnecting'")
        await speak(page, 4, 5)
        again = await far.call()
        assert again.hello["resume"] == {"session_id": "s1", "resume_token": "one", "received_seq": 0}
        assert "token" not in again.hello
        await speak(page, 6)
        await again.welcome(resumed=True, token="two")
        await speak(page, 7)
        await again.hears("audio", lambda message: message["seq"] == 6)
        assert far.pcm == spoken(1, 2, 3, 4, 5, 6, 7)
        assert again.numbers == [3, 4, 5, 6]
        assert await page.run("client.counters") == {"gaps": 0, "reconnects": 1, "lost": 0}


@in_browser
async def test_what_the_server_received_but_its_store_does_not_hold_is_kept(address):
    """Another process knows only what was safe: it gets the rest once more."""
    async with calling(address) as (far, line, page, call):
        await call.welcome()
        await speak(page, *range(1, 9))
        await call.hears("audio", lambda message: message["seq"] == 7)
        await call.control(type="ack", seq=7, safe_seq=3)
        await call.control(type="ping", t_ms=1)
        await call.hears("pong")
        line.cut()
        again = await far.call()
        far.pcm, far.received_seq = spoken(1, 2, 3, 4), 3
        await again.welcome(resumed=True, token="two")
        await again.hears("audio", lambda message: message["seq"] == 7)
        assert again.numbers == [4, 5, 6, 7]


@in_browser
async def test_every_attach_brings_a_new_token_and_a_cut_before_the_welcome_keeps_the_old_one(address):
    async with calling(address) as (far, line, page, call):
        await call.welcome(token="one")
        await page.until("client.status === 'connected'")
        line.cut()
        again = await far.call()
        assert again.hello["resume"]["resume_token"] == "one"
        line.cut()  # during the resume itself
        again = await far.call()
        assert again.hello["resume"]["resume_token"] == "one"
        await again.welcome(resumed=True, token="two")
        await again.hears("ping")  # proof that the new one arrived
        line.cut()
        again = await far.call()
        assert again.hello["resume"]["resume_token"] == "two"


@in_browser
async def test_a_line_that_dies_without_a_word_is_noticed(address):
    async with calling(address, timing={"silenceMs": 400, "tickMs": 20}) as (far, line, page, call):
        await call.welcome()
        await page.until("client.status === 'connected'")
        line.fall_silent()
        again = await far.call()
        await again.welcome(resumed=True, token="two")
        await page.until("client.status === 'connected' && client.counters.reconnects === 1")


@in_browser
async def test_the_server_may_restart(address):
    for code in (1001, 1012):
        async with calling(address) as (far, _, page, call):
            await call.welcome()
            await page.until("client.status === 'connected'")
            await call.close(code, "restarting")
            again = await far.call()
            assert again.hello["resume"]["session_id"] == "s1"


@in_browser
async def test_other_codes_end_the_call_with_their_reason(address):
    for code in (1000, 4400, 4408, 4409, 4410, 4413, 4500):
        async with calling(address) as (_, _, page, call):
            await call.welcome()
            await call.close(code, f"because of {code}")
            await page.until("client.status === 'closed'")
            closed = {"status": "closed", "code": code, "reason": f"because of {code}", "retryAfterMs": None}
            assert (await page.run("statuses"))[-1] == closed


@in_browser
async def test_a_full_server_ends_a_new_call_and_is_asked_again_by_a_lost_one(address):
    async with calling(address) as (_, _, page, call):
        await call.close(1013, "retry_after_ms=2500")
        await page.until("client.status === 'closed'")
        assert (await page.run("statuses"))[-1]["retryAfterMs"] == 2500
    async with calling(address) as (far, line, page, call):
        await call.welcome()
        await page.until("client.status === 'connected'")
        line.cut()
        await (await far.call()).close(1013, "retry_after_ms=10")
        await (await far.call()).welcome(resumed=True)
        await page.until("client.status === 'connected'")


@in_browser
async def test_asked_to_leave_it_comes_back_where_it_is_told_between_two_replies(address):
    async with calling(address) as (far, _, page, call):
        await call.welcome(token="one")
        await call.say({"type": "state", "state": "responding", "turn": 0})
        where = (await page.run("location.origin")) + "/v1/voice?other"
        await call.say({"type": "goaway", "deadline_ms": 600_000, "resume_token": "away", "url": where})
        await speak(page, 1)
        await call.hears("audio")
        assert not call.gone.is_set()
        await call.say({"type": "state", "state": "listening", "turn": 0})
        again = await far.call()
        assert again.hello["resume"] == {"session_id": "s1", "resume_token": "away", "received_seq": 2}
        assert again.query == "other"


@in_browser
async def test_asked_to_leave_for_nowhere_it_stays_until_it_is_sent_away(address):
    async with calling(address, timing={"tickMs": 10}) as (far, _, page, call):
        await call.welcome(token="one")
        await call.say({"type": "state", "state": "listening", "turn": 0})
        await call.say({"type": "goaway", "deadline_ms": 600_000, "resume_token": "away"})
        await page.until("heard.length === 2")
        for number in range(1, 20):
            await speak(page, number)
        await call.hears("audio", lambda message: message["seq"] == 18)
        assert not call.gone.is_set()
        await call.close(1012, "the server is restarting")
        assert (await far.call()).hello["resume"]["resume_token"] == "away"


@in_browser
async def test_asked_to_leave_it_goes_before_the_deadline(address):
    async with calling(address) as (far, _, _, call):
        await call.welcome(token="one")
        await call.say({"type": "state", "state": "responding", "turn": 0})
        await call.say({"type": "goaway", "deadline_ms": 100, "resume_token": "away"})
        assert (await far.call()).hello["resume"]["resume_token"] == "away"


@in_browser
async def test_what_comes_twice_is_ignored_and_what_is_missing_is_counted(address):
    async with calling(address) as (_, _, page, call):
        await call.welcome()
        for seq in (0, 0, 1, 0, 4):
            await call.say_as(seq, {"type": "state", "state": f"state {seq}"})
        for seq in (5, 5, 6):
            await call.say_as(seq, VOICE[seq])
        await page.until("played.length === 2")
        assert [message["state"] for message in await page.run("heard")] == ["state 0", "state 1", "state 4"]
        assert await page.run("played") == [6 * 257, 7 * 257]
        assert (await page.run("client.counters"))["gaps"] == 1


@in_browser
async def test_unknown_messages_and_fields_are_no_trouble(address):
    async with calling(address) as (_, _, page, call):
        await call.welcome(colour="blue")
        await call.say({"type": "x-new", "of": {"what": 1}})
        await page.until("heard.length === 1")
        assert page.complaints == []


@in_browser
async def test_it_gives_up_when_the_server_would_have_forgotten_it(address):
    async with calling(address, timing={"attemptMs": 100, "tickMs": 20}) as (_, line, page, call):
        await call.welcome(limits={"resume_window_ms": 500})
        await page.until("client.status === 'connected'")
        line.cut()  # nobody says welcome from here on
        await page.until("client.status === 'closed'")
        assert (await page.run("statuses"))[-1]["code"] == 1006


@in_browser
async def test_a_ticket_is_asked_for_anew_until_the_call_is_open_and_never_for_a_resume(address):
    far = ScriptedServer()
    async with served(far.app) as port, line_to(port) as (line, url), tab(address) as page:
        await page.go(f"{url}/blank")
        await page.run("""
            const {VoiceClient} = await import("/beluga-voice.js");
            let tickets = 0;
            const authorize = async () => ({url: "/v1/voice", token: `ticket ${++tickets}`});
            window.client = new VoiceClient({authorize});
            client.connect();
            return true;
        """)
        assert (await far.call()).hello["token"] == "ticket 1"
        line.cut()
        call = await far.call()
        assert call.hello["token"] == "ticket 2"
        await call.welcome()
        await page.until("client.status === 'connected'")
        line.cut()
        assert "token" not in (await far.call()).hello


@in_browser
async def test_playing_is_reported_and_where_it_stopped_is_told_at_once(address):
    async with calling(address, player=True) as (far, line, _, call):
        await call.welcome()
        tone = b"\x00\x10" * 480  # 20 ms
        await call.say(*[tone] * 15)
        await call.hears("played", lambda told: told["seq"] == 14 and told["ms"] == 20)
        await call.say(*[tone] * 50)
        await call.hears("played", lambda told: told["seq"] > 14)
        await call.say({"type": "pause"})
        stopped = await call.hears("stopped")
        assert 14 < stopped["seq"] < 64
        await call.say({"type": "continue"})
        await call.hears("played", lambda told: told["seq"] > stopped["seq"])
        await call.say({"type": "clear", "turn": 0}, tone)
        cut = await call.hears("stopped")
        assert stopped["seq"] < cut["seq"] < 65
        await call.hears("played", lambda told: told["seq"] == far.next_seq - 1)
        line.cut()
        assert (await far.call()).hello["resume"]["played"] == {"seq": far.next_seq - 1, "ms": 20}


@in_browser
async def test_what_is_kept_is_bounded_and_what_nobody_got_is_counted(address):
    far = ScriptedServer()
    async with served(far.app) as port, line_to(port) as (_, url), tab(address) as page:
        await page.go(f"{url}/blank")
        told = await page.run("""
            const {Outbox} = await import("/outbox.js");
            const box = new Outbox(1000);
            for (let i = 0; i < 40; i++) box.audio(new Int16Array(320), 20);
            box.acknowledge(29, -1);  // received, and not safe
            for (let i = 0; i < 60; i++) box.audio(new Int16Array(320), 20);
            return {kept: box.after(-1).length, keptMs: box.keptMs, lost: box.lost, after: box.after(97).length};
        """)
        assert told == {"kept": 50, "keptMs": 1000, "lost": 20, "after": 2}
