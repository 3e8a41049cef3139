"""Quantiles of a log-bin histogram, with intervals that hold at every look.

Source: beta-binomial mixture martingale for the share of observations at or below an edge (Howard &
Ramdas, "Sequential estimation of quantiles with applications to A/B testing and best-arm identification",
arXiv 1906.09712). For display: it takes requests as independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import betaln

from services.monitor.domain.statistics.histogram import (
    Histogram,
    bin_upper_edge,
    bin_value,
    merge_histograms,
)

PRIOR_STRENGTH = 100.0


@dataclass(frozen=True, slots=True)
class QuantileInterval:
    """A quantile and its confidence sequence, in the unit of the histogrammed values.

    Attributes:
        estimate: representative value of the quantile's bin, within 1 %.
        lower: lower bound; 0 while the data exclude nothing below.
        upper: upper bound; None while the data exclude nothing above.
    """

    estimate: float
    lower: float
    upper: float | None


def histogram_quantile(histogram: Histogram, p: float) -> float | None:
    """Return the p-quantile within 1 %, or None of an empty histogram.

    Raises:
        ValueError: p is not within [0, 1] or a count is negative.
    """
    if not 0.0 <= p <= 1.0:
        msg = f"p must be within [0, 1], got {p!r}"
        raise ValueError(msg)
    merged = merge_histograms((histogram,))
    total = sum(merged.values())
    if not total:
        return None
    needed = max(1, math.ceil(p * total))
    below = 0
    for index, count in merged.items():
        below += count
        if below >= needed:
            return bin_value(index)
    return bin_value(max(merged))


def edge_log_e(at_or_below: int, n: int, p: float) -> float:
    """Return ln E against "a share p of all values is at or below this edge".

    lnB(100p + k, 100(1-p) + n - k) - lnB(100p, 100(1-p)) - k ln p - (n-k) ln(1-p).
    """
    a, b, k = PRIOR_STRENGTH * p, PRIOR_STRENGTH * (1.0 - p), at_or_below
    posterior = float(betaln(a + k, b + n - k))
    return posterior - float(betaln(a, b)) - k * math.log(p) - (n - k) * math.log1p(-p)


def quantile_interval(histogram: Histogram, p: float, alpha: float = 0.05) -> QuantileInterval | None:
    """Return the p-quantile with its confidence sequence, or None of an empty histogram.

    An edge is excluded when its ln E reaches ln(1/alpha). The lower bound is the highest edge excluded
    for having too little below it, the upper bound the lowest excluded for having too much.

    Raises:
        ValueError: p or alpha is not within (0, 1), or a count is negative.
    """
    if not (0.0 < p < 1.0 and 0.0 < alpha < 1.0):
        msg = f"p and alpha must be within (0, 1), got {p!r} and {alpha!r}"
        raise ValueError(msg)
    merged = merge_histograms((histogram,))
    if not merged:
        return None
    estimate = histogram_quantile(merged, p)
    assert estimate is not None
    bins = [min(merged) - 1, *merged]
    below = [0, *(int(total) for total in np.cumsum(list(merged.values())))]
    n, goal = below[-1], -math.log(alpha)
    lower, upper = 0.0, None
    for position, k in enumerate(below):
        if edge_log_e(k, n, p) < goal:
            continue
        if k < p * n:
            # Up to the next occupied bin nothing is added, so every edge before it is excluded too.
            lower = bin_upper_edge(bins[position + 1] - 1)
        else:
            upper = bin_upper_edge(bins[position])
            break
    return QuantileInterval(estimate, lower, upper)
