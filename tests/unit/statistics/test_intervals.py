"""The confidence sequences beside a guardrail: they hold at every look, and say nothing where nothing is known."""

import math

import numpy as np
import pytest

from services.monitor.domain.statistics import RateEProcess, bin_index
from services.monitor.domain.statistics.intervals import quantile_ratio_interval, rate_ratio_interval, share_interval


def test_nothing_is_excluded_without_events():
    assert rate_ratio_interval({}, 0.05) == (0.0, None)
    assert rate_ratio_interval({0.2: (0, 0), 0.0: (5, 0), 1.0: (0, 9)}, 0.05) == (0.0, None)
    assert share_interval(0, 0, 0.05) == (0.0, None)
    assert quantile_ratio_interval({}, {1: 1}, 0.5, 0.05) is None


def test_an_end_is_where_the_plain_test_begins_to_reject():
    events = {0.2: (40, 30), 0.5: (10, 25)}
    low, high = rate_ratio_interval(events, 0.05)
    assert high is not None
    for end, make in ((low, lambda rho: RateEProcess(rho, w0=1.0)), (high, RateEProcess.non_inferiority)):
        process = make(end)
        process.update(0, [(pi, a, b) for pi, (a, b) in events.items()])
        assert process.log_e() == pytest.approx(math.log(40), abs=0.05)


def test_more_evidence_narrows_and_the_share_is_within():
    widths = []
    for n in (50, 500, 5000):
        low, high = share_interval(n // 10, n, 0.05)
        assert high is not None
        assert low < 0.1 < high
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert share_interval(20, 20, 0.05)[1] is None


def test_they_cover_at_every_look():
    rng, missed = np.random.default_rng(7), {"ratio": 0, "share": 0, "quantile": 0}
    for _ in range(40):
        counts, failed, bins = [0, 0], 0, ({}, {})
        wrong = dict.fromkeys(missed, False)
        for look in range(1, 6):
            on_b = rng.random(150) < 0.3
            bad = rng.random(150) < np.where(on_b, 0.12, 0.06)  # B fails twice as often
            counts[0] += int((bad & ~on_b).sum())
            counts[1] += int((bad & on_b).sum())
            failed += int(bad.sum())
            for of_b, value in zip(on_b, rng.lognormal(0.0, 0.5, 150), strict=True):
                index = bin_index(1000 * value * (1.25 if of_b else 1.0))
                bins[int(of_b)][index] = bins[int(of_b)].get(index, 0) + 1
            low, high = rate_ratio_interval({0.3: (counts[0], counts[1])}, 0.05)
            wrong["ratio"] |= not low <= 2.0 <= (high or math.inf)
            low, high = share_interval(failed, 150 * look, 0.05)
            wrong["share"] |= not low <= 0.078 <= (high or math.inf)
            low, high = quantile_ratio_interval(*bins, 0.5, 0.05)
            wrong["quantile"] |= not low <= 1.25 <= (high or math.inf)
        for name, bad_run in wrong.items():
            missed[name] += bad_run
    assert max(missed.values()) <= 5, missed
