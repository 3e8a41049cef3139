"""The whole service under kill -9: what ClickHouse answers equals what was acknowledged, with both DSNs."""

import asyncio
import contextlib
import random
import shutil
import signal
import time
from pathlib import Path

import nats
import pytest

from infra.nats.backup import restore, save
from schemas import streams
from schemas.subjects import PARTITIONS
from schemas.v1.experiment import VariantSummary
from schemas.v1.query import TotalsQuery, TotalsReply
from tests.harness import NatsServer, eventually
from tests.service.metrics.process import Metrics, Process, ask, seed
from tests.service.metrics.server import clickhouse_server
from tests.service.metrics.support import TEST, Producer, expected, folded_up_to, stored_windows, totals


async def answered(nc: nats.NATS) -> dict[str, VariantSummary]:
    failed, body = await ask(nc, "totals", TotalsQuery(tests=[TEST]))
    return {} if failed else TotalsReply.model_validate_json(body).tests.get(TEST, {})


async def check(server: NatsServer, nc: nats.NATS, producers: list[Producer]) -> None:
    await eventually(lambda: folded_up_to(server, producers), 90)
    want = expected(producers)
    assert totals([w for _, w in await stored_windows(server)]) == want

    async def all_there() -> dict[str, VariantSummary] | None:
        found = await answered(nc)
        return found if sum(v.admitted for v in found.values()) >= want["admitted"] else None

    found = list((await eventually(all_there, 90)).values())
    outcomes: dict[str, int] = {}
    for variant in found:
        for outcome, count in variant.outcomes.items():
            outcomes[outcome] = outcomes.get(outcome, 0) + count
    assert outcomes == want["outcomes"]
    assert sum(v.request_count for v in found) == want["done"]
    assert sum(v.admitted for v in found) == want["admitted"]
    assert sum(v.in_flight for v in found) == 0
    assert sum(v.prompt_tokens for v in found) == want["prompt_tokens"]
    assert sum(v.units for v in found) == want["units"]
    assert round(sum(v.cost for v in found) * 1e9) == want["cost_nano"]


async def load(producers: list[Producer], stop: asyncio.Event) -> None:
    async def one(producer: Producer) -> None:
        while not stop.is_set():
            await producer.send(20)
            await asyncio.sleep(0.01)

    await asyncio.gather(*(one(p) for p in producers))


async def by_one(server: NatsServer) -> bool:
    """Whether one process wrote the last window of every partition."""
    last = {window.partition: window.writer for _, window in await stored_windows(server)}
    return len(set(last.values())) == 1


@pytest.mark.parametrize("kind", ["chdb", "server"])
async def test_totals_are_exact_although_everything_is_killed_under_load(nats_server: NatsServer, tmp_path: Path, kind: str) -> None:
    rng = random.Random(seed())
    nc = await nats_server.connect("router")
    clickhouse = clickhouse_server(tmp_path / "server")
    dsn = clickhouse.dsn if kind == "server" else f"chdb://{tmp_path / 'chdb'}"
    metrics = Metrics(nats_server, tmp_path / "metrics", dsn)
    victims: list[Process | NatsServer] = [metrics, metrics, metrics, nats_server]
    with contextlib.ExitStack() as stack:
        if kind == "server":
            victims += [clickhouse, clickhouse]
            clickhouse.start()
            stack.callback(clickhouse.kill)
        metrics.start()
        stack.callback(metrics.kill)
        await metrics.ready()
        producers = [Producer(nc, p, p) for p in (0, 3, 6, 7)]
        stop = asyncio.Event()
        task = asyncio.create_task(load(producers, stop))
        for victim in rng.sample(victims, len(victims)):
            await asyncio.sleep(rng.uniform(0.6, 2.2))
            victim.kill()
            victim.start()
        stop.set()
        await task
        await metrics.ready()
        await check(nats_server, nc, producers)
    await nc.close()


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_a_clickhouse_server_may_die_in_the_middle_of_many_inserts(nats_server: NatsServer, tmp_path: Path) -> None:
    """Inserts go out at 0.65 s of each second: half of the deaths are drawn from just around that."""
    rng = random.Random(seed())
    nc = await nats_server.connect("router")
    clickhouse = clickhouse_server(tmp_path / "server")
    metrics = Metrics(nats_server, tmp_path / "metrics", clickhouse.dsn)
    with contextlib.ExitStack() as stack:
        clickhouse.start()
        stack.callback(clickhouse.kill)
        metrics.start()
        stack.callback(metrics.kill)
        await metrics.ready()
        producers = [Producer(nc, p, p) for p in (0, 3, 6, 7)]
        stop = asyncio.Event()
        task = asyncio.create_task(load(producers, stop))
        for death in range(40):
            await metrics.ready()
            await asyncio.sleep(rng.uniform(0, 1))
            if death % 2:
                await asyncio.sleep((0.65 - time.time()) % 1 + rng.uniform(-0.002, 0.03))
            victim: Process = metrics if death % 8 == 7 else clickhouse
            victim.kill()
            victim.start()
        stop.set()
        await task
        await metrics.ready()
        await check(nats_server, nc, producers)
    await nc.close()


