"""What is held on a unit, found by page on a real nats-server, and fact batches overwritten where they may be."""

import asyncio
from pathlib import Path

import pytest

from schemas import subjects
from schemas.v1.facts import Admitted, Fact, FactBatch, TestClock
from schemas.v1.units import Tombstone, UnitQuery
from services._runtime.bus import Bus
from services.metrics.adapters.nats_alarms import Alarms
from services.metrics.adapters.nats_erasures import Erasures
from services.metrics.adapters.nats_partition_writer import PartitionWriter
from services.metrics.adapters.nats_unit_search import NotErasedError, UnitSearch
from tests.harness import NatsServer, contents, eventually
from tests.service.metrics.support import EPOCH_S, STARTED_MS, TEST, stored_windows

PARTITION = 5
SPUR = 0x5EED_0000_0000_0000 + PARTITION
"""The unit that is looked for."""
OTHER = 0x0DD0_0000_0000_0000 + PARTITION


async def send(server: NatsServer, n: int, *units: int, test: str = TEST) -> None:
    facts = [Fact(test=test, variant="b", share_bp=2500, unit=f"{unit:016x}", latency_us=1000 * n) for unit in units]
    batch = FactBatch(
        router_epoch="r1-1", partition=PARTITION, n=n, facts=facts, admits_units=True,
        tests={test: TestClock(started_ms=STARTED_MS, epoch_seconds=EPOCH_S)},
        admitted=[Admitted(test=test, variant="b", share_bp=2500, count=1, units=[f"{unit:016x}"]) for unit in units],
    )  # fmt: skip
    nc = await server.connect("router")
    await nc.jetstream().publish(subjects.metric(PARTITION), batch.model_dump_json(exclude_defaults=True).encode())
    await nc.close()


async def bury(server: NatsServer, unit: int) -> None:
    nc = await server.connect("router")
    kv = await nc.jetstream().key_value("erasures")
    stone = Tombstone(test_id=TEST, unit=f"{unit:016x}", at_ms=5)
    await kv.put(f"{TEST}.{unit:016x}", stone.model_dump_json().encode())
    await nc.close()


def question(unit: int, stream: str = "METRICS", **fields: object) -> UnitQuery:
    return UnitQuery(test_id=TEST, unit=f"{unit:016x}", stream=stream, **fields)


def files_with(server: NatsServer, unit: int) -> list[Path]:
    files = {path: held for path, held in contents(server.data_dir / "nats") if path.suffix == ".blk" and "METRICS" in str(path)}
    assert files
    return [path for path, held in files.items() if f"{unit:016x}".encode() in held]


async def writing(bus: Bus, erasures: Erasures) -> "asyncio.Task[None]":
    await erasures.start()
    writer = PartitionWriter(bus, PARTITION, "m1", lambda: {TEST}, Alarms(bus), erasures)
    task = asyncio.create_task(writer.run())
    await eventually(lambda: writer.writing)
    return task


async def stopped(task: "asyncio.Task[None]", erasures: Erasures) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await erasures.stop()


async def seen(server: NatsServer, batches: int) -> bool:
    windows = await stored_windows(server)
    return any(window.watermark.batches.get("r1-1", 0) >= batches for _, window in windows)


