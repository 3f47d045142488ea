"""Callers in great number for `bench_server.py`: real sockets, 20 ms frames in real time, and what each caller noticed.

One thread and one epoll, frames put together by hand: a WebSocket library would cost more than the server it is to load. The
masking key is zero, which the protocol allows and the server has to apply all the same.
"""

from __future__ import annotations

import heapq
import json
import random
import select
import socket
import time
from collections import Counter, deque
from pathlib import Path

import attrs
import numpy as np

FRAME_S = 0.02
QUIET = bytes(640)
UPGRADE = (
    "GET /v1/voice HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Sec-WebSocket-Protocol: beluga.voice.v1\r\n\r\n"
)
HELLO = '{"type":"hello","sample_rate_hz":16000,"output_rate_hz":16000,"encoding":"pcm16"}'
AUDIO_HEAD = b"\x82\xfe" + (644).to_bytes(2, "big") + bytes(4)
JOINING = 20  # callers who may be between connecting and welcome
UNANSWERED_S = 10.0


@attrs.frozen
class Utterance:
    """What a caller says: PCM in frames, and how many of them hold speech (what follows is the room)."""

    frames: tuple[bytes, ...]
    spoken: int


def noise(rng: random.Random) -> Utterance:
    """1.5 to 3 s of it, which is speech to `LoudVAD`."""
    count = rng.randint(75, 150)
    return Utterance(tuple(rng.choice(_NOISE) for _ in range(count)), count)


_NOISE = [(np.random.default_rng(seed).normal(0, 3_000, 320)).astype("<i2").tobytes() for seed in range(50)]


