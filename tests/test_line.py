"""A caller's line over sockets that come and go, in simulated time: the far end is a socket on paper."""

import asyncio
import json
from collections import deque
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beluga_voice import Chain, Session, tts, turn, wire
from beluga_voice.clock import Clock, run_simulated
from beluga_voice.errors import LineLost, ProviderTimeoutError
from beluga_voice.events import SessionEvent, TurnRecord
from beluga_voice.frames import DTMF, AudioIn, AudioOut, EndTurn, Interrupt, StartTurn, TextIn
from beluga_voice.history import Message
from beluga_voice.server.bounds import LineOptions
from beluga_voice.server.line import WireLine
from beluga_voice.testing import LoudVAD, ScriptedSTT, quiet, speech

IN_HZ, OUT_HZ = 16_000, 24_000
FRAME = bytes(640)  # 20 ms at 16 kHz
REPLY = bytes(960)  # 20 ms at 24 kHz
RECORD = TurnRecord(2, "a", "b", "b", 0, 0, 1, 5.0, 1.5, 2.5, 3.5, 0, 12.5, False)


class Far:
    """The caller's end of one socket: `got` is what came, with the time; `say` and `audio` send."""

    def __init__(self, *, answers=True):
        self.hung_up = False
        self.got = []
        self.closed = None
        self.gone = False
        self.taking = asyncio.Event()
        self.taking.set()
        self._answers = answers
        self._waiting = deque()
        self._news = asyncio.Event()

    async def receive(self):
        while not self._waiting:
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft()

    async def send(self, message):
        await self.taking.wait()
        if self.gone or self.closed:
            raise LineLost("the far end is gone")
        self.got.append((Clock().now_ms(), wire.parse_server(message)))
        if self._answers and self.got[-1][1].__class__ is dict and self.got[-1][1]["type"] == "ping":
            self.say("pong", t_ms=self.got[-1][1]["t_ms"])

    async def close(self, code, reason):
        self.closed = (code, reason)

    def put(self, message):
        self._waiting.append(message)
        self._news.set()

    def say(self, name, **fields):
        self.put(wire.text({"type": name, **fields}))

    def audio(self, seq, pcm=FRAME):
        self.put(wire.audio(seq, pcm))

    def leave(self, code=1006):
        self.gone, self.hung_up = True, code == 1000
        self.put(None)

    def of(self, name):
        """The JSON messages of a type."""
        return [message for _, message in self.got if isinstance(message, dict) and message["type"] == name]

    @property
    def numbered(self):
        """The numbers of what came, in order."""
        seqs = [m.seq if isinstance(m, wire.AudioMessage) else m.get("seq", -1) for _, m in self.got]
        return [s for s, (_, m) in zip(seqs, self.got) if isinstance(m, wire.AudioMessage) or m["type"] not in UNNUMBERED]

    @property
    def heard(self):
        return [message for _, message in self.got if isinstance(message, wire.AudioMessage)]


UNNUMBERED = ("welcome", "ack", "ping", "pong")


def hello(push=False, resume=None):
    return wire.Hello("", IN_HZ, OUT_HZ, push, {}, resume)


def resume(token="r", received_seq=-1, played=(-1, 0.0)):
    return wire.Resume("s", token, received_seq, *played)


def new_line(push=False, **options):
    return WireLine(hello(push), options=LineOptions(**options))


class Session_:
    """Takes what the line brings, as a session does, from loss to return."""

    def __init__(self, line):
        self.line, self.taken, self.ends = line, [], []

    async def run(self):
        while True:
            try:
                async for frame in self.line.recv():
                    self.taken.append(frame)
                self.ends.append("bye")
                return
            except LineLost:
                self.ends.append("lost")
                await self.line.reattached()
            except wire.WireError as error:
                self.ends.append(str(error))
                return


@asynccontextmanager
async def on(line, far, *, takes=True, **given):
    """The line served on `far`, with a session that takes what comes."""
    taker = Session_(line)
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(line.serve(far, **given))
        taking = tasks.create_task(taker.run()) if takes else None
        await asyncio.sleep(0.001)
        taker.serving = serving
        try:
            yield taker
        finally:
            serving.cancel()
            if taking is not None:
                taking.cancel()


def event(name, turn=-1, **data):
    return SessionEvent(name, 0.0, turn, data)


def in_simulated_time(test):
    def run(*args, **kwargs):
        return run_simulated(test(*args, **kwargs))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


class TestWelcome:
    @in_simulated_time
    async def test_says_where_it_is(self):
        """The welcome has everything, comes first and carries no number; what the session said before follows it."""
        line, far = new_line(), Far()
        line.notify(event("opened", session_id="s1"))
        line.notify(event("state", state="listening", old="connected"))
        async with on(line, far, limits={"max_turn_ms": 3}):
            assert line.attached
            welcome = far.got[0][1]
            token = welcome.pop("resume_token")
            assert welcome == {
                **{"type": "welcome", "session_id": "s1", "resumed": False, "received_seq": -1, "events_lost": False},
                **{"input_rate_hz": IN_HZ, "output_rate_hz": OUT_HZ, "limits": {"max_turn_ms": 3}},
            }
            assert line.tokens.check(token)
            assert far.got[1][1] == {"type": "state", "state": "listening", "turn": -1, "seq": 0}
        assert not line.attached


