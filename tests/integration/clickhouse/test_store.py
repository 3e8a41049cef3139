"""Tables, migrations and the position row on the real engine."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from schemas.v1.common import Outcome
from services._runtime.settings import ConfigError
from services.metrics.adapters.clickhouse import ClickHouse, MigrationError
from services.metrics.adapters.clickhouse_store import PositionTakenError, StoppedError, WindowStore
from services.metrics.domain.records import Cell, Moments, UnitEvidence, Watermark, Window
from services.metrics.domain.rows import COLUMNS, Rows

CREATED = "2025-01-01 00:00:00+00:00"
NOW_MS = int(datetime.now(UTC).timestamp() * 1000)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[ClickHouse]:
    engine = ClickHouse(f"chdb://{tmp_path / 'chdb'}")
    await engine.open()
    await engine.write(lambda client: engine.migrate(client, 90, 5))
    yield engine
    engine.close()


def window(count: int = 1, partition: int = 0) -> Window:
    cell = Cell(
        test="t", variant="a", share_bp=100, admitted=count, done=count, outcomes={Outcome.OK: count},
        latency=Moments(n=count, total=10**15 * count, squares=10**30 * count, ln=5, ln_squares=7, bins={-1: 1, 1745: count}),
        units=UnitEvidence(new=count, new_test=count), strata={63: count}, feedback={"score": -3},
    )  # fmt: skip
    return Window(partition, "m", Watermark(), [cell])


def rows(*windows: Window, first: int = 1, time_ms: int = NOW_MS) -> Rows:
    result = Rows()
    for sequence, item in enumerate(windows, first):
        result.add(item, sequence, time_ms)
    return result


def never() -> bool:
    return False


async def sums(engine: ClickHouse) -> tuple[Any, ...]:
    query = "SELECT sum(done), sum(latency_us_squares), sumMap(latency_bins), sumMap(feedback) FROM cypria.window_cells"
    return tuple(await engine.read(lambda client: client.query(query).first_row))


async def test_sums_and_position_go_in_together(engine: ClickHouse) -> None:
    store = WindowStore(engine)
    batch = rows(window(2), window(3, 1), Window(0, "m", Watermark()))
    await engine.write(lambda c: store.append(c, CREATED, 0, batch.table(CREATED), 3, never))
    assert await engine.read(store.positions) == {CREATED: (3, NOW_MS, 3)}
    assert await sums(engine) == (5, 5 * 10**30, {-1: 2, 1745: 5}, {"score": -6})
    await engine.write(lambda c: store.append(c, CREATED, 3, rows(window(1), first=4).table(CREATED), 4, never))
    await engine.write(lambda c: c.command("OPTIMIZE TABLE cypria.window_cells FINAL"))
    assert await engine.read(store.positions) == {CREATED: (4, NOW_MS, 4)}
    assert (await sums(engine))[0] == 6


async def test_the_same_step_taken_twice_counts_once(engine: ClickHouse) -> None:
    store = WindowStore(engine)
    table = rows(window(2), window(2)).table(CREATED)
    settings = {"insert_deduplication_token": f"{CREATED}/0/0", "insert_deduplicate": 1}
    await engine.write(lambda c: engine.insert(c, "window_cells", COLUMNS, table, settings))
    await engine.write(lambda c: store.append(c, CREATED, 0, table, 2, never))
    assert await engine.read(store.positions) == {CREATED: (2, NOW_MS, 2)}
    assert (await sums(engine))[0] == 4


async def test_another_writers_step_makes_this_one_stand_by(engine: ClickHouse) -> None:
    store = WindowStore(engine)
    await engine.write(lambda c: store.append(c, CREATED, 0, rows(window(1)).table(CREATED), 1, never))
    with pytest.raises(PositionTakenError):
        await engine.write(lambda c: store.append(c, CREATED, 0, rows(window(1), window(1)).table(CREATED), 2, never))
    assert (await sums(engine))[0] == 1


async def test_a_token_that_lost_its_part_is_replaced(engine: ClickHouse) -> None:
    store = WindowStore(engine)
    lost = rows(window(1)).table(CREATED)
    settings = {"insert_deduplication_token": f"{CREATED}/0/0", "insert_deduplicate": 1}
    await engine.write(lambda c: engine.insert(c, "window_cells", COLUMNS, lost, settings))
    # What a kill between the deduplication log and the part leaves behind.
    await engine.write(lambda c: c.command("ALTER TABLE cypria.window_cells DELETE WHERE 1 SETTINGS mutations_sync = 2"))
    await engine.write(lambda c: store.append(c, CREATED, 0, lost, 1, never))
    assert await engine.read(store.positions) == {CREATED: (1, NOW_MS, 1)}
    assert (await sums(engine))[0] == 1


async def test_it_gives_up_only_when_told(engine: ClickHouse) -> None:
    store = WindowStore(engine)
    await engine.write(lambda c: c.command("RENAME TABLE cypria.window_cells TO cypria.away"))
    calls = iter([False, False, True])
    with pytest.raises(StoppedError):
        await engine.write(lambda c: store.append(c, CREATED, 0, rows(window(1)).table(CREATED), 1, lambda: next(calls)))
    assert store.problem is not None
    await engine.write(lambda c: c.command("RENAME TABLE cypria.away TO cypria.window_cells"))
    await engine.write(lambda c: store.append(c, CREATED, 0, rows(window(1)).table(CREATED), 1, never))
    assert store.problem is None
    assert (await sums(engine))[0] == 1


async def test_rows_age_out_and_the_position_never_does(engine: ClickHouse) -> None:
    store = WindowStore(engine)
    old = rows(window(5), time_ms=NOW_MS - 100 * 86_400_000)
    await engine.write(lambda c: store.append(c, CREATED, 0, old.table(CREATED), 1, never))
    await engine.write(lambda c: store.append(c, CREATED, 1, rows(window(2), first=2).table(CREATED), 2, never))
    await engine.write(lambda c: c.command("OPTIMIZE TABLE cypria.window_cells FINAL"))
    assert (await sums(engine))[0] == 2
    assert await engine.read(store.positions) == {CREATED: (2, NOW_MS, 2)}


async def test_positions_belong_to_their_stream(engine: ClickHouse) -> None:
    store = WindowStore(engine)
    for created in (CREATED, "another"):
        await engine.write(lambda c, created=created: store.append(c, created, 0, rows(window(1)).table(created), 1, never))
    assert await engine.read(store.positions) == {CREATED: (1, NOW_MS, 1), "another": (1, NOW_MS, 1)}
    assert (await sums(engine))[0] == 2


async def test_migrating_again_changes_nothing_but_the_retention(engine: ClickHouse) -> None:
    assert await engine.write(lambda c: engine.migrate(c, 90, 5)) == ["clickhouse: up to date"]
    done = await engine.write(lambda c: engine.migrate(c, 30, 5))
    assert len(done) == 5
    assert await engine.write(lambda c: engine.migrate(c, 30, 5)) == ["clickhouse: up to date"]
    query = "SELECT create_table_query FROM system.tables WHERE database = 'cypria' AND name = 'window_cells'"
    text = (await engine.read(lambda c: c.query(query).first_row))[0]
    assert "toIntervalDay(30) WHERE test != ''" in text


async def test_views_show_counts_of_every_group_and_figures_only_of_groups_that_are_large_enough(engine: ClickHouse) -> None:
    store = WindowStore(engine)
    for number, (test, count) in enumerate([("t4", 4), ("t5", 5), ("t6", 3), ("t6", 3)], 1):
        cell = window(count).cells[0]
        cell.test, cell.completion_tokens, cell.latency = test, 7, Moments(n=count, total=9000 * count, bins={5: count})
        cell.feedback = {"thumbs_up": 1}
        made = Rows()
        made.add(Window(0, "m", Watermark(), [cell]), number, NOW_MS)
        await engine.write(lambda c, made=made, n=number: store.append(c, CREATED, n - 1, made.table(CREATED), n, never))
    counts = ("requests", "successful_requests", "admitted", "new_units", "thumbs_up")
    figures = ("error_rate_percent", "avg_latency_ms", "latency_p95_ms", "completion_tokens", "thumbs_up_percent")

    async def shown(view: str) -> dict[str, tuple[list[Any], list[Any], bool]]:
        query = f"SELECT test_id, withheld, {', '.join((*counts, *figures))} FROM cypria.{view}"
        found = await engine.read(lambda c: c.query(query).result_rows)
        return {row[0]: (list(row[2:7]), list(row[7:]), row[1]) for row in found}

    for limit, withheld in ((5, {"t4"}), (1, set()), (6, {"t4", "t5"}), (7, {"t4", "t5", "t6"}), (5, {"t4"})):
        await engine.write(lambda c, limit=limit: engine.migrate(c, 90, limit))
        for view in ("variant_metrics_1m", "variant_metrics_1h"):
            found = await shown(view)
            assert {test for test, (_, _, hidden) in found.items() if hidden} == withheld, (limit, view)
            for test, (counted, figured, hidden) in found.items():
                n = {"t4": 4, "t5": 5, "t6": 6}[test]
                assert counted == [n, n, n, n, 2 if test == "t6" else 1]
                assert (set(figured) == {None}) == hidden
                if not hidden:
                    assert figured[:2] == [0, 9]
                    assert figured[3] == (14 if test == "t6" else 7)
    assert await engine.write(lambda c: engine.migrate(c, 90, 5)) == ["clickhouse: up to date"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.insert("migrations", [[9999, "9999_future.sql", "x"]], ["number", "name", "sha256"], database="cypria"), "9999_future"),
        (lambda c: c.insert("migrations", [[1, "0001_x.sql", "other"]], ["number", "name", "sha256"], database="cypria"), "was changed"),
    ],
)  # fmt: skip
async def test_tables_of_another_version_are_refused_with_the_remedy(
    engine: ClickHouse, change: Callable[[Client], Any], message: str
) -> None:
    await engine.write(change)
    with pytest.raises(MigrationError, match=message):
        await engine.write(lambda c: engine.migrate(c, 90, 5))


@pytest.mark.parametrize(
    "dsn", ["chdb://", "chdb:///", "chdb://relative/dir", "mysql://x/y", "", "clickhouse:///x", "clickhouse://h/bad-name", "clickhouse://h/a;b", "/var/lib"]
)
def test_a_dsn_that_is_none_is_refused(dsn: str) -> None:
    with pytest.raises(ValueError, match=r"clickhouse\.dsn"):
        ClickHouse(dsn)


def test_chdb_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "chdb", None)
    with pytest.raises(ConfigError, match=r"chDB is not installed: pip install 'cypria\[embedded\]'"):
        ClickHouse(f"chdb://{tmp_path}")


async def test_calls_from_many_tasks_at_once(engine: ClickHouse) -> None:
    results = await asyncio.gather(*(engine.read(lambda c, i=i: c.query(f"SELECT {i}").first_row[0]) for i in range(40)))
    assert results == list(range(40))


async def test_provisioning_beside_the_process_that_holds_the_directory(tmp_path: Path) -> None:
    import subprocess
    import sys

    dsn = f"chdb://{tmp_path / 'own'}"
    code = f"from services.metrics.provision import provision_clickhouse as p; print(p({dsn!r}, 90, 5)); print(p({dsn!r}, 90, 5))"

    def run() -> str:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    alone = await asyncio.to_thread(run)
    assert "0001_window_cells.sql: applied" in alone
    assert "clickhouse: up to date" in alone
    engine = ClickHouse(dsn)
    await engine.open()
    assert "holds the chDB directory" in await asyncio.to_thread(run)
    engine.close()
