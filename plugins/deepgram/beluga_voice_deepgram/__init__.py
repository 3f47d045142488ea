"""Deepgram for beluga-voice: the recognisers "deepgram" (Nova) and "deepgram-flux", and the voice "deepgram" (Aura).

Importing this loads no SDK; an engine does when it is entered, or at its first call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beluga_voice.hookspecs import hookimpl

BELUGA_VOICE_API = 1


@hookimpl
def register_stt(register: Callable[..., Any]) -> None:
    """The recognisers "deepgram" and "deepgram-flux"."""
    from .flux import FluxSTT
    from .stt import DeepgramSTT

    register("deepgram", DeepgramSTT, summary="Deepgram Nova, live over one socket a session, and batch")
    register("deepgram-flux", FluxSTT, summary="Deepgram Flux, which hears by itself when the caller has finished")


@hookimpl
def register_tts(register: Callable[..., Any]) -> None:
    """The voice "deepgram"."""
    from .tts import DeepgramTTS

    register("deepgram", DeepgramTTS, summary="Deepgram Aura, over one socket a session, or HTTP")
