"""Text to speech. An author writes what the engine has, batch or stream; the base class serves the other.

>>> class Beep(TTS):
...     async def synthesize(self, text):
...         return Audio(bytes(320 * len(text)), 16000)
>>> async def main():
...     async def texts():
...         yield "hi"
...     return [piece.text async for piece in Beep().synthesize_stream(texts())]
>>> asyncio.run(main())
['hi']
"""

from __future__ import annotations

from abc import ABC
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, ClassVar, cast

import attrs

from ._registry import Kind, Provider
from ._streams import Channel, stop
from .audio import Audio, Resampler
from .chain import Stage
from .clock import Timers
from .engine import Context, Engine
from .errors import ProtocolError, ProviderError
from .frames import AudioOut, Failed, Frame, TextDelta
from .options import option

__all__ = [
    "TTS",
    "Options",
    "SentenceSplitter",
    "TTSCapabilities",
    "as_frame_processor",
    "describe",
    "names",
    "new",
    "register",
]

SENTENCES_AHEAD = 4
FLUSH_MS = 80.0  # an agent that pauses for longer after a full stop has finished a sentence: "It costs 3." may go on with "50"
AHEAD_MS = 1_280.0  # audio that waits between the voice and the playout; a frame without audio counts as 20 ms
A_NAME = "Smith"  # what may follow an abbreviation as well as a full stop: after "Dr." it begins no sentence


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
        return as_frame_processor(self)


class SentenceSplitter:
    """Cuts text that comes in pieces into sentences, each as soon as the next one has begun.

    Sentence ends are found by `sentencex` (https://github.com/wikimedia/sentencex). A sentence longer than `longest`
    characters is cut at a space, so that speech can begin.

    >>> split = SentenceSplitter("en")
    >>> split.feed("Dr. Smith is in. Ask"), split.feed(" him!"), split.rest()
    (['Dr. Smith is in.'], [], 'Ask him!')
    """

    def __init__(self, language: str, longest: int = 300) -> None:
        import sentencex  # here, so that importing the package stays quick

        self._segment = sentencex.segment
        self._language, self._longest = language.split("-")[0], longest
        self._held = ""

    def feed(self, text: str) -> list[str]:
        """The sentences that `text` completes."""
        self._held += text
        parts = list(self._segment(self._language, self._held))
        self._held = parts.pop() if parts else ""
        if self._held[-1:].isspace() and self.complete:
            parts.append(self._held)
            self._held = ""
        elif len(self._held) > self._longest:
            *early, self._held = _cut(self._held, self._longest)
            parts += early
        return [piece.strip() for part in parts for piece in _cut(part, self._longest) if piece.strip()]

    @property
    def complete(self) -> bool:
        """True when what is held reads as a whole sentence, though nothing has followed it yet."""
        return len(list(self._segment(self._language, f"{self._held.strip()} {A_NAME}"))) > 1

    def rest(self) -> str:
        """What is left; the splitter is empty afterwards."""
        rest, self._held = self._held.strip(), ""
        return rest


def _cut(text: str, longest: int) -> list[str]:
    """`text` in pieces of at most `longest` characters, cut at spaces where there are any."""
    pieces = []
    while len(text) > longest:
        at = text.rfind(" ", 1, longest)
        at = at if at > 0 else longest
        pieces.append(text[:at])
        text = text[at:]
    return [*pieces, text]


def as_frame_processor(engine: TTS, sample_rate_hz: int | None = None, **options: Any) -> Stage:
    """A voice as a stage: passes the text on and adds its audio.

    Text is prefetched from the agent while the voice speaks, and a sentence is synthesised while the one before it is sent.

    Args:
        engine: the voice.
        sample_rate_hz: the rate of the audio it adds; by default the line's own.
        options: its options to change, like `voice="nova"`.
    """
    engine = engine.with_options(**options)
    SentenceSplitter("en"), Resampler(8_000, 16_000)  # their libraries are loaded now, not in the first reply

    async def run(frames: AsyncIterator[Frame], context: Context) -> AsyncIterator[Frame]:
        out: Channel[Frame] = Channel(AHEAD_MS, _ahead_ms)
        texts: Channel[str] = Channel(SENTENCES_AHEAD)
        rate_hz = sample_rate_hz or context.output_rate_hz
        reading = context.spawn(_read(engine, context, frames, texts, out), f"{engine.name} text")
        speaking = context.spawn(_speak(engine, context, texts, out, rate_hz), f"{engine.name} audio")
        try:
            async for frame in out:
                yield frame
        finally:
            await stop(speaking)
            await stop(reading)

    needs, makes = frozenset({TextDelta}), frozenset({AudioOut})
    return Stage(engine.name, run, "tts", "mouth", needs, makes, engine=engine)


