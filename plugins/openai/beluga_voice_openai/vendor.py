"""OpenAI and Groq as vendors: the SDK's client, and the one table of its errors.

The SDK is imported where it is used: that takes half a second.
"""

from __future__ import annotations

import functools
import json
from typing import Any
from urllib.parse import urlsplit

import attrs

from beluga_voice.cancelling import cancellable_transport
from beluga_voice.errors import (
    AuthError,
    ConnectFailedError,
    InvalidRequestError,
    OverloadedError,
    ProtocolError,
    ProviderTimeoutError,
    QuotaError,
    RateLimitError,
)
from beluga_voice.failures import Row, Told, capped, http_failures, retry_after_ms, websocket_failures
from beluga_voice.remote import Access, Vendor
from beluga_voice.vendor_socket import proxy_for, tls_context

__all__ = ["GROQ", "OPENAI", "EventError", "is_openai", "socket_options"]

CONNECT_TIMEOUT_S = 5.0
SILENCE_TIMEOUT_S = 30.0  # the longest wait for the next bytes of an answer
KEEP_ALIVE_S = 60.0  # longer than most pauses between two turns: the next call finds its connection open
MOST_CONNECTIONS = 1_000
LARGEST_MESSAGE_BYTES = 16 * 2**20


class EventError(Exception):
    """An error that came as an event: `error` is the event's own, with `message`, `code` and `type` where it has them."""

    def __init__(self, error: Any) -> None:
        super().__init__(str(getattr(error, "message", None) or ""))
        self.code = _code(getattr(error, "code", None), getattr(error, "type", None))


def is_openai(access: Access) -> bool:
    """Whether this is OpenAI's own service, in any of its regions, and not a server that speaks as it does."""
    host = urlsplit(access.base_url).hostname or ""
    return host == "api.openai.com" or host.endswith(".api.openai.com")


def socket_options(access: Access) -> dict[str, Any]:
    """How the SDK is to open its sockets: by way of the requests' proxy, and all with one TLS context."""
    options = {
        "proxy": proxy_for(access.base_url),
        "max_size": LARGEST_MESSAGE_BYTES,
        "compression": None,
        "open_timeout": CONNECT_TIMEOUT_S,
        "close_timeout": 1.0,
    }
    return {**options, "ssl": tls_context()} if access.base_url.startswith("https:") else options


def _make(access: Access) -> Any:
    import httpx2
    import openai

    _failures()  # imports more, and the first failure comes in the loop
    limits = httpx2.Limits(max_connections=MOST_CONNECTIONS, max_keepalive_connections=100, keepalive_expiry=KEEP_ALIVE_S)
    http_client = openai.DefaultAsyncHttpxClient(
        transport=cancellable_transport(httpx2, url=access.base_url, limits=limits),
        event_hooks=capped(httpx2),
        timeout=httpx2.Timeout(SILENCE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
    )
    client = openai.AsyncOpenAI(api_key=access.api_key, base_url=access.base_url, max_retries=0, http_client=http_client)
    if not is_openai(access):  # the SDK reads these from the environment; they are nobody else's
        client.organization = client.project = None
    return client


CODES = {
    "insufficient_quota": QuotaError,
    "billing_hard_limit_reached": QuotaError,
    "invalid_api_key": AuthError,
    "authentication_error": AuthError,
    "rate_limit_exceeded": RateLimitError,
    "context_length_exceeded": InvalidRequestError,
    "invalid_request_error": InvalidRequestError,
    "server_error": OverloadedError,
    "overloaded_error": OverloadedError,
    "unreachable": ConnectFailedError,
    "session_expired": ConnectFailedError,  # a socket lives for an hour or so: the next one does it
}


@functools.cache
def _failures() -> tuple[Row, ...]:
    import httpx2
    import openai
    from websockets.exceptions import InvalidStatus

    return (
        (EventError, lambda error: Told(str(error), code=error.code)),
        (openai.APITimeoutError, ProviderTimeoutError),
        (openai.APIResponseValidationError, ProtocolError),
        (openai.APIConnectionError, _unreachable),
        (openai.APIStatusError, _refused),
        (openai.APIError, lambda error: Told(error.message, code=_code(error.code, error.type))),
        (openai.WebSocketConnectionClosedError, ConnectFailedError),
        (InvalidStatus, _handshake_refused),
        *http_failures(httpx2),
        *websocket_failures(),
    )


def _unreachable(error: Any) -> Told:
    """The SDK says no more than "Connection error."; what it caught says which."""
    why = f" ({type(error.__cause__).__name__}: {error.__cause__})" if error.__cause__ is not None else ""
    return Told(f"{str(error).rstrip('.')}{why}", code="unreachable")


def _refused(error: Any) -> Told:
    said = error.body.get("message") if isinstance(error.body, dict) else error.body
    return Told(str(said or error.message), error.status_code, error.code or "", retry_after_ms(error.response.headers))


def _handshake_refused(error: Any) -> Told:
    body = bytes(error.response.body or b"").decode("utf-8", "replace")
    code, message = "", body
    try:
        said = json.loads(body)["error"]
        code, message = str(said.get("code") or ""), str(said.get("message") or body)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return Told(message, error.response.status_code, code, retry_after_ms(error.response.headers))


def _code(code: Any, type_: Any) -> str:
    """The code where it says something, else the type."""
    return str(code) if code in CODES or not type_ else str(type_)


OPENAI = Vendor(
    name="openai",
    env_var="OPENAI_API_KEY",
    base_url="https://api.openai.com/v1",
    make=_make,
    close=lambda client: client.close(),
    failures=_failures,
    codes=CODES,
)
GROQ = attrs.evolve(OPENAI, name="groq", env_var="GROQ_API_KEY", base_url="https://api.groq.com/openai/v1")
