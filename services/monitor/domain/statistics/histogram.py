"""Log-bin histograms: the only form in which latencies reach the statistics.

A value x > 0 lies in bin ``ceil(ln x / ln GAMMA)``, that is in ``(GAMMA**(i-1), GAMMA**i]``
(the mapping of DDSketch: Masson, Rim & Lee 2019, arXiv 1908.10693; about 1 % relative error).
Counts per bin are exact, additive and subtractable, which rank tests and quantile intervals need.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

GAMMA = 1.02
LOG_GAMMA = math.log(GAMMA)

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Histogram: TypeAlias = Mapping[int, int]
"""Counts by bin index; bins without observations are absent."""

RateRow: TypeAlias = tuple[float, int, int]
"""(pi, events in control A, events in canary B) of one phase within one tick."""

HistogramRow: TypeAlias = tuple[float, Histogram, Histogram]
"""(pi, histogram of control A, histogram of canary B) of one phase within one tick."""

State: TypeAlias = dict[str, Any]
"""A JSON-serialisable checkpoint; floats survive ``json.dumps``/``json.loads`` bit for bit."""


def bin_index(value: float) -> int:
    """Return the log bin of a positive value.

    Raises:
        ValueError: the value is not positive and finite.
    """
    if not (math.isfinite(value) and value > 0.0):
        msg = f"value must be positive and finite, got {value!r}"
        raise ValueError(msg)
    return math.ceil(math.log(value) / LOG_GAMMA)


def bin_value(index: int) -> float:
    """Return the representative value of a bin, within 1 % of everything in it."""
    return 2.0 * math.exp(LOG_GAMMA * index) / (GAMMA + 1.0)


def bin_upper_edge(index: int) -> float:
    """Return the inclusive upper edge of a bin (its lower edge is that of ``index - 1``)."""
    return math.exp(LOG_GAMMA * index)


def margin_shift(margin: float) -> int:
    """Return by how many bins B is lowered so that B = A * (1 + margin) is not above A.

    Rounding is upwards, so the tested margin is never smaller than the one asked for.

    Raises:
        ValueError: the margin is negative or not finite.
    """
    if not (math.isfinite(margin) and margin >= 0.0):
        msg = f"margin must be finite and >= 0 (0.2 means 20 %), got {margin!r}"
        raise ValueError(msg)
    return math.ceil(math.log(1.0 + margin) / LOG_GAMMA)


def check_share(pi: float) -> None:
    """Refuse a share that is no share.

    Raises:
        ValueError: pi is not within [0, 1].
    """
    if not 0.0 <= pi <= 1.0:
        msg = f"pi must be a share within [0, 1], got {pi!r}"
        raise ValueError(msg)


def check_counts(counts: Iterable[int]) -> None:
    """Refuse negative counts, which no window can hold.

    Raises:
        ValueError: a count is negative.
    """
    if any(count < 0 for count in counts):
        msg = "counts must be >= 0; a window holds increments, never corrections"
        raise ValueError(msg)


def merge_histograms(histograms: Iterable[Histogram]) -> dict[int, int]:
    """Add histograms bin by bin; the result is sorted by bin and holds no empty bin.

    Raises:
        ValueError: a count is negative.
    """
    merged: dict[int, int] = {}
    for histogram in histograms:
        check_counts(histogram.values())
        for index, count in histogram.items():
            if count:
                merged[index] = merged.get(index, 0) + count
    return dict(sorted(merged.items()))


def merge_by_share(rows: Iterable[HistogramRow]) -> list[tuple[float, dict[int, int], dict[int, int]]]:
    """Merge rows of equal share and order them, so that row order within a tick cannot matter.

    Raises:
        ValueError: a share is outside [0, 1] or a count is negative.
    """
    groups: dict[float, tuple[list[Histogram], list[Histogram]]] = {}
    for pi, hist_a, hist_b in rows:
        check_share(pi)
        both = groups.setdefault(float(pi), ([], []))
        both[0].append(hist_a)
        both[1].append(hist_b)
    return [(pi, merge_histograms(a), merge_histograms(b)) for pi, (a, b) in sorted(groups.items())]


def as_arrays(histogram: Histogram) -> tuple[Ints, Floats]:
    """Return (bins, counts) in the histogram's own order."""
    size = len(histogram)
    bins = np.fromiter(histogram.keys(), dtype=np.int64, count=size)
    return bins, np.fromiter(histogram.values(), dtype=np.float64, count=size)


