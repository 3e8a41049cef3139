"""The KV bucket `alert_state`: claims by incident (`i.`), deliveries by event (`e.`), groups (`m.`) of destinations."""

import hashlib
import json
from typing import Any

from schemas import streams, subjects
from schemas.v1.alerts import Alert
from services._runtime.bus import Bus, compare_and_set
from services._runtime.clock import now_ms
from services._runtime.kv import KvMirror
from services.alerts.domain import incident
from services.alerts.domain.incident import IncidentState, Send, Skip, Status
from services.alerts.domain.record import DeliveryRecord, GroupRecord
from services.alerts.domain.route import Route, take_slot

BEGINNINGS = "beginnings"
"""Key of the places in ALERTS that destinations begin after, by name."""
_PATIENCE_S = 10.0


def _key(kind: str, destination: str, name: str) -> str:
    digest = hashlib.sha256(name.encode()).hexdigest()[:32]
    return f"{kind}.{subjects.token(destination)}.{digest}"


class NatsLedger:
    """Entries live as long as the bucket keeps them, which is as long as ALERTS keeps the alerts."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._kv: Any = None
        self._mirror = KvMirror(bus, streams.ALERT_STATE.name)

    async def start(self) -> None:
        """Bind the bucket and read it. Raises NATS errors and TimeoutError."""
        self._kv = await self._bus.js.key_value(streams.ALERT_STATE.name)
        await self._mirror.start()

    async def stop(self) -> None:
        """End the watch."""
        await self._mirror.stop()

    def missing(self) -> str | None:
        """For readiness checks."""
        return self._mirror.missing()

    def delivered_to(self, destinations: list[str], event_id: str) -> list[DeliveryRecord]:
        """Deliveries of one event, of those destinations that know it, from the copy in memory."""
        found = []
        for destination in destinations:
            entry = self._mirror.entries.get(_key("e", destination, event_id))
            if entry is not None:
                found.append(DeliveryRecord.model_validate_json(entry[0]))
        return found

    def known(self, destination: str, event_id: str) -> DeliveryRecord | None:
        """What is known of one event's delivery, from the copy in memory."""
        entry = self._mirror.entries.get(_key("e", destination, event_id))
        return DeliveryRecord.model_validate_json(entry[0]) if entry else None

    def begins_after(self, destination: str) -> int:
        """The place in ALERTS that a destination begins after: what came until then never goes there."""
        entry = self._mirror.entries.get(BEGINNINGS)
        return int(json.loads(entry[0]).get(destination, 0)) if entry else 0

    async def delivery(self, destination: str, event_id: str) -> DeliveryRecord | None:
        """What is known of one event's delivery, from the bucket itself."""
        value, _ = await compare_and_set(
            self._kv, _key("e", destination, event_id), lambda _value: None, patience_s=_PATIENCE_S
        )
        return DeliveryRecord.model_validate_json(value) if value else None

    async def claim(
        self, destination: str, alert: Alert, event_id: str, sequence: int, route: Route
    ) -> Send | Skip:
        """Decide and store the decision; whoever comes second sees the first one's claim."""
        decision: Send | Skip | None = None

        def change(value: bytes | None) -> bytes | None:
            nonlocal decision
            state = IncidentState.model_validate_json(value) if value else None
            decision = incident.decide(
                state, alert, event_id, sequence, route.min_level, now_ms(), route.repeat_ms
            )
            return decision.state.model_dump_json().encode() if decision.state is not None else None

        await self._change(destination, alert, change)
        assert decision is not None
        return decision

    async def finish(self, destination: str, alert: Alert, event_id: str, status: Status) -> None:
        """Write down what became of a claim."""

        def change(value: bytes | None) -> bytes | None:
            if not value:
                return None
            state = IncidentState.model_validate_json(value)
            return incident.finish(state, event_id, status, now_ms()).model_dump_json().encode()

        await self._change(destination, alert, change)

    async def record(self, record: DeliveryRecord) -> None:
        """Store what the history shows; only the replica that holds the message writes it."""
        payload = record.model_dump_json().encode()
        key = _key("e", record.destination, record.event_id)
        await compare_and_set(self._kv, key, lambda _value: payload, patience_s=_PATIENCE_S)

    async def group(self, destination: str, message_id: str) -> GroupRecord | None:
        """What is known of a message for several alerts, from the bucket itself."""
        key = _key("m", destination, message_id)
        value, _ = await compare_and_set(self._kv, key, lambda _value: None, patience_s=_PATIENCE_S)
        return GroupRecord.model_validate_json(value) if value else None

    async def note_group(self, destination: str, group: GroupRecord) -> None:
        """Write down a message for several alerts; only the replica that gathers for the destination does."""
        payload = group.model_dump_json().encode()
        key = _key("m", destination, group.message_id)
        await compare_and_set(self._kv, key, lambda _value: payload, patience_s=_PATIENCE_S)

    async def closed_after(self, destination: str, alert: Alert, sequence: int) -> bool:
        """Whether the alert's incident was resolved later than ``sequence``; False for a resolution itself."""
        key = _key("i", destination, incident.incident_key(alert))
        value, _ = await compare_and_set(self._kv, key, lambda _value: None, patience_s=_PATIENCE_S)
        if value is None or alert.resolved:
            return False
        return IncidentState.model_validate_json(value).closed_sequence > sequence

    async def slot(self, destination: str, per_minute: int) -> int:
        """Counted in the bucket, over all replicas."""
        wait_ms = 0

        def change(value: bytes | None) -> bytes | None:
            nonlocal wait_ms
            times, wait_ms = take_slot(json.loads(value) if value else [], per_minute, now_ms())
            return json.dumps(times).encode() if not wait_ms else None

        key = f"r.{subjects.token(destination)}"
        await compare_and_set(self._kv, key, change, patience_s=_PATIENCE_S)
        return wait_ms

    def gatherer(self, destination: str) -> str | None:
        """The replica that gathers what has to wait, from the copy in memory."""
        entry = self._mirror.entries.get(f"g.{subjects.token(destination)}")
        if entry is None:
            return None
        holder, until_ms = json.loads(entry[0])
        return str(holder) if until_ms > now_ms() else None

    async def gather(self, destination: str, replica: str, seconds: float) -> bool:
        """Become, or go on being, the one replica that gathers what has to wait, for so long; 0 s ends it."""
        mine = False

        def change(value: bytes | None) -> bytes | None:
            nonlocal mine
            now = now_ms()
            holder, until_ms = json.loads(value) if value else ("", 0)
            mine = holder == replica or until_ms <= now
            return json.dumps([replica, now + round(seconds * 1000)]).encode() if mine else None

        await compare_and_set(self._kv, f"g.{subjects.token(destination)}", change, patience_s=_PATIENCE_S)
        return mine

    async def pushed(self, destination: str, stream: str, sequence: int) -> int:
        """Note that figures up to ``sequence`` of a stream (its creation time) are being pushed; the highest noted."""
        highest = sequence

        def change(value: bytes | None) -> bytes | None:
            nonlocal highest
            known = int(json.loads(value)) if value else 0
            highest = max(known, sequence)
            return str(sequence).encode() if sequence > known else None

        await compare_and_set(self._kv, _key("p", destination, stream), change, patience_s=_PATIENCE_S)
        return highest

    async def _change(self, destination: str, alert: Alert, change: Any) -> None:
        key = _key("i", destination, incident.incident_key(alert))
        await compare_and_set(self._kv, key, change, patience_s=_PATIENCE_S)
