"""What EVENTS tells of a test: its configuration and every change of its state."""

import re
from datetime import UTC, datetime
from typing import Any

from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from pydantic import ValidationError

from schemas import streams, subjects
from schemas.v1.cloudevent import CloudEvent
from schemas.v1.events import RollbackRequested, TestEvent
from schemas.v1.experiment import Experiment
from schemas.v1.record import TestChange
from services._runtime.bus import Bus
from services._runtime.telemetry import get_logger

log = get_logger(__name__)

STREAM = streams.EVENTS.name
ENDINGS = frozenset({"completed", "rolled_back", "failed"})
_BEGAN = re.compile(r"^ab_test_([0-9a-f]{12})[0-9a-f]{8,}$")
_SKEW_MS = 60_000
_BATCH = 256


class History:
    """One test's changes in order, and what it was (or is) judged by; None when no event told."""

    def __init__(self) -> None:
        self.changes: list[TestChange] = []
        self.configuration: Experiment | None = None
        self._known: set[str] = set()

    @property
    def ended_ms(self) -> int | None:
        """When the test ended; None while it runs."""
        return next((change.at_ms for change in self.changes if change.kind in ENDINGS), None)

    def add(self, event_id: str, kind: str, event: TestEvent) -> None:
        """Take in an event of the test; one that came before changes nothing."""
        if event_id in self._known:
            return
        self._known.add(event_id)
        # A test that was stopped may carry the order of a rollback under way, which did not end it.
        order = event.order if kind == "rolled_back" or kind not in ENDINGS else None
        self.changes.append(
            TestChange(
                id=event_id, at_ms=event.at_ms, kind=kind, version=event.version, status=event.status,
                share_bp=event.share_bp, actor=event.actor, reason=event.reason, rule=order.rule if order else None,
            )
        )  # fmt: skip
        if event.configuration is not None and (self.configuration is None or kind not in ENDINGS):
            self.configuration = event.configuration

    def request(self, event_id: str, request: RollbackRequested) -> None:
        """Take in a request for a rollback."""
        if event_id not in self._known:
            self._known.add(event_id)
            order = request.order
            self.changes.append(
                TestChange(
                    id=event_id, at_ms=order.at_ms, kind="rollback_requested", version=order.decided_on,
                    actor=order.actor, reason=order.reason, rule=order.rule,
                )
            )  # fmt: skip

    def sort(self) -> "History":
        """By version, which is the order of the writes; requests by the version that they were decided on."""
        self.changes.sort(key=lambda change: (change.version, change.kind == "rollback_requested", change.at_ms))
        return self


async def read_history(bus: Bus, test_id: str, entry: Experiment | None) -> History:
    """All that EVENTS, and the outbox of ``entry`` (what is not published yet), hold of a test."""
    history = History()
    began = _began_ms(test_id, entry)
    async for event_id, event in _events(bus, subjects.event("test.*"), began, CloudEvent[TestEvent]):
        if event.data.test_id == test_id:
            history.add(event_id, _kind(event.type), event.data)
            if history.ended_ms is not None:
                break
    async for event_id, event in _events(bus, subjects.rollback(test_id), began, CloudEvent[RollbackRequested]):
        history.request(event_id, event.data)
    if entry is not None:
        for waiting in entry.outbox:
            if waiting.data.get("test_id") == test_id:
                kind = waiting.type.removeprefix("test.")
                history.add(waiting.id, kind, TestEvent.model_validate(waiting.data))
        history.configuration = history.configuration or entry.configuration
    return history.sort()


def _began_ms(test_id: str, entry: Experiment | None) -> int | None:
    """When a test was made: its id tells, else its entry."""
    match = _BEGAN.match(test_id)
    if match:
        return int(match.group(1), 16)
    return entry.created_ms if entry else None


def _kind(event_type: str) -> str:
    return event_type.removeprefix("cypria.test.").removesuffix(".v1")


async def _events(bus: Bus, subject: str, began_ms: int | None, kind: Any) -> Any:
    """(id, event) of everything that the stream holds now under a subject since a time, oldest first."""
    config = ConsumerConfig(
        deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE, filter_subject=subject, mem_storage=True,
        num_replicas=1, inactive_threshold=10.0,
    )  # fmt: skip
    if began_ms is not None:
        config.deliver_policy = DeliverPolicy.BY_START_TIME
        config.opt_start_time = datetime.fromtimestamp(max(0, began_ms - _SKEW_MS) / 1000, UTC)
    consumer: Any = await bus.js.add_consumer(STREAM, config)
    left = int(consumer.num_pending or 0)
    sub = await bus.js.pull_subscribe_bind(consumer.name, stream=STREAM)
    try:
        while left > 0:
            messages = await sub.fetch(min(_BATCH, left), timeout=5)
            for message in messages:
                left -= 1
                try:
                    event = kind.model_validate_json(message.data)
                except ValidationError as exc:
                    log.warning("event_unreadable", subject=message.subject, errors=exc.error_count())
                    continue
                yield event.id, event
    finally:
        await sub.unsubscribe()
        await bus.js.delete_consumer(STREAM, consumer.name)
