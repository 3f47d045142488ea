"""Text that comes in pieces, cut into sentences as soon as they are whole."""

from __future__ import annotations

import asyncio
import re
from collections import deque

from .._streams import Channel

__all__ = ["Script", "SentenceSplitter"]

FLUSH_MS = 80.0  # an agent that pauses for longer after a full stop has finished a sentence: "It costs 3." may go on with "50"
LONGEST = 300  # characters of a sentence
WHOLE_WORDS = re.compile(r".*(?:\S\s+|[\u3000-\u9fff\uff00-\uffef])", re.DOTALL)
A_NAME = "Smith"  # what may follow an abbreviation as well as a full stop: after "Dr." it begins no sentence


class SentenceSplitter:
    """Cuts text that comes in pieces into sentences, each as soon as the next one has begun.

    Sentence ends are found by `sentencex` (https://github.com/wikimedia/sentencex). A sentence longer than `longest`
    characters is cut at a space, so that speech can begin. `held` is what it has not given out yet.

    >>> split = SentenceSplitter("en")
    >>> split.feed("Dr. Smith is in. Ask"), split.feed(" him!"), split.rest()
    (['Dr. Smith is in.'], [], 'Ask him!')
    """

    def __init__(self, language: str, longest: int = LONGEST) -> None:
        import sentencex  # here, so that importing the package stays quick

        self._segment = sentencex.segment
        self._language, self._longest = language.split("-")[0], longest
        self.held = ""

    def feed(self, text: str) -> list[str]:
        """The sentences that `text` completes."""
        self.held += text
        parts = list(self._segment(self._language, self.held))
        self.held = parts.pop() if parts else ""
        if self.held[-1:].isspace() and self.complete:
            parts.append(self.held)
            self.held = ""
        elif len(self.held) > self._longest:
            *early, self.held = _cut(self.held, self._longest)
            parts += early
        return [piece.strip() for part in parts for piece in _cut(part, self._longest) if piece.strip()]

    @property
    def complete(self) -> bool:
        """True when what is held reads as a whole sentence, though nothing has followed it yet."""
        return len(list(self._segment(self._language, f"{self.held.strip()} {A_NAME}"))) > 1

    def rest(self) -> str:
        """What is left; the splitter is empty afterwards."""
        rest, self.held = self.held.strip(), ""
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


class Script:
    """What a reply says, as the agent makes it: taken in sentences or in words, and given back when it was not said.

    Args:
        texts: the agent's text, in any pieces.
        language: BCP-47 tag of the text.
    """

    def __init__(self, texts: Channel[str], language: str) -> None:
        self._texts, self._splitter = texts, SentenceSplitter(language)
        self._ready: deque[str] = deque()
        self._over = False

    async def sentence(self) -> str:
        """The next sentence, once the next one begins or nothing comes for `FLUSH_MS`; empty at the end."""
        while not self._ready:
            if self._over:
                return self._splitter.rest()
            more = await self._more()
            self._ready += self._splitter.feed(more) if more else filter(None, [self._splitter.rest()])
        return self._ready.popleft()

    async def words(self) -> str:
        """All that is there, to the end of a word; empty at the end."""
        splitter = self._splitter
        splitter.held = self._left()
        while True:
            whole = WHOLE_WORDS.match(splitter.held)
            more = ""
            if whole is None and not self._over and len(splitter.held) < LONGEST:
                more = await self._more()
            if more:
                splitter.held += more
                continue
            at = whole.end() if whole is not None else len(splitter.held)
            text, splitter.held = splitter.held[:at], splitter.held[at:]
            if text.strip() or self._over:
                return text if text.strip() else ""

    def give_back(self, text: str) -> None:
        """It was taken and not said: it comes again, before all else."""
        left = self._left()
        self._ready += self._splitter.feed(f"{text} {left}" if left else text)

    def _left(self) -> str:
        """Take all that is there, as it was."""
        held, self._splitter.held = self._splitter.held, ""
        text = " ".join([*self._ready, held])
        self._ready.clear()
        return text

    async def _more(self) -> str:
        """More text; empty at the end, and when nothing follows a whole sentence for `FLUSH_MS`."""
        try:
            async with asyncio.timeout(FLUSH_MS / 1000.0 if self._splitter.complete else None):
                return await anext(self._texts)
        except TimeoutError:
            return ""
        except StopAsyncIteration:
            self._over = True
            return ""
