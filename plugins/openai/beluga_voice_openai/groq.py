"""Groq: OpenAI's interfaces at another address, with models, limits and a key of its own.

>>> GroqSTT(api_key="gsk_...").model, GroqAgent(api_key="gsk_...").api
('whisper-large-v3-turbo', 'chat')
"""

from __future__ import annotations

import attrs

from beluga_voice.options import option
from beluga_voice.remote import base_url_option, key_option

from .agent import OpenAIAgent, OpenAIAgentOptions
from .stt import OpenAISTT, OpenAISTTOptions
from .tts import OpenAITTS, OpenAITTSOptions
from .vendor import GROQ

__all__ = ["GroqAgent", "GroqAgentOptions", "GroqSTT", "GroqSTTOptions", "GroqTTS", "GroqTTSOptions"]


@attrs.frozen
class GroqSTTOptions(OpenAISTTOptions):
    """Options of Whisper at Groq."""

    mode: str = option("batch", "the only one there is: whole turns", choices=("batch",))
    model: str = option("whisper-large-v3-turbo", "which model listens")
    api_key: str = key_option(GROQ.env_var)
    base_url: str = base_url_option(GROQ.base_url)


class GroqSTT(OpenAISTT):
    """Whisper at Groq: a turn is one request when it is over."""

    vendor = GROQ
    Options = GroqSTTOptions


@attrs.frozen
class GroqTTSOptions(OpenAITTSOptions):
    """Options of the voices at Groq."""

    model: str = option("canopylabs/orpheus-v1-english", "which model speaks")
    voice: str = option("hannah", "which voice speaks: autumn, diana, hannah, austin, daniel, troy")
    response_format: str = option("wav", "the only one there is; it says its own rate", choices=("wav",))
    api_key: str = key_option(GROQ.env_var)
    base_url: str = base_url_option(GROQ.base_url)


class GroqTTS(OpenAITTS):
    """A voice at Groq. A text of over 200 characters is spoken in several requests: it takes no more in one."""

    vendor = GROQ
    Options = GroqTTSOptions
    longest_text = 200


@attrs.frozen
class GroqAgentOptions(OpenAIAgentOptions):
    """Options of Groq's models as agents."""

    model: str = option("openai/gpt-oss-120b", "which model answers")
    api: str = option("chat", "which of its two interfaces", choices=("chat", "responses"))
    api_key: str = key_option(GROQ.env_var)
    base_url: str = base_url_option(GROQ.base_url)


class GroqAgent(OpenAIAgent):
    """A model at Groq as an agent with tools."""

    vendor = GROQ
    Options = GroqAgentOptions
