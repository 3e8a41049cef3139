"""The main job as its users run it: split, count, decide, take out, and survive a restart meanwhile. One system, in order."""

import asyncio
import contextlib
import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import openai
import psutil
import pytest
import pytest_asyncio

from cypria import AsyncClient, Client, InvalidRequest, NotFound
from services._cli.load import Load, Tally, drive
from tests.e2e.conftest import engine_config
from tests.fakes.openai_server import FakeOpenAI
from tests.harness import alive, environment, eventually
from tests.system import ROOT, System, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

TIMED_S = 24
KINDS = ("kept-", "timed-")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def canary() -> AsyncIterator[FakeOpenAI]:
    async with FakeOpenAI() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory, canary: FakeOpenAI) -> AsyncIterator[System]:
    """In front of two upstreams, which are served under other names as well, for tests that go on beside others."""
    async with FakeOpenAI() as stable:
        config = engine_config(stable, canary)
        models = config["models"]
        config["models"] = [{**model, "name": kind + model["name"]} for kind in ("", *KINDS) for model in models]
        async with running(tmp_path_factory.mktemp("system"), config) as system:
            yield system


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def restarted(system: System) -> dict[str, tuple[str, dict[str, int]]]:
    """By kind, the test that ran when the system was stopped, with what each of its variants had served: one that
    goes on for long, and one that ends by itself, most likely after the restart. It is started on a copy of its data dir,
    as one that is restored from a backup. One more, ``ended``, was over before.
    """
    tests = {}
    over = await system.start_test(traffic_split_percent=10)
    await system.api("POST", "stop", {"test_id": over, "reason": "before the backup"})
    for kind, minutes in zip(KINDS, (10, TIMED_S / 60), strict=True):
        models = {"model_a": f"{kind}stable", "model_b": f"{kind}canary"}
        test_id = await system.start_test(**models, traffic_split_percent=50, test_duration_minutes=minutes)
        tally = await drive(Load(system.url, system.key, models["model_a"], 40), requests=60)
        tests[kind] = (test_id, dict(tally.by_variant))
    for test_id, seen in tests.values():
        await eventually(lambda t=test_id, s=seen: counted(system, t, s), 60, 0.2)
    assert await asyncio.to_thread(system.stop) == 0
    key, backup = system.key, system.folder / "backup"
    shutil.copytree(system.data_dir, backup, symlinks=True)  # docs/backup.md
    shutil.rmtree(system.data_dir)
    system.data_dir = backup
    await system.start()
    assert system.key == key
    return {**tests, "ended": (over, {})}


async def totals(system: System, test_id: str) -> dict[str, int]:
    """request_count by variant."""
    metrics = (await system.status(test_id))["metrics"] or {}
    return {name.removeprefix("variant_"): figures["request_count"] for name, figures in metrics.items()}


async def counted(system: System, test_id: str, expected: dict[str, int]) -> bool:
    return await totals(system, test_id) == expected


async def test_a_test_survives_a_restart(system: System, restarted: dict[str, tuple[str, dict[str, int]]]) -> None:
    test_id, seen = restarted["kept-"]
    state = await system.status(test_id)
    assert state["status"] == "running"
    assert state["traffic_split_percent"] == 50
    await eventually(lambda: counted(system, test_id, seen), 60, 0.2)


async def test_a_backup_has_the_history_with_its_reasons(
    system: System, restarted: dict[str, tuple[str, dict[str, int]]]
) -> None:
    over, _ = restarted["ended"]
    (listed,) = [one for one in (await system.api("GET", "history"))["tests"] if one["test_id"] == over]
    assert listed["reason"]
    audit = (await system.api("GET", "audit"))["records"]
    assert [one for one in audit if one["test_id"] == over and one["action"] == "stop"]


