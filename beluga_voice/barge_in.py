"""When speech during a reply is an interruption: pure, decided by positions on the caller's line and by words."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from .frames import Frame, SpeechEnded, SpeechProbability, SpeechStarted, SpeechSuspected
from .settings import BargeInOptions

__all__ = ["BargeIn", "Verdict"]

LOUD = 0.5
OWN_MS = 64.0  # speech over an echo needs as much to be suspected as speech over quiet
GOING_ON_MS = 64.0  # speech that dips for less goes on
EARLIER_MS = 64.0  # the words are asked for so much before they are needed: longer than a quick recogniser takes
ASK_AGAIN_MS = 64.0
LONGEST_HOLD_MS = 5_000.0  # a reply is not kept waiting for longer by speech that has too few words


class Verdict(Enum):
    """What to do: `PAUSE` the reply, `CUT` it, let it `GO_ON`, or `ASK` what the words are so far."""

    PAUSE = "pause"
    CUT = "cut"
    GO_ON = "go_on"
    ASK = "ask"


def _no_echo() -> bool:
    return False


class BargeIn:
    """Watches the speech during one reply.

    Suspected speech pauses. Before there is `min_speech_ms` of it the words so far are asked for; from then on they cut, or
    hold the decision open while they are but a backchannel. No words after `words_wait_ms` more, or speech longer than any
    backchannel: it cuts by its length. Speech that ends undecided is judged by all its words. `false_alarm_ms` of quiet after
    less speech lets the reply go on (at once where nothing of it has sounded yet: nobody waits for silence to be proven).

    Args:
        options: the `[barge_in]` table.
        loud: the probability from which a window is speech: the VAD's threshold.
        words: False where no recogniser will answer: length alone decides.
        patience_ms: how long the words of speech that is over are waited for; then its length decides.

    Attributes:
        speech_start_ms: where the speech last suspected began.
        why: why the reply last went on: "false_alarm", "backchannel" or "echo".
        echoes: how many times speech was passed over because it was the agent's own.
    """

    def __init__(
        self, options: BargeInOptions, loud: float = LOUD, *, words: bool = False, patience_ms: float = 1_000.0
    ) -> None:
        self._options, self._loud, self._patience_ms = options, loud, patience_ms
        self._reads = words and (options.min_words > 0 or bool(options.ignore) or options.echo_guard)
        self.speech_start_ms = 0.0
        self.why = ""
        self.echoes = 0
        self._vad_on = self._sure = self._echoed = False
        self._own_ms: float | None = None
        self._from_ms: float | None = None
        self._asked_ms: float | None = None
        self._ended_ms: float | None = None
        self._loud_ms = 0.0
        self._meaning = ""

    @property
    def suspects(self) -> bool:
        """True while it is not decided whether this is an interruption."""
        return self._from_ms is not None

    @property
    def over_echo(self) -> bool:
        """True while the VAD hears speech that began as the agent's own."""
        return self._echoed

    def feed(self, frame: Frame, *, unheard: bool, echo: Callable[[], bool] = _no_echo) -> Verdict | None:
        """What `frame` decides.

        Args:
            frame: any frame of the ears.
            unheard: nothing of the reply has been played yet.
            echo: asked, when it matters, whether the line sounds like the reply come back.
        """
        if isinstance(frame, SpeechProbability):
            return self._window(frame, unheard, echo) if self._vad_on or self.suspects else None
        if isinstance(frame, (SpeechSuspected, SpeechStarted)):
            return self._rise(frame, unheard, echo)
        if isinstance(frame, SpeechEnded):
            return self._fall(frame.at_ms)
        return None

    def heard(self, meaning: str) -> Verdict | None:
        """What the words so far decide; `meaning` as `overheard.meaning` gives it."""
        if self._asked_ms is None:
            return None
        self._meaning = meaning or self._meaning
        if self._ended_ms is not None:
            return self._cut() if self._meaning == "interruption" else self._go_on(self._meaning)
        return self._cut() if self._meaning == "interruption" and self._is_enough() else None

    # --- what the VAD says -------------------------------------------------------------------------------------------

    def _rise(self, frame: SpeechSuspected | SpeechStarted, unheard: bool, echo: Callable[[], bool]) -> Verdict | None:
        self._vad_on = True
        self._sure = isinstance(frame, SpeechStarted)
        if self._asked_ms is not None:
            self._loud_ms = frame.at_ms
            if self._sure:
                self._ended_ms = None
            return None
        if self._from_ms is None and not unheard and echo():
            self._pass_over()
            return None
        if self._from_ms is None and self._echoed:
            return None  # the windows tell when somebody speaks over it
        first = self._from_ms is None
        if first or self._sure:
            self._from_ms = self.speech_start_ms = frame.speech_start_ms
        self._loud_ms = frame.at_ms
        return self._judge(unheard) or (Verdict.PAUSE if first else None)

    def _fall(self, now_ms: float) -> Verdict | None:
        self._vad_on = self._sure = self._echoed = False
        self._own_ms = None
        if self._asked_ms is None or self._ended_ms is not None:
            return None
        if not self._is_enough():
            self._asked_ms = None  # too short to interrupt, whatever it says
            return None
        self._ended_ms = now_ms
        return Verdict.ASK

    def _window(self, window: SpeechProbability, unheard: bool, echo: Callable[[], bool]) -> Verdict | None:
        now_ms, loud = window.end_ms, window.probability >= self._loud
        if loud and self._asked_ms is None and not unheard and echo():
            self._pass_over()
            return None if self._from_ms is None else self._go_on("echo")
        if self._from_ms is None:
            return self._speech_again(window, loud)
        if loud:
            self._loud_ms = now_ms
        if self._asked_ms is not None:
            return self._wait(now_ms)
        wait_ms = 0.0 if unheard and not self._sure else self._options.false_alarm_ms
        if not loud and now_ms - self._loud_ms >= wait_ms:
            return self._go_on("false_alarm")
        return self._judge(unheard) if loud else None

    def _pass_over(self) -> None:
        self.echoes += not self._echoed
        self._echoed, self._own_ms = True, None

    def _speech_again(self, window: SpeechProbability, loud: bool) -> Verdict | None:
        """Speech that the VAD has no new start of: somebody speaks over the echo, or goes on after a long gap."""
        if not loud:
            self._own_ms = None
            return None
        if self._own_ms is None:
            self._own_ms = window.at_ms
        if window.end_ms - self._own_ms < OWN_MS:
            return None
        self._from_ms = self.speech_start_ms = self._own_ms
        self._loud_ms, self._own_ms = window.end_ms, None
        return Verdict.PAUSE

    # --- deciding ----------------------------------------------------------------------------------------------------

    def _is_enough(self) -> bool:
        return self._from_ms is not None and self._loud_ms - self._from_ms >= self._options.min_speech_ms

    def _judge(self, unheard: bool) -> Verdict | None:
        """One more piece of speech, no words asked for yet."""
        assert self._from_ms is not None
        if not self._sure:
            return None
        if unheard or not self._reads:
            return self._cut() if unheard or self._is_enough() else None
        if self._loud_ms - self._from_ms < self._options.min_speech_ms - EARLIER_MS:
            return None
        self._asked_ms = self._loud_ms
        return Verdict.ASK

    def _wait(self, now_ms: float) -> Verdict | None:
        """The words were asked for: what one more window decides."""
        assert self._from_ms is not None
        assert self._asked_ms is not None
        if self._ended_ms is None and now_ms - self._loud_ms >= self._patience_ms:
            self._ended_ms = self._loud_ms  # nobody will say that it ended
        if self._ended_ms is not None:
            if now_ms - self._ended_ms < self._patience_ms:
                return None
            return self._go_on(self._meaning) if self._meaning or not self._is_enough() else self._cut()
        if now_ms - self._loud_ms >= GOING_ON_MS:
            return None
        if self._loud_ms - self._from_ms >= self._longest_ms() and self._is_enough():
            return self._cut()
        if now_ms - self._asked_ms < ASK_AGAIN_MS:
            return None
        self._asked_ms = now_ms
        return Verdict.ASK

    def _longest_ms(self) -> float:
        """How much speech cuts by its length, after what is known of its words."""
        options = self._options
        if self._meaning == "interruption":
            return options.min_speech_ms
        if self._meaning:
            return LONGEST_HOLD_MS if options.min_words > 0 else options.backchannel_ms
        return options.min_speech_ms + (self._patience_ms if options.min_words > 0 else options.words_wait_ms)

    def _cut(self) -> Verdict:
        self._forget()
        return Verdict.CUT

    def _go_on(self, why: str) -> Verdict:
        self.why = why if why in ("backchannel", "echo") else "false_alarm"
        self._forget()
        return Verdict.GO_ON

    def _forget(self) -> None:
        self._from_ms = self._asked_ms = self._ended_ms = None
        self._meaning = ""
