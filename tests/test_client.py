"""The client: no word is lost or doubled however often the line breaks, and what is heard is what was to be heard."""

import asyncio
import json
import random

import pytest
from far_end import FarEnd, Plan
from hypothesis import given, settings
from hypothesis import strategies as st

from beluga_voice import client
from beluga_voice.clock import Clock, run_simulated
from beluga_voice.errors import (
    AuthError,
    ConfigError,
    ConnectFailedError,
    InvalidRequestError,
    OptionError,
    SessionClosedError,
    SessionLimitError,
)

URL = "ws://voice.test/v1/voice"
FRAME = 640  # 20 ms at 16 kHz


def pcm(number, size=FRAME):
    """Audio that no other number has."""
    return number.to_bytes(2, "little") * (size // 2)


def connect(far, **more):
    return client.connect(URL, **{"dial": far.dial, "rng": random.Random(1), **more})


def simulated(main):
    """Run in simulated time; afterwards no task is left."""

    async def whole():
        given = await main()
        await asyncio.sleep(30)
        mine = asyncio.current_task()
        left = [task.get_name() for task in asyncio.all_tasks() if task is not mine and "client" in task.get_name()]
        assert left == []
        return given

    return run_simulated(whole())


async def events_of(call):
    return [event async for event in call]


async def so_far(call):
    """The events that wait to be read."""
    events = []
    while True:
        try:
            events.append(await asyncio.wait_for(anext(call), 0.001))
        except TimeoutError:
            return events


def states(events):
    return [event["state"] for event in events if event["type"] == "line"]


class TestPlainCall:
    def test_says_and_hears_everything_in_order(self):
        """Audio, texts and keys arrive as they were said; the server's words come as events; goodbye ends it."""

        async def main():
            far = FarEnd()
            async with connect(far, token="t", metadata={"name": "Ada"}) as call:
                await call.send_audio(pcm(1))
                await call.send_text("hello")
                call.start_turn()
                call.end_turn()
                call.interrupt()
                call.dtmf("#")
                far.session.tell({"type": "state", "state": "listening", "turn": -1})
                await asyncio.sleep(1)
                assert call.state == "listening"
            return far, call, await events_of(call)

        far, call, events = simulated(main)
        assert (far.hellos[0]["token"], far.hellos[0]["metadata"]) == ("t", {"name": "Ada"})
        assert far.session.heard_audio == pcm(1)
        told = [message["type"] for message in far.session.heard_json()]
        assert told == ["text", "start_turn", "end_turn", "interrupt", "dtmf", "bye"]
        assert [event["type"] for event in events] == ["line", "state", "line"]
        assert (call.end_reason, call.close_code, call.session_id) == ("bye", 1000, "s0")
        assert dict(call.counters) == {}

    def test_keeps_alive_and_acknowledges(self):
        """Something is sent every 5 s, and what arrives is acknowledged within a second."""

        async def main():
            far = FarEnd()
            async with connect(far) as call:
                far.session.tell({"type": "state", "state": "listening"})
                await asyncio.sleep(0.99)
                acks = [report["seq"] for report in far.session.reports if report["type"] == "ack"]
                await asyncio.sleep(60)
                assert call.is_up
                assert call.rtt_ms is not None
                return acks, sum(report["type"] == "ping" for report in far.session.reports)

        acks, pings = simulated(main)
        assert acks == [0]
        assert 12 <= pings <= 14

    def test_refuses_what_the_server_would_close_for(self):
        """A wrong key, a text too long and half a sample are told at once, and the call goes on."""

        async def main():
            far = FarEnd()
            async with connect(far) as call:
                with pytest.raises(OptionError, match="digit"):
                    call.dtmf("x")
                with pytest.raises(OptionError, match="10000"):
                    await call.send_text("x" * 10_001)
                with pytest.raises(ConfigError, match="whole samples"):
                    await call.send_audio(b"abc")
                await call.send_text("fine")
            with pytest.raises(SessionClosedError, match="bye"):
                await call.send_text("too late")
            return far.session

        assert [message["type"] for message in simulated(main).heard_json()] == ["text", "bye"]

    @pytest.mark.parametrize("url", ["http://a/", "ws://", "voice", "ws://a:99999/", "ws://a b/", ""])
    def test_refuses_a_wrong_address(self, url):
        """What is no WebSocket address is told before anything is dialled."""
        with pytest.raises(ConfigError, match="ws://127"):
            client.connect(url)

    @pytest.mark.parametrize("wrong", [{"input_rate_hz": 7_999}, {"output_rate_hz": 96_000}, {"metadata": {"a": {1}}}])
    def test_refuses_wrong_arguments(self, wrong):
        """Rates out of range and metadata that is no JSON."""
        with pytest.raises(OptionError):
            client.connect(URL, **wrong)


class TestConnecting:
    def test_nobody_there(self):
        """A refused connection is told at once."""

        async def main():
            far = FarEnd(Plan(refuse=True))
            with pytest.raises(ConnectFailedError, match="could not be reached"):
                async with connect(far):
                    pass

        simulated(main)

    @pytest.mark.parametrize(("code", "error"), [(4401, AuthError), (4400, InvalidRequestError), (4500, InvalidRequestError)])
    def test_refused(self, code, error):
        """A refusal is told with its code and reason, after one try."""

        async def main():
            far = FarEnd(Plan(close=(code, "because of this")))
            with pytest.raises(error, match=f"because of this.*{code}"):
                async with connect(far):
                    pass
            return far

        assert len(simulated(main).wires) == 1

    def test_full_is_tried_again_when_the_server_says(self):
        """1013 waits as long as the server asked for."""

        async def main():
            far = FarEnd(Plan(close=(1013, "full: try again later; retry_after_ms=3000")), Plan(close=(1013, "full")))
            async with connect(far) as call:
                assert call.is_up
            return far.dialled_ms

        first, second, third = simulated(main)
        assert second - first == 3_000
        assert third - second <= 500

    def test_full_for_too_long(self):
        """A server that stays full is told as a limit, with the time it asked for."""

        async def main():
            far = FarEnd(*[Plan(close=(1013, "full retry_after_ms=4000"))] * 9)
            with pytest.raises(SessionLimitError, match="full") as caught:
                async with connect(far):
                    pass
            return caught.value.retry_after_ms, len(far.wires)

        assert simulated(main) == (4_000, 3)

    def test_cut_before_welcome_asks_for_a_fresh_ticket(self):
        """A session that never began is begun anew, with a new ticket."""

        async def main():
            tickets = iter(["one", "two"])

            async def token():
                return next(tickets)

            far = FarEnd(Plan(down=0))
            async with connect(far, token=token):
                pass
            return far

        far = simulated(main)
        assert [hello["token"] for hello in far.hellos] == ["one", "two"]

    @pytest.mark.parametrize(
        "welcome", [{"session_id": ""}, {"resume_token": 5}, {"received_seq": "x"}, {"received_seq": 2**40}]
    )
    def test_a_welcome_that_is_none(self, welcome):
        """A welcome without what resuming needs is refused, and nothing is left behind."""

        async def main():
            far = FarEnd(Plan(welcome=welcome))
            with pytest.raises(InvalidRequestError, match="welcome"):
                async with connect(far):
                    pass
            return far.wires[0].aborted

        assert simulated(main)

    def test_a_silent_server(self):
        """A server that takes the hello and says nothing is given up."""

        async def main():
            far = FarEnd(*[Plan(silent_after=0)] * 9)
            with pytest.raises(ConnectFailedError, match="welcome"):
                async with connect(far):
                    pass
            return all(wire.aborted for wire in far.wires)

        assert simulated(main)


CUTS = st.builds(
    Plan,
    refuse=st.booleans(),
    up=st.one_of(st.none(), st.integers(0, 40)),
    down=st.one_of(st.none(), st.integers(0, 40)),
)


class TestLostLine:
    @settings(max_examples=150)
    @given(
        first=st.builds(Plan, up=st.one_of(st.none(), st.integers(0, 60)), down=st.one_of(st.none(), st.integers(0, 60))),
        cuts=st.lists(CUTS, max_size=5),
        latency_ms=st.sampled_from([0.0, 3.0, 45.0]),
        safe_lag=st.sampled_from([0, 7, 1_000]),
        seed=st.integers(0, 9),
    )
    def test_nothing_is_lost_or_doubled(self, first, cuts, latency_ms, safe_lag, seed):
        """Wherever the line is cut, in either direction and however often, both sides get everything once and in order."""

        async def main():
            far = FarEnd(first, *cuts, latency_ms=latency_ms, safe_lag=safe_lag)
            heard = bytearray()
            async with connect(far, rng=random.Random(seed), on_audio=heard.extend) as call:
                for number in range(40):
                    await call.send_audio(pcm(number))
                    if number % 10 == 0:
                        await call.send_text(f"text {number}")
                    far.session.tell(pcm(1_000 + number))
                    far.session.tell({"type": "reply", "text": f"word {number}"})
                    await asyncio.sleep(0.02)
                await asyncio.sleep(20)
                assert call.is_up
                return far.session, bytes(heard), await so_far(call), call.counters

        session, heard, events, counters = simulated(main)
        assert session.gaps == []
        assert session.heard_audio == b"".join(map(pcm, range(40)))
        assert [message["text"] for message in session.heard_json("text")] == [f"text {n}" for n in (0, 10, 20, 30)]
        assert heard == b"".join(pcm(1_000 + number) for number in range(40))
        words = [event["text"] for event in events if event["type"] == "reply"]
        assert words == [f"word {number}" for number in range(40)]
        assert not {"gaps", "garbage", "unsent_lost", "events_dropped"} & set(counters)

    def test_comes_back_at_once_then_with_growing_jitter(self):
        """The first try is immediate; later ones wait at random within 250 ms, 500 ms, ... at most 2 s, and 10 s later."""

        async def main():
            gaps = []
            for seed in range(30):
                far = FarEnd(Plan(), *[Plan(refuse=True)] * 7)
                async with connect(far, rng=random.Random(seed)) as call:
                    await asyncio.sleep(3)
                    far.session.wire.cut()
                    await asyncio.sleep(60)
                    gaps.append([round(b - a, 6) for a, b in zip(far.dialled_ms, far.dialled_ms[1:])])
                    assert call.end_reason in ("", "lost")
            return gaps

        gaps = simulated(main)
        assert {one[0] for one in gaps} == {3_000}
        for tries, most in enumerate([250, 500, 1_000, 2_000, 2_000, 2_000]):
            waited = [one[tries + 1] for one in gaps if len(one) > tries + 1]
            assert max(waited) <= most
            assert min(waited) < most * 0.3
            assert max(waited) > most * 0.6

    def test_the_window_ends_it(self):
        """A line that does not come back within the server's window ends the call as lost."""

        async def main():
            far = FarEnd(Plan(), *[Plan(refuse=True)] * 99, limits={"resume_window_ms": 5_000})
            async with connect(far) as call:
                cut_ms = Clock().now_ms()
                far.session.wire.cut()
                events = await events_of(call)
                return call.end_reason, call.close_code, Clock().now_ms() - cut_ms, states(events)

        reason, code, took_ms, told = simulated(main)
        assert (reason, code, round(took_ms, 3)) == ("lost", 1006, 5_000)
        assert told[:2] == ["connected", "lost"]
        assert (told[-1], set(told[2:-1])) == ("ended", {"retrying"})

    def test_a_break_of_some_seconds_is_over_soon(self):
        """Somebody waits: the first eight tries wait for two seconds at most, later ones for ten."""

        class Longest(random.Random):
            def uniform(self, low, high):
                return high

        async def main():
            far = FarEnd(Plan(), *[Plan(refuse=True)] * 12)
            async with connect(far, rng=Longest()) as call:
                await asyncio.sleep(3)
                far.session.wire.cut()
                await asyncio.sleep(29)
                waits = [b - a for a, b in zip(far.dialled_ms[1:], far.dialled_ms[2:])]
                return [round(wait) for wait in waits], call.state

        waits, _ = simulated(main)
        assert waits[:8] == [250, 500, 1_000, 2_000, 2_000, 2_000, 2_000, 2_000]
        assert max(waits) > 2_000

    def test_a_dead_line_is_noticed(self):
        """Within 10 s of nothing the line is lost, though nobody closed it; what was said meanwhile arrives."""

        async def main():
            far = FarEnd(Plan(silent_after=1))
            async with connect(far) as call:
                far.session.received = -1
                for number in range(600):
                    await call.send_audio(pcm(number))
                    await asyncio.sleep(0.02)
                await asyncio.sleep(1)
                return far, states(await so_far(call))

        far, told = simulated(main)
        assert told == ["connected", "lost", "resumed"]
        assert far.session.heard_audio == b"".join(map(pcm, range(600)))
        assert 9_500 <= far.dialled_ms[1] - far.dialled_ms[0] <= 10_100

    def test_a_try_that_hangs_is_given_up_and_closed(self):
        """A server that takes the hello and says nothing costs 5 s, and no socket."""

        async def main():
            far = FarEnd(Plan(), Plan(silent_after=0))
            async with connect(far) as call:
                await asyncio.sleep(3)
                far.session.wire.cut()
                await asyncio.sleep(10)
                assert call.is_up
                return far.dialled_ms, far.wires[1].aborted

        dialled_ms, gone = simulated(main)
        assert 5_000 <= dialled_ms[2] - dialled_ms[1] <= 5_250
        assert gone

    def test_what_falls_out_of_the_window_is_counted(self):
        """More audio than the window holds drops the oldest, and says how much."""

        async def main():
            far = FarEnd(Plan(), *[Plan(refuse=True)] * 4, limits={"resume_window_ms": 4_000})
            async with connect(far) as call:
                await asyncio.sleep(3)
                far.session.wire.cut()
                await asyncio.sleep(0.001)
                for number in range(300):
                    await call.send_audio(pcm(number))
                await asyncio.sleep(3.9)
                return far.session, call.counters, await so_far(call)

        session, counters, events = simulated(main)
        assert counters["unsent_lost"] == 100
        assert session.heard_audio == b"".join(map(pcm, range(100, 300)))
        assert [event["unsent_lost"] for event in events if event.get("state") == "resumed"] == [100]

    @pytest.mark.parametrize("code", [1001, 1006, 1012])
    def test_codes_of_a_lost_line(self, code):
        """The server restarts, goes away or breaks: the client comes back."""

        async def main():
            far = FarEnd()
            async with connect(far) as call:
                far.session.wire.end(code, "x")
                await asyncio.sleep(1)
                return call.is_up, states(await so_far(call))

        assert simulated(main) == (True, ["connected", "lost", "resumed"])

    @pytest.mark.parametrize(
        ("code", "reason"),
        [
            (1000, "bye"),
            (1009, "too_large"),
            (4400, "protocol"),
            (4401, "unauthorised"),
            (4408, "idle"),
            (4409, "replaced"),
            (4410, "not_resumable"),
            (4413, "max_session"),
            (4500, "error"),
        ],
    )
    def test_codes_that_end(self, code, reason):
        """Everything else ends the call: no other try, and the server's words are kept."""

        async def main():
            far = FarEnd()
            async with connect(far) as call:
                far.session.wire.end(code, "as it is")
                events = await events_of(call)
                assert events[-1] == {"type": "line", "state": "ended", "reason": reason, "code": code, "message": "as it is"}
                with pytest.raises(SessionClosedError):
                    await call.send_audio(pcm(1))
            return call.end_reason, call.close_code, call.close_reason, len(far.wires)

        assert simulated(main) == (reason, code, "as it is", 1)

    def test_replaced_while_coming_back(self):
        """Someone else took the session: the client does not fight for it."""

        async def main():
            far = FarEnd(Plan(), Plan(close=(4409, "replaced")))
            async with connect(far) as call:
                far.session.wire.cut()
                await events_of(call)
            return call.end_reason, len(far.wires)

        assert simulated(main) == ("replaced", 2)

    def test_a_full_server_takes_the_resume_later(self):
        """1013 in answer to a resume waits as asked."""

        async def main():
            far = FarEnd(Plan(), Plan(close=(1013, "retry_after_ms=700")))
            async with connect(far):
                await asyncio.sleep(3)
                far.session.wire.cut()
                await asyncio.sleep(5)
            return [b - a for a, b in zip(far.dialled_ms, far.dialled_ms[1:])]

        assert simulated(main) == pytest.approx([3_000, 700])

    def test_events_lost_are_told(self):
        """On another process: what could not be sent again is told, and the history comes as an event."""

        async def main():
            far = FarEnd(Plan(), Plan(welcome={"events_lost": True}))
            async with connect(far) as call:
                far.session.tell(pcm(1))
                far.session.tell({"type": "pause"})
                await asyncio.sleep(0.5)
                far.session.wire.cut()
                await asyncio.sleep(0.1)
                far.session.tell({"type": "history", "messages": [{"role": "user", "text": "hi"}]})
                far.session.tell(pcm(2))
                await asyncio.sleep(1)
                events = await so_far(call)
                told = [event for event in events if event.get("events_lost") or event["type"] == "history"]
                return told, far.session.reports

        told, reports = simulated(main)
        assert [event["type"] for event in told] == ["line", "history"]
        assert {"type": "played", "seq": 3, "ms": 20.0} in reports


class TestTokens:
    def used(self, far):
        return [hello["resume"]["resume_token"] for hello in far.hellos if "resume" in hello]

    def test_the_newest_is_used(self):
        """Each welcome brings the token of the next resume."""

        async def main():
            far = FarEnd()
            async with connect(far):
                for _ in range(3):
                    await asyncio.sleep(3)
                    far.session.wire.cut()
                await asyncio.sleep(1)
            return self.used(far)

        assert simulated(main) == ["s0-token-1", "s0-token-2", "s0-token-3"]

    @pytest.mark.parametrize("plan", [Plan(down=0), Plan(up=1), Plan(up=1, down=1), Plan(up=0)])
    def test_cut_while_resuming(self, plan):
        """Before the welcome arrives, after it, and before our first word: one of the tokens always opens the session."""

        async def main():
            far = FarEnd(Plan(), plan, plan, plan)
            async with connect(far) as call:
                await call.send_audio(pcm(1))
                await asyncio.sleep(3)
                far.session.wire.cut()
                await call.send_audio(pcm(2))
                await asyncio.sleep(20)
                assert call.is_up
            return far.session.heard_audio, len(far.sessions)

        assert simulated(main) == (pcm(1) + pcm(2), 1)

    def test_the_one_before_is_tried_when_the_newest_is_unknown(self):
        """Another process whose store knows only the token before."""

        async def main():
            far = FarEnd()
            async with connect(far):
                await asyncio.sleep(3)
                far.session.wire.cut()
                await asyncio.sleep(3)
                far.session.valid = ["s0-token-1"]
                far.session.wire.cut()
                await asyncio.sleep(3)
            return self.used(far)

        assert simulated(main) == ["s0-token-1", "s0-token-2", "s0-token-1"]

    def test_no_token_is_good(self):
        """A session that is over ends the call, once every token was tried."""

        async def main():
            far = FarEnd()
            async with connect(far) as call:
                await asyncio.sleep(3)
                far.session.ended = True
                far.session.wire.cut()
                await events_of(call)
            return call.end_reason, call.close_code, len(far.wires)

        assert simulated(main) == ("not_resumable", 4410, 2)


class TestGoAway:
    def test_moves_at_a_turn_boundary_before_the_old_line_ends(self):
        """Told to go, it attaches anew with the token and address given, once nobody speaks; nothing is lost."""

        async def main():
            far = FarEnd()
            heard = bytearray()
            async with connect(far, on_audio=heard.extend) as call:
                session = far.session
                await asyncio.sleep(0.01)
                session.tell({"type": "state", "state": "responding"})
                token = session.issue()
                session.valid.append(token)
                session.tell(
                    {"type": "goaway", "deadline_ms": 20_000, "resume_token": token, "url": "ws://other.test/v1/voice"}
                )
                for number in range(200):
                    await call.send_audio(pcm(number))
                    if number < 150:
                        session.tell(pcm(1_000 + number))
                    await asyncio.sleep(0.02)
                    if number == 160:
                        assert len(far.wires) == 1
                        session.tell({"type": "state", "state": "listening"})
                await asyncio.sleep(3)
                assert call.is_up
                return far, bytes(heard), await so_far(call), call.counters, token

        far, heard, events, counters, token = simulated(main)
        assert far.urls == [URL, "ws://other.test/v1/voice"]
        assert far.hellos[1]["resume"]["resume_token"] == token
        assert far.session.heard_audio == b"".join(map(pcm, range(200)))
        assert heard == b"".join(pcm(1_000 + number) for number in range(150))
        assert states(events) == ["connected", "resumed"]
        assert [(event["moved"], event["gap_ms"]) for event in events if event.get("state") == "resumed"] == [(True, 0.0)]
        assert dict(counters) == {"moved": 1}
        assert far.wires[0].client_close is None or far.wires[0].client_close[0] != 1000

    def test_moves_before_the_deadline_in_any_case(self):
        """A reply that does not end is no reason to be cut off."""

        async def main():
            far = FarEnd()
            async with connect(far):
                far.session.tell({"type": "state", "state": "responding"})
                far.session.tell({"type": "goaway", "deadline_ms": 5_000})
                await asyncio.sleep(6)
            return far.dialled_ms[1] - far.dialled_ms[0]

        assert 3_500 <= simulated(main) < 5_000

    def test_stays_while_the_new_place_is_not_there(self):
        """The old line is kept until the new one stands; then the client falls back on the address it had."""

        async def main():
            far = FarEnd(Plan(), Plan(refuse=True), Plan(refuse=True))
            async with connect(far) as call:
                far.session.tell({"type": "goaway", "deadline_ms": 20_000, "url": "ws://other.test/"})
                await asyncio.sleep(15)
                assert call.is_up
            return far.urls, states(await events_of(call))

        urls, told = simulated(main)
        assert urls[:4] == [URL, "ws://other.test/", URL, "ws://other.test/"]
        assert told == ["connected", "resumed", "ended"]

    def test_does_not_leave_encryption(self):
        """A server on wss cannot send the token in the clear."""

        async def main():
            far = FarEnd()
            async with client.connect("wss://voice.test/", dial=far.dial) as call:
                far.session.tell({"type": "goaway", "deadline_ms": 1_000, "url": "ws://other.test/"})
                await asyncio.sleep(3)
            return set(far.urls), call.counters["garbage"]

        assert simulated(main) == ({"wss://voice.test/"}, 1)

    @settings(max_examples=60)
    @given(second=CUTS, third=CUTS, cut_ms=st.one_of(st.none(), st.integers(0, 3_000)), latency_ms=st.sampled_from([0.0, 20.0]))
    def test_a_move_that_is_cut(self, second, third, cut_ms, latency_ms):
        """Whatever happens to the new or the old connection during the move, everything arrives once."""

        async def main():
            far = FarEnd(Plan(), second, third, latency_ms=latency_ms)
            async with connect(far) as call:
                session = far.session
                session.tell({"type": "goaway", "deadline_ms": 3_000})
                if cut_ms is not None:
                    asyncio.get_running_loop().call_later(cut_ms / 1000, far.wires[0].cut)
                for number in range(100):
                    await call.send_audio(pcm(number))
                    session.tell({"type": "reply", "text": str(number)})
                    await asyncio.sleep(0.02)
                await asyncio.sleep(20)
                assert call.is_up
                return session, [event["text"] for event in await so_far(call) if event["type"] == "reply"]

        session, words = simulated(main)
        assert session.gaps == []
        assert session.heard_audio == b"".join(map(pcm, range(100)))
        assert words == [str(number) for number in range(100)]


class TestPlaying:
    def test_reports_every_100_ms_while_playing(self):
        """`played` follows the clock, and ends with the end of what was sent."""

        async def main():
            far = FarEnd()
            async with connect(far):
                await asyncio.sleep(0.007)
                for number in range(3):
                    far.session.tell(pcm(number, 3_200))  # 100 ms each
                far.session.tell(pcm(9, 1_600))
                await asyncio.sleep(5)
                return [(told["seq"], told["ms"]) for told in far.session.reports if told["type"] == "played"]

        assert simulated(main) == [(0, 100.0), (1, 100.0), (2, 100.0), (3, 50.0)]

    def test_pause_continue_and_clear_are_exact(self):
        """Playing stops where it is told to, says where that was, goes on from there, and drops what is not played."""

        async def main():
            far = FarEnd()
            heard = bytearray()
            async with connect(far, on_audio=heard.extend) as call:
                session = far.session
                for number in range(3):
                    session.tell(pcm(number, 3_200))
                await asyncio.sleep(0.130)
                session.tell({"type": "pause"})
                await asyncio.sleep(1)
                paused = bytes(heard)
                session.tell({"type": "continue"})
                await asyncio.sleep(0.050)
                session.tell({"type": "clear", "turn": 0})
                await asyncio.sleep(1)
                cleared = bytes(heard)
                assert call.queued_ms == 0
                session.tell(pcm(7, 640))
                await asyncio.sleep(1)
                reports = [told for told in session.reports if told["type"] in ("played", "stopped")]
                return paused, cleared, bytes(heard), [(told["type"], told["seq"], told["ms"]) for told in reports]

        paused, cleared, heard, reports = simulated(main)
        whole = b"".join(pcm(number, 3_200) for number in range(3))
        assert paused == whole[: 130 * 32]
        assert cleared == whole[: 180 * 32]
        assert heard == cleared + pcm(7, 640)
        assert reports == [("played", 0, 100.0), ("stopped", 1, 30.0), ("stopped", 1, 80.0), ("played", 6, 20.0)]

    @pytest.mark.parametrize("held_ms", [1, 30, 50, 79, 200])
    def test_the_end_is_heard_by_one_who_takes_long_to_listen(self, held_ms):
        """What is played while `on_audio` is busy is handed out too, also when it is the last there is."""

        async def main():
            far = FarEnd()
            heard = bytearray()

            def listen(piece):
                heard.extend(piece)
                asyncio.get_running_loop().advance(held_ms / 1_000)

            async with connect(far, on_audio=listen):
                for number in range(3):
                    far.session.tell(pcm(number, 3_200))
                await asyncio.sleep(3)
                return bytes(heard)

        assert simulated(main) == b"".join(pcm(number, 3_200) for number in range(3))

    def test_a_clear_ends_a_pause(self):
        """The next reply is heard."""

        async def main():
            far = FarEnd()
            heard = bytearray()
            async with connect(far, on_audio=heard.extend):
                for message in (pcm(1), {"type": "pause"}, {"type": "clear"}, pcm(2)):
                    far.session.tell(message)
                await asyncio.sleep(1)
                return bytes(heard)

        assert simulated(main) == pcm(2)

    def test_reading_sets_the_pace(self):
        """Unpaced, what is taken is what was played; silence fills up; the place is reported."""

        async def main():
            far = FarEnd()
            async with connect(far, paced=False) as call:
                far.session.tell(pcm(1, 3_200))
                await asyncio.sleep(1)
                first = call.read(30)
                await asyncio.sleep(0.2)
                far.session.tell({"type": "pause"})
                await asyncio.sleep(0.2)
                silent = call.read(20)
                far.session.tell({"type": "continue"})
                await asyncio.sleep(0.2)
                rest = call.read(100)
                await asyncio.sleep(1)
                reports = [(told["type"], told["seq"], told["ms"]) for told in far.session.reports if "ms" in told]
                return first, silent, rest, reports

        first, silent, rest, reports = simulated(main)
        assert first == pcm(1, 960)
        assert silent == bytes(640)
        assert rest == pcm(1, 2_240) + bytes(960)
        assert reports == [("played", 0, 30.0), ("stopped", 0, 30.0), ("played", 0, 100.0)]

    def test_a_resume_tells_where_playing_is(self):
        """What was played while the line was down is in the hello."""

        async def main():
            far = FarEnd(Plan(), Plan(refuse=True))
            async with connect(far):
                await asyncio.sleep(3)
                far.session.tell(pcm(1, 32_000))
                await asyncio.sleep(0.3)
                far.session.wire.cut()
                await asyncio.sleep(3)
                played = far.hellos[1]["resume"]["played"]
                return played, far.dialled_ms[2] - far.dialled_ms[0] - 3_000

        played, since_ms = simulated(main)
        assert played["seq"] == 0
        assert played["ms"] == pytest.approx(since_ms, abs=0.1)

    def test_the_end_is_reported_though_it_came_while_the_line_was_down(self):
        """Playing ends between the hello and the welcome of a resume: it is told after it."""

        async def main():
            far = FarEnd(latency_ms=40)
            async with connect(far):
                await asyncio.sleep(3)
                far.session.tell(pcm(1, 3_200))
                await asyncio.sleep(0.03)
                far.session.wire.cut()
                await asyncio.sleep(3)
                played = [told for told in far.session.reports if told["type"] == "played"]
                return far.hellos[1]["resume"]["played"]["ms"], played

        before_ms, played = simulated(main)
        assert before_ms < 100
        assert played == [{"type": "played", "seq": 0, "ms": 100.0}]

    def test_more_than_10_s_is_dropped_and_counted(self):
        """Nobody listens, and the server sends on."""

        async def main():
            far = FarEnd()
            async with connect(far, paced=False) as call:
                for number in range(150):
                    far.session.tell(pcm(number, 3_200))
                await asyncio.sleep(1)
                return call.queued_ms, call.counters["play_dropped_ms"], call.read(100)

        assert simulated(main) == (10_000, 5_000, pcm(50, 3_200))

    def test_an_on_audio_that_fails_ends_the_call(self):
        """The listener's own error comes out of the iteration."""

        async def main():
            def fail(pcm):
                raise ZeroDivisionError("mine")

            far = FarEnd()
            async with connect(far, on_audio=fail) as call:
                far.session.tell(pcm(1))
                with pytest.raises(ZeroDivisionError):
                    await events_of(call)
            return call.end_reason

        assert simulated(main) == "error"


GARBAGE = st.one_of(
    st.text(max_size=40),
    st.binary(max_size=40),
    st.sampled_from(["{}", "[]", "null", '{"type":5}', '{"type":"state"}', '{"type":"state","seq":-1}', "[" * 50_000]),
    st.sampled_from(['{"type":"ack","seq":99999}', '{"type":"ack"}', '{"type":"ping"}', '{"type":"ping","t_ms":"x"}']),
    st.sampled_from(['{"type":"pong","t_ms":[]}', '{"type":"welcome"}', '{"type":"ack","safe_seq":true}']),
    st.builds(lambda name, seq: json.dumps({"type": name, "seq": seq}), st.text(max_size=8), st.integers(-5, 2**33)),
    st.builds(
        lambda name, field, value: json.dumps({"type": name, "seq": 0, field: value}),
        st.sampled_from(["goaway", "state", "clear", "pause", "continue", "reply_end", "turn_end", "history", "error"]),
        st.sampled_from(["deadline_ms", "resume_token", "url", "state", "turn"]),
        st.one_of(st.none(), st.booleans(), st.floats(-1e18, 1e18), st.text(max_size=9), st.just([1])),
    ),
)


class TestGarbage:
    @settings(max_examples=150)
    @given(st.lists(GARBAGE, max_size=20))
    def test_never_crashes(self, garbage):
        """Whatever the server sends, the call goes on or ends with a reason, and texts still arrive."""

        async def main():
            far = FarEnd()
            async with connect(far) as call:
                for message in garbage:
                    far.session.wire.say(message)
                await asyncio.sleep(5)
                assert call.is_up
                await call.send_text("still here")
                await asyncio.sleep(1)
            await events_of(call)
            return far.sessions[0].heard_json("text")

        assert simulated(main) == [{"type": "text", "text": "still here"}]

    def test_is_told_and_counted(self):
        """Each is an event; a hole in the numbers too."""

        async def main():
            far = FarEnd()
            async with connect(far) as call:
                far.session.wire.say("nonsense")
                far.session.wire.say(b"\x00\x00\x00\x00x")
                far.session.wire.say({"type": "state", "seq": 5, "state": "listening"})
                await asyncio.sleep(1)
                assert call.state == "listening"
                return [event for event in await so_far(call) if event["type"] == "line"][1:], call.counters

        events, counters = simulated(main)
        assert [event["state"] for event in events] == ["garbage", "garbage", "gap"]
        assert events[2]["missing"] == 5
        assert dict(counters) == {"garbage": 2, "gaps": 1}

    def test_events_nobody_reads_are_bounded(self):
        """The oldest are dropped and counted."""

        async def main():
            far = FarEnd()
            async with connect(far) as call:
                for number in range(1_500):
                    far.session.tell({"type": "reply", "text": str(number)})
                await asyncio.sleep(1)
                dropped = call.counters["events_dropped"]
            events = await events_of(call)
            return dropped, len(events), events[-2]["text"]

        assert simulated(main) == (501, 1_000, "1499")


class TestEnding:
    @settings(max_examples=60)
    @given(
        at_ms=st.floats(0, 1_500),
        plans=st.lists(CUTS, max_size=4),
        latency_ms=st.sampled_from([0.0, 30.0]),
        goaway=st.booleans(),
    )
    def test_cancelled_at_any_moment_frees_everything(self, at_ms, plans, latency_ms, goaway):
        """No task and no socket is left, whatever was under way."""

        async def main():
            far = FarEnd(*plans, latency_ms=latency_ms)

            async def use():
                async with connect(far) as call:
                    if goaway:
                        far.session.tell({"type": "goaway", "deadline_ms": 500})
                    while True:
                        await call.send_audio(pcm(1))
                        far.session.tell(pcm(2))
                        await asyncio.sleep(0.02)

            task = asyncio.create_task(use())
            await asyncio.sleep(at_ms / 1000)
            task.cancel()
            await asyncio.wait([task])
            left = [one.get_name() for one in asyncio.all_tasks() if one.get_name().startswith("client-")]
            return left, [wire for wire in far.wires if not wire.aborted and wire.closed is None]

        assert simulated(main) == ([], [])

    def test_a_second_cancel_while_hanging_up(self):
        """Nothing is left though the goodbye was not waited for."""

        async def main():
            far = FarEnd(Plan(silent_after=1, up=3))

            async def use():
                async with connect(far):
                    await asyncio.sleep(100)

            task = asyncio.create_task(use())
            await asyncio.sleep(0.5)
            task.cancel()
            await asyncio.sleep(0.1)
            task.cancel()
            await asyncio.wait([task])
            await asyncio.sleep(0.01)
            left = [one.get_name() for one in asyncio.all_tasks() if one.get_name().startswith("client-")]
            return left, far.wires[0].aborted or far.wires[0].closed is not None

        assert simulated(main) == ([], True)

    def test_hanging_up_sends_what_was_said(self):
        """The last words go before the goodbye."""

        async def main():
            far = FarEnd(latency_ms=5)
            async with connect(far) as call:
                for number in range(20):
                    await call.send_audio(pcm(number))
            return far.session, call.end_reason

        session, reason = simulated(main)
        assert session.heard_audio == b"".join(map(pcm, range(20)))
        assert reason == "bye"

    def test_hanging_up_while_the_line_is_down(self):
        """The call ends at once; the server's window runs out by itself."""

        async def main():
            far = FarEnd(Plan(), *[Plan(refuse=True)] * 99)
            async with connect(far) as call:
                far.session.wire.cut()
                await asyncio.sleep(0.5)
            return call.end_reason, states(await events_of(call))[-1]

        assert simulated(main) == ("bye", "ended")
