"""Core B: sequential rank test by betting, for values with heavy tails.

Sources: betting on two samples (Shekhar & Ramdas, arXiv 2112.09162; Waudby-Smith & Ramdas, arXiv
2010.09686) with the mid-rank y of a value among control's earlier observations as its score, as in the
Mann-Whitney test; the conditional form of Core A (Lindon & Malek, arXiv 2011.03567) with a density ratio
that depends on y; normal scores as in van der Waerden's test. The composition is our own.

For one request that goes to B with probability pi and has score y, alternative j says that B has values
like this one g_j(y)/c_j times as often as A, so that B served it with probability
theta = pi*g/(pi*g + (1-pi)*c). The factor is theta/pi if B did and (1-theta)/(1-pi) if A did. Whatever
g and c are (both known before the tick), its expectation over the assignment is exactly 1 when the
arms are equal, at every moment of a drifting day. g_j grows with y, so with B stochastically smaller the
expectation is below 1: that is why a margin may simply lower B's bins.

c_j is the exponentially weighted mean of g_j over control's recent observations. It carries the bets
through a level that moves (for a lognormal level exactly), and changes nothing in their validity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from scipy.special import ndtri

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
from services.monitor.domain.statistics.start_mixture import FIRST_W0, StartMixture

MIN_CONTROL = 50
SHIFTS: Floats = np.exp(np.linspace(math.log(0.2), math.log(2.0), 13))
"""B's values are higher by so many of control's standard deviations (of ln x, were it normal)."""
TAIL_SHARES: Floats = np.array([0.02, 0.06, 0.2])
"""So large a share of B's values lies far out in control's upper tail."""
TAIL_POWER = 0.1
ALTERNATIVES = len(SHIFTS) + len(TAIL_SHARES)

CENTRE_MEMORY = 2000.0
"""Observations after which the weight of a score in the centre has fallen to 1/e."""
CENTRE_PRIOR = 100.0
"""Pseudo-observations of g = 1, its mean on a stationary day, with which the centre starts."""
_MAX_SCORE = 7.0
_MAX_RATIO = 30.0


def mid_rank(twice_rank: Floats, total: Floats | float) -> Floats:
    """Return y from 2*(observations below) + (observations equal), kept off 0 and 1."""
    y: Floats = (twice_rank + 1.0) / (2.0 * (total + 1.0))
    return y


def log_ratios(y: Floats) -> Floats:
    """Return ln g_j(y) of every alternative; shape (*y.shape, ALTERNATIVES).

    Shifts by d: exp(d*s - d^2/2) with s the normal score of y. Tails of share q: 1 - q + q*0.1*(1-y)^-0.9.
    Both have mean 1 for a uniform y and grow with y.
    """
    shift = ndtri(y)[..., np.newaxis] * SHIFTS - 0.5 * SHIFTS * SHIFTS
    far = TAIL_POWER * (1.0 - y[..., np.newaxis]) ** (TAIL_POWER - 1.0)
    return np.concatenate((shift, np.log1p(TAIL_SHARES * (far - 1.0))), axis=-1)


def centre_scores(log_g: Floats) -> Floats:
    """Return g_j for the centre, capped so that one extreme value cannot move it for long."""
    scores: Floats = np.exp(np.minimum(log_g, _MAX_SCORE))
    return scores


def log_bets(log_ratio: Floats, pi: float) -> tuple[Floats, Floats]:
    """Return the log factors (if A served, if B served) at ln(g_j/c_j) and share pi in (0, 1)."""
    ratio = np.clip(log_ratio, -_MAX_RATIO, _MAX_RATIO)
    if_a: Floats = -np.log1p(pi * np.expm1(ratio))
    return if_a, ratio + if_a


class MannWhitney:
    """ln E against "B's values, lowered by the margin, are not larger than A's".

    Nothing is bet before control has 50 observations in earlier ticks; rows with pi = 0 or 1 or without
    observations have factor exactly 1 (control's observations still become part of the yardstick).
    """

    def __init__(self, margin: float = 0.0, w0: float = FIRST_W0, steps: int = 1) -> None:
        """Create the process at E = 1.

        Args:
            margin: relative increase of B that is tolerated (0.2 = 20 %); 0 tests for any increase.
            w0: mass bet from the start.
            steps: planned steps of 5 s.

        Raises:
            ValueError: margin, w0 or steps is out of range.
        """
        self.shift = margin_shift(margin)
        self.mixture = StartMixture(w0, steps, ALTERNATIVES)
        self.history = ControlHistory()
        self._score_sum: Floats = np.full(ALTERNATIVES, CENTRE_PRIOR)
        self._score_weight = CENTRE_PRIOR
        self._pending_sum: Floats = np.zeros(ALTERNATIVES)
        self._pending_count = 0

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
        log_centre = np.log(self._score_sum / self._score_weight)
        for pi, hist_a, hist_b in rows:
            log_a, n_a = self._scores(hist_a, history, 0)
            if 0.0 < pi < 1.0 and (hist_a or hist_b):
                log_b, n_b = self._scores(hist_b, history, self.shift)
                if_a, _ = log_bets(log_a - log_centre, pi)
                _, if_b = log_bets(log_b - log_centre, pi)
                self.mixture.multiply((if_a * n_a).sum(axis=0) + (if_b * n_b).sum(axis=0))
            self._pending_sum = self._pending_sum + (centre_scores(log_a) * n_a).sum(axis=0)
            self._pending_count += sum(hist_a.values())

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
            "score_sum": [float(value) for value in self._score_sum],
            "score_weight": self._score_weight,
            "pending_sum": [float(value) for value in self._pending_sum],
            "pending_count": self._pending_count,
        }

    @classmethod
    def from_dict(cls, state: State) -> MannWhitney:
        """Restore a process that goes on bit for bit where the checkpoint was taken."""
        process = cls()
        process.shift = state["shift"]
        process.mixture = StartMixture.from_dict(state["mixture"])
        process.history = ControlHistory.from_dict(state["history"])
        process._score_sum = np.array(state["score_sum"], dtype=np.float64)
        process._score_weight = state["score_weight"]
        process._pending_sum = np.array(state["pending_sum"], dtype=np.float64)
        process._pending_count = state["pending_count"]
        return process

    def _move_centre(self) -> None:
        if not self._pending_count:
            return
        decay = math.exp(-self._pending_count / CENTRE_MEMORY)
        self._score_sum = self._score_sum * decay + self._pending_sum
        self._score_weight = self._score_weight * decay + self._pending_count
        self._pending_sum, self._pending_count = np.zeros(ALTERNATIVES), 0

    @staticmethod
    def _scores(histogram: Histogram, history: ControlHistory, shift: int) -> tuple[Floats, Floats]:
        bins, counts = as_arrays(histogram)
        ranks = history.twice_rank(bins - shift).astype(np.float64)
        return log_ratios(mid_rank(ranks, history.total)), counts[:, np.newaxis]
