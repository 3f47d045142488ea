"""Session stores: where a session's state outlives its connection.

>>> async def main():
...     store = new("memory")
...     await store.put("s1", b"state", ttl_ms=60_000)
...     return await store.get("s1"), await store.delete("s1"), await store.get("s1")
>>> asyncio.run(main())
(b'state', True, None)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, cast

from ._registry import Kind, Provider

__all__ = ["SessionStore", "describe", "names", "new", "register"]


class SessionStore(ABC):
    """Bytes by session id, each with a time to live."""

    kind: ClassVar[str] = "store"
    provider: str = ""

    @abstractmethod
    async def put(self, session_id: str, state: bytes, *, ttl_ms: float) -> None:
        """Keep `state` for `ttl_ms`, replacing what was kept."""

    @abstractmethod
    async def get(self, session_id: str) -> bytes | None:
        """What is kept, or None when there is nothing or its time is over."""

    @abstractmethod
    async def delete(self, session_id: str) -> bool:
        """Forget it; True when there was something."""

    async def aclose(self) -> None:
        """Free everything. The default does nothing."""


_kind = Kind("store")


def new(name: str, **options: Any) -> SessionStore:
    """Make the store of that name, like `new("memory")`."""
    return cast(SessionStore, _kind.new(name, **options))


def names() -> list[str]:
    """The installed stores."""
    return _kind.names()


def describe(name: str) -> Provider:
    """What is known of a store: options, distribution, capabilities."""
    return _kind.describe(name)


def register(name: str, factory: Callable[..., SessionStore], **told: Any) -> None:
    """Register a store of this program's own."""
    _kind.register(name, factory, **told)
