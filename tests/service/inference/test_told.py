"""What a worker tells of its models besides heartbeats: answers on the bus, events, and figures on /metrics."""

import json
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from schemas import subjects
from schemas.v1.cloudevent import CloudEvent
from schemas.v1.events import ModelProgress, ModelState
from schemas.v1.models import ModelPlan
from services._runtime.clock import monotonic
from services._runtime.settings_engines import Model
from services.inference.adapters.engine import Engine
from services.inference.adapters.planner import plan_here
from tests.fakes.engines import BadEngine
from tests.harness import NatsServer, eventually
from tests.service.inference.conftest import Stack, StackFactory
from tests.service.inference.test_life import ALLOW, MODELS, quick, say, torch


def series() -> dict[tuple[str, str], dict[str, float]]:
    """{(metric, model): {other labels: value}}."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for family in text_string_to_metric_families(generate_latest(REGISTRY).decode()):
        for sample in family.samples:
            labels = dict(sample.labels)
            model = labels.pop("model", "")
            found.setdefault((sample.name, model), {})[",".join(labels.values())] = sample.value
    return found


async def ask(s: Stack, verb: str, **query: Any) -> tuple[Any, bool]:
    result = await getattr(s.parts.handlers, verb)(json.dumps(query).encode())
    assert result is not None
    return json.loads(result[0]), result[1]


async def test_metrics_of_a_model_come_and_go_with_it(stack: StackFactory) -> None:
    async with stack(models=[], sections=ALLOW) as s:
        await s.want("m/1", torch())
        await s.beat("m/1", lambda b: b.state == "ready" and b.cpu >= 0)
        await say(s, "m/1", stream=True)
        found = series()
        state = found["cypria_inference_model_state", "m/1"]
        assert (state["ready"], sum(state.values()), len(state)) == (1, 1, 8)
        for name, value in (
            ("running", 0), ("queued", 0), ("free_slots", 256), ("engine_running", 0), ("model_generation", 1), ("gpu_memory_bytes", 0),
            ("engine_restarts_total", 0), ("first_token_seconds_count", 1), ("queue_seconds_count", 1), ("output_token_seconds_count", 1),
            ("load_seconds_count", 1),
        ):  # fmt: skip
            assert found[f"cypria_inference_{name}", "m/1"] == {"": value}, name
        assert found["cypria_inference_memory_bytes", "m/1"][""] > 1_000_000
        assert 0 <= found["cypria_inference_cpu_cores", "m/1"][""] < 3
        assert found["cypria_inference_requests_total", "m/1"] == {"length": 1}
        assert found["cypria_inference_loads_total", "m/1"] == {"ok": 1}
        assert ("cypria_inference_kv_cache_usage_ratio", "m/1") not in found, "nobody knows it, which is not 0"
        await s.want("spoiled", torch(digest="sha256:" + "0" * 64))
        await s.beat("spoiled", lambda b: b.state == "failed")
        assert series()["cypria_inference_loads_total", "spoiled"] == {"failed": 1}
        for name in ("m/1", "spoiled"):
            await s.want(name, None, desired="removed")
            await eventually(lambda name=name: s.models.find(name) is None)
        assert not [key for key in series() if key[1] in {"m/1", "spoiled"}]


async def test_lists_and_orders_to_one_worker(stack: StackFactory) -> None:
    async with stack(models=[{"name": "m", **torch()}], sections=ALLOW) as s:
        listed, failed = await ask(s, "list")
        assert not failed
        assert (listed["worker"], listed["pool"]) == ("w00000001", "default")
        [row] = listed["models"]
        assert (row["model"], row["state"], row["engine"], row["generation"]) == ("m", "ready", "transformers", 0)
        assert (row["source"], row["desired"]) == ("configuration", "loaded")
        assert row["version"].startswith("transformers ")
        await s.want("m", torch(max_queue=7))
        await s.beat("m", lambda b: b.generation == 1)
        assert (await ask(s, "list", model="m"))[0]["models"][0]["source"] == "registry"
        assert await s.parts.handlers.list(b'{"worker": "w2"}') is None
        assert (await ask(s, "list", model="nobody"))[0]["code"] == "model_not_found"
        assert (await ask(s, "unload", model="m", worker="w00000001"))[0]["state"] == "draining"
        await s.beat("m", lambda b: b.state == "unloaded")
        assert (await ask(s, "unload", model="m"))[0]["code"] == "conflict"
        assert (await ask(s, "load", model="m"))[0]["state"] == "verifying"
        await s.beat("m", lambda b: b.state == "ready")
        for payload in (b"", b"{", b"[]", b'{"model": 7}'):
            answer = await s.parts.handlers.load(payload)
            assert answer is not None
            assert (json.loads(answer[0])["code"], answer[1]) in {("invalid_request", True), ("model_not_found", True)}


async def test_plans_load_nothing(stack: StackFactory) -> None:
    async with stack(models=[{"name": "m", **torch()}], sections=quick(max_concurrent_models=2)) as s:
        plan, failed = await ask(s, "plan")
        assert not failed
        whole = ModelPlan.model_validate(plan)
        assert (whole.worker, whole.pool, whole.fits, whole.loaded_models, whole.max_models) == ("w00000001", "default", True, 1, 2)
        assert whole.limit_bytes == int(whole.capacity_bytes * 0.9)
        assert 0 < whole.used_bytes < whole.capacity_bytes
        [own] = whole.needs
        assert (own.model, own.loaded, own.fits) == ("m", True, True)
        # Known ones by name, new ones by their spec, each beside those before it.
        specs = [{"name": "m"}, {"name": "new", **torch("canary")}, {"name": "newer", **torch("canary")}]
        several = ModelPlan.model_validate((await ask(s, "plan", specs=specs))[0])
        assert [need.fits for need in several.needs] == [True, True, False]
        assert "max_concurrent_models (2)" in several.needs[2].message
        assert several.needs[1].weights_bytes == several.needs[1].parameters * 4
        swap = ModelPlan.model_validate((await ask(s, "plan", specs=[{"name": "m", **torch("canary")}]))[0])
        assert (swap.needs[0].loaded, swap.needs[0].fits, swap.loaded_models) == (False, True, 1), "it takes the place of what is there"
        assert (await ask(s, "plan", specs=[{"name": "nobody"}]))[0]["code"] == "model_not_found"
        wrong, failed = await ask(s, "plan", specs=[{"name": "m"}, {"name": "x", "engine": "vllm"}])
        assert (failed, wrong["code"]) == (True, "invalid_request")
        assert wrong["message"] == "specs.1: model 'x': engine vllm needs path, the model's directory"
        assert {place.name for place in s.models.all()} == {"m"}


async def test_a_plan_tells_nothing_of_what_may_not_be_loaded(stack: StackFactory, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "config.json").write_text("hush")
    specs = [{"name": name, "engine": "transformers", "path": str(tmp_path / name)} for name in ("there", "gone")]
    specs.append({"name": "spy", "engine": "openai", "base_url": "http://169.254.169.254/"})
    async with stack(models=[{"name": "m", **torch()}], sections=quick()) as s:
        told = ModelPlan.model_validate((await ask(s, "plan", specs=specs))[0])
        said = [need.message.replace("gone", "there") for need in told.needs]
        assert [need.fits for need in told.needs] == [False] * 3
        assert said[0] == said[1]
        assert "is below none of model_sources.allow" in said[0]
        assert "base_url: is no address of this worker's configuration" in said[2]


def test_a_plan_without_a_system(nats_server: NatsServer) -> None:
    settings = nats_server.settings("inference", models=[
        {"name": "m", **torch()}, {"name": "other", **torch(), "pool": "gpu"}, {"name": "gone", "engine": "transformers", "path": str(MODELS / "nowhere")},
    ])  # fmt: skip
    found = plan_here(settings)
    assert [(need.model, need.fits) for need in found.needs] == [("m", True), ("gone", False)]
    assert "nowhere" in found.needs[1].message


async def test_progress_is_told_in_steps(stack: StackFactory, nats_server: NatsServer) -> None:
    made: list[BadEngine] = []

    def make(model: Model) -> Engine:
        made.append(BadEngine(model, hang_load=True))
        return made[-1]

    async with stack(models=[], make=make, sections=ALLOW) as s:
        nc = await nats_server.connect("metrics")
        told = await nc.jetstream().subscribe(subjects.event("model.progress"), stream="EVENTS", ordered_consumer=True)
        await s.want("m", torch())
        await s.beat("m", lambda b: b.progress == 0.25)
        for fraction in (0.26, 0.27, 0.5, 0.55):
            made[0].progress("weights", fraction)
            await s.beat("m", lambda b, f=fraction: b.progress == f)
        found = []
        while not found or found[-1].fraction < 0.5:
            msg = await told.next_msg(timeout=60)
            found.append(CloudEvent[ModelProgress].model_validate_json(msg.data).data)
        loading = [event for event in found if event.state == "loading"]
        assert [event.fraction for event in loading] == [0.25, 0.5], "not every little step"
        assert (loading[0].model, loading[0].worker, loading[0].generation, loading[0].detail) == ("m", "w00000001", 1, "weights")
        loaded_for = (await s.beat("m", lambda b: b.idle_s > 0.7)).idle_s
        made[0].released.set()
        ready = await s.beat("m", lambda b: b.state == "ready")
        assert ready.idle_s < loaded_for, "a long load is no time in which nobody has asked for the model"
        states = await nc.jetstream().subscribe(subjects.event("model.state"), stream="EVENTS", ordered_consumer=True)
        event = CloudEvent[ModelState].model_validate_json((await states.next_msg(timeout=60)).data).data
        assert (event.state, event.generation) == ("verifying", 1)
        await nc.close()


async def test_how_long_a_model_has_been_idle(stack: StackFactory) -> None:
    async with stack() as s:
        assert (await s.beat("m", lambda b: b.idle_s > 0.3)).idle_s < 60
        s.fake.behaviour.hang = True
        running = await s.router.chat()
        await s.beat("m", lambda b: b.idle_s < 0)
        cancelled = monotonic()
        await s.router.flow(cancel=[running.id])
        await running.end()
        idle_s = (await s.beat("m", lambda b: b.idle_s >= 0)).idle_s
        assert 0 <= idle_s <= monotonic() - cancelled, "since the last one ended"
