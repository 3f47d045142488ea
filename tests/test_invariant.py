"""Whatever the caller does and however slow the engines are: what must hold in every conversation."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beluga_voice import Audio, Chain, Session, SessionOptions, tts, turn
from beluga_voice.builtin.recorded_line import RecordedLine
from beluga_voice.clock import SimulatedLoop
from beluga_voice.testing import LoudVAD, ScriptedSTT, hold, quiet, speech

FRAME_MS = 20
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

talk = st.lists(
    st.tuples(st.integers(2, 60).map(lambda n: n * 20), st.integers(2, 120).map(lambda n: n * 20)), min_size=1, max_size=6
)
delays_ms = st.sampled_from([0, 5, 90, 400, 1_300])


def caller(pieces):
    return quiet(300) + b"".join(speech(loud_ms) + quiet(quiet_ms) for loud_ms, quiet_ms in pieces)


def chain(stt_ms, agent_ms, words, stream_words):
    async def agent(text, history):
        await asyncio.sleep(agent_ms / 1_000)
        if not stream_words:
            yield "word " * words
            return
        for _ in range(words):
            yield "word. "
            await asyncio.sleep(agent_ms / 5_000)

    return Chain(LoudVAD(), turn.new("silence"), ScriptedSTT("text", delay_ms=stt_ms), agent, tts.new("tone"))


@relaxed
@given(talk, delays_ms, delays_ms, st.integers(1, 12), st.booleans())
def test_no_reply_sounds_while_a_turn_is_heard_or_processed(pieces, stt_ms, agent_ms, words, stream_words):
    """Every sound of the agent falls into a time in which the state is responding."""
    call = hold(chain(stt_ms, agent_ms, words, stream_words), caller(pieces), SessionOptions(greeting="Hello you."))
    states = [(0.0, "connected")] + [(e.at_ms, e.data["state"]) for e in call.events if e.name == "state"]
    agent = np.frombuffer(call.agent, "<i2")
    step = 16 * FRAME_MS
    for at in range(0, len(agent) - step, step):
        if agent[at : at + step].any():
            start_ms, end_ms = at / 16, at / 16 + FRAME_MS
            during = [state for n, (ms, state) in enumerate(states) if ms <= end_ms and _end(states, n) >= start_ms]
            assert "responding" in during, (start_ms, during)


def _end(states, n):
    return states[n + 1][0] if n + 1 < len(states) else float("inf")


@relaxed
@given(talk, delays_ms, delays_ms, st.integers(1, 12))
def test_every_confirmed_word_of_the_caller_is_answered_once(pieces, stt_ms, agent_ms, words):
    """Each recorded turn has text and one record; the history holds nothing that was not heard."""
    call = hold(chain(stt_ms, agent_ms, words, False), caller(pieces))
    indexes = [record.index for record in call.turns]
    assert indexes == sorted(set(indexes))
    spoken = sum(bool(message.role == "assistant") for message in call.history)
    assert spoken == sum(bool(record.heard_text) for record in call.turns)
    for record in call.turns:
        assert record.user_text
        assert record.agent_text.startswith(record.heard_text[:4])
        if not record.interrupted and record.agent_text:
            assert record.heard_text.split() == record.agent_text.split()


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 5_000), st.sampled_from([0, 300]), st.booleans())
def test_cancelled_at_any_moment_nothing_is_left(cancel_ms, stt_ms, greet):
    """No task, thread or generator survives a session that is cancelled."""
    before = threading.active_count()
    sound = caller([(600, 1_500), (800, 1_500)])
    loop = SimulatedLoop()
    generators = weakref.WeakSet()
    try:

        async def main():
            line = RecordedLine(Audio(sound, 16_000))
            session = Session(
                chain(stt_ms, 200, 5, True), line, SessionOptions(greeting="Hello you there." if greet else "")
            )
            running = asyncio.get_running_loop().create_task(session.run())
            await asyncio.sleep(cancel_ms / 1_000)
            generators.update(loop._asyncgens)
            running.cancel()
            await asyncio.wait([running])
            return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

        assert loop.run_until_complete(main()) == []
        gc.collect()
        alive = [generator for generator in generators if generator.ag_frame is not None]
        assert alive == []
    finally:
        loop.close()
    assert threading.active_count() == before
