"""Speech into a reply: whether it pauses the reply, cuts it or is passed over, and whose its words are until that is known."""

from __future__ import annotations

from functools import partial

from .barge_in import BargeIn, Verdict
from .echo import EchoEar
from .engine import Context
from .events import Turn
from .floor import Floor
from .frames import Frame, WordsFrom, WordsWanted
from .overheard import meaning
from .owed import Owed
from .replies import Replies
from .reply import Reply
from .settings import BargeInOptions

__all__ = ["Overhearing"]

ECHO_PREROLL_MS = 100.0  # more would be the agent's words again


class Overhearing:
    """Hears what is said into the replies of one session. `barge_in` decides; this asks it and does as it says.

    Args:
        floor: whose turn it is.
        replies: asked to interrupt.
        owed: what the recogniser owes.
        context: what the stages share.
        options: the `[barge_in]` table.
        stt_closes: the recogniser closes its transcripts, and can be told where to begin.
        ear: what the caller's line brings; None where echoes are not told from speech.
    """

    def __init__(
        self,
        floor: Floor,
        replies: Replies,
        owed: Owed,
        context: Context,
        options: BargeInOptions,
        *,
        stt_closes: bool,
        ear: EchoEar | None,
    ) -> None:
        self._floor, self._mouth, self._replies, self._owed = floor, floor.mouth, replies, owed
        self._context, self._options, self.stt_closes, self._ear = context, options, stt_closes, ear
        self._aside: Turn | None = None

    def hear(self, frame: Frame) -> None:
        """Let speech pause, cut or free the reply, if there is one that may be interrupted."""
        reply = self._mouth.reply
        if reply is None or reply.barge_in is None:
            return
        rule, echoes = reply.barge_in, reply.barge_in.echoes
        echo = partial(self._is_echo, reply)
        self._decide(reply, rule, rule.feed(frame, unheard=reply.playout.played_ms <= 0, echo=echo))
        self._context.counters["echoes"] += rule.echoes - echoes

    def _is_echo(self, reply: Reply) -> bool:
        playout = reply.playout
        return self._ear is not None and self._ear.hears(playout.recent(), playout.rate_hz)

    def _decide(self, reply: Reply, rule: BargeIn, verdict: Verdict | None) -> None:
        if verdict is None:
            return
        start_ms, played_ms = rule.speech_start_ms + self._floor.offset_ms(), reply.playout.played_ms
        tell, index = self._floor.tell, self._floor.index
        if verdict is Verdict.PAUSE:
            self._aside = None
            reply.playout.pause()
            if rule.over_echo and self.stt_closes and not self._mouth.relays:  # what the recogniser has been given is the reply
                self._context.emit(WordsFrom(max(0.0, rule.speech_start_ms - ECHO_PREROLL_MS)))
                self._owed.expect(None)
            tell("reply_paused", index, reply=reply.number, played_ms=played_ms, speech_start_ms=start_ms)
        elif verdict is Verdict.GO_ON:
            self._aside = None
            reply.playout.go_on()
            tell("reply_resumed", index, reply=reply.number, played_ms=played_ms, why=rule.why)
        elif verdict is Verdict.ASK:
            self._context.emit(WordsWanted(self._floor.now_ms() - self._floor.offset_ms()))
        elif verdict is Verdict.CUT:
            self._replies.interrupt(reply, "speech")
            self._claim(self._floor.open(rule.speech_start_ms))

    # --- its words ---------------------------------------------------------------------------------------------------

    def aside(self) -> Turn | None:
        """Whose the words are while it is not decided whether they interrupt: a turn that may never be, without a number."""
        reply = self._mouth.reply
        if reply is None or reply.barge_in is None or not reply.barge_in.suspects:
            return None
        self._aside = self._aside or Turn(-1, self._floor.now_ms())
        return self._aside

    def goes_on(self) -> None:
        """The caller speaks again before it is decided: what is set aside is not over."""
        if self._aside is not None:
            self._aside.ended_ms = None

    def heard(self, turn: Turn | None, text: str) -> None:
        """Words that came, and those before them, are `text`; if they are of the `turn` set aside, they may decide."""
        reply = self._mouth.reply
        if turn is not None and turn is self._aside and reply is not None and reply.barge_in is not None:
            said = meaning(text, self._options, reply.playout.heard_text())
            self._decide(reply, reply.barge_in, reply.barge_in.heard(said))

    def _claim(self, turn: Turn) -> None:
        """It was an interruption: what was said and is owed so far is the turn's; it may be over already."""
        aside, self._aside = self._aside, None
        if aside is None:
            return
        for text in aside.finals:
            turn.finals.append(text)
            self._floor.tell("transcript", turn.index, text=text, is_final=True, confidence=None)
        self._owed.hand_over(aside, turn)
        turn.stt_provider = aside.stt_provider or turn.stt_provider
        turn.speech_end_ms = aside.speech_end_ms or turn.speech_end_ms
        if aside.ended_ms is not None:
            self._floor.end(turn, aside.source)
            self._owed.wait(turn)
