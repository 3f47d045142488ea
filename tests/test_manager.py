"""Many sessions: who is let in, where they are found, how they end; in simulated time."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice import Chain, SessionManager, SessionOptions, store, transport, tts, turn
from beluga_voice.admission import ManagerOptions
from beluga_voice.builtin.memory_store import MemoryStore
from beluga_voice.builtin.memory_transport import MemoryTransport
from beluga_voice.clock import Clock, run_simulated
from beluga_voice.errors import (
    ConnectFailedError,
    DuplicateSessionError,
    OptionError,
    ProviderTimeoutError,
    SessionClosedError,
    SessionLimitError,
    SessionNotFoundError,
)
from beluga_voice.frames import TextIn
from beluga_voice.snapshot import Snapshot
from beluga_voice.testing import LoudVAD, ScriptedSTT, quiet, speech
from beluga_voice.tts import TTS

CLOCK = Clock()


async def short(text, history):
    return f"You said {text}."


def chain(agent=short, voice=None):
    return Chain(LoudVAD(), turn.new("silence"), ScriptedSTT("one", "two"), agent, voice or tts.new("tone", word_ms=200.0))


def line():
    return transport.new("memory")


class CountingVoice(TTS):
    """Counts what is asked of it, and how often it is made ready and freed."""

    def __init__(self):
        self.warmed = self.closed = 0

    async def prewarm(self):
        self.warmed += 1

    async def aclose(self):
        self.closed += 1

    async def synthesize(self, text):
        raise AssertionError("not used here")


def refusals(results, error=SessionLimitError):
    return [result for result in results if isinstance(result, error)]


async def create_all(manager, count, **told):
    async def one():
        try:
            return await manager.create(line(), **told)
        except SessionLimitError as error:
            return error

    return await asyncio.gather(*(one() for _ in range(count)))


class TestCaps:
    @pytest.mark.parametrize("seed", range(20))
    def test_a_thousand_creators_against_a_cap_of_a_hundred(self, seed):
        """Exactly 100 sessions, 900 clear refusals, however the creators interleave."""

        async def main():
            chooser = random.Random(seed)

            async def choose(hello):
                await CLOCK.sleep_ms(chooser.random() * 5)
                return stages

            stages = chain()
            async with SessionManager(choose, max_sessions=100) as manager:

                async def one():
                    await CLOCK.sleep_ms(chooser.random() * 10)
                    try:
                        return await manager.create(line())
                    except SessionLimitError as error:
                        return error

                results = await asyncio.gather(*(one() for _ in range(1_000)))
                return results, len(manager.sessions), manager.counters["rejected"]

        results, living, rejected = run_simulated(main())
        assert (living, rejected, len(refusals(results))) == (100, 900, 900)
        refusal = refusals(results)[0]
        assert refusal.limit == "max_sessions"
        assert refusal.retry_after_ms > 0
        assert "max_sessions is 100" in str(refusal)

    def test_a_refused_caller_costs_nothing_and_their_line_is_closed(self):
        """No engine is asked, nothing is made, and the line does not hang."""

        class Line(MemoryTransport):
            closed = 0

            async def aclose(self):
                self.closed += 1

        async def main():
            voice = CountingVoice()
            refused = Line()
            async with SessionManager(lambda hello: chain(voice=voice), max_sessions=1) as manager:
                await manager.create(line())
                made = voice.warmed
                with pytest.raises(SessionLimitError):
                    await manager.create(refused)
                return made, voice.warmed, refused.closed

        assert run_simulated(main()) == (1, 1, 1)

    def test_each_user_and_each_tenant_has_a_cap(self):
        """One loud tenant does not take the others' room."""

        async def main():
            async with SessionManager(chain(), max_per_user=2, max_per_tenant=3) as manager:
                ann = await create_all(manager, 3, user_id="ann", tenant="acme")
                bob = await create_all(manager, 2, user_id="bob", tenant="acme")
                other = await create_all(manager, 3, tenant="other")
                nobody = await create_all(manager, 3)
                return [len(refusals(results)) for results in (ann, bob, other, nobody)], ann[2].limit, bob[1].limit

        assert run_simulated(main()) == ([1, 1, 0, 0], "max_per_user", "max_per_tenant")

    def test_one_who_waits_for_another_reason_bars_nobody(self):
        """A user at their own cap waits; others are let in past them."""

        async def main():
            async with SessionManager(chain(), max_per_user=1, max_waiting=5, max_wait_ms=60_000) as manager:
                await manager.create(line(), user_id="ann")
                waiting = asyncio.create_task(manager.create(line(), user_id="ann"))
                await CLOCK.sleep_ms(10)
                await manager.create(line(), user_id="bob")
                waiting.cancel()
                return len(manager.sessions)

        assert run_simulated(main()) == 2

    def test_a_place_given_back_is_taken_again(self):
        """Closing one makes room for one."""

        async def main():
            async with SessionManager(chain(), max_sessions=1) as manager:
                first = await manager.create(line())
                await manager.close(first.session_id)
                return await manager.create(line())

        assert run_simulated(main()).state == "disconnected"

    def test_an_id_is_given_once(self):
        """A second session of the same id is refused, also while the first is still being made."""

        async def main():
            async def choose(hello):
                await CLOCK.sleep_ms(5)
                return stages

            stages = chain()
            async with SessionManager(choose) as manager:
                results = await asyncio.gather(
                    *(manager.create(line(), session_id="same") for _ in range(10)), return_exceptions=True
                )
                return len(refusals(results, DuplicateSessionError)), manager.get("same").session_id

        assert run_simulated(main()) == (9, "same")


