"""Whether models fit on a worker, before anything of them is loaded: needs and room in bytes, refusals with figures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from schemas.v1.models import ModelNeed, ModelPlan

MIB = 1 << 20
GIB = 1 << 30

TRANSFORMERS_BYTES = 32 * MIB
"""What a transformers model takes in the worker's process besides its weights and its cache."""
TORCH_BYTES = 384 * MIB
"""What importing torch and transformers takes, once for a worker."""
VLLM_CPU_BYTES = GIB + GIB // 2
"""What vLLM's processes take on a CPU besides weights and cache: 0.9 GiB with enforce_eager, more where it compiles."""
VLLM_GPU_BYTES = GIB + GIB // 2
"""What vLLM takes on each device besides weights and cache: the context, activations, captured graphs."""
VLLM_GPU_SHARE = 0.92
"""vLLM's own default of gpu_memory_utilization, as of 0.32."""
VLLM_CPU_KV_BYTES = GIB
"""The cache of vLLM on a CPU where nothing says how large."""
DEFAULT_BATCH = 32

_CLASSES = ((10_000_000_000, "7b"), (35_000_000_000, "13b"))
_SMALLEST = 3_000_000_000
_ITEMSIZE = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2, "float64": 8, "fp8": 1, "int8": 1}


class PlanError(ValueError):
    """A model that does not fit; the message has the figures and the remedy."""