async def test_windows_do_not_wait_for_clickhouse_and_it_catches_up_later(nats_server: NatsServer, tmp_path: Path) -> None:
    nc = await nats_server.connect("router")
    clickhouse = clickhouse_server(tmp_path / "server")
    metrics = Metrics(nats_server, tmp_path / "metrics", clickhouse.dsn)
    with contextlib.ExitStack() as stack:
        metrics.start()
        stack.callback(metrics.kill)
        producers = [Producer(nc, p, p) for p in (1, 2)]
        for producer in producers:
            await producer.send(50)
        await eventually(lambda: folded_up_to(nats_server, producers), 90)
        await eventually(lambda: _says(metrics, "ClickHouse does not answer"))
        failed, reply = await ask(nc, "totals", TotalsQuery(tests=[TEST]))
        assert failed
        assert b"ClickHouse does not answer" in reply
        clickhouse.start()
        stack.callback(clickhouse.kill)
        await metrics.ready()
        await check(nats_server, nc, producers)
    await nc.close()


async def _says(metrics: Metrics, words: str) -> bool:
    """Whether it is not ready, and why."""
    status, body = await asyncio.to_thread(metrics.get, "/ready")
    return status == 503 and words in body


async def test_two_processes_that_are_stopped_and_killed_count_everything_once(nats_server: NatsServer, tmp_path: Path) -> None:
    nc = await nats_server.connect("router")
    clickhouse = clickhouse_server(tmp_path / "server")
    pair = [Metrics(nats_server, tmp_path / name, clickhouse.dsn) for name in ("one", "two")]
    with contextlib.ExitStack() as stack:
        clickhouse.start()
        stack.callback(clickhouse.kill)
        for process in pair:
            process.start()
            stack.callback(process.kill)
        for process in pair:
            await process.ready()
        producers = [Producer(nc, p, p) for p in (0, 5)]
        stop = asyncio.Event()
        task = asyncio.create_task(load(producers, stop))
        try:
            for _ in range(2):
                for process in pair:
                    await process.ready()
                await eventually(lambda: any(map(writing, pair)), 60, 0.2)
                second, first = sorted(pair, key=writing)  # the one that writes is stopped
                first.signal(signal.SIGSTOP)
                await eventually(lambda s=second: writing(s) == PARTITIONS, 60, 0.2)
                await eventually(lambda: by_one(nats_server), 60, 0.2)
                first.signal(signal.SIGCONT)
                # Every partition must have one writer again. Which one: the one that was stopped takes its partitions back
                # where its connection was closed meanwhile, since it then begins again from the last window.
                await eventually(lambda: sum(map(writing, pair)) == PARTITIONS, 60, 0.2)
                second.kill()
                second.start()
        finally:
            stop.set()
            await task
        for process in pair:
            await process.ready()
        await check(nats_server, nc, producers)
    await nc.close()


def writing(metrics: Metrics) -> int:
    """How many partitions a process believes that it writes."""
    lines = metrics.get("/metrics")[1].splitlines()
    return sum(line.startswith("cypria_metrics_partition_writing{") and line.endswith(" 1.0") for line in lines)


async def test_a_second_process_on_a_chdb_directory_exits_naming_the_remedy(nats_server: NatsServer, tmp_path: Path) -> None:
    dsn = f"chdb://{tmp_path / 'chdb'}"
    first, second = Metrics(nats_server, tmp_path / "one", dsn), Metrics(nats_server, tmp_path / "two", dsn)
    with contextlib.ExitStack() as stack:
        first.start()
        stack.callback(first.kill)
        await first.ready()
        second.start()
        assert second.process is not None
        assert await asyncio.to_thread(second.process.wait, 90) not in {0, None}
        assert f"held by process {first.process.pid if first.process else ''}" in second.log()
        assert "clickhouse://USER:PASSWORD@HOST:PORT/DATABASE" in second.log()
        assert (await asyncio.to_thread(first.get, "/ready"))[0] == 200


