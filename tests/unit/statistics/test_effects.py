import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from services.monitor.domain.statistics import (
    BUCKETS,
    MeanSums,
    bucket_effect,
    half_width,
    lower_bound,
    mixture_log_e,
    non_inferiority_log_e,
    proportion_difference,
    proportion_improvement_log_e,
    reduction_log_e,
)


@settings(max_examples=100, deadline=None)
@given(st.floats(-3, 3), st.floats(1e-6, 10), st.floats(-1, 1))
def test_core_c_is_the_formula(d, v, m):
    z, w = (d - m) / math.sqrt(v), 0.01 / (0.01 + v)
    plain = 0.5 * math.log(1 - w) + 0.5 * w * z * z + math.log(2) + norm.logcdf(z * math.sqrt(w))
    assert mixture_log_e(d, v, m) == pytest.approx(plain, rel=1e-6, abs=1e-6)


@given(st.floats(allow_nan=True), st.floats(allow_nan=True), st.floats(-1, 1))
def test_core_c_is_never_nan(d, v, m):
    assert not math.isnan(mixture_log_e(d, v, m))


def test_core_c_has_no_opinion_without_variance():
    assert mixture_log_e(1.0, 0.0) == 0.0
    assert half_width(0.0, 0.05) == math.inf
    assert lower_bound(1.0, 0.0, 0.05) == -math.inf


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-5, 1.0), st.floats(0.001, 0.2))
def test_the_interval_excludes_just_what_the_two_sided_test_rejects(v, alpha):
    width = half_width(v, alpha)
    w = 0.01 / (0.01 + v)
    two_sided = 0.5 * math.log(1 - w) + 0.5 * w * width * width / v
    assert two_sided == pytest.approx(math.log(1 / alpha), rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.floats(-5, 5), st.floats(1e-5, 1.0), st.floats(0.001, 0.2))
def test_the_lower_bound_is_where_the_one_sided_test_begins_to_reject(estimate, v, alpha):
    bound = lower_bound(estimate, v, alpha)
    assert bound < estimate
    assert mixture_log_e(estimate, v, bound) == pytest.approx(math.log(1 / alpha), rel=1e-5)


def test_false_promotions_stay_rare_at_every_look():
    rng, wrong = np.random.default_rng(11), 0
    looks = np.unique(np.geomspace(50, 5000, 60).astype(int))
    for _ in range(400):
        means = np.cumsum(rng.normal(0.0, 1.0, 5000))[looks - 1] / looks
        wrong += any(mixture_log_e(d, 1.0 / n) >= math.log(20) for d, n in zip(means, looks, strict=True))
    assert wrong / 400 <= 0.07


def test_proportions_need_successes_and_failures_in_each_arm():
    assert proportion_difference(19, 100, 50, 100) is None
    assert proportion_difference(50, 100, 81, 100) is None
    d, v = proportion_difference(500, 1000, 600, 1000, 1.05)
    assert d == pytest.approx(0.15)
    assert v == pytest.approx((0.24 / 1000 + 1.05**2 * 0.25 / 1000) / 0.25)
    assert proportion_improvement_log_e(0, 0, 0, 0, 0.05) == 0.0
    assert proportion_improvement_log_e(6000, 10000, 6900, 10000, 0.05) > math.log(20)
    assert proportion_improvement_log_e(6000, 10000, 6100, 10000, 0.05) < 0.0


def test_reduction_and_non_inferiority_point_the_right_way():
    assert reduction_log_e(math.log(0.8), 1e-4, 0.05) > math.log(20)
    assert reduction_log_e(math.log(0.97), 1e-4, 0.05) < 0.0
    assert non_inferiority_log_e(math.log(1.05), 1e-4, 0.2) > math.log(20)
    assert non_inferiority_log_e(math.log(1.3), 1e-4, 0.2) < 0.0
    with pytest.raises(ValueError, match="threshold"):
        reduction_log_e(0.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="margin"):
        non_inferiority_log_e(0.0, 1.0, -0.1)


def by_bucket(rng, phases, users=4000, slope=0.0, effect=0.0, spread=0.3):
    """Sticky users in hash buckets, a ramp of shares, and a level that drifts with the phase."""
    n = np.zeros((len(phases), 2, BUCKETS))
    s = np.zeros_like(n)
    bucket = rng.integers(0, BUCKETS, users)
    level, slot = rng.normal(0.0, spread, users), rng.random(users)
    for phase, share in enumerate(phases):
        arm = (slot < share).astype(int)
        requests = rng.poisson(2.0, users)
        total = requests * (level + slope * phase + effect * arm) + rng.normal(0, 0.5, users) * np.sqrt(requests)
        np.add.at(n[phase], (arm, bucket), requests)
        np.add.at(s[phase], (arm, bucket), total)
    return n, s


def test_buckets_find_the_effect_through_a_ramp_and_a_drift():
    n, s = by_bucket(np.random.default_rng(5), [0.05, 0.1, 0.25, 0.5], slope=0.5, effect=0.2)
    effect = bucket_effect(n, s)
    assert effect.enough_units
    assert effect.difference == pytest.approx(0.2, abs=4 * math.sqrt(effect.variance))
    pooled = s[:, 1].sum() / n[:, 1].sum() - s[:, 0].sum() / n[:, 0].sum()
    assert abs(pooled - 0.2) > 5 * math.sqrt(effect.variance)


