"""Every way in which a test may end, and a stable model that is bad meanwhile, as people and other systems hear of it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services._cli.load import Load, Tally, drive
from services.alerts.domain.signing import verify
from tests.e2e.conftest import engine_config
from tests.fakes.openai_server import Behaviour, FakeOpenAI
from tests.harness import eventually
from tests.service.alerts.receivers import Got, Receiver
from tests.system import System, running

Told = tuple[str, str, bool]
CACHE = "/v1/dtesn/cache/control"
TEMPERS = ("fine", "print", "hang", "crash")


class Heard:
    """What arrived of a test, in the order in which it came: level, title, whether it is over."""

    def __init__(self, system: System, receiver: Receiver, others: Receiver) -> None:
        self.system = system
        self.others = others
        self._receiver = receiver

    def of(self, test_id: str) -> list[Told]:
        alerts = [got.body["data"] for got in self._receiver.got if got.body["data"].get("test_id") == test_id]
        return [(one["level"], one["title"], one.get("resolved", False)) for one in alerts]

    async def until(self, test_id: str, level: str, title: str, *, over: bool = False, patience_s: float = 90) -> None:
        await eventually(
            lambda: any(told[0] == level and title in told[1] and told[2] == over for told in self.of(test_id)), patience_s
        )


    def noted(self, name: str) -> list[dict[str, Any]]:
        """What an Echo system wrote down."""
        log = self.system.folder / name
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def cached(self) -> list[tuple[str, list[str]]]:
        """What DTESN's cache was asked, but for whether it is there."""
        asked = [got.body for got in self.others.got if got.path == CACHE]
        return [(one["action"], one["targets"]) for one in asked if one["action"] != "get_metrics"]


def integrations(folder: Path, url: str) -> list[dict[str, Any]]:
    """All there are; of the Python ones some that nobody would want."""
    def python(entry: str, target: str, log: str, temper: str = "") -> dict[str, Any]:
        options = {"target": f"tests.fakes.echo:{target}", "arguments": {"log": str(folder / log), "temper": temper}}
        return {"type": "subscriber", "entry_point": entry, "name": log, "options": options, "window_seconds": 2}

    return [
        {"type": "dtesn", "url": url}, python("echo_self", "Engine", "engine"),
        *(python("aar", "Orchestrator", temper, temper) | {"timeout_seconds": 2 if temper == "hang" else 60} for temper in TEMPERS),
        {"type": "webhook", "name": "lake", "url": f"{url}/lake", "secret": "lake-secret", "window_seconds": 2,
         "events": ["test.*", "metric_window"]},
    ]  # fmt: skip


def cache(_number: int, got: Got) -> tuple[int, Any, dict[str, str]]:
    """DTESN's control endpoint as it is: it has no action to warm a model."""
    return (400, {"detail": "unknown"}, {}) if got.path == CACHE and got.body["action"] == "optimize_for_model" else (200, {}, {})


@pytest.fixture
async def heard(
    tmp_path_factory: pytest.TempPathFactory, upstreams: tuple[FakeOpenAI, FakeOpenAI]
) -> AsyncIterator[Heard]:
    folder = tmp_path_factory.mktemp("stories")
    async with Receiver().running() as receiver, Receiver(cache).running() as others:
        config = engine_config(*upstreams)
        hook = {"type": "webhook", "url": receiver.url, "secret": "s"}
        config["alerts"] = {"destinations": [hook], "public_url": "https://cypria.company.com"}
        config["integrations"] = integrations(folder, others.url)
        async with running(folder, config) as system:
            done = asyncio.Event()
            load = Load(system.url, system.key, "stable", 20)
            traffic = asyncio.create_task(drive(load, seconds=3000, tally=Tally(), stop=done.is_set))
            try:
                yield Heard(system, receiver, others)
            finally:
                done.set()
                await traffic


