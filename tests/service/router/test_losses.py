"""What survives the loss of a worker, the bus, or the router itself."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from services._runtime.bus import Bus
from services.router.adapters.facts import FactPublisher
from services.router.domain.facts import Batcher, Fact
from services.router.edge import serve
from tests.harness import NatsServer, environment, eventually
from tests.service.router.rig import MODELS, SECURITY, Rig, bearer, chat, events, read_batches, running

ROOT = Path(__file__).resolve().parents[3]


@asynccontextmanager
async def worker_process(rig: Rig, model: str, name: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A worker with a process of its own, for signals."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.frame_worker", rig.nats.url, rig.nats.embedded.passwords["inference"], model, name],
        cwd=ROOT,
    )  # fmt: skip
    try:
        await eventually(lambda: name in rig.path.table._models.get(model, {}))
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


async def test_a_stopped_worker_is_left_and_a_killed_one_too(rig: Rig) -> None:
    async with (
        worker_process(rig, "stable", "w00000001") as one,
        worker_process(rig, "stable", "w00000002") as two,
    ):
        one.send_signal(signal.SIGSTOP)
        responses = await asyncio.gather(*(rig.post() for _ in range(40)))
        assert {response.status_code for response in responses} == {200}
        assert "w00000001" not in rig.path.table._models["stable"]
        one.send_signal(signal.SIGCONT)
        await eventually(lambda: "w00000001" in rig.path.table._models["stable"])
        two.kill()
        responses = await asyncio.gather(*(rig.post() for _ in range(40)))
        assert {response.status_code for response in responses} == {200}


async def test_a_lone_worker_that_pauses_answers_when_it_goes_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HOLD_S", 60.0)
    async with worker_process(rig, "stable", "w00000001") as lone:
        lone.send_signal(signal.SIGSTOP)
        waiting = asyncio.create_task(rig.post())
        await eventually(lambda: rig.path.table.choose("stable") is None)
        lone.send_signal(signal.SIGCONT)
        assert (await waiting).status_code == 200


async def test_new_requests_wait_for_a_killed_bus_and_no_fact_is_lost(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HOLD_S", 60.0)
    await rig.worker("stable")
    await rig.worker("canary")
    await rig.start_test(traffic_split_percent=50)
    before = await asyncio.gather(*(rig.post() for _ in range(20)))
    rig.nats.kill()
    await eventually(lambda: not rig.path.client.connected)
    assert "bus" in rig.path.degraded()
    assert (await rig.client.get("/ready")).status_code == 503
    waiting = [asyncio.create_task(rig.post()) for _ in range(20)]
    rig.nats.start()
    after = await asyncio.gather(*waiting)
    assert {response.status_code for response in [*before, *after]} == {200}
    counted: dict[str, int] = {}
    for response in [*before, *after]:
        variant = response.headers["x-ab-test-variant"]
        counted[variant] = counted.get(variant, 0) + 1
    await eventually(lambda: rig.path.client.connected)
    facts = await rig.facts()
    assert {variant: sum(fact.variant == variant for fact in facts) for variant in counted} == counted


async def test_a_bus_that_stays_away_is_told_after_a_while(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HOLD_S", 0.3)
    await rig.worker("stable")
    rig.nats.kill()
    response = await rig.post()
    assert response.status_code == 503
    assert response.headers["retry-after"]
    rig.nats.start()


async def test_facts_written_down_by_a_dead_router_are_sent_by_the_next(nats_server: NatsServer) -> None:
    root = nats_server.data_dir / "spool"
    bus = Bus(nats_server.settings("router"), "router")
    await bus.connect()
    try:
        nats_server.kill()
        await eventually(lambda: not bus.connected)
        first = FactPublisher(bus, Batcher("r1-1"), root)
        await first.start()
        for unit in range(1000):
            first.add(unit % 8, Fact("t", "a", 100, f"{unit:016x}"))
        await first.flush(0.5)
        await eventually(lambda: first.spooled()[0] >= 8)
        for task in first._tasks:
            task.cancel()
        await asyncio.gather(*first._tasks, return_exceptions=True)
        first._spool._lock.close()  # as kill -9 would
        nats_server.start()
        await eventually(lambda: bus.connected)
        second = FactPublisher(bus, Batcher("r1-2"), root)
        await second.start()
        acked = await second.flush(60)
        assert set(acked["r1-1"]) == set(range(8))
        await second.stop()
        batches = await read_batches(nats_server)
        assert {batch.router_epoch for batch in batches} == {"r1-1"}
        for partition in range(8):
            numbers = [batch.n for batch in batches if batch.partition == partition]
            assert numbers == list(range(1, len(numbers) + 1))
        assert sum(len(batch.facts) for batch in batches) == 1000
        assert not list(root.glob("*/*.json"))
    finally:
        await bus.close()


async def test_a_graceful_stop_finishes_streams_and_loses_no_fact(nats_server: NatsServer) -> None:
    async with running(nats_server) as rig:
        worker = await rig.worker("stable")
        await rig.worker("canary")
        await rig.start_test(traffic_split_percent=0)
        streaming = asyncio.create_task(rig.post(mode="slow:0.4", stream=True))
        await eventually(lambda: worker.running == 1)
        rig._server.should_exit = True
        response = await streaming
        assert events(response.text)[-1] == "[DONE]"
        await asyncio.wait_for(rig._task, 60)
        assert sum(len(batch.facts) for batch in await read_batches(nats_server)) == 1


async def test_a_killed_router_process_loses_at_most_what_was_not_yet_in_a_batch(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """The whole process: requests, kill -9, a new one on the same data directory."""
    import yaml

    config = tmp_path / "router.yaml"
    password = nats_server.embedded.passwords["router"]
    config.write_text(
        yaml.safe_dump(
            {
                "data_dir": str(tmp_path / "router"), "security": SECURITY, "models": MODELS, "http": {"port": 0},
                "nats": {"servers": [nats_server.url], "user": "router", "password": password},
            }
        )
    )  # fmt: skip
    async with _workers(nats_server):
        first = await _router_process(config, tmp_path)
        async with httpx.AsyncClient(base_url=first[1], headers=bearer(), timeout=30) as client:
            await _start_test(client)
            served = [await client.post("/v1/chat/completions", json=chat()) for _ in range(30)]
            assert {response.status_code for response in served} == {200}
        await eventually(lambda: _facts(nats_server))
        first[0].kill()
        first[0].wait()
        kept = await _facts(nats_server)
        assert 0 < kept <= 30
        second = await _router_process(config, tmp_path)
        try:
            async with httpx.AsyncClient(base_url=second[1], headers=bearer(), timeout=30) as client:
                again = await client.post("/v1/chat/completions", json=chat())
                assert again.headers["x-ab-test-id"] == served[0].headers["x-ab-test-id"]
        finally:
            second[0].send_signal(signal.SIGTERM)
            assert second[0].wait(60) in {0, -signal.SIGTERM}  # uvicorn raises the signal again at its end
        assert await _facts(nats_server) >= kept + 1


@asynccontextmanager
async def _workers(server: NatsServer) -> AsyncIterator[None]:
    from tests.fakes.frame_worker import FrameWorker

    workers = [FrameWorker(model, f"w{i:08x}") for i, model in enumerate(("stable", "canary"))]
    try:
        for worker in workers:
            await worker.start(await server.connect("inference"))
        yield
    finally:
        for worker in workers:
            await worker.stop()


async def _start_test(client: httpx.AsyncClient) -> None:
    async def started() -> bool:
        body = {"model_a": "stable", "model_b": "canary", "traffic_split_percent": 50}
        response = await client.post("/v1/ab-testing/start", json=body, headers=bearer("admin"))
        return response.status_code == 200

    await eventually(started, 60, 0.5)


async def _facts(server: NatsServer) -> int:
    return sum(len(batch.facts) for batch in await read_batches(server))


async def _router_process(config: Path, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    runs = folder / "router" / "run"
    with (folder / "router.log").open("ab") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.router", "--config", str(config)], cwd=ROOT, stdout=sink, stderr=sink,
            env=environment(PYTHONPATH=str(ROOT)),
        )  # fmt: skip
    file = runs / f"router.{process.pid}.json"

    async def up() -> str | None:
        assert process.poll() is None, (folder / "router.log").read_text()[-3000:]
        if not file.exists():
            return None
        import json

        url = f"http://127.0.0.1:{json.loads(file.read_text())['port']}"
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            try:
                return url if (await client.get("/ready")).status_code == 200 else None
            except httpx.TransportError:
                return None

    return process, str(await eventually(up, 60, 0.1))
