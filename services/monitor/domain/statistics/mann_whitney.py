"""Core B: sequential Mann-Whitney test by betting, for values with heavy tails.

Source: our composition of betting on bounded scores (Waudby-Smith & Ramdas, "Estimating means of bounded
random variables by betting", arXiv 2010.09686; Shekhar & Ramdas on two-sample betting, arXiv 2112.09162)
with the mid-rank against control's earlier windows as the score, and the start-time mixture.

For one request that goes to B with probability pi, the factor is 1 + kappa*(y - c) if it went to B and
1 - kappa*pi/(1-pi)*(y - c) if it went to A. Whatever c and kappa are (both known before the tick), its
expectation is exactly 1 when the arms are equal, at every moment of a drifting day.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from services.monitor.domain.statistics.histogram import (
    ControlHistory,
    Floats,
    Histogram,
    HistogramRow,
    State,
    as_arrays,
    margin_shift,
    merge_by_share,
)
from services.monitor.domain.statistics.start_mixture import GRID_SIZE, StartMixture

MIN_CONTROL = 50
CENTRE_BOUNDS = (0.1, 0.9)
CENTRE_MEMORY = 1000.0
"""Observations after which the weight of a score in the centre has fallen to 1/e."""

_TINY = 1e-300

BET_FRACTIONS: Floats = 0.95 * np.exp(np.linspace(math.log(0.02), 0.0, GRID_SIZE))


def bets(centre: Floats | float, pi: Floats | float) -> Floats:
    """Return kappa_j: fractions of the largest bet that can never lose everything.

    0.95 * min(1/c, (1-pi)/(pi*(1-c))) * exp(linspace(ln 0.02, 0, 16)).
    """
    # The smallest normal number keeps a share that underflows from dividing by zero.
    hedge = (1.0 - pi) / np.maximum(pi * (1.0 - centre), _TINY)
    limit = np.minimum(1.0 / centre, hedge)
    kappa: Floats = limit * BET_FRACTIONS
    return kappa


class MannWhitney:
    """ln E against "B's values, lowered by the margin, are not larger than A's".

    Nothing is bet before control has 50 observations in earlier ticks; rows with pi = 0 or 1 or without
    observations have factor exactly 1 (control's observations still become part of the yardstick).
    """

    def __init__(self, margin: float = 0.0, w0: float = 0.5, steps: int = 1) -> None:
        """Create the process at E = 1.

        Args:
            margin: relative increase of B that is tolerated (0.2 = 20 %); 0 tests for any increase.
            w0: mass bet from the start.
            steps: planned steps of 5 s.

        Raises:
            ValueError: margin, w0 or steps is out of range.
        """
        self.shift = margin_shift(margin)
        self.mixture = StartMixture(w0, steps)
        self.history = ControlHistory()
        self._score_sum = 0.5
        self._score_weight = 1.0
        self._pending_sum = 0.0
        self._pending_count = 0

    @property
    def centre(self) -> float:
        """c: exponentially weighted mean score of earlier ticks, clipped to [0.1, 0.9]."""
        return min(max(self._score_sum / self._score_weight, CENTRE_BOUNDS[0]), CENTRE_BOUNDS[1])

    def update(self, tick: int, rows: Iterable[HistogramRow]) -> None:
        """Take in one tick.

        Args:
            tick: whole seconds of broker time since the epoch began; never going back.
            rows: (pi, histogram A, histogram B) for each phase; their order does not matter.

        Raises:
            ValueError: the tick goes back, a share is outside [0, 1] or a count is negative.
        """
        merged = merge_by_share(rows)
        new = self.history.begin(tick)
        self.observe(tick, merged, self.history, new=new)
        for _, hist_a, _ in merged:
            self.history.add(hist_a)

    def observe(self, tick: int, rows: list[tuple[float, dict[int, int], dict[int, int]]],
                history: ControlHistory, *, new: bool) -> None:
        """Bet on merged rows against a history that is already at this tick (see ``LatencyEvidence``)."""
        self.mixture.advance(tick)
        if new:
            self._move_centre()
        if history.total < MIN_CONTROL:
            return
        for pi, hist_a, hist_b in rows:
            if not hist_a and not hist_b:
                continue
            y_a, n_a = self._scores(hist_a, history, 0)
            y_b, n_b = self._scores(hist_b, history, self.shift)
            if 0.0 < pi < 1.0:
                centre = self.centre
                kappa = bets(centre, pi)
                gain = np.log1p(np.outer(kappa, y_b - centre)) * n_b
                loss = np.log1p(np.outer(kappa * (-pi / (1.0 - pi)), y_a - centre)) * n_a
                self.mixture.multiply(gain.sum(axis=1) + loss.sum(axis=1))
            self._pending_sum += float((y_a * n_a).sum() + (y_b * n_b).sum())
            self._pending_count += int(n_a.sum() + n_b.sum())

    def log_e(self) -> float:
        """Return ln E; reject at ln E >= ln(1/alpha_k)."""
        return self.mixture.log_e()

    def start_epoch(self, steps: int) -> None:
        """Begin a new epoch: E = 1 and ticks from 0; control's history and the centre stay."""
        self.history.restart()
        self.restart(steps)

    def restart(self, steps: int) -> None:
        """Begin a new epoch of the bets alone (the history is somebody else's)."""
        self._move_centre()
        self.mixture.restart(steps)

    def paths(self) -> tuple[Floats, Floats]:
        """Return (ln mass, ln growth since the epoch began) of every bet, for planning."""
        return self.mixture.log_r, self.mixture.growth

    def to_dict(self) -> State:
        """Return the checkpoint of this process."""
        return {
            "shift": self.shift,
            "mixture": self.mixture.to_dict(),
            "history": self.history.to_dict(),
            "centre": [self._score_sum, self._score_weight, self._pending_sum, self._pending_count],
        }

    @classmethod
    def from_dict(cls, state: State) -> MannWhitney:
        """Restore a process that goes on bit for bit where the checkpoint was taken."""
        process = cls()
        process.shift = state["shift"]
        process.mixture = StartMixture.from_dict(state["mixture"])
        process.history = ControlHistory.from_dict(state["history"])
        process._score_sum, process._score_weight = state["centre"][:2]
        process._pending_sum, process._pending_count = state["centre"][2:]
        return process

    def _move_centre(self) -> None:
        if not self._pending_count:
            return
        decay = math.exp(-self._pending_count / CENTRE_MEMORY)
        self._score_sum = self._score_sum * decay + self._pending_sum
        self._score_weight = self._score_weight * decay + self._pending_count
        self._pending_sum, self._pending_count = 0.0, 0

    @staticmethod
    def _scores(histogram: Histogram, history: ControlHistory, shift: int) -> tuple[Floats, Floats]:
        bins, counts = as_arrays(histogram)
        return history.mid_cdf(bins - shift), counts
