"""Core A: e-process for the ratio of two event rates, given the share of traffic.

Source: the conditional (binomial) test of Lindon & Malek, "Anytime-Valid Inference for Multinomial
Count Data" (NeurIPS 2022, arXiv 2011.03567) and Lindon, Sanden & Shirikian, "Rapid Regression Detection
in Software Deployments through Sequential Testing" (arXiv 2205.14762), with a grid of alternatives and
the start-time mixture in place of their prior.

Given that a bad event happened while B had share pi, it is B's with probability
theta(rho) = pi*rho / (pi*rho + 1 - pi) at rate ratio rho, whatever the base rate is and however it moves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from services.monitor.domain.statistics.histogram import (
    Floats,
    RateRow,
    State,
    check_counts,
    check_share,
)
from services.monitor.domain.statistics.start_mixture import FIRST_W0, StartMixture

REGRESSION_FACTORS: tuple[float, ...] = tuple(
    float(x) for x in np.exp(np.linspace(math.log(1.5), math.log(64.0), 16))
)
"""Alternatives above the null, as factors of it, for anything that rolls back."""

NON_INFERIORITY_FACTORS: tuple[float, ...] = tuple(
    float(x) for x in np.exp(np.linspace(math.log(0.1), math.log(0.95), 16))
)
"""Alternatives below the null, for promotion: B is better than the margin allows."""

_CACHED_SHARES = 64


def share_terms(pi: Floats | float, rho0: float, rho: Floats) -> Floats:
    """Return ln((1 - theta_0) / (1 - theta_j)) for every alternative rho_j.

    With it the log factor of e_a and e_b events is e_b * ln(rho_j/rho_0) - (e_a + e_b) * share_terms.

    Args:
        pi: B's share, strictly between 0 and 1; broadcasts against ``rho``.
        rho0: rate ratio under the null.
        rho: rate ratios of the alternatives.
    """
    terms: Floats = np.log1p(pi * (rho - 1.0)) - np.log1p(pi * (rho0 - 1.0))
    return terms


def observed_share(n_a: int, n_b: int) -> float:
    """Return B's share from counts of one window, for when the configured split cannot be trusted.

    0 without any observation, which makes the factor of that window exactly 1.
    """
    total = n_a + n_b
    return n_b / total if total else 0.0


class RateEProcess:
    """ln E against "B's event rate is at most rho0 times A's" (or at least, for factors below 1).

    Validity: exact for random assignment at rho0 = 1; for rho0 != 1 it needs the ratio, not the base
    rate, to hold at every moment. Rows with pi = 0 or 1, or without events, have factor exactly 1.
    A row where only B had events counts in full: that is what a broken canary looks like.
    """

    def __init__(
        self,
        rho0: float = 1.0,
        grid: Sequence[float] = REGRESSION_FACTORS,
        w0: float = FIRST_W0,
        steps: int = 1,
    ) -> None:
        """Create the process at E = 1.

        Args:
            rho0: rate ratio under the null; 1 or 1 + margin.
            grid: alternatives as factors of rho0, all > 0.
            w0: mass bet from the start (1: plain test).
            steps: planned steps of 5 s (see ``EpochPlan.steps``).

        Raises:
            ValueError: rho0 or a factor is not positive and finite; w0 or steps is out of range.
        """
        if not (math.isfinite(rho0) and rho0 > 0.0):
            msg = f"rho0 must be positive and finite, got {rho0!r}"
            raise ValueError(msg)
        if not grid or not all(math.isfinite(factor) and factor > 0.0 for factor in grid):
            msg = "grid must hold positive, finite factors of rho0"
            raise ValueError(msg)
        self.rho0 = rho0
        self.grid = tuple(grid)
        self.mixture = StartMixture(w0, steps, len(self.grid))
        self.events_a = 0
        self.events_b = 0
        self._rho: Floats = rho0 * np.array(self.grid)
        self._log_ratio: Floats = np.log(self._rho) - math.log(rho0)
        self._share_terms: dict[float, Floats] = {}

    @classmethod
    def non_inferiority(cls, rho0: float) -> RateEProcess:
        """Return the reversed test: large E says B's rate is below rho0 times A's (for promotion)."""
        return cls(rho0, NON_INFERIORITY_FACTORS, w0=1.0)

    def update(self, tick: int, rows: Iterable[RateRow]) -> None:
        """Take in one tick.

        Args:
            tick: whole seconds of broker time since the epoch began; never going back.
            rows: (pi, events A, events B) for each phase; their order does not matter.

        Raises:
            ValueError: the tick goes back, a share is outside [0, 1] or a count is negative.
        """
        merged: dict[float, tuple[int, int]] = {}
        for pi, e_a, e_b in rows:
            check_share(pi)
            check_counts((e_a, e_b))
            before = merged.get(pi, (0, 0))
            merged[pi] = (before[0] + e_a, before[1] + e_b)
        self.mixture.advance(tick)
        for pi, (e_a, e_b) in sorted(merged.items()):
            if 0.0 < pi < 1.0 and e_a + e_b > 0:
                self.events_a += e_a
                self.events_b += e_b
                self.mixture.multiply(e_b * self._log_ratio - (e_a + e_b) * self._share_term(pi))

    def log_e(self) -> float:
        """Return ln E; reject at ln E >= ln(1/alpha_k)."""
        return self.mixture.log_e()

    def start_epoch(self, steps: int) -> None:
        """Begin a new epoch: E = 1, ticks count from 0 again, counts of events too."""
        self.mixture.restart(steps)
        self.events_a = 0
        self.events_b = 0

    def paths(self) -> tuple[Floats, Floats]:
        """Return (ln mass, ln growth since the epoch began) of every bet, for planning."""
        return self.mixture.log_r, self.mixture.growth

    def to_dict(self) -> State:
        """Return the checkpoint of this process."""
        return {
            "rho0": self.rho0,
            "grid": list(self.grid),
            "events": [self.events_a, self.events_b],
            "mixture": self.mixture.to_dict(),
        }

    @classmethod
    def from_dict(cls, state: State) -> RateEProcess:
        """Restore a process that goes on bit for bit where the checkpoint was taken."""
        process = cls(state["rho0"], state["grid"])
        process.mixture = StartMixture.from_dict(state["mixture"])
        process.events_a, process.events_b = state["events"]
        return process

    def _share_term(self, pi: float) -> Floats:
        term = self._share_terms.get(pi)
        if term is None:
            if len(self._share_terms) >= _CACHED_SHARES:
                self._share_terms.clear()
            term = share_terms(pi, self.rho0, self._rho)
            self._share_terms[pi] = term
        return term
