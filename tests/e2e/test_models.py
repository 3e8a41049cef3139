"""The registry of models with real ones: swapped under traffic, guarded by tests, kept over restarts, back on demand."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import openai
import pytest
import yaml

from services._runtime.settings_engines import Model
from tests.harness import environment, eventually
from tests.system import ROOT, System, running

MODELS = ROOT / "infra" / "models"


def spec(which: str, name: str = "second", **fields: Any) -> dict[str, Any]:
    return {"name": name, "engine": "transformers", "path": str(MODELS / which), "max_concurrency": 16, **fields}


CONFIG: dict[str, Any] = {
    "models": [spec("stable", "stable")],
    "model_sources": {"allow": [str(MODELS)]},
    "processes": {"inference": 2},
    "security": {"rate_limit": {"control_per_minute": 0, "control_burst": 1000}},
}


def test_the_specs_here_are_entries() -> None:
    assert Model.model_validate(spec("stable")).name == "second"


async def entry(system: System, name: str = "second") -> dict[str, Any]:
    return dict(await system.api("GET", f"models/{name}"))


async def settled(
    system: System, generation: int, desired: str = "loaded", name: str = "second", within_s: float = 120
) -> dict[str, Any]:
    async def is_settled() -> dict[str, Any] | None:
        shown = await entry(system, name)
        now = shown["entry"] or {}
        there = (now.get("stage"), now.get("desired"), now.get("generation")) == ("settled", desired, generation)
        return shown if there else None

    return dict(await eventually(is_settled, within_s, 0.1))


class Traffic:
    """Callers of a model through the openai SDK, streamed and whole, until it is left; what failed is kept."""

    def __init__(self, system: System, model: str, callers: int = 3) -> None:
        self._client = openai.AsyncOpenAI(base_url=f"{system.url}/v1", api_key=system.key, max_retries=0)
        self._model = model
        self._callers = callers
        self._over = asyncio.Event()
        self.served = 0
        self.failed: list[str] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._call(stream=n % 2 == 0)) for n in range(self._callers)]
        await self.more(3)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        await asyncio.gather(*self._tasks)
        await self._client.close()

    async def more(self, count: int = 10) -> None:
        """Wait until so many more have been served."""
        wanted = self.served + count
        await eventually(lambda: self.served >= wanted or self.failed, 60)

    async def _call(self, *, stream: bool) -> None:
        messages: Any = [{"role": "user", "content": "the dog"}]
        while not self._over.is_set():
            try:
                made: Any = await self._client.chat.completions.create(
                    model=self._model, messages=messages, max_tokens=12, stream=stream
                )
                if stream:
                    chunks = [chunk async for chunk in made]
                    assert any(choice.finish_reason for chunk in chunks for choice in chunk.choices)
                self.served += 1
            except (openai.OpenAIError, AssertionError) as exc:
                self.failed.append(repr(exc))


async def chat(system: System, model: str = "second") -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": "the dog"}], "max_tokens": 4}
    return await system.client.post("/v1/chat/completions", json=body)


async def cypria(system: System, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "services.cli", *arguments], capture_output=True, text=True, timeout=200,
        input=stdin, cwd=ROOT, check=False,
        env=environment(PYTHONPATH=str(ROOT), CYPRIA_URL=system.url, CYPRIA_API_KEY=system.key),
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@contextlib.asynccontextmanager
async def under_test(system: System) -> AsyncIterator[str]:
    test_id = await system.start_test(model_a="stable", model_b="second", auto_rollback=False)
    try:
        yield test_id
    finally:
        await system.api("POST", "stop", {"test_id": test_id})


@pytest.mark.timeout(420)
async def test_a_models_life_on_a_running_system(tmp_path: Path) -> None:
    async with running(tmp_path, CONFIG) as system:
        await _is_registered_from_the_shell(system)
        async with Traffic(system, "second") as traffic:
            await _is_swapped(system, traffic)
            await _does_not_load_and_goes_back(system, traffic)
        assert traffic.failed == []
        await _is_held_by_a_test(system)
        await _is_unloaded_and_loaded(system)
        await _survives_its_worker(system)
        # Also over a restart, from which on what is unused is unloaded; one worker is enough for the rest.
        await asyncio.to_thread(system.stop)
        config = {**CONFIG, "processes": {"inference": 1}, "model_management": {"auto_unload_unused_minutes": 0.05}}
        system.config.write_text(yaml.safe_dump(config))
        await system.start()
        await _comes_back_on_demand(system)
        await _is_removed(system)


async def _is_registered_from_the_shell(system: System) -> None:
    status, shown, said = await cypria(system, "models", "plan", "--file", "-", stdin=json.dumps(spec("stable")))
    assert status == 0, said
    assert "it fits" in shown
    status, shown, said = await cypria(system, "models", "register", "-", stdin=json.dumps(spec("stable")))
    assert status == 0, shown + said
    assert shown.splitlines()[-1] == "second ready"
    assert (await settled(system, 1))["ready_workers"] == 2
    status, _, said = await cypria(system, "models", "register", "-", stdin=json.dumps(spec("canary")))
    assert (status, "give `replace: true`" in said) == (1, True)
    assert (await chat(system)).status_code == 200


async def _is_swapped(system: System, traffic: Traffic) -> None:
    before = (await entry(system))["digest"]
    await system.api("POST", "models", {**spec("canary"), "replace": True})
    after = await settled(system, 2)
    assert after["digest"] != before
    await traffic.more()
    await system.api("POST", "models", {**spec("stable"), "replace": True, "strategy": "rolling"})
    assert (await settled(system, 3))["digest"] == before
    await traffic.more()
    status, shown, said = await cypria(system, "models", "load", "second", "--reload")
    assert (status, shown.splitlines()[-1]) == (0, "second ready"), shown + said
    await settled(system, 4)
    await traffic.more()


async def _does_not_load_and_goes_back(system: System, traffic: Traffic) -> None:
    bad = spec("stable", digest="sha256:" + "0" * 64)
    status, shown, _ = await cypria(system, "models", "register", "-", "--replace", stdin=json.dumps(bad))
    assert status == 1
    said = " ".join(shown.split())
    assert "digest is sha256:" in said
    assert "the present one goes on" in said
    shown_entry = (await settled(system, 6))["entry"]
    assert (shown_entry["actor"], shown_entry["spec"]["path"]) == ("keeper", str(MODELS / "stable"))
    assert "digest" not in shown_entry["spec"]
    await traffic.more()


async def _is_held_by_a_test(system: System) -> None:
    async with under_test(system) as test_id:
        for method, path, body in (
            ("POST", "models", {**spec("canary"), "replace": True}), ("POST", "models/second/unload", None),
            ("POST", "models/second/load", {"reload": True}), ("DELETE", "models/second", None),
            ("POST", "models/stable/unload", None),
        ):  # fmt: skip
            error = (await system.api(method, path, body, expect=409))["error"]
            assert error["code"] == "model_in_use"
            assert test_id in error["message"]
        assert (await entry(system))["in_use_by"] == [test_id]


async def _is_unloaded_and_loaded(system: System) -> None:
    assert (await cypria(system, "models", "unload", "second"))[0] == 0
    await settled(system, 7, "unloaded")
    reply = await chat(system)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "model_unloaded")
    error = (await system.api("POST", "start", {"model_a": "stable", "model_b": "second"}, expect=409))["error"]
    assert (error["code"], error["param"]) == ("model_unloaded", "model_b")
    status, shown, _ = await cypria(system, "doctor", "--data-dir", str(system.data_dir))
    assert status == 0, shown
    assert "not loaded: second" in shown
    assert (await cypria(system, "models", "load", "second"))[0] == 0
    await settled(system, 8)


async def _survives_its_worker(system: System) -> None:
    before = {row["worker"] for row in (await entry(system))["by_worker"]}
    system.signal("inference", signal.SIGKILL)

    async def both_again() -> bool:
        shown = await entry(system)
        now = {row["worker"] for row in shown["by_worker"]}
        return len(now - before) == 1 and shown["ready_workers"] == len(now) == 2 and shown["entry"]["stage"] == "settled"

    await eventually(both_again, 90, 0.2)
    assert {row["generation"] for row in (await entry(system))["by_worker"]} == {8}


async def _comes_back_on_demand(system: System) -> None:
    shown = await settled(system, 9, "unloaded")
    assert shown["entry"]["spec"]["path"] == str(MODELS / "stable")
    assert (shown["entry"]["actor"], "unused for" in shown["entry"]["reason"]) == ("keeper", True)

    async def is_served() -> bool:
        reply = await chat(system)
        assert reply.status_code in {200, 503}
        if reply.status_code == 503:
            assert reply.headers["retry-after"]
        # Nobody else asks: it may be unloaded again before it is looked at.
        return bool(reply.status_code == 200 and (await entry(system))["entry"]["actor"] == "demand")

    await eventually(is_served, 60, 0.1)


async def _is_removed(system: System) -> None:
    assert (await cypria(system, "models", "remove", "second"))[0] == 0
    assert (await chat(system)).status_code == 404
    await system.api("GET", "models/second", expect=404)
    assert [model["name"] for model in (await system.api("GET", "models"))["models"]] == ["stable"]
