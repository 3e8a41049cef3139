"""B's effect on a test's primary metric: how large it may be, and the evidence that it is what a promotion asks for.

Core C over unit buckets; of errors also Core A reversed on units, which needs no errors of B (`docs/statistics.md`).
"""

import math
from dataclasses import dataclass

import numpy as np

from services.monitor.domain.evaluator import TestEvaluator
from services.monitor.domain.opinions import METRICS, opinion_effect
from services.monitor.domain.statistics import (
    BucketEffect,
    FewerErrors,
    bucket_effect,
    half_width,
    mixture_log_e,
    reduction_log_e,
    requests_needed_for_mean,
)
from services.monitor.domain.statistics.buckets import UNSEEN_FACTOR, UNSEEN_SHARE
from services.monitor.domain.statistics.mixture import MIN_SUCCESSES
from services.monitor.domain.statistics.planning import smallest
from services.monitor.domain.statistics.start_mixture import log_sum_exp
from services.monitor.domain.totals import Table
from services.monitor.domain.waiting import requests_until

ALPHA = 0.05
LIMIT = -math.log(ALPHA)

MIN_ERRORS = 20
"""Errors of A, and of B if it failed as often, from which on the difference of their rates may be taken as normal. How
many B has is no part of it: with more errors B must never have more evidence. An interval asks for so many of each."""

HALF = math.log(0.5)
"""Weight of each of the two tests of errors: by units, and by requests once there are enough errors of both arms."""

MAX_LOG = math.log(1e9)
_MICRO = 1e6


@dataclass(frozen=True, slots=True)
class Effect:
    """Relative effect of B on the primary metric in percent, and evidence both ways.

    A lower figure is better, except of what users say (``more_is_better``).
    ``needs`` is about how many more requests the evidence takes, with ``hold`` until it can be judged; None: cannot be
    told. ``low`` and ``high`` are its two-sided confidence sequence at `ALPHA`; None where it has none yet.
    ``basis`` says what is compared where it is not all requests; ``against`` what holds a promotion whatever the
    evidence.
    """

    metric: str
    percent: float | None
    better: float
    not_better: float
    needs: int | None
    hold: str | None
    low: float | None = None
    high: float | None = None
    more_is_better: bool = False
    basis: str = ""
    against: str = ""

    @property
    def met(self) -> bool:
        """Whether B is shown to be better by what was asked for."""
        return self.hold is None and not self.against and self.better >= LIMIT


def primary_effect(evaluator: TestEvaluator) -> Effect:
    """B's effect on the primary metric, with evidence that it improves by the threshold, and that it does not."""
    metric = evaluator.experiment.primary_metric
    threshold = evaluator.experiment.success_criteria.min_improvement_threshold / 100.0
    if metric in METRICS:
        return _opinion_effect(evaluator, metric, threshold)
    if threshold >= 1.0:
        return Effect(metric, None, 0.0, 0.0, None, f"an improvement by {100 * threshold:g} % is impossible: lower it")
    if metric == "error_rate":
        return _error_effect(evaluator, threshold)
    effect = log_effect(evaluator, metric)
    hold = held(effect)
    if effect is None or hold is not None:
        return Effect(metric, None, 0.0, 0.0, None, hold)
    d, v = effect.difference, effect.variance
    null = -math.log1p(-threshold)
    wide = half_width(v, ALPHA)
    return Effect(
        metric, relative_percent(d), reduction_log_e(d, v, threshold), mixture_log_e(d, v, -null),
        requests_needed_for_mean(-d, v, null, evaluator.totals.requests(), LIMIT), None,
        _percent(d - wide), _percent(d + wide),
    )  # fmt: skip


def _error_effect(evaluator: TestEvaluator, threshold: float) -> Effect:
    """Half the mass on first-error units (Core A reversed), half on all requests once there are enough errors.

    Both are e-processes under "B's errors are not fewer by the threshold", so their mean is one. Whichever of them the
    effect is shown by, its interval takes half of `ALPHA`: so both hold at `ALPHA`, and what they exclude is decided.
    """
    counts, sums = evaluator.totals.stacked("n", "errors")
    effect = bucket_effect(counts, sums, 1.0 - threshold)
    hold = held(effect)
    if effect is None or hold is not None:
        return Effect("error_rate", None, 0.0, 0.0, None, hold)
    units = evaluator.fewer_errors
    ratio = units.ratio()
    if ratio is None:
        return Effect("error_rate", None, 0.0, 0.0, None, _nothing_to_improve(units))
    normal = _normal(evaluator, effect, counts, sums)
    growth = _ErrorGrowth(evaluator, units, normal, threshold)
    better = growth.log_e()
    # A few units that ask again and again may have so many requests that fail: then fewer units prove nothing.
    against = "" if effect.difference <= 0.0 else _against(effect, threshold)
    needs = None if against else growth.needs()
    if normal is None or sums[:, 1].sum() < MIN_ERRORS:
        least, most = units.interval(ALPHA / 2.0)
        of_a, of_b = units.totals
        return Effect(
            "error_rate", 100.0 * (ratio - 1.0), better, 0.0, needs, None, 100.0 * (least - 1.0),
            None if most is None else 100.0 * (most - 1.0),
            basis=f" by units with an error ({of_b} of B, {of_a} of A)", against=against,
        )  # fmt: skip
    d, v = normal
    wide = half_width(v, ALPHA / 2.0)
    bounds = [100.0 * (d + side - threshold) for side in (-wide, wide)]
    low, high = (bound if math.isfinite(bound) else None for bound in bounds)
    return Effect(
        "error_rate", 100.0 * (d - threshold), better, mixture_log_e(d, v), needs, None, low, high, against=against
    )


