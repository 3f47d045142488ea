"""`beluga-voice serve`: a server that people can call, from a configuration or from a program's own manager."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import Any

import click

from .. import config, imports
from .._contracts import sort_of
from ..chain import Chain
from ..errors import ConfigError
from ._files import file

__all__ = ["serve"]

TARGETS = "a SessionManager, a Chain, or an application made by server.app"


@click.command()
@click.argument("target", metavar="[MODULE:ATTRIBUTE]", required=False)
@click.option("--config", "config_path", type=file, help="Providers, limits and [server], as TOML.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65_535), default=8080, show_default=True, help="The port; 0 is any free one.")
@click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="How many processes share the port.")
@click.option("--admin", type=click.IntRange(1, 65_535), help="A port for health and metrics alone; workers take the next.")
def serve(
    target: str | None, config_path: str | None, host: str, port: int, workers: int, admin: int | None
) -> int:
    """Answer calls over WebSockets, with a web page to call from.

    MODULE:ATTRIBUTE is a SessionManager, a Chain, or an application made by server.app; without it, the configuration says
    what answers, and without that the embedded providers do.

    The first SIGTERM or Ctrl-C lets calls end (drain_timeout_ms), the second stops at once.
    """
    try:
        from ..server import logs, serving
        from ..server import workers as supervision
    except ImportError as error:
        raise ConfigError(
            f"the server needs {error.name!r}, which is not installed; install it: pip install 'beluga-voice[server]'"
        ) from error
    if admin is not None and port and port <= admin + workers - 1 and admin <= port:
        raise ConfigError(f"--port {port} is taken by --admin {admin} with --workers {workers}; choose another --admin")
    logs.set_up_logs()
    place = supervision.place()
    if workers > 1 and place is None:
        with serving.bound(host, port) as sock:
            return asyncio.run(supervision.keep_workers([sys.executable, "-m", "beluga_voice", *sys.argv[1:]], sock, workers))
    if place is not None:
        supervision.orphaned(sys.stdin)
    app = _application(target, config_path)
    found = _services(app)
    for service in found:
        serving.check_address(host, service.options)
        _check_workers(service.manager.store, workers, target)
        if place is not None:
            service.share_secret(place.secret)
    sock = socket.socket(fileno=place.fd) if place else serving.bound(host, port)
    aside = serving.bound(host, admin + (place.index if place else 0)) if admin else None

    def ready() -> None:
        address = serving.address(host, sock)
        process = f", worker {place.index + 1} of {place.workers}" if place else ""
        caps = " + ".join(str(service.manager.limits.max_sessions) for service in found)
        click.echo(f"beluga-voice: serving on {address}{process}: at most {caps} sessions in this process", err=True)
        if place is not None:
            place.tell_ready()

    return serving.serve(app, sock, admin=aside, ready=ready)


def _application(target: str | None, config_path: str | None) -> Any:
    """The application that the command names.

    Raises:
        ConfigError: the target is nothing that can be served, or the configuration cannot be used.
    """
    from ..manager import SessionManager
    from ..server import app

    found = imports.load(target, [os.getcwd()]) if target else None
    if target and not isinstance(found, (SessionManager, Chain)):
        if config_path:
            raise ConfigError(f"{target} is an application with options of its own; leave --config out")
        _services(found, target)
        return found
    if found is not None and config_path:
        unused = config.tables(config_path, but="server")
        if unused:
            left = ", ".join(unused)
            click.echo(f"beluga-voice: warning: {config_path}: {target} has settings of its own; not used: {left}", err=True)
    if isinstance(found, SessionManager):
        return app(found, config.server_options(config_path) if config_path else None)
    if isinstance(found, Chain):
        return app(SessionManager(found), config.server_options(config_path) if config_path else None)
    setup = config.load(config_path) if config_path else config.default()
    manager = SessionManager(setup.chain, setup.session, setup.manager, store=setup.store)
    return app(manager, setup.server)


def _services(app: Any, target: str = "") -> Any:
    from ..server.asgi import services

    try:
        return services(app)
    except TypeError:
        raise ConfigError(f"{target} is {sort_of(app)}; expected {TARGETS}") from None


def _check_workers(store: Any, workers: int, target: str | None) -> None:
    """Refuse workers that cannot find one another's calls.

    Raises:
        ConfigError: the store is this process's own.
    """
    if workers > 1 and not (store is not None and store.capabilities.shared):
        name = f"the store {store.provider!r} is" if store is not None and store.provider else "without a store calls are"
        raise ConfigError(
            f"--workers {workers}: {name} known to one process alone, and a caller who comes back may reach another; "
            + (
                f'{target} has settings of its own, so give its SessionManager a shared one: store=store.new("redis", url=...)'
                if target
                else 'put a shared one into the configuration: [store] provider = "redis"'
            )
        )
