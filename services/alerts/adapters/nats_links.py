"""Durable consumers of integrations, and how each of them stands."""

import json
from typing import Any

from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from schemas import streams, subjects
from services._runtime.bus import Bus, compare_and_set
from services._runtime.clock import now_ms
from services._runtime.telemetry import get_logger
from services.alerts.adapters.nats_letters import CONSUMER
from services.alerts.settings import ACK_WAIT_S, Link

log = get_logger(__name__)

DERIVING = "alerts-integrations"
"""The consumer of EVENTS that finds out what integrations are told."""
_FORGOTTEN_AFTER_S = 30 * streams.DAY
_MAX_UNACKED = 1000
_PROBE_S = 5.0


def events_durable(name: str) -> str:
    """Name of an integration's consumer of events."""
    return f"integrations-to-{subjects.token(name)}"


def windows_durable(name: str, seconds: int) -> str:
    """Name of its consumer of windows of one length: no decision is to wait behind figures."""
    return f"integrations-windows-{seconds}-{subjects.token(name)}"


def ledger_name(name: str) -> str:
    """Under which deliveries of an integration are remembered: no destination of alerts has such a name by accident."""
    return f"integration/{name}"


def letters_subject(name: str) -> str:
    """Where the dead letters of an integration are."""
    return subjects.dlq(streams.INTEGRATIONS.name, f"{CONSUMER}.{subjects.token(name)}")


async def ensure_link_consumers(bus: Bus, links: tuple[Link, ...]) -> None:
    """Create what is missing; what exists stays where it is. A new one gets what comes from now on.

    Raises NATS errors.
    """
    if not links:
        return
    stream = streams.INTEGRATIONS.name
    for link in links:
        if not await _exists(bus, stream, events_durable(link.name)):
            await _begin(bus, link.name)
        await _ensure(bus, stream, events_durable(link.name), subjects.INTEGRATION_EVENT)
        if link.window_s is not None:
            durable = windows_durable(link.name, link.window_s)
            await _ensure(bus, stream, durable, subjects.integration_window(link.window_s))
    # Last: what it finds must have somebody who waits for it.
    await _ensure(bus, streams.EVENTS.name, DERIVING, subjects.EVENT)


async def _exists(bus: Bus, stream: str, durable: str) -> bool:
    try:
        await bus.js.consumer_info(stream, durable)
    except NotFoundError:
        return False
    return True


async def _begin(bus: Bus, name: str) -> None:
    """A new integration is told what happens from now on, also where the events before have yet to be looked at."""
    end = int((await bus.js.stream_info(streams.EVENTS.name)).state.last_seq)
    kv: Any = await bus.js.key_value(streams.ALERT_STATE.name)
    await compare_and_set(kv, _beginning_key(name), lambda _value: str(end).encode(), patience_s=5)


def _beginning_key(name: str) -> str:
    return f"b.{subjects.token(name)}"


async def _ensure(bus: Bus, stream: str, durable: str, subject: str) -> None:
    if not await _exists(bus, stream, durable):
        config = ConsumerConfig(
            name=durable, durable_name=durable, filter_subject=subject, deliver_policy=DeliverPolicy.NEW,
            ack_policy=AckPolicy.EXPLICIT, ack_wait=ACK_WAIT_S, max_ack_pending=_MAX_UNACKED,
            inactive_threshold=_FORGOTTEN_AFTER_S,
        )  # fmt: skip
        await bus.js.add_consumer(stream, config)
        log.info("consumer_created", stream=stream, consumer=durable)


class NatsStandings:
    """What became of the last message of each integration, and what waits. Methods raise NATS errors."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def note(self, name: str, **fields: Any) -> None:
        """Write down what became of a message, over what became of the one before."""
        kv: Any = await self._bus.js.key_value(streams.ALERT_STATE.name)
        payload = json.dumps({**fields, "at_ms": now_ms()}).encode()
        await compare_and_set(kv, f"l.{subjects.token(name)}", lambda _value: payload, patience_s=5)

    async def beginning(self, name: str) -> int:
        """The place in EVENTS after which it is told; 0 where that was too long ago to be remembered."""
        return int(await self._value(_beginning_key(name)) or 0)

    async def standing(self, link: Link) -> dict[str, Any]:
        """``waiting`` and ``in_hand`` messages, ``dead_letters`` not sent back, and the ``last`` message or None."""
        waiting = in_hand = 0
        durables = [events_durable(link.name)]
        if link.window_s is not None:
            durables.append(windows_durable(link.name, link.window_s))
        for durable in durables:
            info = await self._bus.js.consumer_info(streams.INTEGRATIONS.name, durable)
            waiting += int(info.num_pending or 0)
            in_hand += int(info.num_ack_pending or 0)
        last = await self._value(f"l.{subjects.token(link.name)}")
        return {
            "waiting": waiting, "in_hand": in_hand, "dead_letters": await self._letters(link.name),
            "last": json.loads(last) if last else None,
        }  # fmt: skip

    async def _letters(self, name: str) -> int:
        """Counted by the server: a consumer behind what was sent back is asked how much it has before it."""
        sent_back = await self._value(f"d.{subjects.token(ledger_name(name))}")
        config = ConsumerConfig(
            filter_subject=letters_subject(name), deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=int(json.loads(sent_back or b"0")) + 1, ack_policy=AckPolicy.NONE, mem_storage=True,
            num_replicas=1, inactive_threshold=_PROBE_S,
        )  # fmt: skip
        info = await self._bus.js.add_consumer(streams.DLQ.name, config)
        await self._bus.js.delete_consumer(streams.DLQ.name, info.name)
        return int(info.num_pending or 0)

    async def _value(self, key: str) -> bytes | None:
        kv: Any = await self._bus.js.key_value(streams.ALERT_STATE.name)
        return (await compare_and_set(kv, key, lambda _value: None, patience_s=5))[0]
