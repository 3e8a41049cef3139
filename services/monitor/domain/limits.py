"""Absolute limits: the canary against a configured number.

Acted on only while control's own test of the same limit is quiet: otherwise both arms are bad, which is an alert.
"""

import math
from collections.abc import Sequence
from typing import Any

from typing_extensions import override

from schemas.v1.experiment import GuardrailAction
from services.monitor.domain.checks import US_PER_MS, Check, Interval, Measure, number, percent
from services.monitor.domain.evidence import ArmEvidence, Phase
from services.monitor.domain.statistics import (
    AbsoluteRate,
    MeanSums,
    bin_index,
    bin_value,
    half_width,
    requests_needed,
    requests_needed_for_mean,
)
from services.monitor.domain.statistics.absolute import MIN_MEAN_OBSERVATIONS
from services.monitor.domain.statistics.intervals import share_interval
from services.monitor.domain.statistics.mixture import TAU
from services.monitor.domain.statistics.planning import MAX_REQUESTS

CONTROL_LOUD = 3.0
"""ln E of control's own test of an absolute limit (about 20 to 1) from which control counts as bad too."""


class AbsoluteErrors(Check):
    """One-sample Core A on B: first-error units among finished requests above a limit in percent."""

    kind = "absolute_errors"
    absolute = True

    def __init__(self, name: str, family: str, action: GuardrailAction, limit_percent: float, steps: int) -> None:
        super().__init__(name, family, action, limit_percent)
        self._a = AbsoluteRate(limit_percent / 100.0, steps=steps)
        self._b = AbsoluteRate(limit_percent / 100.0, steps=steps)
        self._counts = [0, 0, 0, 0]

    @override
    def start_epoch(self, steps: int) -> None:
        self._a.start_epoch(steps)
        self._b.start_epoch(steps)
        self._counts = [0, 0, 0, 0]

    @override
    def update(self, tick: int, phases: Sequence[Phase]) -> None:
        bad_a, done_a = _trials([phase.a for phase in phases])
        # A canary's requests while its share is 0 (those of a breaker's probe) are no sample of anything.
        bad_b, done_b = _trials([phase.b for phase in phases if phase.pi > 0.0])
        self._a.update(tick, bad_a, done_a)
        self._b.update(tick, bad_b, done_b)
        self._counts = [x + y for x, y in zip(self._counts, (bad_a, done_a, bad_b, done_b), strict=True)]

    @override
    def log_e(self) -> float:
        return self._b.log_e()

    @override
    def bad_units(self) -> int:
        return self._counts[2]

    @override
    def control_bad(self) -> bool:
        bad, done = self._counts[:2]
        return self._a.log_e() >= CONTROL_LOUD or (bad >= 3 and 100.0 * bad > self.threshold * done)

    @override
    def needs(self, requests: int, limit: float) -> int | None:
        return requests_needed(self._b, requests, limit)

    @override
    def measure(self, limit: float) -> Measure:
        bad_a, n_a, bad_b, n_b = self._counts
        rate_a, rate_b = percent(bad_a, n_a), percent(bad_b, n_b)
        text = (
            f"errors: {bad_b} units of B failed in {n_b} requests ({number(rate_b)} %), limit {self.threshold:g} %; "
            f"A: {bad_a} in {n_a} ({number(rate_a)} %)"
        )
        bound = self.threshold if self.log_e() >= limit else None
        return Measure(text, "%", "%", rate_b, bound, self.threshold, rate_a, rate_b, n_a, n_b)

    @override
    def interval(self, alpha: float) -> Interval:
        bad, n = self._counts[2:]
        if not n:
            return None, None
        low, high = share_interval(bad, n, alpha)
        return 100.0 * low, None if high is None else 100.0 * high

    @override
    def to_dict(self) -> dict[str, Any]:
        return {"a": self._a.to_dict(), "b": self._b.to_dict(), "counts": list(self._counts)}

    @override
    def load(self, state: dict[str, Any]) -> None:
        self._a = AbsoluteRate.from_dict(state["a"])
        self._b = AbsoluteRate.from_dict(state["b"])
        self._counts = list(state["counts"])


