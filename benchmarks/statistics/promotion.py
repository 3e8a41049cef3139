"""Promotion: requests until every condition holds, and wrong promotions at each boundary.

60 % thumbs-up on 20 % of requests; B's true improvement 10 %, asked 5 %; error margin 1.5 times or at
most 0.1 %, latency margin 20 %; alpha = 0.05 for each condition. A look every 100 requests.
"""

from __future__ import annotations

import math

import numpy as np

from benchmarks.statistics.batch import BatchNonInferiority
from services.monitor.domain.statistics.buckets import UNSEEN_FACTOR
from services.monitor.domain.statistics.mixture import TAU

LOOK = 100
ALPHA = 0.05


def mixture_log_e(d: np.ndarray, v: np.ndarray, null: float = 0.0) -> np.ndarray:
    """Core C over arrays (``mixture.mixture_log_e`` of the product; a unit test holds them equal)."""
    from scipy.special import erfcx, log_ndtr

    w = TAU * TAU / (TAU * TAU + v)
    x = (d - null) / np.sqrt(v) * np.sqrt(w)
    above = 0.5 * x * x + math.log(2.0) + log_ndtr(x)
    below = np.log(erfcx(np.maximum(-x, 0.0) / math.sqrt(2.0)))
    return 0.5 * np.log1p(-w) + np.where(x >= 0.0, above, below)


def promotions(seed: int, reps: int, *, pi: float = 0.5, ratio: float = 1.0, slow: float = 1.0,
               gain: float = 0.1, asked: float = 0.05, margin: float = 1.5, negligible: float = 0.001,
               latency_margin: float = 0.2, horizon: int = 400_000) -> np.ndarray:
    """Return requests until promotion, inf if never, for B's true error ratio, slowdown and gain."""
    rng = np.random.default_rng(seed)
    errors = BatchNonInferiority(reps, pi, margin, negligible)
    n = np.zeros((2, reps))
    logs, squares = np.zeros((2, reps)), np.zeros((2, reps))
    rated, good = np.zeros((2, reps)), np.zeros((2, reps))
    found, goal = np.full(reps, np.inf), -math.log(ALPHA)
    p_error, p_good, mean = (0.01, 0.01 * ratio), (0.6, 0.6 * (1.0 + gain)), (0.0, math.log(slow))
    for look in range(1, horizon // LOOK + 1):
        n_b = rng.binomial(LOOK, pi, reps)
        new = np.stack((LOOK - n_b, n_b))
        events = [rng.binomial(new[arm], p_error[arm]) for arm in (0, 1)]
        errors.update(look, n_b, *events)
        for arm in (0, 1):
            noise = rng.standard_normal(reps) * 0.5 * np.sqrt(new[arm])
            spread = 0.25 * rng.chisquare(np.maximum(new[arm] - 1, 1e-9)) * (new[arm] > 1)
            total = noise + mean[arm] * new[arm]
            logs[arm] += total
            squares[arm] += spread + np.divide(total**2, new[arm], out=np.zeros(reps), where=new[arm] > 0)
            votes = rng.binomial(new[arm], 0.2)
            rated[arm] += votes
            good[arm] += rng.binomial(votes, p_good[arm])
        n += new
        if n[1].min() < 2:
            continue
        fired = (errors.log_e() >= goal) & _latency(n, logs, squares, latency_margin, goal)
        fired &= _primary(rated, good, 1.0 + asked, goal) & np.isinf(found)
        found[fired] = look * LOOK
        if np.isfinite(found).all():
            break
    return found


def errors_shown(seed: int, reps: int, *, pi: float = 0.5, p_a: float = 0.0, p_b: float = 0.0, margin: float = 1.5,
                 negligible: float = 0.001, horizon: int = 400_000, look: int = LOOK) -> np.ndarray:
    """Return requests until the condition on errors holds, inf if never, whatever the others say."""
    rng = np.random.default_rng(seed)
    errors = BatchNonInferiority(reps, pi, margin, negligible)
    found, goal = np.full(reps, np.inf), -math.log(ALPHA)
    for now in range(1, horizon // look + 1):
        n_b = rng.binomial(look, pi, reps)
        errors.update(now, n_b, rng.binomial(look - n_b, p_a), rng.binomial(n_b, p_b))
        found[(errors.log_e() >= goal) & np.isinf(found)] = now * look
        if np.isfinite(found).all():
            break
    return found


def rarely_slow(seed: int, reps: int, *, share: float, factor: float, pi: float = 0.5, asked: float = 0.05,
                least: int = 100, horizon: int = 20_000, look: int = 10) -> np.ndarray:
    """Return requests until B is shown to be faster by ``asked``, inf if never, though it is not.

    All of A's latencies are the same, and so are B's, but for a ``share`` that is ``factor`` times slower: just as many
    as it takes for B to be no faster than asked for. Each request is a unit; ``least`` of each arm are waited for.
    """
    rng = np.random.default_rng(seed)
    n, slow, found = np.zeros((2, reps)), np.zeros(reps), np.full(reps, np.inf)
    gain, usual = math.log1p(-asked), math.log1p(-asked) - share * math.log(factor)
    for now in range(1, horizon // look + 1):
        n_b = rng.binomial(look, pi, reps)
        n += np.stack((look - n_b, n_b))
        slow += rng.binomial(n_b, share)
        q = slow / np.maximum(n[1], 1.0)
        spread = math.log(factor) ** 2 * q * (1.0 - q) / np.maximum(n[1], 1.0)
        v = spread + ((UNSEEN_FACTOR / (n + 1.0)) ** 2).sum(axis=0)
        shown = mixture_log_e(-(usual + math.log(factor) * q), v, -gain) >= -math.log(ALPHA)
        found[shown & (n.min(axis=0) >= least) & np.isinf(found)] = now * look
    return found


def _latency(n: np.ndarray, logs: np.ndarray, squares: np.ndarray, margin: float, goal: float) -> np.ndarray:
    means = logs / n
    variance = ((squares / n - means**2) / (n - 1.0)).sum(axis=0)
    return mixture_log_e(means[0] - means[1], np.maximum(variance, 1e-12), -math.log1p(margin)) >= goal


def _primary(rated: np.ndarray, good: np.ndarray, r: float, goal: float) -> np.ndarray:
    enough = np.minimum(good, rated - good).min(axis=0) >= 20
    a, b = good / np.maximum(rated, 1.0)
    a_safe = np.maximum(a, 1e-9)
    v = (b * (1 - b) / np.maximum(rated[1], 1) + r * r * a * (1 - a) / np.maximum(rated[0], 1)) / a_safe**2
    return enough & (mixture_log_e((b - r * a) / a_safe, np.maximum(v, 1e-12)) >= goal)
