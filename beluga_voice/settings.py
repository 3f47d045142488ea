"""The settings of a session: its limits, with their defaults, and when a caller may interrupt.

>>> SessionOptions(greeting="Hello.").final_timeout_ms
1000.0
"""

from __future__ import annotations

import attrs

from .options import option

__all__ = ["BargeInOptions", "SessionOptions"]

# What English listeners say to be heard listening, and what recognisers make of the first half of it. "No" and "what" are not
# among them: they object. "Yes" is: as an answer it comes when the reply is over, and then it is a turn.
BACKCHANNELS = (
    *("mm", "mm-hm", "mm-hmm", "mhm", "hm", "hmm", "uh", "uh-huh", "huh", "ah", "aha", "oh", "um"),
    *("yeah", "yep", "yup", "yes", "ok", "okay", "right", "sure", "alright", "all right", "i see", "got it"),
    *("great", "good", "nice", "cool", "wow", "exactly", "of course"),
)


@attrs.frozen
class BargeInOptions:
    """When speech during a reply is an interruption: the `[barge_in]` table."""

    enabled: bool = option(True, "false: strict half-duplex, the caller is not heard during a reply")
    min_speech_ms: float = option(200.0, "speech needed to interrupt a reply", at_least=0, at_most=5_000)
    min_words: int = option(0, "words needed to interrupt a reply; 0: any", at_least=0, at_most=20)
    ignore: tuple[str, ...] = option(BACKCHANNELS, "what a caller may say without interrupting; empty: nothing")
    backchannel_ms: float = option(1_000.0, "longer speech interrupts, ignored words or not", at_least=0, at_most=5_000)
    words_wait_ms: float = option(
        0.0, "how much more speech than min_speech_ms may come before its words; then it interrupts", at_least=0, at_most=5_000
    )
    echo_guard: bool = option(True, "the agent's own voice come back does not interrupt")
    false_alarm_ms: float = option(1_000.0, "quiet after suspected speech that lets a reply go on", at_least=0, at_most=10_000)


@attrs.frozen
class SessionOptions:
    """What a session does and where its limits are: the `[session]` table."""

    greeting: str = option("", "what the agent says first; empty: it waits for the caller")
    fallback: str = option(
        "Sorry, something went wrong. Please say that again.", "what is said when the agent fails; empty: nothing"
    )
    agent_timeout_ms: float = option(15_000.0, "the longest wait for the agent's next words", at_least=10)
    final_timeout_ms: float = option(1_000.0, "the longest wait for a turn's final transcript", at_least=0)
    tool_filler: str = option("One moment, please.", "what is said while a tool keeps the caller waiting; empty: nothing")
    tool_filler_after_ms: float = option(1_000.0, "silence during a tool call before it is said; 0: never", at_least=0)
    send_lead_ms: float = option(200.0, "how far sending may be ahead of playing", at_least=20, at_most=5_000)
    resumed_lead_ms: float = option(500.0, "the same after a lost line came back", at_least=20, at_most=5_000)
    max_reply_audio_ms: float = option(10_000.0, "audio held for a reply; beyond, agent and voice wait", at_least=100)
    inbound_audio_ms: float = option(5_000.0, "live audio waiting to be heard; beyond, the oldest is dropped", at_least=100)
    line_gap_ms: float = option(1_000.0, "a live line that brings nothing for so long was silent all the while", at_least=20)
    max_turn_ms: float = option(30_000.0, "speech in one turn; then it is ended and answered", at_least=100)
    idle_timeout_ms: float = option(60_000.0, "no speech, text, key, reply or tool; then the session closes", at_least=100)
    max_session_ms: float = option(3_600_000.0, "the longest session; it closes at the next turn boundary", at_least=100)
    resume_window_ms: float = option(30_000.0, "how long a lost line may take to come back; 0: not at all", at_least=0)
    cancel_grace_ms: float = option(100.0, "how long a cancelled reply may clean up before it is left behind", at_least=0)
    max_stuck: int = option(8, "replies left behind that have not stopped; one more ends the session", at_least=1)
    close_timeout_ms: float = option(5_000.0, "the longest wait, on closing, for what does not stop", at_least=0)
    max_says: int = option(16, "texts waiting to be said", at_least=1)
    loop_warning_ms: float = option(50.0, "who holds the event loop for longer is warned of by name", at_least=1)
    barge_in: BargeInOptions = attrs.field(factory=BargeInOptions, metadata={"doc": "the [barge_in] table"})
