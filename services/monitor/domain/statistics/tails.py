"""Core A on exceedances of a high percentile of control's past: what a rank test of the whole is blind to.

Source: Core A (see ``rate``) applied to the indicator "above the percentile that control had in earlier
windows"; the threshold is known before the tick, so the exceedances are events like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from services.monitor.domain.statistics.histogram import (
    ControlHistory,
    Floats,
    HistogramRow,
    State,
    margin_shift,
    merge_by_share,
)
from services.monitor.domain.statistics.rate import RateEProcess
from services.monitor.domain.statistics.start_mixture import FIRST_W0


@dataclass(frozen=True, slots=True)
class TailLevel:
    """A percentile, the control observations it needs, and the grid's ends as rate ratios."""

    percent: int
    min_control: int
    rho_low: float
    rho_high: float

    def grid(self) -> tuple[float, ...]:
        """Return the 16 alternatives, evenly spaced in logarithm."""
        ends = np.linspace(math.log(self.rho_low), math.log(self.rho_high), 16)
        return tuple(float(rho) for rho in np.exp(ends))


P95 = TailLevel(percent=95, min_control=200, rho_low=1.2, rho_high=19.5)
P99 = TailLevel(percent=99, min_control=1000, rho_low=1.2, rho_high=64.0)


class TailExceedance:
    """ln E against "B, lowered by the margin, exceeds control's past percentile no more often than A"."""

    def __init__(self, level: TailLevel, margin: float = 0.0, w0: float = FIRST_W0, steps: int = 1) -> None:
        """Create the process at E = 1.

        Args:
            level: ``P95`` or ``P99``.
            margin: relative increase of B that is tolerated (0.2 = 20 %).
            w0: mass bet from the start.
            steps: planned steps of 5 s.

        Raises:
            ValueError: margin, w0 or steps is out of range.
        """
        self.level = level
        self.shift = margin_shift(margin)
        self.rate = RateEProcess(1.0, level.grid(), w0, steps)
        self.history = ControlHistory()

    def update(self, tick: int, rows: Iterable[HistogramRow]) -> None:
        """Take in one tick; arguments and errors as in ``MannWhitney.update``."""
        merged = merge_by_share(rows)
        self.history.begin(tick)
        self.observe(tick, merged, self.history)
        for _, hist_a, _ in merged:
            self.history.add(hist_a)

    def observe(self, tick: int, rows: list[tuple[float, dict[int, int], dict[int, int]]],
                history: ControlHistory) -> None:
        """Count exceedances of merged rows against a history that is already at this tick."""
        if history.total < self.level.min_control:
            self.rate.update(tick, ())
            return
        threshold = history.percentile_bin(self.level.percent)
        above_b = threshold + self.shift
        self.rate.update(tick, [
            (
                pi,
                sum(count for index, count in hist_a.items() if index > threshold),
                sum(count for index, count in hist_b.items() if index > above_b),
            )
            for pi, hist_a, hist_b in rows
        ])

    def log_e(self) -> float:
        """Return ln E; reject at ln E >= ln(1/alpha_k)."""
        return self.rate.log_e()

    def start_epoch(self, steps: int) -> None:
        """Begin a new epoch: E = 1 and ticks from 0; control's history stays."""
        self.history.restart()
        self.restart(steps)

    def restart(self, steps: int) -> None:
        """Begin a new epoch of the bets alone (the history is somebody else's)."""
        self.rate.start_epoch(steps)

    def paths(self) -> tuple[Floats, Floats]:
        """Return (ln mass, ln growth since the epoch began) of every bet, for planning."""
        return self.rate.paths()

    def to_dict(self) -> State:
        """Return the checkpoint of this process."""
        level = self.level
        return {
            "level": [level.percent, level.min_control, level.rho_low, level.rho_high],
            "shift": self.shift,
            "rate": self.rate.to_dict(),
            "history": self.history.to_dict(),
        }

    @classmethod
    def from_dict(cls, state: State) -> TailExceedance:
        """Restore a process that goes on bit for bit where the checkpoint was taken."""
        process = cls(TailLevel(*state["level"]))
        process.shift = state["shift"]
        process.rate = RateEProcess.from_dict(state["rate"])
        process.history = ControlHistory.from_dict(state["history"])
        return process
