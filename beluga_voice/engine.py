"""What every provider's engine is, and what a session offers to the stages that use it.

Three lifetimes: the **engine** (one per process, used by all sessions at once), the **session handle** (`open`: a socket,
learned habits), the **stream** (one utterance or reply). Whoever runs sessions enters the engine once:

>>> class Hello(Engine):
...     async def aclose(self):
...         print("released")
>>> async def main():
...     engine = Hello()
...     async with engine, engine:       # two sessions share it
...         pass
>>> asyncio.run(main())
released
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections import Counter
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from . import options as _options
from ._streams import Channel, Tasks, WorkPool
from ._watch import LoopWatch
from .clock import Clock
from .errors import OptionError, ProviderTimeoutError
from .frames import AudioIn, Failed, Frame
from .tool_runs import ToolRuns

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Channel", "Context", "Engine", "WorkPool"]

log = logging.getLogger("beluga_voice.session")

T = TypeVar("T")
E = TypeVar("E", bound="Engine")

INBOX_MS = 5_000.0
WARM_MS = 15_000.0
OPEN_AHEAD_MS = 3_000.0


class Engine:
    """The root of every provider: options, lifetimes, and the stage it makes in a chain.

    `options` holds the engine's options (an attrs object) or None. `provider` is the name it was made by. `max_streams` is how
    many sessions it can serve at once (None: as many as come); a manager admits no more. `account` is whose limits and health
    its calls share: provider, place and a fingerprint of the credential; empty for an engine that runs here. Of one account
    at most `max_concurrent` calls are under way at once (None: as many as come).
    """

    kind: ClassVar[str] = "processor"
    options: Any = None
    provider: str = ""
    max_streams: int | None = None
    account: str = ""
    max_concurrent: int | None = None
    _users: int = 0
    _warm: bool = False
    _warming: asyncio.Lock | None = None

    @property
    def name(self) -> str:
        """The provider's name, or the class's for an engine that was not made by name."""
        return self.provider or type(self).__name__

    @property
    def wait_ms(self) -> float:
        """How long a call made now would wait before it begins; a manager admits nobody while it is long. The default: 0."""
        return 0.0

    async def prewarm(self) -> None:
        """Load now what the first call would have to load. Called once, off the turn path; the default does nothing.

        That of an engine with an `account` is given up after 15 s: sessions would wait for it.
        """

    async def open(self, context: Context) -> Self:
        """What one session uses: this engine, unless a session needs something of its own (a socket, say).

        A handle other than the engine itself is closed by the session with `aclose()`.
        """
        return self

    async def aclose(self) -> None:
        """Free everything the engine holds; the next use loads it again. The default does nothing."""

    def with_options(self, **changes: Any) -> Self:
        """The same engine with other options, sharing what is loaded.

        Raises:
            OptionError: the engine has no such option, or the value does not fit.
        """
        if not changes:
            return self
        if self.options is None:
            raise OptionError(f"{self.kind} {self.name!r} takes no options, got {', '.join(sorted(changes))}")
        other = copy.copy(self)
        other._users, other._warming, other._warm = 0, None, False
        other.options = _options.changed(self.options, changes, f"{self.kind} {self.name!r}")
        return other

    def as_frame_processor(self) -> Any:
        """The stage this engine makes in a chain."""
        raise TypeError(f"{type(self).__name__} makes no stage: subclass a kind (stt.STT, tts.TTS, ...) instead of Engine")

    async def __aenter__(self) -> Self:
        self._users += 1
        try:
            if self._warming is None:
                self._warming = asyncio.Lock()
            async with self._warming:
                if not self._warm:
                    await self._make_ready()
                    self._warm = True
        except BaseException:
            await self._leave()
            raise
        return self

    async def _make_ready(self) -> None:
        try:
            async with asyncio.timeout(WARM_MS / 1000.0 if self.account else None) as limit:
                await self.prewarm()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise ProviderTimeoutError(
                f"{self.kind} {self.name!r} was not ready within {WARM_MS:g} ms; expected it sooner. "
                "Try again, or name a stand-by",
                provider=self.name,
                kind=self.kind,
            ) from error

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._leave()

    async def _leave(self) -> None:
        self._users -= 1
        if self._users or self._warming is None:
            return
        async with self._warming:  # whoever comes meanwhile waits for the closing, and warms it again
            if self._users == 0:
                self._warm = False
                await self.aclose()
        if self._users == 0:
            self._warming = None


def _audio_ms(frame: Frame) -> float:
    return len(frame.pcm) * 500.0 / frame.sample_rate_hz if type(frame) is AudioIn else 0.0


class Context:
    """What a stage may ask of the session it runs in; without a session, a small world of its own.

    `inbox` is the head of the ears: what `emit` puts there overtakes the audio and passes every ears stage. `history` and
    `session` are what an agent is given; `so_far()` is the history with the turn and reply under way. `counters` counts what
    is dropped, by name. `spawn` is the only way for a stage to run something beside itself. `tool_runs` owns the tool calls
    under way. `interject` says a text within the reply under way; set by the stage that speaks, while it does.

    Use it as an async context manager when there is no session:

    >>> async def main(chain, frames):
    ...     async with Context() as context, chain.process(context.feed(frames), context) as out:
    ...         return [frame async for frame in out]
    """

    def __init__(
        self,
        *,
        session_id: str = "",
        clock: Clock | None = None,
        input_rate_hz: int = 16_000,
        output_rate_hz: int = 16_000,
        session: Any = None,
        inbox_ms: float = INBOX_MS,
    ) -> None:
        self.session_id = session_id
        self.clock = clock or Clock()
        self.input_rate_hz, self.output_rate_hz = input_rate_hz, output_rate_hz
        self.session = session
        self.history: tuple[Any, ...] = ()
        self.so_far: Callable[[], tuple[Any, ...]] = lambda: self.history
        self.counters: Counter[str] = Counter()
        self.watch: LoopWatch | None = None
        self.inbox: Channel[Frame] = Channel(inbox_ms, _audio_ms)
        self.tasks = Tasks(self._task_failed)
        self.tool_runs = ToolRuns(self.spawn, clock=self.clock, counters=self.counters)
        self.interject: Callable[[str], None] | None = None
        self._handles: dict[int, Engine] = {}
        self._opening: dict[int, asyncio.Lock] = {}

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run `work` beside the stage, as a task the session owns; a failure is emitted as `Failed(name, error)`."""
        if self.watch is None:
            return self.tasks.spawn(work, name)
        task = self.tasks.spawn(self.watch.drive(work, name), name)
        task.add_done_callback(lambda _: work.close())  # a task cancelled before it ran has not begun `work`
        return task

    def emit(self, frame: Frame) -> None:
        """Put a frame at the head of the ears, before waiting audio."""
        self.inbox.put_urgent(frame)

    def feed(self, frames: AsyncIterable[Frame]) -> Channel[Frame]:
        """The inbox, fed from `frames` as fast as it is read, and closed after their end."""

        async def pump() -> None:
            error: BaseException | None = None
            try:
                async for frame in frames:
                    await self.inbox.put(frame)
            except Exception as caught:
                error = caught
            finally:
                self.inbox.close(error)

        self.spawn(pump(), "feed")
        return self.inbox

    async def handle(self, engine: E) -> E:
        """The session's own handle of `engine`, opened at its first use and closed with the session."""
        key = id(engine)
        if key not in self._handles:
            async with self._opening.setdefault(key, asyncio.Lock()):
                if key not in self._handles:
                    self._handles[key] = await engine.open(self)
                    self._opening.pop(key, None)
        handle = self._handles[key]
        return handle  # type: ignore[return-value]

    async def open_ahead(self, engines: Iterable[Engine]) -> None:
        """Open now the handles that the first call to a remote provider would wait for; who fails has another try then."""
        remote = [engine for engine in engines if engine.account]
        opened = await asyncio.gather(*map(self._open_ahead, remote), return_exceptions=True)
        for engine, error in zip(remote, opened):
            if isinstance(error, Exception):
                log.info("session %s: %s %r was not opened ahead: %s", self.session_id, engine.kind, engine.name, error)

    async def _open_ahead(self, engine: Engine) -> None:
        async with asyncio.timeout(OPEN_AHEAD_MS / 1000.0):  # what hangs would be in the way of the first call
            await self.handle(engine)

    def _task_failed(self, name: str, error: Exception) -> None:
        self.emit(Failed(name, error))

    async def aclose(self, grace_ms: float = 1_000.0) -> list[str]:
        """End what stages spawned and close the handles; the names of tasks that did not stop in `grace_ms`."""
        self.tool_runs.close()
        stuck = await self.tasks.aclose(grace_ms)
        handles, self._handles = self._handles, {}
        for key, handle in handles.items():
            if id(handle) != key:
                closing = self.tasks.spawn(handle.aclose(), f"close {handle.name}")
                await asyncio.wait([closing], timeout=grace_ms / 1000.0)
                if not closing.done():
                    closing.cancel()
                    stuck.append(closing.get_name())
        return stuck

    async def __aenter__(self) -> Context:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
