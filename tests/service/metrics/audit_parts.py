"""A chain of audit records in this process, on the real engine and the real bus, to be tampered with."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas import subjects
from schemas.v1.alerts import AuditRecord
from schemas.v1.cloudevent import dump, envelope
from schemas.v1.query import AuditVerifyQuery
from services._runtime.bus import Bus
from services._runtime.clock import now_ms
from services.metrics.adapters.audit_checks import AuditChecks
from services.metrics.adapters.clickhouse import ClickHouse
from services.metrics.adapters.clickhouse_audit import AuditStore
from services.metrics.adapters.nats_audit import AuditArchive
from services.metrics.domain.chain import Link
from tests.harness import NatsServer, eventually

AUDIT = subjects.audit("router")


def message(number: int, event_id: str | None = None, **fields: Any) -> bytes:
    known: dict[str, Any] = {
        "at_ms": now_ms(), "actor": "ops", "role": "admin", "action": "traffic-split", "source": "ab12", "status": 200,
        "outcome": "ok", "request_id": f"r{number}", "before": {"traffic_split_percent": number}, "after": {"x": "é"},
    }  # fmt: skip
    record = AuditRecord(**{**known, **fields})
    return dump(envelope("audit", event_id or f"audit.{number}", "router", record.at_ms, record))


@dataclass
class Parts:
    """Archive and checks in this process, so that the engine is at hand to be tampered with."""

    bus: Bus
    engine: ClickHouse
    store: AuditStore
    archive: AuditArchive
    taken: list[Link]

    def checks(self, retention_days: int = 90) -> AuditChecks:
        return AuditChecks(self.bus, self.engine, self.archive, retention_days)

    async def command(self, statement: str) -> None:
        text = f"ALTER TABLE cypria.audit_chain {statement} SETTINGS mutations_sync = 2"
        await self.engine.write(lambda client: client.command(text))

    async def problem(self, *, retention_days: int = 90, **question: Any) -> tuple[str, int, int] | None:
        checks, cursor = self.checks(retention_days), ""
        while True:
            page = await checks.verify(AuditVerifyQuery(cursor=cursor, **question))
            if page.complete:
                assert page.ok == (page.problem is None)
                return None if page.problem is None else (page.problem.kind, page.problem.first, page.problem.last)
            cursor = page.cursor

    async def links(self) -> list[Link]:
        stream = self.archive.stream
        return await self.engine.read(lambda client: self.store.page(client, stream, 0, 10**6, 10**6))

    async def put(self, links: list[Link]) -> None:
        """These and nothing else, as somebody would who may write to the table and knows how the chain is made."""
        await self.engine.write(lambda client: client.command("TRUNCATE TABLE cypria.audit_chain"))
        await self.engine.write(lambda client: self.store.add(client, links))


@contextlib.asynccontextmanager
async def chained(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Parts]:
    """A chain of twenty records, the seventh of which is none."""
    engine = ClickHouse(f"chdb://{tmp_path / 'chdb'}")
    await engine.open()
    await engine.write(lambda client: engine.migrate(client, 90, 5))
    nc = await nats_server.connect("router")
    for number in range(1, 21):
        await nc.jetstream().publish(AUDIT, b"none" if number == 7 else message(number))
    await nc.close()
    async with nats_server.bus("metrics") as bus:
        taken: list[Link] = []
        archive = AuditArchive(bus, engine, taken.extend)
        task = asyncio.create_task(archive.run())
        try:
            await eventually(lambda: archive.head.sequence == 20)
            yield Parts(bus, engine, AuditStore(engine), archive, taken)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            engine.close()
