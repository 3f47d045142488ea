"""Rehearsals: the SDK's first call of each sort, in a thread and offline, so that no caller waits for what it loads and builds.

At its first call the SDK imports more of itself, and pydantic builds the classes of all events: 30 to 120 ms in which the loop
would stand still. Once in a process is enough.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

__all__ = ["CHAT", "RESPONSE", "SPEECH", "TRANSCRIPTION", "rehearse", "rehearse_socket"]

log = logging.getLogger("beluga_voice.openai")

_played: set[object] = set()
Canned = tuple[str, bytes]  # a content type and a body


def _sse(*events: Mapping[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


_CHUNK = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
_DELTA = {"index": 0, "delta": {"content": "one"}, "finish_reason": "stop"}
_USED = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
_TEXT = {"type": "response.output_text.delta", "delta": "one", "item_id": "1", "output_index": 0, "content_index": 0}
_RESPONSE = {"id": "1", "object": "response", "created_at": 1, "model": "m", "output": [], "status": "completed"}
SPEECH: Canned = ("audio/pcm", bytes(2))
TRANSCRIPTION: Canned = ("application/json", b'{"text": "one", "usage": {"type": "duration", "seconds": 1}}')
CHAT: Canned = ("text/event-stream", _sse({**_CHUNK, "choices": [_DELTA]}, {**_CHUNK, "choices": [], "usage": _USED}))
RESPONSE: Canned = (
    "text/event-stream",
    _sse({**_TEXT, "sequence_number": 1}, {"type": "response.completed", "sequence_number": 2, "response": _RESPONSE}),
)


async def rehearse(canned: Canned, call: Callable[[Any], Awaitable[object]]) -> None:
    """Let `call(client)` use a client that is answered from memory, unless it did so before.

    Args:
        canned: what every request is answered with.
        call: what would be the first call. If it fails, the real one will say why.
    """

    async def play() -> None:
        import anyio.lowlevel
        import httpx2
        import openai

        await anyio.lowlevel.checkpoint()
        kind, body = canned
        transport = httpx2.MockTransport(lambda _: httpx2.Response(200, headers={"content-type": kind}, content=body))
        http_client = httpx2.AsyncClient(transport=transport)
        async with openai.AsyncOpenAI(api_key="none", base_url="http://127.0.0.1", http_client=http_client) as client:
            await call(client)

    await _play(call, canned, play)


async def rehearse_socket(call: Callable[[Any], Awaitable[object]], *events: Mapping[str, Any]) -> None:
    """Let `call(connection)` use a Realtime connection that receives `events` and sends to nobody, unless it did so before."""

    async def play() -> None:
        import openai.lib._websocket  # noqa: F401  # which connecting would import
        from openai.resources.realtime.realtime import AsyncRealtimeConnection

        await call(AsyncRealtimeConnection(_Deaf(events)))  # type: ignore[arg-type]

    await _play(call, (), play)


async def _play(call: Callable[..., object], canned: object, play: Callable[[], Coroutine[Any, Any, None]]) -> None:
    def run() -> None:
        try:
            asyncio.run(play())
        except Exception:
            log.debug("a rehearsal failed", exc_info=True)

    name = getattr(call, "__qualname__", ""), canned
    if name not in _played:
        await asyncio.to_thread(run)
        _played.add(name)


class _Deaf:
    """A socket with nobody at the other end."""

    def __init__(self, events: tuple[Mapping[str, Any], ...]) -> None:
        self._events = [json.dumps(event).encode() for event in events]

    async def send(self, data: str | bytes) -> None:
        return None

    async def recv(self, decode: bool = False) -> bytes:
        return self._events.pop(0)
