"""Chains: checked for order when built, frames in order, every stage closed whatever happens."""

import asyncio
import functools
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice import agent as agents
from beluga_voice.builtin.energy_vad import EnergyVAD
from beluga_voice.builtin.gain import Gain
from beluga_voice.builtin.silence_turn import SilenceTurn
from beluga_voice.builtin.tone_tts import ToneTTS
from beluga_voice.chain import Chain, Stage, each_frame, processor
from beluga_voice.clock import run_simulated
from beluga_voice.engine import Context
from beluga_voice.errors import ChainError
from beluga_voice.frames import AudioIn, AudioOut, TextDelta, TextIn, Transcript
from beluga_voice.stt import STT


class Words(STT):
    async def transcribe(self, audio):
        return Transcript("words")


async def reply(text, history):
    return text


@each_frame(AudioIn)
def anywhere(frame):
    return frame


@processor(side="mouth")
async def quieter(frames, context):
    async for frame in frames:
        yield frame


MAKE = {
    "vad": EnergyVAD,
    "turn": SilenceTurn,
    "stt": Words,
    "agent": lambda: reply,
    "tts": ToneTTS,
    "gain": Gain,
    "quieter": lambda: quieter,
    "anywhere": lambda: anywhere,
}
BEFORE = [
    ("vad", "turn"),
    ("vad", "stt"),
    ("turn", "agent"),
    ("stt", "agent"),
    ("agent", "tts"),
    ("agent", "quieter"),
]


def legal(kinds):
    """The order in words: what a stage needs is made before it, ears stand before the reply, the mouth after it."""
    seen = set()
    for kind in kinds:
        if kind in seen and kind in ("vad", "turn", "stt", "agent", "tts"):
            return False
        if any(later == kind and earlier not in seen for earlier, later in BEFORE):
            return False
        if kind in ("vad", "turn", "stt", "gain") and "agent" in seen:
            return False
        seen.add(kind)
    return True


async def run(chain, *frames):
    async def source():
        for frame in frames:
            yield frame

    async with Context() as context, chain.process(source(), context) as out:
        return [frame async for frame in out]


class TestOrder:
    @given(st.lists(st.sampled_from(sorted(MAKE)), max_size=8))
    def test_is_accepted_exactly_when_it_can_work(self, kinds):
        """A random row of stages is built if and only if every stage can work where it stands."""
        stages = [MAKE[kind]() for kind in kinds]
        if legal(kinds):
            assert len(Chain(*stages).stages) == len(kinds)
        else:
            with pytest.raises(ChainError):
                Chain(*stages)

    def test_of_a_whole_agent_has_two_forms(self):
        """Of all orders of the five kinds, those with the recogniser before or after the turn detector are legal."""
        kinds = ("vad", "turn", "stt", "agent", "tts")
        accepted = []
        for order in permutations(kinds):
            try:
                Chain(*(MAKE[kind]() for kind in order))
            except ChainError:
                continue
            accepted.append(order)
        assert accepted == [("vad", "turn", "stt", "agent", "tts"), ("vad", "stt", "turn", "agent", "tts")]

    @pytest.mark.parametrize(
        ("kinds", "says"),
        [
            (["stt"], "stage 0 (stt) needs SpeechStarted, which nothing before it makes. Put vad before it."),
            (
                ["turn", "vad"],
                "stage 0 (turn) needs SpeechEnded, which nothing before it makes. Move stage 1 (vad) before it.",
            ),
            (["vad", "vad"], "stage 1 (vad) is a second vad; stage 0 is one already. Keep one"),
            (
                ["vad", "turn", "stt", "agent", "gain"],
                "stage 4 (gain) listens to the caller, but stands after stage 3 (agent)",
            ),
            (["quieter"], "stage 0 (quieter) works on the reply, but stands before any stage that replies"),
            (["vad", "turn", "stt", "tts"], "needs TextDelta, which nothing before it makes. Put agent before it."),
        ],
    )
    def test_the_message_says_what_to_move(self, kinds, says):
        """A refusal names the stage, what it lacks and where to put it."""
        with pytest.raises(ChainError) as caught:
            Chain(*(MAKE[kind]() for kind in kinds))
        assert says in str(caught.value)
        assert caught.value.stage in kinds

    @pytest.mark.parametrize("thing", [3, "vad", None, EnergyVAD])
    def test_what_is_no_stage_is_refused(self, thing):
        """A class or a value in a chain is answered with what belongs there."""
        with pytest.raises(TypeError, match=r"is no stage; expected|write EnergyVAD\(\.\.\.\)"):
            Chain(thing)

    def test_a_plain_function_is_refused(self):
        """A function that is not async would block every caller."""

        def blocking(text, history):
            return text

        with pytest.raises(TypeError, match=r"write `async def blocking\(text, history\)`"):
            Chain(EnergyVAD(), SilenceTurn(), Words(), blocking)

    def test_a_partial_of_an_async_function_is_an_agent(self):
        """An agent with some arguments given beforehand is an agent still."""

        async def with_model(text, history, *, model):
            return model + text

        stage = agents.as_frame_processor(functools.partial(with_model, model="m"))
        assert stage.replies

    def test_splits_where_the_reply_begins(self):
        """The ears are all before the agent, the mouth is the agent and all after."""
        ears, mouth = Chain(EnergyVAD(), SilenceTurn(), Words(), reply, ToneTTS()).split()
        assert [stage.kind for stage in ears.stages] == ["vad", "turn", "stt"]
        assert [stage.kind for stage in mouth.stages] == ["agent", "tts"]

    def test_without_an_agent_there_is_nothing_to_split(self):
        """A chain that never replies says so when it is to be split."""
        with pytest.raises(ChainError, match="has nothing that replies"):
            Chain(EnergyVAD(), SilenceTurn()).split()


