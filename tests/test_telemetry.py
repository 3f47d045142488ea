"""Traces and metrics of whole conversations in simulated time, as an operator's collector gets them."""

from __future__ import annotations

import asyncio
import builtins
import gc
import json
import re
import subprocess
import sys
import weakref
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("opentelemetry.sdk", reason="the telemetry extra is not installed")

from opentelemetry import context as current
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from beluga_voice import Audio, Chain, SessionOptions, s2s, tts, turn
from beluga_voice.builtin.recorded_line import RecordedLine
from beluga_voice.clock import run_simulated
from beluga_voice.errors import AuthError, ConfigError, SessionLimitError
from beluga_voice.events import SessionEvent, Turn
from beluga_voice.frames import AudioOut, ReplyEnded, TextDelta, TextIn, ToolCalled, ToolReturned, Transcript, TurnEnded
from beluga_voice.manager import SessionManager
from beluga_voice.session import Session
from beluga_voice.telemetry import Telemetry, prometheus
from beluga_voice.testing import LoudVAD, ScriptedSTT, quiet, speech
from beluga_voice.tts import TTS

ROOT = Path(__file__).resolve().parent.parent
DASHBOARD = ROOT / "docs" / "grafana" / "beluga-voice.json"
PAGE = ROOT / "docs" / "reference" / "telemetry.md"
RATE_HZ = 16_000
FIXED = {"voice.stt_latency_ms", "voice.agent_latency_ms", "voice.tts_latency_ms", "voice.e2e_latency_ms"}
ONE_TURN = quiet(500) + speech(1_000) + quiet(3_000)
BARGE_IN = quiet(500) + speech(1_000) + quiet(2_500) + speech(1_000) + quiet(4_000)


async def short(text, history):
    return f"You said {text}."


async def long(text, history):
    yield "This is a long answer of very many words that goes on and on. "
    yield "It even has a second sentence that is as long as the first one."


class SlowVoice(TTS):
    """Takes `delay_ms` for each sentence of `audio_ms`."""

    def __init__(self, delay_ms=0.0, audio_ms=500.0):
        self.delay_ms, self.audio_ms = delay_ms, audio_ms

    async def synthesize(self, text):
        await asyncio.sleep(self.delay_ms / 1_000)
        return Audio(speech(self.audio_ms), RATE_HZ)


def chain(agent=short, recogniser=None, voice=None, **turn_options):
    recogniser = recogniser or ScriptedSTT("one", "two", "three", "four")
    return Chain(LoudVAD(), turn.new("silence", **turn_options), recogniser, agent, voice or tts.new("tone", word_ms=200.0))


class Begun(SpanProcessor):
    """The names of all spans that were begun."""

    def __init__(self):
        self.names = []

    def on_start(self, span, parent_context=None):
        self.names.append(span.name)


class Collector:
    """Everything that telemetry sends, and conversations to make it send something."""

    def __init__(self, **options):
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.begun = Begun()
        self.tracers.add_span_processor(self.begun)
        self.listeners = []
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.telemetry = Telemetry(self.tracers, self.meters, **options)

    def call(self, stages, talk=ONE_TURN, options=None, *, at=(), tail_ms=3_000.0, **session):
        """Hold one conversation, listened to."""

        async def main():
            line = RecordedLine(Audio(talk, RATE_HZ), tail_ms=tail_ms)
            failed = []

            def listen(event):  # a session only logs what its listeners raise
                try:
                    listener(event)
                except Exception as error:
                    failed.append(error)

            held = Session(stages, line, options, listeners=[listen], **session)
            listener = self.telemetry.listener(held)
            self.listeners.append(listener)
            for when_ms, action in at:
                asyncio.get_running_loop().call_later(when_ms / 1_000, action, held)
            await held.run()
            assert failed == []
            return held

        return run_simulated(main())

    def feed(self, *events, session_id="s1", **opened):
        """Tell telemetry of events that are made up."""
        listener = self.telemetry.listener()
        told = {"session_id": session_id, "transport": "memory", "mode": "cascade", "providers": {}, "resumed": False, **opened}
        listener(SessionEvent("opened", 0.0, -1, told))
        for event in events:
            listener(event)

    def spans(self, name=None):
        return [span for span in self.exporter.get_finished_spans() if name in (None, span.name)]

    def span(self, name):
        (span,) = self.spans(name)
        return span

    def points(self, name):
        """The points of a metric, by their labels."""
        found = {}
        data = self.reader.get_metrics_data()
        for metric in (m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics) if data else ():
            if metric.name == name:
                found |= {tuple(sorted(point.attributes.items())): point for point in metric.data.data_points}
        return found

    def values(self, name, label=None):
        """The values of a counter, by one label; of a histogram, how many values it has."""
        return {
            dict(labels).get(label): getattr(point, "value", None) if hasattr(point, "value") else point.count
            for labels, point in self.points(name).items()
        }

    def sum_s(self, name):
        """All that a histogram has recorded."""
        return sum(point.sum for point in self.points(name).values())

    def everything(self):
        """All that left the process, as text."""
        metrics = self.reader.get_metrics_data()
        return "\n".join([span.to_json() for span in self.spans()] + [metrics.to_json() if metrics else ""])

    def check_whole(self):
        """Every span that was begun has ended, and not before it began."""
        assert self.telemetry._live == {}
        assert sorted(self.begun.names) == sorted(span.name for span in self.spans())
        for span in self.spans():
            assert span.end_time >= span.start_time, span.name


