"""How a caller is let onto a line, again and again: by a resume token, with a welcome that tells where the line is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .. import wire
from ..history import Message
from ..link import Link
from .telling import history_message
from .tokens import ResumeTokens

__all__ = ["UNKNOWN", "Welcome"]

PROTOCOL, REFUSED = 4400, 4410
UNKNOWN = "the session is over, or the resume token is not its newest; begin a new one"


class Welcome:
    """A line's welcomes. Until the caller answers one, nobody knows that it arrived.

    Args:
        link: numbers what is sent, and keeps what was not received.
        rates_hz: of the line, in and out.
        tokens: what opens the line.
        moved: the line was begun in another process: the caller is told the history in place of what is not known here.

    Attributes:
        tokens: what opens the line.
        proven: the caller has answered a welcome at least once, here or in another process.
    """

    def __init__(self, link: Link, rates_hz: tuple[int, int], tokens: ResumeTokens, *, moved: bool) -> None:
        self._link, self._rates_hz, self.tokens = link, rates_hz, tokens
        self.proven = self._events_lost = moved
        self._history_seq: int | None = None
        if moved:  # its place is before everything that this process says
            self._history_seq = link.next_seq
            link.stamp(history_message(()))

    def admit(self, hello: wire.Hello) -> None:
        """Check that `hello` may take up the line.

        Raises:
            WireError: the resume token is wrong (4410), or the rates are not the line's (4400).
        """
        if hello.resume is None or not self.tokens.check(hello.resume.resume_token):
            raise wire.WireError(REFUSED, UNKNOWN)
        ours, theirs = self._rates_hz, (hello.input_rate_hz, hello.output_rate_hz)
        if ours != theirs:
            wanted = f"expected the session's {ours[0]} and {ours[1]}"
            raise wire.WireError(PROTOCOL, f"hello: a resume at {theirs[0]} and {theirs[1]} Hz; {wanted}")

    def message(
        self, session_id: str, resume: wire.Resume | None, limits: Mapping[str, Any], history: Iterable[Message]
    ) -> str:
        """The welcome; what the caller has received is kept no longer, and the history is told where events were lost.

        Args:
            session_id: of the session.
            resume: what the caller's hello said, if it comes back.
            limits: told in it.
            history: the conversation so far.
        """
        link = self._link
        received_seq = -1 if resume is None else resume.received_seq
        lost = self._events_lost or not link.first_seq <= received_seq + 1 <= link.next_seq
        if received_seq >= link.next_seq:
            link.skip_to(received_seq + 1)
        if self._history_seq is not None:
            link.amend(self._history_seq, history_message(history))
        elif lost and resume is not None:
            link.stamp(history_message(history))
        link.acked(received_seq)
        self._events_lost = lost
        return wire.text(
            {
                "type": "welcome",
                "session_id": session_id,
                "resume_token": self.tokens.issue(),
                "resumed": resume is not None,
                "received_seq": link.received_seq,
                "input_rate_hz": self._rates_hz[0],
                "output_rate_hz": self._rates_hz[1],
                "limits": dict(limits),
                "events_lost": lost,
            }
        )

    def answered(self) -> None:
        """The caller has the newest welcome, and what came with it."""
        self.proven = True
        self.tokens.confirm()
        self._events_lost, self._history_seq = False, None