class TestHearing:
    @in_simulated_time
    async def test_passes_on_what_the_caller_sends(self):
        """Audio, typed text, keys, push-to-talk and the stop button, in order and with their numbers; bye is the end."""
        line, far = new_line(), Far()
        async with on(line, far) as session:
            far.audio(0)
            far.say("text", seq=1, text="hi")
            far.say("text", seq=2, text="  ")
            far.say("dtmf", seq=3, digit="5")
            far.say("x-new", seq=4, what=1)
            far.say("start_turn", seq=5)
            far.say("end_turn", seq=6)
            far.say("interrupt", seq=7)
            far.say("bye", seq=8)
            await asyncio.sleep(1)
        assert session.taken == [
            *(AudioIn(FRAME, IN_HZ, seq=0), TextIn("hi", 1), DTMF("5"), StartTurn(), EndTurn("push"), Interrupt()),
        ]
        assert session.ends == ["bye"]

    @in_simulated_time
    async def test_push_to_talk(self):
        """In push mode only audio between press and release is heard."""
        line, far = new_line(push=True), Far()
        async with on(line, far) as session:
            far.audio(0)
            far.say("start_turn", seq=1)
            far.audio(2)
            far.say("end_turn", seq=3)
            far.audio(4)
            await asyncio.sleep(1)
            assert [frame.seq for frame in session.taken if isinstance(frame, AudioIn)] == [2]
            assert line.counters["audio_outside_turn"] == 2

    @in_simulated_time
    async def test_a_gap_is_told_and_a_repeat_ignored(self):
        """What came already is ignored; what is missing is told, and the line goes on from there."""
        line, far = new_line(), Far()
        async with on(line, far) as session:
            for seq in (0, 0, 4, 2, 5):
                far.audio(seq)
            await asyncio.sleep(1)
            assert [frame.seq for frame in session.taken] == [0, 4, 5]
            (error,) = far.of("error")
            assert (error["code"], error["fatal"]) == ("protocol", False)
            assert "number 4 came where 1 was expected: 3 are missing" in error["message"]
            assert (line.counters["gaps"], line.counters["missing"], line.counters["repeats"]) == (1, 3, 2)

    @pytest.mark.parametrize("message", ["[]", '{"type":"nonsense"}', b"123", '{"type":"text","seq":1}'])
    def test_breaking_the_protocol_closes(self, message):
        """4400 with a reason, and the session ends."""

        async def main():
            line, far = new_line(), Far()
            async with on(line, far) as session:
                far.audio(0)
                far.put(message)
                await asyncio.sleep(1)
                assert far.closed[0] == 4400
                assert far.closed[1]
                assert session.ends[0].startswith("4400")
                assert session.serving.done()

        run_simulated(main())

    @in_simulated_time
    async def test_a_second_hello_closes(self):
        """hello comes first, and once."""
        line, far = new_line(), Far()
        async with on(line, far):
            far.say("hello", sample_rate_hz=IN_HZ, output_rate_hz=OUT_HZ)
            await asyncio.sleep(1)
            assert far.closed == (4400, "a second hello; expected it first and once")

    @given(st.lists(st.binary(max_size=40) | st.text(max_size=40), max_size=20))
    @settings(max_examples=50)
    def test_garbage_closes_and_nothing_else(self, messages):
        """Whatever comes, serving ends by itself and no task is left."""

        async def main():
            line, far = new_line(), Far()
            async with on(line, far) as session:
                for message in messages:
                    far.put(message)
                far.leave()
                await asyncio.sleep(1)
                assert session.serving.done()
                assert session.serving.exception() is None

        run_simulated(main())


class TestPace:
    @in_simulated_time
    async def test_a_session_that_takes_nothing_gets_the_newest(self):
        """Live audio beyond 5 s drops its oldest, counted; other frames stay."""
        line, far = new_line(audio_burst_ms=60_000), Far()
        async with on(line, far, takes=False):
            far.say("text", seq=0, text="hi")
            for seq in range(1, 401):
                far.audio(seq)
            await asyncio.sleep(0.1)
            assert line.counters["audio_dropped"] == 150
        session = Session_(line)
        taking = asyncio.get_running_loop().create_task(session.run())
        await asyncio.sleep(1)
        taking.cancel()
        assert [frame.seq for frame in session.taken] == [0, *range(151, 401)]

    @in_simulated_time
    async def test_too_fast_is_dropped_then_cut_off(self):
        """Audio beyond twice real time and its burst is dropped with an error; who goes on is closed."""
        line, far = new_line(audio_burst_ms=1_000, audio_patience_ms=1_000), Far()
        async with on(line, far) as session:
            for seq in range(60):
                far.audio(seq)
            await asyncio.sleep(0.1)
            assert len(session.taken) == 50
            assert line.counters["audio_over_pace"] == 10
            assert [error["code"] for error in far.of("error")] == ["limit"]
            assert far.closed is None
            for seq in range(60, 130):
                far.audio(seq)
            await asyncio.sleep(0.1)
            assert far.closed[0] == 4400

    @in_simulated_time
    async def test_twice_real_time_is_allowed(self):
        """A client that catches up at twice the pace loses nothing."""
        line, far = new_line(audio_burst_ms=200), Far()
        async with on(line, far) as session:
            for seq in range(500):
                far.audio(seq)
                await asyncio.sleep(0.010)
            assert len(session.taken) == 500

    @in_simulated_time
    async def test_tiny_messages_cost_too(self):
        """Messages of one sample each are no way round the pace."""
        line, far = new_line(), Far()
        async with on(line, far):
            for seq in range(3_000):
                far.audio(seq, b"ab")
            await asyncio.sleep(0.1)
            assert line.counters["audio_over_pace"] > 1_000

    @in_simulated_time
    async def test_message_floods(self):
        """Pings count: beyond the pace they are ignored, in the end the caller is cut off; what waits is bounded."""
        line, far = new_line(messages_burst=20, messages_patience=50), Far()
        async with on(line, far):
            for _ in range(30):
                far.say("ping", t_ms=1)
            await asyncio.sleep(0.001)
            assert line.counters["messages_over_pace"] == 10
            assert 0 < len(far.of("pong")) <= 20
            for _ in range(100):
                far.say("ping", t_ms=1)
            await asyncio.sleep(0.1)
            assert far.closed[0] == 4400

    @in_simulated_time
    async def test_frames_that_nobody_takes_are_bounded(self):
        """A session that takes nothing is not buried in typed turns."""
        line, far = new_line(inbound_frames=10), Far()
        async with on(line, far, takes=False):
            for seq in range(30):
                far.say("text", seq=seq, text="hi")
            await asyncio.sleep(0.1)
            assert line.counters["frames_refused"] == 20
            assert far.of("error")[0]["code"] == "limit"