def between_ms(begin, end):
    return (end - begin) / 1e6


def events_of(span):
    return [event.name for event in span.events]


class TestTurn:
    def test_a_turn_has_the_fixed_attributes_and_the_times_of_its_record(self):
        """Name, attributes and events that dashboards are built on."""
        out = Collector()
        session = out.call(chain(voice=SlowVoice(70)), session_id="abc")
        (record,) = session.turns
        span = out.span("voice.turn")
        assert span.instrumentation_scope.name == "beluga.voice.session"
        assert set(span.attributes) >= FIXED
        for name in FIXED | {"voice.endpointing_ms", "voice.send_latency_ms"}:
            assert span.attributes[name] == getattr(record, name.removeprefix("voice."))
        assert span.attributes["voice.stt_provider"] == "ScriptedSTT"
        assert span.attributes["voice.tts_provider"] == "SlowVoice"
        assert span.attributes["voice.turn.outcome"] == "completed"
        assert span.attributes["session.id"] == span.attributes["gen_ai.conversation.id"] == "abc"
        assert events_of(span) == [
            *("speech_start", "speech_end", "eot", "first_token", "first_audio", "playout_start", "playout_end"),
        ]
        out.check_whole()

    def test_the_times_are_those_of_the_session(self):
        """Speech begins where the span does; its events stand where the record has them."""
        out = Collector()
        (record,) = out.call(chain(voice=SlowVoice(70))).turns
        session, span = out.span("voice.session"), out.span("voice.turn")
        at = {event.name: between_ms(session.start_time, event.timestamp) for event in span.events}
        assert between_ms(session.start_time, span.start_time) == pytest.approx(record.speech_start_ms, abs=0.01)
        assert at["speech_end"] == pytest.approx(record.speech_end_ms, abs=0.01)
        assert at["playout_start"] - at["speech_end"] == pytest.approx(record.e2e_latency_ms, abs=0.01)

    def test_a_turn_is_a_trace_of_its_own_linked_to_the_session(self):
        """An hour's session makes no hour's trace; its parts are children of the turn."""
        out = Collector()
        out.call(chain(), BARGE_IN)
        session, turns = out.span("voice.session"), out.spans("voice.turn")
        assert len({span.context.trace_id for span in (*turns, session)}) == 3
        for span in turns:
            assert span.parent is None
            assert [link.context.span_id for link in span.links] == [session.context.span_id]
            parts = [one for one in out.spans() if one.parent and one.parent.span_id == span.context.span_id]
            assert sorted(part.name for part in parts) == ["voice.agent", "voice.stt", "voice.tts"]
            assert {part.attributes["session.id"] for part in parts} == {span.attributes["session.id"]}

    @settings(max_examples=40)
    @given(
        stt_ms=st.integers(0, 900),
        agent_ms=st.integers(0, 900),
        tts_ms=st.integers(0, 900),
        speculate=st.booleans(),
        speech_ms=st.integers(300, 1_500),
        again_ms=st.sampled_from([0, 0, 900, 2_000]),
    )
    def test_the_parts_add_up_to_the_whole(self, stt_ms, agent_ms, tts_ms, speculate, speech_ms, again_ms):
        """Endpointing, recogniser, agent, voice and sending make the end-to-end latency: in attributes and in spans."""

        async def slow(text, history):
            await asyncio.sleep(agent_ms / 1_000)
            yield "Well now."

        out = Collector()
        stages = chain(slow, ScriptedSTT("one", delay_ms=stt_ms), SlowVoice(tts_ms), early_ms=300 if speculate else 10_000)
        more = quiet(again_ms) + speech(600) if again_ms else b""
        session = out.call(stages, quiet(300) + speech(speech_ms) + more + quiet(5_000))
        out.check_whole()
        answered = [span for span in out.spans("voice.turn") if "voice.e2e_latency_ms" in span.attributes]
        assert answered
        for span in answered:
            told = span.attributes
            names = ("endpointing_ms", "stt_latency_ms", "agent_latency_ms", "tts_latency_ms", "send_latency_ms")
            assert sum(told[f"voice.{name}"] for name in names) == pytest.approx(told["voice.e2e_latency_ms"], abs=5)
            for part in ("stt", "agent", "tts"):
                own = [
                    one
                    for one in out.spans(f"voice.{part}")
                    if one.parent.span_id == span.context.span_id and "voice.cancelled" not in one.attributes
                ]
                lasted_ms = between_ms(own[-1].start_time, own[-1].end_time)
                assert lasted_ms == pytest.approx(told[f"voice.{part}_latency_ms"], abs=5)
        records = {record.index: record.e2e_latency_ms for record in session.turns}
        whole_s = sum(ms for ms in records.values() if ms is not None) / 1_000
        assert out.sum_s("voice.turn.e2e_latency") == pytest.approx(whole_s, abs=0.005)

    def test_a_typed_turn_has_no_recogniser(self):
        """No speech: no stt span, no endpointing, and the turn counts from the text."""
        out = Collector()
        out.call(chain(), quiet(4_000), at=[(500, lambda session: session._context.emit(TextIn("typed")))])
        span = out.span("voice.turn")
        assert span.attributes["voice.turn.source"] == "text"
        assert "voice.endpointing_ms" not in span.attributes
        assert not out.spans("voice.stt")
        assert not out.points("voice.stt.latency")
        assert out.values("voice.turns", "outcome") == {"completed": 1}


