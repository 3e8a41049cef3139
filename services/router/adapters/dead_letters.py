"""Puts aside what came on the bus and cannot be read."""

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from pydantic import ValidationError

from services._runtime.bus import Bus, dead_letter
from services._runtime.telemetry import get_logger
from services._runtime.vitals import dead_letters

log = get_logger(__name__)

_LETTERS = dead_letters("router", "EVENTS")


async def bury(bus: Bus, msg: Msg, what: str, exc: ValidationError) -> None:
    """Dead-letter a message of EVENTS that should have been ``what``; never raises."""
    _LETTERS.labels("EVENTS").inc()
    try:
        await dead_letter(
            bus.js, stream="EVENTS", consumer="router", subject=msg.subject, sequence=0, payload=msg.data,
            reason=f"not {what}: {exc.error_count()} errors, first at {exc.errors()[0]['loc']}",
        )  # fmt: skip
    except (NatsError, TimeoutError, OSError) as failed:
        log.warning("dead_letter_not_published", subject=msg.subject, error=repr(failed))
