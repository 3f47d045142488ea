"""Callers who come and hang up as they like, at accounts with few places and sick servers: no place, task or socket is lost."""

import asyncio
from contextlib import aclosing

from hypothesis import given, settings
from hypothesis import strategies as st
from toy_service import KEY, ToyServer, ToySTT, ToyTTS, audio_of

from beluga_voice import stt, tts
from beluga_voice.clock import Clock, run_simulated
from beluga_voice.resilience import guards
from beluga_voice.testing import ScriptedSTT
from beluga_voice.testing.loopback import Sickness

SICK = (
    Sickness("hang"),
    Sickness("hang", after=1),
    Sickness("drip", every_ms=20),
    Sickness("refuse", status=503),
    Sickness("refuse", status=429, retry_after_s=1),
    Sickness("cut", after=1),
    Sickness("garbage"),
)
PLACES = 2
CALLERS = st.lists(
    st.tuples(st.booleans(), st.floats(0, 500), st.none() | st.sampled_from([0.0, 0.1, 1.0]) | st.floats(0, 5_000)),
    min_size=3,
    max_size=12,
)


async def until_closes(stream):
    async for transcript in stream:
        if transcript.is_final and transcript.text:
            yield transcript
        if transcript.closes:
            return


@settings(max_examples=40, deadline=None)
@given(callers=CALLERS, share=st.sampled_from([0.0, 0.4, 1.0]), seed=st.integers(0, 9))
def test_callers_who_hang_up_leave_nothing_behind(callers, share, seed):
    """Each: speaks or listens, from when on, and how long after that hangs up (None: never). Who stays is served."""

    async def main():
        clock = Clock()
        async with ToyServer(api_key=KEY) as server:
            server.sicken_share(share, SICK, seed)
            options = {"api_key": KEY, "base_url": server.url, "max_concurrent": PLACES}
            ears = stt.failover(ToySTT(**options), ScriptedSTT("one two", delay_ms=30))
            voices = tts.failover(ToyTTS(**options), tts.new("tone"))

            async def heard():
                async with aclosing(ears.stream()) as stream:
                    await stream.send(audio_of("one two"))
                    await stream.finalize()
                    return " ".join([one.text async for one in until_closes(stream)])

            async def spoken():
                return "one two" if (await voices.synthesize("one two")).duration_ms else ""

            async def caller(speaks, from_ms, for_ms):
                await clock.sleep_ms(from_ms)
                call = asyncio.create_task(heard() if speaks else spoken())
                if for_ms is not None:
                    clock.call_later_ms(for_ms, call.cancel)
                await asyncio.wait([call])
                return "" if call.cancelled() else call.result()

            async with ears, voices:
                told = await asyncio.gather(*(caller(*one) for one in callers))
                for one in guards():
                    assert one.max_concurrent in (None, PLACES)
            await clock.sleep_ms(6_000)
            names = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            return told, [one.under_way for one in guards()], names, server.open_sockets, server.open_connections

    told, under_way, names, sockets, connections = run_simulated(main())
    assert all(text == "one two" for text, one in zip(told, callers) if one[2] is None)
    assert (set(under_way) | {0}, names, sockets, connections) == ({0}, [], 0, 0)