class TestEngines:
    def test_no_more_sessions_than_an_engine_can_bear(self):
        """An engine that says how many it can serve is believed."""

        async def main():
            voice = CountingVoice()
            voice.max_streams = 3
            async with SessionManager(chain(voice=voice)) as manager:
                return refusals(await create_all(manager, 5))

        first, _ = run_simulated(main())
        assert first.limit == "max_streams"
        assert "tts 'CountingVoice'" in str(first)

    def test_nobody_is_let_in_while_an_engine_is_behind(self):
        """Its calls wait longer than the limit: refused until they do not."""

        async def main():
            voice = CountingVoice()
            type(voice).wait_ms = property(lambda self: behind[0])
            behind = [2_000.0]
            async with SessionManager(chain(voice=voice)) as manager:
                with pytest.raises(SessionLimitError, match="2000 ms") as caught:
                    await manager.create(line())
                behind[0] = 100.0
                await manager.create(line())
                return caught.value.limit

        assert run_simulated(main()) == "max_engine_wait_ms"

    def test_engines_are_made_ready_once_and_freed_at_the_end(self):
        """However many sessions come and go."""

        async def main():
            voice = CountingVoice()
            async with SessionManager(chain(voice=voice)) as manager:
                assert voice.warmed == 1
                for _ in range(3):
                    await manager.close((await manager.create(line())).session_id)
                assert voice.closed == 0
            return voice.warmed, voice.closed

        assert run_simulated(main()) == (1, 1)

    def test_whoever_waits_for_an_engine_is_let_in_when_it_has_caught_up(self):
        """Nobody has to leave for that."""

        async def main():
            voice, behind = CountingVoice(), [9_000.0]
            type(voice).wait_ms = property(lambda self: behind[0])
            async with SessionManager(chain(voice=voice), max_waiting=1) as manager:
                waiting = asyncio.create_task(manager.create(line()))
                await CLOCK.sleep_ms(1_000)
                behind[0] = 0.0
                await CLOCK.sleep_ms(500)
                return waiting.done()

        assert run_simulated(main())

    def test_a_session_whose_making_outlasts_the_manager_does_not_begin(self):
        """The manager was left while a chain was being chosen."""

        async def main():
            async def choose(hello):
                await CLOCK.sleep_ms(2_000)
                return chain()

            async with SessionManager(choose) as manager:
                creating = asyncio.create_task(manager.create(line()))
                await CLOCK.sleep_ms(100)
            with pytest.raises(SessionClosedError):
                await creating
            return len(manager.sessions), len(asyncio.all_tasks())

        assert run_simulated(main()) == (0, 1)

    def test_the_caller_may_choose_the_chain(self):
        """What the hello says decides; what is no chain is an error, and leaves no place taken."""

        async def main():
            async with SessionManager(lambda hello: chain() if hello["lang"] == "en" else None, max_sessions=1) as manager:
                with pytest.raises(TypeError, match="expected a Chain"):
                    await manager.create(line(), hello={"lang": "xx"})
                session = await manager.create(line(), hello={"lang": "en"})
                return session.chain

        assert isinstance(run_simulated(main()), Chain)


