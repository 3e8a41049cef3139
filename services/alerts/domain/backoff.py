"""How long to wait before a delivery is tried again, and when to give up."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff from ``first_s`` to ``cap_s``; the delivery numbered ``max_attempts`` is the last one."""

    first_s: float = 0.5
    cap_s: float = 300.0
    max_attempts: int = 20


WAIT_CAP_S = 5.0
"""Longest pause of what waits for its turn, which is no failure."""


def turn_s(policy: RetryPolicy, delivery: int, jitter: float) -> float:
    """Seconds until a message that waits for its turn comes again, after its ``delivery``-th time (from 1)."""
    return min(WAIT_CAP_S, delay_s(policy, delivery, jitter))


def exhausted(policy: RetryPolicy, attempt: int) -> bool:
    """Whether the attempt (from 1) that has just failed was the last."""
    return attempt >= policy.max_attempts


def delay_s(policy: RetryPolicy, attempt: int, jitter: float, at_least_s: float = 0.0) -> float:
    """Seconds until the next attempt, after ``attempt`` (from 1) failed.

    ``jitter`` in [0, 1) spreads it over the upper half of the interval; ``at_least_s`` is what the destination
    asked for (`Retry-After`), which wins where it is longer, up to an hour.
    """
    whole = min(policy.cap_s, policy.first_s * 2.0 ** min(attempt - 1, 60))
    return max(whole * (0.5 + 0.5 * jitter), min(at_least_s, 3600.0))
