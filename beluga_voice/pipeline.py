"""What runs of a chain in one session: its line is read into the ears, the dialogue decides, the mouth speaks over the line.

A `Chain` is a description and serves any number of sessions; a `Pipeline` is one session's own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from .chain import Chain
from .clock import Timers
from .connection import Connection
from .dialogue import Dialogue
from .ears import Ears
from .engine import Context
from .errors import LineLost
from .events import SessionEvent, TurnRecord
from .hybrid import HandOver, Hybrid
from .intake import Intake
from .limits import Limits
from .line import Line
from .reconnect import Breaker
from .settings import SessionOptions
from .snapshot import Snapshot
from .state import FINAL_STATES, Happening, SessionState
from .transport import Transport

__all__ = ["Pipeline"]

log = logging.getLogger("beluga_voice.session")


class Pipeline:
    """The running parts of one session. `begin` starts them, `stop` and `hang_up` end them.

    Args:
        chain: the session's stages; of a `Hybrid`, both chains in turn.
        line: what is heard and spoken over.
        context: what the stages share; its tasks are the session's.
        options: the session's limits.
        breaker: what guards dialling a lost line anew.
        now_ms: the session's time.
        tell: announces an event: `tell(name, turn_index, **data)`.
        close: closes the session with a reason.
        on_finished: told the record of each finished turn.
        snapshot: what to go on from.

    Attributes:
        connection: the line over its losses.
        dialogue: what is said, and whose turn it is.
    """

    def __init__(
        self,
        chain: Chain,
        line: Line,
        context: Context,
        options: SessionOptions,
        *,
        breaker: Breaker,
        now_ms: Callable[[], float],
        tell: Callable[..., None],
        close: Callable[[str], None],
        on_finished: Callable[[TurnRecord], None],
        snapshot: Snapshot | None = None,
    ) -> None:
        self._line, self._context, self._options, self._snapshot = line, context, options, snapshot
        self._now_ms, self._tell, self._close = now_ms, tell, close
        self._lost_ms = 0.0
        self._hand_over = HandOver(chain, tell) if isinstance(chain, Hybrid) else None
        self._intake = Intake(line, context, options, now_ms=now_ms, on_caught_up=lambda: self.dialogue.outage.caught_up())
        self.connection = Connection(
            line, self._intake, context, options, breaker=breaker, on_lost=self._line_lost, on_back=self._line_back
        )
        self.dialogue = Dialogue(
            chain,
            line,
            context,
            options,
            now_ms=now_ms,
            offset_ms=lambda: self._intake.offset_ms,
            stale_until_ms=lambda: self._intake.stale_until_ms,
            tell=tell,
            on_finished=on_finished,
            end=close,
            line_failed=self.connection.fail,
            snapshot=snapshot,
            on_boundary=self._boundary,
            on_unanswered=self._go_over,
        )
        self._ears = Ears(
            chain.split()[0],
            context,
            hear=self.dialogue.hear,
            on_crash=self._ears_crashed,
            changeable=self._hand_over is not None,
        )
        if isinstance(chain, Hybrid):
            self.dialogue.use(chain, voice=chain.chains["cascade"])
        self._limits = Limits(
            Timers(context.clock),
            options,
            self.dialogue.floor,
            self.dialogue.replies,
            self._intake,
            now_ms=now_ms,
            tell=tell,
            close=close,
        )

    def on_event(self, event: SessionEvent) -> None:
        """Take every event of the session: the line may have to tell its caller, and a hybrid's policy counts them."""
        if self._hand_over is not None:
            self._hand_over.on_event(event)
        self._line.notify(event)

    # --- from begin to end -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The line is open: hear it, and greet; with a snapshot, go on from there."""
        if self._snapshot is not None:
            self._intake.back()
        self._context.tasks.spawn(self._hold_line(), "line")
        self._context.spawn(self._ears.run(), "ears")
        self._limits.begin()
        self.dialogue.ready(self._snapshot)
        if self._snapshot is not None:
            self._tell("resumed", -1, kind="warm", gap_ms=None)

    async def replace_line(self, transport: Transport | None) -> None:
        """Go on over `transport` (None: over the same one, which is open again). What was not heard is sent again.

        Raises:
            ValueError: its rates are not those of the line.
        """
        old = self.connection.replace(transport)
        self.dialogue.mouth.rewind()
        if old is not None:
            await self._close_line(old)

    async def stop(self) -> None:
        """Say and hear nothing more; the line stays open for a goodbye."""
        self._limits.stop()
        self.connection.close()
        self.dialogue.replies.stop()
        try:
            await self._stop_work()
            self.dialogue.providers.hear_all(self._context.inbox.drain())  # what the last calls used
        finally:
            self._context.inbox.close()

    async def hang_up(self) -> None:
        """Close the line."""
        await self._close_line(self._line)

    def disconnected(self, reason: str) -> None:
        """It is over: the session's state says how."""
        floor = self.dialogue.floor
        if floor.state in FINAL_STATES:
            return
        happening = Happening.FAILED if reason == "error" else Happening.ENDED
        if reason == "lost":
            if floor.state is not SessionState.RECONNECTING:
                floor.move(Happening.LINE_LOST)
            happening = Happening.WINDOW_OVER
        floor.move(happening)

    async def _stop_work(self) -> None:
        reaper = self.dialogue.mouth.reaper
        stuck = await self._context.aclose(self._options.cancel_grace_ms)
        if len(reaper) or stuck:
            stuck = await reaper.aclose(self._options.close_timeout_ms)
            stuck += await self._context.tasks.aclose(self._options.close_timeout_ms)
        if stuck:
            log.warning("session %s closed with tasks that do not stop: %s", self._context.session_id, ", ".join(stuck))

    async def _close_line(self, line: Transport) -> None:
        timeout_ms = self._options.close_timeout_ms
        try:
            async with asyncio.timeout(timeout_ms / 1000.0):
                await line.aclose()
        except TimeoutError:
            log.warning("session %s: its line did not close within %g ms", self._context.session_id, timeout_ms)

    # --- its line and its ears ---------------------------------------------------------------------------------------

    async def _hold_line(self) -> None:
        try:
            await self.connection.run()
            self._close("bye")
        except LineLost:
            self._close("lost")
        except Exception as error:
            self._tell("error", -1, stage="line", message=str(error), error=error)
            self._close("error")

    def _line_lost(self, error: LineLost) -> None:
        self._lost_ms = self._now_ms()
        self.dialogue.outage.begin()
        self._tell("line_lost", -1, message=str(error))

    def _line_back(self) -> None:
        self.dialogue.outage.end()
        self._tell("resumed", -1, kind="hot", gap_ms=round(self._now_ms() - self._lost_ms, 3))

    def _ears_crashed(self, error: Exception, last_chance: bool) -> None:
        self._tell("error", -1, stage="ears", message=f"{type(error).__name__}: {error}", error=error)
        if last_chance:
            self._close("error")
        else:
            self.dialogue.deafened()

    # --- one chain of two --------------------------------------------------------------------------------------------

    def _boundary(self) -> None:
        """A turn boundary: the place to go over to the other chain of two."""
        if self.dialogue.settled:
            self._go_over()

    def _go_over(self) -> bool:
        """Go on with the other chain, if that is due; True if it is, so that it answers what this one could not."""
        if self._hand_over is None or self._hand_over.due is None:
            return False
        chain = self._hand_over.take()
        self.dialogue.use(chain, voice=self._hand_over.hybrid.chains["cascade"])
        self._ears.use(chain.split()[0])
        return True
