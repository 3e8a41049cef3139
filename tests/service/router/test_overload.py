"""Full workers, queues and a worker that stops: a real router, real worker processes, a real upstream."""

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import yaml

from schemas.v1.common import Outcome
from services._runtime.server import die_with_parent
from tests.fakes.openai_server import FakeOpenAI
from tests.harness import environment, eventually
from tests.service.router.rig import KEYS, Rig, bearer, chat, events

ROOT = Path(__file__).resolve().parents[3]


@contextlib.asynccontextmanager
async def workers(rig: Rig, folder: Path, *models: dict[str, Any]) -> AsyncIterator[list[subprocess.Popen[bytes]]]:
    """A worker process for each entry, of the model "stable", once the router knows them all."""
    nats = {"servers": [rig.nats.url], "user": "inference", "password": rig.nats.embedded.passwords["inference"]}
    found = []
    with contextlib.ExitStack() as stack:
        for number, model in enumerate(models):
            config = folder / f"worker{number}.yaml"
            entry = {"name": "stable", "engine": "openai", **model}
            config.write_text(yaml.safe_dump({"nats": nats, "models": [entry], "data_dir": str(folder / f"data{number}")}))
            sink = stack.enter_context((folder / f"worker{number}.log").open("wb"))
            process = subprocess.Popen(
                [sys.executable, "-m", "services.inference", "--config", str(config)], cwd=ROOT, env=environment(),
                stdout=sink, stderr=sink, preexec_fn=lambda: die_with_parent(signal.SIGKILL),
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.kill)
            found.append(process)
        await eventually(lambda: len(rig.path.table.ready("stable")) == len(models), 60)
        yield found


async def timed(rig: Rig, **fields: Any) -> tuple[int, float, str]:
    began = time.monotonic()
    response = await rig.post(**fields)
    return response.status_code, time.monotonic() - began, response.headers.get("retry-after", "")


async def test_a_full_worker_s_requests_go_to_another_and_only_when_all_are_full_to_nobody(rig: Rig, tmp_path: Path) -> None:
    async with (
        FakeOpenAI() as fake,
        workers(
            rig, tmp_path, {"base_url": fake.base_url, "max_concurrency": 1, "max_queue": 0},
            {"base_url": fake.base_url, "max_concurrency": 8, "max_queue": 0},
        ),
    ):  # fmt: skip
        fake.behaviour.latency_s = 0.5
        for _ in range(3):
            answers = await asyncio.gather(*(timed(rig) for _ in range(9)))
            assert [status for status, _, _ in answers] == [200] * 9
        assert fake.seen.most_running == 9
        fake.behaviour.latency_s = 2.0
        answers = await asyncio.gather(*(timed(rig) for _ in range(20)))
        refused = [answer for answer in answers if answer[0] == 503]
        assert len(refused) == 11
        assert all(seconds < 1.0 and 1 <= int(retry_after) <= 10 for _, seconds, retry_after in refused)


async def test_a_stopped_worker_gets_nothing_after_a_second_and_what_it_had_is_served_elsewhere(rig: Rig, tmp_path: Path) -> None:
    async with FakeOpenAI() as one, FakeOpenAI() as two:
        for fake in (one, two):
            fake.behaviour.latency_s = 0.05
        async with workers(rig, tmp_path, {"base_url": one.base_url}, {"base_url": two.base_url}) as (stopped, _):
            done, answers = asyncio.Event(), []

            async def caller() -> None:
                while not done.is_set():
                    answers.append(await timed(rig))

            callers = [asyncio.create_task(caller()) for _ in range(8)]
            gone_after: list[float] = []
            while len(gone_after) < 3 and min(gone_after, default=9.0) >= 1.0:  # a busy machine may hold this process up
                await eventually(lambda: len(rig.path.table.ready("stable")) == 2 and one.seen.running)
                stopped.send_signal(signal.SIGSTOP)
                began = time.monotonic()
                await eventually(lambda: len(rig.path.table.ready("stable")) == 1)
                gone_after.append(time.monotonic() - began)
                before, served = len(one.seen.bodies), len(two.seen.bodies)
                await eventually(lambda least=served + 50: len(two.seen.bodies) > least)
                assert len(one.seen.bodies) == before
                stopped.send_signal(signal.SIGCONT)
            done.set()
            await asyncio.gather(*callers)
            assert min(gone_after) < 1.0
            assert {status for status, _, _ in answers} == {200}
            assert [seconds for _, seconds, _ in answers if seconds > 0.5], "some were on it when it stopped"
            await eventually(lambda: len(rig.path.table.ready("stable")) == 2)


