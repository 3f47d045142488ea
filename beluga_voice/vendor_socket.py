"""WebSockets to vendors: certificates read once for the whole process, and a key that goes nowhere but where it was sent.

A TLS context for each connection, as SDKs make it, holds the event loop for 20 ms and keeps 0.8 MB: with two sockets a session,
1.6 GB for a thousand sessions.

>>> from beluga_voice.clock import run_simulated
>>> from beluga_voice.testing.loopback import LoopbackServer
>>> async def main():
...     async with LoopbackServer() as server:
...         socket = await open_socket(server.url.replace("http", "ws"), {"authorization": "Token secret-key"})
...         await socket.close()
...         return server.requests[0].headers["authorization"]
>>> run_simulated(main())
'Token secret-key'
"""

from __future__ import annotations

import functools
import os
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

__all__ = ["open_socket", "proxy_for", "tls_context"]

OPEN_TIMEOUT_MS = 3_000.0
CLOSE_TIMEOUT_MS = 1_000.0
LARGEST_MESSAGE_BYTES = 16 * 2**20


def tls_context() -> ssl.SSLContext:
    """The certificates of the system, or those that SSL_CERT_FILE and SSL_CERT_DIR name, as one context for all sockets.

    Making it takes 20 ms, so the first call is best made in a thread; `Remote` does, with the vendor's client. On a system
    without certificates those of `certifi` are used, where it is installed.
    """
    return _tls_context(os.environ.get("SSL_CERT_FILE", ""), os.environ.get("SSL_CERT_DIR", ""))


@functools.lru_cache(maxsize=4)
def _tls_context(file: str, folder: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not (file or folder or context.cert_store_stats()["x509_ca"]):
        with suppress(ImportError):
            import certifi

            context.load_verify_locations(certifi.where())
    return context


def proxy_for(url: str) -> str | None:
    """The proxy that HTTPS_PROXY or HTTP_PROXY, or else ALL_PROXY, names for an address; None where NO_PROXY excludes it.

    A WebSocket goes the way of the requests: wss:// counts as https://, and ws:// as http://.
    """
    parts, proxies = urlsplit(url.replace("ws", "http", 1) if url.startswith("ws") else url), getproxies()
    proxy = None if proxy_bypass(parts.netloc) else proxies.get(parts.scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


async def open_socket(
    url: str,
    headers: Mapping[str, str] | None = None,
    *,
    timeout_ms: float = OPEN_TIMEOUT_MS,
    max_bytes: int = LARGEST_MESSAGE_BYTES,
) -> ClientConnection:
    """Open a WebSocket, by way of the proxy that the environment names for it.

    Args:
        url: a ws:// or wss:// address.
        headers: of the handshake: the key.
        timeout_ms: how long the whole handshake may take.
        max_bytes: of the largest message that is taken.

    Raises:
        TimeoutError: the handshake is not answered in time.
        websockets.exceptions.ProxyError: the proxy refuses. One that answers nothing keeps its connection: `websockets` does
            not close it.
        OSError: nobody is there, or (`ssl.SSLError`) the certificate is not trusted.
        websockets.exceptions.InvalidStatus: the server refuses, or sends elsewhere: no redirect is followed.
    """
    connecting = _connect()(
        url,
        additional_headers=dict(headers or {}),
        proxy=proxy_for(url),
        ssl=tls_context() if url.startswith("wss:") else None,
        compression=None,
        open_timeout=timeout_ms / 1000.0,
        close_timeout=CLOSE_TIMEOUT_MS / 1000.0,
        max_size=max_bytes,
    )
    try:
        socket: ClientConnection = await connecting
    except TimeoutError:
        raise TimeoutError(f"the handshake was not answered within {timeout_ms:g} ms") from None
    return socket


@functools.cache
def _connect() -> Any:
    from websockets.asyncio.client import ClientConnection, connect

    class Connection(ClientConnection):
        def connection_lost(self, exc: Exception | None) -> None:
            if hasattr(self, "recv_messages"):  # not where a proxy's tunnel broke before it was made: the loop would print that
                super().connection_lost(exc)

    class Connect(connect):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, create_connection=Connection, **options)

        def process_redirect(self, exc: Exception) -> Exception | str:
            return exc

    return Connect
