"""Hears `cypria.heartbeat.>`, by which workers say that they live and what is free."""

from collections.abc import Callable

import msgspec
from nats.aio.msg import Msg

from schemas import subjects
from schemas.v1.inference import Heartbeat, decode_heartbeat
from services._runtime.bus import Bus
from services._runtime.telemetry import get_logger

log = get_logger(__name__)


async def hear_heartbeats(bus: Bus, heard: Callable[[Heartbeat], None]) -> None:
    """Subscribe; nats-py renews the subscription after a reconnect."""

    async def received(msg: Msg) -> None:
        try:
            beat = decode_heartbeat(msg.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            log.warning("heartbeat_undecodable", subject=msg.subject, error=str(exc))
            return
        heard(beat)

    await bus.nc.subscribe(subjects.HEARTBEAT, cb=received)
