"""Errors as the primary metric: requests until fewer of them are shown, and how often wrongly at the boundary.

Half of the mass on first-error units (Core A reversed), half on requests (Core C, from where A has, and B at A's rate
would have, 20 errors), as in ``services.monitor.domain.effects``; asked for are 5 % fewer, alpha = 0.05, a look every
100 requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from benchmarks.statistics.batch import BatchRate
from benchmarks.statistics.promotion import ALPHA, LOOK, mixture_log_e
from services.monitor.domain.effects import HALF, MIN_ERRORS
from services.monitor.domain.statistics.buckets import BUCKETS
from services.monitor.domain.statistics.rate import NON_INFERIORITY_FACTORS

RAMP = (0.01, 0.05, 0.1, 0.25, 0.5)
GOAL = -math.log(ALPHA)
TINY = 1e-12


@dataclass(frozen=True)
class Course:
    """How a test goes: B's share, or a ramp in five equal steps; errors that rise and fall fivefold, or hold still."""

    pi: float = 0.5
    ramp: bool = False
    drift: bool = False

    def share(self, done: float) -> float:
        return RAMP[min(int(done * len(RAMP)), len(RAMP) - 1)] if self.ramp else self.pi

    def level(self, look: int, done: float) -> float:
        """Base rate as a multiple: three periods in a test, and every 50th look an outage of both arms."""
        if not self.drift:
            return 1.0
        return 8.0 if look % 50 == 0 else 5.0 ** math.sin(6.0 * math.pi * done)


class Evidence:
    """The product's evidence for many replications; each share is a stratum of Core C."""

    def __init__(self, reps: int, asked: float) -> None:
        self.keep = 1.0 - asked
        self.units = BatchRate(reps, 0.5, self.keep, NON_INFERIORITY_FACTORS, 1.0)
        self.reps, self.look = reps, 0

    def take(self, pi: float, first_a: np.ndarray, first_b: np.ndarray) -> None:
        self.units.set_share(pi)
        self.units.update(self.look, first_a, first_b)
        self.look += 1

    def shown(self, expected: np.ndarray, d: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Whether it is shown, from errors of A and those of B at A's rate, the lesser, and (D, V) relative to that."""
        by_requests = np.where(expected >= MIN_ERRORS, mixture_log_e(-d, np.maximum(v, TINY)), -np.inf)
        return (np.logaddexp(self.units.log_e(), by_requests) + HALF >= GOAL) & (d <= 0.0)


def fewer_errors(seed: int, reps: int, *, p_a: float, ratio: float, course: Course | None = None, asked: float = 0.05,
                 horizon: int = 400_000) -> np.ndarray:
    """Return requests until B's errors are shown to be fewer, inf if never; each request is a unit of its own."""
    course = course or Course()
    rng, evidence = np.random.default_rng(seed), Evidence(reps, asked)
    strata: dict[float, np.ndarray] = {}  # by share: (requests or errors, arm, replication)
    found, looks = np.full(reps, np.inf), horizon // LOOK
    for look in range(looks):
        done = look / looks
        pi, level = course.share(done), course.level(look, done)
        n_b = rng.binomial(LOOK, pi, reps)
        n = np.stack((LOOK - n_b, n_b))
        e = np.stack([rng.binomial(n[arm], min(1.0, p_a * level * (1.0, ratio)[arm])) for arm in (0, 1)])
        evidence.take(pi, *e)
        strata[pi] = strata.get(pi, 0) + np.stack((n, e))
        shown = evidence.shown(*_requests(list(strata.values()), 1.0 - asked))
        found[shown & np.isinf(found)] = (look + 1) * LOOK
        if np.isfinite(found).all():
            break
    return found


def _requests(strata: list[np.ndarray], keep: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(expected errors, D, V) of independent requests; shares are strata, weighted as in ``bucket_effect``."""
    top = square = weight = mean = of_a = n_b = np.zeros(strata[0].shape[-1])
    for n, e in strata:
        of_a, n_b = of_a + e[0], n_b + n[1]
        both = n.min(axis=0) > 0
        rate = e / np.maximum(n, 1)
        h = np.where(both, n[0] * n[1] / n.sum(axis=0), 0.0)
        spread = rate * (1.0 - rate) / np.maximum(n, 1)
        top, weight, mean = top + h * (rate[1] - keep * rate[0]), weight + h, mean + h * rate[0]
        square = square + h * h * (spread[1] + keep * keep * spread[0])
    a = np.maximum(mean, TINY)
    return np.minimum(of_a, n_b * a / np.maximum(weight, TINY)), top / a, square / (a * a)


def fewer_errors_sticky(seed: int, reps: int, *, p_a: float, ratio: float, pi: float = 0.5, users: int = 2560,
                        asked: float = 0.05, looks: int = 200, each: float = 0.5, streaks: bool = False) -> np.ndarray:
    """The same with users who come back, ``each`` times a look on average and unevenly so; returns looks.

    ``streaks``: a twentieth of the users see every second request fail on A (on B in proportion), the others few.
    """
    rng, evidence = np.random.default_rng(seed), Evidence(reps, asked)
    keep = 1.0 - asked
    activity = rng.gamma(0.5, 2.0, (reps, users)) * each
    of_b = rng.random((reps, users)) < pi
    p = np.full((reps, users), p_a)
    if streaks:
        p[:, :] = np.where(rng.random((reps, users)) < 0.05, 0.5, p_a / 10.0)
    p = p * np.where(of_b, ratio, 1.0)
    failed = np.zeros((reps, users), dtype=bool)
    n, e = np.zeros((reps, users)), np.zeros((reps, users))
    found = np.full(reps, np.inf)
    for look in range(looks):
        more = rng.poisson(activity)
        bad = rng.binomial(more, p)
        first = (bad > 0) & ~failed
        failed |= first
        evidence.take(pi, (first & ~of_b).sum(axis=1), (first & of_b).sum(axis=1))
        n, e = n + more, e + bad
        shown = evidence.shown(*_buckets(n, e, of_b, keep))
        found[shown & np.isinf(found)] = look + 1
    return found


def _buckets(n: np.ndarray, e: np.ndarray, of_b: np.ndarray, keep: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(expected errors, D, V) by unit buckets, as ``bucket_effect(..., keep).relative()``."""
    shape = (len(n), BUCKETS, -1)
    arms = [[np.where(arm, x, 0.0).reshape(shape).sum(axis=2) for x in (n, e)] for arm in (~of_b, of_b)]
    totals = [[x.sum(axis=1) for x in arm] for arm in arms]
    rates = [errors / np.maximum(count, 1.0) for count, errors in totals]
    a = np.maximum(rates[0], TINY)
    parts = [
        (errors - rate[:, None] * count) / np.maximum(total[0], 1.0)[:, None]
        for (count, errors), rate, total in zip(arms, rates, totals, strict=True)
    ]
    score = parts[1] - keep * parts[0]
    v = BUCKETS / (BUCKETS - 1.0) * (score * score).sum(axis=1)
    return np.minimum(totals[0][1], totals[1][0] * rates[0]), (rates[1] - keep * rates[0]) / a, v / (a * a)