class TestTelling:
    @in_simulated_time
    async def test_events_become_messages(self):
        """What the session tells its listeners the caller is told, in order, numbered without a hole."""
        line, far = new_line(), Far()
        async with on(line, far):
            line.notify(event("transcript", 2, text="hel", is_final=False, confidence=float("nan")))
            line.notify(event("turn_ended", 2, source="silence", speech_end_ms=1.0))
            line.notify(event("reply_text", 2, reply=7, text="x" * 10_001))
            line.notify(event("reply_started", 2, reply=7))
            line.notify(event("state", 2, state="responding", old="processing"))
            await line.send(AudioOut(REPLY, OUT_HZ))
            await line.send(AudioOut(REPLY, OUT_HZ))
            line.notify(event("reply_paused", 2, reply=7, played_ms=0.0, speech_start_ms=0.0))
            line.notify(event("reply_ended", 2, reply=7, heard_text="x", interrupted=True))
            line.notify(event("turn_finished", 2, record=RECORD))
            line.notify(event("turn_reopened", 2))
            line.notify(event("error", 2, stage="stt", message="at https://secret", error=ProviderTimeoutError("key")))
            line.notify(event("error", 2, stage="agent", message="secret", error=ValueError("secret")))
            line.notify(event("goaway", deadline_ms=5_000))
            await asyncio.sleep(0.1)
        assert far.numbered == list(range(14))
        told = [message for _, message in far.got if isinstance(message, dict) and message["type"] not in UNNUMBERED]
        goaway = told.pop()
        assert line.tokens.check(goaway.pop("resume_token"))
        assert goaway == {"type": "goaway", "deadline_ms": 5_000, "seq": 13}
        for message in told:
            del message["seq"]
        assert told == [
            {"type": "transcript", "turn": 2, "text": "hel", "final": False, "confidence": None},
            {"type": "turn_end", "turn": 2},
            {"type": "reply", "turn": 2, "reply": 7, "text": "x" * 10_000},
            {"type": "reply", "turn": 2, "reply": 7, "text": "x"},
            {"type": "state", "state": "responding", "turn": 2},
            {"type": "reply_start", "turn": 2, "reply": 7, "first_seq": 6},
            {"type": "reply_end", "turn": 2, "reply": 7, "last_seq": 7, "interrupted": True, "heard_text": "x"},
            {
                **{"type": "metrics", "turn": 2, "stt_latency_ms": 1.5, "agent_latency_ms": 2.5},
                **{"tts_latency_ms": 3.5, "e2e_latency_ms": 12.5},
            },
            {"type": "turn_reopened", "turn": 2},
            {"type": "error", "code": "provider", "message": "stt failed (ProviderTimeoutError)", "fatal": False},
            {"type": "error", "code": "internal", "message": "agent failed (ValueError)", "fatal": False},
        ]
        assert [message.seq for message in far.heard] == [6, 7]

    @in_simulated_time
    async def test_acks(self):
        """What came is acknowledged within a second, and at once at the end of a turn; all is safe without a store."""
        line, far = new_line(), Far()
        async with on(line, far):
            far.audio(0)
            await asyncio.sleep(0.9)
            assert far.of("ack") == [{"type": "ack", "seq": 0, "safe_seq": 0}]
            far.audio(1)
            await asyncio.sleep(0.01)
            line.notify(event("turn_ended", 0))
            await asyncio.sleep(0.01)
            assert far.of("ack")[1:] == [{"type": "ack", "seq": 1, "safe_seq": 1}]
            await asyncio.sleep(3)
            assert len(far.of("ack")) == 2

    @in_simulated_time
    async def test_safe_is_what_the_store_covers(self):
        """With a store only what it covers is safe, and news of that is told though nothing came."""
        line, far = new_line(has_store=True), Far()
        async with on(line, far):
            for seq in range(5):
                far.audio(seq)
            await asyncio.sleep(0.9)
            assert far.of("ack")[-1] == {"type": "ack", "seq": 4, "safe_seq": -1}
            line.covered(3)
            line.covered(1)
            await asyncio.sleep(0.9)
            assert far.of("ack")[-1] == {"type": "ack", "seq": 4, "safe_seq": 3}

    @in_simulated_time
    async def test_lives(self):
        """A ping when nothing else was sent for 5 s; a ping is answered with its own time."""
        line, far = new_line(), Far()
        async with on(line, far):
            far.say("ping", t_ms=12.5)
            await asyncio.sleep(30)
            assert far.of("pong") == [{"type": "pong", "t_ms": 12.5}]
            at = [ms for ms, message in far.got]
            assert max(later - sooner for sooner, later in pairwise(at)) <= 5_001
            assert line.attached

    @in_simulated_time
    async def test_acks_of_nothing(self):
        """An ack of what was never sent is an error that ends nothing."""
        line, far = new_line(), Far()
        async with on(line, far):
            far.say("ack", seq=99)
            await asyncio.sleep(0.1)
            assert far.of("error")[0]["code"] == "protocol"
            assert line.attached


