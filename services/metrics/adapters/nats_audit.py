"""AUDIT into `audit_chain`: the one place where audit records are chained."""

from collections.abc import Callable, Sequence
from functools import partial

from schemas import streams
from services._runtime.bus import Bus
from services._runtime.reader import StreamMessage
from services.metrics.adapters.clickhouse import ClickHouse
from services.metrics.adapters.clickhouse_audit import TABLE, AuditStore
from services.metrics.adapters.nats_archive import Filler
from services.metrics.adapters.nats_positions import still_holds
from services.metrics.domain import chain
from services.metrics.domain.chain import START, Head, Link

OnLinks = Callable[[Sequence[Link]], None]


class AuditArchive(Filler):
    """Chains every message of AUDIT, in the order of the stream.

    The head of the chain lies with the position, in the insert that brings the records: whoever goes on, after a crash
    or beside this process, makes the same links of the same messages, so what is taken in twice is the same row.
    ``stream`` and ``head`` are what this process knows to be in the table. ``took`` is called with links that are in
    the table (quick, not async).

    After a power cut the stream may have lost its end and put other messages into the same places. What the table has
    of the old ones stays, and the chain goes on behind it with the new ones, as another life of the stream: ``begun``
    is the last one that this process has found, and the sequence behind which it begins.
    """

    def __init__(self, bus: Bus, engine: ClickHouse, took: OnLinks) -> None:
        super().__init__(bus, streams.AUDIT.name, None, TABLE)
        self._engine = engine
        self._store = AuditStore(engine)
        self._took = took
        self._next = ("", START)
        self.stream = ""
        self.head: Head = START
        self.begun = ("", 0)

    async def _begin(self, created: str) -> int:
        stream, head = await self._engine.read(lambda client: self._store.head(client, created))
        self.stream, self.head = stream, head
        life, position = await self._resume(stream, head.sequence, head.stored_ms)
        if life != stream:
            stream, head = life, Head(position, head.hash, head.stored_ms)
            self.begun = (stream, position)
        self._next = (stream, head)
        return head.sequence

    async def _take(self, _created: str, messages: list[StreamMessage]) -> None:
        links: list[Link] = []
        stream, head = self._next
        for message in messages:
            try:
                record = chain.record_of(message.data)
            except ValueError as exc:
                await self._bury(message, exc)
                record = chain.unreadable(message.data, message.time_ms)
            links.append(chain.link(head, stream, message.sequence, message.time_ms, record))
            head = links[-1].head
        await self._engine.write(lambda client: self._store.add(client, links))
        self._next = (stream, head)
        self.stream, self.head = stream, head
        self._took(links)

    async def _holds(self, head: Head) -> bool:
        return await still_holds(self._bus.js, streams.AUDIT.name, head.sequence, head.stored_ms)

    async def _common(self, life: str, sequence: int) -> int:
        """By bisection: a record that is chained twice would be shown twice."""
        state = (await self._bus.js.stream_info(streams.AUDIT.name)).state
        low, high = max(0, int(state.first_seq) - 1), min(int(state.last_seq), sequence - 1)
        while low < high:
            middle = (low + high + 1) // 2
            page = partial(self._store.page, created=life, after=middle - 1, until=middle, limit=1)
            links = await self._engine.read(page)
            if links and not await self._holds(links[0].head):
                high = middle - 1
            else:
                low = middle
        return low
