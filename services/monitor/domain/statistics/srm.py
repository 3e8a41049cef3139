"""Sample-ratio mismatch: is the split that users got the split that was configured?

Source: Lindon & Malek (arXiv 2011.03567), as Core A with alternatives on both sides: log odds ratios of
+-exp(linspace(ln 0.01, ln 1.5, 10)), all mass bet from the start.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from services.monitor.domain.statistics.histogram import RateRow, State
from services.monitor.domain.statistics.rate import RateEProcess

SRM_ALPHA = 0.001

_LOG_ODDS = np.exp(np.linspace(math.log(0.01), math.log(1.5), 10))
SRM_FACTORS: tuple[float, ...] = tuple(
    float(x) for x in np.exp(np.concatenate((-_LOG_ODDS[::-1], _LOG_ODDS)))
)


class SampleRatio:
    """ln E against "new units reach B with the configured share"; never reset during a test."""

    def __init__(self, alpha: float = SRM_ALPHA) -> None:
        """Create the test at E = 1.

        Raises:
            ValueError: alpha is not within (0, 1).
        """
        if not 0.0 < alpha < 1.0:
            msg = f"alpha must be within (0, 1), got {alpha!r}"
            raise ValueError(msg)
        self.alpha = alpha
        self.process = RateEProcess(1.0, SRM_FACTORS, w0=1.0)

    def update(self, tick: int, rows: Iterable[RateRow]) -> None:
        """Take in the new units of one tick.

        Args:
            tick: whole seconds of broker time since the test began; never going back.
            rows: (pi, new units of A, new units of B) for each phase. A request without a unit of its
                own counts as one unit.

        Raises:
            ValueError: the tick goes back, a share is outside [0, 1] or a count is negative.
        """
        self.process.update(tick, rows)

    def log_e(self) -> float:
        """Return ln E."""
        return self.process.log_e()

    def mismatch(self) -> bool:
        """Return whether the split differs from the configured one, at level alpha for all looks."""
        return self.log_e() >= -math.log(self.alpha)

    def to_dict(self) -> State:
        """Return the checkpoint of this test."""
        return {"alpha": self.alpha, "process": self.process.to_dict()}

    @classmethod
    def from_dict(cls, state: State) -> SampleRatio:
        """Restore a test that goes on bit for bit where the checkpoint was taken."""
        ratio = cls(state["alpha"])
        ratio.process = RateEProcess.from_dict(state["process"])
        return ratio
