"""Difference of means under sticky assignment and a moving split: unit buckets within phases.

Source: cluster-robust (between-bucket) variance as in Deng, Lu & Litz, "Trustworthy analysis of online
A/B tests: pitfalls, challenges and solutions" (WSDM 2017), with phases as strata weighted by
h = n_A*n_B/n, so that neither drift nor a ramp can pose as an effect. A unit always falls into the same
of G = 128 hash buckets, so the scores of buckets are independent although requests of a unit are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

BUCKETS = 128
MIN_EFFECTIVE_BUCKETS = 20.0

UNSEEN_FACTOR = math.log(100.0)
"""How far off, on the scale of logarithms, a unit may be that has not come yet: a hundred times."""
UNSEEN_SHARE = 1.0
"""The same of a share or a score, relative to control's mean: all of it."""


@dataclass(frozen=True, slots=True)
class BucketEffect:
    """A difference of means, B - ratio*A, and how far it can be trusted.

    Attributes:
        difference: D = sum(h*(R_B - ratio*R_A)) / sum(h).
        variance: V, its squared standard error.
        control_mean: sum(h*R_A) / sum(h), unscaled.
        effective_buckets: (sum n_Bb)^2 / sum(n_Bb^2); below 20 too few units carry the traffic of B.
    """

    difference: float
    variance: float
    control_mean: float
    effective_buckets: float

    @property
    def enough_units(self) -> bool:
        """Whether enough buckets carry B for V to mean anything; otherwise hold."""
        return self.effective_buckets >= MIN_EFFECTIVE_BUCKETS

    def with_unseen(self, units: tuple[int, int], off: float, resolution: float = 0.0) -> BucketEffect:
        """The same with what its figures cannot show added to V, so that equal figures are no certainty.

        Where all figures of an arm are the same, their variance is 0; but one more unit may be of another kind. V grows
        by (off/(n + 1))^2 for each arm, as much as one unit of n + 1 that is off by so much moves a mean, and by the
        rounding of the figures. Where units vary by s, that is (off/s)^2/n of V: with more units it soon vanishes.

        Args:
            units: of A and of B, that were measured: units, not requests.
            off: on D's scale, see `UNSEEN_FACTOR`.
            resolution: squared standard error of rounding, on D's scale.
        """
        more = sum((off / (1.0 + n)) ** 2 for n in units)
        return replace(self, variance=self.variance + more + resolution)

    def relative(self) -> tuple[float, float] | None:
        """Return (D/a, V/a^2) with a = control_mean, or None where control's mean is not positive."""
        if not self.control_mean > 0.0:
            return None
        scale = 1.0 / self.control_mean
        return self.difference * scale, self.variance * scale * scale


def bucket_effect(counts: ArrayLike, sums: ArrayLike, ratio: float = 1.0) -> BucketEffect | None:
    """Estimate mean(B) - ratio * mean(A).

    Args:
        counts: n, observations; shape (phases, 2 arms: A then B, buckets).
        sums: s, sums of the value; same shape. Sums of ln x for latency, of successes for proportions.
        ratio: factor on A, to test "B is at least ratio times A".

    Returns:
        The effect, or None while no phase has observations of both arms.

    Raises:
        ValueError: the shapes differ or are not (phases, 2, buckets) with at least 2 buckets.
    """
    n = np.asarray(counts, dtype=np.float64)
    s = np.asarray(sums, dtype=np.float64)
    if n.shape != s.shape or n.ndim != 3 or n.shape[1] != 2 or n.shape[2] < 2:
        msg = f"counts and sums must have the same shape (phases, 2, buckets), got {n.shape} and {s.shape}"
        raise ValueError(msg)
    totals = n.sum(axis=2)
    both = (totals > 0.0).all(axis=1)
    if not both.any():
        return None
    n, s, totals = n[both], s[both], totals[both]
    s = s * np.array([ratio, 1.0])[:, np.newaxis]
    means = s.sum(axis=2) / totals
    h = totals[:, 0] * totals[:, 1] / totals.sum(axis=1)
    parts = (s - means[:, :, np.newaxis] * n) / totals[:, :, np.newaxis]
    score = (h[:, np.newaxis] * (parts[:, 1] - parts[:, 0])).sum(axis=0)
    weight = float(h.sum())
    size = n.shape[2]
    carried = n[:, 1].sum(axis=0)
    return BucketEffect(
        difference=float((h * (means[:, 1] - means[:, 0])).sum()) / weight,
        variance=size / (size - 1.0) * float((score * score).sum()) / (weight * weight),
        control_mean=_control_mean(h, means[:, 0], ratio),
        effective_buckets=float(carried.sum() ** 2 / (carried * carried).sum()),
    )


def _control_mean(h: np.ndarray[tuple[int], np.dtype[np.float64]],
                  scaled: np.ndarray[tuple[int], np.dtype[np.float64]], ratio: float) -> float:
    if ratio == 0.0 or not math.isfinite(ratio):
        msg = f"ratio must be finite and not 0, got {ratio!r}"
        raise ValueError(msg)
    return float((h * scaled).sum()) / float(h.sum()) / ratio
