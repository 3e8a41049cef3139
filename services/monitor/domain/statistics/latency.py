"""One latency-like guardrail: the weighted mean of three e-values (whole distribution, p95, p99).

A mean of e-processes, whatever its weights, is an e-process (Vovk & Wang, "E-values: calibration, combination and
applications", arXiv 1912.06116), so one level covers shift and tail.
The ranks carry most of the weight because their alternatives include tails (see ``mann_whitney``); the
exceedances say in plain terms *what* got worse. Used for latency, time to first token, time per output token and cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from services.monitor.domain.statistics.histogram import (
    ControlHistory,
    Floats,
    HistogramRow,
    State,
    merge_by_share,
)
from services.monitor.domain.statistics.mann_whitney import MannWhitney
from services.monitor.domain.statistics.start_mixture import FIRST_W0, log_sum_exp
from services.monitor.domain.statistics.tails import P95, P99, TailExceedance

WEIGHTS = {"ranks": 0.8, "p95": 0.1, "p99": 0.1}


class LatencyEvidence:
    """ln E against "B is slower than A by no more than the margin", in bulk and in tails."""

    def __init__(self, margin: float = 0.0, w0: float = FIRST_W0, steps: int = 1) -> None:
        """Create the evidence at E = 1.

        Args:
            margin: relative increase of B that is tolerated (0.2 = 20 %); 0 tests for any increase.
            w0: mass bet from the start.
            steps: planned steps of 5 s.

        Raises:
            ValueError: margin, w0 or steps is out of range.
        """
        self.history = ControlHistory()
        self.ranks = MannWhitney(margin, w0, steps)
        self.p95 = TailExceedance(P95, margin, w0, steps)
        self.p99 = TailExceedance(P99, margin, w0, steps)

    def update(self, tick: int, rows: Iterable[HistogramRow]) -> None:
        """Take in one tick; arguments and errors as in ``MannWhitney.update``."""
        merged = merge_by_share(rows)
        new = self.history.begin(tick)
        self.ranks.observe(tick, merged, self.history, new=new)
        self.p95.observe(tick, merged, self.history)
        self.p99.observe(tick, merged, self.history)
        for _, hist_a, _ in merged:
            self.history.add(hist_a)

    def log_e(self) -> float:
        """Return ln of the weighted mean of the three e-values."""
        return log_sum_exp(np.array([log_e + math.log(WEIGHTS[name]) for name, log_e in self.parts().items()]))

    def parts(self) -> dict[str, float]:
        """Return ln E of each part, to say *what* is slower: ``ranks``, ``p95``, ``p99``."""
        return {"ranks": self.ranks.log_e(), "p95": self.p95.log_e(), "p99": self.p99.log_e()}

    def start_epoch(self, steps: int) -> None:
        """Begin a new epoch: E = 1 and ticks from 0; control's history and the centre stay."""
        self.history.restart()
        self.ranks.restart(steps)
        self.p95.restart(steps)
        self.p99.restart(steps)

    def paths(self) -> tuple[Floats, Floats]:
        """Return (ln mass, ln growth since the epoch began) of every bet of all parts, for planning."""
        paths = {"ranks": self.ranks.paths(), "p95": self.p95.paths(), "p99": self.p99.paths()}
        masses = [mass + math.log(WEIGHTS[name]) for name, (mass, _) in paths.items()]
        return np.concatenate(masses), np.concatenate([growth for _, growth in paths.values()])

    def to_dict(self) -> State:
        """Return the checkpoint of this evidence."""
        return {
            "history": self.history.to_dict(),
            "ranks": self.ranks.to_dict(),
            "p95": self.p95.to_dict(),
            "p99": self.p99.to_dict(),
        }

    @classmethod
    def from_dict(cls, state: State) -> LatencyEvidence:
        """Restore evidence that goes on bit for bit where the checkpoint was taken."""
        evidence = cls()
        evidence.history = ControlHistory.from_dict(state["history"])
        evidence.ranks = MannWhitney.from_dict(state["ranks"])
        evidence.p95 = TailExceedance.from_dict(state["p95"])
        evidence.p99 = TailExceedance.from_dict(state["p99"])
        return evidence
