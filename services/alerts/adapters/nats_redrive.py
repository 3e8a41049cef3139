"""Sends dead letters of destinations back into ALERTS, and those of integrations into INTEGRATIONS, each of them once.

How far the letters of a destination have been sent back is kept in the bucket, since nobody may delete from the DLQ.
"""

import base64
import json
from typing import Any

from pydantic import ValidationError

from schemas import streams, subjects
from schemas.streams import Stream
from schemas.v1.alerts import Alert, DeadLetter
from schemas.v1.cloudevent import CONTENT_TYPE, CloudEvent
from schemas.v1.common import Message
from schemas.v1.query import RedriveReply
from services._runtime.bus import Bus, compare_and_set, publish_durable
from services._runtime.clock import now_ms
from services._runtime.reader import SequenceReader
from services._runtime.telemetry import get_logger
from services.alerts.adapters.nats_ledger import NatsLedger
from services.alerts.adapters.nats_letters import CONSUMER
from services.alerts.adapters.nats_links import ledger_name
from services.alerts.domain.incident import Status
from services.alerts.domain.record import DeliveryRecord

log = get_logger(__name__)

ONLY = "Cypria-Only"
"""NATS header naming the one destination, or integration, that a message sent back is for."""


class UnknownDestinationError(LookupError):
    """No such destination, or integration, is configured."""


class NatsRedrive:
    """Letters of messages that were no alerts stay: they would only be buried again."""

    stream: Stream = streams.ALERTS
    what = "destination"

    def __init__(self, bus: Bus, ledger: NatsLedger) -> None:
        self._bus = bus
        self._ledger = ledger

    @staticmethod
    def known_as(name: str) -> str:
        """Under which name the bucket has it."""
        return name

    async def redrive(self, wanted: list[str], configured: list[str]) -> RedriveReply:
        """Send back what the ``wanted`` destinations would not take. Raises UnknownDestinationError and NATS errors."""
        for name in wanted:
            if name not in configured:
                known = ", ".join(configured) or "none"
                raise UnknownDestinationError(f"no {self.what} is named '{name}': there are {known}")
        reply = RedriveReply()
        for name in wanted:
            await self._destination(name, reply)
        return reply

    async def _destination(self, name: str, reply: RedriveReply) -> None:
        kv: Any = await self._bus.js.key_value(streams.ALERT_STATE.name)
        key = f"d.{subjects.token(self.known_as(name))}"
        stored, _ = await compare_and_set(kv, key, lambda _value: None)
        after = int(json.loads(stored)) if stored else 0
        subject = subjects.dlq(self.stream.name, f"{CONSUMER}.{subjects.token(name)}")
        reader = SequenceReader(self._bus, streams.DLQ.name, subject)
        await reader.open()
        done = after
        try:
            async for message in reader.catch_up():
                if message.sequence <= after:
                    continue
                reason = await self._letter(name, message.sequence, message.data, reply)
                if reason is None:
                    reply.redriven += 1
                done = message.sequence
        finally:
            await reader.close()

        def forward(value: bytes | None) -> bytes | None:
            known = int(json.loads(value)) if value else 0
            return str(done).encode() if done > known else None

        await compare_and_set(kv, key, forward)
        log.info("dead_letters_sent_back", to=name, redriven=reply.redriven)

    async def _letter(self, name: str, sequence: int, payload: bytes, reply: RedriveReply) -> str | None:
        """None when it was sent back, else why not."""
        try:
            letter = DeadLetter.model_validate_json(payload)
            body = base64.b64decode(letter.payload_b64, validate=True)
            event = CloudEvent[Alert].model_validate_json(body)
        except (ValidationError, ValueError):
            return _skip(reply, name, None, "not a dead letter of an alert")
        known = await self._ledger.delivery(name, event.id)
        if known is not None and known.status is Status.SENT:
            return _skip(reply, name, event.id, "it was delivered since")
        if await self._ledger.closed_after(name, event.data, letter.sequence):
            return _skip(reply, name, event.id, "its incident was resolved since")
        fresh = DeliveryRecord(
            destination=name, event_id=event.id, sequence=letter.sequence, status=Status.SENDING, attempts=0,
            at_ms=now_ms(), reason="sent back from the dead letters",
        )  # fmt: skip
        await self._ledger.record(fresh)
        await self._send_back(name, sequence, letter.subject, body)
        return None

    async def _send_back(self, name: str, sequence: int, subject: str, body: bytes) -> None:
        headers = {"Nats-Msg-Id": f"redrive.{sequence}", "content-type": CONTENT_TYPE, ONLY: name}
        await publish_durable(self._bus.js, subject, body, headers)


class LinkRedrive(NatsRedrive):
    """For integrations: what was delivered since is not sent back."""

    stream = streams.INTEGRATIONS
    what = "integration"

    @staticmethod
    def known_as(name: str) -> str:
        """As deliveries of integrations are remembered."""
        return ledger_name(name)

    async def _letter(self, name: str, sequence: int, payload: bytes, reply: RedriveReply) -> str | None:
        try:
            letter = DeadLetter.model_validate_json(payload)
            body = base64.b64decode(letter.payload_b64, validate=True)
            event_id = CloudEvent[Message].model_validate_json(body).id
        except (ValidationError, ValueError):
            return _leave(reply, name, None, "not a dead letter of an event")
        known = await self._ledger.delivery(self.known_as(name), event_id)
        if known is not None and known.status is Status.SENT:
            return _leave(reply, name, event_id, "it was delivered since")
        fresh = DeliveryRecord(
            destination=self.known_as(name), event_id=event_id, sequence=letter.sequence, status=Status.SENDING,
            attempts=0, at_ms=now_ms(), reason="sent back from the dead letters",
        )  # fmt: skip
        await self._ledger.record(fresh)
        await self._send_back(name, sequence, letter.subject, body)
        return None


def _skip(reply: RedriveReply, destination: str, alert: str | None, reason: str) -> str:
    reply.skipped.append({"destination": destination, "alert": alert, "reason": reason})
    return reason


def _leave(reply: RedriveReply, integration: str, event: str | None, reason: str) -> str:
    reply.skipped.append({"integration": integration, "event": event, "reason": reason})
    return reason
