# ruff: noqa: ASYNC110
"""A caller who speaks, waits for the answer, and remembers everything: what was said, what was played, when it came."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from contextlib import suppress
from typing import Any

import attrs
from _chaos_wire import Wire
from _chaos_words import FIRST, WORD_SAMPLES, read, runs, spoken

from beluga_voice import client
from beluga_voice.client import _socket
from beluga_voice.clock import wall_ms
from beluga_voice.errors import BelugaVoiceError

FRAME_MS = 40
FRAME_BYTES = 32 * FRAME_MS
WORDS_EACH = 600  # numbers for one caller's words
PATIENCE_S = 60.0
EXPLAIN = ('"reply_start"', '"pause"', '"continue"', '"clear"', '"welcome"')


@attrs.define
class Utterance:
    words: list[int]
    ended_ms: float = 0.0
    answered: bool = False


@attrs.define
class Arrival:
    """When a piece of a reply's audio came, and how long it lasts; `first` after anything that explains a gap."""

    at_ms: float
    audio_ms: float
    first: bool


class Caller:
    """One caller over one wire. `run` is the whole call.

    Attributes:
        doing: "dialling", "idle", "speaking", "waiting", "hearing" or "gone".
        mute: nothing is sent any more, not even quiet.
    """

    def __init__(self, number: int, wire: Wire, rng: random.Random, *, words: tuple[int, int] = (2, 6)) -> None:
        self.number, self.wire, self.rng, self._range = number, wire, rng, words
        self.said: list[Utterance] = []
        self.played: list[tuple[int, int]] = []
        self.line: list[tuple[float, dict[str, Any]]] = []
        self.arrivals: list[Arrival] = []
        self.told: Counter[str] = Counter()
        self.end_reason = self.close_reason = self.session_id = ""
        self.counters: Counter[str] = Counter()
        self.failure = ""
        self.doing = "dialling"
        self.mute = self.stop = False
        self.call: client.Call | None = None
        self.marks: list[tuple[float, str]] = []  # when the line was cut, and how
        self._next_word = FIRST + number % ((32_000 - FIRST) // WORDS_EACH) * WORDS_EACH
        self._script = bytearray()
        self._answers: set[int] = set()
        self._reply_of: dict[int, set[int]] = {}
        self._news = asyncio.Event()
        self._hearing = 0
        self.unsafe = 0  # how many of our messages the server's store did not cover when it last told

    # --- the call ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Talk until `stop`, hear the last answer out, hang up."""
        call = client.connect(self.wire.url, on_audio=self._on_audio, dial=self._dial, rng=self.rng)
        try:
            async with call:
                self.call, self.session_id = call, call.session_id
                async with asyncio.TaskGroup() as tasks:
                    ears = tasks.create_task(self._listen(call))
                    mic = tasks.create_task(self._microphone(call))
                    await self._talk(call)
                    ears.cancel()
                    mic.cancel()
        except (BelugaVoiceError, ExceptionGroup) as error:
            self.failure = repr(error)
        finally:
            self.doing = "gone"
            self.end_reason, self.close_reason, self.counters = call.end_reason, call.close_reason, call.counters

    async def _talk(self, call: client.Call) -> None:
        await asyncio.sleep(self.rng.uniform(0.0, 2.0))
        while not self.stop and call.close_code is None:
            await self.speak(self.rng.randint(*self._range))
            await self.answered(call)
            self.doing = "idle"
            await asyncio.sleep(self.rng.uniform(0.3, 1.2))

    async def speak(self, count: int) -> Utterance:
        """Say so many words, in real time."""
        words = list(range(self._next_word, self._next_word + count))
        self._next_word += count
        utterance = Utterance(words)
        self.said.append(utterance)
        self.doing = "speaking"
        self._script += spoken(words)
        while self._script and not self.mute:
            await asyncio.sleep(FRAME_MS / 1000)
        utterance.ended_ms = wall_ms()
        return utterance

    async def answered(self, call: client.Call) -> None:
        """Wait until the last utterance was answered, and all of the answer was played."""
        utterance = self.said[-1]
        self.doing = "waiting"
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while utterance.words[-1] not in self._answers and call.close_code is None:
                    self._news.clear()
                    await self._news.wait()
                utterance.answered = utterance.words[-1] in self._answers
                while call.queued_ms > 0 and call.close_code is None:
                    await asyncio.sleep(FRAME_MS / 1000)

    def cut_short(self) -> None:
        """What was not said yet of the last utterance will not be."""
        unsaid = len(self._script)
        self._script.clear()
        utterance = self.said[-1]
        whole = len(utterance.words) - unsaid // (2 * WORD_SAMPLES)
        del utterance.words[whole:]

    async def _microphone(self, call: client.Call) -> None:
        next_ms = wall_ms()
        with suppress(BelugaVoiceError):
            while True:
                next_ms += FRAME_MS
                await asyncio.sleep(max(0.0, next_ms - wall_ms()) / 1000)
                if self.mute:
                    continue
                frame = bytes(self._script[:FRAME_BYTES])
                del self._script[:FRAME_BYTES]
                await call.send_audio(frame + bytes(FRAME_BYTES - len(frame)))

    # --- what comes --------------------------------------------------------------------------------------------------

    async def _listen(self, call: client.Call) -> None:
        async for event in call:
            name = event["type"]
            self.told[name] += 1
            if name == "line":
                self.line.append((wall_ms(), event))
            elif name == "reply_start":
                self._hearing = event["reply"]
                self.doing = "hearing" if self.doing == "waiting" else self.doing
            elif name == "reply":
                self._reply_of.setdefault(event["reply"], set()).update(word for word, _ in read(event["text"]))
            elif name == "reply_end":
                self._answers |= self._reply_of.pop(event["reply"], set())
                self._answers.update(word for word, _ in read(event["heard_text"]))
            elif name == "history":
                for message in event["messages"]:
                    if message["role"] == "assistant":
                        self._answers.update(word for word, _ in read(message["text"]))
            self._news.set()
        self._news.set()

    def _on_audio(self, pcm: bytes) -> None:
        for word, length in runs(pcm):
            if self.played and self.played[-1][0] == word:
                word, before = self.played.pop()
                length += before
            self.played.append((word, length))

    async def _dial(self, url: str) -> _socket.Socket:
        return Watched(await _socket.dial(url), self)


class Watched:
    """The client's socket, with a note of when audio came."""

    def __init__(self, socket: _socket.Socket, caller: Caller) -> None:
        self._socket, self._caller, self._first = socket, caller, True
        self.send, self.close, self.abort = socket.send, socket.close, socket.abort

    async def receive(self) -> str | bytes | _socket.Closed:
        got = await self._socket.receive()
        if isinstance(got, bytes):
            self._caller.arrivals.append(Arrival(wall_ms(), (len(got) - 4) / 32, self._first))
            self._first = False
        elif isinstance(got, str) and '"safe_seq"' in got:
            told = json.loads(got)
            self._caller.unsafe = told["seq"] - told["safe_seq"]
        elif isinstance(got, str) and any(name in got for name in EXPLAIN):
            self._first = True
        return got


def late_ms(arrivals: list[Arrival], from_ms: float = 0.0, until_ms: float = float("inf")) -> list[float]:
    """By how much each piece of audio came after the one before it was played out: gaps that a caller hears, in ms."""
    gaps, empty_ms = [], 0.0
    for piece in arrivals:
        gap_ms = piece.at_ms - empty_ms
        if not piece.first and from_ms <= piece.at_ms < until_ms:
            gaps.append(max(0.0, gap_ms))
        empty_ms = max(empty_ms, piece.at_ms) + piece.audio_ms
    return gaps
