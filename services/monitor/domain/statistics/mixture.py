"""Core C: normal mixture, for effects, intervals and promotion.

Source: Robbins' normal mixture in the form of Howard, Ramdas, McAuliffe & Sekhon, "Time-uniform,
nonparametric, nonasymptotic confidence sequences" (arXiv 1810.08240), used asymptotically as in
Waudby-Smith et al., "Time-uniform central limit theory and asymptotic confidence sequences"
(arXiv 2103.06476); the one-sided form mixes over the positive half only.

With z = (D - m)/sqrt(V), w = tau^2/(tau^2 + V):
ln E = ln(1-w)/2 + w*z^2/2 + ln(2*Phi(z*sqrt(w))).
Asymptotic: never for rare events (use ``rate`` there).
"""

from __future__ import annotations

import math

from scipy.special import erfcx, log_ndtr

TAU = 0.1
"""Smallest relevant relative effect."""

MIN_SUCCESSES = 20
_FAR = 1e150


def mixture_log_e(difference: float, variance: float, null: float = 0.0, tau: float = TAU) -> float:
    """Return ln E against "the true difference is at most ``null``".

    Args:
        difference: D, the estimate.
        variance: V, its squared standard error.
        null: m, on D's scale.
        tau: standard deviation of the mixture, on D's scale.

    Returns:
        ln E; 0 (no evidence) where D or V is not finite or V is not positive.

    Raises:
        ValueError: tau is not positive.
    """
    if not tau > 0.0:
        msg = f"tau must be positive, got {tau!r}"
        raise ValueError(msg)
    if not (math.isfinite(difference) and math.isfinite(variance) and math.isfinite(null) and variance > 0.0):
        return 0.0
    w = tau * tau / (tau * tau + variance)
    x = (difference - null) / math.sqrt(variance) * math.sqrt(w)
    base = 0.5 * math.log(variance / (tau * tau + variance))
    if x >= 0.0:
        x = min(x, _FAR)
        return base + 0.5 * x * x + math.log(2.0) + float(log_ndtr(x))
    # The same expression as erfcx: for x << 0 the square and the logarithm cancel to nothing.
    return base + math.log(float(erfcx(min(-x, _FAR) / math.sqrt(2.0))))


def half_width(variance: float, alpha: float, tau: float = TAU) -> float:
    """Return the half-width of the two-sided confidence sequence, valid at every look.

    sqrt(V) * sqrt((2/w) * (ln(1/alpha) - ln(1-w)/2)); infinite where V is not positive and finite.

    Raises:
        ValueError: alpha is not within (0, 1) or tau is not positive.
    """
    _check_alpha(alpha)
    if not tau > 0.0:
        msg = f"tau must be positive, got {tau!r}"
        raise ValueError(msg)
    if not (math.isfinite(variance) and variance > 0.0):
        return math.inf
    total = tau * tau + variance
    inner = -math.log(alpha) - 0.5 * math.log(variance / total)
    return math.sqrt(variance * 2.0 * total / (tau * tau) * inner)


def lower_bound(estimate: float, variance: float, alpha: float, tau: float = TAU) -> float:
    """Return the one-sided lower confidence sequence: the largest null that ``mixture_log_e`` rejects.

    -inf where V is not positive and finite.

    Raises:
        ValueError: alpha is not within (0, 1) or tau is not positive.
    """
    _check_alpha(alpha)
    if not (math.isfinite(variance) and variance > 0.0):
        return -math.inf
    goal = -math.log(alpha)
    wide = half_width(variance, alpha / 2.0, tau)
    low, high = estimate - wide, estimate
    if mixture_log_e(estimate, variance, high, tau) >= goal:
        return high
    for _ in range(100):
        middle = 0.5 * (low + high)
        if mixture_log_e(estimate, variance, middle, tau) >= goal:
            low = middle
        else:
            high = middle
    return low


def proportion_difference(
    successes_a: int, n_a: int, successes_b: int, n_b: int, ratio: float = 1.0
) -> tuple[float, float] | None:
    """Return (D, V) of D = (b - ratio*a)/a for independent requests, or None when there is too little.

    V = [b(1-b)/n_b + ratio^2 * a(1-a)/n_a] / a^2. At least 20 successes and 20 failures are needed in
    each arm. For sticky users use ``buckets.bucket_effect(..., ratio).relative()`` instead.
    """
    smallest = min(successes_a, n_a - successes_a, successes_b, n_b - successes_b)
    if smallest < MIN_SUCCESSES:
        return None
    a, b = successes_a / n_a, successes_b / n_b
    variance = (b * (1.0 - b) / n_b + ratio * ratio * a * (1.0 - a) / n_a) / (a * a)
    return (b - ratio * a) / a, variance


def proportion_improvement_log_e(
    successes_a: int, n_a: int, successes_b: int, n_b: int, threshold: float
) -> float:
    """Return ln E for "B's proportion is more than 1 + threshold times A's" (0 with too little data)."""
    found = proportion_difference(successes_a, n_a, successes_b, n_b, 1.0 + threshold)
    return 0.0 if found is None else mixture_log_e(*found)


def reduction_log_e(log_difference: float, variance: float, threshold: float) -> float:
    """Return ln E for "B's geometric mean is lower than A's by more than ``threshold``".

    For latency and cost: D = mean ln A - mean ln B, m = -ln(1 - threshold).

    Args:
        log_difference: mean ln B - mean ln A (``BucketEffect.difference`` of ln values).
        variance: its variance (``BucketEffect.variance``).
        threshold: asked-for relative reduction, in [0, 1) (0.05 = 5 %).

    Raises:
        ValueError: threshold is not within [0, 1).
    """
    if not 0.0 <= threshold < 1.0:
        msg = f"threshold must be within [0, 1), got {threshold!r}"
        raise ValueError(msg)
    return mixture_log_e(-log_difference, variance, -math.log1p(-threshold))


def non_inferiority_log_e(log_difference: float, variance: float, margin: float) -> float:
    """Return ln E for "B's geometric mean is less than 1 + margin times A's" (arguments as above).

    Raises:
        ValueError: margin is negative.
    """
    if not margin >= 0.0:
        msg = f"margin must be >= 0 (0.2 means 20 %), got {margin!r}"
        raise ValueError(msg)
    return mixture_log_e(-log_difference, variance, -math.log1p(margin))


def _check_alpha(alpha: float) -> None:
    if not 0.0 < alpha < 1.0:
        msg = f"alpha must be within (0, 1), got {alpha!r}"
        raise ValueError(msg)
