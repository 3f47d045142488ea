"""How much of a text has become sound: what a voice was given, what it gave, and what another voice would have to say.

>>> spoken = Spoken("one two three four", timed=False)
>>> bool(spoken.hear(AudioOut(bytes(2 * 16 * 1_000), 16_000)))  # 1 s: two words and a bit
True
>>> spoken.rest().text
'two three four'
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate

import attrs

from ..audio import BYTES_PER_SAMPLE
from ..frames import AudioOut, Word

__all__ = ["LONG", "Begun", "Pace", "Rest", "Spoken", "duration_ms", "has_letters", "size"]

LEARNING = 0.3  # how much a faster text changes what is thought of a voice's pace
MEMORY = 20  # texts that its usual pace is the mean of
CAUTION = 0.9  # where words have no times, so much of the text is thought spoken that the sound would hold
BACK = 1  # words said again, since the last one may have been cut
IDEOGRAM = 3  # letters that a sign of Chinese or Japanese counts as
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")
SENTENCE_END = re.compile(r"[.!?…](?=\s|$)|[。！？]")
LONG = 20  # letters: shorter texts tell nothing of a voice
MUCH = 0.5  # of the sound of a slow voice: none speaks more than twice as fast and leaves words out, or four times
FAMILIAR = 5  # texts: then a voice's usual pace is known
SURE, LIKELY = 0.57, 0.8  # of the usual sound: espeak and piper never took under 0.72 for any of 100 texts each
EXPECTED = 0.6  # a voice owes at least so much of the sound that whole sentences take


def has_letters(text: str) -> bool:
    """True for a text that makes a sound."""
    return any(sign.isalnum() for sign in text)


def size(text: str) -> int:
    """A text's length in letters and blanks."""
    return sum(_size(word) for word in WORD.findall(text))


def _size(word: str) -> int:
    return IDEOGRAM if len(word) == 1 and "\u3040" <= word <= "\u9fff" else len(word) + 1


def duration_ms(piece: AudioOut) -> float:
    """How long its sound lasts."""
    return len(piece.pcm) // BYTES_PER_SAMPLE * 1000.0 / piece.sample_rate_hz


@attrs.frozen
class Pace:
    """How fast a voice speaks. Of one not heard before a slow one is thought, for better said twice than not at all.

    Attributes:
        letters: letters and blanks a ms, when it is slow.
        words: words a ms, when it is slow.
        usual: letters and blanks a ms, as a rule.
        texts: of how many that is the mean.
    """

    letters: float = 0.0125
    words: float = 0.0025
    usual: float = 0.0125
    texts: int = 0

    @classmethod
    def of(cls, text: str, audio_ms: float) -> Pace:
        """The pace of a text that took so long."""
        letters = size(text) / audio_ms
        return cls(letters, len(WORD.findall(text)) / audio_ms, letters, 1)

    def after(self, last: Pace) -> Pace:
        """What is thought after another text: a slower pace is believed at once, a faster one by and by."""
        letters, words = (
            min(new, old + LEARNING * (new - old))
            for old, new in ((self.letters, last.letters), (self.words, last.words))
        )
        texts = self.texts + 1
        return Pace(letters, words, self.usual + (last.usual - self.usual) / min(texts, MEMORY), texts)

    def said(self, words: list[str], audio_ms: float) -> int:
        """How many of the words are over by then, at the least: voices take time for words, and for letters."""
        letters = audio_ms * self.letters * CAUTION
        return min(sum(end <= letters for end in accumulate(map(_size, words))), int(audio_ms * self.words * CAUTION))


@attrs.frozen
class Begun:
    """A sentence that others have begun: how long they spoke, their words, how many of these come again, were they timed."""

    audio_ms: float
    words: tuple[str, ...]
    again: int
    timed: bool


@attrs.frozen
class Rest:
    """What a voice left unsaid: `text`, of the sentence that was `begun` (None: of none), and `further` text after it."""

    text: str
    begun: Begun | None
    further: str


USUAL = Pace()


