"""The options of the Redis store."""

from __future__ import annotations

import attrs

from beluga_voice.options import option

__all__ = ["RedisOptions"]


@attrs.frozen
class RedisOptions:
    """Options of the Redis store."""

    url: str = option(
        "", "redis://user:password@host:port/db, rediss:// or unix://; empty: the environment variable REDIS_URL", secret=True
    )
    prefix: str = option("voice:session:", "what every key begins with")
    timeout_ms: float = option(1_000.0, "longest time of one call, connecting and waiting included", at_least=1)
    connect_timeout_ms: float = option(1_000.0, "longest wait for a connection to be made", at_least=1)
    pool_timeout_ms: float = option(500.0, "longest wait for one of the connections to be free", at_least=1)
    max_connections: int = option(50, "most connections of this process", at_least=1)
    fence_ms: float = option(
        600_000.0,
        "how long a claim is remembered at least: a longer absence of Redis ends it, and late owners are kept out",
        at_least=0,
    )
    max_state_bytes: int = option(1_048_576, "largest state of one session", at_least=1)

    def __attrs_post_init__(self) -> None:
        if "{" in self.prefix or "}" in self.prefix:
            raise ValueError(f"prefix is {self.prefix!r}; expected none of {{ and }}, which mark the part that is the session")
