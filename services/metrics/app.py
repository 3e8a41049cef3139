"""Wires the metrics service together; nothing else does."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

from faststream.asgi import AsgiFastStream

from schemas.subjects import PARTITIONS
from services._runtime.bus import Bus, make_broker
from services._runtime.health import Readiness, routes
from services._runtime.provisioned import wait_until_provisioned
from services._runtime.settings_model import Settings
from services._runtime.telemetry import get_logger
from services.metrics import handlers
from services.metrics import settings as own_settings
from services.metrics.adapters.audit_checks import AuditChecks
from services.metrics.adapters.audit_rounds import AuditRounds
from services.metrics.adapters.audit_watch import AuditWatch
from services.metrics.adapters.clickhouse import (
    AWAY,
    ClickHouse,
    DirectoryInUseError,
    MigrationError,
    UnreadableError,
    UntrustedError,
)
from services.metrics.adapters.nats_alarms import Alarms
from services.metrics.adapters.nats_archive import SHELVES, Archive
from services.metrics.adapters.nats_audit import AuditArchive
from services.metrics.adapters.nats_erasures import Erasures
from services.metrics.adapters.nats_evidence import Evidence
from services.metrics.adapters.nats_feeder import Feeder
from services.metrics.adapters.nats_live_tests import LiveTests
from services.metrics.adapters.nats_partition_writer import PartitionWriter
from services.metrics.adapters.nats_unit_search import UnitSearch

log = get_logger(__name__)

SERVICE = "metrics"


class Metrics:
    """The parts of one process and their life cycle."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._own = own_settings.read(settings)
        self.bus = Bus(settings, SERVICE)
        self.engine = ClickHouse(self._own.dsn, self._own.tls, self._own.cluster)
        self._alarms = Alarms(self.bus)
        self._live = LiveTests(self.bus)
        self.erasures = Erasures(self.bus)
        self.writers = [
            PartitionWriter(self.bus, p, self._own.writer, self._live, self._alarms, self.erasures)
            for p in range(PARTITIONS)
        ]
        self.feeder = Feeder(self.bus, self.engine, self._alarms)
        self.watch = AuditWatch(self.engine, self._alarms, self._own.anomalies)
        self.audit = AuditArchive(self.bus, self.engine, self.watch.took)
        self.checks = AuditChecks(self.bus, self.engine, self.audit, self._own.retention_days)
        self.rounds = AuditRounds(self.checks, self._alarms, self._own.check_every_s, self._own.check_all_every_s)
        self.archives = [*(Archive(self.bus, self.engine, shelf) for shelf in SHELVES), self.audit]
        self._store_problem: str | None = "tables are not ready yet"
        self._front: Any = None
        self._front_problem: str | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def readiness(self) -> Readiness:
        """What is missing before this process can serve."""
        readiness = Readiness()
        readiness.add("bus", self.bus.missing)
        readiness.add("partitions", self._partitions_missing)
        readiness.add("clickhouse", lambda: self._store_problem or self.feeder.missing())
        for archive in self.archives:
            readiness.add(archive.table, archive.missing)
        readiness.add("clickhouse_http", lambda: self._front_problem)
        return readiness

    def _partitions_missing(self) -> str | None:
        problems = [f"partition {i} {w.problem}" for i, w in enumerate(self.writers) if w.problem]
        return "; ".join(problems) or None

    async def start(self) -> None:
        """Begin everything. Raises DirectoryInUseError when another process holds the chDB directory."""
        try:
            await self.engine.open()
        except DirectoryInUseError as exc:
            log.error("chdb_directory_in_use", reason=str(exc))
            raise
        await self.bus.connect()
        await wait_until_provisioned(self.bus)
        await self._live.start()
        await self.erasures.start()
        for partition, writer in enumerate(self.writers):
            self._spawn(writer.run, f"partition-{partition}")
        self._spawn(self._run_store, "store")

    async def stop(self) -> None:
        """End everything; what was not stored is taken up by the next process where this one left it."""
        self.feeder.stop()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._front is not None:
            await self._front.stop()
        await asyncio.to_thread(self.engine.close)
        await self._live.stop()
        await self.erasures.stop()
        await self.bus.close()

    def _spawn(self, run: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._tasks.append(asyncio.create_task(run(), name=name))

    async def _run_store(self) -> None:
        """Make the tables as soon as ClickHouse answers, then fill them. Windows do not wait for this."""
        while self._store_problem is not None:
            try:
                done = await self.engine.write(self._migrate)
            except MigrationError as exc:
                self._store_problem = str(exc)
                log.error("migration_refused", reason=str(exc))
                await asyncio.sleep(5)
            except UnreadableError as exc:
                self._store_problem = str(exc)
                log.error("chdb_unreadable", reason=str(exc))
                await asyncio.sleep(5)
            except UntrustedError as exc:
                self._store_problem = str(exc)
                log.error("clickhouse_refused", reason=str(exc))
                await asyncio.sleep(5)
            except AWAY as exc:
                self._store_problem = f"ClickHouse does not answer ({type(exc).__name__})"
                log.warning("clickhouse_waits", error=str(exc)[:300])
                await asyncio.sleep(1)
            else:
                log.info("clickhouse_provisioned", done=done)
                self._store_problem = None
        self._spawn(self.feeder.run, "feeder")
        for archive in self.archives:
            self._spawn(archive.run, f"archive-{archive.table}")
        self._spawn(self.watch.run, "audit-watch")
        self._spawn(self.rounds.run, "audit-rounds")
        if self.engine.embedded and self._own.http_enabled:
            await self._open_front()

    def _migrate(self, client: Any) -> list[str]:
        return self.engine.migrate(client, self._own.retention_days, self._own.min_group_size)

    async def _open_front(self) -> None:
        from services.metrics.adapters.clickhouse_http import Front

        address = own_settings.http_front(self._settings)
        front = Front(self.engine.path, self.engine.database, address.user, address.password)
        try:
            port = await front.start(address.host, address.port)
        except OSError as exc:
            where = f"{address.host}:{address.port}"
            self._front_problem = f"cannot listen on {where} ({exc.strerror}): free it or set clickhouse.http_port"
            log.error("clickhouse_http_failed", reason=self._front_problem)
        else:
            self._front = front
            log.info("clickhouse_http", host=address.host, port=port, user=address.user)


def build_app(settings: Settings) -> AsgiFastStream:
    """The service as an ASGI application; its lifespan starts and stops all parts."""
    metrics = Metrics(settings)
    broker = make_broker(settings, SERVICE)
    answers = handlers.Answers(metrics.engine, Evidence(metrics.bus), metrics.checks, UnitSearch(metrics.bus))
    handlers.subscribe(broker, answers)
    return AsgiFastStream(
        broker,
        asgi_routes=routes(SERVICE, metrics.readiness()),
        logger=None,
        on_startup=[metrics.start],
        on_shutdown=[metrics.stop],
    )
