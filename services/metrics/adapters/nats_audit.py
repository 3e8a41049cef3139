"""AUDIT into `audit_chain`: the one place where audit records are chained."""

from collections.abc import Callable, Sequence

from schemas import streams
from services._runtime.bus import Bus
from services._runtime.reader import StreamMessage
from services.metrics.adapters.clickhouse import ClickHouse
from services.metrics.adapters.clickhouse_audit import TABLE, AuditStore
from services.metrics.adapters.nats_archive import Filler
from services.metrics.domain import chain
from services.metrics.domain.chain import START, Head, Link

OnLinks = Callable[[Sequence[Link]], None]


class AuditArchive(Filler):
    """Chains every message of AUDIT, in the order of the stream.

    The head of the chain lies with the position, in the insert that brings the records: whoever goes on, after a crash
    or beside this process, makes the same links of the same messages, so what is taken in twice is the same row.
    ``took`` is called with links that are in the table (quick, not async).
    """

    def __init__(self, bus: Bus, engine: ClickHouse, took: OnLinks) -> None:
        super().__init__(bus, streams.AUDIT.name, None, TABLE)
        self._engine = engine
        self._store = AuditStore(engine)
        self._took = took
        self.stream = ""
        self.head: Head = START

    async def _begin(self, created: str) -> int:
        head = await self._engine.read(lambda client: self._store.head(client, created))
        self.stream, self.head = created, head
        return head.sequence

    async def _take(self, created: str, messages: list[StreamMessage]) -> None:
        links: list[Link] = []
        head = self.head
        for message in messages:
            try:
                record = chain.record_of(message.data)
            except ValueError as exc:
                await self._bury(message, exc)
                record = chain.unreadable(message.data, message.time_ms)
            links.append(chain.link(head, created, message.sequence, message.time_ms, record))
            head = links[-1].head
        await self._engine.write(lambda client: self._store.add(client, links))
        self.head = head
        self._took(links)
