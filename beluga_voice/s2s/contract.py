"""What a speech-to-speech model is: its capabilities, a conversation with it, and the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any

import attrs

from ..audio import Audio
from ..chain import Stage
from ..engine import Engine
from ..frames import Frame, ToolReturned
from ..tools import Toolbox

__all__ = ["S2S", "S2SCapabilities", "S2SSession"]


@attrs.frozen
class S2SCapabilities:
    """What a speech-to-speech model can do.

    Attributes:
        input_rate_hz: the rate at which it hears.
        output_rate_hz: the rate at which it speaks.
        tools: it calls tools.
        says: it can be told to say a text (`S2SSession.say`).
        closes: each `TurnEnded` is told its words by exactly one `Transcript(closes=True)`, in order, however late. Otherwise
            words come before the end of their turn.
    """

    input_rate_hz: int = 24_000
    output_rate_hz: int = 24_000
    tools: bool = False
    says: bool = False
    closes: bool = False


class S2SSession(ABC):
    """One connection to the model.

    Iterating `events` gives what it tells, in order:

    - `SpeechStarted` and `SpeechEnded`, if it hears when the caller speaks. Every place (`at_ms` and the others) is in ms of
      all audio this object was sent.
    - `TurnEnded` when the caller's turn is over; the words in a `Transcript`, before or after (see `closes`).
    - of each reply `TextDelta`, `AudioOut`, `ToolCalled`, and in the end one `ReplyEnded`, after the answers to its tools. Text
      that belongs to a piece of audio is that one's `text`; else it is spread over the sound.
    - `Usage`; `Failed` for what went wrong without ending the connection.

    A connection that breaks raises, or ends. The stage then makes another and tells it the conversation so far: a session
    neither retries nor reconnects.
    """

    @abstractmethod
    async def send_audio(self, audio: Audio) -> None:
        """Add caller audio, at the model's input rate."""

    @abstractmethod
    async def send_text(self, text: str) -> None:
        """Add a typed turn, and answer it; no `TurnEnded` or `Transcript` tells of it."""

    async def answer(self) -> None:
        """Answer what was said last. Asked for after a `TurnEnded` that is a turn of the caller, and not speech into a reply.

        A model that answers every turn by itself leaves this out; what it says to speech that was none is dropped.
        """

    async def say(self, text: str) -> None:
        """Say `text` and nothing else, as a reply of its own. Called where the engine's capabilities have `says`."""
        raise NotImplementedError(f"{type(self).__name__} cannot be told to say a text")

    async def end_turn(self) -> None:
        """The caller's turn is over now, by a button or a limit: tell `TurnEnded` if there was any speech."""

    @abstractmethod
    async def send_tool_result(self, result: ToolReturned) -> None:
        """Answer a `ToolCalled`; once all of a reply are answered it goes on. After an interruption nothing goes on."""

    @abstractmethod
    async def interrupt(self, played_ms: float) -> None:
        """Stop the reply made last, of which the caller heard `played_ms`, however far it is made; give no more of it."""

    @abstractmethod
    def events(self) -> AsyncIterator[Frame]:
        """What the model tells."""

    @abstractmethod
    async def aclose(self) -> None:
        """Hang up at once."""


class S2S(Engine, ABC):
    """A speech-to-speech model. `toolbox` holds the tools it is told of: the stage runs them."""

    kind = "s2s"
    capabilities: S2SCapabilities = S2SCapabilities()
    toolbox: Toolbox = Toolbox()

    @abstractmethod
    async def connect(self, history: tuple[Any, ...] = ()) -> S2SSession:
        """Begin a conversation that goes on from `history`.

        Args:
            history: the messages so far: `Message(role, text, heard_text, tool_calls)`. The last one may be the caller's, whom
                nobody has answered yet, or hold calls of tools that have not returned: wait for `answer` or `send_tool_result`.

        Raises:
            ProviderError: the model cannot be reached, or refuses.
        """

    def as_frame_processor(self) -> Stage:
        """The stage this model makes in a chain."""
        from .stage import as_frame_processor

        return as_frame_processor(self)