class TestQueue:
    def test_callers_wait_their_turn(self):
        """First come, first let in, as places are given back."""

        async def main():
            order = []
            async with SessionManager(chain(), max_sessions=1, max_waiting=3, max_wait_ms=60_000) as manager:
                first = await manager.create(line(), session_id="0")

                async def one(name):
                    session = await manager.create(line(), session_id=name)
                    order.append(name)
                    await CLOCK.sleep_ms(1_000)
                    await manager.close(session.session_id)

                tasks = [asyncio.create_task(one(name)) for name in "123"]
                await CLOCK.sleep_ms(10)
                with pytest.raises(SessionLimitError):
                    await manager.create(line(), session_id="4")
                await manager.close(first.session_id)
                await asyncio.gather(*tasks)
            return order

        assert run_simulated(main()) == ["1", "2", "3"]

    def test_waiting_has_an_end(self):
        """Nobody waits longer than `max_wait_ms`."""

        async def main():
            async with SessionManager(chain(), max_sessions=1, max_waiting=1, max_wait_ms=700) as manager:
                await manager.create(line())
                began_ms = CLOCK.now_ms()
                with pytest.raises(SessionLimitError, match="max_sessions is 1"):
                    await manager.create(line())
                return CLOCK.now_ms() - began_ms

        assert run_simulated(main()) == pytest.approx(700, abs=1)

    @given(st.lists(st.sampled_from(["create", "cancel", "close", "wait"]), max_size=40), st.integers(0, 4))
    def test_any_interleaving_keeps_the_count(self, actions, waiting):
        """Creators, some cancelled, and closings in any order: never more than the cap, and all places are free in the end."""

        async def main():
            async with SessionManager(chain(), max_sessions=2, max_waiting=waiting, max_wait_ms=500) as manager:
                creating = []
                for action in actions:
                    if action == "create":
                        creating.append(asyncio.create_task(manager.create(line())))
                    elif action == "cancel" and creating:
                        creating.pop().cancel()
                    elif action == "close" and manager.sessions:
                        manager.sessions[0].close()
                    await CLOCK.sleep_ms(0 if action != "wait" else 300)
                    assert len(manager._admission.slots) <= 2
                await CLOCK.sleep_ms(2_000)
                await asyncio.gather(*creating, return_exceptions=True)
                for session in manager.sessions:
                    await manager.close(session.session_id)
                assert manager._admission.waiting == 0
                return len(await create_all(manager, 2)), len(manager.sessions), len(asyncio.all_tasks())

        made, living, _ = run_simulated(main())
        assert (made, living) == (2, 2)


