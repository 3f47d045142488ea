"""The line of a session that is served over WebSockets: it survives them, and never forgets what it was told or has to tell."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from typing import Any

from .. import wire
from ..audio import BYTES_PER_SAMPLE
from ..clock import Clock
from ..errors import AudioFormatError, LineLost
from ..events import SessionEvent
from ..frames import AudioOut, Frame
from ..history import Message
from ..link import Link
from ..transport import Transport, TransportCapabilities
from .attachment import Attachment, Socket
from .bounds import LineOptions
from .hearing import Hearing
from .playhead import Playhead
from .telling import Teller
from .tokens import ResumeTokens
from .welcome import UNKNOWN, Welcome
from .writing import Writing

__all__ = ["LineOptions", "WireLine"]

log = logging.getLogger("beluga_voice.server")

GONE = 0
REPLACED, REFUSED, INTERNAL = 4409, 4410, 4500
MAX_PCM = wire.MAX_BYTES - wire.SEQ_BYTES
COMPLAINT_MS = 1_000.0


class WireLine(Transport):
    """One caller's line: `serve` puts it on a socket, and on the next one when that breaks.

    Args:
        hello: what the caller said first.
        options: its bounds; the defaults if left out.
        clock: whose time is kept.
        saved: what `saved()` told in another process (`Snapshot.line`): the line goes on from there, with `hello.resume`.
        received_seq: then, the caller's last message that is covered (`Snapshot.seq`).

    Attributes:
        session_id: told to the caller; the session's own from its first event on.
        tokens: the resume tokens that open this line.
        counters: what was dropped, refused or out of order, by name.
    """

    capabilities = TransportCapabilities(live=True, resumable=True)
    provider = "websocket"

    def __init__(
        self,
        hello: wire.Hello,
        *,
        options: LineOptions | None = None,
        clock: Clock | None = None,
        saved: Mapping[str, Any] | None = None,
        received_seq: int = -1,
    ) -> None:
        self.session_id = ""
        self.options = told = options or LineOptions()
        kept = saved or {}
        self.input_rate_hz = int(kept.get("input_rate_hz", hello.input_rate_hz))
        self.output_rate_hz = int(kept.get("output_rate_hz", hello.output_rate_hz))
        self.push = bool(kept.get("push", hello.push))
        self.tokens = ResumeTokens.restored(kept.get("tokens", ()))
        self._clock = clock or Clock()
        self._counted: Counter[str] = Counter()
        self._link = Link(
            self.output_rate_hz,
            window_ms=told.window_ms,
            max_events=told.max_events,
            next_seq=hello.resume.received_seq + 1 if saved is not None and hello.resume is not None else 0,
            received_seq=received_seq,
        )
        rates_hz = (self.input_rate_hz, self.output_rate_hz)
        self._welcome = Welcome(self._link, rates_hz, self.tokens, moved=saved is not None)
        self._head = Playhead(self.output_rate_hz)
        self._writing = Writing(
            told, clock=self._clock, link=self._link, head=self._head, counters=self._counted, safe_seq=received_seq
        )
        self._hearing = Hearing(
            told,
            self.input_rate_hz,
            self.push,
            link=self._link,
            head=self._head,
            counters=self._counted,
            complain=self._complain,
        )
        self._inbound = self._hearing.inbound
        self._paused = False
        self._clears = 0
        self._teller = Teller()
        self._complained: dict[str, float] = {}
        self._attachment: Attachment | None = None
        self._heard_ms: float | None = None
        self._back = asyncio.Event()
        self._end_reason = "closed"

    @property
    def attached(self) -> bool:
        """True while a socket is on the line."""
        return self._attachment is not None

    @property
    def counters(self) -> Counter[str]:
        """What was dropped, refused or out of order, by name; times happened."""
        link, counted = self._link, Counter(self._counted)
        counted["audio_dropped"] = self._inbound.dropped
        counted["kept_audio_lost"], counted["kept_events_lost"] = link.lost["audio"], link.lost["events"]
        counted["gaps"], counted["missing"], counted["repeats"] = link.gaps, link.missing, link.repeats
        counted["wrong_tokens"] = self.tokens.guesses
        return +counted

    def admit(self, hello: wire.Hello) -> None:
        """Check that `hello` may take up this line; call it before `serve`, and serve at once if it raises nothing.

        Raises:
            WireError: the resume token is wrong (4410), or the rates are not the line's (4400).
        """
        self._welcome.admit(hello)

    # --- a socket's time on the line ---------------------------------------------------------------------------------

    async def serve(
        self,
        socket: Socket,
        *,
        resume: wire.Resume | None = None,
        limits: Mapping[str, Any] | None = None,
        history: Iterable[Message] = (),
    ) -> None:
        """Be on `socket` until it ends, a newer one comes (4409), or the session closes (with the code for its reason).

        Says welcome, sends again what the caller has not received, then reads and writes. Owns nothing after it returns.

        Args:
            socket: after its handshake.
            resume: what the caller's hello said, if it comes back; `admit` has let it in.
            limits: told in the welcome.
            history: the conversation so far, told where events were lost.
        """
        if self._writing.closing is not None:
            await socket.close(REFUSED, UNKNOWN)
            return
        here = Attachment(socket, self._clock.now_ms())
        before, self._attachment = self._attachment, here
        try:
            if before is not None:
                self._counted["replaced"] += 1
                before.end(REPLACED, wire.close_code("replaced")[1])
                await before.stopped.wait()  # what it had in hand is counted as received
                self._inbound.lost(LineLost("a newer connection took the place of the line's own"))
            if self._attachment is here:
                await self._pump(here, self._begin(here, resume, limits or {}, history))
            else:
                here.end(REPLACED, wire.close_code("replaced")[1])
            self._detach(here)
            code, reason = here.ended.result()
            if code != GONE:
                await socket.close(code, reason)
        finally:
            self._detach(here)
            here.closed.set()

    async def _pump(self, here: Attachment, welcome: str) -> None:
        try:
            async with asyncio.timeout(self.options.write_timeout_ms / 1000.0):
                await here.socket.send(welcome)
        except (LineLost, TimeoutError):
            here.end(GONE, "the welcome could not be sent")
            return
        self._back.set()
        self._writing.tick(here)
        async with asyncio.TaskGroup() as tasks:
            read = tasks.create_task(self._guard(here, self._read(here)), name="wire read")
            write = tasks.create_task(self._guard(here, self._writing.write(here)), name="wire write")
            try:
                await here.ended
            finally:
                read.cancel()
                write.cancel()

    def _detach(self, here: Attachment) -> None:
        if here.timer is not None:
            here.timer.cancel()
            here.timer = None
        here.stopped.set()
        if self._attachment is here:
            self._attachment = None
            self._back.clear()
            self._heard_ms = here.heard_ms
            self._head.detach(self._clock.now_ms())
            why = here.ended.result()[1] if here.ended.done() and not here.ended.cancelled() else "its server stopped"
            self._inbound.lost(LineLost(f"the line broke: {why}"))

    def _begin(
        self, here: Attachment, resume: wire.Resume | None, limits: Mapping[str, Any], history: Iterable[Message]
    ) -> str:
        """Set everything to where the caller is; the welcome."""
        now_ms = self._clock.now_ms()
        welcome = self._welcome.message(self.session_id, resume, limits, history)
        here.cursor = self._link.first_seq
        if resume is None:
            self._head.attach(now_ms)
        else:
            played_seq = resume.played_seq if resume.played_seq >= 0 else None
            self._head.attach(now_ms, resume.received_seq, played_seq, resume.played_ms)
            self._hearing.back(None if self._heard_ms is None else now_ms - self._heard_ms, now_ms)
        return welcome

    async def _guard(self, here: Attachment, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            log.exception("the line of session %s failed", self.session_id)
            self._counted["failed"] += 1
            here.end(INTERNAL, "internal error; the server's log has more")

    # --- telling the caller ------------------------------------------------------------------------------------------

    def _say(self, *messages: Mapping[str, Any]) -> None:
        """Number messages and have them written."""
        for message in messages:
            self._link.stamp(message)
        self._wake()

    def _wake(self) -> None:
        if self._attachment is not None:
            self._attachment.news.set()

    def _complain(self, code: str, message: str, now_ms: float) -> None:
        """Tell the caller of something that is wrong, of each kind at most once a second."""
        if now_ms - self._complained.get(code, -COMPLAINT_MS) < COMPLAINT_MS:
            self._counted["complaints_untold"] += 1
            return
        self._complained[code] = now_ms
        self._say({"type": "error", "code": code, "message": message, "fatal": False})

    # --- reading -----------------------------------------------------------------------------------------------------

    async def _read(self, here: Attachment) -> None:
        while not self._inbound.closed:
            message = await here.socket.receive()
            if message is None:
                if here.socket.hung_up:
                    self._inbound.close()
                here.end(GONE, "the caller's end is gone")
                return
            now_ms = here.heard_ms = self._clock.now_ms()
            try:
                heard = wire.parse_client(message)
                if not here.proven:
                    here.proven = True
                    self._welcome.answered()
                if isinstance(heard, wire.AudioMessage):
                    await self._hearing.audio(here, heard, now_ms)
                    here.heard_ms = self._clock.now_ms()
                else:
                    self._hearing.control(here, heard, now_ms)
            except wire.WireError as error:
                self._counted["protocol_broken"] += 1
                self._inbound.close(error)
                here.end(error.code, error.reason)

    # --- the session's side ------------------------------------------------------------------------------------------

    def recv(self) -> AsyncIterator[Frame]:
        return self._inbound.frames()

    async def send(self, frame: AudioOut) -> None:
        if frame.sample_rate_hz != self.output_rate_hz:
            wanted, got = self.output_rate_hz, frame.sample_rate_hz
            raise AudioFormatError(f"audio of {got} Hz was sent; expected the line's {wanted} Hz", wanted=wanted, got=got)
        clears = self._clears
        while self._head.unsent_ms >= self.options.unsent_ms and self._writing.closing is None:
            self._writing.room.clear()
            await self._writing.room.wait()
        if self._writing.closing is not None or clears != self._clears:
            self._counted["stale_audio_dropped"] += 1
            return
        whole = len(frame.pcm) // BYTES_PER_SAMPLE * BYTES_PER_SAMPLE
        for at in range(0, whole, MAX_PCM):
            pcm = frame.pcm[at : min(at + MAX_PCM, whole)]
            self._say(*self._teller.begin_audio(self._link.next_seq))
            seq = self._link.next_seq
            self._link.stamp_audio(pcm)
            self._teller.audio(seq)
            self._head.queued(seq, len(pcm) // BYTES_PER_SAMPLE)
        self._wake()

    def clear(self) -> None:
        self._clears += 1
        self._head.clear(self._link.next_seq, self._clock.now_ms())
        self._say({"type": "clear", "turn": self._teller.turn})
        if self._paused:
            self.go_on()
        self._writing.room.set()

    def pause(self) -> bool:
        self._paused = True
        self._head.pause(self._clock.now_ms())
        self._say({"type": "pause"})
        return True

    def go_on(self) -> None:
        self._paused = False
        self._head.go_on(self._clock.now_ms())
        self._say({"type": "continue"})

    @property
    def played_ms(self) -> float:
        return self._head.played_ms(self._clock.now_ms())

    async def reattached(self) -> None:
        if self._welcome.proven:
            await self._back.wait()
        else:  # nobody who was never heard may hold a session's place for the whole window
            try:
                async with asyncio.timeout(self.options.unproven_ms / 1000.0):
                    await self._back.wait()
            except TimeoutError:
                raise LineLost("the caller went before they were heard") from None
        if self._writing.closing is not None:
            raise LineLost("the line was closed")

    def covered(self, seq: int) -> None:
        if seq > self._writing.safe_seq:
            self._writing.safe_seq = seq
            if self.options.has_store:
                self._link.owe_ack(self._clock.now_ms())

    def saved(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens.saved(),
            "input_rate_hz": self.input_rate_hz,
            "output_rate_hz": self.output_rate_hz,
            "push": self.push,
        }

    def notify(self, event: SessionEvent) -> None:
        if self._writing.closing is not None:
            return
        if event.name == "opened":
            self.session_id = event.data["session_id"]
        elif event.name == "closing":
            self._end_reason = event.data["reason"]
        elif event.name == "goaway":
            self._say({"type": "goaway", **event.data, "resume_token": self.tokens.issue(welcome=False)})
        elif event.name == "turn_ended" and self._attachment is not None:
            self._attachment.ack_wanted = True
        self._say(*self._teller.messages(event))

    async def aclose(self) -> None:
        if self._writing.closing is None:
            self._writing.closing = wire.close_code(self._end_reason)
        self._inbound.close()
        self._writing.room.set()
        self._back.set()
        here = self._attachment
        if here is None:
            return
        here.news.set()
        hurry = self._clock.call_later_ms(self.options.flush_ms, here.end, *self._writing.closing)
        await here.closed.wait()
        hurry.cancel()
