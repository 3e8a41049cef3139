"""Gathers what a plan needs: the sizes of models' files, the room on this machine, and what is promised already."""

import asyncio
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from schemas.v1.models import ModelNeed, ModelPlan
from services._runtime.settings_engines import Model, ModelManagement, ResourcePlanning, hub_source, size_bytes
from services._runtime.settings_model import Settings
from services.inference.adapters import weights
from services.inference.adapters.apart import apart
from services.inference.adapters.digest import IntegrityError
from services.inference.adapters.machine import Machine, Sample, Usage
from services.inference.domain import planning
from services.inference.domain.planning import Figures, PlanError, Request, Room

_CLASSES = ("7b", "13b", "70b")
_NOTHING = Usage()
_NONE: Mapping[str, str] = {}


def figures_of(settings: ResourcePlanning) -> Figures:
    """`resource_planning` in bytes."""
    said = settings.model_dump()
    gpu = {kind: said[f"gpu_memory_per_{kind}_model"] for kind in _CLASSES}
    most = {kind: said[f"max_concurrent_{kind}_models"] for kind in _CLASSES}
    return Figures(
        gpu_bytes={kind: size_bytes(text) for kind, text in gpu.items() if text is not None},
        ram_bytes=size_bytes(settings.ram_per_model) if settings.ram_per_model else 0,
        cores=settings.cpu_cores_per_model or 0.0,
        max_of_class={kind: count for kind, count in most.items() if count is not None},
    )


def request_of(config: Model, *, loaded: bool = False) -> Request:
    """What a configured model asks for. Reads its files' headers: use a thread."""
    if config.engine == "openai" or config.path is None:
        return Request(config.name, config.engine, loaded=loaded)
    if hub_source(config.path) is not None or hub_source(config.adapter) is not None:
        return Request(config.name, config.engine, elsewhere=True, loaded=loaded)
    try:
        files = weights.read(config.path)
        adapter = weights.size_of(config.adapter) if config.adapter else 0
    except (IntegrityError, OSError) as exc:
        return Request(config.name, config.engine, problem=str(exc), loaded=loaded)
    batch = config.batch_size or config.engine_args.get("max_batch_size")
    batch = batch if isinstance(batch, int) and batch > 0 else planning.DEFAULT_BATCH
    return Request(
        config.name, config.engine, files, dict(config.engine_args), min(batch, config.max_concurrency), adapter,
        loaded=loaded,
    )  # fmt: skip


@dataclass(eq=False, slots=True)
class Promise:
    """Memory that an engine was promised, from the plan to its end; ``group`` is its name among the machine's groups.

    ``leaving``: it is being drained or closed, so that the memory will soon be free.
    """

    need: ModelNeed
    config: Model
    group: str
    baseline: int = 0
    leaving: bool = False


