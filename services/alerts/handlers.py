"""Decode, ask the domain, act. A handler returns None for what is done, else seconds until it is to come again."""

import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial

from nats.errors import Error as NatsError
from pydantic import ValidationError

from schemas import streams, subjects
from schemas.v1.alerts import Alert
from schemas.v1.cloudevent import CloudEvent
from schemas.v1.events import ModelState, MonitoringChanged, TestEvent
from schemas.v1.query import AlertsQuery, AlertsReply, QueryError
from services._runtime.clock import now_ms
from services._runtime.telemetry import get_logger
from services.alerts.adapters import meters
from services.alerts.domain import derive
from services.alerts.domain.backoff import RetryPolicy, delay_s, exhausted, turn_s
from services.alerts.domain.history import History, Item
from services.alerts.domain.incident import Send, Skip, Status
from services.alerts.domain.outcome import Later, Refused, Retry, Sent
from services.alerts.domain.record import DeliveryRecord, shown
from services.alerts.ordering import PASS_ON_S, Ordering
from services.alerts.pacing import Pacer
from services.alerts.ports import DeadLetters, Destination, Incoming, Ledger
from services.alerts.sending import Piece, Sender

log = get_logger(__name__)

BUS_ERRORS = (NatsError, TimeoutError, OSError)
_REMEMBERED = 10_000
_UNDER_WAY = "being sent"
_HELD = "held back: gathered with others, or over the rate limit"


def short(exc: ValidationError) -> str:
    """What is wrong, without the values."""
    errors = exc.errors(include_url=False, include_input=False)[:5]
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in errors)


class Consumer:
    """What handlers of durable consumers share: a message is retried with backoff and buried past the limit."""

    def __init__(self, stream: str, consumer: str, letters: DeadLetters, retry: RetryPolicy) -> None:
        self._stream = stream
        self._consumer = consumer
        self._letters = letters
        self._retry = retry

    async def handle(self, incoming: Incoming) -> float | None:
        """None when the message is done; else the delay in seconds after which it is to come again."""
        try:
            return await self._process(incoming)
        except BUS_ERRORS as exc:
            log.warning("bus_failed", consumer=self._consumer, sequence=incoming.sequence, error=repr(exc))
            return self._delay(incoming)
        except Exception as exc:
            meters.ERRORS.labels(self._consumer).inc()
            log.exception("handler_failed", consumer=self._consumer, sequence=incoming.sequence)
            if not exhausted(self._retry, incoming.attempt):
                return self._delay(incoming)
            reason = f"the alerts service itself failed on every attempt ({type(exc).__name__}): its log has the trace"
            return await self._give_up(incoming, reason)

    async def _process(self, incoming: Incoming) -> float | None:
        raise NotImplementedError

    async def _give_up(self, incoming: Incoming, reason: str) -> float | None:
        return await self._bury(incoming, reason)

    async def _bury(self, incoming: Incoming, reason: str, destination: str | None = None) -> float | None:
        try:
            await self._letters.bury(incoming, self._stream, reason, destination)
        except BUS_ERRORS as exc:
            log.warning("dead_letter_failed", sequence=incoming.sequence, error=repr(exc))
            return self._delay(incoming)
        return None

    def _delay(self, incoming: Incoming, at_least_s: float = 0.0) -> float:
        return delay_s(self._retry, incoming.attempt, random.random(), at_least_s)  # noqa: S311


