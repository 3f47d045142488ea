"""What a voice is: what it can do, and the base class that serves batch from stream and stream from batch."""

from __future__ import annotations

from abc import ABC
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, ClassVar, cast

import attrs

from ..audio import Audio
from ..chain import Stage
from ..engine import Engine
from ..frames import AudioOut
from ..options import option

__all__ = ["TTS", "Options", "TTSCapabilities"]


@attrs.frozen
class Options:
    """What every voice is asked; a provider's own options class adds to these by inheriting."""

    voice: str = option("", "which voice speaks; empty: the provider's own choice")
    language: str = option("en", "BCP-47 tag of the text, for splitting it into sentences")


@attrs.frozen
class TTSCapabilities:
    """What a voice can do.

    Attributes:
        sample_rate_hz: the rate of its audio; None: it varies.
        streaming_text: it takes text as it is made, in any pieces; otherwise it gets whole sentences.
        word_times: its audio says when each word is spoken.
    """

    sample_rate_hz: int | None = None
    streaming_text: bool = False
    word_times: bool = False


class TTS(Engine, ABC):
    """A voice. Write `synthesize` (batch) or `synthesize_stream`; the other follows.

    Raises:
        TypeError: when a subclass is defined with neither.
    """

    kind = "tts"
    capabilities: ClassVar[TTSCapabilities] = TTSCapabilities()
    options: Any = Options()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.synthesize is TTS.synthesize and cls.synthesize_stream is TTS.synthesize_stream:
            raise TypeError(
                f"{cls.__name__} has neither synthesize nor synthesize_stream; "
                "write `async def synthesize(self, text: str) -> Audio`, or the generator `synthesize_stream(self, texts)`"
            )

    async def synthesize(self, text: str) -> Audio:
        """The whole sound of `text`.

        Raises:
            ProviderError: the engine failed; its subclasses say how.
        """

        async def one() -> AsyncIterator[str]:
            yield text

        pcm: list[bytes] = []
        rate_hz = self.capabilities.sample_rate_hz or 16_000
        async with aclosing(cast(Any, self.synthesize_stream(one()))) as pieces:
            async for piece in pieces:
                rate_hz = piece.sample_rate_hz
                pcm.append(piece.pcm)
        return Audio(b"".join(pcm), rate_hz)

    async def synthesize_stream(self, texts: AsyncIterator[str]) -> AsyncIterator[AudioOut]:
        """The sound of texts as it is made; the first audio leaves before the texts end.

        Each piece that begins a text carries it in `text`. Closing the generator must stop the engine and free everything.
        """
        async for text in texts:
            audio = await self.synthesize(text)
            yield AudioOut(audio.pcm, audio.sample_rate_hz, text)

    def as_frame_processor(self) -> Stage:
        """The stage this voice makes in a chain."""
        from .stage import as_frame_processor  # which is made of what this file defines

        return as_frame_processor(self)
