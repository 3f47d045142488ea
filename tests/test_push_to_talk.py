"""Turns that a button begins and ends, and other things a caller's side can ask for; in simulated time."""

from __future__ import annotations

import pytest

from beluga_voice import Chain, SessionOptions, tts, turn
from beluga_voice.errors import SessionClosedError
from beluga_voice.frames import DTMF, EndTurn, Interrupt, StartTurn, TextIn
from beluga_voice.settings import BargeInOptions
from beluga_voice.testing import LoudVAD, ScriptedSTT, hold, quiet, speech


async def short(text, history):
    return f"You said {text}."


async def long(text, history):
    yield "This is a long answer of very many words that goes on and on. " * 3


def chain(agent=short, *texts):
    return Chain(LoudVAD(), turn.new("silence"), ScriptedSTT(*(texts or ("one", "two"))), agent, tts.new("tone", word_ms=200.0))


def feed(*when):
    return [(at_ms, lambda session, frame=frame: session.feed(frame)) for at_ms, frame in when]


class TestPush:
    def test_pauses_do_not_end_a_pushed_turn(self):
        """Two sentences and a long pause between them, one button: one turn that ends when it is let go."""
        pcm = quiet(500) + speech(1_000) + quiet(2_000) + speech(1_000) + quiet(4_000)
        call = hold(chain(), pcm, at=feed((300, StartTurn()), (4_600, EndTurn("push"))))
        (record,) = call.turns
        assert (record.user_text, record.source) == ("one", "push")
        assert record.speech_start_ms == pytest.approx(500, abs=40)
        (ended,) = [event for event in call.events if event.name == "turn_ended"]
        assert ended.at_ms == pytest.approx(4_600, abs=30)

    def test_what_is_said_goes_to_the_recogniser_whole(self):
        """Also the pause: both sentences are in what it is given."""
        heard = ScriptedSTT("all of it")
        stages = Chain(LoudVAD(), turn.new("silence"), heard, short, tts.new("tone"))
        pcm = quiet(500) + speech(1_000) + quiet(2_000) + speech(1_000) + quiet(3_000)
        hold(stages, pcm, at=feed((300, StartTurn()), (4_600, EndTurn("push"))))
        assert heard.heard[-1].duration_ms >= 4_000

    def test_letting_go_in_mid_word_ends_the_turn_once(self):
        """The rest of the word is not a turn of its own."""
        pcm = quiet(500) + speech(1_500) + quiet(4_000)
        call = hold(chain(), pcm[: 32 * 1_800] + quiet(4_200), at=feed((300, StartTurn()), (1_800, EndTurn("push"))))
        assert [record.user_text for record in call.turns] == ["one"]

    def test_a_push_without_a_word_is_no_turn(self):
        """Nothing is asked, the session listens on."""
        call = hold(chain(), quiet(6_000), at=feed((300, StartTurn()), (1_500, EndTurn("push"))))
        assert call.turns == []
        assert call.states() == ["listening", "processing", "listening", "disconnected"]

    def test_pushing_interrupts_the_reply(self):
        """The button is an interruption by itself, before a word is said."""
        pcm = quiet(500) + speech(800) + quiet(4_000) + speech(800) + quiet(6_000)
        call = hold(chain(long), pcm, at=feed((4_000, StartTurn()), (6_500, EndTurn("push")), (9_000, Interrupt())))
        first, _ = [event for event in call.events if event.name == "interrupted"]
        assert first.data["source"] == "push"
        assert first.at_ms == pytest.approx(4_000, abs=40)
        assert [record.user_text for record in call.turns] == ["one", "two"]

    def test_an_uninterruptible_reply_is_not_stopped_by_a_button(self):
        """It is said to its end."""
        at = [(100, lambda session: session.say("You must hear all of this now.", allow_interruptions=False))]
        call = hold(chain(), quiet(6_000), at=at + feed((500, Interrupt()), (600, StartTurn()), (900, EndTurn("push"))))
        (ended,) = [event for event in call.events if event.name == "reply_ended"]
        assert not ended.data["interrupted"]

    def test_a_button_works_in_half_duplex(self):
        """Where speech is not heard during a reply, a button still is."""
        options = SessionOptions(barge_in=BargeInOptions(enabled=False))
        call = hold(chain(long), quiet(500) + speech(800) + quiet(8_000), options, at=feed((4_000, Interrupt())))
        (interrupted,) = [event for event in call.events if event.name == "interrupted"]
        assert (interrupted.data["source"], round(interrupted.at_ms, -2)) == ("caller", 4_000)


class TestFeeding:
    def test_a_typed_turn_is_answered(self):
        """Text needs no ears."""
        call = hold(chain(), quiet(3_000), at=feed((500, TextIn("typed"))))
        assert [(record.user_text, record.heard_text) for record in call.turns] == [("typed", "You said typed.")]

    def test_stopping_a_reply_leaves_the_session_listening(self):
        """The turn is over, with what was heard; nothing is asked again."""
        call = hold(chain(long), quiet(500) + speech(800) + quiet(5_000), at=feed((3_500, Interrupt())))
        (record,) = call.turns
        assert record.interrupted
        assert record.heard_text
        assert call.states()[-2:] == ["listening", "disconnected"]

    def test_stopping_a_reply_before_a_word_of_it_ends_the_turn(self):
        """Nobody waits for the caller to go on."""
        from beluga_voice.clock import Clock

        async def slow(text, history):
            await Clock().sleep_ms(2_000)
            return "Late."

        call = hold(chain(slow), quiet(500) + speech(800) + quiet(5_000), at=feed((2_500, Interrupt())))
        (record,) = call.turns
        assert (record.interrupted, record.heard_text) == (True, "")

    def test_nothing_happens_where_nothing_is_said(self):
        """A stop without a reply, an end without a turn, keys: no turn, no error."""
        frames = [(500, Interrupt()), (700, EndTurn("push")), (900, DTMF("1")), (1_000, DTMF("#"))]
        call = hold(chain(), quiet(3_000), at=feed(*frames))
        assert call.turns == []
        assert [event.data["digit"] for event in call.events if event.name == "dtmf"] == ["1", "#"]
        assert [event for event in call.events if event.name == "error"] == []

    def test_an_ended_session_takes_nothing(self):
        """It says so."""
        session = hold(chain(), quiet(500)).session
        with pytest.raises(SessionClosedError, match="ended"):
            session.feed(TextIn("late"))
