"""The simulations of ``benchmarks/statistics``, thinned: same code, fewer replications and hours."""

import numpy as np
import pytest

from benchmarks.statistics.batch import BatchLatency, BatchRate
from benchmarks.statistics.rollback import BINS, events, latencies
from services.monitor.domain.statistics import LatencyEvidence, RateEProcess


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
