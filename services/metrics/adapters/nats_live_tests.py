"""Which tests have not ended, from the KV bucket of experiments."""

import msgspec

from schemas import streams
from schemas.v1.common import LIVE, TestStatus
from services._runtime.bus import Bus
from services._runtime.kv import KvMirror
from services._runtime.telemetry import get_logger

log = get_logger(__name__)


class _Entry(msgspec.Struct):
    test_id: str
    status: TestStatus


_decode = msgspec.json.Decoder(_Entry).decode


class LiveTests:
    """A mirror of what matters here of the experiments."""

    def __init__(self, bus: Bus) -> None:
        self._mirror = KvMirror(bus, streams.EXPERIMENTS.name)

    async def start(self) -> None:
        """Begin to watch; tests count as unknown until the bucket was read."""
        try:
            await self._mirror.start(timeout_s=1.0)
        except TimeoutError:
            log.info("experiments_not_read_yet")

    async def stop(self) -> None:
        """End the watch."""
        await self._mirror.stop()

    def __call__(self) -> set[str] | None:
        """Ids of tests that have not ended; None while not known."""
        if self._mirror.missing() is not None:
            return None
        found = set()
        for value, _revision in self._mirror.entries.values():
            try:
                entry = _decode(value)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
                log.warning("experiment_unreadable", error=str(exc))
                return None
            if entry.status in LIVE:
                found.add(entry.test_id)
        return found
