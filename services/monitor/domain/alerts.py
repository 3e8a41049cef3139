"""From findings to alerts and rollback orders; ids and words are the same on every replica."""

from schemas.v1.alerts import Alert
from schemas.v1.common import AlertLevel, TestStatus
from schemas.v1.events import RollbackRequested
from schemas.v1.experiment import Experiment, RollbackOrder
from services.monitor.domain.evaluator import TestEvaluator
from services.monitor.domain.findings import ACTIONS, Finding
from services.monitor.domain.verdict import finding_record

_LEVELS: dict[str, AlertLevel] = {
    "rollback": AlertLevel.EMERGENCY,
    "step_down": AlertLevel.WARNING,  # the system takes care of it
    "pause": AlertLevel.CRITICAL,  # somebody must look at it: the canary keeps what it has
    "warning": AlertLevel.WARNING,
    "both_arms": AlertLevel.CRITICAL,
    "stable_bad": AlertLevel.CRITICAL,
    "stable_recovered": AlertLevel.INFO,
    "sample_ratio": AlertLevel.WARNING,
    "no_data": AlertLevel.WARNING,
    "mixed_models": AlertLevel.WARNING,
    "check_failing": AlertLevel.CRITICAL,
    "check_recovered": AlertLevel.INFO,
}

_TITLES: dict[str, str] = {
    "rollback": "Rollback required",
    "step_down": "Step down",
    "pause": "Pause",
    "warning": "Warning limit exceeded",
    "both_arms": "Both variants are bad",
    "stable_bad": "The stable model is bad",
    "stable_recovered": "The stable model is well again",
    "sample_ratio": "Sample ratio mismatch",
    "no_data": "No data",
    "mixed_models": "More than one model in an arm",
    "check_failing": "Monitoring check failing",
    "check_recovered": "Monitoring check works again",
}


_RECOVERED = frozenset({"check_recovered", "stable_recovered"})
_FAMILIES = {
    "check_failing": "check", "check_recovered": "check", "both_arms": "stable", "stable_bad": "stable",
    "stable_recovered": "stable",
}  # fmt: skip
"""What begins and what ends an incident have one name in it."""


def acts(experiment: Experiment, *, monitoring_active: bool) -> bool:
    """Whether what fired is done (a rollback, a step down, a pause), or only alerts."""
    return monitoring_active and experiment.auto_rollback and experiment.live and experiment.stopping is None


def alert_id(experiment: Experiment, finding: Finding) -> str:
    """Event id of a finding's alert."""
    return f"{experiment.test_id}.alert.{finding.key}"


def alert_of(experiment: Experiment, finding: Finding, *, monitoring_active: bool) -> Alert:
    """The alert that makes a finding known. What fails and recovers is one incident."""
    family = _FAMILIES.get(finding.kind, finding.kind)
    numbers = {
        name: value
        for name in ("log_e", "limit", "value_a", "value_b")
        if (value := getattr(finding, name)) is not None
    }
    message = finding.text
    if finding.kind in ACTIONS:
        message += f"; {_consequence(experiment, finding, monitoring_active=monitoring_active)}"
    return Alert(
        incident=f"{experiment.test_id}.{family}.{finding.rule}.{finding.number}",
        level=_LEVELS[finding.kind],
        title=f"{_TITLES[finding.kind]}: {finding.rule}",
        message=message,
        test_id=experiment.test_id,
        rule=finding.rule,
        at_ms=finding.tick * 1000,
        resolved=finding.kind in _RECOVERED,
        value=finding.value,
        bound=finding.bound,
        threshold=finding.threshold,
        n=(finding.n_a if finding.kind.startswith("stable_") else finding.n_b) or None,
        tags={**experiment.tags, "model_a": experiment.model_a, "model_b": experiment.model_b},
        numbers=numbers | {"n_a": finding.n_a, "n_b": finding.n_b, "split_percent": finding.share_bp / 100},
    )


_BY_HAND = {
    "rollback": ("roll back by POST /v1/ab-testing/rollback", "roll back by hand"),
    "step_down": ("lower the split by PATCH /v1/ab-testing/traffic-split", "lower the split by hand"),
    "pause": ("pause by POST /v1/ab-testing/pause", "pause by hand"),
}


def approval(evaluator: TestEvaluator, text: str) -> tuple[str, Alert]:
    """(event id, alert) of a ramp step that waits for nothing but an operator's word, once for each step."""
    experiment, ramp = evaluator.experiment, evaluator.experiment.ramp
    step = 0 if ramp is None else ramp.step
    alert = Alert(
        incident=f"{experiment.test_id}.approval.{step}",
        level=AlertLevel.INFO,
        title=f"Approval needed: ramp step {step + 1}",
        message=text,
        test_id=experiment.test_id,
        rule="approval",
        at_ms=1000 * (evaluator.second or 0),
        tags={**experiment.tags, "model_a": experiment.model_a, "model_b": experiment.model_b},
        numbers={"split_percent": experiment.share_bp / 100},
    )
    return f"{experiment.test_id}.alert.approval.{step}", alert


def _consequence(experiment: Experiment, finding: Finding, *, monitoring_active: bool) -> str:
    off, stopped = _BY_HAND[finding.kind]
    if not experiment.auto_rollback:
        return f"auto_rollback is off: {off}"
    if not monitoring_active:
        return f"monitoring is stopped: POST /v1/ab-testing/monitoring/start, or {stopped}"
    if not acts(experiment, monitoring_active=monitoring_active):
        return "the test is being stopped"
    return _under_way(experiment, finding)


def _under_way(experiment: Experiment, finding: Finding) -> str:
    if finding.kind == "rollback":
        return "the canary is being taken out"
    if experiment.status is TestStatus.PAUSED:
        return "the test is paused: look into it, then POST /v1/ab-testing/resume or roll back"
    if finding.kind == "pause":
        return "the test is being paused: look into it, then POST /v1/ab-testing/resume or roll back"
    retry = experiment.retry
    if finding.number > retry.max_retries:
        return "the canary's share is being reduced, without a retry"
    minutes = retry.backoff_minutes * 2 ** (finding.number - 1)
    return f"the canary's share is being reduced, retry {finding.number} of {retry.max_retries} in {minutes:g} minutes"


def rollback_request(evaluator: TestEvaluator, finding: Finding) -> tuple[str, RollbackRequested]:
    """(event id, order) of a fired rollback, decided on the present version of the test."""
    experiment = evaluator.experiment
    record = finding_record(evaluator, finding)
    order = RollbackOrder(
        rule=finding.rule, reason=record.reason, actor="monitor", at_ms=record.at_ms, decided_on=experiment.version,
        verdict=record,
    )  # fmt: skip
    request = RollbackRequested(test_id=experiment.test_id, model_a=experiment.model_a, order=order)
    return event_id(request), request


def event_id(request: RollbackRequested) -> str:
    """Identity of a rollback request: test and the version that it was decided on."""
    return f"{request.test_id}.{request.order.decided_on}.rollback"
