"""What can be asked of an experiment. Imperative, immutable, complete: the reducer looks nowhere else."""

from dataclasses import dataclass, field
from typing import Any

from schemas.v1.common import Decision
from schemas.v1.experiment import (
    FailureCriteria,
    Guardrail,
    RampStep,
    RetryPolicy,
    RollbackOrder,
    SuccessCriteria,
    Thresholds,
    VariantSummary,
    VerdictRecord,
)


@dataclass(frozen=True, slots=True)
class Start:
    """Begin a test of ``model_b`` against ``model_a``, now or at ``starts_ms`` (Unix ms).

    ``ramp`` is empty for a test at one share, else its first step has ``share_bp``.
    """

    test_id: str
    model_a: str
    model_b: str
    share_bp: int
    duration_minutes: float
    salt: str
    actor: str
    auto_rollback: bool = True
    success_criteria: SuccessCriteria = field(default_factory=SuccessCriteria)
    failure_criteria: FailureCriteria = field(default_factory=FailureCriteria)
    thresholds: Thresholds = field(default_factory=Thresholds)
    policies: dict[str, Any] = field(default_factory=dict)
    check_interval_seconds: float = 30.0
    primary_metric: str = "latency"
    configured: tuple[str, ...] = ()
    guardrails: tuple[Guardrail, ...] = ()
    ramp: tuple[RampStep, ...] = ()
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    min_duration_minutes: float = 0.0
    preset: str = ""
    change_type: str = ""
    digests: dict[str, str] = field(default_factory=dict)
    config_hash: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    unit_salt_version: int = 1
    starts_ms: int | None = None


@dataclass(frozen=True, slots=True)
class _Named:
    """A command to one test by its id, so that it never hits the next test of the same ``model_a``."""

    test_id: str


@dataclass(frozen=True, slots=True)
class Launch(_Named):
    """A scheduled test's time has come."""


@dataclass(frozen=True, slots=True)
class ChangeSplit(_Named):
    """Give variant B another share of the traffic."""

    share_bp: int
    actor: str


@dataclass(frozen=True, slots=True)
class Pause(_Named):
    """Hold the test at its present split: nothing that changes the split by itself goes on."""

    actor: str


@dataclass(frozen=True, slots=True)
class Resume(_Named):
    """End a pause."""

    actor: str


@dataclass(frozen=True, slots=True)
class Approve(_Named):
    """Open the manual gate of the ramp's present step."""

    actor: str


@dataclass(frozen=True, slots=True)
class _Decided(_Named):
    """A decision of the monitor's, good for the version ``order.decided_on`` of a running test and for no other."""

    order: RollbackOrder


@dataclass(frozen=True, slots=True)
class Advance(_Decided):
    """Go to the ramp's next step."""


@dataclass(frozen=True, slots=True)
class Hold(_Decided):
    """Pause, as an operator would."""


@dataclass(frozen=True, slots=True)
class StepDown(_Decided):
    """Give variant B a smaller share, and plan when to try again."""


@dataclass(frozen=True, slots=True)
class Retry(_Decided):
    """Go back to the share before the step down."""


@dataclass(frozen=True, slots=True)
class BeginStop(_Named):
    """The canary gets nothing from now on; the last facts and the verdict are awaited."""

    reason: str
    actor: str


@dataclass(frozen=True, slots=True)
class Complete(_Named):
    """End a stop with its decision."""

    decision: Decision
    reason: str
    verdict: VerdictRecord | None = None
    metrics_summary: dict[str, VariantSummary] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BeginRollback(_Named):
    """Take the canary out in steps that the stable model can take."""

    order: RollbackOrder


@dataclass(frozen=True, slots=True)
class ScheduleRollback(_Named):
    """Take the canary out at ``at_ms`` (Unix ms); takes the place of a rollback scheduled before."""

    order: RollbackOrder
    at_ms: int
    speed: str


@dataclass(frozen=True, slots=True)
class Descend(_Named):
    """The next step of a reduction under way, decided on ``version``; dropped when the entry has moved on."""

    version: int
    share_bp: int


@dataclass(frozen=True, slots=True)
class Wait(_Named):
    """The next step of a reduction waits for something, as of ``version``; dropped when the entry has moved on."""

    version: int
    waiting: str


@dataclass(frozen=True, slots=True)
class Rollback(_Named):
    """Take the canary out now."""

    order: RollbackOrder


@dataclass(frozen=True, slots=True)
class Fail(_Named):
    """The test cannot go on for a reason that says nothing about the models."""

    reason: str
    actor: str


Command = (
    Start
    | Launch
    | ChangeSplit
    | Pause
    | Resume
    | Approve
    | Advance
    | Hold
    | StepDown
    | Retry
    | BeginStop
    | Complete
    | BeginRollback
    | ScheduleRollback
    | Descend
    | Wait
    | Rollback
    | Fail
)
