"""Sessions kept in Redis for beluga-voice: registers the store "redis".

Importing this connects to nothing and does not import redis-py; `store.RedisStore` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beluga_voice.hookspecs import hookimpl

BELUGA_VOICE_API = 1


@hookimpl
def register_store(register: Callable[..., Any]) -> None:
    """The Redis store."""
    from beluga_voice.store import StoreCapabilities

    from .settings import RedisOptions

    def make(**options: Any) -> Any:
        from .store import RedisStore

        return RedisStore(**options)

    register(
        "redis",
        make,
        summary="Redis or Valkey: shared by all processes, one owner of a session at a time",
        options=RedisOptions,
        capabilities=StoreCapabilities(shared=True),
    )
