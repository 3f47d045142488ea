"""What a session is to say of its own accord: a bounded row of texts, and the handle their asker holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import attrs

from .errors import SessionLimitError

__all__ = ["Say", "SayHandle", "Says"]


@attrs.define(eq=False)
class Say:
    """Something to say of one's own accord; `done` tells whether all of it was played.

    What is `passing` (a greeting) is not said later, once the caller has spoken into it.
    """

    text: str
    interruptible: bool
    passing: bool = False
    done: asyncio.Future[bool] = attrs.field(factory=lambda: asyncio.get_running_loop().create_future())

    def settle(self, played: bool) -> None:
        """Tell whoever waits."""
        if not self.done.done():
            self.done.set_result(played)


class SayHandle:
    """Something that `say` was asked to say."""

    def __init__(self, say: Say, cancel: Callable[[Say], None]) -> None:
        self._say, self._cancel = say, cancel

    @property
    def done(self) -> bool:
        """True once it was played, or given up."""
        return self._say.done.done()

    async def wait_for_playout(self) -> bool:
        """Wait until it was played, or given up; True when all of it was played.

        Not for an agent in the middle of its reply: what is said waits for the reply to be over.
        """
        return await asyncio.shield(self._say.done)

    def cancel(self) -> None:
        """Take it back, or stop saying it."""
        self._cancel(self._say)


class Says:
    """The texts that wait, first come first said; at most `limit` of them.

    >>> says = Says(1)
    >>> bool(says)
    False
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: list[Say] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, say: Say, *, first: bool = False, over_limit: bool = False) -> Say:
        """Add a text, before all others if it is to be `first`.

        Raises:
            SessionLimitError: `limit` texts wait already, and this one may not go over it.
        """
        if len(self._waiting) >= self._limit and not over_limit:
            raise SessionLimitError(
                f"{len(self._waiting)} texts wait to be said; at most {self._limit} may. Wait for one to be played.",
                limit="max_says",
            )
        if first:
            self._waiting.insert(0, say)
        else:
            self._waiting.append(say)
        return say

    def take(self) -> Say:
        """The next to be said."""
        return self._waiting.pop(0)

    def remove(self, say: Say) -> bool:
        """Take one back; False when it does not wait any more."""
        if say not in self._waiting:
            return False
        self._waiting.remove(say)
        return True

    def drop(self) -> None:
        """Give all of them up."""
        while self._waiting:
            self.take().settle(False)
