"""What a session tells of its providers: usage, retries, failover and health, as events, in records, hooks and telemetry."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_voices import Books, Voice

from beluga_voice import Chain, Session, SessionOptions, agent, hookimpl, tts, turn
from beluga_voice._registry import registry
from beluga_voice.agent import Agent
from beluga_voice.chain import processor
from beluga_voice.clock import run_simulated
from beluga_voice.errors import AgentError, AuthError, ConnectFailedError, ProtocolError, ProviderTimeoutError
from beluga_voice.frames import FailedOver, HealthChanged, Retried, SpeechEnded, TextIn, ToolCalled, TurnEnded, Usage
from beluga_voice.providers import MOST_PRICES, MOST_UNITS, Providers
from beluga_voice.resilience import ResilienceOptions
from beluga_voice.stt import STT
from beluga_voice.testing import LoudVAD, ScriptedSTT, hold, quiet, speech

ASKED = quiet(500) + speech(800) + quiet(3_000)
SICK = ConnectFailedError("the canary line broke", provider="one", kind="stt")


def emitting(*frames, on=SpeechEnded):
    """A stage of the ears that emits frames at the end of speech."""

    @processor(side="ears")
    async def news(incoming, context):
        async for frame in incoming:
            yield frame
            if type(frame) is on:
                for one in frames:
                    context.emit(one)

    return news


async def reply(text, history):
    return "Yes."


def call_with(*frames, on=SpeechEnded, ears=None, answer=reply, caller=ASKED, options=None, at=()):
    ears = ears or ScriptedSTT("hello")
    chain = Chain(LoudVAD(), turn.new("silence"), emitting(*frames, on=on), ears, answer, tts.new("tone"))
    return hold(chain, caller, options, at=at)


def named(call, name):
    return [event for event in call.events if event.name == name]


class TestEvents:
    def test_each_piece_of_news_is_an_event_of_the_turn(self):
        call = call_with(
            Usage("stt", "one", "large", {"audio_ms": 800}),
            Retried("stt", "one", SICK, 2),
            FailedOver("stt", "one", "two", SICK),
            HealthChanged("stt", "one", "closed", "open"),
        )
        told = {name: named(call, name)[0] for name in ("usage", "retried", "failed_over", "provider_health")}
        assert {event.turn for event in told.values()} == {0}
        assert {name: event.data for name, event in told.items()} == {
            "usage": {"kind": "stt", "provider": "one", "model": "large", "amounts": {"audio_ms": 800}},
            "retried": {"kind": "stt", "provider": "one", "attempt": 2, "error": SICK},
            "failed_over": {"kind": "stt", "old": "one", "new": "two", "error": SICK},
            "provider_health": {"kind": "stt", "provider": "one", "state": "open", "old": "closed"},
        }

    def test_news_of_a_lost_line_is_not_kept_back(self):
        """Nothing of it waits for a line that may never come back."""

        async def main():
            from beluga_voice import transport

            told = []
            line = transport.new("memory")
            session = Session(Chain(LoudVAD(), turn.new("silence"), ScriptedSTT(), reply, tts.new("tone")), line)
            session._announcer._listeners = (told.append,)
            running = asyncio.create_task(session.run())
            await asyncio.sleep(0.1)
            line.lose()
            await asyncio.sleep(0.1)
            session._context.emit(Usage("stt", "one", "", {"audio_ms": 1}))
            await asyncio.sleep(0.1)
            session.close()
            await running
            return told

        names = [event.name for event in run_simulated(main())]
        assert names.index("line_lost") < names.index("usage") < names.index("closing")

    def test_the_hook_of_a_failover_is_called(self):
        called = []

        class Plugin:
            @hookimpl
            def failed_over(self, session_id, kind, old, new):
                called.append((bool(session_id), kind, old, new))

        plugin = Plugin()
        registry.hook  # noqa: B018 - loads what is installed
        registry._manager.register(plugin)
        try:
            call_with(FailedOver("tts", "one", "two", SICK))
        finally:
            registry._manager.unregister(plugin)
        assert called == [(True, "tts", "one", "two")]


class TestUsage:
    def test_it_is_added_up_by_kind_provider_and_model(self):
        one = Usage("tts", "one", "fast", {"characters": 10})
        call = call_with(
            one, one, Usage("tts", "one", "good", {"characters": 3}), Usage("stt", "one", "fast", {"audio_ms": 5.5})
        )
        assert call.session.usage == (
            Usage("tts", "one", "fast", {"characters": 20}),
            Usage("tts", "one", "good", {"characters": 3}),
            Usage("stt", "one", "fast", {"audio_ms": 5.5}),
        )

    def test_an_agent_may_tell_what_it_used(self):
        """Also one that is asked by text."""

        async def counting(text, history):
            yield "Yes."
            yield Usage("agent", "mine", "big", {"input_tokens": 7})

        call = call_with(answer=counting)
        assert call.session.usage == (Usage("agent", "mine", "big", {"input_tokens": 7}),)
        assert call.turns[0].heard_text == "Yes."

        async def main():
            session = Session(Chain(LoudVAD(), turn.new("silence"), ScriptedSTT(), counting, tts.new("tone")), None)
            said = await session.ask("hello"), await session.ask("hello")
            return said, session.usage

        assert run_simulated(main()) == (("Yes.", "Yes."), (Usage("agent", "mine", "big", {"input_tokens": 14}),))

    def test_what_the_last_calls_used_is_told_before_the_end(self):
        """A voice that is cut by the caller's hanging up."""
        voice = Voice(Books(), account="one@home", speed=1.0)

        async def long(text, history):
            return "A sentence that goes on for a long time, for nobody has told it how to end, until the caller has gone."

        chain = Chain(LoudVAD(), turn.new("silence"), ScriptedSTT("hello"), long, voice)
        call = hold(chain, quiet(500) + speech(800) + quiet(1_500), tail_ms=0, at=[(3_500, lambda session: session.close())])
        assert [used.amounts for used in call.session.usage] == [{"characters": 102}]
        names = [event.name for event in call.events]
        assert names.index("usage") < names.index("closing")

    @given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 99)), max_size=30))
    def test_sums_are_those_of_the_parts(self, parts):
        providers = Providers({}, lambda: -1, lambda *given, **told: None, Counter())
        for unit, amount in parts:
            providers.hear(Usage("tts", "one", "", {unit: amount}))
        expected = Counter()
        for unit, amount in parts:
            expected[unit] += amount
        assert sum(len(used.amounts) for used in providers.usage) == len(expected)
        assert all(used.amounts == expected for used in providers.usage)

    def test_what_is_kept_is_bounded_and_what_is_no_amount_left_out(self):
        counters = Counter()
        providers = Providers({}, lambda: -1, lambda *given, **told: None, counters)
        for number in range(MOST_PRICES + 5):
            providers.hear(Usage("agent", "mine", f"model {number}", {"input_tokens": 1}))
        for number in range(MOST_UNITS + 4):
            providers.hear(Usage("agent", "mine", "model 0", {f"unit {number}": 1}))
        providers.hear(Usage("agent", "mine", "model 1", {"nan": float("nan"), "text": "x", "minus": -1, "bool": True}))
        assert len(providers.usage) == MOST_PRICES
        assert len(providers.usage[0].amounts) == MOST_UNITS
        assert providers.usage[1].amounts == {"input_tokens": 1}
        assert counters["usage_dropped"] == 5 + 5

    def test_a_usage_of_the_wrong_shape_fails_where_it_is_made(self):
        with pytest.raises(TypeError):
            Usage("agent", "mine", ["big"])
        with pytest.raises(TypeError):
            Usage("agent", None)


