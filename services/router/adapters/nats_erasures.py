"""The KV bucket `erasures`: which units are nobody's any more in which test."""

from collections.abc import Callable, Collection

from pydantic import ValidationError

from schemas.streams import ERASURES
from schemas.v1.units import Tombstone
from services._runtime.bus import Bus, compare_and_set, erase_last
from services._runtime.kv import KvMirror
from services._runtime.telemetry import get_logger
from services.router.adapters.kv_table import taken

log = get_logger(__name__)

_NONE: frozenset[int] = frozenset()


class NatsErasures:
    """Implements `ports.Erasures`. ``erased`` is called with (test, unit hash) of each that comes; quick, not async."""

    def __init__(self, bus: Bus, erased: Callable[[str, int], None]) -> None:
        self._bus = bus
        self._erased = erased
        self._mirror = KvMirror(bus, ERASURES.name, self._took)
        self._stones: dict[str, dict[int, Tombstone]] = {}
        self._units: dict[str, frozenset[int]] = {}

    async def start(self) -> None:
        """Read the bucket and begin to watch it. Raises TimeoutError when the bus does not answer in time."""
        await self._mirror.start()

    async def stop(self) -> None:
        """End the watch."""
        await self._mirror.stop()

    def missing(self) -> str | None:
        """For readiness checks."""
        return self._mirror.missing()

    def of(self, test_id: str) -> Collection[int]:
        """Unit hashes of a test that are nobody's any more."""
        return self._units.get(test_id, _NONE)

    def stone(self, test_id: str, unit: int) -> Tombstone | None:
        """When a unit was erased from a test; None when it was not."""
        return self._stones.get(test_id, {}).get(unit)

    def tests(self) -> list[str]:
        """Tests with erased units."""
        return sorted(self._stones)

    async def erase(self, stone: Tombstone) -> Tombstone:
        """Put up a tombstone, or find the one that stands; routers know it when they see it, this one at once.

        Raises Unavailable when the bus does not take it.
        """
        raw = stone.model_dump_json().encode()
        key = f"{stone.test_id}.{stone.unit}"
        with taken("tombstone_not_written", test_id=stone.test_id):
            kv = await self._bus.js.key_value(ERASURES.name)
            value, revision = await compare_and_set(kv, key, lambda present: None if present else raw)
        standing = value or raw
        self._mirror.apply_own(key, standing, revision)
        return Tombstone.model_validate_json(standing)

    async def drop(self, test_id: str) -> None:
        """Have all tombstones of a test overwritten. Raises Unavailable when the bus does not answer."""
        for unit, stone in list(self._stones.get(test_id, {}).items()):
            key = f"{test_id}.{stone.unit}"
            with taken("tombstone_not_dropped", test_id=test_id):
                await erase_last(self._bus, f"KV_{ERASURES.name}", f"$KV.{ERASURES.name}.{key}")
            self._mirror.entries.pop(key, None)
            self._forget(test_id, unit)

    def _took(self, key: str, value: bytes | None, _revision: int) -> None:
        if value is None:
            test_id, _, name = key.rpartition(".")
            self._forget(test_id, int(name, 16))
            return
        try:
            stone = Tombstone.model_validate_json(value)
        except ValidationError as exc:
            log.error("tombstone_unreadable", key=key, errors=exc.error_count())
            return
        unit = int(stone.unit, 16)
        self._stones.setdefault(stone.test_id, {})[unit] = stone
        self._units[stone.test_id] = frozenset(self._stones[stone.test_id])
        self._erased(stone.test_id, unit)

    def _forget(self, test_id: str, unit: int) -> None:
        stones = self._stones.get(test_id, {})
        stones.pop(unit, None)
        if stones:
            self._units[test_id] = frozenset(stones)
        else:
            self._stones.pop(test_id, None)
            self._units.pop(test_id, None)
