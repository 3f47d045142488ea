"""Voices whose words can be read back from their sound, and that fall sick where a script says."""

from __future__ import annotations

import asyncio

import numpy as np

from beluga_voice.errors import ConnectFailedError, ProtocolError
from beluga_voice.frames import AudioOut, Word
from beluga_voice.tts import TTS, TTSCapabilities
from beluga_voice.tts.spoken import WORD

RATE_HZ = 16_000
SICK = ("cut", "hang", "drip", "garbage", "empty", "endless")


class Books:
    """Which number each word of each voice has: its samples all have that value."""

    def __init__(self):
        self.words = []

    def number(self, voice, word):
        if (voice, word) not in self.words:
            self.words.append((voice, word))
        return self.words.index((voice, word)) + 1


def read(pcm, books):
    """What a sound says: voice, word and how many samples it has; silence and the blanks between words are left out."""
    values = np.frombuffer(pcm, "<i2")
    edges = np.flatnonzero(np.diff(values)) + 1
    runs = [run for run in np.split(values, edges) if len(run)]
    return [(*books.words[run[0] - 1], len(run)) for run in runs if run[0]]


class Voice(TTS):
    """Says each word at so many letters a second, in pieces of `piece_ms`, `speed` times as fast as it is heard.

    Args:
        books: the numbers of words.
        name: the provider's name.
        pace: letters and blanks a second.
        sick: what is wrong with it: one of `SICK`, or "" for nothing.
        after_ms: so much sound of a call comes before it is.
        calls: how many calls are sick; None: all.
        times: it tells when each word is spoken.
        streaming: it takes text as it comes.
        account: as of a service.
    """

    def __init__(
        self, books, name="one", *, pace=14.0, sick="", after_ms=0.0, calls=None, times=False, streaming=False,
        piece_ms=40.0, speed=4.0, first_ms=100.0, account="", max_concurrent=None,
    ):  # fmt: skip
        self.books, self.provider, self.pace, self.sick, self.after_ms = books, name, pace, sick, after_ms
        self.calls, self.piece_ms, self.speed, self.first_ms = calls, piece_ms, speed, first_ms
        self.capabilities = TTSCapabilities(sample_rate_hz=RATE_HZ, streaming_text=streaming, word_times=times)
        self.account, self.max_concurrent = account, max_concurrent
        self.asked, self.under_way, self.most, self.left_ms = [], 0, 0, []

    def samples(self, word):
        """How many samples a word has, and the blank after it."""
        letter = RATE_HZ / self.pace
        return round(len(word) * letter), round(letter)

    def sound(self, text):
        """The whole sound of a text and the times of its words."""
        parts, words, at = [], [], 0
        for word in WORD.findall(text):
            long, blank = self.samples(word)
            parts += [np.full(long, self.books.number(self.provider, word), "<i2"), np.zeros(blank, "<i2")]
            words.append(Word(word, at * 1_000 / RATE_HZ, (at + long) * 1_000 / RATE_HZ))
            at += long + blank
        return b"".join(part.tobytes() for part in parts), words

    async def synthesize_stream(self, texts):
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            is_sick = bool(self.sick) and self.calls != 0
            if is_sick and self.calls is not None:
                self.calls -= 1
            given_ms = 0.0
            async for text in texts:
                self.asked.append(text)
                async for piece, begins in self._pieces(text, is_sick, given_ms):
                    given_ms += len(piece.pcm) / 2 * 1_000 / RATE_HZ
                    yield AudioOut(piece.pcm, RATE_HZ, text if begins else "", piece.words)
        finally:
            self.under_way -= 1
            self.left_ms.append(asyncio.get_running_loop().time() * 1_000)

    async def _pieces(self, text, is_sick, given_ms):
        await asyncio.sleep(self.first_ms / 1_000)
        pcm, words = self.sound(text)
        size = 2 * round(self.piece_ms * RATE_HZ / 1_000)
        for at in range(0, len(pcm), size):
            part, begins = pcm[at : at + size], at == 0
            if is_sick:
                room = 2 * round((self.after_ms - given_ms) * RATE_HZ / 1_000)
                if room < len(part):
                    if room > 0 and self.sick != "empty":
                        yield self._piece(part[:room], [], at, text), begins
                    async for piece in self._fall_sick():
                        yield piece, False
                    if self.sick in ("empty", "cut", "garbage", "hang"):
                        return
            yield self._piece(part, words, at, text), begins
            given_ms += len(part) / 2 * 1_000 / RATE_HZ
            await asyncio.sleep(len(part) / 2 / RATE_HZ / self.speed)

    def _piece(self, part, words, at, text):
        from_ms, to_ms = at / 2 * 1_000 / RATE_HZ, (at + len(part)) / 2 * 1_000 / RATE_HZ
        told = tuple(word for word in words if from_ms <= word.start_ms < to_ms) if self.capabilities.word_times else ()
        return AudioOut(part, RATE_HZ, "", told)

    async def _fall_sick(self):
        if self.sick == "cut":
            raise ConnectFailedError("the connection broke", provider=self.provider, kind="tts")
        if self.sick == "garbage":
            raise ProtocolError("that is no sound", provider=self.provider, kind="tts")
        if self.sick == "hang":
            await asyncio.sleep(3_600)
        while self.sick == "drip":
            await asyncio.sleep(0.5)
            yield AudioOut(bytes(32), RATE_HZ)
        while self.sick == "endless":
            await asyncio.sleep(0.01)
            yield AudioOut(bytes(RATE_HZ), RATE_HZ)
