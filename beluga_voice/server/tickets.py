"""Tickets: what `POST /v1/sessions` gives out, good for one call, soon.

A ticket carries its own user and is signed, so that any process with the same secret can read it. That it is used only once
needs a memory: this process's own and, where the manager's store is shared between processes, the store's.

>>> async def main():
...     tickets = Tickets("the secret of one service, or of one process")
...     ticket = tickets.issue(user_id="ann")
...     grant = await tickets.redeem(ticket)
...     try:
...         await tickets.redeem(ticket)
...     except TicketError as error:
...         return grant.user_id, str(error)
>>> asyncio.run(main())
('ann', 'the ticket was used before; get a new one from POST /v1/sessions')
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from ..clock import epoch_ns
from ..errors import BelugaVoiceError, SessionError
from ..store import SessionStore

__all__ = ["LONGEST_TICKET", "Grant", "TicketError", "Tickets"]

VERSION = "t1"
LONGEST_TICKET = 4_096  # what a hello takes
GET_ANOTHER = "get a new one from POST /v1/sessions"
STORE_MS = 2_000.0
log = logging.getLogger("beluga_voice.server")


class TicketError(SessionError):
    """A ticket that lets nobody in; the message says why and never holds the ticket."""


@attrs.frozen
class Grant:
    """Whom a ticket lets in: `user_id`, `tenant`, and `metadata` that the issuer vouches for."""

    user_id: str = ""
    tenant: str = ""
    metadata: Mapping[str, Any] = attrs.field(factory=dict)


def _epoch_ms() -> float:
    return epoch_ns() / 1e6


class Tickets:
    """Issues and redeems tickets.

    Args:
        secret: what signs them.
        audience: whom they are for; a ticket for another is refused.
        ttl_ms: how long one may wait to be used.
        store: remembers used tickets for all processes, if it is shared.
        now_ms: the time of day in ms.
    """

    def __init__(
        self,
        secret: str,
        audience: str = "beluga-voice",
        *,
        ttl_ms: float = 60_000.0,
        store: SessionStore | None = None,
        now_ms: Callable[[], float] = _epoch_ms,
    ) -> None:
        self._key = hashlib.sha256(secret.encode()).digest()
        self._audience, self._ttl_ms, self._now_ms = audience, ttl_ms, now_ms
        self._store = store if store is not None and store.capabilities.shared else None
        self._used: dict[str, float] = {}

    def issue(self, user_id: str = "", tenant: str = "", metadata: Mapping[str, Any] | None = None) -> str:
        """A new ticket for that user."""
        claims = {
            "id": secrets.token_urlsafe(16),
            "aud": self._audience,
            "exp": self._now_ms() + self._ttl_ms,
            "user": user_id,
            "tenant": tenant,
            "meta": dict(metadata or {}),
        }
        body = f"{VERSION}.{_encoded(json.dumps(claims, separators=(',', ':')).encode())}"
        return f"{body}.{_encoded(self._signature(body))}"

    async def redeem(self, ticket: str) -> Grant:
        """Whom the ticket lets in; it is used up.

        Raises:
            TicketError: it is not one of ours, for another audience, too old, or was used before.
        """
        claims = self._claims(ticket)
        if claims["aud"] != self._audience:
            raise TicketError(f"the ticket is for another service; {GET_ANOTHER} of this one")
        left_ms = claims["exp"] - self._now_ms()
        if left_ms <= 0:
            raise TicketError(f"the ticket is too old; {GET_ANOTHER}")
        if not await self._first_use(claims["id"], claims["exp"], left_ms):
            raise TicketError(f"the ticket was used before; {GET_ANOTHER}")
        return Grant(claims["user"], claims["tenant"], claims["meta"])

    def _claims(self, ticket: str) -> dict[str, Any]:
        body, _, signature = ticket.rpartition(".")
        if len(ticket) > LONGEST_TICKET or not ticket.isascii() or not body.startswith(f"{VERSION}."):
            raise TicketError(f"the token is no ticket of this server; {GET_ANOTHER}")
        if not hmac.compare_digest(_encoded(self._signature(body)), signature):
            raise TicketError(f"the ticket was not signed here; {GET_ANOTHER}")
        claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body.partition(".")[2] + "=="))
        return claims

    async def _first_use(self, ticket_id: str, expires_ms: float, left_ms: float) -> bool:
        """Whether nobody has used it; from now on somebody has."""
        now_ms = self._now_ms()
        # A ticket used here was issued at most `ttl_ms` ago: what is remembered is bounded by what was issued since.
        while self._used and next(iter(self._used.values())) <= now_ms:
            del self._used[next(iter(self._used))]
        if ticket_id in self._used:
            return False
        self._used[ticket_id] = expires_ms
        if self._store is None:
            return True
        try:
            async with asyncio.timeout(STORE_MS / 1000.0):
                return await self._store.claim(f"ticket:{ticket_id}", lease_ms=left_ms + 1_000.0) is not None
        except (BelugaVoiceError, TimeoutError) as error:
            # Calls go on without the store; a ticket stolen in this very minute could then be used once more per process.
            log.warning("a ticket's single use is checked in this process alone: the store fails: %s", error)
            return True

    def _signature(self, body: str) -> bytes:
        return hmac.digest(self._key, body.encode(), "sha256")


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