@dataclass(frozen=True, slots=True)
class Files:
    """What a model's files say: bytes and number of its weights, and what its cache is made of.

    ``dtype_bytes`` is the size of one weight as stored; ``kv_per_token`` the elements that the cache holds for one
    token, over all layers; 0 is not known.
    """

    weights_bytes: int = 0
    parameters: int = 0
    dtype_bytes: int = 2
    kv_per_token: int = 0
    context: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """A model that somebody wants to load. ``batch`` sequences at once; ``dtype`` and ``args`` as configured.

    ``loaded`` models are here already and need nothing more; of those ``elsewhere`` nothing is known until they are
    fetched.
    """

    name: str
    engine: str
    files: Files | None = None
    args: Mapping[str, object] = field(default_factory=dict)
    batch: int = DEFAULT_BATCH
    adapter_bytes: int = 0
    problem: str = ""
    elsewhere: bool = False
    loaded: bool = False


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU that this worker may use, in bytes."""

    capacity: int
    used: int


@dataclass(frozen=True, slots=True)
class Room:
    """What a worker has. ``reserved``, and ``gpu_reserved`` by device, is promised to models and not yet in ``used``.

    ``loaded`` counts models that hold memory here, ``classes`` those of them by size; ``imported`` says that torch is
    in the worker's process already.
    """

    capacity: int
    used: int
    threshold_percent: float = 90.0
    devices: tuple[Device, ...] = ()
    reserved: int = 0
    gpu_reserved: tuple[int, ...] = ()
    loaded: int = 0
    max_models: int = 8
    classes: Mapping[str, int] = field(default_factory=dict)
    cores: float = 0.0
    imported: bool = False

    @property
    def limit(self) -> int:
        """Bytes of RAM that may be taken in all."""
        return int(self.capacity * self.threshold_percent / 100)

    def gpu_limit(self, device: Device) -> int:
        """Bytes of a GPU that may be taken in all."""
        return int(device.capacity * self.threshold_percent / 100)

    def left_on_gpus(self) -> list[int]:
        """Bytes that are left on each GPU below its limit; negative where it is over it."""
        promised = (*self.gpu_reserved, *(0 for _ in self.devices))
        return [
            self.gpu_limit(device) - device.used - already
            for device, already in zip(self.devices, promised, strict=False)
        ]


@dataclass(frozen=True, slots=True)
class Figures:
    """`resource_planning` in bytes: what a class of models is said to need of a GPU, any model of RAM and of cores."""

    gpu_bytes: Mapping[str, int] = field(default_factory=dict)
    ram_bytes: int = 0
    cores: float = 0.0
    max_of_class: Mapping[str, int] = field(default_factory=dict)


def size_class(parameters: int) -> str:
    """``7b`` (3 to 10 thousand million parameters), ``13b`` (to 35), ``70b`` (above), or nothing for smaller ones."""
    if parameters < _SMALLEST:
        return ""
    return next((name for limit, name in _CLASSES if parameters <= limit), "70b")


def plan(worker: str, pool: str, requests: Sequence[Request], room: Room, figures: Figures = Figures()) -> ModelPlan:
    """Each model in order, beside those before it that fit. ``fits`` of the whole: all of them do."""
    ledger = _Ledger(room, figures)
    needs = [ledger.take(request) for request in requests]
    return ModelPlan(
        worker=worker, pool=pool, capacity_bytes=room.capacity, limit_bytes=room.limit,
        used_bytes=room.used + room.reserved, gpu_capacity_bytes=sum(device.capacity for device in room.devices),
        gpu_limit_bytes=sum(room.gpu_limit(device) for device in room.devices),
        gpu_used_bytes=sum(device.used for device in room.devices) + sum(room.gpu_reserved), loaded_models=room.loaded,
        max_models=room.max_models, fits=all(need.fits for need in needs), needs=needs,
    )  # fmt: skip


class _Ledger:
    """What is left while one model after the other is taken in."""

    def __init__(self, room: Room, figures: Figures) -> None:
        self._room = room
        self._figures = figures
        self._ram = room.limit - room.used - room.reserved
        self._devices = room.left_on_gpus()
        self._loaded = room.loaded
        self._classes = Counter(room.classes)
        self._imported = room.imported

    def take(self, request: Request) -> ModelNeed:
        """What one model needs; it is taken off what is left when it fits."""
        if request.engine == "openai" and not request.problem:
            return ModelNeed(model=request.name, fits=True, source="none", loaded=request.loaded)
        if request.elsewhere:
            message = f"model '{request.name}' is not fetched yet: whether it fits is seen once its files are here"
            return ModelNeed(model=request.name, fits=True, message=message, source="none", loaded=request.loaded)
        if request.problem or request.files is None:
            return ModelNeed(
                model=request.name, fits=False, source="none", loaded=request.loaded,
                message=f"model '{request.name}': {request.problem or 'its files could not be read'}",
            )  # fmt: skip
        on_gpu = request.engine == "vllm" and bool(self._devices)
        need = self._on_gpu(request, request.files) if on_gpu else self._in_ram(request, request.files)
        need.loaded = request.loaded
        if request.loaded:
            need.fits, need.message = True, ""
            return need
        if problem := self._count_problem(request, request.files):
            need.fits, need.message = False, problem
        if need.fits:
            self._loaded += 1
            self._classes[size_class(need.parameters)] += 1
            self._imported = self._imported or request.engine == "transformers"
        return need

    def _in_ram(self, request: Request, files: Files) -> ModelNeed:
        if request.engine == "vllm":
            weights = _weights(files, str(request.args.get("dtype", "auto"))) + request.adapter_bytes
            cache, overhead = self._vllm_cpu_cache(request.args, weights), VLLM_CPU_BYTES
        else:
            dtype = str(request.args.get("dtype", "float32"))
            weights = _weights(files, dtype) + request.adapter_bytes
            cache = _tokens(request, files) * files.kv_per_token * _itemsize(dtype, files)
            overhead = TRANSFORMERS_BYTES + (0 if self._imported else TORCH_BYTES)
        source: Literal["files", "resource_planning"] = "files"
        total = weights + cache + overhead
        if self._figures.ram_bytes > total:
            source, total = "resource_planning", self._figures.ram_bytes
        need = _need(request, files, "ram", (weights, cache, overhead), total, max(self._ram, 0), source)
        if total > self._ram:
            need.fits = False
            need.message = self._too_large(need, self._room.capacity, self._room.limit, _ram_remedy(request))
        if need.fits and not request.loaded:
            self._ram -= total
        return need

    def _vllm_cpu_cache(self, args: Mapping[str, object], weights: int) -> int:
        if said := _int(args.get("kv_cache_memory_bytes")):
            return said
        share = _float(args.get("gpu_memory_utilization"))  # on a CPU it is of the machine's memory
        return max(int(self._room.capacity * share) - weights - VLLM_CPU_BYTES, 0) if share else VLLM_CPU_KV_BYTES

    def _on_gpu(self, request: Request, files: Files) -> ModelNeed:
        several = devices_of(request.args)
        if several > len(self._devices):
            message = (
                f"model '{request.name}' wants tensor_parallel_size {several}, and this worker sees "
                f"{len(self._devices)} GPU(s): lower it, or name more devices in CUDA_VISIBLE_DEVICES"
            )
            return _need(request, files, "gpu", (0, 0, 0), 0, 0, "files", fits=False, message=message)
        left = min(self._devices[:several])
        capacity = min(device.capacity for device in self._room.devices[:several])
        weights = (_weights(files, str(request.args.get("dtype", "auto"))) + request.adapter_bytes) // several
        least = weights + VLLM_GPU_BYTES + _one_context(request, files) // several
        source: Literal["files", "resource_planning"] = "files"
        figure = self._figures.gpu_bytes.get(size_class(files.parameters), 0) // several
        if figure > least:
            source, least = "resource_planning", figure
        takes = gpu_takes(request.args, capacity, left)
        if said := _int(request.args.get("kv_cache_memory_bytes")):  # then vLLM does not look at the share
            takes = least = max(weights + VLLM_GPU_BYTES + said, least)
        asked = _float(request.args.get("gpu_memory_utilization"))
        if asked and takes < least:
            message = (
                f"model '{request.name}' needs at least {gib(least)} of each GPU, and "
                f"engine_args.gpu_memory_utilization {asked:g} gives it {gib(takes)} of {gib(capacity)}: raise it"
            )
            parts = (weights * several, 0, VLLM_GPU_BYTES * several)
            return _need(
                request,
                files,
                "gpu",
                parts,
                least * several,
                max(left, 0) * several,
                source,
                fits=False,
                message=message,
            )
        takes = max(takes, least)
        cache = max(takes - weights - VLLM_GPU_BYTES, 0)
        need = _need(
            request, files, "gpu", (weights * several, cache * several, VLLM_GPU_BYTES * several), takes * several,
            max(left, 0) * several, source,
        )  # fmt: skip
        if takes > left:
            need.fits = False
            limit = int(capacity * self._room.threshold_percent / 100)
            remedy = (
                "set a lower engine_args.gpu_memory_utilization, unload another model, or use a larger GPU or "
                "engine_args.tensor_parallel_size"
            )
            need.message = self._too_large(need, capacity * several, limit * several, remedy)
        if need.fits and not request.loaded:
            for index in range(several):
                self._devices[index] -= takes
        return need

    def _count_problem(self, request: Request, files: Files) -> str:
        room, figures = self._room, self._figures
        if self._loaded >= room.max_models:
            return (
                f"model '{request.name}': this worker holds {self._loaded} models, which is "
                f"model_management.max_concurrent_models ({room.max_models}): unload one, or raise the limit"
            )
        kind = size_class(files.parameters)
        most = figures.max_of_class.get(kind)
        if most is not None and self._classes[kind] >= most:
            return (
                f"model '{request.name}' has {files.parameters / 1e9:.1f} thousand million parameters and counts as "
                f"{kind}; this worker holds {self._classes[kind]} of them, which is "
                f"resource_planning.max_concurrent_{kind}_models ({most}): unload one, or raise the limit"
            )
        if figures.cores and room.cores and (self._loaded + 1) * figures.cores > room.cores:
            return (
                f"model '{request.name}': {self._loaded + 1} models at resource_planning.cpu_cores_per_model "
                f"{figures.cores:g} are {(self._loaded + 1) * figures.cores:g} cores, and this worker has "
                f"{room.cores:g}: unload one, or lower the figure"
            )
        return ""

    def _too_large(self, need: ModelNeed, capacity: int, limit: int, remedy: str) -> str:
        where = "GPU memory" if need.device == "gpu" else "memory"
        parts = (
            f"resource_planning says so; its files: {gib(need.weights_bytes)} of weights"
            if need.source == "resource_planning"
            else f"weights {gib(need.weights_bytes)}, cache {gib(need.kv_cache_bytes)}, "
            f"overhead {gib(need.overhead_bytes)}"
        )
        return (
            f"model '{need.model}' needs {gib(need.total_bytes)} of {where} ({parts}), and {gib(need.available_bytes)} "
            f"is left below {self._room.threshold_percent:g} % ({gib(limit)}) of {gib(capacity)}: {remedy}"
        )


def devices_of(args: Mapping[str, object]) -> int:
    """How many GPUs a model of vLLM is spread over."""
    return max(_int(args.get("tensor_parallel_size")), 1)


def gpu_takes(args: Mapping[str, object], capacity: int, left: int) -> int:
    """Bytes of each device that vLLM will take: gpu_memory_utilization of the whole device, or what is left below the
    threshold where the configuration names none and vLLM's own default would be more than that.
    """
    share = _float(args.get("gpu_memory_utilization"))
    if share > 0:
        return int(capacity * share)
    return max(min(int(capacity * VLLM_GPU_SHARE), left), 0)


def gpu_share(args: Mapping[str, object], capacity: int, left: int) -> float | None:
    """The gpu_memory_utilization to give to vLLM where the configuration names none; None leaves it to vLLM."""
    if _float(args.get("gpu_memory_utilization")) > 0 or capacity <= 0:
        return None
    return int(gpu_takes(args, capacity, left) * 1000 / capacity) / 1000


def gib(size: int) -> str:
    """Bytes for people: GiB with two digits, MiB for less than a tenth of one."""
    return f"{size / GIB:.2f} GiB" if abs(size) >= GIB // 10 else f"{size / MIB:.0f} MiB"


def _need(
    request: Request, files: Files, device: Literal["ram", "gpu"], parts: tuple[int, int, int], total: int,
    available: int, source: str, *, fits: bool = True, message: str = "",
) -> ModelNeed:  # fmt: skip
    return ModelNeed(
        model=request.name, fits=fits, message=message, device=device, weights_bytes=parts[0], kv_cache_bytes=parts[1],
        overhead_bytes=parts[2], total_bytes=total, available_bytes=available, parameters=files.parameters,
        source=source,
    )  # fmt: skip


def _ram_remedy(request: Request) -> str:
    if request.engine == "vllm":
        return (
            "unload another model, give a smaller engine_args.kv_cache_memory_bytes, or use a machine with more memory"
        )
    return (
        "unload another model, lower engine_args.max_model_len or batch_size, choose engine_args.dtype bfloat16, or "
        "use a machine with more memory"
    )


def _weights(files: Files, dtype: str) -> int:
    """Bytes of the weights as they will be in memory."""
    if dtype == "auto" or not files.parameters:
        return files.weights_bytes
    size = _ITEMSIZE.get(dtype.removeprefix("torch."))
    return files.weights_bytes if size is None else files.parameters * size


def _itemsize(dtype: str, files: Files) -> int:
    return _ITEMSIZE.get(dtype.removeprefix("torch."), files.dtype_bytes)


def _context(request: Request, files: Files) -> int:
    asked = _int(request.args.get("max_model_len"))
    return min(asked, files.context) if asked and files.context else asked or files.context


def _tokens(request: Request, files: Files) -> int:
    return _context(request, files) * max(request.batch, 1)


def _one_context(request: Request, files: Files) -> int:
    """Bytes of the cache of one text as long as the model allows: with less than that vLLM does not start."""
    return _context(request, files) * files.kv_per_token * files.dtype_bytes


def _int(value: object) -> int:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0


def _float(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0
