"""Whole pieces of audio, outside of any conversation: each is transcribed by the first recogniser that can.

>>> from beluga_voice.stt import failover, new
>>> class Sick(STT):
...     async def transcribe(self, audio):
...         raise ConnectionError("no network")
>>> class Well(STT):
...     async def transcribe(self, audio):
...         return Transcript("hello")
>>> async def main():
...     async with Context() as context:
...         batch = Batch(failover(Sick(), Well()), context)
...         heard = await batch.transcribe(Audio(bytes(3200), 16_000))
...         return heard.text, batch.engine.name
>>> asyncio.run(main())
('hello', 'Well')
"""

from __future__ import annotations

import asyncio
from collections import Counter

from ..audio import Audio, resample
from ..engine import Context
from ..errors import ProviderError, ProviderTimeoutError
from ..frames import Transcript
from ..ranked import Duty, Ranked
from ..resilience import Call, provider_error
from .contract import STT
from .recognition import EMPTY_MS, PATIENCE, heard_nothing

__all__ = ["Batch"]


class Batch:
    """Transcribes one piece after another; whoever took over goes on with the next one.

    Args:
        ranked: the recognisers, in order of preference.
        context: whose clock and handles; it is told who takes over, and why.
    """

    def __init__(self, ranked: Ranked, context: Context) -> None:
        self._ranked, self._context = ranked, context
        self._duty = Duty(ranked, context)

    @property
    def engine(self) -> STT:
        """Who transcribed the last piece."""
        engine: STT = self._duty.engine
        return engine

    async def transcribe(self, audio: Audio) -> Transcript:
        """The words of one piece, however long, at any rate.

        Raises:
            ProviderError: what the last one raised, once all have failed.
        """
        failures: Counter[int] = Counter()
        error: ProviderError | None = None
        while True:
            call = await self._duty.enter(failures, error)
            try:
                heard = await self._heard_by(self._duty.at, call, audio, failures)
            except ProviderError as caught:
                error = caught
                failures[self._duty.at] += 1
                continue
            if heard.text or audio.duration_ms < EMPTY_MS:
                return heard
            return await self._second_opinion(audio, failures) or heard

    async def _heard_by(self, index: int, call: Call, audio: Audio, failures: Counter[int]) -> Transcript:
        """What one of them hears."""
        engine: STT = self._ranked.engines[index]
        limit_ms = self._limit_ms(engine, audio, failures)
        call.first()  # how long it takes for a long piece says nothing of its health
        rate_hz = engine.capabilities.sample_rate_hz
        try:
            with call:
                async with asyncio.timeout(None if limit_ms is None else limit_ms / 1000.0) as limit:
                    handle = await self._context.handle(engine)
                    return await handle.transcribe(resample(audio, rate_hz) if rate_hz else audio)
        except ProviderError:
            raise
        except TimeoutError as error:
            if limit_ms is None or not limit.expired():
                raise provider_error(error, "stt", engine.name) from error
            raise ProviderTimeoutError(
                f"stt {engine.name!r} gave no words within {limit_ms:.0f} ms for {audio.duration_ms:.0f} ms of audio; expected "
                "them sooner. Raise final_timeout_ms in [resilience], or put a faster provider first",
                provider=engine.name,
                kind="stt",
            ) from error
        except Exception as error:
            raise provider_error(error, "stt", engine.name) from error

    def _limit_ms(self, engine: STT, audio: Audio, failures: Counter[int]) -> float | None:
        """How long it is waited for: as in a conversation where there is another, longer where there is none."""
        options = self._ranked.resilience
        limit_ms = options.connect_timeout_ms + options.final_timeout_ms + audio.duration_ms / 10.0
        if self._duty.others(failures):
            return limit_ms
        return limit_ms * PATIENCE if engine.account else None

    async def _second_opinion(self, audio: Audio, failures: Counter[int]) -> Transcript | None:
        """What another hears where this one heard nothing; then it goes on in its place."""
        name = self.engine.name
        for index in self._duty.others(failures):
            call = self._duty.guard(index).enter(self._context.emit)
            if call is None:
                continue
            try:
                found = await self._heard_by(index, call, audio, failures)
            except ProviderError:
                continue
            if found.text:
                self._duty.go_to(index, heard_nothing(name, self._ranked.engines[index].name, audio.duration_ms))
                return found
            break
        return None
