"""The concurrency primitives: nothing out of order, nothing dropped uncounted, nothing left running."""

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice._streams import Channel, Reaper, Tasks, WorkPool, finish, stop
from beluga_voice.clock import run_simulated
from beluga_voice.errors import SessionClosedError

weights = st.integers(1, 5)
moves = st.one_of(
    st.tuples(st.just("put"), weights),
    st.tuples(st.just("urgent"), weights),
    st.tuples(st.just("read"), st.just(0)),
    st.tuples(st.just("clear"), st.just(0)),
)


def heavy(item):
    return item[1]


class TestChannel:
    @given(st.lists(moves, max_size=40), st.integers(1, 10))
    def test_is_its_model(self, moves, limit):
        """Any run of dropping puts, urgent puts, reads and clears does what a pair of plain lists does."""

        async def main():
            channel, waiting, urgent, dropped = Channel(limit, heavy), [], [], []
            for number, (move, weight) in enumerate(moves):
                item = (number, weight)
                if move == "put":
                    while waiting and sum(map(heavy, waiting)) >= limit:
                        dropped.append(waiting.pop(0))
                    waiting.append(item)
                    channel.put_dropping(item)
                elif move == "urgent":
                    urgent.append(item)
                    channel.put_urgent(item)
                elif move == "clear":
                    waiting.clear()
                    channel.clear()
                elif urgent or waiting:
                    assert await anext(channel) == (urgent or waiting).pop(0)
                assert channel.load == sum(map(heavy, waiting))
                assert (channel.dropped, channel.dropped_weight) == (len(dropped), sum(map(heavy, dropped)))
            channel.close()
            assert [item async for item in channel] == urgent + waiting

        run_simulated(main())

    @given(st.lists(weights, max_size=30), st.integers(1, 6), st.lists(st.integers(0, 3), min_size=1, max_size=5))
    def test_put_waits_and_loses_nothing(self, weights, limit, naps):
        """Whatever the pace of the reader, every item arrives, in order, and never more than the bound waits."""

        async def main():
            channel, items = Channel(limit, heavy), list(enumerate(weights))

            async def write():
                for item in items:
                    await channel.put(item)
                    assert channel.load < limit + item[1]
                channel.close()

            writing, read = asyncio.create_task(write()), []
            async for item in channel:
                read.append(item)
                await asyncio.sleep(naps[len(read) % len(naps)])
            await writing
            assert read == items
            assert channel.dropped == 0

        run_simulated(main())

    def test_a_cancelled_writer_passes_on_its_turn(self):
        """A writer that is cancelled just as there is room does not take the place of the one behind it."""

        async def main():
            channel = Channel(1)
            await channel.put("first")
            writers = [asyncio.create_task(channel.put(name)) for name in ("cancelled", "second")]
            await asyncio.sleep(0)
            assert await anext(channel) == "first"
            writers[0].cancel()
            assert await anext(channel) == "second"
            await asyncio.wait(writers)

        run_simulated(main())

    def test_what_it_holds_is_read_after_close(self):
        """Closing takes nothing back; what comes later is ignored and pushes nothing out."""

        async def main():
            channel = Channel(2)
            for item in "ab":
                await channel.put(item)
            channel.close()
            channel.put_dropping("c")
            channel.put_urgent("d")
            await channel.put("e")
            assert [item async for item in channel] == ["a", "b"]
            assert channel.dropped == 0

        run_simulated(main())

    def test_ends_with_its_error_once(self):
        """A channel closed with an error gives what is there, raises it, and is over."""

        async def main():
            channel = Channel(2)
            await channel.put("a")
            channel.close(KeyError("lost"))
            assert await anext(channel) == "a"
            with pytest.raises(KeyError, match="lost"):
                await anext(channel)
            assert [item async for item in channel] == []

        run_simulated(main())

    def test_close_frees_waiting_writers(self):
        """A writer that waits for room is let go when the channel closes."""

        async def main():
            channel = Channel(1)
            await channel.put("a")
            writers = [asyncio.create_task(channel.put(name)) for name in "bc"]
            await asyncio.sleep(0)
            channel.close()
            await asyncio.gather(*writers)
            assert [item async for item in channel] == ["a"]

        run_simulated(main())

    def test_a_cancelled_reader_takes_nothing_with_it(self):
        """An item that comes as its reader is cancelled is there for the next one."""

        async def main():
            channel = Channel(1)
            reader = asyncio.create_task(anext(channel))
            await asyncio.sleep(0)
            channel.put_dropping("a")
            reader.cancel()
            await asyncio.wait([reader])
            assert await anext(channel) == "a"

        run_simulated(main())