class TestRecords:
    def test_a_turn_names_who_served_it(self):
        call = call_with()
        assert (call.turns[0].stt_provider, call.turns[0].tts_provider) == ("ScriptedSTT", "tone")

    def test_after_a_failover_it_names_who_took_over(self):
        call = call_with(FailedOver("stt", "ScriptedSTT", "two", SICK), FailedOver("tts", "tone", "three", SICK))
        assert (call.turns[0].stt_provider, call.turns[0].tts_provider) == ("two", "three")

    def test_of_a_typed_turn_no_recogniser(self):
        call = call_with(caller=quiet(4_000), at=[(500, lambda session: session.feed(TextIn("hello")))])
        assert (call.turns[0].stt_provider, call.turns[0].tts_provider) == ("", "tone")

    def test_a_failover_between_words_and_answer_is_not_the_recognisers_turn(self):
        """Who heard the words is named, also when another has taken over by the time the answer is over."""

        async def slow(text, history):
            await asyncio.sleep(1.0)
            return "Yes."

        over = FailedOver("stt", "ScriptedSTT", "two", SICK)
        chain = Chain(LoudVAD(), turn.new("silence"), ScriptedSTT("a", "b"), slow, tts.new("tone"))
        emit = (2_500, lambda session: session._context.emit(over))
        call = hold(chain, ASKED + speech(800) + quiet(3_000), at=[emit])
        assert [record.stt_provider for record in call.turns] == ["ScriptedSTT", "two"]


