"""What `beluga-voice serve` serves for chaos.py: a recogniser that hears exactly what was said, an agent that says it twice.

The environment says how: CHAOS_JOURNAL (a file that gets a line for each thing that happened), CHAOS_REDIS (a store's address),
CHAOS_SILENCE_MS, CHAOS_GAP_MS, CHAOS_SESSIONS, CHAOS_RESUME_MS, CHAOS_DRAIN_MS, CHAOS_HANDSHAKES.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from _chaos_words import AGENT, RATE_HZ, read, spoken, written
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from beluga_voice import Chain, SessionManager, server, store, turn
from beluga_voice.audio import Audio
from beluga_voice.clock import wall_ms
from beluga_voice.events import SessionEvent
from beluga_voice.frames import AudioOut, Transcript
from beluga_voice.server import ServerOptions
from beluga_voice.session import Session
from beluga_voice.stt import STT
from beluga_voice.testing import LoudVAD
from beluga_voice.tts import TTS

STEP_S = 0.05
NOTED = (
    *("opened", "resumed", "line_lost", "warning", "interrupted", "transcript", "speech_started", "speech_ended"),
    *("turn_started", "turn_ended", "turn_reopened", "turn_heard", "turn_empty"),
)


class ExactSTT(STT):
    async def transcribe(self, audio: Audio) -> Transcript:
        return Transcript(written(audio.pcm))


class NumberTTS(TTS):
    async def synthesize_stream(self, texts: AsyncIterator[str]) -> AsyncIterator[AudioOut]:
        async for text in texts:
            for at, (word, _) in enumerate(read(text)):
                yield AudioOut(spoken([word], AGENT), RATE_HZ, text if at == 0 else "")


async def answer(text: str, history: Any) -> AsyncIterator[str]:
    """The words heard, twice; for "talk for ever" all numbers, without end."""
    if text.startswith("talk for ever"):
        word = 100
        while True:
            yield f"{word} {word + 1} {word + 2}. "
            word = word + 3 if word < 30_000 else 100
    words = " ".join(dict.fromkeys(str(word) for word, _ in read(text)))  # one that was split by quiet is there twice
    yield f"{words}. " if words else "99. "
    yield f"{words}."


class Journal:
    """Writes a line for each thing that happened, whole or not at all, however the process ends."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600) if path else -1

    def of(self, session: Session) -> Callable[[SessionEvent], None]:
        def listen(event: SessionEvent) -> None:
            told: dict[str, Any] = {}
            if event.name == "turn_finished":
                record = event.data["record"]
                told = {
                    "user": record.user_text,
                    "agent": record.agent_text,
                    "heard": record.heard_text,
                    "interrupted": record.interrupted,
                }
            elif event.name == "closed":
                told = {
                    "reason": event.data["reason"],
                    "history": [[message.role, message.text] for message in session.history],
                    "counters": dict(session.counters),
                    "line": dict(getattr(session.line, "counters", {})),
                }
            elif event.name in NOTED:
                told = {key: value for key, value in event.data.items() if isinstance(value, (str, int, float, bool))}
            else:
                return
            self.write(session=session.session_id, event=event.name, at_ms=wall_ms(), turn=event.turn, **told)

        return listen

    def write(self, **told: Any) -> None:
        if self._file >= 0:
            os.write(self._file, (json.dumps({"pid": os.getpid(), **told}) + "\n").encode())


def new_manager(journal: Journal) -> SessionManager:
    redis = os.environ.get("CHAOS_REDIS", "")
    silence_ms = float(os.environ.get("CHAOS_SILENCE_MS", "700"))
    return SessionManager(
        Chain(LoudVAD(), turn.new("silence", silence_ms=silence_ms), ExactSTT(), answer, NumberTTS()),
        store=store.new("redis", url=redis) if redis else None,
        listeners=[journal.of],
        max_sessions=int(os.environ.get("CHAOS_SESSIONS", "300")),
        line_gap_ms=float(os.environ.get("CHAOS_GAP_MS", "1000")),
        resume_window_ms=float(os.environ.get("CHAOS_RESUME_MS", "30000")),
        drain_timeout_ms=float(os.environ.get("CHAOS_DRAIN_MS", "25000")),
    )


held_ms = [0.0]


async def watch_loop() -> None:
    """Note the longest time for which the loop was held since somebody asked."""
    while True:
        before_ms = wall_ms()
        await asyncio.sleep(STEP_S)
        held_ms[0] = max(held_ms[0], wall_ms() - before_ms - STEP_S * 1000)


watching: list[asyncio.Task[None]] = []


def rss_kb() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024


async def look(request: Request) -> JSONResponse:
    """What this process holds."""
    if not watching:
        watching.append(asyncio.create_task(watch_loop(), name="watch loop"))
    if request.query_params.get("gc"):
        gc.collect()
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, so that RSS tells what is held
    names: dict[str, int] = {}
    for task in asyncio.all_tasks():
        name = task.get_name().rstrip("0123456789-")
        names[name] = names.get(name, 0) + 1
    lines = [getattr(one.line, "counters", {}) for one in manager.sessions]
    longest_ms, held_ms[0] = held_ms[0], 0.0
    return JSONResponse(
        {
            "pid": os.getpid(),
            "tasks": len(asyncio.all_tasks()),
            "task_names": names,
            "fds": len(os.listdir("/proc/self/fd")),
            "rss_kb": rss_kb(),
            "objects": len(gc.get_objects()) if request.query_params.get("gc") else 0,
            "sessions": len(manager.sessions),
            "states": [str(one.state.value) for one in manager.sessions],
            "counters": dict(manager.counters),
            "lines": [dict(one) for one in lines],
            "loop_held_ms": longest_ms,
        }
    )


journal = Journal(os.environ.get("CHAOS_JOURNAL", ""))
manager = new_manager(journal)
handshakes = int(os.environ.get("CHAOS_HANDSHAKES", "50"))
app = server.app(manager, ServerOptions(max_handshakes=max(100, handshakes), max_handshakes_per_ip=handshakes))
app.router.routes.insert(0, Route("/look", look))
