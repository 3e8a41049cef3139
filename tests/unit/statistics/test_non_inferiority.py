import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.monitor.domain.statistics import Arrivals, ErrorNonInferiority, RateEProcess, requests_needed
from services.monitor.domain.statistics.non_inferiority import (
    LAG_SECONDS,
    NEGLIGIBLE_WEIGHT,
    RATE_WEIGHT,
    NegligibleRate,
)
from services.monitor.domain.statistics.rate import NON_INFERIORITY_FACTORS

LIMIT = math.log(20)


def arrived(units, failed=0, **others):
    return Arrivals(units, failed, **{"admitted": units, "finished": units} | others)


def clean(p0, units):
    rate = NegligibleRate(p0)
    rate.update(0, arrived(units))
    return rate


@settings(max_examples=60, deadline=None)
@given(p0=st.floats(1e-5, 0.5), excess=st.floats(1.0, 2.0), before=st.integers(0, 5000), bad=st.integers(0, 20))
def test_each_unit_is_a_fair_or_losing_bet_above_the_negligible_rate(p0, excess, before, bad):
    """E[E after | E before] <= E before for every true rate from p0 on: enumerated, not sampled."""
    p = min(1.0, p0 * excess)

    def log_e(more, failed):
        rate = NegligibleRate(p0)
        rate.update(0, arrived(before + bad + more, bad + failed))
        return rate.log_e()

    now = log_e(0, 0)
    expected = p * math.exp(log_e(1, 1) - now) + (1.0 - p) * math.exp(log_e(1, 0) - now)
    assert expected <= 1.0 + 1e-9


def test_both_parts_are_those_of_the_formula():
    both = ErrorNonInferiority(1.5, 0.001)
    rate = RateEProcess.non_inferiority(1.5)
    f = np.array(NON_INFERIORITY_FACTORS)
    units = failed = 0
    for tick, (a, b, new) in enumerate([(0, 0, 800), (1, 0, 700), (2, 1, 900), (0, 2, 5000)]):
        both.update(tick, [(0.5, a, b)], arrived(new, b))
        rate.update(tick, [(0.5, a, b)])
        units, failed = units + new, failed + b
        ok = units - failed
        own = (f**failed * ((1 - f * 0.001) / 0.999) ** ok).mean() / 2 + (0.999**-ok / 2 if not failed else 0.0)
        expected = RATE_WEIGHT * math.exp(rate.log_e()) + NEGLIGIBLE_WEIGHT * own
        assert both.log_e() == pytest.approx(math.log(expected), rel=1e-9, abs=1e-12)
    assert RATE_WEIGHT + NEGLIGIBLE_WEIGHT == 1.0


def test_without_a_negligible_rate_it_is_the_comparison_alone_bit_for_bit():
    plain, rate = ErrorNonInferiority(1.5), RateEProcess.non_inferiority(1.5)
    for tick in range(50):
        plain.update(tick, [(0.3, tick % 3, tick % 2)], arrived(100, tick % 2))
        rate.update(tick, [(0.3, tick % 3, tick % 2)])
    assert (plain.log_e(), plain.to_dict()) == (rate.log_e(), rate.to_dict())
    assert plain.clean_units_needed(LIMIT) is None
    assert not plain.by_negligible


@pytest.mark.parametrize(("percent", "units"), [(1, 531), (0.5, 1064), (0.1, 5329)])
def test_so_many_units_without_an_error_show_a_negligible_rate(percent, units):
    """The table of docs/statistics.md."""
    both = ErrorNonInferiority(1.5, percent / 100)
    assert both.clean_units_needed(LIMIT) == units
    both.update(0, [(0.5, 0, 0)], arrived(units - 1))
    assert both.log_e() < LIMIT
    assert both.clean_units_needed(LIMIT) == 1
    assert requests_needed(both, 2 * units, LIMIT) == pytest.approx(2, abs=2)
    both.update(1, [(0.5, 0, 0)], arrived(1))
    assert both.log_e() >= LIMIT
    assert both.by_negligible
    assert both.clean_units_needed(LIMIT) == 0


def test_what_is_in_flight_counts_only_once_it_has_had_its_time():
    rate = NegligibleRate(0.01)
    rate.update(0, arrived(500, finished=490))
    assert rate.units == 0
    rate.update(LAG_SECONDS - 1, arrived(100, finished=95))
    assert rate.units == 0
    rate.update(LAG_SECONDS, arrived(100, finished=100))
    assert rate.units == 500
    rate.update(LAG_SECONDS + 1, arrived(0, finished=15))
    assert rate.units == 700


def test_a_canary_that_hangs_is_not_free_of_errors():
    rate = NegligibleRate(0.01)
    for tick in range(600):
        rate.update(tick, arrived(10, finished=0, overdue=10 if tick >= 300 else 0))
        assert rate.log_e() <= 0.0
    assert rate.failed == 3000
    slow = NegligibleRate(0.01)
    for tick in range(600):
        slow.update(tick, arrived(10, failed=int(tick > 50), finished=10 if tick > 50 else 8))
        assert slow.log_e() <= 1.0


def test_cancelled_requests_and_the_callers_own_errors_say_nothing():
    rate = NegligibleRate(0.01)
    rate.update(0, arrived(1000, void=1000))
    assert (rate.units, rate.log_e()) == (0, 0.0)
    rate.update(1, arrived(1000))
    assert rate.units == 1000
    rate.update(2, arrived(0, failed=3, admitted=4000, finished=4000))
    assert (rate.units, rate.failed) == (1666, 3)


counts = st.integers(0, 500)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(counts, counts, counts, counts, counts, st.integers(-50, 50)), max_size=12), st.integers(0, 12))
def test_never_nan_and_a_checkpoint_continues_bit_identically(ticks, at):
    one, other = ErrorNonInferiority(1.5, 0.001), ErrorNonInferiority(1.5, 0.001)
    for index, numbers in enumerate(ticks):
        if index == at:
            kept = json.loads(json.dumps(other.to_dict(), allow_nan=False))
            other = ErrorNonInferiority(1.5, 0.001)
            other.load(kept)
        for process in (one, other):
            process.update(7 * index, [(0.5, numbers[0], numbers[1])], Arrivals(*numbers))
        assert not math.isnan(one.log_e())
        assert requests_needed(one, 1000, LIMIT) != 0 or one.log_e() >= LIMIT
    assert one.to_dict() == other.to_dict()
    assert one.log_e() == other.log_e()


def test_what_cannot_be_is_refused():
    for limit in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="limit must be a share"):
            NegligibleRate(limit)
    with pytest.raises(ValueError, match="counts must be >= 0"):
        clean(0.1, 5).update(1, Arrivals(units=-1))
    with pytest.raises(ValueError, match="another negligible rate"):
        ErrorNonInferiority(1.5, 0.001).load(ErrorNonInferiority(1.5).to_dict())
    with pytest.raises(ValueError, match="another negligible rate"):
        ErrorNonInferiority(1.5).load(ErrorNonInferiority(1.5, 0.001).to_dict())
