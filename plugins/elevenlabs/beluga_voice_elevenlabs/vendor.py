"""ElevenLabs as a vendor: its key and address, the clients a process shares, and the one table of its errors.

>>> Access("secret-key", VENDOR.base_url).ws_url
'wss://api.elevenlabs.io'
"""

from __future__ import annotations

from functools import cache
from typing import Any

import attrs

from beluga_voice.cancelling import cancellable_transport
from beluga_voice.errors import (
    AuthError,
    ConnectFailedError,
    InvalidRequestError,
    OverloadedError,
    ProviderError,
    QuotaError,
    RateLimitError,
)
from beluga_voice.failures import Row, Told, capped, http_failures, retry_after_ms, websocket_failures
from beluga_voice.remote import Access, Vendor

__all__ = ["VENDOR", "Access", "Clients", "Refused"]

REQUEST_S = 30  # longest wait for the next bytes of an answer
IDLE_CONNECTION_S = 120.0  # httpx drops an idle connection after 5 s: most turns would begin with a new handshake


class Refused(Exception):
    """What the service says in a message of a socket, or by closing it.

    Args:
        message: its words.
        code: its own code, like "quota_exceeded".
        status: a WebSocket close code.
    """

    def __init__(self, message: str, code: str = "", status: int | None = None) -> None:
        super().__init__(message)
        self.told = Told(message, status, code)


@attrs.frozen
class Clients:
    """What all engines of one key and address share: the SDK's client, and the HTTP client inside it."""

    sdk: Any
    http: Any


def _make(access: Access) -> Clients:
    import httpx
    import websockets.asyncio.client  # noqa: F401 - so that the first socket does not import it in the loop
    from elevenlabs import VoiceSettings  # noqa: F401 - the SDK imports its parts when they are first named
    from elevenlabs.client import AsyncElevenLabs

    limits = httpx.Limits(keepalive_expiry=IDLE_CONNECTION_S)
    # No redirects: httpx would repeat the key to any host it is sent to.
    http = httpx.AsyncClient(
        transport=cancellable_transport(httpx, url=access.base_url, limits=limits),
        timeout=REQUEST_S,
        event_hooks=capped(httpx),
        follow_redirects=False,
    )
    sdk = AsyncElevenLabs(api_key=access.api_key, base_url=access.base_url, timeout=REQUEST_S, httpx_client=http)
    for part in (sdk.text_to_speech, sdk.speech_to_text):  # made when they are first named
        assert part is not None
    return Clients(sdk, http)


async def _close(clients: Clients) -> None:
    await clients.http.aclose()


@cache
def _failures() -> tuple[Row, ...]:
    import httpx
    from elevenlabs.core.api_error import ApiError

    def answered(error: Any) -> Told:
        detail = error.body.get("detail") if isinstance(error.body, dict) else getattr(error.body, "detail", error.body)
        message, code = str(detail or ""), ""
        if isinstance(detail, dict):
            message, code = str(detail.get("message", "")), str(detail.get("status") or detail.get("code") or "")
        return Told(message, error.status_code, code, retry_after_ms(error.headers))

    return (
        (Refused, lambda error: error.told),
        (ApiError, answered),
        *http_failures(httpx),
        *websocket_failures(),
    )


CODES: dict[str, type[ProviderError]] = {
    # HTTP, in `detail.status`; what is spent is told with status 401
    "invalid_api_key": AuthError,
    "missing_permissions": AuthError,
    "quota_exceeded": QuotaError,
    "system_busy": OverloadedError,
    "too_many_concurrent_requests": RateLimitError,
    # the voices' socket, in `error`
    "input_timeout_exceeded": ConnectFailedError,
    "max_active_conversations": OverloadedError,
    # Scribe's socket, in `message_type`
    "auth_error": AuthError,
    "unaccepted_terms": AuthError,
    "rate_limited": RateLimitError,
    "commit_throttled": RateLimitError,
    "input_error": InvalidRequestError,
    "invalid_request": InvalidRequestError,
    "chunk_size_exceeded": InvalidRequestError,
    "queue_overflow": OverloadedError,
    "resource_exhausted": OverloadedError,
    "transcriber_error": OverloadedError,
    "error": OverloadedError,
    "insufficient_audio_activity": ConnectFailedError,
    "session_time_limit_exceeded": ConnectFailedError,
}

VENDOR = Vendor(
    name="elevenlabs",
    env_var="ELEVENLABS_API_KEY",
    base_url="https://api.elevenlabs.io",
    make=_make,
    close=_close,
    failures=_failures,
    codes=CODES,
)