async def test_three_thousand_requests_are_split_as_asked_and_counted_exactly(system: System) -> None:
    test_id = await system.start_test(
        traffic_split_percent=20, success_criteria={"negligible_error_rate_percent": 2}
    )
    by_sdk = Tally()
    client = openai.AsyncOpenAI(base_url=f"{system.url}/v1", api_key=system.key, max_retries=0)

    async def with_sdk() -> None:
        for index in range(200):
            await through_sdk(client, by_sdk, stream=index % 2 == 0)

    plain, _ = await asyncio.gather(
        drive(Load(system.url, system.key, "stable", 150, users=0), requests=2400), with_sdk()
    )
    streamed = await drive(Load(system.url, system.key, "stable", 100, stream=True, seed=2), requests=400)
    await client.close()
    assert plain.failed == streamed.failed == by_sdk.failed == 0
    seen = plain.by_variant + streamed.by_variant + by_sdk.by_variant
    assert set(seen) == {"a", "b"}
    assert sum(seen.values()) == 3000
    assert abs(seen["b"] - 600) <= 4 * math.sqrt(3000 * 0.2 * 0.8)
    await eventually(lambda: counted(system, test_id, dict(seen)), 60, 0.2)
    result = await system.api("POST", "stop", {"test_id": test_id})
    summary = {name.removeprefix("variant_"): v["request_count"] for name, v in result["metrics_summary"].items()}
    assert summary == dict(seen)
    (listed,) = [one for one in (await system.api("GET", "history"))["tests"] if one["test_id"] == test_id]
    assert listed["decision"] == result["decision"]
    report = await system.api("GET", f"tests/{test_id}/report")
    assert report["configuration"]["success_criteria"]["negligible_error_rate_percent"] == 2
    errors = next(c for c in report["status"]["promotion"]["conditions"] if c["name"] == "errors_not_worse")
    assert errors["met"], "nobody has failed, which needs no comparison"
    assert errors["text"].endswith("; at most 2 % of B's is shown")


async def through_sdk(client: openai.AsyncOpenAI, tally: Tally, *, stream: bool) -> None:
    """One request as an application makes it."""
    messages: Any = [{"role": "user", "content": "Say something kind."}]
    raw = await client.chat.completions.with_raw_response.create(
        model="stable", messages=messages, max_tokens=16, stream=stream
    )
    text = ""
    if stream:
        async for chunk in raw.parse():
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
    else:
        text = raw.parse().choices[0].message.content or ""
    tally.record(raw.headers["x-ab-test-variant"], "200", 0.0, ok=bool(text))


async def test_a_dead_canary_is_out_within_seconds_and_no_user_notices(system: System, canary: FakeOpenAI) -> None:
    canary.behaviour.status = 500
    test_id = await system.start_test(traffic_split_percent=20)
    tally = Tally()
    state: dict[str, Any] = {}
    load = asyncio.create_task(
        drive(
            Load(system.url, system.key, "stable", 50),
            seconds=30,
            tally=tally,
            stop=lambda: state.get("status") == "rolled_back",
        )
    )

    async def rolled_back() -> bool:
        state.update(await system.status(test_id))
        return state["status"] == "rolled_back"

    await eventually(rolled_back, 60, 0.1)
    await load
    before = len(canary.seen.paths)
    after = await drive(Load(system.url, system.key, "stable", 50), requests=50)
    assert tally.failed == after.failed == 0
    assert len(canary.seen.paths) == before
    result = await system.api("GET", f"tests/{test_id}")
    assert result["status"] == "rolled_back"
    assert result["decision"] == "rollback"
    assert result["reason"]
    alerts = (await system.api("GET", "monitoring/alerts"))["alerts"]
    await eventually(lambda: any_rollback_alert(system, test_id), 60, 0.2)
    assert len([a for a in alerts if a["level"] == "EMERGENCY" and a["test_id"] == test_id]) <= 1


async def any_rollback_alert(system: System, test_id: str) -> bool:
    alerts = (await system.api("GET", "monitoring/alerts"))["alerts"]
    return any(a["level"] == "EMERGENCY" and a["test_id"] == test_id for a in alerts)


