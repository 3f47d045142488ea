"""The line that calls a server: in real time both ways, nothing taken for heard that was not, three different ends."""

import asyncio
import contextlib
import sys

import pytest
from far_end import FarEnd, Plan

from beluga_voice import Chain, Session, server, transport, tts, turn
from beluga_voice.builtin.websocket_transport import WebSocketTransport
from beluga_voice.clock import run_simulated
from beluga_voice.errors import ConfigError, ConnectFailedError, LineLost, OptionError, ProtocolError
from beluga_voice.frames import AudioOut
from beluga_voice.manager import SessionManager
from beluga_voice.server.serving import running
from beluga_voice.settings import SessionOptions
from beluga_voice.testing import LoudVAD, ScriptedSTT, speech

URL = "ws://voice.test/v1/voice"
FRAME = 640  # 20 ms at 16 kHz


def line_to(far, **options):
    return WebSocketTransport(url=URL, dial=far.dial, **options)


def simulated(main):
    """Run in simulated time; afterwards no task of the line's is left."""

    async def whole():
        given = await main()
        await asyncio.sleep(5)
        left = [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith(("client", "websocket"))]
        assert left == []
        return given

    return run_simulated(whole())


@contextlib.asynccontextmanager
async def reading(line):
    """Read the line in the background: what came, and the task that reads."""
    heard = []

    async def read():
        async for frame in line.recv():
            heard.append(frame)

    task = asyncio.create_task(read())
    try:
        yield heard, task
    finally:
        task.cancel()
        await asyncio.wait([task])
        await line.aclose()


def sound(heard):
    return b"".join(frame.pcm for frame in heard)


class TestBeforeItIsOpened:
    def test_it_is_made_by_name_without_a_loop(self):
        """Nothing is dialled, and the rates are those of the session's sides."""
        line = transport.new("websocket", url=URL, token="t", input_rate_hz=24_000, output_rate_hz=8_000)
        assert (line.provider, line.input_rate_hz, line.output_rate_hz) == ("websocket", 24_000, 8_000)
        assert (line.capabilities.live, line.capabilities.resumable) == (True, False)
        assert line.played_ms == 0

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({}, "'url'"),
            ({"url": "http://voice.test/"}, "ws://"),
            ({"url": URL, "input_rate_hz": 4_000}, "8000 to 48000"),
            ({"url": URL, "output_rate_hz": "16000"}, "expected int"),
            ({"url": URL, "tocken": "t"}, "did you mean 'token'"),
            ({"url": URL, "metadata": {"name": object()}}, "serializable"),
            ({"url": URL, "connect_timeout_ms": 0}, "connect_timeout_ms"),
        ],
    )
    def test_refuses_options_that_cannot_work(self, options, told):
        """At construction, with what was wrong."""
        with pytest.raises(ConfigError, match=told):
            transport.new("websocket", **options)

    def test_a_wrong_token_is_not_printed(self):
        with pytest.raises(OptionError) as told:
            transport.new("websocket", url=URL, token=b"hidden")
        assert "hidden" not in str(told.value)

    def test_without_websockets_it_says_what_to_install(self, monkeypatch):
        """At construction, not when the call is to begin."""
        monkeypatch.setitem(sys.modules, "websockets", None)
        monkeypatch.delitem(sys.modules, "websockets.asyncio.client", raising=False)
        with pytest.raises(ConfigError, match=r"pip install 'beluga-voice\[client\]'"):
            transport.new("websocket", url=URL)

    def test_closing_a_line_that_was_never_opened(self):
        async def main():
            far = FarEnd()
            line = line_to(far)
            await line.aclose()
            await line.aclose()
            return far.dialled_ms

        assert simulated(main) == []


