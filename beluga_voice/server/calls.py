"""The WebSocket: a caller says hello, is let in or refused with a reason, and its session's line does the rest."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from starlette.websockets import WebSocket, WebSocketState

from .. import wire
from ..errors import (
    DuplicateSessionError,
    ProviderError,
    SessionClosedError,
    SessionLimitError,
    SessionNotFoundError,
    TransportClosed,
)
from ..snapshot import Snapshot
from .line import LineOptions, WireLine
from .peer import Peer
from .service import Service
from .tickets import Grant, TicketError
from .welcome import UNKNOWN

if TYPE_CHECKING:
    from ..session import Session

__all__ = ["call"]

log = logging.getLogger("beluga_voice.server")

RETRY_AFTER_MS = 1_000.0
LEAST_WINDOW_MS = 10_000.0  # what was not written yet is kept too, also where no line may come back
PROTOCOL, UNAUTHORISED, NO_HELLO, GONE, FULL, INTERNAL = 4400, 4401, 4408, 4410, 1013, 4500


async def call(websocket: WebSocket) -> None:
    """Answer one connection; whatever goes wrong closes this one alone, with a code and a reason."""
    service: Service = websocket.app.state.service
    secure = websocket.scope["scheme"] == "wss"
    if not service.welcomes_page(
        websocket.headers.getlist("origin"), websocket.headers.get("host", ""), secure=secure
    ):
        # Told so that the owner of a page finds out: a browser shows its user nothing but a failed connection.
        log.info("refused a page of origin %.100r; allow it in [server] origins", websocket.headers.get("origin"))
        await websocket.close(UNAUTHORISED)
        return
    peer = Peer(websocket)
    try:
        await service.start()
        await _answer(service, websocket, peer)
    except wire.WireError as error:
        await peer.close(error.code, error.reason)
    except TransportClosed:
        return
    except Exception:
        log.exception("a call failed; its caller is told 4500")
        if websocket.application_state is WebSocketState.CONNECTING:
            await websocket.accept()
        await peer.close(INTERNAL, "internal error; the server's log has more")


async def _answer(service: Service, websocket: WebSocket, peer: Peer) -> None:
    address = websocket.client.host if websocket.client else ""
    with service.handshake(address) as free:
        offered = websocket.scope["subprotocols"]
        await websocket.accept(subprotocol=wire.SUBPROTOCOL if wire.SUBPROTOCOL in offered else None)
        if not free:
            raise _full(RETRY_AFTER_MS)
        if offered and wire.SUBPROTOCOL not in offered:
            raise wire.WireError(PROTOCOL, f"none of the offered subprotocols is {wire.SUBPROTOCOL}")
        hello = await _hello(peer, service.options.hello_timeout_ms)
        if hello is None:
            return
        grant = Grant() if hello.resume is not None else await _granted(service, hello.token)
    resume = hello.resume
    session, line = await (_resumed(service, hello, resume.session_id) if resume else _created(service, hello, grant))
    line.session_id = session.session_id
    await line.serve(peer, resume=resume, limits=_limits(session), history=session.history if resume else ())


async def _hello(peer: Peer, timeout_ms: float) -> wire.Hello | None:
    """What the caller says first; None if it goes instead."""
    try:
        async with asyncio.timeout(timeout_ms / 1000.0):
            message = await peer.receive()
    except TimeoutError:
        raise wire.WireError(NO_HELLO, f"no hello within {timeout_ms:g} ms") from None
    if message is None:
        return None
    hello = wire.parse_client(message)
    if not isinstance(hello, wire.Hello):
        raise wire.WireError(PROTOCOL, "expected hello first")
    return hello


async def _granted(service: Service, token: str) -> Grant:
    """Whom the caller's ticket names; nobody where none is needed and none given."""
    if not token and not service.options.needs_ticket:
        return Grant()
    if not token:
        raise wire.WireError(UNAUTHORISED, "a ticket is needed; get one from POST /v1/sessions")
    try:
        return await service.tickets.redeem(token)
    except TicketError as error:
        raise wire.WireError(UNAUTHORISED, str(error)) from None


async def _created(service: Service, hello: wire.Hello, grant: Grant) -> tuple[Session, WireLine]:
    metadata = {**hello.metadata, **grant.metadata}
    told = {"metadata": metadata, "input_rate_hz": hello.input_rate_hz, "output_rate_hz": hello.output_rate_hz}
    line = _new_line(service, hello)
    try:
        session = await service.manager.create(
            line, user_id=grant.user_id, tenant=grant.tenant, metadata=metadata, hello={**told, "push": hello.push}
        )
    except SessionLimitError as error:
        raise _full(error.retry_after_ms) from None
    except SessionClosedError:
        raise _full(RETRY_AFTER_MS) from None
    return session, line


async def _resumed(service: Service, hello: wire.Hello, session_id: str) -> tuple[Session, WireLine]:
    """The session that the caller comes back to.

    Whether it lives or not, a wrong token gets the same answer as an unknown session: guesses learn nothing.
    """

    def connect(snapshot: Snapshot) -> WireLine:
        line = _new_line(service, hello, snapshot)
        line.admit(hello)
        return line

    def check(session: Session) -> None:
        if not isinstance(session.line, WireLine):
            raise wire.WireError(GONE, UNKNOWN)
        session.line.admit(hello)

    try:
        session = await service.manager.resume(session_id, connect, check)
    except SessionNotFoundError:
        raise wire.WireError(GONE, UNKNOWN) from None
    except SessionLimitError as error:
        raise _full(error.retry_after_ms) from None
    except (SessionClosedError, DuplicateSessionError, ProviderError):  # also while another try is under way
        raise _full(RETRY_AFTER_MS) from None
    line = session.line
    assert isinstance(line, WireLine)
    return session, line


def _new_line(service: Service, hello: wire.Hello, snapshot: Snapshot | None = None) -> WireLine:
    manager = service.manager
    window_ms = max(manager.options.resume_window_ms, LEAST_WINDOW_MS)
    options = LineOptions(has_store=manager.store is not None, window_ms=window_ms)
    if snapshot is None:
        return WireLine(hello, options=options)
    return WireLine(hello, options=options, saved=snapshot.line, received_seq=snapshot.seq)


def _limits(session: Session) -> dict[str, float]:
    """What the welcome tells of the session's limits."""
    options = session.options
    return {
        "max_message_bytes": wire.MAX_BYTES,
        "resume_window_ms": options.resume_window_ms,
        "idle_timeout_ms": options.idle_timeout_ms,
        "max_session_ms": options.max_session_ms,
        "max_turn_ms": options.max_turn_ms,
        "send_lead_ms": options.send_lead_ms,
    }


def _full(retry_after_ms: float | None) -> wire.WireError:
    return wire.WireError(FULL, f"retry_after_ms={round(RETRY_AFTER_MS if retry_after_ms is None else retry_after_ms)}")