def _nothing_to_improve(units: FewerErrors) -> str:
    who = "A has had no error yet" if units.totals[1] else "neither A nor B has had an error yet"
    return (
        f"{who}, and B can only be shown to have fewer than A has: if it stays so, no promotion by error_rate is "
        "possible; start the test with another primary metric (latency, ttft, cost, thumbs, conversion or score)"
    )


def _against(effect: BucketEffect, threshold: float) -> str:
    a = effect.control_mean
    b = effect.difference + (1.0 - threshold) * a
    return f"of all requests {100 * b:.2f} % of B's and {100 * a:.2f} % of A's failed, which is no such improvement"


def _normal(
    evaluator: TestEvaluator, effect: BucketEffect, counts: Table, errors: Table
) -> tuple[float, float] | None:
    """(D, V) relative to A's rate of all requests; None where there are too few errors to take it as normal."""
    expected = min(float(errors[:, 0].sum()), effect.control_mean * float(counts[:, 1].sum()))
    if expected < MIN_ERRORS:
        return None
    return effect.with_unseen(measured(evaluator, counts), UNSEEN_SHARE * effect.control_mean).relative()


class _ErrorGrowth:
    """The evidence that B's errors are fewer, now and after more requests like those so far."""

    def __init__(
        self, evaluator: TestEvaluator, units: FewerErrors, normal: tuple[float, float] | None, threshold: float
    ) -> None:
        self._mass, self._growth = units.process(1.0 - threshold).paths()
        self._normal = normal
        self._seen = evaluator.totals.requests()

    def log_e(self, more: int = 0) -> float:
        by_units = log_sum_exp(self._mass + self._growth * (more / max(1, self._seen)))
        if self._normal is None:
            return by_units + HALF
        d, v = self._normal
        by_requests = mixture_log_e(-d, v * self._seen / (self._seen + more))
        return float(np.logaddexp(by_units, by_requests)) + HALF

    def needs(self) -> int | None:
        """Requests until it is shown; None where nothing grows, or beyond all figures."""
        if self.log_e() >= LIMIT:
            return 0
        grows = bool((self._growth > 0.0).any()) or (self._normal is not None and self._normal[0] < 0.0)
        return smallest(lambda more: self.log_e(more) >= LIMIT) if grows and self._seen else None


def _opinion_effect(evaluator: TestEvaluator, metric: str, threshold: float) -> Effect:
    found = opinion_effect(evaluator.totals, metric, threshold)
    if found.hold is not None:
        seen = evaluator.totals.requests()
        needs = None if found.fewest is None else requests_until(found.fewest, MIN_SUCCESSES, seen)
        return Effect(metric, None, 0.0, 0.0, needs, found.hold, more_is_better=True)
    d, v, wide = found.d, found.v, half_width(found.v, ALPHA)
    low, value, high = (100.0 * (d + side + threshold) for side in (-wide, 0.0, wide))
    return Effect(
        metric, value, mixture_log_e(d, v), mixture_log_e(-d, v),
        requests_needed_for_mean(d, v, 0.0, evaluator.totals.requests(), LIMIT), None,
        low if math.isfinite(low) else None, high if math.isfinite(high) else None, more_is_better=True,
    )  # fmt: skip


def relative_percent(log_difference: float) -> float:
    """A difference of logarithms as a relative change in percent, however large."""
    return 100.0 * math.expm1(min(log_difference, MAX_LOG))


def _percent(log_difference: float) -> float | None:
    """A difference of logarithms as a relative change in percent; None where it is beyond all figures."""
    return 100.0 * math.expm1(log_difference) if log_difference < MAX_LOG else None


def log_effect(evaluator: TestEvaluator, metric: str) -> BucketEffect | None:
    """Difference of mean logarithms, B - A, by unit buckets within phases."""
    counts, sums = evaluator.totals.stacked(f"{metric}_n", f"{metric}_ln")
    effect = bucket_effect(counts, sums / _MICRO)
    if effect is None:
        return None
    a, b = effect.control_mean, effect.control_mean + effect.difference
    # Figures are whole microseconds or nano-dollars: of a mean of x, up to half of one in x.
    rounding = sum(math.exp(-2.0 * max(0.0, mean)) for mean in (a, b)) / 12.0
    return effect.with_unseen(measured(evaluator, counts), UNSEEN_FACTOR, rounding)


def measured(evaluator: TestEvaluator, counts: Table) -> tuple[int, int]:
    """Units of A and of B behind as many observations in phases of both arms; some may have none that was measured."""
    a, b = (
        min(evaluator.totals.of(variant).units, int(counts[:, arm].sum())) for arm, variant in enumerate("ab")
    )
    return a, b


def held(effect: BucketEffect | None) -> str | None:
    """Why an effect cannot be judged yet: nothing was measured, or too few units carry it."""
    if effect is None:
        return "nothing was measured in both arms yet"
    if not effect.enough_units:
        return f"B's traffic comes from too few units ({effect.effective_buckets:.0f} effective buckets, needs 20)"
    return None