def recorded(folder: Path) -> list[Utterance]:
    """The turns of the labelled conversations that have no pause long enough to be taken for their end."""
    import soundfile

    found = []
    for labels in sorted((folder / "labels").glob("conv*.json")):
        told = json.loads(labels.read_text())
        pcm, rate_hz = soundfile.read(folder / "audio" / f"{labels.stem}.flac", dtype="int16")
        for one in told["turns"]:
            if max(one["inserted_pause_ms"] or [0]) >= 500:
                continue
            start, end = int((one["start"] - 0.3) * rate_hz), int((one["end"] + 0.3) * rate_hz)
            cut = pcm[max(start, 0) : end]
            cut = cut[: len(cut) // 320 * 320].astype("<i2").tobytes()
            frames = tuple(cut[at : at + 640] for at in range(0, len(cut), 640))
            found.append(Utterance(frames, round((one["end"] * rate_hz - max(start, 0)) / 320)))
    return found


class Seen:
    """What all callers noticed since it was made; times in ms."""

    def __init__(self) -> None:
        self.sending: list[float] = []  # how late our own frames were
        self.answer: list[float] = []  # last frame of speech sent -> first reply audio
        self.margin: list[float] = []  # how long before its playing time a reply's audio came
        self.pause: list[float] = []  # speech begins over a reply -> told to pause
        self.clear: list[float] = []  # the same -> told to drop the rest
        self.pong: list[float] = []
        self.counts: Counter[str] = Counter()
        self.told: Counter[str] = Counter()  # closes and errors, in the server's words


class Load:
    """All callers.

    Args:
        address: host and port.
        say: what a caller says next, given its random numbers.
        barge_in: the share of replies that are interrupted.

    Attributes:
        seen: what callers notice; put another in its place to begin anew.
        refused: those who were not let in, in the server's words; and how long each was kept waiting.
    """

    def __init__(self, address: tuple[str, int], say, *, barge_in: float = 0.25, seed: int = 1) -> None:
        self.address, self.say, self.barge_in = address, say, barge_in
        self.rng = random.Random(seed)
        self.seen = Seen()
        self.callers: list[Caller] = []
        self.joining = 0
        self.refused: Counter[str] = Counter()
        self.refused_ms: list[float] = []
        self.polled_s = time.perf_counter()
        self._poll = select.epoll()
        self._by_fd: dict[int, Caller] = {}
        self._due: list[tuple[float, int, Caller]] = []

    @property
    def live(self) -> int:
        return sum(caller.live for caller in self.callers)

    def run(self, until, callers: int = 0) -> None:
        """Hold the calls until `until()` is true; new callers come until there are so many."""
        while not until():
            while len(self.callers) < callers and self.joining < JOINING:
                self._join()
            now = time.perf_counter()
            wait_s = min(max(self._due[0][0] - now, 0.0), 0.02) if self._due else 0.02
            events = self._poll.poll(wait_s)
            now = time.perf_counter()
            for fd, _ in events:
                self._by_fd[fd].read(now)
            self.polled_s = now
            now = time.perf_counter()
            while self._due and self._due[0][0] <= now:
                at, number, caller = self._due[0]
                if not caller.live:
                    heapq.heappop(self._due)
                    continue
                now = time.perf_counter()
                self.seen.sending.append((now - at) * 1000)
                caller.tick(now)
                heapq.heapreplace(self._due, (at + FRAME_S, number, caller))

    def begin(self, caller: Caller) -> None:
        """The caller is welcome: its frames begin."""
        heapq.heappush(self._due, (time.perf_counter() + caller.rng.random() * FRAME_S, caller.number, caller))

    def gone(self, caller: Caller) -> None:
        self._poll.unregister(caller.sock)
        del self._by_fd[caller.sock.fileno()]
        caller.sock.close()

    def hang_up(self) -> None:
        """Say bye on all lines and wait for their end."""
        for caller in self.callers:
            if caller.live:
                caller.write_text(f'{{"type":"bye","seq":{caller.seq}}}')
                caller.live = False
        until_s = time.perf_counter() + 3.0
        self.run(lambda: not self._by_fd or time.perf_counter() > until_s)

    def _join(self) -> None:
        caller = Caller(self, len(self.callers), random.Random(self.rng.random()))
        self.callers.append(caller)
        self.joining += 1
        self._by_fd[caller.sock.fileno()] = caller
        self._poll.register(caller.sock, select.EPOLLIN)


class Caller:
    """One caller: speaks, waits for the reply, sometimes interrupts it, and tells what it has played."""

    def __init__(self, load: Load, number: int, rng: random.Random) -> None:
        self.load, self.number, self.rng = load, number, rng
        self.live = False
        self.seq = self.received_seq = 0
        self._upgraded = self._welcome = False
        self._dialled_s = time.perf_counter()
        self._in = self._out = b""
        self._ticks = number % 50
        self._saying: Utterance | None = None
        self._at = 0
        self._speak_s = float("inf")
        self._ended_s = self._onset_s = 0.0
        self._waiting = self._fresh = self._replying = self._early = False
        self._wants_pause = self._wants_clear = False
        self._ends_s = 0.0  # when what was received is played
        self._total_s = 0.0
        self._paused_s: float | None = None  # what is left to play
        self._pieces: deque[tuple[int, float]] = deque()
        self.sock = socket.create_connection(load.address)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._write(UPGRADE.format(host=load.address[0], port=load.address[1]).encode())

    # --- speaking ----------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """20 ms have gone by: send them."""
        saying, pcm = self._saying, QUIET
        if saying is None and now >= self._speak_s:
            saying = self._begin(now)
        if saying is not None:
            pcm = saying.frames[self._at]
            self._at += 1
            if self._at == saying.spoken:
                self._ended_s, self._waiting = now, not self._early
            if self._at >= len(saying.frames):
                self._saying = None
                self._speak_s = now + UNANSWERED_S
        self._write(AUDIO_HEAD + self.seq.to_bytes(4, "little") + pcm)
        self.seq += 1
        self._ticks += 1
        if self._ticks % 5 == 0 and self._paused_s is None and self._ends_s > now - 0.1:
            self._tell_played("played", now)
        if self._ticks % 50 == 0:
            self.write_text(f'{{"type":"ping","t_ms":{now * 1000:.3f}}}')
            self.write_text(f'{{"type":"ack","seq":{self.received_seq - 1}}}')

    def _begin(self, now: float) -> Utterance:
        if self._waiting:
            self.load.seen.counts["unanswered"] += 1
        self._saying, self._at, self._speak_s = self.load.say(self.rng), 0, float("inf")
        self._waiting = self._early = False
        self._onset_s = now - FRAME_S  # a frame is sent when its last sample was spoken
        self._wants_pause = self._wants_clear = self._replying
        self.load.seen.counts["barge_ins"] += self._wants_pause
        return self._saying

    # --- hearing -----------------------------------------------------------------------------------------------------

    def read(self, now: float) -> None:
        try:
            came = self.sock.recv(262_144)
        except BlockingIOError:
            return
        except OSError:
            came = b""
        if not came:
            self._close("1006: without a word")
            return
        data = self._in + came
        if not self._upgraded:
            head, found, data = data.partition(b"\r\n\r\n")
            if not found:
                self._in = head
                return
            self._upgraded = True
            self.write_text(HELLO)
        at, size = 0, len(data)
        while size - at >= 2:
            length, body = data[at + 1], at + 2
            if length == 126:
                length, body = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            if body + length > size or (length == 126 and size - at < 4):
                break
            opcode = data[at] & 15
            if opcode == 2:
                self._audio(int.from_bytes(data[body : body + 4], "little"), (length - 4) / 32_000, now)
            elif opcode == 1:
                self._text(data[body : body + length], now)
            elif opcode == 8:
                self._close(f"{int.from_bytes(data[body : body + 2], 'big')}: {data[body + 2 : body + length].decode()}")
                return
            at = body + length
        self._in = data[at:]

    def _audio(self, seq: int, duration_s: float, now: float) -> None:
        seen = self.load.seen
        self.received_seq = seq + 1
        self._pieces.append((seq, self._total_s))
        self._total_s += duration_s
        if self._fresh:
            self._begin_reply(now)
        if self._paused_s is not None:
            self._paused_s += duration_s
            return
        margin_s = self._ends_s - now
        if self._ends_s:
            seen.margin.append(margin_s * 1000)
            if margin_s < 0:
                seen.counts["underruns"] += 1
                # It may have come at any time since we looked last.
                seen.counts["underruns_ours"] += self._ends_s >= self.load.polled_s
        self._ends_s = max(self._ends_s, now) + duration_s

    def _begin_reply(self, now: float) -> None:
        seen = self.load.seen
        self._fresh, self._ends_s = False, 0.0
        if self._waiting:
            self._waiting = False
            seen.answer.append((now - self._ended_s) * 1000)
            barges = self.rng.random() < self.load.barge_in
            self._speak_s = now + (self.rng.uniform(0.4, 2.0) if barges else UNANSWERED_S)
        elif self._saying is not None:
            self._early = True
            seen.counts["answered_early"] += 1

    def _text(self, told: bytes, now: float) -> None:
        seen = self.load.seen
        if told.startswith(b'{"type":"pong"'):
            seen.pong.append(now * 1000 - json.loads(told)["t_ms"])
            return
        if told.startswith(b'{"type":"ack"'):
            return
        if told.startswith(b'{"type":"welcome"'):
            self.live = self._welcome = True
            self.load.joining -= 1
            self._speak_s = now + self.rng.uniform(0.3, 7.0)  # a turn takes so long: they are spread
            self.load.begin(self)
            return
        self.received_seq = int(told[told.rindex(b":") + 1 : -1]) + 1
        if told.startswith(b'{"type":"reply_start"'):
            self._fresh = self._replying = True
        elif told.startswith(b'{"type":"pause"'):
            if self._wants_pause:
                self._wants_pause = False
                seen.pause.append((now - self._onset_s) * 1000)
            self._tell_played("stopped", now)
            self._paused_s = max(self._ends_s - now, 0.0)
        elif told.startswith(b'{"type":"continue"'):
            self._ends_s, self._paused_s = now + (self._paused_s or 0.0), None
        elif told.startswith(b'{"type":"clear"'):
            if self._wants_clear:
                self._wants_clear = False
                seen.clear.append((now - self._onset_s) * 1000)
            self._tell_played("stopped", now)
            self._paused_s, self._ends_s, self._early = None, 0.0, False
            self._pieces.clear()
        elif told.startswith(b'{"type":"reply_end"'):
            self._replying = False
            if self._saying is None and b'"interrupted":false' in told:
                self._speak_s = min(self._speak_s, max(now, self._ends_s) + self.rng.uniform(0.3, 1.0))
        elif told.startswith(b'{"type":"error"'):
            seen.told[told.decode()[:120]] += 1

    def _tell_played(self, kind: str, now: float) -> None:
        left_s = max(self._ends_s - now, 0.0) if self._paused_s is None else self._paused_s
        place_s = self._total_s - left_s
        pieces = self._pieces
        while len(pieces) > 1 and pieces[1][1] <= place_s:
            pieces.popleft()
        if pieces:
            seq, start_s = pieces[0]
            ms = max(place_s - start_s, 0.0) * 1000
            self.write_text(f'{{"type":"{kind}","seq":{seq},"ms":{ms:.3f}}}')

    # --- the socket --------------------------------------------------------------------------------------------------

    def write_text(self, text: str) -> None:
        head = b"\x81" + bytes((0x80 | len(text),)) + bytes(4)
        self._write(head + text.encode())

    def _write(self, message: bytes) -> None:
        if self._out:
            message = self._out + message
        try:
            sent = self.sock.send(message)
        except BlockingIOError:
            sent = 0
        except OSError:
            return
        self._out = message[sent:]
        if self._out:
            self.load.seen.counts["blocked"] += 1

    def _close(self, why: str) -> None:
        if not self._welcome:
            self.load.joining -= 1
            self.load.refused[why] += 1
            self.load.refused_ms.append((time.perf_counter() - self._dialled_s) * 1000)
        elif self.live:
            self.load.seen.told[why] += 1
        self.live = False
        self.load.gone(self)
