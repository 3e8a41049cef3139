"""What was promised is kept: models that load at the same time never count on the same memory."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services._runtime.settings_engines import Model, ModelManagement, ResourcePlanning
from services.inference.adapters.machine import Gpu, Machine, Sample, Usage
from services.inference.adapters.planner import Planner, figures_of
from services.inference.domain.planning import GIB, MIB, PlanError

STABLE = Path(__file__).parents[3] / "infra" / "models" / "stable"


class Still(Machine):
    """A machine that is as ``sample`` says."""

    def __init__(self, sample: Sample) -> None:
        super().__init__()
        self.sample = sample

    def look(self) -> Sample:
        return self.sample


def vllm(name: str, **args: Any) -> Model:
    return Model(name=name, engine="vllm", path=STABLE, engine_args=args)


def gpus(*used: int) -> Sample:
    return Sample(256 * GIB, 16 * GIB, 64, GIB, tuple(Gpu(f"GPU-{n}", 80 * GIB, size) for n, size in enumerate(used)))


async def test_two_models_of_one_gpu_need_a_share_each() -> None:
    planner = Planner(Still(gpus(0)))
    first, given = await planner.admit(vllm("one"), "one#1")
    assert given.engine_args["gpu_memory_utilization"] == 0.9, "not vLLM's own default, which is over the threshold"
    assert first is not None
    assert first.need.total_bytes == 72 * GIB
    with pytest.raises(PlanError, match="0 MiB is left below 90 %"):
        await planner.admit(vllm("two", gpu_memory_utilization=0.3), "two#2")
    # What it has taken in truth is no longer a promise.
    planner.machine.sample = replace(gpus(30 * GIB), groups={"one#1": Usage(gpu_memory_bytes=72 * GIB)})
    second, given = await planner.admit(vllm("two", gpu_memory_utilization=0.3), "two#2")
    assert given.engine_args == {"gpu_memory_utilization": 0.3}
    planner.release(first)
    planner.release(second)
    assert planner.room(planner.machine.sample).gpu_reserved == (0,)


async def test_a_model_on_one_gpu_leaves_the_others_alone() -> None:
    planner = Planner(Still(gpus(0, 0)))
    await planner.admit(vllm("one", gpu_memory_utilization=0.8), "one#1")
    room = planner.room(planner.machine.sample)
    assert room.gpu_reserved == (64 * GIB, 0)
    assert planner.plan([vllm("two", tensor_parallel_size=2)], {}).needs[0].total_bytes == 2 * 8 * GIB


async def test_models_of_this_process_count_by_how_much_it_grows() -> None:
    planner = Planner(Still(Sample(16 * GIB, 4 * GIB, 4, 500 * MIB)), figures=figures_of(ResourcePlanning(ram_per_model="2GiB")))
    torch = [Model(name=name, engine="transformers", path=STABLE) for name in "abc"]
    for model in torch[:2]:
        await planner.admit(model, model.name)
    assert planner.room(planner.machine.sample).reserved == 4 * GIB
    planner.machine.sample = Sample(16 * GIB, 5 * GIB, 4, 500 * MIB + GIB)
    assert planner.room(planner.machine.sample).reserved == 3 * GIB


async def test_a_load_waits_for_room_that_is_about_to_be_free() -> None:
    planner = Planner(Still(Sample(16 * GIB, 4 * GIB, 4, GIB)), ModelManagement(max_concurrent_models=1))
    first, _ = await planner.admit(Model(name="a", engine="transformers", path=STABLE), "a#1")
    assert first is not None
    with pytest.raises(PlanError, match="max_concurrent_models"):
        await planner.admit(Model(name="b", engine="transformers", path=STABLE), "b#2")
    first.leaving = True
    waiting = asyncio.create_task(planner.admit(Model(name="b", engine="transformers", path=STABLE), "b#2"))
    done, _ = await asyncio.wait({waiting}, timeout=0.2)
    assert not done
    planner.release(first)
    promise, _ = await waiting
    assert promise is not None
    assert [kept.config.name for kept in planner.promises] == ["b"]
    remote, _ = await planner.admit(Model(name="c", engine="openai", base_url="http://127.0.0.1:1"), "c#3")
    assert remote is None
