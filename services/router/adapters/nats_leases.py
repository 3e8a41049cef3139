"""Hears `cypria.lease.<test_id>`, by which a monitor says every second that it watches a test."""

from collections.abc import Callable

import msgspec
from nats.aio.msg import Msg

from schemas import subjects
from services._runtime.bus import Bus
from services._runtime.telemetry import get_logger

log = get_logger(__name__)

Heard = Callable[[str, str, int], None]
"""Called with (test id, holder, counter)."""


class _Lease(msgspec.Struct):
    test_id: str
    counter: int
    holder: str


_decode = msgspec.json.Decoder(_Lease).decode


async def hear_leases(bus: Bus, heard: Heard) -> None:
    """Subscribe; nats-py renews the subscription after a reconnect."""

    async def received(msg: Msg) -> None:
        try:
            lease = _decode(msg.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            log.warning("lease_undecodable", subject=msg.subject, error=str(exc))
            return
        heard(lease.test_id, lease.holder, lease.counter)

    await bus.nc.subscribe(subjects.LEASE, cb=received)
