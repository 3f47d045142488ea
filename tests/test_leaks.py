"""What a session leaves behind once it is over: nothing that grows, and nothing that only the garbage collector ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import weakref
from collections import Counter

import pytest

from beluga_voice import Audio, Chain, SessionManager, SessionOptions, store, transport, tts, turn, vad
from beluga_voice.builtin.recorded_line import RecordedLine
from beluga_voice.clock import run_simulated
from beluga_voice.frames import TextIn, Transcript
from beluga_voice.hybrid import Hybrid
from beluga_voice.session import Session
from beluga_voice.stt import STT
from beluga_voice.testing import LoudVAD, quiet, speech
from beluga_voice.testing.scripted_s2s import ScriptedS2S

TALK = quiet(500) + speech(800) + quiet(4_000)


class Ear(STT):
    """Hears always the same, and keeps nothing of it."""

    async def transcribe(self, audio):
        return Transcript("one")


async def reply(text, history):
    yield "You said "
    yield f"{text}."


async def endless(text, history):
    yield "One moment, "
    await asyncio.sleep(3_600)


async def failing(text, history):
    yield "One moment. "
    raise KeyError(text)


def cascade(agent=reply):
    return Chain(LoudVAD(), turn.new("silence"), Ear(), agent, tts.new("tone"))


def model():
    return Chain(vad.new("energy"), ScriptedS2S(lambda text: [f"you said {text}"]))


async def talk(chain, caller=TALK):
    session = Session(chain, RecordedLine(Audio(caller, 16_000), tail_ms=2_000), SessionOptions(idle_timeout_ms=20_000))
    await session.run()
    return session


async def in_the_middle(chain, end):
    """A call that ends while the agent thinks or speaks."""
    line = transport.new("memory")
    session = Session(chain, line)
    running = asyncio.create_task(session.run())
    await asyncio.sleep(0.1)
    session.feed(TextIn("hello"))
    await asyncio.sleep(0.4)
    end(session, line, running)
    await asyncio.wait([running])
    return session


CALLS = {
    "a turn": lambda: talk(cascade()),
    "interrupted": lambda: talk(cascade(endless), TALK + speech(1_500) + quiet(4_000)),
    "an agent that fails": lambda: talk(cascade(failing)),
    "speech to speech": lambda: talk(model()),
    "two chains": lambda: talk(Hybrid(cascade=cascade(), s2s=model(), policy=lambda so_far: "cascade"), TALK + TALK),
    "hung up": lambda: in_the_middle(cascade(endless), lambda session, line, running: line.hang_up()),
    "closed": lambda: in_the_middle(cascade(), lambda session, line, running: session.close()),
    "cancelled": lambda: in_the_middle(cascade(endless), lambda session, line, running: running.cancel()),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_session_that_is_over_is_freed_whole(call, caplog):
    """No generator waits for the collector to end it, and after one collection the session is gone."""
    caplog.set_level(logging.CRITICAL, "beluga_voice")  # what is logged keeps its traceback, and that the session
    left = []

    async def main():
        hooks = sys.get_asyncgen_hooks()

        def collected(generator):
            left.append(generator.ag_code.co_qualname)
            hooks.finalizer(generator)

        sys.set_asyncgen_hooks(finalizer=collected)
        session = weakref.ref(await CALLS[call]())
        gc.collect()
        tasks = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        return session(), tasks

    assert run_simulated(main()) == (None, [])
    assert left == []


def objects():
    """How many objects of each type there are, without what is gone anyway."""
    gc.collect()
    gc.collect()
    return Counter(type(one).__qualname__ for one in gc.get_objects())


def grown(before):
    """The types with more objects than before, but for a few."""
    return {name: more for name, more in (objects() - before).items() if more > 5}


def test_sessions_of_a_manager_leave_nothing():
    """Each with a user and a tenant of its own, some lost and taken up again, some refused: as many objects after as before."""

    async def main():
        async with SessionManager(cascade(), store=store.new("memory"), max_sessions=20) as manager:

            async def call(number):
                line = transport.new("memory")
                session = await manager.create(line, session_id=f"s{number}", user_id=f"u{number}", tenant=f"t{number}")
                await asyncio.sleep(0.1)
                session.feed(TextIn("hello"))
                await asyncio.sleep(0.5)
                if number % 2:
                    line.lose()
                    await asyncio.sleep(0.5)
                    resumed = await manager.resume(f"s{number}", lambda snapshot: transport.new("memory"))
                    await resumed.reattach(transport.new("memory"))
                await manager.close(f"s{number}")

            async def many(first):
                await asyncio.gather(*(call(number) for number in range(first, first + 20)))
                await asyncio.sleep(600)  # what is kept for who may come back is over

            await many(0)
            before = objects()
            await many(20)
            await many(40)
            return grown(before)

    assert run_simulated(main()) == {}


def test_event_loops_leave_nothing():
    """A program that runs many, one after the other, with engines that outlive them."""
    chain = cascade()

    async def main():
        await talk(chain)

    for _ in range(2):
        run_simulated(main())
    before = objects()
    for _ in range(10):
        run_simulated(main())
    assert grown(before) == {}
