"""Units that were erased, from the KV bucket `erasures`."""

from pydantic import ValidationError

from schemas import streams
from schemas.v1.units import Tombstone
from services._runtime.bus import Bus
from services._runtime.kv import KvMirror
from services._runtime.telemetry import get_logger
from services.metrics.domain.units import Erased

log = get_logger(__name__)


class Erasures:
    """A mirror of the tombstones by test; a new mapping with every change, so that the one given stays as it was."""

    def __init__(self, bus: Bus) -> None:
        self._mirror = KvMirror(bus, streams.ERASURES.name, self._took)
        self._found: dict[str, frozenset[int]] = {}

    async def start(self) -> None:
        """Begin to watch; what was erased before is forgotten again as soon as the bucket was read."""
        try:
            await self._mirror.start(timeout_s=1.0)
        except TimeoutError:
            log.info("erasures_not_read_yet")

    async def stop(self) -> None:
        """End the watch."""
        await self._mirror.stop()

    def __call__(self) -> Erased:
        """Unit hashes by test."""
        return self._found

    def _took(self, key: str, value: bytes | None, _revision: int) -> None:
        if value is None:
            test, _, unit = key.rpartition(".")
            left = self._found.get(test, frozenset()) - {int(unit, 16)}
        else:
            try:
                stone = Tombstone.model_validate_json(value)
            except ValidationError as exc:
                log.error("tombstone_unreadable", key=key, errors=exc.error_count())
                return
            test = stone.test_id
            left = self._found.get(test, frozenset()) | {int(stone.unit, 16)}
        found = {name: units for name, units in self._found.items() if name != test}
        self._found = {**found, test: left} if left else found