class TestWhatIsSaid:
    def test_rates_ticket_and_metadata_reach_the_server(self):
        """Our output is the server's input."""

        async def main():
            far = FarEnd()

            async def ticket():
                return "fresh"

            line = line_to(far, token=ticket, input_rate_hz=24_000, output_rate_hz=8_000, metadata={"who": "a bridge"})
            async with reading(line):
                await asyncio.sleep(0.1)
            return far.hellos[0]

        hello = simulated(main)
        assert (hello["token"], hello["metadata"]) == ("fresh", {"who": "a bridge"})
        assert (hello["sample_rate_hz"], hello["output_rate_hz"]) == (8_000, 24_000)

    def test_is_sent_in_real_time_with_silence_around(self):
        """What was given at once arrives as it is spoken; what arrived is what was played."""

        async def main():
            far = FarEnd()
            line = line_to(far)
            async with reading(line):
                await asyncio.sleep(0.205)
                words = speech(300)
                await line.send(AudioOut(words, 16_000))
                await asyncio.sleep(0.1)
                half = len(far.session.heard_audio) // 32, line.played_ms
                await asyncio.sleep(0.7)
                sizes = {len(message) for _, message in far.session.heard if isinstance(message, bytes)}
                return words, half, far.session.heard_audio, line.played_ms, sizes

        words, half, arrived, played_ms, sizes = simulated(main)
        assert half == (300, 100)
        assert (len(arrived) // 32, played_ms, sizes) == (1_000, 300, {FRAME})
        assert arrived.strip(b"\0") == words.strip(b"\0")
        assert arrived.index(words) == 200 * 32

    def test_clear_drops_what_was_not_sent(self):
        """At once, and it never counts as played; what is said after it goes on."""

        async def main():
            far = FarEnd()
            line = line_to(far)
            async with reading(line):
                await line.send(AudioOut(b"\1\1" * 16_000, 16_000))
                await asyncio.sleep(0.305)
                line.clear()
                before = line.played_ms
                await line.send(AudioOut(b"\2\2" * 1_600, 16_000))
                await asyncio.sleep(0.5)
                return before, line.played_ms, far.session.heard_audio

        before, after, arrived = simulated(main)
        assert (before, after) == (300, 400)
        assert (arrived.count(b"\1"), arrived.count(b"\2")) == (300 * 32, 100 * 32)

    def test_closing_frees_whoever_waits_on_a_line_never_opened(self):
        """There is nothing to wait for."""

        async def main():
            line = line_to(FarEnd())
            await line.send(AudioOut(bytes(100 * FRAME), 16_000))
            waiting = asyncio.create_task(line.send(AudioOut(bytes(FRAME), 16_000)))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            await line.aclose()
            async with asyncio.timeout(1):
                await waiting

        simulated(main)

    def test_no_more_than_two_seconds_wait(self):
        """Whoever sends more waits for them to be played, or for the call to end."""

        async def main():
            far = FarEnd()
            line = line_to(far)
            given = 0

            async def give():
                nonlocal given
                while True:
                    await line.send(AudioOut(bytes(FRAME), 16_000))
                    given += 1

            async with reading(line):
                giving = asyncio.create_task(give())
                await asyncio.sleep(1.01)
                giving.cancel()
                waiting = asyncio.create_task(line.send(AudioOut(bytes(FRAME), 16_000)))
                await asyncio.sleep(0.001)
                was_done = waiting.done()
                await line.aclose()
                await waiting
                await line.send(AudioOut(bytes(FRAME), 16_000))
                return given, was_done

        given, was_done = simulated(main)
        assert 149 <= given <= 151
        assert not was_done


class TestWhatIsHeard:
    def test_comes_in_real_time_with_silence_around(self):
        """A reply sent at once is heard as it is spoken, 20 ms at a time, and the server is told what was heard."""

        async def main():
            far = FarEnd()
            line = line_to(far)
            async with reading(line) as (heard, _):
                await asyncio.sleep(0.21)
                for _ in range(3):
                    far.session.tell(b"\5\5" * 1_600)
                await asyncio.sleep(0.1)
                so_far = sound(heard).count(b"\5")
                await asyncio.sleep(0.7)
                return so_far, heard, far.session.reports

        so_far, heard, reports = simulated(main)
        assert so_far == 100 * 32
        assert {(len(frame.pcm), frame.sample_rate_hz) for frame in heard} == {(FRAME, 16_000)}
        assert len(heard) == 50
        assert sound(heard).strip(b"\0") == b"\5\5" * 4_800
        assert max((report["seq"], report["ms"]) for report in reports if report["type"] == "played") == (2, 100)

    def test_the_server_pauses_and_clears(self):
        """What it takes back is not heard."""

        async def main():
            far = FarEnd()
            line = line_to(far)
            async with reading(line) as (heard, _):
                await asyncio.sleep(0.11)
                far.session.tell(b"\5\5" * 16_000)
                await asyncio.sleep(0.2)
                far.session.tell({"type": "pause"})
                await asyncio.sleep(0.3)
                far.session.tell({"type": "clear", "turn": 0})
                await asyncio.sleep(0.3)
                return sound(heard)

        assert simulated(main).count(b"\5") == 200 * 32

    @pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 48_000])
    def test_any_rate_keeps_time(self, rate_hz):
        """Ten seconds are ten seconds, also where 20 ms are no whole number of samples."""

        async def main():
            far = FarEnd()
            line = line_to(far, input_rate_hz=rate_hz, output_rate_hz=rate_hz)
            async with reading(line) as (heard, _):
                await asyncio.sleep(10.01)
                return len(sound(heard)), len(far.session.heard_audio)

        assert simulated(main) == (2 * 10 * rate_hz, 2 * 10 * rate_hz)

    def test_a_loop_that_was_held_is_not_caught_up_on_in_a_burst(self):
        """What is beyond 200 ms is let go, and counted; less is made good."""

        async def main():
            far = FarEnd()
            line = line_to(far)
            frames = line.recv()
            await anext(frames)
            await asyncio.sleep(0.12)
            for _ in range(10):
                await anext(frames)
            await asyncio.sleep(0.001)
            made_good = line.counters["late_ms"], len(far.session.heard_audio) // 32
            await asyncio.sleep(5)
            for _ in range(10):
                await anext(frames)
            await asyncio.sleep(0.001)
            said_ms = len(far.session.heard_audio) // 32
            late_ms = line.counters["late_ms"]
            await frames.aclose()
            await line.aclose()
            return made_good, said_ms, late_ms

        made_good, said_ms, late_ms = simulated(main)
        assert made_good == (0, 220)
        assert said_ms == 420
        assert 4_900 <= late_ms <= 5_000


