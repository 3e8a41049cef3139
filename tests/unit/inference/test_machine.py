"""Memory, cores, processes and GPUs as the system tells of them; NVML by a stand-in, where there is no driver."""

import asyncio
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.inference.adapters import machine
from services.inference.adapters.machine import Gpus, Group, Machine
from tests.harness import eventually

CHILD = "import subprocess, sys, time; x = bytearray(50 << 20)\nif len(sys.argv) > 1: subprocess.Popen([sys.executable, '-c', sys.argv[1]])\nwhile True: time.sleep(60)"
BUSY = "while True: pass"


def test_the_machines_memory_where_no_group_limits_it(tmp_path: Path) -> None:
    capacity, used = machine.memory(tmp_path)
    assert capacity == psutil.virtual_memory().total
    assert 0 < used < capacity


def test_a_groups_limit_counts_and_what_the_kernel_can_take_back_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for line, names, stat in (
        ("0::/a/b", ("memory.max", "memory.current"), "inactive_file 300000000"),
        ("4:cpu,memory:/a/b", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file 300000000"),
    ):
        base = tmp_path / ("memory" if "memory" in line else "v2")
        root = tmp_path if "memory" in line else base
        (base / "a" / "b").mkdir(parents=True)
        monkeypatch.setattr(machine, "_own_groups", lambda line=line: [line])
        for folder, limit in ((base / "a", "2000000000"), (base / "a" / "b", "max")):
            (folder / names[0]).write_text(limit)
            (folder / names[1]).write_text("800000000")
            (folder / "memory.stat").write_text(f"anon 1\n{stat}\nother x\n")
        assert machine.memory(root) == (2_000_000_000, 500_000_000)
        (base / "a" / names[0]).write_text(str(1 << 62))
        assert machine.memory(root)[0] == psutil.virtual_memory().total


def test_cores(tmp_path: Path) -> None:
    own = float(len(os.sched_getaffinity(0)))
    assert machine.cores(tmp_path) == own
    (tmp_path / "cpu.max").write_text("50000 100000")
    assert machine.cores(tmp_path) == 0.5
    (tmp_path / "cpu.max").write_text("max 100000")
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("25000")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert machine.cores(tmp_path) == 0.25


async def test_processes_with_their_children(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", CHILD, BUSY])
    looked = Machine()
    try:
        await eventually(lambda: len(machine.tree((parent.pid,))) == 2)
        looked.groups = {"m": Group(pids=(parent.pid,)), "gone": Group(pids=(1 << 22,))}
        looked.look()
        await asyncio.sleep(0.5)
        sample = looked.look()
        found = sample.groups["m"]
        assert found.memory_bytes > 50 << 20
        assert 0.05 < found.cpu < 1.3, "the child is busy"
        assert (found.gpu, found.gpu_memory_bytes) == (-1.0, 0)
        assert sample.groups["gone"].memory_bytes == 0
        assert sample.process_bytes > 10 << 20
    finally:
        for process in machine.tree((parent.pid,)):
            process.kill()
        parent.wait()


async def test_sampling_goes_on_when_a_look_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SAMPLE_S", 0.01)
    looked = Machine()
    looks: list[int] = []

    def memory() -> tuple[int, int]:
        looks.append(1)
        if len(looks) == 1:
            raise OSError("away")
        return 100, 50

    monkeypatch.setattr(machine, "memory", memory)
    looked.start()
    await eventually(lambda: looked.sample.capacity == 100)
    looked.stop()


class NVMLError(Exception):
    pass


def nvml(**changes: Any) -> Any:
    """NVML with two devices of 80 GB."""

    def processes(handle: int) -> list[Any]:
        return [types.SimpleNamespace(pid=os.getpid(), usedGpuMemory=7 << 30), types.SimpleNamespace(pid=1, usedGpuMemory=None)] if handle == 1 else []

    module = types.SimpleNamespace(
        NVMLError=NVMLError, nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: 2, nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=lambda handle: [b"GPU-aaaa", "GPU-bbbb"][handle],
        nvmlDeviceGetMemoryInfo=lambda handle: types.SimpleNamespace(total=80 << 30, used=(handle + 1) << 30),
        nvmlDeviceGetUtilizationRates=lambda _handle: types.SimpleNamespace(gpu=37), nvmlDeviceGetComputeRunningProcesses=processes,
    )  # fmt: skip
    for name, value in changes.items():
        setattr(module, name, value)
    return module


def fails(*_: Any) -> Any:
    raise NVMLError("not supported")


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        (None, ["GPU-aaaa", "GPU-bbbb"]), ("1", ["GPU-bbbb"]), ("1,0", ["GPU-bbbb", "GPU-aaaa"]), ("GPU-b", ["GPU-bbbb"]), ("", []),
        ("0,7,1", ["GPU-aaaa"]), ("-1", []),
    ],
)  # fmt: skip
def test_the_devices_that_the_worker_may_use(monkeypatch: pytest.MonkeyPatch, visible: str | None, uuids: list[str]) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert [gpu.uuid for gpu in Gpus(environment).look()] == uuids


def test_gpu_memory_by_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    looked = Machine()
    looked.groups = {"m": Group(pids=(os.getpid(),))}
    sample = looked.look()
    assert [(gpu.capacity, gpu.used) for gpu in sample.gpus] == [(80 << 30, 1 << 30), (80 << 30, 2 << 30)]
    assert (sample.groups["m"].gpu_memory_bytes, sample.groups["m"].gpu) == (7 << 30, 0.37)


def test_a_driver_that_tells_less_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlDeviceGetUtilizationRates=fails, nvmlDeviceGetComputeRunningProcesses=fails))
    assert [(gpu.utilization, gpu.processes) for gpu in Gpus({}).look()] == [(-1.0, {}), (-1.0, {})]
    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlDeviceGetCount=fails))
    assert Gpus({}).look() == ()
    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlInit=fails))
    assert Gpus({}).look() == ()
