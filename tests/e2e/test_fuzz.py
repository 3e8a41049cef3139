"""Everything that the OpenAPI document allows and much that it does not, in sequences too, against a running system."""

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from schemas import streams
from tests.e2e.bus_noise import Users, shout
from tests.e2e.product import KEYS, Product, bus_caller, running_product
from tests.harness import eventually
from tests.system import ROOT

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEED = 20_260
CONFIG = """
# 503 and 504 are documented with a time to wait: a model may have been unloaded a moment before.
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503", "504"]
# Rules that no schema says are refused too: two models that differ and are known, a time or head that is one, one of two ways to
# give an end, a value that is the same in query and body, a token and a cursor that Cypria made, an entry that its engine can use.
positive_data_acceptance.enabled = false
# A model that is removed is shown until its workers have let go of it.
use_after_free.enabled = false

[[operations]]
include-path = "/v1/ab-testing/events"
enabled = false

# A model may be named like `x/load`: other methods there are about that one.
[[operations]]
include-path-regex = "^/v1/ab-testing/models/.name./(un)?load$"
checks.unsupported_method.enabled = false
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def product(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Product]:
    async with running_product(tmp_path_factory.mktemp("fuzz"), security={"failed_keys_per_minute": 0}) as product:
        yield product


async def explore(product: Product, folder: Path, *, seed: int, examples: int, seconds: int | None = None) -> None:
    """Run schemathesis with every check; it must find nothing. Without ``seconds`` the same examples each time."""
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", f"{product.system.url}/openapi.json",
        "--header", f"Authorization: Bearer {KEYS['admin']}", "--phases", "examples,coverage,fuzzing,stateful", "--seed", str(seed),
        "--generation-database", "none", "--max-examples", str(examples), *(["--max-time", str(seconds)] if seconds else []),
        "--request-timeout", "30", "--suppress-health-check", "all", "--no-color", "--warnings", "off",
        cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()[-8000:]
    assert not broken(product), "\n".join(broken(product)[:10])


def broken(product: Product) -> list[str]:
    """Lines of the log that tell of something that nobody had thought of."""
    marks = ("Traceback", '"exception"', "exception in", "never retrieved")
    return [line[:2000] for line in product.system.log.read_text(errors="replace").splitlines() if any(mark in line for mark in marks)]


async def serves(product: Product) -> None:
    """Everything still works: keys, models, a test from its start to its record, alerts, the audit, over HTTP and the bus."""

    async def answered() -> bool:
        return (await product.chat()).status_code == 200

    await eventually(answered, 60)
    async with product.test() as test_id:
        async def counted() -> bool:
            await product.chat(user=str(random.random()))
            return (await product.figures(test_id)).get("variant_a", {}).get("request_count", 0) > 0

        await eventually(counted, 60, 0.2)
    result = await product.system.api("GET", f"tests/{test_id}")
    assert result["status"] in {"stopped", "completed"}, result

    async def remembered() -> bool:
        history = await product.system.api("GET", "history")
        return any(test["test_id"] == test_id for test in history["tests"])

    await eventually(remembered, 60, 0.2)
    for path in ("status", "monitoring/status", "monitoring/alerts", "audit", "keys", "models", "integrations", f"tests/{test_id}/report"):
        await product.system.api("GET", path)
    async with bus_caller(product.system) as caller:
        assert await caller.status("cypria.control.status", {}, "viewer") == "200"


async def dead_letters(product: Product) -> set[str]:
    """The subjects of the DLQ that hold something."""
    every = Users(product.system.data_dir)
    async with every.connected("provision") as nc:
        info = await nc.jetstream(timeout=30).stream_info("DLQ", subjects_filter=">")
        return set(info.state.subjects or {})


async def noise(product: Product, seed: int, rounds: int) -> None:
    """Have every user of the bus say all that is wrong on all of its subjects."""
    before = {service: product.system.pids(service) for service in streams.SERVICES}
    held = await state(product)
    every = Users(product.system.data_dir)
    detail = await product.system.api("GET", "models/stable")
    worker = detail["by_worker"][0]["worker"]
    sent = {}
    for user in (*streams.SERVICES, "caller"):
        sent[user] = await shout(every, user, worker, KEYS["client"], random.Random(seed), rounds=rounds)
    assert min(sent.values()) > 200, sent
    await serves(product)
    assert {service: product.system.pids(service) for service in streams.SERVICES} == before, "a process died"
    assert not broken(product), "\n".join(broken(product)[:10])
    assert await state(product) == held
    poisoned = {"cypria.dlq.METRICS.metrics", "cypria.dlq.WINDOWS.monitor", "cypria.dlq.EVENTS.metrics", "cypria.dlq.ALERTS.metrics"}

    async def put_aside() -> bool:
        return poisoned <= await dead_letters(product)

    await eventually(put_aside, every_s=0.2)


async def state(product: Product) -> dict[str, Any]:
    """What noise must not change."""
    keys = await product.system.api("GET", "keys")
    models = await product.system.api("GET", "models")
    monitoring = await product.system.api("GET", "monitoring/status")
    return {"keys": keys, "models": sorted(m["name"] for m in models["models"]), "monitoring": monitoring["monitoring_active"]}


async def test_nothing_on_the_bus_breaks_anything(product: Product) -> None:
    await noise(product, SEED, 1)


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_nothing_on_the_bus_breaks_anything_for_long(product: Product) -> None:
    for seed in range(5):
        await noise(product, seed, 3)


@pytest.mark.timeout(420)  # some thousand requests, one after the other
async def test_nothing_that_the_document_allows_breaks_anything_in_any_order(product: Product, tmp_path: Path) -> None:
    await explore(product, tmp_path, seed=SEED, examples=3)


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_nothing_that_the_document_allows_breaks_anything_for_long(product: Product, tmp_path: Path) -> None:
    for seed in range(3):
        await explore(product, tmp_path, seconds=400, seed=seed, examples=200)
