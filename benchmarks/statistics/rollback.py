"""Rollback: how soon a change is found, and how often equal arms are rolled back.

Traffic is 10 requests a tick of ``tick_seconds``; each request goes to B with probability pi on its own
(no sticky users here, see ``sticky``). A look follows every tick.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.statistics.batch import BatchLatency, BatchRate
from services.monitor.domain.statistics import EpochPlan, log_threshold
from services.monitor.domain.statistics.start_mixture import FIRST_W0

REQUESTS = 10
DAY = 86_400
ALPHA = 0.01
GUARDRAILS = 6
MIN_BAD = 3
LOG_GAMMA = math.log(1.02)
LOWEST = -140
BINS = 400
"""Bins -140..259: exp(+-2.77) and ten times more, 5.5 standard deviations of ln x on each side."""

RAMP = (0.01, 0.05, 0.1, 0.25, 0.5)

Draw = Callable[[np.random.Generator, int, int], tuple[np.ndarray, np.ndarray]]
"""(generator, replications, second of the day) -> what ``update`` of the batch takes."""


@dataclass(frozen=True)
class Policy:
    """Epochs of a planned day, or the whole test as one (T = 17,280)."""

    epochs: bool

    def place(self, second: int) -> tuple[int, int]:
        """Return (epoch, tick within it)."""
        if not self.epochs:
            return 0, second
        plan = EpochPlan(DAY)
        return plan.index(second), plan.tick(second)

    @property
    def steps(self) -> int:
        return EpochPlan(DAY).steps if self.epochs else DAY // 5

    @property
    def w0(self) -> float:
        """Mass bet at the start of the test: the product's, or the prototype's for the test as one epoch."""
        return FIRST_W0 if self.epochs else 0.5

    def threshold(self, epoch: int, guardrails: int = GUARDRAILS) -> float:
        weight = EpochPlan(DAY).weight(epoch) if self.epochs else 1.0
        return log_threshold(ALPHA, guardrails, weight)


@dataclass(frozen=True)
class Day:
    """What equal arms may live through: levels that move, ramps, outages of both, other distributions."""

    pi: float = 0.1
    errors: float = 0.01
    ramp: bool = False
    drift: bool = False
    outages: bool = False
    heavy: bool = False

    def share(self, second: int) -> float:
        return RAMP[min(second // 7200, len(RAMP) - 1)] if self.ramp else self.pi

    def error_rate(self, second: int) -> float:
        if self.outages and second % 14_400 < 300:
            return 0.4
        return self.errors * (1.0 + 0.9 * math.sin(2 * math.pi * second / 21_600) * self.drift)

    def bins_up(self, second: int) -> int:
        """By how many bins (2 % each) every latency is higher now."""
        up = 35.0 * math.sin(2 * math.pi * second / 43_200) if self.drift else 0.0
        return int(up) + (50 if self.outages and second % 14_400 < 300 else 0)

    def draw_errors(self, rng: np.random.Generator, reps: int, second: int) -> tuple[np.ndarray, np.ndarray]:
        return events(self.share(second), self.error_rate(second), self.error_rate(second))(rng, reps, second)

    def draw_latencies(self, rng: np.random.Generator, reps: int,
                       second: int) -> tuple[np.ndarray, np.ndarray]:
        is_b = rng.random((reps, REQUESTS)) < self.share(second)
        log_x = rng.exponential(0.7, (reps, REQUESTS)) - 0.5 if self.heavy else rng.normal(
            0.0, 0.5, (reps, REQUESTS))
        index = np.ceil(log_x / LOG_GAMMA).astype(np.int64) - LOWEST + self.bins_up(second)
        return np.clip(index, 0, BINS - 1), is_b


def events(pi: float, p_a: float, p_b: float) -> Draw:
    """Bad events of both arms among 10 requests."""

    def draw(rng: np.random.Generator, reps: int, _: int) -> tuple[np.ndarray, np.ndarray]:
        n_b = rng.binomial(REQUESTS, pi, reps)
        return rng.binomial(REQUESTS - n_b, p_a), rng.binomial(n_b, p_b)

    return draw


def latencies(pi: float, slow: float = 1.0, tail: float = 0.0, sigma: float = 0.5) -> Draw:
    """Bins and arms of 10 lognormal latencies; B's are ``slow`` times longer, a share ``tail`` ten times."""

    def draw(rng: np.random.Generator, reps: int, _: int) -> tuple[np.ndarray, np.ndarray]:
        is_b = rng.random((reps, REQUESTS)) < pi
        log_x = rng.standard_normal((reps, REQUESTS)) * sigma
        if slow != 1.0:
            log_x = log_x + is_b * math.log(slow)
        if tail:
            log_x = log_x + (is_b & (rng.random((reps, REQUESTS)) < tail)) * math.log(10.0)
        index = np.ceil(log_x / LOG_GAMMA).astype(np.int64) - LOWEST
        return np.clip(index, 0, BINS - 1), is_b

    return draw


