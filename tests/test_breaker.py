"""The circuit breaker: its table, move by move, and what holds whatever happens in whatever order."""

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from beluga_voice.breaker import LONGEST_OPEN_MS, Breaker
from beluga_voice.errors import AuthError, InvalidRequestError, ProtocolError, ProviderTimeoutError, QuotaError, RateLimitError

BROKEN = ProtocolError("garbage")
OPEN_MS, PROBE_MS = 10_000.0, 5_000.0


class HandClock:
    """Time as the test says."""

    def __init__(self):
        self.at_ms = 1_000.0

    def now_ms(self):
        return self.at_ms


class Bench:
    """A breaker without jitter, its clock, and the moves it made."""

    def __init__(self, **options):
        self.clock, self.moves = HandClock(), []
        self.breaker = Breaker(clock=self.clock, jitter=lambda low, high: low, **options)

    def enter(self):
        return self.breaker.enter(lambda old, new: self.moves.append((old, new)))

    def call(self, outcome):
        """One call: "ok", "slow" or an error; False when it was not let in."""
        attempt = self.enter()
        if attempt is None:
            return False
        if outcome == "slow":
            self.clock.at_ms += self.breaker.slow_ms + 1
        if isinstance(outcome, Exception):
            attempt.failed(outcome)
        else:
            attempt.succeeded()
        return True

    def calls(self, *outcomes):
        for outcome in outcomes:
            assert self.call(outcome)
        return self

    def to(self, state):
        """Bring it to a state, the short way."""
        if state != "closed":
            self.calls(AuthError("no"))
        if state == "half_open":
            self.clock.at_ms += OPEN_MS
            self.enter().left()
        assert self.breaker.state == state
        self.moves.clear()
        return self


# state, what happens, the state after it, whether a call is let in then
TABLE = [
    ("closed", ["ok"] * 30, "closed"),
    ("closed", [BROKEN] * 4, "closed"),  # fewer than minimum_calls say nothing
    ("closed", [BROKEN] * 5, "open"),
    ("closed", ["ok"] * 5 + [BROKEN] * 4, "closed"),
    ("closed", ["ok"] * 5 + [BROKEN] * 5, "open"),  # half of them
    ("closed", ["ok"] * 20 + [BROKEN] * 9, "closed"),  # the window holds 20
    ("closed", ["ok"] * 20 + [BROKEN] * 10, "open"),
    ("closed", ["ok"] * 5 + [BROKEN] * 4 + ["ok"] * 20 + [BROKEN] * 9, "closed"),  # what left the window is forgotten
    ("closed", ["slow"] * 4, "closed"),
    ("closed", ["slow"] * 5, "open"),
    ("closed", ["ok"] + ["slow"] * 3, "closed"),
    ("closed", ["ok"] + ["slow"] * 4, "open"),  # four fifths
    ("closed", ["ok"] * 2 + ["slow"] * 4, "closed"),
    ("closed", [AuthError("no")], "open"),
    ("closed", [QuotaError("no")], "open"),
    ("closed", [RateLimitError("no", retry_after_ms=700)], "open"),
    ("closed", [RateLimitError("no")], "closed"),  # does not say how long
    ("closed", [InvalidRequestError("no")], "closed"),
    ("closed", [ProviderTimeoutError("no")] * 5, "open"),
    ("half_open", ["ok"], "half_open"),
    ("half_open", ["ok", "ok"], "closed"),
    ("half_open", [BROKEN], "open"),
    ("half_open", ["ok", BROKEN], "open"),
    ("half_open", ["slow"], "open"),
    ("half_open", ["ok", "ok"] + [BROKEN] * 4, "closed"),  # a fresh window
    ("half_open", [RateLimitError("no", retry_after_ms=700)], "open"),
]


@pytest.mark.parametrize(("state", "outcomes", "after"), TABLE)
def test_the_table(state, outcomes, after):
    """Each move of the table, and no other."""
    bench = Bench().to(state).calls(*outcomes)
    assert bench.breaker.state == after
    assert (bench.breaker.wait_ms == 0.0) == (after != "open")
    if after == "open":
        assert bench.enter() is None
    assert bench.moves == ([] if after == state else [(state, after)])


