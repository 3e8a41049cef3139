"""Sticky users: first-error units, counted afresh in each epoch or once for the whole test.

500 users, of uneven activity where asked; every request is some user's, whose arm never changes.
A user's errors may also come in streaks (``correlated``): a share of users whom everything fails.
"""

from __future__ import annotations

import numpy as np

from benchmarks.statistics.batch import BatchRate
from benchmarks.statistics.rollback import MIN_BAD, REQUESTS, Policy

USERS = 500


def first_errors(
    seed: int, reps: int, *, pi: float = 0.1, p_b: float = 0.01, epochs: bool = True, uneven: bool = False,
    correlated: bool = False, good_hours: float = 0.0, ticks: int = 3600, tick_seconds: int = 1,
    guardrails: int = 6, requests_as_events: bool = False,
) -> np.ndarray:
    """Return requests from the change to the first rollback; inf if none, not above 0 if before the change.

    ``requests_as_events`` counts every error instead of every first one: the wrong test.
    """
    rng, policy = np.random.default_rng(seed), Policy(epochs)
    good = int(good_hours * 3600 / tick_seconds)
    rows = np.arange(reps)[:, None]
    weights = rng.pareto(1.1, (reps, USERS)) + 0.05 if uneven else np.ones((reps, USERS))
    cumulative = np.cumsum(weights, axis=1)
    cumulative /= cumulative[:, -1:]
    in_b = rng.random((reps, USERS)) < pi
    cursed = rng.random((reps, USERS)) < 0.02 if correlated else np.zeros((reps, USERS), dtype=bool)
    seen = np.zeros((reps, USERS), dtype=bool)
    process = BatchRate(reps, pi, w0=policy.w0, steps=policy.steps)
    found, bad, epoch = np.full(reps, np.inf), np.zeros(reps, dtype=np.int64), -1
    for number in range(good + ticks):
        now, tick = policy.place(number * tick_seconds)
        if now != epoch:
            epoch, threshold = now, policy.threshold(now, guardrails)
            if now:
                process.restart(policy.steps)
            seen[:], bad[:] = False, 0
        user = (cumulative[:, None, :] < rng.random((reps, REQUESTS, 1))).sum(axis=2) if uneven \
            else rng.integers(0, USERS, (reps, REQUESTS))
        arm = in_b[rows, user]
        p = np.where(arm & (number >= good), p_b, 0.01)
        error = (rng.random((reps, REQUESTS)) < p) | (cursed[rows, user] & (rng.random((reps, REQUESTS)) < 0.5))
        if not requests_as_events:
            error = _first_of_each(user, error) & ~seen[rows, user]
            at = np.nonzero(error)
            seen[at[0], user[at]] = True
        e_b = (error & arm).sum(axis=1)
        process.update(tick, (error & ~arm).sum(axis=1), e_b)
        bad += e_b
        fired = (process.log_e() >= threshold) & (bad >= MIN_BAD) & np.isinf(found)
        found[fired] = number + 1
        if np.isfinite(found).all():
            break
    return (found - good) * REQUESTS


def _first_of_each(user: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Keep only the first error of a user within the tick."""
    same = (user[:, :, None] == user[:, None, :]) & error[:, None, :]
    earlier = np.tril(np.ones((REQUESTS, REQUESTS), dtype=bool), -1)
    return error & ~(same & earlier).any(axis=2)
