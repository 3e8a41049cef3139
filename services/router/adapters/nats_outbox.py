"""Publishes the events that entries hold in their outbox, and then takes them out."""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from nats.errors import Error as NatsError

from schemas.v1.cloudevent import CONTENT_TYPE
from services._runtime.bus import Bus, publish_durable
from services._runtime.clock import now_ms
from services._runtime.tasks import end
from services._runtime.telemetry import get_logger
from services.router.domain.refusals import Refused

log = get_logger(__name__)

LEFT_BEHIND_MS = 2000
"""Events older than this were left by a router that died: whoever sees them first publishes them."""
_LOOK_S = 0.5


class Event(Protocol):
    """What an outbox holds."""

    @property
    def at_ms(self) -> int:
        """When it happened, Unix milliseconds."""


E = TypeVar("E", bound=Event)


class Sent(NamedTuple):
    """An event as it goes out; ``id`` stays the same, so that publishing it twice is harmless."""

    id: str
    subject: str
    payload: bytes


class Entries(Protocol[E]):
    """Entries with an outbox, by key."""

    def outboxes(self) -> Iterable[tuple[str, Sequence[E]]]:
        """Those that hold events, in the order in which they happened."""

    def sent(self, event: E) -> Sent:
        """How an event is published."""

    async def clear_outbox(self, key: str, published: Sequence[E]) -> None:
        """Take published events out of the entry. Raises Refused."""


class Outbox(Generic[E]):
    """One task for all entries of one kind."""

    def __init__(self, bus: Bus, entries: Entries[E], name: str) -> None:
        self._bus = bus
        self._entries = entries
        self._name = name
        self._own: set[str] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to publish."""
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """Publish what this router has just written, if the bus takes it at once, and end."""
        await end(self._task)
        if self._bus.connected:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._round()

    def kick(self, key: str) -> None:
        """This router has just changed the entry: publish its events now."""
        self._own.add(key)
        self._wake.set()

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._round()
            except Exception:
                log.exception("outbox_failed", outbox=self._name)

    async def _round(self) -> None:
        held = list(self._entries.outboxes())
        self._own &= {key for key, _events in held}
        for key, events in held:
            if key in self._own or now_ms() - events[0].at_ms > LEFT_BEHIND_MS:
                await self._publish(key, events)

    async def _publish(self, key: str, events: Sequence[E]) -> None:
        published: list[E] = []
        try:
            for event in events:
                sent = self._entries.sent(event)
                headers = {"Nats-Msg-Id": sent.id, "content-type": CONTENT_TYPE}
                await publish_durable(self._bus.js, sent.subject, sent.payload, headers, patience_s=5)
                published.append(event)
        except (NatsError, TimeoutError, OSError) as exc:
            log.warning("event_not_published", outbox=self._name, entry=key, error=repr(exc))
        if not published:
            return
        try:
            await self._entries.clear_outbox(key, published)
        except Refused as exc:
            log.warning("outbox_not_cleared", outbox=self._name, entry=key, error=exc.message)
