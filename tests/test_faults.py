"""What goes wrong beside the conversation: lines, ears, engines and listeners that fail at a bad moment."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from beluga_voice import Audio, Chain, Session, SessionOptions, tts, turn
from beluga_voice.builtin.memory_transport import MemoryTransport
from beluga_voice.builtin.recorded_line import RecordedLine
from beluga_voice.chain import each_frame
from beluga_voice.clock import run_simulated
from beluga_voice.engine import Engine
from beluga_voice.errors import LineLost
from beluga_voice.frames import AudioIn, AudioOut, ReplyEnded, TextDelta, TextIn, Transcript, TurnEnded
from beluga_voice.s2s import S2S, S2SSession
from beluga_voice.settings import BargeInOptions
from beluga_voice.stt import STT, STTStream
from beluga_voice.testing import LoudVAD, ScriptedSTT, hold, quiet, speech
from beluga_voice.tts import TTS
from beluga_voice.vad import VAD, Options

RATE_HZ = 16_000


def chain(agent=None, recogniser=None, voice=None, vad=None):
    async def short(text, history):
        return f"You said {text}."

    recogniser = recogniser or ScriptedSTT("one", "two", "three")
    return Chain(vad or LoudVAD(), turn.new("silence"), recogniser, agent or short, voice or tts.new("tone"))


async def long(text, history):
    yield "This is a long answer of very many words that goes on and on until nobody listens any more at all. "


def hold_on(line, stages, options=None, within_ms=200_000, at=()):
    """Hold a session over any line: the session, its events, and the tasks it left; a hanging one is a failure."""
    events = []

    async def main():
        session = Session(stages, line, options, listeners=[events.append])
        loop = asyncio.get_running_loop()
        for when_ms, action in at:
            loop.call_later(when_ms / 1_000, action, session)
        async with asyncio.timeout(within_ms / 1_000):
            await session.run()
        left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        return session, left

    session, left = run_simulated(main())
    assert left == []
    return session, events


def said(events, name):
    return [event for event in events if event.name == name]


class Line(RecordedLine):
    """A caller who says one thing and then stays on the line for two minutes."""

    def __init__(self, talk=None):
        super().__init__(Audio(talk or quiet(500) + speech(1_000) + quiet(1_000), RATE_HZ), tail_ms=120_000)
        self.closed = 0

    async def aclose(self):
        self.closed += 1
        await super().aclose()


class TestLines:
    @pytest.mark.parametrize(("error", "reason"), [(LineLost("gone"), "lost"), (OSError("broken pipe"), "error")])
    def test_a_line_that_fails_at_sending_ends_the_session(self, error, reason):
        """The reply cannot be spoken: the session ends for that reason, at once, and does not wait in responding."""

        class Failing(Line):
            async def send(self, frame):
                raise error

        line = Failing()
        session, events = hold_on(line, chain(), SessionOptions(resume_window_ms=0))
        assert session.end_reason == reason
        assert events[-1].at_ms < 4_000
        assert line.closed == 1
        assert session.state.value == ("error" if reason == "error" else "disconnected")

    @pytest.mark.parametrize("how", ["blocks", "plays nothing"])
    def test_a_line_that_stands_still_is_given_up(self, how):
        """Sending that never returns, or audio that is never played: the line counts as lost, not as a reply for ever."""

        class Standing(Line):
            async def send(self, frame):
                if how == "blocks":
                    await asyncio.Event().wait()

            @property
            def played_ms(self):
                return 0.0

        session, events = hold_on(Standing(), chain(), SessionOptions(resume_window_ms=0))
        assert session.end_reason == "lost"
        assert events[-1].at_ms < 60_000

    def test_a_line_that_reports_whole_milliseconds_does_not_hold_a_reply_up(self):
        """played_ms without fractions: the reply still comes to its end."""

        class Whole(Line):
            @property
            def played_ms(self):
                return float(int(super().played_ms))

        class Odd(TTS):
            async def synthesize(self, text):
                return Audio(speech(500) + bytes(2 * 7), RATE_HZ)

        _, events = hold_on(Whole(), chain(voice=Odd()))
        (ended,) = said(events, "reply_ended")
        assert not ended.data["interrupted"]
        assert ended.at_ms < 4_000

    @pytest.mark.parametrize("method", ["notify", "recv"])
    def test_a_line_with_a_bug_does_not_hang_the_session(self, method):
        """One that raises on every event is logged; one that cannot be read ends in error."""

        class Buggy(Line):
            def notify(self, event):
                super().notify(event)
                if method == "notify":
                    raise ValueError("bug")

            def recv(self):
                if method == "recv":
                    raise ValueError("bug")
                return super().recv()

        session, _ = hold_on(Buggy(), chain(), SessionOptions(idle_timeout_ms=10_000))
        assert (session.end_reason, len(session.turns)) == (("idle", 1) if method == "notify" else ("error", 0))

    def test_a_line_that_does_not_hang_up_is_left(self):
        """`aclose` that never returns holds nobody for longer than close_timeout_ms."""

        class Clinging(Line):
            async def aclose(self):
                await asyncio.Event().wait()

        session, events = hold_on(Clinging(), chain(), at=[(1_000, lambda session: session.close("enough"))])
        assert session.end_reason == "enough"
        assert events[-1].name == "closed"
        assert events[-1].at_ms <= 1_000 + SessionOptions().close_timeout_ms + 200

    def test_a_line_that_fails_at_hanging_up_still_ends_the_session(self):
        """The error reaches whoever runs the session, after the session is closed."""

        class Failing(Line):
            async def aclose(self):
                raise OSError("disk full")

        events = []

        async def main():
            session = Session(chain(), Failing(), listeners=[events.append])
            asyncio.get_running_loop().call_later(1, session.close)
            with pytest.raises(OSError, match="disk full"):
                await session.run()
            return session

        session = run_simulated(main())
        assert session.state.value == "disconnected"
        assert events[-1].name == "closed"

    def test_typed_words_survive_a_backlog_of_audio(self):
        """Where live audio must be dropped, what was typed is not."""

        @each_frame(AudioIn)
        async def stalled(frame):
            await asyncio.sleep(3 if frame.at_ms == 0 else 0)

        async def main():
            line = MemoryTransport()
            session = Session(Chain(stalled, *chain().stages), line, SessionOptions(inbound_audio_ms=500))
            running = asyncio.get_running_loop().create_task(session.run())
            line.speak(quiet(100))
            await asyncio.sleep(0.05)
            line.push(TextIn("typed"))
            line.speak(quiet(2_000))
            await asyncio.sleep(10)
            line.hang_up()
            await running
            return session

        session = run_simulated(main())
        assert [record.user_text for record in session.turns] == ["typed"]
        assert session.counters["inbound_frames_dropped"] > 50


class TestEars:
    def crashing(self, at_ms):
        """A stage that raises once, at the first frame after `at_ms`."""
        left = [1]

        @each_frame(AudioIn)
        def crash(frame):
            if frame.at_ms >= at_ms and left:
                left.clear()
                raise RuntimeError("crash")

        return crash

    def talk(self):
        return quiet(500) + speech(1_000) + quiet(6_000) + speech(600) + quiet(5_000)

    @pytest.mark.parametrize("at_ms", [1_000, 1_600, 2_240, 2_300])
    def test_a_crash_in_the_middle_of_a_turn_leaves_the_next_one_whole(self, at_ms):
        """While speaking, in the pause, while the final is owed: the next turn is answered with its own words."""

        class Slow(ScriptedSTT):
            async def transcribe(self, audio):
                await asyncio.sleep(0.8)
                first_ms = 700 if audio.duration_ms > 1_500 else 0
                return Transcript("first" if first_ms else "second")

        stages = Chain(self.crashing(at_ms), *chain(recogniser=Slow()).stages)
        call = hold(stages, self.talk(), SessionOptions(fallback="Pardon?"), tail_ms=5_000)
        assert call.reason == "bye"
        assert call.turns[-1].user_text == "second"
        assert call.turns[-1].stt_latency_ms < 900
        assert not call.times("turn_empty")

    def test_a_crash_while_the_caller_speaks_does_not_silence_the_agent(self):
        """Nothing says that the speech is over; still the session speaks and ends when it is asked to."""
        stages = Chain(self.crashing(1_490), *chain().stages)
        ending = [(5_000, lambda session: asyncio.ensure_future(session.end("Goodbye.")))]
        call = hold(stages, quiet(500) + speech(1_000) + quiet(20_000), SessionOptions(fallback=""), at=ending)
        assert call.reason == "agent_ended"
        assert call.history[-1].text == "Goodbye."

    def test_a_crash_while_a_reply_is_paused_does_not_pause_it_for_ever(self):
        """Speech was sure and is not heard to end: the reply goes on."""
        talk = quiet(500) + speech(1_000) + quiet(2_500) + speech(140) + quiet(12_000)
        patient = SessionOptions(barge_in=BargeInOptions(min_speech_ms=400))
        call = hold(Chain(self.crashing(4_130), *chain(long).stages), talk, patient)
        assert call.times("reply_paused")
        assert call.turns[0].heard_text == call.turns[0].agent_text.strip()


class TestLateWords:
    def test_a_recogniser_that_never_answers_does_not_keep_the_session_from_ending(self):
        """Its turn is given up after a while: idle closing and `end` work."""

        class Hung(STT):
            async def transcribe(self, audio):
                await asyncio.Event().wait()

        talk = quiet(500) + speech(1_000) + quiet(1_000)
        session, _ = hold_on(Line(talk), chain(recogniser=Hung()), SessionOptions(idle_timeout_ms=30_000))
        assert session.end_reason == "idle"
        ending = [(5_000, lambda session: asyncio.ensure_future(session.end("Goodbye.")))]
        session, _events = hold_on(Line(talk), chain(recogniser=Hung()), at=ending)
        assert session.end_reason == "agent_ended"
        assert session.history[-1].text == "Goodbye."

    def test_words_that_come_in_the_next_pause_wait_for_the_turn_they_are_now_part_of(self):
        """A final so late that the caller has gone on: one turn, answered once it has ended, nothing lost."""

        class Slow(ScriptedSTT):
            async def transcribe(self, audio):
                self.delay_ms = 0 if self.heard else 3_000
                return await super().transcribe(audio)

        # the first turn ends at 2,000; its words come at 4,550, when the second has paused for 350 of 700 ms
        talk = quiet(500) + speech(800) + quiet(2_000) + speech(900) + quiet(6_000)
        call = hold(
            chain(recogniser=Slow("first", "second")), talk, SessionOptions(final_timeout_ms=300), tail_ms=5_000
        )
        assert [record.user_text for record in call.turns] == ["first second"]


class TestReplies:
    def test_words_before_the_agent_failed_stay_in_the_history(self):
        """What was heard of the failed answer counts, and what was said of it, before the fallback."""

        async def failing(text, history):
            yield "You owe fifty euros. "
            await asyncio.sleep(3)
            raise ValueError("no more")

        call = hold(
            chain(failing), quiet(500) + speech(600) + quiet(9_000), SessionOptions(fallback="Sorry about that.")
        )
        assert call.turns[0].heard_text == "You owe fifty euros. Sorry about that."
        assert call.history[-1].text == "You owe fifty euros. Sorry about that."

    @pytest.mark.parametrize("what", ["greeting", "fallback", "say", "answer"])
    def test_a_voice_that_hangs_is_given_up(self, what):
        """Nothing said by a hung voice keeps the session from listening."""

        class Hung(TTS):
            async def synthesize(self, text):
                await asyncio.Event().wait()

        async def agent(text, history):
            if what == "fallback":
                raise ValueError("no")
            return "Yes."

        options = SessionOptions(
            greeting="Hello." if what == "greeting" else "", agent_timeout_ms=2_000, idle_timeout_ms=20_000
        )
        talk = quiet(4_000) if what in ("greeting", "say") else None
        at = [(500, lambda session: session.say("Listen."))] if what == "say" else []
        session, events = hold_on(Line(talk), chain(agent, voice=Hung()), options, at=at)
        assert session.end_reason == "idle"
        assert [event for event in said(events, "error") if event.data["stage"] == "agent"]

    def test_a_say_whose_voice_fails_was_not_played(self):
        """`wait_for_playout` is False."""

        class Mute(TTS):
            async def synthesize(self, text):
                raise OSError("no sound card")

        outcomes = []

        def say(session):
            session.data["waiting"] = asyncio.ensure_future(session.say("Hello.").wait_for_playout())
            session.data["waiting"].add_done_callback(lambda task: outcomes.append(task.result()))

        hold(chain(voice=Mute()), quiet(3_000), at=[(500, say)])
        assert outcomes == [False]

    def test_a_say_before_the_session_runs_waits_for_it(self):
        """It is said once the line is open and the engines are warm."""
        warmed = []

        class Cold(TTS):
            async def prewarm(self):
                await asyncio.sleep(1)
                warmed.append(True)

            async def synthesize(self, text):
                assert warmed
                return Audio(speech(300), RATE_HZ)

        async def main():
            session = Session(chain(voice=Cold()), RecordedLine(Audio(quiet(4_000), RATE_HZ)))
            handle = session.say("Before all else.")
            await asyncio.sleep(0.5)
            await session.run()
            return await handle.wait_for_playout(), [message.text for message in session.history]

        assert run_simulated(main()) == (True, ["Before all else."])

    def test_a_model_is_told_of_an_interruption_even_before_it_was_heard(self):
        """Speech to speech: the model must stop an answer of which nothing has sounded."""
        told = []

        class Talking(S2SSession):
            def __init__(self):
                self.out = asyncio.Queue()

            async def send_audio(self, audio):
                pass

            async def send_text(self, text):
                for frame in (Transcript(text), TurnEnded(0.0, "model"), TextDelta("Well, this is it.")):
                    await self.out.put(frame)
                await asyncio.sleep(1)
                await self.out.put(AudioOut(speech(2_000), 24_000, "Well, this is it."))
                await self.out.put(ReplyEnded(0, "", False))

            async def send_tool_result(self, result):
                pass

            async def interrupt(self, played_ms):
                told.append(played_ms)

            async def events(self):
                while True:
                    yield await self.out.get()

            async def aclose(self):
                pass

        class Model(S2S):
            async def connect(self, history=()):
                return Talking()

        asked = [(300, lambda session: session._context.emit(TextIn("hello")))]
        call = hold(Chain(LoudVAD(), Model()), quiet(800) + speech(600) + quiet(4_000), at=asked)
        assert told == [0.0]
        assert call.session.counters["stale_frames_dropped"] <= 3

    def test_interrupting_works_at_the_threshold_the_vad_has(self):
        """A VAD that is sure at 0.3 and never says more is heard during a reply too."""

        class Timid(LoudVAD):
            options = Options(threshold=0.3)

            def stream(self):
                inner = super().stream()

                class Stream(type(inner)):
                    async def probability(self, window):
                        return 0.4 * await inner.probability(window)

                return Stream()

        assert issubclass(Timid, VAD)
        talk = quiet(500) + speech(1_000) + quiet(2_500) + speech(900) + quiet(6_000)
        call = hold(chain(long, vad=Timid()), talk)
        assert call.turns[0].interrupted


class TestLifetime:
    def test_an_engine_that_cannot_be_made_ready_ends_the_session_in_error(self):
        """`run` raises its error; the reason is "error", and everything is closed."""

        class Cold(ScriptedSTT):
            async def prewarm(self):
                raise OSError("no model")

        line = Line()

        async def main():
            session = Session(chain(recogniser=Cold()), line)
            with pytest.raises(OSError, match="no model"):
                await session.run()
            return session

        session = run_simulated(main())
        assert (session.end_reason, session.state.value, line.closed) == ("error", "error", 1)

    def test_a_session_that_comes_while_an_engine_is_being_closed_gets_a_warm_one(self):
        """The last user's closing is over before the next one's warming begins."""

        class Slow(Engine):
            def __init__(self):
                self.log = []

            async def prewarm(self):
                self.log.append("warming")
                await asyncio.sleep(0.1)
                self.log.append("warm")

            async def aclose(self):
                self.log.append("closing")
                await asyncio.sleep(0.1)
                self.log.append("closed")

        async def main():
            engine = Slow()

            async def use(after_ms):
                await asyncio.sleep(after_ms / 1_000)
                async with engine:
                    assert engine.log[-1] == "warm"
                    await asyncio.sleep(0.2)

            await asyncio.gather(use(0), use(350))
            return engine.log

        assert run_simulated(main()) == ["warming", "warm", "closing", "closed"] * 2

    def test_an_engine_that_cannot_be_opened_fails_the_session_alone(self):
        """`open` raising: a recogniser's is a failed turn, a VAD's ends the session in error."""

        class Closed(ScriptedSTT):
            async def open(self, context):
                raise OSError("no socket")

        call = hold(chain(recogniser=Closed()), quiet(500) + speech(600) + quiet(4_000), SessionOptions(fallback="Hm?"))
        assert (call.reason, [message.text for message in call.history]) == ("bye", ["Hm?"])

        class Deaf(LoudVAD):
            async def open(self, context):
                raise OSError("no chip")

        session, _ = hold_on(Line(), chain(vad=Deaf()))
        assert session.end_reason == "error"

    def test_listeners_and_hooks_that_raise_harm_nobody(self):
        """They are logged."""

        def broken(event):
            raise ValueError(event.name)

        async def main():
            session = Session(chain(), RecordedLine(Audio(quiet(500) + speech(600) + quiet(3_000), RATE_HZ)),
                              listeners=[broken])
            return await session.run(), len(session.turns)

        assert run_simulated(main()) == ("bye", 1)

    @pytest.mark.parametrize("when_ms", [0, 900, 1_900, 2_210, 2_400, 3_500])
    @pytest.mark.parametrize("how", ["close", "end twice", "hang up", "lose"])
    def test_any_end_at_any_moment_is_an_end(self, when_ms, how):
        """Listening, speaking, processing, responding: closed once, with one reason, and nothing is left."""
        line = MemoryTransport()
        talk = quiet(500) + speech(1_000) + quiet(4_000)

        async def act(session):
            if how == "close":
                session.close("one")
                session.close("two")
            elif how == "end twice":
                await session.end("Bye.")
                await session.end()
            else:
                (line.hang_up if how == "hang up" else line.lose)()

        async def main():
            events = []
            session = Session(chain(), line, SessionOptions(greeting="Hi."), listeners=[events.append])
            running = asyncio.get_running_loop().create_task(session.run())
            acting = None
            for at_ms in range(0, 12_000, 20):
                if at_ms >= when_ms and acting is None:
                    acting = asyncio.ensure_future(act(session))
                line.push(AudioIn(talk[at_ms * 32 : at_ms * 32 + 640] or quiet(20), RATE_HZ))
                await asyncio.sleep(0.02)
                if running.done():
                    break
            await acting
            return await running, [event.name for event in events].count("closed"), len(asyncio.all_tasks())

        reason = {"close": "one", "end twice": "agent_ended", "hang up": "bye", "lose": "lost"}[how]
        assert run_simulated(main()) == (reason, 1, 1)


class TestStreams:
    def test_a_recogniser_that_ends_turns_needs_no_detector(self):
        """Its stream gives the words and the end of the turn; the turn is answered."""

        class Flux(STT):
            from beluga_voice.stt import STTCapabilities

            capabilities = STTCapabilities(continuous=True, ends_turns=True)

            def stream(self):
                class Stream(STTStream):
                    def __init__(self):
                        self.out, self.sent_ms = asyncio.Queue(), 0.0

                    async def send(self, audio):
                        before, self.sent_ms = self.sent_ms, self.sent_ms + audio.duration_ms
                        if before < 2_000 <= self.sent_ms:
                            await self.out.put(Transcript("hello"))
                            await self.out.put(TurnEnded(self.sent_ms, "flux"))

                    async def finalize(self):
                        raise AssertionError("never asked")

                    async def __anext__(self):
                        return await self.out.get()

                    async def aclose(self):
                        pass

                return Stream()

        async def agent(text, history):
            return f"You said {text}."

        call = hold(Chain(Flux(), agent, tts.new("tone")), quiet(4_000))
        assert [(record.user_text, record.source) for record in call.turns] == [("hello", "flux")]
        assert not [event for event in call.events if event.name == "error"]


def test_a_second_cancel_while_closing_still_hangs_up():
    """Cancelled again in the middle of closing: the line is closed and the session has ended."""

    async def stubborn(text, history):
        until_s = asyncio.get_running_loop().time() + 3
        while asyncio.get_running_loop().time() < until_s:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1)
        yield "never heard"

    class Closing(MemoryTransport):
        closed = 0

        async def aclose(self):
            Closing.closed += 1
            await super().aclose()

    async def main():
        line = Closing()
        session = Session(chain(stubborn), line)
        running = asyncio.get_running_loop().create_task(session.run())
        await asyncio.sleep(0.1)
        line.push(TextIn("hello"))
        await asyncio.sleep(0.5)
        running.cancel()
        await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.wait([running])
        await asyncio.sleep(5)
        return session.state.value

    assert run_simulated(main()) == "disconnected"
    assert Closing.closed == 1


class TestWordsNotWaitedFor:
    """A recogniser that is slower than `final_timeout_ms`: what it says at last is not lost."""

    def late(self, pause_ms, delay_ms, voice=None):
        recogniser = ScriptedSTT("one", "two", delay_ms=delay_ms)
        pcm = quiet(200) + speech(800) + quiet(pause_ms) + speech(600)
        return hold(chain(recogniser=recogniser, voice=voice), pcm, tail_ms=12_000)

    def test_words_that_come_while_an_answer_is_heard_are_answered_after_it(self):
        """The first words were answered without them."""
        call = self.late(800, 1_600)
        assert [record.user_text for record in call.turns] == ["one", "two"]
        assert [record.heard_text for record in call.turns] == ["You said one.", "You said two."]

    def test_words_that_come_before_the_answer_is_heard_are_part_of_the_question(self):
        """It is asked anew, with all of them."""

        class Slow(TTS):
            async def synthesize(self, text):
                await asyncio.sleep(1.5)
                return Audio(speech(400), RATE_HZ)

        call = self.late(800, 1_600, Slow())
        assert [record.user_text for record in call.turns] == ["one two"]
        assert call.turns[-1].heard_text == "You said one two."

    def test_no_words_are_lost_however_slow(self):
        """Every word is in some turn, once."""
        for delay_ms in range(200, 5_000, 160):
            call = self.late(800, delay_ms)
            assert " ".join(record.user_text for record in call.turns).split() == ["one", "two"]


def test_a_flood_of_typed_text_is_bounded():
    """Texts typed faster than they are answered make one question; beyond its bound they are dropped and counted."""

    async def main():
        line = MemoryTransport()
        session = Session(chain(), line)
        running = asyncio.get_running_loop().create_task(session.run())
        await asyncio.sleep(0.1)
        for _ in range(50):
            line.push(TextIn("word " * 400))
        await asyncio.sleep(1)
        line.hang_up()
        await running
        return session

    session = run_simulated(main())
    assert session.counters["words_dropped"] == 41
    assert max(len(message.text) for message in session.history) <= 20_000