async def stubborn(refusals=1_000):
    """A task that swallows its cancellation."""
    for _ in range(refusals):
        try:
            await asyncio.sleep(1_000)
        except asyncio.CancelledError:
            continue


class TestStopping:
    def test_stop_waits_for_the_cleanup(self):
        """A stopped task is gone, its cleanup done and its outcome dropped."""
        cleaned = []

        async def work():
            try:
                await asyncio.sleep(1_000)
            finally:
                await asyncio.sleep(1)
                cleaned.append(True)
                raise ValueError("too late")

        async def main():
            task = asyncio.create_task(work())
            await asyncio.sleep(0)
            await stop(task)
            assert task.done()

        run_simulated(main())
        assert cleaned == [True]

    def test_finish_leaves_the_task_its_time(self):
        """`finish` waits for the end and raises nothing of it."""

        async def work():
            await asyncio.sleep(5)
            raise ValueError("no matter")

        async def main():
            task = asyncio.create_task(work())
            await finish(task)
            assert isinstance(task.exception(), ValueError)

        run_simulated(main())


class TestTasks:
    def test_a_failure_is_told_by_name(self):
        """A task that fails is told, one that ends or is cancelled is not."""
        told = []

        async def fail():
            raise ValueError("x")

        async def main():
            tasks = Tasks(lambda name, error: told.append((name, str(error))))
            tasks.spawn(fail(), "failing")
            tasks.spawn(asyncio.sleep(0), "fine")
            tasks.spawn(asyncio.sleep(1_000), "cancelled").cancel()
            await asyncio.sleep(1)
            assert len(tasks) == 0

        run_simulated(main())
        assert told == [("failing", "x")]

    def test_nothing_is_left_after_closing(self):
        """Closing cancels what runs, what that starts in its turn too, and names what refuses."""

        async def parent(tasks):
            try:
                await asyncio.sleep(1_000)
            finally:
                tasks.spawn(asyncio.sleep(1_000), "child")

        async def main():
            tasks = Tasks()
            tasks.spawn(parent(tasks), "parent")
            refusing = tasks.spawn(stubborn(2), "refusing")
            await asyncio.sleep(0)
            assert await tasks.aclose(100) == ["refusing"]
            assert len(tasks) == 1
            await stop(refusing)

        run_simulated(main())

    def test_closing_nothing_takes_no_time(self):
        """With no task there is nothing to wait for."""
        assert run_simulated(Tasks().aclose(100)) == []


class TestReaper:
    def test_sees_out_what_stops_in_time(self):
        """A task that cleans up within its grace is forgotten without a word."""
        stuck = []

        async def main():
            reaper = Reaper(100, 2, stuck.append)
            task = asyncio.create_task(stubborn(0), name="done")
            await task
            reaper.take(task)
            quick = asyncio.create_task(asyncio.sleep(1_000), name="quick")
            reaper.take(quick)
            reaper.take(quick)
            await reaper.settle()
            assert len(reaper) == 0
            assert await reaper.aclose(100) == []

        run_simulated(main())
        assert stuck == []

    def test_names_and_counts_what_does_not(self):
        """A task that refuses is named once, after its grace, and counts against the limit until it is gone."""
        stuck = []

        async def main():
            loop, reaper = asyncio.get_running_loop(), Reaper(100, 1, stuck.append)
            task = asyncio.create_task(stubborn(2), name="provider")
            await asyncio.sleep(0)
            reaper.take(task)
            before = loop.time()
            await reaper.settle()
            assert loop.time() - before == pytest.approx(0.1)
            await asyncio.sleep(1)
            assert (stuck, reaper.stuck, reaper.full) == (["provider"], 1, True)
            assert await reaper.aclose(50) == []
            assert not reaper.full

        run_simulated(main())

    def test_closing_names_those_still_there(self):
        """What cannot be stopped at all is named at the end."""

        async def main():
            reaper = Reaper(10, 2, lambda name: None)
            task = asyncio.create_task(stubborn(3), name="never")
            await asyncio.sleep(0)
            reaper.take(task)
            await asyncio.sleep(1)
            assert await reaper.aclose(10) == ["never"]
            await stop(task)

        run_simulated(main())


