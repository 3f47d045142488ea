"""The conversation as an agent gets it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice.frames import ToolCalled
from beluga_voice.history import History, Message

texts = st.sampled_from(["", "hello", "how are you"])


def test_a_turn_is_two_messages():
    history = History()
    history.add_turn("hello", "Hi.")
    assert history.messages == (Message("user", "hello"), Message("assistant", "Hi.", "Hi."))


@pytest.mark.parametrize(("user", "heard", "roles"), [("a", "", ["user"]), ("", "b", ["assistant"]), ("", "", [])])
def test_what_was_not_said_or_heard_is_no_message(user, heard, roles):
    history = History()
    history.add_turn(user, heard)
    assert [message.role for message in history.messages] == roles


def test_a_tool_call_is_kept_though_nothing_was_heard():
    """An interrupted reply that called a tool: the call is known to the next turn."""
    history = History()
    call = ToolCalled("1", "weather", {"place": "Bonn"})
    history.add_turn("hello", "", (call,))
    assert history.messages[1] == Message("assistant", "", "", (call,))


@given(st.lists(st.tuples(texts, texts), max_size=30), st.integers(1, 10))
def test_it_is_bounded_and_counts_what_it_lets_go(turns, most):
    """The newest messages are kept in order; kept and dropped add up; what was given out does not change."""
    history, everything, given_out = History(most), [], []
    for user, heard in turns:
        history.add_turn(user, heard)
        everything += [text for text in (user, heard) if text]
        given_out.append((history.messages, tuple(history.messages)))
    assert [message.text for message in history.messages] == everything[-most:]
    assert history.dropped == max(0, len(everything) - most)
    assert all(was == copy for was, copy in given_out)
