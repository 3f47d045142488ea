"""A call over the microphone and the loudspeaker of this machine."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from .._streams import Tasks, WorkPool
from ..errors import ConfigError, SessionClosedError, SessionError
from ._call import Call

__all__ = ["microphone"]

BLOCK_MS = 20
MOST_HEARD_MS = 5_000


@asynccontextmanager
async def microphone(
    call: Call, *, input_device: int | str | None = None, output_device: int | str | None = None
) -> AsyncIterator[Microphone]:
    """Speak and hear a call through this machine's devices, for as long as the block lasts.

    There is no echo cancellation: use a headset, or the agent hears itself.

    Args:
        call: a call that was connected with `paced=False` and entered.
        input_device: as `python -m sounddevice` lists it, by number or name; None: the system's.
        output_device: the same for the loudspeaker.

    Returns:
        What tells `dropped_ms`: what was heard while the call could not take it.

    Raises:
        ConfigError: the package `sounddevice` or its library is missing, or a device cannot be opened.

    Example::

        async with client.connect(url, paced=False) as call, client.microphone(call):
            async for event in call:
                print(event)
    """
    if call.paced:
        raise SessionError("this call plays by the clock; connect with paced=False to hear it on a loudspeaker")
    pool, tasks = WorkPool(1, "beluga-voice-sound"), Tasks()
    sound = Microphone(call)
    try:
        await pool.run(sound.open, input_device, output_device)
        tasks.spawn(sound.speak(), "client-microphone")
        yield sound
    finally:
        try:
            await tasks.aclose(grace_ms=1_000.0)
        finally:
            closing = asyncio.ensure_future(pool.run(sound.close))
            try:
                await asyncio.shield(closing)
            finally:
                await pool.aclose()


class Microphone:
    """Both devices; their callbacks come from threads of their own and never wait."""

    def __init__(self, call: Call) -> None:
        self.dropped_ms = 0.0
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._heard: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._lock = threading.Lock()
        self._streams: list[Any] = []
        self._is_open = True

    def open(self, input_device: int | str | None, output_device: int | str | None) -> None:
        """Open and start both devices. Blocks.

        Raises:
            ConfigError: as `microphone`.
        """
        try:
            import sounddevice
        except ImportError as error:
            raise ConfigError(f"the microphone needs sounddevice ({error}); pip install 'beluga-voice[microphone]'") from None
        except OSError as error:
            raise ConfigError(f"the microphone needs PortAudio ({error}); on Debian: apt install libportaudio2") from None
        kinds = (
            (sounddevice.RawInputStream, input_device, self._call.input_rate_hz, self.hear),
            (sounddevice.RawOutputStream, output_device, self._call.output_rate_hz, self.play),
        )
        for make, device, rate_hz, callback in kinds:
            block = rate_hz * BLOCK_MS // 1000
            try:
                stream = make(samplerate=rate_hz, blocksize=block, device=device, channels=1, dtype="int16", callback=callback)
                self._streams.append(stream)
                stream.start()
            except (sounddevice.PortAudioError, ValueError) as error:
                chosen = "the system's device" if device is None else f"device {device!r}"
                raise ConfigError(
                    f"{chosen} cannot be opened at {rate_hz} Hz ({error}); list them with: python -m sounddevice"
                ) from None

    def close(self) -> None:
        """Stop and close both devices. Blocks."""
        self._is_open = False
        while self._streams:
            self._streams.pop().close()

    def hear(self, data: Any, frames: int, time: Any, status: Any) -> None:
        """Take a block of the microphone; in the device's thread."""
        if not self._is_open:
            return
        with self._lock:
            self._heard.append(bytes(data))
            if len(self._heard) * BLOCK_MS > MOST_HEARD_MS:
                self._heard.popleft()
                self.dropped_ms += BLOCK_MS
            first = len(self._heard) == 1
        if first:
            self._loop.call_soon_threadsafe(self._wake.set)

    def play(self, data: Any, frames: int, time: Any, status: Any) -> None:
        """Fill a block of the loudspeaker; in the device's thread."""
        data[:] = self._call.read(frames * 1000.0 / self._call.output_rate_hz)

    async def speak(self) -> None:
        """Send what the microphone hears, until the call ends."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._heard:
                with self._lock:
                    pcm = self._heard.popleft()
                try:
                    await self._call.send_audio(pcm)
                except SessionClosedError:
                    return
