"""The effect of B on what users say: thumbs, conversions and scores, a unit's first of each kind in the whole test.

Method: Core C over unit buckets within phases, D = (b - r*a)/a with r = 1 + threshold (`docs/statistics.md`).
"""

from dataclasses import dataclass

import numpy as np

from services.monitor.domain.statistics import BucketEffect, bucket_effect
from services.monitor.domain.statistics.buckets import UNSEEN_SHARE
from services.monitor.domain.statistics.mixture import MIN_SUCCESSES
from services.monitor.domain.totals import Totals

_MICRO = 1e6

METRICS = {
    "thumbs": ("thumbs_n", "thumbs_up", 1.0),
    "conversion": ("conversion_n", "conversions", 1.0),
    "score": ("score_n", "score_micro", _MICRO),
}
"""Primary metrics of which more is better: bucket sums of answers and of their values, and the values' unit."""


@dataclass(frozen=True, slots=True)
class OpinionEffect:
    """B's relative effect ``d`` less the threshold, and its variance; or ``hold``, why it cannot be judged yet.

    ``fewest`` is how many there are of what is too few, where that is the reason.
    """

    d: float
    v: float
    hold: str | None = None
    fewest: int | None = None


def opinion_effect(totals: Totals, metric: str, threshold: float) -> OpinionEffect:
    """The effect on a metric of METRICS; ``threshold`` is the increase asked for (0.05: 5 %)."""
    answers, values, scale = METRICS[metric]
    counts, sums = totals.stacked(answers, values)
    n, s = counts.sum(axis=(0, 2)), sums.sum(axis=(0, 2))
    fewest = int(n.min()) if metric == "score" else int(np.minimum(s, n - s).min())
    if fewest < MIN_SUCCESSES:
        what = "scores" if metric == "score" else "answers of either kind"
        hold = f"{fewest} {what} in one arm are too few, at least {MIN_SUCCESSES} are needed"
        return OpinionEffect(0.0, 0.0, hold, fewest)
    effect = bucket_effect(counts, sums / scale, 1.0 + threshold)
    if effect is None or not effect.enough_units:
        return OpinionEffect(0.0, 0.0, _hold(effect))
    relative = effect.with_unseen((int(n[0]), int(n[1])), UNSEEN_SHARE * effect.control_mean).relative()
    if relative is None:
        return OpinionEffect(0.0, 0.0, "control has none")
    return OpinionEffect(*relative)


def _hold(effect: BucketEffect | None) -> str:
    if effect is None:
        return "nothing was said about both arms at one split yet"
    return f"B's answers come from too few units ({effect.effective_buckets:.0f} effective buckets, needs 20)"
