"""Publishes the events that entries hold in their outbox, and then takes them out."""

import asyncio
import contextlib

from nats.errors import Error as NatsError

from schemas.v1.cloudevent import CONTENT_TYPE, dump, envelope
from schemas.v1.events import TestEvent
from schemas.v1.experiment import Experiment, OutboxEvent
from services._runtime.bus import Bus, publish_durable
from services._runtime.clock import now_ms
from services._runtime.telemetry import get_logger
from services.router.adapters.nats_experiments import NatsExperiments
from services.router.adapters.tasks import end
from services.router.domain.refusals import Refused

log = get_logger(__name__)

LEFT_BEHIND_MS = 2000
"""Events older than this were left by a router that died: whoever sees them first publishes them."""
_LOOK_S = 0.5


class Outbox:
    """One task for all entries. Events keep their ids, so publishing one twice is harmless."""

    def __init__(self, bus: Bus, experiments: NatsExperiments) -> None:
        self._bus = bus
        self._experiments = experiments
        self._own: set[str] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to publish."""
        self._task = asyncio.create_task(self._run(), name="outbox")

    async def stop(self) -> None:
        """Publish what this router has just written, if the bus takes it at once, and end."""
        await end(self._task)
        if self._bus.connected:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._round()

    def kick(self, model_a: str) -> None:
        """This router has just changed the entry: publish its events now."""
        self._own.add(model_a)
        self._wake.set()

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._wake.wait()
            self._wake.clear()
            await self._round()

    async def _round(self) -> None:
        for entry in self._experiments.entries():
            if not entry.outbox:
                self._own.discard(entry.model_a)
            elif entry.model_a in self._own or now_ms() - entry.outbox[0].at_ms > LEFT_BEHIND_MS:
                await self._publish(entry)

    async def _publish(self, entry: Experiment) -> None:
        published: list[str] = []
        try:
            for event in entry.outbox:
                await publish_durable(
                    self._bus.js, event.subject, _encode(event),
                    {"Nats-Msg-Id": event.id, "content-type": CONTENT_TYPE}, patience_s=5,
                )  # fmt: skip
                published.append(event.id)
        except (NatsError, TimeoutError, OSError) as exc:
            log.warning("event_not_published", test_id=entry.test_id, error=repr(exc))
        if not published:
            return
        try:
            await self._experiments.clear_outbox(entry.model_a, published)
        except Refused as exc:
            log.warning("outbox_not_cleared", test_id=entry.test_id, error=exc.message)


def _encode(event: OutboxEvent) -> bytes:
    data = TestEvent.model_validate(event.data)
    return dump(envelope(event.type, event.id, "router", event.at_ms, data, data.test_id))