class TestWaiting:
    @pytest.mark.parametrize("news", [Retried("stt", "one", SICK, 2), FailedOver("stt", "one", "two", SICK)])
    def test_a_turn_waits_anew_for_its_words_when_the_recogniser_begins_anew(self, news):
        """Words that take 1,500 ms are waited for, if at 900 ms another try began; the limit is 1,000."""
        late = ScriptedSTT("hello", delay_ms=1_500)
        told_at = {}

        class Told(STT):
            capabilities = late.capabilities

            async def transcribe(self, audio):
                loop = asyncio.get_running_loop()
                loop.call_later(0.9, lambda: told_at["context"].emit(news))
                return await late.transcribe(audio)

            async def open(self, context):
                told_at["context"] = context
                return self

        chain = Chain(LoudVAD(), turn.new("silence", early_ms=0), Told(), reply, tts.new("tone"))
        call = hold(chain, ASKED, SessionOptions(final_timeout_ms=1_000))
        assert call.session.counters["finals_late"] == 0
        assert call.turns[0].user_text == "hello"

    def test_news_of_a_voice_does_not_prolong_it(self):
        call = call_with(
            Retried("tts", "one", SICK, 2), on=TurnEnded, ears=ScriptedSTT("hello", delay_ms=1_900),
            options=SessionOptions(final_timeout_ms=1_000),
        )  # fmt: skip
        assert call.session.counters["finals_late"] == 1


# --- agents of services ----------------------------------------------------------------------------------------------


class Service(Agent):
    """An agent with an account that does as its script says, one item a call; `hangs`: so often no session can open it."""

    def __init__(self, name, *script, account=True, hangs=0):
        self.provider, self.script, self.asked, self.hangs = name, list(script), 0, hangs
        self.account = f"{name}@home" if account else ""

    async def open(self, context):
        self.hangs -= 1
        if self.hangs >= 0:
            await asyncio.Event().wait()
        return self

    async def reply(self, text, history, session):
        self.asked += 1
        step = self.script[min(self.asked, len(self.script)) - 1]
        for part in step if isinstance(step, list) else [step]:
            if isinstance(part, Exception):
                raise part
            if isinstance(part, float):
                await asyncio.sleep(part)
            else:
                yield part


def answered(*agents, options=None):
    chain_agent = agent.failover(*agents, options=options) if len(agents) > 1 else agents[0]
    limits = SessionOptions(fallback="Sorry.", agent_timeout_ms=60_000)
    return call_with(answer=chain_agent, caller=ASKED + quiet(9_000), options=limits)


BROKE = ConnectFailedError("the connection broke", provider="one", kind="agent")


