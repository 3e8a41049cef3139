"""What the inference service reads from the configuration."""

import secrets
from dataclasses import dataclass, field

from services._runtime.settings_engines import Model, ModelManagement, ResourcePlanning
from services._runtime.settings_model import Settings
from services.inference.adapters.engines import NOWHERE, Surroundings
from services.inference.adapters.integrity import Sources


def new_worker_id() -> str:
    """`w` and eight hex digits, new for each process."""
    return f"w{secrets.token_hex(4)}"


@dataclass(frozen=True)
class InferenceSettings:
    """The models of one worker process (of its pool, or of none), where models may come from, the bounds of what it
    loads, and how long a drain may last (seconds).
    """

    models: tuple[Model, ...]
    sources: Sources = field(default_factory=Sources)
    surroundings: Surroundings = NOWHERE
    pool: str = "default"
    management: ModelManagement = field(default_factory=ModelManagement)
    planning: ResourcePlanning = field(default_factory=ResourcePlanning)
    drain_s: float = 5.0
    worker: str = field(default_factory=new_worker_id)


def read(settings: Settings) -> InferenceSettings:
    """This service's part of the configuration."""
    pool, given = settings.inference.pool, settings.model_sources
    sources = Sources(
        allow=tuple(given.allow), remote_code=frozenset(given.remote_code), always=given.verify == "always",
        data_dir=settings.data_dir,
    )  # fmt: skip
    return InferenceSettings(
        models=tuple(model for model in settings.models if model.pool in {None, pool}),
        sources=sources,
        surroundings=Surroundings(
            settings.inference.vllm_python, sources.remote_code, settings.inference.join_ms / 1000
        ),
        pool=pool,
        management=settings.model_management,
        planning=settings.resource_planning,
        drain_s=settings.ops.drain_seconds,
    )
