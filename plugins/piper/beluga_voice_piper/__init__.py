"""Offline text-to-speech for beluga-voice: registers the voice "piper", natural, on the CPU.

Importing this loads no engine; `tts.PiperTTS` does when it is entered, or at its first call. The engine is GPL-3.0: see
the README.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beluga_voice.hookspecs import hookimpl

BELUGA_VOICE_API = 1


@hookimpl
def register_tts(register: Callable[..., Any]) -> None:
    """The Piper voice."""
    from .tts import PiperOptions, PiperTTS

    register("piper", PiperTTS, summary="Piper: a natural voice on the CPU, offline", options=PiperOptions)
