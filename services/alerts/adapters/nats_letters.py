"""The dead-letter queue, as this service uses it."""

from schemas import subjects
from services._runtime.bus import Bus, dead_letter
from services.alerts.adapters import meters
from services.alerts.ports import Incoming

CONSUMER = "alerts"


class NatsDeadLetters:
    """One letter for each message, or for each message and destination where only that one failed."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def bury(self, incoming: Incoming, stream: str, reason: str, destination: str | None = None) -> None:
        """Returns when the DLQ has it; raises NATS errors."""
        consumer = CONSUMER if destination is None else f"{CONSUMER}.{subjects.token(destination)}"
        await dead_letter(
            self._bus.js, stream=stream, consumer=consumer, subject=incoming.subject, sequence=incoming.sequence,
            payload=incoming.payload, reason=reason, deliveries=incoming.attempt,
        )  # fmt: skip
        meters.DEAD_LETTERS.labels(stream).inc()