class TestItsEnds:
    @pytest.mark.parametrize("code", [1000, 4408, 4413])
    def test_the_server_hangs_up(self, code):
        """The iteration ends, after its last words were heard; what is sent then goes nowhere."""

        async def main():
            far = FarEnd()
            line = line_to(far)
            async with reading(line) as (heard, task):
                await asyncio.sleep(0.11)
                far.session.tell(b"\5\5" * 3_200)
                await asyncio.sleep(0.01)
                far.session.wire.end(code, "that is all")
                await task
                await line.send(AudioOut(bytes(FRAME), 16_000))
                return sound(heard), line.played_ms

        heard, played_ms = simulated(main)
        assert heard.count(b"\5") == 200 * 32
        assert played_ms == 0

    def test_the_server_hangs_up_in_a_pause(self):
        """What would never be played is not waited for."""

        async def main():
            far = FarEnd()
            line = line_to(far)
            async with reading(line) as (_, task):
                await asyncio.sleep(0.11)
                far.session.tell(b"\5\5" * 16_000)
                far.session.tell({"type": "pause"})
                await asyncio.sleep(0.1)
                far.session.wire.end(1000, "bye")
                async with asyncio.timeout(0.1):
                    await task

        simulated(main)

    @pytest.mark.parametrize("code", [4409, 4410, 4500])
    def test_the_server_fails_or_forgets_the_call(self, code):
        """A new line may be made."""

        async def main():
            far = FarEnd()
            line = line_to(far)
            async with reading(line) as (_, task):
                await asyncio.sleep(0.1)
                far.session.wire.end(code, "a reason of its own")
                with pytest.raises(LineLost, match="a reason of its own"):
                    await task
                with pytest.raises(LineLost):
                    await line.send(AudioOut(bytes(FRAME), 16_000))

        simulated(main)

    def test_the_two_do_not_understand_each_other(self):
        """To call again would change nothing."""

        async def main():
            far = FarEnd()
            line = line_to(far)
            async with reading(line) as (_, task):
                await asyncio.sleep(0.1)
                far.session.wire.end(4400, "no such message")
                with pytest.raises(ProtocolError, match="no such message"):
                    await task

        simulated(main)

    def test_nobody_answers(self):
        """`open` says so to whoever makes the line, and `recv` to the session."""

        async def main():
            for begin in (WebSocketTransport.open, lambda line: anext(line.recv())):
                line = line_to(FarEnd(Plan(refuse=True)))
                with pytest.raises(ConnectFailedError):
                    await begin(line)
                await line.aclose()

        simulated(main)

    def test_hanging_up_ends_the_reading(self):
        """What was not heard yet is not waited for, and the server hears a goodbye."""

        async def main():
            far = FarEnd()
            line = line_to(far)
            async with reading(line) as (_, task):
                await asyncio.sleep(0.11)
                far.session.tell(b"\5\5" * 16_000)
                await asyncio.sleep(0.05)
                await line.aclose()
                async with asyncio.timeout(0.1):
                    await task
                return far.session.heard_json()

        assert [message["type"] for message in simulated(main)] == ["bye"]

    def test_hanging_up_while_it_is_dialled(self):
        """The line that comes of it is closed again, and nothing of it is left."""

        async def main():
            far = FarEnd(latency_ms=500)
            line = line_to(far)
            async with reading(line) as (heard, task):
                await asyncio.sleep(0.1)
                await line.aclose()
                async with asyncio.timeout(5):
                    await task
                return heard, [wire.aborted for wire in far.wires]

        assert simulated(main) == ([], [True])

    @pytest.mark.parametrize("after_ms", [0, 10, 50, 130, 700])
    def test_cancelled_at_any_moment(self, after_ms):
        """While it is dialled, welcomed or spoken over: no task and no socket is left."""

        async def main():
            far = FarEnd(latency_ms=40)
            line = line_to(far)
            async with reading(line):
                await asyncio.sleep(after_ms / 1000)
            await asyncio.sleep(1)
            return [wire.aborted for wire in far.wires]

        assert set(simulated(main)) <= {True}


