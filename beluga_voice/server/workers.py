"""Several processes on one port: started, replaced when they die, told of signals, and gone when this one is.

The socket is bound once, here; every worker listens on it and the kernel shares callers out. A worker learns what it is from
one line on its standard input, whose end tells it that this process is gone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any

import attrs

from ..clock import Clock
from ..errors import ConfigError

__all__ = ["Place", "keep_workers", "orphaned", "place"]

log = logging.getLogger("beluga_voice.server")

MARK = "BELUGA_VOICE_WORKER"
USER_ERROR = 2
FIRST_WAIT_MS, LONGEST_WAIT_MS, STEADY_MS = 1_000.0, 30_000.0, 60_000.0


@attrs.frozen
class Place:
    """What one worker is: its number from 0, of how many, the sockets it serves, and the secret that all of them share."""

    index: int
    workers: int
    fd: int
    ready_fd: int
    secret: str = attrs.field(repr=False)

    def tell_ready(self) -> None:
        """Tell the supervisor that calls are taken."""
        os.write(self.ready_fd, b"1")
        os.close(self.ready_fd)


def place() -> Place | None:
    """What this process is told it is; None where it is no worker."""
    if os.environ.pop(MARK, "") != "1":
        return None
    return Place(**json.loads(sys.stdin.readline()))


def orphaned(stdin: IO[str]) -> None:
    """Drain, as on SIGTERM, when the supervisor is gone."""

    def wait() -> None:
        stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="beluga-voice supervisor", daemon=True).start()


async def keep_workers(command: Sequence[str], sock: socket.socket, workers: int) -> int:
    """Keep `workers` processes of `command` serving `sock` until a signal; the exit code.

    The first worker starts alone: what is wrong with the configuration is told once, and ends it all.

    Raises:
        ConfigError: not on this system.
    """
    if os.name != "posix":
        raise ConfigError("--workers needs a Unix system; run one process per port behind a balancer instead")
    return await _Supervisor(command, sock, workers).run()


class _Supervisor:
    def __init__(self, command: Sequence[str], sock: socket.socket, workers: int) -> None:
        self._command, self._sock, self._workers = command, sock, workers
        self._secret = secrets.token_urlsafe(32)
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._code = 0
        self._clock = Clock()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, self._stop)
        try:
            first_ready = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep(0, first_ready))
                await first_ready.wait()
                for index in range(1, self._workers):
                    group.create_task(self._keep(index, asyncio.Event()))
        finally:
            for sig in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(sig)
        return self._code

    def _stop(self) -> None:
        """Pass a signal on; the second one stops the workers at once, as theirs does."""
        self._stopping.set()
        for process in self._running.values():
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)

    async def _keep(self, index: int, ready: asyncio.Event) -> None:
        """Keep one worker running, waiting longer before each start that does not last."""
        wait_ms = FIRST_WAIT_MS
        while not self._stopping.is_set():
            began_ms = self._clock.now_ms()
            code = await self._work(index, ready)
            never_ready = not ready.is_set()
            ready.set()
            if self._stopping.is_set():
                self._code = self._code or max(code, 0)
                return
            if code == USER_ERROR or never_ready:
                self._code = code if code > 0 else 1
                self._stop()
                return
            wait_ms = FIRST_WAIT_MS if self._clock.now_ms() - began_ms >= STEADY_MS else wait_ms
            log.error("worker %d ended with %d; a new one starts in %g ms", index + 1, code, wait_ms)
            await self._stopped_within(wait_ms)
            wait_ms = min(wait_ms * 2.0, LONGEST_WAIT_MS)

    async def _stopped_within(self, wait_ms: float) -> None:
        try:
            async with asyncio.timeout(wait_ms / 1000.0):
                await self._stopping.wait()
        except TimeoutError:
            return

    async def _work(self, index: int, ready: asyncio.Event) -> int:
        """Run one worker to its end; its exit code."""
        read_fd, write_fd = os.pipe()
        told: dict[str, Any] = attrs.asdict(
            Place(index, self._workers, self._sock.fileno(), write_fd, self._secret)
        )
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                env={**os.environ, MARK: "1"},
                pass_fds=(self._sock.fileno(), write_fd),
                start_new_session=True,  # Ctrl-C is passed on by us, once
            )
        finally:
            os.close(write_fd)
        self._running[index] = process
        loop = asyncio.get_running_loop()
        loop.add_reader(read_fd, self._heard, read_fd, ready)
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(told).encode() + b"\n")
            if self._stopping.is_set():
                process.send_signal(signal.SIGTERM)
            return await process.wait()
        finally:
            loop.remove_reader(read_fd)
            os.close(read_fd)
            del self._running[index]
            if process.returncode is None:
                process.kill()

    def _heard(self, read_fd: int, ready: asyncio.Event) -> None:
        if os.read(read_fd, 1):
            ready.set()
        asyncio.get_running_loop().remove_reader(read_fd)
