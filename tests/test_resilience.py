"""What a process knows of its accounts, who may call, and when it is tried again."""

import asyncio
import gc
import weakref
from contextlib import suppress

import pytest

from beluga_voice.clock import run_simulated
from beluga_voice.engine import Engine
from beluga_voice.errors import (
    AuthError,
    ConnectFailedError,
    InvalidRequestError,
    OptionError,
    OverloadedError,
    ProtocolError,
    ProviderError,
    ProviderTimeoutError,
    QuotaError,
    RateLimitError,
)
from beluga_voice.frames import HealthChanged
from beluga_voice.options import build
from beluga_voice.resilience import MOST_GUARDS, ResilienceOptions, guard, guards, provider_error, retry_delay_ms

OPTIONS = ResilienceOptions()


class Remote(Engine):
    """An engine of an account."""

    kind = "stt"

    def __init__(self, account="somewhere#1", max_concurrent=None, provider="somewhere"):
        self.account, self.max_concurrent, self.provider = account, max_concurrent, provider


class TestGuard:
    def test_an_account_is_known_once(self):
        """Two engines, one key: what one learns the other knows."""

        async def main():
            one, other = guard(Remote(), OPTIONS), guard(Remote(), OPTIONS)
            assert one is other
            assert guard(Remote("somewhere#2"), OPTIONS) is not one
            voice = Remote()
            voice.kind = "tts"
            assert guard(voice, OPTIONS) is not one
            return [(one.kind, one.provider, one.account) for one in guards()]

        assert run_simulated(main()) == [
            ("stt", "somewhere", "somewhere#1"),
            ("stt", "somewhere", "somewhere#2"),
            ("tts", "somewhere", "somewhere#1"),
        ]

    def test_engines_that_run_here_are_known_apart_and_forgotten_with_them(self):
        async def main():
            one, other = Engine(), Engine()
            assert guard(one, OPTIONS) is guard(one, OPTIONS)
            assert guard(one, OPTIONS) is not guard(other, OPTIONS)
            del one
            gc.collect()
            return len(guards())

        assert run_simulated(main()) == 1

    def test_each_event_loop_knows_its_own(self):
        async def main():
            guard(Remote(), OPTIONS).enter().failed(AuthError("no"))
            return guard(Remote(), OPTIONS).breaker.state

        assert run_simulated(main()) == "open"

        async def after():
            return guards(), guard(Remote(), OPTIONS).breaker.state

        assert run_simulated(after()) == ((), "closed")

    def test_no_more_accounts_than_so_many_are_kept_in_mind(self):
        """Keys that come with users: those that are well and not in use are forgotten, the sick and the busy are not."""

        async def main():
            guard(Remote("sick"), OPTIONS).enter().failed(AuthError("no"))
            call = guard(Remote("busy"), OPTIONS).enter()
            for number in range(3 * MOST_GUARDS):
                guard(Remote(f"user {number}"), OPTIONS)
                assert len(guards()) <= MOST_GUARDS
            call.close()
            return {one.account for one in guards()}

        known = run_simulated(main())
        assert {"sick", "busy", f"user {3 * MOST_GUARDS - 1}"} <= known

    def test_nor_when_all_of_them_are_sick(self):
        """Wrong keys that come with users: the oldest are forgotten, those in use never."""

        async def main():
            call = guard(Remote("busy"), OPTIONS).enter()
            for number in range(3 * MOST_GUARDS):
                with suppress(AuthError), guard(Remote(f"user {number}"), OPTIONS).enter():
                    raise AuthError("no")
                assert len(guards()) <= MOST_GUARDS
            call.close()
            return {one.account: one.breaker.state for one in guards()}

        known = run_simulated(main())
        assert known["busy"] == "closed"
        assert known[f"user {3 * MOST_GUARDS - 1}"] == "open"

    @pytest.mark.parametrize("engine", [Engine(), Remote()], ids=["here", "remote"])
    def test_what_an_event_loop_knew_is_gone_with_it(self, engine):
        """Engines outlive the loops of a program that runs many, one after the other."""

        async def main():
            return weakref.ref(guard(engine, OPTIONS)), weakref.ref(asyncio.get_running_loop())

        kept = [one for _ in range(3) for one in run_simulated(main())]
        gc.collect()
        assert [one() for one in kept] == [None] * 6

    def test_so_many_calls_at_once_and_no_more(self):
        """One more is refused and counted, and says nothing of the provider's health; a place given back is taken again."""

        async def main():
            health = guard(Remote(max_concurrent=2), OPTIONS)
            one, _ = health.enter(), health.enter()
            assert health.enter() is None
            assert not health.admits
            assert health.under_way == 2
            one.close()
            one.close()
            assert health.under_way == 1
            assert health.enter() is not None
            return health.breaker.state, dict(health.counters)

        assert run_simulated(main()) == ("closed", {"calls": 3, "overflow": 1})

    @pytest.mark.parametrize("limits", [(5, 2, None), (2, None, 5), (None, 2, 2)])
    def test_of_several_limits_the_smallest_holds(self, limits):
        async def main():
            return [guard(Remote(max_concurrent=limit), OPTIONS) for limit in limits][-1].max_concurrent

        assert run_simulated(main()) == 2

    def test_its_health_is_told_by_the_call_that_changed_it(self):
        """Opened, tried, well again: each by whose call it was, and nobody else."""

        async def main():
            told, others = [], []
            health = guard(Remote(), ResilienceOptions(open_ms=1_000, probes=1))
            bystander = health.enter(others.append)
            health.enter(told.append).failed(QuotaError("no"))
            assert health.enter(told.append) is None
            await asyncio.sleep(2)
            health.enter(told.append).succeeded()
            bystander.failed(ProtocolError("late"))
            return told, others, health.counters["opened"], health.counters["barred"]

        told, others, opened, barred = run_simulated(main())
        assert told == [
            HealthChanged("stt", "somewhere", "closed", "open"),
            HealthChanged("stt", "somewhere", "open", "half_open"),
            HealthChanged("stt", "somewhere", "half_open", "closed"),
        ]
        assert (others, opened, barred) == ([], 1, 1)

    def test_one_that_answers_at_times_is_used_when_there_is_nobody_else(self):
        async def main():
            health = guard(Remote(), OPTIONS)
            for _ in range(5):
                call = health.enter()
                await asyncio.sleep(2)
                call.succeeded()
            assert health.breaker.state == "open"
            assert health.enter() is None
            with health.enter(anyway=True) as call:
                call.first()
            sick = guard(Remote("sick"), OPTIONS)
            sick.enter().failed(AuthError("no"))
            return sick.enter(anyway=True)

        assert run_simulated(main()) is None


