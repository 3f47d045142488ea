"""The nouns that travel through a chain: frozen, and ignorant of everything else.

Frames that report a fact are in the past tense. `at_ms` is a position on the caller's line: ms of caller audio since the
session began, from a running sample count, never from arrival time. Audio is signed 16-bit little-endian mono.

>>> AudioIn(bytes(640), 16000, at_ms=40.0).end_ms
60.0
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

__all__ = [
    "DTMF",
    "AudioIn",
    "AudioOut",
    "EndCall",
    "EndTurn",
    "Failed",
    "FailedOver",
    "Frame",
    "HealthChanged",
    "ImageIn",
    "Interrupt",
    "Interrupted",
    "ReplyEnded",
    "ReplyStarted",
    "ReplyWanted",
    "Retried",
    "SpeechEnded",
    "SpeechProbability",
    "SpeechStarted",
    "SpeechSuspected",
    "StartTurn",
    "TextDelta",
    "TextIn",
    "ToolCalled",
    "ToolReturned",
    "Transcript",
    "TurnEndProposed",
    "TurnEndWithdrawn",
    "TurnEnded",
    "Usage",
    "Word",
    "WordsFrom",
    "WordsWanted",
]

UNPLACED_MS = -1.0
UNNUMBERED = -1


def _size(pcm: bytes) -> str:
    return f"<{len(pcm)} bytes>"


# --- from the caller -------------------------------------------------------------------------------------------------


@attrs.frozen
class AudioIn:
    """Caller audio. `at_ms` is where it begins; a transport leaves it out and the session counts.

    `seq` is its number on a line that numbers what it brings: what is known to be kept need not be sent again.
    """

    pcm: bytes = attrs.field(repr=_size)
    sample_rate_hz: int
    at_ms: float = UNPLACED_MS
    seq: int = UNNUMBERED

    @property
    def end_ms(self) -> float:
        """Where it ends."""
        return self.at_ms + len(self.pcm) * 500.0 / self.sample_rate_hz


@attrs.frozen
class ImageIn:
    """A picture from the caller: `data` as `mime_type`."""

    data: bytes = attrs.field(repr=_size)
    mime_type: str
    at_ms: float = UNPLACED_MS


@attrs.frozen
class TextIn:
    """A turn typed instead of spoken. `seq` as in `AudioIn`."""

    text: str
    seq: int = UNNUMBERED


@attrs.frozen
class DTMF:
    """A key pressed on the caller's telephone: one of 0-9, *, #, A-D."""

    digit: str


@attrs.frozen
class StartTurn:
    """A wish, not a fact: the caller's turn begins now and lasts until `EndTurn`, whatever pauses it has (push-to-talk)."""

    source: str = "push"


@attrs.frozen
class EndTurn:
    """A wish, not a fact: end the caller's turn now (push-to-talk released, the turn's time limit). `source` says whose."""

    source: str


@attrs.frozen
class Interrupt:
    """A wish, not a fact: stop the reply now (the caller's stop button). `source` says whose."""

    source: str = "caller"


@attrs.frozen
class WordsFrom:
    """A wish of the session: the words that matter begin at `at_ms`; what was said before is nobody's, an echo of the reply."""

    at_ms: float


@attrs.frozen
class WordsWanted:
    """A wish of the session: tell, as an interim transcript, what the speech under way says so far."""

    at_ms: float


@attrs.frozen
class ReplyWanted:
    """A wish of the session: a speech-to-speech model makes reply number `reply`.

    It answers what it heard; or `text`, which was typed; or it says just `say`.
    """

    reply: int
    text: str = ""
    say: str = ""


# --- hearing ---------------------------------------------------------------------------------------------------------


@attrs.frozen
class SpeechProbability:
    """How likely (0..1) the window of `window_ms` that begins at `at_ms` holds speech."""

    probability: float
    at_ms: float
    window_ms: float

    @property
    def end_ms(self) -> float:
        """Where the window ends."""
        return self.at_ms + self.window_ms


@attrs.frozen
class SpeechSuspected:
    """Speech may have begun at `speech_start_ms`: too early to say, soon enough to hold one's tongue."""

    at_ms: float
    speech_start_ms: float


@attrs.frozen
class SpeechStarted:
    """Speech began at `speech_start_ms` and was sure at `at_ms`. Its sound is to be had from `audio_from_ms` (the pre-roll)."""

    at_ms: float
    speech_start_ms: float
    audio_from_ms: float


@attrs.frozen
class SpeechEnded:
    """Speech ended at `speech_end_ms`; it was sure, after the VAD's hangover, at `at_ms`."""

    at_ms: float
    speech_end_ms: float


# --- turns -----------------------------------------------------------------------------------------------------------


