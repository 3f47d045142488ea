"""Session stores: where a session's state outlives its connection and its process, with one owner at a time.

An owner **claims** a session and gets an **epoch**, a number greater than every one before. It keeps the claim alive by
renewing its **lease**, and saves under its epoch. Whoever claims later has a greater epoch; the owner before is then
**fenced**: nothing it does changes the store any more, however late it arrives.

>>> async def main():
...     store = new("memory")
...     first = await store.claim("s1", lease_ms=15_000)
...     await store.save("s1", first.epoch, b"Hello.", ttl_ms=60_000)
...     polite = await store.claim("s1", lease_ms=15_000)
...     second = await store.claim("s1", lease_ms=15_000, force=True)
...     return polite, second, await store.save("s1", first.epoch, b"late", ttl_ms=60_000), await store.get("s1")
>>> asyncio.run(main())
(None, Claim(epoch=2, state=b'Hello.'), False, b'Hello.')
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, cast

import attrs

from ._registry import Kind, Provider

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Claim", "SessionStore", "StoreCapabilities", "describe", "names", "new", "register"]


@attrs.frozen
class StoreCapabilities:
    """What a store can do: `shared` says that other processes see what it keeps."""

    shared: bool = False


@attrs.frozen
class Claim:
    """The right to a session: its `epoch`, and the `state` kept for it, None where there is none."""

    epoch: int
    state: bytes | None


class SessionStore(ABC):
    """Bytes by session id, each session with one owner at a time.

    A claim lives at least as long as its lease and the state saved under it, unless another claim replaces it or `delete`
    ends it. So an owner that was held up past its lease goes on where nobody took over.

    A store that somebody else runs (Redis, say) raises the `ProviderError` that says how it failed, with `kind="store"`,
    from every method and within a time of its own; whether the call was carried out is then not known.
    """

    kind: ClassVar[str] = "store"
    provider: str = ""
    capabilities: ClassVar[StoreCapabilities] = StoreCapabilities()

    @abstractmethod
    async def claim(self, session_id: str, *, lease_ms: float, force: bool = False) -> Claim | None:
        """Become the session's owner for `lease_ms`.

        Args:
            session_id: any text.
            lease_ms: how long the claim keeps polite claimants away, unless it is renewed.
            force: take the session from an owner whose lease still runs. Only for who may: a caller with the
                session's resume token, say.

        Returns:
            The claim, or None: a lease still runs, and `force` is not set.
        """

    @abstractmethod
    async def renew(self, session_id: str, epoch: int, *, lease_ms: float) -> bool:
        """Keep the claim for `lease_ms` from now; False when it is another's by now, or over (fenced)."""

    @abstractmethod
    async def save(self, session_id: str, epoch: int, state: bytes, *, ttl_ms: float) -> bool:
        """Keep `state` for `ttl_ms` in place of what was kept; False when fenced: nothing was written.

        Raises:
            InvalidRequestError: the state is larger than the store takes.
        """

    @abstractmethod
    async def get(self, session_id: str) -> bytes | None:
        """The state that is kept, without a claim; None when there is none or its time is over."""

    @abstractmethod
    async def delete(self, session_id: str, epoch: int) -> bool:
        """End the claim and forget the state; False when fenced or there is nothing."""

    async def prewarm(self) -> None:
        """Find out now whether the store can be used. Called once, before sessions are taken; the default does nothing."""

    async def aclose(self) -> None:
        """Free what this object holds (connections), not what is kept; the next call opens it again."""

    async def __aenter__(self) -> Self:
        try:
            await self.prewarm()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()


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
