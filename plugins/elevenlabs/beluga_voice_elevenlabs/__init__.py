"""ElevenLabs for beluga-voice: registers the voice and the recogniser "elevenlabs".

Importing this does not import the ElevenLabs SDK; it is loaded, in a thread, when an engine is entered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beluga_voice.hookspecs import hookimpl

BELUGA_VOICE_API = 1


@hookimpl
def register_stt(register: Callable[..., Any]) -> None:
    """Scribe, over a socket or in one request."""
    from .stt import ElevenLabsSTT, ElevenLabsSTTOptions

    register("elevenlabs", ElevenLabsSTT, summary="ElevenLabs Scribe: live or in one request", options=ElevenLabsSTTOptions)


@hookimpl
def register_tts(register: Callable[..., Any]) -> None:
    """Voices, over one socket a session or in requests."""
    from .tts import ElevenLabsTTS, ElevenLabsTTSOptions

    register("elevenlabs", ElevenLabsTTS, summary="ElevenLabs voices with word times", options=ElevenLabsTTSOptions)