class TestAgents:
    @pytest.mark.parametrize(
        ("script", "error"),
        [
            (AuthError("no"), AuthError),
            (9.0, ProviderTimeoutError),
            ([], ProtocolError),
            ([Usage("agent", "one"), ""], ProtocolError),
            (ValueError("what"), ProtocolError),
        ],
    )
    def test_the_next_is_asked_while_nothing_was_said(self, script, error):
        one, two = Service("one", script), Service("two", "Yes.")
        call = answered(one, two)
        assert call.turns[0].heard_text == "Yes."
        (told,) = named(call, "failed_over")
        assert isinstance(told.data["error"], error)
        assert (told.data["old"], told.data["new"], one.asked) == ("one", "two", 1)

    def test_one_that_does_not_open_is_left_for_the_next(self):
        one, two = Service("one", "Never.", hangs=9), Service("two", "Yes.")
        call = answered(one, two)
        assert call.turns[0].heard_text == "Yes."
        (told,) = named(call, "failed_over")
        assert isinstance(told.data["error"], ProviderTimeoutError)

    def test_opened_ahead_in_vain_it_has_another_try(self):
        """What hung when the session began is not in the way of the first question."""
        for alone in (Service("one", "Yes.", hangs=1), agent.failover(Service("one", "Yes.", hangs=1))):
            call = call_with(answer=alone, caller=quiet(3_000) + ASKED + quiet(9_000))
            assert call.turns[0].heard_text == "Yes."
            assert not named(call, "retried")

    def test_a_function_may_stand_by(self):
        call = answered(Service("one", AuthError("no")), reply)
        assert call.turns[0].heard_text == "Yes."
        assert named(call, "failed_over")[0].data["new"] == "reply"

    def test_what_may_help_is_tried_again(self):
        one = Service("one", BROKE, "Yes.")
        call = answered(one)
        assert call.turns[0].heard_text == "Yes."
        assert [event.data["attempt"] for event in named(call, "retried")] == [2]

    def test_who_breaks_off_in_its_words_begins_anew_or_the_next_does(self):
        """The caller need not ask again; the history has what was said, both times."""
        one, two = Service("one", ["I think ", BROKE]), Service("two", "Yes, it is.")
        call = answered(one, two)
        assert call.turns[0].heard_text == "I think ... Yes, it is."
        assert named(call, "error") == []
        call = answered(Service("one", ["I th", BROKE], ["I think so."]))
        assert call.turns[0].heard_text == "I th... I think so."

    def test_who_always_breaks_off_is_not_heard_for_ever(self):
        call = answered(Service("one", ["I think ", BROKE]), Service("two", ["Per", BROKE]))
        assert call.turns[0].heard_text.endswith("Sorry.")
        assert [event.data["error"] for event in named(call, "error")] == [BROKE]

    def test_who_has_called_a_tool_is_not_replaced(self):
        """It would act twice: the fallback is spoken."""
        one, two = Service("one", [ToolCalled("1", "pay", {}), BROKE]), Service("two", "Yes.")
        call = answered(one, two)
        assert (one.asked, two.asked) == (1, 0)
        assert call.turns[0].heard_text.endswith("Sorry.")
        assert [event.data["error"] for event in named(call, "error")] == [BROKE]

    def test_words_that_come_in_time_may_take_their_time(self):
        call = answered(Service("one", [7.0, "One. ", 7.0, "Two."]), Service("two", "Yes."))
        assert call.turns[0].heard_text == "One. Two."
        assert named(call, "failed_over") == []

    def test_its_breaker_opens_and_it_is_passed_over(self):
        one, two = Service("one", AuthError("no")), Service("two", "Yes.")
        options = ResilienceOptions(return_after_ms=0)
        chain = Chain(
            LoudVAD(), turn.new("silence"), ScriptedSTT("a"), agent.failover(one, two, options=options), tts.new("tone")
        )
        call = hold(chain, ASKED * 3)
        assert one.asked == 1
        assert [event.data["state"] for event in named(call, "provider_health")] == ["open"]
        assert len(call.turns) == 3

    def test_an_agent_without_an_account_is_left_as_it_is(self):
        one = Service("one", ValueError("what"), account=False)
        call = answered(one)
        assert one.asked == 1
        assert isinstance(named(call, "error")[0].data["error"], AgentError)

    def test_without_a_session_it_answers_all_the_same(self):
        async def main():
            return [part async for part in agent.failover(Service("one", BROKE, BROKE), reply).reply("hi", (), None)]

        assert run_simulated(main()) == ["Yes."]


