"""The processes of chaos.py: `beluga-voice serve` and redis-server, each of its own, on free ports, gone when we are."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
READY_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Folder:
    """A folder of our own, with the journal that all servers write."""

    def __enter__(self) -> Folder:
        self.path = Path(tempfile.mkdtemp(prefix="chaos-"))
        self.journal = self.path / "journal.jsonl"
        return self

    def __exit__(self, *error: object) -> None:
        if os.environ.get("CHAOS_KEEP"):
            with Path(os.environ["CHAOS_KEEP"]).open("a") as kept:
                kept.write(self.journal.read_text())
        shutil.rmtree(self.path, ignore_errors=True)

    def told(self) -> list[dict[str, Any]]:
        """What the servers wrote, in order."""
        if not self.journal.exists():
            return []
        return [json.loads(line) for line in self.journal.read_text().splitlines()]


class Served:
    """One `beluga-voice serve _chaos_app:app`, started, killed and started again on the same port."""

    def __init__(self, folder: Folder, **environment: object) -> None:
        self.port = free_port()
        self.folder = folder
        self.alive = False
        self.process: asyncio.subprocess.Process | None = None
        self.lines: list[str] = []
        self._environment = {f"CHAOS_{name.upper()}": str(value) for name, value in environment.items()}
        self._reader: asyncio.Task[None] | None = None

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def start(self) -> Served:
        command = [sys.executable, "-m", "beluga_voice", "serve", "_chaos_app:app", "--port", str(self.port)]
        environment = {**os.environ, "CHAOS_JOURNAL": str(self.folder.journal), **self._environment}
        self.process = await asyncio.create_subprocess_exec(
            *command, cwd=HERE, env=environment, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
        )
        ready = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read(self.process, ready))
        async with asyncio.timeout(READY_S):
            await ready
        self.alive = True
        return self

    async def _read(self, process: asyncio.subprocess.Process, ready: asyncio.Future[None]) -> None:
        assert process.stderr is not None
        async for raw in process.stderr:
            line = raw.decode(errors="replace")
            if "serving on" in line and not ready.done():
                ready.set_result(None)
            if not re.search(r'"event":"session_ended"|"WebSocket |"GET ', line):
                self.lines.append(line.rstrip())
        if not ready.done():
            ready.set_exception(RuntimeError("\n".join(self.lines[-20:])))

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def kill(self) -> None:
        """kill -9."""
        self.alive = False
        self.signal(signal.SIGKILL)
        await self.wait()

    async def wait(self, timeout_s: float = 60.0) -> int:
        assert self.process is not None
        async with asyncio.timeout(timeout_s):
            code = await self.process.wait()
        self.alive = False
        return code

    async def look(self, collect: bool = False) -> dict[str, Any]:
        """What the process says it holds."""
        url = f"http://127.0.0.1:{self.port}/look{'?gc=1' if collect else ''}"

        def get() -> dict[str, Any]:
            with urllib.request.urlopen(url, timeout=20) as answer:
                told: dict[str, Any] = json.load(answer)
                return told

        return await asyncio.to_thread(get)

    async def __aenter__(self) -> Served:
        return await self.start()

    async def __aexit__(self, *error: object) -> None:
        if self.process is not None and self.process.returncode is None:
            await self.kill()
        if self._reader is not None:
            await self._reader


class Redis:
    """A redis-server that keeps nothing on disk."""

    def __init__(self) -> None:
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def __aenter__(self) -> Redis:
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = await asyncio.create_subprocess_exec("redis-server", *arguments, stdout=asyncio.subprocess.PIPE)
        assert self.process.stdout is not None
        async for raw in self.process.stdout:
            if b"Ready to accept connections" in raw:
                return self
        raise RuntimeError("redis-server did not start; apt-get install redis-server")

    async def __aexit__(self, *error: object) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        await self.process.wait()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    async def command(self, *words: str) -> str:
        """Ask it something; its answer as it came."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write((" ".join(words) + "\r\n").encode())
        answer = await reader.read(65_536)
        writer.close()
        return answer.decode(errors="replace")
