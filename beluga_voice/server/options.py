"""The `[server]` table: who may call, how they prove it, and how much an unproven caller may cost.

>>> ServerOptions(origins=("https://app.example",)).hello_timeout_ms
5000.0
>>> ServerOptions(origins=("app.example",))
Traceback (most recent call last):
    ...
beluga_voice.errors.OptionError: origins has 'app.example'; expected "*" or a scheme, a host and perhaps a port, \
like "https://app.example"
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import attrs

from ..errors import OptionError
from ..options import option
from .origins import parsed

__all__ = ["ServerOptions"]

SHORTEST_KEY, SHORTEST_SECRET = 16, 32


@attrs.frozen
class ServerOptions:
    """Who may call and within what limits: the `[server]` table.

    `authenticate(request)`, of your own, stands for the API keys: given the Starlette request of `POST /v1/sessions` it
    returns (or awaits) None or False for no, a user id, a mapping with `user_id`, `tenant` and `metadata`, or True to take the
    user id and the tenant from the request's body.

    Raises:
        OptionError: an origin that is none, or a key or secret too short to be one.
    """

    origins: tuple[str, ...] = option(
        (), "browser pages of these origins may call beside this server's own; \"*\" for any, like \"https://app.example\""
    )
    api_keys: tuple[str, ...] = option(
        (), "keys for POST /v1/sessions, at least 16 characters each; with any, every caller needs a ticket", secret=True
    )
    authenticate: Any = option(None, "your own check of POST /v1/sessions, as module:attribute, in place of keys")
    allow_anonymous: bool = option(False, "a public address without authentication is served: anybody may call")
    ticket_ttl_ms: float = option(60_000.0, "how long a ticket may wait to be used", at_least=1_000, at_most=60_000)
    ticket_secret: str = option(
        "", "signs tickets, at least 32 characters, the same on every machine; empty: one made at each start", secret=True
    )
    audience: str = option("beluga-voice", "whom tickets are for; services that share a secret have different names")
    public_url: str = option("", "the address callers reach, like \"wss://voice.example/v1/voice\"; empty: as the request came")
    hello_timeout_ms: float = option(5_000.0, "a connection without a request, or a hello, for longer is closed", at_least=10)
    max_handshakes: int = option(100, "connections that have not said hello yet; one more is refused", at_least=1)
    max_handshakes_per_ip: int = option(50, "the same for one address", at_least=1)
    trusted_proxies: tuple[str, ...] = option(("127.0.0.1",), "proxies believed when they tell a caller's address")
    page: bool = option(True, "the web page at /")
    health: bool = option(
        True, "/healthz, /readyz, /providers, /metrics beside the calls; --admin moves them to a port of their own"
    )

    def __attrs_post_init__(self) -> None:
        for name in ("origins", "api_keys", "trusted_proxies"):
            if isinstance(getattr(self, name), str) or not all(isinstance(one, str) for one in getattr(self, name)):
                raise OptionError(f"{name} holds what is not text; expected a list of texts")
        for origin in self.origins:
            if origin != "*" and parsed(origin) is None:
                raise OptionError(
                    f'origins has {origin!r}; expected "*" or a scheme, a host and perhaps a port, like "https://app.example"'
                )
        if self.public_url and urlsplit(self.public_url).scheme not in ("ws", "wss"):
            raise OptionError(f'public_url is {self.public_url!r}; expected an address like "wss://voice.example/v1/voice"')
        if any(len(key) < SHORTEST_KEY for key in self.api_keys):
            raise OptionError(f"api_keys has one shorter than {SHORTEST_KEY} characters; make it with: openssl rand -hex 32")
        if self.ticket_secret and len(self.ticket_secret) < SHORTEST_SECRET:
            raise OptionError(f"ticket_secret is shorter than {SHORTEST_SECRET} characters; make it with: openssl rand -hex 32")
        if self.authenticate is not None and not callable(self.authenticate):
            raise OptionError(f"authenticate is {type(self.authenticate).__name__}; expected a function of one request")

    @property
    def needs_ticket(self) -> bool:
        """Whether a caller must bring a ticket: where there is a way to earn one."""
        return bool(self.api_keys) or self.authenticate is not None
