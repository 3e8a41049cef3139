"""The start-time mixture shared by all e-processes that bet against a regression.

Source: our composition of the Shiryaev-Roberts e-detector (Shin, Ramdas & Rinaldo, "E-detectors",
arXiv 2203.03532) with a finite total mass, so that Ville's inequality keeps holding for the whole run.
Part ``w0`` of the mass is bet from the first tick on, the rest enters in T equal parts, one for each
planned step of 5 s. A regression that begins late is met by mass that has lost nothing before it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from services.monitor.domain.statistics.histogram import Floats, State

STEP_SECONDS = 5
FIRST_W0 = 0.8
LATER_W0 = 0.5
"""Mass bet from an epoch's first tick. A canary is mostly bad from the moment it starts, so a test's first epoch bets
more of it there; in later epochs no moment is likelier than another."""
GRID_SIZE = 16


def log_sum_exp(values: Floats) -> float:
    """Return ln(sum(exp(values))) without overflow; -inf for an empty or all -inf input."""
    if not len(values):
        return -math.inf
    top = float(values.max())
    if not math.isfinite(top):
        return top
    return top + math.log(float(np.exp(values - top).sum()))


class StartMixture:
    """State R_j (in log space), u and the running log growth of each bet j.

    E = u + sum(R_j), with E = 1 at the start. All updates are multiplications of R_j by factors whose
    null expectation is at most 1, or movements of mass from u to R at times fixed by the clock alone.
    """

    def __init__(self, w0: float, steps: int, size: int = GRID_SIZE) -> None:
        """Start with mass w0 on the bets.

        Args:
            w0: mass bet from the start, in (0, 1]; 1 gives the plain test without late starts.
            steps: T, planned number of steps of 5 s; at least 1.
            size: number of bets in the grid.

        Raises:
            ValueError: w0 or steps is out of range.
        """
        if not 0.0 < w0 <= 1.0:
            msg = f"w0 must be within (0, 1], got {w0!r}"
            raise ValueError(msg)
        if steps < 1:
            msg = f"steps must be >= 1 (planned seconds / {STEP_SECONDS}), got {steps!r}"
            raise ValueError(msg)
        self.w0 = w0
        self.steps = steps
        self.size = size
        self.log_r: Floats = np.full(size, math.log(w0 / size))
        self.growth: Floats = np.zeros(size)
        self._injected = 0
        self._tick: int | None = None
        self._step: int | None = None

    @property
    def unbet(self) -> float:
        """u: the mass that still waits for a later start, within [0, 1 - w0]."""
        return max(0.0, (1.0 - self.w0) * (1.0 - self._injected / self.steps))

    def advance(self, tick: int) -> None:
        """Enter a tick (whole seconds since the epoch began); the same tick may come again.

        The first tick of every step of 5 s after the first step moves one part of u to the bets.

        Raises:
            ValueError: the tick is before the last one.
        """
        if self._tick is not None and tick < self._tick:
            msg = f"tick must not go back: {tick} after {self._tick}; fold late facts into a later tick"
            raise ValueError(msg)
        self._tick = tick
        step = tick // STEP_SECONDS
        if self._step is None:
            self._step = step
        if step == self._step:
            return
        self._step = step
        if self._injected < self.steps and self.w0 < 1.0:
            self._injected += 1
            part = (1.0 - self.w0) / (self.steps * self.size)
            self.log_r = np.logaddexp(self.log_r, math.log(part))

    def multiply(self, log_factors: Floats) -> None:
        """Multiply every R_j by its factor, given as logarithms (shape: size)."""
        self.log_r = self.log_r + log_factors
        self.growth = self.growth + log_factors

    def log_e(self) -> float:
        """Return ln E."""
        unbet = self.unbet
        if unbet > 0.0:
            return log_sum_exp(np.append(self.log_r, math.log(unbet)))
        return log_sum_exp(self.log_r)

    def restart(self, steps: int) -> None:
        """Begin a later epoch of ``steps`` steps: E = 1, mass LATER_W0 on the bets (all of it in a plain test)."""
        fresh = StartMixture(self.w0 if self.w0 == 1.0 else LATER_W0, steps, self.size)
        self.__dict__.update(fresh.__dict__)

    def to_dict(self) -> State:
        """Return the checkpoint of this mixture."""
        return {
            "w0": self.w0,
            "steps": self.steps,
            "log_r": [float(value) for value in self.log_r],
            "growth": [float(value) for value in self.growth],
            "injected": self._injected,
            "tick": self._tick,
            "step": self._step,
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> StartMixture:
        """Restore a mixture that goes on bit for bit where the checkpoint was taken."""
        mixture = cls(state["w0"], state["steps"], len(state["log_r"]))
        mixture.log_r = np.array(state["log_r"], dtype=np.float64)
        mixture.growth = np.array(state["growth"], dtype=np.float64)
        mixture._injected = state["injected"]
        mixture._tick = state["tick"]
        mixture._step = state["step"]
        return mixture
