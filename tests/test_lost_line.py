"""A line that is lost and comes back, as both sides notice it; in simulated time."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice import Chain, SessionOptions, transport, tts, turn
from beluga_voice.builtin.memory_transport import MemoryTransport
from beluga_voice.clock import Clock, run_simulated
from beluga_voice.errors import LineLost, ReconnectError, SessionClosedError
from beluga_voice.frames import AudioIn, TextIn, Transcript
from beluga_voice.reconnect import Breaker
from beluga_voice.session import Session
from beluga_voice.stt import STT
from beluga_voice.testing import LoudVAD, ScriptedSTT, quiet, speech

FRAME = 640
CLOCK = Clock()


class CountingSTT(STT):
    """Understands how much was said: a word for every 200 ms of speech it is given."""

    async def transcribe(self, audio):
        loud_ms = sum(1 for at in range(0, len(audio.pcm), 2) if audio.pcm[at : at + 2] != b"\0\0") / 16
        return Transcript(" ".join(["word"] * round(loud_ms / 200)))


async def short(text, history):
    return f"You said {len(text.split())} words."


async def long(text, history):
    yield "This is a long answer of very many words that goes on and on. "
    yield "It even has a second sentence that is as long as the first one."


def chain(agent=short, recogniser=None):
    return Chain(LoudVAD(), turn.new("silence"), recogniser or CountingSTT(), agent, tts.new("tone", word_ms=200.0))


class Caller:
    """Somebody who speaks in real time, keeps what could not be sent, and sends it when the line is back."""

    def __init__(self, options=None, stages=None, **told):
        self.events = []
        self.line = transport.new("memory")
        self.lines = [self.line]
        self.kept = []
        self.session = Session(stages or chain(), self.line, options, listeners=[self.events.append], **told)
        self.running = asyncio.get_running_loop().create_task(self.session.run())

    async def say(self, pcm):
        for at in range(0, len(pcm), FRAME):
            frame = AudioIn(pcm[at : at + FRAME], 16_000)
            if self.line is None:
                self.kept.append(frame)
            else:
                self.line.push(frame)
            await CLOCK.sleep_ms(20)

    def cut(self):
        self.line.lose()
        self.line = None

    async def come_back(self):
        self.line = MemoryTransport()
        self.lines.append(self.line)
        for frame in self.kept:
            self.line.push(frame)
        self.kept = []
        await self.session.reattach(self.line)

    async def hang_up(self):
        (self.line or self.lines[-1]).hang_up()
        await self.running

    def named(self, name):
        return [event for event in self.events if event.name == name]

    @property
    def states(self):
        return [event.data["state"] for event in self.named("state")]

    @property
    def heard(self):
        return [record.user_text for record in self.session.turns]


class TestSpeech:
    def test_a_sentence_cut_in_the_middle_is_heard_whole(self):
        """3 s of speech, 20 s without a line: one turn with every word."""

        async def main():
            caller = Caller()
            await caller.say(quiet(500) + speech(1_000))
            caller.cut()
            await caller.say(speech(2_000) + quiet(18_000))
            await caller.come_back()
            await caller.say(quiet(4_000))
            await caller.hang_up()
            return caller

        caller = run_simulated(main())
        assert [len(text.split()) for text in caller.heard] == [15]
        assert caller.states[:4] == ["listening", "reconnecting", "connected", "listening"]
        assert [message.text for message in caller.session.history][1] == "You said 15 words."

    def test_what_is_said_without_a_line_becomes_one_turn(self):
        """Three sentences into the void are one question with all their words."""

        async def main():
            caller = Caller()
            await caller.say(quiet(500))
            caller.cut()
            for _ in range(3):
                await caller.say(speech(1_000) + quiet(1_500))
            await caller.come_back()
            await caller.say(quiet(5_000))
            await caller.hang_up()
            return caller

        caller = run_simulated(main())
        assert [len(text.split()) for text in caller.heard] == [15]

    def test_stale_speech_interrupts_nothing_and_is_answered_after(self):
        """A half-spoken answer goes on where it was; what was said into the void is answered next."""

        async def main():
            caller = Caller(stages=chain(long))
            await caller.say(quiet(500) + speech(1_000) + quiet(2_500))
            assert caller.session.state == "responding"
            caller.cut()
            await caller.say(quiet(1_000) + speech(1_000) + quiet(2_000))
            await caller.come_back()
            await caller.say(quiet(20_000))
            await caller.hang_up()
            return caller

        caller = run_simulated(main())
        first, second = caller.session.turns
        assert first.heard_text == first.agent_text.strip()
        assert not first.interrupted
        assert caller.named("interrupted") == []
        assert len(second.user_text.split()) == 5
        assert second.heard_text

    def test_speech_after_the_line_came_back_interrupts(self):
        """Only stale speech is harmless: what is said now cuts the answer that goes on."""

        async def main():
            caller = Caller(stages=chain(long))
            await caller.say(quiet(500) + speech(1_000) + quiet(2_500))
            caller.cut()
            await caller.say(quiet(2_000))
            await caller.come_back()
            await caller.say(quiet(1_500) + speech(1_000) + quiet(12_000))
            await caller.hang_up()
            return caller

        caller = run_simulated(main())
        assert len(caller.named("interrupted")) == 1
        assert [len(text.split()) for text in caller.heard] == [5, 5]

    def test_silence_is_not_made_up_while_the_line_is_lost(self):
        """Nothing from a lost line is no quiet: the sentence has not ended."""

        async def main():
            caller = Caller()
            await caller.say(quiet(500) + speech(1_000))
            caller.cut()
            await CLOCK.sleep_ms(10_000)
            ended = len(caller.named("turn_ended"))
            await caller.come_back()
            await caller.say(speech(1_000) + quiet(3_000))
            await caller.hang_up()
            return caller, ended

        caller, ended = run_simulated(main())
        assert ended == 0
        assert [len(text.split()) for text in caller.heard] == [10]

    def test_a_caller_who_comes_back_and_says_nothing_gets_their_turn_ended(self):
        """The line is back and brings nothing, as if muted: the half sentence is answered."""

        async def main():
            caller = Caller()
            await caller.say(quiet(500) + speech(1_000))
            caller.cut()
            await CLOCK.sleep_ms(5_000)
            await caller.come_back()
            await CLOCK.sleep_ms(5_000)
            await caller.hang_up()
            return caller

        assert [len(text.split()) for text in run_simulated(main()).heard] == [5]


class TestReplies:
    def test_what_was_not_heard_is_said_again_from_there(self):
        """All of the answer is heard once over the two lines, nothing of it twice."""

        async def main():
            caller = Caller(stages=chain(long))
            await caller.say(quiet(500) + speech(1_000) + quiet(3_000))
            before = caller.line
            caller.cut()
            await CLOCK.sleep_ms(5_000)
            await caller.come_back()
            after = caller.line
            await caller.say(quiet(15_000))
            await caller.hang_up()
            return caller, before, after

        caller, before, after = run_simulated(main())
        (ended,) = caller.named("reply_ended")
        assert not ended.data["interrupted"]
        played_ms = before._player.played_ms(1e9) + after._player.played_ms(1e9)
        assert played_ms == pytest.approx(27 * 200.0, abs=300)

    def test_an_answer_thought_out_meanwhile_is_given(self):
        """Lost while the agent thinks: it goes on thinking, and answers when the line is back."""

        async def slow(text, history):
            await CLOCK.sleep_ms(3_000)
            return "Here I am."

        async def main():
            caller = Caller(stages=chain(slow))
            await caller.say(quiet(500) + speech(1_000) + quiet(1_000))
            assert caller.session.state == "processing"
            caller.cut()
            await CLOCK.sleep_ms(8_000)
            assert caller.session.state == "reconnecting"
            assert caller.named("reply_started") == []
            await caller.come_back()
            await CLOCK.sleep_ms(10)
            assert caller.session.state == "processing"
            await caller.say(quiet(4_000))
            await caller.hang_up()
            return caller

        caller = run_simulated(main())
        assert [record.heard_text for record in caller.session.turns] == ["Here I am."]

    def test_the_last_words_come_while_the_line_is_lost(self):
        """A recogniser that is slow: its words are waited for, over the loss."""

        async def main():
            caller = Caller(stages=chain(short, ScriptedSTT("the words", delay_ms=800)))
            await caller.say(quiet(500) + speech(1_000) + quiet(1_000))
            assert caller.session.state == "processing"
            caller.cut()
            await CLOCK.sleep_ms(4_000)
            await caller.come_back()
            await caller.say(quiet(4_000))
            await caller.hang_up()
            return caller

        assert run_simulated(main()).heard == ["the words"]

    def test_the_agent_fails_while_the_line_is_lost(self):
        """The fallback is said when the line is back."""

        async def failing(text, history):
            await CLOCK.sleep_ms(2_000)
            raise ValueError("no")

        async def main():
            caller = Caller(SessionOptions(fallback="Sorry."), chain(failing))
            await caller.say(quiet(500) + speech(1_000) + quiet(1_000))
            caller.cut()
            await CLOCK.sleep_ms(6_000)
            await caller.come_back()
            await caller.say(quiet(4_000))
            await caller.hang_up()
            return caller

        (record,) = run_simulated(main()).session.turns
        assert record.heard_text == "Sorry."

    def test_an_old_line_that_fails_late_harms_the_new_one_not(self):
        """Sending was stuck in it when it was lost."""

        class Stuck(MemoryTransport):
            stuck = None

            async def send(self, frame):
                if self.stuck is not None:
                    await self.stuck.wait()
                    raise LineLost("closed")
                await super().send(frame)

            async def aclose(self):
                if self.stuck is not None:
                    await CLOCK.sleep_ms(200)
                    self.stuck.set()
                await super().aclose()

        async def main():
            line, events = Stuck(), []
            session = Session(chain(long), line, listeners=[events.append])
            running = asyncio.create_task(session.run())
            line.push(TextIn("go"))
            await CLOCK.sleep_ms(1_000)
            line.stuck = asyncio.Event()
            await CLOCK.sleep_ms(300)
            line.lose()
            await CLOCK.sleep_ms(500)
            new = MemoryTransport()
            await session.reattach(new)
            await CLOCK.sleep_ms(10_000)
            new.hang_up()
            await running
            return [event.data["state"] for event in events if event.name == "state"]

        assert run_simulated(main()).count("reconnecting") == 1

    def test_a_greeting_is_not_lost(self):
        """Cut off in the greeting: the rest of it comes over the new line."""

        async def main():
            caller = Caller(SessionOptions(greeting="Good morning to you and welcome to this line."))
            await caller.say(quiet(600))
            caller.cut()
            await CLOCK.sleep_ms(2_000)
            await caller.come_back()
            await caller.say(quiet(5_000))
            await caller.hang_up()
            return caller

        (ended,) = run_simulated(main()).named("reply_ended")
        assert ended.data["heard_text"] == "Good morning to you and welcome to this line."


class TestTheWindow:
    def test_it_closes(self):
        """A line that does not come back in time ends the session as lost; nothing is left."""

        async def main():
            caller = Caller(SessionOptions(resume_window_ms=5_000))
            await caller.say(quiet(1_000))
            caller.cut()
            reason = await caller.running
            return caller, reason, len(asyncio.all_tasks())

        caller, reason, tasks = run_simulated(main())
        assert (reason, tasks) == ("lost", 1)
        assert caller.states == ["listening", "reconnecting", "disconnected"]
        assert caller.events[-1].at_ms == pytest.approx(6_000, abs=50)

    def test_what_was_said_before_is_in_the_history(self):
        """A turn that could not be answered is not forgotten."""

        async def slow(text, history):
            await CLOCK.sleep_ms(9_000)
            return "Too late."

        async def main():
            caller = Caller(SessionOptions(resume_window_ms=1_000), chain(slow, ScriptedSTT("my words")))
            await caller.say(quiet(500) + speech(1_000) + quiet(1_000))
            caller.cut()
            await caller.running
            return caller

        assert [message.text for message in run_simulated(main()).session.history] == ["my words"]

    def test_nothing_can_be_attached_to_an_ended_session(self):
        """Reattaching after the end says so."""

        async def main():
            caller = Caller(SessionOptions(resume_window_ms=10))
            caller.cut()
            await caller.running
            with pytest.raises(SessionClosedError, match="lost"):
                await caller.session.reattach(MemoryTransport())

        run_simulated(main())

    def test_a_line_of_another_rate_is_refused(self):
        """The stages were made for one rate; the session goes on waiting."""

        async def main():
            caller = Caller()
            caller.cut()
            await CLOCK.sleep_ms(100)
            with pytest.raises(ValueError, match="24000 Hz"):
                await caller.session.reattach(MemoryTransport(output_rate_hz=24_000))
            state = caller.session.state
            caller.session.close()
            await caller.running
            return state

        assert run_simulated(main()) == "reconnecting"


class TestReconnect:
    def run(self, fails, **options):
        """Dial a place that refuses `fails` times; the times of the attempts, and the session."""

        async def main():
            caller = Caller()
            await caller.say(quiet(500))
            caller.cut()
            await CLOCK.sleep_ms(10)
            attempts = []

            async def connect():
                attempts.append(CLOCK.now_ms())
                if len(attempts) <= fails:
                    raise OSError("refused")
                caller.line = MemoryTransport()
                return caller.line

            began_ms = CLOCK.now_ms()
            try:
                await caller.session.reconnect(connect, **options)
            except ReconnectError as error:
                await caller.running
                return caller, [at - began_ms for at in attempts], error
            await CLOCK.sleep_ms(10)
            state = caller.session.state
            caller.session.close()
            await caller.running
            return caller, [at - began_ms for at in attempts], state

        return run_simulated(main())

    def test_the_first_attempt_is_made_at_once(self):
        """Nobody waits for a line that is there."""
        caller, attempts, state = self.run(0)
        assert attempts == [0.0]
        assert state == "listening"
        assert caller.states[1:4] == ["reconnecting", "connected", "listening"]

    def test_waits_double_with_jitter(self):
        """Each wait is at most twice the one before, and at most 10 s."""
        _, attempts, state = self.run(6, max_attempts=7, base_delay_ms=400.0)
        assert state == "listening"
        waits = [later - sooner for sooner, later in pairwise(attempts)]
        assert all(wait <= limit + 1 for wait, limit in zip(waits[:4], [400, 800, 1_600, 3_200]))
        assert all(wait <= 10_001 for wait in waits)

    def test_after_the_last_attempt_the_session_is_in_error(self):
        """The state says so, and so does the error, with its cause."""
        caller, attempts, error = self.run(99, max_attempts=4, base_delay_ms=10.0)
        assert len(attempts) == 4
        assert error.attempts == 4
        assert isinstance(error.__cause__, OSError)
        assert caller.states[-1] == "error"
        assert caller.session.end_reason == "error"

    def test_a_line_that_does_not_fit_does_not_wait_for_ever(self):
        """It is closed, and the window runs on."""

        async def main():
            caller = Caller(SessionOptions(resume_window_ms=2_000))
            caller.cut()
            await CLOCK.sleep_ms(10)

            async def connect():
                return MemoryTransport(input_rate_hz=8_000)

            with pytest.raises(ValueError, match="8000 Hz"):
                await caller.session.reconnect(connect)
            return await caller.running

        assert run_simulated(main()) == "lost"

    def test_an_attempt_that_hangs_is_given_up(self):
        """The next one is made."""
        hung = []

        async def main():
            caller = Caller()
            caller.cut()
            await CLOCK.sleep_ms(10)

            async def connect():
                hung.append(1)
                if len(hung) == 1:
                    await asyncio.Event().wait()
                caller.line = MemoryTransport()
                return caller.line

            await caller.session.reconnect(connect)
            await CLOCK.sleep_ms(10)
            state = caller.session.state
            caller.session.close()
            await caller.running
            return state

        assert run_simulated(main()) == "listening"

    def test_it_can_be_cancelled(self):
        """The window runs on as if nobody had dialled."""

        async def main():
            caller = Caller(SessionOptions(resume_window_ms=2_000))
            caller.cut()
            await CLOCK.sleep_ms(10)

            async def never():
                await asyncio.Event().wait()

            dialling = asyncio.get_running_loop().create_task(caller.session.reconnect(never))
            await CLOCK.sleep_ms(500)
            dialling.cancel()
            return await caller.running

        assert run_simulated(main()) == "lost"

    def test_a_breaker_spares_a_place_that_is_down(self):
        """After five failures in a row one probe in ten seconds goes out, whoever dials."""

        async def main():
            breaker, tried = Breaker(), []

            async def refuse():
                tried.append(CLOCK.now_ms())
                raise OSError("down")

            async def dial():
                caller = Caller(SessionOptions(resume_window_ms=200_000), breaker=breaker)
                caller.cut()
                await CLOCK.sleep_ms(10)
                with pytest.raises(ReconnectError):
                    await caller.session.reconnect(refuse, max_attempts=5, base_delay_ms=1.0)
                await caller.running

            async with asyncio.TaskGroup() as group:
                for _ in range(10):
                    group.create_task(dial())
            return tried

        tried = run_simulated(main())
        first = tried[0]
        assert sum(at < first + 9_000 for at in tried) <= 15  # ten first tries in the same moment, before any had failed
        later = [at for at in tried if at > first + 9_000]
        assert all(b - a >= 9_999 for a, b in pairwise(later))


@given(
    cuts=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 300)), max_size=4),
    words=st.lists(st.tuples(st.integers(2, 8), st.integers(5, 20)), min_size=1, max_size=4),
)
def test_no_word_is_lost_whenever_the_line_is_cut(cuts, words):
    """Cut at any moments, for any time: every word said is in some turn, exactly once, and every turn is answered."""

    async def main():
        caller = Caller()
        pcm = quiet(400) + b"".join(speech(200 * n) + quiet(100 * pause) for n, pause in words) + quiet(1_000)

        async def speak():
            await caller.say(pcm)

        async def break_it():
            for wait, gone in cuts:
                await CLOCK.sleep_ms(wait * 20)
                caller.cut()
                await CLOCK.sleep_ms(gone * 20)
                await caller.come_back()
                await CLOCK.sleep_ms(1)

        async with asyncio.TaskGroup() as group:
            group.create_task(speak())
            group.create_task(break_it())
        await caller.say(quiet(8_000))
        await caller.hang_up()
        return caller

    caller = run_simulated(main())
    assert sum(len(text.split()) for text in caller.heard) == sum(n for n, _ in words)
    assert caller.session.history[-1].role == "assistant"


class TestWarm:
    def test_another_process_goes_on(self):
        """From the snapshot alone: the history is there, a pending question is answered, no greeting is said."""

        async def main():
            caller = Caller(SessionOptions(greeting="Hello there."), chain(long))
            caller.session.data["name"] = "Ann"
            await caller.say(quiet(4_000) + speech(1_000) + quiet(1_500))
            snapshot = caller.session.snapshot()
            caller.session.close()
            await caller.running
            line, events = MemoryTransport(), []
            after = Session(
                chain(), line, SessionOptions(greeting="Hello there."), snapshot=snapshot, listeners=[events.append]
            )
            running = asyncio.get_running_loop().create_task(after.run())
            line.speak(quiet(1_000))
            await CLOCK.sleep_ms(4_000)
            line.hang_up()
            await running
            return snapshot, after, events

        snapshot, after, events = run_simulated(main())
        assert snapshot.pending == "word word word word word"
        assert [message.text for message in after.history] == ["Hello there.", snapshot.pending, "You said 5 words."]
        assert after.data == {"name": "Ann"}
        assert [event.data["kind"] for event in events if event.name == "resumed"] == ["warm"]

    def test_words_told_again_join_the_pending_ones(self):
        """The caller's side tells again what the store had not: it is the same turn, going on."""

        async def main():
            caller = Caller(None, chain(long))
            await caller.say(quiet(400) + speech(1_000) + quiet(1_200))
            snapshot = caller.session.snapshot()
            caller.session.close()
            await caller.running
            line = MemoryTransport()
            after = Session(chain(), line, snapshot=snapshot)
            running = asyncio.get_running_loop().create_task(after.run())
            line.speak(quiet(200) + speech(600) + quiet(1_500))
            await CLOCK.sleep_ms(6_000)
            line.hang_up()
            await running
            return after

        (record,) = run_simulated(main()).turns
        assert len(record.user_text.split()) == 8
