"""Data of the durable events on `cypria.event.<type>` and `cypria.rollback.<test_id>`.

Types: ``test.started``, ``test.split_changed``, ``test.completed``, ``test.rolled_back``, ``test.failed``,
``test.paused``, ``test.resumed``, ``test.scheduled``, ``test.rollback_scheduled``, ``test.approved``, ``test.stepped_down``,
``test.retried``, ``test.ramped``, ``test.rolling_back``, ``monitoring.changed``, ``model.state``, ``model.progress``, ``model.registered``, ``rollback.requested`` and ``verdict.action``.
"""

from typing import Literal

from pydantic import Field

from schemas.v1.common import Message, ShareBp, TestStatus, UnixMs
from schemas.v1.experiment import Experiment, RollbackOrder, TestResult


class TestEvent(Message):
    """Something that happened to a test; ``result`` is the whole result as of this event.

    ``configuration`` is what the test is judged by (`Experiment.configuration`), on the events that begin or end it.
    """

    __test__ = False

    test_id: str
    version: int
    status: TestStatus
    model_a: str
    model_b: str
    share_bp: ShareBp
    actor: str = ""
    reason: str | None = None
    config_hash: str = ""
    at_ms: UnixMs
    result: TestResult | None = None
    order: RollbackOrder | None = None
    configuration: Experiment | None = None
    tags: dict[str, str] = Field(default_factory=dict)


class RollbackRequested(Message):
    """The monitor's (or an operator's) word that a canary must get nothing any more."""

    test_id: str
    model_a: str
    order: RollbackOrder


class ActionRequested(Message):
    """The monitor's word on a running test short of a rollback: a ramp's next step, a pause, a step down or a retry.

    ``order.decided_on`` is the version of the test that it was decided on: at another version it says nothing.
    """

    test_id: str
    model_a: str
    action: Literal["advance", "pause", "step_down", "retry"]
    order: RollbackOrder


class MonitoringChanged(Message):
    """Automated monitoring was switched on or off, or given another interval."""

    active: bool
    check_interval_seconds: float
    actor: str
    at_ms: UnixMs


class ModelState(Message):
    """A model changed its state on a worker."""

    model: str
    worker: str
    state: str
    digest: str = ""
    reason: str = ""
    at_ms: UnixMs
    seconds: float | None = Field(default=None, description="how long the step took")
    generation: int = 0


class ModelProgress(Message):
    """How far a step of a model's way to ready has come on a worker; ``fraction`` 0 to 1, negative when not known."""

    model: str
    worker: str
    state: str
    generation: int = 0
    fraction: float = -1.0
    detail: str = ""
    at_ms: UnixMs


class ModelRegistered(Message):
    """Something else is wanted of a model from now on, or what was wanted has been reached (``stage`` settled)."""

    model: str
    desired: str
    generation: int
    stage: str
    reason: str = ""
    actor: str = ""
    at_ms: UnixMs
