"""Anything a program or a caller may do, at any moment, on a live line: what must hold all the same."""

from __future__ import annotations

import asyncio

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from beluga_voice import Chain, Session, SessionOptions, tts, turn
from beluga_voice.builtin.memory_transport import MemoryTransport
from beluga_voice.clock import run_simulated
from beluga_voice.errors import SessionClosedError, SessionLimitError
from beluga_voice.frames import DTMF, AudioIn, EndCall, EndTurn, TextIn
from beluga_voice.state import SessionState
from beluga_voice.testing import LoudVAD, ScriptedSTT, quiet, speech

RATE_HZ = 16_000

talk = st.lists(
    st.tuples(st.integers(2, 60).map(lambda n: n * 20), st.integers(2, 120).map(lambda n: n * 20)), max_size=5
).map(lambda pieces: quiet(300) + b"".join(speech(loud_ms) + quiet(quiet_ms) for loud_ms, quiet_ms in pieces))
acts = st.lists(
    st.tuples(
        st.integers(0, 8_000),
        st.sampled_from(["say", "firm say", "interrupt", "take back", "type", "key", "end turn", "mute", "burst", "end"]),
    ),
    max_size=6,
)
delays_ms = st.sampled_from([0, 90, 1_300])


def act(session, line, what, said):
    if what in ("say", "firm say", "interrupt"):
        text = f"Announcement number {len(said)}."
        said.append(session.say(text, interrupt=what == "interrupt", allow_interruptions=what != "firm say"))
    elif what == "take back" and said:
        said[-1].cancel()
    elif what == "end":
        return session.end("Goodbye.")
    elif what in ("type", "key", "end turn"):
        line.push({"type": TextIn("typed"), "key": DTMF("5"), "end turn": EndTurn("push")}[what])
    return None


@settings(max_examples=150)
@given(talk, acts, delays_ms, delays_ms, st.sampled_from(["answers", "raises", "hangs up", "says"]))
def test_whatever_is_done_the_session_keeps_its_rules(sound, acts, stt_ms, agent_ms, agent_kind):
    """No stage or timer fails, nothing sounds out of turn, every say is settled, and in the end it listens or has ended."""
    failed, events = [], []

    async def agent(text, history, session):
        await asyncio.sleep(agent_ms / 1_000)
        if agent_kind == "says":
            session.say("By the way.")
            return
        yield f"You said {text}. "
        if agent_kind == "raises":
            raise ValueError("on purpose")
        if agent_kind == "hangs up" and len(history) > 3:
            yield EndCall("Bye.")

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: failed.append(context))
        line = MemoryTransport()
        chain = Chain(LoudVAD(), turn.new("silence"), ScriptedSTT("text", delay_ms=stt_ms), agent, tts.new("tone"))
        session = Session(chain, line, SessionOptions(greeting="Hello you."), listeners=[events.append])
        running = loop.create_task(session.run())
        due, said, sounding, muted = sorted(acts), [], [], 0
        for at_ms in range(0, 30_000, 20):
            if running.done():
                break
            while due and due[0][0] <= at_ms:
                what = due.pop(0)[1]
                muted = {"mute": 40, "burst": 0}.get(what, muted)
                if what == "burst":
                    line.speak(speech(400) + quiet(600))
                try:
                    ending = act(session, line, what, said)
                    if ending is not None:
                        await ending
                except (SessionClosedError, SessionLimitError):
                    pass
            if not muted:
                line.push(AudioIn(sound[at_ms * 32 : at_ms * 32 + 640].ljust(640, b"\0"), RATE_HZ))
            muted = max(0, muted - 1)
            before = line.played_ms
            states = [session.state]
            await asyncio.sleep(0.02)
            states.append(session.state)
            if line.played_ms - before >= 19.9 and SessionState.RESPONDING not in states:
                sounding.append((at_ms, states))
        state = session.state
        session.close("test")
        reason = await running
        settled = [handle.done for handle in said]
        left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        return session, state, reason, settled, left, sounding

    session, state, reason, settled, left, sounding = run_simulated(main())
    assert failed == []
    assert left == []
    assert all(settled)
    assert sounding == []
    assert [event for event in events if event.name == "error" and event.data["stage"] != "agent"] == []
    if reason == "test":
        assert state is SessionState.LISTENING
    if any(what == "end" for _, what in acts):
        assert reason == "agent_ended"
    indexes = [record.index for record in session.turns]
    assert len(indexes) == len(set(indexes))
    heard = sum(len(record.heard_text) for record in session.turns)
    assert heard <= sum(len(message.text) for message in session.history if message.role == "assistant")
    assert np.all(np.diff([event.at_ms for event in events]) >= 0)
