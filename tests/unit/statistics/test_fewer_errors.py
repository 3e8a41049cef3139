"""Errors as the primary metric: what counts when, and that the interval says what the e-process does."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.monitor.domain.statistics import Arrivals, FewerErrors, RateEProcess
from services.monitor.domain.statistics.rate import NON_INFERIORITY_FACTORS
from tests.unit.statistics.strategies import counts, rate_rows, ticks_of

NOTHING = Arrivals()
GOAL = math.log(20)


def of(rows: list[tuple[float, int, int]]) -> FewerErrors:
    found = FewerErrors()
    found.update(0, rows, NOTHING)
    return found


def test_a_canary_without_errors_is_shown_by_those_of_control():
    """Half of the mass is on this test, and 5 % fewer are asked for."""
    for share, too_few in ((0.5, 8), (0.1, 51)):
        enough = [of([(share, errors, 0)]).process(0.95).log_e() >= math.log(40) for errors in (too_few, too_few + 1)]
        assert enough == [False, True], share
    assert of([(0.5, 0, 0)]).process(0.95).log_e() == pytest.approx(0.0, abs=1e-12)


def test_the_interval_inverts_the_process_also_without_errors_of_b():
    for rows in ([(0.5, 40, 0)], [(0.1, 90, 2)], [(0.5, 60, 30), (0.2, 30, 2)]):
        found = of(rows)
        low, high = found.interval(0.05)
        assert high is not None
        assert low <= found.ratio() <= high
        assert found.process(high).log_e() == pytest.approx(math.log(40), abs=0.05)
        assert found.process(high * 1.02).log_e() > math.log(40)
    assert of([(0.5, 40, 0)]).interval(0.05)[0] == 0.0
    assert of([(0.5, 0, 0)]).interval(0.05) == (0.0, None)
    assert of([(0.5, 0, 3)]).ratio() is None


def test_shares_are_strata():
    """B fails half as often at either share; pooled over them it would seem to fail more often."""
    rows = [(0.1, 900, 50), (0.5, 10, 5)]
    assert of(rows).ratio() == pytest.approx(0.5)
    assert of([*rows, (0.0, 70, 0), (1.0, 0, 9)]).ratio() == pytest.approx(0.5)


def test_errors_of_a_wait_while_those_of_b_may_still_come():
    found = FewerErrors()
    found.update(0, [(0.5, 30, 0)], Arrivals(admitted=100, finished=60))
    assert found.totals == (0, 0)
    found.update(59, [(0.5, 0, 2)], Arrivals(admitted=10, finished=10))
    assert found.totals == (0, 2)
    found.update(60, [(0.5, 1, 0)], Arrivals(admitted=10, finished=10))
    assert found.totals == (30, 2)
    found.update(61, [], Arrivals(finished=40))
    assert found.totals == (31, 2), "nothing of B is in flight"
    found.update(62, [], Arrivals(overdue=5))
    assert found.totals == (31, 7), "what is overdue counts as failed"
    found.update(63, [], Arrivals(overdue=-5))
    assert found.totals == (31, 2)


def test_a_canary_that_fails_as_often_but_later_is_not_shown_to_be_better():
    """A refuses at once, B hangs for 55 s first: every second of ten minutes, 30 times."""
    rng, wrong, naive = np.random.default_rng(3), 0, 0
    for _ in range(30):
        late, at_once, evidence, plain = [], 0.0, FewerErrors(), RateEProcess.non_inferiority(0.95)
        for tick in range(600):
            of_a, of_b = (int(x) for x in rng.poisson(0.5, 2))
            late.append(of_b)
            came = late[tick - 55] if tick >= 55 else 0
            evidence.update(tick, [(0.5, of_a, came)], Arrivals(admitted=20, finished=20 - of_b + came))
            plain.update(tick, [(0.5, of_a, came)])
            at_once = max(at_once, plain.log_e())
            wrong += evidence.process(0.95).log_e() >= GOAL
        naive += at_once >= GOAL
    assert wrong == 0
    assert naive == 30, "without waiting, every one of them"


@settings(max_examples=60, deadline=None)
@given(ticks_of(rate_rows), st.data())
def test_it_is_restorable_finite_and_of_no_order(stream, data):
    straight, broken, other = FewerErrors(), FewerErrors(), FewerErrors()
    cut = data.draw(st.integers(0, len(stream)))
    for position, (tick, rows) in enumerate(stream):
        if position == cut:
            broken = FewerErrors.from_dict(json.loads(json.dumps(broken.to_dict())))
        more = Arrivals(admitted=3, finished=data.draw(st.integers(0, 6)), overdue=data.draw(st.integers(-2, 9)))
        straight.update(tick, rows, more)
        broken.update(tick, rows, more)
        other.update(tick, data.draw(st.permutations(rows)), more)
        assert math.isfinite(straight.process(0.95).log_e())
        low, high = straight.interval(0.05)
        assert 0.0 <= low <= (high if high is not None else math.inf)
    assert broken.to_dict() == straight.to_dict() == other.to_dict()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.01, 0.1, 0.5, 0.9]), counts, counts), max_size=4), st.data())
def test_whole_ticks_in_any_order_say_the_same(rows, data):
    """Nothing is in flight here, so what counts is the sum."""
    forwards, shuffled = FewerErrors(), FewerErrors()
    for tick, (mine, theirs) in enumerate(zip(rows, data.draw(st.permutations(rows)), strict=True)):
        forwards.update(tick, [mine], NOTHING)
        shuffled.update(tick, [theirs], NOTHING)
    assert forwards.events == shuffled.events
    assert forwards.process(0.95).log_e() == shuffled.process(0.95).log_e()


@settings(max_examples=100, deadline=None)
@given(st.floats(0.01, 0.99), st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0.05, 1.0), st.integers(1, 10**5))
def test_more_errors_of_b_never_help_and_more_of_a_never_harm(pi, of_a, of_b, ratio, more):
    def log_e(a: int, b: int) -> float:
        return of([(pi, a, b)]).process(ratio).log_e()

    assert log_e(of_a, of_b + more) <= log_e(of_a, of_b) + 1e-9
    assert log_e(of_a + more, of_b) >= log_e(of_a, of_b) - 1e-9


@settings(max_examples=60, deadline=None)
@given(st.floats(0.01, 0.99), st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0.05, 1.0))
def test_swapped_arms_mirror_the_evidence(pi, of_a, of_b, ratio):
    """That B fails less than r times as often as A is that A fails more than 1/r times as often as B."""
    mirrored = RateEProcess(1.0 / ratio, [1.0 / factor for factor in NON_INFERIORITY_FACTORS], w0=1.0)
    mirrored.update(0, [(1.0 - pi, of_b, of_a)])
    assert of([(pi, of_a, of_b)]).process(ratio).log_e() == pytest.approx(mirrored.log_e(), rel=1e-6, abs=1e-6)