class TestALostLine:
    def test_comes_back_by_itself(self):
        """What was being said waits meanwhile, and the server gets all of it, once."""

        async def main():
            far = FarEnd(Plan(), *[Plan(refuse=True)] * 3)
            line = line_to(far)
            async with reading(line) as (heard, task):
                words = speech(600)
                await line.send(AudioOut(words, 16_000))
                await asyncio.sleep(0.205)
                far.session.wire.cut()
                await asyncio.sleep(0.05)
                while_down_ms, frames = line.played_ms, len(heard)
                await asyncio.sleep(0.04)
                more = len(heard) - frames
                was_down = not line.call.is_up
                await asyncio.sleep(20)
                assert not task.done()
                return words, while_down_ms, more, was_down, far.session.heard_audio, line.played_ms, dict(line.counters)

        words, while_down_ms, more, was_down, arrived, played_ms, counters = simulated(main)
        assert was_down
        assert while_down_ms == 200
        assert more == 2
        assert words in arrived
        assert played_ms == 600
        assert counters == {"resumed": 1}

    def test_that_does_not_come_back_is_lost(self):
        """After the server's resume window, not before; whoever waits to send hears it too, and nothing of that was played."""

        async def main():
            far = FarEnd(Plan(), *[Plan(refuse=True)] * 100, limits={"resume_window_ms": 8_000})
            line = line_to(far)
            async with reading(line) as (_, task):
                await asyncio.sleep(0.11)
                far.session.wire.cut()
                await line.send(AudioOut(bytes(100 * FRAME), 16_000))
                sending = asyncio.create_task(line.send(AudioOut(bytes(FRAME), 16_000)))
                await asyncio.sleep(7.8)
                assert not task.done()
                assert not sending.done()
                await asyncio.wait([task], timeout=0.5)
                with pytest.raises(LineLost, match="did not come back"):
                    task.result()
                with pytest.raises(LineLost):
                    await sending
                return line.played_ms

        assert simulated(main) == 0

    def test_the_session_dials_again(self):
        """It goes on over a new line, and what the far side did not get is sent to it."""

        async def main():
            far = FarEnd()
            states, over = [], asyncio.Event()

            def listener(event):
                if event.name == "state":
                    states.append(event.data["state"])
                if event.name == "reply_ended":
                    over.set()

            options = SessionOptions(greeting="one two three four five")
            session = Session(chain("unheard"), line_to(far), options, listeners=[listener])
            attempts = 0

            async def connect():
                nonlocal attempts
                attempts += 1
                line = line_to(FarEnd(Plan(refuse=True)) if attempts < 3 else far)
                await line.open()
                return line

            running_session = asyncio.create_task(session.run())
            await asyncio.sleep(0.5)
            first = far.session
            first.wire.end(4500, "the server failed")
            await asyncio.sleep(0.05)
            await session.reconnect(connect)
            await over.wait()
            session.close("done")
            return await running_session, attempts, states, first.heard_audio, far.session.heard_audio, session.history

        reason, attempts, states, before, after, history = simulated(main)
        assert (reason, attempts) == ("done", 3)
        assert "reconnecting" in states
        assert any(before)
        assert any(after)
        assert history[-1].text == "one two three four five"


