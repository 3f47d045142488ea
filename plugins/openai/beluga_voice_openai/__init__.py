"""OpenAI, Groq and every compatible server for beluga-voice: voices, recognisers, agents, speech to speech.

Importing this loads no SDK; an engine does when it is entered, or at its first call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beluga_voice.hookspecs import hookimpl

BELUGA_VOICE_API = 1


@hookimpl
def register_stt(register: Callable[..., Any]) -> None:
    """The recognisers "openai" and "groq"."""
    from .groq import GroqSTT
    from .stt import OpenAISTT

    register("openai", OpenAISTT, summary="OpenAI's transcription: whole turns, or live over one socket a session")
    register("groq", GroqSTT, summary="Whisper at Groq: whole turns")


@hookimpl
def register_tts(register: Callable[..., Any]) -> None:
    """The voices "openai" and "groq"."""
    from .groq import GroqTTS
    from .tts import OpenAITTS

    register("openai", OpenAITTS, summary="OpenAI's voices, streamed at 24 kHz")
    register("groq", GroqTTS, summary="Orpheus at Groq, streamed")


@hookimpl
def register_agent(register: Callable[..., Any]) -> None:
    """The agents "openai" and "groq"."""
    from .agent import OpenAIAgent
    from .groq import GroqAgent

    register("openai", OpenAIAgent, summary="OpenAI's models, and any server that speaks as they do, with tools")
    register("groq", GroqAgent, summary="Groq's models, with tools")


@hookimpl
def register_s2s(register: Callable[..., Any]) -> None:
    """The speech-to-speech model "openai"."""
    from .realtime_s2s import OpenAIRealtime

    register("openai", OpenAIRealtime, summary="OpenAI's realtime models: speech in, speech out, with tools")