class TestInterruptions:
    def test_a_barge_in_ends_the_turn_as_interrupted(self):
        """The cut turn says so; the stop latency is from the first syllable to the last audio sent."""
        out = Collector()
        out.call(chain(long), BARGE_IN)
        first, second = out.spans("voice.turn")
        assert first.attributes["voice.turn.outcome"] == "interrupted"
        assert first.attributes["voice.interrupted"] is True
        assert first.attributes["voice.heard_chars"] > 0
        assert events_of(first)[-2:] == ["playout_end", "interrupt"]
        assert first.events[-1].attributes["source"] == "speech"
        assert second.attributes["voice.turn.outcome"] == "completed"
        assert out.values("voice.interruptions", "verdict") == {"true": 1}
        assert out.values("voice.turns", "outcome") == {"interrupted": 1, "completed": 1}
        assert 0.03 < out.sum_s("voice.bargein.stop_latency") < 0.12
        out.check_whole()

    def test_a_false_alarm_is_counted_and_changes_nothing(self):
        """A cough: the turn is completed and the verdict is false."""
        out = Collector()
        out.call(chain(long), quiet(500) + speech(1_000) + quiet(2_500) + speech(100) + quiet(9_000))
        assert out.values("voice.interruptions", "verdict") == {"false": 1}
        assert out.span("voice.turn").attributes["voice.turn.outcome"] == "completed"
        assert events_of(out.span("voice.turn")).count("speech_start") == 1
        assert not out.points("voice.bargein.stop_latency")

    @pytest.mark.parametrize(
        ("why", "verdict"), [("false_alarm", "false"), ("backchannel", "backchannel"), ("echo", "echo"), ("hm" * 9, "false")]
    )
    def test_why_a_reply_goes_on_is_its_verdict(self, why, verdict):
        """Every known reason has its own label, an unknown one none of its own."""
        out = Collector()
        out.feed(SessionEvent("reply_resumed", 10.0, 0, {"reply": 1, "played_ms": 1.0, "why": why}))
        assert out.values("voice.interruptions", "verdict") == {verdict: 1}

    def test_what_the_program_cuts_is_no_interruption(self):
        """`say(interrupt=True)` ends the turn as interrupted, but no caller did it."""
        out = Collector()
        out.call(chain(long), ONE_TURN, at=[(3_000, lambda session: session.say("Stop.", interrupt=True))])
        assert out.span("voice.turn").attributes["voice.turn.outcome"] == "interrupted"
        assert not out.points("voice.interruptions")

    def test_a_reopened_turn_is_one_turn(self):
        """The caller goes on before anything was heard: the first answer's spans end, cancelled or unheard."""

        async def slow(text, history):
            await asyncio.sleep(1)
            return f"You said {text}."

        out = Collector()
        out.call(chain(slow), quiet(500) + speech(800) + quiet(900) + speech(800) + quiet(4_000))
        span = out.span("voice.turn")
        assert span.attributes["voice.turn.reopened"] == 1
        assert [
            name for name in events_of(span) if name in ("speech_start", "speech_end", "eot", "reopened", "first_token")
        ] == [
            *("speech_start", "speech_end", "eot", "reopened", "speech_start", "speech_end", "eot", "first_token"),
        ]
        first, second = out.spans("voice.agent")
        assert first.attributes["voice.cancelled"] is True
        assert "voice.cancelled" not in second.attributes
        assert out.values("voice.turns", "outcome") == {"completed": 1}
        out.check_whole()


