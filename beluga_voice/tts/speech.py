"""One reply's text on its way to sound: said by the first voice that can, and what one leaves unsaid by the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

import attrs

from .._streams import Channel, leave
from ..audio import BYTES_PER_SAMPLE
from ..engine import Context
from ..errors import ProtocolError, ProviderError, ProviderTimeoutError
from ..frames import AudioOut, Usage
from ..resilience import Call, provider_error
from .contract import TTS
from .patience import Patience
from .sentences import Script
from .spoken import LONG, Begun, Spoken, duration_ms, has_letters, size

if TYPE_CHECKING:
    from .failover import Failover

__all__ = ["Speech"]

PIECES_AHEAD = 2
SHORTEST_CAP_MS = 10_000.0  # no text makes more sound than this,
A_LETTER_MS = 400.0  # or this for each letter: a voice that goes on is broken
GRACE_MS = 100.0  # how long a voice that was given up may take to stop; then nobody waits for it


class Speech:
    """Says one reply.

    Args:
        voices: the session's handle of its voices.
        script: what is to be said.
        context: the session: its tasks, clock and handles.
        put: takes the sound; it may wait.
    """

    def __init__(self, voices: Failover, script: Script, context: Context, put: Callable[[AudioOut], Awaitable[None]]) -> None:
        self._voices, self._script, self._context, self._put = voices, script, context, put
        self._duty = voices.duty

    async def run(self) -> None:
        """Say all of it.

        Raises:
            ProviderError: no voice could say the rest.
        """
        while True:
            streamed = self._duty.engine.capabilities.streaming_text
            text = await (self._script.words() if streamed else self._script.sentence())
            if not text:
                return
            await self._say(text, streamed)

    async def _say(self, text: str, streamed: bool) -> None:
        """Say a sentence, or with `streamed` all that follows, by as many voices as it takes."""
        duty = self._duty
        begun: Begun | None = None
        failures: Counter[int] = Counter()
        error: ProviderError | None = None
        while text:
            call = await duty.enter(failures, error, again=begun is None)
            capabilities = duty.engine.capabilities
            if streamed and not capabilities.streaming_text:
                call.close()
                self._script.give_back(text)
                return
            spoken = Spoken(text, pace=self._voices.pace(duty.at), timed=capabilities.word_times, marks=streamed, begun=begun)
            try:
                with call:
                    await self._call(call, spoken, streamed)
                return
            except Exception as caught:
                error = provider_error(caught, "tts", duty.engine.name)
            failures[duty.at] += 1
            if not spoken.audio_ms:
                text = spoken.given
                continue
            rest = spoken.rest()
            text, begun, streamed = rest.text, rest.begun, False
            if rest.further:
                self._script.give_back(rest.further)

    # --- one call ----------------------------------------------------------------------------------------------------

    async def _call(self, call: Call, spoken: Spoken, streamed: bool) -> None:
        """Have the voice say it, and pass on what it gives.

        Raises:
            ProviderError: it failed, or gave nothing, too little in time, or too much.
        """
        engine, at, watched = self._duty.engine, self._duty.at, self._voices.watched
        pieces: Channel[AudioOut] = Channel(PIECES_AHEAD)
        patience = Patience(self._context.clock, self._voices.resilience, lambda why: pieces.close(_late(engine, why)))

        def changed() -> None:
            """The voice asks for text, or has it."""
            if not spoken.audio_ms:
                call.asked() if spoken.owed else call.idle()
            patience.owes(watched and spoken.owed)

        texts = self._texts(spoken, pieces, changed)
        speaking = self._context.spawn(self._speak(engine, texts, pieces), f"{engine.name} speech")
        carry, refused = b"", False
        try:
            while True:
                patience.wait(watched and spoken.owed)
                piece = await anext(pieces, None)
                if piece is None:
                    break
                pcm = carry + piece.pcm
                whole = len(pcm) - len(pcm) % BYTES_PER_SAMPLE
                piece, carry = attrs.evolve(piece, pcm=pcm[:whole]), pcm[whole:]
                patience.got(duration_ms(piece))
                if piece.pcm:
                    call.succeeded()  # the answer begins; should it break off, that is another failure
                for frame in spoken.hear(piece):
                    await self._put(frame)
                if spoken.audio_ms > max(SHORTEST_CAP_MS, A_LETTER_MS * len(spoken.given)):
                    raise _broken(engine, f"gave {spoken.audio_ms:.0f} ms of sound for {len(spoken.given)} letters, and more")
            if not spoken.audio_ms and has_letters(spoken.given):
                raise _broken(engine, f"gave no sound for {len(spoken.given)} letters")
            if watched and spoken.broken_off:
                raise _broken(engine, f"ended after {spoken.audio_ms:.0f} ms of sound for {len(spoken.given)} letters")
            for frame in spoken.end():
                await self._put(frame)
            if size(spoken.given) >= LONG and spoken.audio_ms:
                self._voices.learn(at, spoken.given, spoken.audio_ms)
        except Exception:
            refused = not spoken.audio_ms  # which nobody bills
            raise
        finally:
            patience.stop()
            pieces.close()
            if engine.account and spoken.taken and not refused:
                model = getattr(engine.options, "model", "") or getattr(engine.options, "voice", "")
                self._context.emit(Usage("tts", engine.name, model, {"characters": spoken.taken}))
            await leave(speaking, GRACE_MS)

    async def _speak(self, engine: TTS, texts: AsyncIterator[str], pieces: Channel[AudioOut]) -> None:
        error: Exception | None = None
        try:
            voice = await self._context.handle(engine)
            async with aclosing(cast(Any, voice.synthesize_stream(texts))) as sound:
                async for piece in sound:
                    await pieces.put(piece)
        except Exception as caught:
            error = caught
        finally:
            pieces.close(error)

    async def _texts(self, spoken: Spoken, pieces: Channel[AudioOut], changed: Callable[[], None]) -> AsyncIterator[str]:
        """What a voice is given: one text, or the script as it comes, until it is given up."""
        text = spoken.given
        while text and not pieces.closed:
            spoken.taken += len(text)
            yield text
            if spoken.ended or pieces.closed:
                return
            spoken.asks = True
            changed()
            text = await self._script.words()
            if pieces.closed:
                self._script.give_back(text)
                return
            spoken.give(text)
            changed()


def _late(engine: TTS, why: str) -> ProviderTimeoutError:
    return ProviderTimeoutError(
        f"tts {engine.name!r} {why}; expected it to keep up with its own speech. Try again, or name a stand-by",
        provider=engine.name,
        kind="tts",
    )


def _broken(engine: TTS, why: str) -> ProtocolError:
    return ProtocolError(
        f"tts {engine.name!r} {why}; expected the sound of its text. Check voice and language, or name a stand-by",
        provider=engine.name,
        kind="tts",
    )
