"""Alerts that follow from durable events: every start, change and end of a test, and monitoring switched on or off."""

from typing import Any

from schemas.v1.alerts import Alert
from schemas.v1.common import AlertLevel
from schemas.v1.events import ModelState, MonitoringChanged, TestEvent
from schemas.v1.experiment import VerdictRecord

AUTOMATIC = frozenset({"monitor", "router"})
"""Actors of a rollback that no person ordered."""

_TESTS: dict[str, tuple[AlertLevel, str]] = {
    "test.started": (AlertLevel.INFO, "Test started"),
    "test.split_changed": (AlertLevel.INFO, "Traffic split changed"),
    "test.ramped": (AlertLevel.INFO, "Traffic split raised by the ramp"),
    "test.approved": (AlertLevel.INFO, "Ramp step approved"),
    # the finding behind it has warned already
    "test.stepped_down": (AlertLevel.INFO, "Traffic split stepped down"),
    "test.retried": (AlertLevel.INFO, "Traffic split raised again after a step down"),
    "test.rolling_back": (AlertLevel.WARNING, "Gradual rollback begun"),
    "test.paused": (AlertLevel.INFO, "Test paused"),
    "test.resumed": (AlertLevel.INFO, "Test resumed"),
    "test.completed": (AlertLevel.INFO, "Test completed"),
    "test.failed": (AlertLevel.CRITICAL, "Test failed"),
}
_DECIDED = frozenset({"test.ramped", "test.stepped_down", "test.retried", "test.paused", "test.rolling_back"})
"""What an order is behind, if one is: its rule and its figures are the alert's."""
_REPEATABLE = _DECIDED | {"test.split_changed", "test.resumed", "test.approved"}
MONITORING = "monitoring.changed"
MODEL = "model.state"
ROLLED_BACK = "test.rolled_back"
TERMINAL = frozenset({"test.completed", "test.failed", ROLLED_BACK})
_LASTING = ("stable.", "check.", "unwatched", "breaker", "both_arms", "warning.", "no_data.")
"""Incidents of a test that are a state and no fact, by what follows its id: they are over with it."""


def alert_of_test(kind: str, event: TestEvent) -> Alert | None:
    """The alert of an event of a test, such as ``test.started``; None where nobody needs to know.

    A rollback that the system ordered is an emergency under the incident of the verdict that caused it; one that
    a person ordered is a warning.
    """
    if kind == ROLLED_BACK:
        return _rolled_back(event)
    if kind not in _TESTS:
        return None
    level, title = _TESTS[kind]
    name = kind.removeprefix("test.")
    order = event.order if kind in _DECIDED else None
    verdict = order.verdict if order else event.result.verdict if event.result else None
    incident = f"{event.test_id}.{name}"
    if kind in _REPEATABLE:
        incident += f".{event.version}"
    alert = _alert(event, incident, level, title, _sentence(kind, event), verdict)
    return alert.model_copy(update={"rule": order.rule}) if order else alert


def endings(event: TestEvent, standing: list[tuple[str, Alert]]) -> list[tuple[str, Alert]]:
    """(event id, alert) that ends each of the ``standing`` alerts (by event id) that cannot outlast an ended test.

    Who raised one may be dead, or have been started anew: nobody else would end it.
    """
    return [
        (f"{event_id}.ended", alert.model_copy(update={
            "level": AlertLevel.INFO, "resolved": True, "at_ms": event.at_ms, "message": "the test has ended",
        }))
        for event_id, alert in standing
        if alert.incident.removeprefix(f"{event.test_id}.").startswith(_LASTING)
    ]  # fmt: skip


def alert_of_monitoring(event_id: str, event: MonitoringChanged) -> Alert:
    """The alert of monitoring being switched: off is a warning, since verdicts then only alert."""
    word = "started" if event.active else "stopped"
    return Alert(
        incident=f"monitoring.{event_id}",
        level=AlertLevel.INFO if event.active else AlertLevel.WARNING,
        title=f"Monitoring {word}",
        message=f"{event.actor} {word} monitoring, every {event.check_interval_seconds:g} s"
        + ("" if event.active else "; verdicts only alert until it is started again"),
        at_ms=event.at_ms,
    )


def alert_of_model(event: ModelState) -> Alert | None:
    """The alert of a model that failed on a worker, to load or while it served, and of its end once it is ready there
    or not wanted any more; None for the states between.
    """
    if event.state not in {"failed", "ready", "unloaded"}:
        return None
    failed = event.state == "failed"
    return Alert(
        incident=f"model.{event.model}.{event.worker}",
        level=AlertLevel.CRITICAL if failed else AlertLevel.INFO,
        title=f"Model {'failed' if failed else 'recovered'}: {event.model}",
        message=f"it is {event.state} on worker {event.worker}" + (f": {event.reason}" if event.reason else ""),
        at_ms=event.at_ms,
        resolved=not failed,
        tags={"model": event.model},
    )


def _rolled_back(event: TestEvent) -> Alert:
    order = event.order
    automatic = order is None or order.actor in AUTOMATIC
    message = f"{event.model_b} was taken out, {event.model_a} serves everything"
    reason = (order.reason if order else None) or event.reason
    if reason:
        message += f": {reason}"
    verdict = order.verdict if order else None
    incident = f"{event.test_id}.rollback" if automatic else f"{event.test_id}.rolled_back"
    level = AlertLevel.EMERGENCY if automatic else AlertLevel.WARNING
    title = "Canary rolled back" if automatic else "Canary rolled back by an operator"
    alert = _alert(event, incident, level, title, message, verdict)
    return alert.model_copy(update={"rule": order.rule}) if order else alert


def _sentence(kind: str, event: TestEvent) -> str:
    pair = f"{event.model_b} against {event.model_a} at {event.share_bp / 100:g} %"
    if kind == "test.completed":
        decision = event.result.decision if event.result else None
        text = f"{pair}: {decision or 'no decision'}"
    else:
        text = pair
    reason = (event.result.reason if event.result else None) or event.reason
    return f"{text}: {reason}" if reason else text


def _alert(
    event: TestEvent, incident: str, level: AlertLevel, title: str, message: str, verdict: VerdictRecord | None
) -> Alert:
    numbers: dict[str, Any] = {"split_percent": event.share_bp / 100}
    if verdict is not None:
        numbers |= {"n_a": verdict.n_a, "n_b": verdict.n_b}
        if verdict.log_e is not None:
            numbers["log_e"] = verdict.log_e
    return Alert(
        incident=incident,
        level=level,
        title=title,
        message=message,
        test_id=event.test_id,
        rule=verdict.rule if verdict else None,
        at_ms=event.at_ms,
        value=verdict.value if verdict else None,
        bound=verdict.bound if verdict else None,
        threshold=verdict.threshold if verdict else None,
        n=(verdict.n_b or None) if verdict else None,
        tags={**event.tags, "model_a": event.model_a, "model_b": event.model_b},
        numbers=numbers,
    )
