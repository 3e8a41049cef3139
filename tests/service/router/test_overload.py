"""Full workers, queues and a worker that stops: a real router, real worker processes, a real upstream."""

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from schemas.v1.common import Outcome
from services._runtime.clock import monotonic
from services._runtime.server import die_with_parent
from services.router.edge import serve
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


async def test_a_full_worker_s_requests_go_to_another_and_only_when_all_are_full_to_nobody(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "HOLD_S", 600.0)  # whoever waited for a place would get no answer at all
    async with (
        FakeOpenAI() as fake,
        workers(
            rig, tmp_path, {"base_url": fake.base_url, "max_concurrency": 1, "max_queue": 0},
            {"base_url": fake.base_url, "max_concurrency": 8, "max_queue": 0},
        ),
    ):  # fmt: skip
        for _ in range(3):
            gate = fake.behaviour.gate = asyncio.Event()
            asked = [asyncio.create_task(rig.post()) for _ in range(9)]
            await eventually(lambda: fake.seen.running == 9)
            gate.set()
            assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200] * 9
            await eventually(lambda: all(worker.beat.free == worker.beat.capacity for worker in rig.path.table.ready("stable")))
        gate = fake.behaviour.gate = asyncio.Event()
        asked = [asyncio.create_task(rig.post()) for _ in range(20)]
        await eventually(lambda: fake.seen.running == 9 and sum(one.done() for one in asked) == 11)
        refused = [one.result() for one in asked if one.done()]
        assert [answer.status_code for answer in refused] == [503] * 11, "at once, while the others are served"
        assert all(1 <= int(answer.headers["retry-after"]) <= 10 for answer in refused)
        gate.set()
        assert Counter(answer.status_code for answer in await asyncio.gather(*asked)) == {200: 9, 503: 11}


async def test_a_stopped_worker_gets_nothing_more_and_what_it_had_is_served_elsewhere(rig: Rig, tmp_path: Path) -> None:
    async with (
        FakeOpenAI() as one, FakeOpenAI() as two,
        workers(rig, tmp_path, {"base_url": one.base_url}, {"base_url": two.base_url}) as (stopped, _),
    ):  # fmt: skip
        done, statuses, served = asyncio.Event(), set(), [0] * 8

        async def caller(number: int) -> None:
            while not done.is_set():
                statuses.add((await rig.post()).status_code)
                served[number] += 1

        callers = [asyncio.create_task(caller(number)) for number in range(len(served))]
        gate = one.behaviour.gate = asyncio.Event()
        await eventually(lambda: one.seen.running)  # and they will not be answered there
        stopped.send_signal(signal.SIGSTOP)
        await eventually(lambda: len(rig.path.table.ready("stable")) == 1)
        before, so_far = len(one.seen.bodies), list(served)
        await eventually(lambda: all(now > then + 1 for now, then in zip(served, so_far, strict=True)))
        assert len(one.seen.bodies) == before
        gate.set()
        stopped.send_signal(signal.SIGCONT)
        done.set()
        await asyncio.gather(*callers)
        assert statuses == {200}
        await eventually(lambda: len(rig.path.table.ready("stable")) == 2)


async def test_what_waited_in_one_queue_has_only_the_rest_of_its_time_elsewhere(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await rig.worker("stable", mode="late_reset", timeout_ms=60_000)
    response = asyncio.create_task(rig.post(stream=True))
    await eventually(lambda: first.requests)
    waits_since = monotonic()
    second = await rig.worker("stable", mode="ok", timeout_ms=60_000)
    waited_s = monotonic() - waits_since
    first.told.set()
    answer = await response
    assert events(answer.text)[-1] == "[DONE]"
    assert first.requests[0].deadline_ms == 60_000
    assert 0 < second.requests[0].deadline_ms <= 60_000 - 1000 * waited_s + 1
    second.mode = first.mode = "reset"
    monkeypatch.setattr(serve, "LEAST_S", 60.0)  # what is left is not worth a try
    refused = await rig.post()
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "7")
    assert len(first.requests) + len(second.requests) == 3


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
        message = await nc.request("cypria.request.chat", json.dumps({"model": "stable"}).encode(), timeout=60,
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
        gate = fake.behaviour.gate = asyncio.Event()
        nc = await rig.nats.connect("caller")
        body, headers = json.dumps(chat(max_tokens=1)).encode(), {"Authorization": f"Bearer {KEYS['client']}"}
        flood = [asyncio.create_task(nc.request("cypria.request.chat", body, timeout=120, headers=headers)) for _ in range(1000)]
        await eventually(lambda: [worker.beat.queued for worker in rig.path.table.ready("stable")] == [996])
        another = asyncio.create_task(rig.client.post("/v1/chat/completions", headers=bearer("viewer"), json=chat(max_tokens=2)))
        await eventually(lambda: [worker.beat.queued for worker in rig.path.table.ready("stable")] == [997])
        gate.set()
        assert (await another).status_code == 200
        place = [sent["max_tokens"] for sent in fake.seen.bodies].index(2)
        assert place < 40, "behind so many of the others"
        assert {message.headers["Cypria-Status"] for message in await asyncio.gather(*flood)} == {"200"}
        await nc.close()