class AbsoluteLatency(Check):
    """One-sided confidence sequence of B's mean over the first requests of its units, against a limit in ms.

    First requests, because the mean over all of them could be one slow user's; from log bins, within 1 %.
    """

    kind = "absolute_latency"
    absolute = True

    def __init__(self, name: str, family: str, action: GuardrailAction, limit_ms: float) -> None:
        super().__init__(name, family, action, limit_ms)
        self._limit_us = limit_ms * US_PER_MS
        self._limit_bin = bin_index(self._limit_us)
        self._a = self._b = MeanSums(0, 0, 0)
        self._above = 0

    @override
    def start_epoch(self, steps: int) -> None:  # the sums know no steps
        self._a = self._b = MeanSums(0, 0, 0)
        self._above = 0

    @override
    def update(self, tick: int, phases: Sequence[Phase]) -> None:  # the sums know no time
        for phase in phases:
            self._a += mean_sums(phase.a.bins["latency"])
            if phase.pi > 0.0:
                bins = phase.b.bins["latency"]
                self._b += mean_sums(bins)
                self._above += sum(count for index, count in bins.items() if index > self._limit_bin)

    @override
    def log_e(self) -> float:
        return self._b.log_e_above(self._limit_us)

    @override
    def bad_units(self) -> int:
        return self._above

    @override
    def control_bad(self) -> bool:
        mean = self._a.mean
        return self._a.n >= 3 and mean is not None and mean > self._limit_us

    @override
    def needs(self, requests: int, limit: float) -> int | None:
        mean = self._b.mean
        if mean is None or not self._b.n:
            return None
        scale = self._limit_us
        more = requests_needed_for_mean(
            (mean - scale) / scale, self._b.uncertainty / (scale * scale), 0.0, self._b.n, limit
        )
        more = None if more is None else round(more * requests / self._b.n)
        return None if more is None or more > MAX_REQUESTS else more

    @override
    def measure(self, limit: float) -> Measure:
        mean_a, mean_b = (None if sums.mean is None else sums.mean / US_PER_MS for sums in (self._a, self._b))
        bound = self._b.lower_bound(self._limit_us, min(0.5, math.exp(-limit))) / US_PER_MS
        text = (
            f"mean latency: {number(mean_b)} ms over {self._b.n} units of B (at least {bound:.0f} ms), limit "
            f"{self.threshold:g} ms; A: {number(mean_a)} ms over {self._a.n}"
        )
        return Measure(text, "ms", "ms", mean_b, bound, self.threshold, mean_a, mean_b, self._a.n, self._b.n, "mean")

    @override
    def interval(self, alpha: float) -> Interval:
        mean = self._b.mean
        if mean is None or self._b.n < MIN_MEAN_OBSERVATIONS:
            return None, None
        wide = half_width(self._b.uncertainty, alpha, TAU * self._limit_us)
        if not math.isfinite(wide):
            return None, None
        return max(0.0, mean - wide) / US_PER_MS, (mean + wide) / US_PER_MS

    @override
    def to_dict(self) -> dict[str, Any]:
        return {"sums": [[s.n, s.total, s.squares] for s in (self._a, self._b)], "above": self._above}

    @override
    def load(self, state: dict[str, Any]) -> None:
        self._a, self._b = (MeanSums(*sums) for sums in state["sums"])
        self._above = state["above"]


def mean_sums(bins: dict[int, int]) -> MeanSums:
    """(n, sum, sum of squares) of binned values in whole microseconds."""
    values = [(round(bin_value(index)), count) for index, count in bins.items()]
    return MeanSums(
        sum(count for _, count in values),
        sum(value * count for value, count in values),
        sum(value * value * count for value, count in values),
    )


def _trials(arms: list[ArmEvidence]) -> tuple[int, int]:
    return sum(arm.first_errors for arm in arms), sum(arm.done for arm in arms)
