"""What callers get for models that are registered, unloaded and removed: requests through a real router."""

import asyncio
from typing import Any

import pytest

from schemas import subjects
from schemas.v1.models import ModelEntry
from services.router.edge import serve
from tests.harness import eventually
from tests.service.router.rig import Rig

SPEC = {"name": "m", "engine": "openai", "base_url": "http://127.0.0.1:9/v1"}


async def put(rig: Rig, **fields: Any) -> None:
    """The entry of the model m, once the router knows it."""
    entry = ModelEntry(**{"name": "m", "spec": SPEC, "stage": "settled", "actor": "ops", **fields})
    kv = await rig.router.bus.js.key_value("models")
    await kv.put(subjects.token("m"), entry.model_dump_json().encode())
    models = rig.router.control.models
    await eventually(lambda: models.entry("m") is not None and models.entry("m").generation >= entry.generation)


async def test_registered_is_known_unloaded_is_503_at_once_and_removed_is_404(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HOLD_S", 600.0)  # whoever waited for a worker would get no answer at all
    assert (await rig.post(model="m")).status_code == 404
    await put(rig)
    assert (await rig.client.get("/v1/models/m")).json()["state"] == "unavailable"
    worker = await rig.worker("m")
    worker.generation = 1
    assert (await rig.post(model="m")).status_code == 200
    await put(rig, desired="unloaded", generation=2, reason="not needed")
    worker.state, worker.generation = "unloaded", 2
    await eventually(lambda: not rig.path.table.ready("m"))
    refused = await rig.post(model="m")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_unloaded")
    assert "'ops' has unloaded it (not needed)" in refused.json()["error"]["message"]
    assert refused.headers["retry-after"]
    await put(rig, desired="removed", generation=3, spec=None)
    worker.state = "draining"  # it still has the model, of the generation before
    assert (await rig.post(model="m")).status_code == 404
    assert [model["id"] for model in (await rig.client.get("/v1/models")).json()["data"]] == ["canary", "stable"]
    worker.state, worker.generation = "ready", 3  # its own configuration names the model
    await eventually(lambda: rig.path.table.known("m"))
    assert (await rig.post(model="m")).status_code == 200
    await put(rig, desired="removed", generation=3, spec=None)
    assert (await rig.post(model="m")).status_code == 200


async def test_what_the_keeper_unloaded_comes_back_for_the_request_that_asks(rig: Rig) -> None:
    worker = await rig.worker("m")
    await put(rig, desired="unloaded", actor="keeper", reason="unused for 30 min", generation=4)
    worker.state, worker.generation = "unloaded", 4
    await eventually(lambda: not rig.path.table.ready("m"))
    asked = [asyncio.create_task(rig.post(model="m")) for _ in range(5)]
    models = rig.router.control.models
    await eventually(lambda: models.entry("m").desired == "loaded")
    entry = models.entry("m")
    assert (entry.generation, entry.actor) == (5, "demand")
    worker.state, worker.generation = "ready", 5
    assert [reply.status_code for reply in await asyncio.gather(*asked)] == [200] * 5
    await eventually(lambda: models.entry("m").stage == "settled")
    assert models.entry("m").generation == 5, "asked for once"


async def test_a_preloaded_model_that_is_unloaded_on_purpose_keeps_nobody_from_serving(rig: Rig) -> None:
    await put(rig, desired="unloaded")
    rig.settings.models[0].preload = True
    rig.settings.models[0].name = "m"
    assert rig.path.models_missing() is None
    await put(rig, generation=2)
    assert rig.path.models_missing() == "no ready worker for: m"