class Delivery(Consumer):
    """Alerts to one destination, which has a consumer of its own: it can only ever delay itself."""

    def __init__(
        self, destination: Destination, ledger: Ledger, letters: DeadLetters, retry: RetryPolicy,
        history: Callable[[], History],
    ) -> None:  # fmt: skip
        super().__init__(streams.ALERTS.name, f"alerts.{destination.name}", letters, retry)
        self._destination = destination
        self._ledger = ledger
        self._sender = Sender(destination, ledger)
        self._pacer = Pacer(destination, ledger, self._sender)
        gathered = destination.route.limited
        self._ordering = Ordering(destination.name, history, ledger, retry, self._pacer.holds, gathered=gathered)
        self._delivered: OrderedDict[str, None] = OrderedDict()

    async def _process(self, incoming: Incoming) -> float | None:
        try:
            event = CloudEvent[Alert].model_validate_json(incoming.payload)
        except ValidationError as exc:
            return await self._bury(incoming, f"not an alert: {short(exc)}")
        if incoming.only not in {None, self._destination.name}:
            return None
        if self._pacer.elsewhere(event.data):
            return min(PASS_ON_S, turn_s(self._retry, incoming.attempt, random.random()))  # noqa: S311
        known = await self._ledger.delivery(self._destination.name, event.id)
        if known is not None and known.final:
            return None
        made, doubt = (known.attempts, known.doubt) if known is not None else (0, "")
        if doubt not in {"", event.id} and await self._sender.has_gone(doubt):
            return await self._conclude(incoming, event, made, Sent())
        later = await self._ordering.wait(incoming, event.id, resolved=event.data.resolved)
        return later if later is not None else await self._deliver(incoming, event, made, doubt)

    async def _deliver(self, incoming: Incoming, event: CloudEvent[Alert], made: int, doubt: str) -> float | None:
        """It is the event's turn; ``made`` attempts were made before, the message ``doubt`` may have arrived."""
        name = self._destination.name
        decision = await self._decide(incoming, event)
        if isinstance(decision, Skip):
            sent = decision.delivered or event.id in self._delivered
            status, least = (Status.SENT, 1) if sent else (Status.SUPPRESSED, 0)
            await self._record(incoming, event.id, status, max(made, least), decision.reason)
            meters.DELIVERIES.labels(name, "suppressed").inc()
            return None
        if event.id in self._delivered:  # only the bus failed after the last attempt
            return await self._conclude(incoming, event, made, Sent())
        piece = Piece(event.data, event.id, partial(self._begin, incoming, event.id, made + 1), doubt)
        note = partial(self._record, incoming, event.id, Status.SENDING, made, _HELD, doubt)
        outcome = await self._pacer.deliver(incoming, piece, note)
        if isinstance(outcome, Later):
            return outcome.seconds
        meters.DELIVERIES.labels(name, type(outcome).__name__.lower()).inc()
        return await self._conclude(incoming, event, made + 1, outcome, doubt)

    async def stop(self) -> None:
        """Let go of what the rate limit holds back."""
        await self._pacer.stop()

    async def _decide(self, incoming: Incoming, event: CloudEvent[Alert]) -> Send | Skip:
        route = self._destination.route
        refused = route.refuses(event.data)
        if refused is not None:
            return Skip(refused)
        return await self._ledger.claim(self._destination.name, event.data, event.id, incoming.sequence, route)

    async def _give_up(self, incoming: Incoming, reason: str) -> float | None:
        later = await self._bury(incoming, reason, self._destination.name)
        if later is None:  # or what comes after it in its incident would wait for it
            event = CloudEvent[Alert].model_validate_json(incoming.payload)
            await self._record(incoming, event.id, Status.FAILED, incoming.attempt, reason)
        return later

    async def _conclude(
        self, incoming: Incoming, event: CloudEvent[Alert], made: int, outcome: Sent | Retry | Refused, doubt: str = ""
    ) -> float | None:
        """``made`` attempts were made, this one included; the message ``doubt`` may have arrived."""
        name = self._destination.name
        if isinstance(outcome, Sent):
            self._remember(event.id)
            await self._ledger.finish(name, event.data, event.id, Status.SENT)
            await self._record(incoming, event.id, Status.SENT, made, outcome.note)
            return None
        if isinstance(outcome, Retry) and not exhausted(self._retry, made):
            log.warning("delivery_failed", destination=name, alert_id=event.id, attempt=made, reason=outcome.reason)
            await self._record(incoming, event.id, Status.SENDING, made, outcome.reason, doubt)
            return delay_s(self._retry, made, random.random(), outcome.after_s)  # noqa: S311
        reason = f"destination {name}: {outcome.reason}, given up at attempt {made}"
        later = await self._bury(incoming, reason, name)
        if later is None:
            await self._ledger.finish(name, event.data, event.id, Status.FAILED)
            await self._record(incoming, event.id, Status.FAILED, made, outcome.reason)
        return later

    async def _begin(self, incoming: Incoming, event_id: str, attempt: int, message_id: str) -> None:
        """It is about to be sent with that message: who dies before the end is on record leaves this in doubt."""
        await self._record(incoming, event_id, Status.SENDING, attempt, _UNDER_WAY, message_id)

    async def _record(
        self, incoming: Incoming, event_id: str, status: Status, attempts: int, reason: str = "", doubt: str = ""
    ) -> None:
        record = DeliveryRecord(
            destination=self._destination.name, event_id=event_id, sequence=incoming.sequence, status=status,
            attempts=attempts, at_ms=now_ms(), reason=reason, doubt=doubt,
        )  # fmt: skip
        await self._ledger.record(record)

    def _remember(self, event_id: str) -> None:
        self._delivered[event_id] = None
        if len(self._delivered) > _REMEMBERED:
            self._delivered.popitem(last=False)


