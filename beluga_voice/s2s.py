"""Speech to speech: one model that takes audio and gives audio.

In a chain it stands alone where turn, STT, agent and TTS would: `Chain(s2s.new("openai"))`, with or without a VAD before it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar, cast

import attrs

from ._registry import Kind, Provider
from ._streams import Channel, finish, stop
from .audio import Audio, Resampler
from .chain import Stage
from .engine import Context, Engine
from .errors import ProtocolError, ProviderError
from .frames import AudioIn, AudioOut, Failed, Frame, Interrupted, TextDelta, TextIn, ToolReturned, Transcript, TurnEnded

__all__ = [
    "S2S",
    "S2SCapabilities",
    "S2SSession",
    "as_frame_processor",
    "describe",
    "names",
    "new",
    "register",
]

WAITING_AUDIO_MS = 5_000.0


@attrs.frozen
class S2SCapabilities:
    """What a speech-to-speech model can do: its rates, and whether it calls `tools`."""

    input_rate_hz: int = 24_000
    output_rate_hz: int = 24_000
    tools: bool = False


class S2SSession(ABC):
    """One conversation with the model.

    Iterating gives its events in order: `Transcript` of the caller, `TurnEnded` when the caller's turn is over, then the
    reply's `TextDelta`, `AudioOut`, `ToolCalled`, and `ReplyEnded`.
    """

    @abstractmethod
    async def send_audio(self, audio: Audio) -> None:
        """Add caller audio."""

    @abstractmethod
    async def send_text(self, text: str) -> None:
        """Add a typed turn."""

    @abstractmethod
    async def send_tool_result(self, result: ToolReturned) -> None:
        """Answer a `ToolCalled`."""

    @abstractmethod
    async def interrupt(self, played_ms: float) -> None:
        """Stop the reply, of which the caller heard `played_ms`."""

    @abstractmethod
    def events(self) -> AsyncIterator[Frame]:
        """The model's events."""

    @abstractmethod
    async def aclose(self) -> None:
        """Hang up at once."""


class S2S(Engine, ABC):
    """A speech-to-speech model."""

    kind = "s2s"
    capabilities: ClassVar[S2SCapabilities] = S2SCapabilities()

    @abstractmethod
    async def connect(self, history: tuple[Any, ...] = ()) -> S2SSession:
        """Begin a conversation that goes on from `history`.

        Raises:
            ProviderError: the model cannot be reached or refuses.
        """

    def as_frame_processor(self) -> Stage:
        """The stage this model makes in a chain."""
        return as_frame_processor(self)


def as_frame_processor(engine: S2S, **options: Any) -> Stage:
    """A speech-to-speech model as an ears stage: its transcripts, turns and reply enter at the head of the ears.

    Args:
        engine: the model.
        options: its options to change.
    """
    engine = engine.with_options(**options)

    async def run(frames: AsyncIterator[Frame], context: Context) -> AsyncIterator[Frame]:
        to_model: Channel[Frame] = Channel(WAITING_AUDIO_MS, _audio_ms)
        talking = context.spawn(_talk(engine, context, to_model), f"{engine.name} session")
        try:
            async for frame in frames:
                if type(frame) is AudioIn:
                    to_model.put_dropping(frame)
                elif type(frame) in (TextIn, ToolReturned, Interrupted):
                    to_model.put_urgent(frame)
                yield frame
            context.counters["s2s_audio_dropped"] += to_model.dropped
            to_model.close()
            await finish(talking)
        finally:
            await stop(talking)

    makes = frozenset({Transcript, TurnEnded, TextDelta, AudioOut})
    return Stage(engine.name, run, "s2s", "ears", frozenset({AudioIn}), makes, engine=engine)


async def _talk(engine: S2S, context: Context, to_model: Channel[Frame]) -> None:
    try:
        model = await (await context.handle(engine)).connect(context.history)
    except Exception as error:
        context.emit(Failed(engine.name, _wrapped(engine, error)))
        return
    listening = context.spawn(_listen(engine, context, model), f"{engine.name} events")
    rate_hz = engine.capabilities.input_rate_hz
    resampler: Resampler | None = None
    try:
        async for frame in to_model:
            if isinstance(frame, AudioIn):
                if resampler is None or resampler.from_hz != frame.sample_rate_hz:
                    resampler = Resampler(frame.sample_rate_hz, rate_hz)
                await model.send_audio(Audio(resampler.feed(frame.pcm), rate_hz))
            elif isinstance(frame, TextIn):
                await model.send_text(frame.text)
            elif isinstance(frame, ToolReturned):
                await model.send_tool_result(frame)
            elif isinstance(frame, Interrupted):
                await model.interrupt(frame.played_ms)
    except Exception as error:
        context.emit(Failed(engine.name, _wrapped(engine, error)))
    finally:
        await stop(listening)
        await model.aclose()


async def _listen(engine: S2S, context: Context, model: S2SSession) -> None:
    try:
        async for event in model.events():
            context.emit(event)
    except Exception as error:
        context.emit(Failed(engine.name, _wrapped(engine, error)))


def _wrapped(engine: S2S, error: Exception) -> ProviderError:
    if isinstance(error, ProviderError):
        return error
    wrapped = ProtocolError(f"s2s {engine.name!r} failed: {error!r}", provider=engine.name, kind="s2s")
    wrapped.__cause__ = error
    return wrapped


def _audio_ms(frame: Frame) -> float:
    return len(frame.pcm) * 500.0 / frame.sample_rate_hz if isinstance(frame, AudioIn) else 0.0


_kind = Kind("s2s")


def new(name: str, **options: Any) -> S2S:
    """Make the speech-to-speech model of that name."""
    return cast(S2S, _kind.new(name, **options))


def names() -> list[str]:
    """The installed speech-to-speech models."""
    return _kind.names()


def describe(name: str) -> Provider:
    """What is known of a model: options, distribution, capabilities."""
    return _kind.describe(name)


def register(name: str, factory: Callable[..., S2S], **told: Any) -> None:
    """Register a model of this program's own."""
    _kind.register(name, factory, **told)
