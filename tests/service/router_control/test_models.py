"""The registry over HTTP and the bus, with workers that follow it and real NATS."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from schemas import subjects
from schemas.v1.common import rfc3339
from services._runtime.clock import now_ms
from tests.fakes.model_worker import ModelWorker
from tests.harness import NatsServer, eventually
from tests.service.router_control.sides import Side, side, stream_messages

SPEC = {"name": "m", "engine": "vllm", "path": "/models/m"}
OPENAI = {"name": "hosted", "engine": "openai", "base_url": "http://127.0.0.1:9/v1"}


def spec(path: str = "/models/m", name: str = "m", **fields: Any) -> dict[str, Any]:
    return {"name": name, "engine": "vllm", "path": path, **fields}


@contextlib.asynccontextmanager
async def workers(server: NatsServer, *ids: str, **options: Any) -> AsyncIterator[list[ModelWorker]]:
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for worker_id in ids:
            bus = await stack.enter_async_context(server.bus("inference"))
            worker = await ModelWorker(bus, worker_id, **options).start()
            stack.push_async_callback(worker.stop)
            found.append(worker)
        yield found


@contextlib.asynccontextmanager
async def router(server: NatsServer, **options: Any) -> AsyncIterator[Side]:
    async with side(server, slot_s=10.0, names=(), **options) as one:
        yield one


def stage(one: Side, name: str = "m") -> tuple[str, str, int]:
    entry = one.control.models.entry(name)
    return (entry.desired, entry.stage, entry.generation) if entry else ("", "", 0)


async def settled(one: Side, name: str = "m", desired: str = "loaded") -> int:
    await eventually(lambda: stage(one, name)[:2] == (desired, "settled"))
    return stage(one, name)[2]


async def heard(one: Side, count: int) -> None:
    """So many workers, with any model."""
    await eventually(lambda: len({beat.worker for beat in one.path.beats()}) == count)


def error(reply: Any, status: int) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    return dict(reply.json()["error"])


async def test_a_models_whole_life(nats_server: NatsServer) -> None:
    async with workers(nats_server, "w1", "w2", file={"hosted": OPENAI}) as (one, two), router(nats_server) as here:
        await heard(here, 2)
        done = await here.post("/models", SPEC)
        assert done == {"model": "m", "status": "registered", "generation": 1, "message": ""}
        await settled(here)
        shown = await here.get("/models/m", role="viewer")
        assert (shown["state"], shown["ready_workers"], shown["entry"]["actor"]) == ("ready", 2, "admin")
        assert shown["entry"]["spec"] == SPEC
        assert [row["worker"] for row in shown["by_worker"]] == ["w1", "w2"]
        assert {row["generation"] for row in shown["by_worker"]} == {1}
        assert shown["by_worker"][0]["kv_cache"] is None
        again = await here.call("POST", "/models", json=SPEC)
        assert error(again, 409)["code"] == "model_exists"
        same = await here.post("/models", {**SPEC, "replace": True})
        assert (same["status"], same["generation"]) == ("unchanged", 1)
        swapped = await here.post("/models", {**spec("/models/n"), "replace": True})
        assert (swapped["status"], swapped["generation"]) == ("replacing", 2)
        assert await settled(here) == 2
        assert (await here.post("/models/m/load", {"reload": True}))["status"] == "loading"
        assert await settled(here) == 3
        assert one.loads == two.loads == [("m", 1), ("m", 2), ("m", 3)]
        assert (await here.post("/models/m/load"))["status"] == "unchanged"
        assert (await here.post("/models/m/unload"))["status"] == "unloading"
        await settled(here, desired="unloaded")
        assert error(await here.call("POST", "/start", json={"model_a": "m", "model_b": "hosted"}), 409)["code"] == "model_unloaded"
        assert (await here.post("/models/m/load"))["status"] == "loading"
        await settled(here)
        gone = await here.call("DELETE", "/models/m")
        assert (gone.status_code, gone.json()["status"]) == (200, "removed")
        await settled(here, desired="removed")
        assert error(await here.call("GET", "/models/m"), 404)["code"] == "model_not_found"
        assert error(await here.call("DELETE", "/models/m"), 404)["code"] == "model_not_found"
        assert error(await here.call("DELETE", "/models/hosted"), 409)["code"] == "model_configured"
        assert [m["name"] for m in (await here.get("/models"))["models"]] == ["hosted"]
        assert (await here.post("/models", SPEC))["generation"] == 7

        async def events() -> list[tuple[int, str, str]]:
            found = await stream_messages(nats_server, "router", "EVENTS", subjects.event("model.registered"))
            told = [json.loads(m.data)["data"] for m in found]
            return [(t["generation"], t["desired"], t["stage"]) for t in told]

        await settled(here)
        await eventually(lambda: not here.control.models.entries()["m"].outbox)
        whole = [("loaded", 1), ("loaded", 2), ("loaded", 3), ("unloaded", 4), ("loaded", 5), ("removed", 6), ("loaded", 7)]
        assert await events() == [(n, desired, step) for desired, n in whole for step in ("changing", "settled")]


async def test_names_with_slashes_do_not_collide_with_verbs(nats_server: NatsServer) -> None:
    async with workers(nats_server, "w1", file={"hosted": OPENAI}), router(nats_server) as here:
        await heard(here, 1)
        for name in ("a/b", "plan", "x/load", "a/b/unload", "模型-ü.2", "sp ace"):
            await here.post("/models", spec(name=name))
            await settled(here, name)
            path = name.replace(" ", "%20")
            assert (await here.get(f"/models/{path}"))["name"] == name
            assert (await here.post(f"/models/{path}/load"))["model"] == name
            assert (await here.post(f"/models/{path}/unload"))["status"] == "unloading"
            await settled(here, name, "unloaded")
            assert (await here.call("DELETE", f"/models/{path}")).json()["model"] == name
            await settled(here, name, "removed")
        assert (await here.call("GET", "/models/x/load")).status_code == 404
        assert error(await here.call("POST", "/models/x/load"), 404)["message"].startswith("model 'x' is unknown")
        wrong = await here.call("PUT", "/models/a/b")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "DELETE, GET, HEAD")
        assert (await here.call("PATCH", "/models")).headers["allow"] == "GET, HEAD, POST"


def _nested(levels: int) -> Any:
    return [_nested(levels - 1)] if levels else 1


REFUSED: list[tuple[dict[str, Any], str | None, str]] = [
        ({"name": "m"}, "engine", "is missing"),
        ({**SPEC, "engine": "magic"}, "engine", "'openai'"),
        ({"name": "m", "engine": "vllm"}, "path", "needs path"),
        ({"name": "m", "engine": "openai"}, "base_url", "needs base_url"),
        ({**SPEC, "base_url": "http://x"}, "base_url", "takes no base_url"),
        ({**SPEC, "path": "models/m"}, "path", "give it from the root"),
        ({**SPEC, "digest": "sha256:x"}, "digest", "pattern"),
        ({**SPEC, "max_concurrency": "8"}, "max_concurrency", "number"),
        ({**SPEC, "adapter_digest": "sha256:" + "0" * 64}, "adapter_digest", "without adapter"),
        ({**SPEC, "quantize": 4}, "quantize", "known here: adapter"),
        ({**SPEC, "strategy": "bold"}, "strategy", "'rolling'"),
        ({**SPEC, "cost": {"gpu_hour": 1}}, "cost.gpu_hour", "known here"),
        ({**OPENAI, "engine_args": {"headers": {"X-Key": "**********"}}}, "engine_args", "headers.X-Key is the mask"),
        ({**SPEC, "name": "\U0001f984" * 200}, "name", "800 bytes"),
        ({**SPEC, "engine_args": {"a": _nested(40)}}, "engine_args", "nested deeper than 32 levels"),
        ({**SPEC, "engine_args": {"chat_template": "{{ x }}" * 10_000}}, None, "larger than 64 KiB"),
]  # fmt: skip
"""(entry, the field that is named, what is said of it)."""


async def test_specs_are_refused_naming_the_field(nats_server: NatsServer) -> None:
    async with router(nats_server) as here:
        for body, param, says in REFUSED:
            refused = error(await here.call("POST", "/models", json=body), 422)
            assert refused["param"] == param
            assert says in refused["message"]
            planned = {name: value for name, value in body.items() if name != "strategy"}
            if param not in {"strategy", "engine_args", None} and "from the root" not in says:
                reply = error(await here.call("POST", "/models/plan", json={"models": [SPEC, planned]}), 422)
                assert reply["param"] == f"models.1.{param}"
        assert here.control.models.entries() == {}


async def test_secrets_of_a_spec_are_not_shown(nats_server: NatsServer) -> None:
    hosted = {**OPENAI, "base_url": "http://user:pass@127.0.0.1:9/v1", "api_key_env": "UPSTREAM",
              "engine_args": {"headers": {"Authorization": "Bearer hush", "X-Team": "hush"}, "token": "hush"}}  # fmt: skip
    config = {"models": [{**hosted, "name": "own"}]}
    async with workers(nats_server, "w1"), router(nats_server, **config) as here:
        await here.post("/models", hosted)
        await settled(here, "hosted")
        shown = json.dumps(await here.get("/models/hosted")) + json.dumps(await here.get("/models"))
        assert "hush" not in shown
        assert "pass@" not in shown
        assert "UPSTREAM" in shown
        assert "X-Team" in shown
        assert "hush" not in json.dumps(await here.get("/config"))


async def test_without_workers_it_is_accepted_and_loaded_when_one_comes(nats_server: NatsServer) -> None:
    async with router(nats_server) as here:
        done = await here.post("/models", SPEC)
        assert "no worker that it is for is alive" in done["message"]
        assert stage(here) == ("loaded", "changing", 1)
        assert (await here.get("/models/m"))["state"] == "unavailable"
        async with workers(nats_server, "w1"):
            await settled(here)
        await eventually(lambda: not here.path.beats())
        assert (await here.get("/models/m"))["state"] == "unavailable"
        assert [m["name"] for m in (await here.get("/models"))["models"]] == ["m"]


async def test_what_no_worker_can_take_is_refused_in_their_own_words(nats_server: NatsServer) -> None:
    large = spec(engine_args={"bytes": 5000})
    async with workers(nats_server, "w1", "w2", file={"hosted": OPENAI}) as (one, two), router(nats_server) as here:
        await heard(here, 2)
        refused = error(await here.call("POST", "/models", json=large), 409)
        assert refused["code"] == "insufficient_memory"
        assert "w1: model 'm' needs 5000 of 1000 left" in refused["message"]
        assert "w2: " in refused["message"]
        assert stage(here) == ("", "", 0)
        two.limit = 6000
        plan = await here.post("/models/plan", {"models": [large]}, role="viewer")
        assert plan["fits"]
        assert [(w["worker"], w["fits"]) for w in plan["workers"]] == [("w1", False), ("w2", True)]
        assert (await here.post("/models", large))["status"] == "registered"
        one.limit = two.limit = 10
        plan = await here.post("/models/plan", {"models": ["m", "m"]})
        assert not plan["fits"]
        assert "needs 5000" in plan["message"]
        assert error(await here.call("POST", "/models/plan", json={"models": ["nobody"]}), 404)["param"] == "models.0"
        elsewhere = await here.post("/models", spec(name="far", pool="gpu", engine_args={"bytes": 5000}))
        assert "no worker" in elsewhere["message"]


async def test_a_failed_swap_goes_back_and_a_failed_first_load_is_told(nats_server: NatsServer) -> None:
    async with workers(nats_server, "w1", "w2", file={"old": spec(name="old")}) as (one, _), router(nats_server) as here:
        await heard(here, 2)
        for name in ("old", "m"):
            if name == "m":
                await here.post("/models", SPEC)
                await settled(here)
            bad = spec("/models/bad", name, engine_args={"broken": "no tokenizer"}, replace=True)
            wanted = (await here.post("/models", bad))["generation"]
            assert await settled(here, name) == wanted + 1
            entry = (await here.get(f"/models/{name}"))["entry"]
            assert entry["spec"] == (None if name == "old" else SPEC)
            assert (entry["actor"], "no tokenizer" in entry["reason"]) == ("keeper", True)
            assert {(b.state, b.generation) for b in here.path.beats() if b.model == name} == {("ready", wanted + 1)}
        await here.post("/models", spec(name="new", engine_args={"broken": "bad header"}))
        await eventually(lambda: one.beats.get("new"))
        await eventually(lambda: {b.state for b in here.path.beats() if b.model == "new"} == {"failed"})
        shown = await here.get("/models/new")
        assert (shown["entry"]["stage"], shown["reason"]) == ("changing", "bad header")
        assert error(await here.call("POST", "/start", json={"model_a": "m", "model_b": "new"}), 409)["code"] == "model_changing"
        await here.post("/models", {**spec(name="new"), "replace": True})
        await settled(here, "new")


async def test_rolling_takes_turns(nats_server: NatsServer) -> None:
    async with workers(nats_server, "w1", "w2", "w3") as three, router(nats_server) as here:
        await here.post("/models", SPEC)
        await heard(here, 3)
        await settled(here)
        for worker in three:
            worker.loads.clear()
        three[0].hold()
        await here.post("/models", {**spec("/models/n"), "replace": True, "strategy": "rolling"})
        await eventually(lambda: here.control.models.entries()["m"].turn == ["w1"])
        await asyncio.sleep(0.6)
        assert here.control.models.entries()["m"].turn == ["w1"], "the next one waits for it"
        assert [worker.loads for worker in three] == [[], [], []]
        three[0].release()
        assert await settled(here) == 2
        assert [worker.loads for worker in three] == [[("m", 2)]] * 3
    async with workers(nats_server, "w9"), router(nats_server) as here:
        await heard(here, 1)
        await eventually(lambda: here.path.table.ready("m"))
        lonely = await here.call("POST", "/models/m/load", json={"reload": True, "strategy": "rolling"})
        assert error(lonely, 409)["code"] == "cannot_roll"


async def test_a_full_worker_lets_go_of_what_was_used_longest_ago(nats_server: NatsServer) -> None:
    async with workers(nats_server, "w1", max_models=2) as (one,), router(nats_server) as here:
        for name in ("a", "b"):
            await here.post("/models", spec(name=name))
            await settled(here, name)
        one.idle.update(a=50.0, b=100.0)
        await eventually(lambda: {b.idle_s for b in here.path.beats()} == {50.0, 100.0})
        done = await here.post("/models", spec(name="c"))
        assert done["message"] == "unloaded to make room: 'b'"
        await settled(here, "c")
        entry = here.control.models.entries()["b"]
        assert (entry.desired, entry.actor, entry.reason) == ("unloaded", "keeper", "to make room for 'c'")
        test_id = await here.start_test(model_a="a", model_b="c", auto_rollback=False)
        full = error(await here.call("POST", "/models/b/load"), 409)
        assert full["code"] == "too_many_models"
        assert f"'a' (test '{test_id}')" in full["message"]
        assert error(await here.call("POST", "/models/plan", json={"models": []}), 422)["param"] == "models"


async def test_unused_models_are_unloaded_and_come_back_on_demand(nats_server: NatsServer) -> None:
    management = {"auto_unload_unused_minutes": 0.01}
    async with workers(nats_server, "w1") as (one,), router(nats_server, model_management=management) as here:
        await here.post("/models", SPEC)
        await settled(here)
        assert here.control.keeper.want("m") is None
        one.idle_s = 0.7
        await settled(here, desired="unloaded")
        assert here.control.models.entries()["m"].reason == "unused for 0.01 min"
        one.idle_s = 0.0
        for _ in range(20):  # requests
            assert here.control.keeper.want("m") is None
        assert await settled(here) == 3
        assert here.control.models.entries()["m"].actor == "demand"
        await here.post("/models/m/unload")
        await settled(here, desired="unloaded")
        assert "'admin' has unloaded it" in (here.control.keeper.want("m") or "")
        assert here.control.keeper.want("nobody") is None


async def test_nothing_is_changed_under_a_test(nats_server: NatsServer) -> None:
    async with workers(nats_server, "w1", file={"hosted": OPENAI}), router(nats_server) as here:
        await heard(here, 1)
        await here.post("/models", SPEC)
        await settled(here)
        await eventually(lambda: not here.control.models.entries()["m"].outbox)
        before = here.control.models.entries()["m"]
        for fields in ({}, {"schedule": rfc3339(now_ms() + 3_600_000)}):
            test_id = await here.start_test(model_a="hosted", model_b="m", **fields)
            for method, path, body in (
                ("POST", "/models", {**spec("/models/n"), "replace": True}), ("POST", "/models/m/unload", None),
                ("POST", "/models/m/load", {"reload": True}), ("DELETE", "/models/m", None),
                ("POST", "/models/hosted/unload", None),
            ):  # fmt: skip
                refused = error(await here.call(method, path, json=body), 409)
                assert refused["code"] == "model_in_use"
                assert test_id in refused["message"]
            assert (await here.post("/models/m/load"))["status"] == "unchanged"
            assert (await here.get("/models/m"))["in_use_by"] == [test_id]
            await here.post("/rollback")
        assert here.control.models.entries()["m"] == before
        assert "hosted" not in here.control.models.entries()
        assert (await here.post("/models/m/unload"))["status"] == "unloading"


async def test_every_change_is_audited_and_a_plan_is_not(nats_server: NatsServer) -> None:
    async with workers(nats_server, "w1", file={"hosted": OPENAI}), router(nats_server) as here:
        await heard(here, 1)
        await here.post("/models/plan", {"models": [SPEC]})
        await here.post("/models", SPEC)
        await here.call("DELETE", "/models/nobody")

        async def audited() -> list[tuple[str, str, int]]:
            found = await stream_messages(nats_server, "metrics", "AUDIT", subjects.AUDIT)
            records = [json.loads(message.data)["data"] for message in found]
            return [(r["action"], r["target"], r["status"]) for r in records if r["action"] != "key-use"]

        await eventually(lambda: audited_equals(audited, [("models-register", "m", 200), ("models-remove", "nobody", 404)]))


async def audited_equals(audited: Any, wanted: list[tuple[str, str, int]]) -> bool:
    return bool(await audited() == wanted)


async def test_the_bus_has_the_same_verbs(nats_server: NatsServer) -> None:
    async with workers(nats_server, "w1"), router(nats_server) as here:
        nc = await nats_server.connect("caller")
        headers = {"Authorization": "Bearer secret-admin"}
        done = await nc.request(subjects.control("models-register"), json.dumps(SPEC).encode(), headers=headers, timeout=30)
        assert json.loads(done.data)["status"] == "registered"
        await settled(here)
        shown = await nc.request(subjects.control("model"), b'{"name": "m"}', headers=headers, timeout=30)
        assert json.loads(shown.data)["by_worker"][0]["worker"] == "w1"
        gone = await nc.request(subjects.control("models-remove"), b'{"name": "m"}', headers=headers, timeout=30)
        assert json.loads(gone.data)["status"] == "removed"
        await nc.close()


async def test_what_a_dead_router_left_is_finished_by_another(nats_server: NatsServer) -> None:
    async with workers(nats_server, "w1"), router(nats_server) as here:
        await here.post("/models", SPEC)
        await settled(here)
        await eventually(lambda: not here.control.models.entries()["m"].outbox)
        entry = here.control.models.entries()["m"]
        old = entry.model_copy(update={"stage": "claimed", "generation": 2, "spec": None, "at_ms": 1, "before": entry.model_dump(mode="json")})
        told = {"model": "m", "desired": "loaded", "generation": 1, "stage": "settled", "at_ms": 1, "reason": "told late"}
        kv = await here.bus.js.key_value("models")
        await kv.put(subjects.token("m"), old.model_copy(update={"outbox": []}).model_dump_json().encode())
        await eventually(lambda: stage(here) == ("loaded", "settled", 1))
        assert here.control.models.entries()["m"].model_copy(update={"outbox": []}) == entry.model_copy(update={"outbox": []})
        raw = {**entry.model_dump(mode="json"), "name": "n", "outbox": [{**told, "model": "n"}]}
        await kv.put(subjects.token("n"), json.dumps(raw).encode())

        async def reasons() -> list[str]:
            found = await stream_messages(nats_server, "router", "EVENTS", subjects.event("model.registered"))
            return [json.loads(m.data)["data"]["reason"] for m in found]

        async def is_told() -> bool:
            return "told late" in await reasons()

        await eventually(is_told)
        await eventually(lambda: not here.control.models.entries()["n"].outbox)
