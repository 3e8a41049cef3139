"""What routers say about tests and about monitoring: KV buckets `experiments` and `control`, mirrored."""

from collections.abc import Callable

from pydantic import ValidationError

from schemas import streams
from schemas.v1.common import TestStatus
from schemas.v1.control import MonitoringState
from schemas.v1.experiment import Experiment
from services._runtime.bus import Bus
from services._runtime.kv import KvMirror
from services._runtime.telemetry import get_logger

log = get_logger(__name__)

MONITORING_KEY = "monitoring"
WATCHED = frozenset({TestStatus.RUNNING, TestStatus.PAUSED, TestStatus.ROLLING_BACK})


class Experiments:
    """Live tests by id, and whether verdicts act."""

    def __init__(self, bus: Bus, default: MonitoringState, on_change: Callable[[], None]) -> None:
        self._default = default
        self._on_change = on_change
        self._by_key: dict[str, Experiment] = {}
        self.monitoring = default
        self.entries = KvMirror(bus, streams.EXPERIMENTS.name, self._experiment)
        self.control = KvMirror(bus, streams.CONTROL.name, self._control)

    async def start(self) -> None:
        """Read both buckets and follow them."""
        await self.control.start()
        await self.entries.start()

    async def stop(self) -> None:
        """Stop following."""
        await self.entries.stop()
        await self.control.stop()

    def watched(self) -> dict[str, Experiment]:
        """Tests that have started and not ended, by id."""
        return {test.test_id: test for test in self._by_key.values() if test.status in WATCHED}

    def by_id(self, test_id: str) -> Experiment | None:
        """The test of that id, live or ended, while an entry holds it."""
        return next((test for test in self._by_key.values() if test.test_id == test_id), None)

    def _experiment(self, key: str, value: bytes | None, _revision: int) -> None:
        if value is None:
            self._by_key.pop(key, None)
        else:
            try:
                self._by_key[key] = Experiment.model_validate_json(value)
            except ValidationError as exc:
                # The last readable state stays in force: a test must not go unwatched because of a newer router.
                log.error("experiment_unreadable", key=key, errors=exc.error_count())
        self._on_change()

    def _control(self, key: str, value: bytes | None, _revision: int) -> None:
        if key != MONITORING_KEY:
            return
        if value is None:
            self.monitoring = self._default
        else:
            try:
                self.monitoring = MonitoringState.model_validate_json(value)
            except ValidationError as exc:
                log.error("monitoring_state_unreadable", errors=exc.error_count())
        self._on_change()
