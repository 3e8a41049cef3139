"""The load of every model that has workers, for as long as a step down looks back."""

from services.router.adapters.workers import WorkerTable
from services.router.domain.capacity import SHOWN_S, SLOT_S, Gauge, Load

SAMPLE_S = 0.25
"""As often as workers say how busy they are."""


class Loads:
    """Samples the workers' heartbeats and counts this router's answers. Times are monotonic seconds."""

    def __init__(self, table: WorkerTable, slot_s: float = SLOT_S) -> None:
        self._table = table
        self._slot_s = slot_s
        self._gauges: dict[str, Gauge] = {}
        self._heard: dict[str, float] = {}
        self._sampled = 0.0

    def sample(self, now: float) -> None:
        """Look at the workers; to be called often, looks every quarter of a second."""
        if now - self._sampled < SAMPLE_S:
            return
        self._sampled = now
        for model in self._table.living():
            beats = [worker.beat for worker in self._table.ready(model)]
            self._gauge(model).sample(
                now,
                workers=len(beats),
                capacity=sum(beat.capacity for beat in beats),
                running=sum(beat.running for beat in beats),
                queued=sum(beat.queued for beat in beats),
            )
            self._heard[model] = now
        for model in [m for m, heard in self._heard.items() if now - heard > SHOWN_S]:
            del self._heard[model]
            del self._gauges[model]

    def answered(self, model: str, seconds: float, now: float) -> None:
        """A request to the model was answered after so many seconds."""
        gauge = self._gauges.get(model)
        if gauge is not None:
            gauge.answered(now, seconds)

    def load(self, model: str, now: float) -> Load:
        """The model as it stands; without a living worker it has none."""
        gauge = self._gauges.get(model)
        return gauge.load(now) if gauge is not None and self._table.ready(model) else Load()

    def _gauge(self, model: str) -> Gauge:
        gauge = self._gauges.get(model)
        if gauge is None:
            gauge = self._gauges[model] = Gauge(self._slot_s)
        return gauge