class TestPlaying:
    @in_simulated_time
    async def test_without_reports_it_plays_in_real_time(self):
        """From when it was sent, at most what was sent."""
        line, far = new_line(), Far()
        async with on(line, far):
            for _ in range(10):
                await line.send(AudioOut(REPLY, OUT_HZ))
            await asyncio.sleep(0.05)
            assert line.played_ms == pytest.approx(50, abs=1)
            await asyncio.sleep(5)
            assert line.played_ms == pytest.approx(200)
            await line.send(AudioOut(REPLY, OUT_HZ))
            await asyncio.sleep(0.01)
            assert line.played_ms == pytest.approx(210, abs=1)

    @in_simulated_time
    async def test_reports_are_believed(self):
        """A report moves it on, and the time since counts; one that is behind is waited for, never gone back to."""
        line, far = new_line(), Far()
        async with on(line, far):
            for _ in range(50):
                await line.send(AudioOut(REPLY, OUT_HZ))
            await asyncio.sleep(0.1)
            far.say("played", seq=2, ms=10)
            await asyncio.sleep(0.01)
            assert line.played_ms == pytest.approx(100, abs=2)
            await asyncio.sleep(0.1)
            assert line.played_ms == pytest.approx(160, abs=2)
            far.say("played", seq=20, ms=0)
            await asyncio.sleep(0.01)
            assert line.played_ms == pytest.approx(410, abs=2)
            far.say("played", seq=2**32 - 1, ms=1e9)
            await asyncio.sleep(0.01)
            assert line.played_ms == pytest.approx(1_000)

    @in_simulated_time
    async def test_a_pause_holds_it_where_the_caller_says(self):
        """Pause freezes the estimate, `stopped` corrects it, continue goes on from there."""
        line, far = new_line(), Far()
        async with on(line, far):
            for _ in range(10):
                await line.send(AudioOut(REPLY, OUT_HZ))
            await asyncio.sleep(0.1)
            assert line.pause()
            await asyncio.sleep(0.3)
            assert line.played_ms == pytest.approx(100, abs=2)
            far.say("stopped", seq=3, ms=5)
            await asyncio.sleep(1)
            assert line.played_ms == pytest.approx(65, abs=0.1)
            line.go_on()
            await asyncio.sleep(0.1)
            assert line.played_ms == pytest.approx(165, abs=1)
            assert [m["type"] for _, m in far.got if isinstance(m, dict) and "seq" in m] == ["pause", "continue"]

    @in_simulated_time
    async def test_cleared_audio_never_counts(self):
        """After clear, what was not played is gone; the caller's word on where it stopped is exact; new audio counts on."""
        line, far = new_line(), Far()
        async with on(line, far):
            line.notify(event("reply_started", 4, reply=1))
            for _ in range(10):
                await line.send(AudioOut(REPLY, OUT_HZ))
            await asyncio.sleep(0.1)
            line.clear()
            assert line.played_ms == pytest.approx(100, abs=2)
            far.say("stopped", seq=4, ms=15)
            await asyncio.sleep(5)
            assert line.played_ms == pytest.approx(75, abs=0.1)
            assert far.of("clear")[0]["turn"] == 4
            for _ in range(5):
                await line.send(AudioOut(REPLY, OUT_HZ))
            far.say("stopped", seq=9, ms=0)
            await asyncio.sleep(5)
            assert line.played_ms == pytest.approx(175, abs=0.1)

    @in_simulated_time
    async def test_clear_ends_a_pause(self):
        """What comes after a clear is played, whether or not a pause came before."""
        line, far = new_line(), Far()
        async with on(line, far):
            await line.send(AudioOut(REPLY, OUT_HZ))
            line.pause()
            line.clear()
            before_ms = line.played_ms
            await line.send(AudioOut(REPLY, OUT_HZ))
            await asyncio.sleep(1)
            assert line.played_ms == pytest.approx(before_ms + 20)
            assert [m["type"] for _, m in far.got if isinstance(m, dict) and "seq" in m] == ["pause", "clear", "continue"]

    @in_simulated_time
    async def test_a_stalled_caller_holds_the_sender(self):
        """Who makes audio waits while a socket takes none; unsent audio is not played; clear lets the sender go, unsent."""
        line, far = new_line(unsent_ms=200), Far()
        async with on(line, far):
            far.taking.clear()
            sent = []

            async def make():
                for _ in range(50):
                    await line.send(AudioOut(REPLY, OUT_HZ))
                    sent.append(1)

            making = asyncio.get_running_loop().create_task(make())
            await asyncio.sleep(1)
            assert len(sent) == 10
            assert line.played_ms == 0
            line.clear()
            await asyncio.sleep(0.1)
            making.cancel()
            assert line.counters["stale_audio_dropped"] == 1
            far.taking.set()
            await asyncio.sleep(1)
            assert len(far.heard) == len(sent) - 1
            assert len(sent) == 21

    @settings(max_examples=60)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["send", "wait", "played", "stopped", "pause", "go_on", "clear", "cut", "back"]),
                st.integers(0, 40),
                st.integers(0, 50),
            ),
            max_size=40,
        )
    )
    def test_is_never_more_than_was_sent(self, acts):
        """Whatever a caller reports, played stays between nothing and what was sent, and never goes back by itself."""

        async def main():
            line, far, sent = new_line(), Far(), 0
            serving = asyncio.get_running_loop().create_task(line.serve(far))
            await asyncio.sleep(0.001)
            for act, number, ms in acts:
                before_ms = line.played_ms
                if act == "send" and line.attached:
                    await line.send(AudioOut(REPLY, OUT_HZ))
                    sent += 20
                elif act == "wait":
                    await asyncio.sleep(ms / 1_000)
                    assert line.played_ms >= before_ms
                elif act in ("played", "stopped") and line.attached:
                    far.say(act, seq=number - 1, ms=ms)
                    await asyncio.sleep(0)
                elif act in ("pause", "go_on", "clear"):
                    getattr(line, act)()
                elif act == "cut":
                    far.leave()
                    await serving
                elif act == "back" and not line.attached:
                    far = Far()
                    came = resume(received_seq=number, played=(number - 1, ms))
                    serving = asyncio.get_running_loop().create_task(line.serve(far, resume=came))
                    await asyncio.sleep(0.001)
                assert 0 <= line.played_ms <= sent
            far.leave()
            await asyncio.wait({serving})
            assert serving.exception() is None

        run_simulated(main())