class TestEnding:
    def test_idle_sessions_are_counted_and_closed(self):
        """`cleanup_idle` closes those that were silent, not those that speak, and says how many."""

        async def main():
            async with SessionManager(chain(), idle_timeout_ms=600_000) as manager:
                talking = line()
                await create_all(manager, 3)
                session = await manager.create(talking)
                await CLOCK.sleep_ms(20_000)
                talking.speak(speech(1_000))
                await CLOCK.sleep_ms(1_200)
                closed = await manager.cleanup_idle(10_000)
                return closed, manager.sessions == (session,), manager.counters["closed_idle"]

        assert run_simulated(main()) == (3, True, 3)

    def test_reasons_that_a_program_makes_up_are_one_count(self):
        """A counter for each would never end."""

        async def main():
            async with SessionManager(chain()) as manager:
                for number, session in enumerate(await create_all(manager, 5)):
                    session.close(f"order {number} is done")
                await CLOCK.sleep_ms(1_000)
                return {name: count for name, count in manager.counters.items() if name.startswith("closed_")}

        assert run_simulated(main()) == {"closed_other": 5}

    def test_it_runs_by_itself(self):
        """Nobody has to call it."""

        async def main():
            async with SessionManager(chain(), idle_timeout_ms=5_000) as manager:
                await create_all(manager, 3)
                await CLOCK.sleep_ms(20_000)
                return len(manager.sessions), manager.counters["closed_idle"]

        assert run_simulated(main()) == (0, 3)

    def test_drain_lets_a_reply_end(self):
        """Nobody new is taken; the caller is told; the answer is heard to its end; then the line is closed."""

        async def main():
            events = []
            async with SessionManager(chain(), listeners=[lambda session: events.append]) as manager:
                talking, silent = line(), line()
                await manager.create(talking)
                await manager.create(silent)
                talking.speak(quiet(200) + speech(800) + quiet(1_000))
                await CLOCK.sleep_ms(2_100)
                draining = asyncio.create_task(manager.drain())
                await CLOCK.sleep_ms(1)
                assert not manager.ready
                with pytest.raises(SessionClosedError, match="going away"):
                    await manager.create(line())
                await draining
                assert manager.sessions == ()
            return events

        events = run_simulated(main())
        assert [event.data["deadline_ms"] for event in events if event.name == "goaway"] == [25_000] * 2
        assert [event.data["record"].heard_text for event in events if event.name == "turn_finished"] == ["You said one."]
        assert [event.data["reason"] for event in events if event.name == "closed"] == ["drain"] * 2

    def test_drain_has_a_deadline(self):
        """A reply that takes too long is cut; what was heard of it is kept."""

        async def endless(text, history):
            while True:
                yield "And so on and on it goes. "
                await CLOCK.sleep_ms(100)

        async def main():
            async with SessionManager(chain(endless)) as manager:
                talking = line()
                session = await manager.create(talking)
                talking.push(TextIn("go"))
                await CLOCK.sleep_ms(500)
                began_ms = CLOCK.now_ms()
                await manager.drain(3_000)
                return CLOCK.now_ms() - began_ms, session

        took_ms, session = run_simulated(main())
        assert took_ms == pytest.approx(3_000, abs=300)
        assert session.history[-1].heard_text.startswith("And so on")

    def test_drain_does_not_wait_for_a_lost_line(self):
        """Whoever is not there is not waited for."""

        async def main():
            async with SessionManager(chain()) as manager:
                gone = line()
                await manager.create(gone)
                await CLOCK.sleep_ms(100)
                gone.lose()
                await CLOCK.sleep_ms(100)
                began_ms = CLOCK.now_ms()
                await manager.drain()
                return CLOCK.now_ms() - began_ms

        assert run_simulated(main()) < 1_000

    def test_leaving_closes_everything(self):
        """Sessions, those waiting, tasks, engines."""

        async def main():
            manager = SessionManager(chain(), max_sessions=2, max_waiting=5, max_wait_ms=60_000)
            async with manager:
                await create_all(manager, 2)
                waiting = asyncio.create_task(manager.create(line()))
                await CLOCK.sleep_ms(10)
            with pytest.raises(SessionClosedError):
                await waiting
            return len(asyncio.all_tasks())

        assert run_simulated(main()) == 1

    def test_a_reconnecting_session_holds_its_place(self):
        """Its caller may come back at any moment."""

        async def main():
            async with SessionManager(chain(), max_sessions=1, resume_window_ms=5_000) as manager:
                gone = line()
                session = await manager.create(gone)
                await CLOCK.sleep_ms(100)
                gone.lose()
                await CLOCK.sleep_ms(100)
                refused = refusals(await create_all(manager, 1))
                same = await manager.resume(session.session_id, lambda snapshot: None)
                await CLOCK.sleep_ms(6_000)
                return len(refused), same is session, len(refusals(await create_all(manager, 1)))

        assert run_simulated(main()) == (1, True, 0)

    def test_who_may_not_come_back_is_counted_as_refused(self):
        """A check that raises: the living session does not notice."""

        async def main():
            async with SessionManager(chain()) as manager:
                session = await manager.create(line(), session_id="s")
                await CLOCK.sleep_ms(10)

                def refuse(found):
                    assert found is session
                    raise PermissionError("wrong token")

                with pytest.raises(PermissionError):
                    await manager.resume("s", lambda snapshot: line(), refuse)
                return manager.counters["resumed_hot"], manager.counters["resumed_failed"], session.state

        assert run_simulated(main()) == (0, 1, "listening")

    def test_a_crash_in_one_session_harms_no_other(self):
        """Its place is given back and the others talk on."""

        class Bad(MemoryTransport):
            async def aclose(self):
                raise RuntimeError("no")

        async def main():
            async with SessionManager(chain()) as manager:
                bad = await manager.create(Bad())
                good = line()
                other = await manager.create(good)
                await CLOCK.sleep_ms(50)
                bad.close()
                await CLOCK.sleep_ms(50)
                good.speak(quiet(200) + speech(800) + quiet(2_500))
                await CLOCK.sleep_ms(4_000)
                return manager.sessions == (other,), [record.user_text for record in other.turns]

        assert run_simulated(main()) == (True, ["one"])