@attrs.frozen
class TurnEndProposed:
    """The turn may be over: time to transcribe on speculation."""

    at_ms: float


@attrs.frozen
class TurnEndWithdrawn:
    """The proposed end was not one."""

    at_ms: float


@attrs.frozen
class TurnEnded:
    """The caller's turn is over. `source` says who decided ("silence", "push", "max_turn", "text", a model's name).

    A turn detector leaves `text` empty; the session fills it with the turn's words before the agent gets it.
    """

    at_ms: float
    source: str
    speech_start_ms: float = UNPLACED_MS
    speech_end_ms: float = UNPLACED_MS
    text: str = ""


@attrs.frozen
class Word:
    """One word: placed on the caller's line in a transcript, from the start of its sentence's audio in a reply."""

    text: str
    start_ms: float
    end_ms: float
    confidence: float | None = None


@attrs.frozen
class Transcript:
    """What was said: an interim one may still change, a final one will not.

    `closes` marks the one final that answers a request to finalize; it may be empty. `through_ms` says how much of all the
    audio its stream was given is told by this and earlier finals: what came before need not be heard again. None: unknown.
    """

    text: str
    is_final: bool = True
    confidence: float | None = None
    language: str = ""
    words: tuple[Word, ...] = ()
    closes: bool = False
    through_ms: float | None = None


# --- the reply -------------------------------------------------------------------------------------------------------


@attrs.frozen
class ReplyStarted:
    """The first audio of reply number `reply` went to the line."""

    reply: int


@attrs.frozen
class TextDelta:
    """More text of the reply."""

    text: str


@attrs.frozen
class AudioOut:
    """Audio of the reply. `text` is the text it begins to speak, if it begins one; `words` its words' times, where known."""

    pcm: bytes = attrs.field(repr=_size)
    sample_rate_hz: int
    text: str = ""
    words: tuple[Word, ...] = ()


@attrs.frozen
class ReplyEnded:
    """Reply number `reply` is over; `heard_text` is what the caller heard of it."""

    reply: int
    heard_text: str
    interrupted: bool


@attrs.frozen
class Interrupted:
    """The caller spoke into reply number `reply`, and it stopped after `played_ms`."""

    reply: int
    played_ms: float
    heard_text: str


@attrs.frozen
class EndCall:
    """The agent wants to say `text`, if any, and hang up."""

    text: str = ""


@attrs.frozen
class ToolCalled:
    """The agent called a tool."""

    call_id: str
    name: str
    arguments: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class ToolReturned:
    """A tool gave `result`, or failed with `error`."""

    call_id: str
    result: Any = None
    error: str = ""


@attrs.frozen
class Failed:
    """A stage announces that a piece of work failed; the session goes on. `stage` is its name."""

    stage: str
    error: Exception


# --- providers -------------------------------------------------------------------------------------------------------

_is_text = attrs.validators.instance_of(str)


def _by_unit(amounts: Mapping[str, float]) -> dict[str, float]:
    return dict(amounts)



@attrs.frozen
class Usage:
    """What a call used, for the bill: `amounts` by unit ("audio_ms", "characters", "input_tokens", "output_tokens").

    `kind` and `provider` say whose bill ("tts", "elevenlabs"), `model` by which price.
    """

    kind: str = attrs.field(validator=_is_text)
    provider: str = attrs.field(validator=_is_text)
    model: str = attrs.field(default="", validator=_is_text)
    amounts: Mapping[str, float] = attrs.field(factory=dict, converter=_by_unit)


@attrs.frozen
class Retried:
    """A call of `provider` failed with `error` and is made again: attempt number `attempt`, from 2."""

    kind: str
    provider: str
    error: Exception
    attempt: int = 2


@attrs.frozen
class FailedOver:
    """From now on `new` does what `old` did. `error` says why; None: `new` is preferred and is well again."""

    kind: str
    old: str
    new: str
    error: Exception | None = None


@attrs.frozen
class HealthChanged:
    """The breaker of a provider went from one state to another: "closed", "open", "half_open"."""

    kind: str
    provider: str
    old: str
    new: str


Frame = (
    AudioIn
    | ImageIn
    | TextIn
    | DTMF
    | StartTurn
    | EndTurn
    | Interrupt
    | WordsFrom
    | WordsWanted
    | ReplyWanted
    | SpeechProbability
    | SpeechSuspected
    | SpeechStarted
    | SpeechEnded
    | TurnEndProposed
    | TurnEndWithdrawn
    | TurnEnded
    | Transcript
    | ReplyStarted
    | TextDelta
    | AudioOut
    | ReplyEnded
    | Interrupted
    | EndCall
    | ToolCalled
    | ToolReturned
    | Failed
    | Usage
    | Retried
    | FailedOver
    | HealthChanged
)
