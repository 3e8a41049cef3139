"""The KV bucket `models`: what is wanted of each model, and the events that its entries hold."""

import asyncio
import contextlib
from collections.abc import Callable

from nats.errors import Error as NatsError

from schemas import streams, subjects
from schemas.v1.cloudevent import CONTENT_TYPE, dump, envelope
from schemas.v1.events import ModelRegistered
from schemas.v1.models import ModelEntry
from services._runtime.bus import Bus, publish_durable
from services._runtime.clock import now_ms
from services._runtime.telemetry import get_logger
from services.router.adapters.kv_table import GONE, Gone, KvTable
from services.router.adapters.tasks import end
from services.router.domain import models as domain
from services.router.domain.models import Claim, Command, Seen
from services.router.domain.refusals import Refused

log = get_logger(__name__)

LEFT_BEHIND_MS = 2000
"""Events older than this were left by a router that died: whoever sees them publishes them."""
_LOOK_S = 0.5
_EVENT = "model.registered"

OnEntry = Callable[[str, ModelEntry | None], None]


class NatsModels:
    """The entries of all models; reads come from memory, changes are compare-and-set.

    ``on_change`` callbacks get (name, entry or None) of all that change (quick, not async).
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._table = KvTable(bus, streams.MODELS.name, ModelEntry, self._took, domain.same)
        self._entries: dict[str, ModelEntry] = {}
        self._callbacks: list[OnEntry] = []
        self._own: set[str] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the bucket, begin to watch it and to publish. Raises TimeoutError when the bus does not answer."""
        await self._table.start()
        self._task = asyncio.create_task(self._publish_all(), name="models-outbox")

    async def stop(self) -> None:
        """Publish what this router has just written, if the bus takes it at once, and end."""
        await end(self._task)
        if self._bus.connected:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._round()
        await self._table.stop()

    def missing(self) -> str | None:
        """For readiness checks."""
        return self._table.missing()

    def on_change(self, callback: OnEntry) -> None:
        """Call ``callback`` with everything that changes from now on."""
        self._callbacks.append(callback)

    def entry(self, name: str) -> ModelEntry | None:
        """The entry of a model. A dict look-up."""
        return self._entries.get(name)

    def entries(self) -> dict[str, ModelEntry]:
        """Every entry by name."""
        return dict(self._entries)

    async def fresh(self, name: str) -> ModelEntry | None:
        """The entry past every copy: a change that was written before the call is in it. Raises Unavailable."""
        return await self._table.fresh(name)

    # changes ----------------------------------------------------------------------------------------------

    async def claim(self, command: Command, seen: Seen) -> Claim:
        """Begin a change. Raises Refused as `domain.claim` does, and Unavailable."""
        made: Claim | None = None

        def act(entry: ModelEntry | None) -> ModelEntry | None:
            nonlocal made
            made = domain.claim(entry, command, seen, now_ms())
            return made.entry

        written = await self._set(command.name, act)
        if made is None or (made.entry is not None and written is None):
            raise RuntimeError("a claim was neither made nor refused")
        return made

    async def confirm(self, claimed: ModelEntry) -> ModelEntry:
        """Put a claim in force. Raises Conflict where it has been taken back."""
        entry = await self._set(claimed.name, lambda entry: domain.confirm(entry, claimed, now_ms()))
        if entry is None:
            raise RuntimeError("a claim was neither confirmed nor refused")
        return entry

    async def take_back(self, claimed: ModelEntry) -> None:
        """What was there before the claim is there again."""

        def act(entry: ModelEntry | None) -> ModelEntry | Gone | None:
            back = domain.take_back(entry, claimed)
            return GONE if back is None and entry is not None else back

        await self._set(claimed.name, act)

    async def advance(self, name: str, generation: int, step: Callable[[ModelEntry], ModelEntry]) -> None:
        """Apply a step of the keeper to an entry that is changing and of this generation, else leave it."""

        def act(entry: ModelEntry | None) -> ModelEntry | None:
            if entry is None or entry.generation != generation or entry.stage != "changing":
                return None
            return step(entry)

        await self._set(name, act)

    async def _set(
        self, name: str, act: Callable[[ModelEntry | None], ModelEntry | Gone | None]
    ) -> ModelEntry | None:
        entry = await self._table.set(name, act)
        if entry is not None and entry.outbox:
            self._own.add(name)
            self._wake.set()
        return entry

    # events -----------------------------------------------------------------------------------------------

    async def _publish_all(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._round()
            except Exception:
                log.exception("model_events_failed")

    async def _round(self) -> None:
        for name, entry in list(self._entries.items()):
            if not entry.outbox:
                self._own.discard(name)
            elif name in self._own or now_ms() - entry.outbox[0].at_ms > LEFT_BEHIND_MS:
                await self._publish(entry)

    async def _publish(self, entry: ModelEntry) -> None:
        published: list[ModelRegistered] = []
        try:
            for event in entry.outbox:
                event_id = f"model.{subjects.token(event.model)}.{event.generation}.{event.stage}"
                payload = dump(envelope(_EVENT, event_id, "router", event.at_ms, event, event.model))
                headers = {"Nats-Msg-Id": event_id, "content-type": CONTENT_TYPE}
                await publish_durable(self._bus.js, subjects.event(_EVENT), payload, headers, patience_s=5)
                published.append(event)
        except (NatsError, TimeoutError, OSError) as exc:
            log.warning("event_not_published", model=entry.name, error=repr(exc))
        if not published:
            return
        try:
            await self._table.set(
                entry.name, lambda now: None if now is None else domain.without_events(now, published)
            )
        except Refused as exc:
            log.warning("outbox_not_cleared", model=entry.name, error=exc.message)

    def _took(self, key: str, entry: ModelEntry | None) -> None:
        name = subjects.untoken(key) if entry is None else entry.name
        if entry is None:
            self._entries.pop(name, None)
        else:
            self._entries[name] = entry
        for callback in self._callbacks:
            callback(name, entry)
