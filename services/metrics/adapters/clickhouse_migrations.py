"""Tables and views of one database, as infra/clickhouse/migrations has them: on one engine, or on a cluster."""

import hashlib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from clickhouse_connect.driver.client import Client

import infra
from services.metrics.domain.replicated import on_cluster

MIGRATIONS = Path(infra.__file__).parent / "clickhouse" / "migrations"
_PATIENT = {"distributed_ddl_task_timeout": 60, "distributed_ddl_output_mode": "null_status_on_timeout"}
"""A server of the cluster that is down does what it was told when it returns; the others do not wait for it."""


class MigrationError(RuntimeError):
    """The tables are not what this version can work with; the message names the remedy."""


class Migrations:
    """What is to be done to one database. Raises MigrationError, and what the engine raises."""

    def __init__(self, client: Client, database: str, cluster: str | None) -> None:
        self._client = client
        self._database = database
        self._cluster = cluster
        self._spread: Callable[[str], str] = partial(on_cluster, cluster=cluster) if cluster else lambda text: text

    def run(self, retention_days: int, min_group_size: int) -> list[str]:
        """Apply what is missing, and have what is there follow the settings; what was done, in words."""
        on = f" ON CLUSTER '{self._cluster}'" if self._cluster else ""
        self._do(f"CREATE DATABASE IF NOT EXISTS {self._database}{on}")
        self._is_of_one_kind()
        self._do(
            self._spread(
                f"CREATE TABLE IF NOT EXISTS {self._database}.migrations (number UInt32, name String, sha256 String, "
                "applied_at DateTime('UTC') DEFAULT now()) ENGINE = ReplacingMergeTree ORDER BY number"
            )
        )
        if self._cluster:
            self._do(f"SYSTEM SYNC REPLICA {self._database}.migrations LIGHTWEIGHT")
        done = self._apply(retention_days, min_group_size)
        done += self._retain(retention_days)
        done += self._withhold(min_group_size)
        return done or ["clickhouse: up to date"]

    def _do(self, statement: str) -> None:
        if not statement:
            return
        self._client.command(statement, settings=_PATIENT if self._cluster else None)

    def _rows(self, query: str, **parameters: Any) -> Any:
        return self._client.query(query, parameters={"database": self._database, **parameters}).result_rows

    def _is_of_one_kind(self) -> None:
        """Refuse tables that are replicated where no cluster is configured, and the other way round."""
        rows = self._rows("SELECT engine FROM system.tables WHERE database = {database:String} AND name = 'migrations'")
        if not rows or str(rows[0][0]).startswith("Replicated") == bool(self._cluster):
            return
        if self._cluster:
            raise MigrationError(
                f"the tables of database {self._database} are not replicated: name another database in clickhouse.dsn, "
                "which is filled with what the streams keep, or remove clickhouse.cluster"
            )
        raise MigrationError(
            f"the tables of database {self._database} are replicated: set clickhouse.cluster to their cluster's name"
        )

    def _apply(self, retention_days: int, min_group_size: int) -> list[str]:
        applied = {
            int(number): (str(name), str(digest))
            for number, name, digest in self._rows(
                f"SELECT number, name, sha256 FROM {self._database}.migrations FINAL"  # noqa: S608
            )
        }
        files = {int(file.name[:4]): file for file in sorted(MIGRATIONS.glob("[0-9][0-9][0-9][0-9]_*.sql"))}
        if newer := sorted(set(applied) - set(files)):
            raise MigrationError(
                f"database {self._database} has migration {applied[newer[-1]][0]}, which this version does not know: "
                "run the version that made it, or a newer one"
            )
        done, again = [], self._cluster is not None and bool(applied) and self._has_joined()
        for number, file in files.items():
            text = file.read_text(encoding="utf-8")
            digest = hashlib.sha256(text.encode()).hexdigest()
            known = number in applied
            if known and applied[number][1] != digest:
                raise MigrationError(
                    f"migration {file.name} was changed after database {self._database} took it: add a new file"
                )
            if known and not again:
                continue
            for statement in statements(text, self._database, retention_days, min_group_size):
                self._do(self._spread(statement))
            if not known:
                self._client.insert(
                    "migrations", [[number, file.name, digest]], ["number", "name", "sha256"],
                    database=self._database, settings={"insert_deduplicate": 0},
                )  # fmt: skip
                done.append(f"migration {file.name}: applied")
        return [*done, "clickhouse: tables of a server that has joined the cluster: made"] if again else done

    def _has_joined(self) -> bool:
        """Whether a server of the cluster lacks a table or a view that this one has."""
        rows = self._rows(
            "SELECT count() FROM (SELECT name FROM clusterAllReplicas({cluster:String}, system.tables) "
            "WHERE database = {database:String} GROUP BY name HAVING count() < "
            "(SELECT count() FROM system.clusters WHERE cluster = {cluster:String}))",
            cluster=self._cluster,
        )
        return bool(rows[0][0])

    def _retain(self, retention_days: int) -> list[str]:
        rows = self._rows(
            "SELECT name, create_table_query FROM system.tables WHERE database = {database:String} "
            "AND create_table_query LIKE '%toIntervalDay(%' ORDER BY name"
        )
        done = []
        for name, query in rows:
            ttl = re.search(
                r"TTL (.+?toIntervalDay\()(\d+)(\) (?:DELETE )?WHERE .+?)(?: SETTINGS |$)", query, re.DOTALL
            )
            if ttl and int(ttl.group(2)) != retention_days:
                # Of a replicated table this reaches all servers by itself.
                self._do(f"ALTER TABLE {self._database}.{name} MODIFY TTL {ttl.group(1)}{retention_days}{ttl.group(3)}")
                done.append(f"table {name}: rows are kept for {retention_days} days")
        return done

    def _withhold(self, min_group_size: int) -> list[str]:
        rows = self._rows(
            "SELECT name, create_table_query FROM system.tables WHERE database = {database:String} AND engine = 'View' "
            "AND create_table_query LIKE '% AS min_group_size%' ORDER BY name"
        )
        done = []
        for name, query in rows:
            new = re.sub(r"\b\d+ AS min_group_size", f"{min_group_size} AS min_group_size", query)
            if new != query:
                self._do(self._spread(new.replace("CREATE VIEW", "CREATE OR REPLACE VIEW", 1)))
                done.append(f"view {name}: figures of fewer than {min_group_size} requests are withheld")
        return done


def statements(text: str, database: str, retention_days: int, min_group_size: int) -> list[str]:
    """The statements of a migration, without comment lines, filled in."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("--")]
    filled = "\n".join(lines).replace("{database}", database).replace("{retention_days}", str(retention_days))
    filled = filled.replace("{min_group_size}", str(min_group_size))
    return [part.strip() for part in filled.split(";") if part.strip()]
