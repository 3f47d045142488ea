"""Stages and how they are joined: the one shape everything in a session has.

A stage is any object with `process(frames, context)`, an async generator over frames. A `Chain` is an immutable row of them,
shared by every session: state lives in the generators of one `process`.

>>> from beluga_voice.frames import TextDelta
>>> @each_frame(TextDelta)
... def shout(frame):
...     return TextDelta(frame.text.upper())
>>> async def main():
...     async def source():
...         yield TextDelta("hello")
...     async with Context() as context, Chain(shout).process(source(), context) as frames:
...         return [frame async for frame in frames]
>>> asyncio.run(main())
[TextDelta(text='HELLO')]
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Literal, Protocol, overload, runtime_checkable

import attrs

from .engine import Context, Engine
from .errors import ChainError
from .frames import (
    AudioIn,
    AudioOut,
    Frame,
    SpeechStarted,
    TextDelta,
    Transcript,
    TurnEnded,
)

__all__ = ["Chain", "FrameProcessor", "Stage", "each_frame", "processor", "use_for_functions"]

Side = Literal["ears", "mouth", "either"]
Process = Callable[[AsyncIterator[Frame], Context], AsyncIterator[Frame]]
Handler = Callable[..., Any]

MADE_BY = {
    SpeechStarted: "vad",
    TurnEnded: "turn",
    Transcript: "stt",
    TextDelta: "agent",
    AudioIn: "",
    AudioOut: "tts",
}


@runtime_checkable
class FrameProcessor(Protocol):
    """Anything that stands in a chain: takes frames, gives frames, in order, and passes on what is not its business."""

    def process(self, frames: AsyncIterator[Frame], context: Context) -> AsyncIterator[Frame]:
        """An async generator over `frames`; closing it must free everything it holds."""
        ...


@attrs.frozen(eq=False)
class Stage:
    """A frame processor with its place told: the form every stage has inside a `Chain`.

    Attributes:
        name: what errors and warnings call it.
        run: the async generator function `(frames, context)`.
        kind: "vad", "turn", "stt", "agent", "tts", "s2s" or "processor"; a chain has at most one of each but the last.
        side: "ears" before the replying stage, "mouth" after it, or "either".
        needs: frame types that an earlier stage must make.
        makes: frame types that it adds.
        replies: True for the stage where the mouth begins (the agent).
        engine: the engine behind it, entered and opened by the session.
        placed: for a stage that works differently by its place: makes its `run` from the frame types made before it.
    """

    name: str
    run: Process
    kind: str = "processor"
    side: Side = "either"
    needs: frozenset[type] = frozenset()
    makes: frozenset[type] = frozenset()
    replies: bool = False
    engine: Engine | None = None
    placed: Callable[[frozenset[type]], Process] | None = None

    def process(self, frames: AsyncIterator[Frame], context: Context) -> AsyncIterator[Frame]:
        """The stage's generator over `frames`."""
        return self.run(frames, context)


def processor(
    *,
    side: Side = "either",
    needs: Iterable[type] = (),
    makes: Iterable[type] = (),
    name: str = "",
) -> Callable[[Process], Stage]:
    """Make a stage of an async generator function `(frames, context)`.

    >>> @processor(side="mouth")
    ... async def quieter(frames, context):
    ...     async for frame in frames:
    ...         yield frame
    >>> quieter.name
    'quieter'
    """

    def make(function: Process) -> Stage:
        if not inspect.isasyncgenfunction(function):
            raise TypeError(f"@processor takes an async generator (async def with yield), got {function!r}")
        title = name or getattr(function, "__name__", "processor")
        return Stage(title, function, side=side, needs=frozenset(needs), makes=frozenset(makes))

    return make


@overload
def each_frame(function: Handler, /) -> Stage: ...
@overload
def each_frame(*types: type, side: Side = "either", name: str = "") -> Callable[[Handler], Stage]: ...


def each_frame(*types: Any, side: Side = "either", name: str = "") -> Any:
    """Make a stage of a function that is called with one frame at a time.

    The function may be plain or async. It returns the frame to pass on instead, a list or tuple of frames (empty: drop it),
    or None to pass the frame on as it is. With types given, only such frames reach it; all others pass by.
    """
    if len(types) == 1 and inspect.isroutine(types[0]):
        return _each_frame(types[0], (), side, name)
    return lambda function: _each_frame(function, types, side, name)


def _each_frame(function: Handler, types: tuple[type, ...], side: Side, name: str) -> Stage:
    title = name or getattr(function, "__name__", "each_frame")
    wanted = frozenset(types)
    is_async = inspect.iscoroutinefunction(function)

    async def run(frames: AsyncIterator[Frame], context: Context) -> AsyncIterator[Frame]:
        async for frame in frames:
            if wanted and type(frame) not in wanted:
                yield frame
                continue
            result = function(frame)
            if is_async:
                result = await result
            if result is None:
                yield frame
            elif isinstance(result, (list, tuple)):
                for one in result:
                    yield one
            else:
                yield result

    return Stage(title, run, side=side)


StageOf = Callable[[Any], Stage]
_function_stage: StageOf | None = None


def use_for_functions(stage_of: StageOf) -> None:
    """Tell what makes a stage of a bare function in a chain; the agent kind does, once."""
    global _function_stage
    _function_stage = stage_of


