"""Offline speech-to-text for beluga-voice: registers the recogniser "moonshine", English, weights included.

Importing this loads no engine; `stt.MoonshineSTT` does when it is entered, or at its first call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beluga_voice.hookspecs import hookimpl

BELUGA_VOICE_API = 1


@hookimpl
def register_stt(register: Callable[..., Any]) -> None:
    """The Moonshine recogniser."""
    from .stt import MoonshineOptions, MoonshineSTT

    register("moonshine", MoonshineSTT, summary="Moonshine tiny on the CPU, English, offline", options=MoonshineOptions)
