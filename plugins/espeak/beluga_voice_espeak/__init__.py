"""Offline text-to-speech for beluga-voice: registers the voice "espeak", robotic and almost free of cost.

Importing this loads no engine; `tts.EspeakTTS` does when it is made. The engine is GPL-3.0: see the README.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beluga_voice.hookspecs import hookimpl

BELUGA_VOICE_API = 1


@hookimpl
def register_tts(register: Callable[..., Any]) -> None:
    """The eSpeak NG voice."""
    from .tts import EspeakOptions, EspeakTTS

    register("espeak", EspeakTTS, summary="eSpeak NG: robotic, light, 140 languages, offline", options=EspeakOptions)
