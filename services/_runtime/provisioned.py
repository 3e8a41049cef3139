"""Waiting for what `cypria provision` makes: in a cluster services and that job start at the same time."""

import asyncio

from schemas import streams
from services._runtime.bus import TRANSIENT, Bus
from services._runtime.provision import missing_streams
from services._runtime.telemetry import get_logger

log = get_logger(__name__)

_LOOK_S = 0.5


def needs(service: str) -> list[str]:
    """The streams that a service reads, and the buckets that it reads or writes, under the names of their streams."""
    read = [stream.name for stream in streams.STREAMS if service in stream.readers]
    used = [bucket for bucket in streams.BUCKETS if service in bucket.readers or service in bucket.writers]
    return [*read, *(f"KV_{bucket.name}" for bucket in used)]


async def wait_until_provisioned(bus: Bus) -> None:
    """Return once all of them are there, saying so in the log while they are not."""
    told: list[str] = []
    while True:
        try:
            missing = await missing_streams(bus.js, needs(bus.service))
        except TRANSIENT as exc:
            log.warning("streams_not_seen", error=repr(exc))
        else:
            if not missing:
                return
            if missing != told:
                told = missing
                log.warning("waiting_for_provision", missing=missing, remedy="run `cypria provision`")
        await asyncio.sleep(_LOOK_S)
