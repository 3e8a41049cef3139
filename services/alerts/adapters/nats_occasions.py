"""The stream INTEGRATIONS: what integrations have yet to be told. This service writes it, and nobody else reads it."""

from schemas import subjects
from schemas.v1.cloudevent import CONTENT_TYPE, dump, envelope
from schemas.v1.integrations import MetricWindow, Occasion
from services._runtime.bus import Bus, publish_durable
from services.alerts.domain.interest import FORWARDED, METRIC_WINDOW

SOURCE = "alerts"
ORIGIN = "Cypria-Origin"
"""NATS header: the place in EVENTS of the event that a message was made from."""
_PATIENCE_S = 3.0


class NatsOccasions:
    """Publishes under ids made from the event's, so that one event is one occasion.

    Raises NATS errors after three seconds.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def occasion(self, kind: str, occasion: Occasion, origin: int) -> None:
        """What one of the calls is told."""
        await self._publish(subjects.integration_event(kind), occasion.event_id, _event(kind, occasion), origin)

    async def forward(self, event_id: str, payload: bytes, origin: int) -> None:
        """An event as it is."""
        await self._publish(subjects.integration_event(FORWARDED), event_id, payload, origin)

    async def window(self, seconds: int, window: MetricWindow) -> None:
        """Figures of a test."""
        await self._publish(subjects.integration_window(seconds), window.event_id, _event(METRIC_WINDOW, window))

    async def _publish(self, subject: str, event_id: str, payload: bytes, origin: int = 0) -> None:
        headers = {"Nats-Msg-Id": event_id, "content-type": CONTENT_TYPE, ORIGIN: str(origin)}
        await publish_durable(self._bus.js, subject, payload, headers, patience_s=_PATIENCE_S)


def _event(kind: str, occasion: Occasion) -> bytes:
    return dump(
        envelope(f"integration.{kind}", occasion.event_id, SOURCE, occasion.at_ms, occasion, occasion.test_id)
    )