class TestCall:
    def outcome(self, *errors):
        """What calls that end with these errors (None: well) make of a guard."""

        async def main():
            health = guard(Remote(), OPTIONS)
            for error in errors:
                with suppress(BaseException), health.enter():
                    if error is not None:
                        raise error
            assert health.under_way == 0
            return health.breaker.state

        return run_simulated(main())

    def test_tells_by_itself_how_it_was_left(self):
        assert self.outcome(*[ConnectFailedError("no")] * 5) == "open"
        assert self.outcome(*[asyncio.CancelledError()] * 50) == "closed"
        assert self.outcome(*[GeneratorExit()] * 50) == "closed"
        assert self.outcome(*[None] * 5, *[ConnectFailedError("no")] * 4) == "closed"

    def test_a_stream_answers_again_and_again_in_one_place(self):
        """Each answer counts by itself."""

        async def main():
            health = guard(Remote(), OPTIONS)
            call = health.enter()
            call.idle()
            for _ in range(5):
                await asyncio.sleep(30)
                call.asked()
                await asyncio.sleep(1.5)
                call.succeeded()
            state = health.breaker.state
            assert health.under_way == 1
            call.close()
            return state, health.under_way, health.breaker.may_answer

        assert run_simulated(main()) == ("open", 0, True)

    def test_a_stream_that_breaks_between_two_answers_is_a_failure(self):
        async def main():
            health = guard(Remote(), OPTIONS)
            for _ in range(3):
                call = health.enter()
                call.succeeded()
                call.failed(ConnectFailedError("cut"))
                call.close()
            return health.breaker.state

        assert run_simulated(main()) == "open"


def most(low, high):
    return high


class TestRetry:
    @pytest.mark.parametrize(
        ("error", "alone_ms", "with_others_ms"),
        [
            (ConnectFailedError("no"), 100, 100),
            (OverloadedError("no"), 100, 100),
            (ProviderTimeoutError("no"), 100, None),
            (RateLimitError("no"), 100, None),
            (RateLimitError("no", retry_after_ms=500), pytest.approx(550), None),
            (RateLimitError("no", retry_after_ms=2_001), None, None),
            (AuthError("no"), None, None),
            (QuotaError("no"), None, None),
            (InvalidRequestError("no"), None, None),
            (ProtocolError("no"), None, None),
            (ProviderError("no"), None, None),
            (ValueError("no"), None, None),
        ],
    )
    def test_only_where_it_may_help(self, error, alone_ms, with_others_ms):
        """Never what was refused; with others to ask nobody waits for one that is slow or full."""
        assert retry_delay_ms(error, 1, OPTIONS, jitter=most) == alone_ms
        assert retry_delay_ms(error, 1, OPTIONS, others=True, jitter=most) == with_others_ms

    def test_so_often_and_no_more_with_doubling_waits(self):
        options = ResilienceOptions(retries=5, retry_base_ms=300)
        waits = [retry_delay_ms(ConnectFailedError("no"), tries, options, jitter=most) for tries in range(1, 8)]
        assert waits == [300, 600, 1_200, 2_000, 2_000, None, None]
        assert retry_delay_ms(ConnectFailedError("no"), 1, ResilienceOptions(retries=0)) is None

    def test_the_wait_is_random(self):
        waits = {retry_delay_ms(ConnectFailedError("no"), 1, OPTIONS) for _ in range(50)}
        assert len(waits) > 40
        assert all(0 <= wait <= 100 for wait in waits)

    def test_the_wait_a_rate_limit_asks_for_is_one_after_which_it_is_let_in(self):
        async def main():
            health = guard(Remote(), OPTIONS)
            error = RateLimitError("no", retry_after_ms=400)
            health.enter().failed(error)
            await asyncio.sleep(retry_delay_ms(error, 1, OPTIONS) / 1_000)
            return health.enter() is not None

        assert all(run_simulated(main()) for _ in range(50))


class TestErrors:
    def test_an_error_of_ours_is_told_as_it_is(self):
        error = AuthError("no")
        assert provider_error(error, "stt", "x") is error

    def test_another_is_wrapped_with_its_cause(self):
        cause = KeyError("text")
        error = provider_error(cause, "stt", "x")
        assert (type(error), error.provider, error.kind, error.__cause__) == (ProtocolError, "x", "stt", cause)

    def test_a_window_that_could_never_open_the_breaker_is_refused(self):
        with pytest.raises(OptionError, match="window at least as large"):
            build(ResilienceOptions, {"window": 3, "minimum_calls": 5}, "[resilience]")
