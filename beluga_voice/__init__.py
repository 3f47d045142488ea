"""beluga-voice: production voice sessions from speech providers chosen by name.

The main nouns: a `Chain` of stages (vad, turn, stt, your agent, tts), a `Session` that runs it over a transport, a
`SessionManager` that keeps many of them, and the kinds (`stt`, `tts`, `vad`, `turn`, `agent`, `s2s`, `transport`, `store`,
`processor`), each with `new(name, **options)`.
"""

from . import agent, audio, errors, frames, processor, s2s, store, stt, transport, tts, turn, vad
from .audio import Audio
from .chain import Chain, each_frame
from .errors import BelugaVoiceError
from .events import SessionEvent, TurnRecord
from .history import Message
from .hookspecs import hookimpl
from .manager import SessionManager
from .session import Session
from .settings import BargeInOptions, SessionOptions
from .state import SessionState

__all__ = [
    "Audio",
    "BargeInOptions",
    "BelugaVoiceError",
    "Chain",
    "Message",
    "Session",
    "SessionEvent",
    "SessionManager",
    "SessionOptions",
    "SessionState",
    "TurnRecord",
    "agent",
    "audio",
    "each_frame",
    "errors",
    "frames",
    "hookimpl",
    "processor",
    "s2s",
    "store",
    "stt",
    "transport",
    "tts",
    "turn",
    "vad",
]
