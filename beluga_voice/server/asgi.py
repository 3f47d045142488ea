"""The ASGI application: the page, the WebSocket, tickets, health and metrics."""

from __future__ import annotations

import asyncio
import hmac
import inspect
import json
import logging
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import wire
from ..manager import SessionManager
from ..resilience import guards
from .calls import call
from .options import ServerOptions
from .service import Service
from .tickets import LONGEST_TICKET, Grant

__all__ = ["Guard", "admin_app", "new_app", "services"]

log = logging.getLogger("beluga_voice.server")

PAGE = Path(__file__).parent / "page"
LARGEST_BODY = 16_384
LONGEST_NAME = 256
NO_STORE = {"Cache-Control": "no-store"}
_PLAIN_HOST = re.compile(r"[A-Za-z0-9.\[\]:-]+\Z")


def new_app(manager: SessionManager, options: ServerOptions) -> Starlette:
    """The application that `server.app` gives."""
    service = Service(manager, options)
    routes: list[BaseRoute] = [
        WebSocketRoute(wire.PATH, call, name="voice"),
        Route("/v1/sessions", _new_ticket, methods=["POST"]),
    ]
    if options.health:
        routes += _health_routes()
    if options.page:
        routes += _page_routes()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    guard = Middleware(Guard, calls_url=service.options.public_url)
    app = Starlette(routes=routes, lifespan=lifespan, middleware=[guard], max_body_size=LARGEST_BODY)
    app.state.service = service
    return app


def admin_app(found: list[Service]) -> Starlette:
    """Health and metrics alone, of a service that something else starts and stops."""
    app = Starlette(routes=_health_routes())
    app.state.service, app.state.apart = found[0], True
    return app


def services(app: Any) -> list[Service]:
    """The services of `app` and of what is mounted in it.

    Raises:
        TypeError: there is none.
    """
    found = list(_found(app))
    if not found:
        raise TypeError(f"{type(app).__name__} is no application made by server.app, and has none mounted")
    return found


def _found(app: Any) -> list[Service]:
    service = getattr(getattr(app, "state", None), "service", None)
    if isinstance(service, Service):
        return [service]
    return [one for route in getattr(app, "routes", None) or () for one in _found(getattr(route, "app", None))]


class Guard:
    """Adds to every answer what keeps a browser from doing more with it than it should.

    Args:
        app: whose answers.
        calls_url: where the page may call, beside its own host.
    """

    def __init__(self, app: ASGIApp, calls_url: str = "") -> None:
        self._app, self._calls_url = app, calls_url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(one for one in headers if one[0] not in told)]
            await send(message)

        headers = [(name.encode(), value.encode()) for name, value in _guards(scope, self._calls_url).items()]
        await self._app(scope, receive, guarded)