class Chain:
    """An immutable row of stages, checked for order when built.

    Takes stages, engines (wrapped by their kind), any object with `process(frames, context)`, and bare async functions, which
    are agents.

    Raises:
        ChainError: a stage stands where it cannot work; the message says which, what it lacks and where to put it.
        TypeError: something that is no stage.
    """

    def __init__(self, *stages: Any) -> None:
        self.stages: tuple[Stage, ...] = tuple(_stage(one) for one in stages)
        self.stages = tuple(self._placed())

    def __repr__(self) -> str:
        return f"Chain({', '.join(stage.name for stage in self.stages)})"

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The engines behind the stages, in order."""
        return tuple(stage.engine for stage in self.stages if stage.engine is not None)

    def stage(self, kind: str) -> Stage | None:
        """The stage of that kind, if the chain has one."""
        return next((stage for stage in self.stages if stage.kind == kind), None)

    def index(self, kind: str) -> int:
        """Where the stage of that kind stands; -1 without one."""
        return next((at for at, stage in enumerate(self.stages) if stage.kind == kind), -1)

    def split(self) -> tuple[Chain, Chain]:
        """The ears (all before the replying stage) and the mouth (it and all after).

        Raises:
            ChainError: no stage replies.
        """
        seam = next((at for at, stage in enumerate(self.stages) if stage.replies), None)
        if seam is None:
            if self.stage("s2s"):
                return self, Chain()
            raise ChainError(
                f"{self!r} has nothing that replies; expected an agent (an async function) or an s2s engine. "
                "Add your agent before tts."
            )
        return Chain._of(self.stages[:seam]), Chain._of(self.stages[seam:])

    @classmethod
    def _of(cls, stages: tuple[Stage, ...]) -> Chain:
        part = cls.__new__(cls)
        part.stages = stages
        return part

    @asynccontextmanager
    async def process(self, frames: AsyncIterator[Frame], context: Context) -> AsyncIterator[AsyncIterator[Frame]]:
        """Run the stages over `frames`; on leaving, every stage is closed, the last first."""
        watch = context.watch
        opened: list[AsyncIterator[Frame]] = []
        try:
            for at, stage in enumerate(self.stages, 1):
                frames = stage.process(frames, context)
                opened.append(frames)
                if watch is not None:
                    taker = self.stages[at].name if at < len(self.stages) else "session"
                    frames = watch.between(stage.name, frames, taker)
                    opened.append(frames)
            yield frames
        finally:
            await _close(opened)

    def _placed(self) -> Iterator[Stage]:
        made: set[type] = {AudioIn}
        seen: dict[str, int] = {}
        replied = ""
        names = [stage.kind if stage.kind != "processor" else stage.name for stage in self.stages]
        for at, stage in enumerate(self.stages):
            here = f"stage {at} ({names[at]})"
            if stage.kind in seen and stage.kind != "processor":
                raise ChainError(
                    f"{here} is a second {stage.kind}; stage {seen[stage.kind]} is one already. Keep one: for a stand-by "
                    f"that takes over on failure, write two [[{stage.kind}]] tables in a configuration file.",
                    stage=names[at],
                )
            seen[stage.kind] = at
            if "s2s" in seen and seen.keys() & {"turn", "stt", "agent", "tts"}:
                raise ChainError(
                    f"{here} stands beside a speech-to-speech model, which hears, answers and speaks by itself. "
                    "Keep either the model, or turn, stt, agent and tts.",
                    stage=names[at],
                )
            for frame in sorted(stage.needs - made, key=lambda frame: frame.__name__):
                maker = MADE_BY.get(frame, "")
                later = next((n for n in range(at + 1, len(self.stages)) if frame in self.stages[n].makes), None)
                remedy = f"Put {maker or 'a stage that makes it'} before it."
                if later is not None:
                    remedy = f"Move stage {later} ({names[later]}) before it."
                raise ChainError(
                    f"{here} needs {frame.__name__}, which nothing before it makes. {remedy}",
                    stage=names[at],
                    missing=frame.__name__,
                )
            if replied and stage.side == "ears":
                raise ChainError(
                    f"{here} listens to the caller, but stands after {replied}, where the reply is made. Move it before.",
                    stage=names[at],
                )
            if not replied and stage.side == "mouth" and not stage.replies:
                raise ChainError(
                    f"{here} works on the reply, but stands before any stage that replies. Move it after the agent.",
                    stage=names[at],
                )
            if stage.replies:
                replied = f"stage {at} ({names[at]})"
            yield attrs.evolve(stage, run=stage.placed(frozenset(made))) if stage.placed else stage
            made |= stage.makes


async def _close(opened: list[AsyncIterator[Frame]]) -> None:
    """Close all, the last first, whatever one of them raises; the first failure is raised in the end."""
    failure: BaseException | None = None
    while opened:
        close = getattr(opened.pop(), "aclose", None)
        try:
            if close is not None:
                await close()
        except BaseException as error:
            failure = failure or error
    if failure is not None:
        raise failure


def _stage(one: Any) -> Stage:
    if isinstance(one, Stage):
        return one
    if isinstance(one, (list, tuple)):
        raise TypeError(f"a chain takes its stages one by one: write Chain(*stages), not Chain({type(one).__name__})")
    if isinstance(one, type):
        raise TypeError(f"{one.__name__} is a class; a chain takes an instance: write {one.__name__}(...)")
    if hasattr(one, "as_frame_processor"):
        made: Stage = one.as_frame_processor()
        return made
    if isinstance(one, FrameProcessor):
        return Stage(
            getattr(one, "name", type(one).__name__),
            one.process,
            side=getattr(one, "side", "either"),
            needs=frozenset(getattr(one, "needs", ())),
            makes=frozenset(getattr(one, "makes", ())),
        )
    if callable(one) and _function_stage is not None:
        return _function_stage(one)
    raise TypeError(
        f"{one!r} is no stage; expected an engine, an async function (an agent), a @processor or @each_frame function, "
        "or an object with process(frames, context)"
    )
