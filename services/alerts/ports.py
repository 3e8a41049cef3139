"""What the handlers need from outside."""

from dataclasses import dataclass
from typing import Protocol

from schemas.v1.alerts import Alert
from schemas.v1.common import AlertLevel
from services.alerts.domain.incident import Send, Skip, Status
from services.alerts.domain.outcome import Outcome
from services.alerts.domain.record import DeliveryRecord


@dataclass(frozen=True)
class Incoming:
    """A message of a durable consumer; ``attempt`` counts its deliveries from 1."""

    payload: bytes
    subject: str
    sequence: int
    attempt: int


class Destination(Protocol):
    """A channel that alerts go to."""

    name: str
    min_level: AlertLevel

    async def deliver(self, alert: Alert, event_id: str) -> Outcome:
        """One attempt, bounded in time; never raises for what the channel does."""

    async def close(self) -> None:
        """Let go of connections."""


class Ledger(Protocol):
    """Which notifications were claimed and delivered, shared by all replicas. Methods raise NATS errors."""

    async def delivery(self, destination: str, event_id: str) -> DeliveryRecord | None:
        """What is known of one event's delivery."""

    async def claim(
        self, destination: str, alert: Alert, event_id: str, sequence: int, min_level: AlertLevel
    ) -> Send | Skip:
        """Decide by compare-and-set whether the event is to be delivered."""

    async def finish(self, destination: str, alert: Alert, event_id: str, status: Status) -> None:
        """Say what became of a claim."""

    async def record(self, record: DeliveryRecord) -> None:
        """Store what the history shows."""


class DeadLetters(Protocol):
    """Takes what cannot be processed."""

    async def bury(self, incoming: Incoming, stream: str, reason: str, destination: str | None = None) -> None:
        """Put a message into the DLQ with the reason; of a destination where only that one failed."""
