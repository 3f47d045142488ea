"""The states of a session and every move between them: a table, pure and printable.

>>> move(SessionState.LISTENING, Happening.TURN_ENDED)
<SessionState.PROCESSING: 'processing'>
>>> move(SessionState.LISTENING, Happening.BARGED_IN)
Traceback (most recent call last):
    ...
beluga_voice.errors.InvalidTransitionError: state 'listening' has no move on 'barged_in'; expected one of: ended, failed, \
line_lost, reply_audio, turn_ended
"""

from __future__ import annotations

from enum import StrEnum

from .errors import InvalidTransitionError

__all__ = ["FINAL_STATES", "TABLE", "Happening", "SessionState", "end_reason", "move", "table"]


class SessionState(StrEnum):
    """Where a session is."""

    CONNECTED = "connected"
    LISTENING = "listening"
    PROCESSING = "processing"
    RESPONDING = "responding"
    RECONNECTING = "reconnecting"
    DISCONNECTED = "disconnected"
    ERROR = "error"


class Happening(StrEnum):
    """What moves a session from one state to another."""

    READY = "ready"
    TURN_ENDED = "turn_ended"
    REPLY_AUDIO = "reply_audio"
    REOPENED = "reopened"
    NOTHING_TO_SAY = "nothing_to_say"
    PLAYOUT_ENDED = "playout_ended"
    BARGED_IN = "barged_in"
    LINE_LOST = "line_lost"
    RESUMED = "resumed"
    WINDOW_OVER = "window_over"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    ENDED = "ended"
    FAILED = "failed"


END_REASONS = frozenset(
    ("bye", "lost", "idle", "agent_ended", "max_session", "drain", "replaced", "error", "closed", "cancelled")
)

_S, _H = SessionState, Happening
_LIVE = {_H.LINE_LOST: _S.RECONNECTING, _H.ENDED: _S.DISCONNECTED, _H.FAILED: _S.ERROR}

TABLE: dict[SessionState, dict[Happening, SessionState]] = {
    _S.CONNECTED: {_H.READY: _S.LISTENING, _H.REPLY_AUDIO: _S.RESPONDING, **_LIVE},
    _S.LISTENING: {_H.TURN_ENDED: _S.PROCESSING, _H.REPLY_AUDIO: _S.RESPONDING, **_LIVE},
    _S.PROCESSING: {
        _H.REPLY_AUDIO: _S.RESPONDING,
        _H.REOPENED: _S.LISTENING,
        _H.NOTHING_TO_SAY: _S.LISTENING,
        **_LIVE,
    },
    _S.RESPONDING: {_H.PLAYOUT_ENDED: _S.LISTENING, _H.BARGED_IN: _S.LISTENING, **_LIVE},
    _S.RECONNECTING: {
        _H.RESUMED: _S.CONNECTED,
        _H.WINDOW_OVER: _S.DISCONNECTED,
        _H.ATTEMPTS_EXHAUSTED: _S.ERROR,
        _H.ENDED: _S.DISCONNECTED,
        _H.FAILED: _S.ERROR,
    },
    _S.DISCONNECTED: {},
    _S.ERROR: {},
}
FINAL_STATES = frozenset(state for state, moves in TABLE.items() if not moves)


def move(state: SessionState, happening: Happening) -> SessionState:
    """The state after `happening`.

    Raises:
        InvalidTransitionError: the table has no such move.
    """
    moves = TABLE[state]
    if happening not in moves:
        raise InvalidTransitionError(state.value, happening.value, sorted(moves))
    return moves[happening]


def table() -> str:
    """The table as text, a move a line.

    >>> print(table().splitlines()[0])
    connected    ready              -> listening
    """
    return "\n".join(f"{state:<12} {on:<18} -> {to}" for state, moves in TABLE.items() for on, to in moves.items())


def end_reason(reason: str) -> str:
    """The reason a session ended for, as it is counted: one that a program made up is "other", for there is no end of them.

    >>> end_reason("idle"), end_reason("the shop closes")
    ('idle', 'other')
    """
    return reason if reason in END_REASONS else "other"
