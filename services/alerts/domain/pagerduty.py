"""PagerDuty's Events API v2: one event for each notification, one PagerDuty incident for each of ours."""

import hashlib
from collections.abc import Mapping
from typing import Any

from schemas.v1.alerts import Alert
from schemas.v1.common import AlertLevel, rfc3339
from services.alerts.domain.incident import incident_key
from services.alerts.domain.render import figures
from services.alerts.domain.wording import Words, named, plain

SEVERITIES: Mapping[AlertLevel, str] = {
    AlertLevel.INFO: "info",
    AlertLevel.WARNING: "warning",
    AlertLevel.CRITICAL: "error",
    AlertLevel.EMERGENCY: "critical",
}
_SUMMARY = 1024
_KEY = 255
"""PagerDuty's limits, in characters."""


def dedup_key(alert: Alert) -> str:
    """The incident; a longer one than PagerDuty takes is shortened to its digest."""
    key = f"cypria.{incident_key(alert)}"
    return key if len(key) <= _KEY else f"cypria.{hashlib.sha256(key.encode()).hexdigest()}"


def event_body(
    alert: Alert, event_id: str, routing_key: str, mapping: Mapping[AlertLevel, str] | None = None,
    words: Words | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The JSON body of `POST /v2/enqueue`; ``mapping`` overrides SEVERITIES level by level."""
    words = words or plain(alert)
    body: dict[str, Any] = {"routing_key": routing_key, "dedup_key": dedup_key(alert)}
    if alert.resolved:
        return {**body, "event_action": "resolve"}
    details: dict[str, Any] = {
        "message": words.text, "level": alert.level.value, "alert_id": event_id, "incident": alert.incident,
        **figures(alert), **alert.tags,
    }  # fmt: skip
    if alert.rule:
        details["rule"] = alert.rule
    summary = named(alert) if words.title == alert.title else words.title
    payload: dict[str, Any] = {
        "summary": summary[:_SUMMARY] or alert.level.value,
        "source": alert.test_id or "cypria",
        "severity": ({**SEVERITIES, **(mapping or {})})[alert.level],
        "timestamp": rfc3339(alert.at_ms),
        "component": "cypria",
        "custom_details": details,
    }
    if alert.test_id:
        payload["group"] = alert.test_id
    if words.report:
        body["links"] = [{"href": words.report, "text": "Decision report"}]
    return {**body, "event_action": "trigger", "client": "Cypria", "payload": payload}
