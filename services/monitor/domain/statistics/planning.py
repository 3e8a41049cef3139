"""How many more requests a verdict needs: for people who wait, never for a decision.

Source: the growth-rate view of betting (Kelly; Waudby-Smith & Ramdas, arXiv 2010.09686): evidence of each
bet grows by a fixed amount per request in expectation, so the growth seen so far extrapolates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from services.monitor.domain.statistics.histogram import Floats
from services.monitor.domain.statistics.mixture import TAU, mixture_log_e
from services.monitor.domain.statistics.start_mixture import log_sum_exp

MAX_REQUESTS = 1_000_000_000


class Grows(Protocol):
    """An e-process made of bets: ``RateEProcess``, ``LatencyEvidence`` and the other ones here."""

    def paths(self) -> tuple[Floats, Floats]:
        """Return (ln mass, ln growth since the epoch began) of every bet."""
        ...


def requests_needed(process: Grows, requests_seen: int, log_threshold: float) -> int | None:
    """Return about how many more requests until ln E reaches the threshold, at the effect seen so far.

    Args:
        process: the e-process.
        requests_seen: requests of both arms since its epoch began.
        log_threshold: ln(1/alpha_k), see ``log_threshold``.

    Returns:
        0 when it is reached; None when nothing grows or more than 10^9 requests would be needed.
    """
    masses, growths = process.paths()
    if log_sum_exp(masses) >= log_threshold:
        return 0
    if requests_seen < 1 or not (growths > 0.0).any():
        return None
    per_request = growths / requests_seen
    return smallest(lambda more: log_sum_exp(masses + more * per_request) >= log_threshold)


def requests_needed_for_mean(
    difference: float, variance: float, null: float, requests_seen: int, log_threshold: float,
    *, tau: float = TAU,
) -> int | None:
    """Return about how many more requests until Core C's ln E reaches the threshold.

    The difference is taken as true and the variance as falling like 1/n.

    Args:
        difference: D, the estimate.
        variance: V, its squared standard error, from ``requests_seen`` requests.
        null: m, on D's scale.
        requests_seen: requests of both arms behind D.
        log_threshold: ln(1/alpha).
        tau: standard deviation of the mixture.

    Returns:
        0 when it is reached; None when D does not exceed the null or more than 10^9 would be needed.
    """
    if not (requests_seen >= 1 and variance > 0.0 and math.isfinite(variance)):
        return None

    def reached(more: int) -> bool:
        shrunk = variance * requests_seen / (requests_seen + more)
        return mixture_log_e(difference, shrunk, null, tau) >= log_threshold

    if reached(0):
        return 0
    if difference <= null:
        return None
    return smallest(reached)


def smallest(reached: Callable[[int], bool]) -> int | None:
    """Return the smallest number from 1 on for which ``reached`` holds, as it does from there on; None beyond 10^9."""
    high = 1
    while not reached(high):
        high *= 2
        if high > MAX_REQUESTS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if reached(middle):
            high = middle
        else:
            low = middle
    return high
