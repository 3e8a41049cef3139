"""The simulations of ``benchmarks/statistics``, thinned: same code, fewer replications and hours."""

import numpy as np
import pytest

from benchmarks.statistics import errors, promotion
from benchmarks.statistics.batch import BatchLatency, BatchNonInferiority, BatchRate
from benchmarks.statistics.rollback import (
    BINS,
    Day,
    events,
    false_rollbacks,
    latencies,
    latency_detection,
    rate_detection,
)
from benchmarks.statistics.sticky import first_errors
from services.monitor.domain.statistics import (
    Arrivals,
    ErrorNonInferiority,
    LatencyEvidence,
    RateEProcess,
    bucket_effect,
    mixture_log_e,
    proportion_difference,
)


def test_batched_rates_equal_the_product():
    rng, draw = np.random.default_rng(1), events(0.1, 0.05, 0.1)
    batch, single = BatchRate(2, 0.1, 1.5, steps=30), [RateEProcess(1.5, steps=30) for _ in range(2)]
    for tick in range(200):
        e_a, e_b = draw(rng, 2, tick)
        batch.update(tick, e_a, e_b)
        for rep, process in enumerate(single):
            process.update(tick, [(0.1, int(e_a[rep]), int(e_b[rep]))])
        np.testing.assert_allclose(batch.log_e(), [p.log_e() for p in single], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pi", [0.1, 0.5])
def test_batched_latencies_equal_the_product(pi):
    rng, draw = np.random.default_rng(2), latencies(pi, slow=1.3)
    batch, single = BatchLatency(2, pi, BINS, steps=30), [LatencyEvidence(steps=30) for _ in range(2)]
    for tick in range(250):
        bins, is_b = draw(rng, 2, tick)
        batch.update(tick, bins, is_b)
        for rep, process in enumerate(single):
            arms = []
            for arm in (False, True):
                index, count = np.unique(bins[rep][is_b[rep] == arm], return_counts=True)
                arms.append(dict(zip(index.tolist(), count.tolist(), strict=True)))
            process.update(tick, [(pi, *arms)])
        np.testing.assert_allclose(batch.log_e(), [p.log_e() for p in single], rtol=1e-9, atol=1e-9)


def test_batched_tests_of_errors_equal_the_product():
    rng = np.random.default_rng(4)
    batch = BatchNonInferiority(2, 0.4, 1.5, 0.002)
    single = [ErrorNonInferiority(1.5, 0.002) for _ in range(2)]
    for tick in range(60):
        n_b, e_a, e_b = rng.binomial(100, 0.4, 2), rng.binomial(60, 0.003, 2), rng.binomial(40, 0.001, 2)
        batch.update(tick, n_b, e_a, e_b)
        for rep, process in enumerate(single):
            n, k = int(n_b[rep]), int(e_b[rep])
            process.update(tick, [(0.4, int(e_a[rep]), k)], Arrivals(n, k, n, n))
        np.testing.assert_allclose(batch.log_e(), [p.log_e() for p in single], rtol=1e-9, atol=1e-9)


def test_batched_core_c_equals_the_product():
    rng = np.random.default_rng(3)
    d, v = rng.normal(0.0, 1.0, 50), rng.exponential(0.1, 50)
    expected = [mixture_log_e(float(a), float(b), 0.05) for a, b in zip(d, v, strict=True)]
    np.testing.assert_allclose(promotion.mixture_log_e(d, v, 0.05), expected, rtol=1e-9, atol=1e-9)


def test_batched_differences_of_errors_equal_the_product():
    rng = np.random.default_rng(5)
    n = rng.integers(400, 600, (2, 3)).astype(float)
    e = rng.binomial(n.astype(int), 0.2).astype(float)
    expected, d, v = errors._requests([np.stack((n, e))], 0.95)
    assert expected == pytest.approx(np.minimum(e[0], n[1] * e[0] / n[0]))
    for rep in range(3):
        counts = [int(x) for arm in (0, 1) for x in (e[arm, rep], n[arm, rep])]
        assert (d[rep], v[rep]) == pytest.approx(proportion_difference(*counts, ratio=0.95))
    n, of_b = rng.poisson(5.0, (2, 1280)).astype(float), rng.random((2, 1280)) < 0.4
    e = rng.binomial(n.astype(int), 0.1).astype(float)
    expected, d, v = errors._buckets(n, e, of_b, 0.95)
    for rep in range(2):
        tables = [
            np.stack([np.where(arm, x[rep], 0.0).reshape(128, -1).sum(axis=1) for arm in (~of_b[rep], of_b[rep])])[None]
            for x in (n, e)
        ]
        assert (d[rep], v[rep]) == pytest.approx(bucket_effect(*tables, 0.95).relative())
        (count_a, count_b), failed = tables[0][0].sum(axis=1), tables[1][0, 0].sum()
        assert expected[rep] == pytest.approx(min(failed, count_b * failed / count_a))


@pytest.mark.parametrize(("pi", "p_b", "most"), [(0.1, 0.05, 2240), (0.1, 0.15, 390), (0.01, 0.15, 3210)])
def test_errors_are_found_within_the_stated_number_of_requests(pi, p_b, most):
    found = rate_detection(5, 400, pi, p_b, epochs=True)
    assert np.median(found) <= 1.3 * most


@pytest.mark.parametrize(("slow", "tail", "most"), [(1.2, 0.0, 1330), (2.0, 0.0, 280), (1.0, 0.05, 2470)])
def test_slow_canaries_are_found_within_the_stated_number_of_requests(slow, tail, most):
    found = latency_detection(6, 200, 0.1, slow, tail, epochs=True)
    assert np.median(found) <= 1.3 * most


def test_a_late_regression_is_found():
    found = rate_detection(7, 200, 0.1, 0.15, epochs=True, good_hours=12.5)
    assert len(found) >= 199
    assert np.median(found) <= 1.3 * 825


@pytest.mark.parametrize("day", [Day(pi=0.5), Day(pi=0.01), Day(ramp=True, drift=True, outages=True)])
def test_equal_arms_are_hardly_ever_rolled_back(day):
    wrong = (false_rollbacks(8, 60, day, "rate", tick_seconds=10) > 0).sum()
    wrong += (false_rollbacks(9, 10, day, "latency", hours=12, tick_seconds=20) > 0).sum()
    assert wrong <= 3


def test_sticky_users_with_streaks_of_errors_are_no_regression():
    given = {"correlated": True, "uneven": True, "ticks": 1500, "tick_seconds": 5}
    assert np.isfinite(first_errors(10, 60, **given)).sum() <= 3
    every_error = first_errors(10, 60, **given, requests_as_events=True)
    assert np.isfinite(every_error).sum() >= 6


def test_sticky_users_late_regression_needs_epochs():
    found = first_errors(11, 20, p_b=0.15, good_hours=1.2, ticks=1800, guardrails=1)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("boundary", [{"ratio": 1.5}, {"slow": 1.2}, {"gain": 0.05}])
def test_a_canary_at_a_boundary_is_hardly_ever_promoted(boundary):
    found = promotion.promotions(12, 200, horizon=60_000, **boundary)
    assert np.isfinite(found).sum() <= 20


def test_a_better_canary_is_promoted():
    assert np.median(promotion.promotions(13, 60)) < 60_000


@pytest.mark.parametrize(("p_a", "p_b"), [(0.0, 0.001), (0.01, 0.015), (0.001 / 1.5, 0.001)])
def test_errors_at_a_boundary_are_hardly_ever_shown_to_be_harmless(p_a, p_b):
    """Alpha is 0.05, so that more than 40 of 400 would come about once in 10,000 times."""
    found = promotion.errors_shown(14, 400, p_a=p_a, p_b=p_b, horizon=100_000, look=500)
    assert np.isfinite(found).sum() <= 40


def test_a_canary_without_errors_is_shown_to_be_harmless_beside_a_control_without_any():
    found = promotion.errors_shown(15, 50, look=500, horizon=20_000)
    assert np.median(found) <= 11_500
    assert np.isinf(promotion.errors_shown(15, 5, negligible=0.0, look=500, horizon=20_000)).all()


@pytest.mark.parametrize("course", [errors.Course(), errors.Course(pi=0.1), errors.Course(ramp=True, drift=True)])
def test_errors_that_are_hardly_fewer_are_hardly_ever_shown_to_be_fewer_enough(course):
    """Alpha is 0.05, so that more than 25 of 200 would come about once in 50,000 times."""
    found = errors.fewer_errors(16, 200, p_a=0.05, ratio=0.95, course=course, horizon=40_000)
    assert np.isfinite(found).sum() <= 25


def test_errors_of_users_who_come_back_are_hardly_ever_wrongly_shown_to_be_fewer():
    found = errors.fewer_errors_sticky(17, 60, p_a=0.02, ratio=0.95, looks=60, streaks=True)
    assert np.isfinite(found).sum() <= 12
    assert np.isfinite(errors.fewer_errors_sticky(18, 10, p_a=0.05, ratio=0.5, looks=20)).all()


@pytest.mark.parametrize(("ratio", "most"), [(0.0, 600), (0.5, 4000)])
def test_fewer_errors_are_shown_within_the_stated_number_of_requests(ratio, most):
    assert np.median(errors.fewer_errors(19, 100, p_a=0.05, ratio=ratio)) <= most


@pytest.mark.parametrize(("share", "factor"), [(0.2, 3.0), (0.02, 10.0)])
def test_equal_latencies_with_a_few_that_are_far_off_are_hardly_ever_promoted(share, factor):
    found = promotion.rarely_slow(20, 200, share=share, factor=factor, horizon=10_000)
    assert np.isfinite(found).sum() <= 20
