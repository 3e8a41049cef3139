"""Raises alerts of the request path on `cypria.alert.<level>`, in the background."""

import asyncio

from nats.errors import Error as NatsError

from schemas import subjects
from schemas.v1.alerts import Alert
from schemas.v1.cloudevent import CONTENT_TYPE, dump, envelope
from services._runtime.bus import Bus, publish_durable
from services._runtime.tasks import finish
from services._runtime.telemetry import get_logger

log = get_logger(__name__)

PATIENCE_S = 60.0


def alert_id(alert: Alert) -> str:
    """The event's id, of the incident and its state: the same from every router."""
    return f"{alert.incident}.{'resolved' if alert.resolved else 'raised'}.{alert.at_ms}"


async def publish_alert(bus: Bus, alert: Alert, patience_s: float) -> None:
    """Until ALERTS has it, which takes it once within two minutes. Raises what the bus does after ``patience_s``."""
    event_id = alert_id(alert)
    payload = dump(envelope("alert", event_id, "router", alert.at_ms, alert, alert.test_id))
    headers = {"Nats-Msg-Id": event_id, "content-type": CONTENT_TYPE}
    await publish_durable(bus.js, subjects.alert(alert.level), payload, headers, patience_s=patience_s)


class AlertSink:
    """Publishes alerts without holding anyone up."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._tasks: set[asyncio.Task[None]] = set()

    def raise_alert(self, alert: Alert) -> None:
        """Returns at once; tries for a minute."""
        task = asyncio.create_task(self._publish(alert), name="alert")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Give what is under way two seconds."""
        await finish(self._tasks, 2)

    async def _publish(self, alert: Alert) -> None:
        try:
            await publish_alert(self._bus, alert, PATIENCE_S)
        except (NatsError, TimeoutError, OSError) as exc:
            log.error("alert_not_published", incident=alert.incident, title=alert.title, error=repr(exc))
