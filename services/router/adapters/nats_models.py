"""The KV bucket `models`: what is wanted of each model, and the events that its entries hold."""

from collections.abc import Callable, Iterable, Sequence

from schemas import streams, subjects
from schemas.v1.cloudevent import dump, envelope
from schemas.v1.events import ModelRegistered
from schemas.v1.models import ModelEntry
from services._runtime.bus import Bus
from services._runtime.clock import now_ms
from services.router.adapters.kv_table import GONE, Gone, KvTable
from services.router.adapters.nats_outbox import Outbox, Sent
from services.router.domain import models as domain
from services.router.domain.models import Claim, Command, Seen

_EVENT = "model.registered"

OnEntry = Callable[[str, ModelEntry | None], None]


class NatsModels:
    """The entries of all models; reads come from memory, changes are compare-and-set.

    ``on_change`` callbacks get (name, entry or None) of all that change (quick, not async).
    """

    def __init__(self, bus: Bus) -> None:
        self._table = KvTable(bus, streams.MODELS.name, ModelEntry, self._took, domain.same)
        self._entries: dict[str, ModelEntry] = {}
        self._callbacks: list[OnEntry] = []
        self._outbox = Outbox(bus, self, "models-outbox")

    async def start(self) -> None:
        """Read the bucket, begin to watch it and to publish. Raises TimeoutError when the bus does not answer."""
        await self._table.start()
        self._outbox.start()

    async def stop(self) -> None:
        """Publish what this router has just written, if the bus takes it at once, and end."""
        await self._outbox.stop()
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
            self._outbox.kick(name)
        return entry

    # nats_outbox.Entries ------------------------------------------------------------------------------------

    def outboxes(self) -> Iterable[tuple[str, Sequence[ModelRegistered]]]:
        """The events that entries hold, by name of the model."""
        return [(name, entry.outbox) for name, entry in self._entries.items() if entry.outbox]

    def sent(self, event: ModelRegistered) -> Sent:
        """A change of the registry as it is published."""
        event_id = f"model.{subjects.token(event.model)}.{event.generation}.{event.stage}"
        made = envelope(_EVENT, event_id, "router", event.at_ms, event, event.model)
        return Sent(event_id, subjects.event(_EVENT), dump(made))

    async def clear_outbox(self, key: str, published: Sequence[ModelRegistered]) -> None:
        """Take published events out of the entry of a model."""
        await self._table.set(key, lambda now: None if now is None else domain.without_events(now, published))

    # ------------------------------------------------------------------------------------------------------

    def _took(self, key: str, entry: ModelEntry | None) -> None:
        name = subjects.untoken(key) if entry is None else entry.name
        if entry is None:
            self._entries.pop(name, None)
        else:
            self._entries[name] = entry
        for callback in self._callbacks:
            callback(name, entry)
