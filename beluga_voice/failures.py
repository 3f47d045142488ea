"""What went wrong with a provider, in our words: a table for each SDK, and one for HTTP statuses and WebSocket close codes.

>>> failure(KeyError("text"), ((KeyError, ProtocolError),), provider="example", kind="stt")
ProtocolError("stt 'example': KeyError: 'text'; expected an answer as its documentation has it")
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from .errors import (
    AuthError,
    ConnectFailedError,
    InvalidRequestError,
    OverloadedError,
    ProtocolError,
    ProviderError,
    ProviderTimeoutError,
    QuotaError,
    RateLimitError,
)

__all__ = ["Row", "Told", "capped", "failure", "http_failures", "retry_after_ms", "websocket_failures"]

MAX_BODY_BYTES = 32 * 2**20  # ten minutes of speech at 24 kHz: no answer of one call is longer
LONGEST_MESSAGE = 300
SHORTEST_SECRET = 6  # a shorter text is no key ("none", for a server that wants none), and part of many words


@attrs.frozen
class Told:
    """What a vendor's exception says: its words, the HTTP status or WebSocket close code, the vendor's own code for it."""

    message: str = ""
    status: int | None = None
    code: str = ""
    retry_after_ms: float | None = None


Row = tuple[type[BaseException] | tuple[type[BaseException], ...], type[ProviderError] | Callable[[Any], Told]]

EXPECTED: dict[type[ProviderError], str] = {
    AuthError: "expected a valid key; check {env_var} or the option api_key",
    QuotaError: "expected credit or quota to be left; check the account",
    RateLimitError: "expected fewer calls at once; lower max_concurrent, or ask for a higher limit",
    InvalidRequestError: "expected a request it takes; check model, voice, language, base_url and the other options",
    ProviderTimeoutError: "expected an answer sooner; try again, or name a stand-by",
    ConnectFailedError: "expected {address} to be reached from here; check base_url and the network",
    OverloadedError: "expected it to take the call; try again, or name a stand-by",
    ProtocolError: "expected an answer as its documentation has it",
}
UNTRUSTED = re.compile(r"CERTIFICATE_VERIFY_FAILED\] certificate verify failed: (.+?)\.? \(_ssl")  # of whichever library
TRUSTED = (
    "expected one of this host name, in date, of an authority that is known here; check base_url, or name a file with the "
    "authority's certificate (PEM) in the environment variable SSL_CERT_FILE{instead}"
)
NO_TLS = "WRONG_VERSION_NUMBER"  # what OpenSSL says of plain text
LASTING = "expected the connection to last; try again, or name a stand-by"
BROKE = ("RemoteProtocolError", "ReadError", "WriteError", "ConnectionResetError", "BrokenPipeError")  # of whichever library
TOO_BIG = 1009
BY_STATUS: dict[int, type[ProviderError]] = {
    401: AuthError,
    402: QuotaError,
    403: AuthError,
    407: AuthError,
    408: ProviderTimeoutError,
    425: OverloadedError,
    429: RateLimitError,
    504: ProviderTimeoutError,
    # WebSocket close codes (RFC 6455, section 7.4.1)
    1000: ConnectFailedError,
    1001: ConnectFailedError,
    1005: ConnectFailedError,
    1006: ConnectFailedError,
    1008: InvalidRequestError,
    1009: InvalidRequestError,
    1011: OverloadedError,
    1012: OverloadedError,
    1013: OverloadedError,
    1014: OverloadedError,
}
# Close code 1008 says no more than that a rule was broken; its reason may say which.
BY_REASON: tuple[tuple[str, type[ProviderError]], ...] = (
    (r"api.?key|authenticat|authori[sz]|forbidden", AuthError),
    (r"quota|credit|payment", QuotaError),
    (r"rate.?limit|too.many|concurren", RateLimitError),
)


def failure(
    error: BaseException,
    rows: tuple[Row, ...],
    codes: Mapping[str, type[ProviderError]] | None = None,
    *,
    provider: str,
    kind: str,
    env_var: str = "its environment variable",
    secret: str = "",
    doing: str = "",
    address: str = "it",
) -> ProviderError:
    """The error to raise for one of a vendor's SDK or of the network.

    Args:
        error: what was caught; one of ours, or one caused by one of ours, is given back as it is.
        rows: the vendor's table, in order: the class (or classes) of an exception, and either the error that it is, or a
            function that gives what it tells. What no row has is told by kind: time-outs, the network, the rest.
        codes: the vendor's own codes that say more than the status does.
        provider: its name.
        kind: "stt", "tts", ...
        env_var: where its key may be set.
        secret: what must not be repeated in the message.
        doing: what was tried: "opening the stream".
        address: what could not be reached, if it could not: "https://api.example.com".
    """
    ours: BaseException | None = error
    while ours is not None and not isinstance(ours, ProviderError):
        ours = ours.__cause__
    if ours is not None:
        return ours
    tells = next((tells for classes, tells in (*rows, *ANY) if isinstance(error, classes)), ProtocolError)
    told = Told(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    if isinstance(tells, type):
        cls: type[ProviderError] = tells
    else:
        told = tells(error)
        cls = (codes or {}).get(told.code) or _by_reason(told) or _by_status(told.status)
    untrusted = UNTRUSTED.search(told.message) if told.status is None and cls is ConnectFailedError else None
    if untrusted is not None:
        told = Told(f"its certificate is not trusted: {untrusted[1]}")
    elif NO_TLS in told.message:
        told = Told("what is there speaks no TLS: http:// may be meant, not https://")
    status = f" {'HTTP' if told.status < 1000 else 'close code'} {told.status}:" if told.status else ""
    message = told.message.replace(secret, "***") if len(secret) >= SHORTEST_SECRET else told.message
    message = " ".join(message.split())[:LONGEST_MESSAGE] or told.code or "no more was said"
    where = f", {doing}" if doing else ""
    broke = cls is ConnectFailedError and (told.status is not None or _name(error) in BROKE or _name(error.__cause__) in BROKE)
    expected = TRUSTED if untrusted is not None else LASTING if broke else EXPECTED[cls]
    expected = expected.format(env_var=env_var, address=address, instead=_no_certificates() if untrusted is not None else "")
    text = f"{kind} {provider!r}{where}:{status} {message}; {expected}"
    if cls is RateLimitError:
        return RateLimitError(text, provider=provider, kind=kind, retry_after_ms=told.retry_after_ms)
    return cls(text, provider=provider, kind=kind)


def _name(error: BaseException | None) -> str:
    return type(error).__name__


def _no_certificates() -> str:
    """That SSL_CERT_FILE names nothing useful, of which OpenSSL takes no notice; empty if it does."""
    named = os.environ.get("SSL_CERT_FILE")
    if not named:
        return ""
    try:
        good = os.path.isfile(named) and b"-----BEGIN " in Path(named).read_bytes()
    except OSError:
        good = False
    return "" if good else f", which names {named!r} now, where there is none"


def _by_reason(told: Told) -> type[ProviderError] | None:
    if told.status != 1008:
        return None
    return next((cls for words, cls in BY_REASON if re.search(words, told.message, re.IGNORECASE)), None)


def _by_status(status: int | None) -> type[ProviderError]:
    if status is None:
        return ProtocolError
    if 400 <= status < 500:
        return BY_STATUS.get(status, InvalidRequestError)
    return BY_STATUS.get(status, OverloadedError if 500 <= status < 600 else ProtocolError)


ANY: tuple[Row, ...] = ((TimeoutError, ProviderTimeoutError), (OSError, ConnectFailedError), (Exception, ProtocolError))


def http_failures(httpx: Any) -> tuple[Row, ...]:
    """The rows for what `httpx`, or its twin `httpx2` (give the module), lets through the SDKs."""
    return (
        (httpx.TimeoutException, ProviderTimeoutError),
        (httpx.DecodingError, ProtocolError),
        (httpx.TransportError, ConnectFailedError),  # refused, reset, cut in mid-answer
        (httpx.InvalidURL, InvalidRequestError),
    )


def websocket_failures() -> tuple[Row, ...]:
    """The rows for what the `websockets` library lets through the SDKs."""
    from websockets import exceptions as ws

    def closed(error: Any) -> Told:
        told = error.rcvd
        if error.sent is not None and error.sent.code == TOO_BIG and not error.rcvd_then_sent:
            return Told("a message came that is larger than is taken")
        if told is None:
            return Told("the connection broke", 1006)
        return Told(told.reason or "the connection was closed", told.code)

    def refused(error: Any) -> Told:
        response = error.response
        body = bytes(response.body or b"").decode("utf-8", "replace")
        return Told(body, response.status_code, retry_after_ms=retry_after_ms(response.headers))

    def unanswered(error: Any) -> Told:
        gone = isinstance(error.__cause__, EOFError | OSError)
        return Told("the connection broke in the handshake", 1006) if gone else Told(f"{error}: {error.__cause__}")

    return (
        (ws.ConnectionClosed, closed),
        (ws.InvalidStatus, refused),
        (ws.InvalidMessage, unanswered),
        (ws.ProxyError, ConnectFailedError),
        (ws.InvalidProxy, lambda error: Told(f"the proxy that the environment names is none: {error.msg}")),  # no password
        (ws.InvalidHandshake, ProtocolError),
        (ws.WebSocketException, ProtocolError),
    )


def retry_after_ms(headers: Mapping[str, str] | None) -> float | None:
    """What a Retry-After header of seconds says; a date is not understood, and counts as none."""
    try:
        seconds = float((headers or {}).get("retry-after", ""))
    except (LookupError, ValueError):  # the first where `websockets` has it twice
        return None
    return seconds * 1000.0 if 0 <= seconds < 86_400 else None


def capped(httpx: Any, max_bytes: int = MAX_BODY_BYTES) -> dict[str, list[Any]]:
    """`event_hooks` for a client of `httpx` or `httpx2`: an answer of more than `max_bytes` ends in a `ProtocolError`.

    Closing an answer is seen to its end, also when its caller is cancelled meanwhile.
    """

    class Capped(httpx.AsyncByteStream):  # type: ignore[misc]
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            got = 0
            async for chunk in self._stream:
                got += len(chunk)
                if got > max_bytes:
                    raise ProtocolError(f"an answer went on after {max_bytes} bytes; expected it to end sooner")
                yield chunk

        async def aclose(self) -> None:
            closing = asyncio.ensure_future(self._stream.aclose())
            try:
                await asyncio.shield(closing)
            finally:
                await asyncio.wait([closing])  # cancelled in the midst of it, the pool would keep the connection for good

    async def cap(response: Any) -> None:
        response.stream = Capped(response.stream)

    return {"response": [cap]}