class TestResuming:
    @in_simulated_time
    async def test_goes_on_where_it_broke(self):
        """What the caller has not received is sent again; what it sends again is heard once; played starts where it says."""
        line, far = new_line(), Far()
        async with on(line, far):
            far.audio(0)
            for _ in range(5):
                await line.send(AudioOut(REPLY, OUT_HZ))
            await asyncio.sleep(0.01)
            far.leave()
            await asyncio.sleep(0.2)
            line.notify(event("state", state="responding", old="x"))
            assert not line.attached
            frozen_ms = line.played_ms
            assert frozen_ms < 30
            await asyncio.sleep(3)
            assert line.played_ms == frozen_ms
        token = far.of("welcome")[0]["resume_token"]
        back = Far()
        came = resume(token, received_seq=2, played=(1, 10.0))
        line.admit(hello(resume=came))
        async with on(line, back, resume=came) as session:
            assert line.played_ms == pytest.approx(30, abs=2)
            for seq in (0, 1, 2):
                back.audio(seq)
            await asyncio.sleep(1)
            assert back.numbered == [3, 4, 5]
            assert back.of("state")
            welcome = back.got[0][1]
            assert (welcome["resumed"], welcome["received_seq"], welcome["events_lost"]) == (True, 0, False)
            assert welcome["resume_token"] != token
            assert [frame.seq for frame in session.taken if isinstance(frame, AudioIn)] == [1, 2]
            assert line.played_ms == pytest.approx(100)

    @in_simulated_time
    async def test_the_session_hears_of_it(self):
        """What came before the break is taken first, then the loss, then what comes after the return."""
        line, far, back = new_line(), Far(), Far()
        session = Session_(line)
        taking = asyncio.get_running_loop().create_task(session.run())
        far.audio(0)
        far.put(None)
        await line.serve(far)
        await asyncio.sleep(1)
        assert (len(session.taken), session.ends) == (1, ["lost"])
        back.audio(1)
        back.say("bye", seq=2)
        serving = asyncio.get_running_loop().create_task(line.serve(back, resume=resume()))
        await taking
        assert (len(session.taken), session.ends) == (2, ["lost", "bye"])
        await line.aclose()
        await serving

    @in_simulated_time
    async def test_audio_of_the_break_waits(self):
        """10 s of the break come in one burst: none is dropped or judged too fast, though none is taken yet."""
        line, far, back = new_line(), Far(), Far()
        far.audio(0)
        far.put(None)
        await line.serve(far)
        await asyncio.sleep(10)
        async with on(line, back, resume=resume(), takes=False):
            for seq in range(1, 501):
                back.audio(seq)
            await asyncio.sleep(20)
            assert line.attached
            session = Session_(line)
            taking = asyncio.get_running_loop().create_task(session.run())
            await asyncio.sleep(1)
            taking.cancel()
            assert [frame.seq for frame in session.taken] == list(range(501))
            assert line.counters["audio_dropped"] == 0

    @in_simulated_time
    async def test_audio_that_waits_is_not_lost_by_another_break(self):
        """A message that was received and waits for the session is taken before what comes over the next socket."""
        line, far, back, again = new_line(inbound_ms=100), Far(), Far(), Far()
        far.leave()
        await line.serve(far)
        async with on(line, back, resume=resume(), takes=False):
            for seq in range(20):
                back.audio(seq)
            await asyncio.sleep(0.1)
            for seq in range(6, 20):  # 5 wait in the line, one in its reader's hand
                again.audio(seq)
            async with on(line, again, resume=resume(), takes=False):
                assert again.of("welcome")[0]["received_seq"] == 5
                session = Session_(line)
                taking = asyncio.get_running_loop().create_task(session.run())
                await asyncio.sleep(1)
                taking.cancel()
                assert [frame.seq for frame in session.taken] == list(range(20))

    @in_simulated_time
    async def test_live_audio_drops_none_of_the_break(self):
        """While what was spoken in the break still waits, live audio waits behind it."""
        line, far, back = new_line(inbound_ms=3_000), Far(), Far()
        far.put(None)
        await line.serve(far)
        await asyncio.sleep(1)
        async with on(line, back, resume=resume(), takes=False):
            for seq in range(300):
                back.audio(seq)
            await asyncio.sleep(1)
            session = Session_(line)
            taking = asyncio.get_running_loop().create_task(session.run())
            await asyncio.sleep(1)
            taking.cancel()
            assert [frame.seq for frame in session.taken] == list(range(300))

    @in_simulated_time
    async def test_messages_of_the_break_are_no_flood(self):
        """What a caller typed while the line was away comes in one burst, outside the pace, as much as a caller keeps."""
        line, far, back = new_line(messages_burst=5, max_events=30), Far(), Far()
        far.put(None)
        await line.serve(far)
        async with on(line, back, resume=resume()) as session:
            for seq in range(50):
                back.say("dtmf", seq=seq, digit="1")
            await asyncio.sleep(1)
            assert len(session.taken) == 35
            assert line.counters["messages_over_pace"] == 15

    @in_simulated_time
    async def test_the_newest_wins(self):
        """A second socket replaces the first, which is told 4409; the session goes through a loss, so that it is saved."""
        line, far, back = new_line(), Far(), Far()
        async with on(line, far) as session, on(line, back, resume=resume(), takes=False):
            await asyncio.sleep(0.1)
            assert far.closed[0] == 4409
            assert back.closed is None
            assert session.serving.done()
            back.audio(0)
            far.audio(0)
            await asyncio.sleep(0.1)
            assert (len(session.taken), session.ends) == (1, ["lost"])
            assert line.attached

    @in_simulated_time
    async def test_a_replaced_socket_that_takes_nothing(self):
        """A stalled socket does not keep a newer one out."""
        line, far, back = new_line(), Far(), Far()
        async with on(line, far):
            far.taking.clear()
            await line.send(AudioOut(REPLY, OUT_HZ))
            await asyncio.sleep(0.1)
            async with on(line, back, resume=resume(), takes=False):
                assert back.heard

    @in_simulated_time
    async def test_tokens_rotate(self):
        """The old token opens until the caller has said something over the new socket."""
        line, sockets = new_line(), [Far(), Far(), Far()]
        tokens = []
        for number, far in enumerate(sockets):
            async with on(line, far, takes=False, resume=resume() if number else None):
                tokens.append(far.of("welcome")[0]["resume_token"])
        line.admit(hello(resume=resume(tokens[1])))  # the third never proved itself
        async with on(line, Far(), takes=False, resume=resume()) as session:
            assert not session.serving.done()
        proven = Far()
        async with on(line, proven, takes=False, resume=resume()):
            proven.say("ack", seq=-1)
            await asyncio.sleep(0.1)
        for token in tokens:
            with pytest.raises(wire.WireError, match="4410"):
                line.admit(hello(resume=resume(token)))
        line.admit(hello(resume=resume(proven.of("welcome")[0]["resume_token"])))

    @in_simulated_time
    async def test_rates_must_be_the_same(self):
        """A resume with other rates is refused, but only to whom the token is known."""
        line = new_line()
        token = line.tokens.issue()
        other = wire.Hello("", 8_000, OUT_HZ, resume=resume(token))
        with pytest.raises(wire.WireError, match="4400: hello: a resume at 8000 and 24000 Hz"):
            line.admit(other)
        with pytest.raises(wire.WireError, match="4410"):
            line.admit(wire.Hello("", 8_000, OUT_HZ, resume=resume("wrong")))

    @in_simulated_time
    async def test_what_fell_out_is_told(self):
        """More events than are kept: the caller hears that some are lost, and what was said instead."""
        line, far, back = new_line(max_events=5), Far(), Far()
        far.leave()
        await line.serve(far)
        for _ in range(10):
            line.notify(event("turn_reopened", 1))
        async with on(line, back, resume=resume(), history=[Message("user", "hi")], takes=False):
            await asyncio.sleep(0.1)
            assert back.got[0][1]["events_lost"]
            assert back.numbered == [6, 7, 8, 9, 10]
            assert back.of("history")[0]["messages"] == [{"role": "user", "text": "hi"}]
            assert line.counters["kept_events_lost"] == 6

    @in_simulated_time
    async def test_a_caller_that_claims_too_much(self):
        """A caller that has received what was never sent is met where it says it is."""
        line, back = new_line(), Far()
        line.notify(event("turn_reopened", 1))
        async with on(line, back, resume=resume(received_seq=100), takes=False):
            line.notify(event("turn_reopened", 1))
            await asyncio.sleep(0.1)
            assert back.got[0][1]["events_lost"]
            assert back.numbered == [101, 102]


