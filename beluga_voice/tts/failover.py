"""A voice made of voices: the first speaks while it can, then the next, in mid-sentence if need be.

>>> class Sick(TTS):
...     async def synthesize(self, text):
...         raise ConnectionError("no network")
>>> class Well(TTS):
...     async def synthesize(self, text):
...         return await tts.new("tone").synthesize(text)
>>> from beluga_voice import tts
>>> async def main():
...     async with Failover(Sick(), Well()) as either:
...         return (await either.synthesize("Hello there.")).duration_ms
>>> asyncio.run(main())
400.0
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from typing import Any

from .._streams import Channel, stop
from ..engine import Context
from ..frames import AudioOut
from ..ranked import Ranked
from ..resilience import ResilienceOptions
from .contract import TTS, TTSCapabilities
from .sentences import Script
from .speech import Speech
from .spoken import Pace

__all__ = ["Failover"]

AHEAD = 4  # texts and pieces that wait, outside of a session


class Failover(Ranked, TTS):
    """Voices in order of preference, used as one.

    When one fails, gives no sound or falls behind, the next says what was not said, from about where it stopped; after
    `return_after_ms` the preferred one is tried again at a sentence's beginning. One that has `max_concurrent` calls under
    way, or whose breaker is open, is passed over. What else it takes and has: see `Ranked`.
    """

    def __init__(self, *engines: TTS, options: ResilienceOptions | None = None) -> None:
        super().__init__(*engines, options=options)
        capabilities = [engine.capabilities for engine in self.engines]
        rates_hz = {one.sample_rate_hz for one in capabilities}
        self.capabilities = TTSCapabilities(  # type: ignore[misc]
            sample_rate_hz=rates_hz.pop() if len(rates_hz) == 1 else None,
            streaming_text=capabilities[0].streaming_text,
            word_times=all(one.word_times for one in capabilities),
        )
        self._paces: dict[int, Pace] = {}  # of each voice; shared by all sessions

    @property
    def language(self) -> str:
        """BCP-47 tag of the text, for splitting it into sentences."""
        return getattr(self.options, "language", "en")

    async def synthesize_stream(self, texts: AsyncIterator[str]) -> AsyncIterator[AudioOut]:
        """The sound of the texts, outside of any session. Raises what the last voice raised, once all have failed."""
        script: Channel[str] = Channel(AHEAD)
        out: Channel[AudioOut] = Channel(AHEAD)
        async with Context() as context:
            speech = Speech(await self.open(context), Script(script, self.language), context, out.put)

            async def read() -> None:
                async for text in texts:
                    await script.put(text)

            tasks = [
                context.tasks.spawn(_until_closed(read(), script), "texts"),
                context.tasks.spawn(_until_closed(speech.run(), out), "speech"),
            ]
            try:
                async for piece in out:
                    yield piece
            finally:
                for task in tasks:
                    await stop(task)

    def pace(self, at: int) -> Pace:
        """How fast a voice speaks."""
        return self._paces.get(at, Pace())

    def learn(self, at: int, text: str, audio_ms: float) -> None:
        """A voice has spoken a whole text, in so long."""
        pace = Pace.of(text, audio_ms)
        self._paces[at] = self._paces.get(at, pace).after(pace)


async def _until_closed(work: Coroutine[Any, Any, None], channel: Channel[Any]) -> None:
    """Do the work, and close the channel with its error, if it fails."""
    error: Exception | None = None
    try:
        await work
    except Exception as caught:
        error = caught
    finally:
        channel.close(error)
