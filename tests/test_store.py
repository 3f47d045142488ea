"""The memory store: one owner at a time, bytes with a time to live, bounded."""

from __future__ import annotations

import asyncio
import tracemalloc

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from beluga_voice import store
from beluga_voice.clock import SimulatedLoop, run_simulated
from beluga_voice.errors import InvalidRequestError, OptionError, OverloadedError
from beluga_voice.store import SessionStore
from beluga_voice.testing.store_checks import CHECKS, check_store

SESSIONS = st.sampled_from("ab")
OWNERS = st.sampled_from([0, 1, 2])
TIMES_MS = st.sampled_from([13, 103, 1_003])  # never over at the very moment of a call: calls are at multiples of 5


@attrs.define
class Held:
    """What the model knows of one session."""

    owner: int
    leased_until: int
    over: int
    state: bytes | None = None
    kept_until: int = 0


class MemoryStoreModel(RuleBasedStateMachine):
    """Owners claim, renew, save, delete and wait in any order: the store does what a table of deadlines does."""

    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=SimulatedLoop)
        self.store = store.new("memory")
        self.now = 0
        self.held: dict[str, Held] = {}
        self.epochs: dict[tuple[str, int], int] = {}
        self.greatest = 0
        self.saves = 0

    def teardown(self):
        self.runner.close()

    def do(self, work):
        return self.runner.run(work)

    def known(self, session):
        held = self.held.get(session)
        if held is not None and held.over <= self.now:
            held = None
            del self.held[session]
        if held is not None and held.kept_until <= self.now:
            held.state = None
        return held

    def owned_by(self, session, owner):
        held = self.known(session)
        return held if held is not None and held.owner == owner else None

    @rule(session=SESSIONS, owner=OWNERS, lease=TIMES_MS, force=st.booleans())
    def claim(self, session, owner, lease, force):
        claim = self.do(self.store.claim(session, lease_ms=lease, force=force))
        held = self.known(session)
        if held is not None and held.leased_until > self.now and not force:
            assert claim is None
            return
        assert claim.epoch > self.greatest
        assert claim.state == (held.state if held else None)
        self.greatest = self.epochs[session, owner] = claim.epoch
        if held is None:
            held = self.held[session] = Held(owner, 0, 0)
        held.owner, held.leased_until, held.over = owner, self.now + lease, max(held.over, self.now + lease)

    @rule(session=SESSIONS, owner=OWNERS, lease=TIMES_MS)
    def renew(self, session, owner, lease):
        done = self.do(self.store.renew(session, self.epochs.get((session, owner), 0), lease_ms=lease))
        held = self.owned_by(session, owner)
        assert done is (held is not None)
        if held is not None:
            held.leased_until, held.over = self.now + lease, max(held.over, self.now + lease)

    @rule(session=SESSIONS, owner=OWNERS, ttl=TIMES_MS)
    def save(self, session, owner, ttl):
        self.saves += 1
        state = str(self.saves).encode()
        done = self.do(self.store.save(session, self.epochs.get((session, owner), 0), state, ttl_ms=ttl))
        held = self.owned_by(session, owner)
        assert done is (held is not None)
        if held is not None:
            held.state, held.kept_until, held.over = state, self.now + ttl, max(held.over, self.now + ttl)

    @rule(session=SESSIONS)
    def get(self, session):
        held = self.known(session)
        assert self.do(self.store.get(session)) == (held.state if held else None)

    @rule(session=SESSIONS, owner=OWNERS)
    def delete(self, session, owner):
        done = self.do(self.store.delete(session, self.epochs.get((session, owner), 0)))
        assert done is (self.owned_by(session, owner) is not None)
        if done:
            del self.held[session]

    @rule(ms=st.sampled_from([5, 50, 500, 5_000]))
    def wait(self, ms):
        self.now += ms
        self.do(asyncio.sleep(ms / 1_000))


MemoryStoreModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMemoryStoreModel = MemoryStoreModel.TestCase


@pytest.mark.parametrize("check", CHECKS)
def test_is_a_store(check):
    """What every store must do."""
    kept = store.new("memory")
    run_simulated(check_store(lambda: kept, check))