class TestTrouble:
    def test_an_empty_turn_ends_as_empty(self):
        """No words: no agent, no latency, no fault."""
        out = Collector()
        out.call(chain(recogniser=ScriptedSTT("")), quiet(500) + speech(500) + quiet(2_000))
        span = out.span("voice.turn")
        assert span.attributes["voice.turn.outcome"] == "empty"
        assert span.status.is_ok or span.status.is_unset
        assert not out.spans("voice.agent")
        assert out.values("voice.turns", "outcome") == {"empty": 1}
        out.check_whole()

    def test_a_failing_agent_fails_its_turn_though_a_fallback_is_spoken(self):
        """The agent's span and the turn are errors; the fallback's own times are kept."""

        async def sick(text, history):
            raise ValueError("no idea")
            yield

        out = Collector()
        out.call(chain(sick))
        assert not out.span("voice.agent").status.is_ok
        assert out.span("voice.agent").attributes["error.type"] == "AgentError"
        span = out.span("voice.turn")
        assert span.attributes["voice.turn.outcome"] == "failed"
        assert not span.status.is_ok
        assert "voice.e2e_latency_ms" in span.attributes
        assert out.values("voice.provider.errors", "kind") == {"agent": 1}
        assert out.values("voice.turns", "outcome") == {"failed": 1}
        out.check_whole()

    def test_a_failing_recogniser_fails_its_turn(self):
        """Nothing understood: the fallback is an answer to nothing."""

        class Sick(ScriptedSTT):
            async def transcribe(self, audio):
                raise AuthError("the key is refused", provider="acme", kind="stt")

        out = Collector()
        out.call(chain(recogniser=Sick()))
        assert out.span("voice.turn").attributes["voice.turn.outcome"] == "failed"
        (labels,) = out.points("voice.provider.errors")
        assert dict(labels) == {"kind": "stt", "provider": "acme", "error.type": "AuthError"}

    def test_an_agent_that_hangs_is_an_agents_error(self):
        """The session gives it up: the error is the agent's, whatever it is called."""

        async def hanging(text, history):
            await asyncio.sleep(60)
            yield "late"

        out = Collector()
        out.call(chain(hanging), ONE_TURN + quiet(4_000), SessionOptions(agent_timeout_ms=1_000))
        assert out.values("voice.provider.errors", "kind") == {"agent": 1}
        assert out.span("voice.turn").attributes["voice.turn.outcome"] == "failed"

    @pytest.mark.parametrize("when_ms", [700, 1_700, 2_500, 3_200])
    def test_a_session_closed_in_mid_turn_ends_every_span(self, when_ms):
        """While the caller speaks, while words are waited for, while the agent thinks, while the reply is spoken."""

        async def slow(text, history):
            await asyncio.sleep(0.5)
            yield "This is an answer of very many words that goes on for long."

        out = Collector()
        stages = chain(slow, ScriptedSTT("one", delay_ms=800), SlowVoice(200, 3_000), early_ms=10_000)
        out.call(stages, at=[(when_ms, lambda session: session.close("drain"))])
        assert out.span("voice.turn").attributes["voice.turn.outcome"] == "abandoned"
        session = out.span("voice.session")
        assert session.attributes["voice.end_reason"] == "drain"
        assert session.attributes["voice.turn_count"] == 1
        assert max(span.end_time for span in out.spans()) == session.end_time
        assert out.values("voice.turns", "outcome") == {"abandoned": 1}
        assert set(out.values("voice.sessions.active", "state").values()) == {0}
        out.check_whole()

    @pytest.mark.parametrize("begun", ["turn_heard", "turn_ended", "turn_reopened", "turn_finished"])
    def test_events_of_a_turn_whose_beginning_was_missed_harm_nothing(self, begun):
        """A listener that joins late, or a turn taken up from another process."""
        record = Turn(7, 10.0).record("", "", False)
        out = Collector()
        out.feed(
            SessionEvent(begun, 10.0, 7, {"record": record, "text": "x"}),
            SessionEvent("reply_text", 20.0, 9, {"reply": 1, "text": "x"}),
            SessionEvent("closed", 30.0, -1, {"reason": "bye"}),
        )
        assert len(out.spans("voice.turn")) == 1
        out.check_whole()


