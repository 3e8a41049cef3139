"""Makes this service's durable consumers before FastStream binds to them.

Where a destination begins is decided once, by compare-and-set: everything in ALERTS for those configured when the
service first starts, only what comes later for one that is added afterwards.
"""

import json
from typing import Any

from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from schemas import streams, subjects
from services._runtime.bus import Bus, compare_and_set
from services._runtime.telemetry import get_logger
from services.alerts.adapters.nats_ledger import BEGINNINGS
from services.alerts.settings import ACK_WAIT_S

log = get_logger(__name__)

EVENTS_DURABLE = "alerts-events"
_PREFIX = "alerts-"
_FORGOTTEN_AFTER_S = streams.ALERTS.max_age_s
_MAX_UNACKED = 1000


def durable_of(destination: str) -> str:
    """Name of a destination's consumer on ALERTS."""
    return f"{_PREFIX}to-{subjects.token(destination)}"


async def ensure_consumers(bus: Bus, destinations: list[str]) -> None:
    """Create what is missing; what exists stays where it is. Raises NATS errors."""
    beginnings = await _beginnings(bus, destinations)
    for destination in destinations:
        await _ensure(bus, streams.ALERTS.name, durable_of(destination), subjects.ALERT, beginnings[destination] + 1)
    await _ensure(bus, streams.EVENTS.name, EVENTS_DURABLE, subjects.EVENT, 1)


async def _beginnings(bus: Bus, destinations: list[str]) -> dict[str, int]:
    """ALERTS sequence after which each destination begins."""
    js = bus.js
    existing = {str(info.name) for info in await js.consumers_info(streams.ALERTS.name)}
    first_time = not any(name.startswith(_PREFIX) for name in existing)
    end = int((await js.stream_info(streams.ALERTS.name)).state.last_seq)

    def change(value: bytes | None) -> bytes:
        known: dict[str, int] = json.loads(value) if value else {}
        default = 0 if value is None and first_time else end
        return json.dumps({**dict.fromkeys(destinations, default), **known}, sort_keys=True).encode()

    kv: Any = await js.key_value(streams.ALERT_STATE.name)
    stored, _ = await compare_and_set(kv, BEGINNINGS, change)
    assert stored is not None
    return dict(json.loads(stored))


async def _ensure(bus: Bus, stream: str, durable: str, subject: str, start: int) -> None:
    try:
        await bus.js.consumer_info(stream, durable)
    except NotFoundError:
        config = ConsumerConfig(
            name=durable,
            durable_name=durable,
            filter_subject=subject,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=start,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_S,
            max_ack_pending=_MAX_UNACKED,
            inactive_threshold=_FORGOTTEN_AFTER_S,
        )
        await bus.js.add_consumer(stream, config)
        log.info("consumer_created", stream=stream, consumer=durable, start=start)
