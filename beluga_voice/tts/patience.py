"""How long a voice is waited for: so long for its first sound, then while it keeps up with its own playing time."""

from __future__ import annotations

from collections.abc import Callable

from ..clock import Clock, Timers
from ..resilience import ResilienceOptions

__all__ = ["Patience"]


class Patience:
    """Adds up the time that a voice is waited for while it owes sound, and says when it is enough.

    A voice that hangs and one that drips are the same: more time was spent waiting than it gave sound, by `stall_ms`. The time
    in which nobody takes its sound, or it has no text, is not counted.

    Args:
        clock: whose time.
        options: `first_audio_timeout_ms` and `stall_ms`.
        on_late: told why the voice is given up.
    """

    def __init__(self, clock: Clock, options: ResilienceOptions, on_late: Callable[[str], object]) -> None:
        self._clock, self._options, self._on_late = clock, options, on_late
        self._timers = Timers(clock)
        self._waiting = self._owing = False
        self._since_ms = self._waited_ms = self._audio_ms = 0.0

    def wait(self, owing: bool) -> None:
        """Its next sound is waited for; `owing`: it has text that it has not spoken. Call it again when that changes."""
        self._stop_watch()
        self._waiting, self._owing = True, owing
        if owing:
            self._since_ms = self._clock.now_ms()
            self._timers.set("late", self._limit_ms - self._waited_ms, self._late)

    def owes(self, owing: bool) -> None:
        """It was given text, meanwhile perhaps."""
        if self._waiting and owing is not self._owing:
            self.wait(owing)

    def got(self, audio_ms: float) -> None:
        """It gave so much; nobody waits until `wait`."""
        self._stop_watch()
        if audio_ms > 0 and self._audio_ms == 0:
            self._waited_ms = 0.0
        self._audio_ms += audio_ms

    def stop(self) -> None:
        """It is over."""
        self._stop_watch()

    @property
    def _limit_ms(self) -> float:
        if self._audio_ms == 0:
            return self._options.first_audio_timeout_ms
        return self._audio_ms + self._options.stall_ms

    def _stop_watch(self) -> None:
        if self._waiting and self._owing:
            self._waited_ms += self._clock.now_ms() - self._since_ms
        self._waiting = False
        self._timers.cancel()

    def _late(self) -> None:
        if self._audio_ms == 0:
            self._on_late(f"gave no sound within {self._limit_ms:g} ms")
        else:
            self._on_late(f"took {self._limit_ms:.0f} ms for {self._audio_ms:.0f} ms of sound")