class TestWorkPool:
    def test_gives_results_and_errors(self):
        """A call gives what the function gives, or raises what it raises."""

        async def main():
            pool = WorkPool(2, "model")
            assert await asyncio.gather(*(pool.run(pow, base, exp=2) for base in range(20))) == [
                n * n for n in range(20)
            ]
            with pytest.raises(ZeroDivisionError):
                await pool.run(divmod, 1, 0)
            await pool.aclose()

        run_simulated(main())

    def test_runs_no_more_at_once_than_it_has_threads(self):
        """Two threads work at once and never a third; calls beyond wait their turn, and `waiting` counts them."""
        running, most, lock, pairs = 0, 0, threading.Lock(), threading.Barrier(2)

        def work():
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            pairs.wait(30)
            with lock:
                running -= 1

        async def main():
            pool = WorkPool(2, "model")
            calls = [asyncio.create_task(pool.run(work)) for _ in range(50)]
            await asyncio.sleep(0)
            assert pool.waiting == 50
            await asyncio.gather(*calls)
            assert pool.waiting == 0
            await pool.aclose()

        run_simulated(main())
        assert most == 2

    def test_leaves_no_thread(self):
        """Closed in the middle of work, it drops what has not begun, and its threads end."""
        before, release, begun = threading.active_count(), threading.Event(), []

        def work(number):
            begun.append(number)
            return release.wait(30)

        async def main():
            pool = WorkPool(1, "model")
            calls = [asyncio.create_task(pool.run(work, number)) for number in range(3)]
            await asyncio.sleep(0)
            closing = asyncio.create_task(pool.aclose())
            await asyncio.sleep(0)
            release.set()
            await closing
            return await asyncio.gather(*calls, return_exceptions=True)

        first, *others = run_simulated(main())
        assert first is True
        assert [type(other) for other in others] == [SessionClosedError, SessionClosedError]
        assert begun == [0]
        assert threading.active_count() == before

    def test_can_be_used_again(self):
        """After closing, a call starts it anew; closing twice is no error."""

        async def main():
            pool = WorkPool(1, "model")
            await pool.aclose()
            assert await pool.run(len, "ab") == 2
            await pool.aclose()
            await pool.aclose()
            assert await pool.run(len, "abc") == 3
            await pool.aclose()

        run_simulated(main())

    def test_a_cancelled_call_runs_out(self):
        """Cancelling the wait neither stops the pool nor fails the next call."""

        async def main():
            pool, release = WorkPool(1, "model"), threading.Event()
            call = asyncio.create_task(pool.run(release.wait, 30))
            await asyncio.sleep(0)
            await stop(call)
            release.set()
            assert await pool.run(len, "ab") == 2
            await pool.aclose()

        run_simulated(main())

    def test_counts_what_ran_and_how_long(self):
        """Calls that ran are counted, failed ones too, with their real time; one dropped before it began is not."""

        async def main():
            pool, release = WorkPool(1, "model"), threading.Event()
            assert (pool.calls, pool.busy_ms) == (0, 0.0)
            await pool.run(sum, range(100_000))
            assert (pool.calls, pool.busy_ms > 0.0) == (1, True)
            before_ms = pool.busy_ms
            with pytest.raises(ZeroDivisionError):
                await pool.run(divmod, 1, 0)
            assert (pool.calls, pool.busy_ms > before_ms) == (2, True)
            first, dropped = (asyncio.create_task(pool.run(release.wait, 30)) for _ in range(2))
            await asyncio.sleep(0)
            await stop(dropped)
            release.set()
            await first
            await pool.aclose()
            assert pool.calls == 3

        run_simulated(main())
