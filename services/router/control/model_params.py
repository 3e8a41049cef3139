"""What is said about models: parameters of the verbs, and the shapes of their answers."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, Field, field_validator, model_validator

from schemas.v1.common import ModelName
from schemas.v1.control import Command
from schemas.v1.models import ModelPlan, Strategy
from services._runtime.settings_engines import Model
from services.router.control.config_view import MASK

MAX_PLANNED = 100
MAX_SPEC = 64 << 10
"""Bytes of an entry as JSON: the registry keeps several of each, and every router and worker has them in memory."""
MAX_DEPTH = 32
"""Levels of engine_args: an entry is kept inside others, and what reads them has a limit of its own."""


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


class ModelParams(Command):
    """One model by name."""

    name: ModelName


class LoadParams(ModelParams):
    """``reload``: also where it is loaded already, its files have changed, say; ``strategy`` is about that."""

    reload: bool = False
    strategy: Strategy = "alongside"


class RegisterParams(Model):
    """An entry of `models` of the configuration; ``replace`` what has the name already, ``strategy`` how."""

    replace: bool = False
    strategy: Strategy = "alongside"

    @field_validator("path", "adapter", mode="after")
    @classmethod
    def _is_whole(cls, path: Any) -> Any:
        if path is not None and not path.is_absolute():
            raise ValueError(f"'{path}' is relative, and workers have directories of their own: give it from the root")
        return path

    @field_validator("engine_args", mode="after")
    @classmethod
    def _is_no_mask(cls, args: dict[str, Any]) -> dict[str, Any]:
        headers = args.get("headers")
        for name, value in headers.items() if isinstance(headers, dict) else ():
            if value == MASK:
                raise ValueError(f"headers.{name} is the mask that stands for its value: give the value itself")
        return args

    @model_validator(mode="after")
    def _is_small(self) -> "RegisterParams":
        level, depth = [self.engine_args], 0
        while level := [child for item in level for child in _children(item)]:
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"engine_args is nested deeper than {MAX_DEPTH} levels: give the arguments themselves")
        if len(self.model_dump_json(exclude_unset=True)) > MAX_SPEC:
            raise ValueError(
                f"the entry is larger than {MAX_SPEC >> 10} KiB: keep what is long, such as a chat template, in the "
                "model's directory"
            )
        return self

    def spec(self) -> dict[str, Any]:
        """What the registry keeps: the entry as it was given."""
        return self.model_dump(mode="json", exclude_unset=True, exclude={"replace", "strategy"})


class PlanParams(Command):
    """``models``: entries of `models` of the configuration, or names of models that are known."""

    models: list[dict[str, Any] | str] = Field(min_length=1, max_length=MAX_PLANNED)


class ModelChanged(BaseModel):
    """``status``: registered, replacing, loading, unloading, removed or unchanged; ``message``: what else to know."""

    model: str
    status: str
    generation: int
    message: str = ""


class EntryShown(BaseModel):
    """What is wanted of a model; ``spec`` null: as the workers' configuration has it. Secrets are masked."""

    desired: str
    stage: str
    generation: int
    strategy: str
    turn: list[str]
    reload: bool
    reason: str
    actor: str
    at_ms: int
    spec: dict[str, Any] | None


class ModelShown(BaseModel):
    """A model over all its workers; ``entry`` null: nothing but the workers' configuration says anything of it."""

    name: str
    state: str
    workers: int
    ready_workers: int
    reason: str
    digest: str
    engine: str
    created: int
    memory_bytes: int
    gpu_memory_bytes: int
    free: int
    queued: int
    running: int
    entry: EntryShown | None
    in_use_by: list[str]


class ModelOnWorker(BaseModel):
    """A model on one worker. ``next_*``: another that is being loaded beside it. Null: nobody knows."""

    worker: str
    pool: str
    state: str
    reason: str
    generation: int
    digest: str
    engine: str
    version: str
    progress: float | None
    next_state: str
    next_generation: int
    next_reason: str
    running: int
    queued: int
    free: int
    capacity: int
    engine_running: int | None
    engine_waiting: int | None
    memory_bytes: int
    gpu_memory_bytes: int
    kv_cache: float | None
    cpu: float | None
    gpu: float | None
    idle_s: float | None
    restarts: int


class ModelDetail(ModelShown):
    """One model, with a row for each of its living workers."""

    by_worker: list[ModelOnWorker]


class ModelsShown(BaseModel):
    """Every model that a worker, a configuration or the registry knows."""

    models: list[ModelShown]


class PlanShown(BaseModel):
    """``fits``: every model fits on a worker that it is for; ``message`` says what does not, or that none is alive."""

    fits: bool
    message: str
    workers: list[ModelPlan]