class TestHooks:
    def test_every_move_is_told(self):
        """`on_state_changed` gets the session, the old and the new state."""

        async def main():
            moves = []
            async with SessionManager(chain(), on_state_changed=lambda *told: moves.append(told)) as manager:
                session = await manager.create(line())
                await CLOCK.sleep_ms(10)
                await manager.close(session.session_id)
            return session, moves

        session, moves = run_simulated(main())
        assert moves == [(session, "connected", "listening"), (session, "listening", "disconnected")]

    def test_a_listener_that_raises_is_logged(self, caplog):
        """It neither ends the session nor keeps the others from hearing."""

        async def main():
            heard = []

            def bad(event):
                raise ValueError("mine")

            async with SessionManager(chain(), listeners=[lambda session: bad, lambda session: heard.append]) as manager:
                await manager.create(line())
                await CLOCK.sleep_ms(10)
            return heard

        assert run_simulated(main())[0].name == "opened"
        assert "a listener failed on opened" in caplog.text

    def test_settings_are_checked(self):
        """A misspelt limit is an error that names the right one."""
        with pytest.raises(OptionError, match="max_sessions"):
            SessionManager(chain(), max_session=3)
        manager = SessionManager(chain(), SessionOptions(greeting="Hello."), ManagerOptions(max_sessions=7), max_turn_ms=5_000)
        assert (manager.options.greeting, manager.options.max_turn_ms, manager.limits.max_sessions) == ("Hello.", 5_000, 7)

    def test_it_must_be_entered(self):
        """Creating before `async with` says so, and an unknown id is an error of its own."""

        async def main():
            manager = SessionManager(chain())
            with pytest.raises(SessionClosedError, match="async with"):
                await manager.create(line())
            with pytest.raises(SessionNotFoundError, match="nobody"):
                manager.get("nobody")
            assert manager.find("nobody") is None

        run_simulated(main())


class FrozenStore(MemoryStore):
    """A store that cannot be reached while `down`."""

    down = False

    async def save(self, *args, **told):
        self._check()
        return await super().save(*args, **told)

    async def renew(self, *args, **told):
        self._check()
        return await super().renew(*args, **told)

    async def claim(self, *args, **told):
        self._check()
        return await super().claim(*args, **told)

    def _check(self):
        if self.down:
            raise ConnectFailedError("the store is down", provider="frozen", kind="store")


class NumberedLine(MemoryTransport):
    """A line that numbers its audio, and hears what is kept of it."""

    def __init__(self, **options):
        super().__init__(**options)
        self.kept = []

    def covered(self, seq):
        self.kept.append(seq)

    def saved(self):
        return {"mine": 1}

    async def recv(self):
        number = 0
        async for frame in super().recv():
            yield type(frame)(frame.pcm, frame.sample_rate_hz, seq=number)
            number += 1


