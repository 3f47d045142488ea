"""Deepgram's SDK: its client, made off the loop, the parameters of every call, and the one table of its errors."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from beluga_voice.cancelling import cancellable_transport
from beluga_voice.errors import AuthError, InvalidRequestError, OverloadedError, QuotaError
from beluga_voice.failures import Row, Told, capped, http_failures, retry_after_ms, websocket_failures
from beluga_voice.options import option
from beluga_voice.remote import Access, Vendor

__all__ = ["DEEPGRAM", "Client", "EventError", "extra_option", "request_options"]

SILENCE_TIMEOUT_S = 30.0  # the longest wait for the next bytes of an HTTP answer
KEEP_ALIVE_S = 60.0  # longer than most pauses between two turns: the next call finds its connection open
MOST_CONNECTIONS = 1_000


@attrs.frozen
class Client:
    """What all engines of one key share.

    Attributes:
        sdk: the SDK's client.
        http: the HTTP client it was given: it cannot be closed by itself.
        sockets: the SDK's class for a WebSocket of each path.
        ws_url: the root of those paths.
        headers: of their handshakes: the key, and what the SDK's client tells of itself.
    """

    sdk: Any
    http: Any
    sockets: Mapping[str, Any]
    ws_url: str
    headers: Mapping[str, str] = attrs.field(repr=False)


class EventError(Exception):
    """An error that came as a message of an open socket: what it says, and Deepgram's code for it."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


def _make(access: Access) -> Client:
    with warnings.catch_warnings():  # the SDK imports websockets.legacy, which says that it is deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        import anyio
        import httpx
        import websockets.asyncio.client
        from deepgram import AsyncDeepgramClient
        from deepgram.environment import DeepgramClientEnvironment
        from deepgram.listen.v1.socket_client import AsyncV1SocketClient as Nova
        from deepgram.listen.v2.socket_client import AsyncV2SocketClient as Flux
        from deepgram.speak.v1.socket_client import AsyncV1SocketClient as Aura
        from deepgram.version import __version__

        limits = httpx.Limits(
            max_connections=MOST_CONNECTIONS, max_keepalive_connections=100, keepalive_expiry=KEEP_ALIVE_S
        )
        transport = cancellable_transport(httpx, url=access.base_url, limits=limits)
        http = httpx.AsyncClient(transport=transport, event_hooks=capped(httpx))
        sdk = AsyncDeepgramClient(
            api_key=access.api_key,
            environment=DeepgramClientEnvironment(
                base=access.base_url, production=access.ws_url, agent=access.ws_url, agent_rest=access.base_url
            ),
            httpx_client=http,
            timeout=SILENCE_TIMEOUT_S,  # without it the SDK takes all limits off a client it is given
            max_retries=0,
        )
        _failures()
        # Each is imported when it is first asked for, which would hold the loop for 200 ms and more; as for anyio, the first
        # HTTP call would import its inner half, for 25 ms.
        anyio.run(anyio.sleep, 0)
        _ = sdk.listen.v1.media, sdk.speak.v1.audio, websockets.asyncio.client
    headers = {
        "Authorization": f"Token {access.api_key}",
        "User-Agent": f"deepgram-sdk/{__version__}",
        "x-deepgram-session-id": sdk.session_id,
    }
    return Client(sdk, http, {"/v1/listen": Nova, "/v2/listen": Flux, "/v1/speak": Aura}, access.ws_url, headers)


# --- parameters ------------------------------------------------------------------------------------------------------


def extra_option() -> Any:
    """The field `extra` of an options class."""
    return option(attrs.Factory(dict), "other parameters of Deepgram's, by their names there: {mip_opt_out = true}")


def request_options(extra: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What the SDK takes beside its named parameters: those it lacks, and the user's own, which win."""
    return {"additional_query_parameters": {**more, **extra}, "max_retries": 0}


# --- errors ----------------------------------------------------------------------------------------------------------

CODES = {
    "INTERNAL_SERVER_ERROR": OverloadedError,
    "INVALID_AUTH": AuthError,
    "INSUFFICIENT_PERMISSIONS": AuthError,
    "ASR_PAYMENT_REQUIRED": QuotaError,
    "SchemaError": InvalidRequestError,
}


@functools.cache
def _failures() -> tuple[Row, ...]:
    import httpx
    from deepgram.core.api_error import ApiError
    from websockets.exceptions import InvalidStatus

    return (
        (EventError, lambda error: Told(str(error), code=error.code)),
        (ApiError, lambda error: _refused(error.status_code, (error.headers or {}).items(), error.body)),
        (InvalidStatus, _refused_handshake),
        *http_failures(httpx),
        *websocket_failures(),
    )


def _refused_handshake(error: Any) -> Told:
    response = error.response
    headers = [(name, _readable(value)) for name, value in response.headers.raw_items()]  # some names come twice
    body = bytes(response.body or b"")
    try:
        return _refused(response.status_code, headers, json.loads(body))
    except (ValueError, RecursionError):
        return _refused(response.status_code, headers, body.decode("utf-8", "replace"))


def _readable(value: str) -> str:
    """`websockets` gives bytes that are not ASCII as lone surrogates, which cannot be printed, or (17) as Latin-1."""
    return value.encode("latin-1", "surrogateescape").decode("utf-8", "replace")


def _refused(status: int, headers: Iterable[tuple[str, str]], body: Any) -> Told:
    """An HTTP status. The reason is in the header dg-error, or in a body of JSON, under one of three names."""
    named = {name.lower(): value for name, value in headers}
    told = body if isinstance(body, dict) else {"err_msg": str(body or "")}
    message = named.get("dg-error") or told.get("err_msg") or told.get("message") or told.get("details") or ""
    return Told(str(message).rstrip(". "), status, str(told.get("err_code") or ""), retry_after_ms(named))


DEEPGRAM = Vendor(
    name="deepgram",
    env_var="DEEPGRAM_API_KEY",
    base_url="https://api.deepgram.com",
    make=_make,
    close=lambda client: client.http.aclose(),
    failures=_failures,
    codes=CODES,
)