async def _read(
    engine: TTS, context: Context, frames: AsyncIterator[Frame], texts: Channel[str], out: Channel[Frame]
) -> None:
    """Pass frames on, and their text to the voice: whole sentences, or as it comes where the voice takes that."""
    whole = engine.capabilities.streaming_text
    splitter = SentenceSplitter(getattr(engine.options, "language", "en"))
    timers = Timers(context.clock)

    def flush() -> None:
        rest = splitter.rest()
        if rest:
            texts.put_over(rest)

    try:
        async for frame in frames:
            timers.cancel()
            await out.put(frame)
            if type(frame) is TextDelta and frame.text:
                for text in [frame.text] if whole else splitter.feed(frame.text):
                    await texts.put(text)
                if not whole and splitter.complete:
                    timers.set("flush", FLUSH_MS, flush)
        flush()
    except Exception as error:
        out.close(error)
    finally:
        timers.cancel()
        texts.close()


async def _speak(engine: TTS, context: Context, texts: Channel[str], out: Channel[Frame], rate_hz: int) -> None:
    """Turn texts into audio at `rate_hz`."""
    try:
        voice = await context.handle(engine)
        if engine.capabilities.streaming_text:
            await _speak_texts(voice, texts, out, rate_hz, "")
        else:
            async for sentence in texts:
                await _speak_texts(voice, _once(sentence), out, rate_hz, sentence)
    except Exception as error:
        if not isinstance(error, ProviderError):
            wrapped = ProtocolError(f"tts {engine.name!r} failed: {error!r}", provider=engine.name, kind="tts")
            wrapped.__cause__ = error
            error = wrapped
        await out.put(Failed(engine.name, error))
        async for _ in texts:
            pass
    finally:
        out.close()


async def _speak_texts(
    voice: TTS, texts: AsyncIterator[str], out: Channel[Frame], rate_hz: int, sentence: str
) -> None:
    """One call of the voice; its first audio is marked with the sentence, where it is one."""
    resampler: Resampler | None = None
    async with aclosing(cast(Any, voice.synthesize_stream(texts))) as pieces:
        async for piece in pieces:
            if resampler is None or resampler.from_hz != piece.sample_rate_hz:
                resampler = Resampler(piece.sample_rate_hz, rate_hz)
            pcm = resampler.feed(piece.pcm)
            text, sentence = (sentence or piece.text), ""
            if pcm or text or piece.words:
                await out.put(AudioOut(pcm, rate_hz, text, piece.words))
    rest = resampler.feed(b"", last=True) if resampler is not None else b""
    if rest:
        await out.put(AudioOut(rest, rate_hz))


def _ahead_ms(frame: Frame) -> float:
    return Audio(frame.pcm, frame.sample_rate_hz).duration_ms if type(frame) is AudioOut else 20.0


async def _once(text: str) -> AsyncIterator[str]:
    yield text


_kind = Kind("tts")


def new(name: str, **options: Any) -> TTS:
    """Make the voice of that name, like `new("espeak")`."""
    return cast(TTS, _kind.new(name, **options))


def names() -> list[str]:
    """The installed voices."""
    return _kind.names()


def describe(name: str) -> Provider:
    """What is known of a voice: options, distribution, capabilities."""
    return _kind.describe(name)


def register(name: str, factory: Callable[..., TTS], **told: Any) -> None:
    """Register a voice of this program's own."""
    _kind.register(name, factory, **told)
