"""Silero voice activity detection for beluga-voice: registers the VAD "silero".

Importing this loads no weights; `vad.SileroVAD` does when it is entered, or at its first stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beluga_voice.hookspecs import hookimpl

BELUGA_VOICE_API = 1


@hookimpl
def register_vad(register: Callable[..., Any]) -> None:
    """The Silero VAD."""
    from .vad import SileroOptions, SileroVAD

    register("silero", SileroVAD, summary="Silero VAD v6 in plain numpy, sessions in batches", options=SileroOptions)
