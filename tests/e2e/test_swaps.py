"""Swaps of a served model on a running system, under the load of the openai SDK, and the memory of its worker.

Twenty of them, with each engine: `pytest -m soak tests/e2e/test_swaps.py`.
"""

import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.test_models import Traffic, settled
from tests.harness import eventually
from tests.service.inference.swapping import write_model
from tests.system import System, running

ARGS: dict[str, dict[str, Any]] = {"transformers": {}, "vllm": {"max_model_len": 512, "enforce_eager": True}}


def memory(system: System) -> int:
    """Bytes of the worker and of every process that it has started, what they share counted once."""
    (pid,) = system.pids("inference")
    worker = psutil.Process(pid)
    return sum(one.memory_full_info().pss for one in (worker, *worker.children(recursive=True)))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("engine", "swaps"),
    [
        ("transformers", 4),
        pytest.param("transformers", 20, marks=pytest.mark.soak),
        pytest.param("vllm", 20, marks=[pytest.mark.soak, pytest.mark.vllm]),
    ],
)
async def test_no_request_fails_and_the_memory_comes_back(tmp_path: Path, engine: str, swaps: int) -> None:
    specs = [
        {"name": "m", "engine": engine, "path": str(write_model(tmp_path / name, seed)), "engine_args": ARGS[engine]}
        for seed, name in enumerate("ab")
    ]
    limits = {"control_per_minute": 0, "control_burst": 1000}
    config = {"models": [specs[0]], "security": {"rate_limit": limits}, "model_sources": {"allow": [str(tmp_path)]}}
    (tmp_path / "system").mkdir()
    async with running(tmp_path / "system", config, ready_s=300) as system:
        async with Traffic(system, "m") as traffic:
            await traffic.more(15)
        before = memory(system)
        async with Traffic(system, "m") as traffic:
            for number in range(1, swaps + 1):
                await system.api("POST", "models", {**specs[number % 2], "replace": True})
                await settled(system, number, name="m", within_s=600)
                await traffic.more(9)
        assert not traffic.failed

        await eventually(lambda: memory(system) <= 1.05 * before, 60, 0.5)
        sys.stderr.write(f"{engine}: {traffic.served} served, {before >> 20} MiB, then {memory(system) >> 20} MiB\n")
