"""eSpeak NG as a voice of beluga-voice: options, a thread, and a stream of pieces around `synth.speak`.

>>> EspeakTTS(rate_wpm=160).options.voice
'en-us'
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

import attrs

from beluga_voice.audio import BYTES_PER_SAMPLE
from beluga_voice.engine import WorkPool
from beluga_voice.errors import InvalidRequestError, OptionError, OverloadedError, ProviderError
from beluga_voice.frames import AudioOut, Word
from beluga_voice.options import build, option
from beluga_voice.tts import TTS, Options, TTSCapabilities

from . import synth
from .synth import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from typing import Self

__all__ = ["EspeakOptions", "EspeakTTS"]

OWNER: Final = "tts 'espeak'"

# What the engine raises -> what a session is told; the first that fits.
ERRORS: Final[tuple[tuple[type[Exception], type[ProviderError]], ...]] = (
    (MemoryError, OverloadedError),
    (ValueError, InvalidRequestError),
    (Exception, ProviderError),  # the library failed: another voice may do it
)

# The library never waits for who listens, so what bounds the audio held is the text it gets at once: the slowest 300
# characters found (digits with spaces, at 80 words a minute) last 80 s, 3.5 MB.
LONGEST_PART: Final = 300
GIVE_WAY_S: Final = 0.0001
BREAKS: Final = (re.compile(r"[.!?\u2026]\s"), re.compile(r"[,;:)\u2014]\s"), re.compile(r"\s"))


@attrs.frozen
class EspeakOptions(Options):
    """Options of eSpeak NG: those of every voice, and how it speaks."""

    voice: str = option("en-us", 'a language or name, "+" a variant: "de", "en-us+f3"; empty: the one of language')
    rate_wpm: int = option(175, "words a minute", at_least=80, at_most=450)
    pitch: int = option(50, "0 to 100", at_least=0, at_most=100)
    volume: int = option(100, "100 is normal, more may clip", at_least=0, at_most=200)


class EspeakTTS(TTS):
    """eSpeak NG: robotic, in 140 languages and accents, 1 ms of work for a second of speech, with word times.

    A text is spoken in a thread, and each 60 ms of it is given away as it is made. Closing the stream stops the library
    at the next 60 ms. One text at a time is spoken in the process, whoever asks.

    Copies made by `with_options` share the thread, which ends when the last copy that used it is closed.

    Args:
        options: see `EspeakOptions`.

    Attributes:
        pool: the thread; `pool.calls` and `pool.busy_ms` tell what it did.

    Raises:
        OptionError: an option does not fit, or there is no such voice; the message lists some that there are.
        ModuleNotFoundError: `espeakng-loader` is not installed.
        ProviderError: the library cannot be loaded. The first engine made loads it: 32 ms.

    Example:
        >>> async def main():
        ...     async with EspeakTTS(voice="en-gb") as engine:
        ...         return (await engine.synthesize("Good morning.")).sample_rate_hz
        >>> asyncio.run(main())
        22050
    """

    Options = EspeakOptions
    capabilities = TTSCapabilities(sample_rate_hz=SAMPLE_RATE_HZ, word_times=True)

    def __init__(self, **options: Any) -> None:
        self.options: EspeakOptions = build(EspeakOptions, options, OWNER)
        _check_voice(self.options)
        self.pool = WorkPool(1, "espeak")
        self._in_use: WeakSet[EspeakTTS] = WeakSet()  # who used the pool and was not closed since

    def with_options(self, **changes: Any) -> Self:
        """The same engine with other options, sharing the thread.

        Raises:
            OptionError: as for the class.
        """
        other = super().with_options(**changes)
        _check_voice(other.options)
        return other

    async def synthesize_stream(self, texts: AsyncIterator[str]) -> AsyncIterator[AudioOut]:
        """The sound of each text, in pieces of 60 ms or less, each with the words that ended in it.

        Word times count from the start of their text's audio. Blank texts give nothing.

        Raises:
            ProviderError: the library failed.
        """
        async for text in texts:
            untold, samples = text, 0
            for part in _parts(text):
                speech = _Speech(part, self.options, samples)
                speaking = asyncio.get_running_loop().create_task(self._speak(speech), name="espeak")
                speaking.add_done_callback(speech.end)
                try:
                    while (piece := await speech.pieces.get()) is not None:
                        yield AudioOut(piece[0], SAMPLE_RATE_HZ, untold, piece[1])
                        untold = ""
                    await speaking
                finally:
                    speech.stopped = True
                    speaking.cancel()
                    await asyncio.wait([speaking])
                samples = speech.samples

    async def aclose(self) -> None:
        """Drop what waits, wait for the text under way, end the thread, unless a copy of this engine uses it."""
        self._in_use.discard(self)
        if not self._in_use:
            await self.pool.aclose()

    async def _speak(self, speech: _Speech) -> None:
        self._in_use.add(self)
        try:
            await self.pool.run(speech.run)
        except Exception as error:
            if not speech.stopped:
                told = next(told for raised, told in ERRORS if isinstance(error, raised))
                raise told(f"tts {self.name!r}: {error}", provider=self.name, kind="tts") from error


class _Speech:
    """Some text, spoken in a thread and heard in the loop; setting `stopped` ends it at the library's next 60 ms."""

    def __init__(self, text: str, options: EspeakOptions, samples: int) -> None:
        self.stopped = False
        self.samples = samples  # made so far for the text that this is a part of
        self.pieces: asyncio.Queue[tuple[bytes, tuple[Word, ...]] | None] = asyncio.Queue()
        self._text, self._options = text, options
        self._start_ms = samples * 1000.0 / SAMPLE_RATE_HZ
        self._loop = asyncio.get_running_loop()
        self._held = b""
        self._words: list[Word] = []

    def run(self) -> None:
        """Speak, in a thread."""
        voice, options = _voice(self._options), self._options
        synth.speak(
            self._text,
            self._take,
            voice=voice,
            rate_wpm=options.rate_wpm,
            pitch=options.pitch,
            volume=options.volume,
            on_word=self._take_word,
        )
        self._hand_over()

    def end(self, speaking: asyncio.Task[None]) -> None:
        """Tell who listens that no more will come."""
        if not speaking.cancelled():
            speaking.exception()  # seen, though the listener may have gone
        self.pieces.put_nowait(None)

    def _take(self, pcm: bytes) -> bool:
        # Each piece waits for the next one, made 0.1 ms later, so that the last words, which are known only at the end,
        # do not need a piece without sound.
        self._hand_over()
        self._held = pcm
        self.samples += len(pcm) // BYTES_PER_SAMPLE
        return not self.stopped

    def _take_word(self, word: synth.SpokenWord) -> None:
        self._words.append(Word(word.text, self._start_ms + word.start_ms, self._start_ms + word.end_ms))

    def _hand_over(self) -> None:
        if self._held and not self.stopped:
            self._loop.call_soon_threadsafe(self.pieces.put_nowait, (self._held, tuple(self._words)))
            self._words.clear()
            # The library comes back for the interpreter within 0.1 ms, sooner than the woken loop can take it: without this
            # pause the loop would wait for the interpreter's switch interval, 5 ms, at each piece.
            time.sleep(GIVE_WAY_S)


def _voice(options: EspeakOptions) -> str:
    return options.voice or options.language


def _check_voice(options: EspeakOptions) -> None:
    try:
        synth.check_voice(_voice(options))
    except ValueError as error:
        raise OptionError(f"{OWNER}: {error}") from error
    except RuntimeError as error:
        raise ProviderError(f"{OWNER}: {error}", provider="espeak", kind="tts") from error


def _parts(text: str) -> Iterator[str]:
    """Cut long text at the end of a sentence, else at a comma, else between words."""
    while len(text) > LONGEST_PART:
        head = text[:LONGEST_PART]
        ends = ([match.end() for match in mark.finditer(head)] for mark in BREAKS)
        cut = next((found[-1] for found in ends if found), LONGEST_PART)
        yield text[:cut]
        text = text[cut:]
    yield text