def run(
    process: BatchRate | BatchLatency, draw: Draw, rng: np.random.Generator, policy: Policy, *, reps: int,
    ticks: int, tick_seconds: int = 1, first_second: int = 0, change_tick: int = 0, before: Draw | None = None,
    share: Callable[[int], float] | None = None,
) -> np.ndarray:
    """Return for each replication the tick (1 = the first) of its first rollback; inf if none.

    Before ``change_tick`` the draw is ``before``; ``share`` gives B's share where it moves.
    """
    counts_events = isinstance(process, BatchRate)
    found = np.full(reps, np.inf)
    alive = np.arange(reps)
    bad = np.zeros(reps, dtype=np.int64)
    epoch, pi = -1, None
    for number in range(ticks):
        second = first_second + number * tick_seconds
        now, tick = policy.place(second)
        if now != epoch:
            epoch, threshold = now, policy.threshold(now)
            if now:
                process.restart(policy.steps)
            bad[:] = 0
        if share is not None and share(second) != pi:
            pi = share(second)
            process.set_share(pi)
        source = before if before is not None and number < change_tick else draw
        first, other = source(rng, len(alive), second)
        process.update(tick, first, other)
        fired = process.log_e() >= threshold
        if counts_events:
            bad += other
            fired &= bad >= MIN_BAD
        if fired.any():
            found[alive[fired]] = number + 1
            kept = np.flatnonzero(~fired)
            alive, bad = alive[kept], bad[kept]
            process.keep(kept)
            if not len(alive):
                break
    return found


def rate_detection(seed: int, reps: int, pi: float, p_b: float, *, epochs: bool, rho0: float = 1.0,
                   good_hours: float = 0.0, horizon: int = 60_000) -> np.ndarray:
    """Return requests (both arms) from the change to rollback; errors go from 1 % to p_b."""
    policy = Policy(epochs)
    good = int(good_hours * 3600)
    # Nothing is carried over an epoch's start, so only the hour of the change need be simulated.
    skipped = good - good % 3600 if epochs else 0
    process = BatchRate(reps, pi, rho0, w0=policy.w0, steps=policy.steps)
    found = run(process, events(pi, 0.01, p_b), np.random.default_rng(seed), policy, reps=reps,
                ticks=good - skipped + horizon, first_second=skipped, change_tick=good - skipped,
                before=events(pi, 0.01, 0.01))
    after = (found - (good - skipped)) * REQUESTS
    return after[after > 0]  # a rollback before the change is a false one, not a detection


def latency_detection(seed: int, reps: int, pi: float, slow: float, tail: float, *, epochs: bool,
                      horizon: int = 15_000) -> np.ndarray:
    """Return requests (both arms) from the start to rollback by the latency guardrail."""
    policy = Policy(epochs)
    process = BatchLatency(reps, pi, BINS, w0=policy.w0, steps=policy.steps)
    return REQUESTS * run(process, latencies(pi, slow, tail), np.random.default_rng(seed), policy,
                          reps=reps, ticks=horizon)


def false_rollbacks(seed: int, reps: int, day: Day, kind: str, *, hours: int = 24, tick_seconds: int = 5,
                    guardrails: int = 3) -> np.ndarray:
    """Return how many of the guardrails of ``kind`` ever roll equal arms back; one entry a replication.

    The guardrails are independent here, which is the worst case for their union.
    """
    policy, rng = Policy(epochs=True), np.random.default_rng(seed)
    streams = reps * guardrails
    common = {"reps": streams, "ticks": hours * 3600 // tick_seconds, "tick_seconds": tick_seconds,
              "share": day.share}
    if kind == "rate":
        process: BatchRate | BatchLatency = BatchRate(streams, day.share(0), steps=policy.steps)
        found = run(process, day.draw_errors, rng, policy, **common)
    else:
        process = BatchLatency(streams, day.share(0), BINS, steps=policy.steps)
        found = run(process, day.draw_latencies, rng, policy, **common)
    return np.isfinite(found).reshape(reps, guardrails).sum(axis=1)