async def test_whoever_waits_for_a_verdict_gets_it_though_the_router_dies_meanwhile(
    system: System, canary: FakeOpenAI
) -> None:
    canary.behaviour.status = 0
    pipeline = asyncio.create_task(asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "services.cli", "start", "stable", "canary", "--split", "50", "--tag", "commit=c1", "--wait",
         "--timeout", "10m", "--json"],
        capture_output=True, text=True, cwd=ROOT, check=False,
        env=environment(PYTHONPATH=str(ROOT), CYPRIA_URL=system.url, CYPRIA_API_KEY=system.key),
    ))  # fmt: skip
    blocking = Client(system.url, api_key=system.key)
    told: list[str] = []
    kinds: list[str] = []
    async with AsyncClient(system.url, api_key=system.key) as client:

        async def begun() -> str | None:
            mine = [one.test_id for one in await client.running() if one.models["variant_a"] == "stable"]
            return mine[0] if mine else None

        async def listen() -> None:
            async with contextlib.aclosing(client.events()) as events:
                async for event in events:
                    kinds.append(event.name)

        test_id = await eventually(begun, 60, 0.3)
        listening = asyncio.create_task(listen())
        waiting = [
            asyncio.create_task(asyncio.to_thread(blocking.wait_for_verdict, test_id, 300, poll=0.5)),
            asyncio.create_task(client.wait_for_verdict(test_id, 300, lambda status: told.append(str(status)), poll=0.5)),
        ]
        load = asyncio.create_task(
            drive(Load(system.url, system.key, "stable", 40), seconds=300, stop=lambda: all(one.done() for one in waiting))
        )
        await eventually(lambda: "window" in kinds and told, 60, 0.1)
        system.signal("router", signal.SIGKILL)
        await eventually(lambda: "reconnected" in kinds, 90, 0.1)
        canary.behaviour.status = 500
        verdicts = await asyncio.wait_for(asyncio.gather(*waiting), 120)
        await eventually(lambda: "rollback" in kinds, 60, 0.1)
        listening.cancel()
        await load
        for verdict in verdicts:
            assert (verdict.test_id, verdict.decision, verdict.promoted) == (test_id, "rollback", False)
            assert verdict.reason
            assert verdict.rule
        assert told[0].startswith(f"{test_id} running; split 50 %; A ")
        assert told[-1].startswith(f"{test_id} rolled_back; A ")
        done = await asyncio.wait_for(pipeline, 60)
        assert done.returncode == 3, done.stderr
        said = json.loads(done.stdout)
        assert (said["test_id"], said["decision"], said["result"]["tags"]) == (test_id, "rollback", {"commit": "c1"})
        assert f"{test_id} rolled_back" in done.stderr
        assert len(done.stderr.splitlines()) < 12
        await what_else_a_client_asks(client, test_id)


async def what_else_a_client_asks(client: AsyncClient, test_id: str) -> None:
    """Every shape of an answer, from the edge itself."""
    assert [test.test_id async for test in client.history(1)] == [test_id]
    assert (await client.report(test_id)).result.decision == "rollback"
    assert test_id in await client.report(test_id, "markdown")
    assert "<html" in await client.report(test_id, "html")
    assert (await client.replay(test_id)).recorded
    assert await client.summary(test_id)
    assert await client.series(test_id)
    assert (await client.whoami())["role"] == "admin"
    assert [tick async for page in client.evidence(test_id) for tick in page.ticks]
    assert any(alert["test_id"] == test_id for alert in await client.alerts(limit=100))
    assert (await client.monitoring()).monitoring_active
    assert {"stable", "canary"} <= {model.name for model in await client.models()}
    assert (await client.model("stable")).by_worker
    assert (await client.plan_models(["stable"])).workers
    assert (await client.audit(limit=5)).records
    assert (await client.config())["models"]
    assert (await client.ready())["status"]
    assert await client.integrations() == []
    assert (await client.export_unit("nobody-at-all")).tests is not None
    made = await client.create_key("ci", "operator", expires_in_days=1)
    assert made.key
    assert (await client.rotate_key("ci", overlap_seconds=0)).key not in {None, made.key}
    assert (await client.revoke_key("ci")).state == "revoked"
    assert "ci" in {key.name for key in await client.keys()}
    with pytest.raises(NotFound, match="is not running"):
        await client.set_split(5, test_id)
    with pytest.raises(InvalidRequest) as refused:
        await client.start("stable", "canary", traffic_split_percent=101)
    assert refused.value.param == "traffic_split_percent"
    with pytest.raises(InvalidRequest, match="token"):
        await client.feedback("forged", thumbs="up")


async def test_a_test_ends_by_itself_with_a_decision_also_after_a_restart(
    system: System, restarted: dict[str, tuple[str, dict[str, int]]]
) -> None:
    test_id, seen = restarted["timed-"]

    async def ended() -> bool:
        return (await system.status(test_id))["status"] == "completed"

    await eventually(ended, 90, 0.3)
    result = await system.api("GET", f"tests/{test_id}")
    assert result["decision"] in {"inconclusive", "keep_a", "promote_b"}
    assert any(character.isdigit() for character in result["reason"])
    lasted_s = datetime.fromisoformat(result["end_time"]) - datetime.fromisoformat(result["start_time"])
    assert lasted_s.total_seconds() >= TIMED_S - 0.5
    figures = result["metrics_summary"].items()
    assert {name.removeprefix("variant_"): variant["request_count"] for name, variant in figures} == seen


async def test_the_system_stops_cleanly_and_leaves_nobody_behind(system: System) -> None:
    assert system.process
    children = [child.pid for child in psutil.Process(system.process.pid).children(recursive=True)]
    assert len(children) >= 6
    system.process.kill()
    system.process.wait(60)
    await eventually(lambda: not alive(children))