def _guards(scope: Scope, calls_url: str) -> dict[str, str]:
    host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
    # Older browsers do not count a WebSocket to the page's own host as 'self'.
    sockets = f" ws://{host} wss://{host}" if _PLAIN_HOST.match(host) else ""
    elsewhere = urlsplit(calls_url)
    if elsewhere.netloc != host and _PLAIN_HOST.match(elsewhere.netloc):
        sockets += f" {elsewhere.scheme}://{elsewhere.netloc}"
    return {
        "content-security-policy": (
            "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; img-src 'self' data:; "
            f"media-src 'self' blob:; connect-src 'self'{sockets}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "cache-control": "no-cache",  # asked for anew each time, and sent only when changed
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "permissions-policy": "microphone=(self), camera=(), geolocation=()",
        "cross-origin-resource-policy": "same-origin",
    }


# --- the page --------------------------------------------------------------------------------------------------------


def _page_routes() -> list[BaseRoute]:
    """The page and its files; a word instead where they are not installed."""
    if not (PAGE / "index.html").is_file():
        return [Route("/", _no_page)]
    files = StaticFiles(directory=PAGE, html=True)

    async def page(request: Request) -> Response:
        return await files.get_response(files.get_path(request.scope), request.scope)

    return [Route("/{path:path}", page)]  # a mount would take sockets too


async def _no_page(request: Request) -> Response:
    """What stands in for the page."""
    return PlainTextResponse(f"A voice server. Calls go to {request.url_for('voice')}.\n")


# --- tickets ---------------------------------------------------------------------------------------------------------


async def _new_ticket(request: Request) -> Response:
    """`POST /v1/sessions`: a ticket for the user that the body names, for whoever may hand them out."""
    service: Service = request.app.state.service
    secure = request.url.scheme == "https"
    if not service.welcomes_page(request.headers.getlist("origin"), request.headers.get("host", ""), secure=secure):
        return _refused(403, "pages of this origin may not call; allow it in [server] origins")
    if service.manager.draining:
        return _refused(503, "the server is going away; ask another one", {"Retry-After": "1"})
    try:
        async with asyncio.timeout(service.options.hello_timeout_ms / 1000.0):
            body = await request.body()
        asked = _asked(body)
    except TimeoutError:
        return _refused(408, "the body did not come in time")
    except ValueError as error:
        return _refused(400, str(error))
    grant = await _authenticated(request, service.options, asked)
    if grant is None:
        if service.options.authenticate is not None:
            return _refused(401, "this request was not recognised; no ticket is given")
        return _refused(401, "no valid key; send Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})
    ticket = service.tickets.issue(grant.user_id, grant.tenant, grant.metadata)
    url = service.options.public_url or str(request.url_for("voice"))
    if request.headers.get("origin", "").startswith("https:"):  # a proxy ended its TLS
        url = url.replace("ws:", "wss:", 1)
    if len(ticket) > LONGEST_TICKET:
        return _refused(400, "the metadata is too long for a ticket; leave some out")
    answer = {"url": url, "token": ticket, "expires_in_ms": service.options.ticket_ttl_ms}
    return JSONResponse(answer, headers=NO_STORE)


def _asked(body: bytes) -> Grant:
    """Whom the body asks a ticket for.

    Raises:
        ValueError: it is not a JSON object of these fields.
    """
    try:
        given = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise ValueError("the body is not JSON; expected an object like {\"user_id\": \"ann\"}") from None
    if not isinstance(given, dict):
        raise ValueError("the body is not a JSON object; expected one like {\"user_id\": \"ann\"}")
    unknown = sorted(given.keys() - {"user_id", "tenant", "metadata"})
    if unknown:
        raise ValueError(f"the body has {unknown[0]!r:.40}; expected user_id, tenant and metadata")
    return _grant(given)


def _grant(given: Mapping[str, Any]) -> Grant:
    user_id, tenant, metadata = given.get("user_id", ""), given.get("tenant", ""), given.get("metadata", {})
    if not all(isinstance(name, str) and len(name) <= LONGEST_NAME for name in (user_id, tenant)):
        raise ValueError(f"user_id and tenant are texts of at most {LONGEST_NAME} characters")
    if not isinstance(metadata, Mapping):
        raise ValueError("metadata is an object")
    return Grant(user_id, tenant, metadata)


async def _authenticated(request: Request, options: ServerOptions, asked: Grant) -> Grant | None:
    """Whom the ticket will be for; None for nobody."""
    if options.authenticate is not None:
        told = options.authenticate(request)
        if inspect.isawaitable(told):
            told = await told
        if told is True:
            return asked
        if isinstance(told, str) and told:
            return Grant(told, "", asked.metadata)
        return _grant(told) if isinstance(told, Mapping) else None
    if not options.api_keys:
        return asked
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    given = key.strip().encode()
    # Every key is compared, so that the time taken tells nothing.
    matches = [hmac.compare_digest(given, one.encode()) for one in options.api_keys]
    return asked if scheme.lower() == "bearer" and any(matches) else None


def _refused(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, headers={**NO_STORE, **(headers or {})})


# --- for whoever runs it ---------------------------------------------------------------------------------------------


def _health_routes() -> list[BaseRoute]:
    """/healthz, /readyz, /providers and /metrics."""
    return [
        Route("/healthz", _healthy),
        Route("/readyz", _ready),
        Route("/providers", _providers),
        Route("/metrics", _metrics),
    ]


async def _healthy(request: Request) -> Response:
    """The process answers."""
    _service_of(request)
    return PlainTextResponse("ok\n", headers=NO_STORE)


async def _ready(request: Request) -> Response:
    """Calls are taken; 503 while starting or draining, and never for being full: a full server still takes resumes."""
    service = _service_of(request)
    service.begin()
    if service.ready:
        return PlainTextResponse("ready\n", headers=NO_STORE)
    return PlainTextResponse("draining\n" if service.manager.draining else "starting\n", 503, headers=NO_STORE)


async def _providers(request: Request) -> Response:
    """What this process knows of the providers that its sessions called."""
    _service_of(request)
    told = [
        {
            "kind": health.kind,
            "provider": health.provider,
            "state": health.breaker.state,
            "under_way": health.under_way,
            "max_concurrent": health.max_concurrent,
            **health.counters,
        }
        for health in guards()
    ]
    return JSONResponse({"providers": told}, headers=NO_STORE)


async def _metrics(request: Request) -> Response:
    """What Prometheus scrapes."""
    text, content_type = _service_of(request).metrics()
    return Response(text, media_type=content_type, headers=NO_STORE)


def _service_of(request: Request) -> Service:
    """The service that is asked for, where it is to be asked.

    Raises:
        HTTPException: a port of its own answers such questions.
    """
    service: Service = request.app.state.service
    if service.has_admin and not getattr(request.app.state, "apart", False):
        raise HTTPException(404)
    return service