@dataclass(eq=False)
class Planner:
    """Plans for one worker. What an engine was promised and does not take yet is kept for it."""

    machine: Machine
    management: ModelManagement = field(default_factory=ModelManagement)
    figures: Figures = field(default_factory=Figures)
    worker: str = ""
    pool: str = ""
    promises: list[Promise] = field(default_factory=list)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    freed: asyncio.Event = field(default_factory=asyncio.Event)

    async def admit(self, config: Model, group: str) -> tuple[Promise | None, Model]:
        """Promise a model the memory it needs: (the promise, None for an engine that takes none; the model as its
        engine is to have it). Waits for those that are leaving where that would make room. Raises PlanError with the
        figures.
        """
        if config.engine == "openai":
            return None, config
        request = await apart(lambda: request_of(config), "plan")
        while True:
            async with self.lock:
                found = await self._admit(config, group, request)
                if not isinstance(found, str):
                    return found
                if not any(promise.leaving for promise in self.promises):
                    raise PlanError(found)
                self.freed.clear()
            await self.freed.wait()

    async def _admit(self, config: Model, group: str, request: Request) -> tuple[Promise, Model] | str:
        """As `admit`, or why not."""
        sample = await apart(self.machine.look, "look")
        # A successor takes the place of the engine that it follows, so that a swap needs no place of its own.
        own = [promise for promise in self.promises if promise.config.name == config.name]
        room = self.room(sample, without=own)
        [need] = planning.plan(self.worker, self.pool, [request], room, self.figures).needs
        if not need.fits:
            return need.message
        promise = Promise(need, config, group, self._baseline(sample))
        self.promises.append(promise)
        return promise, _with_share(config, request, room)

    def release(self, promise: Promise | None) -> None:
        """The engine has given its memory back."""
        if promise in self.promises:
            self.promises.remove(promise)
        self.freed.set()

    def plan(
        self, configs: Sequence[Model], loaded: Mapping[str, bool], refused: Mapping[str, str] = _NONE
    ) -> ModelPlan:
        """Would these fit, beside what is here? Blocks: use a thread. ``loaded``: the names of those that are here;
        ``refused``: why those may not be, so that nothing of theirs is looked at.
        """
        requests = [
            request_of(config, loaded=loaded.get(config.name, False))
            if config.name not in refused
            else Request(config.name, config.engine, problem=refused[config.name])
            for config in configs
        ]
        sample = self.machine.look()
        # What is to be swapped has a place already.
        swapped = {request.name for request in requests if not request.loaded}
        room = self.room(sample, without=[promise for promise in self.promises if promise.config.name in swapped])
        found = planning.plan(self.worker, self.pool, requests, room, self.figures)
        return found.model_copy(update={"loaded_models": self.room(sample).loaded})

    def room(self, sample: Sample, without: Iterable[Promise] = ()) -> Room:
        """What there is now. ``without``: promises whose models are not counted."""
        apart = set(map(id, without))
        counted = {promise.config.name: promise.need for promise in self.promises if id(promise) not in apart}
        return Room(
            capacity=sample.capacity, used=sample.used, threshold_percent=self.management.memory_threshold_percent,
            devices=tuple(planning.Device(gpu.capacity, gpu.used) for gpu in sample.gpus),
            reserved=self._reserved(sample), gpu_reserved=self._gpu_reserved(sample), loaded=len(counted),
            max_models=self.management.max_concurrent_models,
            classes=Counter(planning.size_class(need.parameters) for need in counted.values()), cores=sample.cores,
            imported="torch" in sys.modules,
        )  # fmt: skip

    def _baseline(self, sample: Sample) -> int:
        """This process's memory before the oldest of the models that are in it now."""
        return min(
            (p.baseline for p in self.promises if p.config.engine == "transformers"), default=sample.process_bytes
        )

    def _reserved(self, sample: Sample) -> int:
        here = [promise for promise in self.promises if promise.config.engine == "transformers"]
        grown = sample.process_bytes - min((promise.baseline for promise in here), default=0)
        total = max(sum(promise.need.total_bytes for promise in here) - max(grown, 0), 0) if here else 0
        for promise in self.promises:
            if promise.config.engine != "transformers" and promise.need.device == "ram":
                total += max(promise.need.total_bytes - _taken(sample, promise).memory_bytes, 0)
        return total

    def _gpu_reserved(self, sample: Sample) -> tuple[int, ...]:
        """By device: what vLLM runs on is the first ones, as many as its tensor_parallel_size."""
        kept = [0] * len(sample.gpus)
        for promise in self.promises:
            if promise.need.device == "gpu":
                several = planning.devices_of(promise.config.engine_args)
                missing = max(promise.need.total_bytes - _taken(sample, promise).gpu_memory_bytes, 0)
                for index in range(min(several, len(kept))):
                    kept[index] += missing // several
        return tuple(kept)


def plan_here(settings: Settings, configs: Sequence[Model] | None = None) -> ModelPlan:
    """Would these models (by default all of the configuration's pool) fit on this machine as it is now? Blocks."""
    pool = settings.inference.pool
    if configs is None:
        configs = [model for model in settings.models if model.pool in {None, pool}]
    planner = Planner(
        Machine(), settings.model_management, figures_of(settings.resource_planning), worker="here", pool=pool
    )
    return planner.plan(configs, {})


def _with_share(config: Model, request: Request, room: Room) -> Model:
    """On a GPU vLLM takes a share of the whole device: the one that the plan counted with."""
    if config.engine != "vllm" or not room.devices or "kv_cache_memory_bytes" in config.engine_args:
        return config
    several = planning.devices_of(config.engine_args)
    capacity = min(device.capacity for device in room.devices[:several])
    left = min(room.left_on_gpus()[:several])
    share = planning.gpu_share(request.args, capacity, left)
    if share is None:
        return config
    return config.model_copy(update={"engine_args": {**config.engine_args, "gpu_memory_utilization": share}})


def _taken(sample: Sample, promise: Promise) -> Usage:
    return sample.groups.get(promise.group, _NOTHING)
