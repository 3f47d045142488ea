"""A server of the wire protocol in memory, written from the protocol's text alone: does as its script says, keeps books."""

import asyncio
import json
from collections import deque

import attrs

from beluga_voice.client._socket import Closed
from beluga_voice.errors import ConnectFailedError


@attrs.define
class Plan:
    """What happens to one connection.

    Attributes:
        refuse: nobody answers the dial.
        close: (code, reason) instead of a welcome.
        up: how many messages of the client arrive before the connection breaks; None: it does not.
        down: the same for those of the server; both are lost from then on.
        silent_after: the server says nothing more after so many messages, and the connection stays open.
        welcome: replaces the welcome's fields.
    """

    refuse: bool = False
    close: tuple | None = None
    up: int | None = None
    down: int | None = None
    silent_after: int | None = None
    welcome: dict = attrs.field(factory=dict)


class Wire:
    """Both ends of one connection; the client's is what the client calls a socket."""

    def __init__(self, plan, latency_ms=0.0):
        self.plan, self.latency_ms = plan, latency_ms
        self.up, self.down = deque(), deque()
        self.news = asyncio.Event()
        self.closed = None  # how the client sees it end
        self.client_close = None
        self.aborted = False
        self.said = self.heard = 0

    # the client's end
    async def receive(self):
        while True:
            if self.down:
                return self.down.popleft()
            if self.closed is not None:
                return self.closed
            await self._wait()

    async def send(self, message):
        await asyncio.sleep(self.latency_ms / 1000)
        if self.closed is not None:
            return
        if self.plan.up is not None and self.heard >= self.plan.up:
            self.cut()
            return
        self.heard += 1
        self.up.append(message)
        self.news.set()

    async def close(self, code, reason):
        self.client_close = self.client_close or (code, reason)
        self.closed = self.closed or Closed(code, reason)
        self.news.set()
        await asyncio.sleep(0.001)
        self.aborted = True

    def abort(self):
        self.aborted = True
        self.closed = self.closed or Closed(1006, "aborted")
        self.news.set()

    # the server's end
    async def hear(self):
        """The next message of the client, or None."""
        while not self.up:
            if self.closed is not None:
                return None
            await self._wait()
        return self.up.popleft()

    def say(self, message):
        if self.closed is not None:
            return
        if self.plan.silent_after is not None and self.said >= self.plan.silent_after:
            return
        if self.plan.down is not None and self.said >= self.plan.down:
            self.cut()
            return
        self.said += 1
        self.down.append(message if isinstance(message, (str, bytes)) else json.dumps(message))
        self.news.set()

    def end(self, code, reason):
        """The server closes it."""
        self.closed = self.closed or Closed(code, reason)
        self.news.set()

    def cut(self):
        self.end(1006, "cut")

    async def _wait(self):
        self.news.clear()
        await self.news.wait()


class Session:
    """What the server knows of one session."""

    def __init__(self, number):
        self.id = f"s{number}"
        self.sent = []  # everything numbered, by its number
        self.heard = []  # what was new, in order: (number, message)
        self.received = -1
        self.gaps = []
        self.reports = []  # unnumbered: played, stopped
        self.valid = []  # tokens
        self.unproven = None
        self.tokens = 0
        self.wire = None
        self.ended = False

    def issue(self):
        self.tokens += 1
        return f"{self.id}-token-{self.tokens}"

    def tell(self, message):
        """Say something numbered: a dict, or the PCM of audio."""
        seq = len(self.sent)
        if isinstance(message, bytes):
            self.sent.append(seq.to_bytes(4, "little") + message)
        else:
            self.sent.append(json.dumps({**message, "seq": seq}))
        if self.wire is not None:
            self.wire.say(self.sent[seq])
        return seq

    @property
    def heard_audio(self):
        return b"".join(message for _, message in self.heard if isinstance(message, bytes))

    def heard_json(self, name=None):
        told = [message for _, message in self.heard if isinstance(message, dict)]
        return told if name is None else [message for message in told if message["type"] == name]


class FarEnd:
    """The server; `dial` is given to the client."""

    def __init__(self, *plans, latency_ms=0.0, safe_lag=0, limits=None):
        self.plans = deque(plans)
        self.latency_ms, self.safe_lag, self.limits = latency_ms, safe_lag, limits or {}
        self.sessions, self.wires, self.hellos, self.urls = [], [], [], []
        self.dialled_ms = []
        self.tasks = set()

    @property
    def session(self):
        return self.sessions[-1]

    async def dial(self, url):
        plan = self.plans.popleft() if self.plans else Plan()
        self.urls.append(url)
        self.dialled_ms.append(asyncio.get_running_loop().time() * 1000)
        await asyncio.sleep(self.latency_ms / 1000)
        if plan.refuse:
            raise ConnectFailedError(f"{url} could not be reached")
        wire = Wire(plan, self.latency_ms)
        self.wires.append(wire)
        task = asyncio.create_task(self._serve(wire))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return wire

    async def _serve(self, wire):
        first = await wire.hear()
        if first is None:
            return
        hello = json.loads(first)
        self.hellos.append(hello)
        assert hello["type"] == "hello"
        if wire.plan.close:
            wire.end(*wire.plan.close)
            return
        resume = hello.get("resume")
        if resume is None:
            self.sessions.append(Session(len(self.sessions)))
            session = self.session
        else:
            found = [one for one in self.sessions if one.id == resume["session_id"] and not one.ended]
            if not found or resume["resume_token"] not in found[0].valid:
                wire.end(4410, "the session cannot be resumed")
                return
            session = found[0]
        before, session.wire = session.wire, wire
        if before is not None:
            before.end(4409, "replaced by a newer connection of the same session")
        token = session.issue()
        session.valid = [*([resume["resume_token"]] if resume else []), token]
        session.unproven = token
        wire.say(
            {
                "type": "welcome",
                "session_id": session.id,
                "resume_token": token,
                "resumed": resume is not None,
                "received_seq": session.received,
                "input_rate_hz": hello["sample_rate_hz"],
                "output_rate_hz": hello["output_rate_hz"],
                "limits": self.limits,
                "events_lost": False,
                **wire.plan.welcome,
            }
        )
        for message in session.sent[(resume["received_seq"] if resume else -1) + 1 :]:
            wire.say(message)
        await self._listen(session, wire)

    async def _listen(self, session, wire):
        while (message := await wire.hear()) is not None:
            if session.wire is not wire:
                return
            if session.unproven is not None:
                session.valid, session.unproven = [session.unproven], None
            if isinstance(message, bytes):
                seq, told = int.from_bytes(message[:4], "little"), message[4:]
            else:
                told = json.loads(message)
                if told["type"] == "ping":
                    wire.say({"type": "pong", "t_ms": told["t_ms"]})
                if told["type"] in ("ping", "pong", "ack", "played", "stopped"):
                    session.reports.append(told)
                    continue
                seq = told.pop("seq")
            if seq <= session.received:
                continue
            if seq != session.received + 1:
                session.gaps.append((session.received, seq))
            session.received = seq
            session.heard.append((seq, told))
            if isinstance(told, dict) and told["type"] == "bye":
                session.ended = True
                wire.end(1000, "bye")
                return
            wire.say({"type": "ack", "seq": seq, "safe_seq": max(-1, seq - self.safe_lag)})
