"""Epochs and levels: when units count afresh, and how the family's level is shared.

Source: union bound over guardrails (Bonferroni, which keeps attribution) and over epochs. A sticky unit's
first event is soon spent; counting units afresh in each epoch lets a late regression be seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from services.monitor.domain.statistics.start_mixture import STEP_SECONDS

MAX_EPOCHS = 24
MIN_EPOCH_SECONDS = 600


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """The epochs of a test of a planned duration; the last one lasts until the test ends.

    Attributes:
        duration_seconds: planned duration, at least 1.
    """

    duration_seconds: int

    def __post_init__(self) -> None:
        """Refuse a test without duration.

        Raises:
            ValueError: duration_seconds is below 1.
        """
        if self.duration_seconds < 1:
            msg = f"duration_seconds must be >= 1, got {self.duration_seconds!r}"
            raise ValueError(msg)

    @property
    def count(self) -> int:
        """Number of epochs: 24, fewer when each would last less than 10 minutes, at least 1."""
        return max(1, min(MAX_EPOCHS, self.duration_seconds // MIN_EPOCH_SECONDS))

    @property
    def length_seconds(self) -> int:
        """Length of an epoch in whole seconds (the last one takes what remains)."""
        return -(-self.duration_seconds // self.count)

    @property
    def steps(self) -> int:
        """T: planned steps of 5 s of one epoch."""
        return -(-self.length_seconds // STEP_SECONDS)

    def index(self, second: int) -> int:
        """Return the epoch (0 is the first) of a second since the test began; late ones are the last."""
        return min(max(second, 0) // self.length_seconds, self.count - 1)

    def start(self, index: int) -> int:
        """Return the second since the test began at which an epoch starts."""
        return index * self.length_seconds

    def tick(self, second: int) -> int:
        """Return the second within its epoch: the ``tick`` that the e-processes take."""
        return second - self.start(self.index(second))

    def weight(self, index: int) -> float:
        """Return v_e: 1/2 for the first epoch, the rest shared equally; 1 when there is only one.

        Raises:
            ValueError: there is no such epoch.
        """
        if not 0 <= index < self.count:
            msg = f"epoch index must be within 0..{self.count - 1}, got {index!r}"
            raise ValueError(msg)
        if self.count == 1:
            return 1.0
        return 0.5 if index == 0 else 0.5 / (self.count - 1)


def log_threshold(alpha: float, guardrails: float = 1, weight: float = 1.0) -> float:
    """Return ln(K / (alpha * v_e)): act when a guardrail's ln E reaches it.

    Args:
        alpha: level of the whole test, in (0, 1).
        guardrails: K, number of guardrails that act; with unequal shares 1/share, the sum of weights by its own weight.
        weight: v_e of the epoch.

    Raises:
        ValueError: an argument is out of range.
    """
    if not (0.0 < alpha < 1.0 and guardrails >= 1 and 0.0 < weight <= 1.0):
        got = f"{alpha!r}, {guardrails!r}, {weight!r}"
        msg = f"need 0 < alpha < 1, guardrails >= 1, 0 < weight <= 1; got {got}"
        raise ValueError(msg)
    return math.log(guardrails) - math.log(alpha) - math.log(weight)


def anytime_p_value(max_log_e: float) -> float:
    """Return min(1, 1 / max E) for the largest ln E seen so far: a p-value valid at every look."""
    return math.exp(-max(0.0, max_log_e))
