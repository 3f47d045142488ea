"""The states of a session: every move of the table, and no other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from beluga_voice.errors import InvalidTransitionError
from beluga_voice.state import TABLE, Happening, SessionState, move, table

S, H = SessionState, Happening
LIVE = [S.CONNECTED, S.LISTENING, S.PROCESSING, S.RESPONDING]
CONTRACT = [
    (S.CONNECTED, H.READY, S.LISTENING),
    (S.CONNECTED, H.REPLY_AUDIO, S.RESPONDING),  # a greeting
    (S.LISTENING, H.TURN_ENDED, S.PROCESSING),
    (S.LISTENING, H.REPLY_AUDIO, S.RESPONDING),  # a say
    (S.PROCESSING, H.REPLY_AUDIO, S.RESPONDING),
    (S.PROCESSING, H.REOPENED, S.LISTENING),
    (S.PROCESSING, H.NOTHING_TO_SAY, S.LISTENING),
    (S.RESPONDING, H.PLAYOUT_ENDED, S.LISTENING),
    (S.RESPONDING, H.BARGED_IN, S.LISTENING),
    *[(state, H.LINE_LOST, S.RECONNECTING) for state in LIVE],
    (S.RECONNECTING, H.RESUMED, S.CONNECTED),
    (S.RECONNECTING, H.WINDOW_OVER, S.DISCONNECTED),
    (S.RECONNECTING, H.ATTEMPTS_EXHAUSTED, S.ERROR),
    *[(state, H.ENDED, S.DISCONNECTED) for state in (*LIVE, S.RECONNECTING)],
    *[(state, H.FAILED, S.ERROR) for state in (*LIVE, S.RECONNECTING)],
]


@pytest.mark.parametrize(("state", "happening", "after"), CONTRACT)
def test_a_move_of_the_contract(state, happening, after):
    assert move(state, happening) is after


@pytest.mark.parametrize("state", list(S))
@pytest.mark.parametrize("happening", list(H))
def test_every_other_move_raises(state, happening):
    """The error names the state, what happened and what could have."""
    if any((state, happening) == one[:2] for one in CONTRACT):
        return
    with pytest.raises(InvalidTransitionError) as caught:
        move(state, happening)
    message = str(caught.value)
    assert state.value in message
    assert happening.value in message
    for legal in TABLE[state]:
        assert legal.value in message


def test_the_table_is_printed_whole():
    """One line a move, in words."""
    lines = table().splitlines()
    assert len(lines) == len(CONTRACT)
    for state, happening, after in CONTRACT:
        assert f"{state.value:<12} {happening.value:<18} -> {after.value}" in lines


@given(st.sampled_from([state for state in S if TABLE[state]]))
def test_every_live_state_can_end(state):
    """From anywhere two happenings lead to an end, so no session can be caught in the table."""
    assert move(state, H.ENDED) is S.DISCONNECTED
    assert move(state, H.FAILED) is S.ERROR


class Life(RuleBasedStateMachine):
    """Any run of happenings: only contract moves change the state, and an ended session stays so."""

    def __init__(self):
        super().__init__()
        self.state, self.ended = S.CONNECTED, False

    @rule(happening=st.sampled_from(list(H)))
    def happen(self, happening):
        before = self.state
        try:
            self.state = move(self.state, happening)
        except InvalidTransitionError:
            assert (before, happening) not in [one[:2] for one in CONTRACT]
            return
        assert (before, happening, self.state) in CONTRACT
        assert not self.ended
        self.ended = self.state in (S.DISCONNECTED, S.ERROR)

    @invariant()
    def answers_only_follow_a_turn_a_greeting_or_a_say(self):
        if self.state is S.RESPONDING:
            assert H.REPLY_AUDIO not in TABLE[S.RESPONDING]


TestLife = Life.TestCase
