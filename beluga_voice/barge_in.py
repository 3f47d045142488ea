"""When speech during a reply is an interruption: pure, decided by positions on the caller's line."""

from __future__ import annotations

from enum import Enum

from .frames import Frame, SpeechEnded, SpeechProbability, SpeechStarted, SpeechSuspected
from .settings import BargeInOptions

__all__ = ["BargeIn", "Verdict"]

LOUD = 0.5


class Verdict(Enum):
    """What to do with the reply: `PAUSE` it, `CUT` it, or let it `GO_ON`."""

    PAUSE = "pause"
    CUT = "cut"
    GO_ON = "go_on"


class BargeIn:
    """Watches the speech during one reply.

    Suspected speech pauses; `min_speech_ms` of sure speech cuts; `false_alarm_ms` of quiet lets a paused reply go on (at once
    where nothing of it has sounded yet: then nobody waits for silence to be proven). `loud` is the probability from which a
    window is speech: the VAD's threshold. `speech_start_ms` is where the speech last suspected began.
    """

    def __init__(self, options: BargeInOptions, loud: float = LOUD) -> None:
        self._options, self._loud = options, loud
        self.speech_start_ms = 0.0
        self._from_ms: float | None = None
        self._loud_ms = 0.0
        self._sure = False

    @property
    def suspects(self) -> bool:
        """True while it is not decided whether this is an interruption."""
        return self._from_ms is not None

    def feed(self, frame: Frame, *, unheard: bool) -> Verdict | None:
        """What `frame` decides. `unheard`: nothing of the reply has been played yet."""
        kind = type(frame)
        if kind is SpeechProbability:
            return None if self._from_ms is None else self._window(frame, unheard)  # type: ignore[arg-type]
        if isinstance(frame, (SpeechSuspected, SpeechStarted)):
            self._sure = isinstance(frame, SpeechStarted)
            self._loud_ms = frame.at_ms
            if self._from_ms is not None and not self._sure:
                return None
            first = self._from_ms is None
            self._from_ms = self.speech_start_ms = frame.speech_start_ms
            return self._cut(frame.at_ms, unheard) or (Verdict.PAUSE if first else None)
        if isinstance(frame, SpeechEnded):
            self._sure = False
        return None

    def _window(self, window: SpeechProbability, unheard: bool) -> Verdict | None:
        if window.probability >= self._loud:
            self._loud_ms = window.end_ms
        wait_ms = 0.0 if unheard and not self._sure else self._options.false_alarm_ms
        if window.probability < self._loud and window.end_ms - self._loud_ms >= wait_ms and not self._sure:
            self._from_ms = None
            return Verdict.GO_ON
        return self._cut(window.end_ms, unheard) if window.probability >= self._loud else None

    def _cut(self, now_ms: float, unheard: bool) -> Verdict | None:
        needed_ms = 0.0 if unheard else self._options.min_speech_ms
        if self._from_ms is None or not self._sure or now_ms - self._from_ms < needed_ms:
            return None
        self._from_ms = None
        return Verdict.CUT
