"""Which browser pages may call: CORS does not guard WebSockets, so the server looks at `Origin` itself.

>>> allowed("https://voice.example", "voice.example")
True
>>> allowed("https://evil.example", "voice.example"), allowed("null", "voice.example")
(False, False)
>>> allowed("https://app.example", "voice.example", ["https://app.example"])
True
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

__all__ = ["allowed", "is_loopback", "parsed"]

DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_HOST = re.compile(r"(?P<name>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>\d{1,5}))?\Z")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*\Z")

Origin = tuple[str, str, int | None]


def parsed(origin: str) -> Origin | None:
    """An origin as (scheme, host, port), the port None where it is the scheme's own; None where `origin` is none."""
    scheme, separator, host = origin.lower().partition("://")
    if not separator or not _SCHEME.match(scheme):
        return None
    place = _place(host, scheme)
    return None if place is None else (scheme, *place)


def allowed(
    origin: str | None, host: str, others: Iterable[str] = (), *, secure: bool = False, local_only: bool = False
) -> bool:
    """Whether a page of `origin` may call the server that it reached as `host`.

    Args:
        origin: the header as sent; None where there is none, as from a program.
        host: the `Host` header.
        others: origins allowed beside the server's own; "*" for any but "null".
        secure: the request came encrypted; a page that did not is then another origin.
        local_only: the server is for this machine alone: under another name it is not itself (DNS rebinding).
    """
    others = tuple(others)
    listed = {parsed(one) for one in others if one != "*"}
    place = _place(host.lower(), "")
    if local_only and (place is None or not is_loopback(place[0])) and place not in {one[1:] for one in listed if one}:
        return False
    if origin is None:
        return True
    page = parsed(origin)
    if page is None:
        return False
    if "*" in others or page in listed:
        return True
    # A proxy that ends TLS speaks plain HTTP to this server, so an encrypted page may reach it unencrypted.
    return page[0] in (("https",) if secure else ("http", "https")) and page[1:] == _place(host.lower(), page[0])


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, is this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _place(host: str, scheme: str) -> tuple[str, int | None] | None:
    found = _HOST.match(host)
    if found is None:
        return None
    port = int(found["port"]) if found["port"] else None
    if port is not None and not 0 < port < 65_536:
        return None
    return found["name"], None if port == DEFAULT_PORTS.get(scheme) else port