class TestTools:
    def test_a_tool_call_is_a_span_under_the_agents(self):
        """From the call to its result; one that failed is an error, one that never returned is cancelled."""

        async def agent(text, history):
            yield ToolCalled("1", "weather", {"city": "Bern"})
            await asyncio.sleep(0.25)
            yield ToolReturned("1", {"sky": "blue"})
            yield ToolCalled("2", "mail", {})
            yield ToolReturned("2", error="no such box")
            yield ToolCalled("3", "forgotten", {})
            yield "Blue."

        out = Collector()
        out.call(chain(agent))
        weather = out.span("execute_tool weather")
        assert weather.parent.span_id == out.span("voice.agent").context.span_id
        assert between_ms(weather.start_time, weather.end_time) == pytest.approx(250, abs=5)
        assert not out.span("execute_tool mail").status.is_ok
        assert out.span("execute_tool forgotten").attributes["voice.cancelled"] is True
        assert out.span("voice.turn").attributes["voice.turn.outcome"] == "completed"
        out.check_whole()

    @pytest.mark.parametrize("attached", [False, True])
    def test_the_agents_own_spans_nest(self, attached):
        """By `context=`, or by attaching it once; nothing is current outside the agent's own task."""
        out = Collector()
        tracer = out.tracers.get_tracer("the agent's")

        async def agent(text, history, session):
            where = out.telemetry.context(session)
            if attached:
                current.attach(where)
                where = None
            with tracer.start_as_current_span("look up", where):
                await asyncio.sleep(0.1)
            yield "Found. "
            with tracer.start_as_current_span("look again", where):
                await asyncio.sleep(0.1)
            yield "Again."

        session = out.call(chain(agent), BARGE_IN)
        parents = {span.context.span_id for span in out.spans("voice.agent")}
        assert len(parents) == 2
        assert {span.parent.span_id for span in out.spans("look up")} == parents
        assert {span.parent.span_id for span in out.spans("look again")} <= parents
        assert all(span.parent is None for span in out.spans("voice.turn"))
        assert trace.get_current_span() is trace.INVALID_SPAN
        assert out.telemetry.context(session) == {}


class TestSpeechToSpeech:
    def test_one_model_has_one_span(self):
        """No recogniser, agent or voice to tell apart: one span and one latency."""

        class Talking(s2s.S2SSession):
            def __init__(self):
                self.loud_ms = self.quiet_ms = 0.0
                self.turns = asyncio.Queue()

            async def send_audio(self, audio):
                loud = np.abs(np.frombuffer(audio.pcm, "<i2")).max(initial=0) > 100
                self.loud_ms += audio.duration_ms if loud else 0
                self.quiet_ms = 0 if loud else self.quiet_ms + audio.duration_ms
                if self.loud_ms > 200 and self.quiet_ms > 300:
                    self.loud_ms = 0
                    await self.turns.put("spoken")

            async def send_text(self, text):
                pass

            async def send_tool_result(self, result):
                pass

            async def interrupt(self, played_ms):
                pass

            async def events(self):
                while True:
                    yield Transcript(await self.turns.get())
                    yield TurnEnded(0.0, "model")
                    await asyncio.sleep(0.2)
                    yield AudioOut(speech(500), 24_000, "I am a model.")
                    yield TextDelta("I am a model.")
                    yield ReplyEnded(0, "", False)

            async def aclose(self):
                pass

        class Model(s2s.S2S):
            async def connect(self, history=()):
                return Talking()

        out = Collector()
        out.call(Chain(LoudVAD(), Model()))
        span = out.span("voice.turn")
        assert span.attributes["voice.s2s_provider"] == "Model"
        assert span.attributes["voice.s2s_latency_ms"] == pytest.approx(200, abs=5)
        assert "voice.e2e_latency_ms" in span.attributes
        assert "voice.tts_latency_ms" not in span.attributes
        assert out.span("voice.s2s").parent.span_id == span.context.span_id
        assert not out.spans("voice.agent")
        assert not out.points("voice.tts.latency")
        assert out.sum_s("voice.s2s.latency") == pytest.approx(0.2, abs=0.005)
        (labels,) = out.points("voice.turn.e2e_latency")
        assert dict(labels)["mode"] == "s2s"
        out.check_whole()