class TestEachFrame:
    @pytest.mark.parametrize(
        ("result", "expected"),
        [
            (None, [TextDelta("a")]),
            (TextDelta("b"), [TextDelta("b")]),
            ([], []),
            ((), []),
            ([TextDelta("b"), TextDelta("c")], [TextDelta("b"), TextDelta("c")]),
        ],
    )
    def test_what_the_function_gives_decides(self, result, expected):
        """None passes the frame on, a frame stands for it, a list for any number."""

        def plain(frame):
            return result

        async def waiting(frame):
            await asyncio.sleep(1)
            return result

        for function in (plain, waiting):
            assert run_simulated(run(Chain(each_frame(function)), TextDelta("a"))) == expected

    def test_only_its_types_reach_it(self):
        """With types named, all other frames pass by."""

        @each_frame(TextDelta, TextIn)
        def drop(frame):
            return []

        assert run_simulated(run(Chain(drop), TextDelta("a"), AudioOut(b"", 8_000), TextIn("b"))) == [
            AudioOut(b"", 8_000)
        ]

    @given(st.lists(st.integers(0, 3), max_size=20))
    def test_keeps_the_order(self, copies):
        """However many frames each one becomes, and however long that takes, the order stays."""

        @each_frame
        async def multiply(frame):
            await asyncio.sleep(len(frame.text) % 3)
            return [frame] * copies[int(frame.text)]

        frames = [TextDelta(str(number)) for number in range(len(copies))]
        expected = [frame for frame, times in zip(frames, copies, strict=True) for _ in range(times)]
        assert run_simulated(run(Chain(multiply), *frames)) == expected

    def test_a_processor_must_be_an_async_generator(self):
        """`@processor` on anything else is refused at once."""
        with pytest.raises(TypeError, match="async generator"):

            @processor()
            async def wrong(frames, context):
                return frames


def recorder(name, closed, *, fails=False, waits=False, cleanup_fails=False):
    """A stage that writes down when it is closed, and in which task."""

    async def work(frames, context):
        try:
            async for frame in frames:
                if fails:
                    raise ValueError(f"{name} failed")
                if waits:
                    await asyncio.Event().wait()
                yield frame
        finally:
            closed.append((name, asyncio.current_task()))
            if cleanup_fails:
                raise OSError(f"{name} cannot close")

    return Stage(name, work)


async def endless():
    while True:
        yield TextDelta("more")
        await asyncio.sleep(1)


class TestClosing:
    def closed_names(self, closed, task):
        assert {closer for _, closer in closed} == {task}
        return [name for name, _ in closed]

    async def consume(self, chain, at_most=1_000):
        async with Context() as context, chain.process(endless(), context) as frames:
            async for _ in frames:
                at_most -= 1
                if not at_most:
                    break

    @pytest.mark.parametrize("leave", ["break", "raise"])
    def test_stopping_early_closes_the_last_stage_first(self, leave):
        """A consumer that leaves, whichever way, has every stage closed in its own task before it goes on."""
        closed = []

        async def main():
            chain = Chain(*(recorder(name, closed) for name in "abc"))
            try:
                async with Context() as context, chain.process(endless(), context) as frames:
                    async for _ in frames:
                        if leave == "raise":
                            raise KeyError("enough")
                        break
            except KeyError:
                pass
            assert self.closed_names(closed, asyncio.current_task()) == ["c", "b", "a"]

        run_simulated(main())

    @pytest.mark.parametrize("waiting", ["consumer", "stage"])
    def test_cancelling_closes_every_stage(self, waiting):
        """A consumer that is cancelled, while it or a stage waits, has every stage closed when it ends."""
        closed = []

        async def consume():
            chain = Chain(recorder("a", closed), recorder("b", closed, waits=waiting == "stage"), recorder("c", closed))
            async with Context() as context, chain.process(endless(), context) as frames:
                async for _ in frames:
                    await asyncio.Event().wait()

        async def main():
            task = asyncio.create_task(consume())
            await asyncio.sleep(5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            names = self.closed_names(closed, task)
            assert sorted(names) == ["a", "b", "c"]
            if waiting == "consumer":
                assert names == ["c", "b", "a"]

        run_simulated(main())

    def test_a_stage_that_raises_ends_the_chain(self):
        """The consumer gets the stage's own error, and every stage is closed once."""
        closed = []

        async def main():
            chain = Chain(recorder("a", closed), recorder("b", closed, fails=True), recorder("c", closed))
            with pytest.raises(ValueError, match="b failed"):
                await self.consume(chain)
            assert sorted(self.closed_names(closed, asyncio.current_task())) == ["a", "b", "c"]

        run_simulated(main())

    def test_a_cleanup_that_fails_spares_no_other(self):
        """A stage whose own closing raises does not leave the stages before it open."""
        closed = []

        async def main():
            chain = Chain(recorder("a", closed), recorder("b", closed, cleanup_fails=True), recorder("c", closed))
            with pytest.raises(OSError, match="b cannot close"):
                await self.consume(chain, at_most=1)
            assert self.closed_names(closed, asyncio.current_task()) == ["c", "b", "a"]

        run_simulated(main())

    def test_one_chain_serves_many_at_once(self):
        """A chain holds no state: two consumers get each their own frames."""

        @processor()
        async def numbered(frames, context):
            count = 0
            async for frame in frames:
                count += 1
                await asyncio.sleep(1)
                yield TextDelta(f"{frame.text}{count}")

        chain = Chain(numbered)

        async def main():
            return await asyncio.gather(*(run(chain, TextDelta(name), TextDelta(name)) for name in "ab"))

        assert run_simulated(main()) == [[TextDelta("a1"), TextDelta("a2")], [TextDelta("b1"), TextDelta("b2")]]
