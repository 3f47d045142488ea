"""One reply on its way to a line: what the caller's loudspeaker plays, and what the history says was heard."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice.builtin.memory_transport import MemoryTransport
from beluga_voice.clock import Clock, run_simulated
from beluga_voice.frames import AudioOut, Word
from beluga_voice.playout import Playout

RATE_HZ = 16_000


def sound(ms, rate_hz=RATE_HZ, seed=1):
    """Samples that are never zero."""
    samples = np.random.default_rng(seed).integers(1, 30_000, round(ms * rate_hz / 1000))
    return samples.astype("<i2").tobytes()


def playout(line, **options):
    given = {"send_lead_ms": 200, "limit_ms": 10_000, "on_first_sent": lambda: None, **options}
    return Playout(line, Clock(), **given)


class Played(MemoryTransport):
    """A memory line that keeps what its loudspeaker really played."""

    def __init__(self, **options):
        super().__init__(**options)
        from beluga_voice.builtin.player import Player

        self._player = Player(self.output_rate_hz, record=True)

    def record(self):
        self._player.played_ms(self._now_ms())
        return self._player.take_record()


def speak(acts, lead_ms=200, pieces=(), rate_hz=RATE_HZ, until_ms=20_000):
    """Play `pieces` with `acts` at their times: what was played, trimmed of the silence after it, and the playout."""

    async def main():
        line = Played(output_rate_hz=rate_hz)
        reply = playout(line, send_lead_ms=lead_ms)
        running = asyncio.get_running_loop().create_task(reply.run())
        loop = asyncio.get_running_loop()
        line._now_ms()
        for at_ms, act in acts:
            loop.call_later(at_ms / 1_000, getattr(reply, act))
        for piece in pieces:
            await reply.add(piece)
        reply.finish()
        await asyncio.wait([running], timeout=until_ms / 1_000)
        assert running.done()
        running.result()
        await asyncio.sleep(0.001)  # what is shorter than a ms is not waited for
        reply.cut()  # from now on what was played stands
        return line.record(), reply

    return run_simulated(main())


def loud(pcm):
    samples = np.frombuffer(pcm, "<i2")
    return samples[samples != 0].tobytes()


chunks = st.lists(st.integers(0, 2_001), min_size=1, max_size=12)


class TestSending:
    @given(chunks, st.sampled_from([20, 21, 50, 200, 5_000]), st.sampled_from([8_000, 16_000, 48_000]))
    def test_every_byte_is_played_in_order_without_a_gap(self, sizes, lead_ms, rate_hz):
        """At any chunking, odd sizes too, any allowed lead and rate: the line hears exactly what was made, unbroken."""
        whole = sound(sum(sizes) / 2 / rate_hz * 1_000 + 1, rate_hz)[: sum(sizes)]
        at, pieces = 0, []
        for size in sizes:
            pieces.append(AudioOut(whole[at : at + size], rate_hz))
            at += size
        played, reply = speak([], lead_ms, pieces, rate_hz)
        samples = len(whole) // 2
        assert played.rstrip(b"\0")[: samples * 2] == whole[: samples * 2].rstrip(b"\0")
        assert reply.played_ms == pytest.approx(samples * 1_000 / rate_hz, abs=1)

    @given(st.lists(st.tuples(st.integers(0, 3_000), st.sampled_from(["pause", "go_on"])), max_size=8))
    def test_pausing_loses_nothing_and_says_nothing_twice(self, acts):
        """Any pauses, as long as it goes on in the end."""
        whole = sound(1_500)
        played, reply = speak([*acts, (4_000, "go_on")], pieces=[AudioOut(whole, RATE_HZ)])
        assert loud(played) == whole
        assert not reply.paused

    @given(st.integers(0, 1_600), st.booleans())
    def test_a_cut_is_silence_at_once_and_for_good(self, at_ms, go_on):
        """Nothing is played after the cut, and what was played is what is told."""
        whole = sound(1_500)
        acts = [(at_ms, "cut")] + [(at_ms + 100, "go_on")] * go_on
        played, reply = speak(acts, pieces=[AudioOut(whole, RATE_HZ)])
        heard = loud(played)
        assert whole.startswith(heard)
        assert len(heard) / 32 == pytest.approx(min(at_ms, 1_500), abs=1)
        assert reply.played_ms == pytest.approx(len(heard) / 32, abs=0.1)

    def test_sending_is_never_further_ahead_than_the_lead(self):
        """However fast the voice is."""

        async def main():
            line = Played()
            reply = playout(line)
            running = asyncio.get_running_loop().create_task(reply.run())
            await reply.add(AudioOut(sound(3_000), RATE_HZ))
            reply.finish()
            ahead = []
            while not running.done():
                sent_ms = sum(len(frame.pcm) for _, frame in line.sent) / 32
                ahead.append(sent_ms - line.played_ms)
                await asyncio.sleep(0.007)
            return ahead

        ahead = run_simulated(main())
        assert max(ahead) <= 200
        assert min(ahead[1:-20]) >= 20

    def test_who_makes_the_reply_waits_at_the_limit_and_is_let_go_by_a_cut(self):
        """No more than the limit is held; cutting frees the writer."""

        async def main():
            line = Played()
            reply = playout(line, limit_ms=1_000)
            running = asyncio.get_running_loop().create_task(reply.run())
            held = []

            async def make():
                for _ in range(100):
                    await reply.add(AudioOut(sound(100), RATE_HZ))
                    held.append(reply.held_ms)

            making = asyncio.get_running_loop().create_task(make())
            await asyncio.sleep(3)
            assert not making.done()
            reply.cut()
            await asyncio.wait_for(asyncio.gather(making, running), 0.1)
            return held

        held = run_simulated(main())
        assert max(held) <= 1_100
        assert max(held[:30]) >= 1_000

    def test_the_first_sending_is_told_before_any_audio_leaves(self):
        """Even then it can be cut: nothing sounds."""

        async def main():
            line = Played()
            reply = playout(line, on_first_sent=lambda: reply.cut())
            reply.add_now(AudioOut(sound(500), RATE_HZ))
            reply.finish()
            await reply.run()
            return line.sent

        assert run_simulated(main()) == []

    def test_an_empty_reply_is_over_at_once(self):
        played, reply = speak([], until_ms=10)
        assert (loud(played), reply.heard_text(), reply.started) == (b"", "", False)

    def test_a_line_that_tells_late_what_it_played_repeats_nothing(self):
        """Its report comes 100 ms late, so a pause rewinds too far; what it played after all is not sent again."""

        class Late(Played):
            late_ms = 100.0

            @property
            def played_ms(self):
                return self._player.played_ms(self._now_ms()) - self.late_ms if self.late_ms else super().played_ms

        async def main():
            line = Late()
            line.late_ms = 0.0
            reply = playout(line)
            reply.add_now(AudioOut(sound(1_000), RATE_HZ))
            reply.finish()
            running = asyncio.get_running_loop().create_task(reply.run())
            await asyncio.sleep(0.5)
            line.late_ms = 100.0
            reply.pause()
            line.late_ms = 0.0
            await asyncio.sleep(0.3)
            reply.go_on()
            await asyncio.wait_for(running, 5)
            return loud(line.record())

        assert run_simulated(main()) == sound(1_000)

    @pytest.mark.parametrize("from_hz", [8_000, 22_050, 24_000, 48_000])
    def test_a_reply_at_another_rate_is_converted_whole(self, from_hz):
        """Its length is the same in ms, to the sample."""
        pieces = [AudioOut(sound(333, from_hz)[: 2 * (from_hz // 3)], from_hz) for _ in range(3)]
        _, reply = speak([], pieces=pieces)
        assert reply.played_ms == pytest.approx(3 * (from_hz // 3) * 1_000 / from_hz, abs=1)


class TestHeard:
    def heard(self, at_ms, pieces, finish=True):
        async def main():
            line = Played()
            reply = playout(line)
            running = asyncio.get_running_loop().create_task(reply.run())
            for piece in pieces:
                reply.add_now(piece)
            if finish:
                reply.finish()
            await asyncio.sleep(at_ms / 1_000)
            reply.cut()
            await running
            return reply.heard_text()

        return run_simulated(main())

    def sentences(self):
        return [
            AudioOut(sound(1_000), RATE_HZ, "One two three four five."),
            AudioOut(sound(1_000), RATE_HZ, "Six seven."),
        ]

    @pytest.mark.parametrize(
        ("at_ms", "text"),
        [
            (0, ""),
            (100, ""),
            (620, "One two three"),
            (1_000, "One two three four five."),
            (1_600, "One two three four five. Six"),
            (2_000, "One two three four five. Six seven."),
        ],
    )
    def test_by_share_of_the_sentence(self, at_ms, text):
        """Where the voice tells no times."""
        assert self.heard(at_ms, self.sentences()) == text

    def test_by_the_times_of_the_words(self):
        """Where it does: a slow first word is the only one heard in 800 ms."""
        words = (Word("Slow", 0, 750), Word("quick", 750, 900), Word("words", 900, 1_000))
        assert self.heard(800, [AudioOut(sound(1_000), RATE_HZ, "Slow quick words", words)]) == "Slow"

    def test_a_text_that_made_no_sound_was_not_heard(self):
        """A voice that gives a text and no audio for it."""
        silent = AudioOut(b"", RATE_HZ, "Nothing of this.")
        assert self.heard(500, [silent]) == ""
        assert self.heard(2_000, [silent, *self.sentences()]) == "One two three four five. Six seven."

    @given(st.integers(0, 2_200), st.integers(0, 2_200))
    def test_more_time_is_never_less_text(self, one_ms, other_ms):
        """And it is always the beginning of what was said."""
        whole = "One two three four five. Six seven."
        shorter, longer = (self.heard(ms, self.sentences()) for ms in sorted((one_ms, other_ms)))
        assert longer.startswith(shorter)
        assert whole.startswith(longer)