class TestSessions:
    def test_a_session_has_a_span_and_is_counted(self):
        """What ran, how it ended, how long it lasted."""
        out = Collector()
        out.call(chain())
        span = out.span("voice.session")
        assert span.attributes["voice.transport"] == "RecordedLine"
        assert span.attributes["voice.mode"] == "cascade"
        assert span.attributes["voice.resumed"] is False
        assert span.attributes["voice.end_reason"] == "bye"
        assert span.attributes["voice.turn_count"] == 1
        assert out.values("voice.sessions.ended", "reason") == {"bye": 1}
        assert sum(out.values("voice.sessions.started", "mode").values()) == 1
        assert out.sum_s("voice.session.duration") == pytest.approx(between_ms(span.start_time, span.end_time) / 1_000)

    def test_active_sessions_are_told_by_state(self):
        """In the middle of a call there is one, in the state it is in."""
        out, seen = Collector(), []
        look = [(ms, lambda _: seen.append(out.values("voice.sessions.active", "state"))) for ms in (1_000, 2_400)]
        out.call(chain(), at=look)
        assert seen[0] == {"connected": 0, "listening": 1}
        assert seen[1] == {"connected": 0, "listening": 0, "processing": 0, "responding": 1}

    def test_the_callers_trace_is_the_sessions_parent(self):
        """W3C trace context, if the caller sent it; anything else is none."""
        out = Collector()
        sent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        out.call(chain(), quiet(100), metadata={"traceparent": sent})
        out.call(chain(), quiet(100), metadata={"traceparent": "nonsense"})
        first, second = out.spans("voice.session")
        assert f"{first.context.trace_id:032x}" in sent
        assert second.parent is None

    @pytest.mark.parametrize(("kind", "outcome"), [("hot", "hot"), ("warm", "warm"), (None, "failed")])
    def test_a_lost_line_is_a_span_and_is_counted(self, kind, outcome):
        """From the loss to the return, or to the end."""
        out = Collector()
        back = [SessionEvent("resumed", 1_750.0, -1, {"kind": kind, "gap_ms": 750.0})] if kind else []
        lost = SessionEvent("line_lost", 1_000.0, -1, {"message": "gone"})
        out.feed(lost, *back, SessionEvent("closed", 9_000.0, -1, {"reason": "lost"}))
        span = out.span("voice.reconnect")
        assert span.parent.span_id == out.span("voice.session").context.span_id
        assert span.attributes["voice.reconnect.outcome"] == outcome
        assert between_ms(span.start_time, span.end_time) == (750 if kind else 8_000)
        assert out.values("voice.reconnect.attempts", "outcome") == {outcome: 1}
        assert out.sum_s("voice.reconnect.duration") == (0.75 if kind else 8.0)
        out.check_whole()

    def test_what_only_the_counters_know_is_counted_once(self):
        """Dropped audio, held loops: with the session at hand, read at each turn's end and at the close."""

        async def clumsy(text, history, session):
            session.counters["stale_frames_dropped"] += 3
            session.counters["loop_held"] += 1
            session.counters["a provider's own"] += 1
            return "Yes."

        out = Collector()
        out.call(chain(clumsy), BARGE_IN)
        assert out.values("voice.buffer.dropped", "queue") == {"reply": 6}
        assert out.values("voice.loop.held") == {None: 2}

    def test_nothing_is_kept_of_a_session_that_is_over(self):
        """The session can be let go, even by those who keep its listener."""
        out = Collector()
        kept = [weakref.ref(out.call(chain(), BARGE_IN)) for _ in range(3)]
        gc.collect()
        assert [ref() for ref in kept] == [None] * 3
        out.check_whole()

    def test_sessions_at_once_do_not_mix(self):
        """Each turn links to its own session."""
        out = Collector()
        for session_id in ("a", "b"):
            out.call(chain(), session_id=session_id)
        sessions = {span.attributes["session.id"]: span.context.span_id for span in out.spans("voice.session")}
        for span in out.spans("voice.turn"):
            assert span.links[0].context.span_id == sessions[span.attributes["session.id"]]


class TestManager:
    def test_every_session_of_a_manager_is_listened_to(self):
        """`listeners=[telemetry.listener]` is all it takes; places are told while they are held."""
        out, during = Collector(), []

        async def main():
            manager = SessionManager(chain(), listeners=[out.telemetry.listener], max_sessions=2)
            out.telemetry.manager(manager)
            async with manager:
                for name in ("a", "b"):
                    await manager.create(RecordedLine(Audio(ONE_TURN, RATE_HZ)), session_id=name)
                with pytest.raises(SessionLimitError):
                    await manager.create(RecordedLine(Audio(ONE_TURN, RATE_HZ)))
                await asyncio.sleep(1)
                during.append(out.values("voice.manager.sessions"))
                await asyncio.sleep(20)

        run_simulated(main())
        assert during == [{None: 2}]
        assert out.values("voice.manager.sessions") == {None: 0}
        assert out.values("voice.sessions.rejected") == {None: 1}
        assert out.values("voice.turns", "outcome") == {"completed": 2}
        assert {span.attributes["session.id"] for span in out.spans("voice.turn")} == {"a", "b"}
        out.check_whole()

    def test_a_managers_counts_are_read_when_asked_for(self):
        """Refusals and resumes that no session can tell of."""
        out = Collector()
        manager = SimpleNamespace(counters=Counter(rejected=2, resumed_warm=1, store_fenced=1), sessions=("x", "y"))
        out.telemetry.manager(manager)
        manager.counters["rejected"] += 1
        assert out.values("voice.sessions.rejected") == {None: 3}
        assert out.values("voice.sessions.resumed", "kind") == {"hot": 0, "warm": 1, "failed": 0}
        assert out.values("voice.store.fenced") == {None: 1}
        assert out.values("voice.manager.sessions") == {None: 2}


