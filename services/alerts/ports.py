"""What the handlers need from outside."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from schemas.v1.alerts import Alert
from schemas.v1.integrations import Occasion
from services.alerts.domain.incident import Send, Skip, Status
from services.alerts.domain.outcome import Outcome
from services.alerts.domain.record import DeliveryRecord, GroupRecord
from services.alerts.domain.route import Route


def _stay() -> None:
    """For messages that are handled one after the other."""


@dataclass(frozen=True)
class Incoming:
    """A message of a durable consumer; ``attempt`` counts its deliveries from 1.

    ``only`` names the one destination that it is for: a dead letter that was sent back. ``park`` says that the
    message stays in hand and the next one may be taken. ``origin`` is the place in EVENTS of the event that it was made
    from; 0 where it was not.
    """

    payload: bytes
    subject: str
    sequence: int
    attempt: int
    only: str | None = None
    park: Callable[[], None] = _stay
    origin: int = 0


class Destination(Protocol):
    """A channel that alerts go to. ``grouped``: what a rate limit held back may go as one message."""

    name: str
    route: Route
    grouped: bool

    async def deliver(self, alert: Alert, event_id: str, *, repeat: bool = False) -> Outcome:
        """One attempt, bounded in time; never raises for what the channel does.

        ``repeat``: it may have arrived before, under the same id; people are told so.
        """

    async def probe(self, alert: Alert, event_id: str) -> Outcome:
        """As `deliver`, for a test alert: nothing of it stays open."""

    async def close(self) -> None:
        """Let go of connections."""


@dataclass(frozen=True)
class Told:
    """One message for integrations: ``kind`` is that of the call, or of the event that is forwarded as it is.

    ``payload`` is the CloudEvent; ``data`` is decoded where it is one of `schemas.v1.integrations`.
    """

    kind: str
    event_id: str
    test_id: str
    payload: bytes
    data: Occasion | None = None


class Integration(Protocol):
    """A system that is told what happens to tests. ``name`` is as configured."""

    name: str

    def wants(self, told: Told) -> bool:
        """Whether it is to be told."""

    async def tell(self, told: Told) -> Outcome:
        """One attempt, bounded in time; never raises for what the system does."""

    async def probe(self) -> Outcome:
        """Whether it could be told something; nothing is acted upon."""

    async def close(self) -> None:
        """Let go of connections and processes."""


class Ledger(Protocol):
    """Which notifications were claimed and delivered, shared by all replicas. Methods raise NATS errors."""

    async def delivery(self, destination: str, event_id: str) -> DeliveryRecord | None:
        """What is known of one event's delivery."""

    async def claim(
        self, destination: str, alert: Alert, event_id: str, sequence: int, route: Route
    ) -> Send | Skip:
        """Decide by compare-and-set whether the event is to be delivered."""

    def known(self, destination: str, event_id: str) -> DeliveryRecord | None:
        """What is known of one event's delivery, perhaps a moment old."""

    def begins_after(self, destination: str) -> int:
        """The place in ALERTS that a destination begins after."""

    def gatherer(self, destination: str) -> str | None:
        """The replica that gathers what has to wait."""

    async def gather(self, destination: str, replica: str, seconds: float) -> bool:
        """Whether this replica is the one that gathers, now and for so many seconds."""

    async def slot(self, destination: str, per_minute: int) -> int:
        """Take a place among the messages of this minute: 0, or milliseconds until there may be one."""

    async def finish(self, destination: str, alert: Alert, event_id: str, status: Status) -> None:
        """Say what became of a claim."""

    async def record(self, record: DeliveryRecord) -> None:
        """Store what the history shows."""

    async def group(self, destination: str, message_id: str) -> GroupRecord | None:
        """What is known of a message for several alerts."""

    async def note_group(self, destination: str, group: GroupRecord) -> None:
        """Write down a message for several alerts."""


class DeadLetters(Protocol):
    """Takes what cannot be processed."""

    async def bury(self, incoming: Incoming, stream: str, reason: str, destination: str | None = None) -> None:
        """Put a message into the DLQ with the reason; of a destination where only that one failed."""