async def echo(text, history):
    return f"You said {text}."


def chain(*texts):
    """Long beeps, so that the other side takes them for speech."""
    return Chain(LoudVAD(), turn.new("silence", silence_ms=300), ScriptedSTT(*texts), echo, tts.new("tone", word_ms=400))


class TestTwoSessions:
    def test_talk_to_each_other(self):
        """Over a real server: each hears the other and answers; the caller says goodbye, and both know why it ended."""

        async def main():
            over, others = asyncio.Event(), []

            def served(other):
                others.append(other)
                return lambda event: over.set() if event.name == "closed" else None

            manager = SessionManager(chain("hello there"), listeners=[served])
            async with running(server.app(manager)) as url:
                line = transport.new("websocket", url=url.replace("http:", "ws:") + "/v1/voice", metadata={"who": "caller"})

                def listener(event):
                    if event.name == "turn_finished":
                        session.close("bye")

                options = SessionOptions(greeting="good day to you")
                session = Session(chain("thank you"), line, options, listeners=[listener])
                async with asyncio.timeout(30):
                    reason = await session.run()
                    await over.wait()
            return reason, session, others, dict(line.counters)

        reason, session, (other,), counters = asyncio.run(main())
        assert (reason, other.end_reason) == ("bye", "bye")
        assert [message.text for message in session.history] == ["good day to you", "thank you", "You said thank you."]
        assert [message.text for message in other.history][:2] == ["hello there", "You said hello there."]
        assert other.metadata == {"who": "caller"}
        assert counters == {}

    def test_the_other_hangs_up(self):
        """The other side's goodbye is heard, and ends the session as one."""

        async def main():
            manager = SessionManager(chain("hello"))
            async with running(server.app(manager)) as url:
                line = transport.new("websocket", url=url.replace("http:", "ws:") + "/v1/voice")

                def listener(event):
                    if event.name == "turn_ended":
                        manager.sessions[0].close("agent_ended")

                options = SessionOptions(greeting="good day")
                async with asyncio.timeout(30):
                    return await Session(chain("x"), line, options, listeners=[listener]).run()

        assert asyncio.run(main()) == "bye"

    def test_a_refused_path_fails_the_session(self):
        """An address without a server is told as an error of the line."""

        async def main():
            async with running(server.app(SessionManager(chain("x")))) as url:
                told = []
                line = transport.new("websocket", url=url.replace("http:", "ws:") + "/nowhere")
                reason = await Session(chain("x"), line, listeners=[told.append]).run()
            return reason, [event.data["message"] for event in told if event.name == "error"]

        reason, messages = asyncio.run(main())
        assert reason == "error"
        assert "HTTP status" in messages[0]
