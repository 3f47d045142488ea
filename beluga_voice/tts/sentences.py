"""Text that comes in pieces, cut into sentences as soon as they are whole."""

from __future__ import annotations

__all__ = ["SentenceSplitter"]

A_NAME = "Smith"  # what may follow an abbreviation as well as a full stop: after "Dr." it begins no sentence


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
