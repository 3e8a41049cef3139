import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.monitor.domain.statistics import (
    AbsoluteRate,
    EpochPlan,
    LatencyEvidence,
    RateEProcess,
    anytime_p_value,
    bin_index,
    histogram_quantile,
    log_threshold,
    quantile_interval,
    requests_needed,
    requests_needed_for_mean,
)
from services.monitor.domain.statistics.quantiles import edge_log_e


def histogram(values):
    bins, counts = np.unique([bin_index(float(x)) for x in values], return_counts=True)
    return dict(zip(bins.tolist(), counts.tolist(), strict=True))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=60), st.floats(0.0, 1.0))
def test_quantile_is_within_one_percent_of_the_order_statistic(values, p):
    rank = max(1, math.ceil(p * len(values)))
    assert histogram_quantile(histogram(values), p) == pytest.approx(sorted(values)[rank - 1], rel=0.011)


def test_quantile_of_nothing():
    assert histogram_quantile({}, 0.5) is None
    assert quantile_interval({3: 0}, 0.5) is None
    with pytest.raises(ValueError, match="p must"):
        histogram_quantile({1: 1}, 1.5)
    with pytest.raises(ValueError, match="within"):
        quantile_interval({1: 1}, 1.0)


def test_quantile_intervals_cover_at_every_look():
    rng, missed = np.random.default_rng(21), {0.5: 0, 0.95: 0}
    truth = {0.5: 1.0, 0.95: math.exp(0.5 * 1.6448536)}
    for _ in range(60):
        bins = [bin_index(x) for x in rng.lognormal(0.0, 0.5, 2000)]
        for p in missed:
            merged: dict[int, int] = {}
            bad = False
            for look, index in enumerate(bins, 1):
                merged[index] = merged.get(index, 0) + 1
                if look % 250 == 0:
                    interval = quantile_interval(merged, p, 0.05)
                    upper = math.inf if interval.upper is None else interval.upper
                    bad |= not interval.lower <= truth[p] <= upper
            missed[p] += bad
    assert max(missed.values()) <= 6


def test_quantile_interval_narrows_around_the_estimate():
    values = np.random.default_rng(3).lognormal(0.0, 0.5, 20_000)
    wide, narrow = (quantile_interval(histogram(values[:n]), 0.95) for n in (500, 20_000))
    assert wide.lower <= narrow.lower < narrow.estimate < narrow.upper <= wide.upper
    assert narrow.upper / narrow.lower < 1.15
    few = quantile_interval({10: 3}, 0.95)
    assert few.lower == 0.0
    assert few.upper is None


def test_edge_evidence_is_a_fair_bet():
    """Sum over all k of Binomial(n, p) times E is exactly 1."""
    n, p = 12, 0.3
    total = sum(
        math.comb(n, k) * p**k * (1 - p) ** (n - k) * math.exp(edge_log_e(k, n, p)) for k in range(n + 1)
    )
    assert total == pytest.approx(1.0, rel=1e-9)


@given(st.integers(1, 40 * 86_400))
def test_epochs_tile_the_test_and_share_the_level(duration):
    plan = EpochPlan(duration)
    assert 1 <= plan.count <= 24
    assert plan.count == 1 or plan.length_seconds >= 600
    assert sum(plan.weight(e) for e in range(plan.count)) == pytest.approx(1.0)
    assert plan.index(0) == 0
    assert plan.index(duration + 10**6) == plan.count - 1
    assert plan.index(duration - 1) == plan.count - 1
    for epoch in range(plan.count):
        assert plan.index(plan.start(epoch)) == epoch
        assert plan.tick(plan.start(epoch)) == 0
    assert plan.steps * 5 >= plan.length_seconds


def test_epochs_of_a_day_an_hour_and_five_minutes():
    day = EpochPlan(86_400)
    assert (day.count, day.length_seconds, day.steps) == (24, 3600, 720)
    assert day.weight(0) == 0.5
    assert day.weight(23) == pytest.approx(0.5 / 23)
    hour = EpochPlan(3600)
    assert (hour.count, hour.length_seconds) == (6, 600)
    short = EpochPlan(300)
    assert (short.count, short.weight(0), short.steps) == (1, 1.0, 60)
    with pytest.raises(ValueError, match="duration"):
        EpochPlan(0)
    with pytest.raises(ValueError, match="epoch index"):
        hour.weight(6)


def test_levels():
    assert log_threshold(0.01, 6, 0.5) == pytest.approx(math.log(1200))
    assert anytime_p_value(math.log(1200)) == pytest.approx(1 / 1200)
    assert anytime_p_value(-3.0) == 1.0
    assert anytime_p_value(math.inf) == 0.0
    for wrong in ((0.0, 1, 1.0), (0.05, 0, 1.0), (0.05, 1, 0.0)):
        with pytest.raises(ValueError, match="alpha"):
            log_threshold(*wrong)


def test_requests_needed_foretells_about_the_right_number():
    process, goal = RateEProcess(steps=720), math.log(1200)
    for tick in range(10):
        process.update(tick, [(0.1, 1, 1)])
    foretold = requests_needed(process, 10 * 100, goal)
    more = 0
    while process.log_e() < goal:
        process.update(10 + more // 100, [(0.1, 1, 1)])
        more += 100
    assert more / 2 <= foretold <= more * 2
    assert requests_needed(process, 1000 + more, goal) == 0


def test_requests_needed_says_none_when_nothing_grows():
    process = RateEProcess(steps=720)
    assert requests_needed(process, 0, 5.0) is None
    for tick in range(10):
        process.update(tick, [(0.1, 9, 1)])
    assert requests_needed(process, 1000, 5.0) is None
    assert requests_needed(LatencyEvidence(), 1000, 5.0) is None
    assert requests_needed(AbsoluteRate(0.05), 1000, 5.0) is None


def test_requests_needed_for_mean():
    n = requests_needed_for_mean(0.1, 0.01, 0.0, 1000, math.log(20))
    assert 3000 < n < 20_000
    assert requests_needed_for_mean(0.1, 0.01 * 1000 / (1000 + n), 0.0, 1000 + n, math.log(20)) == 0
    assert requests_needed_for_mean(-0.1, 0.01, 0.0, 1000, math.log(20)) is None
    assert requests_needed_for_mean(0.1, 0.0, 0.0, 1000, math.log(20)) is None
    assert requests_needed_for_mean(1e-9, 0.01, 0.0, 10, math.log(20)) is None
