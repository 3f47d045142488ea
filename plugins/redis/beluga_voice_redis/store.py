"""The Redis store."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
from collections import Counter
from collections.abc import Awaitable
from typing import Any, ClassVar, TypeVar, cast

import attrs
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from beluga_voice.clock import Clock
from beluga_voice.errors import InvalidRequestError, MissingKeyError, OptionError
from beluga_voice.options import build
from beluga_voice.store import Claim, SessionStore, StoreCapabilities

from . import scripts
from .failures import failure
from .settings import RedisOptions

__all__ = ["RedisStore"]

T = TypeVar("T")

SWEEP_MS = 60_000.0
RESTORED = 2  # the scripts' answer to an owner whose claim Redis had lost


@attrs.define
class _Held:
    """A claim of this store: until when Redis cannot have let it expire."""

    epoch: int
    until_ms: float


class RedisStore(SessionStore):
    """Sessions in Redis or Valkey, shared by all processes, with one owner at a time.

    Each call is one script that Redis runs in one step, over one connection of a bounded pool, without retries: it answers
    or raises within `timeout_ms`. After a call that raised, the next one connects anew where it must.

    `owner` is this object's name in Redis, for people who look there. `counters` counts `refused` (polite claims), `fenced`
    (calls of an owner that is one no more), `restored` (claims put back after Redis lost data) and `failed`.

    Args:
        clock: the time; the event loop's when left out.
        **options: those of `RedisOptions`.

    Raises:
        MissingKeyError: neither the option `url` nor the environment variable REDIS_URL is set.
        OptionError: the url cannot be read.
        AuthError, ConnectFailedError, ProviderTimeoutError, OverloadedError, ProtocolError: from every call; whether it
            was carried out is then not known.

    Example:
        >>> store = RedisStore(url="redis://:secret@localhost:6379/0")
        >>> store
        <RedisStore at localhost:6379/0>
    """

    Options = RedisOptions
    capabilities: ClassVar[StoreCapabilities] = StoreCapabilities(shared=True)

    def __init__(self, *, clock: Clock | None = None, **options: Any) -> None:
        self.options: RedisOptions = build(RedisOptions, options, "store 'redis'")
        self.owner = secrets.token_hex(8)
        self.counters: Counter[str] = Counter()
        self._clock = clock or Clock()
        self._held: dict[str, _Held] = {}
        self._sweep_at_ms = 0.0
        pool = _pool(self.options)
        told = pool.connection_kwargs
        self._where = told.get("path") or f"{told.get('host', 'localhost')}:{told.get('port', 6379)}/{told.get('db', 0)}"
        self._secret = str(told.get("password") or "")
        self._client: Redis = Redis.from_pool(pool)
        self._claim, self._renew, self._save, self._delete = (
            self._client.register_script(script) for script in (scripts.CLAIM, scripts.RENEW, scripts.SAVE, scripts.DELETE)
        )

    def __repr__(self) -> str:
        return f"<RedisStore at {self._where}>"

    async def prewarm(self) -> None:
        """Connect, log in and hand over the scripts."""

        async def load() -> None:
            await self._client.ping()
            for script in (self._claim, self._renew, self._save, self._delete):
                await self._client.script_load(script.script)

        await self._ask(load())

    async def claim(self, session_id: str, *, lease_ms: float, force: bool = False) -> Claim | None:
        now_ms, keep_ms = self._clock.now_ms(), self._keep_ms(lease_ms)
        self._sweep(now_ms)
        told: list[bytes | str | int] = [self.owner, _whole(lease_ms), keep_ms, int(force)]
        answer = await self._ask(self._claim(self._keys(session_id), told))
        if answer is None:
            self.counters["refused"] += 1
            return None
        epoch, state = int(answer[0]), answer[1]
        self._held[session_id] = _Held(epoch, now_ms + keep_ms)
        return Claim(epoch, state)

    async def renew(self, session_id: str, epoch: int, *, lease_ms: float) -> bool:
        now_ms, keep_ms = self._clock.now_ms(), self._keep_ms(lease_ms)
        told: list[bytes | str | int] = [epoch, self._is_held(session_id, epoch, now_ms), self.owner, _whole(lease_ms), keep_ms]
        answer = await self._ask(self._renew(self._keys(session_id), told))
        return self._is_owner(session_id, epoch, answer, now_ms + keep_ms)

    async def save(self, session_id: str, epoch: int, state: bytes, *, ttl_ms: float) -> bool:
        if len(state) > self.options.max_state_bytes:
            raise InvalidRequestError(
                f"the state of session {session_id!r} has {len(state)} bytes; the store 'redis' takes at most "
                f"{self.options.max_state_bytes}. Keep less of the history, or raise max_state_bytes",
                provider="redis",
                kind=self.kind,
            )
        now_ms, keep_ms = self._clock.now_ms(), self._keep_ms(ttl_ms)
        told: list[bytes | str | int] = [epoch, self._is_held(session_id, epoch, now_ms), bytes(state), _whole(ttl_ms), keep_ms]
        answer = await self._ask(self._save(self._keys(session_id), told))
        return self._is_owner(session_id, epoch, answer, now_ms + keep_ms)

    async def get(self, session_id: str) -> bytes | None:
        # Bytes: the client decodes nothing unless it is told to.
        return cast("bytes | None", await self._ask(self._client.get(self._keys(session_id)[2])))

    async def delete(self, session_id: str, epoch: int) -> bool:
        held = self._is_held(session_id, epoch, self._clock.now_ms())
        answer = await self._ask(self._delete(self._keys(session_id), [epoch, held]))
        is_owner = self._is_owner(session_id, epoch, answer, 0.0)
        if is_owner:
            self._held.pop(session_id, None)
        return is_owner

    async def aclose(self) -> None:
        """Close the connections; the next call makes new ones."""
        await self._client.aclose()

    def _keys(self, session_id: str) -> list[bytes]:
        try:
            # The braces put the three keys of a session into one slot of a cluster.
            return [f"{self.options.prefix}{{{session_id}}}:{part}".encode() for part in ("own", "epoch", "state")]
        except UnicodeEncodeError:
            raise InvalidRequestError(
                f"the session id {session_id!r} is not text that UTF-8 can hold", provider="redis", kind=self.kind
            ) from None

    async def _ask(self, answer: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self.options.timeout_ms / 1000.0):
                return await answer
        except (RedisError, OSError) as error:  # asyncio's TimeoutError is an OSError
            self.counters["failed"] += 1
            # Without its cause: a traceback would show the server's own words, and they may hold the password.
            raise failure(error, self._where, self._secret) from None

    def _keep_ms(self, ms: float) -> int:
        return _whole(max(ms, self.options.fence_ms))

    def _is_held(self, session_id: str, epoch: int, now_ms: float) -> int:
        held = self._held.get(session_id)
        return int(held is not None and held.epoch == epoch and held.until_ms > now_ms)

    def _is_owner(self, session_id: str, epoch: int, answer: int, until_ms: float) -> bool:
        held = self._held.get(session_id)
        if answer:
            if held is None:
                held = self._held[session_id] = _Held(epoch, until_ms)
            if held.epoch == epoch:
                held.until_ms = max(held.until_ms, until_ms)
            self.counters["restored"] += answer == RESTORED
            return True
        self.counters["fenced"] += 1
        if held is not None and held.epoch == epoch:
            del self._held[session_id]
        return False

    def _sweep(self, now_ms: float) -> None:
        if now_ms >= self._sweep_at_ms:
            self._sweep_at_ms = now_ms + SWEEP_MS
            self._held = {key: held for key, held in self._held.items() if held.until_ms > now_ms}


def _whole(ms: float) -> int:
    return max(1, math.ceil(ms))


def _pool(options: RedisOptions) -> BlockingConnectionPool:
    url = options.url or os.environ.get("REDIS_URL", "")
    if not url:
        raise MissingKeyError(
            "store 'redis': REDIS_URL is not set; expected the server's address there or in the option url, like "
            "redis://:password@localhost:6379/0",
            env_var="REDIS_URL",
        )
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=options.max_connections,
            timeout=options.pool_timeout_ms / 1000.0,
            socket_timeout=options.timeout_ms / 1000.0,
            socket_connect_timeout=options.connect_timeout_ms / 1000.0,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,
        )
        # Connects to nothing: a query that the url should not have is found now.
        pool.connection_class(**pool.connection_kwargs)
    except (ValueError, TypeError, RedisError):
        # Without its cause: the text holds parts of the url, which may be parts of the password.
        raise OptionError(
            "store 'redis': the url cannot be read; expected redis://user:password@host:port/db, rediss:// or unix://, with "
            "special characters of the password written as %40 (for @), %2F (for /), %23 (for #)"
        ) from None
    return pool
