"""Alerts that this service raises itself: evidence that was lost or cannot be taken in."""

import asyncio

from schemas import subjects
from schemas.v1.alerts import Alert
from schemas.v1.cloudevent import dump, envelope
from schemas.v1.common import AlertLevel
from services._runtime.bus import TRANSIENT, Bus, publish_durable
from services._runtime.clock import now_ms
from services._runtime.telemetry import get_logger

log = get_logger(__name__)


class Alarms:
    """Publishes each incident once for this process, without making anybody wait."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._raised: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def critical(self, incident: str, title: str, message: str) -> None:
        """Raise an incident. The same incident raised by several processes has one event id."""
        if incident in self._raised:
            return
        self._raised.add(incident)
        task = asyncio.create_task(self._publish(incident, title, message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def tell(self, alert: Alert, event_id: str) -> bool:
        """Publish an alert; whether ALERTS has it. Processes that tell the same use the same event id."""
        event = envelope("alert", event_id, "metrics", alert.at_ms, alert)
        try:
            await publish_durable(self._bus.js, subjects.alert(alert.level), dump(event), {"Nats-Msg-Id": event.id})
        except TRANSIENT as exc:
            log.warning("alarm_not_published", incident=alert.incident, error=repr(exc))
            return False
        return True

    async def _publish(self, incident: str, title: str, message: str) -> None:
        alert = Alert(incident=incident, level=AlertLevel.CRITICAL, title=title, message=message, at_ms=now_ms())
        if not await self.tell(alert, f"{incident}.raised"):
            self._raised.discard(incident)
