"""Resume tokens of one session: each attach gets a new one, and the old one lives until the new one is known to have arrived.

>>> tokens = ResumeTokens()
>>> first = tokens.issue()
>>> tokens.confirm()                      # the caller's first message after the welcome
>>> tokens.check(first)                   # the line broke, the caller comes back
True
>>> second = tokens.issue()
>>> tokens.check(first)                   # the new one never arrived: the old one still opens
True
>>> third = tokens.issue()
>>> tokens.confirm()
>>> tokens.check(first), tokens.check(second), tokens.check(third)
(False, False, True)
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable

__all__ = ["ResumeTokens"]

TOKEN_BYTES = 32
KEPT = 3  # the proven one, that of the last welcome, and that of a goaway


class ResumeTokens:
    """The tokens that open one session again. Only their SHA-256 digests are kept, and no secret is ever shown.

    Being of one session they are bound to it, and to the user it was made for.

    Attributes:
        guesses: how often a wrong token was tried. After 100 in a row none is accepted until the caller who is attached
            proves a new one: a token has 256 bits, so whoever needs so many tries is no caller.
    """

    def __init__(self) -> None:
        self.guesses = 0
        self._digests: list[bytes] = []  # oldest first
        self._welcomed = b""

    def __repr__(self) -> str:
        return f"<ResumeTokens: {len(self._digests)} valid, {self.guesses} wrong guesses>"

    def issue(self, *, welcome: bool = True) -> str:
        """A new token, valid beside those that are. `welcome`: it is told in a welcome, so `confirm` will prove it."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        digest = _digest(token)
        self._digests = [*self._digests[-(KEPT - 1) :], digest]
        if welcome:
            self._welcomed = digest
        return token

    def confirm(self) -> None:
        """The caller has the token of the last welcome: those before it open nothing any more."""
        if self._welcomed in self._digests:
            del self._digests[: self._digests.index(self._welcomed)]
            self.guesses = 0

    def check(self, token: str) -> bool:
        """Whether `token` opens the session now; the time taken says nothing of how right it is.

        A right one is proof that it arrived, and that those issued after it did not: they are void, and a new one is due.
        """
        given = _digest(token)
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if True not in matches:
            self.guesses += 1
            return False
        self._digests = [self._digests[matches.index(True)]]
        self.guesses = 0
        return True

    def saved(self) -> list[str]:
        """The digests as hexadecimal text, for a store."""
        return [digest.hex() for digest in self._digests]

    @classmethod
    def restored(cls, saved: Iterable[str]) -> ResumeTokens:
        """The tokens that `saved` told of; what is no digest opens nothing."""
        tokens = cls()
        for digest in saved:
            try:
                tokens._digests.append(bytes.fromhex(digest))
            except (ValueError, TypeError):
                continue
        del tokens._digests[:-KEPT]
        return tokens


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
