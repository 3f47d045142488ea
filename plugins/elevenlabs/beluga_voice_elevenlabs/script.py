"""What a voice is to say: whole sentences made of pieces of text, and the times of their words from the times of letters.

>>> script = Script(sample_rate_hz=1_000)
>>> script.add("It is.")
>>> [piece] = script.place(bytes(1_000), [(0, 100), (100, 200), (200, 250), (250, 400), (400, 450), (450, 500)])
>>> piece.text, [(word.text, word.end_ms) for word in piece.words]
('It is.', [('It', 200.0), ('is.', 450.0)])
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

from beluga_voice._streams import stop
from beluga_voice.audio import BYTES_PER_SAMPLE
from beluga_voice.frames import AudioOut, Word
from beluga_voice.tts import SentenceSplitter

__all__ = ["Letters", "Script", "letters_of", "sentences"]

FLUSH_MS = 80.0  # a text that pauses for longer after a full stop has ended a sentence
LATEST_MS = 1e9
CLAUSE = re.compile(r"(?s).{49,}?(?:[,;:\N{EN DASH}\N{EM DASH}]\s|[，、；：])")  # what is long enough to sound well alone

COLUMNS = (("charStartTimesMs", "charsStartTimesMs"), ("charDurationsMs", "charsDurationsMs"))  # both spellings are about
Letters = Iterable[tuple[float, float]]  # where each letter begins and ends, in ms of the audio it comes with


async def sentences(texts: AsyncIterator[str], language: str) -> AsyncIterator[str]:
    """Whole sentences of a text that comes in any pieces, each as soon as it is whole; those without a word are left out.

    A long first sentence is cut after a clause, so that speech can begin.
    """
    splitter, first = SentenceSplitter(language), True
    coming: asyncio.Task[str | None] | None = None
    try:
        while True:
            coming = coming or asyncio.create_task(_next(texts))
            done, _ = await asyncio.wait([coming], timeout=FLUSH_MS / 1000.0 if splitter.complete else None)
            if done:
                text, coming = coming.result(), None
                if text is None:
                    break
                whole = splitter.feed(text)
                if first and not whole and (clause := CLAUSE.match(splitter.held)):
                    whole, splitter.held = [clause.group().strip()], splitter.held[clause.end() :]
                first = first and not whole
            else:
                whole = [splitter.rest()]
            for sentence in whole:
                if _speakable(sentence):
                    yield sentence
        if _speakable(rest := splitter.rest()):
            yield rest
    finally:
        if coming is not None:
            await stop(coming)


async def _next(texts: AsyncIterator[str]) -> str | None:
    return await anext(texts, None)


def _speakable(sentence: str) -> bool:
    return any(sign.isalnum() for sign in sentence)


def letters_of(alignment: Any) -> Letters:
    """Where each letter begins and ends, by what the service tells; nothing of what makes no sense."""
    if not isinstance(alignment, dict):
        return []
    columns = [alignment.get("chars"), *(alignment.get(one) or alignment.get(other) for one, other in COLUMNS)]
    if not all(isinstance(column, list) for column in columns):
        return []
    return [
        (float(start), float(start) + float(lasts))
        for sign, start, lasts in zip(*columns)
        if isinstance(sign, str) and not sign.isspace() and _is_time(start) and _is_time(lasts)
    ]


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < LATEST_MS


class Script:
    """The sentences given to a voice, told again as their sound comes: which of them begins, and when its words are spoken.

    The text is always the one that was given: the service tells times by letter, sometimes of half a word, sometimes of a whole
    sentence with the first of its audio, and sometimes none.
    """

    def __init__(self, sample_rate_hz: int) -> None:
        self._rate_hz = sample_rate_hz
        self._waiting: deque[str] = deque()
        self._words: deque[str] = deque()  # of the sentence that is being spoken, those to come
        self._spoken = 0  # letters of the first of them
        self._word_ms = 0.0  # where it began
        self._began_ms = 0.0  # where the sentence began; these two in ms of all the audio
        self._samples = 0
        self._timed = False

    @property
    def waiting(self) -> int:
        """Sentences whose sound has not begun."""
        return len(self._waiting)

    def add(self, sentence: str) -> None:
        """The voice is given one more sentence."""
        self._waiting.append(sentence)

    def place(self, pcm: bytes, letters: Letters = ()) -> Iterator[AudioOut]:
        """The audio that came, cut where a sentence begins; word times are from the beginning of the sentence's audio.

        Args:
            pcm: whole samples.
            letters: the times that came with it, spaces left out; may be empty, and may reach beyond it.
        """
        at_ms = self._samples * 1000.0 / self._rate_hz
        self._samples += len(pcm) // BYTES_PER_SAMPLE
        text, words, told = "", list[Word](), 0
        first = True
        for start_ms, end_ms in letters:
            if not self._words:
                if not self._waiting:
                    break
                here = 0 if first else max(told, self._bytes(start_ms, len(pcm)))
                if here > told or words:
                    yield AudioOut(pcm[told:here], self._rate_hz, text, tuple(words))
                text, words, told = self._waiting.popleft(), [], here
                self._words.extend(text.split())
                self._began_ms = at_ms + here * 500.0 / self._rate_hz
            first, self._timed = False, True
            if self._spoken == 0:
                self._word_ms = at_ms + start_ms
            self._spoken += 1
            if self._spoken == len(self._words[0]):
                begin_ms = max(0.0, self._word_ms - self._began_ms)
                words.append(Word(self._words.popleft(), begin_ms, max(begin_ms, at_ms + end_ms - self._began_ms)))
                self._spoken = 0
        if not self._timed and pcm and self._waiting:
            text = " ".join(self._waiting)
            self._waiting.clear()
        if len(pcm) > told or text or words:
            yield AudioOut(pcm[told:], self._rate_hz, text, tuple(words))

    def _bytes(self, ms: float, most: int) -> int:
        return min(most, BYTES_PER_SAMPLE * max(0, round(ms * self._rate_hz / 1000.0)))
