"""State and load of each model on `/metrics`, read when somebody asks."""

from collections.abc import Iterator
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from services.inference.adapters.beats import heartbeat
from services.inference.adapters.machine import Machine
from services.inference.adapters.models import Models
from services.inference.domain.lifecycle import State

_FIGURES = (
    ("running", "Requests on the engine", "running"),
    ("queued", "Requests waiting for a slot", "queued"),
    ("free_slots", "Slots that are free", "free"),
    ("memory_bytes", "Memory of the model's processes, or of its weights in this one", "memory_bytes"),
    ("gpu_memory_bytes", "GPU memory of the model's processes", "gpu_memory_bytes"),
    ("gpu_utilization_ratio", "Utilization of the GPU that the model is on, 0 to 1", "gpu"),
    ("cpu_cores", "Cores that the model's processes use", "cpu"),
    ("kv_cache_usage_ratio", "Share of the engine's cache in use, 0 to 1", "kv_cache"),
    ("engine_running", "Sequences that the engine says it works on", "engine_running"),
    ("engine_waiting", "Sequences that the engine says wait in it", "engine_waiting"),
    ("model_generation", "Generation of the registry's entry that the engine was loaded for", "generation"),
)


class ModelGauges(Collector):
    """A collector over `Models`. A figure that nobody knows is left out."""

    def __init__(self, models: Models, machine: Machine) -> None:
        self._models = models
        self._machine = machine

    def register(self) -> None:
        """Show up on `/metrics`."""
        REGISTRY.register(self)

    def unregister(self) -> None:
        """Show up no more."""
        REGISTRY.unregister(self)

    def collect(self) -> Iterator[Any]:
        """One family for each figure, labelled by model."""
        state = GaugeMetricFamily(
            "cypria_inference_model_state", "1 for the state that the model is in", labels=["model", "state"]
        )
        restarts = CounterMetricFamily(
            "cypria_inference_engine_restarts", "Times that an engine died and was loaded again", labels=["model"]
        )
        families = [
            (GaugeMetricFamily(f"cypria_inference_{name}", text, labels=["model"]), field)
            for name, text, field in _FIGURES
        ]
        for place in self._models.all():
            beat = heartbeat(place, "", "", self._machine.sample)
            for known in State:
                state.add_metric([place.name, known.value], float(known.value == beat.state))
            restarts.add_metric([place.name], beat.restarts)
            for family, field in families:
                if (value := getattr(beat, field)) >= 0:
                    family.add_metric([place.name], value)
        yield from (state, restarts, *(family for family, _ in families))
