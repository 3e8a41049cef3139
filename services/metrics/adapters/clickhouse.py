"""ClickHouse behind either DSN: `chdb:///dir` (in this process) or `clickhouse://user:password@host:port/database`.

All calls block, so they run on threads: one that writes, two that read.
"""

import asyncio
import contextlib
import fcntl
import importlib.util
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, ProgrammingError
from clickhouse_connect.driver.exceptions import Error as ClickHouseDriverError

from services._runtime import tls
from services._runtime.settings import ConfigError
from services._runtime.settings_clickhouse import each_server, is_secure
from services._runtime.settings_tls import ClientTls
from services.metrics.adapters.clickhouse_migrations import MigrationError, Migrations

__all__ = ["AWAY", "ClickHouse", "DirectoryInUseError", "MigrationError", "UnreadableError", "UntrustedError"]

T = TypeVar("T")

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


class ClosedError(ClickHouseError):
    """This process is ending: a question or a task came when the engine was closed already."""


class ClickHouse:
    """One engine, or a ``cluster`` of servers. ``read`` and ``write`` run a function with a client of their own on
    their threads.

    Raises ConfigError for a DSN that cannot be used here.
    """

    def __init__(self, dsn: str, secured: ClientTls | None = None, cluster: str | None = None) -> None:
        parts = urlsplit(dsn)
        self._secured = secured
        self._cluster = cluster
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
        elif parts.scheme in {"clickhouse", "clickhouses"} and parts.netloc:
            self.database = self.path.strip("/") or DEFAULT_DATABASE
        else:
            raise ConfigError("clickhouse.dsn: give chdb:///DIRECTORY or clickhouse://USER:PASSWORD@HOST:PORT/DATABASE")
        if not _DATABASE.match(self.database):
            raise ConfigError(f"clickhouse.dsn: '{self.database}' is not a database name of letters, digits and _")
        self._servers = [urlsplit(one) for one in each_server(dsn)]
        self._next = 0
        self._local = threading.local()
        self._clients: list[Client] = []
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="clickhouse-writer")
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="clickhouse-reader")
        self._column_types: dict[str, Sequence[Any]] = {}
        self._closed = False

    async def open(self) -> None:
        """Take the chDB directory, where it is one. Raises DirectoryInUseError; any other failure comes again later."""
        if self.embedded:
            with contextlib.suppress(*AWAY):
                await self.write(lambda _client: None)

    async def write(self, call: Callable[[Client], T]) -> T:
        """Run ``call`` on the writing thread. Raises what it raises, and one of AWAY when there is no engine."""
        return await self._run(self._writer, call)

    async def read(self, call: Callable[[Client], T]) -> T:
        """Run ``call`` on a reading thread. Raises like `write`."""
        return await self._run(self._readers, call)

    def close(self) -> None:
        """Wait for what is running, then close all clients. Whoever comes later gets one of AWAY."""
        self._closed = True
        self._writer.shutdown(wait=True, cancel_futures=True)
        self._readers.shutdown(wait=True, cancel_futures=True)
        for client in self._clients:
            client.close()
        self._clients.clear()

    async def _run(self, threads: ThreadPoolExecutor, call: Callable[[Client], T]) -> T:
        if self._closed:
            raise ClosedError("metrics is stopping")
        return await asyncio.get_running_loop().run_in_executor(threads, self._with_client, call)

    def _with_client(self, call: Callable[[Client], T]) -> T:
        client = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = self._connect()
            self._clients.append(client)
        try:
            return call(client)
        except AWAY:
            if self.several:  # the next call may find another one that is well
                self._local.client = None
                self._clients.remove(client)
                client.close()
            raise

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
        """A client of the first server that answers, beginning with the one after the last that was asked."""
        for left in range(len(self._servers), 0, -1):
            parts = self._servers[self._next % len(self._servers)]
            try:
                return self._connect_to(parts)
            except AWAY:
                self._next += 1
                if left == 1:
                    raise
        raise AssertionError("a DSN names a server")

    def _connect_to(self, parts: SplitResult) -> Client:
        password, secure = unquote(parts.password or ""), is_secure(parts.geturl())
        try:
            return clickhouse_connect.get_client(
                host=parts.hostname,
                port=parts.port or 0,
                username=unquote(parts.username or "default"),
                password=password,
                database=None,
                secure=secure,
                connect_timeout=5,
                send_receive_timeout=60,
                query_retries=0,
                autogenerate_session_id=False,
                **_certificates(self._secured, password=password),
            )
        except AWAY as exc:
            why = tls.reason(exc, SECTION, self._secured)
            if why is None and secure and tls.was_cut_off(exc):
                why = "it closes the connection: it may want another certificate than clickhouse.tls.cert_file gives it"
            if why is None:
                raise
            raise UntrustedError(f"ClickHouse at {parts.hostname}: {why}") from exc

    @property
    def several(self) -> bool:
        """Whether another server may take what one would not."""
        return len(self._servers) > 1

    def settle(self, client: Client, table: str) -> None:
        """Have what any server of the cluster has taken into the table be seen on this one; nothing to do without one.

        A position that is read from a server that lags would let the same rows be taken in twice.
        """
        if self._cluster:
            client.command(f"SYSTEM SYNC REPLICA {self.database}.{table} LIGHTWEIGHT")

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

        Idempotent. Returns what was done, in words. Raises MigrationError.
        """
        return Migrations(client, self.database, self._cluster).run(retention_days, min_group_size)


def _certificates(secured: ClientTls | None, *, password: str) -> dict[str, Any]:
    """What clickhouse-connect calls them. A certificate logs the user in by itself where there is no password."""
    if secured is None:
        return {}
    found: dict[str, Any] = {"ca_cert": str(secured.ca_file) if secured.ca_file else None}
    if secured.cert_file:
        found |= {"client_cert": str(secured.cert_file), "client_cert_key": str(secured.key_file)}
        found["tls_mode"] = "strict" if password else "mutual"
    return found


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
