"""Tells integrations: finds out what from EVENTS, and makes each call until it has succeeded or is a dead letter."""

from collections import OrderedDict
from typing import Any, Protocol

from pydantic import ValidationError

from schemas import streams, subjects
from schemas.v1.cloudevent import CloudEvent
from schemas.v1.common import Message
from schemas.v1.events import TestEvent
from schemas.v1.integrations import CALLS, Occasion
from services._runtime.clock import now_ms
from services._runtime.telemetry import get_logger
from services.alerts.adapters import meters
from services.alerts.adapters.nats_links import ledger_name
from services.alerts.domain.backoff import RetryPolicy, exhausted
from services.alerts.domain.incident import Status
from services.alerts.domain.interest import FORWARDED, METRIC_WINDOW, kind_of, matches
from services.alerts.domain.occasions import occasions
from services.alerts.domain.outcome import Outcome, Retry, Sent
from services.alerts.domain.record import DeliveryRecord
from services.alerts.handlers import Consumer, short
from services.alerts.ports import DeadLetters, Incoming, Integration, Ledger, Told
from services.alerts.settings import ACK_WAIT_S

log = get_logger(__name__)

WINDOW_ATTEMPTS = 3
"""Figures of a minute are not worth an hour of attempts."""
_REMEMBERED = 10_000


class Publisher(Protocol):
    """Where what integrations are told is put. Methods raise NATS errors."""

    async def occasion(self, kind: str, occasion: Occasion, origin: int) -> None:
        """What one of the calls is told; ``origin`` is the place of its event in EVENTS."""

    async def forward(self, event_id: str, payload: bytes, origin: int) -> None:
        """An event as it is."""


class Standings(Protocol):
    """What is remembered of integrations. Methods raise NATS errors."""

    async def note(self, name: str, **fields: Any) -> None:
        """Write down what became of a message."""

    async def beginning(self, name: str) -> int:
        """The place in EVENTS after which it is told."""


class Deriving(Consumer):
    """Events of EVENTS that integrations are told: as calls where ``calls``, as they are where a pattern fits."""

    def __init__(
        self, publisher: Publisher, letters: DeadLetters, retry: RetryPolicy, *, calls: bool, patterns: tuple[str, ...]
    ) -> None:
        super().__init__(streams.EVENTS.name, "alerts.integrations", letters, retry)
        self._publisher = publisher
        self._calls = calls
        self._patterns = patterns

    async def _process(self, incoming: Incoming) -> float | None:
        kind = incoming.subject.removeprefix(subjects.event(""))
        try:
            if matches(self._patterns, kind):
                event_id = CloudEvent[Message].model_validate_json(incoming.payload).id
                await self._publisher.forward(event_id, incoming.payload, incoming.sequence)
            if self._calls and kind.startswith("test."):
                event = CloudEvent[TestEvent].model_validate_json(incoming.payload)
                for call, occasion in occasions(kind, event.id, event.data):
                    await self._publisher.occasion(call, occasion, incoming.sequence)
        except ValidationError as exc:
            return await self._bury(incoming, f"not an event {kind}: {short(exc)}")
        return None


class Calling(Consumer):
    """Messages to one integration, which has consumers of its own: it can only ever delay itself."""

    def __init__(
        self, integration: Integration, ledger: Ledger, letters: DeadLetters, retry: RetryPolicy, standings: Standings
    ) -> None:
        super().__init__(streams.INTEGRATIONS.name, f"alerts.{ledger_name(integration.name)}", letters, retry)
        self._integration = integration
        self._ledger = ledger
        self._standings = standings
        self._beginning: int | None = None
        self._told: OrderedDict[str, None] = OrderedDict()
        self._under_way: set[str] = set()

    async def _process(self, incoming: Incoming) -> float | None:
        try:
            told = read(incoming.subject, incoming.payload)
        except ValidationError as exc:
            return await self._bury(incoming, f"not for integrations: {short(exc)}")
        if not await self._concerned(incoming, told):
            return None
        if told.kind != METRIC_WINDOW:
            known = await self._ledger.delivery(ledger_name(self._integration.name), told.event_id)
            if known is not None and known.final:
                return None
        if told.event_id in self._told:  # only the bus failed after the last attempt
            return await self._conclude(incoming, told, Sent())
        if told.event_id in self._under_way:  # this process stalled for so long that the server gave it again
            return self._delay(incoming, ACK_WAIT_S)
        self._under_way.add(told.event_id)
        try:
            outcome = await self._integration.tell(told)
        finally:
            self._under_way.discard(told.event_id)
        meters.CALLS.labels(self._integration.name, type(outcome).__name__.lower()).inc()
        return await self._conclude(incoming, told, outcome)

    async def _conclude(self, incoming: Incoming, told: Told, outcome: Outcome) -> float | None:
        name = self._integration.name
        if isinstance(outcome, Sent):
            self._remember(told.event_id)
            await self._record(incoming, told, Status.SENT, outcome.note)
            return None
        last = WINDOW_ATTEMPTS if told.kind == METRIC_WINDOW else self._retry.max_attempts
        if isinstance(outcome, Retry) and incoming.attempt < last and not exhausted(self._retry, incoming.attempt):
            log.warning("integration_failed", integration=name, event_id=told.event_id, attempt=incoming.attempt,
                        reason=outcome.reason)  # fmt: skip
            await self._record(incoming, told, Status.SENDING, outcome.reason)
            return self._delay(incoming, outcome.after_s)
        reason = f"integration {name}: {outcome.reason}, given up at attempt {incoming.attempt}"
        later = await self._bury(incoming, reason, name)
        if later is None:
            await self._record(incoming, told, Status.FAILED, outcome.reason)
        return later

    async def _record(self, incoming: Incoming, told: Told, status: Status, reason: str) -> None:
        """For ever where it is acted upon; of windows, which come by the minute, only the last one."""
        name = self._integration.name
        if told.kind != METRIC_WINDOW:
            record = DeliveryRecord(
                destination=ledger_name(name), event_id=told.event_id, sequence=incoming.sequence, status=status,
                attempts=incoming.attempt, at_ms=now_ms(), reason=reason,
            )  # fmt: skip
            await self._ledger.record(record)
        await self._standings.note(
            name, event=told.event_id, kind=told.kind, status=status.value, attempts=incoming.attempt,
            reason=reason or None,
        )  # fmt: skip

    async def _concerned(self, incoming: Incoming, told: Told) -> bool:
        """Whether it is to be told. What was found in EVENTS only now may have happened before it was there."""
        if incoming.only not in {None, self._integration.name} or not self._integration.wants(told):
            return False
        if self._beginning is None:
            self._beginning = await self._standings.beginning(self._integration.name)
        return not incoming.origin or incoming.origin > self._beginning

    def _remember(self, event_id: str) -> None:
        self._told[event_id] = None
        if len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)


def read(subject: str, payload: bytes) -> Told:
    """A message of INTEGRATIONS. Raises ValidationError."""
    tail = subject.rsplit(".", 1)[-1]
    if subject == subjects.integration_event(FORWARDED):
        event = CloudEvent[_Named].model_validate_json(payload)
        return Told(kind_of(event.type), event.id, event.data.test_id, payload)
    kind = tail if tail in CALLS else METRIC_WINDOW
    decode: Any = CloudEvent.__class_getitem__(CALLS[kind])
    data: Occasion = decode.model_validate_json(payload).data
    return Told(kind, data.event_id, data.test_id, payload, data)


class _Named(Message):
    """What all events of tests have; others belong to no test."""

    test_id: str = ""
