"""Durable events into rows of the archive tables. Every row ends with (event_id, stream_created, sequence).

Audit records have a table of another kind: `domain.chain`.
"""

import json
from datetime import UTC, datetime
from typing import Any

from schemas.v1.alerts import Alert
from schemas.v1.events import TestEvent

TEST_COLUMNS = (
    "test_id", "at", "type", "version", "status", "model_a", "model_b", "share_bp", "actor", "reason", "config_hash",
    "result", "event_id", "stream_created", "sequence",
)  # fmt: skip
ALERT_COLUMNS = (
    "at", "level", "incident", "title", "message", "test_id", "rule", "resolved", "value", "bound", "threshold", "n",
    "event_id", "stream_created", "sequence",
)  # fmt: skip

_TEST_EVENT = "cypria.test."
LATEST_MS = 4_102_444_800_000
"""Times after 2100 are taken for it: DateTime64 holds no more than 2299."""


class NotAnEventError(ValueError):
    """Bytes that are not the CloudEvent they should be."""


def envelope(data: bytes) -> tuple[str, str, Any]:
    """(id, type, data) of a structured-mode CloudEvent. Raises NotAnEventError."""
    try:
        event = json.loads(data)
    except ValueError as exc:
        raise NotAnEventError(f"not JSON: {exc}") from None
    except RecursionError:
        raise NotAnEventError("nested too deeply") from None
    if not isinstance(event, dict) or not isinstance(event.get("id"), str) or not event["id"]:
        raise NotAnEventError("not a CloudEvent: it has no id")
    return event["id"], str(event.get("type", "")), event.get("data")


def _time(at_ms: int) -> datetime:
    return datetime.fromtimestamp(min(at_ms, LATEST_MS) / 1000, UTC)


def test_row(data: bytes) -> list[Any] | None:
    """Row of `test_events` up to its event id; None for an event that is not about a test. Raises ValueError."""
    event_id, kind, body = envelope(data)
    if not kind.startswith(_TEST_EVENT):
        return None
    event = TestEvent.model_validate(body)
    result = event.result.model_dump_json() if event.result else ""
    return [
        event.test_id, _time(event.at_ms), kind, event.version, event.status.value, event.model_a, event.model_b,
        event.share_bp, event.actor, event.reason or "", event.config_hash, result, event_id,
    ]  # fmt: skip


def alert_row(data: bytes) -> list[Any] | None:
    """Row of `alert_events` up to its event id. Raises ValueError."""
    event_id, _, body = envelope(data)
    alert = Alert.model_validate(body)
    return [
        _time(alert.at_ms), alert.level.value, alert.incident, alert.title, alert.message, alert.test_id or "",
        alert.rule or "", alert.resolved, alert.value, alert.bound, alert.threshold,
        None if alert.n is None else max(0, alert.n), event_id,
    ]  # fmt: skip
