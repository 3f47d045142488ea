"""A recogniser made of recognisers: the first does the work while it can, then the next.

>>> class Sick(STT):
...     async def transcribe(self, audio):
...         raise ConnectionError("no network")
>>> class Well(STT):
...     async def transcribe(self, audio):
...         return Transcript("hello")
>>> async def main():
...     async with Failover(Sick(), Well()) as either:
...         return (await either.transcribe(Audio(bytes(3200), 16_000))).text
>>> asyncio.run(main())
'hello'
"""

from __future__ import annotations

from .._streams import Channel
from ..audio import Audio
from ..engine import Context
from ..errors import ChainError
from ..frames import Failed, Frame, Transcript
from ..ranked import Ranked
from ..resilience import ResilienceOptions
from .batch import Batch
from .contract import STT, STTCapabilities, STTStream
from .recognition import Recognition

__all__ = ["Failover"]


class Failover(Ranked, STT):
    """Recognisers in order of preference, used as one.

    When one fails, answers nothing or too late, the next hears what is not answered yet, and goes on; after
    `return_after_ms` the preferred one is tried again at an utterance's beginning. One that has `max_concurrent` streams
    open, or whose breaker is open, is passed over.

    What else it takes and has: see `Ranked`.

    Raises:
        ChainError: some of them end turns by themselves and some do not.
        TypeError: there is none, or one is no recogniser.
    """

    engines: tuple[STT, ...]

    def __init__(self, *engines: STT, options: ResilienceOptions | None = None) -> None:
        super().__init__(*engines, options=options)
        self.capabilities = _common([engine.capabilities for engine in self.engines], [one.name for one in self.engines])
        limits = [_limit(engine) for engine in self.engines]  # a stream holds its place for a whole session
        self.max_streams = None if None in limits else sum(limit for limit in limits if limit is not None)

    async def transcribe(self, audio: Audio) -> Transcript:
        """The words of one piece of audio, however long, outside of any session.

        Raises:
            ProviderError: what the last one raised, once all have failed.
        """
        async with Context() as context:
            return await Batch(self, context).transcribe(audio)

    def stream(self) -> STTStream:
        """A stream of its own, outside of any session."""
        return _Stream(self)


def _common(capabilities: list[STTCapabilities], names: list[str]) -> STTCapabilities:
    """What all of them can do together."""
    first = capabilities[0]
    other = next((at for at, one in enumerate(capabilities) if one.ends_turns != first.ends_turns), None)
    if other is not None:
        ends, hears = (0, other) if first.ends_turns else (other, 0)
        raise ChainError(
            f"stt {names[ends]!r} ends turns by itself and its stand-by {names[hears]!r} does not; expected both to, or "
            "neither. Take a model that leaves turns to the turn detector, or another stand-by.",
            stage="stt",
        )
    rates_hz = {one.sample_rate_hz for one in capabilities}
    limits = [one.max_streams for one in capabilities]
    return STTCapabilities(
        sample_rate_hz=first.sample_rate_hz if len(rates_hz) == 1 else None,
        continuous=all(one.continuous for one in capabilities),
        interim=first.interim,
        quick=first.quick,
        ends_turns=first.ends_turns,
        max_streams=None if None in limits else sum(limit for limit in limits if limit is not None),
    )


def _limit(engine: STT) -> int | None:
    """How many sessions it serves at once, by itself and by its account."""
    limits = [limit for limit in (engine.max_streams, engine.max_concurrent) if limit is not None]
    return min(limits, default=None)


class _Stream(STTStream):
    """A `Recognition` in a world of its own, as a stream."""

    def __init__(self, engine: Failover) -> None:
        self._context = Context()
        self._out: Channel[Transcript | Exception] = Channel(1_000)
        self._recognition = Recognition(engine, self._context, self._heard)

    def _heard(self, frame: Frame) -> None:
        if isinstance(frame, Transcript):
            self._out.put_over(frame)
        elif isinstance(frame, Failed):
            self._out.put_over(frame.error)

    async def connect(self) -> None:
        self._recognition.connect()

    async def send(self, audio: Audio) -> None:
        self._recognition.audio(audio)

    async def finalize(self) -> None:
        self._recognition.finalize()

    async def propose(self) -> None:
        self._recognition.wish("propose")

    async def withdraw(self) -> None:
        self._recognition.wish("withdraw")

    async def peek(self) -> None:
        self._recognition.wish("peek")

    async def aclose(self) -> None:
        await self._recognition.aclose()
        await self._context.aclose()
        self._out.close()

    async def __anext__(self) -> Transcript:
        item = await anext(self._out)
        if isinstance(item, Exception):
            raise item
        return item
