"""Several servers: another one is asked where one does not answer, and tables of a cluster are replicated ones."""

import asyncio
from pathlib import Path
from typing import Any

import clickhouse_connect
import pytest

from services._runtime.settings_clickhouse import ClickHouse as Section
from services.metrics.adapters.clickhouse import AWAY, ClickHouse, MigrationError
from services.metrics.adapters.clickhouse_http import Front
from services.metrics.adapters.clickhouse_migrations import MIGRATIONS, Migrations, statements
from services.metrics.adapters.clickhouse_store import WindowStore
from services.metrics.domain.replicated import on_cluster
from tests.integration.clickhouse.test_store import CREATED, never, rows, sums, window


async def test_another_server_goes_on_where_one_went_away_and_nothing_counts_twice(tmp_path: Path) -> None:
    """Both show the same tables, as replicas do."""
    client = clickhouse_connect.get_client(dsn=f"chdb://{tmp_path / 'server'}")
    client.command("CREATE DATABASE IF NOT EXISTS other")
    fronts = [Front(str(tmp_path / "server"), "other", "cypria", "secret", writable=True) for _ in range(2)]
    ports = [await front.start("127.0.0.1", 0) for front in fronts]
    engine = ClickHouse(f"clickhouse://cypria:secret@127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}/cypria")
    store = WindowStore(engine)
    try:
        await engine.write(lambda c: engine.migrate(c, 90, 5))
        await engine.write(lambda c: store.append(c, CREATED, 0, rows(window(2)).table(CREATED), 1, never))
        await fronts[0].stop()
        # It does not go on asking the one that it was connected to: whoever called begins again.
        with pytest.raises(AWAY):
            await engine.write(lambda c: store.append(c, CREATED, 1, rows(window(3), first=2).table(CREATED), 2, never))
        assert (await engine.write(store.positions))[CREATED].sequence == 1
        await engine.write(lambda c: store.append(c, CREATED, 1, rows(window(3), first=2).table(CREATED), 2, never))
        assert (await sums(engine))[0] == 5
    finally:
        await asyncio.to_thread(engine.close)
        await fronts[1].stop()
        client.close()


def test_every_statement_of_every_migration_makes_something_on_all_servers(tmp_path: Path) -> None:
    client = clickhouse_connect.get_client(dsn=f"chdb://{tmp_path / 'chdb'}")
    made = 0
    for file in sorted(MIGRATIONS.glob("*.sql")):
        for statement in statements(file.read_text(), "cypria", 90, 5):
            spread = on_cluster(statement, "all")
            if " INDEX " in statement:
                assert spread == ""
                continue
            assert spread.count(" ON CLUSTER 'all'") == 1, statement[:80]
            assert ("MergeTree" in spread) == ("ENGINE = Replicated" in spread)
            assert "non_replicated" not in spread
            client.query(f"EXPLAIN AST {spread}")
            made += 1
    client.close()
    assert made >= 15
    table = on_cluster("CREATE TABLE IF NOT EXISTS d.t (a UInt8) ENGINE = ReplacingMergeTree(a) ORDER BY a", "all")
    assert table == (
        "CREATE TABLE IF NOT EXISTS d.t ON CLUSTER 'all' (a UInt8) ENGINE = "
        "ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/d/t', '{replica}', a) ORDER BY a"
    )
    assert on_cluster("SELECT 1", "all") == "SELECT 1"
    with pytest.raises(ValueError, match="table t has no engine"):
        on_cluster("CREATE TABLE IF NOT EXISTS d.t (a UInt8) ENGINE = Log", "all")


class Recorder:
    """Stands in for a client of a cluster: what was told, and canned answers by a word in the question."""

    def __init__(self, **answers: list[list[Any]]) -> None:
        self.answers = answers
        self.told: list[str] = []
        self.inserted: list[list[Any]] = []

    def command(self, statement: str, settings: Any = None) -> None:
        assert settings["distributed_ddl_output_mode"] == "null_status_on_timeout"
        self.told.append(statement)

    def query(self, query: str, parameters: Any = None) -> Any:
        found = [rows for word, rows in self.answers.items() if word in query]
        return type("Result", (), {"result_rows": found[0] if found else []})

    def insert(self, _table: str, rows: list[list[Any]], _columns: Any, **_options: Any) -> None:
        self.inserted += rows


def test_a_cluster_gets_its_tables_once_and_a_server_that_joins_later_too() -> None:
    client: Any = Recorder()
    assert len(Migrations(client, "cypria", "all").run(90, 5)) == len(client.inserted) == len(list(MIGRATIONS.glob("*.sql")))
    made = [statement for statement in client.told if statement.startswith("CREATE")]
    assert made[0] == "CREATE DATABASE IF NOT EXISTS cypria ON CLUSTER 'all'"
    assert all(" ON CLUSTER 'all'" in statement for statement in made)
    applied = {"FINAL": client.inserted, "name = 'migrations'": [["ReplicatedReplacingMergeTree"]]}
    for lacking, again in ((0, 0), (1, len(made) - 2)):
        client = Recorder(**applied, clusterAllReplicas=[[lacking]])
        done = Migrations(client, "cypria", "all").run(90, 5)
        assert len([statement for statement in client.told if statement.startswith("CREATE")]) == 2 + again
        assert client.inserted == []
        assert ("has joined" in done[0]) == bool(lacking)


@pytest.mark.parametrize(
    ("engine", "cluster", "said"),
    [("ReplacingMergeTree", "all", "are not replicated: name another database"), ("ReplicatedReplacingMergeTree", None, "set clickhouse.cluster")],
)
def test_tables_of_the_other_kind_are_refused(engine: str, cluster: str | None, said: str) -> None:
    client: Any = Recorder(**{"name = 'migrations'": [[engine]]})
    client.command = lambda *_, **__: None
    with pytest.raises(MigrationError, match=said):
        Migrations(client, "cypria", cluster).run(90, 5)


def test_what_names_servers_is_checked() -> None:
    Section(dsn="clickhouse://u:p@a:8123,b:8123,[::1]:8123/cypria", cluster="all")
    for bad in ("clickhouse://u:p@a:8123,b:x/cypria", "clickhouse://u:p@a:8123,/cypria", "clickhouse://"):
        with pytest.raises(ValueError, match="give chdb:///DIRECTORY"):
            Section(dsn=bad)
    for dsn in (None, "chdb:///data"):
        with pytest.raises(ValueError, match="cluster is of servers"):
            Section(dsn=dsn, cluster="all")
