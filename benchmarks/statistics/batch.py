"""The product's e-processes for many replications at once: leading axis = replication."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from services.monitor.domain.statistics.latency import WEIGHTS
from services.monitor.domain.statistics.mann_whitney import (
    ALTERNATIVES,
    CENTRE_MEMORY,
    CENTRE_PRIOR,
    MIN_CONTROL,
    centre_scores,
    log_bets,
    log_ratios,
    mid_rank,
)
from services.monitor.domain.statistics.non_inferiority import NEGLIGIBLE_WEIGHT, RATE_WEIGHT, negligible_bets
from services.monitor.domain.statistics.rate import NON_INFERIORITY_FACTORS, REGRESSION_FACTORS, share_terms
from services.monitor.domain.statistics.start_mixture import FIRST_W0, LATER_W0, STEP_SECONDS
from services.monitor.domain.statistics.tails import P95, P99, TailLevel


class BatchMixture:
    """R_j in log space, shape (replications, bets); u is the same for all."""

    def __init__(self, reps: int, size: int, w0: float, steps: int) -> None:
        self.w0, self.size = w0, size
        self.log_r = np.zeros((reps, size))
        self._begin(steps)

    def advance(self, tick: int) -> None:
        step = tick // STEP_SECONDS
        if self.step is not None and step != self.step and self.injected < self.steps and self.w0 < 1.0:
            self.injected += 1
            part = (1.0 - self.w0) / (self.steps * self.size)
            self.log_r = np.logaddexp(self.log_r, math.log(part))
        self.step = step

    def log_e(self) -> np.ndarray:
        unbet = max(0.0, (1.0 - self.w0) * (1.0 - self.injected / self.steps))
        top = self.log_r.max(axis=1)
        total = np.exp(self.log_r - top[:, None]).sum(axis=1)
        if unbet > 0.0:
            return np.logaddexp(top + np.log(total), math.log(unbet))
        return top + np.log(total)

    def restart(self, steps: int) -> None:
        self.w0 = LATER_W0 if self.w0 < 1.0 else self.w0
        self._begin(steps)

    def _begin(self, steps: int) -> None:
        self.steps, self.injected = steps, 0
        self.step: int | None = None
        self.log_r = np.full((len(self.log_r), self.size), math.log(self.w0 / self.size))

    def keep(self, rows: np.ndarray) -> None:
        self.log_r = self.log_r[rows]


class BatchRate:
    """Core A with one share for all replications."""

    def __init__(self, reps: int, pi: float, rho0: float = 1.0, grid: Sequence[float] = REGRESSION_FACTORS,
                 w0: float = FIRST_W0, steps: int = 1) -> None:
        self.rho0, self.rho = rho0, rho0 * np.array(grid)
        self.mixture = BatchMixture(reps, len(self.rho), w0, steps)
        self.log_ratio = np.log(self.rho) - math.log(rho0)
        self.set_share(pi)

    def set_share(self, pi: float) -> None:
        self.share = share_terms(pi, self.rho0, self.rho)

    def update(self, tick: int, e_a: np.ndarray, e_b: np.ndarray) -> None:
        self.mixture.advance(tick)
        some = np.flatnonzero(e_a + e_b)
        if len(some):
            a, b = e_a[some, None], e_b[some, None]
            self.mixture.log_r[some] += b * self.log_ratio - (a + b) * self.share

    def log_e(self) -> np.ndarray:
        return self.mixture.log_e()

    def restart(self, steps: int) -> None:
        self.mixture.restart(steps)

    def keep(self, rows: np.ndarray) -> None:
        self.mixture.keep(rows)


class BatchNonInferiority:
    """Promotion's test of errors, of requests that are their own units and finish at once."""

    def __init__(self, reps: int, pi: float, rho0: float, limit: float) -> None:
        self.rate = BatchRate(reps, pi, rho0, NON_INFERIORITY_FACTORS, 1.0)
        self.limit = limit
        if limit:
            self.mass, self.clean, self.failed = negligible_bets(limit)
        self.n_b, self.e_b = np.zeros(reps), np.zeros(reps)

    def update(self, tick: int, n_b: np.ndarray, e_a: np.ndarray, e_b: np.ndarray) -> None:
        self.rate.update(tick, e_a, e_b)
        self.n_b += n_b
        self.e_b += e_b

    def log_e(self) -> np.ndarray:
        """ln E of each replication."""
        if not self.limit:
            return self.rate.log_e()
        failed, clean = self.e_b[:, None], (self.n_b - self.e_b)[:, None]
        bets = self.mass[1:] + failed * self.failed[1:] + clean * self.clean[1:]
        flawless = np.where(self.e_b > 0, -np.inf, self.mass[0] + self.clean[0] * clean[:, 0])
        own = np.logaddexp(np.logaddexp.reduce(bets, axis=1), flawless)
        return np.logaddexp(self.rate.log_e() + math.log(RATE_WEIGHT), own + math.log(NEGLIGIBLE_WEIGHT))


