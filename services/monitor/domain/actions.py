"""What the monitor asks the routers for short of a rollback: a step down, a pause, a retry, a ramp's next step. Pure.

A request is good for one version of the test only; it is repeated until the test has another version. Whether it was
carried out is told by what the routers wrote: a setback, a pause. Otherwise it is asked for again, on the new version.
"""

from collections.abc import Container

from schemas.v1.common import TestStatus
from schemas.v1.events import ActionRequested
from schemas.v1.experiment import RollbackOrder, VerdictRecord
from services.monitor.domain import ramp, verdict
from services.monitor.domain.alerts import acts
from services.monitor.domain.evaluator import TestEvaluator
from services.monitor.domain.findings import STEP_DOWN, Finding

ACTOR = "monitor"
_RULES = {"advance": "ramp", "retry": "retry"}
PAUSE_FOR_S = 600
"""Broker seconds after which a pause that could not be asked for is no longer asked for: what fired may have passed."""

SETBACKS = "setbacks"
"""In a step down's record: the steps down that the test had before it."""


def event_id(request: ActionRequested) -> str:
    """Identity of a request: test, the version it was decided on, action."""
    return f"{request.test_id}.{request.order.decided_on}.{request.action}"


def done_key(evaluator: TestEvaluator, finding: Finding) -> str:
    """Where it is noted that a finding's action was carried out, as alerts that were published are."""
    return f"{evaluator.experiment.test_id}.done.{finding.key}"


def carried_out(evaluator: TestEvaluator, last: ActionRequested | None) -> set[str]:
    """Keys of findings whose action the test shows to have been carried out; ``last`` is what was asked for last."""
    experiment = evaluator.experiment
    setback = experiment.setback
    found = set()
    for finding in evaluator.findings:
        if finding.kind == "pause":
            done = experiment.status is TestStatus.PAUSED
        elif finding.kind == "step_down" and setback is not None:
            # Findings that only alerted at the time (monitoring was stopped) are not among the test's setbacks.
            done = finding.number <= setback.count or setback.since_ms >= 1000 * finding.tick
        else:
            continue
        if done:
            found.add(done_key(evaluator, finding))
    if last is not None and last.action == "step_down" and last.order.verdict is not None and setback is not None:
        before = last.order.verdict.details
        if setback.count > before[SETBACKS]:
            found.add(before["finding"])
    return found


def wanted(
    evaluator: TestEvaluator, done: Container[str], *, monitoring_active: bool
) -> ActionRequested | None:
    """What to ask for now, decided on the present version of the test; nothing while monitoring is stopped.

    A test without ``auto_rollback`` is never paused or stepped down, only told of; its ramp goes on.
    """
    experiment = evaluator.experiment
    running = experiment.status is TestStatus.RUNNING and experiment.stopping is None
    if not (monitoring_active and running) or evaluator.fired is not None:
        return None
    if acts(experiment, monitoring_active=monitoring_active):
        for finding in (_step_down(evaluator), _pause(evaluator)):
            if finding is not None and done_key(evaluator, finding) not in done:
                return _of_finding(evaluator, finding)
    planned = ramp.plan(evaluator)
    if planned is None or planned.action is None:
        return None
    record = verdict.progress_record(
        evaluator, _RULES[planned.action], planned.reason,
        {"conditions": [condition.model_dump(mode="json") for condition in planned.conditions]},
    )  # fmt: skip
    return _request(evaluator, planned.action, record)


def _step_down(evaluator: TestEvaluator) -> Finding | None:
    """The last step down, while its quiet time lasts; after that a canary that is still bad is found anew."""
    if not evaluator.trials[STEP_DOWN].quiet(evaluator.second or 0):
        return None
    return next((f for f in reversed(evaluator.findings) if f.kind == "step_down"), None)


def _pause(evaluator: TestEvaluator) -> Finding | None:
    finding = next((f for f in reversed(evaluator.findings) if f.kind == "pause"), None)
    fresh = finding is not None and (evaluator.second or 0) - finding.tick < PAUSE_FOR_S
    return finding if fresh else None


def _of_finding(evaluator: TestEvaluator, finding: Finding) -> ActionRequested:
    record = verdict.finding_record(evaluator, finding)
    setback = evaluator.experiment.setback
    record.details[SETBACKS] = setback.count if setback else 0
    record.details["finding"] = done_key(evaluator, finding)
    return _request(evaluator, finding.kind, record)


def _request(evaluator: TestEvaluator, action: str, record: VerdictRecord) -> ActionRequested:
    experiment = evaluator.experiment
    order = RollbackOrder(
        rule=record.rule, reason=record.reason, actor=ACTOR, at_ms=record.at_ms, decided_on=experiment.version,
        verdict=record,
    )  # fmt: skip
    return ActionRequested.model_validate(
        {"test_id": experiment.test_id, "model_a": experiment.model_a, "action": action, "order": order}
    )
