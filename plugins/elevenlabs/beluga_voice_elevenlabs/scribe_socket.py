"""Scribe's live protocol over one socket: audio and commits up, messages down.

The SDK's connection makes a TLS context for itself, 30 ms of the event loop and 1 MB, and tells what comes by callbacks.
"""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from beluga_voice.vendor_socket import open_socket

from .vendor import CODES, Refused

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

    from .stt import ElevenLabsSTT

__all__ = ["ScribeSocket", "language_code"]

STARTED_MS = 10_000.0
SEND_MS = 2_000.0
GOODBYE_MS = 1_000.0


def language_code(language: str) -> str | None:
    """What the service calls a language: "en-GB" is "en"."""
    return language.split("-")[0].lower() or None


class ScribeSocket:
    """An open socket; see `open`."""

    def __init__(self, socket: ClientConnection, rate_hz: int) -> None:
        self._socket, self._rate_hz = socket, rate_hz

    @classmethod
    async def open(cls, engine: ElevenLabsSTT) -> ScribeSocket:
        """Connect with an engine's options, and wait until the service listens.

        Raises:
            Exception: what `open_socket` and `recv` do.
        """
        await engine.client()  # made in a thread, with what the socket needs
        options, access = engine.options, engine.access
        query = [
            ("model_id", options.model),
            ("audio_format", f"pcm_{options.sample_rate_hz}"),
            ("commit_strategy", "manual"),
            ("include_timestamps", str(options.word_times).lower()),
            *(("keyterms", term) for term in options.keyterms),
        ]
        if language := language_code(options.language):
            query.append(("language_code", language))
        url = f"{access.ws_url}/v1/speech-to-text/realtime?{urlencode(query)}"
        opened = cls(await open_socket(url, {"xi-api-key": access.api_key}), options.sample_rate_hz)
        try:
            async with asyncio.timeout(STARTED_MS / 1000.0):
                while (await opened.recv()).get("message_type") != "session_started":
                    pass
        except BaseException:
            await opened.aclose()
            raise
        return opened

    async def send(self, pcm: bytes, *, commit: bool = False) -> None:
        """Send audio; `commit` asks for the text of all that was sent since the last time.

        Raises:
            TimeoutError: the service takes nothing.
            ConnectionClosed: it is closed, by whomever.
        """
        chunk = {
            "message_type": "input_audio_chunk",
            "audio_base_64": base64.b64encode(pcm).decode("ascii"),
            "commit": commit,
            "sample_rate": self._rate_hz,
        }
        async with asyncio.timeout(SEND_MS / 1000.0):
            await self._socket.send(json.dumps(chunk))

    async def recv(self) -> dict[str, Any]:
        """The next message.

        Raises:
            Refused: it is an error; an ignored commit is none.
            ConnectionClosed: it is closed, by whomever.
            ValueError: it is no JSON.
        """
        told = json.loads(await self._socket.recv())
        if not isinstance(told, dict):
            raise Refused(f"a message is {type(told).__name__}, no object")
        code = str(told.get("message_type", ""))
        if code != "commit_throttled" and (code in CODES or told.get("error")):
            raise Refused(str(told.get("error") or told.get("message") or ""), code)
        return told

    async def aclose(self) -> None:
        """Close it, without waiting long for the service to agree."""
        try:
            with suppress(Exception):
                async with asyncio.timeout(GOODBYE_MS / 1000.0):
                    await self._socket.close()
        finally:
            self._socket.transport.abort()
        await self._socket.wait_closed()