class BatchLatency:
    """Weighted mean of ranks, p95 and p99 on bins 0..size-1, at margin 0."""

    def __init__(self, reps: int, pi: float, size: int, w0: float = FIRST_W0, steps: int = 1) -> None:
        self.pi, self.size = pi, size
        self.ranks = BatchMixture(reps, ALTERNATIVES, w0, steps)
        self.tails = [(level, BatchRate(reps, pi, 1.0, level.grid(), w0, steps)) for level in (P95, P99)]
        self.counts = np.zeros((reps, size), dtype=np.int32)
        self.below = np.zeros((reps, size + 1), dtype=np.int32)
        self.score_sum = np.full((reps, ALTERNATIVES), CENTRE_PRIOR)
        self.score_weight = np.full((reps, 1), CENTRE_PRIOR)

    def set_share(self, pi: float) -> None:
        self.pi = pi
        for _, process in self.tails:
            process.set_share(pi)

    def update(self, tick: int, bins: np.ndarray, is_b: np.ndarray) -> None:
        """Take in one tick: bins and arms of the requests, both of shape (replications, requests)."""
        rows = np.arange(len(bins))[:, None]
        self.ranks.advance(tick)
        total = self.below[:, -1]
        for level, process in self.tails:
            process.update(tick, *self._exceedances(level, total, bins, is_b))
        ready = total >= MIN_CONTROL
        if ready.any():
            twice = (self.below[rows, bins] + self.below[rows, bins + 1]).astype(np.float64)
            log_g = log_ratios(mid_rank(twice, total[:, None]))
            centre = np.log(self.score_sum / self.score_weight)
            if_a, if_b = log_bets(log_g - centre[:, None, :], self.pi)
            factors = np.where(is_b[:, :, None], if_b, if_a).sum(axis=1)
            self.ranks.log_r += np.where(ready[:, None], factors, 0.0)
            self._move_centre(np.where(is_b[:, :, None], 0.0, centre_scores(log_g)).sum(axis=1),
                              (~is_b).sum(axis=1), ready)
        np.add.at(self.counts, (np.broadcast_to(rows, bins.shape)[~is_b], bins[~is_b]), 1)
        np.cumsum(self.counts, axis=1, out=self.below[:, 1:])

    def log_e(self) -> np.ndarray:
        parts = [self.ranks.log_e(), *(process.log_e() for _, process in self.tails)]
        weights = np.log(list(WEIGHTS.values()))
        return np.logaddexp.reduce([part + weight for part, weight in zip(parts, weights, strict=True)])

    def restart(self, steps: int) -> None:
        self.ranks.restart(steps)
        for _, process in self.tails:
            process.restart(steps)

    def keep(self, rows: np.ndarray) -> None:
        self.ranks.keep(rows)
        for _, process in self.tails:
            process.keep(rows)
        self.counts, self.below = self.counts[rows], self.below[rows]
        self.score_sum, self.score_weight = self.score_sum[rows], self.score_weight[rows]

    def _move_centre(self, scores: np.ndarray, n: np.ndarray, ready: np.ndarray) -> None:
        decay = np.exp(-n / CENTRE_MEMORY)[:, None]
        ready = ready[:, None]
        self.score_sum = np.where(ready, self.score_sum * decay + scores, self.score_sum)
        self.score_weight = np.where(ready, self.score_weight * decay + n[:, None], self.score_weight)

    def _exceedances(self, level: TailLevel, total: np.ndarray, bins: np.ndarray,
                     is_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ready = total >= level.min_control
        if not ready.any():
            nothing = np.zeros(len(bins), dtype=np.int64)
            return nothing, nothing
        needed = -(-total.astype(np.int64) * level.percent // 100)
        threshold = (self.below[:, 1:] < needed[:, None]).sum(axis=1)
        above = (bins > threshold[:, None]) & ready[:, None]
        return (above & ~is_b).sum(axis=1), (above & is_b).sum(axis=1)
