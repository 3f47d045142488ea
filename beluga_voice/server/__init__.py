"""The server: calls over WebSockets, as an application for uvicorn or to mount in one of your own.

>>> from starlette.applications import Starlette
>>> from starlette.routing import Mount
>>> from beluga_voice import Chain, SessionManager, tts, turn
>>> from beluga_voice.testing import LoudVAD, ScriptedSTT
>>> async def reply(text, history):
...     return f"You said {text}."
>>> manager = SessionManager(Chain(LoudVAD(), turn.new("silence"), ScriptedSTT("hello"), reply, tts.new("tone")))
>>> voice = app(manager)                                # beluga-voice serve myapp:voice
>>> host = Starlette(routes=[Mount("/voice", voice)])   # or inside an application of your own
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .options import ServerOptions

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from ..manager import SessionManager

__all__ = ["ServerOptions", "app", "drain"]


def app(manager: SessionManager, options: ServerOptions | None = None) -> Starlette:
    """The ASGI application that answers calls with `manager`'s sessions; it enters and closes the manager itself.

    `GET /` is the web page, `/v1/voice` the WebSocket, `POST /v1/sessions` gives tickets; `/healthz`, `/readyz`, `/providers`
    and `/metrics` are for whoever runs it. Run it with `beluga-voice serve myapp:voice`, which sets what a server for live
    audio needs, or mount it: `host.mount("/voice", server.app(manager))`.

    Args:
        manager: not entered yet.
        options: the `[server]` table; left out: no authentication, pages of the same host only.

    Raises:
        ConfigError: Starlette is not installed.
    """
    try:
        from .asgi import new_app
    except ImportError as error:
        raise ConfigError(
            f"the server needs {error.name!r}, which is not installed; install it: pip install 'beluga-voice[server]'"
        ) from error
    return new_app(manager, options or ServerOptions())


async def drain(app: Any, timeout_ms: float | None = None) -> None:
    """Let the calls of `app` end, refusing new ones: call it before your server closes its sockets.

    Args:
        app: what `app()` made, or an application in which such are mounted.
        timeout_ms: after that, calls still going on are closed; the manager's `drain_timeout_ms` if left out.

    Raises:
        TypeError: there is no such application in it.
    """
    from .asgi import services

    for service in services(app):
        await service.drain(timeout_ms)