async def test_windows_do_not_wait_for_a_chdb_directory_that_is_damaged(nats_server: NatsServer, tmp_path: Path) -> None:
    chdb = tmp_path / "chdb"
    (chdb / "metadata").mkdir(parents=True)
    (chdb / "metadata" / "cypria.sql").write_text("garbage")
    metrics = Metrics(nats_server, tmp_path / "metrics", f"chdb://{chdb}")
    nc = await nats_server.connect("router")
    producer = Producer(nc, 2, 1)
    await producer.send(50)
    with contextlib.ExitStack() as stack:
        metrics.start()
        stack.callback(metrics.kill)
        await eventually(lambda: folded_up_to(nats_server, [producer]), 90)
        await eventually(lambda: _says(metrics, f"{chdb} cannot be opened"), 60, 0.1)
        assert await _says(metrics, "remove the directory")
        metrics.kill()
        shutil.rmtree(chdb)
        metrics.start()
        await metrics.ready()
        await check(nats_server, nc, [producer])
    await nc.close()


async def test_streams_that_lost_their_end_are_noticed_and_the_remedy_restores_exact_totals(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """What a power cut leaves: everything the bus had stored lately is gone, ClickHouse still has it."""
    chdb, store, backup = tmp_path / "chdb", nats_server.data_dir / "nats" / "store", tmp_path / "backup"
    metrics = Metrics(nats_server, tmp_path / "metrics", f"chdb://{chdb}")
    nc = await nats_server.connect("router")
    kept, lost, later = (Producer(nc, 2, i, epoch=f"r{i}") for i in range(3))
    with contextlib.ExitStack() as stack:
        for producer in (kept, lost):
            metrics.start()
            await metrics.ready()
            for _ in range(10):
                await producer.send(10)
            done = sum(len(p.facts) for p in (kept, lost))

            async def taken_in(done: int = done) -> bool:
                return sum(v.admitted for v in (await answered(nc)).values()) >= done

            await eventually(taken_in, 90)
            metrics.kill()
            nats_server.kill(signal.SIGTERM)
            if producer is kept:
                shutil.copytree(store, backup)
            else:
                shutil.rmtree(store)
                shutil.copytree(backup, store)
            nats_server.start()
        for _ in range(10):
            await later.send(10)
        metrics.start()
        stack.callback(metrics.kill)
        await eventually(lambda: folded_up_to(nats_server, [later]), 90)

        def blocked() -> bool:
            return f"remove the directory {chdb}" in metrics.get("/ready")[1]

        await eventually(lambda: asyncio.to_thread(blocked), 90)
        metrics.kill()
        shutil.rmtree(chdb)
        metrics.start()
        await metrics.ready()
        await check(nats_server, nc, [kept, later])
    await nc.close()


async def test_a_bus_that_was_restored_from_a_backup_counts_nothing_twice(nats_server: NatsServer, tmp_path: Path) -> None:
    """The server says that every stream was created just then; ClickHouse has all that is in them already."""
    metrics = Metrics(nats_server, tmp_path / "metrics", f"chdb://{tmp_path / 'chdb'}")
    nc = await nats_server.connect("router")
    before, after = Producer(nc, 2, 1, epoch="r1"), Producer(nc, 2, 2, epoch="r2")
    with contextlib.ExitStack() as stack:
        metrics.start()
        stack.callback(metrics.kill)
        await metrics.ready()
        for _ in range(10):
            await before.send(10)
        await check(nats_server, nc, [before])
        metrics.kill()
        admin = await nats_server.connect("provision")
        await save(admin, tmp_path / "copy")
        await admin.close()
        nats_server.kill(signal.SIGTERM)
        shutil.rmtree(nats_server.data_dir / "nats" / "store")
        nats_server.start()
        admin = await nats_server.connect("provision")
        await restore(admin, tmp_path / "copy", replicas=1)
        await admin.close()
        metrics.start()
        await metrics.ready()
        await after.send(10)
        await check(nats_server, nc, [before, after])
    await nc.close()


async def test_windows_are_the_record(nats_server: NatsServer) -> None:
    """Streams that facts and windows go to are limited by age and size only, so that positions stay good."""
    nc = await nats_server.connect("metrics")
    js = nc.jetstream()
    for stream in (streams.METRICS, streams.WINDOWS):
        config = (await js.stream_info(stream.name)).config
        assert config.retention == "limits"
    await nc.close()
