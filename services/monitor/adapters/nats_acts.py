"""What the leader of a test sends: the canary's lease, requests for rollbacks and lesser actions, and alerts."""

from nats.errors import Error as NatsError
from nats.js.errors import APIError
from nats.js.errors import Error as JetStreamError

from schemas import subjects
from schemas.v1.alerts import Alert
from schemas.v1.cloudevent import dump, envelope
from schemas.v1.common import Message
from schemas.v1.events import ActionRequested, RollbackRequested
from schemas.v1.query import Lease
from services._runtime import bus as runtime
from services._runtime.bus import Bus
from services._runtime.telemetry import get_logger

log = get_logger(__name__)

SOURCE = "monitor"
PATIENCE_S = 1.0
"""Short: what could not be sent is sent again with the next beat, under the same id."""


class Acts:
    """Publishes; the ids make every repetition harmless."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def lease(self, lease: Lease) -> None:
        """Renew the lease of one test's canary (core, never stored)."""
        try:
            await self._bus.nc.publish(subjects.lease(lease.test_id), lease.model_dump_json().encode())
        except (NatsError, OSError) as exc:
            log.info("lease_not_sent", test_id=lease.test_id, error=repr(exc))

    async def rollback(self, event_id: str, request: RollbackRequested) -> bool:
        """Ask every router to take the canary out; whether the stream has it."""
        return await self._event("rollback.requested", event_id, subjects.rollback(request.test_id), request,
                                 request.order.at_ms)  # fmt: skip

    async def action(self, event_id: str, request: ActionRequested) -> bool:
        """Ask the routers for an action short of a rollback; whether the stream has it."""
        return await self._event(
            "verdict.action", event_id, subjects.event("verdict.action"), request, request.order.at_ms
        )

    async def alert(self, event_id: str, alert: Alert) -> bool:
        """Raise an alert; whether the stream has it."""
        return await self._event("alert", event_id, subjects.alert(alert.level), alert, alert.at_ms)

    async def _event(self, kind: str, event_id: str, subject: str, data: Message, at_ms: int) -> bool:
        event = envelope(kind, event_id, SOURCE, at_ms, data, subject=getattr(data, "test_id", None))
        headers = {"Nats-Msg-Id": event_id, "content-type": "application/cloudevents+json"}
        try:
            await runtime.publish_durable(self._bus.js, subject, dump(event), headers, patience_s=PATIENCE_S)
        except (NatsError, APIError, JetStreamError, TimeoutError, OSError) as exc:
            log.warning("publish_failed", event_id=event_id, error=repr(exc))
            return False
        return True
