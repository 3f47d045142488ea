"""The parts that ship inside, registered like any plugin's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..hookspecs import hookimpl
from .agents import EchoAgent, RulesAgent, RulesOptions
from .energy_vad import EnergyOptions, EnergyVAD
from .file_transport import FileOptions, FileTransport
from .gain import Gain, GainOptions
from .memory_store import MemoryStore, MemoryStoreOptions
from .memory_transport import MemoryOptions, MemoryTransport
from .silence_turn import SilenceOptions, SilenceTurn
from .tone_tts import ToneOptions, ToneTTS
from .websocket_transport import WebSocketOptions, WebSocketTransport

BELUGA_VOICE_API = 1

Register = Callable[..., Any]


@hookimpl
def register_vad(register: Register) -> None:
    """The energy VAD."""
    register("energy", EnergyVAD, summary="loudness over a learned noise floor", options=EnergyOptions)


@hookimpl
def register_turn(register: Register) -> None:
    """The silence turn detector."""
    register("silence", SilenceTurn, summary="a time of quiet ends the turn", options=SilenceOptions)


@hookimpl
def register_agent(register: Register) -> None:
    """The echo and rules agents."""
    register("echo", EchoAgent, summary="says what it heard")
    register("rules", RulesAgent, summary="answers by pattern: time, date, sums, repeat, count, goodbye", options=RulesOptions)


@hookimpl
def register_tts(register: Register) -> None:
    """The tone voice."""
    register("tone", ToneTTS, summary="a beep for each word, for tests without a voice", options=ToneOptions)


@hookimpl
def register_transport(register: Register) -> None:
    """The file, memory and websocket transports."""
    register("file", FileTransport, summary="a recorded caller; records both sides", options=FileOptions)
    register("memory", MemoryTransport, summary="a line inside this process", options=MemoryOptions)
    register("websocket", WebSocketTransport, summary="calls a beluga-voice server", options=WebSocketOptions)


@hookimpl
def register_store(register: Register) -> None:
    """The memory store."""
    register("memory", MemoryStore, summary="inside this process, gone with it", options=MemoryStoreOptions)


@hookimpl
def register_processor(register: Register) -> None:
    """The gain processor."""
    register("gain", Gain, summary="makes the caller louder or softer", options=GainOptions)
