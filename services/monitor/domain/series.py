"""A test over time for people: at most 500 points, whatever the test's length. Pure."""

import math
from dataclasses import dataclass, field

from schemas.sketch import merge, quantile
from schemas.v1.record import Series
from services.monitor.domain.evaluator import TestEvaluator
from services.monitor.domain.evidence import Tick
from services.monitor.domain.promotion import primary_effect

MAX_POINTS = 500
STRETCHES = 50
"""Latency quantiles are of so many stretches of a test: a tail needs more requests than one point has."""

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_US_PER_MS = 1000.0
_SAME = 1e-9

Bins = dict[str, dict[int, int]]


@dataclass(slots=True)
class Point:
    """The end of one interval; ``bins`` are the latencies of the interval by arm."""

    second: int
    share_bp: int
    n_a: int
    n_b: int
    effect: tuple[float | None, float | None, float | None]
    limit: float
    limits: dict[str, float]
    log_e: dict[str, float]
    bins: Bins = field(default_factory=dict)


class SeriesBuilder:
    """Takes every tick after the evaluator has; doubles its interval whenever there are too many points."""

    def __init__(self) -> None:
        self.step = 1
        self._points: list[Point] = []
        self._waiting = 0
        self._bins: Bins = {"a": {}, "b": {}}

    def add(self, evaluator: TestEvaluator, tick: Tick) -> None:
        """Take in a tick; those before the test began are not shown."""
        if tick.second < evaluator.started_s:
            return
        for cell in tick.cells:
            if cell.variant in self._bins:
                merge(self._bins[cell.variant], cell.latency.bins)
        self._waiting += 1
        if self._waiting >= self.step:
            self._points.append(self._point(evaluator))
            self._bins, self._waiting = {"a": {}, "b": {}}, 0
        if len(self._points) >= MAX_POINTS:
            self._halve()

    def build(self, evaluator: TestEvaluator) -> Series:
        """All points, with one more for the interval that is still open."""
        points = [*self._points, self._point(evaluator)] if self._waiting else self._points
        names = [check.name for check in evaluator.checks]
        latencies = _latencies(points)
        return Series(
            metric=evaluator.experiment.primary_metric,
            step_ticks=self.step,
            seconds=[point.second for point in points],
            share_bp=[point.share_bp for point in points],
            n_a=[point.n_a for point in points],
            n_b=[point.n_b for point in points],
            effect=[_known(point.effect[0]) for point in points],
            effect_low=[_known(point.effect[1]) for point in points],
            effect_high=[_known(point.effect[2]) for point in points],
            limit=[_rounded(point.limit) for point in points],
            limits=_own_limits(points),
            log_e={name: [_known(point.log_e.get(name)) for point in points] for name in names},
            latency_ms=latencies,
        )

    def _point(self, evaluator: TestEvaluator) -> Point:
        effect = primary_effect(evaluator)
        return Point(
            second=evaluator.second or 0,
            share_bp=evaluator.share_bp,
            n_a=evaluator.totals.of("a").done,
            n_b=evaluator.totals.of("b").done,
            effect=(effect.percent, effect.low, effect.high),
            limit=evaluator.levels.limit(evaluator.epoch),
            limits={check.name: evaluator.limit(check) for check in evaluator.checks if check.action != "warn"},
            log_e={check.name: evaluator.log_e(check) for check in evaluator.checks},
            bins={arm: dict(bins) for arm, bins in self._bins.items()},
        )

    def _halve(self) -> None:
        merged = []
        for first, second in zip(self._points[::2], self._points[1::2], strict=False):
            for arm, bins in first.bins.items():
                merge(second.bins[arm], bins)
            merged.append(second)
        self._points = merged
        self.step *= 2


def _own_limits(points: list[Point]) -> dict[str, list[float | None]]:
    """The limits of guardrails that do not have the common one all the time."""
    names = points[0].limits if points else {}
    return {
        name: [_known(point.limits[name]) for point in points]
        for name in names
        if any(abs(point.limits[name] - point.limit) > _SAME for point in points)
    }


def _latencies(points: list[Point]) -> dict[str, list[float | None]]:
    found: dict[str, list[float | None]] = {f"{arm}.{name}": [] for arm in ("a", "b") for name in QUANTILES}
    size = -(-len(points) // STRETCHES) or 1
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        for arm in ("a", "b"):
            bins: dict[int, int] = {}
            for point in stretch:
                merge(bins, point.bins[arm])
            for name, share in QUANTILES.items():
                found[f"{arm}.{name}"] += [_milliseconds(bins, share)] * len(stretch)
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _known(value: float | None) -> float | None:
    return _rounded(value) if value is not None and math.isfinite(value) else None


def _milliseconds(bins: dict[int, int], share: float) -> float | None:
    value = quantile(bins, share)
    return None if value is None else _rounded(value / _US_PER_MS)