class ControlHistory:
    """Control's observations of *earlier* ticks: the fixed yardstick for the present tick.

    What a tick brings waits in ``pending`` until a later tick begins. A score computed against
    this object is therefore a fixed function while a tick is judged, which is what makes the
    betting factors a martingale.
    """

    def __init__(self) -> None:
        self._tick: int | None = None
        self._pending: dict[int, int] = {}
        self._offset = 0
        self._counts: Ints = np.zeros(0, dtype=np.int64)
        self._below: Ints = np.zeros(1, dtype=np.int64)

    @property
    def total(self) -> int:
        """Number of control observations in earlier ticks."""
        return int(self._below[-1])

    def begin(self, tick: int) -> bool:
        """Enter a tick; return True when it is a new one, after taking in what was pending.

        Raises:
            ValueError: the tick is before the last one.
        """
        if self._tick is not None and tick < self._tick:
            msg = f"tick must not go back: {tick} after {self._tick}; fold late facts into a later tick"
            raise ValueError(msg)
        if tick == self._tick:
            return False
        self._tick = tick
        self._fold()
        return True

    def restart(self) -> None:
        """Take in what is pending and let ticks count from zero again, keeping the observations."""
        self._fold()
        self._tick = None

    def add(self, hist_a: Histogram) -> None:
        """Add control observations of the present tick (counted from the next one on)."""
        for index, count in hist_a.items():
            self._pending[index] = self._pending.get(index, 0) + count

    def twice_rank(self, bins: Ints) -> Ints:
        """Return 2 * (control observations below a bin) + (those in it), for each bin."""
        size = len(self._counts)
        low = np.clip(bins - self._offset, 0, size)
        high = np.clip(bins - self._offset + 1, 0, size)
        ranks: Ints = self._below[low] + self._below[high]
        return ranks

    def percentile_bin(self, percent: int) -> int:
        """Return the lowest bin with at least ``percent`` % of control at or below it."""
        position = int(np.searchsorted(self._below[1:], -(-self.total * percent // 100), side="left"))
        return self._offset + position

    def to_dict(self) -> State:
        """Return the checkpoint of this history."""
        occupied = np.flatnonzero(self._counts)
        return {
            "tick": self._tick,
            "pending": [[index, count] for index, count in sorted(self._pending.items())],
            "counts": [[int(i) + self._offset, int(self._counts[i])] for i in occupied],
        }

    @classmethod
    def from_dict(cls, state: State) -> ControlHistory:
        """Restore a history from its checkpoint."""
        history = cls()
        history._pending = {int(index): int(count) for index, count in state["counts"]}
        history._fold()
        history._pending = {int(index): int(count) for index, count in state["pending"]}
        history._tick = state["tick"]
        return history

    def _fold(self) -> None:
        if not self._pending:
            return
        low, high = min(self._pending), max(self._pending)
        if len(self._counts):
            low, high = min(low, self._offset), max(high, self._offset + len(self._counts) - 1)
        if low != self._offset or high - low + 1 != len(self._counts):
            grown = np.zeros(high - low + 1, dtype=np.int64)
            start = self._offset - low
            grown[start : start + len(self._counts)] = self._counts
            self._offset, self._counts = low, grown
        for index, count in self._pending.items():
            self._counts[index - self._offset] += count
        self._pending = {}
        self._below = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(self._counts)))
