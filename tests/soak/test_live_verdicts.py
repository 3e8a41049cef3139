"""Verdicts on the running system, many times over: how soon a bad canary is out, and that a good one stays.

Several tests run at once, each on a pair of models of its own in front of the same two upstreams; `LIVE_RUNS` is how
many times each regression is tried.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from benchmarks.report import say
from services._cli.load import Load, Tally, drive
from tests.fakes.openai_server import Behaviour, FakeOpenAI
from tests.harness import eventually
from tests.system import System, running

pytestmark = [pytest.mark.soak, pytest.mark.timeout(2400)]

RUNS = int(os.environ.get("LIVE_RUNS", "40"))
PAIRS = 4
RATE = 60.0
SHARE = 10
NO_MARGINS = {"max_error_rate_increase_percent": 0, "max_latency_increase_percent": 0}


@dataclass
class Live:
    """The system and its upstreams."""

    system: System
    stable: FakeOpenAI
    canary: FakeOpenAI

    def behave(self, stable: Behaviour, canary: Behaviour) -> None:
        self.stable.behaviour, self.canary.behaviour = stable, canary

    async def begin(self, pair: int, **body: Any) -> str:
        models = {"model_a": f"stable-{pair}", "model_b": f"canary-{pair}"}
        started = await self.system.api("POST", "start", models | {"traffic_split_percent": SHARE, **body})
        return str(started["test_id"])

    async def variant(self, user: str) -> str:
        """The arm that answers, or fails, a request of this user."""
        body = {"model": "stable-0", "messages": [{"role": "user", "content": "hello"}], "user": user, "max_tokens": 4}
        response = await self.system.client.post("/v1/chat/completions", json=body)
        return response.headers["x-ab-test-variant"]

    async def run(
        self, pair: int, most: int, seed: int, users: int = 0, rate: float = RATE, **body: Any
    ) -> tuple[dict[str, Any], Tally]:
        """A test until it is rolled back or ``most`` requests were sent; its result, and what was sent till then."""
        test_id = await self.begin(pair, **body)
        ended = asyncio.Event()

        async def watch() -> None:
            async def rolled_back() -> bool:
                return bool((await self.system.status(test_id))["status"] == "rolled_back")

            await eventually(rolled_back, 3600, 0.05)
            ended.set()

        watching = asyncio.create_task(watch())
        load = Load(self.system.url, self.system.key, f"stable-{pair}", rate, users=users, max_tokens=4, seed=seed)
        tally = await drive(load, requests=most, stop=ended.is_set)
        watching.cancel()
        if not ended.is_set():
            await self.system.api("POST", "stop", {"test_id": test_id})
        return dict(await self.system.api("GET", f"tests/{test_id}")), tally


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    async with FakeOpenAI() as stable, FakeOpenAI() as canary:
        models = [
            {"name": f"{name}-{pair}", "engine": "openai", "base_url": upstream.base_url, "timeout_seconds": 10,
             "cost": {"completion_per_1k": price}}
            for pair in range(PAIRS) for name, upstream, price in (("stable", stable, 2.0), ("canary", canary, 1.5))
        ]  # fmt: skip
        config = {"models": models, "security": {"rate_limit": {"control_per_minute": 0, "control_burst": 1000}}}
        async with running(tmp_path_factory.mktemp("live"), config) as system:
            yield Live(system, stable, canary)


async def repeated(live: Live, most: int, **body: Any) -> list[int]:
    """Requests sent until the canary was out, one figure for each run; those that stayed count as ``most`` and more."""
    sent: list[int] = []
    numbers = iter(range(RUNS))

    async def lane(pair: int) -> None:
        for number in numbers:
            result, tally = await live.run(pair, most * 3, seed=number, **body)
            out = result["status"] == "rolled_back"
            sent.append(tally.sent if out else most * 3 + 1)
            say(f"run {number}: {tally.sent} requests, {result['reason']}")

    await asyncio.gather(*(lane(pair) for pair in range(PAIRS)))
    say(f"requests until out, sorted: {sorted(sent)}")
    return sorted(sent)


def share_within(sent: list[int], most: int) -> float:
    return sum(one <= most for one in sent) / len(sent)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("criteria", "most"), [(NO_MARGINS, 1200), ({}, 1500)], ids=["no margins", "default margins"])
async def test_a_canary_with_fifteen_percent_errors_is_out(live: Live, criteria: dict[str, Any], most: int) -> None:
    live.behave(Behaviour(error_rate=0.01), Behaviour(error_rate=0.15))
    assert share_within(await repeated(live, most, success_criteria=criteria), most) >= 0.95


@pytest.mark.asyncio(loop_scope="module")
async def test_a_canary_twice_as_slow_is_out(live: Live) -> None:
    live.behave(Behaviour(latency_s=0.05, latency_sigma=0.5), Behaviour(latency_s=0.1, latency_sigma=0.5))
    # slower than the others: what is sent while a window closes counts, and takes more of these fewer requests
    assert share_within(await repeated(live, 500, rate=30.0, success_criteria=NO_MARGINS), 500) >= 0.95


@pytest.mark.asyncio(loop_scope="module")
async def test_identical_arms_stay_for_twenty_thousand_requests(live: Live) -> None:
    same = Behaviour(error_rate=0.01, latency_s=0.02, latency_sigma=0.5)
    live.behave(same, same)
    runs = [live.run(pair, 20_000 // PAIRS, seed=pair, success_criteria=NO_MARGINS) for pair in range(PAIRS)]
    for result, _ in await asyncio.gather(*runs):
        assert result["status"] == "completed", result["reason"]


@pytest.mark.asyncio(loop_scope="module")
async def test_one_abusive_user_takes_nobody_out(live: Live) -> None:
    """Everything that one user of B sends fails, and that user sends half as much as all others together."""
    live.behave(Behaviour(), Behaviour())
    test_id = await live.begin(0, success_criteria=NO_MARGINS)
    number = 0
    while await live.variant(f"abuser-{number}") != "b":
        number += 1
    abuser = f"abuser-{number}"
    live.behave(Behaviour(bad_users=frozenset({abuser})), Behaviour(bad_users=frozenset({abuser})))
    done = asyncio.Event()

    async def abuse() -> int:
        count = 0
        while not done.is_set():
            await live.variant(abuser)
            count += 1
        return count

    abusing = asyncio.create_task(abuse())
    load = Load(live.system.url, live.system.key, "stable-0", RATE, users=400, max_tokens=4)
    await drive(load, requests=4000)
    done.set()
    assert await abusing > 400
    assert (await live.system.status(test_id))["status"] == "running"
    await live.system.api("POST", "stop", {"test_id": test_id})


@pytest.mark.asyncio(loop_scope="module")
async def test_a_single_error_of_the_canary_is_none_of_its_own(live: Live) -> None:
    live.behave(Behaviour(), Behaviour())
    test_id = await live.begin(0, success_criteria=NO_MARGINS)
    load = Load(live.system.url, live.system.key, "stable-0", RATE, max_tokens=4)
    await drive(load, requests=200)
    live.canary.behaviour = Behaviour(status=500)
    before = len(live.canary.seen.paths)
    await drive(load, seconds=60, stop=lambda: len(live.canary.seen.paths) > before)
    live.canary.behaviour = Behaviour()
    tally = await drive(load, requests=1500)
    assert tally.by_variant["b"] > 0
    assert (await live.system.status(test_id))["status"] == "running"
    await live.system.api("POST", "stop", {"test_id": test_id})


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("metric", "errors_of_a", "words"),
    [("error_rate", 0.05, "B's error_rate is -100.0 %"), ("cost", 0.0, "B's cost is -25.0 %")],
)
async def test_a_canary_that_never_fails_or_costs_less_each_time_is_promoted(
    live: Live, metric: str, errors_of_a: float, words: str
) -> None:
    """By the stable model's errors alone, and by costs that are all the same."""
    live.behave(Behaviour(error_rate=errors_of_a, latency_s=0.02), Behaviour(latency_s=0.02))
    criteria = {"negligible_error_rate_percent": 1.0, "max_latency_increase_percent": 400}
    limits = {"max_error_rate_percent": 50}
    result, tally = await live.run(
        0, 4000, seed=1, primary_metric=metric, traffic_split_percent=50, success_criteria=criteria, failure_criteria=limits
    )
    say(f"{tally.sent} requests: {result['reason']}")
    assert result["decision"] == "promote_b", result["reason"]
    assert result["reason"].startswith(words)
