import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.monitor.domain.statistics import AbsoluteRate, RateEProcess, SampleRatio, observed_share
from services.monitor.domain.statistics.rate import NON_INFERIORITY_FACTORS, REGRESSION_FACTORS
from services.monitor.domain.statistics.start_mixture import StartMixture


def theta(pi, rho):
    return pi * rho / (pi * rho + 1.0 - pi)


@pytest.mark.parametrize(("w0", "later"), [(0.8, False), (0.5, True)], ids=["first epoch", "later epoch"])
def test_matches_the_formula_computed_by_hand(w0, later):
    process = RateEProcess(1.5, steps=10)
    if later:
        process.update(0, [(0.3, 1, 5)])
        process.start_epoch(10)
    windows = [(0, 0.1, 2, 1), (3, 0.1, 0, 2), (5, 0.2, 1, 0), (6, 0.2, 0, 3), (21, 0.5, 4, 9)]
    r, u, w = np.full(16, w0 / 16), 1 - w0, (1 - w0) / 10
    rho = 1.5 * np.exp(np.linspace(math.log(1.5), math.log(64), 16))
    for tick, pi, e_a, e_b in windows:
        if tick in {5, 21}:
            r, u = r + w / 16, u - w
        t0, tj = theta(pi, 1.5), theta(pi, rho)
        r = r * (tj / t0) ** e_b * ((1 - tj) / (1 - t0)) ** e_a
        process.update(tick, [(pi, e_a, e_b)])
        assert process.log_e() == pytest.approx(math.log(u + r.sum()), rel=1e-12)


def test_grids_are_those_of_the_specification():
    assert REGRESSION_FACTORS[0] == pytest.approx(1.5)
    assert REGRESSION_FACTORS[-1] == pytest.approx(64.0)
    assert NON_INFERIORITY_FACTORS[0] == pytest.approx(0.1)
    assert NON_INFERIORITY_FACTORS[-1] == pytest.approx(0.95)
    assert len(REGRESSION_FACTORS) == len(NON_INFERIORITY_FACTORS) == 16


@settings(max_examples=60, deadline=None)
@given(
    pi=st.floats(0.001, 0.999),
    rho0=st.floats(0.2, 5.0),
    true=st.floats(0.05, 1.0),
)
def test_each_event_is_a_fair_or_losing_bet_under_the_null(pi, rho0, true):
    """E[factor] <= 1 for every true ratio up to rho0, with equality at rho0: enumerated, not sampled."""
    for factor in (1.0, true):
        at = theta(pi, rho0 * factor)
        expected = 0.0
        for e_b in (0, 1):
            process = RateEProcess(rho0, w0=1.0)
            process.update(0, [(pi, 1 - e_b, e_b)])
            expected += (at if e_b else 1.0 - at) * math.exp(process.log_e())
        assert expected <= 1.0 + 1e-9
        if factor == 1.0:
            assert expected == pytest.approx(1.0, rel=1e-9)


def test_expectation_is_one_over_all_paths_with_ramps_and_late_starts():
    """All 2^8 outcomes of eight events over a ramp: sum of probability times E is exactly 1."""
    shares = [0.01, 0.01, 0.1, 0.1, 0.25, 0.5, 0.5, 0.9]
    total = 0.0
    for outcome in product((0, 1), repeat=len(shares)):
        process, probability = RateEProcess(steps=4), 1.0
        for position, (pi, e_b) in enumerate(zip(shares, outcome, strict=True)):
            process.update(4 * position, [(pi, 1 - e_b, e_b)])
            probability *= pi if e_b else 1.0 - pi
        total += probability * math.exp(process.log_e())
    assert total == pytest.approx(1.0, rel=1e-9)


def test_a_canary_whose_control_never_fails_is_caught():
    process = RateEProcess(2.0, steps=720)
    for tick in range(12):
        process.update(tick, [(0.1, 0, 1)])
    assert process.log_e() > math.log(1200)


def test_a_shared_outage_is_no_evidence():
    process = RateEProcess(steps=720)
    for tick in range(200):
        process.update(tick, [(0.1, 90, 10)])
    assert process.log_e() < 1.0


def test_non_inferiority_needs_a_better_ratio_than_the_margin():
    good, bad = RateEProcess.non_inferiority(1.5), RateEProcess.non_inferiority(1.5)
    for tick in range(400):
        good.update(tick, [(0.5, 1, 1)])
        bad.update(tick, [(0.5, 2, 3)])
    assert good.log_e() > math.log(20)
    assert bad.log_e() < 0.5


def test_the_start_mixture_spends_its_mass_once_and_never_more():
    mixture = StartMixture(0.5, steps=3)
    for tick in [0, 4, 5, 9, 10, 40, 45, 50]:
        mixture.advance(tick)
        assert mixture.log_e() == pytest.approx(0.0, abs=1e-12)
        assert mixture.unbet >= 0.0
    assert mixture.unbet == 0.0


def test_a_late_regression_is_found_much_sooner_with_the_start_mixture():
    found = {}
    for w0 in (0.5, 1.0):
        process = RateEProcess(w0=w0, steps=1440)
        for tick in range(3600):
            process.update(tick, [(0.1, 1 if tick % 10 else 0, 0 if tick % 10 else 1)])
        tick = 3600
        while process.log_e() < math.log(600):
            process.update(tick, [(0.1, 1, 1)])
            tick += 1
        found[w0] = tick - 3600
    assert found[0.5] * 4 < found[1.0]


def test_unit_counts_that_miss_the_split_are_a_mismatch():
    even, skewed = SampleRatio(), SampleRatio()
    for tick in range(1000):
        even.update(tick, [(0.1, 9, 1)])
        skewed.update(tick, [(0.1, 9, 2)])
    assert not even.mismatch()
    assert skewed.mismatch()
    missing = SampleRatio()
    for tick in range(1000):
        missing.update(tick, [(0.5, 6, 4)])
    assert missing.mismatch()


def test_absolute_rate_fires_above_its_limit_only():
    below, above = AbsoluteRate(0.05, steps=720), AbsoluteRate(0.05, steps=720)
    for tick in range(300):
        below.update(tick, 1, 20)
        above.update(tick, 2, 20)
    assert below.log_e() < 1.0
    assert above.log_e() > math.log(1200)
    with pytest.raises(ValueError, match="limit"):
        AbsoluteRate(0.0)
    with pytest.raises(ValueError, match="events <= trials"):
        below.update(300, 3, 2)
    never = AbsoluteRate(1.0)
    never.update(0, 10, 10)
    assert never.log_e() == 0.0


def test_constructor_refuses_what_makes_no_sense():
    for wrong in ({"rho0": 0.0}, {"rho0": math.nan}, {"grid": ()}, {"grid": (0.0,)}, {"w0": 0.0}, {"steps": 0}):
        with pytest.raises(ValueError):
            RateEProcess(**wrong)
    with pytest.raises(ValueError, match="alpha"):
        SampleRatio(0.0)


def test_observed_share():
    assert observed_share(0, 0) == 0.0
    assert observed_share(3, 1) == 0.25
