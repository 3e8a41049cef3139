"""What is remembered of one alert's delivery to one destination, and of a message for several."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from schemas.v1.alerts import Alert
from schemas.v1.common import UnixMs, rfc3339
from services.alerts.domain.history import Item
from services.alerts.domain.incident import Status
from services.alerts.domain.render import figures


class DeliveryRecord(BaseModel):
    """Stored once for each event and destination; ``sequence`` is the event's place in ALERTS.

    ``doubt`` is the message that it was begun to be sent with and of which no end is known; empty where there is none.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    destination: str
    event_id: str
    sequence: int
    status: Status
    attempts: int
    at_ms: UnixMs
    reason: str = ""
    doubt: str = ""

    @property
    def final(self) -> bool:
        """Whether nothing more will be tried."""
        return self.status is not Status.SENDING


class GroupRecord(BaseModel):
    """A message for several alerts: what it says, and whether it has arrived."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    message_id: str
    alert: Alert
    sent: bool = False


def shown(item: Item, deliveries: list[DeliveryRecord]) -> dict[str, Any]:
    """One item of `GET /v1/ab-testing/monitoring/alerts`."""
    alert = item.alert
    return {
        "id": item.event_id,
        "level": alert.level.value,
        "title": alert.title,
        "message": alert.message,
        "test_id": alert.test_id,
        "rule": alert.rule,
        "time": rfc3339(alert.at_ms),
        "incident": alert.incident,
        "resolved": alert.resolved,
        "numbers": figures(alert),
        "tags": alert.tags,
        "repeats": item.repeats,
        "last_time": rfc3339(item.last_ms),
        "deliveries": [
            {
                "destination": record.destination,
                "status": record.status.value,
                "attempts": record.attempts,
                "time": rfc3339(record.at_ms),
                "reason": record.reason or None,
            }
            for record in deliveries
        ],
    }