def test_bucket_variance_covers_correlated_requests():
    rng, z = np.random.default_rng(6), []
    for _ in range(150):
        effect = bucket_effect(*by_bucket(rng, [0.1, 0.5], users=1500))
        z.append(effect.difference / math.sqrt(effect.variance))
    assert 0.8 < np.std(z) < 1.25
    assert abs(np.mean(z)) < 0.3


def test_bucket_ratio_scales_control_alone():
    n, s = by_bucket(np.random.default_rng(7), [0.5])
    s = s + 3.0 * n
    plain, scaled = bucket_effect(n, s), bucket_effect(n, s, 1.05)
    assert scaled.control_mean == pytest.approx(plain.control_mean)
    assert plain.difference - scaled.difference == pytest.approx(0.05 * plain.control_mean, rel=1e-9)
    d, v = scaled.relative()
    assert d == pytest.approx(scaled.difference / scaled.control_mean)
    assert v == pytest.approx(scaled.variance / scaled.control_mean**2)


def test_one_heavy_bucket_is_not_enough():
    n, s = by_bucket(np.random.default_rng(8), [0.5])
    n[:, 1, 3] += 1e6
    assert not bucket_effect(n, s).enough_units


def test_no_common_phase_is_no_effect():
    n = np.zeros((2, 2, BUCKETS))
    n[0, 0], n[1, 1] = 1.0, 1.0
    assert bucket_effect(n, n) is None
    assert bucket_effect(np.zeros((0, 2, BUCKETS)), np.zeros((0, 2, BUCKETS))) is None
    both = np.ones((1, 2, BUCKETS))
    flat = bucket_effect(both, both * 0)
    assert flat.relative() is None
    assert (flat.variance, flat.enough_units) == (0.0, True)
    with pytest.raises(ValueError, match="shape"):
        bucket_effect(np.ones((2, BUCKETS)), np.ones((2, BUCKETS)))
    with pytest.raises(ValueError, match="ratio"):
        bucket_effect(both, both, 0.0)


def test_equal_figures_are_no_certainty():
    both = np.full((1, 2, BUCKETS), 4.0)
    same = bucket_effect(both, both * np.log([[[100.0], [80.0]]])).with_unseen((512, 512), math.log(100))
    assert math.expm1(same.difference) == pytest.approx(-0.2)
    assert math.sqrt(same.variance) == pytest.approx(math.sqrt(2) * math.log(100) / 513, rel=1e-3)
    assert reduction_log_e(same.difference, same.variance, 0.05) > math.log(20)
    assert reduction_log_e(same.difference, same.variance, 0.19) < math.log(20)
    few = same.with_unseen((8, 512), math.log(100))
    assert reduction_log_e(few.difference, few.variance, 0.05) < 0.5
    n, s = by_bucket(np.random.default_rng(9), [0.5])
    plain = bucket_effect(n, s)
    assert plain.with_unseen((2000, 2000), math.log(100)).variance < 1.1 * plain.variance


def test_a_mean_of_equal_values_is_known_within_half_of_a_bin():
    def sums(value, n):
        return MeanSums(n, n * value, n * value * value)

    assert sums(2_000_000, 1000).variance_of_mean == 0.0
    assert math.sqrt(sums(2_000_000, 10**6).uncertainty) == pytest.approx(20_000, rel=1e-3)
    assert sums(2_000_000, 30).log_e_above(1_000_000) > math.log(1600)
    assert sums(1_050_000, 1000).log_e_above(1_000_000) > math.log(1600)
    for limit in (1_000_000, 995_000):
        assert all(sums(1_000_000, n).log_e_above(limit) < 1.0 for n in (30, 1000, 10**6, 10**9)), limit
    assert sums(1_050_000, 1000).lower_bound(1_000_000, 0.001) == pytest.approx(1_010_000, rel=0.01)


def test_mean_limit_from_integer_sums():
    values = [1_000_000 + (i % 7) * 1000 for i in range(500)]
    sums = MeanSums(0, 0, 0)
    for x in values:
        sums += MeanSums(1, x, x * x)
    assert sums.mean == pytest.approx(np.mean(values))
    assert sums.variance_of_mean == pytest.approx(np.var(values, ddof=1) / 500, rel=1e-9)
    assert sums.log_e_above(900_000) > math.log(1200)
    assert sums.log_e_above(1_100_000) < 0.0
    alpha = 0.001
    for limit in (990_000, 1_002_000, 1_010_000):
        rejected = sums.log_e_above(limit) >= math.log(1 / alpha)
        assert (sums.lower_bound(limit, alpha) >= limit) == rejected


def test_mean_limit_needs_thirty_observations():
    few = MeanSums(29, 29 * 50, 29 * 2501)
    assert few.log_e_above(10) == 0.0
    assert few.lower_bound(10, 0.05) == 0.0
    assert MeanSums(0, 0, 0).mean is None
    assert MeanSums(0, 0, 0).log_e_above(10) == 0.0
    with pytest.raises(ValueError, match="limit"):
        few.log_e_above(0)
