"""Confidence sequences of rates and of quantiles against each other, for display: they decide nothing.

A value belongs to the sequence while neither the e-process that says "more than that" nor the one that says "less than
that" rejects it, each at half the level. Both are plain (all mass bet at once), so their E is monotone in the value and
the ends are found by one search. Sources: as `rate` and `quantiles`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from services.monitor.domain.statistics.histogram import Floats, Histogram
from services.monitor.domain.statistics.quantiles import quantile_interval
from services.monitor.domain.statistics.rate import NON_INFERIORITY_FACTORS, REGRESSION_FACTORS

Interval = tuple[float, float | None]
"""Lower and upper end; None where the data exclude nothing above."""

_RATIOS: Floats = np.exp(np.linspace(math.log(1e-3), math.log(1e3), 691))
"""Steps of 2 %; ends are interpolated between them."""
_SHARES: Floats = np.exp(np.linspace(math.log(1e-5), 0.0, 241))
_UP: Floats = np.array(REGRESSION_FACTORS)
_DOWN: Floats = np.array(NON_INFERIORITY_FACTORS)


def rate_ratio_interval(events: Mapping[float, tuple[int, int]], alpha: float) -> Interval:
    """B's rate of events as a multiple of A's.

    Args:
        events: (events of A, events of B) by B's share of the traffic; shares of 0 and 1 say nothing.
        alpha: level of the sequence, in (0, 1).
    """
    rows = [(pi, a + b, b) for pi, (a, b) in sorted(events.items()) if 0.0 < pi < 1.0 and a + b > 0]

    def log_e(factors: Floats) -> Floats:
        bets = np.zeros((len(_RATIOS), len(factors)))
        for pi, n, of_b in rows:
            shifted = np.log1p(pi * (np.outer(_RATIOS, factors) - 1.0)) - np.log1p(pi * (_RATIOS - 1.0))[:, np.newaxis]
            bets += of_b * np.log(factors) - n * shifted
        return _mean(bets)

    return _ends(_RATIOS, log_e(_UP), log_e(_DOWN), alpha)


def share_interval(bad: int, n: int, alpha: float) -> Interval:
    """The share of n trials that go wrong, of which ``bad`` did."""

    def log_e(factors: Floats) -> Floats:
        bets: Floats = bad * np.log(factors) - n * np.log1p(np.outer(_SHARES, factors - 1.0))
        return _mean(bets)

    return _ends(_SHARES, log_e(_UP), log_e(_DOWN), alpha)


def quantile_ratio_interval(bins_a: Histogram, bins_b: Histogram, p: float, alpha: float) -> Interval | None:
    """B's p-quantile as a multiple of A's; None while an arm has nothing. Each arm's sequence takes half the level."""
    a, b = (quantile_interval(bins, p, alpha / 2.0) for bins in (bins_a, bins_b))
    if a is None or b is None:
        return None
    low = b.lower / a.upper if a.upper else 0.0
    return low, b.upper / a.lower if a.lower > 0.0 and b.upper is not None else None


def _mean(bets: Floats) -> Floats:
    """Logarithm of the mean of the bets' E."""
    top = bets.max(axis=1)
    found: Floats = top + np.log(np.exp(bets - top[:, np.newaxis]).mean(axis=1))
    return found


def _ends(values: Floats, above: Floats, below: Floats, alpha: float) -> Interval:
    """The ends: ``above`` falls with the value, ``below`` rises."""
    goal = math.log(2.0 / alpha)
    low, high = 0.0, None
    if above[0] >= goal:
        last = int(np.flatnonzero(above >= goal)[-1])
        low = _crossing(values, above, last, min(last + 1, len(values) - 1), goal)
    if below[-1] >= goal:
        first = int(np.flatnonzero(below >= goal)[0])
        high = _crossing(values, below, max(first - 1, 0), first, goal)
    return low, high


def _crossing(values: Floats, log_e: Floats, i: int, j: int, goal: float) -> float:
    step = float(log_e[j] - log_e[i])
    part = 0.5 if step == 0.0 else (goal - float(log_e[i])) / step
    return float(values[i] * (values[j] / values[i]) ** min(1.0, max(0.0, part)))
