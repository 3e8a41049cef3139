"""ClickHouse behind either DSN: `chdb:///dir` (in this process) or `clickhouse://user:password@host:port/database`.

All calls block, so they run on threads: one that writes, two that read.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.util
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, ProgrammingError
from clickhouse_connect.driver.exceptions import Error as ClickHouseDriverError

import infra
from services._runtime import tls
from services._runtime.settings import ConfigError
from services._runtime.settings_model import is_secure
from services._runtime.settings_tls import ClientTls

T = TypeVar("T")

MIGRATIONS = Path(infra.__file__).parent / "clickhouse" / "migrations"
DEFAULT_DATABASE = "cypria"
SECTION = "clickhouse.tls"
AWAY: tuple[type[Exception], ...] = (ClickHouseError, ClickHouseDriverError, OSError)
"""What a call raises when the engine is away or refuses it."""

_DATABASE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


class DirectoryInUseError(RuntimeError):
    """Another process holds the chDB directory; the message names the remedy."""


class UnreadableError(ClickHouseError):
    """The chDB directory cannot be opened; the message names the remedy."""


class UntrustedError(ClickHouseError):
    """TLS refuses the server, or the server our certificate; the message names the remedy."""


class MigrationError(RuntimeError):
    """The tables are not what this version can work with; the message names the remedy."""


class ClickHouse:
    """One engine. ``read`` and ``write`` run a function with a client of their own on their threads.

    Raises ConfigError for a DSN that cannot be used here.
    """

    def __init__(self, dsn: str, secured: ClientTls | None = None) -> None:
        parts = urlsplit(dsn)
        self._secured = secured
        if secured is not None:
            tls.client_context(secured, SECTION)
        self.embedded = parts.scheme == "chdb"
        self.path = unquote(parts.path)
        if self.embedded:
            self.database = DEFAULT_DATABASE
            if parts.netloc or not self.path.strip("/"):
                raise ConfigError("clickhouse.dsn: chdb needs an absolute directory, such as chdb:///var/lib/cypria")
            if importlib.util.find_spec("chdb") is None:
                raise ConfigError(
                    "clickhouse.dsn: chDB is not installed: pip install 'cypria[embedded]', or name a server as "
                    "clickhouse://USER:PASSWORD@HOST:PORT/DATABASE"
                )
        elif parts.scheme in {"clickhouse", "clickhouses"} and parts.hostname:
            self.database = self.path.strip("/") or DEFAULT_DATABASE
        else:
            raise ConfigError("clickhouse.dsn: give chdb:///DIRECTORY or clickhouse://USER:PASSWORD@HOST:PORT/DATABASE")
        if not _DATABASE.match(self.database):
            raise ConfigError(f"clickhouse.dsn: '{self.database}' is not a database name of letters, digits and _")
        self._parts = parts
        self._local = threading.local()
        self._clients: list[Client] = []
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="clickhouse-writer")
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="clickhouse-reader")
        self._column_types: dict[str, Sequence[Any]] = {}

    async def open(self) -> None:
        """Take the chDB directory, where it is one. Raises DirectoryInUseError; any other failure comes again later."""
        if self.embedded:
            with contextlib.suppress(*AWAY):
                await self.write(lambda _client: None)

    async def write(self, call: Callable[[Client], T]) -> T:
        """Run ``call`` on the writing thread. Raises what it raises, and one of AWAY when there is no engine."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, self._with_client, call)

    async def read(self, call: Callable[[Client], T]) -> T:
        """Run ``call`` on a reading thread. Raises like `write`."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._with_client, call)

    def close(self) -> None:
        """Wait for what is running, then close all clients."""
        self._writer.shutdown(wait=True, cancel_futures=True)
        self._readers.shutdown(wait=True, cancel_futures=True)
        for client in self._clients:
            client.close()
        self._clients.clear()

    def _with_client(self, call: Callable[[Client], T]) -> T:
        client = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = self._connect()
            self._clients.append(client)
        return call(client)

    def _connect(self) -> Client:
        if not self.embedded:
            return self._connect_to_server()
        Path(self.path).mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            return clickhouse_connect.get_client(dsn=f"chdb://{self.path}")
        except ProgrammingError as exc:
            holder = _holder(Path(self.path))
            if holder is None:
                raise UnreadableError(
                    f"the chDB directory {self.path} cannot be opened ({str(exc).strip()[:200]}): give the disk room, "
                    "or remove the directory, since what it holds is derived from the streams"
                ) from exc
            raise DirectoryInUseError(
                f"the chDB directory {self.path} is held by {holder}: stop that process, or let several share a "
                "ClickHouse server by setting clickhouse.dsn to clickhouse://USER:PASSWORD@HOST:PORT/DATABASE"
            ) from exc

    def _connect_to_server(self) -> Client:
        password = unquote(self._parts.password or "")
        try:
            return clickhouse_connect.get_client(
                host=self._parts.hostname,
                port=self._parts.port or 0,
                username=unquote(self._parts.username or "default"),
                password=password,
                database=None,
                secure=is_secure(self._parts.geturl()),
                connect_timeout=5,
                send_receive_timeout=60,
                query_retries=0,
                autogenerate_session_id=False,
                **_certificates(self._secured, password=password),
            )
        except AWAY as exc:
            why = tls.reason(exc, SECTION, self._secured)
            if why is None and is_secure(self._parts.geturl()) and tls.was_cut_off(exc):
                why = "it closes the connection: it may want another certificate than clickhouse.tls.cert_file gives it"
            if why is None:
                raise
            raise UntrustedError(f"ClickHouse at {self._parts.hostname}: {why}") from exc

    def insert(
        self,
        client: Client,
        table: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        settings: dict[str, Any],
    ) -> None:
        """Insert rows as one block, which is what makes it all or nothing."""
        context = client.create_insert_context(
            table, columns, self.database, column_types=self._column_types.get(table), settings=settings, data=rows
        )
        self._column_types[table] = context.column_types
        context.block_row_count = max(1, len(rows))
        client.insert(context=context)

    def migrate(self, client: Client, retention_days: int, min_group_size: int) -> list[str]:
        """Apply what is missing of infra/clickhouse/migrations, and have what is there follow the two settings.

        Idempotent.

        Returns what was done, in words. Raises MigrationError.
        """
        done = []
        client.command(f"CREATE DATABASE IF NOT EXISTS {self.database}")
        client.command(
            f"CREATE TABLE IF NOT EXISTS {self.database}.migrations (number UInt32, name String, sha256 String, "
            "applied_at DateTime('UTC') DEFAULT now()) ENGINE = ReplacingMergeTree ORDER BY number"
        )
        applied = {
            int(number): (str(name), str(digest))
            for number, name, digest in client.query(
                f"SELECT number, name, sha256 FROM {self.database}.migrations FINAL"  # noqa: S608
            ).result_rows
        }
        files = {int(file.name[:4]): file for file in sorted(MIGRATIONS.glob("[0-9][0-9][0-9][0-9]_*.sql"))}
        if newer := sorted(set(applied) - set(files)):
            raise MigrationError(
                f"database {self.database} has migration {applied[newer[-1]][0]}, which this version does not know: "
                "run the version that made it, or a newer one"
            )
        for number, file in files.items():
            text = file.read_text(encoding="utf-8")
            digest = hashlib.sha256(text.encode()).hexdigest()
            if number in applied:
                if applied[number][1] != digest:
                    raise MigrationError(
                        f"migration {file.name} was changed after database {self.database} took it: add a new file"
                    )
                continue
            for statement in statements(text, self.database, retention_days, min_group_size):
                client.command(statement)
            client.insert(
                "migrations", [[number, file.name, digest]], ["number", "name", "sha256"], database=self.database,
                settings={"insert_deduplicate": 0},
            )  # fmt: skip
            done.append(f"migration {file.name}: applied")
        done += self._retain(client, retention_days)
        done += self._withhold(client, min_group_size)
        return done or ["clickhouse: up to date"]

    def _retain(self, client: Client, retention_days: int) -> list[str]:
        rows = client.query(
            "SELECT name, create_table_query FROM system.tables WHERE database = {database:String} "
            "AND create_table_query LIKE '%toIntervalDay(%' ORDER BY name",
            parameters={"database": self.database},
        ).result_rows
        done = []
        for name, query in rows:
            ttl = re.search(
                r"TTL (.+?toIntervalDay\()(\d+)(\) (?:DELETE )?WHERE .+?)(?: SETTINGS |$)", query, re.DOTALL
            )
            if ttl and int(ttl.group(2)) != retention_days:
                client.command(
                    f"ALTER TABLE {self.database}.{name} MODIFY TTL {ttl.group(1)}{retention_days}{ttl.group(3)}"
                )
                done.append(f"table {name}: rows are kept for {retention_days} days")
        return done

    def _withhold(self, client: Client, min_group_size: int) -> list[str]:
        rows = client.query(
            "SELECT name, create_table_query FROM system.tables WHERE database = {database:String} AND engine = 'View' "
            "AND create_table_query LIKE '% AS min_group_size%' ORDER BY name",
            parameters={"database": self.database},
        ).result_rows
        done = []
        for name, query in rows:
            new = re.sub(r"\b\d+ AS min_group_size", f"{min_group_size} AS min_group_size", query)
            if new != query:
                client.command(new.replace("CREATE VIEW", "CREATE OR REPLACE VIEW", 1))
                done.append(f"view {name}: figures of fewer than {min_group_size} requests are withheld")
        return done


def _certificates(secured: ClientTls | None, *, password: str) -> dict[str, Any]:
    """What clickhouse-connect calls them. A certificate logs the user in by itself where there is no password."""
    if secured is None:
        return {}
    found: dict[str, Any] = {"ca_cert": str(secured.ca_file) if secured.ca_file else None}
    if secured.cert_file:
        found |= {"client_cert": str(secured.cert_file), "client_cert_key": str(secured.key_file)}
        found["tls_mode"] = "strict" if password else "mutual"
    return found


def statements(text: str, database: str, retention_days: int, min_group_size: int) -> list[str]:
    """The statements of a migration, without comment lines, filled in."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("--")]
    filled = "\n".join(lines).replace("{database}", database).replace("{retention_days}", str(retention_days))
    filled = filled.replace("{min_group_size}", str(min_group_size))
    return [part.strip() for part in filled.split(";") if part.strip()]


def _holder(folder: Path) -> str | None:
    """Who holds the engine's lock on a directory, in words; None when nobody does."""
    status = folder / "status"
    try:
        with status.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = re.search(r"PID: (\d+)", status.read_text(errors="replace"))
        return f"process {pid.group(1)}" if pid else "another process"
    except OSError:
        return None
    return None
