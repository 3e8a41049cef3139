"""State and load of each model on `/metrics`, read when somebody asks."""

from collections.abc import Iterator

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from services.inference.adapters.models import Models
from services.inference.domain.lifecycle import State


class ModelGauges(Collector):
    """A collector over `Models`."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def register(self) -> None:
        """Show up on `/metrics`."""
        REGISTRY.register(self)

    def unregister(self) -> None:
        """Show up no more."""
        REGISTRY.unregister(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One family for each figure, labelled by model."""
        state = GaugeMetricFamily(
            "cypria_inference_model_state", "1 for the state that the model is in", labels=["model", "state"]
        )
        running = GaugeMetricFamily("cypria_inference_running", "Requests on the engine", labels=["model"])
        queued = GaugeMetricFamily("cypria_inference_queued", "Requests waiting for a slot", labels=["model"])
        free = GaugeMetricFamily("cypria_inference_free_slots", "Slots that are free", labels=["model"])
        memory = GaugeMetricFamily("cypria_inference_memory_bytes", "Memory of the loaded model", labels=["model"])
        for model in self._models.all():
            for known in State:
                state.add_metric([model.name, known.value], float(known is model.state))
            running.add_metric([model.name], model.admission.running)
            queued.add_metric([model.name], model.admission.queued)
            free.add_metric([model.name], model.admission.free)
            memory.add_metric([model.name], model.memory_bytes())
        yield from (state, running, queued, free, memory)
