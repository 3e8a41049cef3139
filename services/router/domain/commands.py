"""What can be asked of an experiment. Imperative, immutable, complete: the reducer looks nowhere else."""

from dataclasses import dataclass, field
from typing import Any

from schemas.v1.common import Decision
from schemas.v1.experiment import (
    FailureCriteria,
    RollbackOrder,
    SuccessCriteria,
    Thresholds,
    VariantSummary,
    VerdictRecord,
)


@dataclass(frozen=True, slots=True)
class Start:
    """Begin a test of ``model_b`` against ``model_a``, now or at ``starts_ms`` (Unix ms)."""

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
    """Take the canary out in steps, each half of the one before."""

    order: RollbackOrder


@dataclass(frozen=True, slots=True)
class ScheduleRollback(_Named):
    """Take the canary out at ``at_ms`` (Unix ms); takes the place of a rollback scheduled before."""

    order: RollbackOrder
    at_ms: int
    speed: str


@dataclass(frozen=True, slots=True)
class StepRollback(_Named):
    """The next step of a gradual rollback, decided on ``version``; dropped when the entry has moved on."""

    version: int


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
    | BeginStop
    | Complete
    | BeginRollback
    | ScheduleRollback
    | StepRollback
    | Rollback
    | Fail
)