async def test_what_waited_in_one_queue_has_only_the_rest_of_its_time_elsewhere(rig: Rig) -> None:
    first = await rig.worker("stable", mode="late_reset:0.4", timeout_ms=1000)
    response = asyncio.create_task(rig.post(stream=True))
    await eventually(lambda: first.requests)
    second = await rig.worker("stable", mode="ok", timeout_ms=1000)
    answer = await response
    assert events(answer.text)[-1] == "[DONE]"
    assert first.requests[0].deadline_ms == 1000
    assert 300 < second.requests[0].deadline_ms < 620
    second.mode = first.mode = "late_reset:0.97"
    status, seconds, retry_after = await timed(rig)
    assert (status, retry_after, len(first.requests) + len(second.requests)) == (503, "7", 3)
    assert seconds < 1.5


async def test_a_canary_s_queue_that_is_full_is_the_canary_s_and_stable_serves(rig: Rig) -> None:
    await rig.worker("stable")
    await rig.worker("canary", mode="reset")
    await rig.worker("canary", mode="reset")
    await rig.start_test(traffic_split_percent=100)
    response = await rig.post()
    assert (response.status_code, response.json()["model"], response.headers["x-ab-test-variant"]) == (200, "stable", "b")
    (fact,) = await rig.facts()
    assert (fact.variant, fact.outcome, fact.fallback) == ("b", Outcome.REJECTED, True)


async def test_workers_know_callers_by_their_keys_over_http_and_bus(rig: Rig) -> None:
    worker = await rig.worker("stable")
    for key in ("client", "viewer"):
        assert (await rig.client.post("/v1/chat/completions", json={"model": "stable"}, headers=bearer(key))).status_code == 200
        nc = await rig.nats.connect("caller")
        message = await nc.request("cypria.request.chat", json.dumps({"model": "stable"}).encode(), timeout=10,
                                   headers={"Authorization": f"Bearer {KEYS[key]}"})  # fmt: skip
        assert message.headers["Cypria-Status"] == "200"
        await nc.close()
    assert [head.caller for head in worker.requests] == ["client", "client", "viewer", "viewer"]
    for user in ("ann", "ann", "bob"):
        assert (await rig.post(user=user)).status_code == 200
    ann, again, bob = [head.caller for head in worker.requests[4:]]
    assert ann == again != bob
    assert re.fullmatch(r"client/[0-9a-f]{16}", ann), "who it is stays with the router"


async def test_one_who_sends_a_thousand_does_not_keep_another_waiting(rig: Rig, tmp_path: Path) -> None:
    async with (
        FakeOpenAI() as fake,
        workers(rig, tmp_path, {"base_url": fake.base_url, "max_concurrency": 4, "max_queue": 2000}),
    ):
        fake.behaviour.latency_s = 0.02
        nc = await rig.nats.connect("caller")
        body, headers = json.dumps(chat(max_tokens=1)).encode(), {"Authorization": f"Bearer {KEYS['client']}"}
        flood = [asyncio.create_task(nc.request("cypria.request.chat", body, timeout=60, headers=headers)) for _ in range(1000)]
        await eventually(lambda: any(w.beat.queued > 500 for w in rig.path.table.ready("stable")))
        before = fake.seen.finished
        answer = await rig.client.post("/v1/chat/completions", headers=bearer("viewer"), content=body)
        others = fake.seen.finished - before
        assert answer.status_code == 200
        assert others < 40, "of the others, before this one"
        assert {message.headers["Cypria-Status"] for message in await asyncio.gather(*flood)} == {"200"}
        await nc.close()
