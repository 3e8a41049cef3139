"""Promotion's test of errors: B's rate is at most rho0 times A's, or at most a negligible p0.

The null is the intersection, "worse than rho0 times A's and above p0". Under it both parts are e-processes: Core A
reversed (``rate``), which moves on errors alone, and a one-sample test of B's units against p0, which grows with
every unit that has no error. So their weighted mean is one as well (Vovk & Wang, arXiv 1912.06116), and no level is
split. Sources of the one-sample factors: as for ``absolute``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from services.monitor.domain.statistics.histogram import Floats, RateRow, State, check_counts
from services.monitor.domain.statistics.planning import smallest
from services.monitor.domain.statistics.rate import NON_INFERIORITY_FACTORS, RateEProcess
from services.monitor.domain.statistics.start_mixture import log_sum_exp

RATE_WEIGHT, NEGLIGIBLE_WEIGHT = 0.85, 0.15

FLAWLESS_MASS = 0.5
"""Mass of the bet that B never fails, which the first error ends; the others share the rest."""

LAG_SECONDS = 60
"""A failure may take so much longer than a good answer: units count as free of errors when so much time has passed
since they came, or when nothing of B is in flight. What takes longer is in flight or overdue, and counts as below."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What one tick brought of B.

    Attributes:
        units: units that came for the first time in the test, when admitted.
        failed: units with their first error in the test.
        admitted: requests admitted.
        finished: requests finished, those without a verdict on B included.
        void: finished requests that say nothing of B: cancelled by the caller, or the caller's own error.
        overdue: requests that became overdue, less overdue ones that finished.
    """

    units: int = 0
    failed: int = 0
    admitted: int = 0
    finished: int = 0
    void: int = 0
    overdue: int = 0


def negligible_bets(limit: float) -> tuple[Floats, Floats, Floats]:
    """Return (ln mass, ln factor of a unit without an error, of one with) of every bet; the first: B never fails."""
    size = len(NON_INFERIORITY_FACTORS)
    factors: Floats = np.array([0.0, *NON_INFERIORITY_FACTORS])
    mass: Floats = np.log(np.array([FLAWLESS_MASS, *[(1.0 - FLAWLESS_MASS) / size] * size]))
    clean: Floats = np.log1p(-factors * limit) - math.log1p(-limit)
    failed: Floats = np.concatenate(([-math.inf], np.log(factors[1:])))
    return mass, clean, failed


class NegligibleRate:
    """ln E against "a unit of B fails with a chance above p0", from totals.

    A bet j with factor f_j < 1 multiplies by f_j for a unit that fails and by (1 - f_j*p0)/(1 - p0) for one that does
    not. The order of units is that of their arrival: see `LAG_SECONDS`. A unit that fails only with a later request of
    its own counts as failed from then on, which lowers E.
    """

    def __init__(self, limit: float) -> None:
        """Create the process at E = 1.

        Args:
            limit: p0 as a share, in (0, 1).

        Raises:
            ValueError: limit is out of range.
        """
        if not 0.0 < limit < 1.0:
            msg = f"limit must be a share within (0, 1) (0.001 means 0.1 %), got {limit!r}"
            raise ValueError(msg)
        self.limit = limit
        self._mass, self._clean, self._failed = negligible_bets(limit)
        self._sums = [0] * 6
        self._settled = 0
        self._recent: deque[tuple[int, int]] = deque()

    def update(self, tick: int, more: Arrivals) -> None:
        """Take in one tick (whole seconds of broker time since the test began).

        Raises:
            ValueError: a count is negative, that of overdue requests excepted.
        """
        counts = (more.units, more.failed, more.admitted, more.finished, more.void)
        check_counts(counts)
        self._sums = [before + now for before, now in zip(self._sums, (*counts, more.overdue), strict=True)]
        units = self._sums[0]
        if self._in_flight <= 0:
            self._settled = units
            self._recent.clear()
            return
        if more.units:
            self._recent.append((tick, units))
        while self._recent and self._recent[0][0] <= tick - LAG_SECONDS:
            self._settled = self._recent.popleft()[1]

    @property
    def _in_flight(self) -> int:
        return self._sums[2] - self._sums[3]

    @property
    def failed(self) -> int:
        """Units with an error, and requests that are overdue now."""
        return self._sums[1] + max(0, self._sums[5])

    @property
    def units(self) -> int:
        """Units of which the outcome is known, failed ones included.

        Requests that are in flight make it fewer, and so does, in proportion, what callers cancelled or got wrong.
        """
        units, _, _, finished, void, _ = self._sums
        settled = max(0, min(self._settled, units - max(0, self._in_flight)))
        return max(self.failed, settled * max(0, finished - void) // finished if finished else 0)

    def log_e(self) -> float:
        """Return ln E."""
        return log_sum_exp(self.paths()[0])

    def paths(self, more: int = 0) -> tuple[Floats, Floats]:
        """Return (ln mass, ln growth so far) of every bet that is left, if ``more`` units came without an error."""
        failed, clean = self.failed, self.units - self.failed + more
        if failed:
            growth = failed * self._failed[1:] + clean * self._clean[1:]
            return self._mass[1:] + growth, growth
        growth = clean * self._clean
        return self._mass + growth, growth

    def to_dict(self) -> State:
        """Return the checkpoint of this process."""
        recent = [list(pair) for pair in self._recent]
        return {"limit": self.limit, "sums": list(self._sums), "settled": self._settled, "recent": recent}

    @classmethod
    def from_dict(cls, state: State) -> NegligibleRate:
        """Restore a process that goes on bit for bit where the checkpoint was taken."""
        rate = cls(state["limit"])
        rate._sums, rate._settled = list(state["sums"]), state["settled"]
        rate._recent = deque((tick, units) for tick, units in state["recent"])
        return rate


class ErrorNonInferiority:
    """ln E for "B's error rate is at most rho0 times A's, or at most p0"; without p0 it is Core A reversed alone."""

    def __init__(self, rho0: float, negligible: float = 0.0) -> None:
        """Create the process at E = 1.

        Args:
            rho0: ratio of error rates that is allowed, 1 + margin.
            negligible: p0 as a share, below 1; 0: no rate is negligible.

        Raises:
            ValueError: rho0 or negligible is out of range.
        """
        self.rate = RateEProcess.non_inferiority(rho0)
        self.negligible = NegligibleRate(negligible) if negligible else None

    def update(self, tick: int, rows: Iterable[RateRow], more: Arrivals) -> None:
        """Take in one tick: (pi, first-error units of A, of B) for each phase, and all that it brought of B.

        Raises:
            ValueError: the tick goes back, a share is outside [0, 1] or a count is negative.
        """
        self.rate.update(tick, rows)
        if self.negligible is not None:
            self.negligible.update(tick, more)

    def log_e(self) -> float:
        """Return ln E; shown at ln E >= ln(1/alpha)."""
        return log_sum_exp(self.paths()[0])

    def paths(self) -> tuple[Floats, Floats]:
        """Return (ln mass, ln growth so far) of every bet, for planning."""
        if self.negligible is None:
            return self.rate.paths()
        (mass, growth), (other, others) = self.rate.paths(), self.negligible.paths()
        weighted = (mass + math.log(RATE_WEIGHT), other + math.log(NEGLIGIBLE_WEIGHT))
        return np.concatenate(weighted), np.concatenate((growth, others))

    @property
    def by_negligible(self) -> bool:
        """Whether it is the rate p0 that speaks for B, and not the comparison with A.

        What is shown is shown by the larger part alone, since that is no smaller than the mean.
        """
        return self.negligible is not None and self.negligible.log_e() > self.rate.log_e()

    def clean_units_needed(self, log_threshold: float) -> int | None:
        """Return how many more units of B without an error would show it, whatever A does.

        0 when it is shown; None without p0, or beyond 10^9.
        """
        negligible = self.negligible
        if negligible is None:
            return None
        rate = self.rate.log_e() + math.log(RATE_WEIGHT)

        def reached(more: int) -> bool:
            ahead = log_sum_exp(negligible.paths(more)[0]) + math.log(NEGLIGIBLE_WEIGHT)
            return float(np.logaddexp(rate, ahead)) >= log_threshold

        return 0 if reached(0) else smallest(reached)

    def to_dict(self) -> State:
        """Return the checkpoint; without p0 it is that of Core A."""
        state = self.rate.to_dict()
        if self.negligible is not None:
            state["negligible"] = self.negligible.to_dict()
        return state

    def load(self, state: State) -> None:
        """Go on bit for bit where the checkpoint was taken.

        Raises:
            ValueError: it is that of another p0.
        """
        other = state.get("negligible")
        limit = None if self.negligible is None else self.negligible.limit
        if (None if other is None else other["limit"]) != limit:
            msg = f"the checkpoint is of another negligible rate than {limit!r}"
            raise ValueError(msg)
        self.rate = RateEProcess.from_dict(state)
        self.negligible = None if other is None else NegligibleRate.from_dict(other)
