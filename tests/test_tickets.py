"""Tickets let in once, soon, here, and nobody else."""

import asyncio
import base64
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice.errors import ConnectFailedError
from beluga_voice.server.tickets import LONGEST_TICKET, Grant, TicketError, Tickets
from beluga_voice.store import Claim, SessionStore, StoreCapabilities

SECRET = "a secret that several processes have"


class Day:
    """A time of day that the test moves."""

    def __init__(self):
        self.ms = 1_700_000_000_000.0

    def __call__(self):
        return self.ms


class SharedStore(SessionStore):
    """What two processes see of one store: who claims first owns it."""

    capabilities = StoreCapabilities(shared=True)

    def __init__(self, *, broken=False):
        self.broken, self.leases = broken, {}

    async def claim(self, session_id, *, lease_ms, force=False):
        if self.broken:
            raise ConnectFailedError("the store is down", provider="shared", kind="store")
        if session_id in self.leases:
            return None
        self.leases[session_id] = lease_ms
        return Claim(1, None)

    async def renew(self, session_id, epoch, *, lease_ms):
        return True

    async def save(self, session_id, epoch, state, *, ttl_ms):
        return True

    async def get(self, session_id):
        return None

    async def delete(self, session_id, epoch):
        return True


def redeemed(tickets, ticket):
    return asyncio.run(tickets.redeem(ticket))


def refusal(tickets, ticket):
    with pytest.raises(TicketError) as told:
        redeemed(tickets, ticket)
    return str(told.value)


class TestTicket:
    def test_names_its_user(self):
        """What it was issued for is what it grants."""
        tickets = Tickets(SECRET)
        ticket = tickets.issue("ann", "acme", {"plan": "gold"})
        assert redeemed(tickets, ticket) == Grant("ann", "acme", {"plan": "gold"})

    def test_works_once(self):
        """The second use is refused, and says what to do."""
        tickets = Tickets(SECRET)
        ticket = tickets.issue()
        redeemed(tickets, ticket)
        assert refusal(tickets, ticket) == "the ticket was used before; get a new one from POST /v1/sessions"

    def test_grows_old(self):
        """It is good for its time, and not a moment longer."""
        day = Day()
        tickets = Tickets(SECRET, ttl_ms=60_000, now_ms=day)
        one, other = tickets.issue(), tickets.issue()
        day.ms += 59_999
        redeemed(tickets, one)
        day.ms += 1
        assert "too old" in refusal(tickets, other)

    def test_is_for_one_audience(self):
        """A service with the same secret and another name does not take it."""
        assert "another service" in refusal(Tickets(SECRET, "billing"), Tickets(SECRET, "voice").issue())

    def test_needs_the_secret(self):
        """Another secret's signature is none."""
        assert "not signed here" in refusal(Tickets(SECRET), Tickets(SECRET + "!").issue())

    def test_cannot_be_changed(self):
        """Any other claim needs another signature."""
        tickets = Tickets(SECRET)
        version, claims, signature = tickets.issue("ann").split(".")
        changed = json.loads(base64.urlsafe_b64decode(claims + "==")) | {"user": "root"}
        forged = base64.urlsafe_b64encode(json.dumps(changed).encode()).decode().rstrip("=")
        assert "not signed here" in refusal(tickets, f"{version}.{forged}.{signature}")

    @given(st.text(max_size=200) | st.text(alphabet="t1.AZaz09-_=", max_size=200))
    def test_garbage_is_refused(self, text):
        """Whatever is sent is refused with a reason that does not repeat it."""
        told = refusal(Tickets(SECRET), f"t1.{text}.ü")
        assert not text.strip(".t1") or len(text) < 8 or text not in told
        assert refusal(Tickets(SECRET), text)

    def test_too_long_is_refused(self):
        """Nothing is computed over what could not be one."""
        assert "no ticket" in refusal(Tickets(SECRET), "t1." + "a" * LONGEST_TICKET)

    def test_no_ticket_is_like_another(self):
        """Not even for the same user at the same moment."""
        tickets = Tickets(SECRET, now_ms=Day())
        assert len({tickets.issue("ann") for _ in range(100)}) == 100

    def test_old_uses_are_forgotten(self):
        """What is remembered is what could still be used."""
        day = Day()
        tickets = Tickets(SECRET, now_ms=day)
        for _ in range(50):
            redeemed(tickets, tickets.issue())
            day.ms += 60_000
        assert len(tickets._used) <= 2


class TestSeveralProcesses:
    def test_a_ticket_works_on_any(self):
        """The secret is all they share."""
        assert redeemed(Tickets(SECRET), Tickets(SECRET).issue("ann")).user_id == "ann"

    def test_a_shared_store_keeps_it_single(self):
        """Used on one, it is used on all."""
        store = SharedStore()
        one, other = Tickets(SECRET, store=store), Tickets(SECRET, store=store)
        ticket = one.issue()
        redeemed(one, ticket)
        assert "used before" in refusal(other, ticket)

    def test_the_store_remembers_for_as_long_as_it_is_good(self):
        """The claim outlives the ticket."""
        store = SharedStore()
        tickets = Tickets(SECRET, ttl_ms=60_000, store=store, now_ms=Day())
        redeemed(tickets, tickets.issue())
        assert [lease_ms >= 60_000 for lease_ms in store.leases.values()] == [True]

    def test_a_store_that_is_down_stops_no_call(self, caplog):
        """The process's own memory still refuses a second use, and the log says what is missing."""
        tickets = Tickets(SECRET, store=SharedStore(broken=True))
        ticket = tickets.issue()
        with caplog.at_level(logging.WARNING):
            redeemed(tickets, ticket)
        assert "in this process alone" in caplog.text
        assert ticket not in caplog.text
        assert "used before" in refusal(tickets, ticket)