class TestAnotherProcess:
    @in_simulated_time
    async def test_takes_the_line_up(self):
        """Tokens, rates and numbers go on; what cannot be replayed is told by the history, before all else."""
        first = new_line(push=True)
        far = Far()
        async with on(first, far, takes=False):
            token = far.of("welcome")[0]["resume_token"]
        saved = json.loads(json.dumps(first.saved()))
        assert token not in json.dumps(saved)
        came = hello(resume=resume(token, received_seq=41, played=(30, 5.0)))
        line = WireLine(came, saved=saved, received_seq=6, options=LineOptions(has_store=True))
        line.admit(came)
        line.notify(event("state", state="listening", old="connected"))
        back = Far()
        async with on(line, back, resume=came.resume, history=[Message("user", "a"), Message("assistant", "b")]) as session:
            await asyncio.sleep(0.1)
            welcome = back.got[0][1]
            assert (welcome["received_seq"], welcome["events_lost"], welcome["resumed"]) == (6, True, True)
            told = [{"role": "user", "text": "a"}, {"role": "assistant", "text": "b"}]
            assert back.got[1][1] == {"type": "history", "messages": told, "seq": 42}
            assert back.of("state")[0]["seq"] == 43
            assert line.played_ms == 0
            back.say("start_turn", seq=7)
            back.audio(8)
            await asyncio.sleep(1)
            assert [type(frame) for frame in session.taken] == [StartTurn, AudioIn]
            assert back.of("ack")[-1] == {"type": "ack", "seq": 8, "safe_seq": 6}

    @in_simulated_time
    async def test_what_is_lost_is_told_until_it_is_known(self):
        """A welcome that may not have arrived is said again with all that it had to tell."""
        line = WireLine(hello(resume=resume("x", received_seq=5)), saved={}, received_seq=3)
        told = []
        for says in (False, True, False):
            far = Far()
            came = resume("x", received_seq=6 if told[1:] else 5)
            async with on(line, far, resume=came, history=[Message("user", "a")], takes=False):
                if says:
                    far.say("ack", seq=6)
                await asyncio.sleep(0.1)
                told.append((far.got[0][1]["events_lost"], len(far.of("history"))))
        assert told == [(True, 1), (True, 1), (False, 0)]

    @in_simulated_time
    async def test_wrong_tokens_stay_wrong(self):
        """What was never issued opens nothing there either."""
        line = WireLine(hello(resume=resume("x")), saved=new_line().saved())
        with pytest.raises(wire.WireError, match="4410"):
            line.admit(hello(resume=resume("x")))

    @in_simulated_time
    async def test_a_long_history_is_told_from_its_end(self):
        """What does not fit one message is left out at the front."""
        line = WireLine(hello(resume=resume("x")), saved={})
        back = Far()
        long = [Message("user", f"{number} " + "\u00e9" * 1_000) for number in range(100)]
        async with on(line, back, resume=resume(), history=long, takes=False):
            await asyncio.sleep(0.1)
            messages = back.of("history")[0]["messages"]
            assert messages[-1]["text"].startswith("99 ")
            assert 5 < len(messages) < 20


