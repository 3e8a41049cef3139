"""A test over time for people: at most 500 points, whatever the test's length. Pure."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from schemas.sketch import merge, quantile
from schemas.v1.record import Series
from services.monitor.domain.effects import primary_effect
from services.monitor.domain.evaluator import TestEvaluator
from services.monitor.domain.evidence import Tick, errors_of

MAX_POINTS = 500
STRETCHES = 50
"""Latency quantiles are of so many stretches of a test: a tail needs more requests than one point has."""

RECENT_STEP = 5
RECENT_POINTS = 120
"""The last ten minutes of broker time, in points of five seconds."""

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_US_PER_MS = 1000.0
_SAME = 1e-9

ARMS = ("a", "b")

Bins = dict[str, dict[int, int]]


@dataclass(slots=True)
class Interval:
    """What finished within an interval, by arm: requests, errors among them, and bins of latency and TTFT."""

    done: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ARMS, 0))
    errors: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ARMS, 0))
    latency: Bins = field(default_factory=lambda: {arm: {} for arm in ARMS})
    ttft: Bins = field(default_factory=lambda: {arm: {} for arm in ARMS})

    def add(self, tick: Tick) -> None:
        """Take in a tick."""
        for cell in tick.cells:
            if cell.variant in self.done:
                self.done[cell.variant] += cell.done
                self.errors[cell.variant] += errors_of(cell)
                merge(self.latency[cell.variant], cell.latency.bins)
                merge(self.ttft[cell.variant], cell.ttft.bins)

    def join(self, other: "Interval") -> None:
        """Take in another interval."""
        for arm in ARMS:
            self.done[arm] += other.done[arm]
            self.errors[arm] += other.errors[arm]
            merge(self.latency[arm], other.latency[arm])
            merge(self.ttft[arm], other.ttft[arm])


@dataclass(slots=True)
class Point:
    """The end of one interval, and what was in it."""

    second: int
    share_bp: int
    n_a: int
    n_b: int
    effect: tuple[float | None, float | None, float | None]
    limit: float
    limits: dict[str, float]
    log_e: dict[str, float]
    interval: Interval = field(default_factory=Interval)


class SeriesBuilder:
    """Takes every tick after the evaluator has.

    Of a whole test it doubles its interval whenever there are too many points; ``recent`` it forgets the oldest.
    """

    def __init__(self, *, recent: bool = False) -> None:
        self.step = RECENT_STEP if recent else 1
        self._points: deque[Point] = deque(maxlen=RECENT_POINTS if recent else None)
        self._waiting = 0
        self._interval = Interval()
        self._before: int | None = None

    def add(self, evaluator: TestEvaluator, tick: Tick) -> None:
        """Take in a tick; those before the test began are not shown."""
        if tick.second < evaluator.started_s:
            return
        self._interval.add(tick)
        self._waiting += 1
        if self._waiting >= self.step:
            if len(self._points) == self._points.maxlen:
                self._before = self._points[0].second
            self._points.append(self._point(evaluator))
            self._interval, self._waiting = Interval(), 0
        if len(self._points) >= MAX_POINTS:
            self._halve()

    def build(self, evaluator: TestEvaluator) -> Series:
        """All points, with one more for the interval that is still open."""
        points = [*self._points, self._point(evaluator)] if self._waiting else list(self._points)
        names = [check.name for check in evaluator.checks]
        first = evaluator.started_s if self._before is None else self._before
        stretches = [Stretch(part, before) for part, before in _stretches(points, first)]
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
            latency_ms=_quantiles(stretches, lambda interval: interval.latency),
            ttft_ms=_quantiles(stretches, lambda interval: interval.ttft),
            per_second={arm: _each(stretches, lambda s, arm=arm: s.per_second(arm)) for arm in ARMS},  # type: ignore[misc]
            error_rate={arm: _each(stretches, lambda s, arm=arm: s.error_rate(arm)) for arm in ARMS},  # type: ignore[misc]
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
            interval=self._interval,
        )

    def _halve(self) -> None:
        points = list(self._points)
        for first, second in zip(points[::2], points[1::2], strict=False):
            second.interval.join(first.interval)
        self._points = deque(points[1::2])
        self.step *= 2


def _own_limits(points: list[Point]) -> dict[str, list[float | None]]:
    """The limits of guardrails that do not have the common one all the time."""
    names = points[0].limits if points else {}
    return {
        name: [_known(point.limits[name]) for point in points]
        for name in names
        if any(abs(point.limits[name] - point.limit) > _SAME for point in points)
    }


class Stretch:
    """Some points together: a tail, or a rate of errors, needs more requests than one point has."""

    def __init__(self, points: list[Point], before: int) -> None:
        self.points = len(points)
        self.seconds = max(1, points[-1].second - before)
        self.whole = Interval()
        for point in points:
            self.whole.join(point.interval)

    def per_second(self, arm: str) -> float:
        """Finished requests of an arm per second."""
        return self.whole.done[arm] / self.seconds

    def error_rate(self, arm: str) -> float | None:
        """Errors in percent of an arm's finished requests; None of nothing."""
        done = self.whole.done[arm]
        return 100.0 * self.whole.errors[arm] / done if done else None


def _stretches(points: list[Point], before: int) -> Iterator[tuple[list[Point], int]]:
    """At most `STRETCHES` of them, each with the second before its first."""
    size = -(-len(points) // STRETCHES) or 1
    for start in range(0, len(points), size):
        yield points[start : start + size], points[start - 1].second if start else before


def _each(stretches: list[Stretch], figure: Callable[[Stretch], float | None]) -> list[float | None]:
    """A figure of each stretch, for each of its points."""
    found: list[float | None] = []
    for stretch in stretches:
        found += [_known(figure(stretch))] * stretch.points
    return found


def _quantiles(stretches: list[Stretch], of: Callable[[Interval], Bins]) -> dict[str, list[float | None]]:
    return {
        f"{arm}.{name}": _each(stretches, lambda s, arm=arm, q=q: _milliseconds(of(s.whole)[arm], q))  # type: ignore[misc]
        for arm in ARMS
        for name, q in QUANTILES.items()
    }


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _known(value: float | None) -> float | None:
    return _rounded(value) if value is not None and math.isfinite(value) else None


def _milliseconds(bins: dict[int, int], share: float) -> float | None:
    value = quantile(bins, share)
    return None if value is None else value / _US_PER_MS