class Events(Consumer):
    """Durable events that are alerts as well."""

    def __init__(
        self,
        history: Callable[[], History],
        raise_alert: Callable[[str, Alert], Awaitable[None]],
        letters: DeadLetters,
        retry: RetryPolicy,
    ) -> None:
        super().__init__(streams.EVENTS.name, "alerts.events", letters, retry)
        self._history = history
        self._raise_alert = raise_alert
        self._raised: OrderedDict[str, None] = OrderedDict()

    async def _process(self, incoming: Incoming) -> float | None:
        kind = incoming.subject.removeprefix(subjects.event(""))
        try:
            derived = self._derive(kind, incoming.payload)
        except ValidationError as exc:
            return await self._bury(incoming, f"not an event {kind}: {short(exc)}")
        for event_id, alert in derived:
            # An incident is told of when it is new, and its end when there was one.
            if self._stands(alert) == alert.resolved:
                await self._raise_alert(event_id, alert)
                self._note(alert)
                meters.DERIVED.inc()
        return None

    def _stands(self, alert: Alert) -> bool:
        # The history hears of what was raised here a moment later.
        return alert.incident in self._raised or self._history().known(alert)

    def _note(self, alert: Alert) -> None:
        if alert.resolved:
            self._raised.pop(alert.incident, None)
        elif alert.incident.startswith("model."):
            self._raised[alert.incident] = None
            if len(self._raised) > _REMEMBERED:
                self._raised.popitem(last=False)

    def _derive(self, kind: str, payload: bytes) -> list[tuple[str, Alert]]:
        if kind.startswith("test."):
            event = CloudEvent[TestEvent].model_validate_json(payload)
            found = _named(event.id, derive.alert_of_test(kind, event.data))
            if kind in derive.TERMINAL:
                found += derive.endings(event.data, self._history().standing(event.data.test_id))
            return found
        if kind == derive.MONITORING:
            changed = CloudEvent[MonitoringChanged].model_validate_json(payload)
            return _named(changed.id, derive.alert_of_monitoring(changed.id, changed.data))
        if kind == derive.MODEL:
            state = CloudEvent[ModelState].model_validate_json(payload)
            return _named(state.id, derive.alert_of_model(state.data))
        return []


def _named(event_id: str, alert: Alert | None) -> list[tuple[str, Alert]]:
    return [] if alert is None else [(f"{event_id}.alert", alert)]


def answer(
    payload: bytes, history: History, missing: str | None, deliveries: Callable[[str], list[DeliveryRecord]]
) -> tuple[bytes, bool]:
    """`cypria.query.alerts`: (reply, whether it is a QueryError)."""
    if missing is not None:
        return QueryError(message=f"{missing}: try again").model_dump_json().encode(), True
    try:
        query = AlertsQuery.model_validate_json(payload or b"{}")
    except ValidationError as exc:
        return QueryError(message=short(exc), code="invalid_request").model_dump_json().encode(), True
    items, total = history.newest(query.limit, query.test_id)

    def item(one: Item) -> dict[str, object]:
        return shown(one, deliveries(one.event_id))

    return AlertsReply(alerts=[item(one) for one in items], total_alerts=total).model_dump_json().encode(), False
