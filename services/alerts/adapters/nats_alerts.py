"""Raises the alerts that follow from events, on `cypria.alert.<level>` like everybody's."""

from schemas import subjects
from schemas.v1.alerts import Alert
from schemas.v1.cloudevent import CONTENT_TYPE, dump, envelope
from services._runtime.bus import Bus, publish_durable

SOURCE = "alerts"
_PATIENCE_S = 3.0


class NatsAlerts:
    """Publishes under an id made from the event's, so that one event is one alert."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def raise_alert(self, event_id: str, alert: Alert) -> None:
        """Returns when ALERTS has it; raises NATS errors after three seconds."""
        event = envelope("alert", event_id, SOURCE, alert.at_ms, alert, alert.test_id)
        headers = {"Nats-Msg-Id": event_id, "content-type": CONTENT_TYPE}
        await publish_durable(
            self._bus.js, subjects.alert(alert.level), dump(event), headers, patience_s=_PATIENCE_S
        )
