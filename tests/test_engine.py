"""The lifetimes of engines, and what a session offers its stages."""

from __future__ import annotations

import asyncio
import threading

import attrs
import pytest

from beluga_voice import Chain, s2s, stt
from beluga_voice.chain import each_frame
from beluga_voice.clock import run_simulated
from beluga_voice.engine import Context, Engine, WorkPool
from beluga_voice.errors import ChainError, OptionError, ProviderTimeoutError, SessionClosedError
from beluga_voice.frames import Failed, TextDelta, Transcript
from beluga_voice.options import option


@attrs.frozen
class Options:
    size: int = option(1, "how big")


class Counting(Engine):
    def __init__(self, warm_ms=0.0, fail=0):
        self.options = Options()
        self.log = []
        self.warm_ms, self.fail = warm_ms, fail

    async def prewarm(self):
        await asyncio.sleep(self.warm_ms / 1_000)
        if self.fail:
            self.fail -= 1
            raise OSError("cold")
        self.log.append("warm")

    async def aclose(self):
        self.log.append("closed")


class TestLifetimes:
    def test_many_sessions_share_one_warming_and_one_closing(self):
        """Two sessions at once: warmed once, and neither enters before that; closed after the last."""

        async def main():
            engine = Counting(warm_ms=100)
            entered = []

            async def session():
                async with engine:
                    entered.append(list(engine.log))
                    await asyncio.sleep(0.05)

            await asyncio.gather(session(), session())
            return engine.log, entered

        log, entered = run_simulated(main())
        assert log == ["warm", "closed"]
        assert entered == [["warm"], ["warm"]]

    def test_a_failed_warming_is_tried_by_the_next(self):
        """The first session gets the error, the second a warm engine."""

        async def main():
            engine = Counting(warm_ms=10, fail=1)

            async def session():
                async with engine:
                    return "in"

            return await asyncio.gather(session(), session(), return_exceptions=True), engine.log

        (first, second), log = run_simulated(main())
        assert isinstance(first, OSError)
        assert second == "in"
        assert log == ["warm", "closed"]

    def test_a_service_that_does_not_get_ready_is_given_up(self):
        """One that runs here may load for as long as it takes; a service that hangs holds no session up for ever."""

        async def main():
            here, service = Counting(warm_ms=60_000), Counting(warm_ms=60_000)
            service.account = "somewhere"
            async with here:
                pass
            with pytest.raises(ProviderTimeoutError, match=r"'Counting' was not ready within 15000 ms"):
                async with service:
                    pass
            return here.log, service.log

        assert run_simulated(main()) == (["warm", "closed"], ["closed"])

    def test_options_change_on_a_copy_that_lives_its_own_life(self):
        """`with_options` of an entered engine: the copy is warmed and closed for itself; unknown options are refused."""

        async def main():
            engine = Counting()
            async with engine:
                other = engine.with_options(size=3)
                other.log = []
                async with other:
                    pass
                return engine.options.size, other.options.size, other.log

        assert run_simulated(main()) == (1, 3, ["warm", "closed"])
        with pytest.raises(OptionError, match=r"no option 'sise'.*did you mean 'size'"):
            Counting().with_options(sise=2)

    def test_a_session_opens_its_handle_once_and_closes_it(self):
        """A handle of its own is opened at the first use, even by two stages at once, and closed with the context."""

        class Handle(Engine):
            closed = 0

            async def aclose(self):
                Handle.closed += 1

        class Opening(Engine):
            opened = 0

            async def open(self, context):
                Opening.opened += 1
                await asyncio.sleep(0.01)
                return Handle()

        async def main():
            engine = Opening()
            async with Context() as context:
                one, two = await asyncio.gather(context.handle(engine), context.handle(engine))
                assert one is two

        run_simulated(main())
        assert (Opening.opened, Handle.closed) == (1, 1)


class TestContext:
    def test_a_task_that_fails_is_announced(self):
        """`spawn`: an error comes back as a frame, by name."""

        async def boom():
            raise ValueError("no")

        async def main():
            async with Context() as context:
                context.spawn(boom(), "helper")
                frame = await anext(context.inbox)
                return frame.stage, str(frame.error), type(frame)

        assert run_simulated(main()) == ("helper", "no", Failed)

    def test_what_is_emitted_overtakes_what_waits(self):
        """Control frames enter at the head of the ears."""

        async def main():
            @each_frame(Transcript)
            def seen(frame):
                return TextDelta(frame.text)

            async def source():
                yield TextDelta("waiting")
                yield TextDelta("waiting too")

            async with Context() as context:
                context.emit(Transcript("urgent"))
                async with Chain(seen).process(context.feed(source()), context) as frames:
                    return [frame.text async for frame in frames]

        assert run_simulated(main()) == ["urgent", "waiting", "waiting too"]


class TestWorkPool:
    def test_closing_tells_the_calls_that_had_no_thread_yet(self):
        """A queued call gets an error of its own, not a cancellation, and no thread is left."""

        async def main():
            pool = WorkPool(1, "tiny")
            go_on = threading.Event()
            first = asyncio.create_task(pool.run(go_on.wait))
            second = asyncio.create_task(pool.run(int))
            await asyncio.sleep(0)
            closing = asyncio.create_task(pool.aclose())
            await asyncio.sleep(0)
            go_on.set()
            await closing
            return await asyncio.gather(first, second, return_exceptions=True)

        before = threading.active_count()
        first, second = asyncio.run(main())
        assert first is True
        assert isinstance(second, SessionClosedError)
        assert threading.active_count() == before


def test_a_speech_to_speech_model_stands_alone():
    """Beside it no agent or voice has a place."""

    class Model(s2s.S2S):
        async def connect(self, history=()):
            raise NotImplementedError("never connected in this test")

    async def agent(text, history):
        return "hi"

    with pytest.raises(ChainError, match="speech-to-speech"):
        Chain(Model(), agent)
    assert Chain(Model()).stage("s2s") is not None


def test_a_recogniser_without_methods_is_refused_when_defined():
    """Neither batch nor stream: the class itself is an error that says what to write."""
    with pytest.raises(TypeError, match="async def transcribe"):
        type("Empty", (stt.STT,), {})