async def test_a_unit_is_found_page_by_page_and_nobody_elses_facts_with_it(nats_server: NatsServer) -> None:
    async with nats_server.bus("metrics") as bus:
        task = await writing(bus, erasures := Erasures(bus))
        for n in range(1, 41):
            await send(nats_server, n, *([SPUR, OTHER] if n % 4 == 0 else [OTHER]))
        await send(nats_server, 41, SPUR, test="ab_test_2")
        await eventually(lambda: seen(nats_server, 41))
        search = UnitSearch(bus)
        whole = await search.page(question(SPUR))
        assert (whole.complete, whole.batches) == (True, 10)
        assert [fact.latency_us for fact in whole.facts if fact.kind == "final"] == [1000 * n for n in range(4, 41, 4)]
        assert {fact.kind for fact in whole.facts} == {"admitted", "final"}
        pages, after = [], 0
        while True:
            page = await search.page(question(SPUR, after=after, limit=7))
            pages.append(page)
            assert page.last > after
            after = page.last
            if page.complete:
                break
        assert len(pages) == 6
        assert [fact for page in pages for fact in page.facts] == whole.facts
        windows = await search.page(question(SPUR, "WINDOWS"))
        assert (windows.complete, windows.held) == (True, ["seen", "seen_test"])
        assert windows.windows >= 1
        assert windows.first_ms <= windows.last_ms
        assert await search.page(question(SPUR + 8)) == whole.model_copy(update={"facts": [], "batches": 0})
        later = await search.page(question(SPUR, "WINDOWS", since_ms=windows.last_ms + 10_000))
        assert (later.complete, later.held) == (True, [])
        # Nothing goes for the asking.
        with pytest.raises(NotErasedError):
            await search.page(question(SPUR, erase=True))
        assert files_with(nats_server, SPUR)
        await stopped(task, erasures)


async def test_an_erased_units_batches_are_overwritten_once_folded_and_reading_goes_on(nats_server: NatsServer) -> None:
    async with nats_server.bus("metrics") as bus:
        search = UnitSearch(bus)
        for n in range(1, 6):
            await send(nats_server, n, SPUR, OTHER)
        await bury(nats_server, SPUR)
        early = await search.page(question(SPUR, erase=True))  # nobody has folded anything
        assert (early.batches, early.erased, early.left) == (5, 0, 5)
        task = await writing(bus, erasures := Erasures(bus))
        await eventually(lambda: seen(nats_server, 5))
        first = await search.page(question(SPUR, erase=True))
        assert (first.batches, first.erased, first.left) == (5, 4, 1)  # the last one is what the writer knows METRICS by
        await send(nats_server, 6)
        await eventually(lambda: seen(nats_server, 6))
        second = await search.page(question(SPUR, erase=True))
        assert (second.batches, second.erased, second.left) == (1, 1, 0)
        assert not files_with(nats_server, SPUR)
        await stopped(task, erasures)
        # From the first window on there is no trace of the unit, and its requests were counted.
        windows = [window for _, window in await stored_windows(nats_server)]
        assert sum(cell.done for window in windows for cell in window.cells) == 10
        assert (await search.page(question(SPUR, "WINDOWS"))).held == []
        assert (await search.page(question(OTHER, "WINDOWS"))).held == ["seen", "seen_test"]
    # Neither the server nor the writer minds the holes.
    nats_server.kill()
    nats_server.start()
    async with nats_server.bus("metrics") as bus:
        task = await writing(bus, erasures := Erasures(bus))
        await send(nats_server, 7, SPUR, OTHER)
        await eventually(lambda: seen(nats_server, 7))
        assert (await UnitSearch(bus).page(question(SPUR, "WINDOWS"))).held == []
        windows = [window for _, window in await stored_windows(nats_server)]
        assert sum(cell.done for window in windows for cell in window.cells) == 12
        assert sum(cell.units.new_test for window in windows for cell in window.cells) == 7  # OTHER, and SPUR as nobody
        await stopped(task, erasures)


async def test_a_unit_erased_while_it_is_known_is_forgotten_by_the_next_window(nats_server: NatsServer) -> None:
    async with nats_server.bus("metrics") as bus:
        task = await writing(bus, erasures := Erasures(bus))
        await send(nats_server, 1, SPUR, OTHER)
        await eventually(lambda: seen(nats_server, 1))
        await bury(nats_server, SPUR)
        await eventually(lambda: SPUR in erasures().get(TEST, ()))
        await send(nats_server, 2, SPUR)
        await eventually(lambda: seen(nats_server, 2))
        page = await UnitSearch(bus).page(question(SPUR, "WINDOWS"))
        assert (page.held, page.windows) == (["seen", "seen_test"], 1)  # the one from before
        await stopped(task, erasures)