async def a_promotion(heard: Heard, stable: FakeOpenAI, canary: FakeOpenAI) -> str:
    """A canary that is better in errors and latency, promoted; other systems hear of it whatever one of them does."""
    system = heard.system
    stable.behaviour = Behaviour(latency_s=0.1, error_rate=0.3)
    canary.behaviour = Behaviour(latency_s=0.01)
    test_id = await system.start_test(traffic_split_percent=50, success_criteria={"min_sample_size": 20}, auto_rollback=False)

    async def ready() -> bool:
        return "all conditions of a promotion hold" in ((await system.status(test_id))["verdict"] or {}).get("summary", "")

    await eventually(ready, 90, 0.3)
    result = await system.api("POST", "stop", {"test_id": test_id, "reason": "good"})
    assert result["decision"] == "promote_b"
    stable.behaviour = canary.behaviour = Behaviour()

    def decided(temper: str) -> list[dict[str, Any]]:
        return [one for one in heard.noted(temper) if one["what"] == "ab_test_decided" and one["test"] == test_id]

    await eventually(lambda: decided("fine") and decided("print") and heard.noted("engine"))
    (told,) = decided("fine")
    assert {name: one["request_count"] for name, one in told["data"]["variants"].items()} == {
        name.removeprefix("variant_"): one["request_count"] for name, one in result["metrics_summary"].items()
    }
    (evolved,) = heard.noted("engine")
    assert (evolved["base_model"], evolved["improved_model"]) == ("stable", "canary")
    assert evolved["performance_gain"] == told["data"]["performance_gain_percent"] > 50
    await eventually(lambda: len(heard.cached()) == 2)
    assert heard.cached() == [("invalidate_model", ["stable"]), ("optimize_for_model", ["canary"])]

    def lake() -> list[Got]:
        return [got for got in heard.others.got if got.path == "/lake"]

    kinds = {"cypria.test.started.v1", "cypria.test.completed.v1", "cypria.integration.metric_window.v1"}
    await eventually(lambda: kinds <= {got.body["type"] for got in lake()})
    for got in lake():
        stamp, signature = int(got.headers["Cypria-Timestamp"]), got.headers["Cypria-Signature"]
        assert verify("lake-secret", stamp, got.body["id"], got.raw, signature, time.time())
    await eventually(lambda: heard.noted("hang") and heard.noted("crash"))
    assert heard.noted("hang")[0]["what"] == heard.noted("crash")[0]["what"] == "configured"

    async def failing() -> dict[str, Any] | None:
        states = {one["integration"]: one for one in (await system.api("GET", "integrations"))["integrations"]}
        ill = [(states[name]["last"] or {}).get("reason") or "" for name in ("hang", "crash")]
        return states if "no answer within 2 s" in ill[0] and "SIGSEGV" in ill[1] else None

    states = await eventually(failing, 60, 0.3)
    assert not any(states[name]["dead_letters"] for name in ("dtesn", "engine", "fine", "print", "lake"))
    return test_id


async def test_every_end_of_a_test_and_a_bad_stable_model_are_told_once(
    heard: Heard, upstreams: tuple[FakeOpenAI, FakeOpenAI]
) -> None:
    system, (stable, canary) = heard.system, upstreams
    promoted = await a_promotion(heard, stable, canary)
    expires = await system.start_test(traffic_split_percent=50, test_duration_minutes=0.05)
    await heard.until(expires, "INFO", "Test completed")

    stopped = await system.start_test(traffic_split_percent=50)
    stable.behaviour = Behaviour(status=500)
    await heard.until(stopped, "CRITICAL", "The stable model is bad")
    stable.behaviour = Behaviour()
    await heard.until(stopped, "INFO", "The stable model is well again", over=True, patience_s=90)
    await system.api("POST", "stop", {"test_id": stopped})
    await heard.until(stopped, "INFO", "Test completed")

    by_hand = await system.start_test(traffic_split_percent=50)
    await system.api("POST", "rollback", {"test_id": by_hand, "reason": "looks odd"})
    await heard.until(by_hand, "WARNING", "Canary rolled back by an operator")

    automatic = await system.start_test(traffic_split_percent=50)
    canary.behaviour = Behaviour(status=500)
    await heard.until(automatic, "EMERGENCY", "")
    canary.behaviour = Behaviour()

    async def over() -> bool:
        return (await system.status(automatic))["status"] == "rolled_back"

    await eventually(over)
    await eventually(lambda: len(heard.cached()) == 4)
    assert heard.cached()[2:] == [("invalidate_model", ["canary"])] * 2
    assert [one["what"] for one in heard.noted("engine")] == ["evolved"]
    for test_id in (promoted, expires, stopped, by_hand, automatic):
        told: list[Any] = heard.of(test_id)
        assert len(told) == len(set(told)), told
        assert sum(level == "EMERGENCY" for level, _, _ in told) == (test_id == automatic), told
