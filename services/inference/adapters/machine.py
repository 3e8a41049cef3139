"""What the machine has and what is taken of it: memory, GPUs, and the processes of engines. Looked at once a second."""

import contextlib
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from services._runtime.clock import monotonic
from services._runtime.telemetry import get_logger

log = get_logger(__name__)

SAMPLE_S = 1.0
_CGROUP = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 60
_PATIENCE = 400
_FORGET_S = 60.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: its memory in bytes, its utilization 0 to 1 (negative: not known), and bytes by process."""

    uuid: str
    capacity: int
    used: int
    utilization: float = -1.0
    processes: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a set of processes takes: bytes of RAM and of GPUs, cores in use; negative where it is not known."""

    memory_bytes: int = 0
    cpu: float = -1.0
    gpu: float = -1.0
    gpu_memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """The machine at one moment. ``groups`` are the engines' processes under the names they were asked for by."""

    capacity: int = 0
    used: int = 0
    cores: float = 0.0
    process_bytes: int = 0
    gpus: tuple[Gpu, ...] = ()
    groups: Mapping[str, Usage] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """Processes that belong together, with their children; ``thread``: of this process, where there are none."""

    pids: tuple[int, ...] = ()
    thread: int = 0


class Machine:
    """Samples in a thread of its own, so that a slow /proc or a hanging driver holds up nothing.

    ``sample`` is the last one, ``groups`` the processes to look at; it is replaced, never changed.
    """

    def __init__(self) -> None:
        self.groups: Mapping[str, Group] = {}
        self._lock = threading.Lock()
        self._gpus = Gpus()
        self._cpu: dict[str, tuple[float, float]] = {}
        self._sizes = Sizes()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.sample = Sample()

    def start(self) -> None:
        """Begin to sample."""
        self._thread = threading.Thread(target=self._run, name="machine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; does not wait for a look that is going on."""
        self._stop.set()

    def look(self) -> Sample:
        """The machine now; blocks for some milliseconds."""
        with self._lock:
            capacity, used = memory()
            gpus = self._gpus.look()
            groups = {name: self._usage(name, group, gpus) for name, group in self.groups.items()}
            for name in [name for name in self._cpu if name not in groups]:
                del self._cpu[name]
            self._sizes.forget()
            return Sample(capacity, used, cores(), self._sizes.of(psutil.Process()), gpus, groups)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.sample = self.look()
            except Exception as exc:
                # Figures are missing then; models go on.
                log.warning("machine_not_read", error=repr(exc))
            self._stop.wait(SAMPLE_S)

    def _usage(self, name: str, group: Group, gpus: tuple[Gpu, ...]) -> Usage:
        found = tree(group.pids)
        seconds = _thread_seconds(group.thread) if group.thread else -1.0
        size = 0
        if group.pids:
            seconds = sum(_seconds(process) for process in found)
            size = sum(self._sizes.of(process) for process in found)
        now = monotonic()
        before = self._cpu.get(name)
        cpu = -1.0
        if seconds >= 0:
            self._cpu[name] = (now, seconds)
            if before is not None and now > before[0]:
                cpu = max(seconds - before[1], 0.0) / (now - before[0])
        pids = {process.pid for process in found}
        on = [gpu for gpu in gpus if pids & gpu.processes.keys()]
        return Usage(
            memory_bytes=size, cpu=cpu, gpu=max((gpu.utilization for gpu in on), default=-1.0),
            gpu_memory_bytes=sum(gpu.processes[pid] for gpu in on for pid in pids & gpu.processes.keys()),
        )  # fmt: skip


def tree(pids: tuple[int, ...]) -> list[psutil.Process]:
    """The processes and all of their children that live, each once."""
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            for each in (process, *process.children(recursive=True)):
                found.setdefault(each.pid, each)
    return list(found.values())


class Sizes:
    """Memory of processes; where asking is slow, since much is mapped, it is asked less often.

    The kernel walks all pages of the process for it and keeps the process from mapping more meanwhile: that may take no
    more than a four-hundredth of its time.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[float, float, int]] = {}

    def of(self, process: psutil.Process) -> int:
        """Bytes of a process, as of the last time that it was asked."""
        began = monotonic()
        created, until, size = self._known.get(process.pid, (0.0, 0.0, 0))
        if began < until and created == process.create_time():
            return size
        size = _memory_of(process)
        now = monotonic()
        self._known[process.pid] = (process.create_time(), now + _PATIENCE * (now - began), size)
        return size

    def forget(self) -> None:
        """Drop what has not been asked for in a long time."""
        now = monotonic()
        self._known = {pid: known for pid, known in self._known.items() if now < known[1] + _FORGET_S}


def _memory_of(process: psutil.Process) -> int:
    """Bytes that would be free without it: of shared pages its share; all that is resident where that is not told."""
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0


def memory_of_process() -> int:
    """Bytes that this process takes."""
    return _memory_of(psutil.Process())


def _seconds(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def _thread_seconds(thread: int) -> float:
    with contextlib.suppress(OSError, ValueError, IndexError):
        # After the name, which may hold anything: state is the first field, utime and stime the 12th and 13th.
        fields = Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return -1.0


def memory(root: Path = _CGROUP) -> tuple[int, int]:
    """(bytes of RAM that this process may use, bytes of them that are taken): of the machine, or of the cgroup where
    that has a lower limit.
    """
    machine = psutil.virtual_memory()
    capacity, used = int(machine.total), int(machine.total - machine.available)
    for limit, taken in _cgroups(root):
        # What is free counts: a group may have a limit and yet share a machine that is full.
        if limit < capacity:
            free = min(limit - taken, capacity - used)
            capacity, used = limit, limit - max(free, 0)
    return capacity, used


def _cgroups(root: Path) -> list[tuple[int, int]]:
    """(limit, taken less what the kernel can take back) of every group that this process is in and that has a limit."""
    found = []
    for folder, limit_file, taken_file, key in _cgroup_folders(root):
        limit = _number(folder / limit_file)
        taken = _number(folder / taken_file)
        if limit is None or taken is None or limit >= _NO_LIMIT:
            continue
        found.append((limit, max(taken - _reclaimable(folder / "memory.stat", key), 0)))
    return found


def _cgroup_folders(root: Path) -> list[tuple[Path, str, str, str]]:
    found = []
    for line in _own_groups():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = base / path.lstrip("/")
        # In a container the path is often that of the host and is not there; the root of the mount is the container's.
        for each in (folder, *folder.parents):
            found.append((each, *names))
            if each == base:
                break
    return found


def _own_groups() -> list[str]:
    try:
        return Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _reclaimable(file: Path, key: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    return 0


def cores(root: Path = _CGROUP) -> float:
    """Cores that this process may use: those it may run on, or what its cgroup gives it where that is less."""
    own = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    with contextlib.suppress(OSError, ValueError):
        quota, period = (root / "cpu.max").read_text().split()
        if quota != "max":
            own = min(own, int(quota) / int(period))
    quota_v1, period_v1 = _number(root / "cpu" / "cpu.cfs_quota_us"), _number(root / "cpu" / "cpu.cfs_period_us")
    if quota_v1 and period_v1 and quota_v1 > 0:
        own = min(own, quota_v1 / period_v1)
    return own


class Gpus:
    """NVIDIA's GPUs through NVML; without a driver there are none. Those of CUDA_VISIBLE_DEVICES, in its order."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._visible = environment.get("CUDA_VISIBLE_DEVICES")
        self._nvml: Any = None
        self._tried = False

    def look(self) -> tuple[Gpu, ...]:
        """Every device that this worker may use; empty when they cannot be asked."""
        nvml = self._library()
        if nvml is None:
            return ()
        try:
            found = [_gpu(nvml, handle) for handle in self._handles(nvml)]
        except nvml.NVMLError as exc:
            log.warning("gpus_not_read", error=str(exc))
            return ()
        return tuple(found)

    def _library(self) -> Any:
        if not self._tried:
            self._tried = True
            try:
                import pynvml

                pynvml.nvmlInit()
                self._nvml = pynvml
            except Exception as exc:
                # Most machines have no driver; the library itself is a dependency.
                log.debug("no_gpu", reason=str(exc))
        return self._nvml

    def _handles(self, nvml: Any) -> list[Any]:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        if self._visible is None:
            return handles
        chosen = []
        for text in self._visible.split(","):
            handle = _chosen(nvml, handles, text.strip())
            if handle is None:
                break  # as CUDA has it: what follows one that is not there is not seen
            chosen.append(handle)
        return chosen


def _chosen(nvml: Any, handles: list[Any], text: str) -> Any:
    if text.isdigit():
        return handles[int(text)] if int(text) < len(handles) else None
    if not text:
        return None
    if text.startswith("MIG-"):
        with contextlib.suppress(nvml.NVMLError):
            return nvml.nvmlDeviceGetHandleByUUID(text)
    return next((handle for handle in handles if _text(nvml.nvmlDeviceGetUUID(handle)).startswith(text)), None)


def _gpu(nvml: Any, handle: Any) -> Gpu:
    memory_ = nvml.nvmlDeviceGetMemoryInfo(handle)
    utilization = -1.0
    with contextlib.suppress(nvml.NVMLError):
        utilization = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
    processes: dict[int, int] = {}
    with contextlib.suppress(nvml.NVMLError):
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
            processes[process.pid] = process.usedGpuMemory or 0
    return Gpu(_text(nvml.nvmlDeviceGetUUID(handle)), int(memory_.total), int(memory_.used), utilization, processes)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