class TestEnds:
    @in_simulated_time
    async def test_silence_is_a_lost_line(self):
        """Within ten seconds of nothing the line is lost, and may come back."""
        line, far = new_line(), Far(answers=False)
        async with on(line, far) as session:
            await asyncio.sleep(9.4)
            assert line.attached
            await asyncio.sleep(0.6)
            assert session.ends == ["lost"]
            assert far.closed[0] == 1001
            assert session.serving.done()

    @in_simulated_time
    async def test_a_write_that_does_not_end_is_a_lost_line(self):
        """Ten seconds for one write."""
        line, far = new_line(), Far()
        async with on(line, far) as session:
            far.taking.clear()
            await line.send(AudioOut(REPLY, OUT_HZ))
            for _ in range(22):
                far.say("ack", seq=-1)
                await asyncio.sleep(0.5)
            assert session.ends == ["lost"]
            assert line.counters["write_timeouts"] == 1

    @in_simulated_time
    async def test_a_close_with_1000_is_a_goodbye(self):
        """Unlike any other end of a socket."""
        for code, end in ((1000, "bye"), (1001, "lost"), (1006, "lost")):
            line, far = new_line(), Far()
            async with on(line, far) as session:
                far.leave(code)
                await asyncio.sleep(0.1)
                assert session.ends == [end]

    @pytest.mark.parametrize(
        ("reason", "code"), [("idle", 4408), ("agent_ended", 1000), ("drain", 1012), ("max_session", 4413)]
    )
    def test_the_sessions_end_is_told(self, reason, code):
        """What is still to be said is said, then the socket is closed with the reason's code."""

        async def main():
            line, far = new_line(), Far()
            async with on(line, far) as session:
                line.notify(event("closing", reason=reason))
                for _ in range(40):
                    await line.send(AudioOut(REPLY, OUT_HZ))
                await line.aclose()
                assert len(far.heard) == 40
                assert far.closed[0] == code
                assert session.serving.done()
                await line.aclose()
            late = Far()
            await line.serve(late, resume=resume())
            assert late.closed[0] == 4410

        run_simulated(main())

    @in_simulated_time
    async def test_a_failed_session_says_so(self):
        """A fatal error, then 4500."""
        line, far = new_line(), Far()
        async with on(line, far):
            line.notify(event("closing", reason="error"))
            await line.aclose()
            assert far.of("error")[0]["fatal"]
            assert far.closed[0] == 4500

    @in_simulated_time
    async def test_closing_does_not_wait_for_a_caller_that_takes_nothing(self):
        """The rest is given up after a while."""
        line, far = new_line(), Far()
        async with on(line, far):
            far.taking.clear()
            await line.send(AudioOut(REPLY, OUT_HZ))
            await asyncio.sleep(0.1)
            before_ms = Clock().now_ms()
            await line.aclose()
            assert 1_900 < Clock().now_ms() - before_ms < 2_500
            assert far.closed is not None

    @in_simulated_time
    async def test_closing_wakes_everybody(self):
        """Who waits to send or for the line to come back is let go."""
        line = new_line(unsent_ms=20)

        async def send():
            for _ in range(5):
                await line.send(AudioOut(REPLY, OUT_HZ))

        loop = asyncio.get_running_loop()
        waiting = [loop.create_task(send()), loop.create_task(line.reattached())]
        await asyncio.sleep(1)
        await line.aclose()
        _, pending = await asyncio.wait(waiting, timeout=1)
        assert not pending
        assert [type(task.exception()) for task in waiting] == [type(None), LineLost]

    @in_simulated_time
    async def test_a_caller_who_was_never_heard_is_not_waited_for_long(self):
        """Connecting and going, again and again, holds no sessions for the whole window."""
        line, far = new_line(unproven_ms=3_000), Far()
        async with on(line, far, takes=False):
            await asyncio.sleep(0.1)
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(LineLost, match="before they were heard"):
            await line.reattached()
        assert loop.time() - began == pytest.approx(3.0)

    @in_simulated_time
    async def test_cancelled_serving_leaves_nothing(self):
        """Cancelled at any moment, serving leaves no task and a line that may be taken up."""
        for steps in range(12):
            line, far = new_line(), Far()
            serving = asyncio.get_running_loop().create_task(line.serve(far))
            for _ in range(steps):
                await asyncio.sleep(0)
            serving.cancel()
            await asyncio.wait({serving})
            assert not line.attached
            assert asyncio.all_tasks() == {asyncio.current_task()}
            back = Far()
            async with on(line, back, resume=resume(), takes=False):
                assert back.of("welcome")


