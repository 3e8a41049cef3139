import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.monitor.domain.statistics import (
    P95,
    P99,
    LatencyEvidence,
    MannWhitney,
    TailExceedance,
    bin_index,
    bin_value,
)
from services.monitor.domain.statistics.histogram import ControlHistory, margin_shift
from services.monitor.domain.statistics.latency import WEIGHTS
from services.monitor.domain.statistics.mann_whitney import log_bets, log_ratios


def histogram(values):
    bins, counts = np.unique([bin_index(float(x)) for x in values], return_counts=True)
    return dict(zip(bins.tolist(), counts.tolist(), strict=True))


def feed(process, rng, seconds, slow=1.0, pi=0.2, start=0, tail=0.0):
    for tick in range(start, start + seconds):
        a = rng.lognormal(0.0, 0.5, 16)
        b = rng.lognormal(0.0, 0.5, 4) * slow
        b = np.where(rng.random(4) < tail, b * 10, b)
        process.update(tick, [(pi, histogram(a), histogram(b))])


@given(st.floats(1e-6, 1e9))
def test_a_bin_is_within_one_percent(value):
    assert bin_value(bin_index(value)) == pytest.approx(value, rel=0.011)


@given(st.floats(1e-3, 1e6), st.floats(0.0, 3.0))
def test_a_margin_never_shifts_too_little(value, margin):
    assert bin_index(value * (1.0 + margin)) - margin_shift(margin) <= bin_index(value)


def test_margin_shift_of_nothing_is_nothing():
    assert margin_shift(0.0) == 0
    assert margin_shift(0.02) == 1
    with pytest.raises(ValueError, match="margin"):
        margin_shift(-0.1)
    with pytest.raises(ValueError, match="positive"):
        bin_index(0.0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.dictionaries(st.integers(-50, 80), st.integers(0, 9), max_size=5), max_size=6),
    st.lists(st.integers(-80, 120), max_size=8),
)
def test_history_ranks_equal_a_plain_count(parts, asked):
    history, plain = ControlHistory(), []
    for tick, part in enumerate(parts):
        history.begin(tick)
        history.add(part)
        plain += [index for index, count in part.items() for _ in range(count)]
    history.restart()
    assert history.total == len(plain)
    expected = [2 * sum(x < i for x in plain) + sum(x == i for x in plain) for i in asked]
    assert history.twice_rank(np.array(asked, dtype=np.int64)).tolist() == expected
    for percent in (50, 95, 99):
        if plain:
            cut = history.percentile_bin(percent)
            assert 100 * sum(x <= cut for x in plain) >= percent * len(plain)
            assert 100 * sum(x < cut for x in plain) < percent * len(plain)


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-9, 1.0 - 1e-9), st.floats(1e-4, 0.9999), st.floats(-3, 3))
def test_every_bet_is_fair_over_the_assignment(y, pi, log_centre):
    if_a, if_b = log_bets(log_ratios(np.array([y])) - log_centre, pi)
    assert np.isfinite(if_a).all()
    assert np.isfinite(if_b).all()
    np.testing.assert_allclose((1.0 - pi) * np.exp(if_a) + pi * np.exp(if_b), 1.0, rtol=1e-9)


def test_ratios_grow_with_the_rank_and_have_mean_one():
    y = (np.arange(200_000) + 0.5) / 200_000
    g = log_ratios(y)
    assert (np.diff(g, axis=0) > 0.0).all()
    np.testing.assert_allclose(np.exp(g).mean(axis=0), 1.0, atol=0.06)


def warm(process, control):
    process.update(0, [(0.3, control, {})])
    return process


