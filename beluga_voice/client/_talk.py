"""A recorded caller who calls a server: in real time, and both sides are kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any

from .._streams import Tasks, stop
from ..builtin.file_transport import FileTransport
from ..builtin.recorded_line import FRAME_MS
from ..clock import Clock
from ..errors import SessionClosedError
from ..events import SessionEvent
from ..frames import AudioIn, AudioOut
from ._call import Call, connect
from ._dialer import Token

__all__ = ["talk"]


class _Caller(FileTransport):
    """The recording; what is sent to it is heard from the frame under way on, so that both sides stay aligned."""

    def _play_ms(self) -> float:
        return self.position_ms


async def talk(
    url: str,
    *,
    input: str | os.PathLike[str],
    output: str | os.PathLike[str] = "",
    token: Token = None,
    sample_rate_hz: int = 16_000,
    tail_ms: float = 3_000.0,
    metadata: Mapping[str, Any] | None = None,
    on_event: Callable[[Call, dict[str, Any]], None] | None = None,
    clock: Clock | None = None,
    **more: Any,
) -> Call:
    """Call the server at `url` with a recording as the caller, and hang up when all is said.

    Args:
        url: like "ws://127.0.0.1:8080/v1/voice".
        input: the caller's audio: WAV, FLAC, OGG or MP3.
        output: where both sides go: stereo, caller left, agent right; empty: nowhere.
        token: as for `connect`.
        sample_rate_hz: the rate of the call, both ways.
        tail_ms: how long the call goes on, quiet, after the last word of either side.
        metadata: as for `connect`.
        on_event: called with the call and each event, as they come.
        clock: whose time it keeps.
        more: further arguments of `connect`.

    Returns:
        The call, ended: see `end_reason` and `counters`.

    Raises:
        AudioFileError: the input cannot be read, or the output not written.
        BelugaVoiceError: what entering `connect` raises; no output is left then.

    Example::

        call = await client.talk("ws://127.0.0.1:8080/v1/voice", input="caller.wav", output="call.wav")
        print(call.end_reason)
    """
    clock = clock or Clock()
    caller = _Caller(
        input=os.fspath(input), output=os.fspath(output), sample_rate_hz=sample_rate_hz, tail_ms=tail_ms, clock=clock
    )
    call = connect(
        url,
        token=token,
        input_rate_hz=sample_rate_hz,
        output_rate_hz=sample_rate_hz,
        metadata=metadata,
        paced=False,
        clock=clock,
        **more,
    )
    tasks = Tasks()
    try:
        async with call:
            speaking = tasks.spawn(_speak(caller, call), "client-speak")
            try:
                async for event in call:
                    _follow(caller, call, event)
                    if on_event is not None:
                        on_event(call, event)
            finally:
                if call.end_reason != "bye":
                    speaking.cancel()
                await stop(speaking) if not speaking.done() else None
        if not speaking.cancelled() and (error := speaking.exception()) is not None:
            raise error
    finally:
        await caller.aclose()
    return call


async def _speak(caller: FileTransport, call: Call) -> None:
    """Say what was recorded, hear what comes, hang up."""
    try:
        async with aclosing(caller.recv()) as frames:  # type: ignore[type-var]
            async for frame in frames:
                assert isinstance(frame, AudioIn)
                await call.send_audio(frame.pcm)
                await caller.send(AudioOut(call.read(FRAME_MS), caller.output_rate_hz))
    except SessionClosedError:
        pass  # the server ended the call
    finally:
        await call.aclose()


def _follow(caller: FileTransport, call: Call, event: Mapping[str, Any]) -> None:
    """Tell the recording what the session does: it hangs up only while the session listens and the line is up."""
    if event["type"] == "state" or event["type"] == "line":
        state = call.state if call.is_up else "reconnecting"
        caller.notify(SessionEvent("state", 0.0, data={"state": state}))