class TestBounds:
    @in_simulated_time
    async def test_a_caller_that_acks_nothing(self):
        """What is kept for it is bounded by the window, and what falls out is counted."""
        line, far = new_line(window_ms=1_000), Far()
        async with on(line, far):
            for _ in range(200):
                await line.send(AudioOut(REPLY, OUT_HZ))
                await asyncio.sleep(0.02)
            far.say("ack", seq=0)
            assert line.counters["kept_audio_lost"] >= 149
            assert len(far.heard) == 200


class TestASession:
    @in_simulated_time
    async def test_holds_a_conversation_over_two_sockets(self):
        """A real session over the line: heard, answered, broken off in mid-reply, resumed, and the reply is played out."""

        async def reply(text, history):
            return "This is a rather long answer to what was said. It has two sentences."

        chain = Chain(LoudVAD(), turn.new("silence"), ScriptedSTT("hello there"), reply, tts.new("tone"))
        line = new_line()
        session = Session(chain, line)
        loop = asyncio.get_running_loop()
        running = loop.create_task(session.run())
        pcm = quiet(500) + speech(800) + quiet(2_000)
        frames = [pcm[at : at + 640] for at in range(0, len(pcm) - 639, 640)]
        far = Far()
        serving = loop.create_task(line.serve(far))
        for seq, frame in enumerate(frames):
            far.audio(seq, frame)
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        far.leave()
        await serving
        await asyncio.sleep(0.5)
        last = far.numbered[-1]
        back = Far()
        token = far.of("welcome")[0]["resume_token"]
        came = resume(token, received_seq=last, played=(far.heard[-1].seq, 0.0))
        line.admit(hello(resume=came))
        serving = loop.create_task(line.serve(back, resume=came))
        for seq in range(len(frames), len(frames) + 400):
            back.audio(seq, bytes(640))
            await asyncio.sleep(0.02)
        back.say("bye", seq=len(frames) + 400)
        await asyncio.wait({running, serving})
        assert running.result() == "bye"
        assert back.closed[0] == 1000
        assert far.of("transcript")[-1]["text"] == "hello there"
        numbers = far.numbered + back.numbered
        assert numbers == list(range(len(numbers)))
        (ended,) = [*far.of("reply_end"), *back.of("reply_end")]
        assert not ended["interrupted"]
        assert ended["heard_text"].endswith("two sentences.")
        assert ended["last_seq"] == back.heard[-1].seq
