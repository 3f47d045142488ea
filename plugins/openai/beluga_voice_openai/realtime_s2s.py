"""OpenAI's realtime models: speech in, speech out, over one WebSocket a session.

The model is never asked to answer or to stop by itself: the session decides what is a turn and what interrupts.

>>> OpenAIRealtime(api_key="sk-...").options.turn_detection
'semantic_vad'
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any, ClassVar

import attrs

from beluga_voice.audio import Audio
from beluga_voice.options import option
from beluga_voice.remote import base_url_option, key_option, max_concurrent_option
from beluga_voice.s2s import S2S, S2SCapabilities

from .agent import INSTRUCTIONS
from .realtime_items import items
from .realtime_session import SAMPLE_RATE_HZ, RealtimeSession
from .rehearsal import rehearse_socket
from .tooled import Tooled
from .vendor import CONNECT_TIMEOUT_S, OPENAI, EventError, socket_options

__all__ = ["OpenAIRealtime", "OpenAIRealtimeOptions"]

DELTA = {"type": "response.output_audio.delta", "delta": "AAA=", "item_id": "1", "content_index": 0}


@attrs.frozen
class OpenAIRealtimeOptions:
    """Options of OpenAI's realtime models."""

    model: str = option("gpt-realtime-2.1", "which model hears and speaks")
    voice: str = option("marin", "which voice speaks")
    language: str = option("", "BCP-47 tag of the caller's language, for the transcript; empty: it is found out")
    instructions: str = option(INSTRUCTIONS, "who it is and how it answers")
    tools: tuple[Any, ...] = option((), 'async functions it may call, or where to import them: "myapp:weather"')
    max_tool_rounds: int = option(5, "how often it may call tools before it has to answer", at_least=1, at_most=100)
    turn_detection: str = option(
        "semantic_vad",
        "what ends a turn: semantic_vad (the sense of it too), server_vad (quiet), none (a button: push to talk)",
        choices=("semantic_vad", "server_vad", "none"),
    )
    eagerness: str = option(
        "auto", "of semantic_vad: low waits for up to 8 s, medium 4, high 2", choices=("auto", "low", "medium", "high")
    )
    threshold: float = option(0.5, "of server_vad: how sure speech must be", at_least=0.0, at_most=1.0)
    prefix_padding_ms: int = option(300, "of server_vad: audio kept from before speech", at_least=0, at_most=5_000)
    silence_duration_ms: int = option(500, "of server_vad: quiet that ends a turn", at_least=10, at_most=10_000)
    noise_reduction: str = option("", "of what it hears; empty: none", choices=("", "near_field", "far_field"))
    transcription_model: str = option("gpt-live-transcribe", "what writes down the caller's words; empty: nothing does")
    speed: float = option(1.0, "how fast it speaks", at_least=0.25, at_most=1.5)
    max_response_tokens: int = option(
        0, "how long an answer may be, its sound included; 0: no limit", at_least=0, at_most=4_096
    )
    max_messages: int = option(200, "how many messages of the conversation a new connection is told", at_least=0)
    extra: dict[str, Any] = option(attrs.Factory(dict), "more fields of the session, as they are")
    api_key: str = key_option(OPENAI.env_var)
    base_url: str = base_url_option(OPENAI.base_url)
    max_concurrent: int = max_concurrent_option()


class OpenAIRealtime(Tooled, S2S):
    """A realtime model at OpenAI.

    Args:
        options: see `OpenAIRealtimeOptions`.

    Raises:
        OptionError: an option does not fit, or `tools` holds what is no tool.
        ConfigError: a tool cannot be imported.
        MissingKeyError: there is no key.
    """

    vendor = OPENAI
    Options: ClassVar[type[Any]] = OpenAIRealtimeOptions
    capabilities = S2SCapabilities(SAMPLE_RATE_HZ, SAMPLE_RATE_HZ, tools=True, says=True, closes=True)

    async def prewarm(self) -> None:
        """Make the client, and load what the first conversation would load."""
        await self.client()

        async def converse(connection: Any) -> None:
            session = await self._begin(connection, ())
            await session.send_audio(Audio(bytes(2), SAMPLE_RATE_HZ))
            async with aclosing(session.events()) as events:
                await session.answer()
                await anext(events)

        await rehearse_socket(converse, {"type": "session.updated"}, DELTA)

    async def connect(self, history: tuple[Any, ...] = ()) -> RealtimeSession:
        """Open a socket, and tell it who it is and what was said.

        Raises:
            ProviderError: it does not open, or refuses the options.
        """
        client = await self.client()
        connection = None
        try:
            connection = await client.realtime.connect(
                model=self.options.model, websocket_connection_options=socket_options(self.access)
            ).enter()
            return await self._begin(connection, history)
        except BaseException as error:
            if connection is not None:
                await connection.close()
            if isinstance(error, Exception):
                raise self.failed(error, "opening the session") from None
            raise

    async def _begin(self, connection: Any, history: tuple[Any, ...]) -> RealtimeSession:
        """Tell a socket that is open who it is and what was said."""
        await connection.session.update(session=self._session())
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await _configured(connection)
        told = items(history[-self.options.max_messages :] if self.options.max_messages else ())
        for item in told.items:
            await connection.conversation.item.create(item=item)
        return RealtimeSession(self, connection, told)

    def _session(self) -> dict[str, Any]:
        chosen = self.options
        pcm = {"type": "audio/pcm", "rate": SAMPLE_RATE_HZ}
        heard: dict[str, Any] = {"format": pcm, "turn_detection": self._turn_detection()}
        if chosen.transcription_model:
            heard["transcription"] = {"model": chosen.transcription_model}
            if chosen.language:
                heard["transcription"]["language"] = chosen.language.split("-")[0].lower()
        if chosen.noise_reduction:
            heard["noise_reduction"] = {"type": chosen.noise_reduction}
        session: dict[str, Any] = {
            "type": "realtime",
            "instructions": chosen.instructions,
            "output_modalities": ["audio"],
            "audio": {"input": heard, "output": {"format": pcm, "voice": chosen.voice, "speed": chosen.speed}},
            "tools": [{"type": "function", **spec} for spec in self.toolbox.specs],
        }
        if chosen.max_response_tokens:
            session["max_output_tokens"] = chosen.max_response_tokens
        return {**session, **chosen.extra}

    def _turn_detection(self) -> dict[str, Any] | None:
        """It tells when the caller speaks and is done, and does nothing about it."""
        chosen = self.options
        if chosen.turn_detection == "none":
            return None
        asked: dict[str, Any] = {"type": chosen.turn_detection, "create_response": False, "interrupt_response": False}
        if chosen.turn_detection == "semantic_vad":
            return {**asked, "eagerness": chosen.eagerness}
        knobs = ("threshold", "prefix_padding_ms", "silence_duration_ms")
        return {**asked, **{name: getattr(chosen, name) for name in knobs}}


async def _configured(connection: Any) -> None:
    """Wait until the service has taken the session's options."""
    while True:
        event = await connection.recv()
        if event.type == "session.updated":
            return
        if event.type == "error":
            raise EventError(event.error)
