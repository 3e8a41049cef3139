"""Orders of the registry on a real worker with real engines: what it does, and what its heartbeats say meanwhile."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from services._runtime.settings_engines import Model
from services.inference.adapters import kv_registry
from services.inference.adapters.engine import Engine
from services.inference.adapters.engines import NOWHERE, make_engine
from tests.fakes.engines import BadEngine
from tests.harness import NatsServer, eventually
from tests.service.inference.conftest import Stack, StackFactory

MODELS = Path(__file__).parents[3] / "infra" / "models"
ALLOW = {"model_sources": {"allow": [str(MODELS)]}}


def torch(name: str = "stable", **fields: Any) -> dict[str, Any]:
    return {"engine": "transformers", "path": str(MODELS / name), **fields}


def quick(**management: Any) -> dict[str, Any]:
    return {**ALLOW, "model_management": management}


async def say(s: Stack, model: str = "m", **body: Any) -> Any:
    return await (await s.router.chat(model=model, max_tokens=3, temperature=0, **body)).end()


async def test_a_registered_model_is_loaded_swapped_unloaded_and_removed(stack: StackFactory) -> None:
    async with stack(models=[], sections=ALLOW) as s:
        await s.want("new", torch())
        first = await s.beat("new", lambda b: b.state == "ready")
        assert (first.generation, first.pool, first.next_state) == (1, "default", "")
        assert first.version.startswith("transformers ")
        running = await s.router.chat(model="new", stream=True, max_tokens=300, ignore_eos=True)
        await eventually(lambda: running.pieces > 0)

        heard = len(s.router.beats)
        await s.want("new", torch("canary"))
        loading = await s.beat("new", lambda b: b.next_state, heard)
        assert (loading.state, loading.generation, loading.next_generation) == ("ready", 1, 2)
        second = await s.beat("new", lambda b: b.generation == 2)
        assert (second.state, second.next_state) == ("ready", "")
        assert second.digest not in {"", first.digest}
        assert (await say(s, "new")).done.digest == second.digest
        old = await running.end()
        assert (old.done.completion_tokens, old.done.digest) == (300, first.digest), "what ran went on where it was"
        await eventually(lambda: not s.models.place("new").leaving)

        await s.want("new", torch("canary"), desired="unloaded")
        gone = await s.beat("new", lambda b: b.state == "unloaded" and b.generation == 3)
        assert gone.memory_bytes == 0
        refused = await say(s, "new")
        assert (refused.head.status, refused.done.reset) == (503, True)
        await s.want("new", torch("canary"), desired="removed")
        await eventually(lambda: s.models.find("new") is None)
        assert (await say(s, "new")).done.reset


async def test_the_same_spec_only_takes_the_generation_over_unless_told_to_reload(stack: StackFactory) -> None:
    async with stack(models=[{"name": "m", **torch()}], sections=ALLOW) as s:
        engine = s.models.get("m").engine
        await s.want("m", torch())
        await s.beat("m", lambda b: (b.generation, b.state) == (1, "ready"))
        assert s.models.get("m").engine is engine
        assert not s.models.get("m").reread
        await s.want("m", torch(), reload=True)
        await s.beat("m", lambda b: (b.generation, b.state, b.next_state) == (2, "ready", ""))
        assert s.models.get("m").engine is not engine
        assert s.models.get("m").reread, "every byte, even where nothing seems to have changed"


async def test_a_swap_whose_new_model_fails_leaves_the_old_one_serving(stack: StackFactory) -> None:
    async with stack(models=[{"name": "m", **torch()}], sections=ALLOW) as s:
        await s.want("m", torch(digest="sha256:" + "0" * 64))
        beat = await s.beat("m", lambda b: b.next_state == "failed")
        assert (beat.state, beat.generation, beat.next_generation) == ("ready", 0, 1)
        assert "digest is sha256:" in beat.next_reason
        assert (await say(s)).done.outcome == "length"
        await s.want("m", None)  # the router goes back: the file's own spec, under another generation
        back = await s.beat("m", lambda b: b.generation == 2)
        assert (back.state, back.next_state) == ("ready", "")


async def test_rolling_waits_for_its_turn_then_unloads_before_it_loads(stack: StackFactory) -> None:
    async with stack(models=[{"name": "m", **torch()}], sections=ALLOW) as s:
        entry = await s.want("m", torch("canary"), strategy="rolling", turn=["w99999999"])
        await s.router.beaten(4)
        assert s.router.beats[-1].generation == 0
        running = await s.router.chat(stream=True, max_tokens=200, ignore_eos=True)
        await eventually(lambda: running.pieces > 0)
        before = len(s.router.beats)
        await s.want("m", entry.spec, strategy="rolling", turn=["w99999999", s.worker.worker], generation=1)
        await s.beat("m", lambda b: (b.generation, b.state) == (1, "ready"))
        states = [b.state for b in s.router.beats[before:]]
        steps = [state for index, state in enumerate(states) if index == 0 or state != states[index - 1]]
        assert steps[steps.index("draining") :][-4:] == ["verifying", "loading", "warming", "ready"]
        assert (await running.end()).done.completion_tokens == 200


async def test_a_restarted_worker_has_the_registrys_spec(stack: StackFactory) -> None:
    files = [{"name": "m", **torch()}, {"name": "off", **torch()}]
    async with stack(models=files, sections=ALLOW) as s:
        await s.want("m", torch("canary"), stage="settled")
        await s.want("off", None, desired="unloaded", stage="settled")
        swapped = await s.beat("m", lambda b: b.generation == 1)
        await s.beat("off", lambda b: b.state == "unloaded")
    async with stack(models=files, sections=ALLOW, worker="w00000002") as s:
        beat = await s.beat("m", lambda b: b.state == "ready")
        assert (beat.generation, beat.digest) == (1, swapped.digest)
        assert (await s.beat("off", lambda b: True)).state == "unloaded"
        # Removed: the file has it again.
        await s.want("m", torch("canary"), desired="removed")
        file = await s.beat("m", lambda b: b.generation == 2)
        assert file.digest != swapped.digest


async def test_what_is_only_claimed_changes_nothing_not_even_at_start(stack: StackFactory) -> None:
    files = [{"name": "m", **torch()}]
    async with stack(models=files, sections=ALLOW) as s:
        before = await s.want("m", torch("canary"), stage="settled")
        served = await s.beat("m", lambda b: b.generation == 1)
        await s.want("m", torch(), stage="claimed", before=before.model_dump(mode="json"))
        await s.want("new", torch(), stage="claimed")
        await s.router.beaten(4)
        assert (s.models.get("m").generation, s.models.find("new")) == (1, None)
    async with stack(models=files, sections=ALLOW, worker="w00000002") as s:
        beat = await s.beat("m", lambda b: b.state == "ready")
        assert (beat.generation, beat.digest) == (1, served.digest)
        await s.want("new", torch(), generation=2)
        await s.beat("new", lambda b: b.state == "ready")


async def test_without_a_registry_the_configuration_stands_until_there_is_one(
    stack: StackFactory, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_registry, "READ_S", 0.3)
    admin = await nats_server.connect("provision")
    await admin.jetstream().delete_stream("KV_models")
    async with stack(models=[{"name": "m", **torch()}], sections=ALLOW) as s:
        assert (await s.beat("m", lambda b: b.state == "ready")).generation == 0
        await nats_server.provision()
        await s.want("m", torch("canary"))
        await s.beat("m", lambda b: (b.generation, b.state) == (1, "ready"))
    await admin.close()


async def test_what_no_worker_can_load_fails_with_the_reason(stack: StackFactory, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(MODELS / "stable", copy)
    async with stack(models=[{"name": "m", **torch()}], sections=ALLOW) as s:
        for spec, words in (
            ({"engine": "nonsense"}, "engine"),
            ({"engine": "transformers"}, "needs path"),
            (torch(max_concurrency=-1), "max_concurrency"),
            ({**torch(), "path": str(copy)}, "below none of model_sources.allow"),
            ({**torch(), "path": "relative"}, "relative"),
            (torch(engine_args={"warp": 9}), "engine_args.warp"),
            ({**torch(), "path": 7}, "path"),
        ):
            await s.want("bad", spec)
            entry = await s.want("m", spec)
            bad = await s.beat("bad", lambda b, g=entry.generation: b.state == "failed" and b.generation == g)
            assert words in bad.reason
            beside = await s.beat("m", lambda b, g=entry.generation: b.next_state == "failed" and b.next_generation == g)
            assert words in beside.next_reason
            assert (beside.state, (await say(s)).done.outcome) == ("ready", "length")
        kv = await s.router.nc.jetstream().key_value("models")
        good = (await kv.get("m")).value
        for raw in (b"", b"{", b"[]", b'{"name": ""}', b'{"name": "m", "generation": -1}', b"\xff"):
            await kv.put("m", raw)
        await kv.put("m", good)
        await s.want("m", torch("canary"), generation=50)
        assert (await s.beat("m", lambda b: b.generation == 50)).state == "ready"


async def test_another_pools_models_are_not_here(stack: StackFactory) -> None:
    sections = {**ALLOW, "inference": {"pool": "gpu"}}
    files = [{"name": "m", **torch()}, {"name": "theirs", **torch(), "pool": "cpu"}, {"name": "ours", **torch(), "pool": "gpu"}]
    async with stack(models=files, sections=sections) as s:
        assert {place.name for place in s.models.all()} == {"m", "ours"}
        await s.want("theirs", torch(pool="cpu"))
        await s.want("ours", torch(pool="cpu"))
        await eventually(lambda: s.models.find("ours") is None)
        await s.want("theirs", torch(pool="gpu"))
        assert (await s.beat("theirs", lambda b: b.state == "ready")).pool == "gpu"
        assert {place.name for place in s.models.all()} == {"m", "theirs"}


async def test_a_load_that_hangs_is_cut_off_and_tried_again(stack: StackFactory) -> None:
    made: list[BadEngine] = []

    def make(model: Model) -> Engine:
        made.append(BadEngine(model, hang_load=True, deaf=len(made) == 1))
        return made[-1]

    async with stack(models=[], make=make, sections=quick(loading={"timeout_seconds": 0.3, "retry_attempts": 1})) as s:
        s.parts.loader.pause = lambda _failed: 0.01
        await s.want("m", torch())
        beat = await s.beat("m", lambda b: b.state == "failed")
        assert "not ready within 0.3 s" in beat.reason
        assert "after 2 tries" in beat.reason
        assert [engine.closed for engine in made] == [True, True]
        assert not s.parts.planner.promises, "nothing is kept for it"
        await s.want("m", torch(), desired="unloaded")
        await s.beat("m", lambda b: b.state == "unloaded")


async def test_a_load_in_progress_can_be_given_up(stack: StackFactory) -> None:
    made: list[BadEngine] = []

    def make(model: Model) -> Engine:
        made.append(BadEngine(model, hang_load=True))
        return made[-1]

    async with stack(models=[], make=make, sections=ALLOW) as s:
        await s.want("m", torch())
        beat = await s.beat("m", lambda b: b.state == "loading" and b.progress > 0)
        assert beat.progress == 0.25
        await s.want("m", torch(), desired="unloaded")
        await s.beat("m", lambda b: b.state == "unloaded")
        await eventually(lambda: made[0].closed)


async def test_an_engine_that_dies_is_loaded_again_while_it_has_tries_left(stack: StackFactory) -> None:
    made: list[BadEngine] = []

    def make(model: Model) -> Engine:
        made.append(BadEngine(model))
        return made[-1]

    async with stack(models=[{"name": "m", **torch()}], make=make, sections=quick(loading={"retry_attempts": 1})) as s:
        heard = len(s.router.beats)
        made[0].died = "killed by signal 9"
        beat = await s.beat("m", lambda b: b.state == "failed", heard)
        assert beat.reason == "killed by signal 9"
        coming = await s.beat("m", lambda b: b.state == "loading", heard)
        assert coming.reason == "loaded again, as the engine before it ended: killed by signal 9"
        again = await s.beat("m", lambda b: b.state == "ready")
        assert (again.restarts, again.reason) == (1, "")
        assert made[0].closed
        await s.want("m", torch("canary"))
        await s.beat("m", lambda b: b.generation == 1)
        assert {b.next_reason for b in s.router.beats} == {""}, "a new engine has nothing to do with that"
        made[2].died = "killed by signal 9"
        await s.beat("m", lambda b: b.restarts == 2 and b.state == "ready")
        heard = len(s.router.beats)
        made[3].died = "killed by signal 9"
        last = await s.beat("m", lambda b: b.state == "failed" and "retry_attempts" in b.reason, heard)
        assert "retry_attempts (1)" in last.reason
        await s.router.beaten(8)
        assert len(made) == 4
        s.models.begin_load("m")
        await s.beat("m", lambda b: b.state == "ready")


async def test_a_silent_engine_is_said_to_be_stalled(stack: StackFactory) -> None:
    made: list[BadEngine] = []

    def make(model: Model) -> Engine:
        made.append(BadEngine(model))
        return made[-1]

    async with stack(models=[{"name": "m", **torch()}], make=make, sections=ALLOW) as s:
        assert not (await s.beat("m", lambda b: b.state == "ready")).stalled
        made[0].silent_s = 0.7
        beat = await s.beat("m", lambda b: b.stalled)
        assert (beat.engine_running, beat.engine_waiting, beat.kv_cache) == (1, 2, 0.5)
        assert beat.reason == "its engine has shown no life for 1 s: it gets no requests until it does"
        made[0].silent_s = 0.0
        assert not (await s.beat("m", lambda b: not b.stalled)).reason
        heard = len(s.router.beats)
        made[0].silent_s = 61.0
        assert "no sign of life for 60 s" in (await s.beat("m", lambda b: b.state == "failed", heard)).reason
        assert (await s.beat("m", lambda b: b.state == "ready")).restarts == 1
        assert made[0].closed


async def test_no_room_is_said_with_figures_before_anything_is_loaded(stack: StackFactory) -> None:
    made: list[str] = []

    def make(model: Model) -> Engine:
        made.append(model.name)
        return make_engine(model, NOWHERE)

    sections = {**quick(max_concurrent_models=2), "resource_planning": {"ram_per_model": "90TB"}}
    async with stack(models=[{"name": "m", "engine": "openai", "base_url": "http://127.0.0.1:1"}], make=make, sections=sections) as s:
        await s.want("big", torch())
        beat = await s.beat("big", lambda b: b.state == "failed")
        assert "needs 83819.03 GiB of memory (resource_planning says so" in beat.reason
        assert "left below 90 %" in beat.reason
        assert made == ["m"]


async def test_no_more_models_than_allowed_but_a_swap_needs_no_place(stack: StackFactory) -> None:
    files = [{"name": "one", **torch()}, {"name": "remote", "engine": "openai", "base_url": "http://127.0.0.1:1"}]
    async with stack(models=files, sections=quick(max_concurrent_models=1)) as s:
        await s.want("two", torch())
        beat = await s.beat("two", lambda b: b.state == "failed")
        assert "max_concurrent_models (1)" in beat.reason
        await s.want("one", torch("canary"))
        await s.beat("one", lambda b: (b.generation, b.state) == (1, "ready"))
        # Room that is about to be made is waited for.
        running = await s.router.chat(model="one", stream=True, max_tokens=200, ignore_eos=True)
        await eventually(lambda: running.pieces > 0)
        await s.want("one", torch("canary"), desired="unloaded")
        await s.want("two", torch())
        await s.beat("two", lambda b: (b.generation, b.state) == (2, "ready"))
        assert (await running.end()).done.completion_tokens == 200


async def test_the_bus_may_be_away_for_a_while(stack: StackFactory, nats_server: NatsServer) -> None:
    async with stack(models=[{"name": "m", **torch()}], sections=ALLOW) as s:
        engine = s.models.get("m").engine
        nats_server.kill()
        await eventually(lambda: not s.bus.connected)
        nats_server.start()
        await eventually(lambda: s.bus.connected and s.router.nc.is_connected)
        await s.beat("m", lambda b: b.state == "ready")
        assert s.models.get("m").engine is engine
        await s.want("m", torch("canary"))
        await s.beat("m", lambda b: (b.generation, b.state) == (1, "ready"))


async def test_stopping_waits_for_no_engine_that_hears_nothing(stack: StackFactory) -> None:
    def make(model: Model) -> Engine:
        return BadEngine(model, hang_load=True, deaf=True, hang_close=True)

    async with stack(models=[{"name": "m", **torch()}], make=make, sections=ALLOW, wait=False) as s:
        await s.beat("m", lambda b: b.state == "loading")
        async with asyncio.timeout(60):
            await s.parts.models.close()
