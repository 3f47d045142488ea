"""Many streams, one call: joins the windows asked about in one turn of the event loop into one batch for the model.

    >>> from beluga_voice_silero.model import SileroModel
    >>> async def main():
    ...     model = SileroModel()
    ...     batcher = Batcher(model)
    ...     quiet = bytes(1024)                                       # one window of each of two streams: one call
    ...     return await asyncio.gather(*(batcher.ask(quiet, model.new_state()) for _ in range(2)))
    >>> [probability < 0.1 for probability in asyncio.run(main())]
    [True, True]
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from beluga_voice.engine import WorkPool
from beluga_voice.errors import ProtocolError

if TYPE_CHECKING:
    from beluga_voice_silero.model import Floats, State

__all__ = ["MAX_INLINE", "Batcher", "Model"]

MAX_INLINE = 128
"""Most windows computed before the loop runs again: 1.5 ms with numpy (benchmarks/bench_silero.py)."""


class Model(Protocol):
    """What a batcher asks: `SileroModel` or `TorchSileroModel`."""

    def new_state(self) -> State:
        """The state of a stream of which nothing has been heard."""
        ...

    def probabilities(self, windows: Floats, states: Sequence[State]) -> Floats:
        """Shape (B,): the probability of speech in each of the windows, shape (B, 512)."""
        ...


Asked = tuple[bytes, "State", "asyncio.Future[float]"]


class _Queue:
    """The windows that wait on one event loop. `answering`: something is scheduled there that will answer them."""

    __slots__ = ("answering", "loop", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.waiting: list[Asked] = []
        self.answering = False

    def take(self, most: int) -> list[Asked]:
        """Take out the oldest `most` windows, without those nobody waits for any more."""
        taken, self.waiting = self.waiting[:most], self.waiting[most:]
        return [asked for asked in taken if not asked[2].done()]


class Batcher:
    """Answers the windows of all streams of one model, those of one turn of the loop together.

    Any number of event loops may use it, also at once; each has its own batches.

    Args:
        model: computes the answers.
        pool: where it does so. None: on the event loop itself, at most 128 windows at a time. With a pool, what is
            asked while a batch is under way makes up the next one.
    """

    def __init__(self, model: Model, pool: WorkPool | None = None) -> None:
        self.model = model
        self._pool = pool
        self._queue: _Queue | None = None
        self._pooled: set[asyncio.Task[None]] = set()

    def ask(self, window: bytes, state: State) -> asyncio.Future[float]:
        """Return a future for the probability of speech in a window.

        Args:
            window: the next 512 samples of a stream, 16-bit PCM at 16,000 Hz: 1,024 bytes.
            state: the stream's state, which no other window may be waiting with.

        The future raises:
            ProtocolError: the model failed, for all windows of the batch; its own error is the `__cause__`.
        """
        loop = asyncio.get_running_loop()
        queue = self._queue
        # A loop that ended or runs in another thread keeps the queue it has; nothing is shared with it.
        if queue is None or queue.loop is not loop:
            queue = self._queue = _Queue(loop)
        future: asyncio.Future[float] = loop.create_future()
        queue.waiting.append((window, state, future))
        if not queue.answering:
            queue.answering = True
            if self._pool is None:
                loop.call_soon(self._answer, queue)
            else:
                task = loop.create_task(self._answer_pooled(queue, self._pool), name="silero batches")
                self._pooled.add(task)
                task.add_done_callback(self._pooled.discard)
        return future

    async def aclose(self) -> None:
        """Wait for the batches under way in the pool and end its threads; without a pool, nothing is to be done."""
        if self._pooled:
            await asyncio.wait(self._pooled)
        if self._pool is not None:
            await self._pool.aclose()

    def _answer(self, queue: _Queue) -> None:
        batch = queue.take(MAX_INLINE)
        queue.answering = bool(queue.waiting)
        if queue.answering:
            queue.loop.call_soon(self._answer, queue)
        if batch:
            try:
                answers = self._compute(batch)
            except Exception as error:
                _fail(batch, error)
            else:
                _deliver(batch, answers)

    async def _answer_pooled(self, queue: _Queue, pool: WorkPool) -> None:
        try:
            while queue.waiting:
                batch = queue.take(len(queue.waiting))
                if batch:
                    try:
                        answers = await pool.run(self._compute, batch)
                    except Exception as error:
                        _fail(batch, error)
                    else:
                        _deliver(batch, answers)
        finally:
            queue.answering = False

    def _compute(self, batch: list[Asked]) -> list[float]:
        samples = np.frombuffer(b"".join([window for window, _, _ in batch]), "<i2").astype(np.float32)
        samples *= 1 / 32768
        answers: list[float] = self.model.probabilities(
            samples.reshape(len(batch), -1), [state for _, state, _ in batch]
        ).tolist()
        return answers


def _deliver(batch: list[Asked], answers: list[float]) -> None:
    for (_, _, future), answer in zip(batch, answers, strict=True):
        if not future.done():
            future.set_result(answer)


def _fail(batch: list[Asked], cause: Exception) -> None:
    for _, _, future in batch:
        if not future.done():
            error = ProtocolError(
                f"silero failed on a batch of {len(batch)} windows ({type(cause).__name__}: {cause}); expected a "
                'probability for each. If it fails again, use another backend or VAD, like vad.new("energy").',
                provider="silero",
                kind="vad",
            )
            error.__cause__ = cause
            future.set_exception(error)