@pytest.mark.parametrize("make", [
    lambda: MannWhitney(steps=2),
    lambda: TailExceedance(P95, steps=2),
    lambda: TailExceedance(P99, steps=2),
    lambda: LatencyEvidence(steps=2),
])
def test_expectation_is_one_over_all_assignments_of_equal_arms(make):
    """Latencies fixed, even drifting; only the assignment is random: E's mean over all of them is 1."""
    control = dict.fromkeys(range(0, 60, 2), 40)
    latencies = [(1, 3), (1, 70), (2, 58), (6, 20), (6, 90), (7, 90), (11, 59)]
    total = 0.0
    for outcome in product((0, 1), repeat=len(latencies)):
        process, probability = warm(make(), control), 1.0
        for tick in sorted({tick for tick, _ in latencies}):
            hist = ({}, {})
            for (at, index), arm in zip(latencies, outcome, strict=True):
                if at == tick:
                    hist[arm][index] = hist[arm].get(index, 0) + 1
                    probability *= 0.3 if arm else 0.7
            process.update(tick, [(0.3, *hist)])
        total += probability * math.exp(process.log_e())
    assert total == pytest.approx(1.0, rel=1e-9)


def test_a_slower_canary_is_found_and_an_equal_one_is_not():
    slow, equal = LatencyEvidence(steps=720), LatencyEvidence(steps=720)
    feed(slow, np.random.default_rng(1), 300, slow=1.3)
    feed(equal, np.random.default_rng(2), 300)
    assert slow.log_e() > math.log(1200)
    assert equal.log_e() < 2.0
    assert max(slow.parts(), key=slow.parts().get) == "ranks"


def test_a_worse_tail_is_found_and_named():
    evidence = LatencyEvidence(steps=720)
    feed(evidence, np.random.default_rng(3), 500, tail=0.05)
    assert evidence.log_e() > math.log(1200)
    assert evidence.parts()["p99"] > evidence.parts()["p95"] > 1.0


def test_an_increase_within_the_margin_is_tolerated():
    evidence = LatencyEvidence(0.2, steps=720)
    feed(evidence, np.random.default_rng(4), 400, slow=1.15)
    assert evidence.log_e() < 1.0
    feed(evidence, np.random.default_rng(5), 200, slow=2.0, start=400)
    assert evidence.log_e() > math.log(1200)


def test_a_drifting_day_is_no_regression():
    evidence, rng = LatencyEvidence(steps=720), np.random.default_rng(6)
    for tick in range(600):
        level = math.exp(math.sin(tick / 60.0))
        pi = 0.05 if tick < 300 else 0.5
        b = rng.binomial(20, pi)
        evidence.update(tick, [(
            pi, histogram(rng.lognormal(0, 0.3, 20 - b) * level), histogram(rng.lognormal(0, 0.3, b) * level),
        )])
        assert evidence.log_e() < math.log(100)


def test_nothing_is_bet_before_control_is_known():
    ranks, p95, p99 = MannWhitney(), TailExceedance(P95), TailExceedance(P99)
    for process, needed in ((ranks, 50), (p95, 200), (p99, 1000)):
        process.update(0, [(0.5, {10: needed - 1}, {300: 500})])
        process.update(1, [(0.5, {10: 1}, {300: 500})])
        assert process.log_e() == pytest.approx(0.0, abs=1e-12)
        process.update(2, [(0.5, {10: 1}, {300: 5})])
        assert process.log_e() > 1.0


def test_the_parts_of_latency_equal_the_processes_alone():
    rng, evidence = np.random.default_rng(7), LatencyEvidence(0.1, steps=30)
    alone = {
        "ranks": MannWhitney(0.1, steps=30),
        "p95": TailExceedance(P95, 0.1, steps=30),
        "p99": TailExceedance(P99, 0.1, steps=30),
    }
    for tick in range(120):
        row = (0.3, histogram(rng.lognormal(0, 0.5, 20)), histogram(rng.lognormal(0.2, 0.5, 9)))
        for process in (evidence, *alone.values()):
            process.update(tick, [row])
    assert evidence.parts() == {name: process.log_e() for name, process in alone.items()}
    assert sum(WEIGHTS.values()) == pytest.approx(1.0)
    mean = sum(WEIGHTS[name] * math.exp(value) for name, value in evidence.parts().items())
    assert evidence.log_e() == pytest.approx(math.log(mean), rel=1e-12)