class Unfenced(SessionStore):
    """A store as simple as it is wrong: whoever comes is the owner."""

    def __init__(self):
        self.kept, self.epoch = {}, 0

    async def claim(self, session_id, *, lease_ms, force=False):
        self.epoch += 1
        return store.Claim(self.epoch, self.kept.get(session_id))

    async def renew(self, session_id, epoch, *, lease_ms):
        return True

    async def save(self, session_id, epoch, state, *, ttl_ms):
        self.kept[session_id] = state
        return True

    async def get(self, session_id):
        return self.kept.get(session_id)

    async def delete(self, session_id, epoch):
        return self.kept.pop(session_id, None) is not None


NOT_OF_OWNERS = {"state is kept as it is", "sessions are apart", "owner goes on after its lease"}


@pytest.mark.parametrize("check", sorted(set(CHECKS) - NOT_OF_OWNERS))
def test_checks_refuse_a_store_without_owners(check):
    """Each check of ownership and time fails on a store that has neither."""
    wrong = Unfenced()
    with pytest.raises(AssertionError):
        run_simulated(check_store(lambda: wrong, check))


async def keep(sessions, session_id, state, *, lease_ms=1, ttl_ms=60_000):
    """Claim, save, and let the lease run out."""
    claim = await sessions.claim(session_id, lease_ms=lease_ms, force=True)
    await sessions.save(session_id, claim.epoch, state, ttl_ms=ttl_ms)
    await asyncio.sleep(0.002)


def test_beyond_its_bound_the_oldest_without_an_owner_is_forgotten_and_counted():
    """What is over makes room first, uncounted; what is owned stays."""

    async def main():
        sessions = store.new("memory", max_entries=3)
        await keep(sessions, "over", b"0", ttl_ms=10)
        await keep(sessions, "owned", b"1", lease_ms=60_000)
        await keep(sessions, "first", b"2")
        await asyncio.sleep(0.02)
        await keep(sessions, "second", b"3")
        assert sessions.counters["forgotten"] == 0
        await keep(sessions, "first", b"4")  # again: now the newest
        await keep(sessions, "third", b"5")
        assert sessions.counters["forgotten"] == 1
        return [await sessions.get(key) for key in ("over", "owned", "first", "second", "third")]

    assert run_simulated(main()) == [None, b"1", b"4", None, b"5"]


def test_more_owners_than_the_bound_are_refused():
    """No owner loses its claim to make room."""

    async def main():
        sessions = store.new("memory", max_entries=2)
        claims = {key: await sessions.claim(key, lease_ms=60_000) for key in "ab"}
        with pytest.raises(OverloadedError, match="max_entries") as refused:
            await sessions.claim("c", lease_ms=60_000)
        assert (refused.value.kind, refused.value.provider) == ("store", "memory")
        return [await sessions.renew(key, claim.epoch, lease_ms=60_000) for key, claim in claims.items()]

    assert run_simulated(main()) == [True, True]


def test_what_is_over_is_dropped_without_being_asked_for():
    """A store of many short sessions does not keep their states until its bound is reached."""

    async def main():
        sessions = store.new("memory")
        for number in range(20):
            await keep(sessions, f"short {number}", bytearray(1_000_000), ttl_ms=1_000)
        full = tracemalloc.get_traced_memory()[0]
        await asyncio.sleep(120)
        await keep(sessions, "next", b"")
        return full - tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        assert run_simulated(main()) > 19_000_000
    finally:
        tracemalloc.stop()


def test_counts_refused_claims_and_fenced_calls():
    async def main():
        sessions = store.new("memory")
        old = await sessions.claim("s", lease_ms=60_000)
        await sessions.claim("s", lease_ms=60_000)
        await sessions.claim("s", lease_ms=60_000, force=True)
        await sessions.renew("s", old.epoch, lease_ms=60_000)
        await sessions.save("s", old.epoch, b"", ttl_ms=60_000)
        return sessions.counters

    assert run_simulated(main()) == {"refused": 1, "fenced": 2}


def test_a_state_too_large_is_refused_and_the_one_before_stays():
    async def main():
        async with store.new("memory", max_state_bytes=10) as sessions:
            await keep(sessions, "s", b"0123456789")
            with pytest.raises(InvalidRequestError, match=r"11 bytes.*at most 10"):
                await keep(sessions, "s", b"01234567890")
            return await sessions.get("s")

    assert run_simulated(main()) == b"0123456789"


def test_stays_inside_the_process():
    assert store.describe("memory").capabilities.shared is False


@pytest.mark.parametrize("option", ["max_entries", "max_state_bytes"])
def test_a_wrong_option_is_refused(option):
    with pytest.raises(OptionError, match=option):
        store.new("memory", **{option: 0})