class TestOpen:
    def test_it_is_left_alone_for_its_time_then_tried(self):
        bench = Bench().to("open")
        assert bench.breaker.wait_ms == OPEN_MS
        bench.clock.at_ms += OPEN_MS - 2
        assert bench.enter() is None
        bench.clock.at_ms += 2
        assert bench.enter() is not None
        assert bench.breaker.state == "half_open"

    def test_each_failed_probe_doubles_it_up_to_a_minute(self):
        bench, waits = Bench().to("open"), []
        for _ in range(5):
            waits.append(bench.breaker.wait_ms)
            bench.clock.at_ms += bench.breaker.wait_ms
            bench.calls(BROKEN)
        assert waits == [10_000, 20_000, 40_000, LONGEST_OPEN_MS, LONGEST_OPEN_MS]

    def test_once_well_it_begins_with_the_short_wait_again(self):
        bench = Bench().to("half_open").calls(BROKEN)
        bench.clock.at_ms += bench.breaker.wait_ms
        bench.calls("ok", "ok", AuthError("no"))
        assert bench.breaker.wait_ms == OPEN_MS

    @pytest.mark.parametrize(("told_ms", "wait_ms"), [(0, 0), (700, 700), (10**9, LONGEST_OPEN_MS), (-5, 0)])
    def test_a_rate_limit_says_how_long_within_reason(self, told_ms, wait_ms):
        bench = Bench().calls(RateLimitError("no", retry_after_ms=told_ms))
        assert bench.breaker.wait_ms == wait_ms

    def test_jitter_adds_up_to_a_tenth(self):
        """Processes that saw the same outage do not come back in the same moment."""
        waits = set()
        for _ in range(50):
            bench = Bench()
            bench.breaker = Breaker(clock=bench.clock)
            waits.add(bench.to("open").breaker.wait_ms)
        assert len(waits) > 40
        assert all(OPEN_MS <= wait <= OPEN_MS * 1.1 for wait in waits)

    @pytest.mark.parametrize(
        ("outcomes", "may"),
        [
            (["slow"] * 5, True),
            (["ok"] * 2 + [BROKEN] * 3, True),
            ([BROKEN] * 5, False),
            (["ok"] * 5, True),
            (["ok"] * 5 + [AuthError("no")], False),
            (["ok"] * 5 + [RateLimitError("no", retry_after_ms=700)], False),
        ],
    )
    def test_it_tells_whether_there_is_hope(self, outcomes, may):
        """Some calls were answered: better than nothing, for who has nobody else."""
        assert Bench().calls(*outcomes).breaker.may_answer is may

    def test_there_is_hope_until_so_many_in_a_row_have_failed(self):
        """Those made aside tell, too; they change no state."""
        bench = Bench().calls(*["slow"] * 5)
        for _ in range(4):
            bench.breaker.aside().failed(BROKEN)
        assert bench.breaker.may_answer
        bench.breaker.aside().failed(BROKEN)
        assert not bench.breaker.may_answer
        bench.breaker.aside().succeeded()
        assert bench.breaker.may_answer
        assert bench.breaker.state == "open"
        assert bench.breaker.wait_ms == OPEN_MS


class TestProbes:
    def test_no_more_than_so_many_at_once(self):
        bench = Bench().to("half_open")
        first, second = bench.enter(), bench.enter()
        assert bench.enter() is None
        first.left()
        third = bench.enter()
        assert bench.enter() is None
        second.succeeded()
        assert bench.enter() is None  # one is good, one is under way: that will do
        third.succeeded()
        assert bench.breaker.state == "closed"

    def test_one_that_hangs_counts_as_failed(self):
        """Nobody has to come back to tell."""
        bench = Bench().to("half_open")
        hung = bench.enter()
        bench.clock.at_ms += PROBE_MS - 1
        assert bench.breaker.state == "half_open"
        bench.clock.at_ms += 1
        assert bench.breaker.state == "open"
        assert bench.breaker.wait_ms == 2 * OPEN_MS
        assert bench.moves == [("half_open", "open")]
        hung.succeeded()
        assert bench.breaker.state == "open"

    def test_one_that_was_not_asked_yet_only_gives_up_its_place(self):
        """A caller speaks for longer than a probe may last: that is not the provider's fault."""
        bench = Bench(probes=1).to("half_open")
        idle = bench.enter()
        idle.idle()
        assert bench.enter() is None
        bench.clock.at_ms += PROBE_MS
        assert bench.breaker.state == "half_open"
        assert bench.enter() is not None
        idle.failed(BROKEN)
        assert bench.breaker.state == "half_open"

    def test_asked_it_has_all_its_time_again(self):
        bench = Bench(probes=1).to("half_open")
        probe = bench.enter()
        probe.idle()
        bench.clock.at_ms += PROBE_MS - 1
        probe.asked()
        bench.clock.at_ms += PROBE_MS - 1
        assert bench.breaker.state == "half_open"
        bench.clock.at_ms += 1
        assert bench.breaker.state == "open"

    def test_those_of_an_earlier_try_take_no_place(self):
        """Opened for a moment only: the probe that still hangs is nobody's concern."""
        bench = Bench().to("half_open")
        hung = bench.enter()
        bench.calls(RateLimitError("no", retry_after_ms=100))
        bench.clock.at_ms += 100
        assert bench.enter() is not None
        assert bench.enter() is not None
        hung.failed(BROKEN)
        assert bench.breaker.state == "half_open"

    def test_who_waits_is_told_when_the_next_place_is_free(self):
        bench = Bench(probes=1).to("half_open")
        bench.enter()
        bench.clock.at_ms += 1_000
        assert bench.breaker.wait_ms == PROBE_MS - 1_000


