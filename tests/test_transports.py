"""The lines that ship inside: in true time, both sides, whole files or none."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice import Audio, Chain, Session, transport, tts, turn
from beluga_voice.builtin.player import Player
from beluga_voice.builtin.recorded_line import RecordedLine
from beluga_voice.clock import run_simulated
from beluga_voice.errors import AudioFileError, LineLost, OptionError
from beluga_voice.events import SessionEvent
from beluga_voice.frames import AudioIn, AudioOut, TextIn
from beluga_voice.testing import LoudVAD, ScriptedSTT, quiet, speech

RATE_HZ = 16_000


class TestPlayer:
    @given(st.lists(st.tuples(st.integers(0, 60), st.sampled_from(["send", "clear", "ask"]), st.integers(0, 50)), max_size=30))
    def test_is_its_model(self, moves):
        """A millisecond at a time, by hand, at 1 sample a ms."""
        player, queue, played, now_ms, record = Player(1_000, record=True), [], 0, 0, []
        for wait_ms, move, samples in moves:
            for _ in range(wait_ms):
                record.append(queue.pop(0) if queue else 0)
                played += record[-1] != 0
            now_ms += wait_ms
            if move == "send":
                queue += [7] * samples
                player.send(now_ms, np.full(samples, 7, "<i2").tobytes())
            elif move == "clear":
                queue.clear()
                assert player.clear(now_ms) == played
            assert player.played_ms(now_ms) == played
            assert player.queued_ms(now_ms) == len(queue)
        assert np.frombuffer(player.take_record(), "<i2").tolist() == record
        assert player.take_record() == b""

    def test_time_does_not_run_backwards(self):
        """An earlier time than the last is the last."""
        player = Player(1_000)
        player.send(0, bytes(200))
        assert (player.played_ms(50), player.played_ms(20), player.played_ms(50)) == (50, 50, 50)


class TestMemory:
    def test_keeps_a_bounded_record_of_what_was_sent(self):
        """Beyond `kept_frames` the oldest is forgotten, and counted."""

        async def main():
            line = transport.new("memory", kept_frames=3)
            for number in range(5):
                await line.send(AudioOut(bytes(2), 16_000, str(number)))
            return [frame.text for _, frame in line.sent], line.forgotten

        assert run_simulated(main()) == (["2", "3", "4"], 2)

    def test_frames_arrive_in_order_until_the_caller_hangs_up(self):
        async def main():
            line = transport.new("memory")
            line.push(TextIn("a"))
            line.speak(bytes(1_500))
            line.hang_up()
            line.push(TextIn("too late"))
            return [frame async for frame in line.recv()]

        frames = run_simulated(main())
        assert frames[0] == TextIn("a")
        assert [len(frame.pcm) for frame in frames[1:]] == [640, 640, 220]
        assert all(frame.at_ms == AudioIn(b"", 1).at_ms for frame in frames[1:])

    def test_a_lost_line_is_an_error_after_what_came_before(self):
        async def main():
            line = transport.new("memory")
            line.push(TextIn("a"))
            line.lose()
            got = []
            try:
                async for frame in line.recv():
                    got.append(frame)
            except LineLost:
                got.append("lost")
            await line.aclose()
            await line.aclose()
            return got

        assert run_simulated(main()) == [TextIn("a"), "lost"]

    def test_it_plays_in_true_time_and_clears_at_once(self):
        async def main():
            line = transport.new("memory", output_rate_hz=8_000)
            await line.send(AudioOut(bytes(16_000), 8_000))
            await asyncio.sleep(0.3)
            before = line.played_ms
            line.clear()
            await asyncio.sleep(1)
            return before, line.played_ms, line.cleared_at_ms

        assert run_simulated(main()) == (300.0, 300.0, [300.0])

    def test_a_wrong_rate_is_refused(self):
        with pytest.raises(OptionError, match="input_rate_hz"):
            transport.new("memory", input_rate_hz=4_000)


class TestRecordedLine:
    def listen(self, audio, tail_ms, replies=()):
        """Read the line as a session would, sending `replies` at their times: frames with their times, both sides."""
        both = []

        async def main():
            line = RecordedLine(audio, tail_ms=tail_ms, on_audio=lambda *sides: both.append(sides))
            loop = asyncio.get_running_loop()
            line.notify(SessionEvent("state", 0, data={"state": "listening"}))
            for at_ms, pcm in replies:
                loop.call_later(at_ms / 1_000, lambda pcm=pcm: loop.create_task(line.send(AudioOut(pcm, RATE_HZ))))
            frames = [(loop.time() * 1_000, frame) async for frame in line.recv()]
            await line.aclose()
            await line.aclose()
            return frames

        frames = run_simulated(main())
        return frames, *(b"".join(side) for side in zip(*both))

    @given(st.integers(0, 5_000), st.sampled_from([0, 100, 1_000]))
    def test_true_time_whole_audio_and_the_tail(self, samples, tail_ms):
        """Each frame comes when its last sample is spoken; all is said; then the tail, and it hangs up."""
        pcm = speech(400)[: 2 * samples]
        frames, caller, agent = self.listen(Audio(pcm, RATE_HZ), tail_ms)
        assert [at_ms for at_ms, _ in frames] == pytest.approx([20.0 * (n + 1) for n in range(len(frames))])
        assert caller == b"".join(frame.pcm for _, frame in frames)
        assert caller.startswith(pcm)
        assert not any(caller[len(pcm) :])
        assert len(agent) == len(caller)
        assert frames[-1][0] == pytest.approx(len(pcm) / 32 + tail_ms, abs=20)

    @given(st.integers(0, 400), st.integers(1, 300))
    def test_what_was_sent_stands_where_it_was_played(self, at_ms, reply_ms):
        """Both sides of the recording share one clock."""
        reply = np.full(16 * reply_ms, 9, "<i2").tobytes()
        _, caller, agent = self.listen(Audio(quiet(500), RATE_HZ), 500, [(at_ms, reply)])
        assert len(agent) == len(caller)
        where = np.flatnonzero(np.frombuffer(agent, "<i2"))
        assert len(where) == 16 * reply_ms
        assert where[0] / 16 == pytest.approx(at_ms, abs=1)
        assert where[-1] - where[0] == len(where) - 1


async def _reply(text, history):
    return "Very well then."


def stages():
    return Chain(LoudVAD(), turn.new("silence"), ScriptedSTT("one"), _reply, tts.new("tone"))


class TestFile:
    def files(self, tmp_path, rate_hz=RATE_HZ):
        soundfile.write(tmp_path / "in.wav", np.frombuffer(quiet(500) + speech(600) + quiet(100), "<i2"), rate_hz)
        return {"input": str(tmp_path / "in.wav"), "output": str(tmp_path / "out.wav"), "sample_rate_hz": rate_hz}

    @pytest.mark.parametrize("rate_hz", [8_000, 16_000, 48_000])
    def test_both_sides_are_written_in_true_time(self, tmp_path, rate_hz):
        """Stereo, the caller left and the agent right, at any rate of the line."""
        options = self.files(tmp_path, rate_hz)
        events = []

        async def main():
            line = transport.new("file", **options, tail_ms=1_000)
            return await Session(stages(), line, listeners=[events.append]).run()

        assert run_simulated(main()) == "bye"
        sound, rate = soundfile.read(options["output"], dtype="int16")
        assert (rate, sound.shape[1]) == (rate_hz, 2)
        caller = np.frombuffer(quiet(500) + speech(600) + quiet(100), "<i2")
        assert np.array_equal(sound[: len(caller), 0], caller)
        begins_ms = np.flatnonzero(sound[:, 1])[0] * 1_000 / rate_hz
        told_ms = next(event.at_ms for event in events if event.name == "reply_started")
        assert begins_ms == pytest.approx(told_ms, abs=20)
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

    def test_until_the_call_ends_the_old_output_stands(self, tmp_path):
        """And a discarded call leaves it as it was."""
        options = self.files(tmp_path)
        (tmp_path / "out.wav").write_bytes(b"old")

        async def main():
            line = transport.new("file", **options)
            async for _ in line.recv():
                assert (tmp_path / "out.wav").read_bytes() == b"old"
                break
            line.discard()
            await line.aclose()

        run_simulated(main())
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.wav", "out.wav"]
        assert (tmp_path / "out.wav").read_bytes() == b"old"

    def test_a_cancelled_call_is_written_as_far_as_it_came(self, tmp_path):
        options = self.files(tmp_path)

        async def main():
            session = Session(stages(), transport.new("file", **options))
            running = asyncio.get_running_loop().create_task(session.run())
            await asyncio.sleep(0.9)
            running.cancel()
            await asyncio.wait([running])

        run_simulated(main())
        assert soundfile.info(options["output"]).duration == pytest.approx(0.9, abs=0.04)

    @pytest.mark.parametrize(
        ("change", "says"),
        [({"input": "none.wav"}, "no such file"), ({"output": "/nowhere/out.wav"}, "cannot be written")],
    )
    def test_what_cannot_work_is_refused_when_made(self, tmp_path, change, says):
        with pytest.raises(AudioFileError, match=says):
            transport.new("file", **{**self.files(tmp_path), **change})
        assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]

    def test_without_an_output_nothing_is_written(self, tmp_path):
        options = {**self.files(tmp_path), "output": ""}

        async def main():
            return await Session(stages(), transport.new("file", **options)).run()

        assert run_simulated(main()) == "bye"
        assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]