CANARY = "canary-3141"


class TestPrivacy:
    def conversation(self, **options):
        """A call in which everything that may be private says so."""

        async def agent(text, history, session):
            yield ToolCalled("1", "weather", {"city": CANARY})
            yield ToolReturned("1", {"sky": CANARY})
            yield f"You said {text}."
            if len(history) > 2:
                raise ValueError(f"failed at {CANARY}")

        out = Collector(**options)
        out.call(
            chain(agent, ScriptedSTT(f"I am {CANARY}.")),
            BARGE_IN + speech(800) + quiet(4_000),
            SessionOptions(greeting=f"Hello {CANARY}."),
            user_id=f"user-{CANARY}",
            metadata={"phone": CANARY, "traceparent": CANARY},
            at=[(9_000, lambda session: session.close(f"because of {CANARY}"))],
        )
        return out

    def test_nothing_private_leaves_by_default(self):
        """No transcript, reply, tool argument or result, user, metadata or error message; a close reason is the program's."""
        out = self.conversation()
        assert len(out.spans("voice.turn")) >= 2
        told = out.everything().replace(f"because of {CANARY}", "", 1)
        assert CANARY not in told
        assert "voice.pii" not in told
        assert out.values("voice.sessions.ended", "reason") == {"other": 1}

    def test_private_text_is_all_under_one_prefix(self):
        """Asked for: a collector can still drop it by its prefix, and metrics have none of it; nor are there metadata."""
        out = self.conversation(private_text=True)
        first = out.spans("voice.turn")[0]
        assert first.attributes["voice.pii.user_text"] == f"I am {CANARY}."
        assert json.loads(out.spans("execute_tool weather")[0].attributes["voice.pii.tool_arguments"]) == {"city": CANARY}
        for span in out.spans():
            for name, value in span.attributes.items():
                assert CANARY not in str(value) or name.startswith("voice.pii.") or name == "voice.end_reason"
            assert all(CANARY not in str(dict(event.attributes)) for event in span.events)
        assert CANARY not in out.reader.get_metrics_data().to_json()

    def test_no_metric_has_a_label_that_grows(self):
        """A hundred callers with names, reasons, tools and errors of their own make no new series after the first."""
        out = Collector()
        series = []
        for number in range(3):
            name = f"n{number}"
            out.call(
                chain(long),
                BARGE_IN,
                session_id=name,
                user_id=name,
                at=[(6_500, lambda session, name=name: session.close(name))],
            )
            out.feed(
                SessionEvent("error", 5.0, -1, {"stage": f"reply {number}", "message": name, "error": ValueError(name)}),
                SessionEvent("turn_started", 6.0, 0),
                SessionEvent("tool", 7.0, 0, {"tool": ToolCalled(name, name, {})}),
                SessionEvent("turn_ended", 8.0, 0, {"source": name, "speech_end_ms": None}),
                SessionEvent("closed", 9.0, -1, {"reason": name}),
                session_id=name,
            )
            data = json.loads(out.reader.get_metrics_data().to_json())
            metrics = data["resource_metrics"][0]["scope_metrics"][0]["metrics"]
            series.append(sum(len(metric["data"]["data_points"]) for metric in metrics))
            labels = {label for metric in metrics for point in metric["data"]["data_points"] for label in point["attributes"]}
        assert series[0] == series[-1]
        assert not labels & {"session.id", "session_id", "user", "user_id", "gen_ai.conversation.id", "turn"}


