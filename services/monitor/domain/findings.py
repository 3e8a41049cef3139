"""What an evaluation finds: each kind once for each rule and test, with the numbers behind it."""

from typing import Literal

from schemas.v1.common import Message
from schemas.v1.experiment import GuardrailAction

Kind = Literal[
    "rollback", "step_down", "pause", "warning", "both_arms", "sample_ratio", "no_data", "mixed_models",
    "stable_bad", "stable_recovered", "check_failing", "check_recovered",
]  # fmt: skip

STEP_DOWN: GuardrailAction = "step_down"
REPEATED: tuple[GuardrailAction, ...] = ("step_down", "pause")
"""Actions after which a test goes on, so that they may be taken again."""

ACTIONS = frozenset({"rollback", *REPEATED})
"""Kinds of findings that call for more than an alert."""

MONITORING_FAILURE = "monitoring_failure"
NO_DATA = "no_data"
SAMPLE_RATIO = "sample_ratio_mismatch"
BOTH_ARMS = "both_arms_bad"
STABLE_BAD = "stable_bad"
MIXED_MODELS = "mixed_models"


class Finding(Message):
    """Something that was shown (or that failed) at a tick.

    ``tick`` is the broker's second (Unix), ``sequence`` the last WINDOWS sequence in it; ``log_e`` reached ``limit``
    in epoch ``epoch``. ``number`` tells repeated findings apart: a check that fails again, the n-th step down or pause.
    """

    kind: Kind
    rule: str
    text: str
    tick: int
    sequence: int
    epoch: int = 0
    number: int = 1
    log_e: float | None = None
    limit: float | None = None
    value: float | None = None
    bound: float | None = None
    threshold: float | None = None
    unit: str = ""
    value_a: float | None = None
    value_b: float | None = None
    n_a: int = 0
    n_b: int = 0
    bad_units: int = 0
    share_bp: int = 0

    @property
    def key(self) -> str:
        """Identity within a test, the same on every replica and after every restart."""
        suffix = f".{self.number}" if self.number > 1 else ""
        return f"{self.kind}.{self.rule}{suffix}"