class Spoken:
    """The account of one call of a voice.

    Args:
        text: what it is given; `give` adds more.
        pace: how fast it speaks.
        timed: it tells when each word is spoken.
        marks: it takes text as it comes and marks where the sound of each piece begins; otherwise all is one sentence.
        begun: what was said before of the sentence that `text` is the rest of.

    Attributes:
        given: all it was given.
        taken: how many characters of it the voice has asked for.
        audio_ms: how much sound it gave.
        ended: it will be given no more.
        asks: it waits for more text.
    """

    def __init__(self, text: str, *, pace: Pace = USUAL, timed: bool, marks: bool = False, begun: Begun | None = None) -> None:
        self.given, self.taken, self.audio_ms, self.ended, self.asks = "", 0, 0.0, not marks, False
        self._pace, self._timed, self._marks, self._begun = pace, timed, marks, begun
        self._begun_ms = begun.audio_ms if begun is not None else 0.0
        self._due = 0  # size of the whole sentences that it was given
        self._text = ""  # of the sentence whose sound came last
        self._before = 0  # letters of the texts before it
        self._from_ms = 0.0  # where its sound begins
        self._tells = marks  # it marks its texts itself
        self._rate_hz = 16_000
        self._again = begun.again if begun is not None else 0  # words still to come that were told before
        self._waiting: list[Word] = []  # words that have not sounded yet
        self._told: list[Word] = []
        self.give(text)

    def give(self, text: str) -> None:
        """The voice is given more text; an empty one is the end."""
        self.given += text
        self.asks, self.ended = False, self.ended or not text
        ends = [match.end() for match in SENTENCE_END.finditer(self.given)]
        self._due = size(self.given[: ends[-1]]) if ends else 0

    @property
    def owed(self) -> bool:
        """True when the voice could give more: it asks for no text, or has sentences whose sound cannot be all there."""
        return not self.asks or self.audio_ms * self._pace.letters < EXPECTED * self._due

    # --- what it gives -----------------------------------------------------------------------------------------------

    def hear(self, piece: AudioOut) -> list[AudioOut]:
        """Take what the voice gave. What is to be passed on: texts marked once, words no sooner than they have sounded."""
        out: list[AudioOut] = []
        mark, first = self._mark(piece), False
        if mark:
            out += self.end() if self._text else []
            self._before += _letters(self._text)
            self._text, self._from_ms, self._told = mark, self.audio_ms, []
            first = True
        if self._begun is not None:
            mark = ""  # it was marked when it began
        self.audio_ms += duration_ms(piece)
        self._rate_hz = piece.sample_rate_hz
        self._waiting += self._words(piece, first)
        now_ms = self._begun_ms + self.audio_ms - self._from_ms
        sounded = tuple(word for word in self._waiting if word.end_ms <= now_ms)
        self._waiting = [word for word in self._waiting if word.end_ms > now_ms]
        self._told += sounded
        if piece.pcm or mark or sounded:
            out.append(AudioOut(piece.pcm, piece.sample_rate_hz, mark, sounded))
        return out

    def end(self) -> list[AudioOut]:
        """The sentence is all there: what was not told of its words."""
        words, self._waiting = tuple(self._waiting), []
        self._told += words
        return [AudioOut(b"", self._rate_hz, "", words)] if words else []

    def _mark(self, piece: AudioOut) -> str:
        """The text whose sound begins with the piece, if one does."""
        if not self._marks:
            return self.given if piece.pcm and not self._text else ""
        if piece.text and self._tells:
            return piece.text
        if piece.pcm and not (self._text and self._tells):  # it does not tell: the sound is of what it was given since
            self._tells = False
            return _after(self.given, self._before + _letters(self._text)).strip()
        return ""

    def _words(self, piece: AudioOut, first: bool) -> list[Word]:
        """Its words, placed behind those of earlier voices. Where only one of two has times, those of the other are guessed."""
        begun = self._begun
        if begun is None:
            return [*piece.words]
        guessed: list[Word] = []
        if first and self._timed and not begun.timed:
            guessed = _spread(begun.words, 0.0, begun.audio_ms)
        elif first and begun.timed and not self._timed:
            words = WORD.findall(self.given)
            guessed = _spread(words, begun.audio_ms, begun.audio_ms + size(self.given) / self._pace.letters)[self._again :]
        again, self._again = self._again, max(0, self._again - len(piece.words))
        ms = begun.audio_ms
        moved = [Word(word.text, word.start_ms + ms, word.end_ms + ms, word.confidence) for word in piece.words[again:]]
        return guessed + moved

    @property
    def broken_off(self) -> bool:
        """True for a voice that is done and gave so little sound that much of a long text must be missing."""
        length = size(self.given)
        if length < LONG:
            return False
        words = WORD.findall(self._text)
        told = self._said(words, 0.0) / len(words) if words and self._timed and self._told else 1.0
        if self._pace.texts < FAMILIAR:
            return self.audio_ms * USUAL.letters / length < (MUCH if told <= 0.5 else MUCH / 2)
        return self.audio_ms * self._pace.usual / length < (LIKELY if told <= LIKELY else SURE)

    # --- what it does not give ---------------------------------------------------------------------------------------

    def rest(self) -> Rest:
        """What is still to be said, once the voice has failed in the middle of it."""
        further = _after(self.given, self._before + _letters(self._text)) if self._marks else ""
        places = [*WORD.finditer(self._text)]
        words = [place.group() for place in places]
        heard_ms = self.audio_ms - self._from_ms
        said = self._said(words, heard_ms)
        if said == len(words):
            return Rest("", None, further)
        at = max(0, said - BACK)
        begun = self._begun or Begun(0.0, (), 0, False)
        before = begun.words[: len(begun.words) - begun.again]
        timed = begun.timed or (self._timed and bool(self._told))
        now = Begun(begun.audio_ms + heard_ms, (*before, *words[:said]), said - at, timed)
        return Rest(self._text[places[at].start() :], now, further)

    def _said(self, words: list[str], heard_ms: float) -> int:
        """How many of the words have sounded."""
        told = [word.text for word in self._told if word.end_ms > self._begun_ms]
        if not (self._timed and told):
            return min(self._pace.said(words, heard_ms), len(words) - 1)  # it has not told that it is done
        at = min(len(words), self._begun.again if self._begun is not None else 0)
        for text in map(_plain, told):
            ahead = [_plain(word) for word in words[at : at + 2]]
            if text in ahead:
                at += 1 + ahead.index(text)
        return at


def _spread(words: Sequence[str], from_ms: float, to_ms: float) -> list[Word]:
    """Words at the times that their lengths make likely."""
    sizes = [*map(_size, words)]
    a_letter_ms = (to_ms - from_ms) / max(1, sum(sizes))
    ends_ms = [from_ms + end * a_letter_ms for end in accumulate(sizes)]
    return [Word(word, start_ms, end_ms) for word, start_ms, end_ms in zip(words, [from_ms, *ends_ms], ends_ms)]


def _plain(word: str) -> str:
    """A word as voices agree on it."""
    return "".join(sign for sign in word.casefold() if sign.isalnum()) or word


def _letters(text: str) -> int:
    return sum(not sign.isspace() for sign in text)


def _after(text: str, letters: int) -> str:
    """`text` without its first letters; voices may give back other blanks than they were given."""
    for at, sign in enumerate(text):
        if letters <= 0:
            return text[at:]
        letters -= not sign.isspace()
    return ""