class TestTelemetry:
    def collect(self, *frames, **given):
        sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="the telemetry extra is not installed")
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        from beluga_voice.telemetry import Telemetry

        spans, reader, tracers = InMemorySpanExporter(), InMemoryMetricReader(), sdk.TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(spans))
        telemetry = Telemetry(tracers, MeterProvider([reader]))
        call = call_with(*frames, **given)
        listen = telemetry.listener()
        for event in call.events:
            listen(event)
        points = {}
        for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics:
            for point in metric.data.data_points:
                if hasattr(point, "value"):
                    points[metric.name, tuple(sorted(point.attributes.items()))] = point.value
                else:
                    points[metric.name, tuple(sorted(point.attributes.items()))] = point.count
        return spans.get_finished_spans(), points

    def test_spans_name_who_served_and_what_happened(self):
        spans, _ = self.collect(
            Retried("stt", "ScriptedSTT", SICK, 2), FailedOver("stt", "ScriptedSTT", "two", SICK), on=TurnEnded
        )
        turn_span = next(span for span in spans if span.name == "voice.turn")
        assert turn_span.attributes["voice.stt_provider"] == "two"
        assert turn_span.attributes["voice.tts_provider"] == "tone"
        assert next(span for span in spans if span.name == "voice.stt").attributes["voice.provider"] == "two"
        events = {event.name: dict(event.attributes) for event in turn_span.events if event.name in ("retry", "failover")}
        assert events == {
            "retry": {
                "voice.kind": "stt", "voice.provider": "ScriptedSTT", "voice.attempt": 2, "error.type": "ConnectFailedError",
            },
            "failover": {
                "voice.kind": "stt", "voice.from": "ScriptedSTT", "voice.to": "two", "error.type": "ConnectFailedError",
            },
        }  # fmt: skip
        assert "canary" not in "".join(span.to_json() for span in spans)

    def test_metrics_count_failovers_retries_usage_and_health(self):
        _, points = self.collect(
            Retried("stt", "ScriptedSTT", SICK, 2),
            FailedOver("stt", "ScriptedSTT", "two", SICK),
            FailedOver("tts", "two", "tone"),
            HealthChanged("stt", "ScriptedSTT", "closed", "open"),
            Usage("stt", "two", "large", {"audio_ms": 800.0}),
            Usage("stt", "two", "large", {"audio_ms": 200.0}),
        )
        broke = ("error.type", "ConnectFailedError")
        expected = {
            ("voice.provider.retries", (broke, ("kind", "stt"), ("provider", "ScriptedSTT"))): 1,
            ("voice.provider.failovers", (broke, ("from", "ScriptedSTT"), ("kind", "stt"), ("to", "two"))): 1,
            ("voice.provider.failovers", (("from", "two"), ("kind", "tts"), ("to", "tone"))): 1,
            ("voice.provider.health", (("kind", "stt"), ("provider", "ScriptedSTT"), ("state", "open"))): 1,
            ("voice.provider.usage", (("kind", "stt"), ("model", "large"), ("provider", "two"), ("unit", "audio_ms"))): 1_000,
            ("voice.stt.latency", (("provider", "two"),)): 1,
            ("voice.tts.latency", (("provider", "tone"),)): 1,
        }
        assert {key: points.get(key) for key in expected} == expected

    def test_prices_that_agents_make_up_do_not_grow_without_end(self):
        _, points = self.collect(*(Usage("agent", "mine", f"model {number}", {"x": 1}) for number in range(400)))
        assert len([name for name, _ in points if name == "voice.provider.usage"]) <= 257
        assert sum(value for (name, _), value in points.items() if name == "voice.provider.usage") == 400
