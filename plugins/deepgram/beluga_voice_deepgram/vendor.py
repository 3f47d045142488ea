"""Deepgram's SDK: its client, made off the loop, the parameters of every call, and the one table of its errors."""

from __future__ import annotations

import functools
import warnings
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
    """The SDK's client, and the HTTP client it was given: it cannot be closed by itself."""

    sdk: Any
    http: Any


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
        from deepgram import AsyncDeepgramClient
        from deepgram.environment import DeepgramClientEnvironment
        from deepgram.speak.v1.types import SpeakV1Text

        limits = httpx.Limits(
            max_connections=MOST_CONNECTIONS, max_keepalive_connections=100, keepalive_expiry=KEEP_ALIVE_S
        )
        http = httpx.AsyncClient(transport=cancellable_transport(httpx, limits=limits), event_hooks=capped(httpx))
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
        _ = sdk.listen.v1.media, sdk.listen.v2, sdk.speak.v1.audio, SpeakV1Text
    return Client(sdk, http)


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

    return (
        (EventError, lambda error: Told(str(error), code=error.code)),
        (ApiError, _refused),
        *http_failures(httpx),
        *websocket_failures(),
    )


def _refused(error: Any) -> Told:
    """An HTTP status. Of a refused handshake the SDK tells nothing else; the answer's headers are on what it caught."""
    handshake = getattr(error.__context__, "headers", None)
    items = handshake.raw_items() if handshake is not None else (error.headers or {}).items()  # some come twice
    headers = {str(name).lower(): str(value) for name, value in items}
    body = error.body if isinstance(error.body, dict) else {"err_msg": str(error.body or "")}
    message = headers.get("dg-error") or body.get("err_msg") or body.get("message") or body.get("details") or ""
    return Told(str(message).rstrip(". "), error.status_code, str(body.get("err_code") or ""), retry_after_ms(headers))


DEEPGRAM = Vendor(
    name="deepgram",
    env_var="DEEPGRAM_API_KEY",
    base_url="https://api.deepgram.com",
    make=_make,
    close=lambda client: client.http.aclose(),
    failures=_failures,
    codes=CODES,
)