class TestPrometheus:
    def rendered(self):
        exported = prometheus()
        out = Collector()
        out.telemetry = Telemetry(out.tracers, exported.meter_provider)
        out.call(chain(long), BARGE_IN)
        out.feed(
            SessionEvent("error", 5.0, -1, {"stage": "line", "message": "x", "error": OSError()}),
            SessionEvent("line_lost", 6.0, -1, {"message": "x"}),
            SessionEvent("closed", 9.0, -1, {"reason": "lost"}),
        )
        return exported, exported.render().decode()

    def test_it_is_what_prometheus_reads(self):
        """Seconds, with buckets that tell 300 ms from 500."""
        from prometheus_client.parser import text_string_to_metric_families

        exported, text = self.rendered()
        assert exported.content_type.startswith("text/plain")
        families = {family.name: family for family in text_string_to_metric_families(text)}
        buckets = [
            float(sample.labels["le"])
            for sample in families["voice_turn_e2e_latency_seconds"].samples
            if sample.name.endswith("_bucket")
        ]
        assert {0.01, 0.3, 0.5, 0.8, 10.0} < set(buckets)
        turns = {sample.labels["outcome"]: sample.value for sample in families["voice_turns"].samples}
        assert turns == {"interrupted": 1, "completed": 1}

    def test_two_do_not_share(self):
        """Each has a registry of its own: a second server in one process starts from nothing."""
        self.rendered()
        assert b"voice_turns" not in prometheus().render()

    def test_without_the_extra_it_says_what_to_install(self, monkeypatch):
        """The name of the extra is in the error."""
        real = builtins.__import__

        def refuse(name, *args, **kwargs):
            if name.startswith(("opentelemetry.exporter", "prometheus_client")):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", refuse)
        with pytest.raises(ConfigError, match=r"pip install 'beluga-voice\[telemetry\]'"):
            prometheus()

    def test_every_panel_of_the_dashboard_asks_for_a_metric_that_there_is(self):
        """A renamed metric would leave an empty panel; a label that is not there, an empty sum."""
        from prometheus_client.parser import text_string_to_metric_families

        exported = prometheus()
        out = Collector()
        out.telemetry = Telemetry(out.tracers, exported.meter_provider)
        everything_once(out)
        series = {}
        for family in text_string_to_metric_families(exported.render().decode()):
            for sample in family.samples:
                series.setdefault(sample.name, set()).update(sample.labels)
        panels = [panel for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"] if panel["type"] != "row"]
        assert len(panels) >= 12
        for panel in panels:
            assert panel["targets"], panel["title"]
            for target in panel["targets"]:
                asked = set(re.findall(r"\bvoice_\w+", target["expr"]))
                assert asked, panel["title"]
                assert asked <= set(series), panel["title"]
                known = set().union(*(series[name] for name in asked)) | {"job", "instance"}
                used = re.findall(r"by \(([^)]*)\)", target["expr"]) + re.findall(r"(\w+)=~?\"", target["expr"])
                labels = {label.strip() for group in used for label in group.split(",")}
                assert labels <= known, panel["title"]

    def test_the_page_names_every_metric(self):
        """The reference has a row for each metric, and none that there is not."""
        out = Collector()
        everything_once(out)
        scope = json.loads(out.reader.get_metrics_data().to_json())["resource_metrics"][0]["scope_metrics"][0]
        made = {metric["name"] for metric in scope["metrics"]}
        table = PAGE.read_text("utf-8").split("## Metrics")[1].split("\n## ")[0]
        assert set(re.findall(r"^\| `(voice\.[\w.]+)`", table, re.MULTILINE)) == made


def everything_once(out):
    """Make every metric have a value."""
    out.telemetry.manager(SimpleNamespace(counters=Counter(), sessions=()))
    out.call(chain(long), BARGE_IN, at=[(100, stumble)])
    out.feed(
        SessionEvent("error", 5.0, -1, {"stage": "line", "message": "x", "error": OSError()}),
        SessionEvent("usage", 5.0, -1, {"kind": "tts", "provider": "one", "model": "big", "amounts": {"characters": 3}}),
        SessionEvent("retried", 5.0, -1, {"kind": "tts", "provider": "one", "attempt": 2, "error": OSError()}),
        SessionEvent("failed_over", 5.0, -1, {"kind": "tts", "old": "one", "new": "two", "error": OSError()}),
        SessionEvent("provider_health", 5.0, -1, {"kind": "tts", "provider": "one", "old": "closed", "state": "open"}),
        SessionEvent("line_lost", 6.0, -1, {"message": "x"}),
        SessionEvent("turn_started", 6.0, 0),
        SessionEvent("turn_ended", 7.0, 0, {"source": "model", "speech_end_ms": None}),
        SessionEvent("reply_audio", 8.0, 0, {"reply": 1}),
        SessionEvent("reply_ended", 9.0, 0, {"reply": 1, "heard_text": "", "interrupted": False}),
        SessionEvent("turn_finished", 9.0, 0, {"record": s2s_record()}),
        SessionEvent("closed", 9.0, -1, {"reason": "lost"}),
        mode="s2s",
        providers={"s2s": "model"},
    )


def stumble(session):
    for name in ("loop_held", "stale_frames_dropped", "line_gaps"):
        session.counters[name] += 1


def s2s_record():
    return Turn(0, 6.0, ended_ms=7.0, text_ms=7.0, audio_ms=8.0, sent_ms=8.0).record("", "", False)


class TestOff:
    def test_without_providers_it_is_silent(self):
        """Only the API: nothing is made, nothing fails."""
        telemetry = Telemetry()
        out = Collector()
        out.telemetry = telemetry
        assert out.call(chain(), BARGE_IN).end_reason == "bye"
        assert out.spans() == []

    def test_it_needs_no_sdk(self):
        """Importing it loads the API alone, and the package does not load it."""
        script = (
            "import sys, beluga_voice\n"
            "assert 'beluga_voice.telemetry' not in sys.modules\n"
            "import beluga_voice.telemetry\n"
            "assert not [m for m in sys.modules if m.startswith(('opentelemetry.sdk', 'prometheus_client'))]\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
