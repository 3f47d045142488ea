"""Every limit of a session: its default, what happens at it, and where that is counted or told."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import attrs
import pytest

from beluga_voice import Audio, Chain, Session, SessionOptions, tts, turn
from beluga_voice.builtin.memory_transport import MemoryTransport
from beluga_voice.chain import each_frame
from beluga_voice.clock import run_simulated
from beluga_voice.errors import SessionLimitError
from beluga_voice.frames import AudioIn, EndCall, ToolCalled, ToolReturned
from beluga_voice.settings import BargeInOptions
from beluga_voice.testing import LoudVAD, ScriptedSTT, hold, quiet, speech
from beluga_voice.tts import TTS

RATE_HZ = 16_000
DEFAULTS = {
    "agent_timeout_ms": 15_000,
    "final_timeout_ms": 1_000,
    "tool_filler_after_ms": 1_000,
    "send_lead_ms": 200,
    "max_reply_audio_ms": 10_000,
    "inbound_audio_ms": 5_000,
    "line_gap_ms": 1_000,
    "max_turn_ms": 30_000,
    "idle_timeout_ms": 60_000,
    "max_session_ms": 3_600_000,
    "resumed_lead_ms": 500,
    "resume_window_ms": 30_000,
    "cancel_grace_ms": 100,
    "max_stuck": 8,
    "close_timeout_ms": 5_000,
    "max_says": 16,
    "loop_warning_ms": 50,
}


def chain(agent=None, recogniser=None, voice=None, before=()):
    async def short(text, history):
        return f"You said {text}."

    recogniser = recogniser or ScriptedSTT("one", "two", "three")
    return Chain(*before, LoudVAD(), turn.new("silence"), recogniser, agent or short, voice or tts.new("tone"))


def warnings(call):
    return [event.data["message"] for event in call.events if event.name == "warning"]


def test_the_defaults_are_the_contract():
    """And every limit there is has its test below."""
    made = SessionOptions()
    assert {name: getattr(made, name) for name in DEFAULTS} == DEFAULTS
    others = {"greeting", "fallback", "tool_filler", "barge_in"}
    assert {field.name for field in attrs.fields(SessionOptions)} == {*DEFAULTS, *others}
    assert BargeInOptions() == BargeInOptions(enabled=True, min_speech_ms=200, false_alarm_ms=1_000)
    tested = {name.removeprefix("test_") for name in globals()} | {n.removeprefix("test_") for n in dir(TestAtTheLimit)}
    assert set(DEFAULTS) <= tested


class TestAtTheLimit:
    def test_agent_timeout_ms(self):
        """Measured from the last word, tool or sound: an agent that speaks on every second is never given up."""

        async def slow(text, history):
            for _ in range(8):
                yield "word "
                await asyncio.sleep(1)
            yield "end."
            await asyncio.sleep(60)

        call = hold(
            chain(slow), quiet(500) + speech(600) + quiet(20_000), SessionOptions(agent_timeout_ms=1_500, fallback="")
        )
        assert call.turns[0].agent_text.endswith("word end.")
        (error,) = [event for event in call.events if event.name == "error"]
        assert "1500 ms" in error.data["message"]

    def test_final_timeout_ms(self):
        """Told, counted, and the session listens again."""
        call = hold(
            chain(recogniser=ScriptedSTT("late", delay_ms=3_000)),
            quiet(500) + speech(600) + quiet(9_000),
            SessionOptions(final_timeout_ms=700),
        )
        ended, warned = call.times("turn_ended")[0], call.times("warning")[0]
        assert warned - ended == pytest.approx(700, abs=1)
        assert call.session.counters["finals_late"] == 1
        assert "listening" in call.states()[2:]

    def test_tool_filler_after_ms(self):
        """Told as an event, so long after the call."""

        async def slow(text, history):
            yield ToolCalled("1", "clock")
            await asyncio.sleep(2)
            yield ToolReturned("1", "noon")
            yield "Noon."

        call = hold(chain(slow), quiet(500) + speech(600) + quiet(5_000), SessionOptions(tool_filler_after_ms=700))
        assert call.times("filler")[0] - call.times("tool")[0] == pytest.approx(700, abs=1)

    @pytest.mark.parametrize("lead_ms", [20, 5_000])
    def test_send_lead_ms(self, lead_ms):
        """At both ends of what is allowed a reply is played whole, unbroken."""
        calls = [
            hold(chain(), quiet(500) + speech(600) + quiet(3_000), SessionOptions(send_lead_ms=ms)) for ms in (200, lead_ms)
        ]
        usual, this = (call.agent for call in calls)
        assert this.strip(b"\0") == usual.strip(b"\0")
        assert calls[1].turns[0].heard_text == "You said one."

    def test_resumed_lead_ms(self):
        """Over a line that came back more is sent ahead: the next break may come soon."""

        async def main():
            first, second = MemoryTransport(), MemoryTransport()
            session = Session(chain(), first, SessionOptions(greeting="word " * 20))
            running = asyncio.create_task(session.run())
            await asyncio.sleep(1)
            first.lose()
            await asyncio.sleep(0.1)
            await session.reattach(second)
            await asyncio.sleep(1)
            sent_ms = sum(len(frame.pcm) for _, frame in second.sent) / 32
            ahead_ms = sent_ms - second.played_ms
            second.hang_up()
            await running
            return ahead_ms

        assert 440 <= run_simulated(main()) <= 500

    def test_sound_without_end_keeps_no_session_open(self):
        """A caller's radio: the session still ends, by its length, and when the agent hangs up."""

        async def goodbye(text, history):
            yield EndCall("Bye.")

        pcm = quiet(200) + (speech(5_000) + quiet(150)) * 40
        options = SessionOptions(max_session_ms=20_000, max_turn_ms=5_000)
        call = hold(chain(), pcm, options)
        assert call.reason == "max_session"
        assert call.events[-1].at_ms < 27_000
        assert hold(chain(goodbye), pcm, options).reason == "agent_ended"

    @pytest.mark.parametrize("window_ms", [0, 2_000])
    def test_resume_window_ms(self, window_ms):
        """A lost line has so long to come back; then the session ends as lost."""

        async def main():
            line, events = MemoryTransport(), []
            session = Session(chain(), line, SessionOptions(resume_window_ms=window_ms), listeners=[events.append])
            running = asyncio.create_task(session.run())
            await asyncio.sleep(1)
            line.lose()
            return await running, events[-1].at_ms

        reason, at_ms = run_simulated(main())
        assert reason == "lost"
        assert at_ms == pytest.approx(1_000 + window_ms, abs=10)

    def test_max_reply_audio_ms(self):
        """The voice waits, the reply is whole."""
        made = []

        class Fast(TTS):
            async def synthesize(self, text):
                made.append(asyncio.get_running_loop().time() * 1_000)
                return Audio(speech(1_000), RATE_HZ)

        async def agent(text, history):
            yield "A sentence. " * 90

        call = hold(
            chain(agent, voice=Fast()), quiet(500) + speech(600) + quiet(500), SessionOptions(max_reply_audio_ms=2_000)
        )
        begun = call.times("reply_started")[0]
        held = [1_000 * (n + 1) - max(0, at_ms - begun) for n, at_ms in enumerate(made)]
        assert max(held) <= 2_000 + 5_000  # the limit, and what is in hand between agent, voice and playout
        assert call.turns[0].heard_text.count("sentence") == 90

    def test_inbound_audio_ms(self):
        """Ears that stall on a live line: the oldest audio goes, counted; what is left is in its place."""
        placed = []

        @each_frame(AudioIn)
        async def stalled(frame):
            placed.append((frame.at_ms, any(frame.pcm)))
            if len(placed) == 1:
                await asyncio.sleep(5)

        async def main():
            line = MemoryTransport()
            session = Session(chain(before=[stalled]), line, SessionOptions(inbound_audio_ms=1_000))
            running = asyncio.get_running_loop().create_task(session.run())
            for n in range(250):
                line.push(AudioIn(b"\1\0" * 320 if n >= 240 else quiet(20), RATE_HZ))
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.1)
            line.hang_up()
            await running
            return session.counters["inbound_frames_dropped"]

        dropped = run_simulated(main())
        assert dropped + len(placed) == 250
        assert dropped == pytest.approx(250 - 50, abs=2)
        assert [at_ms for at_ms, loud in placed if loud] == [20.0 * n for n in range(240, 250)]

    def test_line_gap_ms(self):
        """A caller who mutes in mid-word has still ended a turn; a gap just under the limit is no silence."""

        def mute(gap_ms, then=b""):
            async def main():
                line = MemoryTransport()
                session = Session(chain(), line)
                running = asyncio.get_running_loop().create_task(session.run())
                for pcm, wait_s in ((quiet(300) + speech(800), gap_ms / 1_000), (then, 3)):
                    for at in range(0, len(pcm), 640):
                        line.push(AudioIn(pcm[at : at + 640], RATE_HZ))
                        await asyncio.sleep(0.02)
                    await asyncio.sleep(wait_s)
                line.hang_up()
                await running
                return session.turns, session.counters["line_gaps"]

            return run_simulated(main())

        turns, gaps = mute(4_000)
        assert [record.user_text for record in turns] == ["one"]
        assert gaps == 1
        assert turns[0].endpointing_ms < 1_000 + 52
        assert len(mute(950, speech(500) + quiet(2_000))[0]) == 1
        assert len(mute(1_500, speech(500) + quiet(2_000))[0]) == 2

    @pytest.mark.parametrize("held_ms", [1_100, 1_300, 2_500])
    @pytest.mark.parametrize("begun_ms", [40, 400])
    def test_a_loop_that_was_held_is_no_gap(self, begun_ms, held_ms):
        """What the caller says meanwhile is there, only not read yet: the word is not split by a silence that was none."""

        async def main():
            line = MemoryTransport()
            session = Session(chain(), line)
            running = asyncio.get_running_loop().create_task(session.run())
            said = quiet(2_000) + speech(3_000) + quiet(2_000)
            held_at = (2_000 + begun_ms) * 32
            for at in range(0, len(said), 640):
                line.push(AudioIn(said[at : at + 640], RATE_HZ))
                if at == held_at:
                    asyncio.get_running_loop().advance(held_ms / 1_000)
                if not held_at < at <= held_at + held_ms * 32:  # these come at once
                    await asyncio.sleep(0.02)
            line.hang_up()
            await running
            return len(session.turns), session.counters["line_gaps"]

        assert run_simulated(main()) == (1, 0)

    def test_max_turn_ms(self):
        """Counted; every part is answered."""
        call = hold(chain(), quiet(500) + speech(2_500) + quiet(4_000), SessionOptions(max_turn_ms=1_000))
        assert call.turns[0].source == "max_turn"
        assert call.session.counters["turns_too_long"] >= 1

    def test_a_turn_that_max_turn_cuts_short_was_not_waited_for(self):
        """Speech that goes on beyond the decision is not where the turn's speech ended."""
        stages = chain(recogniser=ScriptedSTT("one", delay_ms=1_000))
        (record, *_) = hold(stages, quiet(500) + speech(1_500) + quiet(4_000), SessionOptions(max_turn_ms=1_000)).turns
        assert record.source == "max_turn"
        assert 0 <= record.endpointing_ms < 40
        assert record.e2e_latency_ms == pytest.approx(record.endpointing_ms + record.stt_latency_ms, abs=0.01)

    @pytest.mark.parametrize("busy", ["typing", "speech", "a long reply"])
    def test_idle_timeout_ms(self, busy):
        """Speech, text and replies each begin the time anew."""
        from beluga_voice.frames import TextIn

        async def long(text, history):
            return "word " * 40

        at = [(ms, lambda session: session._context.emit(TextIn("hi"))) for ms in (1_500, 3_400)] * (busy == "typing")
        talk = quiet(1_500) + speech(600) + quiet(1_500) + speech(600) if busy == "speech" else quiet(100)
        if busy == "a long reply":
            talk = quiet(500) + speech(500)
        call = hold(
            chain(long if busy == "a long reply" else None),
            talk,
            SessionOptions(idle_timeout_ms=2_000),
            tail_ms=60_000,
            at=at,
        )
        assert call.reason == "idle"
        assert call.turns
        last_ms = max(call.times("turn_finished") + call.times("speech_ended"))
        assert 2_000 <= call.events[-1].at_ms - last_ms <= 3_100

    def test_max_session_ms(self):
        """Warned of, then closed at a turn's end: never in mid-sentence of either."""
        talk = quiet(500) + speech(2_000) + quiet(9_000)
        call = hold(chain(), talk, SessionOptions(max_session_ms=1_500))
        assert call.reason == "max_session"
        assert any("1500 ms" in message for message in warnings(call))
        assert call.turns[0].heard_text == "You said one."

    @pytest.mark.parametrize("clean_up_ms", [50, 500])
    def test_cancel_grace_ms(self, clean_up_ms):
        """One that takes longer to stop is named and counted."""

        async def stubborn(text, history):
            try:
                yield "many words " * 20
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(clean_up_ms / 1_000)

        talk = quiet(500) + speech(600) + quiet(2_500) + speech(800) + quiet(4_000)
        call = hold(chain(stubborn), talk, SessionOptions(cancel_grace_ms=200))
        assert bool(call.session.counters["stuck"]) == (clean_up_ms > 200)

    def test_max_stuck(self):
        """Replies that never stop: bounded, then the session ends in error instead of piling them up."""
        release = threading.Event()

        async def immortal(text, history):
            while not release.is_set():
                try:
                    yield "many words " * 20
                    await asyncio.sleep(5)
                except (asyncio.CancelledError, GeneratorExit):
                    while not release.is_set() and asyncio.get_running_loop().time() < 60:
                        try:
                            await asyncio.sleep(5)
                        except asyncio.CancelledError:
                            continue
                    raise

        talk = quiet(500) + (speech(600) + quiet(2_500)) * 12
        call = hold(chain(immortal), talk, SessionOptions(max_stuck=2, close_timeout_ms=100))
        assert call.reason == "error"
        assert len([event for event in call.events if event.name == "interrupted"]) <= 2
        assert any("do not stop" in event.data["message"] for event in call.events if event.name == "error")

    def test_close_timeout_ms(self):
        """What will not stop is left behind, on time."""

        async def clinging(text, history):
            try:
                yield "Well. "
                await asyncio.sleep(60)
            finally:
                for _ in range(40):
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.sleep(1)

        call = hold(
            chain(clinging),
            quiet(500) + speech(600) + quiet(9_000),
            SessionOptions(close_timeout_ms=300),
            at=[(3_000, lambda session: session.close("enough"))],
        )
        assert call.reason == "enough"
        assert call.events[-1].at_ms <= 3_000 + 100 + 300 + 300 + 50

    def test_max_says(self):
        """One more is an error that names the limit; the others are said."""
        refused = []

        def many(session):
            for n in range(5):
                try:
                    session.say(f"Number {n}.")
                except SessionLimitError as error:
                    refused.append((n, error.limit))

        call = hold(chain(), quiet(4_000), SessionOptions(max_says=3), at=[(500, many)])
        assert refused == [(4, "max_says")]  # one is being said, three wait
        assert [message.text for message in call.history] == [f"Number {n}." for n in range(4)]

    def test_loop_warning_ms(self):
        """Who holds the loop is counted and named."""
        import time

        async def blocker(text, history):
            time.sleep(0.03)  # noqa: ASYNC251 - the fault under test
            return "Done."

        talk = quiet(500) + speech(600) + quiet(3_000)
        call = hold(chain(blocker), talk, SessionOptions(loop_warning_ms=20))
        assert call.session.counters["loop_held"] >= 1
        assert any(message.startswith("blocker held") for message in warnings(call))