class TestOutcomes:
    def test_only_the_first_counts(self):
        bench = Bench(minimum_calls=2, window=2)
        attempt = bench.enter()
        for _ in range(5):
            attempt.failed(BROKEN)
        attempt.left()
        assert bench.breaker.state == "closed"

    def test_a_call_given_up_counts_neither_way(self):
        bench = Bench()
        for _ in range(50):
            bench.enter().left()
        bench.calls(*[BROKEN] * 4)
        assert bench.breaker.state == "closed"

    def test_what_began_before_it_opened_is_late(self):
        """Neither a failure nor a success of an old call moves a breaker that has opened since."""
        bench = Bench()
        old = [bench.enter() for _ in range(10)]
        bench.calls(AuthError("no"))
        bench.clock.at_ms += OPEN_MS
        bench.enter().left()
        for attempt in old[:5]:
            attempt.failed(BROKEN)
        for attempt in old[5:]:
            attempt.succeeded()
        assert bench.breaker.state == "half_open"

    @pytest.mark.parametrize(("first_ms", "after"), [(999, "closed"), (1_001, "open")])
    def test_slow_is_when_the_answer_begins_late(self, first_ms, after):
        """However long it then goes on."""
        bench = Bench()
        for _ in range(5):
            attempt = bench.enter()
            bench.clock.at_ms += first_ms
            attempt.first()
            bench.clock.at_ms += 20_000
            attempt.first()
            attempt.succeeded()
        assert bench.breaker.state == after

    def test_time_in_which_nothing_is_owed_is_not_slow(self):
        bench = Bench()
        for _ in range(10):
            attempt = bench.enter()
            attempt.idle()
            bench.clock.at_ms += 4_000
            attempt.asked()
            bench.clock.at_ms += 500
            attempt.succeeded()
        assert bench.breaker.state == "closed"

    def test_nothing_is_slow_where_slowness_is_no_matter(self):
        bench = Bench(slow_ms=math.inf).calls("ok")
        attempt = bench.enter()
        bench.clock.at_ms += 10**9
        attempt.succeeded()
        assert bench.breaker.state == "closed"


ERRORS = [BROKEN, AuthError("no"), QuotaError("no"), RateLimitError("no", retry_after_ms=300), ProviderTimeoutError("no")]


class Anything(RuleBasedStateMachine):
    """Calls begin, end, hang, are given up and tell again, in any order, at any time."""

    @initialize(probes=st.integers(1, 3), minimum=st.integers(1, 5))
    def begin(self, probes, minimum):
        self.probes = probes
        self.bench = Bench(probes=probes, minimum_calls=minimum, window=minimum + 3)
        self.under_way, self.late, self.half_open = [], [], []
        self.good = 0

    @rule()
    def call(self):
        before = self.bench.breaker.state
        could = self.bench.breaker.wait_ms < 1.0
        attempt = self.bench.enter()
        assert (attempt is not None) == could
        if attempt is not None:
            self.under_way.append(attempt)
            if self.bench.breaker.state == "half_open":
                self.half_open = [*(self.half_open if before == "half_open" else []), attempt]

    def take(self, data):
        return self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), how=st.sampled_from(["ok", "left", "idle", "asked", *ERRORS]))
    def outcome(self, data, how):
        attempt = self.take(data)
        if how in ("idle", "asked"):
            getattr(attempt, how)()
            self.under_way.append(attempt)
            return
        before, counts = self.bench.breaker.state, attempt.period == self.bench.breaker._period and not attempt.over
        if isinstance(how, Exception):
            attempt.failed(how)
        elif how == "ok":
            attempt.succeeded()
        else:
            attempt.left()
        after = self.bench.breaker.state
        self.late.append(attempt)
        if not counts or how == "left":
            assert after == before
        elif before == "half_open" and isinstance(how, Exception):
            assert after == "open"

    @precondition(lambda self: self.late)
    @rule(data=st.data(), good=st.booleans())
    def told_again(self, data, good):
        """What is told a second time changes nothing."""
        attempt = data.draw(st.sampled_from(self.late))
        before = self.bench.breaker.state, self.bench.breaker.wait_ms
        attempt.succeeded() if good else attempt.failed(AuthError("no"))
        assert (self.bench.breaker.state, self.bench.breaker.wait_ms) == before

    @rule(by_ms=st.sampled_from([1, 500, 1_500, 4_999, 5_000, 10_000, 70_000]))
    def time_passes(self, by_ms):
        self.bench.clock.at_ms += by_ms

    @invariant()
    def never_more_probes_than_allowed(self):
        if self.bench.breaker.state == "half_open":
            now_ms = self.bench.clock.at_ms
            assert sum(not one.over and one.until_ms > now_ms for one in self.half_open) <= self.probes

    @invariant()
    def moves_follow_the_table(self):
        legal = {("closed", "open"), ("open", "half_open"), ("half_open", "open"), ("half_open", "closed")}
        assert set(self.bench.moves) <= legal
        assert all(before[1] == after[0] for before, after in zip(self.bench.moves, self.bench.moves[1:]))

    def teardown(self):
        """Never stuck: whatever was left hanging, a provider that is well again is used again."""
        if not hasattr(self, "bench"):
            return
        assert self.bench.breaker.wait_ms <= LONGEST_OPEN_MS
        for _ in range(self.probes + 2):
            self.bench.clock.at_ms += LONGEST_OPEN_MS
            self.bench.call("ok")
        assert self.bench.breaker.state == "closed"


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
