"""What every session store must do, as checks that run against any of them.

In a plugin's tests, one test for each check:

    @pytest.mark.parametrize("check", CHECKS)
    def test_is_a_store(check, url):
        asyncio.run(check_store(lambda: store.new("redis", url=url), check))

Each check uses session ids of its own, so a store that others use too may be checked.

>>> from beluga_voice import store
>>> from beluga_voice.clock import run_simulated
>>> kept = store.new("memory")
>>> run_simulated(check_store(lambda: kept))
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..clock import Clock
from ..store import Claim, SessionStore

__all__ = ["CHECKS", "check_store"]

T = TypeVar("T")
Make = Callable[[], SessionStore]

LONG_MS = 60_000.0
SHORT_MS = 20.0
PATIENCE = 1_000
RACERS = 200


async def check_store(make: Make, only: str = "") -> None:
    """Run all checks, or the one called `only`.

    Args:
        make: gives a store; called anew, another owner's store over the same kept data. A store that lives in one object
            gives that object each time.
        only: a name of `CHECKS`.

    Raises:
        AssertionError: the store does something else than `SessionStore` says; the message tells what.
    """
    for name, check in CHECKS.items():
        if only in ("", name):
            ours, theirs = make(), make()
            try:
                await check(ours, theirs, f"check-{secrets.token_hex(6)}")
            finally:
                await ours.aclose()
                await theirs.aclose()


def _expect(is_so: object, otherwise: str) -> None:
    if not is_so:
        raise AssertionError(otherwise)


async def _claimed(store: SessionStore, session_id: str, *, lease_ms: float = LONG_MS, force: bool = False) -> Claim:
    claim = await store.claim(session_id, lease_ms=lease_ms, force=force)
    if claim is None:
        raise AssertionError(f"claim(force={force}) was refused; expected a claim")
    return claim


async def _until(done: Callable[[], Awaitable[T | None]], what: str) -> T:
    """What `done` gives, once it gives something."""
    clock = Clock()
    for _ in range(PATIENCE):
        if (found := await done()) is not None:
            return found
        await clock.sleep_ms(SHORT_MS / 2)
    raise AssertionError(f"{what} did not come about after {PATIENCE} tries")


async def _state_is_kept_as_it_is(ours: SessionStore, theirs: SessionStore, session_id: str) -> None:
    claim = await _claimed(ours, session_id)
    _expect(claim.state is None, f"a new session's claim has the state {claim.state!r}; expected None")
    _expect(await theirs.get(session_id) is None, "get gives something before the first save; expected None")
    for state in (bytes(range(256)) * 48, b"", b"last"):
        _expect(await ours.save(session_id, claim.epoch, state, ttl_ms=LONG_MS), "the owner's save was refused")
        _expect(await theirs.get(session_id) == state, f"get does not give the {len(state)} bytes that were saved")
    taken = await _claimed(theirs, session_id, force=True)
    _expect(taken.state == b"last", f"the claim has the state {taken.state!r}; expected the last that was saved")


async def _polite_claim_waits_for_the_lease(ours: SessionStore, theirs: SessionStore, session_id: str) -> None:
    claim = await _claimed(ours, session_id)
    for store in (theirs, ours):
        refused = await store.claim(session_id, lease_ms=LONG_MS)
        _expect(refused is None, "a polite claim succeeded while a lease runs; expected None")
    _expect(await ours.renew(session_id, claim.epoch, lease_ms=SHORT_MS), "a refused claim has fenced the owner")
    later = await _until(lambda: theirs.claim(session_id, lease_ms=LONG_MS), "a polite claim after the end of the lease")
    _expect(later.epoch > claim.epoch, f"epoch {later.epoch} after {claim.epoch}; expected a greater one")
    _expect(not await ours.renew(session_id, claim.epoch, lease_ms=LONG_MS), "the owner before renewed its claim")


async def _forced_claim_fences_the_owner(ours: SessionStore, theirs: SessionStore, session_id: str) -> None:
    old = await _claimed(ours, session_id)
    await ours.save(session_id, old.epoch, b"old", ttl_ms=LONG_MS)
    new = await _claimed(theirs, session_id, force=True)
    _expect(new.epoch > old.epoch, f"epoch {new.epoch} after {old.epoch}; expected a greater one")
    for moment in ("before", "after"):
        late = await ours.save(session_id, old.epoch, b"late", ttl_ms=LONG_MS)
        _expect(not late, f"a fenced owner saved, {moment} the new owner's first save")
        _expect(not await ours.renew(session_id, old.epoch, lease_ms=LONG_MS), "a fenced owner renewed its claim")
        _expect(not await ours.delete(session_id, old.epoch), "a fenced owner deleted the session")
        kept = b"old" if moment == "before" else b"new"
        _expect(await ours.get(session_id) == kept, f"get does not give {kept!r} {moment} the new owner's first save")
        _expect(await theirs.save(session_id, new.epoch, b"new", ttl_ms=LONG_MS), "the new owner's save was refused")
    _expect(await theirs.renew(session_id, new.epoch, lease_ms=LONG_MS), "the new owner could not renew its claim")


async def _owner_goes_on_after_its_lease(ours: SessionStore, theirs: SessionStore, session_id: str) -> None:
    claim = await _claimed(ours, session_id, lease_ms=SHORT_MS)
    await ours.save(session_id, claim.epoch, b"1", ttl_ms=LONG_MS)
    await Clock().sleep_ms(2 * SHORT_MS)
    _expect(await ours.save(session_id, claim.epoch, b"2", ttl_ms=LONG_MS), "save was refused though nobody took over")
    _expect(await ours.renew(session_id, claim.epoch, lease_ms=LONG_MS), "renew was refused though nobody took over")
    _expect(await theirs.claim(session_id, lease_ms=LONG_MS) is None, "a polite claim succeeded after the lease was renewed")


async def _nothing_without_a_claim(ours: SessionStore, theirs: SessionStore, session_id: str) -> None:
    for epoch in (0, 1, 2**50):
        _expect(not await ours.save(session_id, epoch, b"mine", ttl_ms=LONG_MS), f"save without a claim, epoch {epoch}")
        _expect(not await ours.renew(session_id, epoch, lease_ms=LONG_MS), f"renew without a claim, epoch {epoch}")
        _expect(not await ours.delete(session_id, epoch), f"delete without a claim, epoch {epoch}")
    _expect(await ours.get(session_id) is None, "get gives something that nobody saved")
    claim = await _claimed(theirs, session_id)
    for epoch in (claim.epoch - 1, claim.epoch + 1):
        _expect(not await ours.save(session_id, epoch, b"mine", ttl_ms=LONG_MS), "save under an epoch nobody was given")


async def _state_has_its_time(ours: SessionStore, theirs: SessionStore, session_id: str) -> None:
    claim = await _claimed(ours, session_id)
    await ours.save(session_id, claim.epoch, b"short", ttl_ms=SHORT_MS)

    async def is_gone() -> bool | None:
        return True if await theirs.get(session_id) is None else None

    await _until(is_gone, "the end of the state's time")
    _expect(await ours.save(session_id, claim.epoch, b"more", ttl_ms=LONG_MS), "the owner's save was refused after that")
    _expect(await theirs.get(session_id) == b"more", "get does not give what was saved after that")


async def _epochs_do_not_repeat(ours: SessionStore, theirs: SessionStore, session_id: str) -> None:
    """Even after all that was known of the session is gone, its first owner stays fenced."""
    first = await _claimed(ours, session_id, lease_ms=SHORT_MS)
    await ours.save(session_id, first.epoch, b"first", ttl_ms=SHORT_MS)
    await Clock().sleep_ms(3 * SHORT_MS)
    second = await _until(lambda: theirs.claim(session_id, lease_ms=LONG_MS), "a claim after the end of everything")
    _expect(second.epoch > first.epoch, f"epoch {second.epoch} after {first.epoch}; expected a greater one")
    _expect(not await ours.save(session_id, first.epoch, b"late", ttl_ms=LONG_MS), "the first owner saved after the second")
    await theirs.delete(session_id, second.epoch)
    third = await _claimed(ours, session_id)
    _expect(third.epoch > second.epoch, f"epoch {third.epoch} after delete, {second.epoch} before; expected a greater one")


async def _deleted_is_over(ours: SessionStore, theirs: SessionStore, session_id: str) -> None:
    stale = await _claimed(ours, session_id)
    claim = await _claimed(theirs, session_id, force=True)
    await theirs.save(session_id, claim.epoch, b"secret", ttl_ms=LONG_MS)
    _expect(await theirs.delete(session_id, claim.epoch), "the owner's delete was refused")
    _expect(not await theirs.delete(session_id, claim.epoch), "a second delete found something")
    for store, epoch in ((theirs, claim.epoch), (ours, stale.epoch)):
        _expect(not await store.save(session_id, epoch, b"late", ttl_ms=LONG_MS), "save after delete")
        _expect(not await store.renew(session_id, epoch, lease_ms=LONG_MS), "renew after delete")
    _expect(await ours.get(session_id) is None, "get gives something after delete")
    again = await _claimed(ours, session_id)
    _expect(again.state is None, "a claim after delete has a state")


async def _one_of_many_claimants_wins(ours: SessionStore, theirs: SessionStore, session_id: str) -> None:
    claims = await asyncio.gather(*((ours, theirs)[number % 2].claim(session_id, lease_ms=LONG_MS) for number in range(RACERS)))
    winners = [claim for claim in claims if claim is not None]
    _expect(len(winners) == 1, f"{len(winners)} of {RACERS} polite claimants won; expected one")
    forced = await asyncio.gather(*(_claimed(ours, session_id, force=True) for _ in range(20)))
    epochs = sorted({claim.epoch for claim in forced})
    _expect(len(epochs) == len(forced), f"{len(forced)} forced claims were given {len(epochs)} epochs")
    owns = [epoch for epoch in epochs if await ours.save(session_id, epoch, b"", ttl_ms=LONG_MS)]
    _expect(owns == epochs[-1:], f"{len(owns)} of {len(epochs)} claimants may save; expected the last alone")


async def _sessions_are_apart(ours: SessionStore, theirs: SessionStore, session_id: str) -> None:
    ids = [f"{session_id}{end}" for end in ("", ":own", ":state", "{x}", "}", " é*")]
    claims = [await _claimed(ours, one) for one in ids]
    for one, claim in zip(ids, claims, strict=True):
        await ours.save(one, claim.epoch, one.encode(), ttl_ms=LONG_MS)
    kept = [await theirs.get(one) for one in ids]
    _expect(kept == [one.encode() for one in ids], f"the sessions {ids} mix: {kept}")
    await ours.delete(ids[0], claims[0].epoch)
    _expect(await theirs.get(ids[1]) is not None, f"deleting {ids[0]!r} deleted {ids[1]!r}")


CHECKS: dict[str, Callable[[SessionStore, SessionStore, str], Awaitable[None]]] = {
    "state is kept as it is": _state_is_kept_as_it_is,
    "polite claim waits for the lease": _polite_claim_waits_for_the_lease,
    "forced claim fences the owner": _forced_claim_fences_the_owner,
    "owner goes on after its lease": _owner_goes_on_after_its_lease,
    "nothing without a claim": _nothing_without_a_claim,
    "state has its time": _state_has_its_time,
    "epochs do not repeat": _epochs_do_not_repeat,
    "deleted is over": _deleted_is_over,
    "one of many claimants wins": _one_of_many_claimants_wins,
    "sessions are apart": _sessions_are_apart,
}
