"""Getting a socket on which the server said welcome: where to dial, with which token, when to try again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import attrs

from .. import wire
from .._streams import Tasks
from ..clock import Clock
from ..errors import AuthError, ConfigError, ConnectFailedError, InvalidRequestError, SessionLimitError
from ._socket import NO_CLOSE_FRAME, Closed, Dial, Socket, checked_url
from ._welcome import Welcome, retry_after_ms

__all__ = ["FULL", "LOST_CODES", "NOT_RESUMABLE", "Attached", "Dialer", "Token"]

# Beside those the protocol names (1001, 1006, 1012), what servers and proxies say when they break: none, internal, bad gateway.
LOST_CODES = (1001, 1005, 1006, 1011, 1012, 1014)
GOING_AWAY, FULL, PROTOCOL, UNAUTHORISED, NOT_RESUMABLE = 1001, 1013, 4400, 4401, 4410
FIRST_DELAY_MS, LONGEST_DELAY_MS = 250.0, 10_000.0
EARLY_TRIES, EARLY_DELAY_MS = 8, 2_000.0  # somebody waits: most breaks are over within seconds
ATTEMPT_MS = 5_000.0
MOST_TOKENS = 3

Token = str | Callable[[], Awaitable[str]] | None


@attrs.frozen(eq=False)
class Attached:
    """A socket on which the server said welcome."""

    socket: Socket
    welcome: Welcome


class Dialer:
    """Dials one session's server, first and again.

    Args:
        url: where.
        hello: what to say first, without token and resume.
        token: the session ticket, or what gives a fresh one for each try.
        dial: opens a socket.
    """

    def __init__(
        self, url: str, hello: Mapping[str, Any], *, token: Token, dial: Dial, clock: Clock, rng: random.Random, tasks: Tasks
    ) -> None:
        self.urls = [checked_url(url)]
        self.tokens: list[str] = []
        self._hello, self._token, self._dial = dict(hello), token, dial
        self._clock, self._rng, self._tasks = clock, rng, tasks
        self._sockets: set[Socket] = set()

    async def first(self, timeout_ms: float) -> Attached:
        """Dial until the server says welcome to a new session.

        Raises:
            ConnectFailedError: nobody answered, or nobody said welcome within `timeout_ms`.
            AuthError: the token was refused.
            SessionLimitError: the server was full until `timeout_ms` were over.
            InvalidRequestError: the server refused the hello.
        """
        url, tries = self.urls[0], 0
        until_ms = self._clock.now_ms() + timeout_ms
        while True:
            try:
                outcome = await self._within(until_ms - self._clock.now_ms(), url, None)
            except ConnectFailedError as error:
                if not tries:
                    raise  # nobody was ever there: more likely a wrong address than a restart
                outcome = Closed(NO_CLOSE_FRAME, str(error))
            if isinstance(outcome, Attached):
                return outcome
            delay_ms = self.delay_ms(tries, outcome)
            tries += 1
            if outcome.code not in (*LOST_CODES, FULL) or self._clock.now_ms() + delay_ms >= until_ms:
                raise _refused(url, outcome)
            await self._clock.sleep_ms(delay_ms)

    async def again(self, tries: int, within_ms: float, resume: Callable[[], dict[str, Any]]) -> Attached | Closed:
        """Try once to take the session up again, as `resume` says it then; the addresses known take turns by `tries`."""
        url = self.urls[tries % len(self.urls)]
        try:
            return await self._within(within_ms, url, resume)
        except ConnectFailedError as error:
            return Closed(NO_CLOSE_FRAME, str(error))

    def delay_ms(self, tries: int, why: Closed) -> float:
        """How long to wait after that many tries: full jitter, so that the clients of a dead server do not return as one."""
        if why.code == FULL and (wish_ms := retry_after_ms(why.reason)) is not None:
            return wish_ms
        longest_ms = EARLY_DELAY_MS if tries < EARLY_TRIES else LONGEST_DELAY_MS
        return self._rng.uniform(0.0, min(longest_ms, FIRST_DELAY_MS * 2 ** min(tries, 10)))

    def learn_token(self, token: str) -> None:
        """Try this token first from now on.

        Those before are kept behind it: they stay good until the server has heard from us, and with another process until
        its store knows of the new one.
        """
        self.tokens = list(dict.fromkeys([token, *self.tokens]))[:MOST_TOKENS]

    def learn_url(self, url: str) -> None:
        """Dial there first from now on, and in turn where we dialled at first.

        Raises:
            ConfigError: it is no address, or not encrypted where the first one is.
        """
        own = self.urls[-1]
        if urlsplit(checked_url(url)).scheme == "ws" and urlsplit(own).scheme == "wss":
            raise ConfigError(f"{url!r} is not encrypted, and {own!r} is")
        self.urls = [url, own]

    def retire(self, socket: Socket, reason: str) -> None:
        """Close a socket behind our back. Never with 1000: that would hang up."""
        self._tasks.spawn(self._close(socket, reason), "client-close")

    def abort(self) -> None:
        """Drop every socket."""
        for socket in self._sockets:
            socket.abort()
        self._sockets.clear()

    async def _close(self, socket: Socket, reason: str) -> None:
        await socket.close(GOING_AWAY, wire.shorten(reason))
        self._sockets.discard(socket)

    async def _within(self, within_ms: float, url: str, resume: Callable[[], dict[str, Any]] | None) -> Attached | Closed:
        try:
            async with asyncio.timeout(max(0.0, min(within_ms, ATTEMPT_MS)) / 1000.0):
                return await self._attach(url, resume)
        except TimeoutError:
            return Closed(NO_CLOSE_FRAME, f"{url} said no welcome in time")

    async def _attach(self, url: str, resume: Callable[[], dict[str, Any]] | None) -> Attached | Closed:
        hello = {"type": "hello", **self._hello}
        if resume is None and self._token is not None:
            hello["token"] = self._token if isinstance(self._token, str) else await self._token()
        socket = await self._dial(url)
        self._sockets.add(socket)
        attached = None
        try:
            if resume is not None:
                hello["resume"] = resume()
            await socket.send(wire.text(hello))
            while True:
                got = await socket.receive()
                if isinstance(got, Closed):
                    return got
                try:
                    message = wire.parse_server(got)
                    if isinstance(message, dict) and message["type"] == "welcome":
                        attached = Attached(socket, Welcome.read(message))
                        return attached
                except (wire.WireError, ValueError) as error:
                    return Closed(PROTOCOL, f"the server's welcome cannot be used: {error}")
        finally:
            if attached is None:
                self.retire(socket, "no welcome")


def _refused(url: str, closed: Closed) -> Exception:
    """Why there is no session, as an error."""
    told = f"{closed.reason or 'no reason given'} (close code {closed.code})"
    if closed.code == UNAUTHORISED:
        return AuthError(f"{url} refused the token: {told}; get a new ticket, each is good for one call", kind="transport")
    if closed.code == FULL:
        return SessionLimitError(
            f"{url} is full: {told}; try again later", limit="max_sessions", retry_after_ms=retry_after_ms(closed.reason)
        )
    if closed.code in LOST_CODES:
        return ConnectFailedError(f"{url} said no welcome: {told}; look at the server's log", kind="transport")
    return InvalidRequestError(f"{url} refused the call: {told}; expected a welcome", kind="transport")