def test_the_records_of_turns_are_bounded():
    """A session that lasts keeps its last thousand."""

    async def main():
        session = Session(chain(), None)
        from beluga_voice.events import Turn

        for number in range(1_200):
            session._turn_finished(Turn(number, 0.0).record("", "", False))
        return [record.index for record in session.turns]

    assert run_simulated(main()) == list(range(200, 1_200))


def test_two_sessions_on_one_chain_do_not_hear_each_other():
    """The engines are shared, the conversations are not."""

    class Counting(ScriptedSTT):
        async def transcribe(self, audio):
            await asyncio.sleep(0.05)
            transcript = await super().transcribe(audio)
            return attrs.evolve(transcript, text=f"{audio.duration_ms / 100:.0f}")

    stages = chain(recogniser=Counting())

    async def one(ms):
        line = MemoryTransport()
        session = Session(stages, line)
        running = asyncio.get_running_loop().create_task(session.run())
        pcm = quiet(500) + speech(ms) + quiet(3_000)
        for at in range(0, len(pcm), 640):
            line.push(AudioIn(pcm[at : at + 640], RATE_HZ))
            await asyncio.sleep(0.02)
        line.hang_up()
        await running
        return [(record.user_text, record.heard_text) for record in session.turns]

    async def main():
        return await asyncio.gather(one(500), one(1_500))

    (short,), (long,) = run_simulated(main())
    assert int(long[0]) - int(short[0]) == pytest.approx(10, abs=1)
    assert short[1] == f"You said {short[0]}."
    assert long[1] == f"You said {long[0]}."
