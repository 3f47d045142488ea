"""Simulated time agrees with itself, costs nothing, and stops when nothing can come."""

import asyncio
import datetime
import threading
import zoneinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice.clock import Clock, SimulationStalled, local_now, run_simulated, wall_ms


class TestSimulatedTime:
    @given(st.lists(st.floats(0, 100_000), max_size=10))
    def test_sleeps_add_up(self, delays_ms):
        """The time that passed is the sum of what was slept."""

        async def main():
            clock = Clock()
            before_ms = clock.now_ms()
            for delay_ms in delays_ms:
                await clock.sleep_ms(delay_ms)
            return clock.now_ms() - before_ms

        assert run_simulated(main()) == pytest.approx(sum(delays_ms), abs=0.01)

    @given(st.lists(st.integers(0, 5_000), min_size=1, max_size=10))
    def test_timers_fire_in_the_order_of_their_times(self, delays_ms):
        """Tasks wake in the order of their sleeps, each at its own time."""

        async def main():
            clock, woken = Clock(), []

            async def nap(delay_ms):
                await clock.sleep_ms(delay_ms)
                woken.append((delay_ms, round(clock.now_ms())))

            await asyncio.gather(*map(nap, delays_ms))
            return woken

        assert run_simulated(main()) == [(delay_ms, delay_ms) for delay_ms in sorted(delays_ms)]

    def test_an_hour_takes_no_time(self):
        """Waiting an hour takes far less than a minute of real time."""
        before_ms = wall_ms()
        run_simulated(Clock().sleep_ms(3_600_000))
        assert wall_ms() - before_ms < 60_000

    def test_timeouts_follow_it(self):
        """asyncio's own time-outs run on the same time."""

        async def main():
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 5)
            return Clock().now_ms()

        assert run_simulated(main()) == pytest.approx(5_000)

    def test_a_cancelled_call_never_comes(self):
        """`call_later_ms` calls at its time, unless its handle was cancelled."""

        async def main():
            clock, called = Clock(), []
            clock.call_later_ms(10, called.append, "kept")
            clock.call_later_ms(10, called.append, "cancelled").cancel()
            await clock.sleep_ms(20)
            return called

        assert run_simulated(main()) == ["kept"]


class TestPoolWork:
    def test_takes_no_simulated_time(self):
        """The clock stands still while a thread works, though other tasks sleep."""

        async def main():
            clock = Clock()
            nap = asyncio.create_task(clock.sleep_ms(1_000))
            assert await asyncio.to_thread(lambda: sum(range(2_000_000))) > 0
            worked_ms = clock.now_ms()
            await nap
            return worked_ms, clock.now_ms()

        assert run_simulated(main()) == (0.0, pytest.approx(1_000.0))

    def test_leaves_no_thread(self):
        """A simulation that used threads ends cleanly, and they with it."""

        async def main():
            return await asyncio.to_thread(threading.get_ident)

        before = threading.active_count()
        for _ in range(20):
            assert run_simulated(main()) != threading.get_ident()
        assert threading.active_count() == before

    def test_gives_its_error(self):
        """What fails in a thread fails where it is awaited."""

        async def main():
            with pytest.raises(ZeroDivisionError):
                await asyncio.to_thread(lambda: 1 / 0)

        run_simulated(main())


class TestStalling:
    def test_nothing_to_wait_for_raises(self):
        """A wait that nothing can end is an error, not a hang."""
        with pytest.raises(SimulationStalled, match="never comes"):
            run_simulated(asyncio.Event().wait())

    def test_cleanup_still_runs(self):
        """A stalled task is cancelled and may clean up."""
        cleaned = []

        async def main():
            try:
                await asyncio.Event().wait()
            finally:
                cleaned.append(True)

        with pytest.raises(SimulationStalled):
            run_simulated(main())
        assert cleaned == [True]

    def test_a_socket_may_still_speak(self):
        """A wait for a socket is a wait for something that may come."""

        async def main():
            got = asyncio.get_running_loop().create_future()

            async def answer(reader, writer):
                writer.write(await reader.readline())
                writer.close()

            server = await asyncio.start_server(answer, "127.0.0.1", 0)
            async with server:
                reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                writer.write(b"hello\n")
                got.set_result(await reader.read())
                writer.close()
                await writer.wait_closed()
            return await got

        assert run_simulated(main()) == b"hello\n"


class TestLocalNow:
    def test_is_in_the_zone_asked_for(self):
        """The time of day is that of the zone, and knows it."""
        zone = zoneinfo.ZoneInfo("Asia/Kathmandu")
        assert local_now(zone).utcoffset() == datetime.timedelta(hours=5, minutes=45)

    def test_is_never_naive(self):
        """Without a zone it is local time that knows its offset."""
        assert local_now().utcoffset() is not None


def test_a_loop_that_never_waits_takes_time_too():
    """Who sleeps again and again for a rounding error, until a time has come, is not there for ever."""

    async def main():
        clock, until_s = Clock(), asyncio.get_running_loop().time() + 0.0015
        while asyncio.get_running_loop().time() < until_s:
            await clock.sleep_ms(1e-12)
        return clock.now_ms()

    assert run_simulated(main()) == pytest.approx(2.0)