class TestStore:
    def talk(self, kept, meanwhile=None):
        """Hold a turn in one manager, then take the session over in another one, over the same store."""

        async def main():
            first = SessionManager(chain(), store=kept)
            second = SessionManager(chain(), store=kept)
            async with first, second:
                talking = NumberedLine()
                session = await first.create(talking, session_id="s", user_id="ann", tenant="acme", metadata={"lang": "en"})
                talking.speak(quiet(200) + speech(800) + quiet(3_000))
                await CLOCK.sleep_ms(4_500)
                if meanwhile is not None:
                    await meanwhile(session)
                snapshots = []

                def connect(snapshot):
                    snapshots.append(snapshot)
                    return MemoryTransport()

                after = await second.resume("s", connect)
                await CLOCK.sleep_ms(20_000)
                return session, after, snapshots, talking, first, second

        return run_simulated(main())

    def test_another_manager_takes_a_session_over(self):
        """History, user and metadata are there; the one before ends as replaced and cannot write any more."""
        session, after, (_, snapshot), talking, _, second = self.talk(store.new("memory"))
        assert [message.text for message in after.history][:2] == ["one", "You said one."]
        assert (after.user_id, after.tenant, after.metadata) == ("ann", "acme", {"lang": "en"})
        assert snapshot.line == {"mine": 1}
        assert session.end_reason == "replaced"
        assert second.counters["resumed_warm"] == 1
        assert talking.kept[-1] >= 40
        assert talking.kept == sorted(talking.kept)

    @pytest.mark.parametrize("seed", [27, 28, 30, 32, 35, 39])  # whose random waits between tries are long
    def test_a_store_that_is_down_stops_no_call(self, seed):
        """It is tried again until it is there; what happened meanwhile is kept at most a heart beat later."""
        kept = FrozenStore()
        random.seed(seed)

        async def outage(session):
            kept.down = True
            session.say("Still here.")
            session.feed(TextIn("typed"))
            await CLOCK.sleep_ms(20_000)
            assert len(session.turns) == 2
            kept.down = False
            await CLOCK.sleep_ms(5_300)

        _, _, (_, snapshot), _, first, _ = self.talk(kept, outage)
        assert [message.text for message in snapshot.history if message.role == "user"] == ["one", "typed"]
        assert first.counters["store_failed"] > 0

    def test_a_call_that_began_while_the_store_was_down_is_kept_later(self):
        """It is claimed as soon as the store is there."""

        async def main():
            kept = FrozenStore()
            kept.down = True
            async with SessionManager(chain(), store=kept) as manager:
                session = await manager.create(line(), session_id="s")
                await CLOCK.sleep_ms(3_000)
                kept.down = False
                await CLOCK.sleep_ms(6_000)
                return session.state, await kept.get("s")

        state, kept = run_simulated(main())
        assert state == "listening"
        assert Snapshot.from_bytes(kept).session_id == "s"

    def test_what_is_saved_while_a_resume_waits_is_not_lost(self):
        """The claim brings the newest state, not what was read before."""

        async def main():
            kept, gate = store.new("memory"), asyncio.Event()

            async def choose(hello):
                await gate.wait()
                return chain()

            async with SessionManager(chain(), store=kept) as first, SessionManager(choose, store=kept) as second:
                talking = line()
                await first.create(talking, session_id="s")
                await CLOCK.sleep_ms(100)
                resuming = asyncio.create_task(second.resume("s", lambda snapshot: line()))
                await CLOCK.sleep_ms(100)
                talking.push(TextIn("typed"))
                await CLOCK.sleep_ms(3_000)
                gate.set()
                return (await resuming).history[0].text

        assert run_simulated(main()) == "typed"

    def test_two_attempts_of_one_caller_find_one_session(self):
        """The second waits for the first, and takes what it made."""

        async def main():
            kept = store.new("memory")
            async with SessionManager(chain(), store=kept) as first, SessionManager(chain(), store=kept) as second:
                await first.create(line(), session_id="s")
                await CLOCK.sleep_ms(100)
                return await asyncio.gather(*(second.resume("s", lambda snapshot: line()) for _ in range(2)))

        one, other = run_simulated(main())
        assert one is other

    def test_a_session_is_kept_as_long_as_it_lives(self):
        """Also while nothing happens that would be saved: a very long answer."""

        async def endless(text, history):
            for _ in range(60):
                yield "And so on and on it goes. "

        async def main():
            kept = store.new("memory")
            async with SessionManager(chain(endless), store=kept) as manager:
                talking = line()
                await manager.create(talking, session_id="s")
                talking.push(TextIn("go"))
                await CLOCK.sleep_ms(70_000)
                return await kept.get("s") is not None, manager.get("s").state

        assert run_simulated(main()) == (True, "responding")

    def test_a_question_that_drain_cuts_off_is_answered_elsewhere(self):
        """What was not answered to its end stays to be answered."""

        async def slow(text, history):
            await CLOCK.sleep_ms(5_000)
            return "The answer."

        async def main():
            kept = store.new("memory")
            async with SessionManager(chain(slow), store=kept) as first, SessionManager(chain(slow), store=kept) as second:
                talking = line()
                await first.create(talking, session_id="s")
                talking.push(TextIn("question"))
                await CLOCK.sleep_ms(500)
                await first.drain(1_000)
                session = await second.resume("s", lambda snapshot: line())
                await CLOCK.sleep_ms(9_000)
                return [message.text for message in session.history]

        assert run_simulated(main()) == ["question", "The answer."]

    def test_an_id_whose_session_did_not_begin_is_free_again(self):
        """Its claim is given back at once."""

        async def main():
            def fail(session):
                raise RuntimeError("mine")

            async with SessionManager(chain(), store=store.new("memory"), listeners=[fail]) as manager:
                for _ in range(2):
                    with pytest.raises(RuntimeError, match="mine"):
                        await manager.create(line(), session_id="s")

        run_simulated(main())

    def test_a_store_that_hangs_holds_nobody_for_long(self):
        """Beginning, resuming and leaving take a bounded time."""

        class Hanging(MemoryStore):
            async def claim(self, *args, **told):
                await asyncio.Event().wait()

            get = aclose = claim

        async def main():
            async with SessionManager(chain(), store=Hanging()) as manager:
                await manager.create(line(), session_id="s")
                with pytest.raises(ProviderTimeoutError):
                    await manager.resume("t", lambda snapshot: line())
            return CLOCK.now_ms()

        assert run_simulated(main()) < 30_000

    def test_a_session_that_ended_cannot_be_resumed(self):
        """It was said goodbye to: the store has forgotten it."""

        async def hang_up(session):
            session.close("bye")
            await CLOCK.sleep_ms(100)

        with pytest.raises(SessionNotFoundError, match="has ended"):
            self.talk(store.new("memory"), hang_up)

    def test_a_drained_session_can(self):
        """The process went away, the conversation did not."""

        async def drain(session):
            session.drain(1_000)
            await CLOCK.sleep_ms(100)
            assert session.end_reason == "drain"

        _, after, _, _, _, _ = self.talk(store.new("memory"), drain)
        assert [message.text for message in after.history][:2] == ["one", "You said one."]

    def test_a_line_that_is_refused_changes_nothing(self):
        """A wrong token: the living session goes on, its claim stands."""

        async def main():
            kept = store.new("memory")
            first, second = SessionManager(chain(), store=kept), SessionManager(chain(), store=kept)
            async with first, second:
                session = await first.create(line(), session_id="s")
                await CLOCK.sleep_ms(100)

                def refuse(snapshot):
                    raise PermissionError("wrong token")

                with pytest.raises(PermissionError):
                    await second.resume("s", refuse)
                with pytest.raises(DuplicateSessionError, match="another process"):
                    await second.create(line(), session_id="s")
                await CLOCK.sleep_ms(20_000)
                return session.end_reason, second.counters["resumed_failed"], len(second.sessions)

        assert run_simulated(main()) == ("", 1, 0)

    def test_garbage_in_the_store_is_no_session(self):
        """Somebody else wrote there: it says so instead of failing."""

        async def main():
            kept = store.new("memory")
            async with SessionManager(chain(), store=kept) as manager:
                claim = await kept.claim("s", lease_ms=1_000)
                await kept.save("s", claim.epoch, b"\xff{", ttl_ms=60_000)
                with pytest.raises(SessionNotFoundError, match="cannot be read"):
                    await manager.resume("s", lambda snapshot: line())

        run_simulated(main())


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode) | st.just(b'{"version":1}') | st.just(b"[" * 100_000))
def test_no_bytes_crash_the_reading_of_a_snapshot(state):
    """Whatever is kept: a snapshot, or a ValueError."""
    try:
        made = Snapshot.from_bytes(state)
    except ValueError:
        return
    assert isinstance(made, Snapshot)
