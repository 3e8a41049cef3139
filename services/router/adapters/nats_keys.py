"""The KV bucket `keys`: keeps the ring of good keys as the bucket and the clock have it, on every router."""

import asyncio
from collections.abc import Callable

from schemas import streams
from schemas.v1.keys import KeyEntry
from services._runtime.bus import Bus
from services._runtime.clock import now_ms
from services._runtime.tasks import end
from services._runtime.telemetry import get_logger
from services.router.adapters.kv_table import GONE, Gone, KvTable
from services.router.domain import keys as domain
from services.router.domain.auth import KeyRing
from services.router.domain.keys import NewKey
from services.router.domain.refusals import Conflict, Refused

log = get_logger(__name__)

LOOK_S = 0.25
"""The clock is looked at so often; a key that expires is refused at most so much later."""


class NatsKeys:
    """All keys that were made over the API; reads come from memory, changes are compare-and-set.

    A router whose bus is away goes on with what it knows.
    """

    def __init__(self, bus: Bus, ring: KeyRing, kept_ms: int) -> None:
        self._table = KvTable(bus, streams.KEYS.name, KeyEntry, self._took, lambda one, other: one == other)
        self._ring = ring
        self._kept_ms = kept_ms
        self._entries: dict[str, KeyEntry] = {}
        self._ends_ms: int | None = None
        self._whole = False
        self._clock: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the bucket and begin to watch it. Raises TimeoutError when the bus does not answer in time."""
        await self._table.start()
        self._whole = True
        self._renew()
        self._clock = asyncio.create_task(self._look(), name="keys-clock")

    async def stop(self) -> None:
        """End the watch."""
        await end(self._clock)
        await self._table.stop()

    def missing(self) -> str | None:
        """For readiness checks."""
        return self._table.missing()

    def entries(self) -> list[KeyEntry]:
        """Keys made over the API and revocations of configured ones."""
        return list(self._entries.values())

    async def create(self, new: NewKey) -> KeyEntry:
        """Make a key known to every router. Raises Conflict and Unavailable."""
        configured = self._ring.configured
        entry = await self._set(
            new.name, lambda now: domain.create(now, new, configured, self._entries.values(), now_ms())
        )
        await self._forget()
        return entry

    async def rotate(
        self, name: str, sha256: str, overlap_ms: int, actor: str, expires_ms: int | None = None
    ) -> KeyEntry:
        """Put another key in the place of one. Raises NotFound, Conflict and Unavailable."""
        configured = self._ring.configured
        return await self._set(
            name, lambda now: domain.rotate(now, name, sha256, overlap_ms, actor, configured, now_ms(), expires_ms)
        )

    async def revoke(self, name: str, actor: str) -> list[KeyEntry]:
        """End every key of a name; the entries that did it, none where all had ended before.

        Raises NotFound, Conflict for the last admin's key that lasts, and Unavailable.
        """
        ended = domain.revocations(name, self._ring.configured, await self._table.fresh_all(), actor, now_ms())
        for entry in ended:
            await self._set(domain.place(entry), _replacing(entry))
        if any(entry.role == "admin" for entry in ended):
            # Another router may have revoked another admin's key meanwhile: the later of the two sees both.
            try:
                domain.keep_an_admin(self._ring.configured, await self._table.fresh_all())
            except Conflict:
                for entry in ended:
                    await self._table.set(domain.place(entry), _taking_back(entry))
                raise
        return ended

    async def _forget(self) -> None:
        """Take out what ended so long ago that nobody asks about it."""
        for entry in self.entries():
            if domain.forgettable(entry, now_ms(), self._kept_ms):
                try:
                    await self._table.set(domain.place(entry), lambda now: GONE if self._stale(now) else None)
                except Refused as exc:
                    log.info("key_not_forgotten", name=entry.name, reason=exc.message)

    def _stale(self, entry: KeyEntry | None) -> bool:
        return entry is not None and domain.forgettable(entry, now_ms(), self._kept_ms)

    async def _set(self, name: str, act: Callable[[KeyEntry | None], KeyEntry]) -> KeyEntry:
        entry = await self._table.set(name, act)
        if entry is None:
            raise RuntimeError("a key was neither written nor refused")
        return entry

    def _took(self, key: str, entry: KeyEntry | None) -> None:
        if entry is None:
            self._entries.pop(key, None)
        else:
            self._entries[key] = entry
        if self._whole:
            self._renew()

    def _renew(self) -> None:
        keys, self._ends_ms = domain.good(self._ring.configured, self._entries.values(), now_ms())
        self._ring.take(keys)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if self._ends_ms is not None and now_ms() >= self._ends_ms:
                self._renew()


def _replacing(entry: KeyEntry) -> Callable[[KeyEntry | None], KeyEntry]:
    """Revoke what is there now, which somebody may have rotated since it was read."""

    def act(now: KeyEntry | None) -> KeyEntry:
        if now is None:
            return entry
        return now.model_copy(update={"revoked_ms": entry.revoked_ms, "revoked_by": entry.revoked_by})

    return act


def _taking_back(entry: KeyEntry) -> Callable[[KeyEntry | None], KeyEntry | Gone | None]:
    def act(now: KeyEntry | None) -> KeyEntry | Gone | None:
        if now is None or (now.revoked_ms, now.revoked_by) != (entry.revoked_ms, entry.revoked_by):
            return None
        return GONE if now.source == "config" else now.model_copy(update={"revoked_ms": None, "revoked_by": ""})

    return act
