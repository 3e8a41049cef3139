"""What fits on a worker, with figures by hand; and that no plan ever promises more than there is."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.domain import planning
from services.inference.domain.planning import GIB, Device, Figures, Files, Request, Room, gib, plan, size_class

EIGHT_B = Files(
    weights_bytes=16 * 10**9, parameters=8 * 10**9, dtype_bytes=2, kv_per_token=2 * 32 * 8 * 128, context=8192
)
TINY = Files(weights_bytes=2_460_000, parameters=1_230_000, dtype_bytes=2, kv_per_token=384, context=512)
BIG_ROOM = Room(capacity=256 * GIB, used=16 * GIB)
GPU = Device(80 * GIB, GIB)


def need(request: Request, room: Room = BIG_ROOM, figures: Figures | None = None) -> Any:
    return plan("w1", "default", [request], room, figures or Figures()).needs[0]


def transformers(files: Files = TINY, **fields: Any) -> Request:
    return Request("m", "transformers", files, **fields)


def vllm(files: Files = EIGHT_B, **args: Any) -> Request:
    return Request("m", "vllm", files, args)


def test_transformers_weights_are_of_the_configured_type_and_the_cache_of_the_whole_batch() -> None:
    found = need(transformers(EIGHT_B, args={"dtype": "bfloat16", "max_model_len": 4096}, batch=4), replace(BIG_ROOM, imported=True))
    assert (found.weights_bytes, found.parameters) == (16 * 10**9, 8 * 10**9)
    assert found.kv_cache_bytes == 4 * 4096 * 65_536 * 2
    assert found.overhead_bytes == planning.TRANSFORMERS_BYTES
    assert found.total_bytes == found.weights_bytes + found.kv_cache_bytes + found.overhead_bytes
    assert (found.device, found.source, found.fits, found.message) == ("ram", "files", True, "")
    single = need(transformers(EIGHT_B, batch=1))
    assert single.weights_bytes == 32 * 10**9, "float32 by default"
    assert single.overhead_bytes == planning.TRANSFORMERS_BYTES + planning.TORCH_BYTES
    assert need(transformers(EIGHT_B, args={"dtype": "auto"})).weights_bytes == 16 * 10**9
    assert need(transformers(EIGHT_B, args={"max_model_len": 10**9}, batch=1)).kv_cache_bytes == 8192 * 65_536 * 4


def test_a_refusal_has_the_figures_and_the_remedy() -> None:
    room = Room(capacity=16 * GIB, used=4 * GIB, imported=True)
    found = need(transformers(EIGHT_B, args={"dtype": "bfloat16", "max_model_len": 1024}, batch=8), room)
    assert not found.fits
    assert found.message == (
        "model 'm' needs 15.93 GiB of memory (weights 14.90 GiB, cache 1.00 GiB, overhead 32 MiB), and 10.40 GiB is left "
        "below 90 % (14.40 GiB) of 16.00 GiB: unload another model, lower engine_args.max_model_len or batch_size, choose "
        "engine_args.dtype bfloat16, or use a machine with more memory"
    )
    assert found.available_bytes == int(16 * GIB * 0.9) - 4 * GIB


def test_vllm_on_a_cpu() -> None:
    found = need(vllm())
    assert (found.device, found.kv_cache_bytes, found.overhead_bytes) == ("ram", GIB, planning.VLLM_CPU_BYTES)
    assert need(vllm(kv_cache_memory_bytes=5 * GIB)).kv_cache_bytes == 5 * GIB
    assert need(vllm(gpu_memory_utilization=0.5)).total_bytes == 128 * GIB
    assert need(vllm(dtype="float32")).weights_bytes == 32 * 10**9


def test_vllm_on_a_gpu_takes_the_share_that_is_configured_or_what_is_left() -> None:
    room = replace(BIG_ROOM, devices=(GPU,))
    asked = need(vllm(gpu_memory_utilization=0.5), room)
    assert (asked.device, asked.fits, asked.total_bytes) == ("gpu", True, 40 * GIB)
    assert asked.kv_cache_bytes == 40 * GIB - asked.weights_bytes - asked.overhead_bytes
    # Its own default would be over the threshold: then it gets what is below it.
    default = need(vllm(), room)
    assert (default.fits, default.total_bytes) == (True, 71 * GIB)
    assert planning.gpu_share({}, GPU.capacity, 71 * GIB) == 0.887
    assert planning.gpu_share({"gpu_memory_utilization": 0.3}, GPU.capacity, 71 * GIB) is None
    assert need(vllm(), replace(room, threshold_percent=100)).total_bytes == int(80 * GIB * 0.92)
    over = need(vllm(gpu_memory_utilization=0.95), room)
    assert not over.fits
    assert "needs 76.00 GiB of GPU memory" in over.message
    assert "71.00 GiB is left below 90 % (72.00 GiB) of 80.00 GiB: set a lower engine_args.gpu_memory_utilization" in over.message
    little = need(vllm(gpu_memory_utilization=0.1), room)
    assert not little.fits
    assert "needs at least 17.40 GiB of each GPU, and engine_args.gpu_memory_utilization 0.1 gives it 8.00 GiB" in little.message
    assert not need(vllm(), replace(room, devices=(Device(80 * GIB, 60 * GIB),))).fits
    cache = need(vllm(kv_cache_memory_bytes=10 * GIB, gpu_memory_utilization=0.01), room)
    assert (cache.fits, cache.kv_cache_bytes) == (True, 10 * GIB)
    assert cache.total_bytes == cache.weights_bytes + cache.overhead_bytes + 10 * GIB


def test_several_gpus() -> None:
    room = replace(BIG_ROOM, devices=(GPU, Device(40 * GIB, 0)))
    found = need(vllm(tensor_parallel_size=2, gpu_memory_utilization=0.5), room)
    assert (found.total_bytes, found.fits) == (2 * 20 * GIB, True), "as much of each as of the smallest"
    assert found.weights_bytes == 16 * 10**9
    refused = need(vllm(tensor_parallel_size=4), room)
    assert "tensor_parallel_size 4, and this worker sees 2 GPU(s)" in refused.message
    assert not need(vllm(), replace(room, gpu_reserved=(71 * GIB,))).fits, "what others were promised counts"


def test_each_model_is_planned_beside_those_before_it() -> None:
    room = replace(BIG_ROOM, devices=(GPU,))
    found = plan("w1", "gpu", [vllm(gpu_memory_utilization=0.5), vllm(), vllm(gpu_memory_utilization=0.5)], room)
    assert [one.fits for one in found.needs] == [True, True, False]
    assert found.needs[1].total_bytes == 31 * GIB
    assert not found.fits
    assert (found.gpu_capacity_bytes, found.gpu_limit_bytes, found.gpu_used_bytes) == (80 * GIB, 72 * GIB, GIB)
    assert (found.capacity_bytes, found.used_bytes, found.pool) == (256 * GIB, 16 * GIB, "gpu")
    again = plan("w1", "gpu", [replace(vllm(), loaded=True), vllm(gpu_memory_utilization=0.5)], room)
    assert [one.fits for one in again.needs] == [True, True], "what is loaded takes nothing more"


def test_counts_and_cores() -> None:
    room = replace(BIG_ROOM, max_models=2, loaded=1, cores=4.0)
    found = plan("w1", "", [transformers(), transformers()], room)
    assert [one.fits for one in found.needs] == [True, False]
    assert "holds 2 models, which is model_management.max_concurrent_models (2)" in found.needs[1].message
    figures = Figures(max_of_class={"7b": 1})
    seven = plan("w1", "", [vllm(), vllm(), transformers()], BIG_ROOM, figures)
    assert [one.fits for one in seven.needs] == [True, False, True]
    assert "8.0 thousand million parameters and counts as 7b" in seven.needs[1].message
    assert "max_concurrent_7b_models (1)" in seven.needs[1].message
    cores = plan("w1", "", [transformers(), transformers()], room, Figures(cores=1.5))
    assert "2 models at resource_planning.cpu_cores_per_model 1.5" not in cores.needs[0].message
    assert cores.needs[0].fits
    tight = plan("w1", "", [transformers()], replace(room, cores=2.0), Figures(cores=1.5))
    assert "2 models at resource_planning.cpu_cores_per_model 1.5 are 3 cores, and this worker has 2" in tight.needs[0].message


def test_an_operators_figures_count_where_they_are_higher() -> None:
    low, high = Figures(ram_bytes=1), Figures(ram_bytes=100 * GIB, gpu_bytes={"7b": 60 * GIB})
    assert need(transformers(), figures=low).source == "files"
    found = need(transformers(), figures=high)
    assert (found.source, found.total_bytes) == ("resource_planning", 100 * GIB)
    on_gpu = need(vllm(gpu_memory_utilization=0.8), replace(BIG_ROOM, devices=(GPU,)), high)
    assert (on_gpu.source, on_gpu.fits, on_gpu.total_bytes) == ("resource_planning", True, 64 * GIB)
    small = need(vllm(gpu_memory_utilization=0.5), replace(BIG_ROOM, devices=(GPU,)), high)
    assert not small.fits
    assert "needs at least 60.00 GiB" in small.message


def test_what_takes_nothing_and_what_cannot_be_read() -> None:
    remote = need(Request("m", "openai"), Room(capacity=0, used=0, max_models=1, loaded=1))
    assert (remote.fits, remote.source, remote.total_bytes) == (True, "none", 0)
    broken = need(Request("m", "vllm", problem="/models/m: is no directory"))
    assert (broken.fits, broken.message) == (False, "model 'm': /models/m: is no directory")
    away = need(Request("m", "vllm", elsewhere=True))
    assert away.fits
    assert "not fetched yet" in away.message


@pytest.mark.parametrize(
    ("parameters", "name"),
    [(0, ""), (2_999_999_999, ""), (3 * 10**9, "7b"), (10**10, "7b"), (10**10 + 1, "13b"), (35 * 10**9, "13b"), (7 * 10**10, "70b")],
)
def test_classes(parameters: int, name: str) -> None:
    assert size_class(parameters) == name


def test_sizes_for_people() -> None:
    assert (gib(GIB), gib(0), gib(50 << 20), gib(GIB // 10)) == ("1.00 GiB", "0 MiB", "50 MiB", "0.10 GiB")


sizes = st.integers(0, 400 * GIB)
files = st.builds(Files, sizes, st.integers(0, 10**11), st.sampled_from([1, 2, 4]), st.integers(0, 10**6), st.integers(0, 10**6))
args = st.fixed_dictionaries(
    {},
    optional={
        "gpu_memory_utilization": st.floats(0, 1), "tensor_parallel_size": st.integers(1, 4), "dtype": st.sampled_from(["auto", "float32", "odd"]),
        "max_model_len": st.integers(0, 10**6), "kv_cache_memory_bytes": sizes,
    },
)  # fmt: skip
requests = st.builds(Request, st.just("m"), st.sampled_from(["vllm", "transformers", "openai"]), files, args, st.integers(1, 64), loaded=st.booleans())
devices = st.lists(st.builds(lambda capacity, share: Device(capacity, int(capacity * share)), sizes, st.floats(0, 1)), max_size=3)
rooms = st.builds(
    Room, st.integers(1, 400 * GIB), sizes, st.floats(1, 100), devices.map(tuple), sizes, st.lists(sizes, max_size=3).map(tuple), st.integers(0, 3), st.integers(1, 8)
)


@given(st.lists(requests, max_size=5), rooms)
def test_never_more_is_promised_than_is_left(asked: list[Request], room: Room) -> None:
    found = plan("w1", "", asked, room)
    taken = [one for one in found.needs if one.fits and not one.loaded]
    in_ram = sum(one.total_bytes for one in taken if one.device == "ram")
    assert in_ram == 0 or in_ram <= found.limit_bytes - found.used_bytes
    on_gpu = sum(one.total_bytes for one in taken if one.device == "gpu")
    assert on_gpu == 0 or on_gpu <= found.gpu_limit_bytes - sum(device.used for device in room.devices)
    assert sum(one.source != "none" for one in taken) <= max(room.max_models - room.loaded, 0)
    assert all(bool(one.message) != one.fits for one in found.needs)
